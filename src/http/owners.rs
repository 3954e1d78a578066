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
    #[error("`{0}` is not mirrored here; start with `--upstream {0}` to add it")]
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owners() -> Owners {
        let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
        Owners::new(OwnersOptions {
            upstreams: vec![
                (host("docker.io"), vec!["dockerhub".to_owned()]),
                (host("ghcr.io"), vec![]),
                (host("localhost:5001"), vec!["local".to_owned()]),
            ],
            hosted: vec!["*".to_owned(), "corp.internal/**".to_owned()],
            hosts: vec![("GHCR.mirror.corp".to_owned(), host("ghcr.io"))],
            ..OwnersOptions::default()
        })
        .unwrap()
    }

    fn resolve(host: Option<&str>, name: &str) -> String {
        match owners().resolve(host, name) {
            Ok(repository) => format!("{}: {}", repository.owner, repository.name),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_order_is_named_host_then_first_component_then_hosted_then_docker_hub() {
        for (host, name, expected) in [
            (Some("docker.io"), "library/nginx", "docker.io: library/nginx"),
            (Some("docker.io"), "nginx", "docker.io: library/nginx"),
            (Some("registry-1.docker.io"), "nginx", "docker.io: library/nginx"),
            (Some("Docker.IO"), "nginx", "docker.io: library/nginx"),
            (Some("ghcr.io"), "nginx", "ghcr.io: nginx"),
            (Some("ghcr.io"), "corp.internal/app", "ghcr.io: corp.internal/app"),
            (Some("localhost:5001"), "a/b", "localhost:5001: a/b"),
            (None, "ghcr.io/org/app", "ghcr.io: org/app"),
            (None, "localhost:5001/app", "localhost:5001: app"),
            (None, "local/app", "localhost:5001: app"),
            (None, "dockerhub/nginx", "docker.io: library/nginx"),
            (None, "docker.io/org/nginx", "docker.io: org/nginx"),
            (None, "index.docker.io/nginx", "docker.io: library/nginx"),
            (None, "nginx", "hosted: nginx"),
            (None, "ghcr.io", "hosted: ghcr.io"),
            (None, "corp.internal/team/app", "hosted: corp.internal/team/app"),
            (None, "library/nginx", "docker.io: library/nginx"),
        ] {
            assert_eq!(resolve(host, name), expected, "{host:?} {name}");
        }
    }

    #[test]
    fn a_host_that_is_not_configured_is_refused() {
        for message in [resolve(Some("quay.io"), "org/app"), resolve(None, "quay.io/org/app")] {
            assert!(message.contains("`quay.io` is not mirrored here"), "{message}");
            assert!(!message.contains("ghcr.io"), "whom that concerns is decided elsewhere: {message}");
        }
        let configured: Vec<_> = owners().configured().iter().map(ToString::to_string).collect();
        assert_eq!(configured, ["docker.io", "ghcr.io", "localhost:5001"]);
        let none = Owners::new(OwnersOptions::default()).unwrap();
        assert!(none.resolve(None, "library/nginx").is_err());
    }

    #[test]
    fn a_virtual_host_names_its_upstream_at_any_port_and_an_upstreams_own_name_at_its_own() {
        let owners = owners();
        for (authority, expected) in [
            ("ghcr.mirror.corp", Some("ghcr.io")),
            ("Ghcr.Mirror.Corp.:5443", Some("ghcr.io")),
            ("ghcr.io", Some("ghcr.io")),
            ("ghcr.io:443", Some("ghcr.io")),
            ("ghcr.io:80", Some("ghcr.io")),
            ("ghcr.io:5000", None),
            ("registry-1.docker.io", Some("docker.io")),
            ("docker.io", Some("docker.io")),
            ("localhost:5001", None),
            ("localhost", None),
            ("dockerhub", None),
            ("mirror.corp", None),
            ("x.ghcr.mirror.corp", None),
            ("[::1]:5000", None),
            ("", None),
            (":", None),
        ] {
            assert_eq!(owners.of_authority(authority).map(UpstreamHost::as_str), expected, "{authority}");
        }
        assert_eq!(resolve(Some("ghcr.mirror.corp"), "org/app"), "ghcr.io: org/app");
        assert_eq!(resolve(None, "ghcr.mirror.corp/org/app"), "ghcr.io: org/app");
        let with_port = OwnersOptions {
            upstreams: vec![("registry.corp:5000".parse().unwrap(), vec![])],
            ..OwnersOptions::default()
        };
        let owners = Owners::new(with_port).unwrap();
        assert!(owners.of_authority("registry.corp:5000").is_some());
        assert!(owners.of_authority("registry.corp").is_none());
    }

    #[test]
    fn another_upstream_may_be_the_default_or_none() {
        let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
        let with = |upstreams: Vec<UpstreamHost>, hosted: &str| {
            let upstreams = upstreams.into_iter().map(|host| (host, vec![])).collect();
            Owners::new(OwnersOptions {
                upstreams,
                hosted: vec![hosted.to_owned()],
                ..OwnersOptions::default()
            })
            .unwrap()
        };
        let stored = |owners: &Owners, host: Option<&str>, name: &str| {
            let repository = owners.resolve(host, name).unwrap();
            (repository.to_string(), repository.stored_name())
        };
        let text = |canonical: &str, stored: &str| (canonical.to_owned(), stored.to_owned());
        let corp = with(
            vec![host("corp.example:5000").with_default(true), host("docker.io").with_default(false)],
            "mine",
        );
        assert_eq!(stored(&corp, None, "app"), text("corp.example:5000/app", "app"));
        assert_eq!(stored(&corp, None, "ghcr.io/app"), text("corp.example:5000/ghcr.io/app", "ghcr.io/app"));
        assert_eq!(stored(&corp, Some("corp.example:5000"), "app"), text("corp.example:5000/app", "app"));
        assert_eq!(
            stored(&corp, Some("docker.io"), "nginx"),
            text("docker.io/library/nginx", "docker.io/library/nginx")
        );
        assert!(matches!(
            corp.resolve(Some("corp.example:5000"), "docker.io/x"),
            Err(UnknownName::Ambiguous { .. })
        ));
        let none = with(vec![], "**");
        for ns in [None, Some("corp.example")] {
            assert_eq!(stored(&none, ns, "ghcr.io/a/b"), text("ghcr.io/a/b", "ghcr.io/a/b"));
        }
        let some = with(vec![host("docker.io").with_default(false)], "mine");
        assert!(matches!(some.resolve(None, "library/nginx"), Err(UnknownName::NoDefault(_))));
    }

    #[test]
    fn docker_hub_is_no_way_into_another_upstreams_folder() {
        assert!(matches!(
            owners().resolve(Some("docker.io"), "ghcr.io/org/app"),
            Err(UnknownName::Ambiguous { .. })
        ));
        assert!(matches!(
            owners().resolve(None, "docker.io/ghcr.io/app"),
            Err(UnknownName::Ambiguous { .. })
        ));
    }

    #[test]
    fn a_hosted_name_is_not_the_default_upstreams_in_any_spelling() {
        for (host, name) in [
            (Some("docker.io"), "corp.internal/app"),
            (Some("dockerhub"), "corp.internal/app"),
            (None, "docker.io/corp.internal/app"),
            (None, "index.docker.io/corp.internal/a/b"),
        ] {
            assert!(
                matches!(owners().resolve(host, name), Err(UnknownName::Hosted { .. })),
                "{host:?} {name}"
            );
        }
    }

    #[test]
    fn a_star_is_one_component() {
        let hosted = |pattern: &str, name: &str| {
            let hosted = vec![pattern.to_owned()];
            let upstreams = vec![(UpstreamHost::docker_hub(), vec![])];
            let owners =
                Owners::new(OwnersOptions { upstreams, hosted, ..OwnersOptions::default() }).unwrap();
            owners.resolve(None, name).unwrap().owner == Owner::Hosted
        };
        assert!(hosted("*", "app") && !hosted("*", "team/app"));
        assert!(hosted("team/*", "team/app") && !hosted("team/*", "team/a/b"));
        assert!(hosted("team/**", "team/a/b") && !hosted("team/**", "teams/a"));
        assert!(!hosted("team/**", "app"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let options = OwnersOptions { hosted: vec!["a[".to_owned()], ..OwnersOptions::default() };
        let message = Owners::new(options).err().unwrap().to_string();
        assert!(message.contains("`a[`"), "{message}");
    }

    proptest! {
        #[test]
        fn a_repository_has_a_plain_name_and_a_configured_owner(
            host in proptest::option::of("[a-z.:0-9]{0,12}|docker\\.io|ghcr\\.io"),
            name in "([a-z0-9./_%A-Z:-]{0,30})|(ghcr\\.io|local|dockerhub)/[a-z0-9./_-]{0,20}",
        ) {
            if let Ok(repository) = owners().resolve(host.as_deref(), &name) {
                prop_assert!(repository.name.as_str().parse::<Name>().is_ok());
                if let Owner::Upstream(host) = &repository.owner {
                    prop_assert!(["docker.io", "ghcr.io", "localhost:5001"].contains(&host.as_str()));
                }
                if let Some(host) = host {
                    prop_assert_eq!(repository.owner.to_string(), host);
                }
            }
        }
    }
}
