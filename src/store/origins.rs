//! Whose each repository is: written beside the tree when it gets its first content, and never
//! derived from what else is on disk.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::directory::{is_common, is_component};
use super::index::{Event, Held};
use super::{Error, Grant, Store, layout};
use crate::oci::{Owner, Repository};

const ORIGIN_MAX: usize = 4096;

/// Who may see a mirrored repository's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Upstream gives it to anybody.
    Public,
    /// Fetched with a credential, under `private = "shared"`.
    Shared,
    /// Fetched with the login of a caller, under `private = "per-caller"`: for those who prove that they
    /// may pull it themselves.
    #[serde(rename = "per-caller")]
    PerCaller,
}

/// The durable record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub owner: Owner,
    pub visibility: Visibility,
}

/// What is known of a repository's origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginState {
    /// Nothing is held.
    Absent,
    /// Something is held, and no record says whose it is. Counts as hosted until adopted.
    Unknown,
    Known(Origin),
}

impl OriginState {
    /// Whether an upstream gave it, and may give it again.
    pub fn is_mirrored(&self) -> bool {
        matches!(self, Self::Known(origin) if origin.owner != Owner::Hosted)
    }

    /// A repository of this origin, for messages: a mirrored one with its registry.
    pub fn shown(&self, stored_name: &str) -> String {
        let owner = match self {
            Self::Known(origin) => Some(&origin.owner),
            Self::Absent | Self::Unknown => None,
        };
        Repository::shown_as(stored_name, owner)
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// An upstream's host, or `hosted`.
    owner: String,
    visibility: Visibility,
}

impl Store {
    pub fn origin(&self, repository: &Repository) -> Result<OriginState, Error> {
        self.stored_origin(&repository.stored_name())
    }

    pub(super) fn stored_origin(&self, stored_name: &str) -> Result<OriginState, Error> {
        if let Some(state) = self.recorded_origin(stored_name)? {
            return Ok(state);
        }
        for part in ["_manifests", "_layers"] {
            if self.home.stat(&format!("{}/{stored_name}/{part}", layout::REPOSITORIES_DIR))?.is_some() {
                // The record goes before the first content, and both may have come just now.
                return Ok(self.recorded_origin(stored_name)?.unwrap_or(OriginState::Unknown));
            }
        }
        Ok(OriginState::Absent)
    }

    fn recorded_origin(&self, stored_name: &str) -> Result<Option<OriginState>, Error> {
        let record = self.home.read(&layout::origin(stored_name), ORIGIN_MAX)?;
        Ok(record.map(|bytes| {
            let read = serde_json::from_slice::<Record>(&bytes).ok().and_then(Origin::from_record);
            read.map_or_else(
                || {
                    tracing::warn!(repository = stored_name, "the record of its origin cannot be read");
                    OriginState::Unknown
                },
                OriginState::Known,
            )
        }))
    }

    /// Records whose the repository is.
    pub fn claim(&self, repository: &Repository, visibility: Visibility) -> Result<(), Error> {
        self.claim_stored(&repository.stored_name(), &Origin { owner: repository.owner.clone(), visibility })
    }

    /// Before a repository's first content, and again when its visibility has changed.
    pub(super) fn ensure_claimed(&self, grant: &Grant) -> Result<(), Error> {
        let stored_name = grant.repository.stored_name();
        let settle = |origin: Origin| {
            // Another thread may have written the record just now. In doubt, it is written anew.
            let settled = self.home.settle(&layout::origin(&stored_name));
            settled.or_else(|_| self.claim_stored(&stored_name, &origin))?;
            self.know_owner(&stored_name, origin.owner);
            Ok(())
        };
        match self.ensure_own(grant)? {
            OriginState::Known(origin) if origin.visibility == grant.visibility => settle(origin),
            // What was begun while anybody could pull it ends after it was made private: it stays so
            // until upstream is seen to give it to anybody again.
            OriginState::Known(origin @ Origin { visibility: Visibility::PerCaller, .. })
                if grant.visibility == Visibility::Public =>
            {
                settle(origin)
            }
            _ => self.claim(&grant.repository, grant.visibility),
        }
    }

    /// The record may be from a process that ended before there was content: then no survey has found it.
    fn know_owner(&self, stored_name: &str, owner: Owner) {
        let known = |held: &Held| held.owner.as_ref() == Some(&owner);
        if !self.index.facts(|facts| facts.repository(stored_name).is_some_and(known)) {
            self.index.record(Event::Owner { repository: stored_name.to_owned(), owner: Some(owner) });
        }
    }

    /// Content of another origin is never added to. That of unknown origin counts as hosted.
    pub(super) fn ensure_own(&self, grant: &Grant) -> Result<OriginState, Error> {
        let state = self.origin(&grant.repository)?;
        let owner = &grant.repository.owner;
        let own = match &state {
            OriginState::Known(origin) => origin.owner == *owner,
            OriginState::Unknown => *owner == Owner::Hosted,
            OriginState::Absent => true,
        };
        if own {
            return Ok(state);
        }
        let source = Arc::new(std::io::Error::other("the repository there belongs to somebody else"));
        let path = self.data_dir().join(layout::repository(&grant.repository));
        Err(Error { operation: "add to", path, source })
    }

    fn claim_stored(&self, stored_name: &str, origin: &Origin) -> Result<(), Error> {
        let record = Record { owner: origin.owner.to_string(), visibility: origin.visibility };
        let text = serde_json::to_vec(&record).unwrap_or_default();
        self.home.put(&layout::origin(stored_name), &text)?;
        self.index
            .record(Event::Owner { repository: stored_name.to_owned(), owner: Some(origin.owner.clone()) });
        Ok(())
    }

    /// Every repository in the tree by its stored name, sorted, with its origin.
    pub fn repositories(&self) -> Result<Vec<(String, OriginState)>, Error> {
        let with_origin = |name: String| self.stored_origin(&name).map(|origin| (name, origin));
        self.stored_names(&["_manifests", "_layers"])?.into_iter().map(with_origin).collect()
    }

    /// The stored names under which one of `parts` stands in the tree, sorted.
    pub(super) fn stored_names(&self, parts: &[&str]) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(prefix) = todo.pop() {
            let (mut is_one, mut odd) = (false, Vec::new());
            let dir = format!("{}/{prefix}", layout::REPOSITORIES_DIR);
            for entry in self.home.list(&dir)?.into_iter().filter(|entry| entry.is_dir) {
                match entry.name.to_str() {
                    Some(name) if name.starts_with('_') => is_one |= parts.contains(&name),
                    Some(name)
                        if is_component(name) && prefix.len() + name.len() < layout::STORED_NAME_MAX =>
                    {
                        todo.push(if prefix.is_empty() {
                            name.to_owned()
                        } else {
                            format!("{prefix}/{name}")
                        });
                    }
                    _ if is_common(&entry.name) => {}
                    _ => odd.push(entry.name),
                }
            }
            self.tell_odd(&dir, &odd);
            if is_one {
                found.push(prefix);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Claims what has no known origin for the owner named by `--adopt`.
    pub(super) fn adopt(&self) -> Result<(), Error> {
        let Some(owner) = &self.options.adopt else { return Ok(()) };
        let origin = Origin { owner: owner.clone(), visibility: Visibility::Public };
        let held = self.repositories()?;
        let unknown: Vec<_> = held.into_iter().filter(|(_, state)| *state == OriginState::Unknown).collect();
        if unknown.is_empty() {
            tracing::info!(%owner, "nothing to adopt: every repository has its record");
        }
        for (name, _) in unknown {
            self.claim_stored(&name, &origin)?;
            tracing::info!(repository = name, %owner, "adopted");
        }
        Ok(())
    }
}

impl Origin {
    fn from_record(record: Record) -> Option<Self> {
        let owner = match record.owner.as_str() {
            "hosted" => Owner::Hosted,
            host => Owner::Upstream(host.parse().ok()?),
        };
        Some(Self { owner, visibility: record.visibility })
    }
}
