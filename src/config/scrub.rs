//! `[scrub]`: how what is held is checked.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::mirror::ScrubOptions;

use super::error::ConfigError;
use super::section::Section;
use super::{defaults, units};

/// Checking without a pause is of use to tests alone.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// The options, and how many bytes of bad data are kept aside.
pub fn read(mut scrub: Section) -> Result<(ScrubOptions, u64), ConfigError> {
    let interval = scrub.read("interval", |text| match text {
        "off" => Ok(None),
        text => match units::time(text) {
            Ok(time) if time < SHORTEST_INTERVAL => {
                Err(format!("`{text}` is too short; write `1s` or more, or `off`"))
            }
            Ok(time) => Ok(Some(time)),
            Err(error) => Err(format!("{error}, or `off`")),
        },
    });
    let rate = scrub.read("rate", |text| {
        let size = units::size(text)?;
        NonZeroU64::new(size)
            .ok_or("nothing would be checked: write it as in `20MiB`, or `interval = \"off\"`".to_owned())
    });
    let options = ScrubOptions {
        interval: interval?.unwrap_or(Some(defaults::SCRUB_INTERVAL)),
        rate: rate?.unwrap_or(defaults::SCRUB_RATE),
    };
    let quarantine = scrub.read("quarantine", |text| match text {
        "off" | "none" | "never" => Err(format!("`{text}` is no size; to keep nothing aside, write `0B`")),
        text => units::size(text),
    });
    let quarantine = quarantine?.unwrap_or(defaults::QUARANTINE);
    scrub.finish()?;
    Ok((options, quarantine))
}
