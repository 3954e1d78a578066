//! A directory that CNCF distribution wrote, that Forebay changed, and that is distribution's again.

use std::path::Path;

use super::pull;
use super::support::clients::Skopeo;
use super::support::faulty::Upstream;
use super::support::hosting::{LEASE, SHORT_LEASE, collect};
use super::support::image::Image;
use super::support::mirror::MirrorOptions;
use super::support::pushers::Pusher;
use super::support::registry::{Registry, RegistryOptions};
use super::support::repository::Repository;
use super::support::stored_blobs;
use super::tree::{adopting, mirror_over, nowhere, registry_over, stored};

/// Pushes with skopeo: an index, its manifests, and all that they name.
async fn push(directory: &Path, image: &Image, target: &str) {
    let layout = directory.join(format!("layout-{}", &image.digest()["sha256:".len()..]));
    image.write_layout(&layout, "1");
    let skopeo = Skopeo::new(&directory.join("skopeo"), "");
    skopeo.load(&layout, target).await;
    assert_eq!(skopeo.push(target).await, image.digest());
}

#[tokio::test]
async fn what_distribution_wrote_and_forebay_changed_is_distributions_again() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut registry = Registry::start(&at("first"), RegistryOptions::default()).await;
    let images: Vec<Image> = (1..=5).map(|seed| Image::random(seed, 1, 50_000)).collect();
    let [kept, moved, untagged, deleted, added] = &images[..] else { unreachable!() };
    for (image, name) in [(kept, "kept:1"), (moved, "app:1"), (untagged, "app:2"), (deleted, "gone:1")] {
        push(directory.path(), image, &format!("{}/{name}", registry.host())).await;
    }
    registry.stop();

    let options = MirrorOptions { config: Some(SHORT_LEASE.to_owned()), ..nowhere() };
    let mirror = mirror_over(&at("mirror"), &registry.storage(), options).await;
    let (url, host) = (mirror.url(), mirror.host());
    let of = |name: &str| Repository::new(&url, name);
    pull(&of("kept").base, "1", kept).await;
    pull(&of("app").base, "2", untagged).await;
    // A new image, a tag that moves, one that goes and leaves its manifest, and a manifest that goes.
    push(directory.path(), added, &format!("{host}/added:1")).await;
    push(directory.path(), added, &format!("{host}/app:1")).await;
    of("app").delete("manifests/2").await.expect(202);
    of("gone").delete(&format!("manifests/{}", deleted.digest())).await.expect(202);
    for manifest in &deleted.manifests {
        of("gone").delete(&format!("manifests/{}", manifest.digest)).await.expect(202);
    }
    tokio::time::sleep(LEASE * 2).await;
    collect(&mirror).await;
    let kept_by_forebay = stored_blobs(&mirror.data());
    let only_in_deleted = |digest: &String| !kept.blobs.iter().any(|blob| blob.digest == *digest);
    for blob in deleted.blobs.iter().filter(|blob| only_in_deleted(&blob.digest)) {
        assert!(!kept_by_forebay.contains(&blob.digest), "{} was nobody's", blob.digest);
    }

    let registry = registry_over(&at("second"), mirror, RegistryOptions::default()).await;
    let of = |name: &str| Repository::new(&registry.url(), name);
    pull(&of("kept").base, "1", kept).await;
    pull(&of("added").base, "1", added).await;
    pull(&of("app").base, "1", added).await;
    // Without its tag, an image is still there by its digest.
    pull(&of("app").base, untagged.digest(), untagged).await;
    pull(&of("app").base, moved.digest(), moved).await;
    assert_eq!(of("app").tags(None).await, ["1"]);
    for path in ["manifests/1".to_owned(), format!("manifests/{}", deleted.digest())] {
        assert_eq!(of("gone").status(&path).await, 404, "{path}");
    }
    // And it is changed by its first owner as before.
    push(directory.path(), deleted, &format!("{}/gone:1", registry.host())).await;
    pull(&of("gone").base, "1", deleted).await;
    assert_eq!(stored_blobs(&registry.storage()), {
        let all = images.iter().flat_map(|image| {
            image
                .blobs
                .iter()
                .chain(&image.manifests)
                .chain([&image.index])
                .map(|content| content.digest.clone())
        });
        all.collect()
    });
}

#[tokio::test]
async fn what_distribution_mirrored_is_its_own_again() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let (first, second) = (Image::random(1, 1, 50_000), Image::random(2, 1, 50_000));
    upstream.put_image("library/first", "1", &first);
    upstream.put_image("library/second", "1", &second);
    let proxy = || RegistryOptions { proxy: Some(upstream.url()), ..Default::default() };
    let mut cache = Registry::start(&directory.path().join("cache"), proxy()).await;
    pull(&(cache.url() + "/v2/library/first"), "1", &first).await;
    stored(&cache, "library/first", &first).await;
    cache.stop();

    // Forebay adds an image of the same upstream's, and collects: what is mirrored is no garbage.
    let place = directory.path().join("mirror");
    let config = Some(SHORT_LEASE.to_owned());
    let options =
        MirrorOptions { upstream: upstream.url(), config, arguments: adopting(), ..Default::default() };
    let mirror = mirror_over(&place, &cache.storage(), options).await;
    pull(&(mirror.url() + "/v2/library/first"), "1", &first).await;
    pull(&(mirror.url() + "/v2/library/second"), "1", &second).await;
    for manifest in second.manifests.iter().chain([&second.index]) {
        let digest = manifest.digest.replace(':', "/");
        mirror.linked(&format!("library/second/_manifests/revisions/{digest}/link")).await;
    }
    mirror.linked("library/second/_manifests/tags/1/current/link").await;
    for blob in &second.blobs {
        mirror.linked(&format!("library/second/_layers/{}/link", blob.digest.replace(':', "/"))).await;
    }
    tokio::time::sleep(LEASE * 2).await;
    collect(&mirror).await;
    let asked = upstream.requests_for("GET", "/blobs/").len();

    let place = directory.path().join("again");
    let registry = registry_over(&place, mirror, proxy()).await;
    pull(&(registry.url() + "/v2/library/first"), "1", &first).await;
    pull(&(registry.url() + "/v2/library/second"), "1", &second).await;
    assert_eq!(upstream.requests_for("GET", "/blobs/").len(), asked, "what was held was fetched again");
}
