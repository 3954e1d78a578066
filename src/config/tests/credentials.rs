//! The logins of upstreams: whole, in one place, and none of them in the file.

use super::*;
use crate::upstream::{Credential, Password, Secret};

const HUB: &str = "[upstream.\"docker.io\"]\n";

fn credential(case: &Case) -> Credential {
    case.load().unwrap().upstreams[0].credential.clone().unwrap()
}

#[test]
fn credentials_are_whole_and_in_files() {
    refused(&format!("{HUB}password = \"x\""), 2, &["password: ", "`password_file`"]);
    assert!(!Case::new(&format!("{HUB}password = \"hunter2\"")).error().contains("hunter2"));
    refused(&format!("{HUB}username = \"me\""), 2, &["username: ", "`password_file`"]);
    refused(&format!("{HUB}password_file = \"/x\""), 2, &["password_file: ", "`username`"]);
    let missing = format!("{HUB}username = \"me\"\npassword_file = \"/nonexistent/x\"");
    refused(&missing, 3, &["password_file: ", "/nonexistent/x", "cannot be read"]);
    refused(&format!("{HUB}username = \"me\"\npassword_file = \"/\""), 3, &["no regular file"]);

    let case = Case::new("");
    let name = |username: &str, file: &str| format!("{HUB}username = {username:?}\npassword_file = {file:?}");
    case.rewrite(&name("me", &case.file("empty", " \n", 0o600)));
    assert!(case.error().contains("is empty"), "{}", case.error());
    let secret = case.file("secret", "x", 0o644);
    for username in ["", "a:b", "a\nb"] {
        case.rewrite(&name(username, &secret));
        assert!(case.error().contains("username: a username"), "{}", case.error());
    }
    case.rewrite(&name("me", &secret));
    let warnings = case.load().unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains(&format!("`chmod 600 {secret}`")), "{warnings:?}");

    case.file("secret", "x", 0o600);
    for (url, warned) in
        [("http://registry", 1), ("http://127.0.0.1:1", 0), ("http://localhost", 0), ("http://[::1]", 0)]
    {
        case.rewrite(&format!("{}\nurl = \"{url}\"", name("me", &secret)));
        let warnings = case.load().unwrap().warnings;
        assert_eq!(
            warnings.iter().filter(|warning| warning.contains("in the clear")).count(),
            warned,
            "{warnings:?}"
        );
    }
}

#[test]
fn identity_tokens_are_in_files() {
    let case = Case::new("");
    let token = case.file("token", "x\n", 0o600);
    case.rewrite(&format!("{HUB}token_file = {token:?}"));
    assert_eq!(credential(&case), Credential::IdentityToken(Password::File(token.clone().into())));
    let again = Case::new(&case.load().unwrap().explain());
    assert_eq!(credential(&again), credential(&case));
    case.file("token", "", 0o600);
    assert!(case.error().contains("is empty"), "{}", case.error());
    refused(&format!("{HUB}token = \"hunter2\""), 2, &["token: ", "`token_file`"]);
    refused(&format!("{HUB}token_file = \"/nonexistent/t\""), 2, &["token_file: ", "cannot be read"]);
}

#[test]
fn a_login_has_one_place() {
    for (keys, line, parts) in [
        ("username = \"me\"\ntoken_file = \"/t\"", 3, ["token_file: ", "`username`"]),
        ("password_file = \"/p\"\ndocker_config = \"env\"", 3, ["docker_config: ", "`password_file`"]),
        ("token_file = \"/t\"\ncredential_helper = \"x\"", 3, ["credential_helper: ", "`token_file`"]),
        ("credential_helper = \"x\"\ndocker_config = \"env\"", 2, ["credential_helper: ", "`docker_config`"]),
    ] {
        refused(&format!("{HUB}{keys}"), line, &[parts[0], parts[1], "keep one of the two"]);
    }
}

#[test]
fn helpers_are_found_once_and_for_all() {
    let mut case = Case::new("");
    let program = case.file("docker-credential-ecr-login", "#!/bin/sh\n", 0o755);
    case.file("docker-credential-plain", "", 0o644);
    let directory = case.directory.path().to_str().unwrap().to_owned();
    case = case.variable("PATH", &format!("/nonexistent:.:{directory}"));
    let helper = Credential::Helper { program: program.clone().into() };
    for text in ["ecr-login", "docker-credential-ecr-login", &program] {
        case.rewrite(&format!("{HUB}credential_helper = {text:?}"));
        assert_eq!(credential(&case), helper, "{text}");
    }
    let again = Case::new(&case.load().unwrap().explain());
    assert_eq!(credential(&again), helper);
    for (text, part) in [
        ("gcloud", "no docker-credential-gcloud in the directories of PATH; install it"),
        ("plain", "no docker-credential-plain"),
        ("/nonexistent/helper", "`chmod +x`"),
        ("/", "no program"),
        ("bin/helper", "an absolute path"),
        ("ecr-login get", "an absolute path"),
        ("", "an absolute path"),
    ] {
        case.rewrite(&format!("{HUB}credential_helper = {text:?}"));
        let error = case.error();
        assert!(error.contains("forebay.toml:2: upstream.\"docker.io\".credential_helper: "), "{error}");
        assert!(error.contains(part), "`{part}` in {error}");
    }
}

#[test]
fn a_docker_configuration_is_looked_into() {
    let mut case = Case::new("");
    let login = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6aHVudGVyMg=="}}}"#;
    let path = case.file("config.json", login, 0o600);
    let config = |path: &str, inline: Option<&str>| Credential::DockerConfig {
        path: Some(path.into()),
        inline: inline.map(|text| Secret::new(text.to_owned())),
        search: vec![],
    };
    case.rewrite(&format!("{HUB}docker_config = {path:?}"));
    assert_eq!(credential(&case), config(&path, None));
    assert!(case.load().unwrap().warnings.is_empty());

    // Another registry's is no login.
    case.rewrite(&format!("[upstream.\"ghcr.io\"]\ndocker_config = {path:?}"));
    let warnings = case.load().unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("no login for ghcr.io"), "{warnings:?}");

    case.rewrite(&format!("{HUB}docker_config = {path:?}"));
    for (text, part) in [
        ("hunter2", "no Docker configuration"),
        (r#"{"credsStore":"desktop"}"#, "no docker-credential-desktop in the directories of PATH"),
        (r#"{"credsStore":"../x"}"#, "no plain name"),
        (r#"{"auths":{"docker.io":{"auth":"hunter2"}}}"#, "`docker login`"),
    ] {
        case.file("config.json", text, 0o600);
        let error = case.error();
        assert!(error.contains("forebay.toml:2: upstream.\"docker.io\".docker_config: "), "{error}");
        assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
    }

    // What Docker itself would take.
    case.rewrite(&format!("{HUB}docker_config = \"env\""));
    assert!(case.error().contains("/home/me/.docker/config.json"), "{}", case.error());
    case.file("config.json", login, 0o644);
    let directory = case.directory.path().to_str().unwrap().to_owned();
    case = case.variable("DOCKER_CONFIG", &directory);
    assert_eq!(credential(&case), config(&path, None));
    assert!(case.load().unwrap().warnings[0].contains("`chmod 600"), "{:?}", case.load().unwrap().warnings);
    case = case.variable("DOCKER_AUTH_CONFIG", login);
    assert_eq!(credential(&case), config(&path, Some(login)));
    let explained = case.load().unwrap().explain();
    assert!(explained.contains("docker_config = \"env\"") && !explained.contains("bWU6"), "{explained}");
    case.environment.variables.remove("DOCKER_CONFIG".as_ref() as &std::ffi::OsStr);
    assert!(matches!(credential(&case), Credential::DockerConfig { path: None, inline: Some(_), .. }));
    case = case.variable("DOCKER_AUTH_CONFIG", "hunter2");
    assert!(case.error().contains("no Docker configuration") && !case.error().contains("hunter2"));
}
