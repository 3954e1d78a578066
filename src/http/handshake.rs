//! A client's TLS handshake: its time, and the suite that both sides then use.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::server::{Acceptor, ClientHello};
use rustls::{CipherSuite, ConfigBuilder, ServerConfig, WantsVerifier};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

const TIME_MAX: Duration = Duration::from_secs(10);
/// What one connection may hold: the fastest of those measured.
pub const BUFFER: usize = 256 * 1024;
/// For a client that would resume. The next connection brings the next one.
const TICKETS: usize = 1;

/// Why a client got no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS handshake: {0}")]
    Failed(#[from] std::io::Error),
    #[error("TLS handshake took longer than {} s", TIME_MAX.as_secs())]
    TooSlow,
}

/// What TLS is served with.
pub struct Terms {
    /// The suite is the server's choice: AES-128 first, as Go's clients ask for themselves. Others ask for AES-256
    /// by habit, and its SHA-384 makes a handshake a tenth dearer here.
    ours: Arc<ServerConfig>,
    /// The suite is the client's choice.
    theirs: Arc<ServerConfig>,
}

/// The first step to [`Terms`]: TLS 1.2 and 1.3.
pub fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, rustls::Error> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|own| !is_aes_128(own.suite()));
    ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
}

impl Terms {
    pub fn new(mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.send_tls13_tickets = TICKETS;
        let theirs = Arc::new(config.clone());
        config.ignore_client_order = true;
        Self { ours: Arc::new(config), theirs }
    }

    /// The client's choice counts where it names ChaCha20 first: without AES in hardware, as on small boards, AES
    /// is slow.
    fn of(&self, hello: &ClientHello<'_>) -> &Arc<ServerConfig> {
        let own = &self.ours.crypto_provider().cipher_suites;
        let first = hello.cipher_suites().iter().find(|asked| own.iter().any(|own| own.suite() == **asked));
        if first.is_some_and(|first| is_chacha(*first)) { &self.theirs } else { &self.ours }
    }

    /// A client's handshake, which has 10 s.
    pub async fn accept<I>(&self, stream: I) -> Result<TlsStream<I>, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::time::timeout(TIME_MAX, self.agree(stream)).await.unwrap_or(Err(Error::TooSlow))
    }

    async fn agree<I>(&self, stream: I) -> Result<TlsStream<I>, Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let config = self.of(&start.client_hello()).clone();
        let stream = start.into_stream_with(config, |connection| connection.set_buffer_limit(Some(BUFFER)));
        Ok(stream.await?)
    }
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

fn is_chacha(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::http::tls::{Tls, tests::write_pair};
    use rustls::{ClientConfig, CommonState, HandshakeKind, RootCertStore, SupportedProtocolVersion};
    use rustls_pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{TlsConnector, client};

    /// A client that asks for suites in the order of this library, but for those of `first`.
    pub fn client(
        trusted: &CertificateDer<'static>,
        version: &'static SupportedProtocolVersion,
        first: fn(CipherSuite) -> bool,
    ) -> TlsConnector {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|own| !first(own.suite()));
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider));
        let config = config.with_protocol_versions(&[version]).unwrap();
        TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }

    /// Both ends of a connection over a pipe that holds `room` bytes.
    pub async fn connected(
        tls: &Tls,
        client: &TlsConnector,
        room: usize,
    ) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(room);
        let connected = client.connect(ServerName::try_from("localhost").unwrap(), far);
        let (near, far) = tokio::join!(tls.accept(near), connected);
        (near.unwrap(), far.unwrap())
    }

    /// The suite that both sides then use, and whether the client's last connection was resumed.
    async fn agreed(tls: &Tls, client: &TlsConnector) -> (CipherSuite, bool) {
        let (mut near, mut far) = connected(tls, client, 1 << 16).await;
        // What comes before it are tickets.
        near.write_all(b"!").await.unwrap();
        near.flush().await.unwrap();
        far.read_u8().await.unwrap();
        let (near, far) = (near.get_ref().1, far.get_ref().1);
        let suite = |of: &CommonState| of.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite(near), suite(far));
        (suite(near), near.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    #[tokio::test]
    async fn aes_128_is_used_but_with_who_prefers_chacha() {
        let folder = tempfile::tempdir().unwrap();
        let (options, trusted) = write_pair(folder.path());
        let (tls, _) = Tls::load(options).await.unwrap();
        let habit = aws_lc_rs::default_provider().cipher_suites[0].suite();
        assert!(!is_aes_128(habit) && !is_chacha(habit));
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let chosen = async |first| agreed(&tls, &client(&trusted, version, first)).await.0;
            assert!(is_aes_128(chosen(|_| false).await));
            assert!(is_aes_128(chosen(is_aes_128).await));
            assert!(is_chacha(chosen(is_chacha).await));
        }
    }

    #[tokio::test]
    async fn who_comes_again_resumes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (options, trusted) = write_pair(folder.path());
        let (tls, _) = Tls::load(options).await.unwrap();
        for (version, first) in
            [(&rustls::version::TLS13, is_chacha as fn(_) -> _), (&rustls::version::TLS12, |_| false)]
        {
            let client = client(&trusted, version, first);
            for connections in 0..3 {
                assert_eq!(agreed(&tls, &client).await.1, connections > 0);
            }
        }
    }

    #[tokio::test]
    async fn who_says_nothing_has_ten_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let (tls, _) = Tls::load(write_pair(folder.path()).0).await.unwrap();
        let (near, _far) = tokio::io::duplex(1 << 10);
        assert!(matches!(tls.accept(near).await, Err(Error::TooSlow)));
    }

    #[tokio::test]
    async fn what_is_no_tls_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (tls, _) = Tls::load(write_pair(folder.path()).0).await.unwrap();
        let (near, mut far) = tokio::io::duplex(1 << 10);
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(tls.accept(near).await, Err(Error::Failed(_))));
        let mut alert = Vec::new();
        far.read_to_end(&mut alert).await.unwrap();
        assert_eq!(alert.first(), Some(&21), "an alert (RFC 8446, 5.1)");
    }
}
