//! Referrers through the mirror: fresh, stale, private, kept; and the artifacts that they lead to.

use forebay::answer::{Referrer, ReferrersAnswer};
use forebay::oci::Digest;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::image::{ARTIFACT, CONFIG, Content, EMPTY, INDEX, MANIFEST, random_bytes};
use super::support::process::Wait;
use super::*;

const APP: &str = "library/app";
const SIGNATURE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn subject() -> Digest {
    Digest::sha256(b"an image")
}

/// What refers to the subject: an image manifest with the empty configuration and one layer.
struct Artifact {
    manifest: Content,
    layer: Content,
}

impl Artifact {
    fn new(note: &str) -> Self {
        let layer = Content::new(SIGNATURE, note.to_owned());
        let config = json!({
            "mediaType": EMPTY, "digest": Digest::sha256(b"{}").to_string(), "size": 2, "data": "e30=",
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": SIGNATURE, "config": config,
            "layers": [layer.descriptor()], "annotations": { "note": note },
            "subject": { "mediaType": MANIFEST, "digest": subject().to_string(), "size": 8 },
        });
        Self { manifest: Content::new(MANIFEST, manifest.to_string()), layer }
    }

    fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// As the referrers API lists it.
    fn entry(&self) -> Value {
        let mut entry = self.manifest.descriptor();
        entry["artifactType"] = json!(SIGNATURE);
        entry["annotations"] = json!({ "note": String::from_utf8(self.layer.bytes.to_vec()).unwrap() });
        entry
    }

    fn put(&self, upstream: &faulty::Upstream) {
        upstream.put_blob(APP, self.layer.bytes.clone());
        upstream.put_manifest(APP, self.digest(), MANIFEST, self.manifest.bytes.clone());
    }
}

impl Rig {
    fn lists(&self, artifacts: &[&Artifact]) {
        let entries: Vec<Value> = artifacts.iter().map(|artifact| artifact.entry()).collect();
        self.upstream.put_referrers(APP, &subject().to_string(), &entries);
    }

    /// The same under the fallback tag.
    fn tags(&self, artifacts: &[&Artifact]) {
        let entries: Vec<Value> = artifacts.iter().map(|artifact| artifact.entry()).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        let tag = subject().to_string().replace(':', "-");
        self.upstream.put_manifest(APP, &tag, INDEX, index.to_string());
    }

    async fn referrers(&self) -> Result<ReferrersAnswer, Error> {
        self.referrers_of("docker.io", APP).await
    }

    async fn referrers_of(&self, host: &str, name: &str) -> Result<ReferrersAnswer, Error> {
        self.mirror.referrers(self.asker(), &repository(host, name), &subject()).await
    }

    /// The digests that are listed, and how the list was served.
    async fn listed(&self) -> (Vec<String>, Served) {
        let answer = self.referrers().await.unwrap();
        (answer.referrers.iter().map(|referrer| referrer.digest.clone()).collect(), answer.served)
    }

    fn asked(&self) -> usize {
        self.upstream.requests_for("GET", "/referrers/").len()
    }

    async fn kept(&self) {
        let hex = subject().hex();
        let file = self.dir.path().join(format!("forebay/referrers/{APP}/_sha256/{hex}"));
        let wait = Wait::for_("a list of referrers to be kept");
        while !file.exists() {
            wait.a_little().await;
        }
    }
}

fn digests(artifacts: &[&Artifact]) -> Vec<String> {
    artifacts.iter().map(|artifact| artifact.digest().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_fresh_for_its_time_and_asked_for_once_for_all_who_wait() {
    let rig = Rig::new().await;
    let [one, two] = ["one", "two"].map(Artifact::new);
    rig.lists(&[&one]);
    rig.upstream.on("GET", "/referrers/").then(Fault::Delay(Duration::from_millis(200)));
    let answers = join_all((0..100).map(|_| rig.listed())).await;
    assert!(answers.iter().all(|(listed, _)| *listed == digests(&[&one])));
    assert_eq!(rig.asked(), 1);
    let Referrer { media_type, size, artifact_type, annotations, .. } =
        rig.referrers().await.unwrap().referrers[0].clone();
    assert_eq!((media_type.as_str(), size), (MANIFEST, one.manifest.bytes.len() as u64));
    assert_eq!((artifact_type.unwrap().as_str(), annotations.unwrap()["note"].as_str()), (SIGNATURE, "one"));

    rig.lists(&[&one, &two]);
    rig.clock.advance(4 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&one]), Served::Hit));
    rig.clock.advance(2 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&one, &two]), Served::Miss));
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&one, &two]), Served::Revalidated));
    assert_eq!(rig.asked(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_comes_a_minute_later_is_found_then() {
    let rig = Rig::new().await;
    let one = Artifact::new("one");
    let tag = format!("{}.sig", subject().to_string().replace(':', "-"));
    assert_eq!(rig.listed().await.0, [""; 0]);
    assert!(matches!(rig.get(&tag).await, Err(Error::NotFound(_))));
    one.put(&rig.upstream);
    rig.lists(&[&one]);
    rig.upstream.put_manifest(APP, &tag, MANIFEST, one.manifest.bytes.clone());
    // For a moment it is taken as said that there is none.
    assert_eq!(rig.listed().await, (vec![], Served::Hit));
    assert!(matches!(rig.get(&tag).await, Err(Error::NotFound(_))));
    rig.clock.advance(MINUTE);
    assert_eq!(rig.listed().await.0, digests(&[&one]));
    assert_eq!(rig.get(&tag).await.unwrap().bytes.unwrap(), one.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_the_fallback_tag_costs_a_get_only_when_it_moved() {
    let rig = Rig::new().await;
    let [one, two] = ["one", "two"].map(Artifact::new);
    rig.upstream.without_referrers();
    rig.tags(&[&one]);
    assert_eq!(rig.listed().await, (digests(&[&one]), Served::Miss));
    assert_eq!((rig.asked(), rig.manifests("HEAD"), rig.manifests("GET")), (1, 1, 1));
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&one]), Served::Revalidated));
    assert_eq!((rig.asked(), rig.manifests("HEAD"), rig.manifests("GET")), (1, 2, 1));
    let rig = rig.restarted().await;
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&one]), Served::Revalidated));
    assert_eq!(rig.manifests("GET"), 1, "a restart has not forgotten the index");
    rig.tags(&[&two, &one]);
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await, (digests(&[&two, &one]), Served::Miss));
    assert_eq!(rig.manifests("GET"), 2);
    // Neither the API nor the tag: none, which costs a HEAD each time.
    let (heads, asked) = (rig.manifests("HEAD"), rig.asked());
    for name in ["library/unsigned", "library/unknown"] {
        assert!(rig.referrers_of("docker.io", name).await.unwrap().referrers.is_empty());
    }
    assert!(rig.asked() <= asked + 1, "that there is no API is remembered");
    assert_eq!((rig.manifests("HEAD"), rig.manifests("GET")), (heads + 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_held_outlives_every_trouble() {
    let cases = [
        (Fault::Delay(Duration::MAX), ""),
        (Fault::Reset, "referrers"),
        (Fault::status(500), "500"),
        (Fault::status(429), "rate limit"),
        (Fault::status(404), "404"),
        (Fault::login_page(), "HTML"),
        (Fault::Cut { after: 10, how: faulty::Cut::Fin }, "broke off"),
        (Fault::Append(5 << 20), "larger than the limit"),
        (Fault::Flip(0), "not as specified"),
    ];
    for (fault, why) in cases {
        let rig = Rig::new().await;
        let one = Artifact::new("one");
        rig.lists(&[&one]);
        rig.listed().await;
        rig.upstream.on("GET", "/referrers/").then(fault.clone());
        rig.clock.advance(6 * MINUTE);
        for _ in 0..2 {
            let (listed, served) = rig.listed().await;
            assert_eq!(listed, digests(&[&one]), "{fault:?}");
            let Served::Stale(reason) = served else { panic!("{fault:?}: {served:?}") };
            assert!(reason.contains(why) && !reason.contains("not held"), "{fault:?}: {reason}");
        }
        rig.upstream.clear_rules();
        rig.clock.advance(2 * MINUTE);
        assert_eq!(rig.listed().await, (digests(&[&one]), Served::Revalidated), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_s_list_takes_nothing_away_while_the_registry_is_down() {
    for (fault, why) in [(Fault::status(503), "503"), (Fault::status(429), "rate limit")] {
        let (upstream, other) = (faulty::Upstream::start().await, faulty::Upstream::start().await);
        let setting = Setting { mirrors: vec![mirror_at(&other.url())], ..Setting::default() };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let rig = Rig::with(upstream, dir, Clock::default(), &["docker.io"], setting).await;
        let [one, two] = ["one", "two"].map(Artifact::new);
        let mirrored = |artifacts: &[&Artifact]| {
            let entries: Vec<Value> = artifacts.iter().map(|artifact| artifact.entry()).collect();
            other.put_referrers(APP, &subject().to_string(), &entries);
        };
        rig.lists(&[&one]);
        assert_eq!(rig.listed().await, (digests(&[&one]), Served::Miss));
        rig.upstream.on("GET", "/referrers/").then(fault);
        let lists = async |rig: &Rig, wanted: &[&Artifact]| {
            let (listed, served) = rig.listed().await;
            assert_eq!(listed, digests(wanted), "{why}");
            assert!(matches!(&served, Served::Stale(told) if told.contains(why)), "{served:?}");
        };
        mirrored(&[]);
        rig.clock.advance(6 * MINUTE);
        lists(&rig, &[&one]).await;
        // What the mirror has besides is of use meanwhile.
        mirrored(&[&two, &one]);
        rig.clock.advance(2 * MINUTE);
        lists(&rig, &[&one, &two]).await;
        mirrored(&[&two]);
        let nothing_held = rig.referrers_of("docker.io", "library/other").await;
        assert!(
            !matches!(nothing_held, Ok(answer) if answer.served == Served::Miss),
            "no word of upstream's"
        );
        // On disk is what upstream said.
        let rig = rig.restarted().await;
        rig.clock.advance(6 * MINUTE);
        lists(&rig, &[&one]).await;
        rig.upstream.clear_rules();
        rig.clock.advance(2 * MINUTE);
        assert_eq!(rig.listed().await, (digests(&[&one]), Served::Revalidated));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_upstream_has_dropped_goes_after_its_time_and_an_empty_one_counts_at_once() {
    let rig = Rig::new().await;
    let one = Artifact::new("one");
    rig.upstream.without_referrers();
    rig.tags(&[&one]);
    rig.listed().await;
    rig.upstream.remove(APP, &subject().to_string().replace(':', "-"));
    for passed in [6 * MINUTE, 23 * HOUR] {
        rig.clock.advance(passed);
        let (listed, served) = rig.listed().await;
        assert!(matches!(served, Served::Stale(_)), "{served:?}");
        assert_eq!(listed, digests(&[&one]));
    }
    rig.clock.advance(2 * HOUR);
    assert_eq!(rig.listed().await, (vec![], Served::Miss));

    let rig = Rig::new().await;
    rig.lists(&[&one]);
    rig.listed().await;
    rig.lists(&[]);
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await, (vec![], Served::Miss));
    let rig = rig.restarted().await;
    assert_eq!(rig.listed().await, (vec![], Served::Hit), "on disk as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_survives_a_restart_and_an_outage() {
    let rig = Rig::new().await;
    let one = Artifact::new("one");
    rig.lists(&[&one]);
    rig.listed().await;
    rig.kept().await;
    let mut rig = rig.restarted().await;
    assert_eq!(rig.listed().await, (digests(&[&one]), Served::Hit));
    assert_eq!(rig.asked(), 1);
    rig.upstream.stop().await;
    rig.clock.advance(30 * 24 * HOUR);
    let rig = rig.restarted().await;
    let (listed, served) = rig.listed().await;
    assert!(matches!(served, Served::Stale(_)), "{served:?}");
    assert_eq!(listed, digests(&[&one]));
    // What was never asked for cannot be told.
    let unknown = rig.referrers_of("docker.io", "library/other").await;
    assert!(matches!(unknown, Err(Error::Unavailable { .. })), "{unknown:?}");
    // The kept list is disposable; a fallback tag that was mirrored says the same.
    std::fs::remove_dir_all(rig.dir.path().join("forebay/referrers")).unwrap();
    let mut rig = rig.restarted().await;
    assert!(matches!(rig.referrers().await, Err(Error::Unavailable { .. })));
    rig.upstream.restart().await;
    rig.tags(&[&one]);
    rig.get(&subject().to_string().replace(':', "-")).await.unwrap();
    rig.upstream.stop().await;
    let rig = rig.restarted().await;
    assert_eq!(rig.listed().await.0, digests(&[&one]));
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_lists_are_paid_for_and_held_ones_are_not() {
    let rig = Rig::new().await;
    rig.lists(&[&Artifact::new("one")]);
    rig.listed().await;
    rig.purse.0.store(0, Ordering::SeqCst);
    rig.clock.advance(6 * MINUTE);
    assert_eq!(rig.listed().await.1, Served::Revalidated);
    let refused = rig.referrers_of("docker.io", "library/other").await;
    assert!(matches!(refused, Err(Error::ClientLimited { .. })), "{refused:?}");
    assert_eq!(rig.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_may_not_pull_is_not_listed() {
    let rig = Rig::new().await;
    rig.lists(&[&Artifact::new("one")]);
    rig.listed().await;
    // Upstream takes it back.
    rig.upstream.on("GET", "/referrers/").then(Fault::status(403));
    rig.clock.advance(6 * MINUTE);
    for _ in 0..2 {
        assert!(matches!(rig.referrers().await, Err(Error::Denied { .. })));
    }
    assert_eq!(rig.asked(), 2, "and is not asked again at once");

    // A credential opens no doors: that anybody may pull the image is shown first.
    let Rig { upstream, dir, clock, tasks, mirror, .. } = rig;
    assert!(tasks.drain(MINUTE).await);
    drop(mirror);
    upstream.clear_rules();
    std::fs::write(dir.path().join("password"), "secret").unwrap();
    let rig = Rig::over(upstream, dir, clock, &["paid.example"]).await;
    let before = rig.asked();
    // Hidden as missing, as some registries hide what is private: nothing is listed, nothing is asked.
    let answer = rig.referrers_of("paid.example", APP).await.unwrap();
    assert_eq!((answer.referrers.len(), rig.asked()), (0, before));
    assert!(rig.referrers_of("paid.example", APP).await.unwrap().referrers.is_empty());
    for status in [401, 403] {
        rig.upstream.on("HEAD", "/manifests/").times(1).then(Fault::status(status));
        rig.clock.advance(2 * MINUTE);
        let denied = rig.referrers_of("paid.example", APP).await;
        assert!(matches!(denied, Err(Error::Denied { .. })), "{status}: {denied:?}");
        assert_eq!(rig.asked(), before);
    }
    let digest = rig.upstream.put_manifest(APP, "1", MANIFEST, "an image");
    assert_eq!(digest, subject().to_string());
    rig.clock.advance(2 * MINUTE);
    assert_eq!(rig.referrers_of("paid.example", APP).await.unwrap().referrers.len(), 1);
    assert_eq!(rig.asked(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_of_every_form_pass_and_are_kept() {
    let rig = Rig::new().await;
    // The empty configuration is not there: not every registry keeps what everybody knows.
    let one = Artifact::new("one");
    one.put(&rig.upstream);
    // Withdrawn, and still found.
    let old = json!({
        "mediaType": ARTIFACT, "artifactType": "text/x", "blobs": [one.layer.descriptor()],
        "subject": { "mediaType": MANIFEST, "digest": subject().to_string(), "size": 8 },
    });
    let old = Content::new(ARTIFACT, old.to_string());
    rig.upstream.put_manifest(APP, "old", ARTIFACT, old.bytes.clone());
    // As cosign writes it without the API: an image of its own under a tag of its own.
    let config = Content::new(CONFIG, "{\"rootfs\":{}}");
    let layer = Content::new("application/vnd.dev.cosign.simplesigning.v1+json", random_bytes(1, 300));
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let signature = Content::new(MANIFEST, signature.to_string());
    let hex = subject().hex();
    let tags = ["sig", "att", "sbom"].map(|kind| format!("sha256-{hex}.{kind}"));
    for tag in &tags {
        rig.upstream.put_manifest(APP, tag, MANIFEST, signature.bytes.clone());
    }
    for blob in [&config, &layer] {
        rig.upstream.put_blob(APP, blob.bytes.clone());
    }
    let pull = async |rig: &Rig| {
        for (reference, content) in [(one.digest(), &one.manifest), (&old.digest, &old), ("old", &old)] {
            let answer = rig.get(reference).await.unwrap();
            assert_eq!(answer.bytes.unwrap(), content.bytes, "{reference}");
            assert_eq!(answer.media_type.as_str(), content.media_type, "{reference}");
        }
        for tag in &tags {
            assert_eq!(rig.get(tag).await.unwrap().bytes.unwrap(), signature.bytes);
        }
        for blob in [&config, &layer, &one.layer] {
            assert_eq!(rig.blob("docker.io", APP, &blob.digest).await.unwrap(), blob.bytes);
        }
    };
    pull(&rig).await;
    let mut rig = rig.restarted().await;
    rig.upstream.stop().await;
    rig.clock.advance(HOUR);
    pull(&rig).await;
}
