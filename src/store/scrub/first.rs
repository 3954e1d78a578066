//! The first read of a blob after a stop without notice: it ends only once the digest matches.

use std::sync::Arc;

use bytes::Bytes;

use super::Checked;
use crate::oci::{Digest, Hasher};
use crate::store::Store;
use crate::store::reader::{FileReader, ReadError};

/// Reads a blob, and holds back the last piece of it until it is known to be right.
pub struct FirstRead {
    file: FileReader,
    stage: Stage,
}

enum Stage {
    /// The whole, and what was read and not given out yet.
    Whole(Hasher, Option<Bytes>),
    /// A range, which says nothing of the whole: that is checked first.
    Range,
    Checked,
}

impl FirstRead {
    pub fn new(file: FileReader, is_whole: bool) -> Self {
        let stage = match is_whole {
            true => Stage::Whole(file.digest.algorithm().hasher(), None),
            false => Stage::Range,
        };
        Self { file, stage }
    }

    pub async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        match &mut self.stage {
            Stage::Checked => self.file.next().await,
            Stage::Range => match self.check().await {
                Ok(()) => self.file.next().await,
                Err(error) => Some(Err(error)),
            },
            Stage::Whole(..) => self.next_of_whole().await,
        }
    }

    async fn next_of_whole(&mut self) -> Option<Result<Bytes, ReadError>> {
        loop {
            let Stage::Whole(hasher, back) = &mut self.stage else { return None };
            match self.file.next().await {
                Some(Ok(piece)) => {
                    hasher.update(&piece);
                    if let Some(piece) = back.replace(piece) {
                        return Some(Ok(piece));
                    }
                }
                // It may be cut short, or not be readable at all.
                Some(Err(error)) => return Some(Err(self.check().await.err().unwrap_or(error))),
                None => {
                    let (hasher, back) = (hasher.clone(), back.take());
                    if hasher.finish() != self.file.digest {
                        let error = self.check().await.err();
                        return Some(Err(error.unwrap_or(ReadError::Rotten)));
                    }
                    self.file.store.doubt.vouch(&self.file.digest);
                    self.stage = Stage::Checked;
                    return back.map(Ok);
                }
            }
        }
    }

    /// Has the whole blob checked, once for all who read it, and put aside where it is bad.
    async fn check(&mut self) -> Result<(), ReadError> {
        let (store, digest) = (self.file.store.clone(), self.file.digest);
        if !store.doubt.is_of(&digest) {
            self.stage = Stage::Checked;
            return Ok(());
        }
        match self.file.store.doubt.checks.join(digest, || is_sound(store, digest)).await {
            Some(true) => {
                self.stage = Stage::Checked;
                Ok(())
            }
            _ => Err(ReadError::Rotten),
        }
    }
}

impl Store {
    /// Has a blob checked that somebody could not read.
    pub(in crate::store) fn suspect(self: &Arc<Self>, digest: &Digest) {
        if self.is_unreadable(digest) {
            return;
        }
        let (store, digest) = (self.clone(), *digest);
        self.doubt.checks.start(digest, || is_sound(store, digest));
    }
}

async fn is_sound(store: Arc<Store>, digest: Digest) -> bool {
    match store.run(move |store| store.condemn(&digest)).await {
        Ok(checked) => matches!(checked, Checked::Sound { .. }),
        Err(error) => {
            tracing::error!(%digest, %error, "a blob cannot be checked");
            false
        }
    }
}
