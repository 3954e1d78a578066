//! Memory for bodies on their way: read buffers, used again and again, and what is passed on without being
//! kept. Each gets less when there are many, so that slow readers stay cheap. Large buffers stay with what
//! was read into them until others want them: who reads the same at about the same time, as a hundred
//! runners do, reads from the disk's cache once and not a hundred times.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::disk::File;
use crate::tasks::lock;

/// Sizes that are used again, and up to how many buffers are out when the next is of one: 27 MiB of both. A
/// hot file costs the less the larger the piece (measured: one stream by 1 MiB 0.28 s/GB, by 256 KiB 0.44; eight
/// beside each other 9 % less).
const POOLED: [(usize, usize); 2] = [(LARGE, 16), (256 << 10, 60)];
const LARGE: usize = 1 << 20;
/// What is shared are pieces of so many bytes, from a multiple of it on.
pub const PIECE: u64 = LARGE as u64;
const SMALL: usize = 32 * 1024;

#[derive(Default)]
pub struct Buffers {
    out: AtomicUsize,
    /// Of each pooled size.
    spare: [Mutex<Vec<Vec<u8>>>; POOLED.len()],
    /// Large ones that are out and may be shared, the one that was used last at the end.
    pieces: Mutex<Vec<Arc<Piece>>>,
    /// Bytes of all [`Passing`].
    passing: AtomicU64,
}

/// Bytes in memory of a blob that is passed on without being kept. They count until this is dropped.
pub struct Passing {
    bytes: AtomicU64,
    home: Arc<Buffers>,
}

/// A buffer on loan.
pub struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    home: Arc<Buffers>,
}

/// What was read of a file. Nobody but the list has one that is idle.
struct Piece {
    file: Arc<dyn File>,
    at: u64,
    bytes: Vec<u8>,
    filled: usize,
    /// Somebody asked for it since the last [`Buffers::rest`].
    is_warm: AtomicBool,
}

/// For one body.
struct Shared(Arc<Piece>);

impl Buffers {
    /// A buffer for at most `want` bytes.
    pub fn take(self: &Arc<Self>, want: u64) -> Buffer {
        if want > LARGE as u64 / 4
            && self.out.load(Ordering::Relaxed) >= POOLED[0].1
            && let Some(buffer) = self.reclaim()
        {
            return buffer;
        }
        let out = self.out.fetch_add(1, Ordering::Relaxed);
        let fits = |(size, most): &(usize, usize)| out < *most && want > *size as u64 / 4;
        let bytes = match POOLED.iter().position(fits) {
            Some(pool) => lock(&self.spare[pool]).pop().unwrap_or_else(|| vec![0; POOLED[pool].0]),
            // Small ones are cheap to make; one size of them would be too large for what is wanted.
            None => vec![0; SMALL.min(usize::try_from(want).unwrap_or(SMALL))],
        };
        Buffer { bytes, filled: 0, home: self.clone() }
    }

    /// That of the idle piece which nobody has used for longest.
    fn reclaim(self: &Arc<Self>) -> Option<Buffer> {
        let mut pieces = lock(&self.pieces);
        let idle = pieces.iter().position(Piece::is_idle)?;
        let piece = pieces.remove(idle);
        drop(pieces);
        let bytes = Arc::into_inner(piece)?.bytes;
        Some(Buffer { bytes, filled: 0, home: self.clone() })
    }

    /// The bytes of a file from `at` on, no further than to `end`, where they were read lately.
    pub fn piece(&self, file: &Arc<dyn File>, at: u64, end: u64) -> Option<Bytes> {
        let mut pieces = lock(&self.pieces);
        let found = pieces.iter().rposition(|piece| piece.has(file, at))?;
        let piece = pieces.remove(found);
        pieces.push(piece.clone());
        drop(pieces);
        Some(piece.from(at, end))
    }

    /// The first `filled` bytes of a buffer, read from a file at `at`: shared with who asks for them next, if
    /// they are many.
    pub fn share(&self, file: &Arc<dyn File>, at: u64, mut buffer: Buffer, filled: usize) -> Bytes {
        if buffer.bytes.len() != LARGE {
            return buffer.into_bytes(filled);
        }
        let (filled, is_warm) = (filled.min(LARGE), AtomicBool::new(true));
        let end = at + filled as u64;
        // Who read the same meanwhile was first.
        if let Some(bytes) = self.piece(file, at, end).filter(|bytes| bytes.len() == filled) {
            return bytes;
        }
        // It stays out with its piece.
        self.out.fetch_add(1, Ordering::Relaxed);
        let bytes = std::mem::take(&mut buffer.bytes);
        let piece = Arc::new(Piece { file: file.clone(), at, bytes, filled, is_warm });
        lock(&self.pieces).push(piece.clone());
        piece.from(at, end)
    }

    /// Forgets the idle pieces of a file, which keep it open.
    pub fn let_go(&self, file: &Arc<dyn File>) {
        self.drop_pieces(|piece| piece.is_of(file));
    }

    /// Gives back what nobody has used since the last time.
    pub fn rest(&self) {
        self.drop_pieces(|piece| !piece.is_warm.swap(false, Ordering::Relaxed));
        for spare in &self.spare {
            lock(spare).clear();
        }
    }

    fn drop_pieces(&self, which: impl Fn(&Piece) -> bool) {
        // To close a file that has no name any more can take long: not under the lock.
        let gone: Vec<_> =
            lock(&self.pieces).extract_if(.., |piece| Piece::is_idle(piece) && which(piece)).collect();
        self.out.fetch_sub(gone.len(), Ordering::Relaxed);
    }
}

impl Piece {
    /// To be asked under the list's lock, for it is there that others take a piece.
    fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    fn is_of(&self, file: &Arc<dyn File>) -> bool {
        Arc::ptr_eq(&self.file, file)
    }

    fn has(&self, file: &Arc<dyn File>, at: u64) -> bool {
        self.is_of(file) && (self.at..self.at + self.filled as u64).contains(&at)
    }

    /// `at`: within it.
    fn from(self: Arc<Self>, at: u64, end: u64) -> Bytes {
        self.is_warm.store(true, Ordering::Relaxed);
        let start = (at - self.at) as usize;
        let length = usize::try_from(end - at).unwrap_or(usize::MAX);
        let length = length.min(self.filled - start);
        Bytes::from_owner(Shared(self)).slice(start..start + length)
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes[..self.0.filled]
    }
}

impl Passing {
    pub fn new(home: Arc<Buffers>) -> Self {
        Self { bytes: AtomicU64::new(0), home }
    }

    /// So many they are now. Gives how many those of all such blobs are.
    pub fn set(&self, bytes: u64) -> u64 {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        let all = self.home.passing.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.home.passing.fetch_sub(before, Ordering::Relaxed);
        all - before
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Buffer {
    pub fn space(&mut self, want: u64) -> &mut [u8] {
        let len = self.bytes.len().min(usize::try_from(want).unwrap_or(usize::MAX));
        &mut self.bytes[..len]
    }

    /// The first `filled` bytes, which give the buffer back when the last of them is dropped.
    pub fn into_bytes(mut self, filled: usize) -> Bytes {
        self.filled = filled.min(self.bytes.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.out.fetch_sub(1, Ordering::Relaxed);
        let pooled = POOLED.iter().zip(&self.home.spare).find(|((size, _), _)| *size == self.bytes.len());
        if let Some(((_, most), spare)) = pooled {
            let mut spare = lock(spare);
            if spare.len() < *most {
                spare.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_few_and_come_back() {
        let buffers = Arc::new(Buffers::default());
        let [(large, larges), (medium, mediums)] = POOLED;
        let mut out: Vec<Buffer> = (0..mediums + 50).map(|_| buffers.take(u64::MAX)).collect();
        let mut sizes = |place: usize| out[place].space(u64::MAX).len();
        assert_eq!([0, larges, mediums].map(&mut sizes), [large, medium, SMALL]);
        assert_eq!(out[0].space(10).len(), 10);
        drop(out);
        let spare = || buffers.spare.each_ref().map(|spare| lock(spare).len());
        assert_eq!(spare(), [larges, mediums - larges]);
        let mut buffer = buffers.take(u64::MAX);
        buffer.space(3).copy_from_slice(b"abc");
        let bytes = buffer.into_bytes(3);
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(buffers.out.load(Ordering::Relaxed), 1);
        drop(bytes);
        assert_eq!(buffers.out.load(Ordering::Relaxed), 0);
        // What is small takes no large one.
        assert_eq!(buffers.take(200 << 10).space(u64::MAX).len(), medium);
        assert_eq!(buffers.take(40 << 10).space(u64::MAX).len(), SMALL);
    }

    fn file() -> Arc<dyn File> {
        let disk = crate::disk::simulated::Simulated::default();
        crate::disk::Disk::create(&disk, std::path::Path::new("/f")).unwrap()
    }

    /// A piece of a file, full of its number.
    fn read(buffers: &Arc<Buffers>, file: &Arc<dyn File>, number: u8) -> Bytes {
        let mut buffer = buffers.take(u64::MAX);
        buffer.space(PIECE).fill(number);
        buffers.share(file, u64::from(number) * PIECE, buffer, LARGE)
    }

    #[test]
    fn what_one_has_read_is_there_for_others() {
        let (buffers, one, other) = (Arc::new(Buffers::default()), file(), file());
        let bytes = read(&buffers, &one, 1);
        let same = buffers.piece(&one, PIECE + 10, u64::MAX).unwrap();
        assert_eq!((same.as_ptr(), same.len()), (bytes[10..].as_ptr(), LARGE - 10), "memory is shared");
        assert_eq!(buffers.piece(&one, PIECE, PIECE + 3).unwrap(), [1; 3][..]);
        assert!(buffers.piece(&one, 2 * PIECE, u64::MAX).is_none());
        assert!(buffers.piece(&other, PIECE, u64::MAX).is_none(), "of another file");
        assert_eq!(
            read(&buffers, &one, 1).as_ptr(),
            bytes.as_ptr(),
            "who comes second takes the first one's"
        );
        assert_eq!(buffers.out.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn pieces_give_way_when_others_need_their_memory() {
        let (buffers, file) = (Arc::new(Buffers::default()), file());
        let most = POOLED[0].1;
        let busy = read(&buffers, &file, 0);
        for number in 1..most as u8 + 3 {
            read(&buffers, &file, number);
            buffers.piece(&file, PIECE, u64::MAX).unwrap();
        }
        let there = |number: u64| buffers.piece(&file, number * PIECE, u64::MAX).is_some();
        let gone: Vec<u64> = (0..most as u64 + 3).filter(|number| !there(*number)).collect();
        assert_eq!(gone, [2, 3, 4], "neither what is being sent nor what was used last");
        assert_eq!(buffers.out.load(Ordering::Relaxed), most);
        let all: Vec<Bytes> =
            (0..40).filter_map(|number| buffers.piece(&file, number * PIECE, u64::MAX)).collect();
        assert_eq!(buffers.take(u64::MAX).space(u64::MAX).len(), POOLED[1].0, "all are being sent");
        drop((all, busy));
        assert_eq!(buffers.take(u64::MAX).space(u64::MAX).len(), LARGE);
    }

    #[test]
    fn idle_pieces_are_let_go_of() {
        let (buffers, one, other) = (Arc::new(Buffers::default()), file(), file());
        let busy = read(&buffers, &one, 0);
        drop((read(&buffers, &one, 1), read(&buffers, &other, 0)));
        buffers.let_go(&one);
        assert!(buffers.piece(&one, PIECE, u64::MAX).is_none() && buffers.piece(&one, 0, u64::MAX).is_some());
        buffers.rest();
        assert!(buffers.piece(&other, 0, u64::MAX).is_some(), "it was used since the last time");
        buffers.rest();
        buffers.rest();
        assert_eq!(buffers.out.load(Ordering::Relaxed), 1);
        drop(busy);
        buffers.rest();
        buffers.rest();
        assert_eq!((Arc::strong_count(&one), buffers.out.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn what_passes_counts_until_it_is_gone() {
        let buffers = Arc::new(Buffers::default());
        let (one, other) = (Passing::new(buffers.clone()), Passing::new(buffers.clone()));
        assert_eq!(one.set(10), 10);
        assert_eq!(other.set(5), 15);
        assert_eq!(one.set(2), 7);
        drop(one);
        assert_eq!(other.set(6), 6);
        drop(other);
        assert_eq!(buffers.passing.load(Ordering::Relaxed), 0);
    }
}
