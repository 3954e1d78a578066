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
    let first = tls.terms.load_full();
    assert_eq!(tls.check(&mut files).await, Ok(false));
    std::fs::write(&options.certificate_file, "half written").unwrap();
    for _ in 0..2 {
        assert!(tls.check(&mut files).await.is_err());
    }
    assert!(Arc::ptr_eq(&first, &tls.terms.load_full()));
    write_pair(folder.path());
    assert_eq!(tls.check(&mut files).await, Ok(true));
    assert!(!Arc::ptr_eq(&first, &tls.terms.load_full()));
    assert_eq!(tls.check(&mut files).await, Ok(false));
}
