//! Deletes: end-9, end-10; and what may not be deleted or moved.

use crate::support::image::MANIFEST;
use crate::support::sha256;
use crate::{Rig, sha512};

#[tokio::test]
async fn a_tag_goes_alone_and_a_manifest_with_its_tags() {
    let rig = Rig::start().await;
    let digest = rig.image("app", "1", "a").await;
    for tag in ["2", "3"] {
        assert_eq!(rig.image("app", tag, "a").await, digest);
    }
    let kept = rig.image("app", "kept", "b").await;
    assert_eq!(rig.delete("/v2/app/manifests/1").await.status, 202);
    assert_eq!(rig.head("/v2/app/manifests/1").await.status, 404);
    rig.delete("/v2/app/manifests/1").await.refuses(404, "MANIFEST_UNKNOWN", &["app:1"]);
    assert_eq!(rig.head(&format!("/v2/app/manifests/{digest}")).await.status, 200);

    assert_eq!(rig.delete(&format!("/v2/app/manifests/{digest}")).await.status, 202);
    for reference in ["2", "3", &digest] {
        assert_eq!(rig.head(&format!("/v2/app/manifests/{reference}")).await.status, 404, "{reference}");
    }
    rig.delete(&format!("/v2/app/manifests/{digest}")).await.refuses(404, "MANIFEST_UNKNOWN", &[]);
    assert_eq!(rig.get("/v2/app/tags/list").await.json()["tags"], serde_json::json!(["kept"]));
    assert_eq!(rig.head(&format!("/v2/app/manifests/{kept}")).await.status, 200);
    assert_eq!(rig.image("app", "1", "a").await, digest, "it can be pushed again");
}

#[tokio::test]
async fn a_manifest_goes_with_all_its_names() {
    let rig = Rig::start().await;
    let manifest = rig.manifest("app", "a").await.to_string();
    let names = [sha256(manifest.as_bytes()), sha512(manifest.as_bytes())];
    for gone in &names {
        assert_eq!(
            rig.put("app", &format!("{}?tag=1", names[1]), MANIFEST, manifest.clone()).await.status,
            201
        );
        assert_eq!(rig.delete(&format!("/v2/app/manifests/{gone}")).await.status, 202);
        for name in names.iter().map(String::as_str).chain(["1"]) {
            assert_eq!(rig.head(&format!("/v2/app/manifests/{name}")).await.status, 404, "{name}");
        }
    }
}

#[tokio::test]
async fn a_blob_goes_from_its_repository_alone() {
    let rig = Rig::start().await;
    let digest = rig.blob("app", "blob").await;
    rig.blob("other", "blob").await;
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(rig.delete(&path).await.status, 202);
    assert_eq!(rig.head(&path).await.status, 404);
    rig.delete(&path).await.refuses(404, "BLOB_UNKNOWN", &[&digest]);
    assert_eq!(rig.head(&format!("/v2/other/blobs/{digest}")).await.status, 200);
    rig.delete("/v2/app/blobs/sha256:bad").await.refuses(400, "DIGEST_INVALID", &[]);
}

#[tokio::test]
async fn deletes_can_be_off() {
    let rig = Rig::with("[hosted]\ndelete = false").await;
    let digest = rig.image("app", "1", "a").await;
    let blob = rig.blob("app", "blob").await;
    for path in ["manifests/1".to_owned(), format!("manifests/{digest}"), format!("blobs/{blob}")] {
        let path = format!("/v2/app/{path}");
        let refused = rig.delete(&path).await;
        refused.refuses(405, "UNSUPPORTED", &["hosted.delete"]);
        assert_eq!(refused.header("allow"), "GET, HEAD, PUT");
        assert_eq!(rig.head(&path).await.status, 200);
    }
    let location = rig.begin("app").await;
    assert_eq!(rig.delete(&location).await.status, 204, "an upload is no content");
}

#[tokio::test]
async fn an_immutable_tag_stays_where_it_is() {
    let rig = Rig::with("[hosted]\nimmutable_tags = [\"app:v*\"]").await;
    let first = rig.image("app", "v1", "a").await;
    assert_eq!(rig.image("app", "v1", "a").await, first, "pushed again as it is");
    rig.image("app", "latest", "a").await;
    let other = rig.manifest("app", "b").await.to_string();
    let moved = rig.put("app", "v1", MANIFEST, other.clone()).await;
    moved.refuses(403, "DENIED", &["`v1`", "app:v*", "under another tag"]);
    let named = format!("{}?tag=v1&tag=v2", sha256(other.as_bytes()));
    rig.put("app", &named, MANIFEST, other.clone()).await.refuses(403, "DENIED", &["`v1`"]);
    assert_eq!(rig.head("/v2/app/manifests/v2").await.status, 404, "all tags or none");
    rig.delete("/v2/app/manifests/v1").await.refuses(403, "DENIED", &["app:v*"]);
    rig.delete(&format!("/v2/app/manifests/{first}")).await.refuses(403, "DENIED", &["`v1`"]);
    assert_eq!(rig.head("/v2/app/manifests/v1").await.header("docker-content-digest"), first);
    assert_eq!(rig.delete("/v2/app/manifests/latest").await.status, 202);
    assert_eq!(
        rig.put("other", "v1", MANIFEST, other).await.status,
        400,
        "elsewhere, blobs are missing only"
    );
}

#[tokio::test]
async fn what_is_mirrored_cannot_be_written_to() {
    let rig = Rig::start().await;
    let digest = sha256(b"x");
    let location = rig.begin("app").await.replace("/v2/app/", "");
    for (method, path) in [
        ("POST", "blobs/uploads/".to_owned()),
        ("POST", format!("blobs/uploads/?digest={digest}")),
        ("PATCH", location.clone()),
        ("PUT", format!("{location}?digest={digest}")),
        ("GET", location.clone()),
        ("DELETE", location),
        ("PUT", "manifests/1".to_owned()),
        ("DELETE", "manifests/1".to_owned()),
        ("DELETE", format!("manifests/{digest}")),
        ("DELETE", format!("blobs/{digest}")),
    ] {
        for name in ["library/nginx", "docker.io/library/nginx", "team/app"] {
            let reply = rig.send(method, &format!("/v2/{name}/{path}"), &[], "").await;
            reply.refuses(405, "UNSUPPORTED", &["mirrored from docker.io", "push there"]);
        }
    }
}
