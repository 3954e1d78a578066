//! A site without a way out: what is held is served, nothing else is tried.

use super::support::clients::{Client, Podman, Skopeo};
use super::support::http;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::PATIENCE;
use super::support::registry::{Registry, RegistryOptions};

#[test]
fn what_is_held_is_served_offline_and_the_rest_is_refused_with_the_reason() {
    isolated(async |directory| {
        let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
        let (held, other) = (Image::random(1, 2, 100_000), Image::random(2, 2, 100_000));
        held.push(&upstream, "library/held", "1").await;
        other.push(&upstream, "library/other", "1").await;
        let mut mirror = Mirror::start(&directory.join("mirror"), &upstream.url()).await;
        Skopeo::new(&directory.join("skopeo"), &mirror.url()).pull("held:1").await;
        mirror.linked("library/held/_manifests/tags/1/current/link").await;
        assert!(mirror.terminate(PATIENCE).unwrap().success());
        let asked = upstream.requests().await.len();

        let options = MirrorOptions {
            upstream: upstream.url(),
            environment: vec![("FOREBAY_OFFLINE".into(), "true".into())],
            ..Default::default()
        };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        let podman = Podman::start(&directory.join("podman"), &mirror.url()).await;
        for image in ["held:1".to_owned(), format!("held@{}", held.digest())] {
            podman.pull(&image).await;
            assert_ne!(podman.held(&image).await, Vec::<String>::new());
            podman.remove(&image).await;
        }
        for path in ["manifests/1".to_owned(), format!("blobs/{}", other.blobs[0].digest)] {
            let url = format!("{}/v2/library/other/{path}", mirror.url());
            let answer = http().get(url).send().await.unwrap();
            assert_eq!(answer.status(), 404);
            let told = answer.text().await.unwrap();
            assert!(told.contains("offline"), "{told}");
        }
        assert_eq!(upstream.requests().await.len(), asked, "an offline mirror asked upstream");
    });
}
