//! Memory for bodies on their way: read buffers, used again and again, and what is passed on without being
//! kept. Each gets less when there are many, so that slow readers stay cheap.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::tasks::lock;

/// Sizes that are used again, and up to how many buffers are out when the next is of one: 24 MiB of both. A
/// hot file costs the less the larger the piece (measured: one stream by 1 MiB 0.28 s/GB, by 256 KiB 0.44; eight
/// beside each other 9 % less).
const POOLED: [(usize, usize); 2] = [(1 << 20, 12), (256 << 10, 60)];
const SMALL: usize = 32 * 1024;

#[derive(Default)]
pub struct Buffers {
    out: AtomicUsize,
    /// Of each pooled size.
    spare: [Mutex<Vec<Vec<u8>>>; POOLED.len()],
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

impl Buffers {
    /// A buffer for at most `want` bytes.
    pub fn take(self: &Arc<Self>, want: u64) -> Buffer {
        let out = self.out.fetch_add(1, Ordering::Relaxed);
        let fits = |(size, most): &(usize, usize)| out < *most && want > *size as u64 / 4;
        let bytes = match POOLED.iter().position(fits) {
            Some(pool) => lock(&self.spare[pool]).pop().unwrap_or_else(|| vec![0; POOLED[pool].0]),
            // Small ones are cheap to make; one size of them would be too large for what is wanted.
            None => vec![0; SMALL.min(usize::try_from(want).unwrap_or(SMALL))],
        };
        Buffer { bytes, filled: 0, home: self.clone() }
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
