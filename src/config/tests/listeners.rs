//! Listeners, virtual hosts and certificates.

use super::*;
use crate::http::{ListenAddress, ListenerOptions, Scope, Serve};

fn tables(text: &str) -> Vec<ListenerOptions> {
    loaded(text).http.listeners
}

#[test]
fn a_listener_is_of_tcp_a_path_or_systemd() {
    let of = |address: &str| tables(&format!("[[listener]]\naddress = \"{address}\"")).remove(0).address;
    assert_eq!(of("0.0.0.0:5001"), ListenAddress::Tcp(address("0.0.0.0:5001")));
    assert_eq!(of("systemd:hosted"), ListenAddress::Systemd(Some("hosted".to_owned())));
    let unix = |mode| ListenAddress::Unix { path: "/run/forebay.sock".into(), mode };
    assert_eq!(of("unix:/run/forebay.sock"), unix(0o660));
    let mode = "[[listener]]\naddress = \"unix:/run/forebay.sock\"\nmode = \"0600\"";
    assert_eq!(tables(mode)[0].address, unix(0o600));
    for bad in ["5001", "unix:forebay.sock", "unix:/", "unix:", "systemd:", "systemd:a:b", ""] {
        refused(&format!("[[listener]]\naddress = \"{bad}\""), 2, &["listener.address: ", bad]);
    }
    let long = format!("[[listener]]\naddress = \"unix:/{}\"", "a".repeat(103));
    refused(&long, 2, &["103 bytes at most"]);
    assert_eq!(tables(&long.replacen("aa", "a", 1)).len(), 1);
}

#[test]
fn what_a_listener_serves() {
    let scope = |rest: &str| {
        let upstreams = "[upstream.\"ghcr.io\"]";
        tables(&format!("[[listener]]\naddress = \"0.0.0.0:5001\"\n{rest}\n{upstreams}")).remove(0).scope
    };
    let of = |serve| Scope { serve, upstream: None };
    assert_eq!(scope(""), of(Serve::All));
    assert_eq!(scope("serve = \"hosted\""), of(Serve::Hosted));
    assert_eq!(scope("serve = \"mirror\""), of(Serve::Mirror));
    let ghcr = Scope { serve: Serve::Mirror, upstream: Some("ghcr.io".parse().unwrap()) };
    assert_eq!(scope("upstream = \"ghcr.io\""), ghcr);
    assert_eq!(scope("upstream = \"ghcr.io\"\nserve = \"mirror\""), ghcr);
    let wrong = |rest: &str, parts: &[&str]| {
        refused(&format!("[[listener]]\naddress = \"0.0.0.0:5001\"\n{rest}"), 3, parts);
    };
    wrong("serve = \"push\"", &["`all`, `hosted` or `mirror`"]);
    wrong("upstream = \"quay.io\"", &["quay.io is no configured upstream"]);
    wrong("serve = \"hosted\"\nupstream = \"docker.io\"", &["listener.serve: ", "mirrored"]);
    wrong("mode = \"0600\"", &["only a Unix socket has a mode"]);
    wrong("host = \"a\"", &["unknown key", "known: address"]);
    refused("[[listener]]\nserve = \"all\"", 1, &["listener.address: ", "0.0.0.0:5001"]);
    refused(
        "[[listener]]\naddress = \"0.0.0.0:5001\"\ntls = true",
        1,
        &["listener.tls: ", "tls.certificate_file"],
    );
    for mode in ["rw", "1777", "0x1", "8"] {
        let text = format!("[[listener]]\naddress = \"unix:/a\"\nmode = \"{mode}\"");
        refused(&text, 3, &["listener.mode: ", "`0660`"]);
    }
}

#[test]
fn an_address_is_listened_on_once() {
    let twice = "[[listener]]\naddress = \"unix:/a\"\n[[listener]]\naddress = \"unix:/a\"\nmode = \"0600\"";
    refused(twice, 4, &["unix:/a has a table already"]);
    let beside = "listen = [\"0.0.0.0:5001\"]\n[[listener]]\naddress = \"0.0.0.0:5001\"";
    refused(beside, 1, &["listen: ", "has a [[listener]] too"]);
    let operations = "operations = \"127.0.0.1:5001\"\n[[listener]]\naddress = \"127.0.0.1:5001\"";
    refused(operations, 1, &["operations: ", "a [[listener]] too"]);
    // A default address may be given another meaning.
    let config = loaded("[[listener]]\naddress = \"127.0.0.1:5000\"\nserve = \"mirror\"");
    assert_eq!(config.http.listen, [address("[::1]:5000")]);
    let alone = loaded("listen = []\n[[listener]]\naddress = \"unix:/a\"");
    assert_eq!((alone.http.listen.len(), alone.http.listeners.len()), (0, 1));
    refused("listen = []", 1, &["listen: ", "the list is empty"]);
}

#[test]
fn all_passed_sockets_are_one_word_of_listen() {
    let config = loaded("listen = [\"systemd\", \"127.0.0.1:5001\"]");
    assert_eq!(config.http.listen, [address("127.0.0.1:5001")]);
    assert_eq!(config.http.listeners[0].address, ListenAddress::Systemd(None));
    assert!(config.explain().contains("listen = [\"127.0.0.1:5001\", \"systemd\"]"), "{}", config.explain());
    refused("listen = [\"systemd\", \"systemd\"]", 1, &["`systemd` is there twice"]);
}

#[test]
fn a_hosted_listener_may_have_what_docker_hub_could_have() {
    let hosted = "[hosted]\nrepositories = [\"*\", \"team/**\", \"corp.internal/**\"]\n";
    refused(hosted, 2, &["`team/**`", "`serve = \"hosted\"`", "`shadow = true`"]);
    let config = loaded(&format!("{hosted}[[listener]]\naddress = \"0.0.0.0:5001\"\nserve = \"hosted\""));
    assert_eq!(config.owners.apart, ["team/**"]);
    assert_eq!(config.owners.hosted.len(), 3);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shadowed =
        format!("{hosted}shadow = true\n[[listener]]\naddress = \"0.0.0.0:5001\"\nserve = \"hosted\"");
    assert_eq!(loaded(&shadowed).owners.apart, [""; 0]);
}

#[test]
fn a_virtual_host_leads_to_one_upstream() {
    let two = |first: &str, second: &str| {
        format!("[upstream.\"ghcr.io\"]\nhosts = [\"{first}\"]\n[upstream.\"quay.io\"]\n{second}")
    };
    let config = loaded(&two("ghcr.mirror.corp", "hosts = [\"quay.mirror.corp\", \"quay\"]"));
    let hosts: Vec<_> = config.owners.hosts.iter().map(|(host, of)| format!("{host} {of}")).collect();
    assert_eq!(hosts, ["ghcr.mirror.corp ghcr.io", "quay.mirror.corp quay.io", "quay quay.io"]);
    refused(&two("a.corp", "hosts = [\"a.corp\"]"), 4, &["hosts: ", "`a.corp` leads to ghcr.io already"]);
    refused(&two("a.corp", "aliases = [\"a.corp\"]"), 4, &["`a.corp` leads to ghcr.io already"]);
    refused(&two("quay.io", ""), 2, &["`quay.io` is an upstream's own name; choose another host"]);
    for bad in
        ["a.corp:5000", "https://a.corp", "localhost", "10.0.0.1", "A.corp", "a b", "", "a/b", "*.corp"]
    {
        refused(&two(bad, ""), 2, &["upstream.\"ghcr.io\".hosts: ", bad]);
    }
    let pattern = two("a.corp", "[hosted]\nrepositories = [\"a.corp/**\"]");
    refused(&pattern, 5, &["belong to the upstream ghcr.io"]);
}

#[test]
fn further_certificates_have_their_keys_beside_a_first_one() {
    let case = Case::new("");
    let pem = case.file("pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n", 0o600);
    let pair = format!("certificate_file = {pem:?}\nkey_file = {pem:?}\n");
    case.rewrite(&format!("[tls]\n{pair}[[tls.certificate]]\n{pair}[[tls.certificate]]\n{pair}"));
    let config = case.load().unwrap();
    assert_eq!(config.http.tls.as_ref().map(|tls| tls.others.len()), Some(2));
    case.rewrite(&format!(
        "[tls]\n{pair}[[listener]]\naddress = \"unix:/a\"\n[[listener]]\naddress = \"0.0.0.0:5001\"\n"
    ));
    let tls: Vec<bool> = case.load().unwrap().http.listeners.iter().map(|listener| listener.tls).collect();
    assert_eq!(tls, [false, true]);
    case.rewrite(&format!("[[tls.certificate]]\n{pair}"));
    assert!(case.error().contains("name it as tls.certificate_file"), "{}", case.error());
    case.rewrite(&format!("[tls]\n{pair}[[tls.certificate]]\ncertificate_file = {pem:?}"));
    assert!(case.error().contains("set `certificate_file` and `key_file`"), "{}", case.error());
}

#[test]
fn what_is_explained_of_listeners_loads_as_the_same() {
    let case = Case::new("");
    let pem = case.file("pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n", 0o600);
    let pair = format!("certificate_file = {pem:?}\nkey_file = {pem:?}\n");
    case.rewrite(&format!(
        "listen = [\"systemd\"]\n[[listener]]\naddress = \"unix:/a b\"\nmode = \"0\"\nserve = \"hosted\"\n\
         [[listener]]\naddress = \"systemd:x\"\ntls = false\n[[listener]]\naddress = \"0.0.0.0:5001\"\nupstream = \"ghcr.io\"\n\
         [[listener]]\naddress = \"[::1]:5001\"\nserve = \"mirror\"\n[hosted]\nrepositories = [\"team/**\"]\n\
         [upstream.\"ghcr.io\"]\nhosts = [\"a.corp\"]\n[tls]\n{pair}[[tls.certificate]]\n{pair}"
    ));
    let first = case.load().unwrap();
    case.rewrite(&first.explain());
    let second = case.load().unwrap();
    assert_eq!(Config { sources: first.sources.clone(), ..second }, first, "{}", first.explain());
}

#[test]
fn a_forward_proxy_stands_for_registries_that_clients_know_by_name() {
    let config = "[upstream.\"ghcr.io\"]\n[upstream.\"10.0.0.1:5000\"]\n[forward_proxy]\nlisten = \"127.0.0.1:3128\"\n";
    let forward = loaded(config).http.forward.unwrap();
    let names: Vec<&str> = forward.registries.keys().map(String::as_str).collect();
    assert_eq!(names, ["ghcr.io", "index.docker.io", "registry-1.docker.io"]);
    assert!(loaded("").http.forward.is_none());
    refused("[forward_proxy]\ntunnel = []\n", 1, &["Add `listen"]);
    refused("[forward_proxy]\nlisten = \"here\"\n", 2, &["no address with a port"]);
    let beside = |rest: &str| format!("[forward_proxy]\nlisten = \"127.0.0.1:1\"\n{rest}");
    refused(&beside("tunnel = [\"https://x\"]\n"), 3, &["no pattern of hosts"]);
    refused(&beside("[auth]\nmirror = true\n"), 2, &["auth.mirror"]);
    let alone = format!("default_upstream = \"none\"\n{}", beside(""));
    refused(&alone, 3, &["no upstream is configured"]);
    let everything = loaded("[forward_proxy]\nlisten = \"127.0.0.1:1\"\ntunnel = [\"*\"]\n");
    assert!(everything.warnings.iter().any(|warning| warning.contains("every public host")));
}
