use super::*;
use crate::access::{IssuerOptions, KeyOptions, Subject, TokenOptions, TokenServerOptions, htpasswd};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

const GITLAB: &str = "https://gitlab.corp";
const SERVER: &str = "auth.corp";

/// A key, as a token server has one.
struct Signer {
    key: EncodingKey,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        let der =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { key: EncodingKey::from_ec_der(der.as_ref()), kid }
    }

    fn jwks(&self) -> String {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        json!({"keys": [{"kty": "new", "x": 1}, jwk]}).to_string()
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.key).unwrap()
    }
}

struct Case {
    gate: Gate,
    clock: Clock,
    signer: Signer,
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// With names and passwords, own tokens and an issuer; `change` makes that something else.
    fn with(change: impl FnOnce(&mut AuthOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let signer = Signer::new("one");
        let jwks = at("jwks", &signer.jwks());
        let keys = KeyOptions { jwks_file: Some(jwks), ..KeyOptions::default() };
        let mut options = AuthOptions {
            htpasswd_file: Some(at("htpasswd", &format!("alice:{}\n", htpasswd::hash("right", 4).unwrap()))),
            tokens: Some(TokenOptions {
                service: "registry".to_owned(),
                lifetime: Duration::from_secs(300),
                key_file: None,
            }),
            issuers: vec![IssuerOptions {
                name: "gitlab".to_owned(),
                issuer: GITLAB.to_owned(),
                keys,
                audience: vec!["registry.corp".to_owned()],
                username_claim: "project_path".to_owned(),
            }],
            ..AuthOptions::default()
        };
        change(&mut options);
        let (clock, metrics) = (Clock::default(), Arc::new(Metrics::new()));
        let gate = Gate::open(options, folder.path(), metrics, &clock, &Tasks::default()).unwrap();
        Self { gate, clock, signer, folder }
    }

    async fn show(&self, authorization: &str) -> Result<Shown, NotShown> {
        let client = Client { address: [192, 0, 2, 1].into() };
        self.gate.show(client, Some(authorization.as_bytes()), None).await
    }

    async fn identity(&self, authorization: &str) -> String {
        self.show(authorization).await.unwrap().identity.to_string()
    }

    async fn bearer(&self, token: &str) -> Result<Shown, NotShown> {
        self.show(&format!("Bearer {token}")).await
    }

    async fn refused(&self, token: &str) -> String {
        match self.bearer(token).await {
            Err(NotShown::Wrong(Refused { why, token: true })) => why,
            other => panic!("{other:?}"),
        }
    }

    fn now(&self) -> u64 {
        self.clock.wall().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn id_token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = self.now();
        let mut claims = json!({
            "iss": GITLAB, "aud": "registry.corp", "sub": "project_path:corp/app:ref:main", "project_path": "corp/app",
            "iat": now, "nbf": now, "exp": now + 300,
        });
        change(&mut claims);
        self.signer.sign(&claims)
    }
}

fn user_and_password(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn access(name: &str, actions: &[&str]) -> Vec<Access> {
    let actions = actions.iter().map(|action| (*action).to_owned()).collect();
    vec![Access { kind: "repository".to_owned(), name: name.to_owned(), actions }]
}

async fn issued(case: &Case, shown: &Shown) -> String {
    case.gate.issue(shown, access("team/app", &["pull"])).await.unwrap().unwrap().token
}

/// The token with another header or other claims, and the old signature.
fn altered(token: &str, header: Option<Value>, claims: Option<Value>) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    for (place, value) in [header, claims].into_iter().enumerate() {
        if let Some(value) = value {
            parts[place] = BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        }
    }
    parts.join(".")
}

#[tokio::test]
async fn names_and_passwords() {
    let case = Case::new();
    assert_eq!(case.identity(&user_and_password("alice", "right")).await, "alice");
    assert_eq!(case.gate.metrics.logins.cell(LoginMethod::Password, Login::Granted).get(), 1);
    assert_eq!(case.identity(&user_and_password("alice", "right")).await, "alice");
    assert_eq!(case.gate.metrics.logins.cell(LoginMethod::Password, Login::Remembered).get(), 1);
    for bad in [
        &user_and_password("alice", "wrong"),
        &user_and_password("bob", "right"),
        &user_and_password("alice", ""),
        "Basic",
        "Basic !!!",
        "Basic YWxpY2U=",
        "Digest x",
        "",
        "Bearer x",
        "Bearer ",
    ] {
        assert!(matches!(case.show(bad).await, Err(NotShown::Wrong(_))), "{bad}");
    }
    let long = format!("Basic {}", "A".repeat(AUTHORIZATION_MAX));
    assert!(matches!(case.show(&long).await, Err(NotShown::Wrong(_))));
}

#[tokio::test]
async fn a_certificate_counts_where_nothing_else_is_shown() {
    let case = Case::new();
    let (client, name) = (Client { address: [192, 0, 2, 1].into() }, Arc::from("ci"));
    let shown = case.gate.show(client, None, Some(&name)).await.unwrap();
    assert_eq!(shown.identity, Identity::Certificate("ci".into()));
    let header = user_and_password("alice", "right");
    let shown = case.gate.show(client, Some(header.as_bytes()), Some(&name)).await.unwrap();
    assert_eq!(shown.identity.to_string(), "alice");
    let header = user_and_password("alice", "wrong");
    assert!(case.gate.show(client, Some(header.as_bytes()), Some(&name)).await.is_err());
}

#[tokio::test]
async fn without_authentication_nothing_is_looked_at() {
    let case = Case::with(|options| *options = AuthOptions::default());
    for anything in ["Basic !!!", "Bearer x", ""] {
        assert_eq!(case.identity(anything).await, "anonymous");
    }
    assert_eq!(case.gate.challenge(), None);
}

#[tokio::test]
async fn our_own_tokens_say_who_and_what_and_no_longer_than_they_last() {
    let case = Case::new();
    let alice = case.show(&user_and_password("alice", "right")).await.unwrap();
    let token = issued(&case, &alice).await;
    let shown = case.bearer(&token).await.unwrap();
    assert_eq!(shown.identity, alice.identity);
    let grants = shown.grants.unwrap();
    assert!(!grants.is_foreign);
    assert_eq!(grants.on_repositories(crate::access::Action::Pull).collect::<Vec<_>>(), ["team/app"]);
    assert_eq!(grants.on_repositories(crate::access::Action::Push).count(), 0);
    assert_eq!(case.gate.metrics.tokens_issued.get(), 1);
    let nobody = issued(&case, &Shown::by(Identity::Anonymous)).await;
    assert!(case.bearer(&nobody).await.unwrap().identity.is_anonymous());
    case.clock.advance(Duration::from_secs(299));
    assert!(case.bearer(&token).await.is_ok());
    case.clock.advance(Duration::from_secs(1));
    assert!(case.refused(&token).await.contains("expired"));
}

#[tokio::test]
async fn a_token_that_was_meddled_with_is_worth_nothing() {
    let case = Case::new();
    let alice = case.show(&user_and_password("alice", "right")).await.unwrap();
    let token = issued(&case, &alice).await;
    let claims = |change: fn(&mut Value)| {
        let text = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let mut claims: Value = serde_json::from_slice(&text).unwrap();
        change(&mut claims);
        Some(claims)
    };
    let same = claims(|_| {}).unwrap();
    // The public key, which anybody may know, taken for a shared secret.
    let public = Jwk::from_encoding_key(&case.signer.key, Algorithm::ES256).unwrap();
    let hmac = EncodingKey::from_secret(serde_json::to_string(&public).unwrap().as_bytes());
    let foreign = Signer::new("one");
    let mut bad = vec![
        altered(&token, Some(json!({"alg": "none", "typ": "JWT"})), None),
        format!("{}.", altered(&token, Some(json!({"alg": "none"})), None).rsplit_once('.').unwrap().0),
        altered(&token, Some(json!({"alg": "HS256", "typ": "JWT"})), None),
        altered(&token, Some(json!({"alg": "RS256", "typ": "JWT"})), None),
        altered(&token, Some(json!({"alg": "ES256", "crit": ["x"]})), None),
        altered(&token, None, claims(|claims| claims["access"][0]["actions"] = json!(["pull", "push"]))),
        altered(&token, None, claims(|claims| claims["identity"] = json!({"user": "root"}))),
        altered(&token, None, claims(|claims| claims["exp"] = json!(u64::MAX))),
        encode(&Header::new(Algorithm::HS256), &same, &hmac).unwrap(),
        foreign.sign(&same),
        case.signer.sign(&same),
        token[..token.len() - 4].to_owned(),
        format!("{token}A"),
    ];
    bad.push(token.replacen('.', "..", 1));
    for bad in &bad {
        let why = case.refused(bad).await;
        assert!(!why.is_empty(), "{bad}");
    }
    assert!(case.bearer(&token).await.is_ok());
}

#[tokio::test]
async fn audience_and_issuer_and_time_of_a_signed_token_count() {
    let mut case = Case::new();
    // Signed by the registry's very key.
    let pem = std::fs::read(case.folder.path().join("forebay/token-key.pem")).unwrap();
    let key = EncodingKey::from_ec_pem(&pem).unwrap();
    case.signer = Signer { key, kid: "any" };
    let now = case.now();
    let good = json!({
        "iss": "forebay", "aud": "registry", "sub": "", "jti": "1", "iat": now, "nbf": now, "exp": now + 300,
        "access": [], "identity": "anonymous",
    });
    let sign = |change: fn(&mut Value, u64)| {
        let mut claims = good.clone();
        change(&mut claims, now);
        let header = Header { kid: None, ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &case.signer.key).unwrap()
    };
    assert!(case.bearer(&sign(|_, _| {})).await.is_ok());
    for (change, part) in [
        ((|c, _| c["aud"] = json!("elsewhere")) as fn(&mut Value, u64), "audience"),
        (|c, _| c["aud"] = json!("registry refresh"), "audience"),
        (|c, _| c["aud"] = json!([]), "audience"),
        (|c, _| drop(c.as_object_mut().unwrap().remove("aud")), "audience"),
        (|c, _| c["iss"] = json!("somebody"), "not issued by"),
        (|c, now| c["exp"] = json!(now), "expired"),
        (|c, _| drop(c.as_object_mut().unwrap().remove("exp")), "not signed"),
        (|c, now| c["nbf"] = json!(now + 30), "not valid yet"),
        (|c, _| drop(c.as_object_mut().unwrap().remove("identity")), "not signed"),
        (|c, _| c["identity"] = json!({"user": "alice"}), "another password"),
    ] {
        let why = case.refused(&sign(change)).await;
        assert!(why.contains(part), "{part} in {why}");
    }
}

#[tokio::test]
async fn a_changed_password_ends_tokens_and_refresh_tokens() {
    let case = Case::new();
    let alice = case.show(&user_and_password("alice", "right")).await.unwrap();
    let token = issued(&case, &alice).await;
    let refresh = case.gate.refresh_token(&alice).await.unwrap();
    assert_eq!(case.gate.by_refresh_token(&refresh).await.unwrap().identity, alice.identity);
    assert!(case.gate.by_refresh_token(&token).await.is_err(), "one kind is not the other");
    assert!(case.bearer(&refresh).await.is_err(), "nor the other the one");
    assert_eq!(case.gate.refresh_token(&Shown::by(Identity::Anonymous)).await, None);
    case.clock.advance(Duration::from_secs(89 * 24 * 3600));
    assert!(case.gate.by_refresh_token(&refresh).await.is_ok());
    let text = format!("alice:{}\n", htpasswd::hash("new", 4).unwrap());
    std::fs::write(case.folder.path().join("htpasswd"), text).unwrap();
    case.clock.advance(Duration::from_secs(1));
    assert!(case.gate.by_refresh_token(&refresh).await.is_err());
    let alice = case.show(&user_and_password("alice", "new")).await.unwrap();
    let token = issued(&case, &alice).await;
    assert!(case.bearer(&token).await.is_ok());
    std::fs::write(case.folder.path().join("htpasswd"), "").unwrap();
    case.clock.advance(Duration::from_secs(1));
    assert!(case.refused(&token).await.contains("gone"));
}

#[tokio::test]
async fn the_key_is_kept_and_is_its_owners_alone() {
    use std::os::unix::fs::MetadataExt;
    let case = Case::new();
    let path = case.folder.path().join("forebay/token-key.pem");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let token = issued(&case, &Shown::by(Identity::Anonymous)).await;
    let options = case.gate.options.tokens.clone().unwrap();
    let again = |options: &TokenOptions| Mint::open(options, case.folder.path(), case.clock.clone());
    assert!(again(&options).unwrap().check(&token).is_ok(), "after a restart");
    std::fs::write(&path, "no key").unwrap();
    assert!(again(&options).err().unwrap().contains("no private key"));
    let named = TokenOptions { key_file: Some("/nonexistent".into()), ..options };
    assert!(again(&named).err().unwrap().contains("cannot be read"), "a key that was named is not made");
}

#[tokio::test]
async fn keys_of_every_usual_form_sign() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let out = std::process::Command::new("openssl").args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let rsa = openssl(&["genrsa", "2048"]);
    let traditional = openssl(&["genrsa", "-traditional", "2048"]);
    let ec = openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"]);
    let pkcs8 = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    for pem in [rsa, traditional, ec, pkcs8] {
        let path = folder.path().join("key");
        std::fs::write(&path, &pem).unwrap();
        let options = TokenOptions {
            service: "registry".to_owned(),
            lifetime: Duration::from_secs(60),
            key_file: Some(path),
        };
        let mint = Mint::open(&options, folder.path(), Clock::default()).unwrap();
        let token = mint.issue(Identity::Anonymous, Vec::new(), None, None).unwrap().token;
        assert!(mint.check(&token).is_ok(), "{}", String::from_utf8_lossy(&pem));
    }
    let p384 = openssl(&["ecparam", "-name", "secp384r1", "-genkey", "-noout"]);
    let path = folder.path().join("key");
    std::fs::write(&path, p384).unwrap();
    let options =
        TokenOptions { service: "r".to_owned(), lifetime: Duration::from_secs(60), key_file: Some(path) };
    assert!(Mint::open(&options, folder.path(), Clock::default()).err().unwrap().contains("P-256"));
}

#[tokio::test]
async fn an_id_token_is_a_password_and_a_bearer_token() {
    let case = Case::new();
    let token = case.id_token(|_| {});
    for authorization in [user_and_password("whoever", &token), format!("bearer {token}")] {
        let shown = case.show(&authorization).await.unwrap();
        let Identity::Subject(subject) = &shown.identity else { panic!("{shown:?}") };
        let Subject { issuer, name, claims } = &**subject;
        assert_eq!((issuer.as_str(), name.as_str()), ("gitlab", "corp/app"));
        assert_eq!(claims["sub"], "project_path:corp/app:ref:main");
        assert_eq!(shown.grants, None, "policy decides");
        // What it is exchanged for lasts no longer, and keeps the claims.
        let issued = case.gate.issue(&shown, Vec::new()).await.unwrap().unwrap();
        assert!(issued.lifetime <= Duration::from_secs(300));
        assert_eq!(case.bearer(&issued.token).await.unwrap().identity, shown.identity);
        assert_eq!(case.gate.refresh_token(&shown).await, None);
    }
    assert_eq!(case.identity(&user_and_password("alice", "right")).await, "alice");
    let short = case.id_token(|claims| claims["exp"] = json!(claims["iat"].as_u64().unwrap() + 100));
    let shown = case.bearer(&short).await.unwrap();
    let issued = case.gate.issue(&shown, Vec::new()).await.unwrap().unwrap();
    assert!(issued.lifetime <= Duration::from_secs(100), "{:?}", issued.lifetime);
}

#[tokio::test]
async fn an_id_token_that_is_not_for_us_is_refused() {
    let case = Case::new();
    let now = case.now();
    let other = Signer::new("one");
    let unknown = Signer { kid: "two", ..Signer::new("two") };
    let claims = json!({"iss": GITLAB, "aud": "registry.corp", "project_path": "x", "exp": now + 300});
    for (token, part) in [
        (case.id_token(|c| c["aud"] = json!("other.corp")), "audience"),
        (case.id_token(|c| c["aud"] = json!(["a", "b"])), "audience"),
        (case.id_token(|c| drop(c.as_object_mut().unwrap().remove("aud"))), "audience"),
        (case.id_token(|c| c["iss"] = json!("https://gitlab.com")), "not signed"),
        (case.id_token(|c| c["exp"] = json!(now - 61)), "expired"),
        (case.id_token(|c| drop(c.as_object_mut().unwrap().remove("exp"))), "expiry"),
        (case.id_token(|c| c["nbf"] = json!(now + 120)), "not valid yet"),
        (case.id_token(|c| drop(c.as_object_mut().unwrap().remove("project_path"))), "no claim"),
        (case.id_token(|c| c["project_path"] = json!(7)), "no claim"),
        (case.id_token(|c| c["project_path"] = json!("a\nb")), "no claim"),
        (other.sign(&claims), "signature"),
        (unknown.sign(&claims), "does not have"),
        (altered(&case.signer.sign(&claims), Some(json!({"alg": "none"})), None), "no token"),
        (altered(&case.signer.sign(&claims), Some(json!({"alg": "HS256"})), None), "does not have"),
    ] {
        let why = case.refused(&token).await;
        assert!(why.contains(part), "{part} in {why}");
    }
    // As a password of somebody who has one too, it is judged as the token that it is.
    let token = case.id_token(|c| c["aud"] = json!("other.corp"));
    assert!(matches!(case.show(&user_and_password("alice", &token)).await, Err(NotShown::Wrong(_))));
}

#[tokio::test]
async fn new_keys_in_the_file_count_and_old_ones_end() {
    let mut case = Case::new();
    let before = case.id_token(|_| {});
    assert!(case.bearer(&before).await.is_ok());
    case.signer = Signer::new("two");
    std::fs::write(case.folder.path().join("jwks"), case.signer.jwks()).unwrap();
    case.clock.advance(Duration::from_secs(1));
    assert!(case.bearer(&case.id_token(|_| {})).await.is_ok());
    assert!(case.refused(&before).await.contains("does not have"));
}

/// A self-signed certificate, its key, and both as the token server and the registry have them.
fn certificate(folder: &Path) -> (KeyOptions, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(["auth.corp".to_owned()]).unwrap();
    let path = folder.join("bundle.pem");
    std::fs::write(&path, made.cert.pem()).unwrap();
    (KeyOptions { certificates_file: Some(path), ..KeyOptions::default() }, made)
}

#[tokio::test]
async fn another_token_servers_word_is_what_its_tokens_grant() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, made) = certificate(folder.path());
    let case = Case::with(|options| {
        let (realm, service) = ("https://auth.corp/token".to_owned(), "registry.corp".to_owned());
        let server = TokenServerOptions { realm, service, issuer: SERVER.to_owned(), keys };
        *options = AuthOptions { token_server: Some(server), ..AuthOptions::default() };
    });
    let realm = Some("https://auth.corp/token");
    assert_eq!(case.gate.challenge(), Some(Challenge::Bearer { realm, service: "registry.corp" }));
    let key = EncodingKey::from_ec_der(&made.signing_key.serialize_der());
    let now = case.now();
    let sign = |header: Header, change: fn(&mut Value)| {
        let mut claims = json!({
            "iss": SERVER, "aud": "registry.corp", "sub": "alice", "exp": now + 300, "nbf": now, "iat": now, "jti": "1",
            "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}],
        });
        change(&mut claims);
        encode(&header, &claims, &key).unwrap()
    };
    let plain = || Header::new(Algorithm::ES256);
    // The name that libtrust gives a key, which certificates do not have.
    let named = || Header { kid: Some("ABCD:EFGH".to_owned()), ..plain() };
    for header in [plain(), named()] {
        let shown = case.bearer(&sign(header, |_| {})).await.unwrap();
        assert_eq!(shown.identity.to_string(), "alice");
        let grants = shown.grants.unwrap();
        assert!(grants.is_foreign);
        assert_eq!(grants.on_repositories(crate::access::Action::Push).collect::<Vec<_>>(), ["team/app"]);
        assert_eq!(grants.on_repositories(crate::access::Action::Delete).count(), 0);
    }
    let nobody = case.bearer(&sign(plain(), |claims| claims["sub"] = json!(""))).await.unwrap();
    assert!(nobody.identity.is_anonymous() && nobody.grants.is_some());
    for (change, part) in [
        ((|c| c["aud"] = json!("other.corp")) as fn(&mut Value), "audience"),
        (|c| c["iss"] = json!("somebody"), "not one of the token server's"),
        (|c| c["exp"] = json!(1), "expired"),
        (|c| c["access"] = json!("all"), "signature"),
    ] {
        let why = case.refused(&sign(plain(), change)).await;
        assert!(why.contains(part), "{part} in {why}");
    }
    let passwords = case.show(&user_and_password("alice", "right")).await;
    assert!(matches!(passwords, Err(NotShown::Wrong(refused)) if refused.why.contains("token server")));
}

#[tokio::test]
async fn a_chain_in_the_header_has_to_lead_to_the_bundle() {
    use rcgen::{CertificateParams, Issuer, KeyPair};
    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate, Issuer::new(params, key))
    };
    let ((trusted, ours), (_, foreign)) = (authority("ca"), authority("ca"));
    let bundle = folder.path().join("bundle.pem");
    std::fs::write(&bundle, trusted.pem()).unwrap();
    let case = Case::with(|options| {
        let keys = KeyOptions { certificates_file: Some(bundle), ..KeyOptions::default() };
        let (realm, service) = ("https://auth.corp/token".to_owned(), "registry.corp".to_owned());
        let server = TokenServerOptions { realm, service, issuer: SERVER.to_owned(), keys };
        *options = AuthOptions { token_server: Some(server), ..AuthOptions::default() };
    });
    let leaf = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["signer".to_owned()]).unwrap();
    let claims = json!({"iss": SERVER, "aud": "registry.corp", "sub": "alice", "exp": case.now() + 300});
    let token = |issuer: &Issuer<'_, KeyPair>| {
        let certificate = params.signed_by(&leaf, issuer).unwrap();
        let x5c = Some(vec![BASE64_STANDARD.encode(certificate.der())]);
        let header = Header { x5c, ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &EncodingKey::from_ec_der(&leaf.serialize_der())).unwrap()
    };
    assert_eq!(case.bearer(&token(&ours)).await.unwrap().identity.to_string(), "alice");
    assert!(case.refused(&token(&foreign)).await.contains("signature"));
}
