//! TLS client certificates as identities.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use reqwest::Certificate;

use super::support::http_client;
use super::*;

/// A CA, and what it signs.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Certificate and key of a client, as PEM.
    fn client(&self, common_name: Option<&str>, alternative: &[&str]) -> reqwest::Identity {
        let names: Vec<String> = alternative.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        reqwest::Identity::from_pem(format!("{}{}", certificate.pem(), key.serialize_pem()).as_bytes())
            .unwrap()
    }
}

struct Tls {
    rig: Rig,
    authority: Authority,
    trusted: Certificate,
}

async fn tls(auth: &str) -> Tls {
    let files = tempfile::tempdir().unwrap().keep();
    let (certificate, key, ca) = (files.join("cert.pem"), files.join("key.pem"), files.join("clients.pem"));
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let authority = Authority::new();
    std::fs::write(&ca, &authority.pem).unwrap();
    let config = format!(
        "[tls]\nclient_ca_file = {ca:?}\nclient_auth = \"{auth}\"\n\
         [[access.rule]]\nwho = [\"certificate:ci-*\"]\nrepositories = [\"app\"]\nactions = [\"pull\", \"push\"]\n\
         [[access.rule]]\nwho = [\"alice\"]\nrepositories = [\"app\"]\nactions = [\"pull\"]\n"
    );
    let options = MirrorOptions { tls: Some((certificate, key)), ..Default::default() };
    let directory = tempfile::tempdir().unwrap();
    write_users(directory.path(), &["alice"]);
    let upstream = Upstream::start().await;
    let file = directory.path().join("htpasswd");
    let config = Some(format!("[auth]\nhtpasswd_file = {file:?}\n{config}"));
    let options = MirrorOptions { upstream: upstream.url(), config, ..options };
    // Its health is asked for over TLS: without a certificate, where that is taken.
    let mirror = Mirror::with(directory.path(), options).await;
    let trusted = Certificate::from_der(made.cert.der()).unwrap();
    Tls { rig: Rig { upstream, mirror, directory }, authority, trusted }
}

impl Tls {
    async fn begin(&self, identity: Option<reqwest::Identity>, by: &By) -> Result<u16, reqwest::Error> {
        let mut client = http_client().tls_certs_only([self.trusted.clone()]);
        if let Some(identity) = identity {
            client = client.identity(identity);
        }
        let request = client.build().unwrap().post(self.rig.mirror.url() + "/v2/app/blobs/uploads/");
        Ok(by.apply(request).send().await?.status().as_u16())
    }
}

#[tokio::test]
async fn a_certificate_is_an_identity_where_one_is_shown() {
    let tls = tls("optional").await;
    let own = |common, alternative: &[&str]| Some(tls.authority.client(common, alternative));
    assert_eq!(tls.begin(own(Some("ci-1"), &[]), &By::Nobody).await.unwrap(), 202);
    assert_eq!(tls.begin(own(None, &["ci-2"]), &By::Nobody).await.unwrap(), 202, "by its alternative name");
    assert_eq!(tls.begin(own(Some("other"), &["ci-3"]), &By::Nobody).await.unwrap(), 403);
    assert_eq!(tls.begin(own(Some("alice"), &[]), &By::Nobody).await.unwrap(), 403, "no user of that name");
    assert_eq!(tls.begin(None, &By::Nobody).await.unwrap(), 401);
    // What is said in the request counts before the connection's certificate.
    assert_eq!(tls.begin(own(Some("ci-1"), &[]), &user("alice")).await.unwrap(), 403);
    let wrong = By::Password("alice", "x".to_owned());
    assert_eq!(tls.begin(own(Some("ci-1"), &[]), &wrong).await.unwrap(), 401);
    let foreign = Authority::new().client(Some("ci-1"), &[]);
    assert!(tls.begin(Some(foreign), &By::Nobody).await.is_err(), "signed by somebody else");
}
