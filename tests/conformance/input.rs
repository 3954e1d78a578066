//! What clients should not send: each gets an error that says what to do, and leaves nothing behind.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::image::{INDEX, MANIFEST};
use crate::support::sha256;
use crate::{Rig, descriptor};

const SOON: Duration = Duration::from_secs(30);

/// A connection that is written to by hand.
async fn connect(rig: &Rig) -> TcpStream {
    TcpStream::connect(rig.forebay.host()).await.unwrap()
}

/// One head, and as much of the body as it announces.
async fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut read = Vec::new();
    loop {
        let more = tokio::time::timeout(SOON, stream.read_buf(&mut read)).await.expect("an answer");
        assert!(more.unwrap() > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(read[..at].to_vec()).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while read.len() < at + 4 + length {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0);
        }
        return (head, read[at + 4..].to_vec());
    }
}

#[tokio::test]
async fn a_lying_length_costs_nothing_that_came() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    for (range, body) in [("0-9", "abc"), ("0-1", "abc")] {
        let reply = rig.send("PATCH", &location, &[("Content-Range", range)], body).await;
        reply.refuses(400, "SIZE_INVALID", &["promised", "go on from there"]);
        assert_eq!((reply.header("range"), reply.header("location")), ("0-0", &*location));
    }
    // Of a body without a length, what was promised is kept at most.
    for (range, sent, received) in [("0-4", "abc", "0-2"), ("3-3", "de", "0-2"), ("3-4", "de", "0-4")] {
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>(sent)]));
        let patch = crate::http().patch(rig.forebay.url() + &location).header("Content-Range", range);
        let status = patch.body(body).send().await.unwrap().status().as_u16();
        assert_eq!(status, if range == "3-4" { 202 } else { 400 }, "{range}");
        assert_eq!(rig.get(&location).await.header("range"), received, "{range}");
    }
    // A connection that ends before its body does.
    let digest = sha256(b"abcdefgh");
    for (method, query) in [("PATCH", String::new()), ("PUT", format!("?digest={digest}"))] {
        let mut stream = connect(&rig).await;
        let head = format!("{method} {location}{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
        stream
            .write_all(
                format!("{}f", head.replace("Host: x", &format!("Host: {}", rig.forebay.host()))).as_bytes(),
            )
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 20"), "{rest:?}");
        let status = rig.get(&location).await;
        assert_eq!(status.status, 204, "{method}: {status}");
    }
    assert_eq!(rig.get(&location).await.header("range"), "0-6");
    rig.delete(&location).await;
    let mut stream = connect(&rig).await;
    let head = format!(
        "POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: {}\r\nContent-Length: 8\r\n\r\nabc",
        rig.forebay.host()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let wait = crate::support::process::Wait::for_("the upload that nobody knows of to go");
    while rig.forebay.metric(r#"forebay_uploads_total{result="cancelled"}"#).await < 2.0 {
        wait.a_little().await;
    }
    assert_eq!(rig.open_uploads().await, 0.0);
}

#[tokio::test]
async fn bad_ranges_and_digests_are_named() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    for range in ["x", "5", "-", "5-2", "bytes 0-2/3", "0-99999999999999999999999"] {
        let reply = rig.send("PATCH", &location, &[("Content-Range", range)], "abc").await;
        reply.refuses(400, "BLOB_UPLOAD_INVALID", &[range, "0-1023"]);
    }
    for digest in ["sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "abc", ""] {
        let put = rig.send("PUT", &format!("{location}?digest={digest}"), &[], "abc").await;
        put.refuses(400, "DIGEST_INVALID", &[]);
    }
    rig.send("PUT", &location, &[], "abc").await.refuses(400, "DIGEST_INVALID", &["?digest=sha256:"]);
    let status = rig.get(&location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-0"), "nothing of these was taken");
    let other = rig.manifest("app", "x").await.to_string();
    let put = rig.put("app", &sha256(b"another"), MANIFEST, other.clone()).await;
    put.refuses(400, "DIGEST_INVALID", &[&sha256(other.as_bytes()), &sha256(b"another")]);
}

#[tokio::test]
async fn what_is_no_manifest_is_refused_with_the_reason() {
    let rig = Rig::start().await;
    let good = rig.manifest("app", "a").await;
    let text = good.to_string();
    let with = |field: &str| text.replacen('{', &format!("{{{field},"), 1);
    let deep = with(&format!("\"x\":{}{}", "[".repeat(500), "]".repeat(500)));
    let mut image_with_list = good.clone();
    image_with_list["manifests"] = json!([]);
    let mut bad_layer = good.clone();
    bad_layer["layers"] = json!([{ "mediaType": "x", "digest": "sha256:zz", "size": 1 }]);
    let mut negative = good.clone();
    negative["config"]["size"] = json!(-1);
    let schema1 = json!({ "schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": [] }).to_string();
    for (manifest, words) in [
        (String::new(), vec!["no manifest"]),
        ("no json".to_owned(), vec!["no manifest"]),
        ("[]".to_owned(), vec![]),
        ("{}".to_owned(), vec!["config", "manifests"]),
        (text[..text.len() - 1].to_owned(), vec!["EOF"]),
        (format!("{text}{text}"), vec!["trailing"]),
        (deep, vec!["recursion"]),
        (with("\"layers\":[]"), vec!["`layers`", "twice"]),
        (with("\"annotations\":{\"a\":\"1\",\"a\":\"2\"}"), vec!["`a`", "twice"]),
        (with("\"other\":[{\"b\":1,\"b\":1}]"), vec!["`b`", "twice"]),
        (image_with_list.to_string(), vec!["config", "manifests"]),
        (bad_layer.to_string(), vec!["digest"]),
        (negative.to_string(), vec!["no manifest"]),
        (schema1, vec!["schema 1", "current tool"]),
    ] {
        rig.put("app", "bad", MANIFEST, manifest).await.refuses(400, "MANIFEST_INVALID", &words);
    }
    for kind in
        [INDEX, "text/plain", "application/json", "application/vnd.docker.distribution.manifest.v2+json"]
    {
        let put = rig.put("app", "bad", kind, text.clone()).await;
        put.refuses(400, "MANIFEST_INVALID", &[kind, MANIFEST, "Content-Type"]);
    }
    let unknown = text.replace(MANIFEST, "application/vnd.example");
    rig.put("app", "bad", "application/vnd.example", unknown).await.refuses(
        400,
        "MANIFEST_INVALID",
        &["application/vnd.example", "OCI image manifest"],
    );
    rig.put("app", ".bad", MANIFEST, text).await.refuses(400, "TAG_INVALID", &[".bad", "no tag"]);
    assert_eq!(rig.head("/v2/app/manifests/bad").await.status, 404);
}

#[tokio::test]
async fn a_body_that_is_not_wanted_is_not_waited_for() {
    let rig = Rig::start().await;
    let (host, digest) = (rig.forebay.host(), sha256(b"x"));
    // The client that asks first is told without having sent anything.
    let mut stream = connect(&rig).await;
    let refused = format!(
        "PUT /v2/app/manifests/1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(refused.as_bytes()).await.unwrap();
    let (head, body) = answer(&mut stream).await;
    assert!(head.starts_with("http/1.1 413"), "{head}");
    assert!(String::from_utf8_lossy(&body).contains("MANIFEST_INVALID"));
    // A body that comes nevertheless does not spoil the connection.
    let mut stream = connect(&rig).await;
    let unknown = format!("/v2/app/blobs/uploads/00000000-0000-4000-8000-000000000000?digest={digest}");
    for _ in 0..3 {
        let size = 2_000_000;
        let head = format!("PUT {unknown} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; size]).await.unwrap();
        let (head, _) = answer(&mut stream).await;
        assert!(head.starts_with("http/1.1 404"), "{head}");
    }
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    let mut stream = connect(&rig).await;
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        rig.forebay.host()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.0.starts_with("http/1.1 100"));
    stream.write_all(b"hello").await.unwrap();
    let (head, _) = answer(&mut stream).await;
    assert!(head.starts_with("http/1.1 202") && head.contains("range: 0-4"), "{head}");
}

#[tokio::test]
async fn writes_come_from_this_machine_alone() {
    let rig = Rig::start().await;
    let digest = rig.image("app", "1", "a").await;
    let location = rig.begin("app").await;
    for (method, path) in [
        ("POST", "/v2/app/blobs/uploads/"),
        ("PATCH", &location),
        ("GET", &location),
        ("DELETE", &location),
        ("PUT", "/v2/app/manifests/1"),
        ("DELETE", "/v2/app/manifests/1"),
        ("DELETE", &format!("/v2/app/blobs/{digest}")),
    ] {
        let reply = rig.send(method, path, &[("X-Forwarded-For", "192.0.2.1")], "").await;
        reply.refuses(403, "DENIED", &[]);
    }
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 200);
    let bytes = index_of(&digest);
    assert_eq!(rig.put("app", "2", INDEX, bytes).await.status, 201);
}

fn index_of(digest: &str) -> String {
    let mut entry = descriptor(MANIFEST, b"");
    entry["digest"] = json!(digest);
    crate::index(&[entry])
}
