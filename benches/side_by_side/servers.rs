//! The servers that are compared, all with the same content.

use std::any::Any;
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::support::image::{CONFIG, LAYER, MANIFEST, random_bytes};
use crate::support::mirror::Mirror;
use crate::support::process::{Process, Wait, command, free_port};
use crate::support::registry::{Registry, RegistryOptions};
use crate::support::{http, sha256};

pub const REPOSITORY: &str = "library/bench";
pub const TAG: &str = "1.0.0";

/// A manifest of about 3 KiB and three blobs.
pub struct Content {
    pub manifest: Bytes,
    pub small: Bytes,
    pub medium: Bytes,
    pub large: Bytes,
}

impl Content {
    pub fn random() -> Self {
        let blob = |seed, size| Bytes::from(random_bytes(seed, size));
        let (small, medium, large) = (blob(1, 10 << 10), blob(2, 1 << 20), blob(3, 64 << 20));
        let descriptor = |kind: &str, blob: &Bytes| json!({ "mediaType": kind, "digest": sha256(blob), "size": blob.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &small),
            "layers": [descriptor(LAYER, &medium), descriptor(LAYER, &large)],
            "annotations": { "org.example.filling": "x".repeat(2400) },
        });
        Self { manifest: Bytes::from(manifest.to_string()), small, medium, large }
    }

    fn blobs(&self) -> [&Bytes; 3] {
        [&self.small, &self.medium, &self.large]
    }

    /// Path and bytes of everything that is asked for.
    fn paths(&self) -> Vec<(String, &Bytes)> {
        let blobs = self.blobs().into_iter().map(|blob| (blob_path(blob), blob));
        let manifest = [tag_path(), self.manifest_path()].map(|path| (path, &self.manifest));
        manifest.into_iter().chain(blobs).collect()
    }

    /// The manifest's by its digest.
    pub fn manifest_path(&self) -> String {
        format!("/v2/{REPOSITORY}/manifests/{}", sha256(&self.manifest))
    }

    /// The registry that the mirrors mirror.
    pub async fn upstream(&self, directory: &Path) -> Registry {
        let upstream = Registry::start(directory, RegistryOptions::default()).await;
        for blob in self.blobs() {
            upstream.push_blob(REPOSITORY, blob.clone()).await;
        }
        upstream.push_manifest(REPOSITORY, TAG, MANIFEST, &self.manifest).await;
        upstream
    }
}

pub fn tag_path() -> String {
    format!("/v2/{REPOSITORY}/manifests/{TAG}")
}

pub fn blob_path(blob: &[u8]) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", sha256(blob))
}

/// A running server. Its name is a heading of the table.
pub struct Server {
    pub name: &'static str,
    /// `127.0.0.1:PORT`
    pub address: String,
    process_id: u32,
    /// Ends the server when dropped.
    _guard: Box<dyn Any + Send>,
}

impl Server {
    fn new(name: &'static str, address: String, process_id: u32, guard: impl Any + Send) -> Self {
        Self { name, address, process_id, _guard: Box::new(guard) }
    }

    /// Has everything fetched from upstream and kept, and checks the bytes.
    pub async fn warm(&self, content: &Content) {
        for (path, bytes) in content.paths() {
            let url = format!("http://{}{path}", self.address);
            // docker-registry keeps a blob only some time after it has served it.
            for _ in 0..3 {
                let answer = http().get(&url).header("Accept", MANIFEST).send().await.unwrap();
                assert_eq!(answer.status(), 200, "{} {path}", self.name);
                assert!(answer.bytes().await.unwrap() == bytes, "{} sent other bytes", self.name);
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
        }
    }

    /// User and system time of the server's processes so far (proc(5), `/proc/PID/stat`).
    pub fn cpu_seconds(&self) -> f64 {
        let ticks = self.processes().iter().map(|id| stat(*id).map_or(0, |stat| stat.ticks)).sum::<u64>();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Pages that its processes share are counted in each.
    pub fn peak_memory_mib(&self) -> u64 {
        self.processes().into_iter().map(peak_memory_kib).sum::<u64>() >> 10
    }

    /// The process that was started, and its children (nginx's workers).
    fn processes(&self) -> Vec<u32> {
        let all = std::fs::read_dir("/proc").unwrap();
        let ids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let ours =
            |id: &u32| *id == self.process_id || stat(*id).is_some_and(|s| s.parent == self.process_id);
        ids.filter(ours).collect()
    }
}

/// The high-water mark of a process's resident memory (proc(5), `/proc/PID/status`).
pub fn peak_memory_kib(process_id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn stat(process_id: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
    // The second field, a name in parentheses, may hold anything; the third comes after the last one.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(4)?).ok()?, ticks: number(14)? + number(15)? })
}

/// Starts every server that is there.
pub async fn start(scratch: &Path, content: &Content, upstream: &Registry) -> Vec<Server> {
    let (mirrored, directory) = (upstream.url(), scratch.join("forebay"));
    let forebay = tokio::spawn(async move {
        let mut mirror = Mirror::start(&directory, &mirrored).await;
        Server::new("forebay", mirror.host(), mirror.process().id(), mirror)
    });
    let (options, directory) = (
        RegistryOptions { proxy: Some(upstream.url()), ..Default::default() },
        scratch.join("docker-registry"),
    );
    let registry = tokio::spawn(async move {
        let registry = Registry::start(&directory, options).await;
        Server::new("docker-registry proxy", registry.host(), registry.id(), registry)
    });
    let directory = scratch.join("nginx");
    write_nginx_files(&directory, content);
    let nginx = tokio::spawn(async move { start_nginx(&directory).await });
    let mut servers = Vec::new();
    for (name, started) in [("forebay", forebay), ("docker-registry", registry), ("nginx", nginx)] {
        match started.await {
            Ok(server) => servers.push(server),
            Err(_) => eprintln!("{name} did not start and is left out"),
        }
    }
    servers
}

fn write_nginx_files(directory: &Path, content: &Content) {
    for (path, bytes) in content.paths() {
        let file = directory.join("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    let digest = sha256(&content.manifest);
    std::fs::write(directory.join("locations.conf"), format!(
        "location ~ /manifests/ {{ default_type {MANIFEST}; add_header Docker-Content-Digest {digest}; }}\n\
         location ~ /blobs/(?<digest>.*)$ {{ add_header Docker-Content-Digest $digest; }}\n"
    ))
    .unwrap();
}

/// nginx at its best for this: sendfile without `tcp_nopush`, connections kept, a worker a core.
async fn start_nginx(directory: &Path) -> Server {
    let port = free_port();
    let at = directory.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; worker_processes auto; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log {at}/access.log combined; sendfile on; tcp_nopush off;\n\
           keepalive_requests 100000000; default_type application/octet-stream;\n\
           client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;\n\
           uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
           server {{ listen 127.0.0.1:{port}; root {at}/root; include {at}/locations.conf; }}\n\
         }}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut nginx = command("nginx", ["-c".as_ref(), file.as_os_str()]);
    let mut process = Process::start("nginx", &mut nginx, &directory.join("log"));
    let address = format!("127.0.0.1:{port}");
    let wait = Wait::for_("nginx");
    while http().get(format!("http://{address}/")).send().await.is_err() {
        process.assert_running();
        wait.a_little().await;
    }
    Server::new("nginx static", address, process.id(), process)
}
