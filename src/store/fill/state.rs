//! What a fill has, in one value: readers look, the driver and side extents change it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{FillError, SourceError};
use crate::disk::File;

/// Kept back until the digest is known: the end of the blob.
pub const HELD_BACK: u64 = 16 * 1024;
/// Recent bytes kept in memory for readers that keep up.
const WINDOW: u64 = 1024 * 1024;
/// The same once all is written: the readers that are left may be slow, and many.
const WINDOW_AFTER: u64 = 64 * 1024;
/// Nearer to the head than this, waiting for it is as good as an extent.
pub const DISTANCE: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub enum Phase {
    /// The source has not answered yet.
    Opening,
    Streaming,
    /// All bytes are there and the digest is right.
    Verified,
    Failed(FillError),
}

impl Phase {
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Verified | Self::Failed(_))
    }
}

pub struct State {
    pub phase: Phase,
    pub total: Option<u64>,
    /// Received in order: `0..head`. The window holds the last of it.
    pub head: u64,
    window: VecDeque<(u64, Bytes)>,
    window_bytes: u64,
    /// The head fetches up to here, by the answer that it takes or is about to ask for.
    pub claimed: u64,
    /// Written to the file.
    pub written: Extents,
    /// Side extents under way.
    pub planned: Vec<Range<u64>>,
    /// None where nothing was ever kept on disk.
    pub file: Option<Arc<dyn File>>,
    /// False once the blob is only relayed: what leaves the window is gone.
    pub kept: bool,
    /// The source gives ranges ahead of the rest; until one came to nothing.
    pub ranges: bool,
    /// The source is asked for bounded parts, so that no answer is broken off where an extent begins.
    pub segmented: bool,
    /// Only ranges are fetched, until they come to so many bytes or somebody wants the whole.
    pub partial: Option<u64>,
    /// What ranges came to so far, with those under way.
    pub asked: u64,
    /// How many ranges came to nothing, and the last of them.
    pub failures: u64,
    pub failed: Option<(Range<u64>, SourceError)>,
    /// How many ranges in a row came to next to nothing.
    pub crumbs: u32,
    /// Why no range will be had any more.
    pub refused: Option<SourceError>,
}

/// What lies at the head of a fill.
#[derive(Debug, PartialEq, Eq)]
pub enum AtHead {
    /// Nothing that anybody else fetches.
    Free,
    /// An extent under way.
    Extent,
    /// Bytes that an extent wrote, up to here.
    Written(u64),
}

/// What a reader can do next.
pub enum Step {
    Chunk(Bytes),
    /// Read the file, from the reader's position up to here.
    File(Arc<dyn File>, u64),
    Wait,
    End,
    Failed(FillError),
}

impl State {
    pub fn new(file: Option<Arc<dyn File>>) -> Self {
        Self {
            phase: Phase::Opening,
            total: None,
            head: 0,
            window: VecDeque::new(),
            window_bytes: 0,
            written: Extents::default(),
            claimed: 0,
            planned: Vec::new(),
            kept: file.is_some(),
            file,
            ranges: true,
            segmented: false,
            partial: None,
            asked: 0,
            failures: 0,
            failed: None,
            crumbs: 0,
            refused: None,
        }
    }

    /// Takes the next bytes in order.
    pub fn push(&mut self, chunk: Bytes) {
        let len = chunk.len() as u64;
        self.window.push_back((self.head, chunk));
        self.window_bytes += len;
        self.head += len;
    }

    /// Goes on behind bytes that are in the file already.
    pub fn skip_to(&mut self, offset: u64) {
        self.window.clear();
        self.window_bytes = 0;
        self.head = offset;
    }

    /// Start of what is in memory.
    pub fn base(&self) -> u64 {
        self.window.front().map_or(self.head, |(start, _)| *start)
    }

    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// Drops from memory what readers can have from the file, beyond a window's worth; or, where
    /// nothing is kept, what all readers have passed.
    pub fn trim(&mut self, slowest: Option<u64>) {
        let most = if matches!(self.phase, Phase::Verified) { WINDOW_AFTER } else { WINDOW };
        while let Some((start, chunk)) = self.window.front() {
            let end = start + chunk.len() as u64;
            let droppable = if self.kept {
                self.window_bytes > most && self.written.covers(*start..end)
            } else {
                slowest.is_none_or(|slowest| slowest >= end)
            };
            if !droppable {
                break;
            }
            self.window_bytes -= chunk.len() as u64;
            self.window.pop_front();
        }
    }

    /// Whether a reader that begins at `offset` will get all from there on.
    pub fn reaches(&self, offset: u64) -> bool {
        if matches!(self.phase, Phase::Failed(FillError::Abandoned | FillError::Ended)) {
            return false;
        }
        self.kept || offset >= self.base() || self.written.covers(offset..self.base())
    }

    /// The end of what may be handed out now.
    fn open_until(&self) -> u64 {
        match (&self.phase, self.total) {
            (Phase::Verified, _) => self.head,
            // There will be no digest to wait for.
            (_, Some(total)) if self.partial.is_some() => total,
            (_, Some(total)) => total.saturating_sub(HELD_BACK),
            (_, None) => self.head.saturating_sub(HELD_BACK),
        }
    }

    pub fn step(&self, at: u64, end: Option<u64>) -> Step {
        if let Phase::Failed(error) = &self.phase {
            return Step::Failed(error.clone());
        }
        let end = match (end.or(self.total), &self.phase) {
            (Some(end), _) => end,
            (None, Phase::Verified) => self.head,
            (None, _) => u64::MAX,
        };
        if at >= end {
            return Step::End;
        }
        let until = end.min(self.open_until());
        if at >= until {
            return Step::Wait;
        }
        if let Some(chunk) = self.chunk(at, until) {
            return Step::Chunk(chunk);
        }
        match (&self.file, self.written.end_of(at)) {
            (Some(file), Some(written)) => Step::File(file.clone(), until.min(written)),
            _ => Step::Wait,
        }
    }

    fn chunk(&self, at: u64, until: u64) -> Option<Bytes> {
        let index = self.window.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, chunk) = self.window.get(index)?;
        // A chunk is in memory: its length and offsets into it fit.
        let from = (at - start) as usize;
        let to = chunk.len().min((until - start) as usize);
        (from < to).then(|| chunk.slice(from..to))
    }

    /// Where the next side extent behind `at` begins, under way or done.
    pub fn next_extent(&self, at: u64) -> Option<u64> {
        let planned = self.planned.iter().map(|planned| planned.start).filter(|start| *start > at);
        planned.chain(self.written.next_start(at)).min()
    }

    /// Where the head is to stop that takes from `at` on. What is not kept comes in order, whatever came
    /// ahead.
    pub fn stop(&self, at: u64) -> Option<u64> {
        self.next_extent(at).filter(|_| self.kept)
    }

    /// Has the head take what follows it, up to the next extent, or to the end of a part `segment` long
    /// where it takes bounded ones. Gives the end of what the source is to be asked for.
    pub fn claim(&mut self, segment: u64) -> Option<u64> {
        let segment = (self.segmented && self.ranges && self.kept).then(|| self.head.saturating_add(segment));
        let bound = self.stop(self.head).into_iter().chain(segment).min();
        let bound = bound.filter(|bound| self.total.is_none_or(|total| *bound < total));
        self.claimed = bound.unwrap_or(u64::MAX);
        bound
    }

    /// The first byte from `at` on that nobody fetches and that the head is not about to reach.
    pub fn unfetched(&self, mut at: u64) -> Option<u64> {
        loop {
            let planned = self.planned.iter().find(|planned| planned.contains(&at));
            let fetched = self.written.end_of(at).or(planned.map(|planned| planned.end));
            match fetched {
                Some(end) => at = end,
                None if self.partial.is_some() => return Some(at),
                None if at < self.head => at = self.head,
                // An answer without end is left wherever an extent begins.
                None if !self.segmented || self.claimed == u64::MAX => {
                    return (at >= self.head.saturating_add(DISTANCE)).then_some(at);
                }
                // A short one ends soon, and what follows it is not the head's yet.
                None if at < self.claimed => at = self.claimed,
                None => return Some(at),
            }
        }
    }

    pub fn at_head(&self) -> AtHead {
        if !self.kept {
            return AtHead::Free;
        }
        if self.planned.iter().any(|planned| planned.contains(&self.head)) {
            return AtHead::Extent;
        }
        self.written.end_of(self.head).map_or(AtHead::Free, AtHead::Written)
    }

    /// Whether the source sends all that is left, and is asked for nothing more if it does not break off.
    pub fn is_all_on_its_way(&self) -> bool {
        let is_sent = matches!(self.phase, Phase::Streaming) && !self.segmented && self.partial.is_none();
        is_sent || matches!(self.phase, Phase::Verified)
    }

    /// Whether what comes ahead of the head is of use.
    pub fn takes_extents(&self) -> bool {
        matches!(self.phase, Phase::Streaming) && self.kept
    }

    /// Has an extent be under way. From then on the head takes bounded parts too, so that one answer at
    /// most is broken off, and not one for each extent.
    pub fn plan(&mut self, range: Range<u64>) {
        self.segmented |= self.partial.is_none();
        self.asked += range.end - range.start;
        self.planned.push(range);
    }

    /// Whether ranges have come to more than little.
    pub fn is_much(&self) -> bool {
        self.partial.is_some_and(|most| self.asked > most)
    }
}

/// A set of bytes, as sorted runs that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Range<u64>>);

impl Extents {
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|run| run.end < range.start);
        let last = self.0.partition_point(|run| run.start <= range.end);
        let merged = match self.0.get(first..last) {
            Some([one, .., other]) => one.start.min(range.start)..other.end.max(range.end),
            Some([one]) => one.start.min(range.start)..one.end.max(range.end),
            _ => range,
        };
        self.0.splice(first..last, [merged]);
    }

    /// End of the run that holds `at`.
    pub fn end_of(&self, at: u64) -> Option<u64> {
        let index = self.0.partition_point(|run| run.start <= at).checked_sub(1)?;
        self.0.get(index).map(|run| run.end).filter(|end| *end > at)
    }

    pub fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.end_of(range.start).is_some_and(|end| end >= range.end)
    }

    /// Forgets the shortest runs, until so many are left or none is shorter than `long`.
    pub fn forget_short(&mut self, runs: usize, long: u64) {
        let length = |run: &Range<u64>| run.end - run.start;
        let mut short: Vec<u64> = self.0.iter().map(length).filter(|length| *length < long).collect();
        short.sort_unstable();
        let mut surplus = self.0.len().saturating_sub(runs).min(short.len());
        let Some(longest) = surplus.checked_sub(1).and_then(|last| short.get(last)).copied() else { return };
        self.0.retain(|run| {
            let goes = surplus > 0 && length(run) <= longest;
            surplus -= usize::from(goes);
            !goes
        });
    }

    fn next_start(&self, at: u64) -> Option<u64> {
        self.0.get(self.0.partition_point(|run| run.start <= at)).map(|run| run.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extents_are_the_set_of_their_bytes(ranges in prop::collection::vec((0u64..60, 0u64..20), 0..20)) {
            let mut extents = Extents::default();
            let mut bytes = [false; 80];
            for (start, len) in ranges {
                extents.insert(start..start + len);
                bytes[start as usize..(start + len) as usize].fill(true);
            }
            for at in 0..80 {
                let run = bytes[at..].iter().take_while(|b| **b).count() as u64;
                prop_assert_eq!(extents.end_of(at as u64), (run > 0).then_some(at as u64 + run));
                let next = (at + 1..80).find(|i| bytes[*i] && !bytes[i - 1]).map(|i| i as u64);
                prop_assert_eq!(extents.next_start(at as u64), next);
            }
            prop_assert!(extents.0.windows(2).all(|w| w[0].end < w[1].start));
        }

        #[test]
        fn the_window_gives_the_bytes_that_went_in(sizes in prop::collection::vec(1usize..5000, 1..60), at in 0u64..100_000) {
            let mut state = State::new(None);
            let mut all = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let chunk = vec![i as u8; *size];
                all.extend_from_slice(&chunk);
                state.push(chunk.into());
            }
            state.phase = Phase::Verified;
            match state.step(at, None) {
                Step::Chunk(bytes) => prop_assert_eq!(&bytes[..], &all[at as usize..at as usize + bytes.len()]),
                Step::End => prop_assert!(at >= all.len() as u64),
                _ => prop_assert!(false, "all is in memory"),
            }
        }
    }

    #[test]
    fn the_shortest_runs_are_forgotten_first_and_long_ones_never() {
        let of = |runs: &[Range<u64>], kept, long| {
            let mut extents = Extents::default();
            runs.iter().for_each(|run| extents.insert(run.clone()));
            extents.forget_short(kept, long);
            extents.0
        };
        let (equal, mixed) = ([0..1, 5..6, 9..10], [0..1, 5..8, 9..11, 20..30]);
        assert_eq!(of(&equal, 2, 10), equal[1..]);
        assert_eq!(of(&equal, 3, 10), equal);
        assert_eq!(of(&equal, 0, 1), equal);
        assert_eq!(of(&mixed, 2, 10), [5..8, 20..30]);
        assert_eq!(of(&mixed, 0, 3), [5..8, 20..30]);
        assert_eq!(of(&mixed, 0, u64::MAX), []);
    }

    #[test]
    fn the_end_is_held_back_until_the_digest_is_known() {
        let mut state = State::new(None);
        state.phase = Phase::Streaming;
        state.total = Some(20_000);
        state.push(vec![7; 20_000].into());
        let Step::Chunk(first) = state.step(0, None) else { panic!("the beginning is open") };
        assert_eq!(first.len() as u64, 20_000 - HELD_BACK);
        assert!(matches!(state.step(first.len() as u64, None), Step::Wait));
        state.phase = Phase::Failed(FillError::Ended);
        assert!(matches!(state.step(first.len() as u64, None), Step::Failed(_)));
        state.phase = Phase::Verified;
        assert!(matches!(state.step(first.len() as u64, None), Step::Chunk(_)));
        assert!(matches!(state.step(20_000, None), Step::End));
    }
}
