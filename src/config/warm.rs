//! `[[warm]]`, `[refresh]` and `[prefetch]`: work that is done before anybody asks for it.

use std::collections::HashSet;
use std::time::Duration;

use crate::http::{Owners, OwnersOptions};
use crate::mirror::{Ahead, Image, Pinned};
use crate::oci::Platforms;

use super::error::ConfigError;
use super::section::Section;
use super::{defaults, units};

/// More than anybody has at all times; each is asked for in its turn.
const IMAGES_MAX: usize = 10_000;
/// A tag that moves faster is not one to keep warm.
const SHORTEST: Duration = Duration::from_secs(10);

/// The tables `[[warm]]`. `port`: of this server, whose own spellings are known too.
pub fn pins(
    root: &mut Section,
    owners: &OwnersOptions,
    port: Option<u16>,
) -> Result<Vec<Pinned>, ConfigError> {
    let (mut pins, mut seen) = (Vec::new(), HashSet::new());
    let tables = root.sections("warm")?;
    // They were checked where they are read.
    let Ok(owners) = Owners::new(owners.clone()) else { return Ok(pins) };
    for mut table in tables {
        let (texts, platforms) = (table.list("images")?, table.list("platforms")?);
        let every = table.read("every", |text| match units::time(text)? {
            time if time < SHORTEST => Err(format!("`{text}` is too short; write `10s` or more")),
            time => Ok(time),
        });
        let missing = table.missing("images", "which? Add `images = [\"nginx:1.27\"]`");
        table.finish()?;
        let Some(texts) = texts else { return Err(missing) };
        if texts.value.is_empty() {
            return Err(texts.error("the list is empty; name images such as `nginx:1.27`"));
        }
        let mut images = Vec::new();
        for found in texts.value {
            let (repository, reference) = found.read(|text| owners.image(text, port))?;
            if !seen.insert((repository.clone(), reference.clone())) {
                return Err(found.error(format!("`{}` is there twice; leave one out", found.value)));
            }
            if seen.len() > IMAGES_MAX {
                return Err(found.error(format!("more than {IMAGES_MAX} images are to be kept warm")));
            }
            images.push(Image { text: found.value, repository, reference });
        }
        let platforms = match platforms {
            None => Platforms::of_this_machine(),
            Some(found) => {
                let texts: Vec<&str> = found.value.iter().map(|found| found.value.as_str()).collect();
                Platforms::parse(&texts).map_err(|error| found.error(format!("{error}, or `all` alone")))?
            }
        };
        pins.push(Pinned { images, platforms, every: every?.unwrap_or(defaults::WARM_EVERY) });
    }
    Ok(pins)
}

pub fn ahead(root: &mut Section) -> Result<Ahead, ConfigError> {
    let mut refresh = root.section("refresh")?;
    let refreshes_per_minute =
        refresh.number("per_minute", 0..=100_000)?.unwrap_or(defaults::REFRESHES_PER_MINUTE);
    refresh.finish()?;
    let mut prefetch = root.section("prefetch")?;
    let prefetch_layers = prefetch.switch("layers")?.unwrap_or(defaults::PREFETCH_LAYERS);
    prefetch.finish()?;
    Ok(Ahead { refreshes_per_minute, prefetch_layers })
}
