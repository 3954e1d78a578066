//! The table `[forward_proxy]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use globset::Glob;

use crate::http::{ForwardOptions, certificate_path};
use crate::oci::UpstreamHost;
use crate::upstream;

use super::Config;
use super::error::ConfigError;
use super::section::Section;

/// None where there is no such table.
pub fn read(
    mut section: Section,
    upstreams: &[upstream::Options],
    mirror_asks: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<ForwardOptions>, ConfigError> {
    if !section.is_written() {
        return Ok(None);
    }
    let Some(listen) = section.text("listen")? else {
        return Err(section.missing("listen", "where do clients find it? Add `listen = \"127.0.0.1:3128\"`"));
    };
    let address = listen.read(|text| {
        text.parse().map_err(|_| format!("`{text}` is no address with a port; write `127.0.0.1:3128`"))
    })?;
    if mirror_asks {
        return Err(listen.error(
            "with `auth.mirror`, clients would be asked for a login in the registries' own names and send their \
             passwords for those; turn one of the two off",
        ));
    }
    let mut tunnel = Vec::new();
    for pattern in section.texts("tunnel")?.unwrap_or_default() {
        tunnel.push(pattern.read(|text| host_pattern(text))?);
        if pattern.value.trim_matches(['*', '.']).is_empty() {
            warnings.push(format!(
                "{}: {}: whoever reaches {address} reaches every public host through it",
                pattern.origin, pattern.key
            ));
        }
    }
    section.finish()?;
    let registries: BTreeMap<String, UpstreamHost> = upstreams.iter().flat_map(known_as).collect();
    if registries.is_empty() {
        return Err(listen.error("no upstream is configured that clients know by a name and port 443"));
    }
    Ok(Some(ForwardOptions { listen: address, tunnel, registries }))
}

impl Config {
    /// Where the forward proxy's CA is kept, once there is one.
    pub fn ca_file(&self) -> PathBuf {
        certificate_path(&self.store.data)
    }
}

/// By which names clients go to a registry, at the usual port.
fn known_as(options: &upstream::Options) -> Vec<(String, UpstreamHost)> {
    let host = &options.host;
    if host.is_docker_hub() {
        return ["registry-1.docker.io", "index.docker.io"]
            .map(|name| (name.to_owned(), host.clone()))
            .to_vec();
    }
    let name = host.as_str().strip_suffix(":443").unwrap_or(host.as_str());
    let is_name = name.contains('.') && !name.contains(':') && name.parse::<std::net::IpAddr>().is_err();
    if is_name { vec![(name.to_owned(), host.clone())] } else { Vec::new() }
}

fn host_pattern(text: &str) -> Result<Glob, String> {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.*".contains(&b));
    match Glob::new(text) {
        Ok(glob) if plain && !text.is_empty() => Ok(glob),
        _ => Err(format!("`{text}` is no pattern of hosts; write a name without a port, or `*.example.com`")),
    }
}
