//! From what was written to checked options, table by table.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::access::{self, IdentityLimit, Override, Priority, Rates, Wild};
use crate::oci::{Owner, UpstreamHost};
use crate::telemetry::{self, Format};
use crate::{mirror, store};

use super::environment::Environment;
use super::error::ConfigError;
use super::section::{Found, Section};
use super::tree::Entries;
use super::{
    Choices, Config, defaults, events, forward, gc, hosted, listeners, names, presets, scrub, units,
    upstreams, warm,
};

type Result<T> = std::result::Result<T, ConfigError>;

/// `adopt` is apart from the tree: it is said once, by flag or variable, and not in a file.
pub fn build(
    mut entries: Entries,
    adopt: Option<Found<String>>,
    environment: &Environment,
    mut warnings: Vec<String>,
) -> Result<Config> {
    presets::apply(&mut entries, &mut warnings);
    let sources = super::tree::origins(&entries);
    let mut root = Section::new("", entries);
    let default_upstream = upstreams::default(&mut root)?;
    let upstreams = upstreams::read(root.section("upstream")?, default_upstream, environment, &mut warnings)?;
    let mut hosted = root.section("hosted")?;
    let push = hosted.read("push", super::access::push)?;
    let tls = listeners::tls(root.section("tls")?, &mut warnings)?;
    let further = listeners::further(&mut root, &upstreams, tls.is_some())?;
    let (owners, shadow) = names::owners(&upstreams, &further, &mut hosted, &mut warnings)?;
    let upstreams: Vec<_> = upstreams.into_iter().map(|upstream| upstream.options).collect();
    let adopt = adopt.map(|adopt| adopt.read(|text| owner(text, &upstreams))).transpose()?;
    let mut limits = root.section("limits")?;
    let mut cache = root.section("cache")?;
    let (telemetry, log_format) = logs(root.section("log")?, environment.terminal)?;
    let mut http = listeners::read(&mut root, tls, further, &mut limits)?;
    let access = client_limits(&mut limits, &mut warnings)?;
    let mut mirror = mirror_options(&mut root, &mut cache)?;
    let port = http.listen.first().map(std::net::SocketAddr::port);
    let warm = warm::pins(&mut root, &owners, port)?;
    for image in warm.iter().flat_map(|pin| &pin.images) {
        mirror.reserved.add(image.repository.clone(), &image.reference);
    }
    let upstreams: Vec<_> =
        upstreams.into_iter().map(|options| budgeted(options, &access, &mirror)).collect();
    let (gc, lease) = gc::read(root.section("gc")?, &mut hosted)?;
    let (scrub, quarantine) = scrub::read(root.section("scrub")?)?;
    let auth = super::access::read(&mut root, push, &http, &owners, &mut warnings)?;
    http.forward = forward::read(root.section("forward_proxy")?, &upstreams, auth.mirror, &mut warnings)?;
    let config = Config {
        warm,
        auth,
        http,
        owners,
        access,
        registry: hosted::read(&mut hosted)?,
        gc,
        scrub,
        mirror,
        upstreams,
        store: store::Options {
            lease,
            quarantine,
            ..store_options(&mut root, &mut cache, adopt, environment)?
        },
        events: events::read(root.section("events")?, &mut warnings)?,
        telemetry,
        choices: Choices { shadow, log_format },
        warnings,
        sources,
    };
    super::access::check_callers(&config.auth, &config.upstreams)?;
    hosted.finish()?;
    limits.finish()?;
    cache.finish()?;
    root.finish()?;
    Ok(config)
}

/// An upstream, told for whom its reserve is.
fn budgeted(
    mut options: crate::upstream::Options,
    access: &access::Options,
    mirror: &mirror::Options,
) -> crate::upstream::Options {
    options.budget.has_priority = !access.priority.is_nobody() || mirror.reserved.has_any_of(&options.host);
    options.budget.fair_share = access.fair_share;
    options
}

fn client_limits(limits: &mut Section, warnings: &mut Vec<String>) -> Result<access::Options> {
    let requests = limits.read("requests", units::rate)?.unwrap_or(None);
    let cold_misses = limits.read("cold_misses", units::rate)?.unwrap_or(Some(defaults::COLD_MISSES));
    let mut overrides: Vec<Override> = Vec::new();
    for mut section in limits.sections("network")? {
        let Some(cidr) = section.text("cidr")? else {
            return Err(section.missing("cidr", "which network? Add `cidr = \"10.0.0.0/8\"`"));
        };
        let network = cidr.read(|text| network(text))?;
        if overrides.iter().any(|other| other.network == network) {
            return Err(cidr.error(format!("{network} has limits already; put both into one table")));
        }
        overrides.push(Override {
            network,
            rates: Rates {
                requests: section.read("requests", units::rate)?.unwrap_or(requests),
                cold_misses: section.read("cold_misses", units::rate)?.unwrap_or(cold_misses),
            },
        });
        section.finish()?;
    }
    let mut identities = Vec::new();
    for mut section in limits.sections("identity")? {
        let Some(name) = section.text("name")? else {
            return Err(section.missing("name", "whose limits? Add `name = \"ci-*\"`"));
        };
        identities.push(IdentityLimit {
            name: name.read(|text| match text.is_empty() {
                true => Err("the name is empty; write it as in `alice`, `ci-*` or `certificate:*`"),
                false => Ok(Wild::new(text.as_str())),
            })?,
            rates: Rates {
                requests: section.read("requests", units::rate)?.unwrap_or(requests),
                cold_misses: section.read("cold_misses", units::rate)?.unwrap_or(cold_misses),
            },
        });
        section.finish()?;
    }
    let mut priority = Priority::default();
    for found in limits.texts("priority")?.unwrap_or_default() {
        found.read(|text| add_priority(&mut priority, text))?;
    }
    let mut trusted_proxies = Vec::new();
    for found in limits.texts("trusted_proxies")?.unwrap_or_default() {
        let network = found.read(|text| network(text))?;
        if network.prefix_len() == 0 {
            warnings.push(format!(
                "{}: {}: {network} lets every client choose the address it is limited and logged by",
                found.origin, found.key
            ));
        }
        trusted_proxies.push(network);
    }
    Ok(access::Options {
        requests,
        cold_misses,
        overrides,
        identities,
        priority,
        fair_share: limits.switch("fair_share")?.unwrap_or(true),
        wait: limits.read("wait", units::time)?.unwrap_or(defaults::WAIT),
        queue: limits.number("queue", 0..=1_000_000)?.unwrap_or(defaults::WAITING),
        trusted_proxies,
    })
}

/// A network or an address, else a name.
fn add_priority(priority: &mut Priority, text: &str) -> std::result::Result<(), String> {
    let start = text.split('/').next().unwrap_or_default();
    if start.parse::<std::net::IpAddr>().is_ok() {
        priority.networks.push(network(text)?);
    } else if text.is_empty() {
        return Err("the entry is empty; write a network, `10.0.0.0/8`, or a name, `ci-*`".to_owned());
    } else {
        priority.identities.push(Wild::new(text));
    }
    Ok(())
}

/// A network; a bare address is the network of itself alone.
fn network(text: &str) -> std::result::Result<IpNet, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("`{text}` is no network; write it as in `10.0.0.0/8` or `2001:db8::/32`"))?;
    if network.trunc() == network {
        Ok(network)
    } else {
        Err(format!("`{text}` has bits set behind its prefix; write `{}`", network.trunc()))
    }
}

fn mirror_options(root: &mut Section, cache: &mut Section) -> Result<mirror::Options> {
    let mut negative = root.section("negative")?;
    let mut stale = root.section("stale")?;
    let memory = cache.read("memory", units::size)?.unwrap_or(defaults::MEMORY);
    let time = |section: &mut Section, key, default| -> Result<Duration> {
        Ok(section.read(key, units::time)?.unwrap_or(default))
    };
    let options = mirror::Options {
        freshness: freshness(root.section("freshness")?)?,
        reserved: mirror::Reserved::default(),
        negative_not_found: time(&mut negative, "not_found", defaults::NOT_FOUND)?,
        negative_denied: time(&mut negative, "denied", defaults::DENIED)?,
        stale: mirror::Stale {
            not_found: stale.read("not_found", units::time_or_forever)?.unwrap_or(defaults::STALE_NOT_FOUND),
            denied: time(&mut stale, "denied", defaults::STALE_DENIED)?,
            trouble: stale.read("trouble", units::time_or_forever)?.unwrap_or(defaults::STALE_TROUBLE),
        },
        offline: root.switch("offline")?.unwrap_or(false),
        metadata_memory: memory / 2,
        blob_memory: memory - memory / 2,
        ahead: warm::ahead(root)?,
    };
    negative.finish()?;
    stale.finish()?;
    Ok(options)
}

/// The file's rules come first, so that they can overrule the default ones.
fn freshness(mut section: Section) -> Result<mirror::Freshness> {
    let mut rules = Vec::new();
    for (pattern, found) in section.section("rules")?.pairs()? {
        let parsed = mirror::Pattern::parse(&pattern).map_err(|error| found.error(error.to_string()))?;
        check_rule(&pattern).map_err(|reason| found.error(reason))?;
        rules.push((parsed, found.read(|text| units::time(text))?));
    }
    for tag in defaults::MOVING_TAGS.into_iter().filter_map(|tag| mirror::Pattern::parse(tag).ok()) {
        if !rules.iter().any(|(pattern, _)| *pattern == tag) {
            rules.push((tag, defaults::MOVING));
        }
    }
    let freshness = mirror::Freshness {
        rules,
        versions: section.read("versions", units::time)?.unwrap_or(defaults::VERSIONS),
        others: section.read("others", units::time)?.unwrap_or(defaults::OTHERS),
        jitter: section.share("jitter", 0.5)?.unwrap_or(defaults::JITTER),
    };
    section.finish()?;
    Ok(freshness)
}

/// A colon parts repository and tag; before that, there is one only with a registry's port.
pub(super) fn check_rule(pattern: &str) -> std::result::Result<(), String> {
    let Some((repository, _)) = pattern.rsplit_once(':') else { return Ok(()) };
    match repository.split_once(':') {
        Some((_, rest)) if !rest.contains('/') || rest.contains(':') => Err(format!(
            "`{pattern}` has a colon too many and matches nothing; write it as in `library/*:1.*` or \
             `localhost:5001/team/*:1.*`"
        )),
        _ => Ok(()),
    }
}

fn store_options(
    root: &mut Section,
    cache: &mut Section,
    adopt: Option<Owner>,
    environment: &Environment,
) -> Result<store::Options> {
    let data = match root.text("data")? {
        Some(found) => found.read(|path| directory(path))?,
        None => environment.data()?,
    };
    let nonzero = |text: &str| match units::size(text)? {
        0 => Err(format!("`{text}` leaves room for nothing; write it as in `200GiB`")),
        size => Ok(size),
    };
    Ok(store::Options {
        data,
        max_size: cache.read("max_size", nonzero)?,
        min_free: cache.read("min_free", units::size)?,
        unread_budget: cache.read("unread_budget", units::size)?.unwrap_or(defaults::UNREAD_BUDGET),
        resumes: cache.number("resumes", 0..=1000)?.unwrap_or(defaults::RESUMES),
        reader_timeout: cache.read("reader_timeout", units::timeout)?.unwrap_or(defaults::READER_TIMEOUT),
        fill_connections: cache.number("fill_connections", 1..=8)?.unwrap_or(defaults::FILL_CONNECTIONS),
        range_share: cache.share("range_share", 1.0)?.unwrap_or(defaults::RANGE_SHARE),
        range_floor: cache.read("range_floor", units::size)?.unwrap_or(defaults::RANGE_FLOOR),
        range_idle: defaults::RANGE_IDLE,
        lease: defaults::LEASE,
        quarantine: defaults::QUARANTINE,
        adopt,
    })
}

fn directory(path: &str) -> std::result::Result<PathBuf, String> {
    match Path::new(path) {
        path if path.as_os_str().is_empty() => Err("the path is empty; name a directory".into()),
        path if path.is_file() => Err(format!("{} is a file; name a directory", path.display())),
        path => Ok(path.to_owned()),
    }
}

fn owner(text: &str, upstreams: &[crate::upstream::Options]) -> std::result::Result<Owner, String> {
    if text == "hosted" {
        return Ok(Owner::Hosted);
    }
    let host: UpstreamHost = text.parse().map_err(|error| format!("{error}, or `hosted`"))?;
    match upstreams.iter().find(|upstream| upstream.host == host) {
        Some(upstream) => Ok(Owner::Upstream(upstream.host.clone())),
        None => {
            Err(format!("{host} is no configured upstream; add `--upstream {host}` or [upstream.\"{host}\"]"))
        }
    }
}

/// Also tells which format was chosen; None for `auto`.
fn logs(mut section: Section, terminal: bool) -> Result<(telemetry::Options, Option<Format>)> {
    let format = section.read("format", |text| match text {
        "auto" => Ok(None),
        "text" => Ok(Some(Format::Text)),
        "json" => Ok(Some(Format::Json)),
        _ => Err(format!("`{text}` is no format; write `auto`, `text` or `json`")),
    })?;
    let format = format.flatten();
    let level = section.read("level", |text| telemetry::check_filter(text).map(|()| text.to_owned()))?;
    let options = telemetry::Options {
        format: format.unwrap_or(if terminal { Format::Text } else { Format::Json }),
        level: level.unwrap_or_else(|| defaults::LOG_LEVEL.into()),
        access: section.switch("access")?.unwrap_or(defaults::ACCESS_LOG),
    };
    section.finish()?;
    Ok((options, format))
}
