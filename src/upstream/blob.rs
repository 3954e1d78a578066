//! Blobs: their size, and their bytes from any offset.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::endpoint::Endpoint;
use super::request::Answer;
use super::round::{First, Turn};
use super::{BlobStream, Cause, Error, Giver, Identity, Upstream};
use crate::metrics::UpstreamCall;
use crate::oci::{Digest, Name};

impl Upstream {
    /// The blob's size, where told.
    pub async fn blob_head(
        &self,
        identity: Identity,
        name: &Name,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let size = async {
            let _place = self.request_gate.enter().await?;
            let mut round = self.round(identity, Some(*digest), First::Mirrors);
            while let Some(turn) = round.next() {
                let size = turn.within(self.size_at(&turn, name, digest)).await;
                if let Some(size) = round.judge(turn, size) {
                    return size;
                }
            }
            Err(round.end())
        };
        size.await.map_err(|cause| self.error("HEAD blob", name, &format!("@{digest}"), cause))
    }

    /// Waits for a place for one download more.
    pub async fn fill_place(&self, name: &Name, digest: &Digest) -> Result<OwnedSemaphorePermit, Error> {
        let entered = self.fill_gate.enter().await;
        entered.map_err(|cause| self.error("GET blob", name, &format!("@{digest}"), cause))
    }

    /// The same at once, for speed alone: a quarter is left to whoever needs one.
    pub fn spare_fill(&self) -> Option<OwnedSemaphorePermit> {
        self.fill_gate.spare()
    }

    /// Waits until somebody waits for a fill's place.
    pub async fn fills_crowded(&self) {
        self.fill_gate.crowded().await;
    }

    async fn size_at(&self, turn: &Turn<'_>, name: &Name, digest: &Digest) -> Result<Option<u64>, Cause> {
        let (path, requests) = (format!("blobs/{digest}"), &turn.endpoint.requests);
        let ask = self.ask(turn, UpstreamCall::BlobHead, Method::HEAD, name, &path, HeaderMap::new())?;
        let answer = requests.send(&ask).await?;
        match answer.status().as_u16() {
            200 => {
                let length = answer.response.headers().get(CONTENT_LENGTH);
                Ok(length.and_then(|v| v.to_str().ok()?.parse().ok()))
            }
            // The upstream has it, for it redirected; the storage signs its URLs for GET only.
            400 | 401 | 403 | 405 if answer.foreign => Ok(None),
            _ => Err(requests.refusal(answer).await),
        }
    }

    /// `start..end` of the blob, not empty; `(0, None)` sends no Range header. Holds `place` until the stream
    /// is dropped. Not verified: that is for whoever puts the parts together, who may have them from several
    /// endpoints, and tells those that gave wrong ones.
    pub async fn blob_get(
        &self,
        identity: Identity,
        name: &Name,
        digest: &Digest,
        place: Arc<OwnedSemaphorePermit>,
        start: u64,
        end: Option<u64>,
    ) -> Result<BlobStream, Error> {
        let operation = "GET blob";
        let error = |cause| self.error(operation, name, &format!("@{digest}"), cause);
        let blob = async {
            let mut round = self.round(identity, Some(*digest), First::Mirrors);
            while let Some(turn) = round.next() {
                let endpoint = turn.endpoint.clone();
                let part = turn.within(self.part_at(&turn, name, digest, start, end)).await;
                match round.judge(turn, part) {
                    Some(Ok((part, response))) => {
                        let reading = endpoint.requests.wire.reading.clone();
                        let stream = reading.stream(response, part.len, place);
                        return Ok((part, watched(stream, endpoint.clone()), Giver(endpoint)));
                    }
                    Some(Err(cause)) => return Err(cause),
                    None => {}
                }
            }
            Err(round.end())
        };
        let (part, stream, giver) = blob.await.map_err(&error)?;
        let broken = error(Cause::NotFound);
        let stream =
            stream.map(move |chunk| chunk.map_err(|cause| Error { cause, ..broken.clone() })).boxed();
        Ok(BlobStream { start: part.start, total: part.total, bounded: part.len.is_some(), stream, giver })
    }

    /// The head of an answer that holds what is asked for.
    async fn part_at(
        &self,
        turn: &Turn<'_>,
        name: &Name,
        digest: &Digest,
        start: u64,
        end: Option<u64>,
    ) -> Result<(Part, Response), Cause> {
        let requests = &turn.endpoint.requests;
        let mut end = end;
        loop {
            let headers = HeaderMap::from_iter(range_header(start, end)?.map(|range| (RANGE, range)));
            let path = format!("blobs/{digest}");
            let mut ask = self.ask(turn, UpstreamCall::BlobGet, Method::GET, name, &path, headers)?;
            // A client may have the first part already.
            ask.patient = start > 0 && !turn.endpoint.is_mirror();
            let Answer { response, .. } = match requests.send(&ask).await? {
                answer if matches!(answer.status().as_u16(), 200 | 206 | 416) => answer,
                answer => return Err(requests.refusal(answer).await),
            };
            let part = match response.status() {
                StatusCode::OK => Part { start: 0, len: None, total: response.content_length() },
                StatusCode::PARTIAL_CONTENT => partial(&response, start, end)?,
                // Some servers know closed ranges only.
                _ => {
                    let told = unsatisfied_size(response.headers());
                    let size = match (end, told) {
                        (Some(_), _) => None,
                        (None, Some(size)) => Some(size),
                        (None, None) => self.size_at(turn, name, digest).await?,
                    };
                    end = Some(size.filter(|size| *size > start).ok_or_else(|| {
                        Cause::Corrupt(format!("the upstream has no byte {start} of it: its blob is shorter"))
                    })?);
                    continue;
                }
            };
            return Ok((part, response));
        }
    }
}

type Chunks = BoxStream<'static, Result<Bytes, Cause>>;

/// The size in the `Content-Range` of a 416: `bytes */<total>`.
fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes")?.trim_start().strip_prefix("*/")?.parse().ok()
}

/// A mirror's bytes: one that breaks off is not the first choice for what follows.
fn watched(stream: Chunks, endpoint: Arc<Endpoint>) -> Chunks {
    if !endpoint.is_mirror() {
        return stream;
    }
    let told = move |chunk: &Result<Bytes, Cause>| {
        if let Err(cause) = chunk {
            endpoint.failed(&format!("a blob: {cause}"));
        }
    };
    stream.inspect(told).boxed()
}

impl PartialEq for Giver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Giver {
    /// What came had another digest: a mirror is not asked for it again for a while.
    pub fn was_wrong(&self, digest: &Digest) {
        self.0.was_wrong(digest);
    }

    pub fn is_mirror(&self) -> bool {
        self.0.is_mirror()
    }
}

/// What part of a blob a response holds.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    /// Where it is checked that so many bytes come.
    len: Option<u64>,
    total: Option<u64>,
}

fn range_header(start: u64, end: Option<u64>) -> Result<Option<HeaderValue>, Cause> {
    let range = match (start, end) {
        (0, None) => return Ok(None),
        (start, None) => format!("bytes={start}-"),
        (start, Some(end)) if start < end => format!("bytes={start}-{}", end - 1),
        _ => return Err(Cause::Trouble("an empty range of a blob was asked for".into())),
    };
    HeaderValue::try_from(range).map(Some).map_err(|e| Cause::Trouble(e.to_string()))
}

fn partial(response: &Response, start: u64, end: Option<u64>) -> Result<Part, Cause> {
    let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let part = header.and_then(parse_content_range);
    part.filter(|part| fits(part, start, end)).ok_or_else(|| {
        let told: String = header.unwrap_or("none").chars().take(60).collect();
        Cause::Corrupt(format!("the answer does not hold the range asked for; its Content-Range: {told}"))
    })
}

/// Begins where asked, ends no later than asked, and (or the tail would be missed) no earlier.
fn fits(part: &Part, start: u64, end: Option<u64>) -> bool {
    let last = part.start + part.len.unwrap_or(0);
    let whole = part.total.is_none_or(|total| last == end.map_or(total, |end| end.min(total)));
    part.start == start && end.is_none_or(|end| last <= end) && whole
}

/// `bytes <first>-<last>/<total or *>` (RFC 9110, section 14.4).
fn parse_content_range(text: &str) -> Option<Part> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    let end = last.checked_add(1).filter(|end| *end > start && total.is_none_or(|total| *end <= total))?;
    Some(Part { start, len: Some(end - start), total })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges_are_read_and_compared() {
        let part = |start, len, total| Part { start, len: Some(len), total };
        assert_eq!(parse_content_range("bytes 2-4/10"), Some(part(2, 3, Some(10))));
        assert_eq!(parse_content_range("bytes 2-4/*"), Some(part(2, 3, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 4-2/10",
            "bytes 2-10/10",
            "items 2-4/10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
        assert!(fits(&part(2, 8, Some(10)), 2, None) && fits(&part(2, 3, Some(10)), 2, Some(5)));
        assert!(fits(&part(2, 8, Some(10)), 2, Some(50)) && fits(&part(2, 1, None), 2, None));
        assert!(!fits(&part(2, 3, Some(10)), 2, None), "the tail is missing");
        assert!(!fits(&part(1, 3, Some(10)), 2, Some(5)) && !fits(&part(2, 4, Some(10)), 2, Some(5)));
    }

    #[test]
    fn ranges_are_asked_for_only_where_one_is_meant() {
        let header = |start, end| range_header(start, end).unwrap().map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(header(0, None), None);
        assert_eq!(header(7, None).unwrap(), "bytes=7-");
        assert_eq!(header(0, Some(5)).unwrap(), "bytes=0-4");
        assert!(range_header(5, Some(5)).is_err());
    }

    proptest! {
        #[test]
        fn no_content_range_panics(text in "(bytes )?[0-9]{0,21}-?[0-9]{0,21}/?[0-9*]{0,21}", start: u64, end: Option<u64>) {
            let _ = parse_content_range(&text).map(|part| fits(&part, start, end));
        }
    }
}
