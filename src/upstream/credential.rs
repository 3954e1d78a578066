//! What a login is, and from where one comes.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use url::Url;

/// From where the login of an upstream comes, as configured.
#[derive(Clone, Debug, PartialEq)]
pub enum Credential {
    Password {
        username: String,
        password: Password,
    },
    /// An OAuth2 refresh token, which opens nothing but a token server.
    IdentityToken(Password),
    /// What `docker login` has left. `inline` (`DOCKER_AUTH_CONFIG`) is looked at before the file.
    DockerConfig {
        path: Option<PathBuf>,
        inline: Option<Secret>,
        /// Where the helpers that it names are looked for.
        search: Vec<PathBuf>,
    },
    /// A program that speaks the protocol of `docker-credential-*`.
    Helper {
        program: PathBuf,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Password {
    /// Read whenever it is needed, so that a rotated secret is taken up.
    File(PathBuf),
    /// As a configuration of CNCF distribution holds it.
    Inline(Secret),
}

impl Credential {
    /// What sets it apart from others, without anything secret: for logs and trust domains.
    pub fn label(&self) -> String {
        match self {
            Self::Password { username, .. } => username.clone(),
            Self::IdentityToken(Password::File(path)) => format!("identity token {}", path.display()),
            Self::IdentityToken(Password::Inline(_)) => "identity token".to_owned(),
            Self::DockerConfig { path: Some(path), inline: None, .. } => {
                format!("docker config {}", path.display())
            }
            Self::DockerConfig { .. } => "docker config of the environment".to_owned(),
            Self::Helper { program } => {
                format!("credential helper {}", program.file_name().unwrap_or_default().display())
            }
        }
    }
}

/// What proves to a registry who asks.
#[derive(Clone, PartialEq)]
pub struct Login {
    pub username: String,
    pub secret: LoginSecret,
}

#[derive(Clone, PartialEq)]
pub enum LoginSecret {
    Password(Secret),
    /// Exchanged for tokens by `grant_type=refresh_token` (OAuth2 token specification).
    IdentityToken(Secret),
    /// Sent to the registry as it is.
    RegistryToken(Secret),
}

/// The name under which helpers give out identity tokens (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

impl Login {
    /// A user name with what belongs to it, which may be an identity token.
    pub fn new(username: String, secret: &str) -> Self {
        // Some files and helpers end secrets as C ends strings.
        let secret = Secret::new(secret.trim_end_matches('\0').to_owned());
        let secret = if username == TOKEN_USER {
            LoginSecret::IdentityToken(secret)
        } else {
            LoginSecret::Password(secret)
        };
        Self { username, secret }
    }

    /// Tells one login from another without holding either. With a secret `salt`, what is remembered by it
    /// tells nobody which passwords are right.
    pub fn fingerprint(&self, salt: &[u8]) -> Fingerprint {
        let (kind, secret) = match &self.secret {
            LoginSecret::Password(secret) => ("password", secret),
            LoginSecret::IdentityToken(secret) => ("identity", secret),
            LoginSecret::RegistryToken(secret) => ("registry", secret),
        };
        let mut hash = Sha256::new_with_prefix(salt);
        for part in [kind, self.username.as_str(), secret.reveal()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Fingerprint(hash.finalize().into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A text that no debug output shows.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself: for who sends it, not for messages.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Under which name a registry's login is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName {
    /// `host[:port]`
    pub host: String,
    is_docker_hub: bool,
}

/// Docker Hub's name since before there was a registry API of version 2.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

impl ServerName {
    /// By where requests go: the login of Docker Hub is for no mirror of it.
    pub fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default();
        let is_docker_hub = url.port().is_none() && HUB_HOSTS.contains(&host);
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Self { host, is_docker_hub }
    }

    /// What a credential helper is asked for.
    pub fn key(&self) -> &str {
        if self.is_docker_hub { HUB_KEY } else { &self.host }
    }

    /// Whether a key of a Docker configuration means this server: `host`, or as old ones have it,
    /// `https://host/v1/`.
    pub fn is_meant_by(&self, key: &str) -> bool {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let host = bare.split('/').next().unwrap_or_default();
        if self.is_docker_hub {
            HUB_HOSTS.iter().any(|hub| host.eq_ignore_ascii_case(hub))
        } else {
            let host = host.strip_suffix(":443").unwrap_or(host);
            host.eq_ignore_ascii_case(&self.host)
        }
    }
}

/// The part of a helper's file name that stands in configurations.
pub const HELPER_PREFIX: &str = "docker-credential-";

/// Whether a helper may be called so: it becomes part of a file name.
pub fn is_helper_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !name.is_empty() && name.len() <= 100 && name.bytes().all(plain)
}

/// The directories of a `PATH`. Relative ones are left out: they would mean something else elsewhere.
pub fn search_path(variable: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(variable).filter(|directory| directory.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> ServerName {
        ServerName::of(&Url::parse(url).unwrap())
    }

    #[test]
    fn servers_are_known_by_the_names_that_docker_gives_them() {
        let hub = server("https://registry-1.docker.io/");
        assert_eq!(hub.key(), "https://index.docker.io/v1/");
        for key in
            ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://registry-1.docker.io"]
        {
            assert!(hub.is_meant_by(key), "{key}");
        }
        assert!(!hub.is_meant_by("https://docker.io.evil.example/v1/") && !hub.is_meant_by("ghcr.io"));

        let plain = server("https://Registry.corp/base/");
        assert_eq!(plain.key(), "registry.corp");
        for key in ["registry.corp", "https://registry.corp/v2/", "http://REGISTRY.corp", "registry.corp:443"]
        {
            assert!(plain.is_meant_by(key), "{key}");
        }
        for key in ["registry.corp:5000", "corp", "https://other/registry.corp", ""] {
            assert!(!plain.is_meant_by(key), "{key}");
        }
        let ported = server("http://127.0.0.1:5000/");
        assert_eq!(ported.key(), "127.0.0.1:5000");
        assert!(ported.is_meant_by("127.0.0.1:5000") && !ported.is_meant_by("127.0.0.1"));
        // A mirror of Docker Hub is not sent Docker Hub's login.
        assert!(!server("https://mirror.gcr.io/").is_meant_by("https://index.docker.io/v1/"));
        assert_eq!(server("https://docker.io:8443/").key(), "docker.io:8443");
    }

    #[test]
    fn logins_are_told_apart_and_not_shown() {
        let login = |user: &str, secret: &str| Login::new(user.to_owned(), secret);
        assert!(login("a", "b") == login("a", "b\0\0"));
        let prints = [login("a", "b"), login("a", "c"), login("c", "b"), login("<token>", "b")]
            .map(|login| login.fingerprint(b""));
        for (i, one) in prints.iter().enumerate() {
            assert!(prints.iter().skip(i + 1).all(|other| one != other));
        }
        assert!(matches!(login("<token>", "x").secret, LoginSecret::IdentityToken(_)));
        let credential = Credential::Password {
            username: "ci".into(),
            password: Password::Inline(Secret::new("hunter2".into())),
        };
        assert_eq!(credential.label(), "ci");
        assert!(!format!("{credential:?}").contains("hunter2"));
    }

    #[test]
    fn helpers_are_named_plainly() {
        for name in ["ecr-login", "gcloud", "acr-env", "a.b_c"] {
            assert!(is_helper_name(name), "{name}");
        }
        let long = "x".repeat(101);
        for name in ["", "a/b", "../x", "a b", "$(x)", "a;b", &long] {
            assert!(!is_helper_name(name), "{name}");
        }
        assert_eq!(search_path(OsStr::new("/a::b:/c/d")), [PathBuf::from("/a"), PathBuf::from("/c/d")]);
    }
}
