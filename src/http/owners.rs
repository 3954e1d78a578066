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
        "`{name}` of Docker Hub would be taken for a repository of {host}: \
         ask for it as {host}'s, without `docker.io`"
    )]
    Ambiguous { name: Name, host: UpstreamHost },
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
        Ok(Self { upstreams, hosted: patterns(&options.hosted)?, configured })
    }

    /// `host`: what `?ns=` or the path's prefix named. `name`: as it stands in the path, decoded.
    pub fn resolve(&self, host: Option<&str>, name: &str) -> Result<Repository, UnknownName> {
        if let Some(host) = host {
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
        // No namespace of Docker Hub has a dot: this is the host of a registry that is not mirrored.
        if let Some((first, _)) = name.split_once('/').filter(|(first, _)| first.contains('.')) {
            return Err(self.unknown(first));
        }
        let host = self.upstream("docker.io")?.clone();
        Ok(Repository { owner: Owner::Upstream(host), name: parsed })
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
        let name = if host.is_docker_hub() { self.of_docker_hub(name)? } else { name };
        Ok(Repository { owner: Owner::Upstream(host.clone()), name })
    }

    /// Docker Hub's repositories are stored without their host, so a first component that is
    /// another upstream's host would name that upstream's folder. The Hub itself has none such.
    fn of_docker_hub(&self, name: Name) -> Result<Name, UnknownName> {
        let first = name.as_str().split_once('/').map(|(first, _)| first);
        match first.and_then(|first| self.upstreams.get(first).filter(|host| host.as_str() == first)) {
            Some(host) if !host.is_docker_hub() => Err(UnknownName::Ambiguous { host: host.clone(), name }),
            _ => Ok(name.with_library()),
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
