//! The file of passwords while the server runs, and the command that writes it.

use std::io::Write;
use std::process::{Command, Stdio};

use super::support::process::Wait;
use super::*;

/// `forebay htpasswd` with this on its standard input. What it said, if it went well.
fn run(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("htpasswd").args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without having read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[tokio::test]
async fn users_come_change_and_go_without_a_restart() {
    let rig = Rig::start(&["alice"], "login_hosts = [\"*\"]\n").await;
    let file = rig.directory.path().join("htpasswd");
    let file = file.to_str().unwrap();
    let ping = async |password: &str| rig.get("/v2/", &By::Password("bob", password.to_owned())).await.status;
    let becomes = async |password: &str, status: u16| {
        let wait = Wait::for_("the file to be taken up");
        while ping(password).await != status {
            wait.a_little().await;
        }
    };
    assert_eq!(ping("secret-one").await, 401);
    run(&["--cost", "4", file, "bob"], "secret-one\n").unwrap();
    becomes("secret-one", 200).await;
    run(&["--cost", "4", file, "bob"], "secret-two").unwrap();
    becomes("secret-two", 200).await;
    assert_eq!(ping("secret-one").await, 401);

    let good = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, format!("{good}carol:$apr1$x$y\n")).unwrap();
    let wait = Wait::for_("the broken file to be named");
    while !rig.mirror.log().contains("line 3") {
        assert_eq!(ping("secret-two").await, 200);
        wait.a_little().await;
    }
    assert!(rig.mirror.log().contains("stays in use"));
    std::fs::write(file, good).unwrap();
    run(&["-D", file, "bob"], "").unwrap();
    becomes("secret-two", 401).await;
    rig.get("/v2/", &user("alice")).await.expect(200);
    let log = rig.mirror.log();
    assert!(!log.contains("secret-two") && !log.contains("Authorization"), "no password is logged");
}

#[test]
fn the_command_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("htpasswd");
    let file = file.to_str().unwrap();
    assert!(run(&[file, "alice"], "x").unwrap_err().contains("-c makes it"));
    assert!(run(&["-c", "--cost", "4", file, "alice"], "secret").unwrap().contains("is set"));
    assert!(run(&["-c", file, "alice"], "x").unwrap_err().contains("there already"));
    assert!(run(&[file, "alice"], "").unwrap_err().contains("empty"));
    assert!(run(&[file, "alice"], &"x".repeat(80)).unwrap_err().contains("72"));
    assert!(run(&["-D", file, "bob"], "").unwrap_err().contains("no user `bob`"));
    assert!(run(&["--cost", "3", file, "alice"], "x").is_err());
    let text = std::fs::read_to_string(file).unwrap();
    let hash = text.trim().strip_prefix("alice:").unwrap();
    assert!(htpasswd::verify("secret", hash) && !htpasswd::verify("Secret", hash));
}

/// A flood of wrong passwords costs those who are known nothing, and pulls of what is mirrored little.
#[tokio::test]
async fn a_flood_of_wrong_passwords_leaves_others_served() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    upstream.put_image("library/nginx", "1", &Image::random(1, 1, 100));
    // Each check takes a while.
    let file = directory.path().join("htpasswd");
    std::fs::write(&file, format!("alice:{}\n", htpasswd::hash("alice", 11).unwrap())).unwrap();
    let config = Some(format!("[auth]\nhtpasswd_file = {file:?}\n"));
    let options = MirrorOptions { upstream: upstream.url(), config, ..Default::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let rig = Rig { upstream, mirror, directory };
    rig.get("/v2/", &user("alice")).await.expect(200);
    let flood = (0..100).map(|n| {
        let wrong = By::Password("alice", format!("guess {n}"));
        let rig = &rig;
        async move { rig.get("/v2/", &wrong).await.status }
    });
    let others = async {
        for _ in 0..20 {
            rig.get("/v2/", &user("alice")).await.expect(200);
            rig.get("/v2/library/nginx/manifests/1", &By::Nobody).await.expect(200);
        }
    };
    let (statuses, ()) = tokio::join!(futures_util::future::join_all(flood), others);
    assert!(statuses.iter().all(|status| [401, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&429), "one client has only so many at once");
}
