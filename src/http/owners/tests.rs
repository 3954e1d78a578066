use super::*;
use proptest::prelude::*;

fn owners() -> Owners {
    let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
    Owners::new(OwnersOptions {
        upstreams: vec![
            (host("docker.io"), vec!["dockerhub".to_owned()]),
            (host("ghcr.io"), vec![]),
            (host("localhost:5001"), vec!["local".to_owned()]),
        ],
        hosted: vec!["*".to_owned(), "corp.internal/**".to_owned()],
        hosts: vec![("GHCR.mirror.corp".to_owned(), host("ghcr.io"))],
        ..OwnersOptions::default()
    })
    .unwrap()
}

fn resolve(host: Option<&str>, name: &str) -> String {
    match owners().resolve(host, name) {
        Ok(repository) => format!("{}: {}", repository.owner, repository.name),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_order_is_named_host_then_first_component_then_hosted_then_docker_hub() {
    for (host, name, expected) in [
        (Some("docker.io"), "library/nginx", "docker.io: library/nginx"),
        (Some("docker.io"), "nginx", "docker.io: library/nginx"),
        (Some("registry-1.docker.io"), "nginx", "docker.io: library/nginx"),
        (Some("Docker.IO"), "nginx", "docker.io: library/nginx"),
        (Some("ghcr.io"), "nginx", "ghcr.io: nginx"),
        (Some("ghcr.io"), "corp.internal/app", "ghcr.io: corp.internal/app"),
        (Some("localhost:5001"), "a/b", "localhost:5001: a/b"),
        (None, "ghcr.io/org/app", "ghcr.io: org/app"),
        (None, "localhost:5001/app", "localhost:5001: app"),
        (None, "local/app", "localhost:5001: app"),
        (None, "dockerhub/nginx", "docker.io: library/nginx"),
        (None, "docker.io/org/nginx", "docker.io: org/nginx"),
        (None, "index.docker.io/nginx", "docker.io: library/nginx"),
        (None, "nginx", "hosted: nginx"),
        (None, "ghcr.io", "hosted: ghcr.io"),
        (None, "corp.internal/team/app", "hosted: corp.internal/team/app"),
        (None, "library/nginx", "docker.io: library/nginx"),
    ] {
        assert_eq!(resolve(host, name), expected, "{host:?} {name}");
    }
}

#[test]
fn a_host_that_is_not_configured_is_refused() {
    for message in [resolve(Some("quay.io"), "org/app"), resolve(None, "quay.io/org/app")] {
        assert!(message.contains("`quay.io` is not mirrored here"), "{message}");
        assert!(!message.contains("ghcr.io"), "whom that concerns is decided elsewhere: {message}");
    }
    let configured: Vec<_> = owners().configured().iter().map(ToString::to_string).collect();
    assert_eq!(configured, ["docker.io", "ghcr.io", "localhost:5001"]);
    let none = Owners::new(OwnersOptions::default()).unwrap();
    assert!(none.resolve(None, "library/nginx").is_err());
}

#[test]
fn a_virtual_host_names_its_upstream_at_any_port_and_an_upstreams_own_name_at_its_own() {
    let owners = owners();
    for (authority, expected) in [
        ("ghcr.mirror.corp", Some("ghcr.io")),
        ("Ghcr.Mirror.Corp.:5443", Some("ghcr.io")),
        ("ghcr.io", Some("ghcr.io")),
        ("ghcr.io:443", Some("ghcr.io")),
        ("ghcr.io:80", Some("ghcr.io")),
        ("ghcr.io:5000", None),
        ("registry-1.docker.io", Some("docker.io")),
        ("docker.io", Some("docker.io")),
        ("localhost:5001", None),
        ("localhost", None),
        ("dockerhub", None),
        ("mirror.corp", None),
        ("x.ghcr.mirror.corp", None),
        ("[::1]:5000", None),
        ("", None),
        (":", None),
    ] {
        assert_eq!(owners.of_authority(authority).map(UpstreamHost::as_str), expected, "{authority}");
    }
    assert_eq!(resolve(Some("ghcr.mirror.corp"), "org/app"), "ghcr.io: org/app");
    assert_eq!(resolve(None, "ghcr.mirror.corp/org/app"), "ghcr.io: org/app");
    let with_port = OwnersOptions {
        upstreams: vec![("registry.corp:5000".parse().unwrap(), vec![])],
        ..OwnersOptions::default()
    };
    let owners = Owners::new(with_port).unwrap();
    assert!(owners.of_authority("registry.corp:5000").is_some());
    assert!(owners.of_authority("registry.corp").is_none());
}

#[test]
fn another_upstream_may_be_the_default_or_none() {
    let host = |host: &str| host.parse::<UpstreamHost>().unwrap();
    let with = |upstreams: Vec<UpstreamHost>, hosted: &str| {
        let upstreams = upstreams.into_iter().map(|host| (host, vec![])).collect();
        Owners::new(OwnersOptions { upstreams, hosted: vec![hosted.to_owned()], ..OwnersOptions::default() })
            .unwrap()
    };
    let stored = |owners: &Owners, host: Option<&str>, name: &str| {
        let repository = owners.resolve(host, name).unwrap();
        (repository.to_string(), repository.stored_name())
    };
    let text = |canonical: &str, stored: &str| (canonical.to_owned(), stored.to_owned());
    let corp = with(
        vec![host("corp.example:5000").with_default(true), host("docker.io").with_default(false)],
        "mine",
    );
    assert_eq!(stored(&corp, None, "app"), text("corp.example:5000/app", "app"));
    assert_eq!(stored(&corp, None, "ghcr.io/app"), text("corp.example:5000/ghcr.io/app", "ghcr.io/app"));
    assert_eq!(stored(&corp, Some("corp.example:5000"), "app"), text("corp.example:5000/app", "app"));
    assert_eq!(
        stored(&corp, Some("docker.io"), "nginx"),
        text("docker.io/library/nginx", "docker.io/library/nginx")
    );
    assert!(matches!(
        corp.resolve(Some("corp.example:5000"), "docker.io/x"),
        Err(UnknownName::Ambiguous { .. })
    ));
    let none = with(vec![], "**");
    for ns in [None, Some("corp.example")] {
        assert_eq!(stored(&none, ns, "ghcr.io/a/b"), text("ghcr.io/a/b", "ghcr.io/a/b"));
    }
    let some = with(vec![host("docker.io").with_default(false)], "mine");
    assert!(matches!(some.resolve(None, "library/nginx"), Err(UnknownName::NoDefault(_))));
}

#[test]
fn docker_hub_is_no_way_into_another_upstreams_folder() {
    assert!(matches!(
        owners().resolve(Some("docker.io"), "ghcr.io/org/app"),
        Err(UnknownName::Ambiguous { .. })
    ));
    assert!(matches!(owners().resolve(None, "docker.io/ghcr.io/app"), Err(UnknownName::Ambiguous { .. })));
}

#[test]
fn a_hosted_name_is_not_the_default_upstreams_in_any_spelling() {
    for (host, name) in [
        (Some("docker.io"), "corp.internal/app"),
        (Some("dockerhub"), "corp.internal/app"),
        (None, "docker.io/corp.internal/app"),
        (None, "index.docker.io/corp.internal/a/b"),
    ] {
        assert!(matches!(owners().resolve(host, name), Err(UnknownName::Hosted { .. })), "{host:?} {name}");
    }
}

#[test]
fn a_star_is_one_component() {
    let hosted = |pattern: &str, name: &str| {
        let hosted = vec![pattern.to_owned()];
        let upstreams = vec![(UpstreamHost::docker_hub(), vec![])];
        let owners = Owners::new(OwnersOptions { upstreams, hosted, ..OwnersOptions::default() }).unwrap();
        owners.resolve(None, name).unwrap().owner == Owner::Hosted
    };
    assert!(hosted("*", "app") && !hosted("*", "team/app"));
    assert!(hosted("team/*", "team/app") && !hosted("team/*", "team/a/b"));
    assert!(hosted("team/**", "team/a/b") && !hosted("team/**", "teams/a"));
    assert!(!hosted("team/**", "app"));
}

#[test]
fn a_bad_pattern_is_named() {
    let options = OwnersOptions { hosted: vec!["a[".to_owned()], ..OwnersOptions::default() };
    let message = Owners::new(options).err().unwrap().to_string();
    assert!(message.contains("`a[`"), "{message}");
}

proptest! {
    #[test]
    fn a_repository_has_a_plain_name_and_a_configured_owner(
        host in proptest::option::of("[a-z.:0-9]{0,12}|docker\\.io|ghcr\\.io"),
        name in "([a-z0-9./_%A-Z:-]{0,30})|(ghcr\\.io|local|dockerhub)/[a-z0-9./_-]{0,20}",
    ) {
        if let Ok(repository) = owners().resolve(host.as_deref(), &name) {
            prop_assert!(repository.name.as_str().parse::<Name>().is_ok());
            if let Owner::Upstream(host) = &repository.owner {
                prop_assert!(["docker.io", "ghcr.io", "localhost:5001"].contains(&host.as_str()));
            }
            if let Some(host) = host {
                prop_assert_eq!(repository.owner.to_string(), host);
            }
        }
    }
}
