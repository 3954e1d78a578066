//! What the name of a registry alone decides.

use super::*;
use crate::config::presets::{PRESETS, Preset};

/// A host, and where it has tokens fetched (protocol.md, "Other upstreams"); None where it has no tokens.
const CHALLENGES: [(&str, Option<&str>); 18] = [
    ("docker.io", Some("auth.docker.io")),
    ("ghcr.io", Some("ghcr.io")),
    ("quay.io", Some("quay.io")),
    ("gcr.io", Some("gcr.io")),
    ("eu.gcr.io", Some("eu.gcr.io")),
    ("europe-west3-docker.pkg.dev", Some("europe-west3-docker.pkg.dev")),
    ("registry.k8s.io", None),
    ("mcr.microsoft.com", None),
    ("public.ecr.aws", Some("public.ecr.aws")),
    ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", None),
    ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", None),
    ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", None),
    ("123456789012.dkr-ecr.us-east-1.on.aws", None),
    ("corp.azurecr.io", Some("corp.azurecr.io")),
    ("registry.gitlab.com", Some("gitlab.com")),
    ("nvcr.io", Some("authn.nvidia.com")),
    ("lscr.io", Some("ghcr.io")),
    ("registry.access.redhat.com", Some("registry.access.redhat.com")),
];

fn one_line(host: &str) -> Config {
    loaded(&format!("[upstream.\"{host}\"]"))
}

fn upstream<'a>(config: &'a Config, host: &str) -> &'a crate::upstream::Options {
    config.upstreams.iter().find(|upstream| upstream.host.as_str() == host).unwrap()
}

#[test]
fn one_line_enables_each_and_its_token_server_may_be_sent_the_login() {
    let mut seen = Vec::new();
    for (host, realm) in CHALLENGES {
        let config = one_line(host);
        let upstream = upstream(&config, host);
        let (preset, pattern) = Preset::of(host).unwrap();
        seen.push(preset.remark);
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        assert_eq!(upstream.url.as_str(), format!("https://{address}/"));
        let domain = |host: &str| psl::domain_str(host).map(str::to_owned);
        if let Some(realm) = realm {
            let related = realm == address || domain(realm) == domain(address);
            let listed = upstream.realm_hosts.iter().any(|host| host == realm);
            assert!(related != listed, "{host}: {realm} is to be listed if, and only if, it has to be");
        }
        let explained = config.explain();
        assert!(explained.contains(&format!("\n# preset: {}\n", preset.remark)), "{explained}");
        let shown = explained.lines().filter(|line| line.ends_with(&format!(" # preset for {pattern}")));
        let preset_values = config.sources.values().filter(|origin| **origin == Origin::Preset(pattern));
        assert_eq!(shown.count(), preset_values.count(), "{explained}");
    }
    assert!(PRESETS.iter().all(|preset| seen.contains(&preset.remark)), "a preset without a row here");
}

#[test]
fn other_names_have_no_preset() {
    for host in [
        "docker.io.example",
        "a.docker.io",
        "-docker.pkg.dev",
        "a.b-docker.pkg.dev",
        "azurecr.io",
        "a.b.azurecr.io",
        "ghcr.io:443",
        "dkr.ecr.eu-central-1.amazonaws.com",
        "registry.example",
    ] {
        assert!(Preset::of(host).is_none(), "{host}");
    }
}

#[test]
fn who_needs_a_login_is_told_which_unless_there_is_one() {
    let case = Case::new("");
    let secret = case.file("secret", "x", 0o600);
    let warnings = |host: &str, keys: &str| {
        case.rewrite(&format!("[upstream.\"{host}\"]\n{keys}"));
        case.load().unwrap().warnings
    };
    let login = format!("username = \"me\"\npassword_file = {secret:?}\n");
    for (host, helper) in [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", Some("ecr-login")),
        ("corp.azurecr.io", Some("acr-env")),
        ("europe-docker.pkg.dev", None),
        ("ghcr.io", None),
        ("registry.example", None),
    ] {
        let told = warnings(host, "");
        match helper {
            None => assert_eq!(told, [""; 0], "{host}"),
            Some(helper) => {
                assert!(told.len() == 1 && told[0].contains("forebay.toml:1: upstream."), "{told:?}");
                assert!(told[0].contains(&format!("`credential_helper = \"{helper}\"`")), "{told:?}");
                let told = warnings(host, &login);
                assert!(told.len() == 1 && told[0].contains("`private = \"shared\"`"), "{told:?}");
            }
        }
        assert_eq!(warnings(host, &format!("{login}private = \"shared\"")), [""; 0]);
        assert_eq!(warnings(host, "url = \"http://127.0.0.1:1\""), [""; 0]);
    }
}

#[test]
fn what_the_user_says_stands() {
    let case = Case::new("");
    let secret = case.file("secret", "x", 0o600);
    let of = |host: &str, keys: &str| {
        case.rewrite(&format!("[upstream.\"{host}\"]\n{keys}"));
        upstream(&case.load().unwrap(), host).clone()
    };
    let ceiling = |keys: &str| of("public.ecr.aws", keys).requests_per_minute.map(|number| number.get());
    assert_eq!(ceiling(""), Some(300));
    assert_eq!(ceiling("requests_per_minute = 7"), Some(7));
    assert_eq!(ceiling(&format!("username = \"AWS\"\npassword_file = {secret:?}")), None);
    assert_eq!(ceiling("url = \"https://mirror.corp\""), None);
    assert_eq!(ceiling("url = \"https://public.ecr.aws\""), Some(300));
    assert_eq!(of("lscr.io", "").realm_hosts, ["ghcr.io"]);
    assert_eq!(of("lscr.io", "realm_hosts = []").realm_hosts, [""; 0]);
    assert_eq!(of("lscr.io", "url = \"http://127.0.0.1:1\"").realm_hosts, [""; 0]);
}

#[test]
fn an_alias_gives_way_to_who_has_the_name() {
    let aliases = |file: &str| loaded(file).owners.upstreams.last().unwrap().1.clone();
    let kubernetes = "[upstream.\"registry.k8s.io\"]\n";
    assert_eq!(aliases(kubernetes), ["k8s.gcr.io"]);
    assert_eq!(aliases(&format!("{kubernetes}aliases = \"k8s\"")), ["k8s"]);
    assert_eq!(aliases(&format!("{kubernetes}aliases = []")), [""; 0]);
    assert_eq!(aliases(&format!("[upstream.\"k8s.gcr.io\"]\n{kubernetes}")), [""; 0]);
    assert_eq!(aliases(&format!("[upstream.\"gcr.io\"]\naliases = [\"k8s.gcr.io\"]\n{kubernetes}")), [""; 0]);
}

#[test]
fn tags_that_do_not_move_are_asked_about_once_a_day() {
    let rules = |file: &str| -> Vec<(String, u64)> {
        let rules = loaded(file).mirror.freshness.rules;
        rules.iter().take(2).map(|(pattern, time)| (pattern.as_str().to_owned(), time.as_secs())).collect()
    };
    let pattern = "registry.k8s.io/**:*.*";
    let kubernetes = "[upstream.\"registry.k8s.io\"]\n";
    assert_eq!(rules(kubernetes)[0], (pattern.to_owned(), 86_400));
    let file = format!("{kubernetes}[freshness.rules]\n\"a\" = \"1s\"\n");
    assert_eq!(rules(&file), [("a".to_owned(), 1), (pattern.to_owned(), 86_400)]);
    assert_eq!(
        rules(&format!("{file}\"{pattern}\" = \"2s\"")),
        [("a".to_owned(), 1), (pattern.to_owned(), 2)]
    );
}
