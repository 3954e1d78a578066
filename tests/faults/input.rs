//! What clients should not send: it gets its error, and reaches no file and no upstream.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bench::Bench;
use crate::support::{sha256, stored_blobs};

/// Sends `request` as it is. The status and body of the answer; status 0 where there is none.
async fn raw(bench: &Bench, request: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(bench.mirror.host()).await.unwrap();
    // The server may answer and close before all has been sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    assert!(
        read.is_ok(),
        "no end of the answer to {:?}",
        String::from_utf8_lossy(&request[..request.len().min(80)])
    );
    let text = String::from_utf8_lossy(&answer);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
    let body =
        answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(Vec::new(), |at| answer[at + 4..].to_vec());
    (status, body)
}

/// Asks for `target` as it is written, in a connection of its own.
async fn get(bench: &Bench, target: &str) -> (u16, String) {
    let request = format!("GET {target} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n");
    let (status, body) = raw(bench, request.as_bytes()).await;
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn malformed_names_and_references_have_their_errors() {
    let mut bench = Bench::start().await;
    let digest = sha256(b"");
    let long = format!("{}/x", "a".repeat(254));
    for name in
        ["Upper/x", "a//b", "-a/b", "a/b-", "a/.b", "a..b/c", "a___b/c", "a/b/", "a b/c", "a/ü", &long]
    {
        for rest in ["manifests/1".to_owned(), format!("blobs/{digest}"), "tags/list".to_owned()] {
            bench.get(&format!("{name}/{rest}")).await.refuses(400, "NAME_INVALID", &["no repository name"]);
        }
    }
    let (short, upper) = (&digest[..70], digest.to_uppercase().replace("SHA", "sha"));
    for bad in
        [short, &upper, "sha256:", "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "x", ":", "%3A"]
    {
        bench.get(&format!("library/x/blobs/{bad}")).await.refuses(400, "DIGEST_INVALID", &[]);
        if bad.contains(':') {
            bench.get(&format!("library/x/manifests/{bad}")).await.refuses(400, "DIGEST_INVALID", &[]);
        }
    }
    for bad in [".x", "-x", "x%20y", "x%00", &"x".repeat(129)] {
        bench.get(&format!("library/x/manifests/{bad}")).await.refuses(404, "MANIFEST_UNKNOWN", &["no tag"]);
    }
    bench.get("library/x/tags/list?n=-1").await.refuses(400, "PAGINATION_NUMBER_INVALID", &["`n=-1`"]);
    bench.get("library/x/manifests/1?ns=example.com").await.refuses(404, "NAME_UNKNOWN", &["example.com"]);
    let hint = "for Docker Hub's, ask for `library/nginx`";
    bench.get("nginx/manifests/latest").await.refuses(404, "MANIFEST_UNKNOWN", &[hint]);
    bench.get(&format!("nginx/blobs/{digest}")).await.refuses(404, "BLOB_UNKNOWN", &[hint]);
    for method in ["PUT", "POST", "PATCH", "DELETE"] {
        let reply = bench.ask(method, "library/x/manifests/1", &[]).await;
        reply.refuses(405, "UNSUPPORTED", &[method]);
        assert_eq!(reply.header("allow"), "GET, HEAD");
    }
    assert_eq!(bench.upstream.requests().len(), 0);
    assert_eq!(bench.held().await, BTreeSet::new());
}

#[tokio::test]
async fn ranges_are_honoured_refused_or_ignored() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    let (layer, size) = (&image.layer.bytes, image.layer.bytes.len());
    let path = image.blob(&image.layer);
    for (range, from, to) in [
        ("bytes=0-", 0, size),
        ("bytes=5-9", 5, 10),
        ("bytes=-7", size - 7, size),
        ("bytes=5-99999999999999999999", 5, size),
        ("bytes=-99999999", 0, size),
    ] {
        let reply = bench.ask("GET", &path, &[("Range", range)]).await;
        assert_eq!((reply.status, reply.whole), (206, true), "{range}: {reply}");
        assert!(reply.body == layer[from..to], "{range}: {reply}");
        assert_eq!(reply.header("content-range"), format!("bytes {from}-{}/{size}", to - 1));
    }
    for range in [&*format!("bytes={size}-"), "bytes=-0", "bytes=9-5", "bytes=999999999-"] {
        let reply = bench.ask("GET", &path, &[("Range", range)]).await;
        reply.refuses(416, "RANGE_INVALID", &[&size.to_string()]);
        assert_eq!(reply.header("content-range"), format!("bytes */{size}"));
    }
    for range in [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=x-",
        "bytes=--5",
        "bytes=1-2,5-6",
        "items=1-2",
        "=",
        "bytes=1",
    ] {
        bench.ask("GET", &path, &[("Range", range)]).await.gives(layer);
    }
    let strange = [
        ("If-None-Match", ",,\"\\\""),
        ("If-Range", "W/"),
        ("Accept", "\t;q=x"),
        ("X-Forwarded-For", "::,x"),
    ];
    bench.ask("GET", &path, &strange).await.gives(layer);
}

#[tokio::test]
async fn no_spelling_of_a_path_reaches_a_file() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    let secret = bench.mirror.data().parent().unwrap().join("secret");
    std::fs::write(&secret, "root:x:0:0").unwrap();
    let before = bench.upstream.requests().len();
    let ups = ["..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..%00", "%c0%ae%c0%ae", "..;", "%u002e%u002e"];
    let slashes = ["/", "%2f", "%5c", "\\", "%252f", "%c0%af", "//"];
    let mut targets = Vec::new();
    for up in ups {
        for slash in slashes {
            let climb = [up; 9].join(slash);
            targets.extend([
                format!("/{climb}{slash}etc/passwd"),
                format!("/v2/{climb}{slash}secret/manifests/1"),
                format!("/v2/library{slash}{up}{slash}x/blobs/{}", image.layer.digest),
                format!("/v2/library/x/blobs/{climb}{slash}secret"),
                format!("/v2/library/x/blobs/sha256:{climb}{slash}secret"),
                format!("/v2/library/x/manifests/{up}{slash}{up}{slash}{up}{slash}_layers"),
                format!("/v2/library/x/manifests/sha256:{up}{slash}{up}"),
                format!("/v2/library/x{slash}{up}/tags/list"),
                format!("http://mirror/{climb}{slash}secret"),
            ]);
        }
    }
    for own in ["_manifests", "_layers", "_uploads", "library/_manifests", "library/x/_layers"] {
        targets.push(format!("/v2/{own}/manifests/1"));
    }
    targets.push(format!("/v2/library/x/manifests/1?ns={}", "../".repeat(9)));
    targets.push(format!("/..%2f..%2f/v2/library/x/blobs/{}", image.layer.digest));
    for target in &targets {
        let (status, body) = get(&bench, target).await;
        assert!(matches!(status, 400 | 404), "{target}: {status} {body}");
        assert!(!body.contains("root:"), "{target}: {body}");
        if !body.is_empty() {
            let error: Value =
                serde_json::from_str(&body).unwrap_or_else(|e| panic!("{target}: {e}: {body}"));
            assert!(error["errors"][0]["code"].is_string(), "{target}: {body}");
        }
    }
    let asked = bench.upstream.requests().split_off(before);
    assert!(asked.is_empty(), "{asked:?}");
    let root = bench.mirror.data().parent().unwrap().to_owned();
    let names =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        ["data", "forebay.toml", "log", "secret"].map(str::to_owned).into()
    );
    assert_eq!(bench.held().await.len(), 3);
}

#[tokio::test]
async fn what_is_too_large_or_no_http_is_refused() {
    let mut bench = Bench::start().await;
    let line = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n{headers}\r\n").into_bytes()
    };
    let many: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    let cases = [
        ("large header", line("/v2/", &format!("x: {}\r\n", "y".repeat(200_000))), &[431][..]),
        ("many headers", line("/v2/", &many), &[431]),
        ("long target", line(&format!("/v2/{}", "x".repeat(200_000)), ""), &[414, 431]),
        ("long name", line(&format!("/v2/{}/manifests/1", "x/".repeat(20_000)), ""), &[400]),
        ("endless line", vec![b'x'; 500_000], &[400, 431, 0]),
        ("no words", b"\r\n\r\n\0\0\0\0\r\n\r\n".to_vec(), &[400]),
        ("no HTTP", b"GET /v2/ HTTX/9\r\n\r\n".to_vec(), &[400]),
        ("two lengths", line("/v2/", "content-length: 1\r\ncontent-length: 2\r\n"), &[400]),
        ("a space in a name", line("/v2/", "x y: z\r\n"), &[400]),
        ("a NUL in a value", line("/v2/", "x: \0\r\n"), &[400]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("a proxy's method", b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".to_vec(), &[400, 404, 405]),
        ("a large body", b"PUT /v2/library/x/manifests/1 HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\nx".to_vec(), &[405]),
    ];
    for (name, request, expected) in cases {
        let (status, _) = raw(&bench, &request).await;
        assert!(expected.contains(&status), "{name}: {status}");
    }
    let image = bench.put_image("library/x", "1", 1);
    bench.pull(&image).await;
    assert_eq!(stored_blobs(&bench.mirror.data()).len(), 3);
}
