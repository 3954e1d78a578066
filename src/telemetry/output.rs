//! Whole lines to standard output, many at a time.

use std::io::{self, Write};

/// Written out when it holds so much, or when no line waits.
const BATCH: usize = 64 * 1024;

/// Gathers lines and hands them on in one piece. Two of these over the same `Stdout` never mix within
/// a line, since each batch is written under its lock.
pub struct Output<W: Write> {
    batch: Vec<u8>,
    inner: W,
}

impl<W: Write> Output<W> {
    pub fn new(inner: W) -> Self {
        Self { batch: Vec::with_capacity(BATCH), inner }
    }
}

impl<W: Write> Write for Output<W> {
    /// `line` is a whole one.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.batch.len() + line.len() > BATCH {
            self.flush()?;
        }
        self.batch.extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.inner.write_all(&self.batch).and_then(|()| self.inner.flush());
        // Also after an error: a reader that is gone must not let the batch grow.
        self.batch.clear();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Pieces(Vec<Vec<u8>>, bool);

    impl Write for Pieces {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            if self.1 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0.push(piece.to_vec());
            Ok(piece.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_whole_lines_are_handed_on() {
        let mut output = Output::new(Pieces::default());
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        for _ in 0..200 {
            output.write_all(&line).unwrap();
        }
        output.flush().unwrap();
        let pieces = output.inner.0;
        assert_eq!(pieces.iter().map(Vec::len).sum::<usize>(), 200_000);
        assert!(pieces.len() > 1 && pieces.len() < 10);
        assert!(pieces.iter().all(|piece| piece.len() <= BATCH && piece.ends_with(b"\n")));
    }

    #[test]
    fn a_broken_pipe_does_not_fill_memory() {
        let mut output = Output::new(Pieces(Vec::new(), true));
        for _ in 0..1000 {
            let _ = output.write_all(&[b'x'; 1000]);
        }
        assert!(output.batch.len() <= BATCH);
    }
}
