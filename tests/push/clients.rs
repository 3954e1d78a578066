//! Each client pushes, and another one pulls what it pushed, by tag and by digest.

use std::path::Path;

use super::support::clients::{Client, Dockerd, Podman, Skopeo};
use super::support::hosting::Hosting;
use super::support::image::{Image, random_bytes};
use super::support::namespace::isolated;
use super::support::process::run;
use super::support::pushers::{Buildah, Pusher};

/// The layout of an image that nobody else pushes.
fn layout(directory: &Path, seed: u64) -> (Image, std::path::PathBuf) {
    let image = Image::random(seed, 2, 100_000);
    let layout = directory.join(format!("layout-{seed}"));
    image.write_layout(&layout, "1");
    (image, layout)
}

/// `pusher` pushes what it holds as `image`; `puller`, who has nothing of it, gets all.
async fn handed_over(registry: &Hosting, pusher: &impl Pusher, puller: &impl Client, name: &str) -> String {
    let tagged = format!("{}/{name}:1", registry.host());
    let digest = pusher.push(&tagged).await;
    let by_digest = format!("{}/{name}@{digest}", registry.host());
    for image in [&by_digest, &tagged] {
        puller.pull(image).await;
        let held = puller.held(image).await;
        assert!(held.contains(&digest), "{image} at {}: {held:?} lacks {digest}", registry.host());
    }
    let whole = registry.repository(name).whole("1").await.unwrap();
    assert!(whole.contains_key(&digest));
    digest
}

#[test]
fn dockerd_and_containerd_pull_what_the_other_pushed() {
    isolated(async |directory| {
        let dockerd = Dockerd::start(&directory.join("dockerd"), "http://127.0.0.1:9").await;
        for (seed, registry) in (1..).zip(Hosting::both(&directory).await) {
            let (image, layout) = layout(&directory, seed);
            let name = format!("{}/by-containerd:1", registry.host());
            dockerd.containerd.load(&layout, &name).await;
            let digest = handed_over(&registry, &dockerd.containerd, &dockerd, "by-containerd").await;
            assert_eq!(digest, image.digest());

            let name = format!("{}/by-dockerd:1", registry.host());
            dockerd.load(&layout, &name).await;
            handed_over(&registry, &dockerd, &dockerd.containerd, "by-dockerd").await;
        }
    });
}

#[test]
fn podman_buildah_and_skopeo_pull_what_another_pushed() {
    isolated(async |directory| {
        for (seed, registry) in (1..).zip(Hosting::both(&directory).await) {
            let of = |name: &str| directory.join(format!("{name}-{seed}"));
            let (image, layout) = layout(&directory, seed);
            let podman = Podman::start(&of("podman"), "http://127.0.0.1:9").await;
            let (buildah, skopeo) = (Buildah::new(&of("buildah")), Skopeo::new(&of("skopeo"), ""));

            skopeo.load(&layout, &format!("{}/by-skopeo:1", registry.host())).await;
            let digest = handed_over(&registry, &skopeo, &podman, "by-skopeo").await;
            assert_eq!(digest, image.digest());
            podman.load(&layout, &format!("{}/by-podman:1", registry.host())).await;
            handed_over(&registry, &podman, &buildah, "by-podman").await;
            let built = format!("{}/by-buildah:1", registry.host());
            buildah.build(&built, &random_bytes(seed, 100_000)).await;
            handed_over(&registry, &buildah, &skopeo, "by-buildah").await;

            // What is pushed anew under a tag is what the tag gives.
            buildah.build(&built, &random_bytes(seed + 10, 100_000)).await;
            handed_over(&registry, &buildah, &Skopeo::new(&of("again"), ""), "by-buildah").await;
        }
    });
}

#[test]
fn dockerd_mounts_what_another_repository_has_and_pushes_all_tags() {
    isolated(async |directory| {
        let dockerd = Dockerd::start(&directory.join("dockerd"), "http://127.0.0.1:9").await;
        for (seed, registry) in (1..).zip(Hosting::both(&directory).await) {
            let (_, layout) = layout(&directory, seed);
            let first = format!("{}/first:1", registry.host());
            dockerd.load(&layout, &first).await;
            let digest = dockerd.push(&first).await;

            let second = format!("{}/second", registry.host());
            for tag in ["1", "2", "latest"] {
                run(dockerd.docker(["tag", &first, &format!("{second}:{tag}")])).await;
            }
            let said = run(dockerd.docker(["push", &format!("{second}:1")])).await;
            assert_eq!(said.matches("Mounted from first").count(), 3, "layers in\n{said}");
            assert_eq!(said.matches("Pushed").count(), 0, "{said}");
            let said = run(dockerd.docker(["push", "--all-tags", &second])).await;
            assert_eq!(said.matches(&digest).count(), 3, "{said}");

            let repository = registry.repository("second");
            let mut tags = repository.tags(None).await;
            // In whatever order the peer gives them.
            tags.sort();
            assert_eq!(tags, ["1", "2", "latest"]);
            for tag in ["1", "2", "latest"] {
                assert!(repository.whole(tag).await.unwrap().contains_key(&digest));
            }
        }
    });
}

/// The algorithm that only few pushers choose: nothing but the digests tells it from another.
#[test]
fn dockerd_pulls_by_sha512() {
    isolated(async |directory| {
        let registry = Hosting::forebay(&directory.join("forebay"), "").await;
        let repository = registry.repository("long");
        let digest = super::push_by_sha512(&repository, &Image::random(1, 1, 100_000)).await;
        assert!(repository.whole(&digest).await.unwrap().keys().all(|held| held.starts_with("sha512:")));
        let dockerd = Dockerd::start(&directory.join("dockerd"), "http://127.0.0.1:9").await;
        let image = format!("{}/long@{digest}", registry.host());
        dockerd.pull(&image).await;
        assert_eq!(dockerd.held(&image).await, [digest]);
    });
}
