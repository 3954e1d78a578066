//! What is known of the registries that everybody uses, by their hosts' names. A preset says only what its
//! user leaves unsaid, and nothing of a host whose `url` leads elsewhere.

use url::Url;

use super::error::Origin;
use super::tree::{Entries, Kind, Node, join, put};

/// A registry, or a kind of them.
#[derive(Debug)]
pub struct Preset {
    /// Label by label; a `*` at a label's start stands for what the owner of an account has there.
    pub hosts: &'static [&'static str],
    /// What `check-config` says of it.
    pub remark: &'static str,
    /// Other names that images of it go by. None without a dot: they would hide namespaces of Docker Hub's.
    aliases: &'static [&'static str],
    /// Where it has logins checked, outside its own domain.
    realm_hosts: &'static [&'static str],
    /// A ceiling for who is not logged in.
    anonymous_per_minute: Option<i128>,
    /// A freshness rule: its pattern and time.
    freshness: Option<(&'static str, &'static str)>,
    /// The helper that knows its logins, where it gives nothing to who has none.
    login: Option<&'static str>,
}

const PLAIN: Preset = Preset {
    hosts: &[],
    remark: "",
    aliases: &[],
    realm_hosts: &[],
    anonymous_per_minute: None,
    freshness: None,
    login: None,
};

pub const PRESETS: [Preset; 14] = [
    Preset {
        hosts: &["docker.io"],
        remark: "Docker Hub: its API is at registry-1.docker.io; a login raises the quota of pulls",
        ..PLAIN
    },
    Preset {
        hosts: &["ghcr.io"],
        remark: "GitHub: the password of a login is a token with read:packages",
        ..PLAIN
    },
    Preset {
        hosts: &["quay.io"],
        remark: "Quay: the login of a robot account opens private images",
        ..PLAIN
    },
    Preset {
        hosts: &["gcr.io", "*.gcr.io"],
        remark: "Google: public images need no login; for others, the credential helper is gcr or gcloud",
        ..PLAIN
    },
    Preset {
        hosts: &["*-docker.pkg.dev"],
        remark: "Google Artifact Registry: public images need no login; for others, the credential helper is gcr \
                 or gcloud",
        ..PLAIN
    },
    Preset {
        hosts: &["registry.k8s.io"],
        remark: "Kubernetes: takes no login; its tags do not move, and it lists no repositories",
        // The name it had before, which old manifests and charts still have.
        aliases: &["k8s.gcr.io"],
        freshness: Some(("registry.k8s.io/**:*.*", "24h")),
        ..PLAIN
    },
    Preset { hosts: &["mcr.microsoft.com"], remark: "Microsoft: takes no login", ..PLAIN },
    Preset {
        hosts: &["public.ecr.aws"],
        remark: "Amazon ECR Public: one pull a second and 500 GB a month for an address without a login; the \
                 credential helper is ecr-login",
        // One pull a second, of some five requests to the registry itself each.
        anonymous_per_minute: Some(300),
        ..PLAIN
    },
    Preset {
        hosts: &[
            "*.dkr.ecr.*.amazonaws.com",
            "*.dkr.ecr-fips.*.amazonaws.com",
            "*.dkr.ecr.*.amazonaws.com.cn",
            "*.dkr-ecr.*.on.aws",
        ],
        remark: "Amazon ECR: every pull needs a login, which lasts 12 hours; the credential helper is ecr-login",
        login: Some("ecr-login"),
        ..PLAIN
    },
    Preset {
        hosts: &["*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"],
        remark: "Azure Container Registry: every pull needs a login, unless anonymous pull was turned on; the \
                 credential helper is acr-env",
        login: Some("acr-env"),
        ..PLAIN
    },
    Preset {
        hosts: &["registry.gitlab.com"],
        remark: "GitLab: a deploy token opens private images",
        ..PLAIN
    },
    Preset {
        hosts: &["nvcr.io"],
        remark: "NVIDIA: the user of a login is $oauthtoken, its password the API key",
        realm_hosts: &["authn.nvidia.com"],
        ..PLAIN
    },
    Preset {
        hosts: &["lscr.io"],
        remark: "LinuxServer.io: leads on to ghcr.io, which is asked without a login",
        realm_hosts: &["ghcr.io"],
        ..PLAIN
    },
    Preset { hosts: &["registry.access.redhat.com"], remark: "Red Hat: needs no login", ..PLAIN },
];

impl Preset {
    /// The preset of a host, and which of its patterns it is by.
    pub fn of(host: &str) -> Option<(&'static Self, &'static str)> {
        PRESETS.iter().find_map(|preset| {
            preset.hosts.iter().find(|pattern| matches(pattern, host)).map(|pattern| (preset, *pattern))
        })
    }
}

fn matches(pattern: &str, host: &str) -> bool {
    let label = |(pattern, label): (&str, &str)| match pattern.strip_prefix('*') {
        Some(end) => label.len() > end.len() && label.ends_with(end),
        None => pattern == label,
    };
    pattern.split('.').count() == host.split('.').count()
        && pattern.split('.').zip(host.split('.')).all(label)
}

/// Puts presets below what was written of each upstream.
pub fn apply(entries: &mut Entries, warnings: &mut Vec<String>) {
    let Some(upstreams) = table(entries, "upstream") else { return };
    let taken = names(upstreams);
    let mut rules = Vec::new();
    for (host, node) in upstreams {
        let (Some((preset, pattern)), Kind::Table(table)) = (Preset::of(host), &mut node.kind) else {
            continue;
        };
        let origin = Origin::Preset(pattern);
        let texts = |texts: Vec<&str>| {
            let text = |text: &str| Node { origin: origin.clone(), kind: Kind::Text(text.to_owned()) };
            Kind::List(texts.into_iter().map(text).collect())
        };
        let free = preset.aliases.iter().copied().filter(|alias| !taken.iter().any(|name| name == alias));
        let mut values = vec![("aliases", texts(free.collect()))];
        let anonymous = !LOGINS.iter().any(|key| has(table, key));
        if is_at_home(table, host) {
            values.push(("realm_hosts", texts(preset.realm_hosts.to_vec())));
            let ceiling = preset.anonymous_per_minute.filter(|_| anonymous).map(Kind::Whole);
            values.extend(ceiling.map(|ceiling| ("requests_per_minute", ceiling)));
            rules.extend(preset.freshness.map(|rule| (rule, origin.clone())));
            let told = preset.login.and_then(|helper| lacks(table, helper, anonymous));
            warnings.extend(told.map(|lack| format!("{}: {}: {lack}", node.origin, join("upstream", host))));
        }
        for (key, kind) in values {
            let empty = matches!(&kind, Kind::List(items) if items.is_empty());
            if !empty && !has(table, key) {
                table.push((key.to_owned(), Node { origin: origin.clone(), kind }));
            }
        }
    }
    for ((pattern, time), origin) in rules {
        let written = table(entries, "freshness").and_then(|freshness| table(freshness, "rules"));
        if !written.is_some_and(|rules| has(rules, pattern)) {
            let node = Node { origin, kind: Kind::Text(time.to_owned()) };
            put(entries, &["freshness", "rules", pattern], node);
        }
    }
}

/// Each of them is a login, or a part of one.
const LOGINS: [&str; 6] =
    ["username", "password", "password_file", "token_file", "docker_config", "credential_helper"];

/// What nobody could pull without, of a registry that gives nothing to who is not logged in.
fn lacks(table: &Entries, helper: &str, anonymous: bool) -> Option<String> {
    let open = "private = \"shared\"` (whoever may pull from Forebay may pull what the login may)";
    match (anonymous, has(table, "private")) {
        (true, true) if text(table, "private") == Some("per-caller") => None,
        (true, _) => Some(format!(
            "this registry gives nothing without a login; set `credential_helper = \"{helper}\"`, and `{open}"
        )),
        (false, true) => None,
        (false, false) => {
            Some(format!("everything in this registry is private, so nobody may pull it yet; set `{open}"))
        }
    }
}

/// Whether the host is asked where its name says.
fn is_at_home(table: &Entries, host: &str) -> bool {
    !has(table, "url")
        || text(table, "url").is_some_and(|url| Url::parse(url).is_ok_and(|url| url.host_str() == Some(host)))
}

/// All hosts, and all aliases that were written.
fn names(upstreams: &Entries) -> Vec<String> {
    let mut names = Vec::new();
    for (host, node) in upstreams {
        names.push(host.clone());
        let Kind::Table(table) = &node.kind else { continue };
        let aliases =
            table.iter().filter(|(key, _)| key == "aliases").flat_map(|(_, node)| match &node.kind {
                Kind::List(items) => items.iter().collect(),
                _ => vec![node],
            });
        names.extend(aliases.filter_map(|node| match &node.kind {
            Kind::Text(text) => Some(text.clone()),
            _ => None,
        }));
    }
    names
}

fn table<'a>(entries: &'a mut Entries, key: &str) -> Option<&'a mut Entries> {
    entries.iter_mut().find(|(name, _)| name == key).and_then(|(_, node)| match &mut node.kind {
        Kind::Table(table) => Some(table),
        _ => None,
    })
}

fn has(table: &Entries, key: &str) -> bool {
    table.iter().any(|(name, _)| name == key)
}

fn text<'a>(table: &'a Entries, key: &str) -> Option<&'a str> {
    table.iter().find(|(name, _)| name == key).and_then(|(_, node)| match &node.kind {
        Kind::Text(text) => Some(text.as_str()),
        _ => None,
    })
}
