//! Byte ranges of a blob (RFC 9110, section 14).

use std::num::NonZeroU64;

/// A non-empty run of bytes: `start..end`, the end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// One range as a client asked for it, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// `bytes=a-`
    From(u64),
    /// `bytes=a-b`, both inclusive.
    Span(u64, u64),
    /// `bytes=-n`: the last n bytes.
    Suffix(NonZeroU64),
    /// Well formed, and no content can satisfy it: `bytes=-0`.
    Nothing,
}

/// No byte of the content is inside the range: 416.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range lies outside the content, which has {size} bytes")]
pub struct Unsatisfiable {
    pub size: u64,
}

impl RangeRequest {
    /// Reads a `Range` header. `None` where it is to be ignored and the whole content answered:
    /// another unit, several ranges, or no valid range at all (RFC 9110, 14.2).
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, set) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim().split_once('-')?;
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(Self::Span(first, last)),
            // `bytes=500-0` might be ignored as invalid; the conformance suite wants 416 for it.
            (Some(_), Some(_)) => Some(Self::Nothing),
            (Some(first), None) if last.is_empty() => Some(Self::From(first)),
            (None, Some(count)) if first.is_empty() => {
                Some(NonZeroU64::new(count).map_or(Self::Nothing, Self::Suffix))
            }
            _ => None,
        }
    }

    /// The bytes meant, for content of `size` bytes. An end beyond the content is clamped.
    pub fn resolve(self, size: u64) -> Result<ByteRange, Unsatisfiable> {
        let range = match self {
            Self::From(start) => ByteRange { start, end: size },
            Self::Span(start, last) => ByteRange { start, end: last.saturating_add(1).min(size) },
            Self::Suffix(count) => ByteRange { start: size.saturating_sub(count.get()), end: size },
            Self::Nothing => return Err(Unsatisfiable { size }),
        };
        if range.is_empty() { Err(Unsatisfiable { size }) } else { Ok(range) }
    }
}

/// Digits only: `parse` alone would take a sign. A number too large for 64 bits means "beyond".
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, size: u64) -> Option<Result<(u64, u64), Unsatisfiable>> {
        RangeRequest::parse(header).map(|r| r.resolve(size).map(|r| (r.start, r.end)))
    }

    #[test]
    fn ranges_as_the_conformance_suite_asks() {
        let size = 4000;
        assert_eq!(resolve("bytes=500-1499", size), Some(Ok((500, 1500))));
        assert_eq!(resolve("bytes=500-", size), Some(Ok((500, 4000))));
        assert_eq!(resolve("bytes=-500", size), Some(Ok((3500, 4000))));
        assert_eq!(resolve("bytes=2000-5000", size), Some(Ok((2000, 4000))));
        assert_eq!(resolve("bytes=500-0", size), Some(Err(Unsatisfiable { size })));
        assert_eq!(resolve("bytes=5000-10000", size), Some(Err(Unsatisfiable { size })));
        assert_eq!(resolve("bytes=-0", size), Some(Err(Unsatisfiable { size })));
        assert_eq!(resolve("bytes=0-", size), Some(Ok((0, 4000))));
        assert_eq!(resolve("bytes=0-", 0), Some(Err(Unsatisfiable { size: 0 })));
    }

    #[test]
    fn what_is_no_single_byte_range_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "lines=0-1",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "bytes=1",
        ] {
            assert_eq!(RangeRequest::parse(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn a_resolved_range_is_inside_the_content(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..1 << 40) {
            if let Some(Ok(range)) = RangeRequest::parse(&header).map(|r| r.resolve(size)) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn no_header_panics(header in ".{0,60}") {
            let _ = RangeRequest::parse(&header).map(|r| r.resolve(10));
        }
    }
}
