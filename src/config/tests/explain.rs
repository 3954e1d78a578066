//! The configuration shown, and the example that is shipped.

use super::*;

#[test]
fn the_shipped_example_loads_as_it_is_and_with_every_key_enabled() {
    let example = include_str!("../../../deploy/forebay.toml");
    let as_shipped = loaded(example);
    let defaults = load_in(&Flags::default(), &nowhere()).unwrap();
    assert_eq!(as_shipped.upstreams, defaults.upstreams);
    assert_eq!(as_shipped.http.listen, [address("0.0.0.0:5000")]);

    let case = Case::new("");
    let secret = case.file("hub", "secret", 0o600);
    let pem = case.file("pem", "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n", 0o600);
    let jwks = case.file("jwks", "{}", 0o600);
    let htpasswd = case.file("htpasswd", "", 0o600);
    let docker_config = case.file("config.json", "{}", 0o600);
    let helper = case.file("helper", "", 0o700);
    // Keys are commented out by `#` without a space, remarks by `# `.
    let enabled = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with([' ', '#']) && !rest.is_empty())
                .unwrap_or(line)
        })
        .map(|line| match line.split_once(" = ").map(|(key, _)| key) {
            Some("htpasswd_file") => format!("htpasswd_file = {htpasswd:?}"),
            Some(key @ ("password_file" | "token_file")) => format!("{key} = {secret:?}"),
            Some("docker_config") => format!("docker_config = {docker_config:?}"),
            Some("credential_helper") => format!("credential_helper = {helper:?}"),
            Some("header_files") => format!("header_files = {{ Authorization = {secret:?} }}"),
            Some("jwks_file") => format!("jwks_file = {jwks:?}"),
            Some(
                key @ ("ca_file" | "certificate_file" | "key_file" | "certificates_file" | "client_ca_file"),
            ) => format!("{key} = {pem:?}"),
            _ => line.to_owned(),
        });
    case.rewrite(&enabled.collect::<Vec<_>>().join("\n"));
    let config = case.load().unwrap();
    for key in [
        "listen",
        "data",
        "operations",
        "upstream.\"docker.io\".requests_per_minute",
        "upstream.\"corp.azurecr.io\".token_file",
        "upstream.\"docker.io\".mirror",
        "upstream.\"docker.io\".deadline",
        "upstream.\"docker.io\".quota_reserve",
        "limits.priority",
        "limits.fair_share",
        "hosted.shadow",
        "hosted.retention",
        "gc.untagged",
        "scrub.quarantine",
        "cache.reader_timeout",
        "cache.fill_connections",
        "cache.range_share",
        "cache.range_floor",
        "freshness.rules.\"library/*:1.*\"",
        "refresh.per_minute",
        "prefetch.layers",
        "warm",
        "negative.denied",
        "stale.denied",
        "limits.network",
        "limits.identity",
        "hosted.push",
        "auth.htpasswd_file",
        "auth.login_hosts",
        "auth.tokens.key_file",
        "auth.token_server.certificates_file",
        "auth.issuer.gitlab.username_claim",
        "auth.issuer.kubernetes.jwks_file",
        "tls.client_auth",
        "access.rule",
        "limits.trusted_proxies",
        "limits.idle_timeout",
        "events.endpoint",
        "tls.key_file",
        "shutdown.grace",
        "log.access",
    ] {
        assert!(config.sources.contains_key(key), "{key} in {:?}", config.sources.keys());
    }
    // Whatever can be explained can be looked up in the example.
    let explained = config.explain();
    let keys = explained.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    for key in keys {
        assert!(example.contains(&format!("{key} = ")), "{key}");
    }
}

#[test]
fn what_nobody_set_is_explained_too() {
    let mut case = Case::new("");
    case.environment.terminal = true;
    let explained = case.load().unwrap().explain();
    for line in ["shadow = false # default", "format = \"auto\" # default"] {
        assert!(explained.lines().any(|told| told == line), "{line} in\n{explained}");
    }
    for key in ["operations", "username", "password_file", "ca_file", "certificate_file", "key_file"] {
        assert!(explained.contains(&format!("\n# {key}: ")), "{key} in\n{explained}");
    }
    case.rewrite("[hosted]\nshadow = true\n[log]\nformat = \"text\"");
    let explained = case.load().unwrap().explain();
    for line in ["shadow = true # ", "format = \"text\" # "] {
        assert!(explained.contains(line), "{line} in\n{explained}");
    }
}

#[test]
fn what_is_explained_loads_as_the_same() {
    let case = Case::new("").variable("FOREBAY_LOG", "debug");
    let secret = case.file("secret", "x", 0o600);
    case.rewrite(&format!(
        "listen = \"0.0.0.0:5000\"\noperations = \"127.0.0.1:9090\"\n[upstream.\"localhost:5001\"]\nusername = \"we \\\"quote\\\"\"\n\
         password_file = {secret:?}\nrequests_per_minute = 7\nheader_timeout = \"1500ms\"\n[hosted]\nshadow = true\n\
         repositories = [\"team/**\"]\n[cache]\nmax_size = \"3GB\"\nmemory = \"7B\"\n[freshness.rules]\n\"b:*\" = \"90s\"\na = \"0s\"\n\
         [refresh]\nper_minute = 7\n[[warm]]\nimages = [\"localhost:5001/a:1\", \"b\"]\nevery = \"90s\"\n[[warm]]\n\
         images = \"c\"\nplatforms = \"all\"\n[[warm]]\nimages = \"d\"\nplatforms = [\"linux/arm/v7\", \"linux/386\"]\n\
         [scrub]\ninterval = \"off\"\nrate = \"1MB\"\nquarantine = \"0B\"\n[gc]\ninterval = \"off\"\nuntagged = \"7d\"\n[[hosted.retention]]\nrepositories = \"ci/*\"\nkeep_last = 3\nkeep_for = \"30d\"\n\
         [[hosted.retention]]\nrepositories = \"a\"\nkeep_tags = [\"v*\"]\nuntagged_for = \"0s\"\n\
         [[limits.network]]\ncidr = \"fd00::/8\"\nrequests = \"1/m\"\n[[limits.identity]]\nname = \"ci-*\"\nrequests = \"2/m\"\n\
         [auth]\nrealm = \"us\"\nmirror = true\n[auth.tokens]\nlifetime = \"90s\"\n[auth.token_server]\n\
         realm = \"https://a/t?x=1\"\nservice = \"s\"\nissuer = \"i\"\njwks_url = \"https://a/k\"\n[auth.issuer.gitlab]\n\
         issuer = \"https://g\"\naudience = \"us\"\njwks_url = \"http://127.0.0.1:1/k\"\n[[access.rule]]\nwho = [\"*\", \"certificate:a\", \"gitlab:x/*\", \"gitlab:a=b,c=*\"]\nrepositories = [\"**\"]\n\
         actions = [\"pull\", \"admin\"]\n\
         [[events.endpoint]]\nname = \"a\"\nurl = \"http://localhost/?a=b\"\n\
         [[events.endpoint]]\nname = \"b\"\nurl = \"https://ci.example/\"\nattempts = 3\nactions = \"push\"\ntimeout = \"1500ms\"\n\
         headers = {{ X-B = \"we \\\"quote\\\"\", x-a = \"1\" }}\nheader_files = {{ authorization = {secret:?} }}\n"
    ));
    let first = case.load().unwrap();
    let explained = first.explain();
    for line in [
        "data = \"/home/me/.local/share/forebay\" # default".to_owned(),
        "level = \"debug\" # FOREBAY_LOG".to_owned(),
        format!("max_size = \"3GB\" # {}:12", case.flags.config.as_ref().unwrap().display()),
    ] {
        assert!(explained.contains(&line), "{line} in\n{explained}");
    }
    case.rewrite(&explained);
    let second = case.load().unwrap();
    assert_eq!(Config { sources: first.sources.clone(), ..second }, first);
}
