//! A build in a docker of its own, as CI runs them, whose base comes through the mirror.

use std::path::Path;

use super::support::clients::{Client, Dockerd, skopeo_push};
use super::support::image::Image;
use super::support::mirror::Mirror;
use super::support::namespace::isolated;
use super::support::process::run;
use super::support::registry::{Registry, RegistryOptions};

const DOCKERFILE: &str = "\
FROM rig:1
COPY note /note
LABEL of=weather
";

fn context(directory: &Path) -> String {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("Dockerfile"), DOCKERFILE).unwrap();
    std::fs::write(directory.join("note"), "built behind a mirror").unwrap();
    directory.to_str().unwrap().to_owned()
}

#[test]
fn a_build_finds_its_base_while_upstream_is_there_and_when_it_is_gone() {
    isolated(async |directory| {
        let mut upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
        let layout = directory.join("layout");
        Image::random(1, 2, 1 << 20).write_layout(&layout, "1");
        skopeo_push(&layout, "1", &format!("{}/library/rig:1", upstream.host()), None).await;
        let mirror = Mirror::start(&directory.join("mirror"), &upstream.url()).await;
        let dockerd = Dockerd::start(&directory.join("dockerd"), &mirror.url()).await;
        let context = context(&directory.join("context"));
        for gone in [false, true] {
            if gone {
                upstream.stop();
            }
            let mut build = dockerd.docker(["build", "--no-cache", "--pull", "--tag", "built:1", &context]);
            run({
                build.env("DOCKER_BUILDKIT", "0");
                build
            })
            .await;
            let label =
                run(dockerd.docker(["image", "inspect", "--format", "{{.Config.Labels.of}}", "built:1"]))
                    .await;
            assert_eq!(label.trim(), "weather");
            dockerd.remove("built:1").await;
            dockerd.remove("rig:1").await;
        }
    });
}
