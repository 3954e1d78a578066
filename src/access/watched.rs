//! A file that is read again when it changes. What cannot be used is logged, and the old one stays.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::clock::Clock;
use crate::tasks::lock;

/// Larger is the wrong file.
const FILE_MAX: u64 = 4 << 20;
/// How often the file is looked at, at most, and only while somebody asks for what is in it.
const CHECK_EVERY: Duration = Duration::from_secs(1);

type Parse<T> = fn(&[u8]) -> Result<T, String>;

pub struct Watched<T> {
    /// What the file is, for messages.
    what: &'static str,
    path: PathBuf,
    parse: Parse<T>,
    current: ArcSwap<T>,
    look: Mutex<Look>,
    clock: Clock,
}

/// The last look at the file.
struct Look {
    at: Instant,
    busy: bool,
    stamp: Option<Stamp>,
    /// The last mishap, so that one that lasts is logged once.
    said: Option<String>,
}

/// A look under way. It ends with the request that began it, whose client may leave.
struct Looking<'a>(&'a Mutex<Look>);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        lock(self.0).busy = false;
    }
}

/// What changes with a file's content.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    let nanos = metadata.mtime_nsec().wrapping_mul(31) ^ metadata.ctime_nsec();
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime() ^ (metadata.ctime() << 32), nanos)
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the file for the first time. Blocks.
    pub fn open(what: &'static str, path: &Path, parse: Parse<T>, clock: Clock) -> Result<Self, String> {
        let (stamp, value) = read(what, path, parse)?;
        let look = Look { at: clock.now(), busy: false, stamp: Some(stamp), said: None };
        let current = ArcSwap::from_pointee(value);
        Ok(Self { what, path: path.to_owned(), parse, current, look: Mutex::new(look), clock })
    }

    /// What the file holds now, or held when it could last be used.
    pub async fn current(&self) -> Arc<T> {
        let known = {
            let mut look = lock(&self.look);
            let now = self.clock.now();
            if look.busy || now.duration_since(look.at) < CHECK_EVERY {
                return self.current.load_full();
            }
            (look.busy, look.at) = (true, now);
            look.stamp
        };
        let (what, path, parse) = (self.what, self.path.clone(), self.parse);
        let _looking = Looking(&self.look);
        let looked = tokio::task::spawn_blocking(move || look_again(what, &path, parse, known)).await;
        let mut look = lock(&self.look);
        match looked {
            Ok(Ok(None)) | Err(_) => {}
            Ok(Ok(Some((stamp, value)))) => {
                (look.stamp, look.said) = (Some(stamp), None);
                self.current.store(Arc::new(value));
                tracing::info!(path = %self.path.display(), "{} taken up as it is now", self.what);
            }
            Ok(Err(Unusable { stamp, why })) => {
                look.stamp = stamp;
                if look.said.as_ref() != Some(&why) {
                    tracing::error!("{why}: what it held before stays in use");
                    look.said = Some(why);
                }
            }
        }
        drop(look);
        self.current.load_full()
    }
}

/// What was found, and why it cannot be used.
struct Unusable {
    stamp: Option<Stamp>,
    why: String,
}

/// None: it has not changed.
fn look_again<T>(
    what: &'static str,
    path: &Path,
    parse: Parse<T>,
    known: Option<Stamp>,
) -> Result<Option<(Stamp, T)>, Unusable> {
    let found = std::fs::metadata(path).ok().map(|metadata| stamp(&metadata));
    if found.is_some() && found == known {
        return Ok(None);
    }
    read(what, path, parse).map(Some).map_err(|why| Unusable { stamp: found, why })
}

fn read<T>(what: &str, path: &Path, parse: Parse<T>) -> Result<(Stamp, T), String> {
    let unusable = |why: String| format!("{what} {}: {why}", path.display());
    let unreadable = |error: std::io::Error| {
        unusable(format!("cannot be read: {error}; the server's user must be able to read it"))
    };
    let file = File::open(path).map_err(unreadable)?;
    // Taken before the content: what is written while it is read is then seen the next time.
    let stamp = stamp(&file.metadata().map_err(unreadable)?);
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(unusable("is larger than 4 MiB: is this the right file?".to_owned()));
    }
    Ok((stamp, parse(&bytes).map_err(unusable)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Result<u32, String> {
        String::from_utf8_lossy(bytes).trim().parse().map_err(|_| "no number".to_owned())
    }

    #[tokio::test]
    async fn a_change_is_taken_up_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let clock = Clock::default();
        let open = || Watched::open("number", &path, number, clock.clone());
        assert!(open().err().unwrap().contains("cannot be read"));
        std::fs::write(&path, "x").unwrap();
        assert!(open().err().unwrap().ends_with("no number"));
        std::fs::write(&path, "1").unwrap();
        let watched = open().unwrap();
        std::fs::write(&path, "22").unwrap();
        assert_eq!(*watched.current().await, 1, "not looked at so soon");
        let later = async || {
            clock.advance(CHECK_EVERY);
            *watched.current().await
        };
        assert_eq!(later().await, 22);
        std::fs::write(&path, "broken").unwrap();
        assert_eq!(later().await, 22);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(later().await, 22);
        std::fs::write(&path, "333").unwrap();
        assert_eq!(later().await, 333);
        std::fs::write(&path, vec![b'1'; FILE_MAX as usize + 1]).unwrap();
        assert_eq!(later().await, 333);
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_ends_its_look_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        let clock = Clock::default();
        std::fs::write(&path, "1").unwrap();
        let watched = Watched::open("number", &path, number, clock.clone()).unwrap();
        clock.advance(CHECK_EVERY);
        // Polled once, and given up while the file is looked at.
        let _ = tokio::time::timeout(Duration::ZERO, watched.current()).await;
        std::fs::write(&path, "22").unwrap();
        clock.advance(CHECK_EVERY);
        assert_eq!(*watched.current().await, 22);
    }
}
