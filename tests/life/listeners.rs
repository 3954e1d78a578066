//! Listeners of every kind: Unix sockets, sockets that are passed, and what each may serve.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use forebay::access::htpasswd;
use rustix::process::{Pid, Signal, kill_process};

use super::support::clients::skopeo_push;
use super::support::faulty::Upstream;
use super::support::hosting::hosting;
use super::support::http;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{PATIENCE, Wait, attempt, command, free_port, run};
use super::{Rig, get, put_empty};

/// What curl gets at a path of a Unix socket: status and body.
async fn by_socket(socket: &Path, arguments: &[&str], path: &str) -> String {
    let mut curl =
        command("curl", ["--silent", "--show-error", "--noproxy", "*", "--write-out", " %{http_code}"]);
    curl.arg("--unix-socket").arg(socket).args(arguments).arg(format!("http://localhost{path}"));
    run(curl).await
}

#[tokio::test]
async fn a_unix_socket_serves_whom_its_mode_lets_in_and_outlives_a_dead_process() {
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("forebay.sock");
    let config = Some(format!("[[listener]]\naddress = \"unix:{}\"\nmode = \"0620\"\n", socket.display()));
    let mut rig = Rig::with(MirrorOptions { config, ..MirrorOptions::default() }).await;
    let digest = rig.upstream.put_blob("library/x", "from upstream");
    let blob = format!("/v2/library/x/blobs/{digest}");
    assert_eq!(by_socket(&socket, &[], &blob).await, "from upstream 200");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o620);
    // They come from this machine: no login is needed to push.
    let begun = by_socket(&socket, &["-X", "POST"], "/v2/app/blobs/uploads/").await;
    assert!(begun.ends_with(" 202"), "{begun}");
    let foreign =
        by_socket(&socket, &["-X", "POST", "-H", "X-Forwarded-For: 192.0.2.1"], "/v2/app/blobs/uploads/")
            .await;
    assert!(foreign.ends_with(" 403"), "a proxy's request is not of this machine: {foreign}");

    // Another process, with other data and ports, does not take it.
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("forebay.toml");
    let listener = format!("listen = []\n[[listener]]\naddress = \"unix:{}\"\n", socket.display());
    std::fs::write(&file, listener).unwrap();
    let mut second = forebay(["serve", "--data"]);
    second.arg(other.path().join("data")).arg("--config").arg(&file);
    let refused = attempt(second).await.unwrap_err();
    assert!(refused.contains("another process listens there"), "{refused}");
    assert_eq!(by_socket(&socket, &[], "/v2/").await, "{} 200");

    rig.mirror.kill();
    assert!(socket.exists(), "left behind");
    rig.mirror.restart().await;
    assert_eq!(by_socket(&socket, &[], &blob).await, "from upstream 200");
    assert!(rig.mirror.terminate(PATIENCE).is_some());
    assert!(!socket.exists(), "it goes with its server");

    // What is there and is no socket is left alone.
    std::fs::write(&socket, "mine").unwrap();
    let mut third = forebay(["serve", "--data"]);
    third.arg(other.path().join("data")).arg("--config").arg(&file);
    let refused = attempt(third).await.unwrap_err();
    assert!(refused.contains("is no socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
}

/// A server that was given its sockets.
struct Activated(Child);

impl Activated {
    /// Starts `serve` with two sockets as systemd passes them: as descriptors 3 and 4, by these names.
    fn start(directory: &Path, sockets: (OwnedFd, OwnedFd), names: &str, config: &str) -> Self {
        let file = directory.join("forebay.toml");
        std::fs::write(&file, config).unwrap();
        let log = OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
        let script = "exec 3<&0 4<&1 0</dev/null 1>&2; export LISTEN_PID=$$; exec \"$@\"";
        let mut launcher = Command::new("bash");
        launcher.args(["-c", script, "launcher", env!("CARGO_BIN_EXE_forebay"), "serve"]);
        launcher.arg("--data").arg(directory.join("data")).arg("--config").arg(file);
        launcher.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names);
        let launcher = launcher.stdin(Stdio::from(sockets.0)).stdout(Stdio::from(sockets.1)).stderr(log);
        Self(launcher.spawn().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        if !self.has_ended() {
            kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        }
        self.0.wait().unwrap();
    }
}

/// A socket of TCP and one of a path, listening before anybody serves them.
fn sockets(directory: &Path) -> (TcpListener, UnixListener) {
    (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(directory.join("passed.sock")).unwrap())
}

#[tokio::test]
async fn passed_sockets_are_served_by_name_or_all() {
    let upstream = Upstream::start().await;
    let hub = format!("[upstream.\"docker.io\"]\nurl = \"{}\"\n", upstream.url());
    put_empty(&upstream, "library/x", "1", "");
    for (listen, named) in [
        ("listen = [\"systemd\"]\n", ""),
        (
            "listen = []\n",
            "[[listener]]\naddress = \"systemd:web\"\nserve = \"mirror\"\n[[listener]]\naddress = \"systemd:own\"\nserve = \"hosted\"\n",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let (web, own) = sockets(directory.path());
        let url = format!("http://{}", web.local_addr().unwrap());
        // Whoever comes before the server waits for it.
        let early = tokio::spawn({
            let url = format!("{url}/v2/library/x/manifests/1");
            async move { get(&url).await.0 }
        });
        let config = format!("{listen}{named}{hub}");
        let _server = Activated::start(directory.path(), (web.into(), own.into()), "web:own", &config);
        let log = || std::fs::read_to_string(directory.path().join("log")).unwrap();
        let answered = tokio::time::timeout(PATIENCE, early).await.unwrap_or_else(|_| panic!("{}", log()));
        assert_eq!(answered.unwrap(), 200, "{}", log());
        let socket = directory.path().join("passed.sock");
        let served = by_socket(&socket, &[], "/v2/library/x/manifests/1").await;
        if named.is_empty() {
            assert!(served.ends_with(" 200"), "{served}");
        } else {
            assert!(served.contains("this listener serves hosted images only"), "{served}");
            assert_eq!(get(&format!("{url}/v2/app/manifests/1")).await.0, 404);
        }
        assert!(log().contains("unix:") && log().contains("passed.sock"), "{}", log());
    }
}

#[tokio::test]
async fn a_socket_that_was_not_passed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (web, own) = sockets(directory.path());
    let config = "listen = [\"systemd\"]\n[[listener]]\naddress = \"systemd:other\"\n";
    let mut server = Activated::start(directory.path(), (web.into(), own.into()), "web:own", config);
    let wait = Wait::for_("the server to give up");
    while !server.has_ended() {
        wait.a_little().await;
    }
    let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(log.contains("no socket called `other` was passed") && log.contains("only web, own"), "{log}");
    // Without any, too.
    let file = directory.path().join("forebay.toml");
    std::fs::write(&file, "listen = [\"systemd\"]\n").unwrap();
    let mut alone = forebay(["serve", "--data"]);
    alone.arg(directory.path().join("data")).arg("--config").arg(&file);
    let refused = attempt(alone).await.unwrap_err();
    assert!(refused.contains("no socket was passed to this process"), "{refused}");
}

/// A server with a listener for hosted images and one for mirrored ones, besides its first. `config` first.
async fn apart(directory: &Path, config: &str) -> (Mirror, u16, u16) {
    let (hosted, mirrored) = (free_port(), free_port());
    let listeners = format!(
        "{config}[[listener]]\naddress = \"127.0.0.1:{hosted}\"\nserve = \"hosted\"\n\
         [[listener]]\naddress = \"127.0.0.1:{mirrored}\"\nserve = \"mirror\"\n\
         [hosted]\nrepositories = [\"*\", \"team/**\"]\n"
    );
    (hosting(directory, &listeners).await, hosted, mirrored)
}

#[tokio::test]
async fn a_hosted_listener_takes_names_that_docker_hub_could_have() {
    let directory = tempfile::tempdir().unwrap();
    let (mirror, hosted, mirrored) = apart(&directory.path().join("mirror"), "").await;
    let (image, layout) = (Image::random(5, 1, 10_000), directory.path().join("layout"));
    image.write_layout(&layout, "1");
    skopeo_push(&layout, "1", &format!("127.0.0.1:{hosted}/team/app:1"), None).await;
    skopeo_push(&layout, "1", &format!("127.0.0.1:{hosted}/app:1"), None).await;
    let mut copy = command("skopeo", ["--insecure-policy", "copy", "--all", "--src-tls-verify=false"]);
    copy.arg(format!("docker://127.0.0.1:{hosted}/team/app:1"));
    copy.arg(format!("dir:{}", directory.path().join("copy").display()));
    run(copy).await;

    let ask = async |port: u16, path: &str| {
        let (status, body) = get(&format!("http://127.0.0.1:{port}{path}")).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    // Elsewhere the name is neither served nor mirrored: dockerd may mean Docker Hub's.
    for (port, why) in [(mirror.port, "serve hosted images alone"), (mirrored, "serves mirrored images only")]
    {
        let (status, body) = ask(port, "/v2/team/app/manifests/1").await;
        assert!(status == 404 && body.contains(why), "{body}");
    }
    assert_eq!(ask(mirror.port, "/v2/app/manifests/1").await.0, 200);
    assert_eq!(ask(hosted, "/v2/library/alpine/manifests/1").await.0, 404);
    let lists = |port| async move { ask(port, "/v2/_catalog").await.1 };
    assert_eq!(lists(hosted).await, r#"{"repositories":["app","team/app"]}"#);
    assert_eq!(lists(mirror.port).await, r#"{"repositories":["app"]}"#);
    assert_eq!(lists(mirrored).await, r#"{"repositories":[]}"#);
    for name in ["app", "library/x"] {
        let push = http().post(format!("http://127.0.0.1:{mirrored}/v2/{name}/blobs/uploads/"));
        assert_eq!(push.send().await.unwrap().status(), 405, "{name}");
    }
}

#[tokio::test]
async fn a_hosted_listener_asks_for_logins_and_a_mirror_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let passwords = directory.path().join("htpasswd");
    std::fs::write(&passwords, format!("alice:{}\n", htpasswd::hash("alice", 4).unwrap())).unwrap();
    let config = format!("[auth]\nhtpasswd_file = {passwords:?}\n[auth.tokens]\n");
    let (mirror, hosted, mirrored) = apart(&directory.path().join("mirror"), &config).await;
    assert!(!mirror.log().contains("auth.login_hosts"), "{}", mirror.log());
    let ping = async |port| http().get(format!("http://127.0.0.1:{port}/v2/")).send().await.unwrap();
    assert_eq!(ping(mirror.port).await.status(), 200, "dockerd would send its password for Docker Hub");
    assert_eq!(ping(mirrored).await.status(), 200);
    let asked = ping(hosted).await;
    let challenge = asked.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(
        challenge.starts_with(&format!("Bearer realm=\"http://127.0.0.1:{hosted}/token\"")),
        "{challenge}"
    );
    let layout = directory.path().join("layout");
    Image::random(6, 1, 10_000).write_layout(&layout, "1");
    let target = format!("127.0.0.1:{hosted}/team/app:1");
    skopeo_push(&layout, "1", &target, Some("alice:alice")).await;
    let mut anonymous = command("skopeo", ["--insecure-policy", "inspect", "--tls-verify=false"]);
    anonymous.arg(format!("docker://{target}"));
    assert!(attempt(anonymous).await.is_err());
}

#[tokio::test]
async fn another_listener_waits_for_the_next_start() {
    let listener = format!("[[listener]]\naddress = \"127.0.0.1:{}\"\n", free_port());
    let mut rig = Rig::with(MirrorOptions { config: Some(listener.clone()), ..Default::default() }).await;
    rig.mirror.configure(&format!("{listener}serve = \"mirror\"\n"));
    rig.mirror.process().signal(Signal::HUP);
    let wait = Wait::for_("the reload");
    while !rig.mirror.log().contains("the configuration was read again") {
        wait.a_little().await;
    }
    let log = rig.mirror.log();
    assert!(log.contains("takes effect at the next one") && log.contains("\"listener\""), "{log}");
}
