//! What is wrong with a configuration, and where it was written.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Line numbers start at 1.
    File { path: Arc<Path>, line: usize },
    /// An environment variable's name.
    Variable(&'static str),
    /// A command-line flag's name.
    Flag(&'static str),
    /// What is known of a registry by its host, given as a pattern.
    Preset(&'static str),
    /// A dotted key of CNCF distribution's configuration.
    Distribution { key: Arc<str>, place: Place },
}

/// Where CNCF distribution's configuration says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line numbers start at 1.
    File { path: Arc<Path>, line: usize },
    /// An environment variable's name: `REGISTRY_HTTP_ADDR`.
    Variable(Arc<str>),
    /// Nowhere: what distribution does unless told otherwise.
    Default,
}

/// A configuration that cannot be used: where, which key, why, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{origin}: this is not TOML: {reason}")]
    Syntax { origin: Origin, reason: String },
    #[error("{origin}: this is not YAML: {reason}")]
    Yaml { origin: Origin, reason: String },
    /// What CNCF distribution's configuration asks for and is not taken up.
    #[error("{origin}: {reason}")]
    Distribution { origin: Origin, reason: String },
    #[error("{origin}: {key}: {reason}")]
    Value { origin: Origin, key: String, reason: String },
    #[error("{key}: {reason}")]
    Missing { key: String, reason: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
            Self::Preset(host) => write!(f, "preset for {host}"),
            Self::Distribution { key, place: Place::File { path, line } } => {
                write!(f, "{}:{line} ({key})", path.display())
            }
            Self::Distribution { key, place: Place::Variable(name) } => write!(f, "{name} ({key})"),
            Self::Distribution { key, place: Place::Default } => write!(f, "registry:2's default for {key}"),
        }
    }
}
