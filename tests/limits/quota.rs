//! Quota is spent once for each manifest, however many pull it.

use futures_util::future::join_all;

use super::support::faulty::Quota;
use super::support::http;
use super::{Rig, Tiny};

const CLIENTS: usize = 50;
const IMAGES: usize = 10;

#[tokio::test]
async fn fifty_clients_spend_what_one_would() {
    let rig = Rig::with("").await;
    rig.upstream.set_quota(Some(Quota { limit: 100, remaining: 100, window: 21600 }));
    let images: Vec<(String, Tiny)> =
        (0..IMAGES).map(|number| (format!("library/{number}"), Tiny::new(&number.to_string()))).collect();
    for (repository, image) in &images {
        image.put(&rig.upstream, repository);
    }
    let client = async |number: usize| {
        // Each begins with another image.
        for (repository, image) in images.iter().cycle().skip(number % IMAGES).take(IMAGES) {
            for (path, content) in image.requests(repository) {
                let answer = rig.get(&path).await;
                assert_eq!(answer.status(), 200, "{path}");
                assert_eq!(answer.bytes().await.unwrap(), content.bytes, "{path}");
            }
        }
    };
    join_all((0..CLIENTS).map(client)).await;
    // An index and a manifest each.
    let spent = 2 * IMAGES as u64;
    assert_eq!(rig.upstream.quota().unwrap().remaining, 100 - spent);
    let gets = rig.upstream.requests_for("GET", "/blobs/");
    assert_eq!(gets.len(), 2 * IMAGES, "a configuration and a layer each");

    for (repository, image) in &images {
        let digest = image.manifest.digest.replace(':', "/");
        rig.mirror.linked(&format!("{repository}/_manifests/revisions/{digest}/link")).await;
        rig.mirror.linked(&format!("{repository}/_manifests/tags/1/current/link")).await;
    }
    rig.mirror.committed(gets.len()).await;
    let log = rig.mirror.log();
    assert!(!log.contains("could not be kept"), "{log}");

    // Answers that came at once told different numbers; a HEAD tells the last one, and is free.
    Tiny::new("last").put(&rig.upstream, "library/last");
    let head = http().head(rig.mirror.url() + "/v2/library/last/manifests/1").send().await.unwrap();
    assert_eq!(head.status(), 200);
    let gauge = async |name: &str| {
        rig.mirror.metric(&format!("forebay_upstream_quota_{name}{{upstream=\"docker.io\"}}")).await
    };
    assert_eq!(gauge("limit").await, 100.0);
    assert_eq!(gauge("remaining").await, (100 - spent) as f64);
    assert_eq!(gauge("window_seconds").await, 21600.0);
}
