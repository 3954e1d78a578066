//! Who asks, and what it wants to do.

use std::fmt;
use std::sync::Arc;

use super::Client;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    Anonymous,
    /// By name and password.
    User(Arc<str>),
}

/// A request's author: where it comes from, who it is, and what about it opens doors by itself.
#[derive(Clone, Debug)]
pub struct Caller {
    pub client: Client,
    pub identity: Identity,
    /// It comes from this very machine, by an address of it, from no foreign page and through no
    /// proxy: while there is no authentication, who may run programs here may push.
    pub is_local: bool,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(name) => f.write_str(name),
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
