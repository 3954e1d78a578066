//! A layer in two repositories is fetched once, and opens no third one.

use super::support::http;
use super::{Rig, blob_url};

#[tokio::test]
async fn the_second_repository_costs_a_head() {
    let mut rig = Rig::start().await;
    let blob = rig.blob(1, 300_000);
    rig.upstream.put_blob("library/y", blob.bytes.clone());
    let get = async |rig: &Rig, repository: &str| {
        let answer = http().get(blob_url(&rig.mirror, repository, &blob.digest)).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    assert_eq!(get(&rig, "library/x").await, (200, blob.bytes.clone()));
    rig.mirror.committed(1).await;

    let asked = rig.upstream.requests().len();
    assert_eq!(get(&rig, "library/y").await, (200, blob.bytes.clone()));
    let further = rig.upstream.requests().split_off(asked);
    let methods: Vec<_> = further.iter().map(|seen| (seen.method.as_str(), seen.sent())).collect();
    assert_eq!(methods, [("HEAD", 0)]);

    let (status, body) = get(&rig, "library/z").await;
    assert_eq!(status, 404);
    assert!(String::from_utf8_lossy(&body).contains("BLOB_UNKNOWN"));
    assert_eq!(rig.gets(&blob).len(), 1);

    rig.mirror.linked(&format!("library/y/_layers/{}/link", blob.digest.replace(':', "/"))).await;
    // What each may have does not depend on upstream any more.
    rig.upstream.stop().await;
    rig.mirror.kill();
    rig.mirror.restart().await;
    assert_eq!(get(&rig, "library/x").await, (200, blob.bytes.clone()));
    assert_eq!(get(&rig, "library/y").await, (200, blob.bytes.clone()));
    assert_eq!(get(&rig, "library/z").await.0, 404);
}
