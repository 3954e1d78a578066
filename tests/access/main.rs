//! Who may do what, over HTTP: every identity, action, face and spelling; tokens; certificates; files
//! that change while the server runs.

#[path = "../support/mod.rs"]
mod support;

mod certificates;
mod clients;
mod issuers;
mod matrix;
mod passwords;
mod tokens;

use std::path::Path;

use forebay::access::htpasswd;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};

use support::answer::Answer;
use support::faulty::Upstream;
use support::http;
use support::image::{INDEX, Image, MANIFEST};
use support::mirror::{Mirror, MirrorOptions};
use support::repository::Repository;

/// A scripted Docker Hub, and Forebay in front of it with users whose password is their name.
struct Rig {
    upstream: Upstream,
    mirror: Mirror,
    directory: tempfile::TempDir,
}

impl Rig {
    /// `config` follows `[auth]` with the file of passwords.
    async fn start(users: &[&str], config: &str) -> Self {
        Self::with(users, config, MirrorOptions::default()).await
    }

    async fn with(users: &[&str], config: &str, options: MirrorOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_users(directory.path(), users);
        let upstream = Upstream::start().await;
        let file = directory.path().join("htpasswd");
        let config = config.replace("$DIRECTORY", directory.path().to_str().unwrap());
        let config = Some(format!("[auth]\nhtpasswd_file = {file:?}\n{config}"));
        let mirror =
            Mirror::with(directory.path(), MirrorOptions { upstream: upstream.url(), config, ..options })
                .await;
        Self { upstream, mirror, directory }
    }

    fn repository(&self, name: &str, user: &str) -> Repository {
        Repository::new(&self.mirror.url(), name).by(user, user)
    }

    async fn ask(&self, method: Method, path: &str, by: &By) -> Answer {
        let request = http().request(method, self.mirror.url() + path);
        Answer::of(by.apply(request.header("Accept", format!("{INDEX}, {MANIFEST}")))).await
    }

    async fn get(&self, path: &str, by: &By) -> Answer {
        self.ask(Method::GET, path, by).await
    }
}

fn write_users(directory: &Path, users: &[&str]) {
    let line = |user: &&str| format!("{user}:{}\n", htpasswd::hash(user, 4).unwrap());
    std::fs::write(directory.join("htpasswd"), users.iter().map(line).collect::<String>()).unwrap();
}

/// Who asks, and how that is shown.
#[derive(Clone, Debug)]
enum By {
    Nobody,
    Password(&'static str, String),
    Bearer(String),
}

/// A user whose password is the name.
fn user(name: &'static str) -> By {
    By::Password(name, name.to_owned())
}

impl By {
    fn apply(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Password(user, password) => request.basic_auth(user, Some(password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// An issuer's key, and its key set as a file.
struct Issuer {
    key: EncodingKey,
    kid: &'static str,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        Self { key: EncodingKey::from_ec_der(&key.serialize_der()), kid }
    }

    fn jwks(&self) -> String {
        let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        json!({"keys": [jwk]}).to_string()
    }

    /// An ID token about a project.
    fn token(&self, project: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "https://gitlab.corp", "aud": "registry.corp", "sub": "x", "project_path": project, "iat": now,
            "exp": now + 300,
        });
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).unwrap()
    }
}
