//! Connections to an upstream that a firewall forgets: what is sent on them is lost, and nobody says so.

use std::process::Command;
use std::time::Duration;

use super::support::faulty::{Fault, Upstream};
use super::support::mirror::{Mirror, MirrorOptions};
use super::support::namespace::isolated;
use super::{get, put_empty};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Loses whatever passes on the connections that there are now to this port; new ones are well.
fn forget_connections(port: u16) -> usize {
    let filter = format!("dport = :{port}");
    let listed = run("ss", &["-Htn", "state", "established", &filter]);
    let local = listed.lines().filter_map(|line| line.split_whitespace().nth(2)?.rsplit(':').next());
    let ports: Vec<&str> = local.collect();
    for from in &ports {
        let port = port.to_string();
        run("iptables", &["-A", "OUTPUT", "-p", "tcp", "--sport", from, "--dport", &port, "-j", "DROP"]);
        run("iptables", &["-A", "OUTPUT", "-p", "tcp", "--sport", &port, "--dport", from, "-j", "DROP"]);
    }
    ports.len()
}

/// With the timeouts out of the way, it is the operating system that gives the connections up.
#[test]
fn forgotten_connections_cost_clients_seconds() {
    isolated(|directory| async move {
        let upstream = Upstream::start().await;
        upstream.on("HEAD", "/manifests/").then(Fault::Delay(Duration::from_millis(100)));
        let config = "[upstream.\"docker.io\"]\nheader_timeout = \"10m\"\ndeadline = \"30m\"".to_owned();
        let options =
            MirrorOptions { upstream: upstream.url(), config: Some(config), ..MirrorOptions::default() };
        let mirror = Mirror::with(&directory.join("mirror"), options).await;
        for n in 0..16 {
            put_empty(&upstream, &format!("library/r{n}"), "1", "x");
        }
        let ask = async |numbers: std::ops::Range<u32>| {
            let pulls = numbers.map(|n| {
                let url = format!("{}/v2/library/r{n}/manifests/1", mirror.url());
                async move { get(&url).await.0 }
            });
            futures_util::future::join_all(pulls).await
        };
        assert_eq!(ask(0..8).await, [200; 8]);
        let forgotten = forget_connections(upstream.address().port());
        assert!(forgotten > 1, "{forgotten}");
        let answered = tokio::time::timeout(Duration::from_secs(120), ask(8..16)).await;
        assert_eq!(answered.expect("given up long before the timeout for an answer"), [200; 8]);
        let retries = mirror.metric(r#"forebay_upstream_retries_total{upstream="docker.io"}"#).await;
        assert!(retries >= 1.0, "{retries}");
    });
}
