//! Hashing data again, a shard of the tree at a time: no list is longer than that of one directory.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Damage, Wrong};
use crate::disk::Stat;
use crate::oci::{Algorithm, Digest};
use crate::store::links::ALGORITHMS;
use crate::store::{Error, Store, layout};

/// What is read at a time.
const PIECE: usize = 1 << 20;
/// Before what could not be read is read once more: an error may pass.
const AGAIN: Duration = Duration::from_millis(200);
/// Fewer zeros at the end may well be meant.
const ZERO_TAIL: u64 = 512;
/// So many in a row that cannot be read are no matter of theirs: the disk is failing, and nothing more
/// is put aside.
const UNREADABLE_MAX: usize = 8;

/// A directory of content, that of the digests that begin with two hex digits. Sorted as digests are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    algorithm: Algorithm,
    name: String,
}

/// Who watches data being checked, on a blocking thread.
pub trait Watch {
    /// So many bytes are about to be read; waits until they may be. False: stop.
    fn pace(&mut self, bytes: u64) -> bool;
    /// Data was found right.
    fn sound(&mut self, digest: &Digest, len: u64);
    /// Data was found bad.
    fn bad(&mut self, damage: Damage);
}

/// What came of looking at data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    Sound {
        len: u64,
    },
    /// It was put out of reach, unless it says otherwise.
    Bad(Damage),
    /// There is none, or others have come in its place meanwhile.
    Gone,
    Stopped,
}

enum Verdict {
    Sound { len: u64 },
    Bad(Wrong, Stat),
    Gone,
    Stopped,
}

/// Whether an error speaks of the data, and not of the moment.
fn is_of_data(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let of_data = [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA, Errno::LOOP, Errno::ISDIR];
    error.raw_os_error().is_some_and(|code| of_data.iter().any(|errno| errno.raw_os_error() == code))
}

impl Shard {
    pub fn of(digest: &Digest) -> Self {
        Self { algorithm: digest.algorithm(), name: digest.hex()[..2].to_owned() }
    }

    pub fn dir(&self) -> String {
        format!("{}/{}", layout::content_root(self.algorithm), self.name)
    }

    /// The digest that an entry is named by, where it belongs here.
    pub fn digest(&self, entry: &OsStr) -> Option<Digest> {
        let hex = entry.to_str().filter(|hex| hex.starts_with(&self.name))?;
        format!("{}:{hex}", self.algorithm.as_str()).parse().ok()
    }
}

impl Store {
    /// The shards that are there, sorted: 512 at most.
    pub fn shards(&self) -> Result<Vec<Shard>, Error> {
        let mut shards = Vec::new();
        for algorithm in ALGORITHMS {
            for entry in self.home.list(&layout::content_root(algorithm))? {
                let is_hex = |text: &&str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
                if let Some(name) = entry.name.to_str().filter(is_hex) {
                    shards.push(Shard { algorithm, name: name.to_owned() });
                }
            }
        }
        Ok(shards)
    }

    /// Checks the data of a shard, from the digest behind `after` on. False: it was stopped.
    pub fn check_shard(
        &self,
        shard: &Shard,
        after: Option<&Digest>,
        watch: &mut dyn Watch,
    ) -> Result<bool, Error> {
        let mut unreadable = 0;
        for entry in self.home.list(&shard.dir())? {
            let Some(digest) = shard.digest(&entry.name) else { continue };
            if after.is_some_and(|after| digest <= *after) {
                continue;
            }
            match self.check(&digest, &mut |bytes| watch.pace(bytes))? {
                Checked::Sound { len } => {
                    unreadable = 0;
                    watch.sound(&digest, len);
                }
                Checked::Bad(damage) => {
                    unreadable =
                        if matches!(damage.wrong, Wrong::Unreadable(_)) { unreadable + 1 } else { 0 };
                    watch.bad(damage);
                }
                Checked::Gone => {}
                Checked::Stopped => return Ok(false),
            }
            if unreadable >= UNREADABLE_MAX {
                let source = io::Error::other(format!("{unreadable} blobs in a row cannot be read"));
                let path = self.data_dir().join(shard.dir());
                return Err(Error { operation: "go on in", path, source: Arc::new(source) });
            }
        }
        Ok(true)
    }

    /// Hashes data again and puts it out of reach where it is bad; what was pushed and cannot be read stays
    /// in its place. `pace` is told of each piece, and says whether to go on. Blocks for as long as that takes.
    pub fn check(&self, digest: &Digest, pace: &mut dyn FnMut(u64) -> bool) -> Result<Checked, Error> {
        let mut verdict = self.judge(digest, pace)?;
        if matches!(verdict, Verdict::Bad(Wrong::Unreadable(_), _)) {
            std::thread::sleep(AGAIN);
            verdict = self.judge(digest, pace)?;
        }
        match verdict {
            Verdict::Sound { len } => {
                self.metrics.scrub.blobs.inc();
                self.doubt.vouch(digest);
                Ok(Checked::Sound { len })
            }
            Verdict::Bad(wrong, seen) => match self.quarantine(digest, &wrong, &seen)? {
                Some(damage) => Ok(Checked::Bad(damage)),
                None => Ok(Checked::Gone),
            },
            Verdict::Gone => Ok(Checked::Gone),
            Verdict::Stopped => Ok(Checked::Stopped),
        }
    }

    fn judge(&self, digest: &Digest, pace: &mut dyn FnMut(u64) -> bool) -> Result<Verdict, Error> {
        let key = layout::data(digest);
        let Some(seen) = self.home.stat(&key)? else {
            // A file in place of the directory keeps new data out.
            let dir = self.home.stat(&layout::data_dir(digest))?.filter(|dir| dir.is_file);
            return Ok(dir.map_or(Verdict::Gone, |dir| Verdict::Bad(Wrong::NotAFile, dir)));
        };
        if !seen.is_file {
            return Ok(Verdict::Bad(Wrong::NotAFile, seen));
        }
        let unreadable = |error: &io::Error| Verdict::Bad(Wrong::Unreadable(error.to_string()), seen);
        let file = match self.home.open(&key) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Verdict::Gone),
            Err(error) if is_of_data(&error.source) => return Ok(unreadable(&error.source)),
            Err(error) => return Err(error),
        };
        // What is open is what was seen, unless that was replaced just now.
        if self.home.stat(&key)?.is_none_or(|now| now.id != seen.id) {
            return Ok(Verdict::Gone);
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(seen.len).unwrap_or(PIECE)).max(1)];
        let (mut hasher, mut at, mut zeros) = (digest.algorithm().hasher(), 0, 0);
        loop {
            if !pace((piece.len() as u64).min(seen.len.saturating_sub(at))) {
                return Ok(Verdict::Stopped);
            }
            let count = match file.read_aside(&mut piece, at) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if is_of_data(&error) => return Ok(unreadable(&error)),
                Err(error) => {
                    let path = self.data_dir().join(key);
                    return Err(Error { operation: "read", path, source: Arc::new(error) });
                }
            };
            let read = &piece[..count];
            hasher.update(read);
            let tail = read.iter().rev().take_while(|byte| **byte == 0).count();
            zeros = if tail == count { zeros + tail as u64 } else { tail as u64 };
            at += count as u64;
            self.metrics.scrub.bytes.inc_by(count as u64);
        }
        if hasher.finish() == *digest {
            return Ok(Verdict::Sound { len: at });
        }
        let wrong = match at {
            0 => Wrong::Empty,
            len if zeros >= ZERO_TAIL => Wrong::Zeros { len, zeros },
            len => Wrong::Bytes { len },
        };
        Ok(Verdict::Bad(wrong, seen))
    }
}
