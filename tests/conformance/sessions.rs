//! Uploads over time: taken up after a restart, used by one at a time, bounded in number and age.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::Rig;
use crate::support::process::Wait;
use crate::support::sha256;

#[tokio::test]
async fn an_upload_outlives_the_server() {
    let mut rig = Rig::start().await;
    let (location, idle) = (rig.begin("app").await, rig.begin("app").await);
    assert_eq!(rig.send("PATCH", &location, &[("Content-Range", "0-4")], "first").await.status, 202);
    rig.forebay.kill();
    rig.forebay.restart().await;
    let wait = Wait::for_("uploads to be counted");
    while rig.open_uploads().await < 2.0 {
        wait.a_little().await;
    }
    let status = rig.get(&location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-4"), "{status}");
    assert_eq!(rig.get(&idle).await.status, 204);
    let digest = sha256(b"first and last");
    let put = format!("{location}?digest={digest}");
    assert_eq!(rig.send("PUT", &put, &[("Content-Range", "5-13")], " and last").await.status, 201);
    assert_eq!(rig.get(&format!("/v2/app/blobs/{digest}")).await.body, "first and last");
}

#[tokio::test]
async fn unknown_and_foreign_uploads_are_not_found() {
    let mut rig = Rig::start().await;
    let location = rig.begin("app").await;
    rig.image("other", "1", "a").await;
    let digest = sha256(b"x");
    let id = location.rsplit('/').next().unwrap().to_owned();
    for restarted in [false, true] {
        if restarted {
            rig.forebay.kill();
            rig.forebay.restart().await;
        }
        let unknown = "00000000-0000-4000-8000-000000000000";
        for (name, id) in [("other", &*id), ("none", &id), ("app", unknown), ("app", "no-id"), ("app", "..x")]
        {
            let path = format!("/v2/{name}/blobs/uploads/{id}");
            rig.get(&path).await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &[id]);
            rig.send("PATCH", &path, &[], "x").await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &[name]);
            let put = rig.send("PUT", &format!("{path}?digest={digest}"), &[], "x").await;
            put.refuses(404, "BLOB_UPLOAD_UNKNOWN", &["begin one with POST"]);
            rig.delete(&path).await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &[]);
        }
    }
    let status = rig.get(&location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-0"), "its own is as it was");
    let wait = Wait::for_("nothing but that to be counted");
    while rig.open_uploads().await != 1.0 {
        wait.a_little().await;
    }
}

#[tokio::test]
async fn only_one_request_at_a_time_works_on_an_upload() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    let mut first = TcpStream::connect(rig.forebay.host()).await.unwrap();
    let head =
        format!("PATCH {location} HTTP/1.1\r\nHost: {}\r\nContent-Length: 6\r\n\r\n", rig.forebay.host());
    first.write_all(format!("{head}aaa").as_bytes()).await.unwrap();
    let wait = Wait::for_("the first request to be under way");
    while rig.forebay.metric("forebay_received_bytes_total").await < 3.0 {
        wait.a_little().await;
    }
    let digest = sha256(b"aaa");
    for (method, path) in [("PATCH", location.clone()), ("PUT", format!("{location}?digest={digest}"))] {
        let busy = rig.send(method, &path, &[], "bbb").await;
        busy.refuses(409, "BLOB_UPLOAD_INVALID", &["another request", "one after another"]);
    }
    // The client goes without having sent all that it has promised: what came stays.
    drop(first);
    let status = rig.get(&location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-2"), "{status}");
    assert_eq!(rig.send("PUT", &format!("{location}?digest={digest}"), &[], "").await.status, 201);
}

#[tokio::test]
async fn many_at_once_are_never_mixed() {
    let rig = Rig::start().await;
    let location = rig.begin("app").await;
    let parts = (0..8u8).map(|number| {
        let body = vec![b'a' + number; 50_000];
        async { rig.send("PATCH", &location, &[], body).await.status }
    });
    let taken = futures_util::future::join_all(parts).await;
    let taken = taken.iter().filter(|status| **status == 202).count();
    assert!(taken >= 1);
    let status = rig.get(&location).await;
    assert_eq!(status.header("range"), format!("0-{}", taken * 50_000 - 1));
    let stored = rig.forebay.data().join("docker/registry/v2/repositories/app/_uploads");
    let stored = stored.join(location.rsplit('/').next().unwrap()).join("data");
    let bytes = std::fs::read(stored).unwrap();
    for part in bytes.chunks(50_000) {
        assert!(part.iter().all(|byte| *byte == part[0]), "parts are mixed");
    }
}

#[tokio::test]
async fn unfinished_uploads_are_bounded_in_number() {
    let rig = Rig::with("[hosted]\nmax_uploads = 3").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(rig.begin("app").await);
    }
    let digest = sha256(b"x");
    for query in ["", &format!("?digest={digest}"), &format!("?mount={digest}&from=other")] {
        let reply = rig.send("POST", &format!("/v2/app/blobs/uploads/{query}"), &[], "").await;
        reply.refuses(429, "TOOMANYREQUESTS", &["3 unfinished uploads", "hosted.max_uploads"]);
        assert_ne!(reply.header("retry-after"), "");
    }
    assert_eq!(rig.open_uploads().await, 3.0);
    assert_eq!(rig.delete(&open[0]).await.status, 204);
    rig.blob("app", "x").await;
}

#[tokio::test]
async fn unfinished_uploads_are_removed_for_their_age() {
    let rig = Rig::with("[hosted]\nupload_age = \"1s\"").await;
    let location = rig.begin("app").await;
    assert_eq!(rig.send("PATCH", &location, &[], "left behind").await.status, 202);
    let uploads = rig.forebay.data().join("docker/registry/v2/repositories/app/_uploads");
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 1);
    let wait = Wait::for_("the upload to be removed");
    while rig.forebay.metric(r#"forebay_uploads_total{result="purged"}"#).await < 1.0 {
        wait.a_little().await;
    }
    rig.get(&location).await.refuses(404, "BLOB_UPLOAD_UNKNOWN", &[]);
    assert_eq!(rig.open_uploads().await, 0.0);
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 0);
    rig.blob("app", "a push after that").await;
}

#[tokio::test]
async fn a_reload_leaves_uploads_as_they_are() {
    let mut rig = Rig::with("[hosted]\ndelete = true").await;
    let location = rig.begin("app").await;
    rig.forebay.configure("[hosted]\ndelete = false");
    rig.forebay.process().signal(rustix::process::Signal::HUP);
    let wait = Wait::for_("the configuration to be read");
    while rig.delete("/v2/app/manifests/none").await.status != 405 {
        wait.a_little().await;
    }
    assert_eq!(rig.get(&location).await.status, 204);
    assert_eq!(rig.open_uploads().await, 1.0);
}
