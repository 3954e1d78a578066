//! `[gc]` and `[[hosted.retention]]`: what of your own images goes, and when.

use std::time::Duration;

use crate::oci::{RepositoryPattern, TagPattern};
use crate::registry::{CollectOptions, Rule};

use super::error::ConfigError;
use super::section::Section;
use super::{build, defaults, names, units};

/// Without any, a blob could go between two requests of its pusher. Whose lease ends has to push that
/// blob again, so short ones are of use to tests alone.
const SHORTEST_LEASE: Duration = Duration::from_millis(1);
/// A pass reads all links.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(60);

/// The options, and the term of a lease. `hosted` is the table of that name.
pub fn read(mut gc: Section, hosted: &mut Section) -> Result<(CollectOptions, Duration), ConfigError> {
    let mut retention = Vec::new();
    for table in hosted.sections("retention")? {
        retention.push(rule(table)?);
    }
    let interval = gc.read("interval", |text| match text {
        "off" => Ok(None),
        text => at_least(text, SHORTEST_INTERVAL).map(Some).map_err(|error| format!("{error}, or `off`")),
    });
    let untagged = gc.read("untagged", |text| match text {
        "keep" => Ok(None),
        text => units::time(text).map(Some).map_err(|error| format!("{error}, or `keep`")),
    });
    let (interval, untagged) = (interval?.unwrap_or(Some(defaults::GC_INTERVAL)), untagged?.flatten());
    let lease = gc.read("lease", |text| at_least(text, SHORTEST_LEASE))?.unwrap_or(defaults::LEASE);
    gc.finish()?;
    Ok((CollectOptions { interval, untagged, retention }, lease))
}

fn at_least(text: &str, least: Duration) -> Result<Duration, String> {
    match units::time(text)? {
        time if time < least => {
            Err(format!("`{text}` is too short; write `{}` or more", units::format_time(least)))
        }
        time => Ok(time),
    }
}

fn rule(mut table: Section) -> Result<Rule, ConfigError> {
    let Some(patterns) = table.list("repositories")? else {
        return Err(table.missing("repositories", "of which? Add `repositories = [\"corp.internal/ci/**\"]`"));
    };
    if patterns.value.is_empty() {
        return Err(patterns.error("the list is empty; name patterns such as `corp.internal/ci/**`"));
    }
    let mut repositories = Vec::new();
    for found in &patterns.value {
        found.read(|text| names::check_pattern(text))?;
        repositories.push(found.read(|text| RepositoryPattern::parse(text))?);
    }
    let mut keep_tags = Vec::new();
    for found in table.texts("keep_tags")?.unwrap_or_default() {
        found.read(|text| build::check_rule(text))?;
        keep_tags.push(found.read(|text| TagPattern::parse(text))?);
    }
    let rule = Rule {
        repositories,
        keep_last: table.number("keep_last", 1..=1_000_000)?,
        keep_for: table.read("keep_for", units::timeout)?,
        keep_tags,
        untagged_for: table.read("untagged_for", units::time)?,
    };
    table.finish()?;
    Ok(rule)
}
