//! Data that no link leads to.

use std::time::Instant;

use super::{CollectError, Pass, Removed, What};
use crate::oci::Digest;
use crate::store::layout;
use crate::store::links::ALGORITHMS;

impl Pass<'_> {
    /// Removes data that no link of any repository leads to, whoever that belongs to.
    pub fn drop_data(&mut self) -> Result<(), CollectError> {
        let (at, linked) = self.linked()?;
        let domains = self.store.proof_domains()?;
        for algorithm in ALGORITHMS {
            let root = layout::content_root(algorithm);
            // What is behind a symbolic link is not ours to remove.
            for shard in self.store.home.list(&root)?.iter().filter(|shard| shard.is_dir) {
                let Some(shard) = shard.name.to_str() else { continue };
                let held = self.store.home.list(&format!("{root}/{shard}"))?;
                for entry in held.iter().filter(|entry| entry.is_dir) {
                    self.check()?;
                    let Some(hex) = entry.name.to_str() else { continue };
                    let Ok(digest) = format!("{}:{hex}", algorithm.as_str()).parse::<Digest>() else {
                        continue;
                    };
                    if !linked.contains(&self.store.leases.keys().of(&digest)) {
                        self.drop_content(at, &digest, &domains)?;
                    }
                }
            }
        }
        self.drop_proofs(&domains)
    }

    /// Removes proofs of data that is not here: a power loss may undo that one was removed.
    fn drop_proofs(&self, domains: &[String]) -> Result<(), CollectError> {
        let home = &self.store.home;
        for (domain, algorithm) in domains.iter().flat_map(|domain| ALGORITHMS.map(|one| (domain, one))) {
            let root = format!("{}/{domain}/{}", layout::PROOFS_DIR, algorithm.as_str());
            for shard in home.list(&root)?.iter().filter(|shard| shard.is_dir) {
                let Some(shard) = shard.name.to_str() else { continue };
                for proof in home.list(&format!("{root}/{shard}"))? {
                    self.check()?;
                    let digest =
                        proof.name.to_str().map(|hex| format!("{}:{hex}", algorithm.as_str()).parse());
                    let Some(Ok(digest)) = digest else { continue };
                    if self.dry_run || home.stat(&layout::data(&digest))?.is_some() {
                        continue;
                    }
                    // Both come with the lock held that keeps this one waiting.
                    let _removing = self.store.leases.remove_data();
                    if home.stat(&layout::data(&digest))?.is_none() {
                        home.remove_unsynced(&layout::proof_in(domain, &digest))?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn drop_content(
        &mut self,
        at: Instant,
        digest: &Digest,
        domains: &[String],
    ) -> Result<(), CollectError> {
        let store = self.store;
        let removing = store.leases.remove_data();
        self.check_mark(at)?;
        if store.leases.is_data_leased(digest) {
            return Ok(());
        }
        let key = layout::data(digest);
        let Some(stat) = store.home.stat(&key)? else { return self.drop_husk(&key) };
        if !stat.is_file {
            return Ok(());
        }
        if !self.dry_run {
            for domain in domains {
                store.home.delete(&layout::proof_in(domain, digest))?;
            }
            store.remove_content(digest)?;
        }
        drop(removing);
        let subject = digest.to_string();
        (self.report)(Removed { repository: None, what: What::Blob, subject, bytes: stat.len });
        Ok(())
    }
}
