//! The real clients, each with nothing but its own files and pointed at a mirror of docker.io.
//!
//! `<name>:<tag>` is `docker.io/library/<name>:<tag>`, pulled through the mirror; an image that names
//! its registry comes from there, by plain HTTP. They leave the rest of the machine alone. All of
//! them belong into `namespace::isolated`. `pushers` lets them push.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::process::{Process, Wait, attempt, command, run};
use super::sha256;

/// A client that can pull, say what it holds, and forget it.
#[allow(async_fn_in_trait)]
pub trait Client {
    /// Pulls `image`: `name:tag`, or `host:port/name:tag` or `@digest`.
    async fn pull(&self, image: &str);
    /// The digests that the client knows `image` by; empty when it holds no such image.
    async fn held(&self, image: &str) -> Vec<String>;
    /// Removes `image` and its layers.
    async fn remove(&self, image: &str);
}

/// Whether overlay mounts work below `directory`; the clients copy files where they do not.
async fn overlay_works(directory: &Path) -> bool {
    let at = |name: &str| directory.join("overlay-probe").join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    let layers = [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")];
    let options: Vec<String> = layers.map(|(key, name)| format!("{key}={}", at(name).display())).to_vec();
    let mut mount = command("mount", ["-t", "overlay", "overlay", "-o", &options.join(",")]);
    mount.arg(at("merged"));
    attempt(mount).await.is_ok() && attempt(command("umount", [at("merged")])).await.is_ok()
}

/// `docker.io/library/<image>`, unless it names its registry.
pub(super) fn full(image: &str) -> String {
    if image.contains('/') { image.to_owned() } else { format!("docker.io/library/{image}") }
}

/// containerd, by `ctr`, with a `hosts.toml` for docker.io.
pub struct Containerd {
    process: Process,
    pub(super) directory: PathBuf,
    pub(super) snapshotter: &'static str,
}

impl Containerd {
    pub async fn start(directory: &Path, mirror: &str) -> Self {
        let hosts = directory.join("certs.d/docker.io");
        std::fs::create_dir_all(&hosts).unwrap();
        let host = format!("[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(
            hosts.join("hosts.toml"),
            format!("server = \"https://registry-1.docker.io\"\n{host}"),
        )
        .unwrap();
        let config = directory.join("config.toml");
        let at = directory.display();
        let text = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{at}/sock\"\n[ttrpc]\naddress = \"{at}/ttrpc\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut containerd = command("containerd", ["--config".as_ref(), config.as_os_str()]);
        let mut process = Process::start("containerd", &mut containerd, &directory.join("log"));
        let snapshotter = if overlay_works(directory).await { "overlayfs" } else { "native" };
        let wait = Wait::for_("containerd");
        while attempt(command("ctr", ["--address", &format!("{at}/sock"), "version"])).await.is_err() {
            process.assert_running();
            wait.a_little().await;
        }
        Self { process, directory: directory.to_owned(), snapshotter }
    }

    /// Has `host` asked of the mirror at this URL first, as `docker.io` is.
    pub fn mirrors(&self, host: &str, url: &str) {
        let hosts = self.directory.join("certs.d").join(host);
        std::fs::create_dir_all(&hosts).unwrap();
        let text = format!(
            "server = \"https://{host}\"\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    }

    /// Pulls an image of any registry by way of its `hosts.toml`.
    pub async fn pull_mirrored(&self, image: &str) {
        let mut pull = self.ctr(["images", "pull", "--all-platforms", "--snapshotter", self.snapshotter]);
        pull.arg("--hosts-dir").arg(self.directory.join("certs.d"));
        run(with(pull, full(image))).await;
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// Pulls by other files than its own.
    pub async fn pull_by(&self, hosts: &Path, image: &str) {
        let mut pull = self.ctr(["images", "pull", "--snapshotter", self.snapshotter, "--hosts-dir"]);
        pull.arg(hosts);
        run(with(pull, full(image))).await;
    }

    pub fn ctr<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut ctr = command("ctr", ["--address".as_ref(), self.socket().as_os_str()]);
        ctr.args(arguments);
        ctr
    }
}

impl Client for Containerd {
    async fn pull(&self, image: &str) {
        let mut pull = self.ctr(["images", "pull", "--all-platforms", "--snapshotter", self.snapshotter]);
        match image.contains('/') {
            true => pull.arg("--plain-http"),
            false => pull.arg("--hosts-dir").arg(self.directory.join("certs.d")),
        };
        run(with(pull, full(image))).await;
    }

    async fn held(&self, image: &str) -> Vec<String> {
        let name = format!("name=={}", full(image));
        let list = run(self.ctr(["images", "ls", &name])).await;
        // REF TYPE DIGEST SIZE PLATFORMS LABELS, under one line of headings
        list.lines().skip(1).filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned)).collect()
    }

    async fn remove(&self, image: &str) {
        run(self.ctr(["images", "rm", "--sync", &full(image)])).await;
        let left = run(self.ctr(["content", "ls", "--quiet"])).await;
        assert_eq!(left, "", "containerd still holds content");
    }
}

/// dockerd with `--registry-mirror`, on a containerd of its own.
pub struct Dockerd {
    // Dropped before the containerd that it needs.
    process: Process,
    pub containerd: Containerd,
    pub(super) directory: PathBuf,
}

impl Dockerd {
    pub async fn start(directory: &Path, mirror: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let config = directory.join("daemon.json");
        std::fs::write(&config, "{}").unwrap();
        Self::with(directory, mirror, &config, &["--registry-mirror", mirror]).await
    }

    /// With a `daemon.json` that says which mirrors there are.
    pub async fn by_file(directory: &Path, config: &Path) -> Self {
        Self::with(directory, "http://127.0.0.1:1", config, &[]).await
    }

    async fn with(directory: &Path, mirror: &str, config: &Path, arguments: &[&str]) -> Self {
        let containerd = Containerd::start(&directory.join("containerd"), mirror).await;
        let at = |name: &str| directory.join(name);
        let driver = if overlay_works(directory).await { "overlay2" } else { "vfs" };
        let mut dockerd = command("dockerd", ["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        dockerd.args(arguments).args(["--storage-driver", driver]).arg("--config-file").arg(config);
        dockerd.arg("--containerd").arg(containerd.socket()).arg("--data-root").arg(at("data"));
        dockerd.arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
        dockerd.arg("--host").arg(format!("unix://{}", at("sock").display()));
        let process = Process::start("dockerd", &mut dockerd, &at("log"));
        let mut dockerd = Self { process, containerd, directory: directory.to_owned() };
        let wait = Wait::for_("dockerd");
        while attempt(dockerd.docker(["version"])).await.is_err() {
            dockerd.process.assert_running();
            wait.a_little().await;
        }
        dockerd
    }

    /// Where docker keeps its logins.
    pub fn logins(&self) -> PathBuf {
        self.directory.join("cli/config.json")
    }

    pub fn docker<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut docker = command("docker", arguments);
        docker.env("DOCKER_HOST", format!("unix://{}", self.directory.join("sock").display()));
        docker.env("DOCKER_CONFIG", self.directory.join("cli"));
        docker
    }
}

impl Client for Dockerd {
    async fn pull(&self, image: &str) {
        run(self.docker(["pull", image])).await;
    }

    async fn held(&self, image: &str) -> Vec<String> {
        let inspect = self.docker(["image", "inspect", "--format", "{{json .RepoDigests}}", image]);
        attempt(inspect).await.map_or(Vec::new(), |digests| repo_digests(&digests))
    }

    async fn remove(&self, image: &str) {
        run(self.docker(["image", "rm", "--force", image])).await;
    }
}

/// podman with a mirror in `registries.conf`.
pub struct Podman {
    pub(super) directory: PathBuf,
    driver: &'static str,
}

impl Podman {
    pub async fn start(directory: &Path, mirror: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let location = mirror.trim_start_matches("http://");
        let registries = format!(
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
             [[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        );
        std::fs::write(directory.join("registries.conf"), registries).unwrap();
        std::fs::write(directory.join("auth.json"), "{}").unwrap();
        let driver = if overlay_works(directory).await { "overlay" } else { "vfs" };
        Self { directory: directory.to_owned(), driver }
    }

    /// Has `host` asked of `location` (`127.0.0.1:5000/host`) first, as `docker.io` is.
    pub fn mirrors(&self, host: &str, location: &str) {
        let file = self.directory.join("registries.conf");
        let mut text = std::fs::read_to_string(&file).unwrap();
        text += &format!(
            "[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\
             [[registry.mirror]]\nlocation = \"{location}\"\ninsecure = true\n"
        );
        std::fs::write(file, text).unwrap();
    }

    pub fn podman<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let at = |name: &str| self.directory.join(name);
        let mut podman = command("podman", ["--storage-driver", self.driver, "--cgroup-manager", "cgroupfs"]);
        podman.args(["--runtime", "runc", "--events-backend", "none"]);
        podman
            .arg("--root")
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("runroot"))
            .arg("--tmpdir")
            .arg(at("tmp"));
        podman.args(arguments);
        podman.env("CONTAINERS_REGISTRIES_CONF", at("registries.conf")).env("HOME", &self.directory);
        podman.env("REGISTRY_AUTH_FILE", at("auth.json"));
        podman
    }

    /// What a container of `image` prints.
    pub async fn output_of(&self, image: &str) -> String {
        let mut podman = self.podman(["run", "--rm", "--pull", "never", "--network", "none"]);
        podman.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", &full(image)]);
        run(podman).await
    }
}

impl Client for Podman {
    async fn pull(&self, image: &str) {
        let mut pull = self.podman(["pull", "--quiet"]);
        if image.contains('/') {
            pull.arg("--tls-verify=false");
        }
        run(with(pull, full(image))).await;
    }

    async fn held(&self, image: &str) -> Vec<String> {
        let name = full(image);
        let inspect = self.podman(["image", "inspect", "--format", "{{json .RepoDigests}}", &name]);
        attempt(inspect).await.map_or(Vec::new(), |digests| repo_digests(&digests))
    }

    async fn remove(&self, image: &str) {
        run(self.podman(["image", "rm", "--force", &full(image)])).await;
    }
}

/// skopeo, which copies every architecture into a directory, asking the mirror by its address.
pub struct Skopeo {
    pub(super) directory: PathBuf,
    mirror: String,
}

impl Skopeo {
    pub fn new(directory: &Path, mirror: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        Self { directory: directory.to_owned(), mirror: mirror.trim_start_matches("http://").to_owned() }
    }

    /// skopeo with its own home and logins.
    pub fn skopeo<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut skopeo = skopeo(arguments);
        skopeo.env("HOME", &self.directory).env("REGISTRY_AUTH_FILE", self.directory.join("auth.json"));
        skopeo
    }

    pub(super) fn copy(&self, image: &str) -> PathBuf {
        self.directory.join(image.replace([':', '/', '@'], "-"))
    }
}

impl Client for Skopeo {
    async fn pull(&self, image: &str) {
        let mirrored = format!("{}/library/{image}", self.mirror);
        let source = format!("docker://{}", if image.contains('/') { image } else { &mirrored });
        let skopeo = self.skopeo(["copy", "--all", "--src-tls-verify=false", &source]);
        run(with(skopeo, format!("dir:{}", self.copy(image).display()))).await;
    }

    /// The digest of the index, and of everything else that was copied; each is checked.
    async fn held(&self, image: &str) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.copy(image)) else { return Vec::new() };
        let mut digests = Vec::new();
        for file in files {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let digest = sha256(&std::fs::read(file.path()).unwrap());
            match name.as_str() {
                "version" => continue,
                "manifest.json" => {}
                name => assert_eq!(digest, format!("sha256:{}", name.trim_end_matches(".manifest.json"))),
            }
            digests.push(digest);
        }
        digests
    }

    async fn remove(&self, image: &str) {
        std::fs::remove_dir_all(self.copy(image)).unwrap();
    }
}

/// Pushes the index that is tagged `tag` in an OCI layout, with everything below it.
pub async fn skopeo_push(layout: &Path, tag: &str, target: &str, credentials: Option<&str>) {
    let mut skopeo = skopeo(["copy", "--all", "--preserve-digests", "--dest-tls-verify=false"]);
    if let Some(credentials) = credentials {
        skopeo.args(["--dest-creds", credentials]);
    }
    skopeo.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{target}"));
    run(skopeo).await;
}

/// skopeo, with whatever the machine has configured.
pub(super) fn skopeo<const N: usize>(arguments: [&str; N]) -> Command {
    let mut skopeo = command("skopeo", ["--insecure-policy"]);
    skopeo.args(arguments);
    skopeo
}

/// `command` with one more argument.
fn with(mut command: Command, argument: impl AsRef<OsStr>) -> Command {
    command.arg(argument);
    command
}

/// `["name@sha256:…"]`, without the names.
fn repo_digests(json: &str) -> Vec<String> {
    let list: Vec<Value> = serde_json::from_str(json).unwrap();
    let digest = |entry: &Value| Some(entry.as_str()?.split_once('@')?.1.to_owned());
    list.iter().filter_map(digest).collect()
}
