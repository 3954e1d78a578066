//! What is configured of authentication and policy.

use std::path::PathBuf;
use std::time::Duration;

use super::{Push, Rule};

#[derive(Clone, Debug, PartialEq)]
pub struct AuthOptions {
    pub realm: String,
    pub htpasswd_file: Option<PathBuf>,
    pub anonymous_pull: bool,
    pub mirror: bool,
    pub login_hosts: LoginHosts,
    pub tokens: Option<TokenOptions>,
    pub token_server: Option<TokenServerOptions>,
    pub issuers: Vec<IssuerOptions>,
    /// TLS clients may show a certificate.
    pub certificates: bool,
    pub push: Push,
    pub rules: Vec<Rule>,
}

/// By which of its names this registry asks for a login at a bare `GET /v2/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginHosts {
    All,
    /// Hosts, with their port where it is not the scheme's own.
    These(Vec<String>),
}

/// Tokens that this registry gives out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    pub service: String,
    pub lifetime: Duration,
    /// None: one is made and kept beside the data.
    pub key_file: Option<PathBuf>,
}

/// Another server that gives out tokens for this registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenServerOptions {
    /// Where clients get one: a URL.
    pub realm: String,
    pub service: String,
    pub issuer: String,
    pub keys: KeyOptions,
}

/// Whose ID tokens are logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerOptions {
    /// What rules call it.
    pub name: String,
    /// Its `iss`.
    pub issuer: String,
    pub keys: KeyOptions,
    /// One of them has to be in the token's `aud`.
    pub audience: Vec<String>,
    pub username_claim: String,
}

/// Where an issuer's public keys are found. One at least is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyOptions {
    /// JSON Web Key Sets (RFC 7517).
    pub jwks_url: Option<String>,
    pub jwks_file: Option<PathBuf>,
    /// PEM.
    pub certificates_file: Option<PathBuf>,
    /// CAs to trust besides the system's, for `jwks_url`.
    pub ca_file: Option<PathBuf>,
}

impl Default for AuthOptions {
    /// No authentication.
    fn default() -> Self {
        Self {
            realm: "forebay".to_owned(),
            htpasswd_file: None,
            anonymous_pull: false,
            mirror: false,
            login_hosts: LoginHosts::All,
            tokens: None,
            token_server: None,
            issuers: Vec::new(),
            certificates: false,
            push: Push::Local,
            rules: Vec::new(),
        }
    }
}

impl AuthOptions {
    /// Whether there is any way to log in.
    pub fn has_logins(&self) -> bool {
        self.htpasswd_file.is_some()
            || self.token_server.is_some()
            || !self.issuers.is_empty()
            || self.certificates
    }
}
