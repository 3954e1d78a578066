//! Where logins come from, and what becomes of pulls when they do not come: real helpers, a real registry.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::bench::SHORT;
use crate::support::http;
use crate::support::image::{CONFIG, Content, LAYER, MANIFEST};
use crate::support::mirror::{Mirror, MirrorOptions};
use crate::support::process::Wait;
use crate::support::registry::{Auth, PASSWORD, Registry, RegistryOptions, USER};

const REPOSITORY: &str = "team/app";
const REFUSED: &str = r#"forebay_upstream_credential_refused{upstream="docker.io"}"#;
const UNAVAILABLE: &str = r#"forebay_upstream_credential_unavailable{upstream="docker.io"}"#;

/// A registry that lets nobody in without a password, and what a mirror of it is told.
struct Rig {
    registry: Registry,
    image: [Content; 3],
    directory: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = RegistryOptions { auth: Auth::Htpasswd, ..Default::default() };
        let registry = Registry::start(&directory.path().join("registry"), options).await;
        let (config, layer) = (Content::new(CONFIG, "{}"), Content::new(LAYER, vec![7; 100_000]));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": config.descriptor(), "layers": [layer.descriptor()],
        });
        let manifest = Content::new(MANIFEST, manifest.to_string());
        for blob in [&config, &layer] {
            registry.push_blob(REPOSITORY, blob.bytes.clone()).await;
        }
        for tag in ["1", "2"] {
            registry.push_manifest(REPOSITORY, tag, MANIFEST, &manifest.bytes).await;
        }
        Self { registry, image: [manifest, config, layer], directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A mirror whose login is what `keys` say, and which finds helpers in the directory.
    async fn mirror(&self, keys: &str) -> Mirror {
        self.mirror_with(keys, vec![]).await
    }

    async fn mirror_with(&self, keys: &str, mut environment: Vec<(String, String)>) -> Mirror {
        let path = std::env::var("PATH").unwrap();
        environment.push(("PATH".into(), format!("{}:{path}", self.directory.path().display())));
        let config = Some(format!("{SHORT}private = \"shared\"\n{keys}\n"));
        let upstream = self.registry.url();
        let options = MirrorOptions { upstream, config, environment, ..Default::default() };
        Mirror::with(&self.path("mirror"), options).await
    }

    /// `docker-credential-rig`, which notes what it was asked for and does what `body` says.
    fn helper(&self, body: &str) {
        let asked = self.path("asked");
        let text = format!("#!/bin/sh\nread -r server; echo \"$1 $server\" >> {}\n{body}\n", asked.display());
        install(&self.path("docker-credential-rig"), &text);
    }

    /// What the helper was asked for, each time.
    fn asked(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn get(&self, mirror: &Mirror, path: &str) -> (u16, bytes::Bytes) {
        let answer = http().get(format!("{}/v2/{REPOSITORY}/{path}", mirror.url())).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    }

    async fn assert_pulls(&self, mirror: &Mirror) {
        let [manifest, config, layer] = &self.image;
        let paths =
            ["manifests/1".to_owned(), format!("blobs/{}", config.digest), format!("blobs/{}", layer.digest)];
        for (path, content) in paths.iter().zip([manifest, config, layer]) {
            let (status, body) = self.get(mirror, path).await;
            assert!(status == 200 && body == content.bytes, "{path}: {status} {body:?}\n{}", mirror.log());
        }
    }
}

/// Replaced in one step, as a package manager does, for the old one may be running.
fn install(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn gives(user: &str, secret: &str) -> String {
    format!("echo \"looking up $server\" >&2\necho '{{\"Username\":\"{user}\",\"Secret\":\"{secret}\"}}'")
}

#[tokio::test]
async fn a_helper_in_path_opens_the_registry() {
    let rig = Rig::start().await;
    rig.helper(&gives(USER, PASSWORD));
    let mirror = rig.mirror("credential_helper = \"rig\"").await;
    rig.assert_pulls(&mirror).await;
    // Each tag is asked for anew, and the helper is not.
    for _ in 0..5 {
        rig.assert_pulls(&mirror).await;
    }
    assert_eq!(rig.asked(), [format!("get {}", rig.registry.host())]);
    let log = mirror.log();
    assert!(!log.contains(PASSWORD) && !log.contains("looking up"), "{log}");
}

#[tokio::test]
async fn docker_s_configuration_opens_the_registry_by_itself_and_by_its_helper() {
    let rig = Rig::start().await;
    let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let host = rig.registry.host();
    let login = format!("{{\"auths\":{{\"http://{host}/v2/\":{{\"auth\":\"{auth}\"}}}}}}");
    let file = rig.path("config.json");
    let of_path = format!("docker_config = {file:?}");
    std::fs::write(&file, &login).unwrap();
    let mut mirror = rig.mirror(&of_path).await;
    rig.assert_pulls(&mirror).await;
    mirror.kill();

    rig.helper(&gives(USER, PASSWORD));
    std::fs::write(
        &file,
        format!("{{\"auths\":{{\"{host}\":{{}}}},\"credHelpers\":{{\"{host}\":\"rig\"}}}}"),
    )
    .unwrap();
    std::fs::remove_dir_all(rig.path("mirror")).unwrap();
    let mut mirror = rig.mirror(&of_path).await;
    rig.assert_pulls(&mirror).await;
    assert_eq!(rig.asked().len(), 1);
    mirror.kill();

    // As Docker itself finds it.
    for variable in
        [("DOCKER_AUTH_CONFIG", login.as_str()), ("DOCKER_CONFIG", rig.directory.path().to_str().unwrap())]
    {
        std::fs::remove_dir_all(rig.path("mirror")).unwrap();
        let environment = vec![(variable.0.to_owned(), variable.1.to_owned())];
        let mut mirror = rig.mirror_with("docker_config = \"env\"", environment).await;
        rig.assert_pulls(&mirror).await;
        assert!(!mirror.log().contains(&auth), "{}", mirror.log());
        mirror.kill();
    }
}

#[tokio::test]
async fn whatever_a_helper_does_what_is_held_is_served_and_nothing_is_told() {
    let rig = Rig::start().await;
    rig.helper(&gives(USER, PASSWORD));
    let mut mirror = rig.mirror("credential_helper = \"rig\"").await;
    rig.assert_pulls(&mirror).await;
    mirror.committed(2).await;
    mirror.linked(&format!("{REPOSITORY}/_manifests/tags/1/current/link")).await;
    mirror.kill();

    for body in [
        "echo hunter2; echo hunter2 >&2; exit 1",
        "echo hunter2; echo hunter2 >&2",
        "head -c 10000000 /dev/zero | tr '\\0' x",
        "sleep 600 & sleep 600",
        "sleep 600 & exit 3",
    ] {
        rig.helper(body);
        mirror.restart().await;
        rig.assert_pulls(&mirror).await;
        let (status, told) = rig.get(&mirror, "manifests/2").await;
        let told = String::from_utf8(told.to_vec()).unwrap();
        assert_eq!(status, 503, "{body}: {told}");
        assert!(told.contains("docker-credential-rig") && !told.contains("hunter2"), "{body}: {told}");
        assert_eq!(mirror.metric(UNAVAILABLE).await, 1.0);
        let log = mirror.log();
        assert!(log.contains("a credential helper failed") && !log.contains("hunter2"), "{body}: {log}");
        mirror.kill();
    }
    // Well again, within its pause.
    rig.helper(&gives(USER, PASSWORD));
    mirror.restart().await;
    rig.assert_pulls(&mirror).await;
    assert_eq!(rig.get(&mirror, "manifests/2").await.0, 200);
    assert_eq!(mirror.metric(UNAVAILABLE).await, 0.0);
}

#[tokio::test]
async fn a_helper_without_a_login_is_anonymous() {
    let rig = Rig::start().await;
    rig.helper("echo 'credentials not found in native keychain'; exit 1");
    let mirror = rig.mirror("credential_helper = \"rig\"").await;
    let (status, told) = rig.get(&mirror, "manifests/1").await;
    assert_eq!(status, 403, "{told:?}");
    assert_eq!((mirror.metric(REFUSED).await, mirror.metric(UNAVAILABLE).await), (0.0, 0.0));
    assert_eq!(mirror.log().matches("there is no login for this server").count(), 1, "{}", mirror.log());
}

/// As Kubernetes swaps a secret. Until then the registry has seen the wrong one as often as is needed.
#[tokio::test]
async fn a_password_swapped_by_symlink_is_taken_up_after_the_wrong_one_was_laid_aside() {
    let rig = Rig::start().await;
    let swap = |version: &str, password: &str| {
        std::fs::create_dir(rig.path(version)).unwrap();
        std::fs::write(rig.path(version).join("password"), password).unwrap();
        symlink(version, rig.path("..tmp")).unwrap();
        std::fs::rename(rig.path("..tmp"), rig.path("..data")).unwrap();
    };
    swap("..1", "wrong");
    symlink("..data/password", rig.path("password")).unwrap();
    let keys = format!("username = \"{USER}\"\npassword_file = {:?}", rig.path("password"));
    let mirror = rig.mirror(&keys).await;
    for _ in 0..10 {
        let (status, told) = rig.get(&mirror, "manifests/1").await;
        let told = String::from_utf8(told.to_vec()).unwrap();
        assert!(status == 403 && told.contains("password") && !told.contains("wrong"), "{status}: {told}");
    }
    assert_eq!(mirror.metric(REFUSED).await, 1.0);
    assert_eq!(mirror.log().matches("the login is refused").count(), 1, "{}", mirror.log());
    swap("..2", PASSWORD);
    let wait = Wait::for_("the new password");
    // A refusal of this very tag is remembered for a second.
    while rig.get(&mirror, "manifests/1").await.0 != 200 {
        wait.a_little().await;
    }
    rig.assert_pulls(&mirror).await;
    assert_eq!(mirror.metric(REFUSED).await, 0.0);
}
