//! TLS in front of a server that speaks none.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::super::http1::Server;

/// Passes on to a server what comes over TLS, under a certificate for 127.0.0.1.
pub struct TlsFront {
    server: Server,
    pub certificate_pem: String,
}

impl TlsFront {
    pub async fn start(target: SocketAddr) -> Self {
        let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let serve = move |stream| pass_on(acceptor.clone(), stream, target);
        Self { server: Server::start(0, serve).await, certificate_pem: key.cert.pem() }
    }

    /// `https://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("https://{}", self.server.address)
    }
}

async fn pass_on(acceptor: TlsAcceptor, stream: TcpStream, target: SocketAddr) {
    if let (Ok(mut client), Ok(mut server)) =
        (acceptor.accept(stream).await, TcpStream::connect(target).await)
    {
        // Either side may break off: that is what this upstream is for.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
