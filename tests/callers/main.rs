//! `private = "per-caller"`: two accounts of a registry, each with repositories of its own, pull through
//! one Forebay and learn nothing of each other.

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod fills;
mod logins;
mod outage;
mod veil;

use std::path::Path;

use bytes::Bytes;

use support::answer::Answer;
use support::http;
use support::image::Image;
use support::mirror::{Mirror, MirrorOptions};
use support::registry::{Auth, Registry, RegistryOptions};
use support::token::TokenServer;

const PUBLIC: &str = "library/public";
const ALICES: &str = "alice/app";
const BOBS: &str = "bob/app";
/// Of the accounts, in its lower-case form that of no file's name or log line by chance.
const ALICE: (&str, &str) = ("alice", "correct-horse-battery");
const BOB: (&str, &str) = ("bob", "staple-of-bob");

/// A registry with token authentication, and Forebay in front of it as docker.io.
struct Rig {
    tokens: TokenServer,
    upstream: Registry,
    mirror: Mirror,
    image: Image,
    directory: tempfile::TempDir,
}

fn config(policy: &str) -> String {
    format!("[upstream.\"docker.io\"]\nprivate = {policy}\n")
}

impl Rig {
    /// `policy`: the value of `private`, and lines that follow it.
    async fn start(policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::below(directory, policy).await
    }

    async fn below(directory: tempfile::TempDir, policy: &str) -> Self {
        let tokens = accounts().await;
        let options = RegistryOptions { auth: Auth::Token(tokens.clone()), ..Default::default() };
        let upstream = Registry::start(&directory.path().join("upstream"), options).await;
        let image = Image::random(11, 2, 100_000);
        for repository in [PUBLIC, ALICES, BOBS] {
            image.push(&upstream, repository, "1").await;
        }
        let mirror = mirror(&directory.path().join("mirror"), &upstream.url(), policy).await;
        Self { tokens, upstream, mirror, image, directory }
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        get(&self.mirror, path, token).await
    }

    /// The pass that a login gives for a repository.
    async fn pass(&self, (user, password): (&str, &str), repository: &str) -> String {
        let answer = ask_pass(&self.mirror, Some((user, password)), repository).await;
        answer.expect(200).json()["token"].as_str().unwrap().to_owned()
    }

    /// Everything of the image that a client asks for.
    fn paths(&self, repository: &str) -> Vec<(String, Bytes)> {
        let at = |kind: &str, digest: &str| format!("/v2/{repository}/{kind}/{digest}");
        let mut paths = vec![(at("manifests", "1"), self.image.index.bytes.clone())];
        let manifests = self.image.manifests.iter().chain([&self.image.index]);
        paths.extend(manifests.map(|one| (at("manifests", &one.digest), one.bytes.clone())));
        paths.extend(self.image.blobs.iter().map(|one| (at("blobs", &one.digest), one.bytes.clone())));
        paths
    }

    async fn assert_served(&self, repository: &str, token: Option<&str>) {
        for (path, bytes) in self.paths(repository) {
            let answer = self.get(&path, token).await.expect(200);
            assert!(answer.body == bytes, "{path}");
        }
        let tags = self.get(&format!("/v2/{repository}/tags/list"), token).await.expect(200);
        assert_eq!(tags.json()["tags"][0], "1");
    }

    async fn assert_status(&self, repository: &str, token: Option<&str>, status: u16) {
        for (path, _) in self.paths(repository) {
            self.get(&path, token).await.expect(status);
        }
        self.get(&format!("/v2/{repository}/tags/list"), token).await.expect(status);
    }

    /// Waits until the last thing that a pull keeps is on disk.
    async fn kept(&self, repository: &str) {
        self.mirror.linked(&format!("{repository}/_manifests/tags/1/current/link")).await;
        self.mirror.committed(0).await;
    }

    async fn restart_with(&mut self, policy: &str) {
        self.mirror.configure(&config(policy));
        self.mirror.terminate(support::process::PATIENCE).expect("it ends by itself");
        self.mirror.restart().await;
    }
}

async fn accounts() -> TokenServer {
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("library/*", "pull");
    tokens.allow(ALICE.0, ALICE.1, "alice/*", "pull");
    tokens.allow(BOB.0, BOB.1, "bob/*", "pull");
    tokens
}

async fn mirror(directory: &Path, upstream: &str, policy: &str) -> Mirror {
    let options =
        MirrorOptions { upstream: upstream.to_owned(), config: Some(config(policy)), ..Default::default() };
    Mirror::with(directory, options).await
}

async fn get(mirror: &Mirror, path: &str, token: Option<&str>) -> Answer {
    let request = http().get(mirror.url() + path);
    let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
    Answer::of(request).await
}

/// Asks for a pass, as containerd does by GET.
async fn ask_pass(mirror: &Mirror, login: Option<(&str, &str)>, repository: &str) -> Answer {
    let url = format!("{}/token?service=upstream:docker.io&scope=repository:{repository}:pull", mirror.url());
    let request = login
        .iter()
        .fold(http().get(url), |request, (user, password)| request.basic_auth(user, Some(password)));
    Answer::of(request).await
}
