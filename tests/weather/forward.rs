//! Clients that know `HTTPS_PROXY` and no mirrors.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::clients::{Skopeo, skopeo_push};
use super::support::http1::Server;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::namespace::{add_address, isolated, name_hosts};
use super::support::process::{PATIENCE, free_port, run};
use super::support::registry::{Registry, RegistryOptions};
use super::support::{http_client, stored_blobs};

const HOST: &str = "registry.example";

async fn rig(directory: &Path) -> (Registry, Mirror, Image, String) {
    let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
    let image = Image::random(1, 2, 100_000);
    let layout = directory.join("layout");
    image.write_layout(&layout, "1");
    skopeo_push(&layout, "1", &format!("{}/org/app:1", upstream.host()), None).await;
    let proxy = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "[upstream.\"{HOST}\"]\nurl = \"{}\"\n[forward_proxy]\nlisten = \"{proxy}\"\n\
         tunnel = [\"localhost\", \"*.internal.example\"]\n",
        upstream.url()
    );
    let options = MirrorOptions { upstream: upstream.url(), config: Some(config), ..Default::default() };
    let mirror = Mirror::with(&directory.join("mirror"), options).await;
    (upstream, mirror, image, format!("http://{proxy}"))
}

#[test]
fn a_client_with_a_proxy_alone_pulls_from_what_is_held() {
    isolated(async |directory| {
        let (mut upstream, mirror, image, proxy) = rig(&directory).await;
        let mut ca = forebay(["ca"]);
        ca.arg("--data").arg(mirror.data());
        let pem = run(ca).await;
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
        let certificates = directory.join("certificates");
        std::fs::create_dir_all(&certificates).unwrap();
        std::fs::write(certificates.join("ca.crt"), &pem).unwrap();
        let skopeo = Skopeo::new(&directory.join("skopeo"), &mirror.url());
        for gone in [false, true] {
            if gone {
                upstream.stop();
            }
            let mut copy = skopeo.skopeo(["copy", "--all", "--src-cert-dir"]);
            copy.arg(&certificates).arg(format!("docker://{HOST}/org/app:1"));
            copy.arg(format!("dir:{}", directory.join(format!("copy-{gone}")).display()));
            copy.env("HTTPS_PROXY", &proxy);
            run(copy).await;
        }
        let held = stored_blobs(&mirror.data());
        assert!(image.blobs.iter().all(|blob| held.contains(&blob.digest)));
        assert_eq!(mirror.metric("forebay_forward_proxy_connections_total{result=\"failed\"}").await, 0.0);
    });
}

#[test]
fn nothing_but_registries_is_reached_and_nothing_is_written() {
    isolated(async |directory| {
        let (_upstream, mirror, _, proxy) = rig(&directory).await;
        let pem = std::fs::read(mirror.data().join("forebay/ca.pem")).unwrap();
        let client = |certificates| {
            let builder = http_client().proxy(reqwest::Proxy::all(&proxy).unwrap());
            builder.tls_certs_only(certificates).build().unwrap()
        };
        let trusting = client(vec![reqwest::Certificate::from_pem(&pem).unwrap()]);
        let answer = trusting.get(format!("https://{HOST}/v2/")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let push = trusting.post(format!("https://{HOST}/v2/org/app/blobs/uploads/")).send().await.unwrap();
        assert_eq!(push.status(), 405);
        let hosted = trusting.get(format!("https://{HOST}/v2/org/none/manifests/1")).send().await.unwrap();
        assert_eq!(hosted.status(), 404);
        // Who does not trust the CA gets no answer; the operator's pages are not there; the rest is refused.
        assert!(client(Vec::new()).get(format!("https://{HOST}/v2/")).send().await.is_err());
        for refused in
            ["https://other.example/", "https://registry.example:8443/", "https://169.254.169.254/"]
        {
            assert!(trusting.get(refused).send().await.is_err(), "{refused}");
        }
        let plain = trusting.get(mirror.url() + "/v2/").send().await.unwrap();
        assert_eq!(plain.status(), 405);
        assert!(plain.text().await.unwrap().contains("HTTPS"));
        let metrics = super::support::http().get(mirror.url() + "/metrics").send().await.unwrap();
        let text = metrics.text().await.unwrap();
        assert!(text.contains("forebay_forward_proxy_connections_total{result=\"refused\"}"), "{text}");
    });
}

/// Asks a proxy for a host: the answer's head, and the connection behind it.
async fn connect(proxy: &str, host: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(proxy.trim_start_matches("http://")).await.unwrap();
    stream.write_all(format!("CONNECT {host}:443 HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

/// Answers by what it is sent. Counts its connections.
async fn echo(address: [u8; 4], taken: &Arc<AtomicUsize>) -> Server {
    let taken = taken.clone();
    let serve = move |mut stream: TcpStream| {
        taken.fetch_add(1, Ordering::Relaxed);
        async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        }
    };
    Server::start_at(address.into(), 443, serve).await
}

#[test]
fn what_is_listed_is_passed_on_to_its_public_addresses_alone() {
    isolated(async |directory| {
        ["1.2.3.4/32", "10.0.0.1/32"].iter().for_each(|address| add_address(address));
        let names = "127.0.0.1 localhost\n1.2.3.4 open.internal.example\n10.0.0.1 inside.internal.example\n\
                     10.0.0.1 mixed.internal.example\n1.2.3.4 mixed.internal.example\n\
                     1.2.3.5 closed.internal.example\n";
        name_hosts(&directory, names);
        let (public, private) = (Arc::default(), Arc::default());
        let _servers = [
            echo([1, 2, 3, 4], &public).await,
            echo([10, 0, 0, 1], &private).await,
            echo([127, 0, 0, 1], &private).await,
        ];
        let (_upstream, mut mirror, _, proxy) = rig(&directory).await;
        let both = tokio::net::lookup_host("mixed.internal.example:443").await.unwrap();
        assert_eq!(both.count(), 2);
        let image = Image::random(1, 1, 1 << 20);
        for host in ["open.internal.example", "mixed.internal.example"] {
            let (head, mut stream) = connect(&proxy, host).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{host}: {head}");
            let (mut from, mut to) = stream.split();
            for blob in &image.blobs {
                let mut got = vec![0; blob.bytes.len()];
                let (sent, read) = tokio::join!(to.write_all(&blob.bytes), from.read_exact(&mut got));
                assert!(sent.is_ok() && read.is_ok() && got == blob.bytes, "{host}");
            }
            to.shutdown().await.unwrap();
            assert_eq!(from.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        }
        for (host, status) in
            [("localhost", "403"), ("inside.internal.example", "403"), ("closed.internal.example", "502")]
        {
            let (head, _) = connect(&proxy, host).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {head}");
        }
        assert_eq!((public.load(Ordering::Relaxed), private.load(Ordering::Relaxed)), (2, 0));
        for (result, count) in [("tunnelled", 2.0), ("refused", 2.0), ("failed", 1.0)] {
            let series = format!("forebay_forward_proxy_connections_total{{result=\"{result}\"}}");
            assert_eq!(mirror.metric(&series).await, count, "{result}");
        }
        // One that is open and still does not hold up a shutdown.
        let (_, _open) = connect(&proxy, "open.internal.example").await;
        assert!(mirror.terminate(PATIENCE).is_some_and(|status| status.success()));
    });
}
