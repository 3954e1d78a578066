//! File, environment and flags make checked options. Flags win over the environment, which wins over
//! the file, which wins over the defaults. The file may be one of CNCF distribution's ([`distribution`]).
//!
//! All layers become one [`tree`] whose values know where they were written; [`section`] reads it;
//! [`build`], [`upstreams`] and [`names`] check it. What comes out needs no further checks.

mod access;
mod build;
mod credentials;
mod defaults;
mod distribution;
mod environment;
mod error;
mod events;
mod explain;
mod files;
mod forward;
mod gc;
mod hosted;
mod listeners;
mod names;
mod permissions;
mod presets;
mod scrub;
mod section;
mod tree;
mod units;
mod upstreams;
mod warm;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::{events as told, http, mirror, registry, store, telemetry, upstream};

use environment::Environment;

pub use environment::Flags;
pub use error::{ConfigError, Origin, Place};
pub use units::size as parse_size;
pub use units::time as parse_time;
pub use upstreams::is_loopback;

/// Where each value that is not a default was written, by its dotted key.
pub type Sources = BTreeMap<String, Origin>;

/// A configuration that was checked, by the modules that it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub http: http::Options,
    pub owners: http::OwnersOptions,
    pub access: crate::access::Options,
    pub auth: crate::access::AuthOptions,
    pub mirror: mirror::Options,
    /// Images that are kept warm.
    pub warm: Vec<mirror::Pinned>,
    pub registry: registry::Options,
    pub gc: registry::CollectOptions,
    pub scrub: mirror::ScrubOptions,
    /// The default one first, if there is one, then in the order of the file. The same order as in `owners`.
    pub upstreams: Vec<upstream::Options>,
    pub store: store::Options,
    pub events: told::Options,
    pub telemetry: telemetry::Options,
    pub choices: Choices,
    /// Worth a look, though nothing that stops a start.
    pub warnings: Vec<String>,
    pub sources: Sources,
}

/// What was chosen where the options hold only what follows from it; for [`Config::explain`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choices {
    /// `hosted.shadow`.
    pub shadow: bool,
    /// `log.format`; None for `auto`.
    pub log_format: Option<telemetry::Format>,
}

/// A configuration file is a page or two.
const LARGEST_FILE: u64 = 1 << 20;
const NO_REGISTRY_FILE: &str = "there is no such file; name the configuration of a registry:2 that is there (the \
                                file that its image has is not in this one), or a Forebay's own with --config";
const NO_FILE: &str = "there is no such file; correct --config or FOREBAY_CONFIG";

/// Reads and checks the whole configuration. Called again, it reads the file again.
pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
    load_in(flags, &Environment::of_process())
}

fn load_in(flags: &Flags, environment: &Environment) -> Result<Config, ConfigError> {
    let mut warnings = environment.warnings(flags);
    let (mut entries, mut adopt) = if let Some(path) = environment.registry_file(flags)? {
        let text = text(&path)?.ok_or_else(|| unreadable(&path, NO_REGISTRY_FILE))?;
        let translated = distribution::translate(&path, &text, &environment.variables)?;
        warnings.extend(translated.warnings);
        (translated.entries, Some(translated.adopt))
    } else {
        let read = |path: &Path| text(path)?.map(|text| tree::parse(path, &text)).transpose();
        let entries = match environment.named_file(flags) {
            Some(path) => read(&path)?.ok_or_else(|| unreadable(&path, NO_FILE))?,
            None => read(&environment.default_file)?.unwrap_or_default(),
        };
        (entries, None)
    };
    environment.overlay(flags, &mut entries)?;
    if let Some(said) = environment.adopt(flags)? {
        adopt = Some(said);
    }
    build::build(entries, adopt, environment, warnings)
}

/// None: there is no such file.
fn text(path: &Path) -> Result<Option<String>, ConfigError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(unreadable(path, "it is larger than 1 MiB; is this the right file?"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| unreadable(path, "it is not UTF-8 text"))
}

fn unreadable(path: &Path, reason: impl ToString) -> ConfigError {
    ConfigError::Unreadable { path: PathBuf::from(path), reason: reason.to_string() }
}
