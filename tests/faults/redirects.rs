//! Blobs that the upstream keeps elsewhere.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::bench::{Bench, SHORT};
use crate::support::faulty::{Fault, Upstream};
use crate::support::http1::Server;
use crate::support::namespace::isolated;
use crate::support::process::{command, free_port, run};
use crate::support::token::TokenServer;

/// A place that nobody listens at.
fn dead() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

#[tokio::test]
async fn redirects_that_lead_nowhere_are_named() {
    let mut bench = Bench::start().await;
    let url = bench.upstream.url();
    let location = |to: &str| Fault::status_with(307, "Location", to);
    let cases = [
        ("loop", Fault::Redirect(url.clone()), "redirects in a circle"),
        ("descent", Fault::Redirect(url + "/further"), "more than 5 redirects"),
        ("nowhere", Fault::status(307), "redirects without a usable Location"),
        ("file", location("file:///etc/passwd"), "neither http nor https"),
        ("dead", Fault::Redirect(dead()), "cannot be had"),
    ];
    for (name, fault, says) in cases {
        let digest = bench.upstream.put_blob(&format!("redirects/{name}"), name);
        bench.upstream.on("GET", &format!("redirects/{name}/blobs/")).then(fault);
        let path = format!("redirects/{name}/blobs/{digest}");
        bench.get(&path).await.refuses(404, "BLOB_UNKNOWN", &[&digest, says]);
        assert!(bench.asked("GET", name) <= 18, "{name}: {}", bench.asked("GET", name));
        bench.head(&path).await;
    }
    assert_eq!(bench.held().await, BTreeSet::new());
}

#[tokio::test]
async fn an_expired_location_is_replaced_by_a_fresh_one() {
    let mut bench = Bench::start().await;
    let cdn = Upstream::start().await;
    let image = bench.put_image("library/x", "1", 1);
    cdn.put_blob("library/x", image.layer.bytes.clone());
    let path = image.blob(&image.layer);
    bench.upstream.on("GET", &path).then(Fault::Redirect(cdn.url()));
    cdn.on("GET", "/blobs/").times(1).then(Fault::status(403));
    bench.get(&path).await.gives(&image.layer.bytes);
    assert_eq!((bench.asked("GET", &path), cdn.requests().len()), (2, 2));
    bench.keeps(&[&image.layer.digest]).await;
    bench.get(&path).await.gives(&image.layer.bytes);
    assert_eq!(cdn.requests().len(), 2, "from disk");
}

#[tokio::test]
async fn what_a_location_answers_is_neither_a_challenge_nor_shown() {
    let mut bench = Bench::start().await;
    let cdn = Upstream::start().await;
    for (status, says) in [(401, "401"), (403, "403"), (404, "not known"), (500, "500")] {
        let repository = format!("redirects/{status}");
        let digest = bench.upstream.put_blob(&repository, repository.clone());
        let signed = cdn.url() + "/?signature=hidden&path=";
        bench.upstream.on("GET", &repository).then(Fault::Redirect(signed));
        cdn.on("GET", "/").times(3).then(Fault::status_with(
            status,
            "WWW-Authenticate",
            "Basic realm=\"cdn\"",
        ));
        let reply = bench.get(&format!("{repository}/blobs/{digest}")).await;
        reply.refuses(404, "BLOB_UNKNOWN", &[says]);
        assert!(!reply.error().contains("hidden") && !reply.error().contains("told to"), "{reply}");
        cdn.clear_rules();
    }
    assert!(cdn.requests().iter().all(|seen| seen.query.contains("hidden")), "{:?}", cdn.requests());
    assert_eq!(bench.held().await, BTreeSet::new());
    assert!(!bench.mirror.process().log().contains("hidden"));
}

#[tokio::test]
async fn a_manifest_is_not_given_while_its_blobs_cannot_be_had() {
    let mut bench = Bench::start().await;
    let (held, cold) = (bench.put_image("library/x", "1", 1), bench.put_image("library/y", "1", 2));
    bench.pull(&held).await;
    // What was held before is served; a restart forgets that blobs flowed a moment ago.
    bench.mirror.kill();
    bench.mirror.restart().await;
    bench.upstream.on("GET", "/blobs/").then(Fault::Redirect(dead()));
    for path in [cold.by_tag(), cold.by_digest()] {
        let reply = bench.get(&path).await;
        reply.refuses(503, "UNAVAILABLE", &["docker.io/library/y", &cold.config.digest, "cannot be had"]);
    }
    bench.get(&held.by_tag()).await.gives(&held.manifest.bytes);
    bench.get(&held.blob(&held.layer)).await.gives(&held.layer.bytes);
    assert_eq!(bench.held().await.len(), 3);
    bench.upstream.clear_rules();
    bench.get_at_last(&cold.by_tag()).await.gives(&cold.manifest.bytes);
    bench.keeps(&[&cold.manifest.digest, &cold.config.digest]).await;
}

/// Passes on to `target` what comes to a public address, which this network takes for its own.
async fn in_public(target: SocketAddr) -> Server {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
    run(command("ip", ["address", "replace", &format!("{ADDRESS}/32"), "dev", "lo"])).await;
    let pass_on = move |mut client| async move {
        if let Ok(mut server) = TcpStream::connect(target).await {
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
    };
    Server::start_at(ADDRESS, 0, pass_on).await
}

#[test]
fn a_public_upstream_leads_to_no_private_place_unless_it_is_listed() {
    isolated(async |directory| {
        for listed in [false, true] {
            let tokens = TokenServer::start().await;
            tokens.allow_anonymous("*", "pull");
            let (upstream, inside) = (Upstream::start().await, Upstream::start().await);
            let front = in_public(upstream.address()).await;
            let own = tempfile::tempdir_in(&directory).unwrap();
            let allow = "redirect_hosts = [\"127.0.0.1\"]\nrealm_hosts = [\"127.0.0.1\"]\n";
            let config = if listed { SHORT.to_owned() + allow } else { SHORT.to_owned() };
            let bench = Bench::at(upstream, format!("http://{}", front.address), config, own).await;
            let image = bench.put_image("library/x", "1", 1);
            inside.put_blob("library/x", image.layer.bytes.clone());
            bench.upstream.on("GET", "/blobs/").times(1).then(Fault::Redirect(inside.url()));
            let redirected = bench.get(&image.blob(&image.layer)).await;
            bench.upstream.protect(&tokens);
            let challenged = bench.get(&image.by_tag()).await;
            if listed {
                redirected.gives(&image.layer.bytes);
                challenged.gives(&image.manifest.bytes);
            } else {
                redirected.refuses(404, "BLOB_UNKNOWN", &["`redirect_hosts`"]);
                challenged.refuses(503, "UNAVAILABLE", &["`realm_hosts`"]);
            }
            assert_eq!((inside.requests().is_empty(), tokens.requests().is_empty()), (!listed, !listed));
        }
    });
}
