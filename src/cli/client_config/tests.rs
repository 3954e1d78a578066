use std::path::Path;

use serde_json::{Value, json};

use super::asked::{Mirrored, Server};
use super::*;

const HTTP: &str = "http://forebay.corp:5000";
const HTTPS: &str = "https://forebay.corp";

/// docker.io, ghcr.io and a registry with a port, seen at `url`; with a CA over HTTPS.
fn asked(url: &str) -> Asked {
    let upstream = |host: &str, alias: Option<&str>| Mirrored {
        host: host.to_owned(),
        is_default: host == "docker.io",
        alias: alias.map(str::to_owned),
        is_plain: false,
        asks_callers: false,
    };
    let server = Server::parse(url).unwrap();
    Asked {
        ca: (!server.is_plain()).then(|| "-----BEGIN CERTIFICATE-----\n".to_owned()),
        server,
        upstreams: vec![
            upstream("docker.io", None),
            upstream("ghcr.io", None),
            upstream("registry.corp:5001", Some("corp")),
        ],
        home: None,
    }
}

/// The files of a client, by their paths.
fn files(client: Client, asked: &Asked) -> Vec<(String, String)> {
    let files = plan(client, asked).files.into_iter();
    files.map(|file| (file.path.display().to_string(), file.text)).collect()
}

fn toml(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

/// Whether it is written in the form that its name says.
fn check_form(path: &str, text: &str) {
    match path.rsplit('.').next().unwrap() {
        "json" => drop(serde_json::from_str::<Value>(text).unwrap()),
        "toml" | "conf" => drop(toml(text)),
        "yaml" => drop(yaml(text)),
        "crt" => assert!(text.starts_with("-----BEGIN CERTIFICATE-----")),
        "args" => assert!(text.lines().all(|line| line.starts_with("--") && !line.contains(' '))),
        other => panic!("{other}"),
    }
}

#[test]
fn who_can_log_in_only_at_a_base_of_the_registry_is_told() {
    let mut asked = asked(HTTPS);
    let told =
        |client, asked: &Asked| plan(client, asked).notes.iter().any(|note| note.contains("per-caller"));
    assert!(!told(Client::Podman, &asked));
    asked.upstreams[1].asks_callers = true;
    assert!(told(Client::Podman, &asked) && told(Client::Docker, &asked));
    assert!(!told(Client::Containerd, &asked), "it asks with `ns`");
    asked.upstreams[1].is_default = true;
    assert!(!told(Client::Podman, &asked));
}

#[test]
fn every_client_gets_files_that_are_well_formed_and_name_the_server() {
    for client in Client::value_variants() {
        for url in [HTTP, HTTPS, "http://127.0.0.1:5000", "https://[2001:db8::1]:5443"] {
            for home in [None, Some(PathBuf::from("/home/me/.config"))] {
                let asked = Asked { home, ..asked(url) };
                let files = files(*client, &asked);
                assert!(!files.is_empty(), "{client:?}");
                for (path, text) in &files {
                    check_form(path, text);
                    let is_ca = path.ends_with(".crt");
                    assert!(is_ca || text.contains(asked.server.authority()), "{client:?}: {text}");
                }
                let told = plan(*client, &asked).notes.join("\n");
                assert_eq!(
                    told.contains("the container itself"),
                    url.contains("127.0.0.1") && {
                        use Client::*;
                        [Dind, Buildx, GitlabRunner, GithubArc, Kaniko].contains(client)
                    }
                );
            }
        }
    }
}

#[test]
fn dockerd() {
    let hub = Asked { upstreams: asked(HTTP).upstreams[..1].to_vec(), ..asked(HTTP) };
    let text = "{\n  \"registry-mirrors\": [\"http://forebay.corp:5000\"],\n  \
                \"insecure-registries\": [\"forebay.corp:5000\"]\n}\n";
    assert_eq!(files(Client::Docker, &hub), [("/etc/docker/daemon.json".to_owned(), text.to_owned())]);
    let here = Asked { server: Server::parse("http://localhost:5000").unwrap(), ..hub };
    let text = "{\n  \"registry-mirrors\": [\"http://localhost:5000\"]\n}\n";
    assert_eq!(files(Client::Docker, &here)[0].1, text);

    let all = asked(HTTPS);
    let paths: Vec<String> = files(Client::Docker, &all).into_iter().map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        [
            "/etc/docker/daemon.json",
            "/etc/docker/certs.d/ghcr.io/hosts.toml",
            "/etc/docker/certs.d/registry.corp_5001_/hosts.toml",
            "/etc/docker/certs.d/forebay.corp/ca.crt"
        ]
    );
    let told = plan(Client::Docker, &all).notes.join("\n");
    assert!(told.contains("Docker 29") && told.contains("forebay.corp/ghcr.io/..."), "{told}");

    // Where names without a registry are another's, the Hub's mirror is below a path.
    let mut other = asked(HTTP);
    other.upstreams[0].is_default = false;
    assert!(files(Client::Docker, &other)[0].1.contains("\"http://forebay.corp:5000/docker.io\""));
    other.upstreams.remove(0);
    assert!(files(Client::Docker, &other).iter().all(|(path, _)| !path.contains("daemon.json")));
    assert!(plan(Client::Docker, &other).notes[0].contains("not asked for"));
}

#[test]
fn containerd() {
    let files = files(Client::Containerd, &asked(HTTPS));
    assert_eq!(files[0].0, "/etc/containerd/certs.d/docker.io/hosts.toml");
    let hosts = toml(&files[0].1);
    assert_eq!(hosts["server"], "https://registry-1.docker.io");
    let host = json!({ "capabilities": ["pull", "resolve"], "ca": "/etc/containerd/forebay-ca.crt" });
    assert_eq!(hosts["host"], json!({ HTTPS: host }));
    assert_eq!(toml(&files[1].1)["server"], "https://ghcr.io");
    assert_eq!(files[2].0, "/etc/containerd/certs.d/registry.corp_5001_/hosts.toml");
    assert_eq!(files[3].0, "/etc/containerd/forebay-ca.crt");
}

#[test]
fn podman_and_crio() {
    for client in [Client::Podman, Client::Crio] {
        let written = files(client, &asked(HTTP));
        assert_eq!(written[0].0, "/etc/containers/registries.conf.d/50-forebay.conf");
        let mirror = |host: &str, location: &str| json!({ "prefix": host, "location": host, "mirror": [{ "location": location, "insecure": true }] });
        let registries = json!([
            mirror("docker.io", "forebay.corp:5000"),
            mirror("ghcr.io", "forebay.corp:5000/ghcr.io"),
            mirror("registry.corp:5001", "forebay.corp:5000/corp"),
            { "location": "forebay.corp:5000", "insecure": true },
        ]);
        assert_eq!(toml(&written[0].1), json!({ "registry": registries }));
        let secure = files(client, &asked(HTTPS));
        assert!(!secure[0].1.contains("insecure"));
        assert_eq!(secure[1].0, "/etc/containers/certs.d/forebay.corp/ca.crt");
    }
    let mut unnamed = asked(HTTP);
    unnamed.upstreams[2].alias = None;
    let plan = plan(Client::Podman, &unnamed);
    assert!(
        !plan.files[0].text.contains("5001") && plan.notes[0].contains("`aliases = "),
        "{:?}",
        plan.notes
    );
}

#[test]
fn only_docker_hubs_names_need_nothing_before_them() {
    let mut other = asked(HTTP);
    (other.upstreams[0].is_default, other.upstreams[1].is_default) = (false, true);
    let registries = toml(&files(Client::Podman, &other)[0].1)["registry"].clone();
    for (place, location) in [(0, "forebay.corp:5000/docker.io"), (1, "forebay.corp:5000/ghcr.io")] {
        assert_eq!(registries[place]["mirror"][0]["location"], location);
    }
    let arguments = &files(Client::Kaniko, &other)[0].1;
    assert!(arguments.contains("--registry-map=ghcr.io=forebay.corp:5000/ghcr.io\n"), "{arguments}");
}

#[test]
fn a_registry_that_speaks_plain_http_is_still_reached_past_the_mirror() {
    let mut asked = asked(HTTPS);
    asked.upstreams[2].is_plain = true;
    let host = "registry.corp:5001";
    let registries = toml(&files(Client::Podman, &asked)[0].1)["registry"].clone();
    let mirror = json!([{ "location": "forebay.corp/corp" }]);
    assert_eq!(
        registries[2],
        json!({ "prefix": host, "location": host, "insecure": true, "mirror": mirror })
    );
    assert!(registries[1].get("insecure").is_none());
    for client in [Client::Containerd, Client::Docker] {
        assert_eq!(toml(&files(client, &asked)[2].1)["server"], "http://registry.corp:5001");
    }
    let buildkit = toml(&files(Client::Buildkit, &asked)[0].1)["registry"].clone();
    assert_eq!(buildkit[host], json!({ "mirrors": ["forebay.corp"], "http": true }));
    let k3s = yaml(&files(Client::K3s, &asked)[0].1)["mirrors"].clone();
    assert_eq!(k3s[host], json!({ "endpoint": [HTTPS, "http://registry.corp:5001"] }));
    assert!(files(Client::Kaniko, &asked)[0].1.contains("--insecure-registry=registry.corp:5001\n"));
}

#[test]
fn buildkit_and_buildx() {
    let mirrors = json!({ "mirrors": ["forebay.corp"] });
    for (client, path, ca) in [
        (Client::Buildkit, "/etc/buildkit/buildkitd.toml", "/etc/buildkit/forebay-ca.crt"),
        (Client::Buildx, "buildkitd.toml", "forebay-ca.crt"),
    ] {
        let files = files(client, &asked(HTTPS));
        assert_eq!((files[0].0.as_str(), files[1].0.as_str()), (path, ca));
        let own = json!({ "http": false, "ca": [ca] });
        let registry = json!({ "docker.io": mirrors, "ghcr.io": mirrors, "registry.corp:5001": mirrors, "forebay.corp": own });
        assert_eq!(toml(&files[0].1), json!({ "registry": registry }));
    }
    assert_eq!(
        toml(&files(Client::Buildkit, &asked(HTTP))[0].1)["registry"]["forebay.corp:5000"],
        json!({ "http": true })
    );
}

#[test]
fn k3s() {
    let endpoint = json!({ "endpoint": [HTTPS] });
    let mirrors = json!({ "docker.io": endpoint, "ghcr.io": endpoint, "registry.corp:5001": endpoint });
    let tls = json!({ "tls": { "ca_file": "/etc/rancher/k3s/forebay-ca.crt" } });
    let written = files(Client::K3s, &asked(HTTPS));
    assert_eq!(yaml(&written[0].1), json!({ "mirrors": mirrors, "configs": { "forebay.corp": tls } }));
    assert!(yaml(&files(Client::K3s, &asked(HTTP))[0].1).get("configs").is_none());
}

#[test]
fn dockerd_in_containers() {
    let flags = ["--registry-mirror=http://forebay.corp:5000", "--insecure-registry=forebay.corp:5000"];
    let compose = yaml(&files(Client::Dind, &asked(HTTP))[0].1);
    assert_eq!(
        compose["services"]["docker"],
        json!({ "image": "docker:dind", "privileged": true, "command": flags })
    );
    let runner = toml(&files(Client::GitlabRunner, &asked(HTTP))[0].1);
    let service = &runner["runners"][0]["docker"]["services"][0];
    assert_eq!(*service, json!({ "name": "docker:dind", "alias": "docker", "command": flags }));
    let values = yaml(&files(Client::GithubArc, &asked(HTTP))[0].1);
    let dind = &values["template"]["spec"]["initContainers"][1];
    assert_eq!((&dind["name"], &dind["args"][0]), (&json!("dind"), &json!("dockerd")));
    assert_eq!(dind["args"].as_array().unwrap()[3..], flags);

    // The CA reaches each of them.
    let folders = "/etc/ssl/certs:/etc/forebay";
    let compose = yaml(&files(Client::Dind, &asked(HTTPS))[0].1);
    assert_eq!(compose["services"]["docker"]["environment"]["SSL_CERT_DIR"], folders);
    let runner = toml(&files(Client::GitlabRunner, &asked(HTTPS))[0].1);
    let docker = &runner["runners"][0]["docker"];
    assert_eq!(docker["services"][0]["environment"], json!([format!("SSL_CERT_DIR={folders}")]));
    assert!(docker["volumes"][0].as_str().unwrap().ends_with(":/etc/forebay/ca.crt:ro"));
    let spec = yaml(&files(Client::GithubArc, &asked(HTTPS))[0].1)["template"]["spec"].clone();
    assert_eq!(spec["initContainers"][1]["env"][1]["value"], folders);
    assert_eq!(spec["volumes"][3]["configMap"]["name"], "forebay-ca");
    for client in [Client::Dind, Client::GitlabRunner, Client::GithubArc] {
        let told = plan(client, &asked(HTTP)).notes.join("\n");
        assert!(told.contains("pull ghcr.io/... as forebay.corp:5000/ghcr.io/..."), "{told}");
    }
}

#[test]
fn kaniko() {
    let arguments = "--registry-mirror=forebay.corp:5000\n--registry-map=ghcr.io=forebay.corp:5000/ghcr.io\n\
                     --registry-map=registry.corp:5001=forebay.corp:5000/corp\n\
                     --insecure-registry=forebay.corp:5000\n";
    assert_eq!(files(Client::Kaniko, &asked(HTTP)), [("kaniko.args".to_owned(), arguments.to_owned())]);
    let secure = files(Client::Kaniko, &asked(HTTPS));
    let trusted = "--registry-certificate=forebay.corp=/kaniko/ssl/certs/forebay-ca.crt";
    assert_eq!(secure[0].1.lines().last(), Some(trusted));
    assert_eq!(secure[1].0, "/kaniko/ssl/certs/forebay-ca.crt");
}

#[test]
fn a_users_own_files_are_below_the_users_directory() {
    let asked = Asked { home: Some("/home/me/.config".into()), ..asked(HTTP) };
    for (client, path) in [
        (Client::Docker, "docker/daemon.json"),
        (Client::Containerd, "containerd/certs.d/docker.io/hosts.toml"),
        (Client::Podman, "containers/registries.conf.d/50-forebay.conf"),
        (Client::Buildkit, "buildkit/buildkitd.toml"),
    ] {
        assert_eq!(files(client, &asked)[0].0, format!("/home/me/.config/{path}"));
    }
}

#[test]
fn only_scheme_host_and_port_are_a_server() {
    for (url, authority, plain, loopback) in [
        ("http://forebay", "forebay", true, false),
        ("http://Forebay.Corp:80/", "forebay.corp", true, false),
        ("https://127.0.0.1:5000", "127.0.0.1:5000", false, true),
        ("https://[::1]:5000", "[::1]:5000", false, true),
        ("http://localhost:5000", "localhost:5000", true, true),
    ] {
        let server = Server::parse(url).unwrap();
        assert_eq!(
            (server.authority(), server.is_plain(), server.is_loopback()),
            (authority, plain, loopback)
        );
    }
    for bad in [
        "forebay:5000",
        "forebay",
        "ftp://forebay",
        "http://me@forebay",
        "http://:x@forebay",
        "http://forebay/v2",
        "http://forebay/?a",
        "http://forebay/#a",
        "http://",
        "",
    ] {
        let why = Server::parse(bad).unwrap_err();
        assert!(why.contains("--url") && why.contains("http://forebay.corp:5000"), "{bad}: {why}");
    }
}

#[test]
fn several_files_are_shown_with_their_paths_and_one_as_it_is() {
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    assert_eq!(printed(&[file("/a", "x\n")]), "x\n");
    assert_eq!(printed(&[file("/a", "x\n"), file("/b", "y\n")]), "# /a\nx\n\n# /b\ny\n");
}

#[test]
fn all_files_are_written_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
    let files = [file("/etc/a/one", "1"), file("two", "2")];
    install::install(directory.path(), &files).unwrap();
    install::install(directory.path(), &files).unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!((read(&at("etc/a/one")), read(&at("two"))), ("1".to_owned(), "2".to_owned()));
    assert_eq!(std::fs::read_dir(at("etc/a")).unwrap().count(), 1, "nothing is left beside it");

    let why = install::install(directory.path(), &[file("new", "3"), file("two", "other")]).unwrap_err();
    assert!(why.contains("two is there already") && why.contains("nothing was written"), "{why}");
    assert!(!at("new").exists() && read(&at("two")) == "2");
    let why = install::install(directory.path(), &[file("two/below", "3")]).unwrap_err();
    assert!(why.contains("two/below"), "{why}");
}
