//! README.md and deploy/ say what the program does: every key, flag, variable and metric, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use forebay::metrics::Metrics;

// The harness that wrote README's table; what it prints is not for here.
#[allow(dead_code)]
#[path = "../benches/side_by_side/report.rs"]
mod report;

const README: &str = include_str!("../README.md");
const EXAMPLE: &str = include_str!("../deploy/forebay.toml");
const METRICS: &str = include_str!("../src/metrics/mod.rs");
/// What the benchmark measured when it was last recorded.
const RESULTS: &str = include_str!("../benches/side_by_side/results.json");
const ALERTS: &str = include_str!("../deploy/alerts.yml");

/// Runs the program with no surroundings of its own.
fn forebay(arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_forebay"));
    program.args(arguments).env_clear().env("HOME", "/nowhere").output().unwrap()
}

fn help(arguments: &[&str]) -> String {
    let output = forebay(arguments);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The rows of README's tables, each as its cells; a `\|` stays within a cell.
fn rows() -> impl Iterator<Item = Vec<String>> {
    README.lines().filter_map(|line| {
        let row = line.strip_prefix('|')?.strip_suffix('|')?.replace("\\|", "\u{0}");
        Some(row.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect())
    })
}

/// What stands in backquotes in a cell.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The blocks of README that are written in a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    README.split(&open).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> Vec<String> {
    one.difference(other).cloned().collect()
}

/// Dotted keys of the shipped example, which the configuration's own tests hold complete.
fn keys() -> BTreeSet<String> {
    let mut table = String::new();
    let mut keys = BTreeSet::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            table = match line.trim_matches(['[', ']']) {
                mirror if mirror.starts_with("upstream.") && mirror.ends_with(".mirror") => {
                    "upstream.HOST.mirror.".to_owned()
                }
                host if host.starts_with("upstream.") => "upstream.HOST.".to_owned(),
                issuer if issuer.starts_with("auth.issuer.") => "auth.issuer.NAME.".to_owned(),
                table => format!("{table}."),
            };
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.contains(' ')) {
            let key = if table == "freshness.rules." { "PATTERN" } else { key };
            keys.insert(format!("{table}{key}"));
        }
    }
    keys
}

#[test]
fn every_key_is_explained_and_no_other() {
    let keys = keys();
    assert!(keys.len() > 50, "{keys:?}");
    let tables = [
        "listener.",
        "upstream.",
        "hosted.",
        "cache.",
        "freshness.",
        "refresh.",
        "prefetch.",
        "warm.",
        "negative.",
        "stale.",
        "limits.",
        "tls.",
        "forward_proxy.",
        "shutdown.",
        "log.",
        "events.",
        "gc.",
        "scrub.",
        "auth.",
        "access.",
    ];
    let is_key = |text: &str| {
        tables.iter().any(|table| text.starts_with(table))
            || ["listen", "data", "default_upstream", "operations", "offline"].contains(&text)
    };
    // Rows of four cells that begin with a key: key, type, default, meaning.
    let rows = rows().filter(|row| row.len() == 4 && row[0].starts_with('`') && row[0].ends_with('`'));
    let explained = rows.map(|row| row[0].trim_matches('`').to_owned()).filter(|key| is_key(key)).collect();
    assert_eq!(difference(&keys, &explained), [""; 0], "not in README.md");
    assert_eq!(difference(&explained, &keys), [""; 0], "in README.md alone");
}

#[test]
fn examples_of_configuration_load() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "secret").unwrap();
    let ours: Vec<&str> = blocks("toml").into_iter().filter(|block| block.contains("[upstream.")).collect();
    assert!(ours.len() >= 3, "{ours:?}");
    for block in ours {
        let lines = block.lines().map(|line| match line.starts_with("password_file") {
            true => format!("password_file = {password:?}"),
            false => line.to_owned(),
        });
        let file = directory.path().join("forebay.toml");
        std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let output = forebay(&["check-config", "--config", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}\n{block}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn examples_for_clients_are_well_formed() {
    for block in blocks("toml") {
        toml::from_str::<toml::Table>(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
    for block in blocks("json") {
        serde_json::from_str::<serde_json::Value>(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
    }
    let shipped = include_str!("../daemon.json.example");
    assert!(blocks("json").contains(&shipped.trim_end()), "daemon.json.example is not README.md's");
}

#[test]
fn flags_and_variables_are_told() {
    let words = |text: &str, prefix: &str| -> BTreeSet<String> {
        // Without the rule under a table's headings.
        let text = text.replace("---", "");
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let words =
            text.split(|c| !is_part(c)).filter(|word| word.starts_with(prefix) && word.len() > prefix.len());
        words.map(str::to_owned).collect()
    };
    let section = README.split("### Flags and variables").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut flags = words(help(&["serve", "--help"]).split("Examples:").next().unwrap(), "--");
    flags.remove("--help");
    assert_eq!(words(section, "--"), flags);
    // README tells of one more, which the tests alone know.
    let mut told = words(README, "FOREBAY_");
    assert!(told.remove("FOREBAY_FULL"));
    assert_eq!(told, words(&help(&["--help"]), "FOREBAY_"));
}

#[derive(Debug, PartialEq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// What a process exports: its metrics, and the values of each label.
fn exported() -> (BTreeMap<String, Metric>, BTreeMap<String, BTreeSet<String>>) {
    let metrics = Metrics::new();
    metrics.upstream("docker.io").quota_source.set("192.0.2.1");
    metrics.endpoint("ci");
    let text = String::from_utf8(metrics.render()).unwrap();
    let (mut found, mut values) = (BTreeMap::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            found.insert(name.to_owned(), Metric { kind: kind.to_owned(), labels: BTreeSet::new() });
        } else if let Some((name, labels)) = line.split_once('}').and_then(|(head, _)| head.split_once('{')) {
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            for (label, value) in labels.filter(|(label, _)| *label != "le") {
                found.get_mut(name).unwrap().labels.insert(label.to_owned());
                values.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
            }
        }
    }
    (found, values)
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let (exported, values) = exported();
    // One without a value is not exported, and would go unnoticed.
    for name in METRICS.split('"').filter(|text| text.starts_with("forebay_") && !text.contains(['{', ' '])) {
        assert!(exported.contains_key(name), "give {name} a value in this test");
    }
    let (process, ours): (BTreeSet<_>, BTreeSet<_>) =
        exported.keys().cloned().partition(|name| name.starts_with("process_"));
    let mut told = BTreeSet::new();
    for row in rows().filter(|row| row[0].starts_with("`forebay_")) {
        let name = row[0].trim_matches('`').to_owned();
        let metric = Metric { kind: row[1].clone(), labels: quoted(&row[2]) };
        assert_eq!(exported.get(&name), Some(&metric), "{name}");
        told.insert(name);
    }
    assert_eq!(difference(&ours, &told), [""; 0], "not in README.md");
    for name in process {
        assert!(README.contains(&format!("`{name}`")), "{name} is not in README.md");
    }
    for (label, values) in values {
        if ["upstream", "version", "source", "endpoint"].contains(&label.as_str()) {
            continue;
        }
        let row = rows().find(|row| row.len() == 2 && row[0] == format!("`{label}`"));
        let row = row.unwrap_or_else(|| panic!("the label {label} is not in README.md"));
        assert_eq!(quoted(&row[1]), values, "{label}");
    }
}

/// That the rules are well formed is promtool's to say; that there are such metrics, only ours.
#[test]
fn alerts_ask_for_metrics_that_exist() {
    let (exported, values) = exported();
    let names = ALERTS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for name in names.filter(|word| word.starts_with("forebay_") || word.starts_with("process_")) {
        assert!(exported.contains_key(name), "{name}");
    }
    for label in ["result", "outcome", "face", "kind", "state"] {
        for rest in ALERTS.split(&format!("{label}=\"")).skip(1) {
            let value = rest.split('"').next().unwrap();
            assert!(values[label].contains(value), "{label}={value}");
        }
    }
}

/// A run with `--record` writes both.
#[test]
fn what_was_measured_is_what_is_told() {
    let results: report::Results = serde_json::from_str(RESULTS).unwrap();
    let told = report::retold(README, &report::readme(&results)).unwrap();
    assert!(README == told, "README.md's table is not that of results.json");
    assert_eq!(report::gaps(&results).collect::<Vec<_>>(), [""; 0], "not in results.json");
}

#[test]
fn links_lead_somewhere() {
    let headings: BTreeSet<String> = README
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|text| text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>())
        .map(|text| text.replace(' ', "-"))
        .collect();
    for target in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        match target.strip_prefix('#') {
            Some(heading) => assert!(headings.contains(heading), "#{heading} in {headings:?}"),
            None => assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists(), "{target}"),
        }
    }
}
