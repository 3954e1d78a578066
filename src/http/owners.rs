//! Whose a name is: the order of design.md, section 5, by configuration alone.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::OwnersOptions;
use crate::oci::{InvalidName, Name, Owner, Repository, UpstreamHost};

/// Turns every spelling of a repository into its canonical identity.
pub struct Owners {
    /// By host, by alias and by virtual host, in lower case.
    upstreams: HashMap<String, UpstreamHost>,
    /// By what requests have as `Host`: virtual hosts, which have no port here.
    hosts: HashMap<String, UpstreamHost>,
    /// The same by upstreams' own names, with the port that they are configured with.
    own_hosts: HashMap<String, UpstreamHost>,
    hosted: GlobSet,
    /// Of those, the ones that every listener serves.
    everywhere: GlobSet,
    /// Whose names are that say no registry and are not hosted.
    default: Option<UpstreamHost>,
    /// Every upstream, sorted.
    configured: Vec<UpstreamHost>,
}

/// A pattern of hosted names that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "hosted repositories: `{pattern}` is no pattern ({reason}); \
     write `*` for one component, `**` for any number"
)]
pub struct InvalidPattern {
    pattern: String,
    reason: String,
}

/// Why a request names no repository of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownName {
    #[error(transparent)]
    Invalid(#[from] InvalidName),
    /// What is configured is told to whom it concerns only.
    #[error(
        "`{0}` is not mirrored here; start with `--upstream {0}` to add it, or for images of your own write \
         `{0}/**` into `hosted.repositories`"
    )]
    Upstream(String),
    #[error(
        "this request names one registry by {first} and another by {second}: \
         have both name the same one, or leave one out"
    )]
    Disagree { first: String, second: String },
    #[error("`{0}` is no hosted name, and this listener serves hosted images only: ask another listener")]
    HostedOnly(String),
    #[error("`{0}` is a hosted name, and this listener serves mirrored images only: ask another listener")]
    MirrorOnly(Name),
    #[error(
        "`{0}` is a hosted name that Docker Hub could have too: only listeners that serve hosted images alone \
         serve it"
    )]
    Apart(Name),
    #[error(
        "`{name}` would be taken for a repository of {host}: \
         ask for it as {host}'s, without the other registry"
    )]
    Ambiguous { name: Name, host: UpstreamHost },
    #[error("`{name}` is a hosted name here (`hosted.repositories`), so {host}'s is not mirrored")]
    Hosted { name: Name, host: UpstreamHost },
    #[error(
        "`{0}` is no hosted name, and names without a registry have no upstream here: see `hosted.repositories`"
    )]
    NoDefault(Name),
}

impl Owners {
    pub fn new(options: OwnersOptions) -> Result<Self, InvalidPattern> {
        let mut configured: Vec<UpstreamHost> =
            options.upstreams.iter().map(|(host, _)| host.clone()).collect();
        configured.sort_unstable();
        let (mut upstreams, mut own_hosts) = (HashMap::new(), HashMap::new());
        for (host, aliases) in &options.upstreams {
            let hub: &[&str] =
                if host.is_docker_hub() { &["index.docker.io", "registry-1.docker.io"] } else { &[] };
            let own = hub.iter().copied().chain([host.as_str()]);
            let names_no_machine = own.clone().filter(|own| !is_any_machine(own));
            own_hosts.extend(names_no_machine.map(|own| (own.to_owned(), host.clone())));
            for spelling in aliases.iter().map(String::as_str).chain(own) {
                upstreams.insert(spelling.to_ascii_lowercase(), host.clone());
            }
        }
        let hosts: HashMap<String, UpstreamHost> =
            options.hosts.into_iter().map(|(host, upstream)| (host.to_ascii_lowercase(), upstream)).collect();
        upstreams.extend(hosts.clone());
        let default = options.upstreams.iter().map(|(host, _)| host).find(|host| host.is_default()).cloned();
        let hosted = patterns(&options.hosted)?;
        let everywhere: Vec<String> =
            options.hosted.into_iter().filter(|pattern| !options.apart.contains(pattern)).collect();
        let everywhere = patterns(&everywhere)?;
        Ok(Self { upstreams, hosts, own_hosts, hosted, everywhere, default, configured })
    }

    /// A repository's identity, wherever it is served. `host`: what the request is addressed to besides
    /// the name. `name`: as it stands in the path, decoded.
    pub fn resolve(&self, host: Option<&str>, name: &str) -> Result<Repository, UnknownName> {
        // Without upstreams, a client that is sent here for another registry means what is hosted.
        if let Some(host) = host.filter(|_| !self.upstreams.is_empty()) {
            return self.of_upstream(self.upstream(host)?, name);
        }
        if let Some((first, rest)) = name.split_once('/')
            && let Some(host) = self.upstreams.get(first)
        {
            return self.of_upstream(host, rest);
        }
        let parsed: Name = name.parse()?;
        if self.hosted.is_match(name) {
            return Ok(Repository { owner: Owner::Hosted, name: parsed });
        }
        let Some(host) = &self.default else { return Err(UnknownName::NoDefault(parsed)) };
        // No namespace of Docker Hub has a dot: this is the host of a registry that is not mirrored.
        if let Some((first, _)) = name.split_once('/').filter(|(first, _)| first.contains('.'))
            && host.is_docker_hub()
        {
            return Err(unknown(first));
        }
        Ok(Repository { owner: Owner::Upstream(host.clone()), name: parsed })
    }

    /// The configured upstream of this host or alias.
    pub fn upstream(&self, asked: &str) -> Result<&UpstreamHost, UnknownName> {
        let found = self.upstreams.get(asked).or_else(|| self.upstreams.get(&asked.to_ascii_lowercase()));
        found.ok_or_else(|| unknown(asked))
    }

    /// The upstream that a request's `Host` means: by one of its virtual hosts, whatever the port, or
    /// by its own name, where DNS leads that here. Nobody is let in by this: it is one more way to name
    /// what is configured.
    pub fn of_authority(&self, authority: &str) -> Option<&UpstreamHost> {
        let authority = authority.to_ascii_lowercase();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
            _ => (authority.as_str(), None),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        // Another port than HTTP's own may be that of anything else on the same machine.
        let own = match port {
            None | Some("80" | "443") => self.own_hosts.get(host),
            Some(_) => None,
        };
        self.hosts.get(host).or(own).or_else(|| self.own_hosts.get(&authority))
    }

    /// Whether this is still how a mirrored repository is named and kept.
    pub fn mirrors(&self, repository: &Repository) -> bool {
        let Owner::Upstream(host) = &repository.owner else { return false };
        let resolved = self.resolve(Some(host.as_str()), repository.name.as_str());
        resolved.is_ok_and(|now| now == *repository && now.stored_name() == repository.stored_name())
    }

    /// Every upstream, sorted.
    pub fn configured(&self) -> &[UpstreamHost] {
        &self.configured
    }

    /// Whether a hosted name is served only where nothing is mirrored.
    pub fn is_apart(&self, name: &Name) -> bool {
        self.hosted.is_match(name.as_str()) && !self.everywhere.is_match(name.as_str())
    }

    /// For an upstream named by the client: only then a bare `nginx` means Docker Hub's.
    fn of_upstream(&self, host: &UpstreamHost, name: &str) -> Result<Repository, UnknownName> {
        let name: Name = name.parse()?;
        let name = if host.is_default() { self.of_default(name)? } else { name };
        let name = if host.is_docker_hub() { name.with_library() } else { name };
        // They would stand in one folder. What is there must not decide, nor show in the answer.
        if host.is_default() && self.hosted.is_match(name.as_str()) {
            return Err(UnknownName::Hosted { host: host.clone(), name });
        }
        Ok(Repository { owner: Owner::Upstream(host.clone()), name })
    }

    /// The default upstream's repositories are stored without their host, so a first component that
    /// is another upstream's host would name that upstream's folder.
    fn of_default(&self, name: Name) -> Result<Name, UnknownName> {
        let first = name.as_str().split_once('/').map(|(first, _)| first);
        match first.and_then(|first| self.upstreams.get(first).filter(|host| host.as_str() == first)) {
            Some(host) if !host.is_default() => Err(UnknownName::Ambiguous { host: host.clone(), name }),
            _ => Ok(name),
        }
    }
}

fn unknown(asked: &str) -> UnknownName {
    UnknownName::Upstream(asked.chars().take(80).collect())
}

/// A name that every machine has for itself, or an address: clients reach Forebay by those.
fn is_any_machine(host: &str) -> bool {
    let name = host.split(':').next().unwrap_or_default();
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok()
}

/// `*` stays inside a component, `**` does not.
fn patterns(hosted: &[String]) -> Result<GlobSet, InvalidPattern> {
    let mut set = GlobSetBuilder::new();
    let invalid = |pattern: &str, error: globset::Error| InvalidPattern {
        pattern: pattern.to_owned(),
        reason: error.kind().to_string(),
    };
    for pattern in hosted {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|error| invalid(pattern, error))?);
    }
    set.build().map_err(|error| invalid(&hosted.join(", "), error))
}

#[cfg(test)]
mod tests;
