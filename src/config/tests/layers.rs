//! Which layer wins, and where defaults come from.

use std::ffi::OsString;

use super::*;
use crate::mirror::Stale;
use crate::oci::{Owner, UpstreamHost};
use crate::telemetry::Format;
use crate::upstream::PrivatePolicy;

#[test]
fn nothing_at_all_is_a_configuration() {
    let config = load_in(&Flags::default(), &nowhere()).unwrap();
    assert_eq!(config.http.listen, [address("127.0.0.1:5000"), address("[::1]:5000")]);
    assert_eq!((config.http.operations, config.http.tls.clone()), (None, None));
    assert_eq!(config.http.shutdown_grace, seconds(300));
    assert_eq!(config.owners.upstreams, [(UpstreamHost::docker_hub(), vec![])]);
    assert_eq!(config.owners.hosted, ["*"]);
    assert_eq!(config.access.requests, None);
    let cold = config.access.cold_misses.unwrap();
    assert_eq!((cold.per_minute.get(), cold.burst.get()), (120, 240));
    assert_eq!((config.access.wait, config.access.queue), (seconds(20), 1000));
    let freshness = &config.mirror.freshness;
    let moving = ["latest", "main", "edge", "nightly"].map(|tag| (tag, seconds(60)));
    let rules: Vec<_> = freshness.rules.iter().map(|(pattern, time)| (pattern.as_str(), *time)).collect();
    assert_eq!(rules, moving);
    assert_eq!(
        (freshness.versions, freshness.others, freshness.jitter),
        (seconds(6 * 3600), seconds(300), 0.1)
    );
    assert_eq!((config.mirror.negative_not_found, config.mirror.negative_denied), (seconds(30), seconds(60)));
    let (not_found, denied) = (Some(seconds(24 * 3600)), seconds(15 * 60));
    assert_eq!(config.mirror.stale, Stale { not_found, denied, trouble: None });
    assert!(!config.mirror.offline);
    assert_eq!((config.mirror.metadata_memory, config.mirror.blob_memory), (64 << 20, 64 << 20));
    let hub = &config.upstreams[0];
    assert_eq!(hub.url.as_str(), "https://registry-1.docker.io/");
    assert_eq!(
        (hub.connect_timeout, hub.header_timeout, hub.idle_timeout),
        (seconds(3), seconds(10), seconds(30))
    );
    assert_eq!((hub.max_requests, hub.max_fills, hub.requests_per_minute), (64, 32, None));
    assert_eq!((hub.queue_timeout, hub.queue_length), (seconds(20), 1000));
    assert_eq!((hub.private, &hub.credential), (PrivatePolicy::Refuse, &None));
    assert_eq!(config.store.data, Path::new("/home/me/.local/share/forebay"));
    assert_eq!((config.store.max_size, config.store.min_free, config.store.adopt), (None, None, None));
    assert_eq!((config.store.unread_budget, config.store.resumes), (2 << 30, 5));
    assert_eq!(config.telemetry.format, Format::Json);
    assert_eq!((config.telemetry.level.as_str(), config.telemetry.access), ("info", true));
    assert!(config.warnings.is_empty() && config.sources.is_empty());
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let file = "data = \"/file\"\nlisten = [\"127.0.0.1:1\"]\n[log]\nlevel = \"warn\"\nformat = \"text\"\n\
                [upstream.\"docker.io\"]\nurl = \"http://file/\"\nmax_fills = 3\n";
    let mut case = Case::new(file);
    let config = case.load().unwrap();
    assert_eq!(config.store.data, Path::new("/file"));
    assert_eq!(config.telemetry.format, Format::Text);

    case = case
        .variable("FOREBAY_DATA", "/variable")
        .variable("FOREBAY_LISTEN", "127.0.0.1:2, [::1]:2,")
        .variable("FOREBAY_UPSTREAM", "docker.io=http://variable,ghcr.io, quay.io=https://quay.example/base")
        .variable("FOREBAY_LOG", "debug")
        .variable("FOREBAY_LOG_FORMAT", "json")
        .variable("FOREBAY_ADOPT", "hosted")
        .variable("FOREBAY_OPERATIONS", "127.0.0.1:9");
    let config = case.load().unwrap();
    assert_eq!(config.store.data, Path::new("/variable"));
    assert_eq!(config.http.listen, [address("127.0.0.1:2"), address("[::1]:2")]);
    assert_eq!(config.http.operations, Some(address("127.0.0.1:9")));
    assert_eq!((config.telemetry.level.as_str(), config.telemetry.format), ("debug", Format::Json));
    assert_eq!(config.store.adopt, Some(Owner::Hosted));
    let urls: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.url.as_str()).collect();
    assert_eq!(urls, ["http://variable/", "https://ghcr.io/", "https://quay.example/base/"]);
    assert_eq!(config.upstreams[0].max_fills, 3, "what the file says besides the URL stays");

    case.flags = Flags {
        data: Some("/flag".into()),
        listen: vec!["127.0.0.1:3".into()],
        upstream: vec!["index.docker.io=http://flag".into()],
        operations: Some("127.0.0.1:8".into()),
        log: Some("error".into()),
        log_format: Some("text".into()),
        adopt: Some("ghcr.io".into()),
        ..case.flags
    };
    let config = case.load().unwrap();
    assert_eq!(config.store.data, Path::new("/flag"));
    assert_eq!(config.http.listen, [address("127.0.0.1:3")]);
    assert_eq!(config.http.operations, Some(address("127.0.0.1:8")));
    assert_eq!((config.telemetry.level.as_str(), config.telemetry.format), ("error", Format::Text));
    assert_eq!(config.upstreams[0].url.as_str(), "http://flag/");
    assert_eq!(config.upstreams.len(), 3);
    assert_eq!(config.store.adopt, Some(Owner::Upstream("ghcr.io".parse().unwrap())));
    assert_eq!(config.sources["data"].to_string(), "--data");
    assert_eq!(config.sources["upstream.\"quay.io\".url"].to_string(), "FOREBAY_UPSTREAM");
}

#[test]
fn the_file_is_named_or_usual_or_none() {
    let case = Case::new("data = \"/named\"");
    let path = case.flags.config.clone().unwrap();
    let with =
        |environment: Environment| load_in(&Flags::default(), &environment).map(|config| config.store.data);
    let usual = Environment { default_file: path.clone(), ..nowhere() };
    assert_eq!(with(usual.clone()).unwrap(), Path::new("/named"));
    let mut by_variable = nowhere();
    by_variable.variables.insert("FOREBAY_CONFIG".into(), path.clone().into());
    assert_eq!(with(by_variable.clone()).unwrap(), Path::new("/named"));
    by_variable.variables.insert("FOREBAY_CONFIG".into(), "".into());
    assert_eq!(with(by_variable.clone()).unwrap(), Path::new("/home/me/.local/share/forebay"));
    by_variable.variables.insert("FOREBAY_CONFIG".into(), "/nonexistent/f".into());
    assert!(with(by_variable).unwrap_err().to_string().contains(
        "/nonexistent/f: cannot be read: there is no such file; correct --config or FOREBAY_CONFIG"
    ));
    let directory = Environment { default_file: path.parent().unwrap().into(), ..nowhere() };
    assert!(with(directory).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn files_that_are_too_large_or_not_text_are_refused() {
    let case = Case::new("");
    case.rewrite(&"#\n".repeat(1 << 19));
    case.load().unwrap();
    case.rewrite(&"#\n".repeat((1 << 19) + 1));
    assert!(case.error().contains("larger than 1 MiB"));
    std::fs::write(case.flags.config.as_ref().unwrap(), b"data = \"\xff\"").unwrap();
    assert!(case.error().contains("not UTF-8"));
}

#[test]
fn data_goes_where_the_surroundings_keep_data() {
    let data =
        |environment: &Environment| load_in(&Flags::default(), environment).map(|config| config.store.data);
    let mut environment = nowhere();
    environment.variables.insert("XDG_DATA_HOME".into(), "/xdg".into());
    assert_eq!(data(&environment).unwrap(), Path::new("/xdg/forebay"));
    environment.variables.insert("XDG_DATA_HOME".into(), "relative".into());
    assert_eq!(data(&environment).unwrap(), Path::new("/home/me/.local/share/forebay"));
    environment.variables.clear();
    let error = data(&environment).unwrap_err().to_string();
    assert!(error.contains("data: ") && error.contains("FOREBAY_DATA"), "{error}");
    environment.root = true;
    assert_eq!(data(&environment).unwrap(), Path::new("/var/lib/forebay"));
    environment.variables.insert("STATE_DIRECTORY".into(), "/srv/state".into());
    assert_eq!(data(&environment).unwrap(), Path::new("/srv/state"));
}

#[test]
fn log_format_follows_the_terminal_unless_chosen() {
    let mut case = Case::new("[log]\nformat = \"auto\"");
    assert_eq!(case.load().unwrap().telemetry.format, Format::Json);
    case.environment.terminal = true;
    assert_eq!(case.load().unwrap().telemetry.format, Format::Text);
}

#[test]
fn unknown_variables_are_warned_of() {
    let case = Case::new("").variable("FOREBAY_LISTN", "x").variable("FOREBAY_PORT_5000_TCP", "tcp://x");
    let case = case.variable("FOREBAY_SERVICE_HOST", "10.0.0.1").variable("FOREBAY_XYZZY", "1");
    let warnings = case.load().unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("FOREBAY_LISTN ") && warnings[0].contains("mean FOREBAY_LISTEN?"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("FOREBAY_XYZZY"), "{warnings:?}");
}

#[test]
fn mistakes_in_the_environment_and_in_flags_name_them() {
    for (variable, value, parts) in [
        ("FOREBAY_LISTEN", "localhost:5000", ["FOREBAY_LISTEN: listen: ", "`0.0.0.0:5000`"]),
        ("FOREBAY_LISTEN", "127.0.0.1:1,127.0.0.1:1", ["FOREBAY_LISTEN: listen: ", "twice"]),
        ("FOREBAY_UPSTREAM", "a/b", ["FOREBAY_UPSTREAM: upstream: ", "`docker.io=http"]),
        ("FOREBAY_UPSTREAM", "ghcr.io=ftp://x", ["FOREBAY_UPSTREAM: upstream.\"ghcr.io\".url: ", "https://"]),
        ("FOREBAY_LOG_FORMAT", "xml", ["FOREBAY_LOG_FORMAT: log.format: ", "`json`"]),
        ("FOREBAY_LOG", "loud", ["FOREBAY_LOG: log.level: ", "`info`"]),
        ("FOREBAY_TLS_KEY_FILE", "/k", ["FOREBAY_TLS_KEY_FILE: tls.key_file: ", "--tls-certificate-file"]),
        ("FOREBAY_ADOPT", "quay.io", ["FOREBAY_ADOPT: adopt: ", "`--upstream quay.io`"]),
        ("FOREBAY_OPERATIONS", "9090", ["FOREBAY_OPERATIONS: operations: ", "write `127.0.0.1:9090`"]),
    ] {
        let error = Case::new("").variable(variable, value).error();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} in: {error}");
    }
    let mut case = Case::new("");
    case.flags.adopt = Some("ghcr.io".into());
    assert!(
        case.error().starts_with("--adopt: adopt: ghcr.io is no configured upstream"),
        "{}",
        case.error()
    );
    case.flags.adopt = Some("hosted".into());
    assert_eq!(case.load().unwrap().store.adopt, Some(Owner::Hosted));
    case.flags.adopt = None;
    case.flags.upstream = vec![String::new()];
    assert!(case.error().starts_with("--upstream: upstream: `` is no registry host"), "{}", case.error());
    case.flags = Flags { listen: vec![String::new()], ..Flags::default() };
    assert!(case.error().starts_with("--listen: listen: `` is no address"), "{}", case.error());
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let mut case = Case::new("");
    case.environment.variables.insert("FOREBAY_DATA".into(), OsString::from_vec(vec![0xff]));
    assert!(case.error().contains("FOREBAY_DATA") && case.error().contains("UTF-8"));
}
