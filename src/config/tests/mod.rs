//! What the layers make together, and what every mistake is answered with.

mod access;
mod credentials;
mod explain;
mod layers;
mod listeners;
mod mistakes;
mod presets;
mod tables;
mod upstreams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A user's surroundings with nothing set but HOME.
fn nowhere() -> Environment {
    Environment {
        variables: BTreeMap::from([("HOME".into(), "/home/me".into())]),
        root: false,
        terminal: false,
        default_file: "/nonexistent/forebay.toml".into(),
    }
}

/// A directory with a `forebay.toml`, flags that name it, and the environment.
struct Case {
    directory: TempDir,
    flags: Flags,
    environment: Environment,
}

impl Case {
    fn new(file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("forebay.toml");
        std::fs::write(&path, file).unwrap();
        Self { directory, flags: Flags { config: Some(path), ..Flags::default() }, environment: nowhere() }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.variables.insert(name.into(), value.into());
        self
    }

    /// Writes a file beside the configuration; gives its path.
    fn file(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn rewrite(&self, file: &str) {
        std::fs::write(self.flags.config.as_ref().unwrap(), file).unwrap();
    }

    fn load(&self) -> Result<Config, ConfigError> {
        load_in(&self.flags, &self.environment)
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn loaded(file: &str) -> Config {
    Case::new(file).load().unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The file is refused at a line, and the message holds all parts.
#[track_caller]
fn refused(file: &str, line: usize, parts: &[&str]) {
    let error = Case::new(file).error();
    assert!(error.contains(&format!("forebay.toml:{line}: ")), "line {line} in: {error}");
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "`{part}` in: {error}");
    }
}
