//! zot, which fetches what it does not have if it has an upstream.

use std::path::Path;

use serde_json::json;

use crate::support::http;
use crate::support::process::{Process, Wait, command, free_port};

/// Its address, and the process.
pub async fn start(directory: &Path, program: &Path, upstream: Option<&str>) -> (String, Process) {
    std::fs::create_dir_all(directory).unwrap();
    let port = free_port();
    let mut config = json!({
        "distSpecVersion": "1.1.0",
        "storage": { "rootDirectory": directory.join("storage") },
        "http": { "address": "127.0.0.1", "port": port.to_string() },
        "log": { "level": "info" },
    });
    if let Some(upstream) = upstream {
        config["extensions"]["sync"] = json!({ "enable": true, "registries": [{
            "urls": [upstream], "onDemand": true, "tlsVerify": false, "content": [{ "prefix": "**" }],
        }] });
    }
    let file = directory.join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut zot = command(program.to_str().unwrap(), ["serve".as_ref(), file.as_os_str()]);
    let mut process = Process::start("zot", &mut zot, &directory.join("log"));
    let wait = Wait::for_("zot");
    while http().get(format!("http://127.0.0.1:{port}/v2/")).send().await.is_err() {
        process.assert_running();
        wait.a_little().await;
    }
    (format!("127.0.0.1:{port}"), process)
}
