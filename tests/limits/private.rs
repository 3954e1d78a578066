//! A credential spends quota and opens nothing, unless its upstream is told to share.

use std::path::Path;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::Tiny;
use super::support::http;
use super::support::image::{Content, INDEX, MANIFEST};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::registry::{Auth, Registry, RegistryOptions};
use super::support::token::TokenServer;

const PUBLIC: &str = "library/public";
const SECRET: &str = "team/secret";

/// A registry with a public and a private repository, and a mirror that has a credential for both.
struct Rig {
    tokens: TokenServer,
    upstream: Registry,
    mirror: Mirror,
    image: Tiny,
    directory: tempfile::TempDir,
}

/// The configuration of docker.io, with a password that is written into a file.
fn config(directory: &Path, password: &str, private: &str) -> String {
    let file = directory.join("password");
    std::fs::write(&file, password).unwrap();
    format!(
        "[upstream.\"docker.io\"]\nusername = \"ci\"\npassword_file = \"{}\"\nprivate = \"{private}\"\n",
        file.display()
    )
}

impl Rig {
    async fn start(password: &str, private: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tokens = TokenServer::start().await;
        tokens.allow_anonymous("library/*", "pull");
        tokens.allow("ci", "right", "*", "pull");
        let options = RegistryOptions { auth: Auth::Token(tokens.clone()), ..Default::default() };
        let upstream = Registry::start(&directory.path().join("upstream"), options).await;
        let image = Tiny::new("content");
        for repository in [PUBLIC, SECRET] {
            for Content { bytes, .. } in &image.blobs {
                upstream.push_blob(repository, bytes.clone()).await;
            }
            let Content { digest, bytes, .. } = &image.manifest;
            upstream.push_manifest(repository, digest, MANIFEST, bytes).await;
            upstream.push_manifest(repository, "1", INDEX, &image.index.bytes).await;
            // The image's own index stands for a signature.
            let tag = digest.replace(':', "-");
            let list = json!({
                "schemaVersion": 2, "mediaType": INDEX, "manifests": [image.index.descriptor()],
            });
            upstream.push_manifest(repository, &tag, INDEX, list.to_string().as_bytes()).await;
        }
        let config = Some(config(directory.path(), password, private));
        let options = MirrorOptions { upstream: upstream.url(), config, ..Default::default() };
        let mirror = Mirror::with(&directory.path().join("mirror"), options).await;
        Self { tokens, upstream, mirror, image, directory }
    }

    /// What each request for the image comes to; the bytes of all that are served are right.
    async fn statuses(&self, repository: &str) -> Vec<u16> {
        let mut statuses = Vec::new();
        for (path, content) in self.image.requests(repository) {
            let answer = http().get(self.mirror.url() + &path).send().await.unwrap();
            let status = answer.status().as_u16();
            let same = answer.bytes().await.unwrap() == content.bytes;
            assert_eq!(same, status == 200, "{path}");
            statuses.push(status);
        }
        statuses
    }

    /// The status of the list of referrers, and how many there are.
    async fn referrers(&self, repository: &str) -> (u16, usize) {
        let subject = &self.image.manifest.digest;
        let url = format!("{}/v2/{repository}/referrers/{subject}", self.mirror.url());
        let answer = http().get(url).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        (status, body["manifests"].as_array().map_or(0, Vec::len))
    }

    async fn assert_open(&self, repository: &str) {
        assert_eq!(self.statuses(repository).await, [200; 5], "{repository}");
        assert_eq!(self.referrers(repository).await, (200, 1), "{repository}");
    }

    async fn assert_refused(&self, repository: &str) {
        let statuses = self.statuses(repository).await;
        assert!(statuses.iter().all(|status| [403, 404].contains(status)), "{repository}: {statuses:?}");
        let tags = format!("{}/v2/{repository}/tags/list", self.mirror.url());
        assert_eq!(http().get(tags).send().await.unwrap().status(), 403);
        assert_eq!(self.referrers(repository).await, (403, 0), "{repository}");
        assert!(!self.lists(repository).await, "{repository}");
    }

    /// Whether the catalog and a search name it.
    async fn lists(&self, repository: &str) -> bool {
        let mut lists = false;
        for path in ["/v2/_catalog", "/v1/search?q=e"] {
            let answer = http().get(self.mirror.url() + path).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            lists |= answer.text().await.unwrap().contains(&format!("\"{repository}\""));
        }
        lists
    }

    /// Stops the mirror once all is on disk, and starts it with another configuration.
    async fn restart_with(&mut self, private: &str) {
        self.mirror.configure(&config(self.directory.path(), "right", private));
        self.mirror.terminate(super::support::process::PATIENCE).expect("it ends by itself");
        self.mirror.restart().await;
    }
}

#[tokio::test]
async fn what_only_the_credential_can_pull_is_refused() {
    let rig = Rig::start("right", "refuse").await;
    rig.assert_open(PUBLIC).await;
    // Its bytes are held, from the public repository.
    rig.assert_refused(SECRET).await;
    assert!(rig.tokens.requests().iter().any(|request| request.user.as_deref() == Some("ci")));
}

#[tokio::test]
async fn shared_it_is_served_until_that_is_taken_back() {
    let mut rig = Rig::start("right", "shared").await;
    rig.assert_open(SECRET).await;
    rig.mirror.linked(&format!("{SECRET}/_manifests/tags/1/current/link")).await;
    rig.restart_with("shared").await;
    rig.assert_open(SECRET).await;
    assert!(rig.lists(SECRET).await);

    rig.restart_with("refuse").await;
    rig.assert_refused(SECRET).await;
    rig.assert_open(PUBLIC).await;
    // Nor does it open while nobody can be asked.
    rig.upstream.stop();
    rig.restart_with("refuse").await;
    assert!(rig.statuses(SECRET).await.iter().all(|status| *status != 200));
    let (status, count) = rig.referrers(SECRET).await;
    assert!(status != 200 && count == 0, "{status}");

    rig.restart_with("shared").await;
    rig.assert_open(SECRET).await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let rig = Rig::start("wrong", "refuse").await;
    let requests = || (0..20).map(|_| rig.statuses(PUBLIC));
    join_all(requests()).await;
    join_all(requests()).await;
    let tries = rig.tokens.requests().into_iter().filter(|request| request.user.is_some());
    assert_eq!(tries.count(), 1);
    // It costs the address's quota, so it is said loudly, and once.
    rig.assert_open(PUBLIC).await;
    assert_eq!(rig.mirror.metric(r#"forebay_upstream_credential_refused{upstream="docker.io"}"#).await, 1.0);
    let log = rig.mirror.log();
    assert_eq!(log.matches("the login is refused").count(), 1, "{log}");
    assert!(log.contains("password"), "{log}");
    rig.assert_refused(SECRET).await;
}
