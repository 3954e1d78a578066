//! Lines that wait to be written, in memory: who says one waits for nobody.
//!
//! A thread is woken by the first line and takes along what comes in a moment behind it. To wake it for each
//! costs more than all else about a line (measured: `cargo bench --bench side_by_side`).

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a line waits for others.
const MOMENT: Duration = Duration::from_millis(10);
/// What is kept of the memory that a burst took.
const KEPT: usize = 512 * 1024;

/// Dropped, it writes out what waits.
pub struct Lines {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    /// There is some, or it is closed.
    changed: Condvar,
    most: usize,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    closed: bool,
}

impl Lines {
    /// At most so many bytes wait. An error: no thread can be had.
    pub fn over(output: impl Write + Send + 'static, most: usize, thread: &str) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new(), most });
        let taken = shared.clone();
        let writer =
            std::thread::Builder::new().name(thread.to_owned()).spawn(move || taken.write_out(output))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Adds a whole line, with its end. False: there is no room for it.
    pub fn add(&self, line: &[u8]) -> bool {
        let mut waiting = self.shared.lock();
        if waiting.bytes.len() + line.len() > self.shared.most {
            return false;
        }
        let is_first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if is_first {
            self.shared.changed.notify_one();
        }
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A line that was begun when its thread ended is at worst cut short.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut output: impl Write) {
        let (mut batch, mut closed) = (Vec::new(), false);
        while !closed {
            let nothing_new = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.closed;
            let waiting = self.changed.wait_while(self.lock(), nothing_new);
            closed = waiting.map_or(true, |waiting| waiting.closed);
            if !closed {
                std::thread::sleep(MOMENT);
            }
            std::mem::swap(&mut batch, &mut self.lock().bytes);
            // In one piece, so that whole lines stay whole beside those of others. A reader that is gone
            // must not let them grow.
            let _ = output.write_all(&batch).and_then(|()| output.flush());
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            // It has no more to say than that it ended.
            let _ = writer.join();
        }
    }
}
