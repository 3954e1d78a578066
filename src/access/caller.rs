//! Who asks, and what it wants to do.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Client, Pass};

/// What may be allowed on a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Pull,
    Push,
    Delete,
    /// Everything, and what concerns the whole registry.
    Admin,
}

/// Who a request comes from, as far as that was shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    Anonymous,
    /// By name and password.
    User(Arc<str>),
    /// By a TLS client certificate: its common name, or else its first alternative name.
    Certificate(Arc<str>),
    /// By a token that another issuer signed.
    Subject(Arc<Subject>),
}

/// Whom an issuer's token is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// What the configuration calls the issuer.
    pub issuer: String,
    pub name: String,
    pub claims: Map<String, Value>,
}

/// A request's author: where it comes from, who it is, and what about it opens doors by itself.
#[derive(Clone, Debug)]
pub struct Caller {
    pub client: Client,
    pub identity: Identity,
    /// It comes from this very machine, by an address of it, from no foreign page and through no
    /// proxy: while there is no authentication, who may run programs here may push.
    pub is_local: bool,
    /// What the token that was shown is good for. None: no token, so whatever the identity may do.
    pub grants: Option<Arc<Grants>>,
    /// Credentials were shown and are wrong. The identity is then anonymous.
    pub refused: Option<Refused>,
    /// The pass that was shown, or why it is none: see [`super::Passes`].
    pub pass: Option<Result<Pass, &'static str>>,
    /// How the client reached this registry: `https://registry.corp:5000`. Empty while nobody can
    /// log in, for then nobody is told where to.
    pub base: Arc<str>,
}

/// Why credentials are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub why: String,
    /// It was a token, not a name and a password.
    pub token: bool,
}

/// What a token is good for, as CNCF distribution's token specification writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    pub access: Vec<Access>,
    /// Another server's token is its word on what its bearer may do; of our own, policy is asked too.
    pub is_foreign: bool,
}

/// One resource and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    #[serde(rename = "type")]
    pub kind: String,
    /// As the client spelled it.
    pub name: String,
    #[serde(default)]
    pub actions: Vec<String>,
}

impl Identity {
    pub fn is_anonymous(&self) -> bool {
        *self == Self::Anonymous
    }
}

impl Subject {
    /// The claim of this name; else, with `/` as separator, one within another.
    pub fn claim(&self, path: &str) -> Option<&Value> {
        if let Some(claim) = self.claims.get(path) {
            return Some(claim);
        }
        let (first, rest) = path.rsplit_once('/')?;
        self.claim(first)?.get(rest)
    }
}

impl Access {
    pub fn allows(&self, action: Action) -> bool {
        let text = action.to_string();
        self.actions.iter().any(|granted| *granted == text || granted == "*")
    }
}

impl Grants {
    /// What is granted on repositories, each by a name that a client spelled.
    pub fn on_repositories(&self, action: Action) -> impl Iterator<Item = &str> {
        let of = self.access.iter().filter(|access| access.kind == "repository");
        of.filter(move |access| access.allows(action)).map(|access| access.name.as_str())
    }

    /// Whether the list of all repositories is granted.
    pub fn on_catalog(&self) -> bool {
        self.access.iter().any(|access| access.kind == "registry" && access.name == "catalog")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(name) => f.write_str(name),
            Self::Certificate(name) => write!(f, "certificate:{name}"),
            Self::Subject(subject) => write!(f, "{}:{}", subject.issuer, subject.name),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Admin => "admin",
        })
    }
}
