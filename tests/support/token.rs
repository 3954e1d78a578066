//! A token server as Docker Hub has one (distribution's token and OAuth2 specifications).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, SigningKey};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::http1::{Headers, Request, Server, answer};

pub const SERVICE: &str = "rig.registry";
pub const ISSUER: &str = "rig.tokens";

/// Signs tokens for registries that trust `certificate_pem`. Clones share the server.
#[derive(Clone)]
pub struct TokenServer {
    server: Arc<Server>,
    state: Arc<State>,
    pub certificate_pem: String,
}

struct State {
    key: KeyPair,
    certificate_der: Vec<u8>,
    rules: Mutex<Rules>,
    requests: Mutex<Vec<TokenRequest>>,
}

struct Rules {
    anonymous: Vec<Grant>,
    accounts: HashMap<String, (String, Vec<Grant>)>,
    lifetime: Duration,
    /// The status for a wrong login.
    wrong: u16,
    trouble: Option<Trouble>,
}

/// Actions (`pull,push`) on a repository, or on all below `prefix/*`, or on all (`*`).
#[derive(Clone, Debug)]
struct Grant {
    repositories: String,
    actions: String,
}

/// What the server does instead of its work.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// Answers so.
    Status(u16),
    /// Never answers.
    Hang,
}

/// A request for a token, as it came.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    pub method: String,
    /// The user whose password came with it.
    pub user: Option<String>,
    pub scopes: Vec<String>,
}

impl TokenServer {
    /// Starts a server with which nobody may do anything yet.
    pub async fn start() -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let certificate = CertificateParams::new(vec![ISSUER.to_owned()]).unwrap().self_signed(&key).unwrap();
        let rules = Rules {
            anonymous: Vec::new(),
            accounts: HashMap::new(),
            lifetime: Duration::from_secs(300),
            wrong: 401,
            trouble: None,
        };
        let state = Arc::new(State {
            key,
            certificate_der: certificate.der().to_vec(),
            rules: Mutex::new(rules),
            requests: Mutex::default(),
        });
        let shared = state.clone();
        let server = Server::start(0, move |stream| serve(shared.clone(), stream)).await;
        Self { server: Arc::new(server), state, certificate_pem: certificate.pem() }
    }

    /// The URL that registries name in their challenge.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address)
    }

    /// Lets everybody do `actions` (`pull`) on `repositories` (`library/x`, `library/*`, `*`).
    pub fn allow_anonymous(&self, repositories: &str, actions: &str) {
        let grant = Grant { repositories: repositories.to_owned(), actions: actions.to_owned() };
        self.state.rules.lock().unwrap().anonymous.push(grant);
    }

    /// Lets `user` do `actions` on `repositories`, and what everybody may do.
    pub fn allow(&self, user: &str, password: &str, repositories: &str, actions: &str) {
        let grant = Grant { repositories: repositories.to_owned(), actions: actions.to_owned() };
        let mut rules = self.state.rules.lock().unwrap();
        let account =
            rules.accounts.entry(user.to_owned()).or_insert_with(|| (password.to_owned(), Vec::new()));
        account.1.push(grant);
    }

    /// Takes away what `user` may do beyond what everybody may; with `password`, that is the right one now.
    pub fn revoke(&self, user: &str, password: Option<&str>) {
        let mut rules = self.state.rules.lock().unwrap();
        let (right, grants) = rules.accounts.get_mut(user).expect("an account");
        grants.clear();
        *right = password.unwrap_or(right).to_owned();
    }

    /// What `expires_in` says of tokens from now on (300 s at first).
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.state.rules.lock().unwrap().lifetime = lifetime;
    }

    /// The status for a wrong login (401 at first; ghcr.io has 403).
    pub fn set_wrong(&self, status: u16) {
        self.state.rules.lock().unwrap().wrong = status;
    }

    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        self.state.rules.lock().unwrap().trouble = trouble;
    }

    /// Every request so far, refused ones included.
    pub fn requests(&self) -> Vec<TokenRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// A token for `actions` on `repository`, whatever the rules say.
    pub fn mint(&self, repository: &str, actions: &str) -> String {
        let actions: Vec<&str> = actions.split(',').collect();
        let access = json!([{ "type": "repository", "name": repository, "actions": actions }]);
        self.state.sign("rig", access, Duration::from_secs(300))
    }
}

async fn serve(state: Arc<State>, mut stream: TcpStream) {
    while let Some(request) = Request::read(&mut stream).await {
        let (status, body) = state.answer(&request).await;
        if !answer(&mut stream, status, Headers::default(), &body.to_string()).await {
            return;
        }
    }
}

impl State {
    async fn answer(&self, request: &Request) -> (u16, Value) {
        let credentials = credentials(request);
        let scopes: Vec<String> = request
            .parameters("scope")
            .iter()
            .flat_map(|s| s.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let user = credentials.as_ref().map(|(user, _)| user.clone());
        let seen = TokenRequest { method: request.method.clone(), user, scopes: scopes.clone() };
        self.requests.lock().unwrap().push(seen);

        let trouble = self.rules.lock().unwrap().trouble;
        match trouble {
            Some(Trouble::Status(status)) => return (status, json!({ "details": "told to fail" })),
            Some(Trouble::Hang) => std::future::pending().await,
            None => {}
        }
        let (grants, lifetime) = {
            let rules = self.rules.lock().unwrap();
            let mut grants = rules.anonymous.clone();
            if let Some((user, password)) = &credentials {
                match rules.accounts.get(user) {
                    Some((right, own)) if right == password => grants.extend(own.iter().cloned()),
                    _ => return (rules.wrong, json!({ "details": "incorrect username or password" })),
                }
            }
            (grants, rules.lifetime)
        };
        let access: Vec<Value> = scopes.iter().filter_map(|scope| granted(&grants, scope)).collect();
        let subject = credentials.map_or(String::new(), |(user, _)| user);
        let token = self.sign(&subject, Value::from(access), lifetime);
        (200, json!({ "token": token, "access_token": token, "expires_in": lifetime.as_secs() }))
    }

    /// A JSON Web Token, RS256, whose `x5c` header carries our certificate.
    fn sign(&self, subject: &str, access: Value, lifetime: Duration) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(&self.certificate_der)] });
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": subject, "jti": format!("{:x}", rand::random::<u64>()),
            "iat": now, "nbf": now - 5, "exp": now + lifetime.as_secs(), "access": access,
        });
        let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{signature}")
    }
}

/// User and password, from Basic authentication or from an OAuth2 form.
fn credentials(request: &Request) -> Option<(String, String)> {
    let form = |name: &str| request.parameters(name).into_iter().next();
    if let (Some(user), Some(password)) = (form("username"), form("password")) {
        return Some((user, password));
    }
    let basic = request.headers.get("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// What of `scope` (`repository:<name>:<actions>`) is granted, as an entry of the `access` claim.
fn granted(grants: &[Grant], scope: &str) -> Option<Value> {
    let (kind_and_name, asked) = scope.rsplit_once(':')?;
    let (kind, name) = kind_and_name.split_once(':')?;
    let covers = |grant: &Grant| match grant.repositories.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == grant.repositories,
    };
    let may = |action: &str| grants.iter().any(|g| covers(g) && g.actions.split(',').any(|a| a == action));
    let actions: Vec<&str> = asked.split(',').filter(|action| may(action)).collect();
    (!actions.is_empty()).then(|| json!({ "type": kind, "name": name, "actions": actions }))
}
