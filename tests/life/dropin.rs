//! In the place of CNCF distribution: its configuration file as it is, its directory as it is.

use std::path::Path;
use std::process::Output;

use super::pull;
use super::support::clients::{Client, Skopeo, skopeo_push};
use super::support::faulty::Upstream;
use super::support::http;
use super::support::image::{Content, Image};
use super::support::mirror::forebay;
use super::support::process::{PATIENCE, Process, Wait, free_port};
use super::support::registry::{Auth, PASSWORD, Registry, RegistryOptions, USER};

/// A Forebay that was started with a registry's configuration, on another port.
struct Successor {
    process: Process,
    host: String,
}

impl Successor {
    async fn start(registry: &Path) -> Self {
        let host = format!("127.0.0.1:{}", free_port());
        let mut serve = forebay(["serve"]);
        serve.arg(registry.join("config.yml")).env("REGISTRY_HTTP_ADDR", &host);
        let mut process = Process::start("forebay", &mut serve, &registry.join("forebay.log"));
        let wait = Wait::for_("forebay's /debug/health");
        let health = format!("http://{host}/debug/health");
        while !http().get(&health).send().await.is_ok_and(|answer| answer.status() == 200) {
            process.assert_running();
            wait.a_little().await;
        }
        Self { process, host }
    }

    fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// Ends it; gives back what it said.
    fn stop(mut self) -> String {
        let ended = self.process.terminate(PATIENCE).expect("it ends by itself");
        let log = self.process.log();
        assert!(ended.success() && !log.contains("panicked at"), "{log}");
        log
    }
}

/// Pulls `library/x:1` with skopeo: every digest of the image is there.
async fn skopeo_pulls(directory: &Path, url: &str, image: &Image) {
    let skopeo = Skopeo::new(directory, url);
    skopeo.pull("x:1").await;
    let held = skopeo.held("x:1").await;
    let contents = [&image.index].into_iter().chain(&image.manifests).chain(&image.blobs);
    for content in contents {
        assert!(held.contains(&content.digest), "{} in {held:?}", content.digest);
    }
}

#[tokio::test]
async fn a_proxy_is_taken_over_and_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("registry");
    let mut upstream = Upstream::start().await;
    let (image, later) = (Image::random(1, 2, 100_000), Image::random(2, 1, 100_000));
    upstream.put_image("library/x", "1", &image);
    upstream.put_image("one", "1", &later);
    let options = RegistryOptions { proxy: Some(upstream.url()), ..Default::default() };
    let mut registry = Registry::start(&place, options).await;
    pull(&(registry.url() + "/v2/library/x"), "1", &image).await;
    // It stores behind its answers.
    let layers = registry.storage().join("docker/registry/v2/repositories/library/x/_layers");
    let is_linked = |blob: &Content| layers.join(blob.digest.replace(':', "/")).join("link").exists();
    let wait = Wait::for_("docker-registry to store the blobs");
    while !image.blobs.iter().all(is_linked) {
        wait.a_little().await;
    }
    registry.stop();

    let successor = Successor::start(&place).await;
    let before = upstream.requests_for("GET", "/blobs/").len();
    skopeo_pulls(&directory.path().join("first"), &successor.url(), &image).await;
    assert_eq!(upstream.requests_for("GET", "/blobs/").len(), before, "what is held is not fetched");
    // All names are the upstream's, also of one component; what is fetched is stored as it was.
    pull(&(successor.url() + "/v2/one"), "1", &later).await;
    let listed = http().get(successor.url() + "/v2/_catalog").send().await.unwrap().text().await.unwrap();
    assert_eq!(listed.trim_end(), r#"{"repositories":["library/x","one"]}"#);
    let log = successor.stop();
    assert!(log.contains("without effect here: http.secret"), "{log}");

    // The registry, again, finds all of it. It does not start without its upstream, which we do.
    let before = upstream.requests_for("GET", "/blobs/").len();
    registry.restart().await;
    for (name, image) in [("library/x", &image), ("one", &later)] {
        pull(&format!("{}/v2/{name}", registry.url()), "1", image).await;
    }
    assert_eq!(upstream.requests_for("GET", "/blobs/").len(), before, "what is held is not fetched");
    registry.stop();
    upstream.stop().await;
    let successor = Successor::start(&place).await;
    pull(&(successor.url() + "/v2/one"), "1", &later).await;
    successor.stop();
}

#[tokio::test]
async fn a_registry_is_taken_over_and_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("registry");
    let mut registry = Registry::start(&place, RegistryOptions::default()).await;
    let [first, second] = [1, 2].map(|seed| Image::random(seed, 1, 100_000));
    let layout = |name: &str, image: &Image| {
        let layout = directory.path().join(name);
        image.write_layout(&layout, "1");
        layout
    };
    let target = |host: &str, name: &str| format!("{host}/{name}:1");
    let pushed = layout("first-layout", &first);
    for name in ["library/x", "one", "corp.internal/a/b"] {
        skopeo_push(&pushed, "1", &target(&registry.host(), name), None).await;
    }
    registry.stop();

    // Every name is hosted, whatever it looks like; push is as open as it was.
    let successor = Successor::start(&place).await;
    skopeo_pulls(&directory.path().join("copy"), &successor.url(), &first).await;
    for name in ["one", "corp.internal/a/b"] {
        pull(&format!("{}/v2/{name}", successor.url()), "1", &first).await;
    }
    let pushed = layout("second-layout", &second);
    skopeo_push(&pushed, "1", &target(&successor.host, "library/new"), None).await;
    let gone = format!("{}/v2/one/manifests/{}", successor.url(), first.digest());
    assert_eq!(http().delete(&gone).send().await.unwrap().status(), 202);
    let log = successor.stop();
    assert!(log.contains("NOBODY HAS TO LOG IN"), "{log}");

    registry.restart().await;
    for (name, image) in [("library/x", &first), ("corp.internal/a/b", &first), ("library/new", &second)] {
        pull(&format!("{}/v2/{name}", registry.url()), "1", image).await;
    }
    let gone = format!("{}/v2/one/manifests/1", registry.url());
    assert_eq!(http().get(&gone).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_registrys_logins_hold() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("registry");
    let mut registry =
        Registry::start(&place, RegistryOptions { auth: Auth::Htpasswd, ..Default::default() }).await;
    let image = Image::random(1, 1, 100_000);
    image.push(&registry, "library/x", "1").await;
    registry.stop();
    let successor = Successor::start(&place).await;
    let manifest = format!("{}/v2/library/x/manifests/1", successor.url());
    for path in ["/v2/", "/v2/library/x/manifests/1"] {
        let answer = http().get(successor.url() + path).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{path}");
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains("realm=\"rig\""), "{challenge}");
    }
    let wrong = http().get(&manifest).basic_auth(USER, Some("wrong")).send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    let right = http().get(&manifest).basic_auth(USER, Some(PASSWORD)).send().await.unwrap();
    assert_eq!(right.status(), 200);
    let layout = directory.path().join("layout");
    image.write_layout(&layout, "1");
    let credentials = format!("{USER}:{PASSWORD}");
    skopeo_push(&layout, "1", &format!("{}/team/new:1", successor.host), Some(&credentials)).await;
    successor.stop();
}

async fn check(arguments: [&str; 2], file: &Path, variables: &[(&str, &str)]) -> Output {
    let mut check = forebay(arguments);
    check.arg(file).envs(variables.iter().copied());
    let output = tokio::process::Command::from(check).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap()
}

/// What is printed for a registry's file is a file of ours that says the same.
#[tokio::test]
async fn a_proxys_configuration_is_told_as_one_of_ours() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, ours) = (directory.path().join("config.yml"), directory.path().join("forebay.toml"));
    let file = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv}}\nhttp: {addr: ':5000', prefix: /}\n\
                proxy: {remoteurl: 'https://ghcr.io'}\nhealth: {tcp: []}\n";
    std::fs::write(&theirs, file).unwrap();
    let output =
        check(["check-config", "--registry-config"], &theirs, &[("REGISTRY_LOG_LEVEL", "warn")]).await;
    let (told, warned) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{warned}");
    for line in [
        format!("default_upstream = \"ghcr.io\" # {}:4 (proxy.remoteurl)", theirs.display()),
        "level = \"warn\" # REGISTRY_LOG_LEVEL (log.level)".to_owned(),
        format!("repositories = [] # {}:4 (proxy.remoteurl)", theirs.display()),
    ] {
        assert!(told.lines().any(|other| other == line), "{line} in\n{told}");
    }
    assert!(warned.contains("(health.tcp): ignored"), "{warned}");

    std::fs::write(&ours, &told).unwrap();
    let output = check(["check-config", "--config"], &ours, &[("REGISTRY_LOG_LEVEL", "error")]).await;
    let (again, warned) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" # ").next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(values(&again), values(&told));
    assert!(
        warned.contains("ignored without --registry-config: the environment variables REGISTRY_LOG_LEVEL")
    );
}
