//! The server's certificates, and the CA of its clients': read, checked, taken up anew when their files
//! change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::handshake::{self, Terms};
use super::{ClientCertificates, Pair, TlsOptions};

/// Certificate chains and keys are a few KiB.
const FILE_MAX: u64 = 1024 * 1024;
/// Longest name of a client.
const NAME_MAX: usize = 255;
/// How often the files are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Why there is no TLS: the file, the reason, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("TLS {what} {path}: {why}", path = path.display())]
    File { what: &'static str, path: PathBuf, why: String },
    #[error(
        "TLS: the key in {key} does not belong to the certificate in {certificate}: \
         name the two files of one pair, the server's own certificate first in its file",
        key = key.display(), certificate = certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// The certificate in use.
pub struct Tls {
    options: TlsOptions,
    terms: ArcSwap<Terms>,
}

/// The files' bytes, to tell whether they have changed.
#[derive(PartialEq, Eq)]
pub struct Files {
    /// Certificate and key of each pair, in the order of the options.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads and checks the files.
    pub async fn load(options: TlsOptions) -> Result<(Self, Files), Error> {
        let files = Files::read(&options).await?;
        let terms = ArcSwap::from_pointee(terms(&options, &files)?);
        Ok((Self { options, terms }, files))
    }

    /// A client's handshake.
    pub async fn accept<I>(&self, stream: I) -> Result<TlsStream<I>, handshake::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        self.terms.load_full().accept(stream).await
    }

    /// Looks at the files again and again and takes up what has changed, for new connections. What
    /// cannot be used is logged once, and the certificate in use stays.
    pub async fn follow(self: Arc<Self>, mut files: Files) {
        let mut said = None;
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            match self.check(&mut files).await {
                Ok(false) => {}
                Ok(true) => {
                    said = None;
                    let path = self.options.certificate_file.display();
                    tracing::info!(%path, "new TLS certificate taken up");
                }
                Err(error) if said.as_ref() != Some(&error) => {
                    tracing::error!(%error, "the TLS certificate in use stays");
                    said = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Whether there was a change, which is then in use.
    async fn check(&self, files: &mut Files) -> Result<bool, Error> {
        let found = Files::read(&self.options).await?;
        if found == *files {
            return Ok(false);
        }
        // Certificate and key are two files: a pair that does not match may be half replaced.
        self.terms.store(Arc::new(terms(&self.options, &found)?));
        *files = found;
        Ok(true)
    }
}

impl Files {
    async fn read(options: &TlsOptions) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        for Pair { certificate_file, key_file } in options.pairs() {
            pairs.push((read("certificate", &certificate_file).await?, read("key", &key_file).await?));
        }
        let client_ca = match &options.clients {
            Some(clients) => Some(read("CA of clients", &clients.ca_file).await?),
            None => None,
        };
        Ok(Self { pairs, client_ca })
    }
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let error = |why: String| Error::File { what, path: path.to_owned(), why };
    let file = tokio::fs::File::open(path).await;
    let file =
        file.map_err(|reason| error(format!("{reason}: the server's user must be able to read it")))?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes).await;
    read.map_err(|reason| error(reason.to_string()))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(error(format!("is larger than {FILE_MAX} bytes: a PEM file of a few KiB is expected")));
    }
    Ok(bytes)
}

impl TlsOptions {
    /// The one for whoever asks for no host, or another, is the first.
    fn pairs(&self) -> Vec<Pair> {
        let (certificate_file, key_file) = (self.certificate_file.clone(), self.key_file.clone());
        std::iter::once(Pair { certificate_file, key_file }).chain(self.others.iter().cloned()).collect()
    }
}

fn terms(options: &TlsOptions, files: &Files) -> Result<Terms, Error> {
    let pairs = options.pairs();
    let pairs = pairs.iter().zip(&files.pairs).map(|(pair, (chain, key))| certified(pair, chain, key));
    let certificates = Arc::new(Certificates(pairs.collect::<Result<_, _>>()?));
    let builder = handshake::builder().map_err(|error| Error::Setup(error.to_string()))?;
    let builder = match options.clients.as_ref().zip(files.client_ca.as_deref()) {
        Some((clients, pem)) => builder.with_client_cert_verifier(client_verifier(clients, pem)?),
        None => builder.with_no_client_auth(),
    };
    Ok(Terms::new(builder.with_cert_resolver(certificates)))
}

fn certified(pair: &Pair, certificate_pem: &[u8], key_pem: &[u8]) -> Result<Certified, Error> {
    let Pair { certificate_file: certificate, key_file: key } = pair;
    let bad = |what, path: &Path, why: String| Error::File { what, path: path.to_owned(), why };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad("certificate", certificate, format!("is no PEM file: {error}")))?;
    let Some(own) = chain.first() else {
        let why = "holds no `BEGIN CERTIFICATE`: write the server's certificate, then its issuers, as PEM";
        return Err(bad("certificate", certificate, why.to_owned()));
    };
    let secret = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| {
        bad("key", key, format!("holds no private key ({error}): write it as PEM, without a password"))
    })?;
    let hosts = hosts_of(own);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, secret, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            Error::Mismatch { certificate: certificate.clone(), key: key.clone() }
        }
        error => bad(
            "certificate",
            certificate,
            format!("cannot be used with the key in {}: {error}", key.display()),
        ),
    })?;
    Ok(Certified { hosts, key: Arc::new(certified) })
}

/// A certificate and the names of hosts in it, in lower case.
#[derive(Debug)]
struct Certified {
    hosts: Vec<String>,
    key: Arc<CertifiedKey>,
}

/// The server's certificates, of which there is one at least.
#[derive(Debug)]
struct Certificates(Vec<Certified>);

impl Certificates {
    /// The one for a host: by its very name, by a wildcard for its last label, or else the first.
    fn of(&self, host: Option<&str>) -> Option<&Certified> {
        let host = host.map(str::to_ascii_lowercase);
        let by = |name: &str| self.0.iter().find(|one| one.hosts.iter().any(|own| own == name));
        let named = host.as_deref().and_then(|host| {
            let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
            by(host).or_else(|| by(&wildcard?))
        });
        named.or(self.0.first())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()).map(|one| one.key.clone())
    }
}

/// The names of hosts that a certificate is for (RFC 6125: its alternative names alone).
fn hosts_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let names = certificate.subject_alternative_name().ok().flatten();
    let hosts = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
        _ => None,
    });
    hosts.collect()
}

fn client_verifier(clients: &ClientCertificates, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let bad = |why: String| Error::File { what: "CA of clients", path: clients.ca_file.clone(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| bad(format!("is no PEM file: {error}")))?;
        roots.add(certificate).map_err(|error| bad(format!("holds what is no certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(bad("holds no `BEGIN CERTIFICATE`: write the CA's certificate as PEM".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
    verifier.build().map_err(|error| bad(error.to_string()))
}

/// Whom the client's certificate names: by its subject's common name, or else by its first alternative
/// name. The handshake has checked it.
pub fn client_name<I>(stream: &TlsStream<I>) -> Option<Arc<str>> {
    let (_, connection) = stream.get_ref();
    name_of(connection.peer_certificates()?.first()?)
}

/// The host that the client asked for (SNI).
pub fn server_name<I>(stream: &TlsStream<I>) -> Option<Arc<str>> {
    let (_, connection) = stream.get_ref();
    connection.server_name().map(Into::into)
}

fn name_of(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let usable =
        |name: &&str| !name.is_empty() && name.len() <= NAME_MAX && !name.chars().any(char::is_control);
    let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    if let Some(name) = common.filter(usable) {
        return Some(name.into());
    }
    let alternatives =
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        })?;
    let name = alternatives.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    name.filter(usable).map(Into::into)
}

#[cfg(test)]
pub(super) mod tests;
