//! Who may do what: logins, rules, and what is open without either.

use std::path::PathBuf;

use crate::access::{Action, AuthOptions, LoginHosts, Push, Rule, Who, htpasswd};
use crate::http::{self, OwnersOptions};

use super::error::ConfigError;
use super::explain::{Printer, texts};
use super::section::{Found, Section};
use super::{Config, files};

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
    _http: &http::Options,
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
    auth.finish()?;
    options.rules = rules(root.section("access")?, &options, owners)?;
    options.login_hosts = match login_hosts {
        Some(hosts) => these(&hosts)?,
        None if options.mirror || owners.upstreams.is_empty() || !options.has_logins() => LoginHosts::All,
        None => LoginHosts::These(Vec::new()),
    };
    warnings.extend(options.htpasswd_file.as_deref().and_then(files::exposed));
    warn(&options, warnings);
    Ok(options)
}

/// What is likely not meant.
fn warn(options: &AuthOptions, warnings: &mut Vec<String>) {
    let mut warn = |text: &str| warnings.push(text.to_owned());
    let logins = options.has_logins();
    if logins && options.login_hosts == LoginHosts::These(Vec::new()) {
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
            "hosted.push: \"open\" lets everybody who reaches this server push and delete; set auth.htpasswd_file"
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
        if first != text && (hub || aliases.iter().any(|alias| alias == first)) {
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
            LoginHosts::All => p.line("login_hosts", texts(&["*"])),
            LoginHosts::These(hosts) => p.line("login_hosts", texts(hosts)),
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
