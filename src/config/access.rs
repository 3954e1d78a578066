//! Who may do what: logins, rules, and what is open without either.

use std::path::PathBuf;
use std::time::Duration;

use crate::access::{
    Action, AuthOptions, IssuerOptions, KeyOptions, LoginHosts, Push, Rule, TokenOptions, TokenServerOptions,
    Who, glob, htpasswd,
};
use crate::http::{self, OwnersOptions};
use crate::upstream;

use super::error::ConfigError;
use super::explain::{Printer, texts};
use super::section::{Found, Section};
use super::tree::join;
use super::{Config, defaults, files, units, upstreams};

type Result<T> = std::result::Result<T, ConfigError>;

/// `hosted.push`
pub fn push(text: &str) -> std::result::Result<Push, String> {
    match text {
        "local" => Ok(Push::Local),
        "open" => Ok(Push::Open),
        "off" => Ok(Push::Off),
        _ => Err(format!(
            "`{text}` is none of these: `local` (without authentication, from this machine only), `open` (without \
             authentication, from anywhere) or `off`"
        )),
    }
}

pub fn read(
    root: &mut Section,
    push: Option<Push>,
    http: &http::Options,
    owners: &OwnersOptions,
    warnings: &mut Vec<String>,
) -> Result<AuthOptions> {
    let mut auth = root.section("auth")?;
    let mut options = AuthOptions { push: push.unwrap_or(Push::Local), ..AuthOptions::default() };
    if let Some(realm) = auth.read("realm", quotable)? {
        options.realm = realm;
    }
    options.htpasswd_file =
        auth.text("htpasswd_file")?.map(|found| found.read(|path| passwords(path))).transpose()?;
    options.anonymous_pull = auth.switch("anonymous_pull")?.unwrap_or(false);
    options.mirror = auth.switch("mirror")?.unwrap_or(false);
    let login_hosts = auth.texts("login_hosts")?;
    options.tokens = tokens(&mut auth, warnings)?;
    options.token_server = token_server(&mut auth)?;
    options.issuers = issuers(auth.section("issuer")?)?;
    options.certificates = http.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
    auth.finish()?;
    options.rules = rules(root.section("access")?, &options, owners)?;
    options.login_hosts = match login_hosts {
        Some(hosts) => these(&hosts)?,
        None if options.mirror || owners.upstreams.is_empty() || !options.has_logins() => LoginHosts::All,
        None => LoginHosts::These(Vec::new()),
    };
    warnings.extend(options.htpasswd_file.as_deref().and_then(files::exposed));
    let asks = http.listeners.iter().any(|listener| listener.scope.serve == http::Serve::Hosted);
    warn(&options, asks, warnings);
    Ok(options)
}

/// Whose certificates TLS clients may show, or have to.
pub fn client_certificates(tls: &mut Section) -> Result<Option<(Found<String>, http::ClientCertificates)>> {
    let ca = tls.text("client_ca_file")?;
    let wanted = tls.text("client_auth")?;
    let required = match &wanted {
        None => false,
        Some(found) => found.read(|text| match text.as_str() {
            "required" => Ok(true),
            "optional" => Ok(false),
            _ => Err(format!("`{text}` is none of these: `optional` or `required`")),
        })?,
    };
    match (ca, wanted) {
        (None, None) => Ok(None),
        (None, Some(wanted)) => {
            Err(wanted.error("certificates are checked by the CA that signed them; set tls.client_ca_file"))
        }
        (Some(ca), _) => {
            let ca_file = ca.read(|path| files::pem(path, "CERTIFICATE"))?;
            Ok(Some((ca, http::ClientCertificates { ca_file, required })))
        }
    }
}

/// A request has room for one login: where callers show that of an upstream, none of ours can be asked
/// for.
pub fn check_callers(auth: &AuthOptions, upstreams: &[upstream::Options]) -> Result<()> {
    let asks = |upstream: &&upstream::Options| upstream.asks_callers();
    for upstream::Options { host, .. } in upstreams.iter().filter(asks) {
        let refuse = |key: String, reason: String| Err(ConfigError::Missing { key, reason });
        if auth.mirror {
            let reason = format!(
                "mirrored images cannot ask for a login here while those of {host} ask for one there (`private = \
                 \"per-caller\"`); leave one of the two out"
            );
            return refuse("auth.mirror".to_owned(), reason);
        }
        let opens = |rule: &Rule| {
            let who = |who: &Who| match who {
                Who::Anonymous => true,
                Who::LoggedIn | Who::Certificate(_) => auth.certificates,
                Who::User(_) | Who::Named { .. } | Who::Claiming { .. } => false,
            };
            let pulls = |action: &Action| matches!(action, Action::Pull | Action::Admin);
            rule.who.iter().any(who)
                && rule.actions.iter().any(pulls)
                && rule.repositories.iter().any(|pattern| may_name(pattern, host.as_str()))
        };
        if !auth.rules.is_empty() && !auth.rules.iter().any(opens) {
            let reason = format!(
                "callers show their logins of that registry, and so are `anonymous` here, whom no rule lets pull: add \
                 an [[access.rule]] with `who = [\"anonymous\"]`, `repositories = [\"{host}/**\"]`, `actions = [\"pull\"]`"
            );
            return refuse(join("upstream", host.as_str()) + ".private", reason);
        }
    }
    Ok(())
}

/// Whether a rule's pattern may match a repository of this host.
fn may_name(pattern: &str, host: &str) -> bool {
    let first = pattern.split('/').next().unwrap_or_default();
    // Alternatives may hold slashes: those are given the benefit of the doubt.
    first.contains('{') || glob(first).is_ok_and(|glob| glob.compile_matcher().is_match(host))
}

/// What is likely not meant. `asks`: there is a listener that asks for logins wherever it is reached.
fn warn(options: &AuthOptions, asks: bool, warnings: &mut Vec<String>) {
    let mut warn = |text: &str| warnings.push(text.to_owned());
    let logins = options.has_logins();
    if options.tokens.is_some() && options.token_server.is_some() {
        warn(
            "auth.tokens: not used, since auth.token_server names who gives out tokens; leave one of the two out",
        );
    }
    let has_names = options.htpasswd_file.is_some() || !options.issuers.is_empty();
    if options.tokens.is_some() && options.token_server.is_none() && !has_names {
        warn(
            "auth.tokens: there is nobody to give them to; set auth.htpasswd_file, or an [auth.issuer.\"NAME\"]",
        );
    }
    if logins && !asks && options.login_hosts == LoginHosts::These(Vec::new()) {
        warn(
            "auth.login_hosts: none, so `docker login` is not asked for a password, and dockerd and podman cannot \
             push: write the host and port that people log in at, `login_hosts = [\"registry.corp:5000\"]`, other \
             than those that dockerd has as a mirror, for it would send its password for Docker Hub there; `[\"*\"]` \
             where no dockerd uses this as its mirror",
        );
    }
    if options.push == Push::Open {
        warn(if logins {
            "hosted.push: \"open\" changes nothing once there is authentication"
        } else {
            "hosted.push: \"open\": NOBODY HAS TO LOG IN, so whoever reaches this server may push and replace images; \
             set auth.htpasswd_file (auth.htpasswd in a registry's configuration), or listen on 127.0.0.1 alone"
        });
    }
    if options.anonymous_pull && !options.rules.is_empty() {
        warn(
            "auth.anonymous_pull: changes nothing beside [[access.rule]], which decide alone; add a rule with `who = \
             [\"anonymous\"]`",
        );
    }
    if !logins && (options.anonymous_pull || options.mirror) {
        warn("auth: there is no way to log in; set auth.htpasswd_file");
    }
    let of_anonymous = |rule: &Rule| rule.who.contains(&Who::Anonymous);
    if !logins && !options.rules.is_empty() && !options.rules.iter().all(of_anonymous) {
        warn(
            "access.rule: there is no way to log in, so rules count only for \"anonymous\"; set auth.htpasswd_file",
        );
    }
    if !options.rules.is_empty() && !options.mirror && !options.rules.iter().any(of_anonymous) {
        warn(
            "access.rule: no rule names \"anonymous\", so the mirror serves nobody who has not logged in, and dockerd \
             cannot log in at a mirror; add a rule with `who = [\"anonymous\", \"*\"]`, `repositories = \
             [\"docker.io/**\"]`, `actions = [\"pull\"]`",
        );
    }
}

/// A htpasswd file, whose every line can be used.
fn passwords(path: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let bytes = files::read(&path)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8 text", path.display()))?;
    htpasswd::Entries::parse(&text).map_err(|error| format!("{}, {error}", path.display()))?;
    Ok(path)
}

/// Tokens are given out where there is a table for them.
fn tokens(auth: &mut Section, warnings: &mut Vec<String>) -> Result<Option<TokenOptions>> {
    let mut section = auth.section("tokens")?;
    let is_written = section.is_written();
    let service = section.read("service", quotable)?;
    let lifetime = section.read("lifetime", lifetime)?;
    let key_file = section.text("key_file")?;
    section.finish()?;
    let key_file = key_file.map(|found| found.read(|path| files::pem(path, "PRIVATE KEY"))).transpose()?;
    warnings.extend(key_file.as_deref().and_then(files::exposed));
    Ok(is_written.then(|| TokenOptions {
        service: service.unwrap_or_else(|| defaults::TOKEN_SERVICE.to_owned()),
        lifetime: lifetime.unwrap_or(defaults::TOKEN_LIFETIME),
        key_file,
    }))
}

fn lifetime(text: &str) -> std::result::Result<Duration, String> {
    let (least, most) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
    match units::time(text)? {
        time if (least..=most).contains(&time) => Ok(time),
        _ => Err(format!("`{text}` is out of bounds; write a time from `60s` to `24h`, such as `5m`")),
    }
}

fn token_server(auth: &mut Section) -> Result<Option<TokenServerOptions>> {
    let mut section = auth.section("token_server")?;
    if !section.is_written() {
        return Ok(None);
    }
    let realm =
        required(&mut section, "realm", "\"https://auth.corp/token\"")?.read(|text| web_address(text))?;
    let service = required(&mut section, "service", "\"registry.corp\"")?.read(|text| quotable(text))?;
    let issuer = required(&mut section, "issuer", "\"auth.corp\"")?.value;
    let keys = keys(&mut section, true)?;
    section.finish()?;
    Ok(Some(TokenServerOptions { realm, service, issuer, keys }))
}

fn issuers(section: Section) -> Result<Vec<IssuerOptions>> {
    let mut issuers: Vec<IssuerOptions> = Vec::new();
    for (name, mut section) in section.named()? {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !name.value.bytes().all(plain) || name.value == "certificate" {
            return Err(name.error(
                "rules call an issuer by this name; write letters, digits, `-` and `_`, not `certificate`",
            ));
        }
        let issuer = required(&mut section, "issuer", "\"https://gitlab.corp\"")?;
        if issuers.iter().any(|other| other.issuer == issuer.value) {
            return Err(
                issuer.error(format!("{} has a table already; leave one of the two out", issuer.value))
            );
        }
        let audience = match section.list("audience")? {
            Some(found) if found.value.is_empty() => {
                return Err(
                    found.error("the list is empty, so no token would do; write what tokens have as `aud`")
                );
            }
            Some(found) => found.value.into_iter().map(|found| found.value).collect(),
            None => {
                let reason = "tokens for others must not do here; add what the tokens have as `aud`, such as `audience = \
                              [\"registry.corp\"]`";
                return Err(section.missing("audience", reason));
            }
        };
        let username_claim =
            section.text("username_claim")?.map_or_else(|| "sub".to_owned(), |found| found.value);
        let keys = keys(&mut section, false)?;
        section.finish()?;
        let (name, issuer) = (name.value, issuer.value);
        issuers.push(IssuerOptions { name, issuer, keys, audience, username_claim });
    }
    Ok(issuers)
}

/// Where public keys are: one place at least.
fn keys(section: &mut Section, certificates: bool) -> Result<KeyOptions> {
    let file = |found: Option<Found<String>>, reader: fn(&str) -> std::result::Result<PathBuf, String>| {
        found.map(|found| found.read(|path| reader(path))).transpose()
    };
    let url = section.text("jwks_url")?;
    let mut options = KeyOptions {
        jwks_url: url.map(|found| found.read(|text| key_address(text))).transpose()?,
        jwks_file: file(section.text("jwks_file")?, files::json)?,
        ca_file: file(section.text("ca_file")?, |path| files::pem(path, "CERTIFICATE"))?,
        certificates_file: None,
    };
    if certificates {
        let found = section.text("certificates_file")?;
        options.certificates_file = file(found, |path| files::pem(path, "CERTIFICATE"))?;
    }
    if options.jwks_url.is_none() && options.jwks_file.is_none() && options.certificates_file.is_none() {
        let also = if certificates { ", or `certificates_file`" } else { "" };
        let reason = format!(
            "its tokens are checked by its public keys; add `jwks_url = \"https://...\"` or `jwks_file`{also}"
        );
        return Err(section.missing("jwks_url", &reason));
    }
    Ok(options)
}

fn required(section: &mut Section, key: &'static str, example: &str) -> Result<Found<String>> {
    match section.text(key)? {
        Some(found) if found.value.is_empty() => {
            Err(found.error(format!("it is empty; write it as in {example}")))
        }
        Some(found) => Ok(found),
        None => Err(section.missing(key, &format!("it is needed; add `{key} = {example}`"))),
    }
}

fn web_address(text: &str) -> std::result::Result<String, String> {
    let url =
        url::Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    match url.filter(|_| quotable(text).is_ok()) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("`{text}` is no address; write it as in `https://auth.corp/token`")),
    }
}

/// Keys that came over plain HTTP could be anybody's.
fn key_address(text: &str) -> std::result::Result<String, String> {
    web_address(text)?;
    let url = url::Url::parse(text).map_err(|error| error.to_string())?;
    if url.scheme() == "http" && !upstreams::is_loopback(&url) {
        return Err(format!(
            "`{text}`: who can change the answer on its way could sign logins; write `https://`, or fetch the keys \
             yourself and name them as `jwks_file`"
        ));
    }
    Ok(text.to_owned())
}

/// What may stand between the quotes of a header.
fn quotable(text: &str) -> std::result::Result<String, String> {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\';
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(format!("`{text}` cannot be sent; write plain letters, without quotes and backslashes"));
    }
    Ok(text.to_owned())
}

fn these(hosts: &[Found<String>]) -> Result<LoginHosts> {
    if hosts.iter().any(|host| host.value == "*") {
        return Ok(LoginHosts::All);
    }
    let host = |found: &Found<String>| {
        found.read(|text| {
            let authority = text.parse::<::http::uri::Authority>().ok();
            match authority.filter(|authority| authority.as_str() == text && !text.contains('@')) {
                Some(_) => Ok(text.clone()),
                None => Err(format!(
                    "`{text}` is no host; write it as people do behind `docker login`, `registry.corp:5000`, or `*` \
                     for all"
                )),
            }
        })
    };
    Ok(LoginHosts::These(hosts.iter().map(host).collect::<Result<_>>()?))
}

fn rules(mut access: Section, options: &AuthOptions, owners: &OwnersOptions) -> Result<Vec<Rule>> {
    let issuers: Vec<&str> = options.issuers.iter().map(|issuer| issuer.name.as_str()).collect();
    let mut rules = Vec::new();
    for mut section in access.sections("rule")? {
        let mut list = |key, example: &str| match section.list(key)? {
            Some(found) if found.value.is_empty() => {
                Err(found.error(format!("the list is empty, so this rule allows nothing; write {example}")))
            }
            Some(found) => Ok(found),
            None => Err(section.missing(key, &format!("a rule needs it; add `{key} = {example}`"))),
        };
        let who = list("who", "[\"alice\"]")?;
        let repositories = list("repositories", "[\"corp.internal/**\"]")?;
        let actions = list("actions", "[\"pull\", \"push\"]")?;
        let place = who.origin.to_string();
        section.finish()?;
        rules.push(Rule {
            who: each(&who, |text| Who::parse(text, &issuers))?,
            repositories: each(&repositories, |text| pattern(text, owners))?,
            actions: each(&actions, action)?,
            place,
        });
    }
    access.finish()?;
    Ok(rules)
}

fn each<T>(
    found: &Found<Vec<Found<String>>>,
    reader: impl Fn(&str) -> std::result::Result<T, String>,
) -> Result<Vec<T>> {
    found.value.iter().map(|item| item.read(|text| reader(text))).collect()
}

fn action(text: &str) -> std::result::Result<Action, String> {
    let all = [Action::Pull, Action::Push, Action::Delete, Action::Admin];
    let known = all.into_iter().find(|action| action.to_string() == text);
    known.ok_or_else(|| {
        format!("`{text}` is no action; write `pull`, `push`, `delete` or `admin` (all of them)")
    })
}

/// A pattern of canonical names, which are of one spelling each.
fn pattern(text: &str, owners: &OwnersOptions) -> std::result::Result<String, String> {
    let example = "write it as in `corp.internal/**`, `docker.io/library/*` or `**`";
    let in_name =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*' | b':');
    let component =
        |part: &str| !part.is_empty() && part.bytes().all(in_name) && (part == "**" || !part.contains("**"));
    if !text.split('/').all(component) || text.contains("/:") {
        return Err(format!("`{text}` is no pattern of repository names; {example}"));
    }
    crate::access::glob(text).map_err(|error| format!("{error}; {example}"))?;
    let first = text.split('/').next().unwrap_or_default();
    for (host, aliases) in &owners.upstreams {
        let hub = host.is_docker_hub() && ["index.docker.io", "registry-1.docker.io"].contains(&first);
        let by_host = owners.hosts.iter().any(|(name, of)| name == first && of == host);
        if first != text && (hub || by_host || aliases.iter().any(|alias| alias == first)) {
            let rest = &text[first.len()..];
            return Err(format!(
                "rules name repositories by their registry's own host; write `{host}{rest}`"
            ));
        }
    }
    Ok(text.to_owned())
}

impl Config {
    pub(super) fn explain_access(&self, p: &mut Printer<'_>) {
        let auth = &self.auth;
        p.section("auth");
        p.line("realm", auth.realm.as_str());
        p.file("htpasswd_file", auth.htpasswd_file.as_ref(), "none");
        p.line("anonymous_pull", auth.anonymous_pull);
        p.line("mirror", auth.mirror);
        match &auth.login_hosts {
            // Not written out: with the first login, the default is another one.
            LoginHosts::All if p.source("login_hosts") == "default" => {
                p.unset("login_hosts", "all; with logins and an upstream, none unless written here");
            }
            LoginHosts::All => p.line("login_hosts", texts(&["*"])),
            LoginHosts::These(hosts) => p.line("login_hosts", texts(hosts)),
        }
        match &auth.tokens {
            None => p.out += "\n# [auth.tokens]: none are given out\n",
            Some(tokens) => {
                p.section("auth.tokens");
                p.line("service", tokens.service.as_str());
                p.time("lifetime", tokens.lifetime);
                p.file(
                    "key_file",
                    tokens.key_file.as_ref(),
                    "one that is made, <data>/forebay/token-key.pem",
                );
            }
        }
        if let Some(server) = &auth.token_server {
            p.section("auth.token_server");
            p.line("realm", server.realm.as_str());
            p.line("service", server.service.as_str());
            p.line("issuer", server.issuer.as_str());
            p.file("certificates_file", server.keys.certificates_file.as_ref(), "none");
            explain_keys(p, &server.keys);
        }
        for issuer in &auth.issuers {
            p.section(join("auth.issuer", &issuer.name));
            p.line("issuer", issuer.issuer.as_str());
            p.line("audience", texts(&issuer.audience));
            p.line("username_claim", issuer.username_claim.as_str());
            explain_keys(p, &issuer.keys);
        }
        for rule in &auth.rules {
            p.out += &format!(
                "\n[[access.rule]] # {}\nwho = {}\nrepositories = {}\nactions = {}\n",
                rule.place,
                texts(&rule.who),
                texts(&rule.repositories),
                texts(&rule.actions)
            );
        }
    }
}

fn explain_keys(p: &mut Printer<'_>, keys: &KeyOptions) {
    match &keys.jwks_url {
        Some(url) => p.line("jwks_url", url.as_str()),
        None => p.unset("jwks_url", "none"),
    }
    p.file("jwks_file", keys.jwks_file.as_ref(), "none");
    p.file("ca_file", keys.ca_file.as_ref(), "none: the system's CAs alone");
}
