//! What a client's files are made from: where this server is, and what it mirrors.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use url::Url;

use crate::config::{Config, is_loopback};

/// CAs are a few KiB.
const CA_MAX: u64 = 1 << 20;

/// Everything that is told to a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub server: Server,
    pub upstreams: Vec<Mirrored>,
    /// PEM.
    pub ca: Option<String>,
    /// Where a user's own configuration is; None for a client that runs as root.
    pub home: Option<PathBuf>,
}

/// This server as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Server(Url);

/// An upstream as a client names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirrored {
    pub host: String,
    /// Whether names without a registry are its own here.
    pub is_default: bool,
    pub alias: Option<String>,
    /// Whether it speaks plain HTTP by its own name.
    pub is_plain: bool,
    /// Whether each caller shows a login of its own.
    pub asks_callers: bool,
}

impl Asked {
    /// Also tells what was assumed.
    pub fn new(
        config: &Config,
        url: Option<&str>,
        only: &[String],
        ca: Option<&Path>,
        home: Option<PathBuf>,
    ) -> Result<(Self, Vec<String>), String> {
        let mut assumed = Vec::new();
        let server = match url {
            Some(url) => Server::parse(url)?,
            None => {
                let (server, how) = Server::guess(config)?;
                assumed.push(how);
                server
            }
        };
        let mut upstreams = mirrored(config);
        let all: Vec<String> = upstreams.iter().map(|upstream| upstream.host.clone()).collect();
        if !only.is_empty() {
            let hosts: Vec<&str> =
                only.iter().map(|text| text.split('=').next().unwrap_or_default()).collect();
            let is_named = |upstream: &Mirrored| hosts.iter().any(|host| host.trim() == upstream.host);
            upstreams.retain(is_named);
            let others: Vec<String> =
                all.into_iter().filter(|host| upstreams.iter().all(|named| named.host != *host)).collect();
            if !others.is_empty() {
                assumed.push(format!("left out, for --upstream does not name it: {}", others.join(", ")));
            }
        }
        if upstreams.is_empty() {
            return Err("there is no upstream to mirror: name one with --upstream ghcr.io".into());
        }
        let ca = ca.map(certificate).transpose()?;
        if server.is_plain() && ca.is_some() {
            return Err(format!("{} is plain HTTP, which has no CA: leave --ca out", server.url()));
        }
        Ok((Self { server, upstreams, ca, home }, assumed))
    }

    /// Where a program's configuration is: `/etc/NAME`, or the same of a user.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.home.as_deref().unwrap_or(Path::new("/etc")).join(name)
    }

    pub fn docker_hub(&self) -> Option<&Mirrored> {
        self.upstreams.iter().find(|upstream| upstream.is_docker_hub())
    }
}

fn mirrored(config: &Config) -> Vec<Mirrored> {
    let upstreams = config.owners.upstreams.iter().zip(&config.upstreams);
    let upstreams = upstreams.map(|((host, aliases), options)| Mirrored {
        host: host.as_str().to_owned(),
        is_default: host.is_default(),
        alias: aliases.first().cloned(),
        is_plain: Url::parse(&format!("http://{host}")).is_ok_and(|own| own.origin() == options.url.origin()),
        asks_callers: options.asks_callers(),
    });
    upstreams.collect()
}

impl Mirrored {
    /// Whether a configuration has it.
    pub fn is_of(&self, config: &Config) -> bool {
        config.owners.upstreams.iter().any(|(host, _)| host.as_str() == self.host)
    }

    pub fn is_docker_hub(&self) -> bool {
        self.host == "docker.io"
    }

    /// The registry itself, where clients that are told nothing else ask for it.
    pub fn url(&self) -> String {
        let host = if self.is_docker_hub() { "registry-1.docker.io" } else { &self.host };
        let scheme = if self.is_plain { "http" } else { "https" };
        format!("{scheme}://{host}")
    }

    /// What stands before its names, for clients that have no other way to say whose they are: nothing, or
    /// `/ghcr.io`. None for a host with a port, which is no part of a name, and no alias.
    pub fn prefix(&self) -> Option<String> {
        match (&self.alias, self.host.contains(':')) {
            // Another default registry has names of one component, which would be taken for hosted ones.
            _ if self.is_default && self.is_docker_hub() => Some(String::new()),
            (_, false) => Some(format!("/{}", self.host)),
            (Some(alias), true) => Some(format!("/{alias}")),
            (None, true) => None,
        }
    }

    /// What a client that has a prefix for it only is told where there is none.
    pub fn no_prefix(&self) -> String {
        let host = &self.host;
        format!(
            "{host} is left out: this client cannot write a port within a name; give [upstream.\"{host}\"] \
             an alias, such as `aliases = [\"corp\"]`"
        )
    }
}

impl Server {
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "write it as in http://forebay.corp:5000";
        let url = Url::parse(text).map_err(|error| format!("--url: this is no URL ({error}); {example}"))?;
        let plain = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("--url: it starts with neither https:// nor http://; {example}"));
        }
        if !plain || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("--url: only scheme, host and port belong here; {example}"));
        }
        Ok(Self(url))
    }

    /// From where the configuration has it listen: the first address that others reach, else the first.
    fn guess(config: &Config) -> Result<(Self, String), String> {
        let places = config.http.mirrored_at();
        let reached = places.iter().find(|(address, _)| !address.ip().is_loopback());
        let (address, tls) = reached.or(places.first()).ok_or(
            "no listener that serves all that is mirrored is configured with address and port: give --url, as \
             clients see this server",
        )?;
        if address.port() == 0 {
            let why = "which port this server will have is not known before it starts: give --url, as clients see it";
            return Err(why.into());
        }
        let host = match address.ip() {
            ip if ip.is_unspecified() => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let scheme = if *tls { "https" } else { "http" };
        let server = Self::parse(&format!("{scheme}://{host}:{}", address.port()))
            .map_err(|_| format!("this machine's name, `{host}`, is no host of a URL: give --url"))?;
        let why = if address.ip().is_unspecified() {
            "clients are taken to know this machine by its name; if not, give --url".to_owned()
        } else if server.is_loopback() {
            "by its configuration, what is mirrored is for this machine alone; if not, give --url".to_owned()
        } else {
            "as configured; if clients know this server by a name, give --url".to_owned()
        };
        let how = format!("{}: {why}", server.url());
        Ok((server, how))
    }

    /// Without a slash at its end.
    pub fn url(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// Host, and port unless it is the scheme's own.
    pub fn authority(&self) -> &str {
        let url = self.url();
        url.split_once("://").map_or(url, |(_, authority)| authority)
    }

    pub fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.0)
    }
}

/// The directory of the user's configuration, for clients that heed XDG's base directories and others.
pub fn home(heeds_xdg: bool) -> Result<PathBuf, String> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = absolute("XDG_CONFIG_HOME").filter(|_| heeds_xdg);
    own.or_else(|| Some(absolute("HOME")?.join(".config"))).ok_or_else(|| {
        "--rootless: HOME does not say where this client looks for a user's files: set it".into()
    })
}

fn certificate(path: &Path) -> Result<String, String> {
    let failed = |why: String| format!("--ca {}: {why}", path.display());
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(CA_MAX).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    match text.contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(text),
        false => Err(failed("there is no certificate in it; name a PEM file".into())),
    }
}
