//! Whose a name is: the order of design.md, section 5, by configuration alone.

use std::collections::HashMap;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::OwnersOptions;
use crate::oci::{InvalidName, Name, Owner, Repository, UpstreamHost};

/// Turns every spelling of a repository into its canonical identity.
pub struct Owners {
    /// By host and by alias, in lower case.
    upstreams: HashMap<String, UpstreamHost>,
    hosted: GlobSet,
    /// Whose names are that say no registry and are not hosted.
    default: Option<UpstreamHost>,
    /// The configured hosts, sorted, for messages.
    configured: String,
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
    #[error(
        "`{asked}` is not mirrored here: configured are {configured}; start with `--upstream {asked}` to add it"
    )]
    Upstream { asked: String, configured: String },
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
        let mut configured: Vec<&str> = options.upstreams.iter().map(|(host, _)| host.as_str()).collect();
        configured.sort_unstable();
        let configured =
            if configured.is_empty() { "no upstreams".to_owned() } else { configured.join(", ") };
        let mut upstreams = HashMap::new();
        for (host, aliases) in &options.upstreams {
            let hub: &[&str] =
                if host.is_docker_hub() { &["index.docker.io", "registry-1.docker.io"] } else { &[] };
            let aliases = aliases.iter().map(String::as_str);
            for spelling in aliases.chain(hub.iter().copied()).chain([host.as_str()]) {
                upstreams.insert(spelling.to_ascii_lowercase(), host.clone());
            }
        }
        let default = options.upstreams.iter().map(|(host, _)| host).find(|host| host.is_default()).cloned();
        Ok(Self { upstreams, hosted: patterns(&options.hosted)?, default, configured })
    }

    /// `host`: what `?ns=` or the path's prefix named. `name`: as it stands in the path, decoded.
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
            return Err(self.unknown(first));
        }
        Ok(Repository { owner: Owner::Upstream(host.clone()), name: parsed })
    }

    /// The configured upstream of this host or alias.
    pub fn upstream(&self, asked: &str) -> Result<&UpstreamHost, UnknownName> {
        let found = self.upstreams.get(asked).or_else(|| self.upstreams.get(&asked.to_ascii_lowercase()));
        found.ok_or_else(|| self.unknown(asked))
    }

    fn unknown(&self, asked: &str) -> UnknownName {
        UnknownName::Upstream { asked: asked.chars().take(80).collect(), configured: self.configured.clone() }
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
    fn a_host_that_is_not_configured_is_refused_with_what_is() {
        for message in [resolve(Some("quay.io"), "org/app"), resolve(None, "quay.io/org/app")] {
            assert!(message.contains("`quay.io`"), "{message}");
            assert!(message.contains("docker.io, ghcr.io, localhost:5001"), "{message}");
        }
        let none = Owners::new(OwnersOptions { upstreams: vec![], hosted: vec![] }).unwrap();
        assert!(none.resolve(None, "library/nginx").is_err());
    }

    #[test]
    fn another_upstream_may_be_the_default_or_none() {
        let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
        let with = |upstreams: Vec<UpstreamHost>, hosted: &str| {
            let upstreams = upstreams.into_iter().map(|host| (host, vec![])).collect();
            Owners::new(OwnersOptions { upstreams, hosted: vec![hosted.to_owned()] }).unwrap()
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
            let owners = Owners::new(OwnersOptions { upstreams, hosted }).unwrap();
            owners.resolve(None, name).unwrap().owner == Owner::Hosted
        };
        assert!(hosted("*", "app") && !hosted("*", "team/app"));
        assert!(hosted("team/*", "team/app") && !hosted("team/*", "team/a/b"));
        assert!(hosted("team/**", "team/a/b") && !hosted("team/**", "teams/a"));
        assert!(!hosted("team/**", "app"));
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let options = OwnersOptions { upstreams: vec![], hosted: vec!["a[".to_owned()] };
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
