//! The server's certificates, and the CA of its clients': read, checked, taken up anew when their files
//! change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ClientCertificates, Pair, TlsOptions};

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
    /// Certificate and key of each pair, in the order of the options.
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
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
    pub async fn accept<I>(&self, stream: I) -> Result<TlsStream<I>, HandshakeError>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        accept(self.config.load_full(), stream).await
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

/// A client's handshake, which has 10 s.
pub async fn accept<I>(config: Arc<ServerConfig>, stream: I) -> Result<TlsStream<I>, HandshakeError>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = TlsAcceptor::from(config);
    let accepted = acceptor.accept_with(stream, |connection| connection.set_buffer_limit(Some(BUFFER)));
    match tokio::time::timeout(HANDSHAKE_MAX, accepted).await {
        Ok(accepted) => Ok(accepted?),
        Err(_) => Err(HandshakeError::TooSlow),
    }
}

fn configure(options: &TlsOptions, files: &Files) -> Result<ServerConfig, Error> {
    let pairs = options.pairs();
    let pairs = pairs.iter().zip(&files.pairs).map(|(pair, (chain, key))| certified(pair, chain, key));
    let certificates = Arc::new(Certificates(pairs.collect::<Result<_, _>>()?));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Error::Setup(error.to_string()))?;
    let builder = match options.clients.as_ref().zip(files.client_ca.as_deref()) {
        Some((clients, pem)) => builder.with_client_cert_verifier(client_verifier(clients, pem)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
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
pub(super) mod tests {
    use super::*;
    use rcgen::{CertifiedKey as New, generate_simple_self_signed};

    /// Writes a new pair; the certificate is also the CA to trust.
    pub fn write_pair(folder: &Path) -> (TlsOptions, CertificateDer<'static>) {
        let New { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let options = TlsOptions {
            certificate_file: folder.join("cert.pem"),
            key_file: folder.join("key.pem"),
            others: Vec::new(),
            clients: None,
        };
        std::fs::write(&options.certificate_file, cert.pem()).unwrap();
        std::fs::write(&options.key_file, signing_key.serialize_pem()).unwrap();
        (options, cert.der().clone())
    }

    fn write_for(folder: &Path, hosts: &[&str]) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let name = hosts.first().cloned().unwrap_or_default().replace('*', "any");
        let New { cert, signing_key } = generate_simple_self_signed(hosts).unwrap();
        let file = |end: &str| folder.join(format!("{name}.{end}"));
        let pair = Pair { certificate_file: file("crt"), key_file: file("key") };
        std::fs::write(&pair.certificate_file, cert.pem()).unwrap();
        std::fs::write(&pair.key_file, signing_key.serialize_pem()).unwrap();
        pair
    }

    #[tokio::test]
    async fn the_host_chooses_among_certificates_and_each_is_taken_up_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (options, _) = write_pair(folder.path());
        let others = [["ghcr.mirror.corp", "GHCR.io"].as_slice(), &["*.mirror.corp"]];
        let others = others.map(|hosts| write_for(folder.path(), hosts)).to_vec();
        let options = TlsOptions { others: others.clone(), ..options };
        let mut files = Files::read(&options).await.unwrap();
        let pairs = options.pairs();
        let certified = |files: &Files| {
            let all = pairs.iter().zip(&files.pairs).map(|(pair, (chain, key))| certified(pair, chain, key));
            Certificates(all.map(Result::unwrap).collect())
        };
        let certificates = certified(&files);
        let chosen = |host: Option<&str>| {
            let one = certificates.of(host).unwrap();
            certificates.0.iter().position(|own| std::ptr::eq(own, one)).unwrap()
        };
        for (host, expected) in [
            (None, 0),
            (Some("localhost"), 0),
            (Some("elsewhere.example"), 0),
            (Some("ghcr.mirror.corp"), 1),
            (Some("GHCR.Mirror.Corp"), 1),
            (Some("ghcr.io"), 1),
            (Some("quay.mirror.corp"), 2),
            (Some("a.b.mirror.corp"), 0),
            (Some("mirror.corp"), 0),
        ] {
            assert_eq!(chosen(host), expected, "{host:?}");
        }
        let (tls, _) = Tls::load(options.clone()).await.unwrap();
        assert_eq!(tls.check(&mut files).await, Ok(false));
        write_for(folder.path(), &["*.mirror.corp"]);
        assert_eq!(tls.check(&mut files).await, Ok(true));
        std::fs::copy(&others[0].key_file, &others[1].key_file).unwrap();
        assert!(tls.check(&mut files).await.unwrap_err().to_string().contains("any.mirror.corp.crt"));
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
            others: Vec::new(),
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
