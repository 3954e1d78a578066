//! `forebay client-config`: real clients pull by exactly what it printed, in a network from which nothing
//! else can be reached, for two upstreams.

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use support::clients::{Client, Containerd, Dockerd, Podman, skopeo_push};
use support::image::Image;
use support::mirror::{Mirror, MirrorOptions, forebay};
use support::namespace::isolated;
use support::process::{command, run};
use support::registry::{Auth, Registry, RegistryOptions};
use support::token::TokenServer;

/// No address of this machine: clients trust those without being told.
const ADDRESS: &str = "192.0.2.1:5000";
const NAME: &str = "forebay.corp:5000";

/// Docker Hub and GitHub, each with an image, and a Forebay in front of them, under a name.
struct Rig {
    hub: Image,
    github: Image,
    registries: [Registry; 2],
    _mirror: Mirror,
    /// What both `serve` and `client-config` are told.
    arguments: Vec<String>,
    url: String,
    ca: Option<PathBuf>,
}

impl Rig {
    async fn start(directory: &Path, tls: bool) -> Self {
        surroundings(directory).await;
        let tokens = TokenServer::start().await;
        tokens.allow_anonymous("library/*", "pull");
        let with_tokens = RegistryOptions { auth: Auth::Token(tokens), ..Default::default() };
        let hub = Registry::start(&directory.join("hub"), with_tokens).await;
        let github = Registry::start(&directory.join("github"), RegistryOptions::default()).await;
        let images = [Image::random(1, 2, 1 << 20), Image::random(2, 2, 1 << 20)];
        for (image, registry, name) in [(&images[0], &hub, "library/rig"), (&images[1], &github, "org/app")] {
            let layout = directory.join("layout").join(name);
            image.write_layout(&layout, "1");
            let target = format!("{}/{name}:1", registry.host());
            skopeo_push(&layout, "1", &target, registry.push_credentials().as_deref()).await;
        }
        let files = tls.then(|| certificate(directory));
        let arguments = vec![
            "--listen".to_owned(),
            ADDRESS.into(),
            "--upstream".into(),
            format!("docker.io={}", hub.url()),
            "--upstream".into(),
            format!("ghcr.io={}", github.url()),
        ];
        let options = MirrorOptions {
            upstream: hub.url(),
            arguments: arguments.clone(),
            tls: files.clone(),
            ..Default::default()
        };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        let [hub_image, github_image] = images;
        Self {
            hub: hub_image,
            github: github_image,
            registries: [hub, github],
            _mirror: mirror,
            arguments,
            url: format!("{}://{NAME}", if tls { "https" } else { "http" }),
            ca: files.map(|(certificate, _)| certificate),
        }
    }

    /// Installs the files of a client.
    async fn install(&self, client: &str) {
        let mut installs = forebay(["client-config", client, "--url", &self.url, "--out", "/"]);
        installs.args(&self.arguments);
        if let Some(ca) = &self.ca {
            installs.arg("--ca").arg(ca);
        }
        run(installs).await;
    }

    async fn assert_held(&self, client: &impl Client, image: &str, expected: &Image) {
        let held = client.held(image).await;
        assert!(held.iter().any(|digest| digest == expected.digest()), "{image}: {held:?}");
    }

    async fn serves_dockerd(&self, directory: &Path) {
        self.install("docker").await;
        let dockerd = Dockerd::by_file(directory, Path::new("/etc/docker/daemon.json")).await;
        dockerd.pull("rig:1").await;
        self.assert_held(&dockerd, "rig:1", &self.hub).await;
        // It has no mirrors of others, and pulls those by this server's name.
        let image = format!("{NAME}/ghcr.io/org/app:1");
        dockerd.pull(&image).await;
        self.assert_held(&dockerd, &image, &self.github).await;
    }

    async fn serves_containerd(&self, directory: &Path) {
        self.install("containerd").await;
        let containerd = Containerd::start(directory, "http://127.0.0.1:1").await;
        for (image, expected) in [("rig:1", &self.hub), ("ghcr.io/org/app:1", &self.github)] {
            containerd.pull_by(Path::new("/etc/containerd/certs.d"), image).await;
            self.assert_held(&containerd, image, expected).await;
        }
    }

    async fn serves_podman(&self, directory: &Path) {
        self.install("podman").await;
        let podman = Podman::start(directory, "http://127.0.0.1:1").await;
        let images = ["docker.io/library/rig:1", "ghcr.io/org/app:1"];
        for (image, expected) in images.into_iter().zip([&self.hub, &self.github]) {
            let mut pull = podman.podman(["pull", "--quiet", image]);
            pull.env_remove("CONTAINERS_REGISTRIES_CONF");
            run(pull).await;
            self.assert_held(&podman, image, expected).await;
        }
    }

    async fn serves_all(&self, directory: &Path) {
        let at = |name: &str| directory.join(name);
        let (docker, containerd, podman) = (at("docker"), at("containerd"), at("podman"));
        tokio::join!(
            self.serves_dockerd(&docker),
            self.serves_containerd(&containerd),
            self.serves_podman(&podman)
        );
        // By all three clients, and everything was fetched once.
        for registry in &self.registries {
            let mut targets: Vec<String> =
                registry.content_requests().await.into_iter().map(|request| request.target).collect();
            let fetched = targets.len();
            targets.sort();
            targets.dedup();
            assert!(fetched > 0 && targets.len() == fetched, "{fetched} requests for {targets:?}");
        }
    }
}

/// An `/etc` that can be written to, a further address, and a name for it: all of this test alone.
async fn surroundings(directory: &Path) {
    let etc = directory.join("etc");
    run(command("cp", ["-a".as_ref(), "/etc".as_ref(), etc.as_os_str()])).await;
    for ours in ["docker/daemon.json", "docker/certs.d", "containerd/certs.d", "containers/registries.conf.d"]
    {
        let _ = std::fs::remove_file(etc.join(ours));
        let _ = std::fs::remove_dir_all(etc.join(ours));
    }
    std::fs::write(etc.join("hosts"), "127.0.0.1 localhost\n192.0.2.1 forebay.corp\n").unwrap();
    run(command("mount", ["--bind".as_ref(), etc.as_os_str(), "/etc".as_ref()])).await;
    run(command("ip", ["address", "add", "192.0.2.1/32", "dev", "lo"])).await;
}

fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["forebay.corp".to_owned()]).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

#[test]
fn dockerd_containerd_and_podman_pull_over_plain_http() {
    isolated(async |directory| {
        let rig = Rig::start(&directory, false).await;
        rig.serves_all(&directory).await;
    });
}

#[test]
fn dockerd_containerd_and_podman_pull_over_https_with_a_ca_of_its_own() {
    isolated(async |directory| {
        let rig = Rig::start(&directory, true).await;
        rig.serves_all(&directory).await;
    });
}

/// What the command says, in surroundings of its own.
fn told(arguments: &[&str]) -> Output {
    told_at_home("/home/me/.config", arguments)
}

fn told_at_home(xdg: &str, arguments: &[&str]) -> Output {
    let mut command = command(env!("CARGO_BIN_EXE_forebay"), ["client-config"]);
    command.args(arguments).env_clear().env("HOME", "/home/me").env("XDG_CONFIG_HOME", xdg).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_example_is_what_is_printed_for_the_default_configuration() {
    let output = told(&["docker"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), include_str!("../daemon.json.example"));
    let said = text(&output.stderr);
    for part in ["/etc/docker/daemon.json", "http://127.0.0.1:5000", "systemctl reload docker"] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
}

#[test]
fn who_asks_for_a_registry_that_is_not_configured_is_told_so() {
    let said = |upstream: &str| text(&told(&["podman", "--upstream", upstream]).stderr).to_owned();
    assert!(said("gchr.io").contains("does not name gchr.io: start the server with `--upstream gchr.io`"));
    assert!(!said("docker.io").contains("does not name"));
}

#[test]
fn where_this_server_is_follows_from_the_configuration() {
    let host = text(&std::fs::read("/proc/sys/kernel/hostname").unwrap()).trim().to_lowercase();
    for (listen, url) in [
        (&["127.0.0.1:7000"][..], "http://127.0.0.1:7000".to_owned()),
        (&["127.0.0.1:7000", "192.0.2.7:7001"], "http://192.0.2.7:7001".to_owned()),
        (&["[2001:db8::7]:7000"], "http://[2001:db8::7]:7000".to_owned()),
        (&["0.0.0.0:7000"], format!("http://{host}:7000")),
    ] {
        let listen: Vec<&str> = listen.iter().flat_map(|address| ["--listen", *address]).collect();
        let output = told(&[&["k3s"], &listen[..]].concat());
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        assert!(printed.contains(&format!("\"{url}\"")) && said.contains(&url), "{url} in\n{printed}{said}");
        assert!(said.contains("give --url"), "{said}");
    }
    let unknown = told(&["k3s", "--listen", "127.0.0.1:0"]);
    assert_eq!((unknown.status.code(), text(&unknown.stdout)), (Some(2), ""));
    assert!(text(&unknown.stderr).contains("which port") && text(&unknown.stderr).contains("--url"));
}

#[test]
fn listeners_of_their_own_count_where_they_serve_all_that_is_mirrored() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(directory.path());
    let tls = format!("[tls]\ncertificate_file = {certificate:?}\nkey_file = {key:?}\n");
    let said = |listeners: &str, tls: &str| {
        let file = directory.path().join("forebay.toml");
        let listen = "listen = []\n[upstream.\"ghcr.io\"]\n";
        std::fs::write(&file, format!("{listen}{listeners}{tls}")).unwrap();
        let output = told(&["k3s", "--config", file.to_str().unwrap()]);
        (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let at = |address: &str, more: &str| format!("[[listener]]\naddress = \"{address}\"\n{more}\n");
    let hosted = at("192.0.2.7:5001", "serve = \"hosted\"");
    let of_one = at("192.0.2.7:5002", "upstream = \"ghcr.io\"");
    for (listener, tls, url) in [
        (at("192.0.2.8:5003", ""), "", "http://192.0.2.8:5003"),
        (at("192.0.2.8:5003", "serve = \"mirror\""), &*tls, "https://192.0.2.8:5003"),
        (at("192.0.2.8:5003", "tls = false"), &tls, "http://192.0.2.8:5003"),
        (at("127.0.0.1:5003", ""), "", "http://127.0.0.1:5003"),
    ] {
        let (succeeds, said) = said(&format!("{hosted}{of_one}{listener}"), tls);
        assert!(succeeds && said.contains(&format!("\"{url}\"")), "{url} in\n{said}");
    }
    let (succeeds, said) = said(&format!("{hosted}{of_one}{}", at("unix:/run/forebay.sock", "")), "");
    assert!(!succeeds && said.contains("no listener that serves all") && said.contains("--url"), "{said}");
}

#[test]
fn an_upstream_that_is_asked_over_plain_http_by_its_own_name_is_so_for_clients_too() {
    let says = |upstream: &str| {
        let output = told(&["containerd", "--upstream", upstream]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    assert!(says("registry.corp:5001=http://registry.corp:5001").contains("\"http://registry.corp:5001\""));
    assert!(says("registry.corp=http://registry.corp/base").contains("\"http://registry.corp\""));
    // That another registry is asked in its place says nothing of it.
    assert!(says("registry.corp=http://127.0.0.1:5001").contains("\"https://registry.corp\""));
    assert!(says("registry.corp").contains("\"https://registry.corp\""));
}

#[test]
fn a_users_files_are_where_the_client_looks() {
    for (client, path) in [
        ("podman", "/home/me/.config/containers/registries.conf.d/50-forebay.conf"),
        ("crio", "/home/me/.config/containers/registries.conf.d/50-forebay.conf"),
        ("docker", "/elsewhere/docker/daemon.json"),
        ("buildkit", "/elsewhere/buildkit/buildkitd.toml"),
    ] {
        let output = told_at_home("/elsewhere", &[client, "--rootless"]);
        assert!(text(&output.stderr).contains(&format!("belongs into {path}")), "{client}");
    }
}

#[test]
fn upstreams_are_those_of_the_configuration_or_those_that_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("forebay.toml");
    std::fs::write(&file, "[upstream.\"ghcr.io\"]\n[upstream.\"quay.io\"]\n").unwrap();
    let config = ["--config", file.to_str().unwrap(), "--url", "http://forebay:5000"];
    let all = told(&[&["kaniko"], &config[..]].concat());
    for part in ["--registry-mirror=forebay:5000", "=forebay:5000/ghcr.io", "=forebay:5000/quay.io"] {
        assert!(text(&all.stdout).contains(part), "{}", text(&all.stdout));
    }
    let named = told(&[&["kaniko", "--upstream", "quay.io"], &config[..]].concat());
    let expected = "--registry-map=quay.io=forebay:5000/quay.io\n--insecure-registry=forebay:5000\n";
    assert_eq!(text(&named.stdout), expected);
    assert!(text(&named.stderr).contains("left out, for --upstream does not name it: docker.io, ghcr.io"));
}

#[test]
fn what_is_there_already_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().to_str().unwrap();
    let install = |arguments: &[&str]| told(&[&["docker", "--out", out], arguments].concat());
    let path = directory.path().join("etc/docker/daemon.json");
    let first = install(&[]);
    assert!(first.status.success() && first.stdout.is_empty());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), include_str!("../daemon.json.example"));
    assert!(text(&install(&[]).stderr).contains("is so already"));
    let other = install(&["--url", "http://forebay:5000"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("is there already and says something else"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), include_str!("../daemon.json.example"));

    let rootless = told(&["docker", "--rootless", "--out", out]);
    assert!(rootless.status.success(), "{}", text(&rootless.stderr));
    assert!(directory.path().join("home/me/.config/docker/daemon.json").exists());
}
