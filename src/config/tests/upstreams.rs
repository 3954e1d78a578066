//! Upstreams, and who owns a name.

use super::*;
use crate::upstream::{Credential, Password, PrivatePolicy, Proofs, Proxy};

#[test]
fn upstreams() {
    let case = Case::new("");
    let secret = case.file("secret", "s3cret\n", 0o600);
    let ca = case.file("ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
    case.rewrite(&format!(
        "[upstream.\"ghcr.io\"]\nurl = \"http://127.0.0.1:5001/base\"\naliases = \"gh\"\nusername = \"me\"\n\
         password_file = {secret:?}\nca_file = {ca:?}\nprivate = \"shared\"\nredirect_hosts = [\"CDN.corp\", \"10.0.0.1\"]\n\
         realm_hosts = [\"auth.corp\"]\nrequests_per_minute = 90\n[upstream.\"docker.io\"]\naliases = [\"dockerhub\"]"
    ));
    let config = case.load().unwrap();
    let [hub, ghcr] = &config.upstreams[..] else { panic!("two upstreams") };
    assert!(hub.host.is_docker_hub());
    assert_eq!(ghcr.url.as_str(), "http://127.0.0.1:5001/base/");
    let password = Password::File(PathBuf::from(&secret));
    assert_eq!(ghcr.credential, Some(Credential::Password { username: "me".into(), password }));
    assert_eq!((ghcr.private, ghcr.ca_file.clone()), (PrivatePolicy::Shared, Some(ca.into())));
    assert_eq!(ghcr.redirect_hosts, ["cdn.corp", "10.0.0.1"]);
    assert_eq!(ghcr.requests_per_minute.map(|n| n.get()), Some(90));
    let names: Vec<_> =
        config.owners.upstreams.iter().map(|(host, aliases)| (host.as_str(), aliases.clone())).collect();
    assert_eq!(names, [("docker.io", vec!["dockerhub".into()]), ("ghcr.io", vec!["gh".to_owned()])]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(!config.explain().contains("s3cret"));
}

#[test]
fn a_lone_word_is_doubted_unless_it_has_a_url() {
    for (name, warned) in [("ghcr", 1), ("localhost", 0), ("registry:5000", 0), ("ghcr.io", 0)] {
        let warnings = loaded(&format!("[upstream.\"{name}\"]")).warnings;
        assert_eq!(warnings.len(), warned, "{warnings:?}");
        assert!(warnings.iter().all(|told| told.contains("forebay.toml:1: upstream.ghcr: ")), "{warnings:?}");
    }
    assert!(loaded("[upstream.registry]\nurl = \"http://registry:5000\"").warnings.is_empty());
}

#[test]
fn hosts_are_hosts_in_one_spelling() {
    for bad in ["ghcr.io/org", "https://ghcr.io", "a b", "ghcr.io:0"] {
        refused(&format!("[upstream.\"{bad}\"]"), 1, &["upstream.", "no registry host", "`url`"]);
    }
    refused(
        "[upstream.ghcr.io]\nprivate = \"shared\"",
        1,
        &["upstream.ghcr.io: ", "quotes: `[upstream.\"ghcr.io\"]`"],
    );
    refused("[upstream.quay.corp.internal]", 1, &["`[upstream.\"quay.corp.internal\"]`"]);
    refused("\n[upstream.\"index.docker.io\"]", 2, &["[upstream.\"docker.io\"]"]);
    refused("[upstream.\"GHCR.io\"]", 1, &["[upstream.\"ghcr.io\"]"]);
}

#[test]
fn urls_are_bases_of_registries() {
    let file = |url: &str| format!("[upstream.\"ghcr.io\"]\nurl = \"{url}\"");
    for (url, part) in [
        ("ghcr.io", "`https://registry.example/`"),
        ("ghcr.io:443", "https://"),
        ("ftp://ghcr.io", "https://"),
        ("https://me:hunter2@ghcr.io", "`password_file`"),
        ("https://me@ghcr.io", "`username`"),
        ("https://ghcr.io/?a=b", "query"),
        ("https://ghcr.io/#a", "fragment"),
        ("https://ghcr.io/v2", "/v2"),
        ("https://ghcr.io/v2/", "/v2"),
        ("https://", "no URL"),
    ] {
        refused(&file(url), 2, &[": upstream.\"ghcr.io\".url: ", part]);
        assert!(!Case::new(&file(url)).error().contains("hunter2"));
    }
    assert_eq!(loaded(&file("https://ghcr.io:8443/a")).upstreams[1].url.as_str(), "https://ghcr.io:8443/a/");
    for host in ["https://cdn", "cdn:443", "*.cdn", "a/b", ""] {
        refused(
            &format!("[upstream.\"ghcr.io\"]\nredirect_hosts = [\"{host}\"]"),
            2,
            &["redirect_hosts", "`cdn.example`"],
        );
        refused(&format!("[upstream.\"ghcr.io\"]\nrealm_hosts = [\"{host}\"]"), 2, &["realm_hosts"]);
    }
}

#[test]
fn large_or_odd_files_are_refused() {
    let case = Case::new("");
    let path = case.file("large", &"x".repeat((4 << 20) + 1), 0o600);
    assert!(files::secret(&path).unwrap_err().contains("larger than 4 MiB"));
    let path = case.file("fits", &"x".repeat(4 << 20), 0o600);
    assert!(files::secret(&path).is_ok());
    case.rewrite(&format!("[upstream.\"ghcr.io\"]\nca_file = {path:?}"));
    assert!(case.error().contains("`-----BEGIN CERTIFICATE-----`"), "{}", case.error());
}

#[test]
fn private_policies() {
    let file = |policy: &str| format!("[upstream.\"docker.io\"]\nprivate = \"{policy}\"");
    assert_eq!(loaded(&file("refuse")).upstreams[0].private, PrivatePolicy::Refuse);
    refused(&file("open"), 2, &["private: ", "`refuse`", "`per-caller`"]);
    let proofs = |hold, stale| {
        let (hold, stale) = (Duration::from_secs(hold), Duration::from_secs(stale));
        PrivatePolicy::PerCaller(Proofs { hold, stale })
    };
    assert_eq!(loaded(&file("per-caller")).upstreams[0].private, proofs(300, 0));
    let set = file("per-caller") + "\nproof_for = \"1m\"\nproof_stale_for = \"2h\"";
    assert_eq!(loaded(&set).upstreams[0].private, proofs(60, 7200));
    let explained = loaded(&set).explain();
    assert!(explained.contains("private = \"per-caller\"") && explained.contains("proof_for = \"1m\""));
}

#[test]
fn a_request_has_room_for_one_login() {
    let case = Case::new("");
    let users = case.file("htpasswd", "", 0o600);
    let ca = case.file("ca.pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n", 0o600);
    let with = |auth: &str, rule: &str| {
        case.rewrite(&format!(
            "[upstream.\"ghcr.io\"]\nprivate = \"per-caller\"\n[auth]\nhtpasswd_file = {users:?}\n{auth}\n{rule}"
        ));
        case.load().map(drop).map_err(|error| error.to_string())
    };
    let rule = |who: &str, what: &str, actions: &str| {
        format!(
            "[[access.rule]]\nwho = [\"{who}\"]\nrepositories = [\"{what}\"]\nactions = [\"{actions}\"]\n"
        )
    };
    assert_eq!(with("", ""), Ok(()));
    assert!(with("mirror = true", "").unwrap_err().contains("auth.mirror: "));
    for what in ["ghcr.io/**", "**", "*/org/app", "ghcr.io/org/*"] {
        assert_eq!(with("", &rule("anonymous", what, "pull")), Ok(()), "{what}");
    }
    let certificates = format!(
        "[tls]\ncertificate_file = {ca:?}\nkey_file = {ca:?}\nclient_ca_file = {ca:?}\n{}",
        rule("certificate:ci", "ghcr.io/**", "pull")
    );
    assert_eq!(with("", &certificates), Ok(()));
    for shut in [
        rule("alice", "**", "pull"),
        rule("*", "**", "pull"),
        rule("anonymous", "docker.io/**", "pull"),
        rule("anonymous", "app", "push"),
    ] {
        let error = with("", &shut).unwrap_err();
        assert!(error.contains("ghcr.io") && error.contains("who = [\"anonymous\"]"), "{error}");
    }
}

#[test]
fn a_name_has_one_owner() {
    let two = |first: &str, second: &str| {
        format!(
            "[upstream.\"ghcr.io\"]\naliases = [\"{first}\"]\n[upstream.\"quay.io\"]\naliases = [\"{second}\"]"
        )
    };
    loaded(&two("a", "b"));
    refused(&two("a", "a"), 4, &["upstream.\"quay.io\".aliases: ", "`a` leads to ghcr.io already"]);
    refused(&two("a", "ghcr.io"), 4, &["`ghcr.io` is an upstream's own name"]);
    refused(&two("docker.io", "b"), 2, &["`docker.io` is an upstream's own name"]);
    refused(&two("library", "b"), 2, &["`library`", "another alias"]);
    for bad in ["a/b", "", "A", "a b"] {
        refused(&two(bad, "b"), 2, &["is no alias", "`dockerhub`"]);
    }
    let hosted = "[hosted]\nrepositories = [\"ghcr.io/**\"]\n[upstream.\"ghcr.io\"]";
    refused(hosted, 2, &["hosted.repositories: ", "belong to the upstream ghcr.io"]);
    refused(
        "[hosted]\nrepositories = \"gh/**\"\n[upstream.\"ghcr.io\"]\naliases = \"gh\"",
        2,
        &["upstream ghcr.io"],
    );
}

#[test]
fn another_upstream_may_be_the_default_or_none() {
    let hosts = |config: &Config| -> Vec<(String, bool)> {
        config.upstreams.iter().map(|up| (up.host.to_string(), up.host.is_default())).collect()
    };
    let case =
        Case::new("default_upstream = \"ghcr.io\"\n[upstream.\"docker.io\"]\n[upstream.\"ghcr.io\"]\n");
    let config = case.load().unwrap();
    assert_eq!(hosts(&config), [("ghcr.io".to_owned(), true), ("docker.io".to_owned(), false)]);
    assert_eq!(config.owners.upstreams[0].0.is_default(), config.upstreams[0].host.is_default());
    let config = loaded("default_upstream = \"corp.example:5000\"");
    assert_eq!(hosts(&config), [("corp.example:5000".to_owned(), true)]);

    // Where nobody has names to hide, any pattern may be hosted.
    let config = loaded("default_upstream = \"none\"\n[hosted]\nrepositories = [\"**\"]\n");
    assert_eq!((hosts(&config), config.owners.hosted.clone()), (vec![], vec!["**".to_owned()]));
    let again = loaded(&config.explain());
    assert_eq!(hosts(&again), []);

    refused("default_upstream = \"a/b\"", 1, &["default_upstream: ", "`none`"]);
}

#[test]
fn mirrors_stand_in_their_order_with_logins_of_their_own() {
    let case = Case::new("");
    let secret = case.file("secret", "s3cret\n", 0o600);
    case.rewrite(&format!(
        "[upstream.\"docker.io\"]\nproxy = \"none\"\ndeadline = \"20s\"\n\
         [[upstream.\"docker.io\".mirror]]\nurl = \"https://forebay.corp/docker.io\"\nproxy = \"http://proxy.corp:3128\"\n\
         [[upstream.\"docker.io\".mirror]]\nurl = \"https://harbor.corp/v2/dockerhub\"\nusername = \"robot$ci\"\npassword_file = {secret:?}"
    ));
    let config = case.load().unwrap();
    let hub = &config.upstreams[0];
    assert_eq!((&hub.proxy, hub.deadline.as_secs()), (&Proxy::None, 20));
    let [forebay, harbor] = &hub.mirrors[..] else { panic!("two mirrors") };
    assert_eq!(forebay.url.as_str(), "https://forebay.corp/docker.io/");
    assert_eq!(forebay.proxy, Proxy::Url("http://proxy.corp:3128/".parse().unwrap()));
    assert!(forebay.credential.is_none() && hub.credential.is_none() && hub.has_credential());
    assert_eq!(harbor.url.as_str(), "https://harbor.corp/v2/dockerhub/");
    assert!(harbor.credential.as_ref().unwrap().label().contains("robot$ci"));
    // Explained, it loads as the same.
    case.rewrite(&config.explain());
    assert_eq!(case.load().unwrap().upstreams, config.upstreams);
}

#[test]
fn mistakes_in_mirrors_and_proxies_are_told() {
    let hub = |rest: &str| format!("[upstream.\"docker.io\"]\n{rest}");
    let mirror = |rest: &str| hub(&format!("[[upstream.\"docker.io\".mirror]]\n{rest}"));
    refused(&mirror("proxy = \"none\""), 2, &["mirror.url: ", "`https://mirror.example/`"]);
    refused(&mirror("url = \"https://m/v2/Upper\""), 3, &["Upper"]);
    refused(&mirror("url = \"https://m\"\nprivate = \"shared\""), 4, &["private", "unknown key"]);
    refused(&mirror("url = \"https://m\"\nusername = \"me\""), 4, &["`password_file`"]);
    refused(&hub("mirror = \"https://m\""), 2, &["[[upstream.\"docker.io\".mirror]]"]);
    let nine = "[[upstream.\"docker.io\".mirror]]\nurl = \"https://m\"\n".repeat(9);
    refused(&hub(&nine), 18, &["at most 8"]);
    loaded(&hub(&nine[nine.len() / 9..]));
    for (proxy, part) in [
        ("proxy:3128", "http://"),
        ("socks5://proxy", "http://"),
        ("http://me:hunter2@proxy:3128", "HTTPS_PROXY"),
        ("http://proxy/path", "no path"),
        ("off", "`none`"),
    ] {
        refused(&hub(&format!("proxy = \"{proxy}\"")), 2, &["proxy: ", part]);
    }
    refused(&hub("deadline = \"1s\""), 2, &["deadline: ", "10s or more"]);
    assert_eq!(loaded(&hub("header_timeout = \"1m\"")).upstreams[0].deadline.as_secs(), 120);
}
