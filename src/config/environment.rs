//! The layers over the file: environment variables, then flags. And what else the process's
//! surroundings decide.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use crate::oci::UpstreamHost;

use super::error::{ConfigError, Origin};
use super::section::{Found, nearest};
use super::tree::{Entries, Kind, Node, put, put_table};
use super::{defaults, distribution};

/// What the command line said. Texts are checked when the configuration is loaded.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    /// A configuration of CNCF distribution's; an empty path: the one that its variable names.
    pub registry_config: Option<PathBuf>,
    /// Replaces the file's and the environment's list.
    pub listen: Vec<String>,
    pub data: Option<String>,
    /// `host=url` or `host`; each adds to the upstreams or changes the URL of one.
    pub upstream: Vec<String>,
    pub operations: Option<String>,
    pub adopt: Option<String>,
    pub offline: bool,
    pub log: Option<String>,
    pub log_format: Option<String>,
    pub htpasswd_file: Option<String>,
    pub tls_certificate_file: Option<String>,
    pub tls_key_file: Option<String>,
}

/// A single-valued setting: its variable, its flag, and its place in the file.
struct Setting {
    variable: &'static str,
    flag: &'static str,
    given: fn(&Flags) -> &Option<String>,
    path: &'static [&'static str],
}

const SETTINGS: [Setting; 7] = [
    Setting { variable: "FOREBAY_DATA", flag: "--data", given: |f| &f.data, path: &["data"] },
    Setting {
        variable: "FOREBAY_OPERATIONS",
        flag: "--operations",
        given: |f| &f.operations,
        path: &["operations"],
    },
    Setting { variable: "FOREBAY_LOG", flag: "--log", given: |f| &f.log, path: &["log", "level"] },
    Setting {
        variable: "FOREBAY_LOG_FORMAT",
        flag: "--log-format",
        given: |f| &f.log_format,
        path: &["log", "format"],
    },
    Setting {
        variable: "FOREBAY_HTPASSWD_FILE",
        flag: "--htpasswd-file",
        given: |f| &f.htpasswd_file,
        path: &["auth", "htpasswd_file"],
    },
    Setting {
        variable: "FOREBAY_TLS_CERTIFICATE_FILE",
        flag: "--tls-certificate-file",
        given: |f| &f.tls_certificate_file,
        path: &["tls", "certificate_file"],
    },
    Setting {
        variable: "FOREBAY_TLS_KEY_FILE",
        flag: "--tls-key-file",
        given: |f| &f.tls_key_file,
        path: &["tls", "key_file"],
    },
];

const OFFLINE: &str = "FOREBAY_OFFLINE";
const LISTEN: &str = "FOREBAY_LISTEN";
const UPSTREAM: &str = "FOREBAY_UPSTREAM";
const CONFIG: &str = "FOREBAY_CONFIG";
const ADOPT: &str = "FOREBAY_ADOPT";

/// What a configuration depends on besides file and flags.
#[derive(Clone, Debug)]
pub struct Environment {
    pub variables: BTreeMap<OsString, OsString>,
    pub root: bool,
    /// Whether standard output is one: decides the log's format.
    pub terminal: bool,
    /// Read when no file is named and this one exists.
    pub default_file: PathBuf,
}

impl Environment {
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            root: rustix::process::geteuid().is_root(),
            terminal: std::io::stdout().is_terminal(),
            default_file: defaults::FILE.into(),
        }
    }

    /// An empty variable is one that is not set: compose files and CI pass those on.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.variables.get(std::ffi::OsStr::new(name)).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        let Some(value) = self.path(name) else { return Ok(None) };
        let text = value.into_os_string().into_string().map_err(|_| ConfigError::Missing {
            key: name.into(),
            reason: "the variable holds bytes that are not UTF-8; write plain text".into(),
        })?;
        Ok(Some(text))
    }

    /// The file to read: named (then it must be there), or else the usual one.
    pub fn named_file(&self, flags: &Flags) -> Option<PathBuf> {
        flags.config.clone().or_else(|| self.path(CONFIG))
    }

    /// The file of CNCF distribution's to read, where one is asked for.
    pub fn registry_file(&self, flags: &Flags) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = &flags.registry_config else { return Ok(None) };
        if !path.as_os_str().is_empty() {
            return Ok(Some(path.clone()));
        }
        let named = self.path(distribution::FILE).ok_or_else(|| ConfigError::Missing {
            key: "--registry-config".into(),
            reason: format!("no file is named; write it behind the flag, or into {}", distribution::FILE),
        });
        named.map(Some)
    }

    /// Whose repositories of unknown origin are. Not a key of the file: it is said once.
    pub fn adopt(&self, flags: &Flags) -> Result<Option<Found<String>>, ConfigError> {
        let found = |value, origin| Found { key: "adopt".into(), origin, value };
        if let Some(flag) = &flags.adopt {
            return Ok(Some(found(flag.clone(), Origin::Flag("--adopt"))));
        }
        Ok(self.text(ADOPT)?.map(|text| found(text, Origin::Variable(ADOPT))))
    }

    /// Where data goes when nobody says so.
    pub fn data(&self) -> Result<PathBuf, ConfigError> {
        // The XDG base directory specification has relative paths ignored.
        let absolute = |name| self.path(name).filter(|path| path.is_absolute());
        // systemd names the directory that it made for the service (systemd.exec, StateDirectory=).
        if let Some(directory) = absolute("STATE_DIRECTORY") {
            return Ok(directory);
        }
        if self.root {
            return Ok(defaults::ROOT_DATA.into());
        }
        let base = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        base.map(|base| base.join("forebay")).ok_or_else(|| ConfigError::Missing {
            key: "data".into(),
            reason: "neither XDG_DATA_HOME nor HOME says where data goes; name a directory with --data, \
                     FOREBAY_DATA or `data` in the file"
                .into(),
        })
    }

    /// Puts the environment and then the flags over what the file says.
    pub fn overlay(&self, flags: &Flags, entries: &mut Entries) -> Result<(), ConfigError> {
        for setting in &SETTINGS {
            if let Some(text) = self.text(setting.variable)? {
                put(entries, setting.path, text_node(text, Origin::Variable(setting.variable)));
            }
            if let Some(text) = (setting.given)(flags) {
                put(entries, setting.path, text_node(text.clone(), Origin::Flag(setting.flag)));
            }
        }
        if let Some(text) = self.text(OFFLINE)? {
            let origin = Origin::Variable(OFFLINE);
            let found = Found { key: "offline".into(), origin: origin.clone(), value: text };
            let offline = found.read(|text| match text.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(format!("`{text}` is neither `true` nor `false`")),
            })?;
            put(entries, &["offline"], Node { origin, kind: Kind::Switch(offline) });
        }
        if flags.offline {
            put(entries, &["offline"], Node { origin: Origin::Flag("--offline"), kind: Kind::Switch(true) });
        }
        // Empty parts of variables are nothing, as empty variables are; an empty flag is a mistake.
        let parts = |text: String| -> Vec<String> {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        };
        let listen = self.text(LISTEN)?.map(parts).unwrap_or_default();
        put_list(entries, "listen", &listen, Origin::Variable(LISTEN));
        put_list(entries, "listen", &flags.listen, Origin::Flag("--listen"));
        for upstream in self.text(UPSTREAM)?.map(parts).unwrap_or_default() {
            put_upstream(entries, &upstream, Origin::Variable(UPSTREAM))?;
        }
        for upstream in &flags.upstream {
            put_upstream(entries, upstream, Origin::Flag("--upstream"))?;
        }
        Ok(())
    }

    /// Variables that look like ours and are not, or that are a registry's while its configuration
    /// is not what is read.
    pub fn warnings(&self, flags: &Flags) -> Vec<String> {
        let mut warnings = self.unknown();
        let registry = distribution::variables(&self.variables).map(|(name, _)| name);
        let mut registry: Vec<&str> = registry.collect();
        if self.path(distribution::FILE).is_some() {
            registry.push(distribution::FILE);
        }
        if flags.registry_config.is_none() && !registry.is_empty() {
            warnings.push(format!(
                "ignored without --registry-config: the environment variables {}",
                registry.join(", ")
            ));
        }
        if flags.registry_config.is_some() && self.path(CONFIG).is_some() {
            warnings.push(format!("{CONFIG} is ignored with --registry-config"));
        }
        warnings
    }

    fn unknown(&self) -> Vec<String> {
        let known: Vec<&str> = SETTINGS
            .iter()
            .map(|setting| setting.variable)
            .chain([LISTEN, UPSTREAM, CONFIG, ADOPT, OFFLINE])
            .collect();
        let unknown = |name: &&str| {
            // Kubernetes and Docker links set these for a service that is called `forebay`.
            let of_service =
                ["FOREBAY_SERVICE_", "FOREBAY_PORT"].iter().any(|prefix| name.starts_with(prefix));
            name.starts_with("FOREBAY_") && !of_service && !known.contains(name)
        };
        let names = self.variables.keys().filter_map(|name| name.to_str());
        let warnings = names.filter(unknown).map(|name| match nearest(name, &known) {
            Some(near) => {
                format!("the environment variable {name} is unknown and ignored; did you mean {near}?")
            }
            None => format!(
                "the environment variable {name} is unknown and ignored; known are {}",
                known.join(", ")
            ),
        });
        warnings.collect()
    }
}

fn text_node(text: String, origin: Origin) -> Node {
    Node { origin, kind: Kind::Text(text) }
}

fn put_list(entries: &mut Entries, key: &str, texts: &[String], origin: Origin) {
    let items: Vec<Node> = texts.iter().map(|text| text_node(text.clone(), origin.clone())).collect();
    if !items.is_empty() {
        put(entries, &[key], Node { origin, kind: Kind::List(items) });
    }
}

/// `host=url` or `host`.
fn put_upstream(entries: &mut Entries, text: &str, origin: Origin) -> Result<(), ConfigError> {
    let (host, url) = match text.split_once('=') {
        Some((host, url)) => (host.trim(), Some(url.trim())),
        None => (text, None),
    };
    let found = Found { key: "upstream".into(), origin: origin.clone(), value: host.to_owned() };
    let host = found.read(|host| {
        host.parse::<UpstreamHost>().map_err(|error| {
            format!("{error}; an upstream is given as `ghcr.io` or `docker.io=http://127.0.0.1:5001`")
        })
    })?;
    match url {
        Some(url) => put(entries, &["upstream", host.as_str(), "url"], text_node(url.into(), origin)),
        None => put_table(entries, &["upstream", host.as_str()], origin),
    }
    Ok(())
}
