use super::*;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{ServerName, UnixTime};
use std::os::unix::fs::PermissionsExt;

fn hosts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn open(data: &Path, names: &[&str]) -> Result<Authority, Error> {
    open_at(data, names, &Clock::default())
}

fn open_at(data: &Path, names: &[&str], clock: &Clock) -> Result<Authority, Error> {
    std::fs::create_dir_all(data.join("forebay")).unwrap();
    Authority::open(data, &hosts(names), clock.clone())
}

fn read(data: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(&std::fs::read(certificate_path(data)).unwrap()).unwrap()
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

#[test]
fn clients_take_its_registries_from_it_and_neither_other_names_nor_addresses() {
    let data = tempfile::tempdir().unwrap();
    let authority = open(data.path(), &["ghcr.io", "quay.io"]).unwrap();
    let certificate = read(data.path());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
    // Names below one that is permitted are permitted too: constraints know no other way.
    for (host, taken) in [
        ("ghcr.io", true),
        ("quay.io", true),
        ("cdn.ghcr.io", true),
        ("docker.io", false),
        ("notghcr.io", false),
        ("io", false),
        ("192.0.2.1", false),
        ("127.0.0.1", false),
        ("2001:db8::1", false),
    ] {
        let leaf = authority.certificate(host, SystemTime::now()).unwrap();
        let name = ServerName::try_from(host).unwrap();
        let verdict = verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now());
        assert_eq!(verdict.is_ok(), taken, "{host}: {verdict:?}");
    }
    let (_, certificate) = X509Certificate::from_der(&certificate).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.any && !usage.client_auth && !usage.email_protection);
}

#[test]
fn a_ca_out_of_its_time_is_named_and_kept() {
    const YEAR: i64 = 365 * 24 * 3600;
    let data = tempfile::tempdir().unwrap();
    let clock = Clock::default();
    let since_1970 = clock.wall().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    clock.set_wall_off(-since_1970);
    let authority = open_at(data.path(), &["ghcr.io"], &clock).unwrap();
    assert!(authority.server("ghcr.io").is_ok());
    let pem = read(data.path());
    clock.set_wall_off(0);
    let why = authority.server("ghcr.io").err().unwrap();
    assert!(why.contains("the clock") && why.contains("remove it and its key"), "{why}");
    let error = open_at(data.path(), &["ghcr.io"], &clock).err().unwrap().to_string();
    assert!(error.contains("ca.pem: is good from") && error.contains("remove it and its key"), "{error}");
    assert_eq!(read(data.path()), pem);

    let data = tempfile::tempdir().unwrap();
    open_at(data.path(), &["ghcr.io"], &clock).unwrap();
    for (off, good) in [(-YEAR, false), (-since_1970 - YEAR, false), (9 * YEAR, true), (11 * YEAR, false)] {
        clock.set_wall_off(off);
        assert_eq!(open_at(data.path(), &["ghcr.io"], &clock).is_ok(), good, "{off}");
    }
}

#[test]
fn the_key_of_another_ca_is_named() {
    let data = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    data.iter().for_each(|data| drop(open(data.path(), &["ghcr.io"]).unwrap()));
    std::fs::copy(key_path(data[1].path()), key_path(data[0].path())).unwrap();
    let error = open(data[0].path(), &["ghcr.io"]).err().unwrap().to_string();
    assert!(error.contains("another certificate") && error.contains("remove it and its key"), "{error}");
}
