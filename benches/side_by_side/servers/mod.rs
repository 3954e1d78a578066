//! The servers that are compared.

pub mod content;
mod nginx;
mod process;
mod zot;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;

use crate::report::OURS;
use crate::rivals::Rivals;
use crate::support::hosting::hosting;
use crate::support::image::MANIFEST;
use crate::support::mirror::{Mirror, MirrorOptions};
use crate::support::process::Process;
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{http_client, sha256};
use crate::turns::{Named, bounded};
use content::Content;

/// What a server takes at most to start and to have everything.
const STARTING: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Forebay,
    Nginx,
    DockerRegistry,
    Distribution,
    Zot,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::Forebay, Self::Nginx, Self::DockerRegistry, Self::Distribution, Self::Zot];
    pub const REGISTRIES: [Self; 4] = [Self::Forebay, Self::DockerRegistry, Self::Distribution, Self::Zot];

    pub fn name(self) -> &'static str {
        match self {
            Self::Forebay => OURS,
            Self::Nginx => "nginx",
            Self::DockerRegistry => "docker-registry",
            Self::Distribution => "distribution 3",
            Self::Zot => "zot",
        }
    }

    /// Whether its program is there, as far as that is known before it is started.
    pub fn is_there(self, rivals: &Rivals) -> bool {
        match self {
            Self::Distribution => rivals.distribution.is_some(),
            Self::Zot => rivals.zot.is_some(),
            _ => true,
        }
    }
}

impl Named for Kind {
    fn name(&self) -> String {
        Self::name(*self).to_owned()
    }
}

/// What a server is started as.
pub enum Role<'a> {
    /// Pulls through from the registry at this URL, with nothing held at first.
    Mirror(&'a str),
    /// Is pushed to.
    Registry,
    /// Has files: nginx alone.
    Files(&'a Content),
}

/// A certificate and its key, in files.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub der: rustls_pki_types::CertificateDer<'static>,
}

impl Pair {
    /// ECDSA P-256, for 127.0.0.1, signed by itself.
    pub fn new(directory: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        Self { certificate, key, der: made.cert.der().clone() }
    }
}

/// A running server. It ends when dropped.
pub struct Server {
    pub kind: Kind,
    /// `127.0.0.1:PORT`
    pub address: String,
    scheme: &'static str,
    process_id: u32,
    running: Running,
}

enum Running {
    Forebay(Mirror),
    Registry(Registry),
    Other { _guard: Process },
}

impl Named for Server {
    fn name(&self) -> String {
        Named::name(&self.kind)
    }
}

impl Server {
    /// Only Forebay and nginx speak TLS here.
    pub async fn start(
        kind: Kind,
        directory: &Path,
        role: Role<'_>,
        rivals: &Rivals,
        tls: Option<&Pair>,
    ) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (address, process_id, running) = match (kind, role) {
            (Kind::Forebay, role) => {
                let mut mirror = match role {
                    Role::Mirror(upstream) => forebay(directory, upstream, tls).await,
                    _ => hosting(directory, "").await,
                };
                (mirror.host(), mirror.process().id(), Running::Forebay(mirror))
            }
            (Kind::DockerRegistry | Kind::Distribution, role) => {
                let program = rivals.distribution.clone().filter(|_| kind == Kind::Distribution);
                let proxy = if let Role::Mirror(upstream) = role { Some(upstream.to_owned()) } else { None };
                let options = RegistryOptions { proxy, program, ..Default::default() };
                let registry = Registry::start(directory, options).await;
                (registry.host(), registry.id(), Running::Registry(registry))
            }
            (Kind::Zot, role) => {
                let upstream = if let Role::Mirror(upstream) = role { Some(upstream) } else { None };
                let (address, guard) = zot::start(directory, rivals.zot.as_ref().unwrap(), upstream).await;
                (address, guard.id(), Running::Other { _guard: guard })
            }
            (Kind::Nginx, Role::Files(content)) => {
                let (address, guard) = nginx::start(directory, content, tls).await;
                (address, guard.id(), Running::Other { _guard: guard })
            }
            (Kind::Nginx, _) => panic!("nginx is no registry"),
        };
        Self { kind, address, scheme, process_id, running }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Ends it in order and starts it again; false where it does not come up.
    pub async fn restart(&mut self) -> bool {
        let restarting = async {
            match &mut self.running {
                Running::Forebay(mirror) => {
                    mirror.terminate(Duration::from_secs(10));
                    mirror.restart().await;
                    self.process_id = mirror.process().id();
                }
                Running::Registry(registry) => {
                    registry.stop();
                    registry.restart().await;
                    self.process_id = registry.id();
                }
                Running::Other { .. } => panic!("it has nothing to restart for"),
            }
        };
        AssertUnwindSafe(restarting).catch_unwind().await.is_ok()
    }

    /// Has everything fetched from upstream and kept, and checks the bytes.
    pub async fn warm(&self, content: &Content) {
        let client = http_client().tls_danger_accept_invalid_certs(true).build().unwrap();
        // Some keep a blob only some time after they have served it.
        let times = if matches!(self.kind, Kind::Forebay | Kind::Nginx) { 1 } else { 3 };
        for (path, held) in content.paths() {
            for _ in 0..times {
                let url = format!("{}{path}", self.url());
                let answer = client.get(&url).header("Accept", MANIFEST).send().await.unwrap();
                assert_eq!(answer.status(), 200, "{} {path}", self.kind.name());
                let bytes = answer.bytes().await.unwrap();
                assert!(bytes == held.bytes, "{} sent {}", self.kind.name(), sha256(&bytes));
                if times > 1 {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }
}

async fn forebay(directory: &Path, upstream: &str, tls: Option<&Pair>) -> Mirror {
    let tls = tls.map(|pair| (pair.certificate.clone(), pair.key.clone()));
    let options = MirrorOptions { upstream: upstream.to_owned(), tls, ..Default::default() };
    Mirror::with(directory, options).await
}

/// Starts every one of these that is there.
pub async fn each(kinds: &[Kind], rivals: &Rivals, start: impl AsyncFn(Kind) -> Server) -> Vec<Server> {
    let mut servers = Vec::new();
    for kind in kinds.iter().copied().filter(|kind| kind.is_there(rivals)) {
        match bounded(STARTING, start(kind)).await {
            Ok(server) => servers.push(server),
            Err(failure) => eprintln!("{} is left out: {failure}", kind.name()),
        }
    }
    servers
}

/// The same, below `scratch`, with all of `content` held: nginx has its files, the others mirror
/// `upstream`.
pub async fn holding(
    kinds: &[Kind],
    scratch: &Path,
    content: &Content,
    upstream: &str,
    rivals: &Rivals,
    tls: Option<&Pair>,
) -> Vec<Server> {
    each(kinds, rivals, async |kind| {
        let role = if kind == Kind::Nginx { Role::Files(content) } else { Role::Mirror(upstream) };
        let server = Server::start(kind, &scratch.join(kind.name()), role, rivals, tls).await;
        server.warm(content).await;
        server
    })
    .await
}
