//! SIGTERM, a second one, and SIGHUP.

use bytes::Bytes;
use reqwest::Response;
use rustix::process::Signal;

use super::support::faulty::Fault;
use super::support::image::{Image, random_bytes};
use super::support::mirror::MirrorOptions;
use super::support::process::{PATIENCE, Wait};
use super::support::{http, unfinished};
use super::{Rig, pull, put_empty};

impl Rig {
    /// A body that comes slowly, of which the head is there.
    async fn slow_body(&self, bytes: &Bytes, rate: u64) -> Response {
        let digest = self.upstream.put_blob("library/x", bytes.clone());
        self.upstream.on("GET", "/blobs/").then(Fault::Rate(rate));
        let answer = http().get(format!("{}/v2/library/x/blobs/{digest}", self.mirror.url())).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        answer
    }

    /// Sends SIGTERM, and waits until nobody new is let in.
    async fn begin_to_end(&mut self) {
        self.mirror.process().signal(Signal::TERM);
        let url = self.mirror.url() + "/readyz";
        let wait = Wait::for_("connections to be refused");
        while !http().get(&url).send().await.is_err_and(|error| error.is_connect()) {
            wait.a_little().await;
        }
    }

    async fn until_log_says(&self, text: &str) -> String {
        let wait = Wait::for_("a line in the log");
        loop {
            if let Some(line) = self.mirror.log().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            wait.a_little().await;
        }
    }
}

#[tokio::test]
async fn a_slow_body_may_finish() {
    let mut rig = Rig::start().await;
    let bytes = Bytes::from(random_bytes(1, 4 << 20));
    let body = rig.slow_body(&bytes, 2 << 20).await;
    rig.begin_to_end().await;
    rig.mirror.process().assert_running();
    assert_eq!(body.bytes().await.unwrap(), bytes);
    let ended = rig.mirror.process().end(PATIENCE).expect("it ends by itself");
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut rig = Rig::start().await;
    let bytes = Bytes::from(random_bytes(1, 64 << 20));
    let body = rig.slow_body(&bytes, 100_000).await;
    rig.begin_to_end().await;
    let ended = rig.mirror.terminate(PATIENCE).expect("it ends by itself");
    assert_eq!(ended.code(), Some(1));
    assert!(body.bytes().await.is_err(), "a body that was broken off looks whole");
}

#[tokio::test]
async fn a_body_may_not_take_longer_than_the_grace() {
    let config = Some("[shutdown]\ngrace = \"1s\"\n".to_owned());
    let mut rig = Rig::with(MirrorOptions { config, ..Default::default() }).await;
    let bytes = Bytes::from(random_bytes(1, 64 << 20));
    let body = rig.slow_body(&bytes, 100_000).await;
    rig.begin_to_end().await;
    assert!(body.bytes().await.is_err(), "a body that was broken off looks whole");
    assert_eq!(rig.mirror.process().end(PATIENCE).expect("it ends by itself").code(), Some(0));
    assert_eq!(unfinished(&rig.mirror.data()).len(), 0);
}

#[tokio::test]
async fn an_orderly_end_keeps_what_was_pulled() {
    let mut rig = Rig::start().await;
    let image = Image::random(1, 2, 1 << 20);
    rig.upstream.put_image("library/x", "1", &image);
    let base = rig.mirror.url() + "/v2/library/x";
    pull(&base, "1", &image).await;
    let ended = rig.mirror.terminate(PATIENCE).expect("it ends by itself");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(unfinished(&rig.mirror.data()).len(), 0);
    rig.upstream.stop().await;
    rig.mirror.restart().await;
    pull(&base, "1", &image).await;
}

#[tokio::test]
async fn a_changed_file_is_in_force_after_a_hangup_and_a_broken_one_is_not() {
    let config = Some("[upstream.\"docker.io\"]\naliases = [\"old\"]\n".to_owned());
    let mut rig = Rig::with(MirrorOptions { config, ..Default::default() }).await;
    put_empty(&rig.upstream, "library/x", "1", "");
    assert_eq!(rig.get("/v2/old/library/x/manifests/1").await.0, 200);
    assert_eq!(rig.get("/v2/new/library/x/manifests/1").await.0, 404);

    rig.mirror.configure("[upstream.\"docker.io\"]\naliases = [\"new\"]\n");
    rig.mirror.process().signal(Signal::HUP);
    rig.until_log_says("was read again").await;
    assert_eq!(rig.get("/v2/new/library/x/manifests/1").await.0, 200);
    assert_eq!(rig.get("/v2/old/library/x/manifests/1").await.0, 404);

    rig.mirror.configure("[upstream.\"docker.io\"]\nalias = [\"newer\"]\n");
    rig.mirror.process().signal(Signal::HUP);
    let why = rig.until_log_says("the configuration stays as it was").await;
    for part in ["forebay.toml:2", "`aliases`"] {
        assert!(why.contains(part), "{part} in {why}");
    }
    assert_eq!(rig.get("/v2/new/library/x/manifests/1").await.0, 200);
}
