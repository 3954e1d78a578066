//! Public keys that tokens are checked by. Only asymmetric algorithms: a token that is signed with a
//! public key as if that were a secret, or not signed at all, fits no key.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, Validation, decode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// Keys of one issuer at most: each may have to be tried.
const KEYS_MAX: usize = 64;

/// One issuer's public keys.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// By which tokens name it. None: it is tried for every token that names no other.
    id: Option<String>,
    /// What the key says it is for. None: whatever fits its kind.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Why no key approves a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unapproved {
    /// It names a key that is not here, or none fits.
    NoKey,
    /// A key fits, and did not make this signature.
    Signature,
}

/// A JSON Web Key Set (RFC 7517), read key by key: those of kinds that we do not know are no fault.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

impl Keys {
    pub fn of_jwks(bytes: &[u8]) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(bytes).map_err(|error| {
            format!("holds no JSON Web Key Set ({error}): `{{\"keys\": [...]}}` is wanted")
        })?;
        let known = set.keys.into_iter().filter_map(|key| Key::of_jwk(serde_json::from_value(key).ok()?));
        Self::some(known.take(KEYS_MAX).collect(), "no key of the set is an RSA, EC or Ed25519 key")
    }

    /// The keys of certificates, as PEM. They have no names.
    pub fn of_certificates(bytes: &[u8]) -> Result<Self, String> {
        let mut keys = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(bytes).take(KEYS_MAX) {
            let certificate = certificate.map_err(|error| format!("is no PEM file: {error}"))?;
            keys.extend(Key::of_certificate(&certificate));
        }
        Self::some(keys, "holds no `BEGIN CERTIFICATE` with an RSA, EC or Ed25519 key")
    }

    /// The key of one certificate, which somebody has found to be good.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Self {
        Self(Key::of_certificate(certificate).into_iter().collect())
    }

    fn some(keys: Vec<Key>, none: &str) -> Result<Self, String> {
        if keys.is_empty() { Err(none.to_owned()) } else { Ok(Self(keys)) }
    }

    pub fn with(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().cloned());
        self
    }

    /// What the token says, where one of the keys has signed it. Its times, issuer and audience are
    /// still to be checked.
    pub fn claims<T: DeserializeOwned>(&self, header: &Header, token: &str) -> Result<T, Unapproved> {
        let names_it = |key: &&Key| match (&key.id, &header.kid) {
            (Some(id), Some(named)) => id == named,
            _ => true,
        };
        let fits = |key: &&Key| {
            key.key.family() == header.alg.family()
                && header.alg.family() != AlgorithmFamily::Hmac
                && key.algorithm.is_none_or(|algorithm| algorithm == header.alg)
        };
        let mut found = Err(Unapproved::NoKey);
        for key in self.0.iter().filter(names_it).filter(fits).take(KEYS_MAX) {
            match decode(token, &key.key, &signature_only(header.alg)) {
                Ok(token) => return Ok(token.claims),
                Err(_) => found = Err(Unapproved::Signature),
            }
        }
        found
    }
}

/// The clock and the names are checked by who knows what they should be.
pub fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.set_required_spec_claims::<&str>(&[]);
    validation
}

impl Key {
    fn of_jwk(jwk: Jwk) -> Option<Self> {
        let is_public = matches!(
            jwk.algorithm,
            AlgorithmParameters::RSA(_)
                | AlgorithmParameters::EllipticCurve(_)
                | AlgorithmParameters::OctetKeyPair(_)
        );
        let signs = !matches!(jwk.common.public_key_use, Some(jsonwebtoken::jwk::PublicKeyUse::Encryption));
        if !is_public || !signs {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let algorithm = jwk.common.key_algorithm.and_then(|algorithm| Algorithm::try_from(algorithm).ok());
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }

    fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
        let info = certificate.public_key();
        let bits = info.subject_public_key.data.as_ref();
        let key = match info.parsed() {
            Ok(PublicKey::RSA(_)) => DecodingKey::from_rsa_der(bits),
            Ok(PublicKey::EC(_)) => DecodingKey::from_ec_der(bits),
            _ if bits.len() == 32 => DecodingKey::from_ed_der(bits),
            _ => return None,
        };
        Some(Self { id: None, algorithm: None, key })
    }
}
