//! `notifications`, and the parts that have no counterpart.

use super::super::error::ConfigError;
use super::super::tree::{Kind, Node};
use super::super::units::format_time;
use super::reader::{Given, Table};
use super::{Mapping, text_nodes};
use crate::upstream::Secret;

type Result<T> = std::result::Result<T, ConfigError>;

/// All that distribution tells of.
const ACTIONS: [&str; 4] = ["push", "pull", "delete", "mount"];

pub fn notifications(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    let mut endpoints = Vec::new();
    for endpoint in table.tables("endpoints")? {
        endpoints.extend(self::endpoint(mapping, endpoint)?);
    }
    if let Some(first) = endpoints.first() {
        let from: Given<()> =
            Given { key: "notifications.endpoints".into(), place: place_of(first), value: () };
        mapping.put(&["events", "endpoint"], &from, Kind::List(endpoints));
    }
    let mut events = table.table("events")?;
    if let Some(wanted) = events.switch("includereferences")?.filter(|wanted| wanted.value) {
        mapping.warn(&wanted, "ignored: events do not list what a manifest refers to");
    }
    events.finish(&mut mapping.warnings);
    table.finish(&mut mapping.warnings);
    Ok(())
}

fn place_of(node: &Node) -> super::Place {
    match &node.origin {
        super::Origin::Distribution { place, .. } => place.clone(),
        _ => super::Place::Default,
    }
}

/// A table of `[[events.endpoint]]`; None of one that is turned off.
fn endpoint(mapping: &mut Mapping, mut table: Table) -> Result<Option<Node>> {
    if table.switch("disabled")?.is_some_and(|disabled| disabled.value) {
        return Ok(None);
    }
    let whole = table.given();
    let mut one = Mapping::default();
    for key in ["name", "url"] {
        let given = table.required(key)?;
        one.text(&[key], &given, given.value.clone());
    }
    for (name, values) in table.table("headers")?.lists()? {
        let value = values.value.join(", ");
        // Tokens stand in these; the others are no secret.
        let is_secret =
            ["authorization", "proxy-authorization", "cookie"].contains(&&*name.to_ascii_lowercase());
        let kind = if is_secret { Kind::Secret(Secret::new(value)) } else { Kind::Text(value) };
        one.put(&["headers", &name], &values, kind);
    }
    for key in ["timeout", "backoff"] {
        if let Some(time) = table.time(key)?.filter(|time| !time.value.is_zero()) {
            one.text(&[key], &time, format_time(time.value));
        }
    }
    let old = table.texts("ignoredmediatypes")?;
    let mut ignore = table.table("ignore")?;
    if let Some(types) = ignore.texts("mediatypes")?.or(old) {
        one.texts(&["ignore_media_types"], &types, types.value.clone());
    }
    if let Some(ignored) = ignore.texts("actions")? {
        let kept = ACTIONS.iter().filter(|action| !ignored.value.iter().any(|other| other == *action));
        one.put(
            &["actions"],
            &ignored,
            Kind::List(text_nodes(&ignored, kept.map(|kept| (*kept).to_owned()))),
        );
    }
    ignore.finish(&mut mapping.warnings);
    mapping.ignore(&mut table, &["threshold"]);
    table.finish(&mut mapping.warnings);
    Ok(Some(Node { origin: whole.origin(), kind: Kind::Table(one.entries) }))
}

pub fn rest(mapping: &mut Mapping, root: &mut Table) -> Result<()> {
    middleware(mapping, root.table("middleware")?)?;
    validation(mapping, root.table("validation")?)?;
    let mut policy = root.table("policy")?;
    let mut repository = policy.table("repository")?;
    if let Some(classes) = repository.texts("classes")?.filter(|classes| !classes.value.is_empty()) {
        return Err(classes.error("classes of repositories are not kept apart; remove the line"));
    }
    repository.finish(&mut mapping.warnings);
    policy.finish(&mut mapping.warnings);
    let mut health = root.table("health")?;
    for given in health.skip(&["file", "http", "tcp"]) {
        mapping.warn(&given, "ignored: /readyz tells of this server alone");
    }
    mapping.ignore(&mut health, &["storagedriver"]);
    health.finish(&mut mapping.warnings);
    for (part, key) in [("catalog", "maxentries"), ("tags", "maxtags")] {
        let mut table = root.table(part)?;
        mapping.ignore(&mut table, &[key]);
        table.finish(&mut mapping.warnings);
    }
    mapping.ignore(root, &["redis"]);
    Ok(())
}

/// What a middleware does to requests is not known; only those of the storage are known to do no
/// more than send clients elsewhere.
fn middleware(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    for kind in ["registry", "repository", "storage"] {
        for mut entry in table.tables(kind)? {
            let (given, name) = (entry.given(), entry.text("name")?);
            if entry.switch("disabled")?.is_some_and(|disabled| disabled.value) {
                continue;
            }
            let name = name.map_or_else(|| "without a name".to_owned(), |name| format!("`{}`", name.value));
            if kind == "storage" {
                mapping
                    .warn(&given, &format!("the middleware {name} is ignored: blobs are served from here"));
            } else {
                return Err(given.error(format!(
                    "the middleware {name} is not available, and what it would refuse would be let through; remove it \
                     if it is not needed"
                )));
            }
        }
    }
    table.finish(&mut mapping.warnings);
    Ok(())
}

fn validation(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    let is_off = table.switch("disabled")?.is_some_and(|disabled| disabled.value);
    table.skip(&["enabled"]);
    let mut manifests = table.table("manifests")?;
    if !is_off {
        let mut urls = manifests.table("urls")?;
        for key in ["allow", "deny"] {
            if let Some(patterns) = urls.texts(key)?.filter(|patterns| !patterns.value.is_empty()) {
                return Err(patterns.error(
                    "URLs in manifests are not checked, so what this keeps out would be let in; remove the line if it \
                     is not needed",
                ));
            }
        }
        urls.finish(&mut mapping.warnings);
        let mut indexes = manifests.table("indexes")?;
        let platforms = indexes.text("platforms")?;
        if let Some(some) = platforms.filter(|platforms| !platforms.value.eq_ignore_ascii_case("all")) {
            mapping.warn(&some, "ignored: an index is taken only when all that it lists is there");
        }
        indexes.skip(&["platformlist"]);
        indexes.finish(&mut mapping.warnings);
        manifests.finish(&mut mapping.warnings);
        table.finish(&mut mapping.warnings);
    }
    Ok(())
}
