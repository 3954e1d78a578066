//! Docker's `config.json` (docker/cli, configuration file), and `DOCKER_AUTH_CONFIG`, which has the
//! same shape.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::credential::{Login, LoginSecret, Secret, ServerName, is_helper_name};

/// What a configuration has for a server.
#[derive(PartialEq)]
pub enum Entry {
    Login(Login),
    /// The name of the helper to ask: `ecr-login` for `docker-credential-ecr-login`.
    Helper(String),
    None,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// Base64 of `user:password`.
    auth: String,
    username: String,
    password: String,
    #[serde(alias = "identityToken")]
    identitytoken: String,
    #[serde(alias = "registryToken")]
    registrytoken: String,
}

/// The login for `server`. A helper for this very server stands before the store of all logins, and
/// that before what the file itself holds (docker/cli).
pub fn find(text: &str, server: &ServerName) -> Result<Entry, String> {
    // What stands there is not shown: it may be a secret.
    let config: Config = serde_json::from_str(text).map_err(|error| {
        format!("it is no Docker configuration (line {}, column {}); name the `config.json` that `docker login` writes", error.line(), error.column())
    })?;
    let helper = best(&config.cred_helpers, server).cloned().unwrap_or(config.creds_store);
    if !helper.is_empty() {
        return if is_helper_name(&helper) {
            Ok(Entry::Helper(helper))
        } else {
            Err("the helper that it names has no plain name; correct `credsStore` or `credHelpers`"
                .to_owned())
        };
    }
    let Some(auth) = best(&config.auths, server) else { return Ok(Entry::None) };
    login(auth).map_err(|why| format!("its login for {} {why}", server.key()))
}

/// The entry whose key is the server's own, or else one that means it too.
fn best<'a, T>(entries: &'a BTreeMap<String, T>, server: &ServerName) -> Option<&'a T> {
    let meant = || entries.iter().find(|(key, _)| server.is_meant_by(key)).map(|(_, entry)| entry);
    entries.get(server.key()).or_else(meant)
}

fn login(auth: &Auth) -> Result<Entry, &'static str> {
    let (username, password) = match auth.auth.trim() {
        "" => (auth.username.clone(), auth.password.clone()),
        encoded => decode(encoded)?,
    };
    let given =
        |text: &str| Some(Secret::new(text.trim_end_matches('\0').to_owned())).filter(|_| !text.is_empty());
    if let Some(token) = given(&auth.registrytoken) {
        return Ok(Entry::Login(Login { username, secret: LoginSecret::RegistryToken(token) }));
    }
    if let Some(token) = given(&auth.identitytoken) {
        return Ok(Entry::Login(Login { username, secret: LoginSecret::IdentityToken(token) }));
    }
    match (username.is_empty(), password.is_empty()) {
        // What `docker login` leaves where a store keeps the rest.
        (true, true) => Ok(Entry::None),
        (false, false) => Ok(Entry::Login(Login::new(username, &password))),
        _ => Err("has no user name or no password; log in again by `docker login`"),
    }
}

fn decode(encoded: &str) -> Result<(String, String), &'static str> {
    let wrong = "is no Base64 of `user:password`; log in again by `docker login`";
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| wrong)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong)?;
    let (username, password) = text.trim_end_matches('\0').split_once(':').ok_or(wrong)?;
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use url::Url;

    fn look(text: &str, url: &str) -> Result<Entry, String> {
        find(text, &ServerName::of(&Url::parse(url).unwrap()))
    }

    fn password(user: &str, secret: &str) -> Result<Entry, String> {
        Ok(Entry::Login(Login::new(user.to_owned(), secret)))
    }

    fn same(one: Result<Entry, String>, other: Result<Entry, String>) -> bool {
        one == other
    }

    const HUB: &str = "https://registry-1.docker.io/";

    #[test]
    fn logins_are_found_in_every_form() {
        // me:pass:word
        let auth =
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6cGFzczp3b3Jk"}},"HttpHeaders":{}}"#;
        assert!(same(look(auth, HUB), password("me", "pass:word")));
        assert!(same(look(auth, "https://ghcr.io/"), Ok(Entry::None)));
        // Base64 of `me:x` and two zero bytes.
        let nul = r#"{"auths":{"https://ghcr.io/v1/":{"auth":"bWU6eAAA","email":"a@b"}}}"#;
        assert!(same(look(nul, "https://ghcr.io/"), password("me", "x")));
        let plain = r#"{"auths":{"ghcr.io":{"username":"me","password":"x"}}}"#;
        assert!(same(look(plain, "https://ghcr.io/"), password("me", "x")));
        let identity = r#"{"auths":{"r.azurecr.io":{"auth":"MDA6","identitytoken":"id"}}}"#;
        let secret = LoginSecret::IdentityToken(Secret::new("id".into()));
        let login = Login { username: "00".into(), secret };
        assert!(same(look(identity, "https://r.azurecr.io/"), Ok(Entry::Login(login))));
        let registry = r#"{"auths":{"r.corp:5000":{"registrytoken":"reg"}}}"#;
        let secret = LoginSecret::RegistryToken(Secret::new("reg".into()));
        let login = Login { username: String::new(), secret };
        assert!(same(look(registry, "http://r.corp:5000/"), Ok(Entry::Login(login))));
        for empty in ["{}", r#"{"auths":{"ghcr.io":{}}}"#, r#"{"auths":{}}"#] {
            assert!(same(look(empty, "https://ghcr.io/"), Ok(Entry::None)), "{empty}");
        }
        // The server's own key stands before another that means it.
        let both = r#"{"auths":{"http://ghcr.io":{"username":"old","password":"x"},"ghcr.io":{"username":"new","password":"x"}}}"#;
        assert!(same(look(both, "https://ghcr.io/"), password("new", "x")));
    }

    #[test]
    fn helpers_stand_before_the_store_before_the_file() {
        let all = r#"{"auths":{"ghcr.io":{"username":"a","password":"b"}},
            "credHelpers":{"ghcr.io":"own","https://index.docker.io/v1/":"hub"},"credsStore":"all"}"#;
        let helper = |name: &str| Ok(Entry::Helper(name.to_owned()));
        assert!(same(look(all, "https://ghcr.io/"), helper("own")));
        assert!(same(look(all, HUB), helper("hub")));
        assert!(same(look(all, "https://quay.io/"), helper("all")));
        // An empty name switches the store off for one server.
        let off = r#"{"auths":{"ghcr.io":{"username":"a","password":"b"}},"credHelpers":{"ghcr.io":""},"credsStore":"all"}"#;
        assert!(same(look(off, "https://ghcr.io/"), password("a", "b")));
        for name in ["../../bin/sh", "a b", "x;y"] {
            let text = format!(r#"{{"credsStore":{name:?}}}"#);
            assert!(look(&text, HUB).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_said_without_showing_it() {
        for (text, part) in [
            ("hunter2", "line 1"),
            ("", "no Docker configuration"),
            (r#"{"auths":"hunter2"}"#, "no Docker configuration"),
            (r#"{"auths":{"ghcr.io":{"auth":"hunter2!"}}}"#, "docker login"),
            (r#"{"auths":{"ghcr.io":{"auth":"aHVudGVyMg=="}}}"#, "docker login"),
            (r#"{"auths":{"ghcr.io":{"username":"hunter2"}}}"#, "docker login"),
        ] {
            let error = look(text, "https://ghcr.io/").err().unwrap();
            assert!(error.contains(part) && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", auth in "[A-Za-z0-9+/=]{0,40}") {
            let _ = look(&text, HUB);
            let _ = look(&format!(r#"{{"auths":{{"docker.io":{{"auth":"{auth}"}}}}}}"#), HUB);
        }
    }
}
