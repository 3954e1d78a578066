//! Clients that know `HTTPS_PROXY` and no mirrors.

use std::path::Path;

use super::support::clients::{Skopeo, skopeo_push};
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::namespace::isolated;
use super::support::process::{free_port, run};
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
