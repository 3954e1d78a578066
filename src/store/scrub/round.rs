//! How far a round of the scrub has come, remembered across starts in a file that may be deleted.

use std::time::SystemTime;

use humantime::{format_rfc3339_seconds, parse_rfc3339};
use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::store::{Error, Store, layout};

const RECORD_MAX: usize = 4096;

/// A round, in which each blob is checked once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The last digest that was checked. None: none was yet.
    pub place: Option<Digest>,
    /// When the round under way began, to the second.
    pub begun: Option<SystemTime>,
    /// When the last whole one ended, to the second.
    pub ended: Option<SystemTime>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
}

impl Store {
    /// What is remembered; nothing where it cannot be read.
    pub fn round(&self) -> Round {
        if self.is_round_void() {
            return Round::default();
        }
        let read = self.home.read(layout::SCRUB, RECORD_MAX).ok().flatten();
        let record = read.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let Some(Record { place, begun, ended }) = record else { return Round::default() };
        let time = |text: Option<String>| parse_rfc3339(&text?).ok();
        Round { place: place.and_then(|text| text.parse().ok()), begun: time(begun), ended: time(ended) }
    }

    pub fn keep_round(&self, round: &Round) -> Result<(), Error> {
        let time = |time: Option<SystemTime>| Some(format_rfc3339_seconds(time?).to_string());
        let record = Record {
            place: round.place.map(|digest| digest.to_string()),
            begun: time(round.begun),
            ended: time(round.ended),
        };
        // Texts only: nothing in it can fail to be written.
        self.home.put(layout::SCRUB, &serde_json::to_vec(&record).unwrap_or_default())?;
        self.round_kept();
        Ok(())
    }
}
