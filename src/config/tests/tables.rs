//! The other tables.

use super::*;
use crate::upstream::Reserve;

#[test]
fn freshness_rules_keep_their_order_and_come_before_the_defaults() {
    let config =
        loaded("[freshness.rules]\n\"z*\" = \"1s\"\nmain = \"2s\"\n\"library/*:1.*\" = \"3s\"\na = \"4s\"");
    let rules: Vec<_> =
        config.mirror.freshness.rules.iter().map(|(tag, time)| (tag.as_str(), time.as_secs())).collect();
    let expected = [
        ("z*", 1),
        ("main", 2),
        ("library/*:1.*", 3),
        ("a", 4),
        ("latest", 60),
        ("edge", 60),
        ("nightly", 60),
    ];
    assert_eq!(rules, expected);
    loaded("[freshness.rules]\n\"localhost:5001/team/*:1.*\" = \"1s\"");
    for rule in ["a:b:c", "a:b/c:d:e"] {
        refused(&format!("[freshness.rules]\n\"{rule}\" = \"1s\""), 2, &[rule, "`library/*:1.*`"]);
    }
    refused("[freshness.rules]\n\"[\" = \"1s\"", 2, &["freshness.rules.\"[\"", "`nightly*`"]);
}

#[test]
fn the_reserve_is_for_whom_other_sections_name() {
    let budget = |text: &str| {
        let config = loaded(text);
        (config.access, config.upstreams[0].budget.clone())
    };
    let (access, default) = budget("");
    assert_eq!(default, crate::upstream::BudgetOptions::default());
    assert!(access.priority.is_nobody() && access.fair_share);
    let (access, told) = budget(
        "[limits]\npriority = [\"10.0.0.0/8\", \"::1\", \"ci-*\", \"gitlab:corp/*\"]\nfair_share = false\n\
         [upstream.\"docker.io\"]\nquota_reserve = 5",
    );
    assert_eq!(access.priority.texts(), ["10.0.0.0/8", "::1/128", "ci-*", "gitlab:corp/*"]);
    assert_eq!((told.reserve, told.has_priority, told.fair_share), (Reserve::Pulls(5), true, false));
    let (_, share) = budget("[upstream.\"docker.io\"]\nquota_reserve = \"25%\"");
    assert_eq!((share.reserve, share.has_priority), (Reserve::Percent(25), false));
    let config = loaded("[[warm]]\nimages = [\"nginx:1.27\"]\n[upstream.\"ghcr.io\"]");
    let reserved: Vec<bool> = config.upstreams.iter().map(|upstream| upstream.budget.has_priority).collect();
    assert_eq!(reserved, [true, false], "Docker Hub's, for the image that is kept warm");
    refused("[limits]\npriority = [\"10.0.0.1/8\"]", 2, &["limits.priority", "`10.0.0.0/8`"]);
    refused("[limits]\npriority = \"\"", 2, &["limits.priority", "is empty"]);
    refused("[upstream.\"docker.io\"]\nquota_reserve = \"110%\"", 2, &["quota_reserve", "`10%`"]);
}

#[test]
fn listeners_are_addresses_and_there_once() {
    assert_eq!(loaded("listen = \"0.0.0.0:0\"").http.listen, [address("0.0.0.0:0")]);
    assert_eq!(loaded("listen = [\"0.0.0.0:0\", \"0.0.0.0:0\"]").http.listen.len(), 2);
    for text in ["localhost:5000", ":5000", "5000", "0.0.0.0", "::1:5000x"] {
        refused(&format!("listen = [\"{text}\"]"), 1, &[": listen: ", text, "`0.0.0.0:5000`"]);
    }
    refused("listen = [\"[::1]:1\",\n\"[::1]:1\"]", 2, &["[::1]:1 is there twice"]);
    refused("listen = \"[::1]:1\"\noperations = \"[::1]:1\"", 2, &[": operations: ", "another port"]);
    refused("\nlisten = []", 2, &[": listen: the list is empty"]);
}

#[test]
fn hosted_patterns_do_not_hide_docker_hub_by_accident() {
    let file = |pattern: &str| format!("[hosted]\nrepositories = [\"*\", \"{pattern}\"]");
    for fine in ["*", "my*", "myapp", "corp.internal/**", "*.internal/**", "corp.internal/team-*/app"] {
        assert_eq!(loaded(&file(fine)).owners.hosted, ["*", fine]);
    }
    for hub in ["team/**", "**", "*/x", "**/corp.internal", "team/app.v2"] {
        refused(&file(hub), 2, &["hosted.repositories: ", hub, "`corp.internal/**`", "`shadow = true`"]);
        let config = loaded(&format!("{}\nshadow = true", file(hub)));
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    }
    for bad in ["", "/", "a/", "A", "a**", "a.b/**c", "{a,b}/x", "[a]", "a?"] {
        refused(&file(bad), 2, &["is no pattern", "`corp.internal/**`"]);
    }
    assert!(loaded("[hosted]\nrepositories = []").owners.hosted.is_empty());
}

#[test]
fn tls_needs_both_files() {
    let case = Case::new("");
    let certificate = case.file("cert.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
    let key = case.file("key.pem", "-----BEGIN EC PRIVATE KEY-----\n", 0o600);
    case.rewrite(&format!("[tls]\ncertificate_file = {certificate:?}"));
    assert!(
        case.error().contains("toml:2: tls.certificate_file: ") && case.error().contains("--tls-key-file")
    );
    case.rewrite(&format!("[tls]\nkey_file = {key:?}"));
    assert!(case.error().contains("tls.key_file: ") && case.error().contains("tls.certificate_file"));
    case.rewrite(&format!("[tls]\nkey_file = {certificate:?}\ncertificate_file = {key:?}"));
    assert!(case.error().contains("right file?"), "{}", case.error());
    case.rewrite(&format!("[tls]\nkey_file = {key:?}\ncertificate_file = {certificate:?}"));
    let config = case.load().unwrap();
    assert!(config.warnings.is_empty());
    assert_eq!(config.http.tls.unwrap().key_file, PathBuf::from(&key));
    case.file("key.pem", "-----BEGIN PRIVATE KEY-----\n", 0o644);
    assert!(case.load().unwrap().warnings[0].contains("chmod 600"));
}

#[test]
fn client_limits() {
    let config = loaded(
        "[limits]\nrequests = \"10/s\"\ncold_misses = \"60/m burst 90\"\nwait = \"0s\"\nqueue = 0\n\
         trusted_proxies = [\"10.0.0.1\", \"fd00::/8\"]\n[[limits.network]]\ncidr = \"10.0.0.0/8\"\n\
         cold_misses = \"unlimited\"\n[[limits.network]]\ncidr = \"10.1.0.0/16\"\nrequests = \"5/m\"",
    );
    let access = config.access;
    assert_eq!(access.requests.map(|rate| rate.per_minute.get()), Some(600));
    assert_eq!((access.wait, access.queue), (Duration::ZERO, 0));
    assert_eq!(access.trusted_proxies, ["10.0.0.1/32", "fd00::/8"].map(|text| text.parse().unwrap()));
    let [wide, narrow] = &access.overrides[..] else { panic!("two networks") };
    assert_eq!(
        (wide.rates.requests, wide.rates.cold_misses),
        (access.requests, None),
        "what is not said is as for others"
    );
    assert_eq!(narrow.rates.cold_misses.map(|rate| rate.burst.get()), Some(90));
    let network = |cidr: &str| format!("[[limits.network]]\ncidr = \"{cidr}\"");
    refused(&network("10.0.0.1/8"), 2, &["limits.network.cidr: ", "write `10.0.0.0/8`"]);
    refused(&network("10.0.0.0/33"), 2, &["`2001:db8::/32`"]);
    refused(&format!("{0}\n{0}", network("10.0.0.0/8")), 4, &["10.0.0.0/8 has limits already"]);
    refused("\n[[limits.network]]\nrequests = \"1/m\"", 2, &["limits.network.cidr: which network?"]);
    let everybody = loaded("[limits]\ntrusted_proxies = \"0.0.0.0/0\"");
    assert!(
        everybody.warnings[0].contains("forebay.toml:2: limits.trusted_proxies"),
        "{:?}",
        everybody.warnings
    );
}

#[test]
fn data_is_a_directory() {
    let case = Case::new("");
    let file = case.file("file", "", 0o600);
    case.rewrite(&format!("data = {file:?}"));
    assert!(case.error().contains("toml:1: data: ") && case.error().contains("is a file"));
    refused("data = \"\"", 1, &["name a directory"]);
}

#[test]
fn garbage_and_retention() {
    let config = loaded("");
    assert_eq!(config.gc.interval, Some(Duration::from_secs(24 * 3600)));
    assert_eq!((config.gc.untagged, config.store.lease), (None, Duration::from_secs(7200)));
    let config = loaded(
        "[gc]\ninterval = \"off\"\nlease = \"1m\"\nuntagged = \"7d\"\n[[hosted.retention]]\nrepositories = \"ci\"\n\
         keep_last = 3\n[[hosted.retention]]\nrepositories = [\"corp.internal/**\"]\nkeep_for = \"30d\"\n\
         keep_tags = [\"v*\"]\nuntagged_for = \"0s\"",
    );
    let day = Duration::from_secs(24 * 3600);
    assert_eq!((config.gc.interval, config.gc.untagged), (None, Some(7 * day)));
    assert_eq!(config.store.lease, Duration::from_secs(60));
    let [first, second] = &*config.gc.retention else { panic!("two rules") };
    assert_eq!((first.keep_last, first.keep_for, first.untagged_for), (Some(3), None, None));
    assert_eq!((second.keep_for, second.untagged_for), (Some(30 * day), Some(Duration::ZERO)));
    assert_eq!(second.keep_tags[0].as_str(), "v*");
    refused("[gc]\nlease = \"0s\"", 2, &["gc.lease", "`1ms`"]);
    refused("[gc]\ninterval = \"1s\"", 2, &["gc.interval", "`1m`", "`off`"]);
    refused("[gc]\nuntagged = \"never\"", 2, &["gc.untagged", "`keep`"]);
    assert_eq!((config.scrub.interval, config.scrub.rate.get()), (Some(30 * day), 20 << 20));
    assert_eq!(config.store.quarantine, 10 << 30);
    refused("[scrub]\ninterval = \"0s\"", 2, &["scrub.interval", "`1s`", "`off`"]);
    refused("[scrub]\nrate = \"0B\"", 2, &["scrub.rate", "`20MiB`"]);
    refused("[[hosted.retention]]\nkeep_last = 1", 1, &["hosted.retention.repositories", "Add"]);
    refused("[[hosted.retention]]\nrepositories = []", 2, &["the list is empty"]);
    refused("[[hosted.retention]]\nrepositories = [\"A\"]", 2, &["is no pattern"]);
    refused("[[hosted.retention]]\nrepositories = [\"a\"]\nkeep_last = 0", 3, &["out of bounds"]);
    refused("[[hosted.retention]]\nrepositories = [\"a\"]\nkeep = 1", 3, &["unknown key"]);
}

#[test]
fn images_that_are_kept_warm() {
    let config = loaded(
        "[upstream.\"ghcr.io\"]\n[[warm]]\nimages = [\"nginx\", \"ghcr.io/org/app:main\"]\nplatforms = [\"linux/arm64\"]\n\
         every = \"30m\"\n[[warm]]\nimages = \"localhost:5000/ghcr.io/org/app:2\"\n[refresh]\nper_minute = 0",
    );
    let [first, second] = config.warm.as_slice() else { panic!("two tables") };
    let names = |pinned: &crate::mirror::Pinned| -> Vec<String> {
        pinned.images.iter().map(|image| format!("{}:{}", image.repository, image.reference)).collect()
    };
    assert_eq!(names(first), ["docker.io/library/nginx:latest", "ghcr.io/org/app:main"]);
    assert_eq!((first.every, second.every), (seconds(1800), seconds(6 * 3600)));
    assert_eq!(names(second), ["ghcr.io/org/app:2"]);
    assert_eq!(second.platforms, crate::oci::Platforms::of_this_machine());
    assert_eq!(config.mirror.ahead.refreshes_per_minute, 0);
    for (table, line, part) in [
        ("every = \"1h\"", 1, "which?"),
        ("images = []", 2, "the list is empty"),
        ("images = [\"quay.io/a/b\"]", 2, "`quay.io` is not mirrored here"),
        ("images = [\"localhost:5000/app\"]", 2, "`app` is hosted here"),
        ("images = [\"a\", \"library/a:latest\"]", 2, "is there twice"),
        ("images = [\"a\"]\nplatforms = [\"amd64\"]", 3, "`amd64` is no platform"),
        ("images = [\"a\"]\nplatforms = [\"all\", \"linux/386\"]", 3, "`all` alone"),
        ("images = [\"a\"]\nevery = \"1s\"", 3, "`10s` or more"),
        ("image = \"a\"", 2, "did you mean `images`"),
    ] {
        refused(&format!("[[warm]]\n{table}"), line, &[part]);
    }
}
