//! Keeps the results of a run: as they are in `results.json`, as a table in README.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde::Serialize;

use crate::report::{self, Figure, Quantity, Results, Row};
use crate::rivals::{DISTRIBUTION_VERSION, ZOT_VERSION};
use crate::servers::Kind;

pub fn record(results: &mut Results) {
    describe(results);
    for gap in report::gaps(results) {
        eprintln!("README's table will say nothing of: {gap}");
    }
    std::fs::write(kept(), json(results)).unwrap();
    tell();
}

/// Puts the results that are kept into README.
pub fn tell() {
    let results = serde_json::from_str(&std::fs::read_to_string(kept()).unwrap()).unwrap();
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    let text = report::retold(&text, &report::readme(&results)).expect("README's marks");
    std::fs::write(readme, text).unwrap();
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/side_by_side/results.json")
}

/// Says where and with what the results were made.
fn describe(results: &mut Results) {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    results.date = httpdate::fmt_http_date(SystemTime::now())[5..16].to_owned();
    results.kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
    results.cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processors = read("/proc/cpuinfo");
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    results.processor = model.map_or("", |model| model.trim_start_matches([' ', '\t', ':'])).to_owned();
    let versions = [
        (Kind::Nginx, said("nginx", "-v")),
        (Kind::DockerRegistry, said("docker-registry", "--version")),
        (Kind::Distribution, DISTRIBUTION_VERSION.trim_start_matches('v').to_owned()),
        (Kind::Zot, ZOT_VERSION.trim_start_matches('v').to_owned()),
    ];
    let named = versions.into_iter().map(|(kind, version)| (kind.name().to_owned(), version));
    results.versions = named.filter(|(name, _)| results.rows.iter().any(|row| row.server == *name)).collect();
}

/// The version in what a program says of itself.
fn said(program: &str, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return String::new() };
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let last = text.split_whitespace().last().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    last.split(['+', '~']).next().unwrap_or_default().to_owned()
}

/// A row a line, with the figures that follow from its turns.
fn json(results: &Results) -> String {
    #[derive(Serialize)]
    struct Recorded<'a> {
        #[serde(flatten)]
        row: &'a Row,
        figures: BTreeMap<Quantity, Figure>,
    }
    let mut whole = serde_json::to_value(results).unwrap();
    whole["rows"] = serde_json::Value::Array(Vec::new());
    let rows: Vec<String> = results
        .rows
        .iter()
        .map(|row| {
            let figures =
                row.quantities().into_iter().filter_map(|quantity| Some((quantity, row.figure(quantity)?)));
            serde_json::to_string(&Recorded { row, figures: figures.collect() }).unwrap()
        })
        .collect();
    let frame = serde_json::to_string_pretty(&whole).unwrap();
    frame.replace("\"rows\": []", &format!("\"rows\": [\n{}\n  ]", rows.join(",\n"))) + "\n"
}
