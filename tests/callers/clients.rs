//! Real clients, each with the login that it has.

use super::support::clients::{Client, Containerd, Dockerd, Podman, Skopeo};
use super::support::namespace::isolated;
use super::support::process::attempt;
use super::*;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

async fn rig() -> Rig {
    let rig = Rig::start("\"per-caller\"").await;
    rig.image.push(&rig.upstream, "library/app", "1").await;
    rig
}

#[test]
fn skopeo_and_podman_pull_what_their_login_opens() {
    isolated(async |directory| {
        let rig = rig().await;
        let skopeo = Skopeo::new(&directory.join("skopeo"), &rig.mirror.url());
        let host = rig.mirror.host();
        let copy = async |login: Option<(&str, &str)>, repository: &str| {
            let target = format!("dir:{}", directory.join(repository.replace('/', "-")).display());
            let mut copy = skopeo.skopeo(["copy", "--all", "--src-tls-verify=false"]);
            login.iter().for_each(|(user, password)| {
                copy.arg("--src-creds").arg(format!("{user}:{password}"));
            });
            copy.arg(format!("docker://{host}/{repository}:1")).arg(target);
            attempt(copy).await
        };
        copy(None, PUBLIC).await.unwrap();
        copy(Some(ALICE), ALICES).await.unwrap();
        copy(Some(BOB), BOBS).await.unwrap();
        for (login, repository) in [(None, ALICES), (Some(BOB), ALICES), (Some((ALICE.0, "wrong")), ALICES)] {
            assert!(copy(login, repository).await.is_err(), "{login:?} {repository}");
        }
        // Whoever is logged in pulls what is public, too.
        copy(Some(ALICE), PUBLIC).await.unwrap();

        let podman = Podman::start(&directory.join("podman"), &rig.mirror.url()).await;
        let pull = async |login: (&str, &str), image: &str| {
            let mut pull = podman.podman(["pull", "--quiet", "--tls-verify=false", "--creds"]);
            pull.arg(format!("{}:{}", login.0, login.1)).arg(image);
            attempt(pull).await
        };
        let image = format!("{host}/{ALICES}:1");
        assert!(pull(BOB, &image).await.is_err());
        pull(ALICE, &image).await.unwrap();
        assert!(podman.held(&image).await.contains(&rig.image.digest().to_owned()));
    });
}

/// dockerd sends its login for Docker Hub to a mirror that asks for one.
#[test]
fn dockerd_pulls_with_its_login_for_docker_hub() {
    isolated(async |directory| {
        let rig = rig().await;
        let dockerd = Dockerd::start(&directory.join("dockerd"), &rig.mirror.url()).await;
        let log_in = |(user, password): (&str, &str)| {
            let auth = STANDARD.encode(format!("{user}:{password}"));
            let config = format!("{{\"auths\":{{\"https://index.docker.io/v1/\":{{\"auth\":\"{auth}\"}}}}}}");
            std::fs::create_dir_all(dockerd.logins().parent().unwrap()).unwrap();
            std::fs::write(dockerd.logins(), config).unwrap();
        };
        let pull = async |image: &str| attempt(dockerd.docker(["pull", "--quiet", image])).await;
        // Without a login, what is public; there is no Docker Hub to fall back on.
        pull("app:1").await.unwrap();
        let image = format!("{ALICES}:1");
        assert!(pull(&image).await.is_err());
        log_in(BOB);
        assert!(pull(&image).await.is_err());
        log_in(ALICE);
        pull(&image).await.unwrap();
        assert!(dockerd.held(&image).await.contains(&rig.image.digest().to_owned()));
        dockerd.remove("app:1").await;
        pull("app:1").await.unwrap();
    });
}

#[test]
fn containerd_answers_the_challenge_of_each_repository() {
    isolated(async |directory| {
        let rig = rig().await;
        let containerd = Containerd::start(&directory.join("containerd"), &rig.mirror.url()).await;
        let host = rig.mirror.host();
        let pull = async |login: Option<(&str, &str)>, image: &str| {
            let user = login.map_or_else(String::new, |(user, password)| format!("{user}:{password}"));
            let mut pull = containerd.ctr(["images", "pull", "--all-platforms", "--snapshotter", "native"]);
            pull.args(["--plain-http", "--user", &user, image]);
            attempt(pull).await
        };
        pull(None, &format!("{host}/{PUBLIC}:1")).await.unwrap();
        let image = format!("{host}/{ALICES}:1");
        for login in [None, Some(BOB), Some((ALICE.0, "wrong"))] {
            assert!(pull(login, &image).await.is_err(), "{login:?}");
        }
        pull(Some(ALICE), &image).await.unwrap();
        assert!(containerd.held(&image).await.contains(&rig.image.digest().to_owned()));
    });
}
