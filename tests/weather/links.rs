//! Links between the mirror and its upstream, and its clients, that are narrow, lossy or cut.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::support::http_client;
use super::support::image::{Image, random_bytes};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::{Wait, command, run};
use super::support::registry::{Registry, RegistryOptions};
use super::support::sha256;

const BLOB: usize = 8 << 20;
/// So long that ranges of it are fetched beside each other.
const LONG: usize = 3 * BLOB;

/// Tags are asked for anew each time; what is silent is given up soon.
const IMPATIENT: &str = "[freshness]\nversions = \"0s\"\nothers = \"0s\"\n\
    [freshness.rules]\nlatest = \"0s\"\n\
    [upstream.\"docker.io\"]\nconnect_timeout = \"1s\"\nidle_timeout = \"2s\"\n\
    [limits]\nidle_timeout = \"3s\"\n";

struct Rig {
    upstream: Registry,
    mirror: Mirror,
}

impl Rig {
    async fn start(directory: &Path) -> Self {
        let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
        let options = MirrorOptions {
            upstream: upstream.url(),
            config: Some(IMPATIENT.to_owned()),
            ..Default::default()
        };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        Self { upstream, mirror }
    }

    async fn blob(&self, seed: u64) -> String {
        self.upstream.push_blob("library/app", random_bytes(seed, BLOB)).await
    }

    async fn long_blob(&self, seed: u64) -> String {
        self.upstream.push_blob("library/app", random_bytes(seed, LONG)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v2/library/app/{path}", self.mirror.url())
    }

    /// The digest of what a client that takes up broken transfers gets.
    async fn pulled(&self, digest: &str) -> String {
        sha256(&self.part(digest, 0..BLOB).await)
    }

    /// The same of a long one, by four open ranges at once, each left when its part is there.
    async fn pulled_by_ranges(&self, digest: &str) -> String {
        let starts = (0..LONG).step_by(LONG / 4);
        let parts = starts.map(|start| self.part(digest, start..start + LONG / 4));
        sha256(&futures_util::future::join_all(parts).await.concat())
    }

    async fn part(&self, digest: &str, part: Range<usize>) -> Vec<u8> {
        let client = http_client().read_timeout(Duration::from_secs(60)).build().unwrap();
        let mut bytes = Vec::new();
        let wait = Wait::for_("a blob over a bad link");
        while bytes.len() < part.len() {
            let mut get = client.get(self.url(&format!("blobs/{digest}")));
            if part != (0..BLOB) || !bytes.is_empty() {
                get = get.header("Range", format!("bytes={}-", part.start + bytes.len()));
            }
            if let Ok(mut answer) = get.send().await
                && answer.status().is_success()
            {
                while bytes.len() < part.len()
                    && let Ok(Some(piece)) = answer.chunk().await
                {
                    bytes.extend_from_slice(&piece);
                }
            }
            wait.a_little().await;
        }
        bytes.truncate(part.len());
        bytes
    }

    async fn blob_gets(&self) -> usize {
        let is_get = |a: &super::support::registry::Access| a.is_content() && a.target.contains("/blobs/");
        self.upstream.requests().await.iter().filter(|access| is_get(access)).count()
    }
}

/// Runs one line of `nft` or `tc`, in the namespace of the test.
async fn sh(line: &str) {
    run(command("sh", ["-c", line])).await;
}

/// What comes from this port has so many megabits a second from now on.
async fn narrow(port: u16, megabits: u32) {
    sh("tc qdisc add dev lo root handle 1: htb default 1").await;
    sh("tc class add dev lo parent 1: classid 1:1 htb rate 10gbit").await;
    sh(&format!("tc class add dev lo parent 1: classid 1:2 htb rate {megabits}mbit")).await;
    sh(&format!("tc filter add dev lo parent 1: protocol ip u32 match ip sport {port} 0xffff flowid 1:2"))
        .await;
}

/// Drops what this rule matches from now on.
async fn drop_packets(rule: &str) {
    sh("nft add table inet weather && nft 'add chain inet weather in { type filter hook input priority 0; }'")
        .await;
    sh(&format!("nft add rule inet weather in {rule} drop")).await;
}

async fn drop_nothing() {
    sh("nft delete table inet weather").await;
}

#[test]
fn over_a_narrow_link_a_blob_comes_once_for_twenty_clients() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let digest = rig.blob(1).await;
        let port = rig.upstream.port;
        narrow(port, 40).await;
        let pulls = (0..20).map(|_| rig.pulled(&digest));
        for got in futures_util::future::join_all(pulls).await {
            assert_eq!(got, digest);
        }
        assert_eq!(rig.blob_gets().await, 1);
    });
}

#[test]
fn over_a_lossy_link_every_byte_arrives() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let digests = [rig.blob(1).await, rig.blob(2).await];
        let port = rig.upstream.port;
        drop_packets(&format!("tcp sport {port} numgen random mod 100 \\< 2")).await;
        for (digest, got) in
            digests.iter().zip(futures_util::future::join_all(digests.iter().map(|d| rig.pulled(d))).await)
        {
            assert_eq!(got, *digest);
        }
        drop_nothing().await;
        rig.mirror.committed(2).await;
    });
}

#[test]
fn a_link_that_is_cut_in_mid_blob_and_mended_costs_the_rest_of_it_only() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let digests = [rig.blob(1).await, rig.long_blob(2).await];
        let port = rig.upstream.port;
        // Slow enough to be cut in the middle.
        narrow(port, 32).await;
        let crossed =
            async || rig.mirror.metric("forebay_upstream_received_bytes_total{upstream=\"docker.io\"}").await;
        let cut = async || {
            let (wait, before) = (Wait::for_("the blob to begin"), crossed().await);
            while crossed().await < before + 1e6 {
                wait.a_little().await;
            }
            drop_packets(&format!("tcp sport {port}")).await;
            // Longer than the mirror waits for a body.
            tokio::time::sleep(Duration::from_secs(4)).await;
            drop_nothing().await;
        };
        // Each byte once, but for what was under way.
        let most = |size: usize| (size + (1 << 20)) as f64;
        let (got, ()) = tokio::join!(rig.pulled(&digests[0]), cut());
        assert_eq!(got, digests[0]);
        rig.mirror.committed(1).await;
        let first = crossed().await;
        assert!(first <= most(BLOB), "{first} bytes crossed for {BLOB}");
        assert!(rig.mirror.metric("forebay_fill_resumes_total").await >= 1.0);
        let (got, ()) = tokio::join!(rig.pulled_by_ranges(&digests[1]), cut());
        assert_eq!(got, digests[1]);
        rig.mirror.committed(2).await;
        let (second, gets) = (crossed().await - first, rig.blob_gets().await);
        assert!(second <= most(LONG), "{second} bytes crossed for {LONG}");
        assert!(gets < 30, "{gets} requests");
    });
}

#[test]
fn behind_a_link_that_swallows_everything_held_tags_are_served_and_then_confirmed_again() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        Image::random(1, 1, 1000).push(&rig.upstream, "library/app", "1").await;
        let client = http_client().build().unwrap();
        let get = async || client.get(rig.url("manifests/1")).send().await.unwrap();
        assert_eq!(get().await.status(), 200);
        drop_packets(&format!("tcp sport {}", rig.upstream.port)).await;
        let answer = get().await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("warning"), "{:?}", answer.headers());
        drop_nothing().await;
        let wait = Wait::for_("a confirmation");
        while get().await.headers().contains_key("warning") {
            wait.a_little().await;
        }
    });
}

#[test]
fn a_hundred_clients_whose_mirror_stands_still_get_all_of_it_when_it_goes_on() {
    isolated(async |directory| {
        let mut rig = Rig::start(&directory).await;
        let digest = rig.blob(1).await;
        let process = rig.mirror.process();
        process.signal(Signal::STOP);
        let asked = rig.url(&format!("blobs/{digest}"));
        let client = http_client().build().unwrap();
        let pulls = (0..100).map(|_| {
            let get = client.get(&asked);
            async move { sha256(&get.send().await.unwrap().bytes().await.unwrap()) }
        });
        let wakes = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            rig.mirror.process().signal(Signal::CONT);
        };
        let (got, ()) = tokio::join!(futures_util::future::join_all(pulls), wakes);
        assert!(got.iter().all(|got| *got == digest));
        assert_eq!(rig.blob_gets().await, 1);
    });
}

#[test]
fn a_hundred_clients_that_vanish_without_a_word_stop_no_fetch_and_hold_up_nobody() {
    isolated(async |directory| {
        let rig = Rig::start(&directory).await;
        let digest = rig.blob(1).await;
        let port = rig.upstream.port;
        narrow(port, 40).await;
        let client = http_client().build().unwrap();
        let url = rig.url(&format!("blobs/{digest}"));
        let pulls = (0..100).map(|_| client.get(&url).send());
        let answers = futures_util::future::join_all(pulls).await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().status() == 200));
        // What they would say is lost; who asks from now on comes from other ports.
        let filter = ["--no-header", "--numeric", "--tcp", "dport", "="];
        let mut ss = command("ss", filter);
        ss.arg(format!(":{}", rig.mirror.port));
        let connections = run(ss).await;
        let local = |line: &str| Some(line.split_whitespace().nth(3)?.rsplit_once(':')?.1.to_owned());
        let ports: Vec<String> = connections.lines().filter_map(local).collect();
        assert!(ports.len() >= 100, "{connections}");
        drop_packets(&format!("tcp sport {{ {} }}", ports.join(", "))).await;
        assert_eq!(rig.pulled(&digest).await, digest);
        assert_eq!(rig.blob_gets().await, 1);
        drop(answers);
    });
}
