//! The control socket of the running server.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Rig;
use super::support::mirror::forebay;
use super::support::process::{PATIENCE, attempt};

fn socket(rig: &Rig) -> PathBuf {
    rig.mirror.data().join("forebay/control.sock")
}

/// What the server says of its version.
async fn version(rig: &Rig) -> String {
    let mut stream = UnixStream::connect(socket(rig)).await.unwrap();
    stream.write_all(b"GET /v1/version HTTP/1.1\r\nhost: forebay\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn gc(rig: &Rig) -> Result<String, String> {
    attempt(forebay(["gc", "--dry-run", "--data", rig.mirror.data().to_str().unwrap()])).await
}

#[tokio::test]
async fn the_socket_lives_as_long_as_its_server() {
    let mut rig = Rig::start().await;
    for _ in 0..2 {
        assert_eq!(std::fs::metadata(socket(&rig)).unwrap().permissions().mode() & 0o777, 0o600);
        let answer = version(&rig).await;
        let told = format!("{{\"protocol\":1,\"forebay\":\"{}\"}}", env!("CARGO_PKG_VERSION"));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&told), "{answer}");
        let said = gc(&rig).await.unwrap();
        assert!(said.contains("nothing would go"), "{said}");
        // A second server on the same data does not start, and takes nothing from the first.
        let data = rig.mirror.data();
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()];
        let said = attempt(forebay(arguments)).await.unwrap_err();
        assert!(said.contains("in use by another process"), "{said}");
        version(&rig).await;
        // What a killed one leaves is in nobody's way.
        rig.mirror.kill();
        assert!(socket(&rig).exists());
        let said = gc(&rig).await.unwrap_err();
        assert!(said.contains("no Forebay runs on") && said.contains("exit status: 1"), "{said}");
        rig.mirror.restart().await;
    }
    assert!(rig.mirror.terminate(PATIENCE).unwrap().success());
    assert!(!socket(&rig).exists());
    assert!(gc(&rig).await.unwrap_err().contains("no Forebay runs on"));
}
