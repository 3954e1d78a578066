//! Every way to address a registry: paths, parameters, hosts, certificates; and what is told of others.

use std::path::{Path, PathBuf};

use forebay::access::htpasswd;
use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::get;
use super::support::clients::{Client, Containerd, Dockerd, Podman, skopeo_push};
use super::support::faulty::Upstream;
use super::support::http;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::support::process::{command, run};
use super::support::registry::{Registry, RegistryOptions};

/// Two scripted registries, `docker.io` and `ghcr.io`, each with an image of its own, and a mirror of them.
struct Two {
    mirror: Mirror,
    ghcr: Upstream,
    image: Image,
    _directory: tempfile::TempDir,
    _hub: Upstream,
}

impl Two {
    /// `config`: what follows ghcr.io's URL in its table.
    async fn start(config: &str, tls: Option<(PathBuf, PathBuf)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (hub, ghcr) = (Upstream::start().await, Upstream::start().await);
        let image = Image::random(3, 1, 10_000);
        ghcr.put_image("org/app", "1", &image);
        hub.put_image("library/app", "1", &Image::random(4, 1, 10_000));
        let config = Some(format!("[upstream.\"ghcr.io\"]\nurl = \"{}\"\n{config}", ghcr.url()));
        let options = MirrorOptions { upstream: hub.url(), config, tls, ..MirrorOptions::default() };
        let mirror = Mirror::with(&directory.path().join("mirror"), options).await;
        Self { mirror, ghcr, image, _directory: directory, _hub: hub }
    }

    /// What curl says of `path` at `host` and the mirror's port: status, `OCI-Namespace`, digest.
    async fn curl(&self, host: &str, path: &str, arguments: &[&str]) -> String {
        let port = self.mirror.port;
        let scheme = self.mirror.url().split(':').next().unwrap().to_owned();
        let mut curl =
            command("curl", ["--silent", "--show-error", "--noproxy", "*", "--output", "/dev/null"]);
        curl.args(["--write-out", "%{http_code} %header{oci-namespace} %header{docker-content-digest}"]);
        curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]).args(arguments);
        curl.arg(format!("{scheme}://{host}:{port}{path}"));
        run(curl).await
    }
}

const MANIFEST: &str = "/v2/org/app/manifests/1";

#[tokio::test]
async fn a_virtual_host_is_its_registry_over_either_protocol() {
    let two =
        Two::start("hosts = [\"ghcr.mirror.test\"]\n[limits]\ntrusted_proxies = [\"127.0.0.2\"]", None).await;
    let found = format!("200  {}", two.image.digest());
    let host = "ghcr.mirror.test";
    assert_eq!(two.curl(host, MANIFEST, &[]).await, found);
    assert_eq!(two.curl(host, MANIFEST, &["--http2-prior-knowledge"]).await, found);
    assert_eq!(two.curl(host, "/v2/", &[]).await, "200  ");
    // By the registry's own name, where DNS or a gateway leads that here.
    let as_host = |name: &str| format!("Host: {name}");
    for name in ["ghcr.io", "GHCR.io:443", "ghcr.mirror.test:1234"] {
        assert_eq!(two.curl("127.0.0.1", MANIFEST, &["-H", &as_host(name)]).await, found, "{name}");
    }
    for name in ["mirror.test", "ghcr.io:5000"] {
        let answer = two.curl("127.0.0.1", MANIFEST, &["-H", &as_host(name)]).await;
        assert!(answer.starts_with("404"), "Docker Hub has no such image: {name}: {answer}");
    }
    // What a proxy says of the host counts where the proxy is trusted.
    let forwarded = ["-H", "Host: inner", "-H", "X-Forwarded-Host: ghcr.mirror.test"];
    let by = |address: &'static str| [&["--interface", address], forwarded.as_slice()].concat();
    assert_eq!(two.curl("127.0.0.1", MANIFEST, &by("127.0.0.2")).await, found);
    assert!(two.curl("127.0.0.1", MANIFEST, &by("127.0.0.3")).await.starts_with("404"));
    // Nothing is written there, from this machine neither.
    let push = two.curl(host, "/v2/app/blobs/uploads/", &["-X", "POST"]).await;
    assert!(push.starts_with("405"), "{push}");
    let asked = two.ghcr.requests_for("GET", "/v2/org/app/manifests/");
    assert_eq!(asked.len(), 1, "the names are the registry's own, and one repository");
}

#[tokio::test]
async fn a_namespace_is_answered_with_every_answer() {
    let two = Two::start("aliases = [\"gh\"]", None).await;
    let digest = two.image.digest();
    for (path, expected) in [
        (format!("{MANIFEST}?ns=ghcr.io"), format!("200 ghcr.io {digest}")),
        (format!("/ghcr.io{MANIFEST}?ns=ghcr.io"), format!("200 ghcr.io {digest}")),
        (format!("/gh{MANIFEST}?ns=ghcr.io"), format!("200 ghcr.io {digest}")),
        ("/v2/ghcr.io/org/app/manifests/1?ns=ghcr.io".to_owned(), format!("200 ghcr.io {digest}")),
        ("/v2/ghcr.io/org/app/manifests/1".to_owned(), format!("200  {digest}")),
        (format!("/ghcr.io{MANIFEST}"), format!("200  {digest}")),
        ("/v2/org/none/manifests/1?ns=ghcr.io".to_owned(), "404 ghcr.io ".to_owned()),
        ("/v2/BAD/manifests/1?ns=ghcr.io".to_owned(), "400 ghcr.io ".to_owned()),
        (format!("{MANIFEST}?ns=quay.io"), "404 quay.io ".to_owned()),
        (format!("/docker.io{MANIFEST}?ns=ghcr.io"), "404 ghcr.io ".to_owned()),
        ("/v2/docker.io/library/app/manifests/1?ns=ghcr.io".to_owned(), "404 ghcr.io ".to_owned()),
        (MANIFEST.to_owned(), "404  ".to_owned()),
    ] {
        assert_eq!(two.curl("127.0.0.1", &path, &[]).await, expected, "{path}");
    }
    let (status, body) = get(&format!("{}/docker.io{MANIFEST}?ns=ghcr.io", two.mirror.url())).await;
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(status == 404 && body.contains("its path `docker.io` and another by `?ns=ghcr.io`"), "{body}");
    // Lists go on where they began.
    let list = http().get(format!("{}/v2/ghcr.io/org/app/tags/list?ns=ghcr.io&n=0", two.mirror.url()));
    assert_eq!(list.send().await.unwrap().headers()["oci-namespace"], "ghcr.io");
}

#[tokio::test]
async fn the_host_that_tls_is_asked_for_chooses_the_certificate() {
    let files = tempfile::tempdir().unwrap();
    let pair = |host: &str| {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([host.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let at = |end: &str| files.path().join(format!("{host}.{end}"));
        std::fs::write(at("crt"), cert.pem()).unwrap();
        std::fs::write(at("key"), signing_key.serialize_pem()).unwrap();
        (at("crt"), at("key"))
    };
    let (first, second) = (pair("mirror.test"), pair("ghcr.mirror.test"));
    let config = format!(
        "hosts = [\"ghcr.mirror.test\"]\n[[tls.certificate]]\ncertificate_file = {:?}\nkey_file = {:?}\n",
        second.0, second.1
    );
    let two = Two::start(&config, Some(first.clone())).await;
    let trusting = |path: &Path| ["--cacert".to_owned(), path.display().to_string()];
    let ask = async |host: &str, (certificate, _): &(PathBuf, PathBuf)| {
        let trusted = trusting(certificate);
        two.curl(host, MANIFEST, &[&trusted[0], &trusted[1]]).await
    };
    assert_eq!(ask("ghcr.mirror.test", &second).await, format!("200  {}", two.image.digest()));
    assert!(ask("mirror.test", &first).await.starts_with("404"), "Docker Hub has no such image");
    let shown = async |arguments: &[&str]| {
        let address = two.mirror.host();
        let mut openssl = command("openssl", ["s_client", "-connect", &address, "-showcerts"]);
        openssl.args(arguments);
        let said = run(openssl).await;
        [("mirror.test", &first), ("ghcr.mirror.test", &second)]
            .into_iter()
            .find(|(_, (certificate, _))| {
                let pem = std::fs::read_to_string(certificate).unwrap().replace("\r\n", "\n");
                said.contains(pem.trim())
            })
            .map(|(name, _)| name)
    };
    assert_eq!(shown(&["-servername", "ghcr.mirror.test"]).await, Some("ghcr.mirror.test"));
    assert_eq!(shown(&["-servername", "mirror.test"]).await, Some("mirror.test"));
    assert_eq!(shown(&["-servername", "other.test"]).await, Some("mirror.test"));
    assert_eq!(shown(&["-noservername"]).await, Some("mirror.test"));
    // A request without a host means the one that TLS was asked for.
    let address = two.mirror.host();
    let ask = "printf 'GET /v2/org/app/manifests/1 HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet -ign_eof";
    let script = format!("{ask} -connect {address} -servername ghcr.mirror.test 2>/dev/null");
    let said = run(command("sh", ["-c", &script])).await;
    assert!(said.contains(two.image.digest()), "{said}");
}

#[tokio::test]
async fn who_may_pull_nothing_of_a_registry_is_not_told_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let passwords = directory.path().join("htpasswd");
    std::fs::write(&passwords, format!("alice:{}\n", htpasswd::hash("alice", 4).unwrap())).unwrap();
    let rules = "[[access.rule]]\nwho = [\"anonymous\", \"*\"]\nrepositories = [\"docker.io/**\"]\nactions = [\"pull\"]\n\
                 [[access.rule]]\nwho = [\"alice\"]\nrepositories = [\"secret.corp/team/*\"]\nactions = [\"pull\"]\n";
    let upstreams = "[upstream.\"secret.corp\"]\nurl = \"http://127.0.0.1:1\"\n";
    let config = Some(format!("[auth]\nmirror = true\nhtpasswd_file = {passwords:?}\n{rules}{upstreams}"));
    let options = MirrorOptions { upstream: "http://127.0.0.1:1".to_owned(), config, ..Default::default() };
    let mirror = Mirror::with(&directory.path().join("mirror"), options).await;
    for path in ["/v2/a/b/manifests/1?ns=quay.io", "/quay.io/v2/a/b/manifests/1", "/v2/quay.io/a/manifests/1"]
    {
        let ask = async |user: Option<&str>| {
            let request = http().get(mirror.url() + path);
            let request = match user {
                Some(user) => request.basic_auth(user, Some("alice")),
                None => request,
            };
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 404, "{path}");
            answer.text().await.unwrap()
        };
        for stranger in [None, Some("mallory")] {
            let told = ask(stranger).await;
            assert!(told.contains("`quay.io` is not mirrored here"), "{told}");
            assert!(told.contains("configured are docker.io\"") && !told.contains("secret"), "{told}");
        }
        let told = ask(Some("alice")).await;
        assert!(told.contains("configured are docker.io, secret.corp\""), "{told}");
    }
}

#[test]
fn docker_logs_in_and_pulls_at_a_virtual_host() {
    isolated(async |directory| {
        let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
        let (image, layout) = (Image::random(8, 1, 10_000), directory.join("layout"));
        image.write_layout(&layout, "1");
        skopeo_push(&layout, "1", &format!("{}/org/app:1", upstream.host()), None).await;
        let passwords = directory.join("htpasswd");
        std::fs::write(&passwords, format!("alice:{}\n", htpasswd::hash("alice", 4).unwrap())).unwrap();
        let config = Some(format!(
            "[auth]\nmirror = true\nhtpasswd_file = {passwords:?}\n[auth.tokens]\n[upstream.\"ghcr.io\"]\n\
             url = \"{}\"\nhosts = [\"ghcr.mirror.test\"]\n",
            upstream.url()
        ));
        let options =
            MirrorOptions { upstream: "http://127.0.0.1:1".to_owned(), config, ..Default::default() };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        // In this namespace alone; docker speaks plain HTTP to what is on loopback.
        std::fs::write(directory.join("hosts"), "127.0.0.1 localhost ghcr.mirror.test\n").unwrap();
        run(command(
            "mount",
            ["--bind".as_ref(), directory.join("hosts").as_os_str(), "/etc/hosts".as_ref()],
        ))
        .await;
        let host = format!("ghcr.mirror.test:{}", mirror.port);
        let dockerd = Dockerd::start(&directory.join("client"), &mirror.url()).await;
        run(dockerd.docker(["login", "--username", "alice", "--password", "alice", &host])).await;
        dockerd.pull(&format!("{host}/org/app:1")).await;
        assert!(mirror.log().contains("\"repository\":\"ghcr.io/org/app\""), "{}", mirror.log());
    });
}

/// Pulls twice through the mirror, with a client that forgets everything in between.
async fn pulls(client: &impl Client, image: &str, digest: &str, upstream: &Registry) {
    client.pull(image).await;
    let held = client.held(image).await;
    assert!(held.iter().any(|held| held == digest), "holds {held:?}");
    let after = upstream.content_requests().await.len();
    client.remove(image).await;
    client.pull(image).await;
    assert_eq!(upstream.content_requests().await.len(), after, "the second pull asked upstream");
}

/// A registry that holds `library/rig:1`, and a mirror of it.
async fn behind(directory: &Path) -> (Registry, Mirror, Image) {
    let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
    let (image, layout) = (Image::random(7, 2, 1 << 20), directory.join("layout"));
    image.write_layout(&layout, "1");
    skopeo_push(&layout, "1", &format!("{}/library/rig:1", upstream.host()), None).await;
    let mirror = Mirror::start(&directory.join("mirror"), &upstream.url()).await;
    (upstream, mirror, image)
}

#[test]
fn containerd_pulls_by_a_mirror_with_a_path() {
    isolated(async |directory| {
        let (upstream, mirror, image) = behind(&directory).await;
        let client = Containerd::start(&directory.join("client"), &(mirror.url() + "/docker.io")).await;
        pulls(&client, "rig:1", image.digest(), &upstream).await;
        assert!(mirror.log().contains("/docker.io/v2/library/rig/"), "{}", mirror.log());
    });
}

#[test]
fn podman_pulls_by_a_mirror_with_a_path() {
    isolated(async |directory| {
        let (upstream, mirror, image) = behind(&directory).await;
        let podman = Podman::start(&directory.join("client"), &(mirror.url() + "/docker.io")).await;
        pulls(&podman, "rig:1", image.digest(), &upstream).await;
        assert!(mirror.log().contains("/v2/docker.io/library/rig/"), "{}", mirror.log());
    });
}
