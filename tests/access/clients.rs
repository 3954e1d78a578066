//! A real client with tokens that others have signed: a job's ID token, and a token server's.

use super::support::clients::Skopeo;
use super::support::mirror::forebay;
use super::support::process::{Process, Wait, attempt, free_port};
use super::support::pushers::Pusher;
use super::support::registry::{Auth, Registry, RegistryOptions};
use super::support::token::{ISSUER, SERVICE, TokenServer};
use super::*;

#[tokio::test]
async fn a_job_logs_in_with_its_id_token_and_pushes() {
    let gitlab = Issuer::new("one");
    let directory = tempfile::tempdir().unwrap();
    let jwks = directory.path().join("jwks");
    std::fs::write(&jwks, gitlab.jwks()).unwrap();
    let layout = directory.path().join("layout");
    Image::random(1, 1, 1000).write_layout(&layout, "1");
    for tokens in ["", "[auth.tokens]\n"] {
        let config = format!(
            "login_hosts = [\"*\"]\n{tokens}[auth.issuer.gitlab]\nissuer = \"https://gitlab.corp\"\njwks_file = {jwks:?}\n\
             audience = [\"registry.corp\"]\nusername_claim = \"project_path\"\n[[access.rule]]\n\
             who = [\"gitlab:corp/*\"]\nrepositories = [\"app\"]\nactions = [\"pull\", \"push\"]\n"
        );
        let rig = Rig::start(&[], &config).await;
        let host = rig.mirror.host();
        let skopeo = Skopeo::new(&directory.path().join(format!("client{}", tokens.len())), "");
        let (allowed, denied) = (format!("{host}/app:1"), format!("{host}/other:1"));
        for image in [&allowed, &denied] {
            skopeo.load(&layout, image).await;
        }
        let login = async |password: &str| {
            let login = ["login", "--tls-verify=false", "--username", "ci", "--password", password, &host];
            attempt(skopeo.skopeo(login)).await
        };
        assert!(login(&Issuer::new("one").token("corp/app")).await.is_err(), "signed by somebody else");
        assert!(attempt(skopeo.pushing(&allowed)).await.is_err());
        login(&gitlab.token("corp/app")).await.unwrap();
        attempt(skopeo.pushing(&allowed)).await.unwrap();
        let refused = attempt(skopeo.pushing(&denied)).await.unwrap_err();
        assert!(refused.to_lowercase().contains("forbidden") || refused.contains("denied"), "{refused}");
    }
}

/// The token server that `docker-registry` is tested with, named as `auth.token` of its configuration.
#[tokio::test]
async fn another_token_server_decides_as_it_does_for_distribution() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    Image::random(1, 1, 1000).write_layout(&layout, "1");
    let tokens = TokenServer::start().await;
    tokens.allow("rig", "secret", "team/*", "pull,push");
    tokens.allow("rig", "secret", "closed/*", "pull");
    tokens.allow_anonymous("open/*", "pull,push");
    let bundle = directory.path().join("tokens.pem");
    std::fs::write(&bundle, &tokens.certificate_pem).unwrap();
    let peer = RegistryOptions { auth: Auth::Token(tokens.clone()), ..Default::default() };
    let peer = Registry::start(&directory.path().join("distribution"), peer).await;
    let file = directory.path().join("config.yml");
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nauth:\n  token: {{realm: '{}', service: \
         {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}\n",
        directory.path().join("data").display(),
        tokens.realm(),
        bundle.display()
    );
    std::fs::write(&file, config).unwrap();
    let port = free_port();
    let mut serve = forebay(["serve", "--listen", &format!("127.0.0.1:{port}"), "--registry-config"]);
    let mut process = Process::start("forebay", serve.arg(&file), &directory.path().join("log"));
    let ours = format!("127.0.0.1:{port}");
    let wait = Wait::for_("forebay");
    while http().get(format!("http://{ours}/healthz")).send().await.is_err() {
        process.assert_running();
        wait.a_little().await;
    }
    for host in [peer.host(), ours] {
        let skopeo = Skopeo::new(&directory.path().join(host.replace(':', "-")), "");
        let pushes = async |name: &str| {
            let image = format!("{host}/{name}:1");
            skopeo.load(&layout, &image).await;
            attempt(skopeo.pushing(&image)).await.is_ok()
        };
        assert!(pushes("open/app").await, "{host}");
        assert!(!pushes("team/app").await, "{host}: nobody has logged in");
        let login = async |password: &str| {
            attempt(skopeo.skopeo(["login", "--tls-verify=false", "-u", "rig", "-p", password, &host])).await
        };
        assert!(login("wrong").await.is_err(), "{host}");
        login("secret").await.unwrap();
        assert!(pushes("team/app").await, "{host}");
        assert!(!pushes("closed/app").await, "{host}");
        assert!(!pushes("elsewhere/app").await, "{host}");
    }
}
