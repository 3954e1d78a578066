//! A job's ID token as the password of a real client.

use super::support::clients::Skopeo;
use super::support::process::attempt;
use super::support::pushers::Pusher;
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
