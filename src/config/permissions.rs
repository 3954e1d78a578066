//! What somebody may do, and why: for `forebay check-config --as`.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::access::{Action, Decision, Defaults, Identity, Policy, Subject, htpasswd};
use crate::http::Owners;
use crate::oci::{Owner, Repository};

use super::{Config, files};

impl Config {
    /// For people, a line for each action. `who` is written as in rules, `name` in any spelling. An
    /// error says what to write instead.
    pub fn permissions(&self, who: &str, name: &str) -> Result<String, String> {
        let identity = self.identity(who)?;
        let owners = Owners::new(self.owners.clone()).map_err(|error| error.to_string())?;
        let repository = owners.resolve(None, name).map_err(|error| error.to_string())?;
        let auth = &self.auth;
        let defaults = Defaults {
            logins: auth.has_logins(),
            anonymous_pull: auth.anonymous_pull,
            mirror: auth.mirror,
            push: auth.push,
        };
        let policy = Policy::new(auth.rules.clone(), defaults)?;
        let mut told = format!("{identity} on {repository} ({})\n", described(&repository));
        for action in [Action::Pull, Action::Push, Action::Delete, Action::Admin] {
            let decision = policy.decide(&identity, false, action, &repository);
            let word = if decision.is_allowed() { "yes" } else { "no" };
            // Writing to a string cannot fail.
            let _ =
                writeln!(told, "  {:<7} {word:<4} {}", action.to_string(), policy.explain(decision.reason()));
            if action == Action::Push
                && policy.decide(&identity, true, action, &repository) != decision
                && matches!(decision, Decision::Denied(_))
            {
                told += "               from this machine itself: yes\n";
            }
        }
        for note in self.notes(&identity) {
            let _ = writeln!(told, "note: {note}");
        }
        Ok(told)
    }

    fn identity(&self, who: &str) -> Result<Identity, String> {
        if who == "anonymous" {
            return Ok(Identity::Anonymous);
        }
        let Some((kind, name)) = who.split_once(':') else {
            htpasswd::check_name(who)?;
            return Ok(Identity::User(who.into()));
        };
        if name.is_empty() {
            return Err(format!("nothing stands behind the colon of `{who}`"));
        }
        if kind == "certificate" {
            return Ok(Identity::Certificate(name.into()));
        }
        let Some(issuer) = self.auth.issuers.iter().find(|issuer| issuer.name == kind) else {
            return Err(format!(
                "`{kind}` is no issuer of [auth.issuer]; write a user's name, `anonymous`, `certificate:NAME` or \
                 `ISSUER:NAME`"
            ));
        };
        let mut claims = Map::new();
        let pairs: Vec<_> = name.split(',').filter_map(|pair| pair.split_once('=')).collect();
        for (claim, value) in &pairs {
            claims.insert((*claim).to_owned(), Value::String((*value).to_owned()));
        }
        if pairs.is_empty() {
            claims.insert(issuer.username_claim.clone(), Value::String(name.to_owned()));
        }
        let called = claims.get(&issuer.username_claim).and_then(Value::as_str).unwrap_or(name).to_owned();
        Ok(Identity::Subject(Arc::new(Subject { issuer: kind.to_owned(), name: called, claims })))
    }

    /// What else keeps this identity out, or makes it none.
    fn notes(&self, identity: &Identity) -> Vec<String> {
        let auth = &self.auth;
        let mut notes = Vec::new();
        match (identity, &auth.htpasswd_file) {
            (Identity::User(name), Some(path)) => {
                let text = files::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let known = text.and_then(|text| htpasswd::Entries::parse(&text).ok());
                if known.is_some_and(|entries| entries.get(name).is_none()) {
                    notes.push(format!(
                        "{} has no user `{name}`, who therefore cannot log in",
                        path.display()
                    ));
                }
            }
            (Identity::User(_), None) if auth.token_server.is_none() => {
                notes.push("there is no auth.htpasswd_file, so no user can log in".to_owned());
            }
            (Identity::Certificate(_), _) if !auth.certificates => {
                notes.push("there is no tls.client_ca_file, so no certificate is asked for".to_owned());
            }
            _ => {}
        }
        if auth.token_server.is_some() && matches!(identity, Identity::User(_)) {
            notes.push("what a token of auth.token_server grants is allowed whatever stands here".to_owned());
        }
        notes
    }
}

fn described(repository: &Repository) -> String {
    match &repository.owner {
        Owner::Hosted => "hosted here".to_owned(),
        Owner::Upstream(host) => format!("mirrored from {host}"),
    }
}
