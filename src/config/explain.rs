//! The effective configuration as a file that says the same, with where each value came from.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use toml::Value;

use crate::access::{IdentityLimit, Override, Rates};
use crate::events::EndpointOptions;
use crate::mirror::Pinned;
use crate::oci::{Platforms, RepositoryPattern, TagPattern};
use crate::registry::Rule;
use crate::telemetry::Format;
use crate::upstream::{self, Credential, Password, PrivatePolicy, Proxy};

use super::presets::Preset;
use super::tree::{join, quote_key};
use super::units::{format_rate, format_reserve, format_size, format_time, format_time_or_forever};
use super::{Config, Sources};

pub(super) struct Printer<'a> {
    pub out: String,
    path: String,
    sources: &'a Sources,
}

impl Printer<'_> {
    pub fn section(&mut self, path: impl Into<String>) {
        self.path = path.into();
        self.out += &format!("\n[{}]\n", self.path);
    }

    /// One of a list of tables.
    pub fn table(&mut self, path: &str) {
        self.path.clear();
        self.out += &format!("\n[[{path}]] # {}\n", self.source(path));
    }

    pub fn line(&mut self, key: &str, value: impl Into<Value>) {
        let key = quote_key(key);
        self.out += &format!("{key} = {} # {}\n", value.into(), self.source(&key));
    }

    /// A value that cannot be written, for it stands for something measured or for nothing.
    pub fn unset(&mut self, key: &str, meaning: &str) {
        self.out += &format!("# {key}: {meaning}\n");
    }

    pub fn file(&mut self, key: &str, path: Option<&PathBuf>, meaning: &str) {
        match path {
            Some(path) => self.line(key, path.display().to_string()),
            None => self.unset(key, meaning),
        }
    }

    pub fn source(&self, quoted_key: &str) -> String {
        let path = match self.path.as_str() {
            "" => quoted_key.to_owned(),
            path => format!("{path}.{quoted_key}"),
        };
        self.sources.get(&path).map_or_else(|| "default".into(), ToString::to_string)
    }

    pub fn time(&mut self, key: &str, time: Duration) {
        self.line(key, format_time(time));
    }

    fn number(&mut self, key: &str, number: impl TryInto<i64>) {
        // Numbers are bounded far below when they are read.
        self.line(key, number.try_into().unwrap_or(i64::MAX));
    }
}

pub(super) fn texts<T: Display>(items: &[T]) -> Value {
    Value::Array(items.iter().map(|item| Value::String(item.to_string())).collect())
}

impl Config {
    /// TOML that loads as this configuration, each value with its source. Holds no secret: those are
    /// named by their files.
    pub fn explain(&self) -> String {
        let mut p = Printer { out: String::new(), path: String::new(), sources: &self.sources };
        self.explain_listen(&mut p);
        p.line("data", self.store.data.display().to_string());
        let default = self.upstreams.first().map(|upstream| &upstream.host).filter(|host| host.is_default());
        p.line("default_upstream", default.map_or("none", |host| host.as_str()));
        p.line("offline", self.mirror.offline);
        match self.http.operations {
            Some(address) => p.line("operations", address.to_string()),
            None => p.unset("operations", "on the public listeners only"),
        }
        if let Some(adopt) = &self.store.adopt {
            p.unset("--adopt", &adopt.to_string());
        }
        self.explain_listeners(&mut p);
        for (options, (host, aliases)) in self.upstreams.iter().zip(&self.owners.upstreams) {
            let hosts = self.owners.hosts.iter().filter(|(_, of)| of == host).map(|(name, _)| name);
            explain_upstream(&mut p, options, aliases, &hosts.collect::<Vec<_>>());
        }
        self.explain_names_and_cache(&mut p);
        self.explain_freshness(&mut p);
        self.explain_limits(&mut p);
        self.explain_access(&mut p);
        if let Some(forward) = &self.http.forward {
            p.section("forward_proxy");
            p.line("listen", forward.listen.to_string());
            p.line("tunnel", texts(&forward.tunnel));
        }
        let tls = self.http.tls.as_ref();
        p.section("tls");
        p.file("certificate_file", tls.map(|tls| &tls.certificate_file), "none: plain HTTP");
        p.file("key_file", tls.map(|tls| &tls.key_file), "none");
        let clients = tls.and_then(|tls| tls.clients.as_ref());
        p.file(
            "client_ca_file",
            clients.map(|clients| &clients.ca_file),
            "none: clients show no certificates",
        );
        match clients.map(|clients| clients.required) {
            Some(required) => p.line("client_auth", if required { "required" } else { "optional" }),
            None => p.unset("client_auth", "none"),
        }
        self.explain_certificates(&mut p);
        self.events.endpoints.iter().for_each(|endpoint| explain_endpoint(&mut p, endpoint));
        p.section("shutdown");
        p.time("grace", self.http.shutdown_grace);
        p.section("log");
        p.line(
            "format",
            match self.choices.log_format {
                None => "auto",
                Some(Format::Text) => "text",
                Some(Format::Json) => "json",
            },
        );
        p.line("level", self.telemetry.level.as_str());
        p.line("access", self.telemetry.access);
        p.out
    }

    fn explain_names_and_cache(&self, p: &mut Printer<'_>) {
        p.section("hosted");
        p.line("repositories", texts(&self.owners.hosted));
        p.line("shadow", self.choices.shadow);
        p.line("push", self.auth.push.to_string());
        p.line("delete", self.registry.delete);
        let immutable: Vec<&str> = self.registry.immutable.iter().map(TagPattern::as_str).collect();
        p.line("immutable_tags", texts(&immutable));
        p.time("upload_age", self.registry.upload_age);
        p.number("max_uploads", self.registry.max_uploads);
        p.line("max_manifest", format_size(self.registry.max_manifest as u64));
        self.gc.retention.iter().for_each(|rule| explain_rule(p, rule));
        p.section("gc");
        match self.gc.interval {
            Some(interval) => p.time("interval", interval),
            None => p.line("interval", "off"),
        }
        p.time("lease", self.store.lease);
        match self.gc.untagged {
            Some(time) => p.time("untagged", time),
            None => p.line("untagged", "keep"),
        }
        p.section("scrub");
        match self.scrub.interval {
            Some(interval) => p.time("interval", interval),
            None => p.line("interval", "off"),
        }
        p.line("rate", format_size(self.scrub.rate.get()));
        p.line("quarantine", format_size(self.store.quarantine));
        p.section("cache");
        match self.store.max_size {
            Some(size) => p.line("max_size", format_size(size)),
            None => p.unset("max_size", "80 % of the file system"),
        }
        match self.store.min_free {
            Some(size) => p.line("min_free", format_size(size)),
            None => p.unset("min_free", "10 % of the file system or 10GiB, the smaller"),
        }
        p.line("memory", format_size(self.mirror.metadata_memory + self.mirror.blob_memory));
        p.line("unread_budget", format_size(self.store.unread_budget));
        p.number("resumes", self.store.resumes);
        p.time("reader_timeout", self.store.reader_timeout);
        p.number("fill_connections", self.store.fill_connections);
        p.line("range_share", self.store.range_share);
        p.line("range_floor", format_size(self.store.range_floor));
    }

    fn explain_freshness(&self, p: &mut Printer<'_>) {
        let freshness = &self.mirror.freshness;
        p.section("freshness");
        p.time("versions", freshness.versions);
        p.time("others", freshness.others);
        p.line("jitter", freshness.jitter);
        p.section("freshness.rules");
        for (pattern, time) in &freshness.rules {
            p.time(pattern.as_str(), *time);
        }
        p.section("refresh");
        p.number("per_minute", self.mirror.ahead.refreshes_per_minute);
        p.section("prefetch");
        p.line("layers", self.mirror.ahead.prefetch_layers);
        self.warm.iter().for_each(|pin| explain_pin(p, pin));
        p.section("negative");
        p.time("not_found", self.mirror.negative_not_found);
        p.time("denied", self.mirror.negative_denied);
        p.section("stale");
        let stale = &self.mirror.stale;
        p.line("not_found", format_time_or_forever(stale.not_found));
        p.time("denied", stale.denied);
        p.line("trouble", format_time_or_forever(stale.trouble));
    }

    fn explain_limits(&self, p: &mut Printer<'_>) {
        p.section("limits");
        p.line("requests", format_rate(self.access.requests));
        p.line("cold_misses", format_rate(self.access.cold_misses));
        p.time("wait", self.access.wait);
        p.number("queue", self.access.queue);
        p.line("priority", texts(&self.access.priority.texts()));
        p.line("fair_share", self.access.fair_share);
        p.line("trusted_proxies", texts(&self.access.trusted_proxies));
        p.number("max_connections", self.http.max_connections);
        p.time("header_timeout", self.http.header_timeout);
        p.time("idle_timeout", self.http.idle_timeout);
        let rates = |Rates { requests, cold_misses }: Rates| {
            let (requests, cold_misses) = (format_rate(requests), format_rate(cold_misses));
            format!("requests = \"{requests}\"\ncold_misses = \"{cold_misses}\"\n")
        };
        for Override { network, rates: of } in &self.access.overrides {
            let source = p.source("network");
            p.out += &format!("\n[[limits.network]] # {source}\ncidr = \"{network}\"\n{}", rates(*of));
        }
        for IdentityLimit { name, rates: of } in &self.access.identities {
            let (source, name) = (p.source("identity"), Value::from(name.to_string()));
            p.out += &format!("\n[[limits.identity]] # {source}\nname = {name}\n{}", rates(*of));
        }
    }
}

fn explain_pin(p: &mut Printer<'_>, pin: &Pinned) {
    p.path = String::new();
    p.out += &format!("\n[[warm]] # {}\n", p.source("warm"));
    let images: Vec<&str> = pin.images.iter().map(|image| image.text.as_str()).collect();
    let platforms = match &pin.platforms {
        Platforms::All => Value::from("all"),
        Platforms::These(platforms) => texts(platforms),
    };
    let every = Value::from(format_time(pin.every));
    p.out += &format!("images = {}\nplatforms = {platforms}\nevery = {every}\n", texts(&images));
}

fn explain_rule(p: &mut Printer<'_>, rule: &Rule) {
    p.path = "hosted".to_owned();
    p.out += &format!("\n[[hosted.retention]] # {}\n", p.source("retention"));
    let patterns: Vec<&str> = rule.repositories.iter().map(RepositoryPattern::as_str).collect();
    let keep_tags: Vec<&str> = rule.keep_tags.iter().map(TagPattern::as_str).collect();
    p.out += &format!("repositories = {}\n", texts(&patterns));
    if let Some(number) = rule.keep_last {
        p.out += &format!("keep_last = {number}\n");
    }
    p.out += &format!("keep_tags = {}\n", texts(&keep_tags));
    for (key, time) in [("keep_for", rule.keep_for), ("untagged_for", rule.untagged_for)] {
        if let Some(time) = time {
            p.out += &format!("{key} = {}\n", Value::from(format_time(time)));
        }
    }
}

fn explain_endpoint(p: &mut Printer<'_>, options: &EndpointOptions) {
    p.path = "events".to_owned();
    p.out += &format!("\n[[events.endpoint]] # {}\n", p.source("endpoint"));
    // In their order, which a table of the library's would not keep.
    let table = |pairs: Vec<(&HeaderName, String)>| {
        let entry = |(name, value): (&HeaderName, String)| {
            format!("{} = {}", quote_key(name.as_str()), Value::String(value))
        };
        format!("{{ {} }}", pairs.into_iter().map(entry).collect::<Vec<_>>().join(", "))
    };
    let shown = options.headers.iter().filter(|(_, value)| !value.is_sensitive());
    let headers = shown.map(|(name, value)| (name, value.to_str().unwrap_or_default().to_owned())).collect();
    let files = options.header_files.iter().map(|(name, file)| (name, file.display().to_string())).collect();
    p.out += &format!("headers = {}\nheader_files = {}\n", table(headers), table(files));
    let mut line = |key, value: Value| p.out += &format!("{key} = {value}\n");
    line("name", options.name.as_str().into());
    line("url", options.url.as_str().into());
    line("timeout", format_time(options.timeout).into());
    line("backoff", format_time(options.backoff).into());
    line("attempts", options.attempts.into());
    line("queue", i64::try_from(options.queue).unwrap_or(i64::MAX).into());
    let actions: Vec<&str> = options.actions.iter().map(|action| action.text()).collect();
    line("actions", texts(&actions));
    line("ignore_media_types", texts(&options.ignore_media_types));
    for (name, _) in options.headers.iter().filter(|(_, value)| value.is_sensitive()) {
        p.unset(name.as_str(), "a secret, not shown; write it into a file and name that in header_files");
    }
}

fn explain_upstream(p: &mut Printer<'_>, options: &upstream::Options, aliases: &[String], hosts: &[&String]) {
    p.section(join("upstream", options.host.as_str()));
    if let Some((preset, _)) = Preset::of(options.host.as_str()) {
        p.unset("preset", preset.remark);
    }
    p.line("url", options.url.as_str());
    p.line("aliases", texts(aliases));
    p.line("hosts", texts(hosts));
    explain_credential(p, options.credential.as_ref(), options.host.as_str());
    p.file("ca_file", options.ca_file.as_ref(), "none: the system's CAs alone");
    explain_proxy(p, &options.proxy);
    p.line(
        "private",
        match options.private {
            PrivatePolicy::Refuse => "refuse",
            PrivatePolicy::Shared => "shared",
            PrivatePolicy::PerCaller(_) => "per-caller",
        },
    );
    match options.private {
        PrivatePolicy::PerCaller(proofs) => {
            p.time("proof_for", proofs.hold);
            p.time("proof_stale_for", proofs.stale);
        }
        PrivatePolicy::Refuse | PrivatePolicy::Shared => {
            p.unset("proof_for", "with `per-caller` alone");
            p.unset("proof_stale_for", "with `per-caller` alone");
        }
    }
    p.line("redirect_hosts", texts(&options.redirect_hosts));
    p.line("realm_hosts", texts(&options.realm_hosts));
    p.time("connect_timeout", options.connect_timeout);
    p.time("header_timeout", options.header_timeout);
    p.time("idle_timeout", options.idle_timeout);
    p.time("deadline", options.deadline);
    p.number("max_requests", options.max_requests);
    p.number("max_fills", options.max_fills);
    p.time("queue_timeout", options.queue_timeout);
    p.number("queue_length", options.queue_length);
    match options.requests_per_minute {
        Some(number) => p.number("requests_per_minute", number.get()),
        None => p.unset("requests_per_minute", "no ceiling"),
    }
    p.line("quota_reserve", format_reserve(options.budget.reserve));
    let (source, table) = (p.source("mirror"), p.path.clone());
    for mirror in &options.mirrors {
        p.out += &format!("\n[[{table}.mirror]] # {source}\n");
        p.out += &format!("url = {}\n", Value::from(mirror.url.as_str()));
        p.path = join(&table, "mirror");
        explain_credential(p, mirror.credential.as_ref(), mirror.url.host_str().unwrap_or_default());
        p.file("ca_file", mirror.ca_file.as_ref(), "none: the system's CAs alone");
        explain_proxy(p, &mirror.proxy);
    }
}

fn explain_proxy(p: &mut Printer<'_>, proxy: &Proxy) {
    match proxy {
        Proxy::Environment => p.unset("proxy", "what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say"),
        Proxy::None => p.line("proxy", "none"),
        Proxy::Url(url) => p.line("proxy", url.as_str()),
    }
}

fn explain_credential(p: &mut Printer<'_>, credential: Option<&Credential>, host: &str) {
    let keys = ["username", "password_file", "token_file", "docker_config", "credential_helper"];
    let mut said = Vec::new();
    match credential {
        None => {}
        Some(Credential::Password { username, password }) => {
            p.line("username", username.as_str());
            match password {
                Password::File(path) => p.line("password_file", path.display().to_string()),
                // Where it is to be written, for whoever takes this for a file.
                Password::Inline(_) => {
                    let file = format!("/etc/forebay/{host}.password");
                    p.out += &format!(
                        "password_file = {} # write the password into it, from {}\n",
                        Value::from(file),
                        p.source("password")
                    );
                }
            }
            said = vec!["username", "password_file"];
        }
        Some(Credential::IdentityToken(Password::File(path))) => {
            p.line("token_file", path.display().to_string());
            said = vec!["token_file"];
        }
        Some(Credential::IdentityToken(Password::Inline(_))) => {}
        Some(Credential::DockerConfig { path: Some(path), inline: None, .. }) => {
            p.line("docker_config", path.display().to_string());
            said = vec!["docker_config"];
        }
        Some(Credential::DockerConfig { .. }) => {
            p.line("docker_config", "env");
            said = vec!["docker_config"];
        }
        Some(Credential::Helper { program }) => {
            p.line("credential_helper", program.display().to_string());
            said = vec!["credential_helper"];
        }
    }
    let nothing = if said.is_empty() { "none: asked anonymously" } else { "none" };
    keys.iter().filter(|key| !said.contains(key)).for_each(|key| p.unset(key, nothing));
}
