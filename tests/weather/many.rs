//! Three registries of three kinds behind one mirror, asked by all clients at once; then without them.

use std::path::Path;
use std::time::Instant;

use super::support::clients::{Client, Containerd, Dockerd, Podman, Skopeo, skopeo_push};
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::PATIENCE;
use super::support::registry::{Auth, PASSWORD, Registry, RegistryOptions, USER};
use super::support::token::TokenServer;

/// Who is asked for what. The first stands for docker.io.
const BASIC: &str = "basic.example";
const OPEN: &str = "open.example";

struct Rig {
    mirror: Mirror,
    upstreams: [Registry; 3],
    images: [Image; 3],
}

impl Rig {
    async fn start(directory: &Path) -> Self {
        let tokens = TokenServer::start().await;
        tokens.allow_anonymous("library/*", "pull");
        let registry = async |name: &str, auth: Auth, repository: &str, image: &Image| {
            let options = RegistryOptions { auth, ..Default::default() };
            let registry = Registry::start(&directory.join(name), options).await;
            let layout = directory.join(format!("{name}-layout"));
            image.write_layout(&layout, "1");
            let target = format!("{}/{repository}:1", registry.host());
            skopeo_push(&layout, "1", &target, registry.push_credentials().as_deref()).await;
            registry
        };
        let images =
            [Image::random(1, 2, 1 << 20), Image::random(2, 2, 1 << 20), Image::random(3, 2, 1 << 20)];
        let upstreams = [
            registry("token", Auth::Token(tokens), "library/rig", &images[0]).await,
            registry("basic", Auth::Htpasswd, "team/rig", &images[1]).await,
            registry("open", Auth::Open, "org/team/rig", &images[2]).await,
        ];
        let password = directory.join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        let config = format!(
            "[upstream.\"{BASIC}\"]\nurl = \"{}\"\nusername = \"{USER}\"\npassword_file = \"{}\"\n\
             private = \"shared\"\n[upstream.\"{OPEN}\"]\nurl = \"{}\"\n",
            upstreams[1].url(),
            password.display(),
            upstreams[2].url(),
        );
        let options =
            MirrorOptions { upstream: upstreams[0].url(), config: Some(config), ..Default::default() };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        Self { mirror, upstreams, images }
    }
}

/// All clients, each pointed at the mirror in its own way.
struct Clients {
    dockerd: Dockerd,
    containerd: Containerd,
    podman: Podman,
    skopeo: Skopeo,
    /// The mirror, as `host:port`.
    mirror: String,
}

impl Clients {
    async fn start(directory: &Path, mirror: &Mirror) -> Self {
        let url = mirror.url();
        let dockerd = Dockerd::start(&directory.join("dockerd"), &url).await;
        let containerd = Containerd::start(&directory.join("containerd"), &url).await;
        let podman = Podman::start(&directory.join("podman"), &url).await;
        // By `?ns=` at the root, and by a path in front of `/v2/`; podman puts the path behind it.
        containerd.mirrors(BASIC, &url);
        containerd.mirrors(OPEN, &format!("{url}/{OPEN}"));
        for host in [BASIC, OPEN] {
            podman.mirrors(host, &format!("{}/{host}", mirror.host()));
        }
        let skopeo = Skopeo::new(&directory.join("skopeo"), &url);
        Self { dockerd, containerd, podman, skopeo, mirror: mirror.host() }
    }

    /// Pulls every image with every client, all of them at once; by tag and by digest.
    async fn pull_all(&self, images: &[Image; 3], told: &str) {
        let names =
            ["docker.io/library/rig".to_owned(), format!("{BASIC}/team/rig"), format!("{OPEN}/org/team/rig")];
        let references =
            |place: usize, name: &str| [format!("{name}:1"), format!("{name}@{}", images[place].digest())];
        let dockerd = timed(told, "dockerd", async {
            for image in [
                "rig:1".to_owned(),
                format!("rig@{}", images[0].digest()),
                format!("{}/{BASIC}/team/rig:1", self.mirror),
                format!("{}/{OPEN}/org/team/rig@{}", self.mirror, images[2].digest()),
            ] {
                self.dockerd.pull(&image).await;
                assert_ne!(self.dockerd.held(&image).await, Vec::<String>::new());
                self.dockerd.remove(&image).await;
            }
        });
        let containerd = timed(told, "containerd", async {
            for (place, name) in names.iter().enumerate() {
                for image in references(place, name) {
                    self.containerd.pull_mirrored(&image).await;
                    assert_eq!(self.containerd.held(&image).await, [images[place].digest()], "{image}");
                    self.containerd.remove(&image).await;
                }
            }
        });
        let podman = timed(told, "podman", async {
            for (place, name) in names.iter().enumerate() {
                for image in references(place, name) {
                    self.podman.pull(&image).await;
                    assert_ne!(self.podman.held(&image).await, Vec::<String>::new(), "{image}");
                    self.podman.remove(&image).await;
                }
            }
        });
        let skopeo = timed(told, "skopeo", async {
            for (place, name) in names.iter().enumerate() {
                let image = format!("{}/{name}:1", self.mirror);
                self.skopeo.pull(&image).await;
                let held = self.skopeo.held(&image).await;
                assert!(held.iter().any(|digest| digest == images[place].digest()), "{image}: {held:?}");
                self.skopeo.remove(&image).await;
            }
        });
        tokio::join!(dockerd, containerd, podman, skopeo);
    }
}

/// Says how long it took: for who reads, no assertion.
async fn timed(told: &str, client: &str, work: impl Future<Output = ()>) {
    let begun = Instant::now();
    work.await;
    eprintln!("{told}: {client} {:.2} s", begun.elapsed().as_secs_f64());
}

#[test]
fn three_registries_by_every_client_at_once_and_then_without_them() {
    isolated(async |directory| {
        let mut rig = Rig::start(&directory).await;
        let clients = Clients::start(&directory.join("clients"), &rig.mirror).await;
        clients.pull_all(&rig.images, "cold").await;
        let mut asked = Vec::new();
        for upstream in &rig.upstreams {
            let requests = upstream.content_requests().await;
            let blobs: Vec<_> =
                requests.iter().filter(|r| r.target.contains("/blobs/") && r.status == 200).collect();
            let mut targets: Vec<_> = blobs.iter().map(|r| &r.target).collect();
            targets.sort();
            targets.dedup();
            assert_eq!(targets.len(), blobs.len(), "a blob crossed twice: {blobs:?}");
            asked.push(requests.len());
        }
        clients.pull_all(&rig.images, "held").await;
        for (upstream, asked) in rig.upstreams.iter().zip(asked) {
            assert_eq!(upstream.content_requests().await.len(), asked, "held content was asked for again");
        }
        rig.upstreams.iter_mut().for_each(Registry::stop);
        clients.pull_all(&rig.images, "upstreams dead").await;
        assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
        rig.mirror.restart().await;
        clients.pull_all(&rig.images, "upstreams dead, restarted").await;
    });
}
