//! wrk: HTTP/1.1, plain and over TLS. (It waits for the body of a HEAD, which never comes.)

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Done;
use crate::support::image::MANIFEST;
use crate::support::process::{command, run};

/// Prints what wrk knows exactly; its own report is rounded.
const REPORT: &str = r#"
done = function(summary)
  local e = summary.errors
  local bad = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.bytes, summary.duration, bad))
end
"#;

#[derive(Clone)]
pub struct Wrk {
    script: PathBuf,
}

impl Wrk {
    /// `None` where it is not installed.
    pub fn find(scratch: &Path) -> Option<Self> {
        if std::process::Command::new("wrk").arg("-v").output().is_err() {
            eprintln!("wrk is not there: most GETs are left out");
            return None;
        }
        let script = scratch.join("report.lua");
        std::fs::write(&script, REPORT).unwrap();
        Some(Self { script })
    }

    pub async fn get(&self, url: &str, connections: usize, turn: Duration) -> Done {
        let mut wrk = command("wrk", ["--threads", "1", "--connections", &connections.to_string()]);
        wrk.args(["--duration", &format!("{}s", turn.as_secs()), "--timeout", "30s"]);
        wrk.args(["--header", &format!("Accept: {MANIFEST}")]).arg("--script").arg(&self.script);
        wrk.arg(url);
        let said = run(wrk).await;
        let result = said.lines().find_map(|line| line.strip_prefix("RESULT ")).expect("wrk's result");
        let numbers: Vec<u64> = result.split(' ').map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers[3], 0, "answers that are no success: {url}\n{said}");
        Done { requests: numbers[0], bytes: numbers[1], seconds: numbers[2] as f64 / 1e6 }
    }
}
