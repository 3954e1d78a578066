//! Keys, kinds and numbers that are wrong in any table.

use proptest::prelude::*;

use super::*;

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    refused("\nlisen = []", 2, &[": lisen: ", "mean `listen`?"]);
    refused("[cache]\nmax_size = \"1GiB\"\nmaxsize = \"1GiB\"", 3, &[": cache.maxsize: ", "`max_size`"]);
    refused("[chache]", 1, &[": chache: ", "`cache`"]);
    refused("[upstream.\"ghcr.io\"]\nuser = \"x\"", 2, &["upstream.\"ghcr.io\".user", "`username`"]);
    refused("[upstream.\"ghcr.io\"]\nzzz = 1", 2, &["zzz", "[upstream.\"ghcr.io\"]", "password_file"]);
    refused("[[limits.network]]\ncidr = \"10.0.0.0/8\"\ncold_mises = \"1/m\"", 3, &["`cold_misses`"]);
    refused("[tls]\ncertificate = \"x\"", 2, &["`certificate_file`"]);
    refused("[log]\nlevle = \"x\"", 2, &["`level`"]);
    refused("[[warm]]\nimage = [\"nginx\"]", 2, &[": warm.image: ", "did you mean `images`?"]);
    for table in ["hosted", "freshness", "negative", "stale", "limits", "shutdown"] {
        refused(&format!("[{table}]\nxyzzy = 1"), 2, &[&format!(": {table}.xyzzy: unknown key")]);
    }
}

#[test]
fn broken_toml_is_placed() {
    refused("data = \"/x\"\nlisten = [\n", 2, &["not TOML"]);
    refused("data = \"/x\"\n\ndata = \"/y\"", 3, &["not TOML", "duplicate"]);
}

#[test]
fn wrong_kinds_are_refused() {
    refused("listen = 5000", 1, &[": listen: ", "texts in quotes", "number"]);
    refused("listen = [\n\"127.0.0.1:1\",\n5000]", 3, &[": listen: "]);
    refused("data = true", 1, &[": data: ", "in quotes"]);
    refused("cache = 1", 1, &[": cache: ", "`[cache]`"]);
    refused("upstream = [\"ghcr.io\"]", 1, &[": upstream: ", "table"]);
    refused("[upstream]\n\"ghcr.io\" = \"https://x\"", 2, &["`[upstream.\"ghcr.io\"]`"]);
    refused("[log]\naccess = \"yes\"", 2, &[": log.access: ", "true or false"]);
    refused("[limits]\nnetwork = 1", 2, &["`[[limits.network]]`"]);
    refused("[limits]\nqueue = \"10\"", 2, &[": limits.queue: ", "whole number from 0 to 1000000"]);
    refused("[freshness.rules]\nx = 2020-01-01", 2, &["in quotes", "a date"]);
}

#[test]
fn numbers_are_bounded() {
    for (key, low, high) in
        [("max_requests", 1i64, 10_000i64), ("max_fills", 1, 10_000), ("queue_length", 0, 1_000_000)]
    {
        let file = |number: i64| format!("[upstream.\"docker.io\"]\n{key} = {number}");
        loaded(&file(low));
        loaded(&file(high));
        refused(&file(low - 1), 2, &[key, "out of bounds"]);
        refused(&file(high + 1), 2, &[key, &high.to_string()]);
    }
    refused("[cache]\nresumes = 99999999999999999999999", 2, &[": cache.resumes: ", "0 to 1000"]);
    refused("[limits]\nmax_connections = 0", 2, &["1 to 1000000"]);
    refused("[freshness]\njitter = 0.6", 2, &[": freshness.jitter: ", "0.5"]);
    refused("[freshness]\njitter = nan", 2, &[": freshness.jitter: "]);
    assert_eq!(loaded("[freshness]\njitter = 0").mirror.freshness.jitter, 0.0);
    assert_eq!(loaded("[freshness]\njitter = 0.5").mirror.freshness.jitter, 0.5);
    refused("[freshness]\njitter = 1", 2, &[": freshness.jitter: "]);
    assert_eq!(loaded("[cache]\nrange_share = 1").store.range_share, 1.0);
}

#[test]
fn units_are_asked_for() {
    refused("[cache]\nmax_size = 64", 2, &[": cache.max_size: ", "no unit", "`64GiB`"]);
    refused("[cache]\nmax_size = \"0B\"", 2, &["room for nothing"]);
    refused("[cache]\nmax_size = \"99999999PiB\"", 2, &["too large"]);
    refused("[cache]\nmax_size = \"80%\"", 2, &["a size is wanted", "`64GiB`"]);
    refused("[scrub]\nrate = \"20MiB/s\"", 2, &["write `20MiB`"]);
    refused("[scrub]\nquarantine = \"off\"", 2, &["write `0B`"]);
    refused("[scrub]\ninterval = \"never\"", 2, &["is no time; write", "or `off`"]);
    refused("[shutdown]\ngrace = 300", 2, &[": shutdown.grace: ", "`300s`"]);
    refused("[shutdown]\ngrace = \"-1s\"", 2, &["negative"]);
    refused("[limits]\ncold_misses = 120", 2, &[": limits.cold_misses: ", "`120/m`"]);
    refused("[upstream.\"docker.io\"]\nconnect_timeout = \"0s\"", 2, &["`30s`"]);
    refused("[freshness.rules]\nlatest = \"1000y\"", 2, &["freshness.rules.latest", "366days"]);
}

/// Lines that are keys, tables or values of ours, well or badly put together.
fn scraps() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "listen",
        "data",
        "[upstream.\"docker.io\"]",
        "url",
        "aliases",
        "[hosted]",
        "repositories",
        "[cache]",
        "max_size",
        "[freshness.rules]",
        "\"a*\"",
        "[limits]",
        "cold_misses",
        "[[limits.network]]",
        "cidr",
        "trusted_proxies",
        "[log]",
        "level",
        "[shutdown]",
        "grace",
        "private",
        "username",
    ]);
    let value = prop_oneof![
        "\"[ -!#-\\[\\]-~]{0,12}\"".prop_map(|text| text),
        prop::sample::select(vec![
            "\"1GiB\"",
            "\"5m\"",
            "\"120/m\"",
            "[]",
            "[\"a\"]",
            "true",
            "-1",
            "0.5",
            "{}",
            "[[]]"
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
    ];
    let line =
        (key, value).prop_map(
            |(key, value)| {
                if key.starts_with('[') { key.to_owned() } else { format!("{key} = {value}") }
            },
        );
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn whatever_is_written_is_taken_or_refused_in_one_line(file in prop_oneof![scraps(), "\\PC{0,60}"]) {
        let entries = tree::parse(Path::new("f"), &file);
        match entries.and_then(|entries| build::build(entries, None, &nowhere(), Vec::new())) {
            Ok(config) => prop_assert!(!config.explain().is_empty()),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
