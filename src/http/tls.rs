//! The server's certificate, and the CA of its clients': read, checked, taken up anew when their files
//! change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ClientCertificates, TlsOptions};

/// Certificate chains and keys are a few KiB.
const FILE_MAX: u64 = 1024 * 1024;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest name of a client.
const NAME_MAX: usize = 255;
/// How often the files are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Plain text that one connection may hold: the fastest of those measured (speed.md).
const BUFFER: usize = 256 * 1024;

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

/// Why a client got no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("TLS handshake: {0}")]
    Failed(#[from] std::io::Error),
    #[error("TLS handshake took longer than {} s", HANDSHAKE_MAX.as_secs())]
    TooSlow,
}

/// The certificate in use.
pub struct Tls {
    options: TlsOptions,
    config: ArcSwap<ServerConfig>,
}

/// The files' bytes, to tell whether they have changed.
#[derive(PartialEq, Eq)]
pub struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads and checks the files.
    pub async fn load(options: TlsOptions) -> Result<(Self, Files), Error> {
        let files = Files::read(&options).await?;
        let config = ArcSwap::from_pointee(configure(&options, &files)?);
        Ok((Self { options, config }, files))
    }

    /// A client's handshake, which has 10 s.
    pub async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let accepted = acceptor.accept_with(stream, |connection| connection.set_buffer_limit(Some(BUFFER)));
        match tokio::time::timeout(HANDSHAKE_MAX, accepted).await {
            Ok(accepted) => Ok(accepted?),
            Err(_) => Err(HandshakeError::TooSlow),
        }
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
        self.config.store(Arc::new(configure(&self.options, &found)?));
        *files = found;
        Ok(true)
    }
}

impl Files {
    async fn read(options: &TlsOptions) -> Result<Self, Error> {
        let certificate = read("certificate", &options.certificate_file).await?;
        let client_ca = match &options.clients {
            Some(clients) => Some(read("CA of clients", &clients.ca_file).await?),
            None => None,
        };
        Ok(Self { certificate, key: read("key", &options.key_file).await?, client_ca })
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

fn configure(options: &TlsOptions, files: &Files) -> Result<ServerConfig, Error> {
    let (certificate, key) = (&options.certificate_file, &options.key_file);
    let bad = |what, path: &Path, why: String| Error::File { what, path: path.to_owned(), why };
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&files.certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| bad("certificate", certificate, format!("is no PEM file: {error}")))?;
    if chain.is_empty() {
        let why = "holds no `BEGIN CERTIFICATE`: write the server's certificate, then its issuers, as PEM";
        return Err(bad("certificate", certificate, why.to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| {
        bad("key", key, format!("holds no private key ({error}): write it as PEM, without a password"))
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Error::Setup(error.to_string()))?;
    let builder = match options.clients.as_ref().zip(files.client_ca.as_deref()) {
        Some((clients, pem)) => builder.with_client_cert_verifier(client_verifier(clients, pem)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, secret).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            Error::Mismatch { certificate: certificate.clone(), key: key.clone() }
        } else {
            bad(
                "certificate",
                certificate,
                format!("cannot be used with the key in {}: {error}", key.display()),
            )
        }
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
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
pub fn client_name(stream: &TlsStream<TcpStream>) -> Option<Arc<str>> {
    let (_, connection) = stream.get_ref();
    name_of(connection.peer_certificates()?.first()?)
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
pub(super) mod tests {
    use super::*;
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    /// Writes a new pair; the certificate is also the CA to trust.
    pub fn write_pair(folder: &Path) -> (TlsOptions, CertificateDer<'static>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let options = TlsOptions {
            certificate_file: folder.join("cert.pem"),
            key_file: folder.join("key.pem"),
            clients: None,
        };
        std::fs::write(&options.certificate_file, cert.pem()).unwrap();
        std::fs::write(&options.key_file, signing_key.serialize_pem()).unwrap();
        (options, cert.der().clone())
    }

    fn message(loaded: Result<(Tls, Files), Error>) -> String {
        loaded.err().unwrap().to_string()
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_files_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (options, _) = write_pair(folder.path());
        assert!(Tls::load(options.clone()).await.is_ok());
        let missing = TlsOptions { key_file: folder.path().join("none"), ..options.clone() };
        assert!(message(Tls::load(missing).await).contains("none"));
        let swapped = TlsOptions {
            certificate_file: options.key_file.clone(),
            key_file: options.certificate_file.clone(),
            clients: None,
        };
        assert!(message(Tls::load(swapped).await).contains("BEGIN CERTIFICATE"));
        let twice = TlsOptions { key_file: options.certificate_file.clone(), ..options.clone() };
        assert!(message(Tls::load(twice).await).contains("no private key"));
        let other = tempfile::tempdir().unwrap();
        let (other, _) = write_pair(other.path());
        let mixed = TlsOptions { key_file: other.key_file.clone(), ..options.clone() };
        assert!(message(Tls::load(mixed).await).contains("does not belong"));
        std::fs::write(&options.key_file, vec![b'x'; FILE_MAX as usize + 1]).unwrap();
        assert!(message(Tls::load(options).await).contains("larger than"));
    }

    /// A certificate of a client, its key, and its own CA.
    fn write_client(folder: &Path, name: &str) -> (ClientCertificates, reqwest::Identity) {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let ca_file = folder.join("clients.pem");
        std::fs::write(&ca_file, params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = format!("{}{}", params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem());
        let identity = reqwest::Identity::from_pem(pem.as_bytes()).unwrap();
        (ClientCertificates { ca_file, required: true }, identity)
    }

    #[tokio::test]
    async fn who_shows_no_certificate_gets_no_connection_where_one_is_required() {
        let folder = tempfile::tempdir().unwrap();
        let (options, trusted) = write_pair(folder.path());
        let (clients, identity) = write_client(folder.path(), "ci");
        let options = TlsOptions { clients: Some(clients.clone()), ..options };
        let (tls, _) = Tls::load(options.clone()).await.unwrap();
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", socket.local_addr().unwrap().port());
        let accepted = tokio::spawn(async move {
            let mut names = Vec::new();
            for _ in 0..2 {
                let (stream, _) = socket.accept().await.unwrap();
                names.push(tls.accept(stream).await.ok().map(|stream| client_name(&stream)));
            }
            names
        });
        let trusted = reqwest::Certificate::from_der(&trusted).unwrap();
        let client = || reqwest::Client::builder().no_proxy().tls_certs_only([trusted.clone()]);
        assert!(client().build().unwrap().get(&url).send().await.is_err());
        let known = client().identity(identity).build().unwrap();
        // Nothing answers behind the handshake.
        assert!(known.get(&url).send().await.is_err());
        assert_eq!(accepted.await.unwrap(), [None, Some(Some("ci".into()))]);
        std::fs::write(&clients.ca_file, "no certificate").unwrap();
        assert!(message(Tls::load(options).await).contains("clients.pem"));
    }

    #[tokio::test]
    async fn a_new_pair_is_taken_up_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (options, _) = write_pair(folder.path());
        let (tls, mut files) = Tls::load(options.clone()).await.unwrap();
        let first = tls.config.load_full();
        assert_eq!(tls.check(&mut files).await, Ok(false));
        std::fs::write(&options.certificate_file, "half written").unwrap();
        for _ in 0..2 {
            assert!(tls.check(&mut files).await.is_err());
        }
        assert!(Arc::ptr_eq(&first, &tls.config.load_full()));
        write_pair(folder.path());
        assert_eq!(tls.check(&mut files).await, Ok(true));
        assert!(!Arc::ptr_eq(&first, &tls.config.load_full()));
        assert_eq!(tls.check(&mut files).await, Ok(false));
    }
}
