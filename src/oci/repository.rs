//! Whose a repository is, and its canonical identity.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use super::Name;

/// The name that an upstream registry goes by in image references: `docker.io`, `ghcr.io`,
/// `localhost:5001`. The name alone is what two of them are compared by.
#[derive(Clone)]
pub struct UpstreamHost {
    name: Arc<str>,
    is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no registry host: write it as in an image reference, `ghcr.io` or `localhost:5001`")]
pub struct InvalidHost(String);

impl UpstreamHost {
    pub fn docker_hub() -> Self {
        Self { name: "docker.io".into(), is_default: true }
    }

    pub fn is_docker_hub(&self) -> bool {
        &*self.name == "docker.io"
    }

    /// Whether names without a registry are this one's. Docker Hub is it unless configured otherwise.
    pub fn is_default(&self) -> bool {
        self.is_default
    }

    pub fn with_default(self, is_default: bool) -> Self {
        Self { is_default, ..self }
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl FromStr for UpstreamHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.chars().take(80).collect());
        let lower = text.to_ascii_lowercase();
        // The names that clients use for Docker Hub are one registry.
        if matches!(lower.as_str(), "docker.io" | "index.docker.io" | "registry-1.docker.io") {
            return Ok(Self::docker_hub());
        }
        let (host, port) = match lower.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (lower.as_str(), None),
        };
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if lower.len() <= 253 && port_fits && host.split('.').all(label) {
            Ok(Self { name: lower.into(), is_default: false })
        } else {
            Err(invalid())
        }
    }
}

/// Who is the authority over a repository. Configuration alone decides it (design: "names").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Pulled through from this registry.
    Upstream(UpstreamHost),
    /// Pushed here.
    Hosted,
}

/// A repository's one canonical identity, whatever spelling it was asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    pub owner: Owner,
    pub name: Name,
}

impl Repository {
    /// Where it stands in the tree on disk: hosted ones and the default upstream's bare, others under their
    /// host, where a port's `:` (no character of a name) becomes `_port_`, which no host holds.
    pub fn stored_name(&self) -> String {
        match &self.owner {
            Owner::Upstream(host) if !host.is_default() => {
                format!("{}/{}", host.as_str().replace(':', "_port_"), self.name)
            }
            _ => self.name.to_string(),
        }
    }
}

impl Repository {
    /// The repository of this owner, where nobody knows hosted, that stands under a name in the tree. None:
    /// it is no name that anybody can ask for.
    pub fn stored_as(stored_name: &str, owner: Option<&Owner>) -> Option<Self> {
        let (owner, name) = match owner {
            None | Some(Owner::Hosted) => (Owner::Hosted, stored_name),
            Some(Owner::Upstream(host)) => {
                let prefix = host.as_str().replace(':', "_port_") + "/";
                let under = stored_name.strip_prefix(&prefix);
                let host = host.clone().with_default(under.is_none());
                (Owner::Upstream(host), under.unwrap_or(stored_name))
            }
        };
        Some(Self { owner, name: name.parse().ok()? })
    }

    /// The same for messages, by its name in the tree where it has no other.
    pub fn shown_as(stored_name: &str, owner: Option<&Owner>) -> String {
        let found = Self::stored_as(stored_name, owner);
        found.map_or_else(|| stored_name.to_owned(), |repository| repository.to_string())
    }
}

impl PartialEq for UpstreamHost {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for UpstreamHost {}

impl Hash for UpstreamHost {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl Ord for UpstreamHost {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name.cmp(&other.name)
    }
}

impl PartialOrd for UpstreamHost {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for UpstreamHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for UpstreamHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(host) => host.fmt(f),
            Self::Hosted => f.write_str("hosted"),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // For each request: not by the machinery of `write!`.
        if let Owner::Upstream(host) = &self.owner {
            f.write_str(host.as_str())?;
            f.write_str("/")?;
        }
        self.name.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(host: &str, name: &str) -> Repository {
        Repository { owner: Owner::Upstream(host.parse().unwrap()), name: name.parse().unwrap() }
    }

    #[test]
    fn hosts_have_one_spelling() {
        for hub in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            assert!(hub.parse::<UpstreamHost>().unwrap().is_docker_hub());
        }
        for good in ["ghcr.io", "localhost", "localhost:5001", "127.0.0.1:5000"] {
            assert!(good.parse::<UpstreamHost>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a..b", "-a", "a/b", "a:0", "a:b", "a:70000", "http://a", "a_b"] {
            assert!(bad.parse::<UpstreamHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn stored_names_are_bare_for_the_default_upstream_and_prefixed_for_others() {
        assert_eq!(repository("docker.io", "library/nginx").stored_name(), "library/nginx");
        assert_eq!(repository("ghcr.io", "org/app").stored_name(), "ghcr.io/org/app");
        assert_eq!(repository("localhost:5001", "a").stored_name(), "localhost_port_5001/a");
        let of = |host: UpstreamHost| Repository { owner: Owner::Upstream(host), name: "a".parse().unwrap() };
        let host: UpstreamHost = "ghcr.io".parse().unwrap();
        for owner in
            ["docker.io", "ghcr.io", "localhost:5001"].map(|host| host.parse::<UpstreamHost>().unwrap())
        {
            for is_default in [true, false] {
                let stored = of(UpstreamHost::with_default(owner.clone(), is_default)).stored_name();
                let found = Repository::stored_as(&stored, Some(&Owner::Upstream(owner.clone()))).unwrap();
                assert_eq!((found.stored_name(), found.owner), (stored, Owner::Upstream(owner.clone())));
            }
        }
        assert_eq!(Repository::stored_as("Bad", None), None);
        assert_eq!(Repository::stored_as("a", None).unwrap().owner, Owner::Hosted);
        assert_eq!(of(host.clone().with_default(true)).stored_name(), "a");
        assert_eq!(of(UpstreamHost::docker_hub().with_default(false)).stored_name(), "docker.io/a");
        assert_eq!(host.clone().with_default(true), host);
    }
}
