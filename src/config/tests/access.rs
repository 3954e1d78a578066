//! Logins and rules, and what somebody may do by them.

use super::*;
use crate::access::{LoginHosts, Push, htpasswd};

const RULE: &str = "repositories = \"**\"\nactions = \"pull\"\n";

#[test]
fn mistakes_are_named_with_place_and_remedy() {
    for (file, line, parts) in [
        ("[hosted]\npush = \"on\"", 2, &["hosted.push", "`open`"][..]),
        ("[auth]\nhtpasswd_file = \"/nonexistent\"", 2, &["cannot be read"]),
        ("[auth]\nrealm = \"a\\\"b\"", 2, &["without quotes"]),
        ("[auth]\nlogin_host = \"a\"", 2, &["did you mean `login_hosts`"]),
        ("[auth]\nlogin_hosts = [\"a\",\n\"https://b/\"]", 3, &["docker login"]),
        ("[auth.tokens]\nlifetime = \"5s\"", 2, &["60s", "24h"]),
        ("[auth.tokens]\nkey_file = \"/nonexistent\"", 2, &["cannot be read"]),
        ("[auth.token_server]\nrealm = \"x\"", 2, &["https://auth.corp/token"]),
        ("[auth.token_server]\nrealm = \"https://a/\"", 1, &["service", "needed"]),
        (
            "[auth.token_server]\nrealm = \"https://a/\"\nservice = \"s\"\nissuer = \"i\"",
            1,
            &["certificates_file"],
        ),
        ("[auth.issuer.\"a b\"]", 1, &["letters, digits"]),
        ("[auth.issuer.certificate]", 1, &["not `certificate`"]),
        ("[auth.issuer.a]\nissuer = \"i\"", 1, &["audience", "others must not do"]),
        ("[auth.issuer.a]\nissuer = \"i\"\naudience = []", 3, &["empty"]),
        ("[auth.issuer.a]\nissuer = \"i\"\naudience = \"x\"", 1, &["jwks_url"]),
        (
            "[auth.issuer.a]\nissuer = \"i\"\naudience = \"x\"\njwks_url = \"http://example.com/\"",
            4,
            &["https://", "jwks_file"],
        ),
        ("[tls]\nclient_auth = \"required\"", 2, &["tls.client_ca_file"]),
        ("[tls]\nclient_auth = \"maybe\"", 2, &["`optional`"]),
        ("[[access.rule]]\nwho = \"a\"", 1, &["access.rule.repositories", "corp.internal"]),
        ("[[access.rule]]\nwho = []\nrepositories = \"a\"\nactions = \"pull\"", 2, &["allows nothing"]),
        (&format!("[[access.rule]]\nwho = [\"a\",\n\"b:c\"]\n{RULE}"), 3, &["`b` is no issuer"]),
        (
            "[[access.rule]]\nwho = \"a\"\nrepositories = \"A\"\nactions = \"pull\"",
            3,
            &["no pattern", "corp.internal/**"],
        ),
        (
            "[[access.rule]]\nwho = \"a\"\nrepositories = \"index.docker.io/**\"\nactions = \"pull\"",
            3,
            &["`docker.io/**`"],
        ),
        (
            "[upstream.\"docker.io\"]\naliases = [\"hub\"]\n[[access.rule]]\nwho = \"a\"\nrepositories = \"hub/x\"\n\
             actions = \"pull\"",
            5,
            &["`docker.io/x`"],
        ),
        (
            "[[access.rule]]\nwho = \"a\"\nrepositories = \"a\"\nactions = [\"pull\", \"write\"]",
            4,
            &["`write` is no action"],
        ),
        (&format!("[[access.rule]]\nwho = \"a\"\nwhat = 1\n{RULE}"), 3, &["unknown key"]),
        ("[[limits.identity]]\nrequests = \"1/s\"", 1, &["ci-*"]),
        ("[[limits.identity]]\nname = \"\"", 2, &["empty"]),
    ] {
        refused(file, line, parts);
    }
}

#[test]
fn a_password_file_is_checked_line_by_line() {
    let case = Case::new("");
    let path = case.file("htpasswd", "alice:$apr1$x$y\n", 0o600);
    case.rewrite(&format!("[auth]\nhtpasswd_file = {path:?}"));
    let error = case.error();
    assert!(
        error.contains("line 1") && error.contains("MD5") && error.contains("forebay htpasswd"),
        "{error}"
    );
}

fn with_password(rest: &str) -> Case {
    let case = Case::new("");
    let path = case.file("htpasswd", &format!("alice:{}\n", htpasswd::hash("x", 4).unwrap()), 0o600);
    case.rewrite(&format!("[auth]\nhtpasswd_file = {path:?}\n{rest}"));
    case
}

#[test]
fn where_v2_asks_for_a_login_depends_on_who_else_asks_there() {
    let hosts = |rest: &str| with_password(rest).load().unwrap().auth.login_hosts;
    assert_eq!(hosts(""), LoginHosts::These(Vec::new()));
    assert_eq!(hosts("mirror = true"), LoginHosts::All);
    assert_eq!(
        hosts("login_hosts = [\"a:5000\", \"b\"]"),
        LoginHosts::These(vec!["a:5000".into(), "b".into()])
    );
    assert_eq!(hosts("login_hosts = \"*\""), LoginHosts::All);
    let warnings = with_password("").load().unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("auth.login_hosts")), "{warnings:?}");
    let warnings = with_password("login_hosts = \"*\"").load().unwrap().warnings;
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn what_is_likely_not_meant_is_warned_of() {
    let open = "[hosted]\npush = \"open\"\n";
    let rule = |who: &str| format!("[[access.rule]]\nwho = {who}\n{RULE}");
    for (config, part) in [
        (loaded(open), "whoever reaches this server may push"),
        (loaded("[auth]\nanonymous_pull = true"), "no way to log in"),
        (loaded(&rule("\"alice\"")), "no way to log in"),
        (loaded("[auth.tokens]"), "nobody to give them to"),
        (with_password(open).load().unwrap(), "changes nothing"),
        (with_password(&rule("\"alice\"")).load().unwrap(), "the mirror serves nobody"),
        (with_password(&format!("anonymous_pull = true\n{}", rule("\"*\""))).load().unwrap(), "decide alone"),
    ] {
        assert!(
            config.warnings.iter().any(|warning| warning.contains(part)),
            "{part}: {:?}",
            config.warnings
        );
    }
    assert_eq!(loaded(open).auth.push, Push::Open);
    let calm = with_password(&format!("login_hosts = \"*\"\n{}", rule("[\"anonymous\", \"*\"]")));
    assert_eq!(calm.load().unwrap().warnings, [""; 0]);
}

#[test]
fn what_somebody_may_do_is_told_with_the_rule() {
    let case = with_password(
        "[upstream.\"docker.io\"]\naliases = [\"hub\"]\n\
         [auth.issuer.gitlab]\nissuer = \"i\"\naudience = \"x\"\njwks_url = \"https://i/\"\nusername_claim = \"project_path\"\n\
         [hosted]\nrepositories = [\"corp.internal/**\"]\n\
         [[access.rule]]\nwho = [\"alice\", \"gitlab:corp/*\"]\nrepositories = \"corp.internal/**\"\nactions = [\"pull\", \"push\"]\n\
         [[access.rule]]\nwho = \"gitlab:ref=main\"\nrepositories = \"**\"\nactions = \"admin\"\n\
         [[access.rule]]\nwho = \"anonymous\"\nrepositories = \"docker.io/library/*\"\nactions = \"pull\"\n",
    );
    let config = case.load().unwrap();
    let told = config.permissions("alice", "corp.internal/app").unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], "alice on corp.internal/app (hosted here)");
    assert!(lines[1].starts_with("  pull    yes  rule 1 at "), "{told}");
    assert!(lines[1].contains("forebay.toml:13"), "{told}");
    assert!(lines[1].ends_with("alice, gitlab:corp/* may pull, push corp.internal/**"), "{told}");
    assert_eq!(lines[3], "  delete  no   none of the 3 rules allows it");
    let first = |who: &str, on: &str| {
        let told = config.permissions(who, on).unwrap();
        let words = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
        (told.lines().next().unwrap().to_owned(), told.lines().skip(1).take(4).map(words).collect::<Vec<_>>())
    };
    for spelling in ["library/nginx", "hub/nginx", "docker.io/library/nginx", "index.docker.io/nginx"] {
        let (head, words) = first("anonymous", spelling);
        assert_eq!(head, "anonymous on docker.io/library/nginx (mirrored from docker.io)");
        assert_eq!(words, ["yes", "no", "no", "no"]);
    }
    assert_eq!(first("gitlab:corp/x", "corp.internal/app").1, ["yes", "yes", "no", "no"]);
    assert_eq!(first("gitlab:project_path=a,ref=main", "corp.internal/app").1, ["yes", "yes", "yes", "yes"]);
    assert_eq!(first("certificate:alice", "corp.internal/app").1, ["no", "no", "no", "no"]);
    assert!(config.permissions("bob", "corp.internal/app").unwrap().contains("note: "), "is in no file");
    assert!(config.permissions("github:x", "corp.internal/app").unwrap_err().contains("no issuer"));
    assert!(config.permissions("alice", "quay.io/x/y").unwrap_err().contains("not mirrored here"));
    let told = loaded("").permissions("anonymous", "app").unwrap();
    assert!(told.contains("from this machine itself: yes"), "{told}");
}
