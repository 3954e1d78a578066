//! The tables `[upstream."host"]`.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::oci::{Name, UpstreamHost};
use crate::upstream::{BudgetOptions, EndpointOptions, Options, PrivatePolicy, Proofs, Proxy, check_url};

use super::environment::Environment;
use super::error::ConfigError;
use super::section::{Found, Section};
use super::{credentials, defaults, files, units};

/// Each takes its part of the time that one call has.
const MAX_MIRRORS: usize = 8;

/// One upstream, and the aliases and virtual hosts it claims.
pub struct Upstream {
    pub options: Options,
    pub aliases: Vec<Found<String>>,
    pub hosts: Vec<Found<String>>,
}

/// The default one, if any, is first; it is there whether it has a table or not.
pub fn read(
    section: Section,
    default: Option<UpstreamHost>,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Vec<Upstream>, ConfigError> {
    let default_key = default.as_ref().map(|host| section.key(host.as_str())).unwrap_or_default();
    let mut upstreams = Vec::new();
    for (name, table) in section.named()? {
        let host = name.read(|text| host(text))?;
        let is_default = default.as_ref() == Some(&host);
        let host = host.with_default(is_default);
        let upstream = upstream(host, table, environment, warnings)?;
        if is_doubtful(&upstream.options) {
            warnings.push(format!(
                "{}: {}: this is asked at {}; if a longer name is meant, such as `ghcr.io`, write all of it",
                name.origin, name.key, upstream.options.url
            ));
        }
        upstreams.push(upstream);
    }
    let Some(default) = default else { return Ok(upstreams) };
    match upstreams.iter().position(|upstream| upstream.options.host == default) {
        Some(index) => upstreams[..=index].rotate_right(1),
        None => {
            let table = Section::new(default_key, Vec::new());
            upstreams.insert(0, upstream(default.with_default(true), table, environment, warnings)?);
        }
    }
    Ok(upstreams)
}

/// Whose names are that say no registry.
pub fn default(root: &mut Section) -> Result<Option<UpstreamHost>, ConfigError> {
    let Some(found) = root.text("default_upstream")? else { return Ok(Some(UpstreamHost::docker_hub())) };
    found.read(|text| match text.as_str() {
        "none" => Ok(None),
        text => host(text).map(Some).map_err(|error| format!("{error}, or write `none`")),
    })
}

/// A lone word that was given no URL: no public registry has such a name.
fn is_doubtful(options: &Options) -> bool {
    let host = options.host.as_str();
    let by_default = options.url.as_str() == format!("https://{host}/");
    by_default && host != "localhost" && !host.contains(['.', ':'])
}

/// One spelling only, so that one registry has one table.
fn host(text: &str) -> Result<UpstreamHost, String> {
    let host: UpstreamHost =
        text.parse().map_err(|error| format!("{error}; paths and schemes belong into `url`"))?;
    if host.as_str() == text {
        Ok(host)
    } else {
        Err(format!("write this registry as [upstream.\"{host}\"]"))
    }
}

fn upstream(
    host: UpstreamHost,
    mut table: Section,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Upstream, ConfigError> {
    let aliases = table.texts("aliases")?.unwrap_or_default();
    for alias in &aliases {
        alias.read(|text| check_alias(text))?;
    }
    let claimed_hosts = table.texts("hosts")?.unwrap_or_default();
    for host in &claimed_hosts {
        host.read(|text| super::names::check_host(text))?;
    }
    let found = table.text("url")?;
    let url = match &found {
        Some(found) => found.read(|text| base_url(text))?,
        None => default_url(&host, &table)?,
    };
    let credential = credentials::read(&mut table, &url, environment, warnings)?;
    let private = private(&mut table)?;
    let sends = credential.is_some() || matches!(private, PrivatePolicy::PerCaller(_));
    warn_of_clear_text(&table, &url, sends, warnings);
    let timeout = |table: &mut Section, key, default| -> Result<Duration, ConfigError> {
        Ok(table.read(key, units::timeout)?.unwrap_or(default))
    };
    let header_timeout = timeout(&mut table, "header_timeout", defaults::HEADER_TIMEOUT)?;
    let deadline = match table.text("deadline")? {
        Some(found) => found.read(|text| deadline(text, header_timeout))?,
        None => defaults::DEADLINE.max(header_timeout.saturating_mul(2)),
    };
    let options = Options {
        url,
        credential,
        ca_file: ca_file(&mut table)?,
        proxy: proxy(&mut table)?,
        mirrors: mirrors(&mut table, environment, warnings)?,
        private,
        redirect_hosts: hosts(&mut table, "redirect_hosts")?,
        realm_hosts: hosts(&mut table, "realm_hosts")?,
        connect_timeout: timeout(&mut table, "connect_timeout", defaults::CONNECT_TIMEOUT)?,
        header_timeout,
        idle_timeout: timeout(&mut table, "idle_timeout", defaults::BODY_IDLE_TIMEOUT)?,
        deadline,
        max_requests: table.number("max_requests", 1..=10_000)?.unwrap_or(defaults::MAX_REQUESTS),
        max_fills: table.number("max_fills", 1..=10_000)?.unwrap_or(defaults::MAX_FILLS),
        queue_timeout: table.read("queue_timeout", units::time)?.unwrap_or(defaults::QUEUE_TIMEOUT),
        queue_length: table.number("queue_length", 0..=1_000_000)?.unwrap_or(defaults::QUEUE_LENGTH),
        requests_per_minute: table
            .number("requests_per_minute", 1..=u32::MAX)?
            .and_then(std::num::NonZeroU32::new),
        // For whom the reserve is, other sections say: see `build`.
        budget: BudgetOptions {
            reserve: table.read("quota_reserve", units::reserve)?.unwrap_or(defaults::QUOTA_RESERVE),
            ..BudgetOptions::default()
        },
        host,
    };
    if let Some(stray) = table.stray_table() {
        return Err(stray.error(format!(
            "a table has no place here; a host with dots is written in quotes: `[upstream.\"{}.{}\"]`",
            options.host, stray.value
        )));
    }
    table.finish()?;
    Ok(Upstream { options, aliases, hosts: claimed_hosts })
}

/// `[[upstream."host".mirror]]`: other places that have the same content.
fn mirrors(
    table: &mut Section,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Vec<EndpointOptions>, ConfigError> {
    let tables = table.sections("mirror")?;
    if let Some(extra) = tables.get(MAX_MIRRORS) {
        return Err(extra.missing("url", &format!("at most {MAX_MIRRORS} mirrors of one registry are asked")));
    }
    let mirrors = tables.into_iter().map(|mut mirror| {
        let url = mirror.text("url")?;
        let url = url.ok_or_else(|| {
            mirror.missing("url", "a mirror needs its address: write it as in `https://mirror.example/`")
        })?;
        let url = url.read(|text| base_url(text))?;
        let credential = credentials::read(&mut mirror, &url, environment, warnings)?;
        warn_of_clear_text(&mirror, &url, credential.is_some(), warnings);
        let (ca_file, proxy) = (ca_file(&mut mirror)?, proxy(&mut mirror)?);
        mirror.finish()?;
        Ok(EndpointOptions { url, credential, ca_file, proxy })
    });
    mirrors.collect()
}

fn warn_of_clear_text(table: &Section, url: &Url, has_credential: bool, warnings: &mut Vec<String>) {
    if has_credential && url.scheme() == "http" && !is_loopback(url) {
        warnings.push(format!(
            "{}: the login for {} crosses the network in the clear; use https",
            table.path(),
            url.host_str().unwrap_or_default()
        ));
    }
}

fn ca_file(table: &mut Section) -> Result<Option<PathBuf>, ConfigError> {
    table.read("ca_file", |path| files::pem(path, "CERTIFICATE"))
}

fn proxy(table: &mut Section) -> Result<Proxy, ConfigError> {
    let Some(found) = table.text("proxy")? else { return Ok(Proxy::Environment) };
    found.read(|text| match text.as_str() {
        "none" => Ok(Proxy::None),
        text => proxy_url(text).map(Proxy::Url),
    })
}

fn proxy_url(text: &str) -> Result<Url, String> {
    let example = "write it as in `http://proxy.example:3128`, or write `none`";
    // Not shown in errors: it may hold a password.
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({error}); {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || !text.contains("://") || url.host().is_none() {
        return Err(format!("a proxy is spoken to over http:// or https://; {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("secrets do not belong into this file: a proxy that wants a password is taken from the \
                    environment, as HTTPS_PROXY"
            .into());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("a proxy has no path; {example}"));
    }
    Ok(url)
}

fn deadline(text: &str, header_timeout: Duration) -> Result<Duration, String> {
    let deadline = units::timeout(text)?;
    if deadline < header_timeout {
        return Err(format!(
            "no answer could take as long as `header_timeout` allows; write {} or more",
            units::format_time(header_timeout)
        ));
    }
    Ok(deadline)
}

/// An alias stands where a name's first component does.
fn check_alias(text: &str) -> Result<(), String> {
    match text {
        "library" => Err("`library` is where Docker Hub's official images are; choose another alias".into()),
        _ if text.contains('/') || text.parse::<Name>().is_err() => {
            Err(format!("`{text}` is no alias; write one component of a name, such as `dockerhub`"))
        }
        _ => Ok(()),
    }
}

fn private(table: &mut Section) -> Result<PrivatePolicy, ConfigError> {
    let hold = table.read("proof_for", units::time)?.unwrap_or(defaults::PROOF);
    let stale = table.read("proof_stale_for", units::time)?.unwrap_or(defaults::PROOF_STALE);
    let policy = table.read("private", |text| match text {
        "refuse" => Ok(PrivatePolicy::Refuse),
        "shared" => Ok(PrivatePolicy::Shared),
        "per-caller" => Ok(PrivatePolicy::PerCaller(Proofs { hold, stale })),
        _ => Err(format!(
            "`{text}` is no choice; write `refuse` (the default), `shared` (whoever may pull from Forebay may pull \
             it) or `per-caller` (who shows a login of that registry that may pull it)"
        )),
    })?;
    Ok(policy.unwrap_or(PrivatePolicy::Refuse))
}

fn default_url(host: &UpstreamHost, table: &Section) -> Result<Url, ConfigError> {
    let text =
        if host.is_docker_hub() { defaults::DOCKER_HUB_URL.into() } else { format!("https://{host}/") };
    base_url(&text).map_err(|reason| ConfigError::Missing { key: table.key("url"), reason })
}

/// What stands before `/v2/`.
fn base_url(text: &str) -> Result<Url, String> {
    let example = "write it as in `https://registry.example/`";
    // Not shown in errors: it may hold a password.
    let mut url = Url::parse(text).map_err(|error| format!("this is no URL ({error}); {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || !text.contains("://") {
        return Err(format!("the URL starts with neither https:// nor http://; {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL holds a user or a password; use `username` and `password_file`".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("the URL has a query or a fragment, which a registry has not; {example}"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    check_url(&url)?;
    Ok(url)
}

/// Whether a URL leads to this machine on its face.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Host names as URLs show them: lower case, without a port.
fn hosts(table: &mut Section, key: &'static str) -> Result<Vec<String>, ConfigError> {
    let texts = table.texts(key)?.unwrap_or_default();
    let hosts = texts.iter().map(|found| {
        found.read(|text| match url::Host::parse(text) {
            Ok(host) if !text.contains('*') => Ok(host.to_string()),
            _ => Err(format!(
                "`{text}` is no host; write a whole name or address without a port, such as `cdn.example`"
            )),
        })
    });
    hosts.collect()
}
