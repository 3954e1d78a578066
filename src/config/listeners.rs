//! Where clients connect: `listen`, `[[listener]]`, `operations`, `[tls]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::http::{self, ListenAddress, ListenerOptions, Scope, Serve};
use crate::oci::UpstreamHost;

use super::error::ConfigError;
use super::explain::{Printer, texts};
use super::section::{Found, Section};
use super::upstreams::Upstream;
use super::{Config, defaults, files, units};

type Result<T> = std::result::Result<T, ConfigError>;

/// In `listen`: all sockets that systemd passes.
const SYSTEMD: &str = "systemd";
/// Longest path of a Unix socket, with room for the `.new` and the 0 that the kernel is given.
const SOCKET_PATH_MAX: usize = 103;

/// The tables `[[listener]]`.
pub fn further(root: &mut Section, upstreams: &[Upstream], has_tls: bool) -> Result<Vec<ListenerOptions>> {
    let mut listeners: Vec<ListenerOptions> = Vec::new();
    for mut section in root.sections("listener")? {
        let Some(found) = section.text("address")? else {
            return Err(section.missing("address", "where? Add `address = \"0.0.0.0:5001\"`"));
        };
        let mut address = found.read(|text| listen_address(text))?;
        if has_port(&address) && listeners.iter().any(|other| other.address.same_place(&address)) {
            return Err(found.error(format!("{} has a table already; leave one out", found.value)));
        }
        let mode = section.text("mode")?;
        match (&mut address, &mode) {
            (ListenAddress::Unix { mode: own, .. }, Some(found)) => {
                *own = found.read(|text| file_mode(text))?
            }
            (_, Some(found)) => {
                return Err(found.error("only a Unix socket has a mode here; leave it out"));
            }
            (_, None) => {}
        }
        let scope = scope(&mut section, upstreams)?;
        let tls = section.switch("tls")?;
        if tls == Some(true) && !has_tls {
            let reason = "a certificate is needed for it; set tls.certificate_file and tls.key_file";
            return Err(section.missing("tls", reason));
        }
        // Nobody listens in on a Unix socket.
        let tls = tls.unwrap_or(has_tls && !matches!(address, ListenAddress::Unix { .. }));
        listeners.push(ListenerOptions { address, scope, tls });
        section.finish()?;
    }
    Ok(listeners)
}

fn scope(section: &mut Section, upstreams: &[Upstream]) -> Result<Scope> {
    let serve = section.text("serve")?;
    let chosen = serve.as_ref().map(|found| {
        found.read(|text| match text.as_str() {
            "all" => Ok(Serve::All),
            "hosted" => Ok(Serve::Hosted),
            "mirror" => Ok(Serve::Mirror),
            _ => Err(format!("`{text}` is none of these: `all`, `hosted` or `mirror`")),
        })
    });
    let chosen = chosen.transpose()?;
    let Some(found) = section.text("upstream")? else {
        return Ok(Scope { serve: chosen.unwrap_or_default(), upstream: None });
    };
    if let (Some(serve), Some(Serve::All | Serve::Hosted)) = (&serve, chosen) {
        let reason = "all names here are the upstream's, which are mirrored; write `mirror` or leave it out";
        return Err(serve.error(reason));
    }
    let upstream = found.read(|text| {
        let host: UpstreamHost = text.parse().map_err(|error| format!("{error}"))?;
        let known = upstreams.iter().map(|upstream| &upstream.options.host).find(|known| **known == host);
        known.cloned().ok_or_else(|| format!("{host} is no configured upstream; add [upstream.\"{host}\"]"))
    })?;
    Ok(Scope { serve: Serve::Mirror, upstream: Some(upstream) })
}

pub fn read(
    root: &mut Section,
    tls: Option<http::TlsOptions>,
    mut listeners: Vec<ListenerOptions>,
    limits: &mut Section,
) -> Result<http::Options> {
    let (listen, systemd) = match root.list("listen")? {
        Some(texts) => addresses(&texts, &listeners)?,
        None => (free(defaults::listen(), &listeners), false),
    };
    if systemd {
        let address = ListenAddress::Systemd(None);
        listeners.insert(0, ListenerOptions { address, scope: Scope::default(), tls: tls.is_some() });
    }
    let operations = match root.text("operations")? {
        Some(found) => {
            let address = found.read(|text| operators_address(text))?;
            let taken = listen.contains(&address) || is_taken(&listeners, address);
            if address.port() != 0 && taken {
                return Err(found.error(format!(
                    "{address} is in `listen` or a [[listener]] too; give operations another port"
                )));
            }
            Some(address)
        }
        None => None,
    };
    let mut shutdown = root.section("shutdown")?;
    let shutdown_grace = shutdown.read("grace", units::time)?.unwrap_or(defaults::SHUTDOWN_GRACE);
    shutdown.finish()?;
    let timeout = |limits: &mut Section, key, default| -> Result<Duration> {
        Ok(limits.read(key, units::timeout)?.unwrap_or(default))
    };
    Ok(http::Options {
        listen,
        listeners,
        forward: None,
        operations,
        tls,
        max_connections: limits
            .number("max_connections", 1..=1_000_000)?
            .unwrap_or(defaults::MAX_CONNECTIONS),
        header_timeout: timeout(limits, "header_timeout", defaults::CLIENT_HEADER_TIMEOUT)?,
        idle_timeout: timeout(limits, "idle_timeout", defaults::CLIENT_IDLE_TIMEOUT)?,
        shutdown_grace,
    })
}

/// The addresses of `listen`, and whether systemd's sockets are among them.
fn addresses(
    texts: &Found<Vec<Found<String>>>,
    listeners: &[ListenerOptions],
) -> Result<(Vec<SocketAddr>, bool)> {
    let mut addresses = Vec::with_capacity(texts.value.len());
    let mut systemd = false;
    for found in &texts.value {
        if found.value == SYSTEMD {
            if std::mem::replace(&mut systemd, true) {
                return Err(found.error("`systemd` is there twice; leave one out"));
            }
            continue;
        }
        let address = found.read(|text| address(text))?;
        // Port 0 asks for any free port, so it may be there twice.
        if address.port() != 0 && addresses.contains(&address) {
            return Err(found.error(format!("{address} is there twice; leave one out")));
        }
        if address.port() != 0 && is_taken(listeners, address) {
            return Err(found.error(format!("{address} has a [[listener]] too; leave one out")));
        }
        addresses.push(address);
    }
    if addresses.is_empty() && !systemd && listeners.is_empty() {
        let reason = "the list is empty; name an address such as `0.0.0.0:5000`, or leave the key out";
        return Err(texts.error(reason));
    }
    Ok((addresses, systemd))
}

/// The default addresses that no table has taken.
fn free(mut addresses: Vec<SocketAddr>, listeners: &[ListenerOptions]) -> Vec<SocketAddr> {
    addresses.retain(|address| !is_taken(listeners, *address));
    addresses
}

fn is_taken(listeners: &[ListenerOptions], address: SocketAddr) -> bool {
    listeners.iter().any(|listener| listener.address == ListenAddress::Tcp(address))
}

fn has_port(address: &ListenAddress) -> bool {
    !matches!(address, ListenAddress::Tcp(address) if address.port() == 0)
}

fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`{text}` is no address with a port; write `127.0.0.1:5000`, `[::1]:5000`, or for every interface \
             `0.0.0.0:5000` and `[::]:5000`"
        )
    })
}

fn listen_address(text: &str) -> std::result::Result<ListenAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(|path| ListenAddress::Unix { path, mode: defaults::SOCKET_MODE });
    }
    if let Some(name) = text.strip_prefix("systemd:") {
        // systemd.socket, FileDescriptorName=.
        let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b':';
        return match !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) {
            true => Ok(ListenAddress::Systemd(Some(name.to_owned()))),
            false => Err(format!(
                "`{text}` names no socket; write what the socket's unit has as FileDescriptorName=, `systemd:hosted`"
            )),
        };
    }
    address(text)
        .map(ListenAddress::Tcp)
        .map_err(|error| format!("{error}, `unix:/run/forebay.sock`, or `systemd:NAME`"))
}

fn socket_path(path: &str) -> std::result::Result<PathBuf, String> {
    let found = Path::new(path);
    if !found.is_absolute() || found.file_name().is_none() || path.contains('\0') {
        return Err(format!(
            "`unix:{path}` is no path of a socket; write it as in `unix:/run/forebay/forebay.sock`"
        ));
    }
    if path.len() > SOCKET_PATH_MAX {
        return Err(format!("a socket's path has {SOCKET_PATH_MAX} bytes at most; choose a shorter one"));
    }
    Ok(found.to_owned())
}

fn file_mode(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("`{text}` is no mode; write it as in `0660`: owner and group may connect")),
    }
}

fn operators_address(text: &str) -> std::result::Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is no address with a port; write `127.0.0.1:9090`"))
}

pub fn tls(mut section: Section, warnings: &mut Vec<String>) -> Result<Option<http::TlsOptions>> {
    let certificate = section.text("certificate_file")?;
    let key = section.text("key_file")?;
    let clients = super::access::client_certificates(&mut section)?;
    let mut others = Vec::new();
    let pairs = section.sections("certificate").map_err(|error| match error {
        ConfigError::Value { origin, key, reason } => {
            ConfigError::Value { origin, key, reason: format!("{reason}, or a file as `certificate_file`") }
        }
        error => error,
    });
    for mut pair in pairs? {
        if certificate.is_none() {
            let reason =
                "clients that name none of these hosts need one too; name it as tls.certificate_file";
            return Err(pair.missing("certificate_file", reason));
        }
        let of_pair = (pair.text("certificate_file")?, pair.text("key_file")?);
        let (Some(certificate), Some(key)) = of_pair else {
            let reason = "a certificate and its key are needed; set `certificate_file` and `key_file`";
            return Err(pair.missing("certificate_file", reason));
        };
        others.push(self::pair(&certificate, &key, warnings)?);
        pair.finish()?;
    }
    section.finish()?;
    let (certificate, key) = match (certificate, key) {
        (None, None) => match clients {
            Some((found, _)) => {
                return Err(
                    found.error("clients show certificates over HTTPS only; set tls.certificate_file too")
                );
            }
            None => return Ok(None),
        },
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(alone), None) => {
            return Err(alone.error("a certificate needs its key; set tls.key_file or --tls-key-file too"));
        }
        (None, Some(alone)) => {
            return Err(alone.error(
                "a key needs its certificate; set tls.certificate_file or --tls-certificate-file too",
            ));
        }
    };
    let http::Pair { certificate_file, key_file } = pair(&certificate, &key, warnings)?;
    let clients = clients.map(|(_, clients)| clients);
    Ok(Some(http::TlsOptions { certificate_file, key_file, others, clients }))
}

fn pair(certificate: &Found<String>, key: &Found<String>, warnings: &mut Vec<String>) -> Result<http::Pair> {
    let certificate_file = certificate.read(|path| files::pem(path, "CERTIFICATE"))?;
    let key_file = key.read(|path| files::pem(path, "PRIVATE KEY"))?;
    warnings.extend(files::exposed(&key_file));
    Ok(http::Pair { certificate_file, key_file })
}

impl Config {
    pub(super) fn explain_listen(&self, p: &mut Printer<'_>) {
        let all_passed = self.http.listeners.iter().any(is_all_passed).then(|| SYSTEMD.to_owned());
        let listen: Vec<String> =
            self.http.listen.iter().map(ToString::to_string).chain(all_passed).collect();
        p.line("listen", texts(&listen));
    }

    pub(super) fn explain_listeners(&self, p: &mut Printer<'_>) {
        for ListenerOptions { address, scope, tls } in &self.http.listeners {
            let address_text = match address {
                ListenAddress::Systemd(None) => continue,
                address => toml::Value::from(address.to_string()),
            };
            p.table("listener");
            let mut line = |key: &str, value: toml::Value| p.out += &format!("{key} = {value}\n");
            line("address", address_text);
            if let ListenAddress::Unix { mode, .. } = address {
                line("mode", format!("{mode:04o}").into());
            }
            match (&scope.upstream, scope.serve) {
                (Some(upstream), _) => line("upstream", upstream.as_str().into()),
                (None, Serve::All) => line("serve", "all".into()),
                (None, Serve::Hosted) => line("serve", "hosted".into()),
                (None, Serve::Mirror) => line("serve", "mirror".into()),
            }
            line("tls", (*tls).into());
        }
    }

    pub(super) fn explain_certificates(&self, p: &mut Printer<'_>) {
        for http::Pair { certificate_file, key_file } in self.http.tls.iter().flat_map(|tls| &tls.others) {
            let text = |path: &Path| toml::Value::from(path.display().to_string());
            p.table("tls.certificate");
            p.out +=
                &format!("certificate_file = {}\nkey_file = {}\n", text(certificate_file), text(key_file));
        }
    }
}

fn is_all_passed(listener: &ListenerOptions) -> bool {
    listener.address == ListenAddress::Systemd(None)
}
