//! Blobs in: end-4a, 4b, 4c, 5, 6, 11, 13, 14 of the specification's table, and blobs out: end-2.

use crate::support::sha256;
use crate::{Reply, Rig, sha512};

/// That the blob is there, by HEAD, GET and every kind of range.
async fn holds(rig: &Rig, repository: &str, digest: &str, bytes: &[u8]) {
    let path = format!("/v2/{repository}/blobs/{digest}");
    let head = rig.head(&path).await;
    assert_eq!((head.status, head.header("content-length")), (200, &*bytes.len().to_string()), "{head}");
    let get = rig.get(&path).await;
    assert_eq!((get.status, &get.body[..]), (200, bytes));
    for reply in [head, get] {
        assert_eq!(reply.header("docker-content-digest"), digest);
        assert_eq!(reply.header("etag"), format!("\"{digest}\""));
        assert_eq!(reply.header("docker-distribution-api-version"), "registry/2.0");
    }
}

/// That an answer says that the blob was kept.
async fn created(rig: &Rig, reply: &Reply, repository: &str, digest: &str, bytes: &[u8]) {
    assert_eq!((reply.status, reply.header("content-length")), (201, "0"), "{reply}");
    assert_eq!(reply.header("docker-content-digest"), digest);
    assert_eq!(reply.header("location"), format!("/v2/{repository}/blobs/{digest}"), "relative");
    holds(rig, repository, digest, bytes).await;
}

#[tokio::test]
async fn an_upload_is_begun_and_ended_by_two_requests() {
    let rig = Rig::start().await;
    for (number, digest) in [sha256, sha512].into_iter().enumerate() {
        let bytes = format!("whole {number}");
        let digest = digest(bytes.as_bytes());
        let begun = rig.send("POST", "/v2/app/blobs/uploads/", &[("Content-Length", "0")], "").await;
        assert_eq!((begun.status, begun.header("content-length")), (202, "0"), "{begun}");
        assert_eq!(begun.header("range"), "0-0");
        let (location, id) = (begun.header("location"), begun.header("docker-upload-uuid"));
        assert_eq!(location, format!("/v2/app/blobs/uploads/{id}"), "relative");
        assert_eq!(begun.header("oci-chunk-min-length"), "", "parts may be as small as they like");
        let put = rig.send("PUT", &format!("{location}?digest={digest}"), &[], bytes.clone()).await;
        created(&rig, &put, "app", &digest, bytes.as_bytes()).await;
        rig.get(location).await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &["begin one with POST"]);
    }
}

#[tokio::test]
async fn one_request_is_enough() {
    let rig = Rig::start().await;
    for (digest, bytes) in
        [(sha256(b"one"), "one"), (sha512(b"one"), "one"), (sha256(b""), ""), (sha512(b""), "")]
    {
        let post = rig.send("POST", &format!("/v2/app/blobs/uploads/?digest={digest}"), &[], bytes).await;
        created(&rig, &post, "app", &digest, bytes.as_bytes()).await;
    }
    let wrong = sha256(b"another");
    let post = rig.send("POST", &format!("/v2/app/blobs/uploads/?digest={wrong}"), &[], "one").await;
    post.refuses(400, "DIGEST_INVALID", &[&sha256(b"one"), &wrong]);
    assert_eq!(rig.open_uploads().await, 0.0);
}

#[tokio::test]
async fn parts_are_added_in_order() {
    let rig = Rig::start().await;
    let bytes: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    for (put_last, digest) in [(false, sha256(&bytes)), (true, sha512(&bytes))] {
        let mut location = rig.begin("app").await;
        let bounds = [0, 100_000, 100_001, 250_000, bytes.len()];
        let parts: Vec<_> = bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
        for (start, end) in &parts[..parts.len() - usize::from(put_last)] {
            let range = format!("{start}-{}", end - 1);
            let headers = [("Content-Range", &*range), ("Content-Type", "application/octet-stream")];
            let patch = rig.send("PATCH", &location, &headers, bytes[*start..*end].to_vec()).await;
            assert_eq!((patch.status, patch.header("range")), (202, &*format!("0-{}", end - 1)), "{patch}");
            location = patch.header("location").to_owned();
            let status = rig.get(&location).await;
            assert_eq!(
                (status.status, status.header("range")),
                (204, &*format!("0-{}", end - 1)),
                "{status}"
            );
            assert_eq!(status.header("location"), location);
        }
        let (start, end) = if put_last { parts[parts.len() - 1] } else { (0, 0) };
        let range = format!("{start}-{}", end.max(1) - 1);
        let headers = if put_last { vec![("Content-Range", &*range)] } else { vec![] };
        let put = format!("{location}?digest={digest}");
        let put = rig.send("PUT", &put, &headers, bytes[start..end].to_vec()).await;
        created(&rig, &put, "app", &digest, &bytes).await;
    }
}

#[tokio::test]
async fn a_stream_needs_neither_range_nor_length() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    for (sent, range) in [("docker ", "0-6"), ("streams", "0-13")] {
        let pieces = sent.as_bytes().chunks(3).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let patch = crate::http().patch(rig.forebay.url() + &location + "?_state=kept").body(body);
        let patch = patch.send().await.unwrap();
        assert_eq!((patch.status().as_u16(), patch.headers()["range"].to_str().unwrap()), (202, range));
    }
    let digest = sha256(b"docker streams");
    let put = rig.send("PUT", &format!("{location}?_state=kept&digest={digest}"), &[], "").await;
    created(&rig, &put, "app", &digest, b"docker streams").await;
}

#[tokio::test]
async fn a_part_out_of_order_is_refused_and_the_upload_stays() {
    let rig = Rig::start().await;
    let (location, digest) = (rig.begin("app").await, sha256(b"abcdef"));
    let put = format!("{location}?digest={digest}");
    for (received, good) in [("0-0", ("0-2", "abc")), ("0-2", ("3-5", "def"))] {
        for (method, target) in [("PATCH", &location), ("PUT", &put)] {
            let ahead = rig.send(method, target, &[("Content-Range", "9-11")], "xyz").await;
            ahead.refuses(416, "RANGE_INVALID", &["byte 9"]);
            assert_eq!((ahead.header("range"), ahead.header("location")), (received, &*location), "{ahead}");
            let status = rig.get(target).await;
            assert_eq!((status.status, status.header("range")), (204, received), "{status}");
        }
        let (range, bytes) = good;
        assert_eq!(rig.send("PATCH", &location, &[("Content-Range", range)], bytes).await.status, 202);
        let behind = rig.send("PATCH", &location, &[("Content-Range", range)], bytes).await;
        behind.refuses(416, "RANGE_INVALID", &[]);
    }
    created(&rig, &rig.send("PUT", &put, &[], "").await, "app", &digest, b"abcdef").await;
}

#[tokio::test]
async fn bytes_of_another_digest_are_not_kept() {
    let rig = Rig::start().await;
    for wrong in [sha256(b"wanted"), sha512(b"wanted")] {
        let location = rig.begin("app").await;
        assert_eq!(rig.send("PATCH", &location, &[], "something").await.status, 202);
        let put = rig.send("PUT", &format!("{location}?digest={wrong}"), &[], " else").await;
        put.refuses(400, "DIGEST_INVALID", &[&wrong, "send it again"]);
        assert_eq!(rig.head(&format!("/v2/app/blobs/{wrong}")).await.status, 404);
        assert_eq!(rig.get(&location).await.status, 404);
    }
    assert_eq!(rig.forebay.metric(r#"forebay_uploads_total{result="mismatched"}"#).await, 2.0);
    assert_eq!(rig.open_uploads().await, 0.0);
}

#[tokio::test]
async fn a_blob_is_mounted_from_where_it_is() {
    let rig = Rig::with("[hosted]\nrepositories = [\"*\", \"corp.internal/**\"]").await;
    let digest = rig.blob("corp.internal/base", "shared").await;
    let mount = |to: &str, query: String| format!("/v2/{to}/blobs/uploads/?mount={digest}{query}");
    let named = rig.send("POST", &mount("named", "&from=corp.internal%2Fbase".into()), &[], "").await;
    created(&rig, &named, "named", &digest, b"shared").await;
    let anywhere = rig.send("POST", &mount("anywhere", String::new()), &[], "").await;
    created(&rig, &anywhere, "anywhere", &digest, b"shared").await;
    let again = rig.send("POST", &mount("anywhere", "&from=anywhere".into()), &[], "").await;
    created(&rig, &again, "anywhere", &digest, b"shared").await;
    let long = sha512(b"long");
    assert_eq!(
        rig.send("POST", &format!("/v2/x/blobs/uploads/?digest={long}"), &[], "long").await.status,
        201
    );
    let reply = rig.send("POST", &format!("/v2/y/blobs/uploads/?mount={long}"), &[], "").await;
    created(&rig, &reply, "y", &long, b"long").await;
}

#[tokio::test]
async fn what_cannot_be_mounted_is_uploaded() {
    let rig = Rig::start().await;
    rig.blob("other", "here").await;
    let digest = sha256(b"missing");
    for from in ["&from=other", "&from=none", "&from=library%2Fnginx", "&from=BAD", "&from=", ""] {
        let path = format!("/v2/app/blobs/uploads/?mount={digest}{from}");
        let begun = rig.send("POST", &path, &[], "").await;
        assert_eq!((begun.status, begun.header("range")), (202, "0-0"), "{from} {begun}");
        let put = format!("{}?digest={digest}", begun.header("location"));
        let put = rig.send("PUT", &put, &[], "missing").await;
        created(&rig, &put, "app", &digest, b"missing").await;
        assert_eq!(rig.delete(&format!("/v2/app/blobs/{digest}")).await.status, 202);
    }
}

#[tokio::test]
async fn an_upload_is_cancelled() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    assert_eq!(rig.send("PATCH", &location, &[], "some").await.status, 202);
    assert_eq!(rig.open_uploads().await, 1.0);
    let cancelled = rig.delete(&location).await;
    assert_eq!((cancelled.status, &cancelled.body[..]), (204, &b""[..]), "{cancelled}");
    for method in ["GET", "PATCH", "DELETE"] {
        rig.send(method, &location, &[], "").await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &["app"]);
    }
    assert_eq!(rig.open_uploads().await, 0.0);
    assert_eq!(rig.forebay.metric(r#"forebay_uploads_total{result="cancelled"}"#).await, 1.0);
}

#[tokio::test]
async fn an_algorithm_may_be_named_before() {
    let rig = Rig::start().await;
    let path = "/v2/app/blobs/uploads/?digest-algorithm=";
    for (algorithm, digest) in [("sha256", sha256(b"x")), ("sha512", sha512(b"x"))] {
        let begun = rig.send("POST", &format!("{path}{algorithm}"), &[], "").await;
        assert_eq!(begun.status, 202, "{begun}");
        let put = rig.send("PUT", &format!("{}?digest={digest}", begun.header("location")), &[], "x").await;
        created(&rig, &put, "app", &digest, b"x").await;
    }
    rig.send("POST", &format!("{path}md5"), &[], "").await.refuses(400, "DIGEST_INVALID", &["md5", "sha512"]);
}

#[tokio::test]
async fn parts_of_blobs_are_read() {
    let rig = Rig::start().await;
    let bytes: Vec<u8> = (0..2048u32).map(|n| (n * 7) as u8).collect();
    for digest in [rig.blob("app", bytes.clone()).await, {
        let digest = sha512(&bytes);
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        assert_eq!(rig.send("POST", &path, &[], bytes.clone()).await.status, 201);
        digest
    }] {
        let path = format!("/v2/app/blobs/{digest}");
        for (range, from, to) in [
            ("bytes=500-1499", 500, 1500),
            ("bytes=500-", 500, 2048),
            ("bytes=-500", 1548, 2048),
            ("bytes=2000-5000", 2000, 2048),
        ] {
            let part = rig.send("GET", &path, &[("Range", range)], "").await;
            assert_eq!((part.status, &part.body[..]), (206, &bytes[from..to]), "{range}");
            assert_eq!(part.header("content-range"), format!("bytes {from}-{}/2048", to - 1));
        }
        for range in ["bytes=500-0", "bytes=5000-10000"] {
            rig.send("GET", &path, &[("Range", range)], "").await.refuses(416, "RANGE_INVALID", &[]);
        }
    }
    let missing = format!("/v2/app/blobs/{}", sha256(b"missing"));
    rig.get(&missing).await.refuses(404, "BLOB_UNKNOWN", &[]);
    assert_eq!(rig.head(&missing).await.status, 404);
}
