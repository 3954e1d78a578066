//! An upstream is never asked for more at once than is configured.

use std::time::Duration;

use futures_util::future::join_all;

use super::support::faulty::{Fault, most_at_once};
use super::support::image::random_bytes;
use super::{Rig, Tiny};

const COUNT: usize = 12;

#[tokio::test]
async fn requests_and_fills_keep_to_their_limits() {
    let rig = Rig::with("[upstream.\"docker.io\"]\nmax_requests = 2\nmax_fills = 3\n").await;
    for method in ["GET", "HEAD"] {
        rig.upstream.on(method, "/manifests/").then(Fault::Delay(Duration::from_millis(50)));
    }
    rig.upstream.on("GET", "/blobs/").then(Fault::Rate(1 << 20));
    let mut paths = Vec::new();
    for number in 0..COUNT {
        let repository = format!("library/{number}");
        let digest = rig.upstream.put_blob(&repository, random_bytes(number as u64, 200_000));
        paths.push(format!("/v2/{repository}/blobs/{digest}"));
        Tiny::new(&number.to_string()).put(&rig.upstream, &repository);
        paths.push(format!("/v2/{repository}/manifests/1"));
    }
    let pull = async |path: &String| {
        let answer = rig.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap();
    };
    join_all(paths.iter().map(pull)).await;
    let of = |kind: &str| {
        let mut requests = rig.upstream.requests();
        requests.retain(|seen| seen.path.contains(kind));
        most_at_once(&requests)
    };
    assert_eq!((of("/manifests/"), of("/blobs/")), (2, 3), "too many, or places left empty");
    assert_eq!(rig.mirror.metric(r#"forebay_upstream_waiting{upstream="docker.io"}"#).await, 0.0);
}
