//! No configuration file, a good one, a bad one.

use std::path::Path;
use std::process::Output;

use super::support::mirror::forebay;
use super::support::process::PATIENCE;
use super::{Rig, json_lines, put_empty};

async fn check(directory: &Path, config: &str) -> Output {
    let file = directory.join("forebay.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = forebay(["check-config", "--config"]);
    command.arg(file);
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn none_is_needed_and_the_log_says_where_things_are() {
    let rig = Rig::start().await;
    put_empty(&rig.upstream, "library/x", "1", "");
    assert_eq!(rig.get("/v2/library/x/manifests/1").await.0, 200);
    let lines = json_lines(&rig.mirror.log());
    let serving = lines.iter().find(|line| line["message"] == "serving").expect("a line that says so");
    assert_eq!(serving["listen"], rig.mirror.host());
    assert_eq!(serving["data"], rig.mirror.data().to_str().unwrap());
    assert_eq!(serving["upstreams"], "docker.io");
}

#[tokio::test]
async fn a_good_file_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let output =
        check(directory.path(), "listen = [\"127.0.0.1:4000\"]\n[cache]\nmax_size = \"7GiB\"\n").await;
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stdout).unwrap();
    for part in ["127.0.0.1:4000", "7GiB", "forebay.toml", "default"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
}

#[tokio::test]
async fn a_bad_file_is_refused_with_its_line_and_what_was_meant() {
    let directory = tempfile::tempdir().unwrap();
    let bad = "data = \"/x\"\n[cache]\nmaxsize = \"7GiB\"\n";
    let output = check(directory.path(), bad).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let told = String::from_utf8(output.stderr).unwrap();
    for part in ["forebay.toml:3", "cache.maxsize", "`max_size`"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    assert_eq!(told.lines().count(), 1, "{told}");

    let mut serve = forebay(["serve", "--config"]);
    serve.arg(directory.path().join("forebay.toml"));
    let output = tokio::process::Command::from(serve).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(2));
}
