//! The data directory as it is found, and that it has one owner.

use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::Rig;
use super::support::image::random_bytes;
use super::support::mirror::forebay;
use super::support::namespace::isolated;
use super::support::process::{PATIENCE, Process, Wait, attempt, command, run};
use super::support::repository::Repository;
use super::support::sha256;

/// A user that every Debian has, and that has nothing.
const NOBODY: u32 = 65534;

fn serve(data: &Path) -> Command {
    let mut serve =
        forebay(["serve", "--listen", "127.0.0.1:0", "--upstream", "docker.io=http://127.0.0.1:1"]);
    serve.arg("--data").arg(data);
    serve
}

/// What a server says that does not start, which is one line.
async fn refused(mut serve: Command) -> String {
    serve.env("FOREBAY_LOG_FORMAT", "text");
    let said = attempt(serve).await.unwrap_err();
    assert!(said.contains("exit status: 1"), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    errors[0].to_owned()
}

async fn assert_taken(data: &Path) {
    let said = refused(serve(data)).await;
    assert!(said.contains("in use by another process") && said.contains("--data"), "{said}");
}

#[test]
fn one_server_has_the_directory_by_whatever_path_and_without_its_lock_file() {
    isolated(async |elsewhere| has_the_directory(&elsewhere).await);
}

async fn has_the_directory(elsewhere: &Path) {
    let mut rig = Rig::start().await;
    let data = rig.mirror.data();
    assert_taken(&data).await;
    let link = elsewhere.join("link");
    symlink(&data, &link).unwrap();
    assert_taken(&link).await;
    let mount = elsewhere.join("mount");
    std::fs::create_dir(&mount).unwrap();
    let bind = [data.to_str().unwrap(), mount.to_str().unwrap()];
    run(command("mount", ["--bind", bind[0], bind[1]])).await;
    assert_taken(&mount).await;
    // By a `rm` of somebody who thinks that it is left over.
    std::fs::remove_file(data.join("forebay/lock")).unwrap();
    assert_taken(&data).await;
    std::fs::remove_dir_all(data.join("forebay")).unwrap();
    assert_taken(&data).await;
    // A killed one has it no more, and leaves nothing that would have to be removed.
    rig.mirror.kill();
    rig.mirror.restart().await;
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
}

#[tokio::test]
async fn what_is_no_data_directory_or_a_newer_one_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("home");
    std::fs::create_dir_all(data.join("Documents")).unwrap();
    let said = refused(serve(&data)).await;
    assert!(said.contains("Documents") && said.contains("--data"), "{said}");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "nothing is made in it");

    let mut rig = Rig::start().await;
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
    let version = rig.mirror.data().join("forebay/version");
    let ours = std::fs::read_to_string(&version).unwrap();
    std::fs::write(&version, "forebay data 9\nreadable since 9\n").unwrap();
    let said = refused(serve(&rig.mirror.data())).await;
    assert!(said.contains("format 9") && said.contains("newer Forebay"), "{said}");
    // One that only adds to what there was: back and forth.
    std::fs::write(&version, ours.replace("data 1", "data 9")).unwrap();
    rig.mirror.restart().await;
}

#[tokio::test]
async fn more_is_not_kept_free_than_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("forebay.toml");
    std::fs::write(&config, "[cache]\nmin_free = \"4096TiB\"\n").unwrap();
    let mut serve = serve(&directory.path().join("data"));
    serve.arg("--config").arg(&config);
    let said = refused(serve).await;
    assert!(said.contains("cache.min_free") && said.contains("write less"), "{said}");
}

/// As after a container that ran as root, and for who is not the server's user.
#[tokio::test]
async fn another_users_directory_is_told_with_the_command_that_mends_it() {
    let mut rig = Rig::start().await;
    let data = rig.mirror.data();
    let place = data.parent().unwrap();
    run(command("chmod", ["755", place.to_str().unwrap()])).await;
    // The program too has to be where such a user gets to.
    let program = place.join("program");
    std::fs::copy(forebay([]).get_program(), &program).unwrap();
    let by_nobody = |arguments: &[&str]| {
        let mut command = command(program.to_str().unwrap(), arguments);
        command.arg("--data").arg(&data).uid(NOBODY).gid(NOBODY);
        command
    };
    let said = attempt(by_nobody(&["gc", "--dry-run"])).await.unwrap_err();
    assert!(said.contains("control.sock may be opened by its owner and root only"), "{said}");
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
    let said = attempt(by_nobody(&["gc", "--dry-run"])).await.unwrap_err();
    assert!(said.contains("no Forebay runs on"), "{said}");

    let start = || by_nobody(&["serve", "--listen", "127.0.0.1:0"]);
    let remedy = format!("sudo chown -R {NOBODY}:{NOBODY} {}", data.display());
    let said = refused(start()).await;
    assert!(said.contains(&remedy), "{said}");
    // All but one directory, that is written to only later.
    let owner = format!("{NOBODY}:{NOBODY}");
    run(command("chown", ["-R", &owner, data.to_str().unwrap()])).await;
    run(command("chown", ["0:0", data.join("docker/registry/v2").to_str().unwrap()])).await;
    let said = refused(start()).await;
    assert!(said.contains("docker/registry/v2:") && said.contains(&remedy), "{said}");
    // One repository is a matter of its own: the others are served.
    let app = data.join("docker/registry/v2/repositories/app");
    std::fs::create_dir(&app).unwrap();
    run(command("chown", ["-R", &owner, data.to_str().unwrap()])).await;
    run(command("chown", ["0:0", app.to_str().unwrap()])).await;
    let mut server = Process::start("forebay", &mut start(), &place.join("log-of-nobody"));
    let wait = Wait::for_("forebay to serve");
    while !server.log().contains("\"serving\"") {
        server.assert_running();
        wait.a_little().await;
    }
    let log = server.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(&remedy)).collect();
    assert!(told.len() == 1 && told[0].contains("repositories/app"), "{log}");
    assert!(server.terminate(PATIENCE).unwrap().success());
}

/// An operator gave the blobs a disk of their own.
#[test]
fn a_mount_within_the_directory_is_told_by_the_first_push() {
    isolated(async |_| {
        let rig = Rig::start().await;
        let blobs = rig.mirror.data().join("docker/registry/v2/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        run(command("mount", ["-t", "tmpfs", "tmpfs", blobs.to_str().unwrap()])).await;
        let bytes = random_bytes(1, 1000);
        let answer =
            Repository::new(&rig.mirror.url(), "app").try_blob(&sha256(&bytes), bytes.into()).await.unwrap();
        assert!(answer.status >= 500, "{}", answer.status);
        let wait = Wait::for_("the log to say what is wrong");
        while !rig.mirror.log().contains("have all of the data directory on one") {
            wait.a_little().await;
        }
    });
}
