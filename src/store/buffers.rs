//! Memory for bodies on their way: read buffers, used again and again, and what is passed on without being
//! kept. Each gets less when there are many, so that slow readers stay cheap.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::tasks::lock;

/// Measured best for a hot file; see the serve path's bench.
const LARGE: usize = 256 * 1024;
const SMALL: usize = 32 * 1024;
/// Up to so many large buffers are out at once, and kept for later: 24 MiB.
const LARGE_OUT: usize = 96;

#[derive(Default)]
pub struct Buffers {
    out: AtomicUsize,
    spare: Mutex<Vec<Vec<u8>>>,
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
        let size = if out < LARGE_OUT { LARGE } else { SMALL };
        let bytes = if size == LARGE && want > SMALL as u64 {
            lock(&self.spare).pop().unwrap_or_else(|| vec![0; LARGE])
        } else {
            // Small ones are cheap to make; `want` is below SMALL or capped by it.
            vec![0; SMALL.min(usize::try_from(want).unwrap_or(SMALL))]
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
        if self.bytes.len() == LARGE {
            let mut spare = lock(&self.home.spare);
            if spare.len() < LARGE_OUT {
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
        let mut out: Vec<Buffer> = (0..LARGE_OUT + 50).map(|_| buffers.take(u64::MAX)).collect();
        assert_eq!(out[0].space(u64::MAX).len(), LARGE);
        assert_eq!(out[LARGE_OUT].space(u64::MAX).len(), SMALL);
        assert_eq!(out[0].space(10).len(), 10);
        drop(out);
        assert_eq!(lock(&buffers.spare).len(), LARGE_OUT);
        let mut buffer = buffers.take(u64::MAX);
        buffer.space(3).copy_from_slice(b"abc");
        let bytes = buffer.into_bytes(3);
        assert_eq!(&bytes[..], b"abc");
        assert_eq!(buffers.out.load(Ordering::Relaxed), 1);
        drop(bytes);
        assert_eq!(buffers.out.load(Ordering::Relaxed), 0);
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
