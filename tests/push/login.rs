//! `login` of the clients, what it opens, and what nobody logs in to: the mirror.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::support::clients::{Client, Dockerd, Podman, Skopeo};
use super::support::faulty::Upstream;
use super::support::hop::Hop;
use super::support::hosting::hosting;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::{PATIENCE, attempt, run};
use super::support::pushers::Pusher;
use super::support::registry::{Auth, HTPASSWD, PASSWORD, Registry, RegistryOptions, USER};
use super::support::repository::Repository;
use super::support::token::TokenServer;

/// Forebay with `USER`, whom `config` says more about.
async fn protected(directory: &Path, config: &str) -> Mirror {
    std::fs::create_dir_all(directory).unwrap();
    let file = directory.join("htpasswd");
    std::fs::write(&file, HTPASSWD).unwrap();
    hosting(directory, &format!("[auth]\nhtpasswd_file = \"{}\"\n{config}", file.display())).await
}

/// Whether `login` of this client is taken, and whether it can push `image` then and get it back.
async fn logs_in<C: Pusher>(client: &C, image: &str, login: impl AsyncFn(&str) -> Result<String, String>) {
    let pushes = async || attempt(client.pushing(image)).await;
    let refused = pushes().await.unwrap_err();
    assert!(is_denial(&refused), "without a login: {refused}");
    let refused = login("wrong").await.unwrap_err();
    assert!(is_denial(&refused), "with a wrong password: {refused}");
    assert!(pushes().await.is_err(), "after a refused login");
    login(PASSWORD).await.unwrap();
    pushes().await.unwrap();
    client.remove(image).await;
    client.pull(image).await;
    assert!(!client.held(image).await.is_empty());
}

fn is_denial(said: &str) -> bool {
    let said = said.to_lowercase();
    let words =
        ["unauthorized", "authentication required", "no basic auth", "invalid username/password", "denied"];
    words.iter().any(|word| said.contains(word))
}

/// As podman and skopeo understand it.
fn login<'a>(host: &'a str, password: &'a str) -> [&'a str; 7] {
    ["login", "--tls-verify=false", "--username", USER, "--password", password, host]
}

/// All of it, by each client that can log in.
async fn clients_log_in(directory: &Path, dockerd: &Dockerd, host: &str) {
    let layout = directory.join("layout");
    Image::random(1, 1, 100_000).write_layout(&layout, "1");
    let of = |name: &str| format!("{host}/{name}:1");
    dockerd.load(&layout, &of("by-dockerd")).await;
    logs_in(dockerd, &of("by-dockerd"), async |password| {
        attempt(dockerd.docker(["login", "--username", USER, "--password", password, host])).await
    })
    .await;

    // What one repository has is mounted into another by the same login.
    let mounted = of("mounted");
    run(dockerd.docker(["tag", &of("by-dockerd"), &mounted])).await;
    let said = run(dockerd.pushing(&mounted)).await;
    assert!(said.contains("Mounted from by-dockerd"), "{said}");

    let podman = Podman::start(&directory.join("podman"), "http://127.0.0.1:9").await;
    podman.load(&layout, &of("by-podman")).await;
    let log_in = async |password: &str| attempt(podman.podman(login(host, password))).await;
    logs_in(&podman, &of("by-podman"), log_in).await;

    let skopeo = Skopeo::new(&directory.join("skopeo"), "");
    skopeo.load(&layout, &of("by-skopeo")).await;
    let log_in = async |password: &str| attempt(skopeo.skopeo(login(host, password))).await;
    logs_in(&skopeo, &of("by-skopeo"), log_in).await;
}

#[test]
fn logins_open_pushes_and_wrong_passwords_do_not() {
    isolated(async |directory| {
        let dockerd = Dockerd::start(&directory.join("dockerd"), "http://127.0.0.1:9").await;
        let options = RegistryOptions { auth: Auth::Htpasswd, ..Default::default() };
        let peer = Registry::start(&directory.join("distribution"), options).await;
        clients_log_in(&directory.join("at-distribution"), &dockerd, &peer.host()).await;
        let mirror = protected(&directory.join("forebay"), "login_hosts = [\"*\"]\n").await;
        clients_log_in(&directory.join("at-forebay"), &dockerd, &mirror.host()).await;
        // The same by bearer tokens: docker then keeps a refresh token, and no password.
        let config = "login_hosts = [\"*\"]\n[auth.tokens]\n";
        let mirror = protected(&directory.join("tokens"), config).await;
        clients_log_in(&directory.join("at-tokens"), &dockerd, &mirror.host()).await;
        let kept = std::fs::read_to_string(dockerd.logins()).unwrap();
        assert!(kept.contains("identitytoken"), "{kept}");
    });
}

/// The same by bearer tokens, for which clients ask of themselves.
#[test]
fn logins_open_pushes_by_tokens() {
    isolated(async |directory| {
        let dockerd = Dockerd::start(&directory.join("dockerd"), "http://127.0.0.1:9").await;
        let tokens = TokenServer::start().await;
        tokens.allow(USER, PASSWORD, "*", "pull,push");
        let options = RegistryOptions { auth: Auth::Token(tokens), ..Default::default() };
        let peer = Registry::start(&directory.join("distribution"), options).await;
        clients_log_in(&directory.join("at-distribution"), &dockerd, &peer.host()).await;
        let config = "login_hosts = [\"*\"]\n[auth.tokens]\nlifetime = \"60s\"\n";
        let mirror = protected(&directory.join("forebay"), config).await;
        clients_log_in(&directory.join("at-forebay"), &dockerd, &mirror.host()).await;
        let challenge = Repository::new(&mirror.url(), "by-dockerd").get("manifests/1").await.expect(401);
        assert!(challenge.header("www-authenticate").unwrap().starts_with("Bearer "));
    });
}

#[tokio::test]
async fn anonymous_pulls_are_as_configured() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::random(1, 1, 1000);
    for (config, status) in [("anonymous_pull = true\n", 200), ("anonymous_pull = false\n", 401)] {
        let mirror = protected(&directory.path().join(status.to_string()), config).await;
        let anybody = Repository::new(&mirror.url(), "app");
        let user = anybody.clone().by(USER, PASSWORD);
        user.push(&image, "1").await;
        assert_eq!(user.whole("1").await.unwrap().len(), image.blobs.len() + 3);
        let paths = [
            "manifests/1".to_owned(),
            format!("manifests/{}", image.digest()),
            format!("blobs/{}", image.blobs[0].digest),
            "tags/list".to_owned(),
        ];
        for path in paths {
            let answer = anybody.get(&path).await.expect(status);
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{path}");
        }
        anybody.send(reqwest::Method::POST, "blobs/uploads/").await.expect(401);
        anybody.delete("manifests/1").await.expect(401);
        user.delete("manifests/1").await.expect(202);
    }
}

/// The account at Docker Hub that a machine has besides.
const HUB: (&str, &str) = ("hub-user", "hub-password");

/// Lets docker hold a login for Docker Hub, which it would give to any mirror that asks for one.
fn log_in_to_the_hub(dockerd: &Dockerd) {
    let auth = STANDARD.encode(format!("{}:{}", HUB.0, HUB.1));
    let config = format!("{{\"auths\":{{\"https://index.docker.io/v1/\":{{\"auth\":\"{auth}\"}}}}}}");
    let file = dockerd.logins();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, config).unwrap();
}

/// `Authorization` lines of what passed.
fn logins(hop: &Hop) -> usize {
    hop.asked().to_lowercase().matches("\nauthorization:").count()
}

#[test]
fn mirrored_pulls_are_not_challenged_where_pushes_need_a_login() {
    isolated(async |directory| {
        let upstream = Upstream::start().await;
        let image = Image::random(1, 1, 100_000);
        upstream.put_image("library/rig", "1", &image);
        let at = directory.join("forebay");
        let options = MirrorOptions { upstream: upstream.url(), ..Default::default() };
        let mut mirror = Mirror::with(&at, options).await;
        let hop = Hop::start(mirror.port).await;
        // The same port is a registry by this name, where one logs in, and a mirror by its address.
        let host = format!("localhost:{}", mirror.port);
        std::fs::write(at.join("htpasswd"), HTPASSWD).unwrap();
        let file = at.join("htpasswd").display().to_string();
        mirror.configure(&format!("[auth]\nhtpasswd_file = \"{file}\"\nlogin_hosts = [\"{host}\"]\n"));
        mirror.terminate(PATIENCE);
        mirror.restart().await;

        let dockerd =
            Dockerd::start(&directory.join("dockerd"), &format!("http://127.0.0.1:{}", hop.port())).await;
        log_in_to_the_hub(&dockerd);
        run(dockerd.docker(["login", "--username", USER, "--password", PASSWORD, &host])).await;
        dockerd.pull("rig:1").await;
        assert!(dockerd.held("rig:1").await.contains(&image.digest().to_owned()));
        assert!(hop.asked().contains("/v2/library/rig/manifests/1"), "it came another way");
        assert_eq!(logins(&hop), 0, "{}", hop.asked());
        assert!(!hop.answered().contains("HTTP/1.1 401"), "{}", hop.answered());

        // The same dockerd pushes what it pulled, by its other login.
        let pushed = format!("{host}/rig:1");
        run(dockerd.docker(["tag", "rig:1", &pushed])).await;
        dockerd.push(&pushed).await;
        let user = Repository::new(&mirror.url(), "rig").by(USER, PASSWORD);
        // The manifest, and one architecture's blobs.
        assert_eq!(user.whole("1").await.unwrap().len(), 1 + image.blobs.len() / 2);
    });
}

/// Why that matters, and that the hop would have seen it.
#[test]
fn a_mirror_that_challenges_is_given_the_hubs_password() {
    isolated(async |directory| {
        let options = RegistryOptions { auth: Auth::Htpasswd, ..Default::default() };
        let peer = Registry::start(&directory.join("distribution"), options).await;
        let hop = Hop::start(peer.port).await;
        let dockerd =
            Dockerd::start(&directory.join("dockerd"), &format!("http://127.0.0.1:{}", hop.port())).await;
        log_in_to_the_hub(&dockerd);
        assert!(attempt(dockerd.docker(["pull", "rig:1"])).await.is_err());
        assert!(logins(&hop) > 0);
        assert!(hop.answered().contains("HTTP/1.1 401"));
        assert!(hop.asked().contains(&STANDARD.encode(format!("{}:{}", HUB.0, HUB.1))));
    });
}
