//! Images of several architectures, by every client that can push them.

use super::support::clients::{Client, Containerd, Podman, Skopeo};
use super::support::hosting::Hosting;
use super::support::image::{Image, random_bytes};
use super::support::namespace::isolated;
use super::support::process::run;
use super::support::pushers::{Buildah, Pusher};

#[test]
fn containerd_and_skopeo_push_every_architecture() {
    isolated(async |directory| {
        let containerd = Containerd::start(&directory.join("containerd"), "http://127.0.0.1:9").await;
        let skopeo = Skopeo::new(&directory.join("skopeo"), "");
        for (seed, registry) in (1..).zip(Hosting::both(&directory).await) {
            let image = Image::random(seed, 1, 100_000);
            let layout = directory.join(format!("layout-{seed}"));
            image.write_layout(&layout, "1");
            let of = |name: &str| format!("{}/{name}:1", registry.host());
            containerd.load(&layout, &of("by-containerd")).await;
            skopeo.load(&layout, &of("by-skopeo")).await;
            assert_eq!(containerd.push(&of("by-containerd")).await, image.digest());
            assert_eq!(skopeo.push(&of("by-skopeo")).await, image.digest());
            for name in ["by-containerd", "by-skopeo"] {
                let whole = registry.repository(name).whole("1").await.unwrap();
                for content in image.blobs.iter().chain(&image.manifests).chain([&image.index]) {
                    assert_eq!(
                        whole.get(&content.digest),
                        Some(&content.bytes),
                        "{name}: {}",
                        content.digest
                    );
                }
            }
        }
    });
}

#[test]
fn podman_and_buildah_push_lists_with_all_that_is_in_them() {
    isolated(async |directory| {
        for (seed, registry) in (1..).zip(Hosting::both(&directory).await) {
            let of = |name: &str| format!("{}/{name}:1", registry.host());
            let buildah = Buildah::new(&directory.join(format!("buildah-{seed}")));
            for (part, name) in ["one", "two"].into_iter().enumerate() {
                buildah.build(&of(name), &random_bytes(10 * seed + part as u64, 50_000)).await;
            }
            let digest = buildah.push_list(&of("by-buildah"), &[&of("one"), &of("two")]).await;
            let whole = registry.repository("by-buildah").whole("1").await.unwrap();
            assert!(whole.contains_key(&digest));
            assert_eq!(whole.len(), 1 + 2 * 3, "index, and manifest, configuration, layer of each");

            // podman makes one of what is in the registry and in none of its own stores.
            for name in ["one", "two"] {
                buildah.push(&of(name)).await;
            }
            let podman = Podman::start(&directory.join(format!("podman-{seed}")), "http://127.0.0.1:9").await;
            run(podman.podman(["manifest", "create", "list"])).await;
            for name in ["one", "two"] {
                let member = format!("docker://{}", of(name));
                run(podman.podman(["manifest", "add", "--tls-verify=false", "list", &member])).await;
            }
            let target = format!("docker://{}", of("by-podman"));
            run(podman.podman(["manifest", "push", "--all", "--tls-verify=false", "list", &target])).await;
            let whole = registry.repository("by-podman").whole("1").await.unwrap();
            assert_eq!(whole.len(), 1 + 2 * 3);
            let skopeo = Skopeo::new(&directory.join(format!("skopeo-{seed}")), "");
            skopeo.pull(&of("by-podman")).await;
            let mut held = skopeo.held(&of("by-podman")).await;
            held.sort();
            assert_eq!(held, whole.into_keys().collect::<Vec<_>>());
        }
    });
}
