//! The real clients again, as those who push. Images are named `host:port/name:tag`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::clients::{Client, Containerd, Dockerd, Podman, Skopeo, skopeo};
use super::process::{attempt, command, run};

/// A client that can push what it holds.
#[allow(async_fn_in_trait)]
pub trait Pusher: Client {
    /// Takes what is tagged `1` in an OCI layout, and holds it as `image`. No registry is asked.
    async fn load(&self, layout: &Path, image: &str);
    /// The command that pushes, for who wants to see it fail.
    fn pushing(&self, image: &str) -> Command;
    /// Pushes; the digest of what the registry now has, as the client says.
    async fn push(&self, image: &str) -> String;
}

impl Pusher for Containerd {
    /// With every architecture.
    async fn load(&self, layout: &Path, image: &str) {
        let archive = self.directory.join("load.tar");
        run(command(
            "tar",
            ["-C".as_ref(), layout.as_os_str(), "-cf".as_ref(), archive.as_os_str(), ".".as_ref()],
        ))
        .await;
        let (name, tag) = image.rsplit_once(':').unwrap();
        assert_eq!(tag, "1", "it is named by the layout");
        let mut import =
            self.ctr(["images", "import", "--all-platforms", "--no-unpack", "--base-name", name]);
        import.arg(&archive);
        run(import).await;
    }

    fn pushing(&self, image: &str) -> Command {
        self.ctr(["images", "push", "--plain-http", image])
    }

    async fn push(&self, image: &str) -> String {
        run(self.pushing(image)).await;
        self.held(image).await.remove(0)
    }
}

impl Pusher for Dockerd {
    /// With this machine's architecture alone.
    async fn load(&self, layout: &Path, image: &str) {
        let mut load = self.docker(["load", "--quiet", "--input"]);
        load.arg(archive(&self.directory, layout, image).await);
        run(load).await;
    }

    fn pushing(&self, image: &str) -> Command {
        self.docker(["push", image])
    }

    async fn push(&self, image: &str) -> String {
        let said = run(self.pushing(image)).await;
        // `1: digest: sha256:… size: 948`
        let line = said.lines().find_map(|line| line.split_once("digest: "));
        let (_, rest) = line.unwrap_or_else(|| panic!("no digest in\n{said}"));
        rest.split(' ').next().unwrap().to_owned()
    }
}

impl Pusher for Podman {
    /// With this machine's architecture alone.
    async fn load(&self, layout: &Path, image: &str) {
        let mut load = self.podman(["load", "--quiet", "--input"]);
        load.arg(archive(&self.directory, layout, image).await);
        run(load).await;
    }

    fn pushing(&self, image: &str) -> Command {
        let mut push = self.podman(["push", "--quiet", "--tls-verify=false", "--digestfile"]);
        push.arg(self.directory.join("digest")).arg(image);
        push
    }

    async fn push(&self, image: &str) -> String {
        run(self.pushing(image)).await;
        digest_in(&self.directory)
    }
}

impl Pusher for Skopeo {
    /// With every architecture.
    async fn load(&self, layout: &Path, image: &str) {
        let source = format!("oci:{}:1", layout.display());
        let mut copy = self.skopeo(["copy", "--all", "--preserve-digests", &source]);
        copy.arg(format!("dir:{}", self.copy(image).display()));
        run(copy).await;
    }

    fn pushing(&self, image: &str) -> Command {
        let source = format!("dir:{}", self.copy(image).display());
        let mut copy = self.skopeo(["copy", "--all", "--preserve-digests", "--dest-tls-verify=false"]);
        copy.arg("--digestfile").arg(self.directory.join("digest")).arg(source);
        copy.arg(format!("docker://{image}"));
        copy
    }

    async fn push(&self, image: &str) -> String {
        run(self.pushing(image)).await;
        digest_in(&self.directory)
    }
}

/// An archive as of `docker save`, of this machine's architecture in a layout, named `image`.
async fn archive(directory: &Path, layout: &Path, image: &str) -> PathBuf {
    let archive = directory.join("load.tar");
    let _ = std::fs::remove_file(&archive);
    let source = format!("oci:{}:1", layout.display());
    run(skopeo(["copy", &source, &format!("docker-archive:{}:{image}", archive.display())])).await;
    archive
}

/// What a client was told to write its digest to.
fn digest_in(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("digest")).unwrap()
}

/// buildah, with storage of its own; it builds what it pushes.
pub struct Buildah {
    directory: PathBuf,
}

impl Buildah {
    pub fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("auth.json"), "{}").unwrap();
        Self { directory: directory.to_owned() }
    }

    pub fn buildah<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let at = |name: &str| self.directory.join(name);
        let mut buildah = command("buildah", ["--storage-driver", "vfs"]);
        buildah.arg("--root").arg(at("root")).arg("--runroot").arg(at("runroot")).args(arguments);
        buildah.env("HOME", &self.directory).env("REGISTRY_AUTH_FILE", at("auth.json"));
        buildah
    }

    /// Builds `image` from nothing but a file.
    pub async fn build(&self, image: &str, file: &[u8]) {
        let path = self.directory.join("file");
        std::fs::write(&path, file).unwrap();
        let container = run(self.buildah(["from", "scratch"])).await;
        let mut add = self.buildah(["add", "--quiet", container.trim()]);
        add.arg(&path).arg("/file");
        run(add).await;
        run(self.buildah(["commit", "--quiet", "--rm", container.trim(), image])).await;
    }

    /// Makes a list of images that it holds and pushes it, with them, as `image`; gives back its digest.
    pub async fn push_list(&self, image: &str, of: &[&str]) -> String {
        run(self.buildah(["manifest", "create", "list"])).await;
        for held in of {
            run(self.buildah(["manifest", "add", "list", held])).await;
        }
        let mut push = self.buildah(["manifest", "push", "--all", "--tls-verify=false", "--digestfile"]);
        push.arg(self.directory.join("digest")).arg("list").arg(format!("docker://{image}"));
        run(push).await;
        digest_in(&self.directory)
    }
}

impl Client for Buildah {
    async fn pull(&self, image: &str) {
        run(self.buildah(["pull", "--quiet", "--tls-verify=false", image])).await;
    }

    async fn held(&self, image: &str) -> Vec<String> {
        let inspect = self.buildah(["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", image]);
        attempt(inspect).await.map_or(Vec::new(), |digest| vec![digest.trim().to_owned()])
    }

    async fn remove(&self, image: &str) {
        run(self.buildah(["rmi", "--force", image])).await;
    }
}

impl Pusher for Buildah {
    /// With this machine's architecture alone.
    async fn load(&self, layout: &Path, image: &str) {
        let archive = archive(&self.directory, layout, image).await;
        run(self.buildah(["pull", "--quiet", &format!("docker-archive:{}", archive.display())])).await;
    }

    fn pushing(&self, image: &str) -> Command {
        let mut push = self.buildah(["push", "--quiet", "--tls-verify=false", "--digestfile"]);
        push.arg(self.directory.join("digest")).arg(image);
        push
    }

    async fn push(&self, image: &str) -> String {
        run(self.pushing(image)).await;
        digest_in(&self.directory)
    }
}
