//! `[hosted]`: what may be done to your own images.

use std::time::Duration;

use crate::oci::{MANIFEST_CEILING, MANIFEST_MAX, TagPattern};
use crate::registry;

use super::error::ConfigError;
use super::section::Section;
use super::{build, defaults, units};

/// Those keys of the table that are the registry's.
pub fn read(hosted: &mut Section) -> Result<registry::Options, ConfigError> {
    let mut immutable = Vec::new();
    for found in hosted.texts("immutable_tags")?.unwrap_or_default() {
        found.read(|text| build::check_rule(text))?;
        immutable.push(found.read(|text| TagPattern::parse(text))?);
    }
    Ok(registry::Options {
        delete: hosted.switch("delete")?.unwrap_or(defaults::DELETE),
        immutable,
        upload_age: hosted.read("upload_age", age)?.unwrap_or(defaults::UPLOAD_AGE),
        max_uploads: hosted.number("max_uploads", 1..=1_000_000)?.unwrap_or(defaults::MAX_UPLOADS),
        max_manifest: hosted.read("max_manifest", manifest_size)?.unwrap_or(MANIFEST_MAX),
    })
}

fn age(text: &str) -> Result<Duration, String> {
    match units::time(text)? {
        Duration::ZERO => Err(format!("`{text}` leaves no time to upload anything; write it as in `168h`")),
        age => Ok(age),
    }
}

fn manifest_size(text: &str) -> Result<usize, String> {
    let size = usize::try_from(units::size(text)?).unwrap_or(usize::MAX);
    if (MANIFEST_MAX..=MANIFEST_CEILING).contains(&size) {
        return Ok(size);
    }
    let (low, high) = (MANIFEST_MAX, MANIFEST_CEILING >> 20);
    Err(format!(
        "`{text}` is out of bounds: clients send up to {low}B, and more than {high}MiB are never taken"
    ))
}
