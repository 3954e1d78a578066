//! CNCF distribution (Debian's `docker-registry`, unless told another), as upstream and as peer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::RequestBuilder;

use super::process::{Process, Wait, free_port};
use super::token::{ISSUER, SERVICE, TokenServer};
use super::{http, sha256};

/// The account of a registry with `Auth::Htpasswd`.
pub const USER: &str = "rig";
pub const PASSWORD: &str = "secret";
/// `htpasswd -nbBC 4 rig secret`
pub const HTPASSWD: &str = "rig:$2y$04$d9ItFbEkrstCxmblb7UrGuc4k2aj2nBzEWF41vYEeOY9fw55Bjw9i\n";

#[derive(Clone, Default)]
pub enum Auth {
    #[default]
    Open,
    Htpasswd,
    Token(TokenServer),
}

#[derive(Clone, Default)]
pub struct RegistryOptions {
    pub auth: Auth,
    /// Makes it a pull-through cache of the registry at this URL.
    pub proxy: Option<String>,
    /// Another program with the same configuration.
    pub program: Option<PathBuf>,
}

/// A running registry with its storage and log in one directory.
pub struct Registry {
    process: Process,
    pub port: u16,
    directory: PathBuf,
    auth: Auth,
    program: PathBuf,
    barriers: AtomicU32,
}

/// A line of the access log. HEAD answers have 0 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub status: u16,
    pub bytes: u64,
}

impl Access {
    /// A download of a blob or a manifest, or a try at one.
    pub fn is_content(&self) -> bool {
        self.method == "GET" && (self.target.contains("/blobs/") || self.target.contains("/manifests/"))
    }
}

impl Registry {
    /// Starts a registry that keeps everything in `directory`, which is made if it is not there.
    pub async fn start(directory: &Path, options: RegistryOptions) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let port = free_port();
        let config = directory.join("config.yml");
        std::fs::write(&config, configuration(directory, port, &options)).unwrap();
        let program = options.program.unwrap_or_else(|| "docker-registry".into());
        let mut registry = Self {
            process: spawn(&program, directory),
            port,
            directory: directory.to_owned(),
            auth: options.auth,
            program,
            barriers: AtomicU32::new(0),
        };
        registry.ready().await;
        registry
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where the tree of its storage begins.
    pub fn storage(&self) -> PathBuf {
        self.directory.join("storage")
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends the server; its port is closed then.
    pub fn stop(&mut self) {
        self.process.terminate(Duration::from_secs(5));
    }

    /// Starts it again, after `stop`, on the same port and storage.
    pub async fn restart(&mut self) {
        self.process = spawn(&self.program, &self.directory);
        self.ready().await;
    }

    async fn ready(&mut self) {
        let url = self.url() + "/v2/";
        let client = http();
        let wait = Wait::for_("docker-registry");
        while client.get(&url).send().await.is_err() {
            self.process.assert_running();
            wait.a_little().await;
        }
    }

    /// Everything that was asked of this registry, in the order in which it was answered.
    pub async fn requests(&self) -> Vec<Access> {
        // A line is written after its answer: one more request, and what came before it is there.
        let mark = format!("/v2/?barrier={}", self.barriers.fetch_add(1, Ordering::Relaxed));
        http().get(format!("http://{}{mark}", self.host())).send().await.unwrap();
        let wait = Wait::for_("the access log");
        loop {
            let mut lines: Vec<Access> = self.process.log().lines().filter_map(parse_access).collect();
            if lines.iter().any(|line| line.target == mark) {
                lines.retain(|line| !line.target.starts_with("/v2/?barrier="));
                return lines;
            }
            wait.a_little().await;
        }
    }

    /// The downloads of blobs and manifests among `requests`.
    pub async fn content_requests(&self) -> Vec<Access> {
        self.requests().await.into_iter().filter(Access::is_content).collect()
    }

    /// What skopeo takes to log in and push here.
    pub fn push_credentials(&self) -> Option<String> {
        match &self.auth {
            Auth::Open => None,
            Auth::Htpasswd => Some(format!("{USER}:{PASSWORD}")),
            Auth::Token(tokens) => {
                tokens.allow("pusher", "pusher", "*", "pull,push");
                Some("pusher:pusher".to_owned())
            }
        }
    }

    /// Adds whatever this registry wants to see before it lets `request` write to `repository`.
    fn authorize(&self, request: RequestBuilder, repository: &str) -> RequestBuilder {
        match &self.auth {
            Auth::Open => request,
            Auth::Htpasswd => {
                let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
                request.header("Authorization", format!("Basic {basic}"))
            }
            Auth::Token(tokens) => request.bearer_auth(tokens.mint(repository, "pull,push")),
        }
    }

    /// Uploads a blob; gives back its digest.
    pub async fn push_blob(&self, repository: &str, bytes: impl Into<bytes::Bytes>) -> String {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let client = http();
        let post = client.post(format!("{}/v2/{repository}/blobs/uploads/", self.url()));
        let begun = self.authorize(post, repository).send().await.unwrap().error_for_status().unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let put = client.put(format!("{location}&digest={digest}")).body(bytes);
        let done = self.authorize(put, repository).send().await.unwrap();
        assert_eq!(done.status(), 201, "push of a blob to {repository}");
        digest
    }

    /// Uploads a manifest under `reference`; gives back its digest.
    pub async fn push_manifest(&self, repository: &str, reference: &str, kind: &str, bytes: &[u8]) -> String {
        let put = http().put(format!("{}/v2/{repository}/manifests/{reference}", self.url()));
        let put = put.header("Content-Type", kind).body(bytes.to_vec());
        let done = self.authorize(put, repository).send().await.unwrap();
        assert_eq!(done.status(), 201, "push of {repository}:{reference}");
        sha256(bytes)
    }
}

fn spawn(program: &Path, directory: &Path) -> Process {
    let config = directory.join("config.yml");
    let mut command = Command::new(program);
    command.arg("serve").arg(config);
    Process::start("docker-registry", command.env("OTEL_TRACES_EXPORTER", "none"), &directory.join("log"))
}

/// The configuration file (CNCF distribution, docs, "about/configuration").
fn configuration(directory: &Path, port: u16, options: &RegistryOptions) -> String {
    let root = directory.display();
    let mut text = format!(
        "version: 0.1\nlog: {{level: warn}}\n\
         storage:\n  filesystem: {{rootdirectory: {root}/storage}}\n  cache: {{blobdescriptor: inmemory}}\n  delete: {{enabled: true}}\n\
         http: {{addr: '127.0.0.1:{port}', secret: rig}}\n"
    );
    match &options.auth {
        Auth::Open => {}
        Auth::Htpasswd => {
            std::fs::write(directory.join("htpasswd"), HTPASSWD).unwrap();
            text += &format!("auth:\n  htpasswd: {{realm: rig, path: {root}/htpasswd}}\n");
        }
        Auth::Token(tokens) => {
            std::fs::write(directory.join("tokens.pem"), &tokens.certificate_pem).unwrap();
            let realm = tokens.realm();
            text += &format!(
                "auth:\n  token: {{realm: '{realm}', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {root}/tokens.pem}}\n"
            );
        }
    }
    if let Some(remote) = &options.proxy {
        text += &format!("proxy: {{remoteurl: '{remote}'}}\n");
    }
    text
}

/// Reads a line of the combined log format; `None` for any other line.
fn parse_access(line: &str) -> Option<Access> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut request = request.split(' ');
    let mut answer = rest.split(' ');
    Some(Access {
        method: request.next()?.to_owned(),
        target: request.next()?.to_owned(),
        status: answer.next()?.parse().ok()?,
        bytes: answer.next()?.parse().ok()?,
    })
}
