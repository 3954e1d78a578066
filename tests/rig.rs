//! The rig, proven against itself: a fault that does not happen proves nothing about Forebay.

mod support;

use std::time::{Duration, Instant};

use support::faulty::{Cut, Fault, Quota, Upstream};
use support::image::{Image, MANIFEST, random_bytes};
use support::mirror::Mirror;
use support::namespace::isolated;
use support::process::PATIENCE;
use support::registry::{Auth, Registry, RegistryOptions};
use support::token::{TokenServer, Trouble};
use support::{http, sha256, stored_blobs};

/// What reading a body to its end came to: all bytes, or those before it broke.
async fn body(url: &str) -> (Vec<u8>, bool) {
    let mut answer = http().get(url).send().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, true),
            Err(_) => return (bytes, false),
        }
    }
}

#[tokio::test]
async fn an_image_goes_in_and_comes_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut registry = Registry::start(directory.path(), RegistryOptions::default()).await;
    let image = Image::random(1, 1, 1000);
    image.push(&registry, "library/x", "1").await;
    let stored = stored_blobs(&registry.storage());
    assert!(image.blobs.iter().chain(&image.manifests).all(|content| stored.contains(&content.digest)));
    let url = format!("{}/v2/library/x/manifests/1", registry.url());
    let get = || http().get(&url).header("Accept", image.index.media_type).send();
    assert_eq!(get().await.unwrap().headers()["docker-content-digest"], image.digest());
    http().head(&url).header("Accept", image.index.media_type).send().await.unwrap();
    let seen = registry.content_requests().await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].status, seen[0].bytes), (200, image.index.bytes.len() as u64));
    registry.stop();
    assert!(get().await.is_err());
    registry.restart().await;
    assert_eq!(get().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let options = RegistryOptions { auth: Auth::Htpasswd, ..Default::default() };
    let registry = Registry::start(directory.path(), options).await;
    let digest = registry.push_blob("library/x", random_bytes(1, 100)).await;
    let url = format!("{}/v2/library/x/blobs/{digest}", registry.url());
    assert_eq!(http().get(&url).send().await.unwrap().status(), 401);
    let rig = http().get(&url).basic_auth(support::registry::USER, Some(support::registry::PASSWORD));
    assert_eq!(rig.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn tokens_open_what_was_granted() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("library/*", "pull");
    tokens.allow("ci", "right", "private/x", "pull");
    let options = RegistryOptions { auth: Auth::Token(tokens.clone()), ..Default::default() };
    let registry = Registry::start(directory.path(), options).await;
    let mut statuses = Vec::new();
    for repository in ["library/x", "private/x"] {
        let digest = registry.push_blob(repository, random_bytes(1, 100)).await;
        let url = format!("{}/v2/{repository}/blobs/{digest}", registry.url());
        let challenge = http().get(&url).send().await.unwrap().headers()["www-authenticate"].clone();
        assert!(challenge.to_str().unwrap().contains(&tokens.realm()));
        for password in [None, Some("right"), Some("wrong")] {
            let mut ask = http().get(format!(
                "{}?service={}&scope=repository:{repository}:pull,push",
                tokens.realm(),
                support::token::SERVICE
            ));
            if let Some(password) = password {
                ask = ask.basic_auth("ci", Some(password));
            }
            let answer = ask.send().await.unwrap();
            if answer.status() != 200 {
                statuses.push(answer.status().as_u16());
                continue;
            }
            let token: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            let get = http().get(&url).bearer_auth(token["token"].as_str().unwrap());
            statuses.push(get.send().await.unwrap().status().as_u16());
        }
    }
    assert_eq!(statuses, [200, 200, 401, 401, 200, 401]);
    assert_eq!(tokens.requests().len(), 6);
    assert_eq!(tokens.requests()[4].user.as_deref(), Some("ci"));
    assert_eq!(tokens.requests()[4].scopes, ["repository:private/x:pull,push"]);
    tokens.set_trouble(Some(Trouble::Status(503)));
    assert_eq!(http().get(tokens.realm()).send().await.unwrap().status(), 503);
}

#[tokio::test]
async fn oauth2_gives_tokens_to_a_form() {
    let tokens = TokenServer::start().await;
    tokens.allow("ci", "right", "*", "pull");
    let form = |password| [("grant_type", "password"), ("username", "ci"), ("password", password)];
    for (password, status) in [("right", 200), ("wrong", 401)] {
        let post = http().post(tokens.realm()).form(&form(password));
        assert_eq!(post.send().await.unwrap().status(), status);
    }
    assert_eq!(tokens.requests()[0].method, "POST");
}

#[tokio::test]
async fn a_range_is_honoured_unless_it_is_ignored() {
    let upstream = Upstream::start().await;
    let bytes = random_bytes(1, 1000);
    let digest = upstream.put_blob("library/x", bytes.clone());
    let url = format!("{}/v2/library/x/blobs/{digest}", upstream.url());
    let get = async |range| {
        let answer = http().get(&url).header("Range", range).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
    };
    assert_eq!(get("bytes=10-19").await, (206, bytes[10..20].to_vec()));
    assert_eq!(get("bytes=990-").await, (206, bytes[990..].to_vec()));
    assert_eq!(get("bytes=-5").await, (206, bytes[995..].to_vec()));
    assert_eq!(get("bytes=1000-").await.0, 416);
    upstream.on("GET", "/blobs/").times(1).then(Fault::IgnoreRange);
    assert_eq!(get("bytes=10-19").await, (200, bytes.clone()));
    assert_eq!(get("bytes=10-19").await.0, 206);
    let seen = upstream.requests();
    assert_eq!(seen[0].headers.get("range"), Some("bytes=10-19"));
    assert_eq!((seen[0].sent(), seen[4].sent()), (10, 1000));
}

#[tokio::test]
async fn bodies_break_where_they_are_told_to() {
    let upstream = Upstream::start().await;
    let bytes = random_bytes(2, 300_000);
    let digest = upstream.put_blob("library/x", bytes.clone());
    let url = format!("{}/v2/library/x/blobs/{digest}", upstream.url());
    for how in [Cut::Fin, Cut::Reset] {
        upstream.on("GET", "/blobs/").times(1).then(Fault::Cut { after: 100_000, how });
        assert_eq!(body(&url).await, (bytes[..100_000].to_vec(), false));
    }
    upstream.on("GET", "/blobs/").times(1).then(Fault::Length(300_100));
    assert_eq!(body(&url).await, (bytes.clone(), false));
    upstream.on("GET", "/blobs/").times(1).then(Fault::Length(299_000));
    assert_eq!(body(&url).await, (bytes[..299_000].to_vec(), true));
    upstream.on("GET", "/blobs/").times(1).then(Fault::Append(7));
    assert_eq!(body(&url).await.0.len(), 300_007);
    upstream.on("GET", "/blobs/").times(1).then(Fault::Flip(12_345));
    let (flipped, _) = body(&url).await;
    assert_eq!(flipped.iter().zip(&bytes).filter(|(a, b)| a != b).count(), 1);
    for fault in [Fault::Chunked, Fault::CloseDelimited] {
        upstream.on("GET", "/blobs/").times(1).then(fault);
        let answer = http().get(&url).send().await.unwrap();
        assert_eq!(answer.content_length(), None);
        assert_eq!(sha256(&answer.bytes().await.unwrap()), digest);
    }
    upstream
        .on("GET", "/blobs/")
        .times(1)
        .then(Fault::CloseDelimited)
        .then(Fault::Cut { after: 10, how: Cut::Fin });
    assert_eq!(body(&url).await, (bytes[..10].to_vec(), true));
    assert_eq!(body(&url).await, (bytes, true), "and then all is well");
}

#[tokio::test]
async fn stalls_and_delays_hold_back() {
    let upstream = Upstream::start().await;
    let digest = upstream.put_blob("library/x", random_bytes(2, 100_000));
    let url = format!("{}/v2/library/x/blobs/{digest}", upstream.url());
    let waits = async |limit| tokio::time::timeout(Duration::from_millis(limit), body(&url)).await.is_err();
    upstream.on("GET", "/blobs/").times(1).then(Fault::Stall { after: 50_000 });
    assert!(waits(200).await);
    assert_eq!(upstream.requests()[0].sent(), 50_000);
    upstream.on("GET", "/blobs/").times(1).then(Fault::Delay(Duration::MAX));
    assert!(waits(200).await);
    upstream.on("GET", "/blobs/").times(1).then(Fault::Rate(200_000));
    let begun = Instant::now();
    assert!(!waits(30_000).await);
    assert!(begun.elapsed() > Duration::from_millis(300));
}

#[tokio::test]
async fn answers_are_what_the_script_says() {
    let upstream = Upstream::start().await;
    let cdn = Upstream::start().await;
    let bytes = random_bytes(3, 1000);
    let digest = upstream.put_blob("library/x", bytes.clone());
    cdn.put_blob("library/x", bytes.clone());
    let url = format!("{}/v2/library/x/blobs/{digest}", upstream.url());
    let get = async || http().get(&url).send().await;
    upstream.on("GET", "/blobs/").times(1).then(Fault::status_with(429, "Retry-After", 7));
    assert_eq!(get().await.unwrap().headers()["retry-after"], "7");
    upstream.on("GET", "/blobs/").times(1).then(Fault::Redirect(cdn.url()));
    let answer = get().await.unwrap();
    assert_eq!(answer.status(), 307);
    assert_eq!(body(answer.headers()["location"].to_str().unwrap()).await.0, bytes);
    upstream.on("GET", "/blobs/").times(1).then(Fault::login_page());
    assert_eq!(get().await.unwrap().headers()["content-type"], "text/html");
    let wrong = sha256(b"something else");
    upstream.on("GET", "/blobs/").times(1).then(Fault::Header("Docker-Content-Digest", wrong.clone()));
    assert_eq!(get().await.unwrap().headers()["docker-content-digest"], wrong.as_str());
    upstream.on("GET", "/blobs/").times(1).then(Fault::Gzip);
    assert_eq!(get().await.unwrap().headers()["content-encoding"], "gzip");
    upstream.on("GET", "/blobs/").times(1).then(Fault::Reset);
    assert!(get().await.is_err());
    upstream.refuse(1);
    assert!(get().await.is_err());
    assert_eq!(get().await.unwrap().status(), 200);
}

#[tokio::test]
async fn quota_is_spent_by_manifest_downloads_alone() {
    let mut upstream = Upstream::start().await;
    upstream.put_manifest("library/x", "1", MANIFEST, "{}");
    upstream.set_quota(Some(Quota { limit: 100, remaining: 1, window: 21600 }));
    let url = format!("{}/v2/library/x/manifests/1", upstream.url());
    assert_eq!(http().head(&url).send().await.unwrap().headers()["ratelimit-remaining"], "1;w=21600");
    assert_eq!(http().get(&url).send().await.unwrap().status(), 200);
    assert_eq!(http().get(&url).send().await.unwrap().status(), 429);
    assert_eq!(http().head(&url).send().await.unwrap().status(), 200);
    upstream.stop().await;
    assert!(http().get(&url).send().await.unwrap_err().is_connect());
    upstream.restart().await;
    upstream.set_quota(None);
    assert_eq!(http().get(&url).send().await.unwrap().status(), 200);
    upstream.remove("library/x", "1");
    assert_eq!(http().get(&url).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_mirror_is_killed_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let image = Image::random(1, 1, 100_000);
    upstream.put_image("library/x", "1", &image);
    let mut mirror = Mirror::start(directory.path(), &upstream.url()).await;
    let url = format!("{}/v2/library/x/manifests/1", mirror.url());
    let get = async || {
        let answer = http().get(&url).header("Accept", image.index.media_type).send().await?;
        answer.bytes().await
    };
    assert_eq!(get().await.unwrap(), image.index.bytes);
    assert_eq!(upstream.requests_for("GET", "/manifests/").len(), 1);
    mirror.kill();
    assert!(get().await.unwrap_err().is_connect());
    mirror.restart().await;
    assert_eq!(get().await.unwrap(), image.index.bytes);
    assert!(mirror.terminate(PATIENCE).is_some());
    assert!(get().await.unwrap_err().is_connect());
}

#[tokio::test]
async fn a_token_is_good_until_it_expires() {
    let (upstream, tokens) = (Upstream::start().await, TokenServer::start().await);
    let digest = upstream.put_blob("library/x", "x");
    upstream.protect(&tokens);
    let url = format!("{}/v2/library/x/blobs/{digest}", upstream.url());
    let challenge = http().get(&url).send().await.unwrap().headers()["www-authenticate"].clone();
    assert!(challenge.to_str().unwrap().ends_with(r#",scope="repository:library/x:pull""#));
    let get = async |token: &str| http().get(&url).bearer_auth(token).send().await.unwrap().status().as_u16();
    let token = tokens.mint("library/x", "pull");
    assert_eq!((get(&token).await, get(&token).await), (200, 200));
    upstream.expire_tokens();
    assert_eq!((get(&token).await, get("another").await), (401, 200));
}

#[test]
#[should_panic(expected = "holds other bytes")]
fn a_blob_under_a_wrong_name_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("docker/registry/v2/blobs/sha256/ab/ab00");
    std::fs::create_dir_all(&blob).unwrap();
    std::fs::write(blob.join("data"), "x").unwrap();
    stored_blobs(directory.path());
}

#[test]
fn nothing_but_loopback_is_there() {
    isolated(async |_| {
        let upstream = Upstream::start().await;
        assert_eq!(http().get(upstream.url() + "/v2/").send().await.unwrap().status(), 200);
        let outside = tokio::net::TcpStream::connect("192.0.2.1:443").await.unwrap_err();
        assert_eq!(outside.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}
