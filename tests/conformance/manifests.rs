//! Manifests in and out: end-3, 7a, 7b.

use serde_json::{Value, json};

use crate::support::image::{INDEX, MANIFEST};
use crate::support::sha256;
use crate::{Reply, Rig, descriptor, index, sha512};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// That a manifest was kept under its digest, byte by byte, and is given by each reference.
async fn holds(rig: &Rig, put: &Reply, kind: &str, bytes: &str, references: &[&str]) {
    assert_eq!(put.status, 201, "{put}");
    let digest = put.header("docker-content-digest");
    assert!([sha256(bytes.as_bytes()), sha512(bytes.as_bytes())].iter().any(|own| own == digest), "{put}");
    assert_eq!(put.header("location"), format!("/v2/app/manifests/{digest}"), "relative");
    for reference in references.iter().chain([&digest]) {
        let path = format!("/v2/app/manifests/{reference}");
        let (get, head) = (rig.get(&path).await, rig.head(&path).await);
        assert_eq!((get.status, &get.body[..]), (200, bytes.as_bytes()), "{get}");
        assert!(head.status == 200 && head.body.is_empty(), "{head}");
        for reply in [get, head] {
            assert_eq!(reply.header("content-type"), kind);
            assert_eq!(reply.header("docker-content-digest"), digest);
            assert_eq!(reply.header("content-length"), bytes.len().to_string());
        }
    }
}

#[tokio::test]
async fn manifests_are_kept_as_they_came() {
    let rig = Rig::start().await;
    let manifest = rig.manifest("app", "a").await;
    // Not as any library would write it.
    let bytes = format!(" \n{}\n\t", manifest.to_string().replace("\"size\":", "\"size\" :  "));
    let put = rig.put("app", "1", MANIFEST, bytes.clone()).await;
    holds(&rig, &put, MANIFEST, &bytes, &["1"]).await;
    let put = rig.put("app", &sha256(bytes.as_bytes()), MANIFEST, bytes.clone()).await;
    holds(&rig, &put, MANIFEST, &bytes, &["1"]).await;
    let put = rig.put("app", &sha512(bytes.as_bytes()), MANIFEST, bytes.clone()).await;
    holds(&rig, &put, MANIFEST, &bytes, &[]).await;
    // Parameters do not count, nor does the case.
    let put =
        rig.put("app", "2", &format!("{}; charset=utf-8", MANIFEST.to_uppercase()), bytes.clone()).await;
    holds(&rig, &put, MANIFEST, &bytes, &["2"]).await;
    let mut unknown = manifest.clone();
    unknown["org.example.field"] = json!({ "kept": [1, null, { "x": "ü" }] });
    let put = rig.put("app", "3", MANIFEST, unknown.to_string()).await;
    holds(&rig, &put, MANIFEST, &unknown.to_string(), &["3"]).await;
}

#[tokio::test]
async fn every_kind_of_manifest_is_taken() {
    let rig = Rig::start().await;
    let mut docker = rig.manifest("app", "docker").await;
    docker["mediaType"] = json!(DOCKER);
    let docker = docker.to_string();
    holds(&rig, &rig.put("app", "docker", DOCKER, docker.clone()).await, DOCKER, &docker, &["docker"]).await;
    let mut list: Value = serde_json::from_str(&index(&[descriptor(DOCKER, docker.as_bytes())])).unwrap();
    list["mediaType"] = json!(DOCKER_LIST);
    let list = list.to_string();
    holds(&rig, &rig.put("app", "list", DOCKER_LIST, list.clone()).await, DOCKER_LIST, &list, &["list"])
        .await;
    let nested = index(&[descriptor(DOCKER_LIST, list.as_bytes()), descriptor(DOCKER, docker.as_bytes())]);
    holds(&rig, &rig.put("app", "nested", INDEX, nested.clone()).await, INDEX, &nested, &["nested"]).await;
    holds(&rig, &rig.put("app", "empty", INDEX, index(&[])).await, INDEX, &index(&[]), &["empty"]).await;
    let mut artifact = rig.manifest("app", "artifact").await;
    artifact["artifactType"] = json!("application/vnd.example");
    artifact["layers"] = json!([]);
    artifact.as_object_mut().unwrap().remove("mediaType");
    let artifact = artifact.to_string();
    let put = rig.put("app", "artifact", MANIFEST, artifact.clone()).await;
    holds(&rig, &put, MANIFEST, &artifact, &["artifact"]).await;
    // BuildKit keeps a cache as an index of blobs.
    rig.blob("app", "cache").await;
    let cache = index(&[descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"cache")]);
    holds(&rig, &rig.put("app", "cache", INDEX, cache.clone()).await, INDEX, &cache, &["cache"]).await;
}

#[tokio::test]
async fn tags_come_as_parameters_too() {
    let rig = Rig::start().await;
    let manifest = rig.manifest("app", "a").await.to_string();
    for digest in [sha256(manifest.as_bytes()), sha512(manifest.as_bytes())] {
        let tags: Vec<String> = (0..12).map(|n| format!("{}-{n}", &digest[..6])).collect();
        let query: String = tags.iter().map(|tag| format!("tag={tag}&")).collect();
        let put = rig.put("app", &format!("{digest}?{query}"), MANIFEST, manifest.clone()).await;
        let confirmed: Vec<_> =
            put.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
        assert_eq!(confirmed, tags);
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        holds(&rig, &put, MANIFEST, &manifest, &tags).await;
    }
    let path = format!("{}?tag=.bad", sha256(manifest.as_bytes()));
    rig.put("app", &path, MANIFEST, manifest).await.refuses(400, "TAG_INVALID", &[".bad"]);
}

#[tokio::test]
async fn what_a_manifest_names_has_to_be_there() {
    let rig = Rig::start().await;
    let mut manifest = rig.manifest("app", "a").await;
    let elsewhere = rig.blob("other", "elsewhere").await;
    manifest["layers"] = json!([
        descriptor("application/vnd.oci.image.layer.v1.tar", b"elsewhere"),
        descriptor("application/vnd.oci.image.layer.v1.tar", b"nowhere"),
    ]);
    let put = rig.put("app", "1", MANIFEST, manifest.to_string()).await;
    put.refuses(400, "MANIFEST_BLOB_UNKNOWN", &[&elsewhere, &sha256(b"nowhere"), "push that first"]);
    rig.get("/v2/app/manifests/1").await.refuses(404, "MANIFEST_UNKNOWN", &[]);
    let child = index(&[descriptor(MANIFEST, b"no manifest")]);
    let put = rig.put("app", "1", INDEX, child).await;
    put.refuses(400, "MANIFEST_BLOB_UNKNOWN", &[&sha256(b"no manifest")]);
    // These live elsewhere by design, and a subject may come later.
    manifest["layers"] = json!([
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", b"licensed"),
        descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", b"windows"),
    ]);
    manifest["subject"] = descriptor(MANIFEST, b"later");
    let put = rig.put("app", "1", MANIFEST, manifest.to_string()).await;
    holds(&rig, &put, MANIFEST, &manifest.to_string(), &["1"]).await;
    assert_eq!(put.header("oci-subject"), sha256(b"later"));
}

#[tokio::test]
async fn large_manifests_are_taken_up_to_a_limit() {
    let rig = Rig::start().await;
    let mut manifest = rig.manifest("app", "large").await;
    for number in 0..390 {
        manifest["annotations"][format!("org.example.{number}")] = json!("x".repeat(10_000));
    }
    let large = manifest.to_string();
    assert!(large.len() > 3_900_000);
    holds(&rig, &rig.put("app", "1", MANIFEST, large.clone()).await, MANIFEST, &large, &["1"]).await;
    let limit = 4_393_216;
    let padded = |size: usize| large.clone() + &" ".repeat(size - large.len());
    let put = rig.put("app", "2", MANIFEST, padded(limit)).await;
    holds(&rig, &put, MANIFEST, &padded(limit), &["2"]).await;
    rig.put("app", "3", MANIFEST, padded(limit + 1)).await.refuses(
        413,
        "MANIFEST_INVALID",
        &["4393216 bytes"],
    );
    // Without a length, it is found out while it is read.
    let pieces: Vec<Result<String, std::io::Error>> = vec![Ok(padded(limit)), Ok(" ".to_owned())];
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let put = crate::http().put(rig.forebay.url() + "/v2/app/manifests/3");
    let put = put.header("Content-Type", MANIFEST).body(body).send().await.unwrap();
    assert_eq!(put.status(), 413);
    assert_eq!(rig.head("/v2/app/manifests/3").await.status, 404);
}

#[tokio::test]
async fn what_is_missing_is_said_to_be() {
    let rig = Rig::start().await;
    rig.image("app", "1", "a").await;
    for reference in ["none", &sha256(b"none"), &sha512(b"none")] {
        let path = format!("/v2/app/manifests/{reference}");
        rig.get(&path).await.refuses(404, "MANIFEST_UNKNOWN", &["is not held here"]);
        assert_eq!(rig.head(&path).await.status, 404);
    }
    rig.get("/v2/app/manifests/sha256:baddigeststring").await.refuses(400, "DIGEST_INVALID", &[]);
    rig.put("app", "sha256:baddigeststring", MANIFEST, "{}").await.refuses(400, "DIGEST_INVALID", &[]);
    rig.get("/v2/nginx/manifests/latest").await.refuses(
        404,
        "MANIFEST_UNKNOWN",
        &["ask for `library/nginx`"],
    );
    let base = rig.get("/v2/").await;
    assert_eq!((base.status, &base.body[..]), (200, &b"{}"[..]));
}
