//! Bytes that stand for a piece of a file, for a connection that sends the file's own in their place
//! (sendfile(2)): what is held then reaches a socket without passing through this process.
//!
//! They are addresses in memory that nobody ever writes or reads, so it takes none. Who did read it would find
//! zeros: windows are lent only for connections that look up all that they write. What memory does not have when
//! it is to be sent is fetched from the disk first, aside.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use rustix::io::Errno;

use super::{ReadError, Store};
use crate::disk::{self, File};
use crate::oci::Digest;
use crate::tasks::lock;

/// Less is read rather than sent from the file: that costs as much.
const LEAST: u64 = 32 << 10;
/// What a window shows at most. A connection has one or two.
pub const SIZE: usize = 1 << 20;
/// Pages are no smaller.
const PAGE: usize = 4096;
/// Who finds none free reads instead. There are fewer where a machine or a limit has no room for twice as many
/// addresses: the rest of this process needs some.
const COUNTS: [usize; 3] = [1024, 256, 64];

static WINDOWS: LazyLock<Windows> = LazyLock::new(|| Windows::new(&COUNTS));

struct Windows {
    memory: Vec<u8>,
    lent: Mutex<Lent>,
}

struct Lent {
    free: Vec<usize>,
    pieces: Vec<Option<Piece>>,
}

/// What is to be sent of a file: from `at` on, until `end`.
#[derive(Clone)]
pub(super) struct Piece {
    pub file: Arc<dyn File>,
    pub at: u64,
    pub end: u64,
    /// What is to be checked where it cannot be read.
    pub held: Option<(Arc<Store>, Digest)>,
}

/// A window that is lent, until it is dropped.
struct Loan {
    number: usize,
    len: usize,
}

impl Windows {
    /// As many as there is room for of these.
    fn new(counts: &[usize]) -> Self {
        let has_room = |count: &usize| {
            let mut probe = Vec::<u8>::new();
            let reserved = probe.try_reserve_exact(count.saturating_mul(2 * SIZE));
            // An allocation that nobody looks at may be left out.
            std::hint::black_box(&probe);
            reserved.is_ok()
        };
        let count = counts.iter().copied().find(has_room).unwrap_or(0);
        let lent = Lent { free: (0..count).rev().collect(), pieces: vec![None; count] };
        Self { memory: vec![0; count * SIZE], lent: Mutex::new(lent) }
    }

    /// The number of the window that an address is in, and how far in.
    fn find(&self, address: usize) -> Option<(usize, usize)> {
        let offset = address.checked_sub(self.memory.as_ptr() as usize)?;
        (offset < self.memory.len()).then_some((offset / SIZE, offset % SIZE))
    }
}

/// A window of the beginning of a piece. None: there is none for it.
pub(super) fn lend(piece: Piece) -> Option<Bytes> {
    let len = (piece.end - piece.at).min(SIZE as u64);
    if len < LEAST || piece.file.descriptor().is_none() {
        return None;
    }
    let mut lent = lock(&WINDOWS.lent);
    let number = lent.free.pop()?;
    lent.pieces[number] = Some(piece);
    drop(lent);
    Some(Bytes::from_owner(Loan { number, len: len as usize }))
}

/// Whether these bytes are a window's.
pub fn is_one(bytes: &[u8]) -> bool {
    !bytes.is_empty() && WINDOWS.find(bytes.as_ptr() as usize).is_some()
}

/// What these bytes stand for. None: nothing but themselves.
pub fn view(bytes: &[u8]) -> Option<View> {
    let (number, offset) = WINDOWS.find(bytes.as_ptr() as usize)?;
    let mut piece = lock(&WINDOWS.lent).pieces.get(number)?.clone()?;
    piece.at += offset as u64;
    Some(View { piece, len: bytes.len() })
}

/// A piece of a file, and how much of it is to be sent now.
#[derive(Clone)]
pub struct View {
    piece: Piece,
    len: usize,
}

impl View {
    /// How many of its first bytes are in memory, so that to send them waits for no disk: `count` or none.
    pub fn ready(&self, count: usize) -> io::Result<usize> {
        let count = count.min(self.len);
        let is_ready = |at| self.piece.file.read_ready(&mut [0], at).map(|read| read.is_some());
        let (first, last) = (self.piece.at, self.piece.at + count as u64 - 1);
        // What was read ahead has no gaps, nearly always; a gap costs one wait for the disk.
        let ready = is_ready(last).and_then(|is_last| Ok(is_last && is_ready(first)?));
        self.told(ready).map(|ready| if ready { count } else { 0 })
    }

    /// Waits until the disk has given all of it, and has it begin with what follows. How much that is.
    pub fn fetch(&self) -> io::Result<usize> {
        let Piece { file, at, end, .. } = &self.piece;
        file.will_need(*at, (end - at).min((self.len + SIZE) as u64));
        // A byte of each page: what the kernel makes of the hint above is not known.
        let mut pages = (0..self.len as u64).step_by(PAGE).chain([self.len as u64 - 1]);
        self.told(pages.try_for_each(|page| file.read_at(&mut [0], at + page).map(|_| ())))?;
        Ok(self.len)
    }

    /// Sends it, or the beginning of it, as [`disk::send`] does.
    pub fn send(&self, socket: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        // Nothing else is lent.
        let Some(file) = self.piece.file.descriptor() else { return Err(io::ErrorKind::Unsupported.into()) };
        let sent = match disk::send(file, socket, self.piece.at, count.min(self.len)) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, ReadError::Short)),
            other => other,
        };
        let is_of_socket = |error: &io::Error| {
            error.kind() != io::ErrorKind::UnexpectedEof && Errno::from_io_error(error) != Some(Errno::IO)
        };
        match sent {
            Err(error) if is_of_socket(&error) => Err(error),
            sent => self.told(sent),
        }
    }

    /// For the exchange all of it was given by now, and its access line says so: nobody else says why the
    /// connection is cut.
    fn told<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            let held = self.piece.held.as_ref();
            let digest = held.map(|(_, digest)| tracing::field::display(digest));
            tracing::error!(digest, %error, "a blob on its way to a client cannot be read");
            if let Some((store, digest)) = held {
                store.suspect(digest);
            }
        })
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        let start = self.number * SIZE;
        &WINDOWS.memory[start..start + self.len]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut lent = lock(&WINDOWS.lent);
        let piece = lent.pieces[self.number].take();
        lent.free.push(self.number);
        drop(lent);
        // This may close a file, which can take long where it has no name any more.
        drop(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_their_window() {
        let windows = Windows::new(&[3]);
        let start = windows.memory.as_ptr() as usize;
        assert_eq!(windows.find(start), Some((0, 0)));
        assert_eq!(windows.find(start + SIZE - 1), Some((0, SIZE - 1)));
        assert_eq!(windows.find(start + 2 * SIZE + 7), Some((2, 7)));
        assert_eq!((windows.find(start + 3 * SIZE), windows.find(start - 1)), (None, None));
        assert!(!is_one(b"") && !is_one(b"text"));
        assert_eq!(windows.lent.lock().unwrap().free, [2, 1, 0]);
    }

    #[test]
    fn where_addresses_are_too_few_there_are_fewer_windows_or_none() {
        assert_eq!(Windows::new(&[usize::MAX / SIZE, 2, 1]).memory.len(), 2 * SIZE);
        let windows = Windows::new(&[usize::MAX / SIZE]);
        assert!(windows.memory.is_empty() && windows.lent.lock().unwrap().free.is_empty());
        assert_eq!(windows.find(windows.memory.as_ptr() as usize), None);
    }
}
