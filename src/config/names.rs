//! Who owns which names: hosts and aliases of upstreams, and hosted patterns (design: "names").

use std::collections::HashMap;

use globset::GlobBuilder;

use crate::http::{ListenerOptions, OwnersOptions, Serve};
use crate::oci::UpstreamHost;

use super::defaults;
use super::error::ConfigError;
use super::section::Section;
use super::upstreams::Upstream;

/// Checks that no name has two owners. Also tells of `shadow`.
pub fn owners(
    upstreams: &[Upstream],
    listeners: &[ListenerOptions],
    hosted: &mut Section,
    warnings: &mut Vec<String>,
) -> Result<(OwnersOptions, bool), ConfigError> {
    let claimed = claimed(upstreams)?;
    let has_default = upstreams.iter().any(|upstream| upstream.options.host.is_default());
    let shadow = hosted.switch("shadow")?.unwrap_or(false);
    let patterns = hosted.texts("repositories")?;
    // The listeners on which no name is Docker Hub's.
    let hosted_only = listeners.iter().any(|listener| listener.scope.serve == Serve::Hosted);
    let mut apart = Vec::new();
    for pattern in patterns.iter().flatten() {
        pattern.read(|text| check_pattern(text))?;
        let first = pattern.value.split('/').next().unwrap_or_default();
        if let Some(host) = claimed.get(first)
            && first != pattern.value
        {
            return Err(pattern.error(format!(
                "names under `{first}/` belong to the upstream {host}, so this pattern never matches; choose another \
                 first component, such as `corp.internal`"
            )));
        }
        if !has_default || !could_be_on_docker_hub(&pattern.value) {
            continue;
        }
        let pattern_text = &pattern.value;
        if !shadow && hosted_only {
            apart.push(pattern_text.clone());
            continue;
        }
        if !shadow {
            return Err(pattern.error(format!(
                "`{pattern_text}` matches names that Docker Hub may have, and dockerd would be given hosted images for \
                 them; start the pattern with a component that has a dot, such as `corp.internal/**`, or add a \
                 [[listener]] with `serve = \"hosted\"` for them, or set `shadow = true` if that is what you want"
            )));
        }
        warnings.push(format!(
            "hosted.repositories: `{pattern_text}` hides Docker Hub's repositories of the same names"
        ));
    }
    let patterns = patterns.map(|patterns| patterns.into_iter().map(|found| found.value).collect());
    let owners = OwnersOptions {
        upstreams: upstreams
            .iter()
            .map(|Upstream { options, aliases, .. }| {
                (options.host.clone(), aliases.iter().map(|alias| alias.value.clone()).collect())
            })
            .collect(),
        hosts: upstreams
            .iter()
            .flat_map(|Upstream { options, hosts, .. }| {
                hosts.iter().map(|host| (host.value.clone(), options.host.clone()))
            })
            .collect(),
        apart,
        hosted: patterns.unwrap_or_else(|| vec![defaults::HOSTED.into()]),
    };
    Ok((owners, shadow))
}

/// First components that lead to an upstream.
fn claimed(upstreams: &[Upstream]) -> Result<HashMap<&str, &str>, ConfigError> {
    let mut claimed: HashMap<&str, &str> = upstreams
        .iter()
        .map(|upstream| (upstream.options.host.as_str(), upstream.options.host.as_str()))
        .collect();
    for Upstream { options, aliases, hosts } in upstreams {
        for (claim, kind) in
            aliases.iter().map(|alias| (alias, "alias")).chain(hosts.iter().map(|host| (host, "host")))
        {
            let text = claim.value.as_str();
            match claimed.insert(text, options.host.as_str()) {
                None => {}
                Some(other) if other == text => {
                    return Err(
                        claim.error(format!("`{text}` is an upstream's own name; choose another {kind}"))
                    );
                }
                Some(other) => {
                    return Err(
                        claim.error(format!("`{text}` leads to {other} already; leave one of the two out"))
                    );
                }
            }
        }
    }
    Ok(claimed)
}

/// A virtual host: a name of this server's in DNS, without a port.
pub fn check_host(text: &str) -> Result<(), String> {
    let example = "write a name of this server's, such as `ghcr.mirror.corp`";
    if text.contains(':') {
        return Err(format!(
            "`{text}` is more than a name: ports do not count, and schemes are not known here; {example}"
        ));
    }
    if text == "localhost" || text.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("`{text}` is what any client may find this server by; {example}"));
    }
    match text.parse::<UpstreamHost>() {
        Ok(_) if text == text.to_ascii_lowercase() => Ok(()),
        Ok(_) => Err(format!("`{text}`: write it in lower case")),
        Err(_) => Err(format!("`{text}` is no host; {example}")),
    }
}

/// What stands for components of names: their characters, `*`, and `**` as a component of its own.
pub fn check_pattern(text: &str) -> Result<(), String> {
    let example = "write it as in `*`, `corp.internal/**` or `corp.internal/team-*`";
    let in_name =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*');
    let component =
        |part: &str| !part.is_empty() && part.bytes().all(in_name) && (part == "**" || !part.contains("**"));
    if !text.split('/').all(component) {
        return Err(format!("`{text}` is no pattern of repository names; {example}"));
    }
    // http builds the same glob; what it cannot take is found here.
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    glob.map(|_| ()).map_err(|error| format!("{error}; {example}"))
}

/// Docker Hub's names have two components, and its namespaces have no dot.
fn could_be_on_docker_hub(pattern: &str) -> bool {
    let first = pattern.split('/').next().unwrap_or_default();
    (pattern.contains('/') || pattern.contains("**")) && !first.contains('.')
}
