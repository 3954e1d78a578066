//! Telling and counting what is found wrong: a fault counts once in however many places it shows, and a
//! loss once while it stands.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::mpsc;

use super::finding::{Done, Fault, Finding, Found, Named};
use super::scrub::{Scrubber, TOLD_MAX};
use crate::metrics::Mended;
use crate::store::{LinkFault, OriginState};
use crate::tasks::lock;

/// Images that are named for one finding.
const IMAGES_MAX: usize = 1000;

impl Scrubber {
    /// Logs, counts and tells what was found, and in which repositories.
    pub(super) async fn told(
        &self,
        concerned: Vec<(String, OriginState)>,
        found: Found,
        done: Done,
        tally: Option<&Tally>,
    ) {
        let images = if done.is_mended() { Vec::new() } else { self.images(concerned, &found).await };
        let finding = Finding { found, images, done };
        log(&finding);
        if let Some(label) = finding.done.label() {
            let count = if matches!(label, Mended::Lost) { self.newly_lost(&finding) } else { 1 };
            self.store.metrics().scrub.mended.cell(label).inc_by(count);
        }
        if let Some(tally) = tally {
            lock(&tally.count).add(finding.found.faults(), finding.done.is_mended());
            // Whoever asked may have left.
            let _ = tally.told.send(finding).await;
        }
    }

    /// The images that need what was found wrong.
    async fn images(&self, concerned: Vec<(String, OriginState)>, found: &Found) -> Vec<String> {
        let digest = match found {
            Found::Data(damage) => damage.digest,
            Found::Link(of, LinkFault::Tag { tag, .. }) => return vec![format!("{of}:{tag}")],
            Found::Link(_, LinkFault::Dangling { name, .. } | LinkFault::Illegible { name, .. }) => *name,
            Found::Link(_, LinkFault::Incomplete { manifest, .. }) => *manifest,
        };
        let named = self.store.run(move |store| {
            let mut named = Vec::new();
            for (name, origin) in concerned {
                let of = origin.shown(&name);
                let images = store.images_with(&name, &digest, IMAGES_MAX.saturating_sub(named.len()));
                named.extend(images.iter().map(|image| image.of(&of)));
            }
            // A repository may link it as two things.
            named.sort();
            named.dedup();
            Ok(named)
        });
        named.await.unwrap_or_default()
    }

    /// How many of the losses that it tells of were not counted yet.
    fn newly_lost(&self, finding: &Finding) -> u64 {
        // What was here until now was not lost before.
        let was_here = matches!(&finding.found, Found::Data(damage) if !damage.stays);
        let (mut losses, mut new) = (lock(&self.losses), 0);
        for fault in finding.found.faults() {
            let is_known = losses.contains_key(&fault);
            new += u64::from(!is_known || was_here);
            if is_known || losses.len() < TOLD_MAX {
                losses.insert(fault, finding.done.clone());
            }
        }
        new
    }

    /// Whether the registry was found to have it no more.
    pub(super) fn is_gone(&self, fault: &LinkFault) -> bool {
        let LinkFault::Dangling { data, .. } = fault else { return false };
        matches!(lock(&self.losses).get(&Fault::Of(*data)), Some(Done::Gone))
    }
}

fn log(finding: &Finding) {
    let (wrong, done, images) = (finding.problem(), finding.done.to_string(), finding.images.len());
    match &finding.found {
        Found::Data(damage) => {
            let (digest, repositories) = (damage.digest, damage.repositories().join(", "));
            match damage.stays {
                true => tracing::error!(%digest, repositories, images, wrong, done, "data cannot be read"),
                false => {
                    tracing::error!(%digest, repositories, images, wrong, done, "data is bad, and was put aside");
                }
            }
        }
        Found::Link(repository, fault) => {
            tracing::warn!(repository, link = %Named(fault), images, wrong, done, "a link is bad");
        }
    }
}

/// What a verification has found so far, and who is told.
pub struct Tally {
    pub count: Mutex<Count>,
    told: mpsc::Sender<Finding>,
}

/// Faults, each counted once in however many places it shows.
#[derive(Default)]
pub struct Count {
    /// Whether each is mended.
    pub faults: HashMap<Fault, bool>,
    pub wrong: u64,
    pub mended: u64,
}

impl Tally {
    pub fn new(told: mpsc::Sender<Finding>) -> Self {
        Self { count: Mutex::default(), told }
    }
}

impl Count {
    /// One that stands in one place stands.
    fn add(&mut self, faults: Vec<Fault>, is_mended: bool) {
        for fault in faults {
            match self.faults.get_mut(&fault) {
                Some(was_mended) => {
                    self.mended -= u64::from(*was_mended && !is_mended);
                    *was_mended &= is_mended;
                }
                None => {
                    self.wrong += 1;
                    self.mended += u64::from(is_mended);
                    if self.faults.len() < TOLD_MAX {
                        self.faults.insert(fault, is_mended);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_fault_counts_once_and_stands_while_it_stands_anywhere() {
        let [one, other] = [&b"one"[..], b"other"].map(|bytes| Fault::Of(Digest::sha256(bytes)));
        let mut count = Count::default();
        let mut add = |faults: &[&Fault], is_mended| {
            count.add(faults.iter().map(|&fault| fault.clone()).collect(), is_mended);
            (count.wrong, count.mended)
        };
        assert_eq!(add(&[&one], true), (1, 1));
        assert_eq!(add(&[&one, &other], false), (2, 0));
        assert_eq!(add(&[&other], true), (2, 0));
        assert_eq!(add(&[&one], false), (2, 0));
    }
}
