//! Whose a repository is, and its canonical identity.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Name;

/// The name that an upstream registry goes by in image references: `docker.io`, `ghcr.io`,
/// `localhost:5001`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamHost(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no registry host: write it as in an image reference, `ghcr.io` or `localhost:5001`")]
pub struct InvalidHost(String);

impl UpstreamHost {
    pub fn docker_hub() -> Self {
        Self("docker.io".into())
    }

    pub fn is_docker_hub(&self) -> bool {
        &*self.0 == "docker.io"
    }

    pub fn as_str(&self) -> &str {
        &self.0
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
            Ok(Self(lower.into()))
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
    /// Where it stands in the tree on disk: Docker Hub's and hosted ones bare, others under their
    /// host, where a port's `:` (no character of a name) becomes `_port_`, which no host holds.
    pub fn stored_name(&self) -> String {
        match &self.owner {
            Owner::Upstream(host) if !host.is_docker_hub() => {
                format!("{}/{}", host.as_str().replace(':', "_port_"), self.name)
            }
            _ => self.name.to_string(),
        }
    }
}

impl fmt::Display for UpstreamHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UpstreamHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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
        match &self.owner {
            Owner::Upstream(host) => write!(f, "{host}/{}", self.name),
            Owner::Hosted => self.name.fmt(f),
        }
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
    fn stored_names_are_bare_for_docker_hub_and_prefixed_for_others() {
        assert_eq!(repository("docker.io", "library/nginx").stored_name(), "library/nginx");
        assert_eq!(repository("ghcr.io", "org/app").stored_name(), "ghcr.io/org/app");
        assert_eq!(repository("localhost:5001", "a").stored_name(), "localhost_port_5001/a");
    }
}
