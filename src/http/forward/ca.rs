//! A certificate authority of our own, good for the registries behind the forward proxy (and names below
//! theirs) and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, Validity, X509Certificate};

use crate::access::write_secret;
use crate::clock::Clock;
use crate::http::handshake::{self, Terms};
use crate::tasks::lock;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Long, since whoever trusts it has installed it by hand.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// After this a new leaf is made, long before clients with a wrong clock would see its end.
const LEAF_RENEWED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Never done here: clients have installed it.
const REMEDY: &str = "remove it and its key (`ca.key`), and have clients trust the new one";

/// Why there is no authority: the file, the reason, the remedy.
#[derive(Debug, thiserror::Error)]
#[error("the forward proxy's CA {path}: {why}", path = path.display())]
pub struct Error {
    path: PathBuf,
    why: String,
}

/// Where the CA's certificate is kept, for clients to trust.
pub fn certificate_path(data: &Path) -> PathBuf {
    data.join("forebay/ca.pem")
}

fn key_path(data: &Path) -> PathBuf {
    data.join("forebay/ca.key")
}

/// The CA, and the certificates that it gave out.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    term: Validity,
    leaf_key: KeyPair,
    /// What its name constraints permit.
    hosts: BTreeSet<String>,
    leaves: Mutex<HashMap<String, (SystemTime, Arc<Terms>)>>,
    clock: Clock,
}

impl Authority {
    /// Reads the CA below `data`, or makes one for these hosts. Blocks.
    pub fn open(data: &Path, hosts: &BTreeSet<String>, clock: Clock) -> Result<Self, Error> {
        let path = certificate_path(data);
        let error = |why: String| Error { path: path.clone(), why };
        let pem = match std::fs::read(&path) {
            Ok(pem) => pem,
            Err(missing) if missing.kind() == ErrorKind::NotFound => {
                make(data, hosts, &clock).map_err(|why| error(format!("cannot be made: {why}")))?
            }
            Err(unread) => return Err(error(format!("cannot be read: {unread}"))),
        };
        let no_certificate = || error(format!("is no certificate; {REMEDY}"));
        let certificate = CertificateDer::from_pem_slice(&pem).map_err(|_| no_certificate())?;
        let (_, certificate) = X509Certificate::from_der(&certificate).map_err(|_| no_certificate())?;
        let key = std::fs::read_to_string(key_path(data))
            .map_err(|unread| error(format!("its key cannot be read: {unread}; {REMEDY}")))?;
        let key =
            KeyPair::from_pem(&key).map_err(|bad| error(format!("its key is no key: {bad}; {REMEDY}")))?;
        if certificate.public_key().subject_public_key.data != key.public_key_raw() {
            let why = "its key (`ca.key`) belongs to another certificate: put back the two of one backup, or";
            return Err(error(format!("{why} {REMEDY}")));
        }
        let term = certificate.validity().clone();
        check(&term, clock.wall()).map_err(error)?;
        let hosts =
            permitted(&certificate).ok_or_else(|| error(format!("has no name constraints; {REMEDY}")))?;
        let leaf_key = KeyPair::generate().map_err(|failed| error(failed.to_string()))?;
        let issuer = Issuer::new(params(&hosts, &clock), key);
        Ok(Self { issuer, term, leaf_key, hosts, leaves: Mutex::default(), clock })
    }

    /// Those of the hosts that it was not made for: its name constraints keep it from them.
    pub fn lacking(&self, hosts: &BTreeSet<String>) -> Vec<String> {
        hosts.difference(&self.hosts).cloned().collect()
    }

    /// What a TLS server is that calls itself by this host's name.
    pub fn server(&self, host: &str) -> Result<Arc<Terms>, String> {
        let now = self.clock.wall();
        let mut leaves = lock(&self.leaves);
        if let Some((made, server)) = leaves.get(host)
            && now.duration_since(*made).is_ok_and(|age| age < LEAF_RENEWED)
        {
            return Ok(server.clone());
        }
        let server = self.leaf(host, now)?;
        // As many as there are configured hosts: nobody else gets here.
        leaves.insert(host.to_owned(), (now, server.clone()));
        Ok(server)
    }

    fn leaf(&self, host: &str, now: SystemTime) -> Result<Arc<Terms>, String> {
        // The clock may have been set right since the CA was made, or its time have run out.
        check(&self.term, now).map_err(|why| format!("the CA {why}"))?;
        let leaf = self.certificate(host, now).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        // Without the CA's own, which lists all registries: who trusts it has it.
        let chain = vec![leaf.der().clone()];
        let config = handshake::builder()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        Ok(Arc::new(Terms::new(config.map_err(|error| error.to_string())?)))
    }

    fn certificate(&self, host: &str, now: SystemTime) -> Result<Certificate, rcgen::Error> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.distinguished_name = named(host);
        params.not_before = (now - DAY).into();
        params.not_after = (now + LEAF_LIFE).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&self.leaf_key, &self.issuer)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Whether a certificate is good now, or else why not.
fn check(term: &Validity, now: SystemTime) -> Result<(), String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (from, to) = (&term.not_before, &term.not_after);
    match i64::try_from(now) {
        Ok(now) if (from.timestamp()..=to.timestamp()).contains(&now) => Ok(()),
        _ => Err(format!(
            "is good from {from} to {to}, and by the clock that is not now: set the clock right, or {REMEDY}"
        )),
    }
}

/// The CA's own certificate, as it is signed. Of these, those that it gives out need the name only.
fn params(hosts: &BTreeSet<String>, clock: &Clock) -> CertificateParams {
    let now = clock.wall();
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Forebay's forward proxy");
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // What is permitted limits names of its own form alone: addresses would be free (RFC 5280, 4.2.1.10).
    let addresses = [CidrSubnet::from_v4_prefix([0; 4], 0), CidrSubnet::from_v6_prefix([0; 16], 0)];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: addresses.map(GeneralSubtree::IpAddress).into(),
    });
    params
}

/// The key goes first: a certificate without its key would be trusted for nothing.
fn make(data: &Path, hosts: &BTreeSet<String>, clock: &Clock) -> Result<Vec<u8>, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params(hosts, clock).self_signed(&key).map_err(|error| error.to_string())?;
    let pem = certificate.pem().into_bytes();
    write_secret(&key_path(data), key.serialize_pem().as_bytes()).map_err(|error| error.to_string())?;
    write_secret(&certificate_path(data), &pem).map_err(|error| error.to_string())?;
    Ok(pem)
}

/// The hosts that a CA's name constraints permit.
fn permitted(certificate: &X509Certificate<'_>) -> Option<BTreeSet<String>> {
    let constraints = certificate.extensions().iter().find_map(|one| match one.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => Some(constraints),
        _ => None,
    })?;
    let permitted = constraints.permitted_subtrees.as_ref()?.iter();
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        _ => None,
    };
    Some(permitted.filter_map(|subtree| host(&subtree.base)).collect())
}

#[cfg(test)]
mod tests;
