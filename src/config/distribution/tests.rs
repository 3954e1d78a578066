//! Whole configurations, and what they come to.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The tree, a line for each value, and the warnings.
struct Read {
    lines: Vec<String>,
    adopt: String,
    warnings: Vec<String>,
}

fn read_with(file: &str, variables: &[(&str, &str)]) -> Result<Read, String> {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let translated =
        translate(Path::new("config.yml"), file, &variables).map_err(|error| error.to_string())?;
    let mut lines = Vec::new();
    flatten("", &translated.entries, &mut lines);
    Ok(Read { lines, adopt: translated.adopt.value, warnings: translated.warnings })
}

fn flatten(path: &str, entries: &Entries, lines: &mut Vec<String>) {
    for (key, node) in entries {
        let key = super::super::tree::join(path, key);
        match &node.kind {
            Kind::Table(inner) => flatten(&key, inner, lines),
            kind => lines.push(format!("{key} = {}", shown(kind))),
        }
    }
}

fn shown(kind: &Kind) -> String {
    match kind {
        Kind::Text(text) => format!("{text:?}"),
        Kind::Switch(switch) => switch.to_string(),
        Kind::List(items) => {
            format!("[{}]", items.iter().map(|item| shown(&item.kind)).collect::<Vec<_>>().join(", "))
        }
        Kind::Table(entries) => {
            let mut lines = Vec::new();
            flatten("", entries, &mut lines);
            format!("{{{}}}", lines.join(", "))
        }
        other => format!("{other:?}"),
    }
}

#[track_caller]
fn read(file: &str) -> Read {
    read_with(file, &[]).unwrap()
}

/// The parts all stand in the one error.
#[track_caller]
fn refused(file: &str, parts: &[&str]) {
    let Err(error) = read_with(file, &[]) else { panic!("taken: {file}") };
    for part in parts {
        assert!(error.contains(part), "`{part}` in: {error}");
    }
    assert!(!error.contains('\n'), "{error}");
}

const SMALLEST: &str = "version: 0.1\nstorage: {filesystem: {rootdirectory: /data}}\nhttp: {addr: ':5000'}\n";

/// What every registry without a proxy comes to, where it is open and says no more.
const HOSTED: [&str; 6] = [
    "listen = [\"0.0.0.0:5000\", \"[::]:5000\"]",
    "data = \"/data\"",
    "default_upstream = \"none\"",
    "hosted.repositories = [\"**\"]",
    "hosted.delete = false",
    "hosted.push = \"open\"",
];

#[test]
fn a_registry_hosts_all_names_and_is_open_until_it_has_a_login() {
    let open = read(SMALLEST);
    assert_eq!(open.lines, HOSTED);
    assert_eq!(open.adopt, "hosted");
    // That it is open is warned of where the options are checked.
    assert_eq!(open.warnings, [""; 0]);

    let file = format!("{SMALLEST}auth: {{htpasswd: {{realm: r, path: /h}}}}\n");
    let closed = read(&file);
    assert_eq!(
        closed.lines,
        [
            "listen = [\"0.0.0.0:5000\", \"[::]:5000\"]",
            "auth.realm = \"r\"",
            "auth.htpasswd_file = \"/h\"",
            "auth.anonymous_pull = false",
            "auth.mirror = true",
            "auth.login_hosts = [\"*\"]",
            "data = \"/data\"",
            "default_upstream = \"none\"",
            "hosted.repositories = [\"**\"]",
            "hosted.delete = false",
        ]
    );
    assert!(closed.warnings.is_empty(), "{:?}", closed.warnings);
}

/// As Debian's package installs it.
#[test]
fn the_debian_packages_file_is_taken() {
    let file = "version: 0.1\nlog:\n  fields:\n    service: registry\nstorage:\n  cache:\n    blobdescriptor: inmemory\n  \
                filesystem:\n    rootdirectory: /var/lib/docker-registry\n  delete:\n    enabled: true\nhttp:\n  addr: :5000\n  \
                headers:\n    X-Content-Type-Options: [nosniff]\nauth:\n  htpasswd:\n    realm: basic-realm\n    path: \
                /etc/docker/registry\nhealth:\n  storagedriver:\n    enabled: true\n    interval: 10s\n    threshold: 3\n";
    let read = read(file);
    for line in [
        "data = \"/var/lib/docker-registry\"",
        "hosted.delete = true",
        "auth.htpasswd_file = \"/etc/docker/registry\"",
        "auth.realm = \"basic-realm\"",
    ] {
        assert!(read.lines.iter().any(|told| told == line), "{line} in {:?}", read.lines);
    }
    let without = "config.yml: without effect here: log.fields, http.headers.X-Content-Type-Options, health.storagedriver";
    assert_eq!(read.warnings, [without]);
}

/// As the image registry:3 brings it, with what compose files add.
#[test]
fn the_images_file_is_taken_with_variables() {
    let file = "version: 0.1\nlog: {level: debug, fields: {service: registry}}\nstorage:\n  delete: {enabled: true}\n  \
                cache: {blobdescriptor: inmemory}\n  filesystem: {rootdirectory: /var/lib/registry}\n  \
                maintenance: {uploadpurging: {enabled: false}}\n  tag: {concurrencylimit: 8}\nhttp:\n  addr: :5000\n  \
                debug: {addr: ':5001', prometheus: {enabled: true, path: /metrics}}\n  \
                headers: {X-Content-Type-Options: [nosniff]}\nhealth: {storagedriver: {enabled: true}}\n";
    let variables = [
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:7000"),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "/srv"),
        ("REGISTRY_STORAGE_DELETE_ENABLED", "false"),
        ("REGISTRY_AUTH", "htpasswd"),
        ("REGISTRY_AUTH_HTPASSWD_REALM", "Registry Realm"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", "/auth/htpasswd"),
        ("REGISTRY_HTTP_TLS_CERTIFICATE", "/certs/domain.crt"),
        ("REGISTRY_HTTP_TLS_KEY", "/certs/domain.key"),
        ("REGISTRY_PROXY_REMOTEURL", ""),
    ];
    let read = read_with(file, &variables).unwrap();
    assert_eq!(
        read.lines,
        [
            "log.level = \"debug\"",
            "listen = [\"127.0.0.1:7000\"]",
            "tls.certificate_file = \"/certs/domain.crt\"",
            "tls.key_file = \"/certs/domain.key\"",
            "operations = \"0.0.0.0:5001\"",
            "auth.realm = \"Registry Realm\"",
            "auth.htpasswd_file = \"/auth/htpasswd\"",
            "auth.anonymous_pull = false",
            "auth.mirror = true",
            "auth.login_hosts = [\"*\"]",
            "data = \"/srv\"",
            "hosted.upload_age = \"366days\"",
            "hosted.repositories = [\"**\"]",
            "hosted.delete = false",
            "default_upstream = \"none\"",
        ]
    );
}

#[test]
fn a_proxy_is_its_upstream_for_all_names() {
    let file = format!(
        "{SMALLEST}proxy:\n  remoteurl: https://registry-1.docker.io\n  username: me\n  password: 0123\n  ttl: 0\n"
    );
    let read = read(&file);
    assert_eq!(
        read.lines,
        [
            "listen = [\"0.0.0.0:5000\", \"[::]:5000\"]",
            "default_upstream = \"docker.io\"",
            "upstream.\"docker.io\".url = \"https://registry-1.docker.io\"",
            "upstream.\"docker.io\".username = \"me\"",
            "upstream.\"docker.io\".private = \"shared\"",
            "upstream.\"docker.io\".password = Secret((secret))",
            "hosted.repositories = []",
            "data = \"/data\"",
        ]
    );
    assert_eq!(read.adopt, "docker.io");
    assert_eq!(read.warnings.len(), 2, "{:?}", read.warnings);
    assert!(read.warnings[0].starts_with("config.yml:6 (proxy.username): as with registry:2, whoever"));
    assert_eq!(read.warnings[1], "config.yml: without effect here: proxy.ttl");

    let read = super::tests::read(&format!("{SMALLEST}proxy: {{remoteurl: 'http://127.0.0.1:5001/base'}}\n"));
    assert_eq!(read.adopt, "127.0.0.1:5001");
    assert!(
        read.lines
            .iter()
            .any(|line| line == "upstream.\"127.0.0.1:5001\".url = \"http://127.0.0.1:5001/base\"")
    );
    assert!(read.warnings.is_empty(), "{:?}", read.warnings);
}

#[test]
fn tokens_and_client_certificates() {
    let file = "version: 0.1\nstorage: filesystem\nauth:\n  token: {realm: 'https://auth.example/token', service: s, issuer: i, rootcertbundle: /ca.pem}\n\
                http:\n  addr: localhost:5000\n  draintimeout: 60s\n  tls: {certificate: /c, key: /k, clientcas: [/ca], minimumtls: tls1.2}\n";
    assert_eq!(
        read(file).lines,
        [
            "listen = [\"127.0.0.1:5000\", \"[::1]:5000\"]",
            "shutdown.grace = \"1m\"",
            "tls.certificate_file = \"/c\"",
            "tls.key_file = \"/k\"",
            "tls.client_ca_file = \"/ca\"",
            "tls.client_auth = \"required\"",
            "auth.token_server.realm = \"https://auth.example/token\"",
            "auth.token_server.service = \"s\"",
            "auth.token_server.issuer = \"i\"",
            "auth.token_server.certificates_file = \"/ca.pem\"",
            "auth.anonymous_pull = false",
            "auth.mirror = true",
            "auth.login_hosts = [\"*\"]",
            "data = \"/var/lib/registry\"",
            "default_upstream = \"none\"",
            "hosted.repositories = [\"**\"]",
            "hosted.delete = false",
        ]
    );
    let tls =
        |tls: &str| format!("version: 0.1\nstorage: filesystem\nhttp: {{addr: ':1', tls: {{{tls}}}}}\n");
    let given = read(&tls("clientcas: [/ca], clientauth: verify-client-cert-if-given"));
    assert!(given.lines.iter().any(|line| line == "tls.client_auth = \"optional\""));
    refused(&tls("clientcas: [/a, /b]"), &["config.yml:3 (http.tls.clientcas): ", "into one"]);
    refused(
        &tls("clientcas: [/a], clientauth: request-client-cert"),
        &["(http.tls.clientauth)", "nobody checks"],
    );
    refused(&tls("clientauth: require-any-client-cert"), &["(http.tls.clientauth)", "http.tls.clientcas"]);
    refused(&tls("minimumtls: tls1.3"), &["(http.tls.minimumtls)"]);
    refused(&tls("letsencrypt: {email: a@b}"), &["(http.tls.letsencrypt)", "http.tls.certificate"]);
}

#[test]
fn reading_only_and_purging() {
    let storage = |more: &str| format!("version: 0.1\nstorage:\n  filesystem:\n  maintenance: {more}\n");
    let lines = |more: &str| read(&storage(more)).lines.join("\n");
    let told = lines("{readonly: {enabled: true}}");
    assert!(told.contains("hosted.push = \"off\"\nhosted.delete = false"), "{told}");
    assert!(lines("{uploadpurging: {age: 1h30m}}").contains("hosted.upload_age = \"1h 30m\""));
    assert!(lines("{uploadpurging: {age: 1h, dryrun: true}}").contains("hosted.upload_age = \"366days\""));
    refused(
        &storage("{uploadpurging: {age: soon}}"),
        &["config.yml:4 (storage.maintenance.uploadpurging.age)", "`30s`"],
    );
}

#[test]
fn notifications_become_events() {
    let file = format!(
        "{SMALLEST}notifications:\n  events: {{includereferences: true}}\n  endpoints:\n    - name: off\n      disabled: true\n      url: http://off\n\
         \x20   - name: ci\n      url: https://ci.example/hook\n      headers: {{Authorization: [Bearer x], X-A: [a, b]}}\n      timeout: 500ms\n\
         \x20     threshold: 5\n      backoff: 1s\n      ignore: {{mediatypes: [application/octet-stream], actions: [pull]}}\n"
    );
    let read = read(&file);
    let line = read.lines.iter().find(|line| line.starts_with("events.")).unwrap();
    assert_eq!(
        line,
        "events.endpoint = [{name = \"ci\", url = \"https://ci.example/hook\", headers.Authorization = Secret((secret)), \
         headers.X-A = \"a, b\", timeout = \"500ms\", backoff = \"1s\", ignore_media_types = [\"application/octet-stream\"], \
         actions = [\"push\", \"delete\", \"mount\"]}]"
    );
    assert!(read.warnings.iter().any(|warning| warning.contains("(notifications.events.includereferences)")));
    assert!(read.warnings.iter().any(|warning| warning.contains("notifications.endpoints.1.threshold")));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let with = |part: &str| format!("{SMALLEST}{part}\n");
    let stored = |storage: &str| format!("version: 0.1\nstorage: {storage}\n");
    for (file, parts) in [
        (stored("{s3: {bucket: b}}"), &["config.yml:2 (storage)", "`s3`", "rootdirectory"][..]),
        (stored("inmemory"), &["(storage)", "`inmemory`", "tmpfs"]),
        (stored("{azure: {}, filesystem: {}}"), &["(storage)", "one storage", "azure and filesystem"]),
        (stored("{floppy: {}}"), &["(storage)", "`floppy`"]),
        (stored("{delete: {enabled: true}}"), &["(storage)", "add `filesystem`"]),
        ("version: 0.1\n".to_owned(), &["(storage)", "no storage"]),
        (with("auth: {silly: {realm: r, service: s}}"), &["config.yml:4 (auth)", "`silly`", "htpasswd"]),
        (with("auth: {htpasswd: {realm: r}}"), &["config.yml:4 (auth.htpasswd.path)", "add it"]),
        (with("auth: {htpasswd: {}, token: {}}"), &["(auth)", "htpasswd and token"]),
        (with("auth: {token: {realm: r, service: s, issuer: i}}"), &["(auth.token)", "rootcertbundle"]),
        (with("auth: {token: {autoredirect: true}}"), &["(auth.token.autoredirect)", "auth.token.realm"]),
        (with("proxy: {remoteurl: 'https://a.b', exec: {command: c}}"), &["proxy.exec", "proxy.password"]),
        (with("proxy: {remoteurl: 'https://a.b', username: u}"), &["(proxy.username)", "proxy.password"]),
        (with("proxy: {remoteurl: 'https://a.b', username: [u]}"), &["(proxy.username)", "a single value"]),
        (with("proxy: {remoteurl: nonsense}"), &["(proxy.remoteurl)", "https://registry-1.docker.io"]),
        (with("middleware: {repository: [{name: guard}]}"), &["(middleware.repository.0)", "`guard`"]),
        (with("validation: {manifests: {urls: {deny: ['^http']}}}"), &["(validation.manifests.urls.deny)"]),
        (with("policy: {repository: {classes: [image]}}"), &["(policy.repository.classes)"]),
        (with("loglevel: loud"), &["(loglevel)", "`debug`"]),
        ("version: 0.2\nstorage: filesystem\n".to_owned(), &["config.yml:1 (version)", "`version: 0.1`"]),
        ("storage: filesystem\n".to_owned(), &["(version)", "`version: 0.1`"]),
        ("listen = [\"a\"]\n".to_owned(), &["config.yml:1", "`version: 0.1`"]),
        ("version: 0.1\nversion: 0.1\n".to_owned(), &["config.yml:", "not YAML", "`version` is there twice"]),
        ("version: 0.1\nstorage: [\n".to_owned(), &["config.yml:", "not YAML"]),
        (String::new(), &["(version)"]),
    ] {
        refused(&file, parts);
    }
    let http = |http: &str| format!("version: 0.1\nstorage: filesystem\nhttp: {{{http}}}\n");
    refused(&http("addr: /run/x.sock, net: unix"), &["config.yml:3 (http.net)"]);
    refused(&http("prefix: /registry/"), &["(http.prefix)", "X-Forwarded-Prefix"]);
    refused(&http("addr: '5000'"), &["(http.addr)", "`:5000`"]);
    refused(&http("draintimeout: 60"), &["(http.draintimeout)", "`30s`"]);
    let error = translate(Path::new("forebay.toml"), "a = 1", &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("--config"), "{error}");
}

#[test]
fn what_matters_little_is_warned_of() {
    let file = format!(
        "{SMALLEST}auth: none\nmiddleware: {{storage: [{{name: redirect}}], registry: [{{name: x, disabled: true}}]}}\n\
         health: {{tcp: [{{addr: 'r:1'}}]}}\nvalidation: {{disabled: true, manifests: {{urls: {{deny: [x]}}}}}}\nredis: {{addrs: [a]}}\nhtpp: 1\n"
    );
    let warnings = read(&file).warnings;
    for part in [
        "config.yml:5 (middleware.storage.0): the middleware `redirect` is ignored",
        "(health.tcp): ignored",
        "config.yml:9 (htpp): unknown key, ignored; did you mean `http`?",
        "config.yml: without effect here: redis",
    ] {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part} in {warnings:?}");
    }
    let file = "version: 0.1\nstorage: filesystem\nhttp: {addr: ':1', host: 'https://x', http2: {disabled: true}, headers: {X: [y]}, \
                debug: {addr: ':2', prometheus: {path: /m}}, tls: {minimumtls: tls1.0, ciphersuites: [X]}}\nlog: {formatter: logstash, \
                hooks: [{type: mail}]}\n";
    let warnings = read(file).warnings;
    for key in [
        "http.host",
        "http.http2.disabled",
        "http.headers.X",
        "http.debug.prometheus.path",
        "http.tls.minimumtls",
        "http.tls.ciphersuites",
        "log.formatter",
        "log.hooks",
    ] {
        assert!(
            warnings.iter().any(|warning| warning.contains(&format!("({key}): "))),
            "{key} in {warnings:?}"
        );
    }
}

#[test]
fn secrets_are_in_no_message() {
    let variables =
        [("REGISTRY_PROXY_REMOTEURL", "https://u:hunter2@"), ("REGISTRY_PROXY_PASSWORD", "hunter2")];
    let error = read_with(SMALLEST, &variables).err().unwrap();
    assert!(!error.contains("hunter2") && error.contains("REGISTRY_PROXY_REMOTEURL"), "{error}");
    let variables = [
        ("REGISTRY_PROXY_REMOTEURL", "https://ghcr.io"),
        ("REGISTRY_PROXY_USERNAME", "u"),
        ("REGISTRY_PROXY_PASSWORD", "hunter2"),
    ];
    let all = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let translated = translate(Path::new("c"), SMALLEST, &all).unwrap();
    assert!(!format!("{translated:?}").contains("hunter2"));
}

const PARTS: &str = "(version|log|storage|auth|http|proxy|health|notifications|middleware|validation|tls|addr|filesystem|\
                     htpasswd|endpoints|delete|enabled|remoteurl|headers|debug|maintenance)";

proptest! {
    #[test]
    fn no_text_panics(
        lines in proptest::collection::vec(
            (0..4usize, PARTS, "(|true|0\\.1|:5000|https://a\\.b|\\[a, b\\]|\\{a: b\\}|\\[\\{name: x\\}\\]|&a|\\*a|'|1h|~)"),
            0..12,
        ),
        name in "REGISTRY_[A-Z0-9_]{0,20}|REGISTRY_(HTTP|STORAGE|PROXY|AUTH)_[A-Z0_]{0,16}",
        value in "\\PC{0,12}",
    ) {
        let mut file = "version: 0.1\n".to_owned();
        for (indent, key, value) in lines {
            file += &format!("{}{key}: {value}\n", "  ".repeat(indent));
        }
        let _ = read_with(&file, &[(&name, &value)]);
    }
}
