//! Metrics, health, the page, request ids and the access log.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::support::http;
use super::support::process::Wait;
use super::{Rig, json_lines, put_empty};

/// The names of all families, each with its help and type; panics at a line that is neither these
/// nor a sample of the family before it.
fn families(text: &str) -> BTreeSet<&str> {
    let (mut names, mut described, mut family) = (BTreeSet::new(), "", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            described = rest.split(' ').next().unwrap();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, described);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(names.insert(name), "{name} comes twice");
            family = name;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(family) && value.parse::<f64>().is_ok(), "{line}");
        }
    }
    names
}

/// What Prometheus's own tool says of it, where it is installed.
async fn promtool(metrics: &str) -> Option<std::process::Output> {
    let mut promtool = tokio::process::Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = promtool.kill_on_drop(true).spawn().ok()?;
    running.stdin.take().unwrap().write_all(metrics.as_bytes()).await.unwrap();
    Some(running.wait_with_output().await.unwrap())
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let rig = Rig::start().await;
    put_empty(&rig.upstream, "library/x", "1", "");
    for _ in 0..2 {
        assert_eq!(rig.get("/v2/library/x/manifests/1").await.0, 200);
    }
    let (status, text) = rig.get("/metrics").await;
    assert_eq!(status, 200);
    let text = String::from_utf8(text.to_vec()).unwrap();
    let names = families(&text);
    assert!(
        names.iter().all(|name| name.starts_with("forebay_") || name.starts_with("process_")),
        "{names:?}"
    );
    for outcome in ["hit", "miss"] {
        let series =
            format!(r#"forebay_requests_total{{face="mirror",kind="manifest",outcome="{outcome}"}}"#);
        assert_eq!(rig.mirror.metric(&series).await, 1.0, "{outcome}");
    }
    match promtool(&text).await {
        Some(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr)),
        None => eprintln!("promtool is not installed: its check is left out"),
    }
}

#[tokio::test]
async fn it_is_healthy_and_ready_though_upstream_is_down() {
    let mut rig = Rig::start().await;
    rig.upstream.stop().await;
    assert_eq!(rig.get("/v2/library/x/manifests/1").await.0, 503);
    assert_eq!(rig.get("/healthz").await.0, 200);
    assert_eq!(rig.get("/readyz").await.0, 200);
    assert_eq!(rig.get("/v2/").await, (200, "{}".into()));
    let (status, page) = rig.get("/").await;
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert_eq!(status, 200);
    for part in ["<!DOCTYPE html>", "docker.io", &rig.mirror.host()] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
}

#[tokio::test]
async fn every_answer_has_an_id_and_a_line() {
    let rig = Rig::start().await;
    put_empty(&rig.upstream, "library/x", "1", "");
    let url = rig.mirror.url() + "/v2/library/x/manifests/1";
    let id = async |path: &str, own: Option<&str>| {
        let mut request = http().get(path).header("User-Agent", "a \"quoted\"\tname");
        if let Some(own) = own {
            request = request.header("X-Request-Id", own);
        }
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(&url, Some("mine-1")).await, "mine-1");
    let given = id(&url, None).await;
    let refused = id(&(rig.mirror.url() + "/v2/UPPER/manifests/1?secret=1"), None).await;
    assert!(given.len() > 4 && given != refused);

    let line_of = async |id: &str| -> Value {
        let wait = Wait::for_("an access line");
        loop {
            let lines = json_lines(&rig.mirror.log());
            if let Some(line) = lines.into_iter().find(|line| line["request_id"] == id) {
                return line;
            }
            wait.a_little().await;
        }
    };
    let line = line_of("mine-1").await;
    assert_eq!((&line["target"], &line["status"]), (&"access".into(), &200.into()));
    assert_eq!((&line["outcome"], &line["cut"]), (&"miss".into(), &false.into()));
    assert_eq!((&line["repository"], &line["reference"]), (&"docker.io/library/x".into(), &"1".into()));
    assert_eq!((&line["client"], &line["user_agent"]), (&"127.0.0.1".into(), &"a \"quoted\"\tname".into()));
    assert_eq!(line_of(&given).await["outcome"], "hit");
    let line = line_of(&refused).await;
    assert_eq!((&line["status"], &line["path"]), (&400.into(), &"/v2/UPPER/manifests/1".into()));
}
