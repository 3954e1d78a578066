//! HTTPS: both protocols, both versions, and a certificate that is replaced on disk.

use std::path::Path;

use futures_util::future::join_all;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::tls::Version as Tls;
use reqwest::{Certificate, Client, ClientBuilder, Version};

use super::Rig;
use super::support::http_client;
use super::support::image::random_bytes;
use super::support::mirror::MirrorOptions;
use super::support::process::Wait;

/// Writes a new certificate and its key; gives back what a client must trust.
fn write_pair(certificate: &Path, key: &Path) -> Certificate {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(certificate, cert.pem()).unwrap();
    std::fs::write(key, signing_key.serialize_pem()).unwrap();
    Certificate::from_der(cert.der()).unwrap()
}

/// A client that trusts this certificate and no other.
fn trusting(certificate: &Certificate) -> ClientBuilder {
    http_client().tls_certs_only([certificate.clone()])
}

async fn version(client: Client, url: &str) -> Result<Version, reqwest::Error> {
    Ok(client.get(url).send().await?.error_for_status()?.version())
}

#[tokio::test]
async fn both_protocols_both_versions_and_a_new_certificate() {
    let files = tempfile::tempdir().unwrap();
    let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    let trusted = write_pair(&cert, &key);
    let tls = Some((cert.clone(), key.clone()));
    let rig = Rig::with(MirrorOptions { tls, ..Default::default() }).await;
    let base = rig.mirror.url() + "/v2/";

    let of = async |client: ClientBuilder| version(client.build().unwrap(), &base).await.unwrap();
    assert_eq!(of(trusting(&trusted).http1_only()).await, Version::HTTP_11);
    assert_eq!(of(trusting(&trusted)).await, Version::HTTP_2, "both are offered");
    for tls in [Tls::TLS_1_2, Tls::TLS_1_3] {
        of(trusting(&trusted).tls_version_min(tls).tls_version_max(tls)).await;
    }

    // One connection, many streams.
    let bytes = random_bytes(1, 1 << 20);
    let digest = rig.upstream.put_blob("library/x", bytes.clone());
    let url = format!("{}/v2/library/x/blobs/{digest}", rig.mirror.url());
    let client = trusting(&trusted).build().unwrap();
    let pulls = (0..10).map(|_| async { client.get(&url).send().await.unwrap().bytes().await.unwrap() });
    assert!(join_all(pulls).await.iter().all(|body| *body == bytes));

    let renewed = write_pair(&cert, &key);
    let wait = Wait::for_("the new certificate");
    while version(trusting(&renewed).build().unwrap(), &base).await.is_err() {
        wait.a_little().await;
    }
    assert!(
        version(trusting(&trusted).build().unwrap(), &base).await.is_err(),
        "the old one is served still"
    );
}
