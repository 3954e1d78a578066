//! A certificate authority of our own, good for the registries behind the forward proxy and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::access::write_secret;
use crate::clock::Clock;
use crate::tasks::lock;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Long, since whoever trusts it has installed it by hand.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// After this a new leaf is made, long before clients with a wrong clock would see its end.
const LEAF_RENEWED: Duration = Duration::from_secs(7 * 24 * 3600);

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
    certificate: CertificateDer<'static>,
    leaf_key: KeyPair,
    /// What its name constraints permit.
    hosts: BTreeSet<String>,
    leaves: Mutex<HashMap<String, (SystemTime, Arc<ServerConfig>)>>,
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
        let remedy = "remove it and its key (`ca.key`), and have clients trust the new one";
        let certificate = CertificateDer::from_pem_slice(&pem)
            .map_err(|_| error(format!("is no certificate; {remedy}")))?;
        let key = std::fs::read_to_string(key_path(data))
            .map_err(|unread| error(format!("its key cannot be read: {unread}; {remedy}")))?;
        let key =
            KeyPair::from_pem(&key).map_err(|bad| error(format!("its key is no key: {bad}; {remedy}")))?;
        let hosts =
            permitted(&certificate).ok_or_else(|| error(format!("has no name constraints; {remedy}")))?;
        let leaf_key = KeyPair::generate().map_err(|failed| error(failed.to_string()))?;
        let issuer = Issuer::new(params(&hosts, &clock), key);
        Ok(Self { issuer, certificate, leaf_key, hosts, leaves: Mutex::default(), clock })
    }

    /// Those of the hosts that it was not made for: its name constraints keep it from them.
    pub fn lacking(&self, hosts: &BTreeSet<String>) -> Vec<String> {
        hosts.difference(&self.hosts).cloned().collect()
    }

    /// What a TLS server is that calls itself by this host's name.
    pub fn server(&self, host: &str) -> Result<Arc<ServerConfig>, String> {
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

    fn leaf(&self, host: &str, now: SystemTime) -> Result<Arc<ServerConfig>, String> {
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(|error| error.to_string())?;
        params.distinguished_name = named(host);
        params.not_before = (now - DAY).into();
        params.not_after = (now + LEAF_LIFE).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.leaf_key, &self.issuer).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
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
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: Vec::new(),
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
fn permitted(certificate: &CertificateDer<'_>) -> Option<BTreeSet<String>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn open(data: &Path, names: &[&str]) -> Result<Authority, Error> {
        std::fs::create_dir_all(data.join("forebay")).unwrap();
        Authority::open(data, &hosts(names), Clock::default())
    }

    #[test]
    fn it_is_made_once_and_its_key_is_its_owners_alone() {
        let data = tempfile::tempdir().unwrap();
        open(data.path(), &["ghcr.io", "quay.io"]).unwrap();
        let mode = std::fs::metadata(key_path(data.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pem = std::fs::read(certificate_path(data.path())).unwrap();
        let again = open(data.path(), &["ghcr.io"]).unwrap();
        assert_eq!(std::fs::read(certificate_path(data.path())).unwrap(), pem);
        assert_eq!(again.lacking(&hosts(&["ghcr.io", "quay.io"])), [""; 0]);
        assert_eq!(again.lacking(&hosts(&["ghcr.io", "nvcr.io"])), ["nvcr.io"]);
    }

    #[test]
    fn leaves_are_kept_and_made_anew_in_time() {
        let data = tempfile::tempdir().unwrap();
        let authority = open(data.path(), &["ghcr.io"]).unwrap();
        let first = authority.server("ghcr.io").unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server("ghcr.io").unwrap()));
        authority.clock.advance(LEAF_RENEWED);
        assert!(!Arc::ptr_eq(&first, &authority.server("ghcr.io").unwrap()));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_remedy() {
        let data = tempfile::tempdir().unwrap();
        open(data.path(), &["ghcr.io"]).unwrap();
        std::fs::write(key_path(data.path()), "no key").unwrap();
        let error = open(data.path(), &["ghcr.io"]).err().unwrap().to_string();
        assert!(error.contains("ca.pem") && error.contains("remove it and its key"), "{error}");
        std::fs::write(certificate_path(data.path()), "nothing").unwrap();
        let error = open(data.path(), &["ghcr.io"]).err().unwrap().to_string();
        assert!(error.contains("is no certificate"), "{error}");
    }
}
