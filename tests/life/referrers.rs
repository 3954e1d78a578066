//! Signatures and their like through the mirror, over real registries: one without the referrers API
//! (CNCF distribution 2.8), one with it (another Forebay).

use std::path::Path;

use reqwest::Response;
use serde_json::{Value, json};

use super::support::http;
use super::support::image::{CONFIG, Content, EMPTY, INDEX, LAYER, MANIFEST};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::process::Wait;
use super::support::registry::Registry;

const APP: &str = "team/app";
const SIGNATURE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SBOM: &str = "application/spdx+json";

/// A manifest with its blobs.
struct Artifact {
    manifest: Content,
    blobs: [Content; 2],
}

impl Artifact {
    fn image() -> Self {
        let blobs = [Content::new(CONFIG, "{}\n"), Content::new(LAYER, "a layer")];
        let [config, layer] = blobs.each_ref().map(Content::descriptor);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        Self { manifest: Content::new(MANIFEST, manifest.to_string()), blobs }
    }

    fn of(subject: &Content, kind: &str, note: &str) -> Self {
        let blobs = [Content::new(EMPTY, "{}"), Content::new(SIGNATURE, kind.to_owned())];
        let [config, layer] = blobs.each_ref().map(Content::descriptor);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": config,
            "layers": [layer], "subject": subject.descriptor(), "annotations": { "note": note },
        });
        Self { manifest: Content::new(MANIFEST, manifest.to_string()), blobs }
    }

    /// As lists have it.
    fn entry(&self) -> Value {
        let manifest: Value = serde_json::from_slice(&self.manifest.bytes).unwrap();
        let mut entry = self.manifest.descriptor();
        entry["artifactType"] = manifest["artifactType"].clone();
        entry["annotations"] = manifest["annotations"].clone();
        entry
    }

    async fn push(&self, url: &str) {
        for Content { digest, bytes, .. } in &self.blobs {
            let begun = http().post(format!("{url}/v2/{APP}/blobs/uploads/")).send().await.unwrap();
            let location = begun.headers()["location"].to_str().unwrap();
            let location =
                if location.starts_with('/') { format!("{url}{location}") } else { location.into() };
            let more = if location.contains('?') { '&' } else { '?' };
            let put = http().put(format!("{location}{more}digest={digest}")).body(bytes.clone());
            assert_eq!(put.send().await.unwrap().status(), 201, "{digest} to {url}");
        }
        put_manifest(url, &self.manifest.digest, &self.manifest).await;
    }

    /// All of it, through a mirror.
    async fn pull(&self, mirror: &Mirror) {
        let manifest = (format!("manifests/{}", self.manifest.digest), &self.manifest);
        let blobs = self.blobs.iter().map(|blob| (format!("blobs/{}", blob.digest), blob));
        for (path, content) in [manifest].into_iter().chain(blobs) {
            let answer = http().get(format!("{}/v2/{APP}/{path}", mirror.url())).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(answer.bytes().await.unwrap(), content.bytes, "{path}");
        }
    }
}

async fn put_manifest(url: &str, reference: &str, manifest: &Content) {
    let put = http().put(format!("{url}/v2/{APP}/manifests/{reference}"));
    let put = put.header("Content-Type", manifest.media_type).body(manifest.bytes.clone());
    assert_eq!(put.send().await.unwrap().status(), 201, "{reference} to {url}");
}

async fn mirror_of(url: String, directory: &Path) -> Mirror {
    let config = Some("[freshness]\nothers = \"1ms\"\n".to_owned());
    let options = MirrorOptions { upstream: url, config, ..Default::default() };
    Mirror::with(directory, options).await
}

/// What the mirror answers at `…/referrers/<digest>`.
async fn ask(mirror: &Mirror, subject: &Content, query: &str) -> Response {
    let url = format!("{}/v2/{APP}/referrers/{}{query}", mirror.url(), subject.digest);
    let answer = http().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], INDEX);
    answer
}

/// The entries of an answer, in the order of their digests.
async fn entries(answer: Response) -> Vec<Value> {
    let index: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(INDEX)));
    index["manifests"].as_array().unwrap().clone()
}

fn listed<'a>(artifacts: impl IntoIterator<Item = &'a Artifact>) -> Vec<Value> {
    let mut entries: Vec<Value> = artifacts.into_iter().map(Artifact::entry).collect();
    entries.sort_by_key(|entry| entry["digest"].as_str().unwrap().to_owned());
    entries
}

#[tokio::test]
async fn signatures_in_a_registry_without_the_api_are_found_and_outlive_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut registry = Registry::start(&directory.path().join("registry"), Default::default()).await;
    let mut mirror = mirror_of(registry.url(), &directory.path().join("mirror")).await;
    let image = Artifact::image();
    let artifacts = [SIGNATURE, SBOM].map(|kind| Artifact::of(&image.manifest, kind, "fallback"));
    image.push(&registry.url()).await;
    let subject = &image.manifest;
    assert!(entries(ask(&mirror, subject, "").await).await.is_empty());
    for artifact in &artifacts {
        artifact.push(&registry.url()).await;
    }
    // What a client that signs does where there is no API.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": listed(&artifacts) });
    let tag = subject.digest.replace(':', "-");
    put_manifest(&registry.url(), &tag, &Content::new(INDEX, index.to_string())).await;

    // None is what was said a moment ago; that is soon asked again.
    let wait = Wait::for_("the signature to be found");
    while entries(ask(&mirror, subject, "").await).await != listed(&artifacts) {
        wait.a_little().await;
    }
    let filtered = ask(&mirror, subject, &format!("?artifactType={SBOM}").replace('+', "%2B")).await;
    assert_eq!(filtered.headers()["oci-filters-applied"], "artifactType");
    assert_eq!(entries(filtered).await, listed([&artifacts[1]]));
    for artifact in artifacts.iter().chain([&image]) {
        artifact.pull(&mirror).await;
    }
    mirror.terminate(super::support::process::PATIENCE).expect("it ends by itself, all is kept");
    registry.stop();
    mirror.restart().await;

    let stale = ask(&mirror, subject, "").await;
    assert_eq!(stale.headers()["cache-status"], "forebay; hit; detail=stale");
    assert!(stale.headers()["warning"].to_str().unwrap().contains(APP));
    assert_eq!(entries(stale).await, listed(&artifacts));
    for artifact in artifacts.iter().chain([&image]) {
        artifact.pull(&mirror).await;
    }
}

#[tokio::test]
async fn the_pages_of_another_forebay_are_followed() {
    let directory = tempfile::tempdir().unwrap();
    let config = Some("[hosted]\nrepositories = [\"team/**\"]\nshadow = true\n".to_owned());
    // It has no upstream that could be asked, and needs none.
    let options = MirrorOptions { upstream: "http://127.0.0.1:1".to_owned(), config, ..Default::default() };
    let hosting = Mirror::with(&directory.path().join("hosting"), options).await;
    let mirror = mirror_of(hosting.url(), &directory.path().join("mirror")).await;
    let image = Artifact::image();
    image.push(&hosting.url()).await;
    // More than one answer holds.
    let artifacts: Vec<Artifact> = ["a", "b", "c"]
        .iter()
        .map(|note| Artifact::of(&image.manifest, SIGNATURE, &note.repeat(1_200_000)))
        .collect();
    for artifact in &artifacts {
        artifact.push(&hosting.url()).await;
    }
    let first = ask(&mirror, &image.manifest, "").await;
    let next = first.headers()["link"].to_str().unwrap().to_owned();
    let mut all = entries(first).await;
    let series = r#"forebay_upstream_requests_total{call="referrers",status="2xx",upstream="docker.io"}"#;
    assert_eq!(mirror.metric(series).await, 2.0, "upstream's list has two pages");
    let next = next.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
    let query = next.split_once('?').unwrap().1;
    let second = ask(&mirror, &image.manifest, &format!("?{query}")).await;
    assert!(!second.headers().contains_key("link"));
    all.extend(entries(second).await);
    assert!(all == listed(&artifacts), "other entries, or in another order");
    for artifact in &artifacts {
        artifact.pull(&mirror).await;
    }
}
