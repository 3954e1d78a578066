//! Tokens that others have signed: ID tokens, which say who somebody is, and those of another token
//! server, which say what somebody may do.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::Header;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::Keys;
use super::remote::KeySource;
use super::token::{self, Frame};
use super::{Access, Grants, Identity, IssuerOptions, Subject, TokenServerOptions};
use crate::clock::Clock;

/// What the clocks of others may be off.
const LEEWAY: Duration = Duration::from_secs(60);
/// Certificates in a token's header, at most.
const CHAIN_MAX: usize = 8;
/// What a token may grant: each entry is looked at with each request.
const ACCESS_MAX: usize = 256;
const NAME_MAX: usize = 512;

/// Whose ID tokens are logins.
pub struct Issuer {
    options: IssuerOptions,
    keys: KeySource,
    clock: Clock,
}

impl Issuer {
    pub fn open(options: &IssuerOptions, clock: &Clock) -> Result<Self, String> {
        let keys = KeySource::open(&options.keys, clock)
            .map_err(|error| format!("auth.issuer.{}: {error}", options.name))?;
        Ok(Self { options: options.clone(), keys, clock: clock.clone() })
    }

    /// Its `iss`.
    pub fn issuer(&self) -> &str {
        &self.options.issuer
    }

    /// Whom the token is about, and until when it says so.
    pub async fn subject(&self, token: &str) -> Result<(Identity, SystemTime), String> {
        let header = token::header(token)?;
        let claims: Map<String, Value> = self.keys.claims(&header, token).await?;
        let frame: Frame = serde_json::from_value(Value::Object(claims.clone()))
            .map_err(|_| "the token lacks a time of expiry".to_owned())?;
        let audience: Vec<&str> = self.options.audience.iter().map(String::as_str).collect();
        frame.check(&self.options.issuer, &audience, self.clock.wall(), LEEWAY)?;
        let claim = &self.options.username_claim;
        let name = match claims.get(claim) {
            Some(Value::String(name)) if is_name(name) => name.clone(),
            _ => return Err(format!("the token has no claim `{claim}` that could be a name")),
        };
        let subject = Subject { issuer: self.options.name.clone(), name, claims };
        let until = UNIX_EPOCH.checked_add(Duration::from_secs(frame.exp));
        Ok((Identity::Subject(Arc::new(subject)), until.unwrap_or(UNIX_EPOCH)))
    }
}

/// What can stand in a log line and in a message.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control)
}

/// Another server that gives out tokens for this registry.
pub struct TokenServer {
    options: TokenServerOptions,
    keys: KeySource,
    /// By which chains of certificates in tokens' headers are checked.
    roots: Option<Arc<dyn ClientCertVerifier>>,
    clock: Clock,
}

/// What its tokens say (CNCF distribution, token specification).
#[derive(Deserialize)]
struct Claims {
    #[serde(flatten)]
    frame: Frame,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    access: Vec<Access>,
}

impl TokenServer {
    pub fn open(options: &TokenServerOptions, clock: &Clock) -> Result<Self, String> {
        let wrong = |error: String| format!("auth.token_server: {error}");
        let keys = KeySource::open(&options.keys, clock).map_err(wrong)?;
        let roots = options.keys.certificates_file.as_deref().map(roots).transpose().map_err(wrong)?;
        Ok(Self { options: options.clone(), keys, roots: roots.flatten(), clock: clock.clone() })
    }

    pub fn issuer(&self) -> &str {
        &self.options.issuer
    }

    /// Who bears the token, and what it is good for.
    pub async fn check(&self, token: &str) -> Result<(Identity, Grants), String> {
        let header = token::header(token)?;
        let claims: Claims = match self.certified(&header) {
            Some(keys) => {
                keys.claims(&header, token).map_err(|_| "the token's signature is wrong".to_owned())?
            }
            None => self.keys.claims(&header, token).await?,
        };
        claims.frame.check(&self.options.issuer, &[&self.options.service], self.clock.wall(), LEEWAY)?;
        if claims.access.len() > ACCESS_MAX {
            return Err(format!("the token grants more than {ACCESS_MAX} things"));
        }
        let identity =
            if is_name(&claims.sub) { Identity::User(claims.sub.into()) } else { Identity::Anonymous };
        Ok((identity, Grants { access: claims.access, is_foreign: true }))
    }

    /// The key of the certificate in the header, where a chain leads from it to one that is trusted.
    fn certified(&self, header: &Header) -> Option<Keys> {
        let chain = header.x5c.as_ref().filter(|chain| (1..=CHAIN_MAX).contains(&chain.len()))?;
        let decoded = chain.iter().map(|one| BASE64_STANDARD.decode(one).ok().map(CertificateDer::from));
        let chain = decoded.collect::<Option<Vec<_>>>()?;
        let now = self.clock.wall().duration_since(UNIX_EPOCH).ok()?;
        let (leaf, rest) = chain.split_first()?;
        self.roots.as_ref()?.verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(now)).ok()?;
        Some(Keys::of_certificate(leaf))
    }
}

/// None: none of the certificates can stand at the head of a chain; their own keys still count.
fn roots(path: &Path) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(verifier.ok())
}
