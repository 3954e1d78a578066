//! What a request is addressed to: from its listener, host, path and `?ns=` to whose names it holds.
//!
//! Each of these may name an upstream, and what names one has to agree: a client that was led to the
//! wrong place is told so, and gets no other registry's image.

use std::fmt;

use super::owners::{Owners, UnknownName};
use crate::oci::{Owner, Repository, UpstreamHost};

/// What a listener serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serve {
    #[default]
    All,
    /// Hosted images: what could be Docker Hub's name, too, is a hosted one there.
    Hosted,
    /// Mirrored images: nothing is written there.
    Mirror,
}

/// Which names a listener has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub serve: Serve,
    /// All names are this upstream's.
    pub upstream: Option<UpstreamHost>,
}

/// By which way a request came in.
#[derive(Clone, Copy, Debug)]
pub struct Entrance<'a> {
    pub scope: &'a Scope,
    /// The host, and maybe port, that it was sent to.
    pub authority: &'a str,
}

/// What names an upstream, as the client wrote it.
#[derive(Clone, Copy, Debug)]
enum By<'a> {
    Listener,
    Host(&'a str),
    Path(&'a str),
    Namespace(&'a str),
}

/// What besides the name in the path says whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    pub serve: Serve,
    upstream: Option<UpstreamHost>,
    /// `?ns=` alone: the path may name the registry once more.
    by_namespace: bool,
}

impl Address {
    /// `prefix`: what stands before `/v2/`; `namespace`: `?ns=`.
    pub fn of(
        owners: &Owners,
        entrance: Entrance<'_>,
        prefix: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<Self, UnknownName> {
        let Entrance { scope: Scope { serve, upstream }, authority } = entrance;
        let namespace = namespace.filter(|asked| counts(owners, *serve, asked));
        let of_prefix = prefix.map(|prefix| owners.upstream(prefix)).transpose();
        let of_namespace = namespace.map(|asked| owners.upstream(asked)).transpose();
        if *serve == Serve::Hosted {
            let named = owners.of_authority(authority).map(|_| authority).or(prefix).or(namespace);
            return match named {
                Some(named) => Err(UnknownName::HostedOnly(shown(named))),
                None => Ok(Self { serve: *serve, ..Self::default() }),
            };
        }
        let of_listener = upstream.as_ref().map(|host| owners.upstream(host.as_str())).transpose();
        let named = [
            (By::Listener, of_listener?),
            (By::Host(authority), owners.of_authority(authority)),
            (By::Path(prefix.unwrap_or_default()), of_prefix?),
            (By::Namespace(namespace.unwrap_or_default()), of_namespace?),
        ];
        let mut named = named.into_iter().filter_map(|(by, host)| Some((by, host?)));
        let Some((first, one)) = named.next() else {
            return Ok(Self { serve: *serve, ..Self::default() });
        };
        if let Some((second, _)) = named.find(|(_, other)| *other != one) {
            return Err(disagree(first, second));
        }
        let by_namespace = matches!(first, By::Namespace(_));
        Ok(Self { serve: *serve, upstream: Some(one.clone()), by_namespace })
    }

    /// The upstream whose names are meant, where something else than the name says so.
    pub fn upstream(&self) -> Option<&UpstreamHost> {
        self.upstream.as_ref()
    }

    /// The repository of this name, where it is served at all.
    pub fn repository(&self, owners: &Owners, name: &str) -> Result<Repository, UnknownName> {
        let named = self.upstream.as_ref().map(UpstreamHost::as_str);
        let found = owners.resolve(named, self.within(owners, name)?);
        if self.serve == Serve::Hosted {
            return match found {
                Ok(Repository { owner: Owner::Upstream(_), .. }) | Err(UnknownName::Upstream(_)) => {
                    Err(UnknownName::HostedOnly(shown(name)))
                }
                found => found,
            };
        }
        let repository = found?;
        match (&repository.owner, self.serve) {
            (Owner::Hosted, Serve::Mirror) => Err(UnknownName::MirrorOnly(repository.name)),
            (Owner::Hosted, _) if owners.is_apart(&repository.name) => {
                Err(UnknownName::Apart(repository.name))
            }
            _ => Ok(repository),
        }
    }

    /// The repository of a token's scope: as our challenges write it, or as the client asks for it here.
    pub fn scope(&self, owners: &Owners, name: &str) -> Result<Repository, UnknownName> {
        let Some(one) = &self.upstream else { return owners.resolve(None, name) };
        match name.split_once('/') {
            Some((first, rest)) if first == one.as_str() => owners.resolve(Some(first), rest),
            _ => owners.resolve(Some(one.as_str()), name),
        }
    }

    /// The name behind the registry that `?ns=` names too: BuildKit, and containerd with
    /// `override_path`, put a mirror's path behind `/v2/`. Another registry's host is a mirror's path
    /// that the client was given for the wrong registry.
    ///
    /// An alias without a dot may as well be a namespace of that registry (`quay/quay` of quay.io), so it
    /// is a mirror's path only before two components. What that gets wrong, a name of one behind such an
    /// alias and a name of three in such a namespace, is right with the host itself in front.
    fn within<'a>(&self, owners: &Owners, name: &'a str) -> Result<&'a str, UnknownName> {
        let Some(one) = self.upstream.as_ref().filter(|_| self.by_namespace) else { return Ok(name) };
        let Some((first, rest)) = name.split_once('/') else { return Ok(name) };
        let looks_like_host = first.contains(['.', ':']);
        match owners.upstream(first) {
            Ok(host) if host == one && (rest.contains('/') || looks_like_host || is_spelled(one, first)) => {
                Ok(rest)
            }
            Ok(host) if host != one && looks_like_host => {
                Err(disagree(By::Path(first), By::Namespace(one.as_str())))
            }
            _ => Ok(name),
        }
    }

    /// By which name a list of what is addressed shows a repository. None: it is not served here.
    /// `stored`: by which one lists of everything show it.
    pub fn listed(&self, owners: &Owners, repository: &Repository, stored: String) -> Option<String> {
        match (&repository.owner, &self.upstream, self.serve) {
            (Owner::Upstream(host), Some(one), _) => (host == one).then(|| repository.name.to_string()),
            (Owner::Hosted, Some(_), _) | (Owner::Upstream(_), _, Serve::Hosted) => None,
            (Owner::Hosted, None, Serve::Mirror) => None,
            (Owner::Hosted, None, Serve::All) if owners.is_apart(&repository.name) => None,
            _ => Some(stored),
        }
    }
}

/// Whether `?ns=` says anything: where nothing is mirrored, a client that is sent here for another
/// registry means what is hosted.
pub fn counts(owners: &Owners, serve: Serve, namespace: &str) -> bool {
    match serve {
        Serve::Hosted => owners.upstream(namespace).is_ok(),
        Serve::All | Serve::Mirror => !owners.configured().is_empty(),
    }
}

/// Whether this is the registry's own host, not an alias.
fn is_spelled(host: &UpstreamHost, text: &str) -> bool {
    text.parse::<UpstreamHost>().is_ok_and(|own| own == *host)
}

fn disagree(first: By<'_>, second: By<'_>) -> UnknownName {
    UnknownName::Disagree { first: first.to_string(), second: second.to_string() }
}

fn shown(asked: &str) -> String {
    asked.chars().take(120).collect()
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener => f.write_str("its listener"),
            Self::Host(host) => write!(f, "its host `{}`", shown(host)),
            Self::Path(path) => write!(f, "its path `{}`", shown(path)),
            Self::Namespace(namespace) => write!(f, "`?ns={}`", shown(namespace)),
        }
    }
}

#[cfg(test)]
mod tests;
