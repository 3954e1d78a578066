//! Who may do what to which repository, decided on its canonical identity.

use std::fmt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::{Action, Identity, Who};
use crate::oci::{Owner, Repository, UpstreamHost};

/// While nobody can log in: from where hosted repositories are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// From this machine.
    Local,
    /// From anywhere.
    Open,
    /// Not at all, whoever is logged in.
    Off,
}

/// Allows `actions` on repositories to whom it names. There are no rules that forbid.
#[derive(Clone, Debug)]
pub struct Rule {
    pub who: Vec<Who>,
    /// Globs of canonical names: hosted ones as they are, mirrored ones under their host.
    pub repositories: Vec<String>,
    pub actions: Vec<Action>,
    /// Where it was written, for people.
    pub place: String,
}

/// What decides, but for the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Whether there is any way to log in.
    pub logins: bool,
    /// Without rules: hosted repositories may be pulled without login.
    pub anonymous_pull: bool,
    /// Without rules: pulls through the mirror need a login too.
    pub mirror: bool,
    pub push: Push,
}

#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<(Rule, GlobSet)>,
    defaults: Defaults,
}

/// Whether something is allowed, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed(Reason),
    Denied(Reason),
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// By its place in the list.
    Rule(usize),
    NoRule,
    LoggedIn,
    NeedsLogin,
    NeedsRule,
    AnonymousPull,
    MirrorIsFree,
    MirrorIsReadOnly,
    NoLogins,
    PushIsOpen,
    PushIsLocal,
    PushIsOff,
}

impl Policy {
    pub fn new(rules: Vec<Rule>, defaults: Defaults) -> Result<Self, String> {
        let rules = rules.into_iter().map(|rule| {
            let mut set = GlobSetBuilder::new();
            for pattern in &rule.repositories {
                set.add(glob(pattern)?);
            }
            let set = set.build().map_err(|error| error.to_string())?;
            Ok((rule, set))
        });
        Ok(Self { rules: rules.collect::<Result<_, String>>()?, defaults })
    }

    pub fn decide(
        &self,
        identity: &Identity,
        is_local: bool,
        action: Action,
        repository: &Repository,
    ) -> Decision {
        let Defaults { logins, anonymous_pull, mirror, push } = self.defaults;
        let mirrored = repository.owner != Owner::Hosted;
        if mirrored && action != Action::Pull {
            return Decision::Denied(Reason::MirrorIsReadOnly);
        }
        if push == Push::Off && matches!(action, Action::Push | Action::Delete) {
            return Decision::Denied(Reason::PushIsOff);
        }
        if !self.rules.is_empty() {
            return self.by_rule(identity, action, repository);
        }
        let logged_in = !identity.is_anonymous();
        match (logins, action) {
            (false, Action::Pull) => Decision::Allowed(Reason::NoLogins),
            (false, _) if push == Push::Open => Decision::Allowed(Reason::PushIsOpen),
            (false, _) if is_local => Decision::Allowed(Reason::PushIsLocal),
            (false, _) => Decision::Denied(Reason::PushIsLocal),
            (true, Action::Pull) if mirrored && !mirror => Decision::Allowed(Reason::MirrorIsFree),
            (true, Action::Admin) => Decision::Denied(Reason::NeedsRule),
            (true, _) if logged_in => Decision::Allowed(Reason::LoggedIn),
            (true, Action::Pull) if !mirrored && anonymous_pull => Decision::Allowed(Reason::AnonymousPull),
            (true, _) => Decision::Denied(Reason::NeedsLogin),
        }
    }

    fn by_rule(&self, identity: &Identity, action: Action, repository: &Repository) -> Decision {
        let name = repository.to_string();
        let allows = |(rule, set): &(Rule, GlobSet)| {
            let covers = |granted: &Action| *granted == action || *granted == Action::Admin;
            rule.actions.iter().any(covers)
                && rule.who.iter().any(|who| who.includes(identity))
                && set.is_match(&name)
        };
        match self.rules.iter().position(allows) {
            Some(place) => Decision::Allowed(Reason::Rule(place)),
            None => Decision::Denied(Reason::NoRule),
        }
    }

    /// Whether there is anything of an upstream that may be pulled.
    pub fn opens(&self, identity: &Identity, host: &UpstreamHost) -> bool {
        let Defaults { logins, mirror, .. } = self.defaults;
        if self.rules.is_empty() {
            return !logins || !mirror || !identity.is_anonymous();
        }
        // Canonical names begin with the host: whether the rest of a pattern fits, some name has.
        let reaches = |pattern: &String| match pattern.split_once('/') {
            None => pattern == "**",
            Some((first, _)) => glob(first).is_ok_and(|glob| glob.compile_matcher().is_match(host.as_str())),
        };
        self.rules.iter().any(|(rule, _)| {
            let covers = |granted: &Action| matches!(granted, Action::Pull | Action::Admin);
            rule.actions.iter().any(covers)
                && rule.who.iter().any(|who| who.includes(identity))
                && rule.repositories.iter().any(reaches)
        })
    }

    /// What decided, for people.
    pub fn explain(&self, reason: Reason) -> String {
        match reason {
            Reason::Rule(place) => match self.rules.get(place) {
                Some((rule, _)) => format!("rule {} at {}: {rule}", place + 1, rule.place),
                None => format!("rule {}", place + 1),
            },
            Reason::NoRule => format!("none of the {} rules allows it", self.rules.len()),
            Reason::LoggedIn => "there are no rules: whoever is logged in may".to_owned(),
            Reason::NeedsLogin => "it needs a login".to_owned(),
            Reason::NeedsRule => "only a rule gives this: add an [[access.rule]]".to_owned(),
            Reason::AnonymousPull => "auth.anonymous_pull".to_owned(),
            Reason::MirrorIsFree => "pulls through the mirror need no login (auth.mirror)".to_owned(),
            Reason::MirrorIsReadOnly => "what is mirrored can only be read".to_owned(),
            Reason::NoLogins => "there is no authentication: everybody may pull".to_owned(),
            Reason::PushIsOpen => "hosted.push is \"open\"".to_owned(),
            Reason::PushIsLocal => "without authentication, only from this machine (hosted.push)".to_owned(),
            Reason::PushIsOff => "hosted.push is \"off\"".to_owned(),
        }
    }
}

/// The glob of a rule: `*` stays inside a component, `**` does not.
pub fn glob(pattern: &str) -> Result<globset::Glob, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    glob.map_err(|error| error.kind().to_string())
}

impl Decision {
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    pub fn reason(self) -> Reason {
        let (Self::Allowed(reason) | Self::Denied(reason)) = self;
        reason
    }
}

/// Where a rule stands makes it no other one.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (&self.who, &self.repositories, &self.actions) == (&other.who, &other.repositories, &other.actions)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(", ");
        let who = list(self.who.iter().map(ToString::to_string).collect());
        let actions = list(self.actions.iter().map(ToString::to_string).collect());
        write!(f, "{who} may {actions} {}", list(self.repositories.clone()))
    }
}

impl fmt::Display for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Open => "open",
            Self::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::UpstreamHost;

    const ACTIONS: [Action; 4] = [Action::Pull, Action::Push, Action::Delete, Action::Admin];

    fn defaults() -> Defaults {
        Defaults { logins: true, anonymous_pull: false, mirror: false, push: Push::Local }
    }

    fn hosted(name: &str) -> Repository {
        Repository { owner: Owner::Hosted, name: name.parse().unwrap() }
    }

    fn mirrored(host: &str, name: &str) -> Repository {
        let host: UpstreamHost = host.parse().unwrap();
        Repository { owner: Owner::Upstream(host), name: name.parse().unwrap() }
    }

    fn rule(who: &str, repositories: &str, actions: &[Action]) -> Rule {
        Rule {
            who: vec![Who::parse(who, &[]).unwrap()],
            repositories: vec![repositories.to_owned()],
            actions: actions.to_vec(),
            place: "forebay.toml:3".to_owned(),
        }
    }

    /// Of pull, push, delete and admin, those that are allowed, by their first letters.
    fn may(policy: &Policy, identity: &Identity, is_local: bool, repository: &Repository) -> String {
        let letter = |action: &Action| action.to_string()[..2].to_owned();
        let allowed = |action: &&Action| policy.decide(identity, is_local, **action, repository).is_allowed();
        ACTIONS.iter().filter(allowed).map(letter).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn without_rules_the_defaults_decide() {
        let alice = Identity::User("alice".into());
        let anonymous = Identity::Anonymous;
        let (own, hub) = (hosted("team"), mirrored("docker.io", "library/nginx"));
        let of = |defaults| Policy::new(Vec::new(), defaults).unwrap();
        let no_logins = |push| of(Defaults { logins: false, push, ..defaults() });
        for (policy, who, is_local, of_own, of_hub) in [
            (no_logins(Push::Local), &anonymous, false, "pu", "pu"),
            (no_logins(Push::Local), &anonymous, true, "pu pu de ad", "pu"),
            (no_logins(Push::Open), &anonymous, false, "pu pu de ad", "pu"),
            (no_logins(Push::Off), &anonymous, true, "pu ad", "pu"),
            (of(defaults()), &anonymous, true, "", "pu"),
            (of(defaults()), &alice, false, "pu pu de", "pu"),
            (of(Defaults { push: Push::Off, ..defaults() }), &alice, true, "pu", "pu"),
            (of(Defaults { push: Push::Open, ..defaults() }), &anonymous, true, "", "pu"),
            (of(Defaults { anonymous_pull: true, ..defaults() }), &anonymous, true, "pu", "pu"),
            (of(Defaults { mirror: true, ..defaults() }), &anonymous, true, "", ""),
            (of(Defaults { mirror: true, ..defaults() }), &alice, true, "pu pu de", "pu"),
        ] {
            assert_eq!(may(&policy, who, is_local, &own), of_own, "{who} {policy:?}");
            assert_eq!(may(&policy, who, is_local, &hub), of_hub, "{who} {policy:?}");
        }
    }

    #[test]
    fn with_a_rule_all_else_is_denied() {
        let rules = vec![
            rule("alice", "corp.internal/**", &[Action::Pull, Action::Push]),
            rule("anonymous", "docker.io/library/*", &[Action::Pull]),
            rule("root", "**", &[Action::Admin]),
        ];
        let policy = Policy::new(rules, Defaults { anonymous_pull: true, ..defaults() }).unwrap();
        let user = |name: &str| Identity::User(name.into());
        for (who, repository, expected) in [
            (user("alice"), hosted("corp.internal/app"), "pu pu"),
            (user("alice"), hosted("corp.internal/a/b"), "pu pu"),
            (user("alice"), hosted("corp"), ""),
            (user("alice"), mirrored("docker.io", "library/nginx"), ""),
            (user("alice"), mirrored("ghcr.io", "corp.internal/app"), ""),
            (user("bob"), hosted("corp.internal/app"), ""),
            (Identity::Certificate("alice".into()), hosted("corp.internal/app"), ""),
            (Identity::Anonymous, hosted("app"), ""),
            (Identity::Anonymous, mirrored("docker.io", "library/nginx"), "pu"),
            (Identity::Anonymous, mirrored("docker.io", "team/nginx"), ""),
            (Identity::Anonymous, mirrored("ghcr.io", "library/nginx"), ""),
            (user("root"), hosted("corp.internal/app"), "pu pu de ad"),
            (user("root"), mirrored("docker.io", "library/nginx"), "pu"),
        ] {
            assert_eq!(may(&policy, &who, true, &repository), expected, "{who} {repository}");
        }
        let decision = policy.decide(&user("alice"), false, Action::Push, &hosted("corp.internal/app"));
        let told = policy.explain(decision.reason());
        assert_eq!(told, "rule 1 at forebay.toml:3: alice may pull, push corp.internal/**");
    }

    #[test]
    fn an_upstream_is_open_where_something_of_it_may_be_pulled() {
        let (alice, host) =
            (Identity::User("alice".into()), |host: &str| host.parse::<UpstreamHost>().unwrap());
        let opens = |patterns: &str, actions: &[Action], who: &Identity, to: &str| {
            Policy::new(vec![rule("alice", patterns, actions)], defaults()).unwrap().opens(who, &host(to))
        };
        for (pattern, expected) in [
            ("ghcr.io/**", true),
            ("ghcr.io/team/app", true),
            ("**", true),
            ("**/app", true),
            ("*/app", true),
            ("ghcr.*/x", true),
            ("*.io/x", true),
            ("quay.io/**", false),
            ("ghcr.io", false),
            ("*", false),
        ] {
            assert_eq!(opens(pattern, &[Action::Pull], &alice, "ghcr.io"), expected, "{pattern}");
            assert!(!opens(pattern, &[Action::Push], &alice, "ghcr.io"), "{pattern}");
            assert!(!opens(pattern, &[Action::Pull], &Identity::Anonymous, "ghcr.io"), "{pattern}");
        }
        let free = |defaults| Policy::new(Vec::new(), defaults).unwrap();
        let anonymous = |policy: Policy| policy.opens(&Identity::Anonymous, &host("ghcr.io"));
        assert!(anonymous(free(defaults())));
        assert!(!anonymous(free(Defaults { mirror: true, ..defaults() })));
        assert!(anonymous(free(Defaults { mirror: true, logins: false, ..defaults() })));
        assert!(free(Defaults { mirror: true, ..defaults() }).opens(&alice, &host("ghcr.io")));
    }

    #[test]
    fn off_is_off_for_everybody() {
        let rules = vec![rule("root", "**", &[Action::Admin])];
        let policy = Policy::new(rules, Defaults { push: Push::Off, ..defaults() }).unwrap();
        assert_eq!(may(&policy, &Identity::User("root".into()), true, &hosted("app")), "pu ad");
    }
}
