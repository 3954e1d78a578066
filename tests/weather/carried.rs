//! A site that nothing reaches but what is carried there: clients pull what was imported, and read what
//! was exported.

use super::support::clients::{Client, Containerd, Dockerd, Podman};
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::namespace::isolated;
use super::support::process::{attempt, command, free_port, run};
use super::support::registry::{Registry, RegistryOptions};

#[test]
fn what_was_carried_there_is_pulled_and_runs() {
    isolated(async |directory| {
        let at = |name: &str| directory.join(name);
        let mut upstream = Registry::start(&at("upstream"), RegistryOptions::default()).await;
        let image = Image::random(1, 2, 100_000);
        image.push(&upstream, "library/app", "1").await;
        let here = Mirror::start(&at("here"), &upstream.url()).await;
        let mut export = forebay(["export", "app:1", "--data", here.data().to_str().unwrap(), "-o"]);
        export.arg(at("disk"));
        run(export).await;
        drop(here);
        upstream.stop();

        let nobody = format!("http://127.0.0.1:{}", free_port());
        // A site may say that it has no way out, or find out.
        for (name, offline) in [("offline", true), ("cut-off", false)] {
            let arguments = if offline { vec!["--offline".to_owned()] } else { vec![] };
            let options = MirrorOptions { upstream: nobody.clone(), arguments, ..Default::default() };
            let there = Mirror::with(&at(name), options).await;
            let mut import = forebay(["import", "--data", there.data().to_str().unwrap()]);
            import.arg(at("disk"));
            run(import).await;
            let podman = Podman::start(&at(&format!("{name}-podman")), &there.url()).await;
            podman.pull("app:1").await;
            assert_eq!(podman.output_of("app:1").await.trim(), "hello from the rig");
            let dockerd = Dockerd::start(&at(&format!("{name}-docker")), &there.url()).await;
            dockerd.pull("app:1").await;
            assert_ne!(dockerd.held("app:1").await, Vec::<String>::new());
        }

        // Without a Forebay: clients take the directory itself, or an archive of it.
        let podman = Podman::start(&at("podman"), &nobody).await;
        let name = format!("oci:{}:docker.io/library/app:1", at("disk").display());
        // It makes a name of the path, which is to be in lower case.
        let mut pull = podman.podman(["pull", "--quiet", "oci:disk:docker.io/library/app:1"]);
        pull.current_dir(&directory);
        run(pull).await;
        let mut tar = command("tar", ["-cf".as_ref(), at("disk.tar").as_os_str()]);
        tar.arg("-C").arg(at("disk")).arg(".");
        run(tar).await;
        let containerd = Containerd::start(&at("containerd"), &nobody).await;
        let mut import = containerd.ctr(["images", "import"]);
        import.arg(at("disk.tar"));
        run(import).await;
        assert_eq!(containerd.held("app:1").await, [image.digest()]);
        // What is left out is missing to who wants all of it, as README.md says.
        let mut all = command("skopeo", ["--insecure-policy", "copy", "--all", &name]);
        all.arg(format!("dir:{}", at("all").display()));
        assert!(attempt(all).await.is_err());
        let mut one = command("skopeo", ["--insecure-policy", "--override-arch", "amd64", "copy", &name]);
        one.arg(format!("dir:{}", at("one").display()));
        run(one).await;
    });
}
