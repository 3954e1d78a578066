//! Bearer tokens of our own (CNCF distribution, token specification): made and checked.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::keys::Keys;
use super::token::{self, Audience, Frame, seconds};
use super::{Access, Identity, TokenOptions};
use crate::clock::Clock;

/// What our tokens say of who issued them. The key tells one Forebay from another.
pub const ISSUER: &str = "forebay";
/// As long as a laptop may lie in a drawer: then people log in again.
const REFRESH_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
const KEY_FILE: &str = "forebay/token-key.pem";

/// Makes tokens, and knows its own.
pub struct Mint {
    service: String,
    lifetime: Duration,
    header: Header,
    key: EncodingKey,
    keys: Keys,
    clock: Clock,
}

/// A token that was made.
#[derive(Clone, Debug)]
pub struct Issued {
    pub token: String,
    pub lifetime: Duration,
    pub at: SystemTime,
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    #[serde(flatten)]
    frame: Frame,
    jti: String,
    sub: String,
    pub access: Vec<Access>,
    pub identity: Identity,
    /// Changes with the user's password, and the token then ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

/// What a refresh token says: it stands for a password, until that changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefreshClaims {
    #[serde(flatten)]
    frame: Frame,
    pub user: String,
    pub password: String,
}

impl Mint {
    /// Reads the key, or makes one below `data`. Blocks.
    pub fn open(options: &TokenOptions, data: &Path, clock: Clock) -> Result<Self, String> {
        let path = options.key_file.clone().unwrap_or_else(|| data.join(KEY_FILE));
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == ErrorKind::NotFound && options.key_file.is_none() => make(&path)
                .map_err(|error| format!("token key {}: cannot be made: {error}", path.display()))?,
            Err(error) => {
                let path = path.display();
                return Err(format!(
                    "token key {path}: cannot be read: {error}; the server's user must be able to"
                ));
            }
        };
        let unusable = |why: String| {
            format!(
                "token key {}: {why}: an EC key on P-256 or an RSA key is wanted, as PEM without a password",
                path.display()
            )
        };
        let (key, algorithm) = signing_key(&pem).map_err(unusable)?;
        let jwk = Jwk::from_encoding_key(&key, algorithm).map_err(|error| unusable(error.to_string()))?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|error| unusable(error.to_string()))?;
        let set = serde_json::json!({ "keys": [jwk] });
        let keys = Keys::of_jwks(set.to_string().as_bytes()).map_err(unusable)?;
        let header = Header { kid: Some(id), ..Header::new(algorithm) };
        let (service, lifetime) = (options.service.clone(), options.lifetime);
        Ok(Self { service, lifetime, header, key, keys, clock })
    }

    pub fn service(&self) -> &str {
        &self.service
    }

    /// A token for `access`, which ends with what it was given for, if that ends sooner.
    pub fn issue(
        &self,
        identity: Identity,
        access: Vec<Access>,
        password: Option<String>,
        until: Option<SystemTime>,
    ) -> Result<Issued, String> {
        let now = self.clock.wall();
        let left = until.map_or(self.lifetime, |until| until.duration_since(now).unwrap_or_default());
        let lifetime = self.lifetime.min(left);
        let frame = self.frame(now, lifetime, self.service.clone());
        let sub = if identity.is_anonymous() { String::new() } else { identity.to_string() };
        let jti = uuid::Uuid::new_v4().to_string();
        let claims = Claims { frame, jti, sub, access, identity, password };
        Ok(Issued { token: self.sign(&claims)?, lifetime, at: now })
    }

    /// A token that fetches others, for a client that does not want to keep the password.
    pub fn refresh(&self, user: String, password: String) -> Result<String, String> {
        let frame = self.frame(self.clock.wall(), REFRESH_LIFETIME, self.of_refresh());
        self.sign(&RefreshClaims { frame, user, password })
    }

    pub fn check(&self, token: &str) -> Result<Claims, String> {
        let claims: Claims = self.open_token(token)?;
        claims.frame.check(ISSUER, &[&self.service], self.clock.wall(), Duration::ZERO)?;
        Ok(claims)
    }

    pub fn check_refresh(&self, token: &str) -> Result<RefreshClaims, String> {
        let claims: RefreshClaims = self.open_token(token)?;
        claims.frame.check(ISSUER, &[&self.of_refresh()], self.clock.wall(), Duration::ZERO)?;
        Ok(claims)
    }

    fn frame(&self, now: SystemTime, lifetime: Duration, audience: String) -> Frame {
        let now = seconds(now);
        Frame {
            iss: ISSUER.to_owned(),
            aud: Audience::One(audience),
            exp: now + lifetime.as_secs(),
            nbf: Some(now),
            iat: Some(now),
        }
    }

    /// No service's name has a blank, so neither kind passes for the other.
    fn of_refresh(&self) -> String {
        format!("{} refresh", self.service)
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, String> {
        encode(&self.header, claims, &self.key).map_err(|error| format!("a token cannot be signed: {error}"))
    }

    fn open_token<T: serde::de::DeserializeOwned>(&self, token: &str) -> Result<T, String> {
        let header = token::header(token)?;
        if header.alg != self.header.alg {
            return Err("the token is not signed as tokens of this registry are".to_owned());
        }
        self.keys.claims(&header, token).map_err(|_| "the token was not signed by this registry".to_owned())
    }
}

/// Whatever form the key has, as it is signed with.
fn signing_key(pem: &[u8]) -> Result<(EncodingKey, Algorithm), String> {
    let key =
        PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("holds no private key ({error})"))?;
    if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der()) {
        let der = pair.to_pkcs8v1().map_err(|_| "the EC key cannot be used".to_owned())?;
        return Ok((EncodingKey::from_ec_der(der.as_ref()), Algorithm::ES256));
    }
    let rsa = EncodingKey::from_rsa_pem(pem).map_err(|_| "the key is of no kind that is taken".to_owned())?;
    Ok((rsa, Algorithm::RS256))
}

/// Makes a key that only the server's user may read.
fn make(path: &Path) -> std::io::Result<Vec<u8>> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|_| std::io::Error::other("no randomness"))?;
    let body = BASE64_STANDARD.encode(key.as_ref());
    let lines: Vec<&str> = (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    write_secret(path, pem.as_bytes())?;
    Ok(pem.into_bytes())
}

/// Writes a file that only the server's user may read. What is there in the end is whole.
pub fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    std::fs::create_dir_all(&folder)?;
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(folder)?.sync_all()
}
