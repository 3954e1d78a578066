//! Requests as real clients send them.

use super::*;
use crate::http::OwnersOptions;
use crate::http::error::ApiError;
use crate::http::route::{self, Route};
use http::Method;

fn owners() -> Owners {
    let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
    let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    Owners::new(OwnersOptions {
        upstreams: vec![
            (host("docker.io"), text(&["dockerhub"])),
            (host("ghcr.io"), text(&["gh"])),
            (host("harbor.corp:8443"), vec![]),
            (host("k8s.corp"), text(&["quay", "old.corp"])),
        ],
        hosts: vec![
            ("ghcr.mirror.corp".to_owned(), host("ghcr.io")),
            ("hub.mirror.corp".to_owned(), host("docker.io")),
        ],
        hosted: text(&["*", "corp.internal/**", "team/**"]),
        apart: text(&["team/**"]),
    })
    .unwrap()
}

fn sent(scope: &Scope, authority: &str, method: &Method, target: &str) -> Result<String, ApiError> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let routed = route::parse(&owners(), Entrance { scope, authority }, method, path, query)?;
    Ok(match routed.route {
        Route::Manifest(repository, _) | Route::Blob(repository, _) | Route::Write(repository, _) => {
            format!("{}: {}", repository.owner, repository.name)
        }
        Route::Tags(repository, ..) => format!("{}: {}", repository.owner, repository.name),
        Route::Base => routed.address.upstream().map_or("base".to_owned(), |host| format!("base of {host}")),
        other => format!("{other:?}"),
    })
}

fn at(scope: &Scope, authority: &str, target: &str) -> String {
    sent(scope, authority, &Method::GET, target).unwrap_or_else(|error| {
        let status = error.status().as_u16();
        format!("{status} {error:?}")
    })
}

fn root(target: &str) -> String {
    at(&Scope::default(), "mirror.corp:5000", target)
}

#[track_caller]
fn refused(answer: &str, status: u16, part: &str) {
    assert!(answer.starts_with(&status.to_string()) && answer.contains(part), "{answer}");
}

#[test]
fn every_client_finds_the_repository_by_its_own_way_of_asking() {
    let digest = format!("sha256:{}", "a".repeat(64));
    for (client, target, expected) in [
        (
            "dockerd: registry-mirrors",
            "/v2/library/alpine/manifests/latest".to_owned(),
            "docker.io: library/alpine",
        ),
        (
            "dockerd >= 24: with a path",
            "/docker.io/v2/library/alpine/manifests/latest".into(),
            "docker.io: library/alpine",
        ),
        ("the same, its ping", "/docker.io/v2/".into(), "base of docker.io"),
        (
            "dockerd on containerd's store",
            "/v2/library/alpine/manifests/latest?ns=docker.io".into(),
            "docker.io: library/alpine",
        ),
        (
            "the same, with a path",
            format!("/docker.io/v2/library/alpine/blobs/{digest}?ns=docker.io"),
            "docker.io: library/alpine",
        ),
        ("containerd: hosts.toml", "/v2/org/app/manifests/1?ns=ghcr.io".into(), "ghcr.io: org/app"),
        (
            "containerd: with a path",
            format!("/ghcr.io/v2/org/app/blobs/{digest}?ns=ghcr.io"),
            "ghcr.io: org/app",
        ),
        ("containerd: path, by an alias", "/gh/v2/org/app/manifests/1?ns=ghcr.io".into(), "ghcr.io: org/app"),
        (
            "containerd: override_path",
            "/v2/ghcr.io/org/app/manifests/1?ns=ghcr.io".into(),
            "ghcr.io: org/app",
        ),
        (
            "containerd: Hub's own name",
            "/v2/library/x/manifests/1?ns=registry-1.docker.io".into(),
            "docker.io: library/x",
        ),
        ("containerd: a port", "/v2/p/x/manifests/1?ns=harbor.corp%3A8443".into(), "harbor.corp:8443: p/x"),
        (
            "containerd: a port in the path",
            "/harbor.corp:8443/v2/p/x/manifests/1?ns=harbor.corp:8443".into(),
            "harbor.corp:8443: p/x",
        ),
        (
            "k3s: rewrite to a prefix",
            "/v2/docker.io/rancher/mirrored-pause/manifests/3.6?ns=docker.io".into(),
            "docker.io: rancher/mirrored-pause",
        ),
        ("BuildKit: path and ns", "/v2/ghcr.io/org/app/manifests/1?ns=ghcr.io".into(), "ghcr.io: org/app"),
        (
            "BuildKit: an alias and ns",
            "/v2/dockerhub/library/alpine/manifests/3?ns=docker.io".into(),
            "docker.io: library/alpine",
        ),
        (
            "BuildKit: library is its own",
            "/v2/docker.io/library/alpine/manifests/3?ns=docker.io".into(),
            "docker.io: library/alpine",
        ),
        (
            "containerd: a namespace called like an own alias",
            "/v2/quay/quay/manifests/3?ns=k8s.corp".into(),
            "k8s.corp: quay/quay",
        ),
        ("BuildKit: an alias with a dot", "/v2/old.corp/app/manifests/3?ns=k8s.corp".into(), "k8s.corp: app"),
        (
            "BuildKit: the alias before that namespace",
            "/v2/quay/quay/quay/manifests/3?ns=k8s.corp".into(),
            "k8s.corp: quay/quay",
        ),
        (
            "BuildKit: the host before one component",
            "/v2/k8s.corp/pause/manifests/3.9?ns=k8s.corp".into(),
            "k8s.corp: pause",
        ),
        (
            "Hub's other name before one component",
            "/v2/registry-1.docker.io/alpine/manifests/3?ns=docker.io".into(),
            "docker.io: library/alpine",
        ),
        ("podman: mirror with a path", "/v2/ghcr.io/org/app/manifests/1".into(), "ghcr.io: org/app"),
        (
            "podman: docker.io with a path",
            "/v2/docker.io/library/alpine/manifests/3".into(),
            "docker.io: library/alpine",
        ),
        ("docker pull mirror/ghcr.io/…", "/v2/ghcr.io/org/app/manifests/1".into(), "ghcr.io: org/app"),
        (
            "a project called like a registry",
            "/harbor.corp:8443/v2/ghcr.io/x/manifests/1?ns=harbor.corp:8443".into(),
            "harbor.corp:8443: ghcr.io/x",
        ),
        (
            "a namespace called like an alias",
            "/v2/gh/app/manifests/1?ns=docker.io".into(),
            "docker.io: gh/app",
        ),
        ("a push", "/v2/app/manifests/1".into(), "hosted: app"),
        ("ctr push", "/v2/corp.internal/a/b/manifests/1".into(), "hosted: corp.internal/a/b"),
    ] {
        assert_eq!(root(&target), expected, "{client}");
    }
}

#[test]
fn what_names_a_registry_has_to_agree() {
    for target in [
        "/docker.io/v2/org/app/manifests/1?ns=ghcr.io",
        "/v2/docker.io/org/app/manifests/1?ns=ghcr.io",
        "/docker.io/v2/?ns=ghcr.io",
    ] {
        refused(&root(target), 404, "this request names one registry by its path `docker.io`");
    }
    let by_host = |target| at(&Scope::default(), "ghcr.mirror.corp", target);
    refused(
        &by_host("/v2/org/app/manifests/1?ns=docker.io"),
        404,
        "its host `ghcr.mirror.corp` and another by `?ns=docker.io`",
    );
    refused(&by_host("/docker.io/v2/org/app/manifests/1"), 404, "by its path `docker.io`");
    assert_eq!(by_host("/v2/org/app/manifests/1?ns=ghcr.io"), "ghcr.io: org/app");
    assert_eq!(by_host("/v2/org/app/manifests/1?ns=ghcr.mirror.corp"), "ghcr.io: org/app");
}

#[test]
fn a_host_means_its_upstream_whose_names_are_as_they_are() {
    for (authority, target, expected) in [
        ("ghcr.mirror.corp", "/v2/org/app/manifests/1", "ghcr.io: org/app"),
        ("ghcr.mirror.corp:5000", "/v2/app/tags/list", "ghcr.io: app"),
        ("ghcr.mirror.corp", "/v2/", "base of ghcr.io"),
        ("ghcr.mirror.corp", "/v2/docker.io/x/manifests/1", "ghcr.io: docker.io/x"),
        ("hub.mirror.corp", "/v2/alpine/manifests/1", "docker.io: library/alpine"),
        ("registry-1.docker.io", "/v2/library/alpine/manifests/1", "docker.io: library/alpine"),
        ("ghcr.io", "/v2/org/app/manifests/1", "ghcr.io: org/app"),
        ("harbor.corp:8443", "/v2/p/x/manifests/1", "harbor.corp:8443: p/x"),
        ("harbor.corp", "/v2/p/x/manifests/1", "docker.io: p/x"),
        ("elsewhere.example", "/v2/library/x/manifests/1", "docker.io: library/x"),
        ("ghcr.io:5000", "/v2/app/manifests/1", "hosted: app"),
    ] {
        assert_eq!(at(&Scope::default(), authority, target), expected, "{authority} {target}");
    }
    let push = sent(&Scope::default(), "ghcr.mirror.corp", &Method::PUT, "/v2/app/manifests/1");
    assert_eq!(push.unwrap_err().status().as_u16(), 405);
    refused(
        &at(&Scope::default(), "hub.mirror.corp", "/v2/corp.internal/x/manifests/1"),
        404,
        "is a hosted name here",
    );
}

#[test]
fn a_hosted_listener_has_hosted_names_alone() {
    let scope = Scope { serve: Serve::Hosted, upstream: None };
    let hosted = |target| at(&scope, "mirror.corp:5001", target);
    for (target, expected) in [
        ("/v2/team/app/manifests/1", "hosted: team/app"),
        ("/v2/app/manifests/1", "hosted: app"),
        ("/v2/corp.internal/x/manifests/1", "hosted: corp.internal/x"),
        ("/v2/team/app/manifests/1?ns=registry.corp", "hosted: team/app"),
        ("/v2/", "base"),
    ] {
        assert_eq!(hosted(target), expected, "{target}");
    }
    for target in [
        "/v2/library/alpine/manifests/1",
        "/v2/ghcr.io/org/app/manifests/1",
        "/v2/gh/app/manifests/1",
        "/v2/quay.io/org/app/manifests/1",
        "/v2/team/app/manifests/1?ns=docker.io",
        "/ghcr.io/v2/org/app/manifests/1",
    ] {
        refused(&hosted(target), 404, "this listener serves hosted images only");
    }
    refused(&at(&scope, "ghcr.mirror.corp", "/v2/team/app/manifests/1"), 404, "serves hosted images only");
    let push = sent(&scope, "mirror.corp:5001", &Method::PUT, "/v2/team/app/manifests/1");
    assert_eq!(push.unwrap(), "hosted: team/app");
    // Elsewhere the name has the same owner, and is not served: dockerd could mean Docker Hub's.
    refused(&root("/v2/team/app/manifests/1"), 404, "only listeners that serve hosted images alone");
    refused(&root("/v2/team/app/manifests/1?ns=docker.io"), 404, "is a hosted name here");
    let push = sent(&Scope::default(), "mirror.corp:5000", &Method::PUT, "/v2/team/app/manifests/1");
    assert_eq!(push.unwrap_err().status().as_u16(), 404);
}

#[test]
fn a_mirror_listener_has_mirrored_names_alone() {
    let scope = Scope { serve: Serve::Mirror, upstream: None };
    let mirrored = |target| at(&scope, "mirror.corp:5002", target);
    assert_eq!(mirrored("/v2/library/alpine/manifests/1"), "docker.io: library/alpine");
    assert_eq!(mirrored("/v2/ghcr.io/org/app/manifests/1"), "ghcr.io: org/app");
    for target in ["/v2/app/manifests/1", "/v2/corp.internal/x/manifests/1", "/v2/team/app/manifests/1"] {
        refused(&mirrored(target), 404, "this listener serves mirrored images only");
    }
    for target in ["/v2/app/manifests/1", "/v2/library/x/blobs/uploads/", "/v2/bad//name/manifests/1"] {
        let method = if target.ends_with('/') { Method::POST } else { Method::PUT };
        let error = sent(&scope, "mirror.corp:5002", &method, target).unwrap_err();
        assert_eq!(error.status().as_u16(), 405, "{target}");
    }
}

#[test]
fn a_listener_of_an_upstream_has_its_names_alone() {
    let scope = Scope { serve: Serve::Mirror, upstream: Some("ghcr.io".parse().unwrap()) };
    let own = |target| at(&scope, "mirror.corp:5003", target);
    assert_eq!(own("/v2/org/app/manifests/1"), "ghcr.io: org/app");
    assert_eq!(own("/v2/app/manifests/1"), "ghcr.io: app");
    assert_eq!(own("/v2/corp.internal/x/manifests/1"), "ghcr.io: corp.internal/x");
    assert_eq!(own("/v2/org/app/manifests/1?ns=ghcr.io"), "ghcr.io: org/app");
    assert_eq!(own("/v2/"), "base of ghcr.io");
    refused(
        &own("/v2/org/app/manifests/1?ns=docker.io"),
        404,
        "by its listener and another by `?ns=docker.io`",
    );
    refused(
        &at(&scope, "hub.mirror.corp", "/v2/x/y/manifests/1"),
        404,
        "its listener and another by its host",
    );
    // Taken out of the configuration since the start.
    let gone = Scope { serve: Serve::Mirror, upstream: Some("gone.example".parse().unwrap()) };
    refused(&at(&gone, "mirror.corp", "/v2/org/app/manifests/1"), 404, "not mirrored here");
}

#[test]
fn lists_show_what_is_addressed() {
    let owners = owners();
    let repository = |owner: Owner, name: &str| Repository { owner, name: name.parse().unwrap() };
    let ghcr: UpstreamHost = "ghcr.io".parse().unwrap();
    let mirrored = repository(Owner::Upstream(ghcr.clone()), "org/app");
    let (own, apart) = (repository(Owner::Hosted, "app"), repository(Owner::Hosted, "team/app"));
    let listed = |serve, upstream: Option<&UpstreamHost>| {
        let scope = Scope { serve, upstream: upstream.cloned() };
        let address = Address::of(&owners, Entrance { scope: &scope, authority: "" }, None, None).unwrap();
        let all = [&mirrored, &own, &apart].map(|one| address.listed(&owners, one, one.to_string()));
        all.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(listed(Serve::All, None), "ghcr.io/org/app app");
    assert_eq!(listed(Serve::Hosted, None), "app team/app");
    assert_eq!(listed(Serve::Mirror, None), "ghcr.io/org/app");
    assert_eq!(listed(Serve::Mirror, Some(&ghcr)), "org/app");
    assert_eq!(listed(Serve::Mirror, Some(&UpstreamHost::docker_hub())), "");
}

#[test]
fn a_namespace_is_answered_where_it_decides() {
    let owners = owners();
    let answered = |serve, path, query| route::namespace(&owners, serve, path, Some(query));
    assert_eq!(answered(Serve::All, "/v2/a/b/manifests/1", "ns=ghcr.io").as_deref(), Some("ghcr.io"));
    assert_eq!(answered(Serve::All, "/v2/a/b/manifests/1", "ns=quay.io").as_deref(), Some("quay.io"));
    assert_eq!(answered(Serve::Hosted, "/v2/a/b/manifests/1", "ns=quay.io"), None);
    assert_eq!(answered(Serve::All, "/metrics", "ns=ghcr.io"), None);
    assert_eq!(answered(Serve::All, "/v2/a/b/manifests/1", "n=1"), None);
    let none = Owners::new(OwnersOptions::default()).unwrap();
    assert_eq!(route::namespace(&none, Serve::All, "/v2/a/manifests/1", Some("ns=ghcr.io")), None);
}

#[test]
fn a_scope_is_of_the_host_that_the_token_is_asked_for_at() {
    let owners = owners();
    let scope = |authority, name| {
        let entrance = Entrance { scope: &Scope::default(), authority };
        let found = Address::of(&owners, entrance, None, None).unwrap().scope(&owners, name).unwrap();
        format!("{}: {}", found.owner, found.name)
    };
    assert_eq!(scope("ghcr.mirror.corp", "org/app"), "ghcr.io: org/app");
    assert_eq!(scope("ghcr.mirror.corp", "ghcr.io/org/app"), "ghcr.io: org/app");
    assert_eq!(scope("mirror.corp", "ghcr.io/org/app"), "ghcr.io: org/app");
    assert_eq!(scope("mirror.corp", "team/app"), "hosted: team/app");
}
