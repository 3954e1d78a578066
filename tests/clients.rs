//! Real clients pull through Forebay from a registry with token authentication, in a network from
//! which Docker Hub cannot be reached. What was pulled once is not asked of upstream again.

mod support;

use std::path::Path;

use support::clients::{Client, Containerd, Dockerd, Podman, Skopeo, skopeo_push};
use support::image::Image;
use support::mirror::Mirror;
use support::namespace::isolated;
use support::registry::{Auth, Registry, RegistryOptions};
use support::token::TokenServer;

const IMAGE: &str = "rig:1";

/// A mirror and, behind it, a registry that holds `IMAGE` for whoever fetches an anonymous token.
struct Rig {
    mirror: Mirror,
    upstream: Registry,
    image: Image,
}

impl Rig {
    async fn start(directory: &Path) -> Self {
        let tokens = TokenServer::start().await;
        tokens.allow_anonymous("library/*", "pull");
        let options = RegistryOptions { auth: Auth::Token(tokens), ..Default::default() };
        let upstream = Registry::start(&directory.join("upstream"), options).await;
        let image = Image::random(7, 3, 2 << 20);
        let layout = directory.join("layout");
        image.write_layout(&layout, "1");
        let target = format!("{}/library/{IMAGE}", upstream.host());
        skopeo_push(&layout, "1", &target, upstream.push_credentials().as_deref()).await;
        let mirror = Mirror::start(&directory.join("mirror"), &upstream.url()).await;
        Self { mirror, upstream, image }
    }

    /// Two pulls of a client that forgets everything in between.
    async fn serves(&self, client: &impl Client) {
        let pushed = self.upstream.content_requests().await.len();
        client.pull(IMAGE).await;
        let held = client.held(IMAGE).await;
        assert!(held.iter().any(|digest| digest == self.image.digest()), "holds {held:?}");
        let after_first = self.upstream.content_requests().await;
        assert!(after_first.len() > pushed, "the first pull came from elsewhere");

        client.remove(IMAGE).await;
        assert_eq!(client.held(IMAGE).await, Vec::<String>::new());
        client.pull(IMAGE).await;
        assert_eq!(client.held(IMAGE).await, held);
        let after_second = self.upstream.content_requests().await;
        assert_eq!(after_second[after_first.len()..], [], "the second pull asked upstream");
    }
}

#[test]
fn dockerd_pulls_by_registry_mirrors() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        rig.serves(&Dockerd::start(&directory.join("client"), &rig.mirror.url()).await).await;
    });
}

#[test]
fn containerd_pulls_by_hosts_toml() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        rig.serves(&Containerd::start(&directory.join("client"), &rig.mirror.url()).await).await;
    });
}

#[test]
fn podman_pulls_by_registries_conf_and_runs_what_it_pulled() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let podman = Podman::start(&directory.join("client"), &rig.mirror.url()).await;
        rig.serves(&podman).await;
        assert_eq!(podman.output_of(IMAGE).await.trim(), "hello from the rig");
    });
}

#[test]
fn skopeo_copies_every_architecture() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let skopeo = Skopeo::new(&directory.join("client"), &rig.mirror.url());
        rig.serves(&skopeo).await;
        let held = skopeo.held(IMAGE).await;
        for content in rig.image.blobs.iter().chain(&rig.image.manifests) {
            assert!(held.contains(&content.digest), "{} is missing", content.digest);
        }
    });
}
