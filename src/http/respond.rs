//! Heads of answers: manifests, blobs, lists.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde_json::json;

use super::body::Payload;
use super::route::Page;
use crate::answer::{BlobAnswer, BlobWant, ManifestAnswer, Referrer, ReferrersAnswer, Served, TagsAnswer};
use crate::metrics::Outcome;
use crate::oci::{Digest, DigestText, MediaType, RangeRequest, UploadId};
use crate::registry::Pushed;
use crate::upstream::{CACHE_STATUS, STALE, STALE_BECAUSE};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const STANDALONE: HeaderName = HeaderName::from_static("x-docker-registry-standalone");

/// What an answer's head has of them: so there is one allocation and not one for every few.
const HEADERS: usize = 12;

/// Bytes of one page of referrers, roughly: clients read as much as of a manifest, 4 MiB.
const REFERRERS_BYTES: usize = 3 << 20;

/// Longest reason in a `Warning`; the specification allows 4096 bytes of them.
const REASON_MAX: usize = 200;

/// For text of visible ASCII, such as digests, hosts and numbers; anything else is dropped.
pub fn header_value(text: impl Into<Bytes>) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.into()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The `{}` of `/v2/`.
pub fn base() -> Response<Payload> {
    json_body("{}".to_owned())
}

pub fn redirect(location: String) -> Response<Payload> {
    let mut response = Response::new(Payload::EMPTY);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(header::LOCATION, header_value(location));
    response
}

/// Says that `?ns=` was heeded.
pub fn with_namespace(mut response: Response<Payload>, namespace: Option<String>) -> Response<Payload> {
    if let Some(namespace) = namespace {
        response.headers_mut().insert(NAMESPACE, header_value(namespace));
    }
    response
}

/// A manifest, or 304 where the client holds it already. What the client accepts is not asked: what
/// a digest names cannot be converted, and every client takes the types that it can read.
pub fn manifest(answer: ManifestAnswer, request: &HeaderMap) -> Response<Payload> {
    let fetched = answer.bytes.is_some();
    let mut response = Response::new(match answer.bytes {
        Some(bytes) => Payload::Full(bytes),
        None => Payload::Absent(Some(answer.size)),
    });
    let headers = response.headers_mut();
    headers.reserve(HEADERS);
    headers.insert(header::CONTENT_TYPE, header_value(answer.media_type.as_str().to_owned()));
    served(headers, &answer.served, fetched);
    named_by(headers, &answer.digest);
    if is_held(request, &answer.digest) { not_modified(response) } else { response }
}

/// A blob, a part of it, or 304 where the client holds it already.
pub fn blob(answer: BlobAnswer, digest: &Digest, request: &HeaderMap) -> Response<Payload> {
    let length = answer.range.map_or(answer.size, |range| Some(range.len()));
    let fetched = answer.body.is_some();
    let mut response = Response::new(match answer.body {
        Some(reader) => Payload::blob(reader, length),
        None => Payload::Absent(length),
    });
    if answer.range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.reserve(HEADERS);
    if let Some(range) = answer.range {
        let size = answer.size.map_or_else(|| "*".to_owned(), |size| size.to_string());
        let part = format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1));
        headers.insert(header::CONTENT_RANGE, header_value(part));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000"));
    served(headers, &answer.served, fetched);
    named_by(headers, digest);
    if is_held(request, digest) { not_modified(response) } else { response }
}

/// What of a blob a request wants. A client that holds the blob gets by with its head.
pub fn blob_want(head: bool, request: &HeaderMap, digest: &Digest) -> BlobWant {
    if head || is_held(request, digest) {
        return BlobWant::Head;
    }
    let etag = format!("\"{digest}\"");
    // A range that is conditional on another content is to be ignored (RFC 9110, 13.1.5).
    let same = request.get(header::IF_RANGE).is_none_or(|known| known.as_bytes() == etag.as_bytes());
    let range = request.get(header::RANGE).and_then(|range| range.to_str().ok());
    match range.and_then(RangeRequest::parse) {
        Some(range) if same => BlobWant::Range(range),
        _ => BlobWant::Whole,
    }
}

/// A page of tags. `path` is the request's own, for the link to the next page.
pub fn tags(
    answer: &TagsAnswer,
    name: &str,
    page: &Page,
    path: &str,
    namespace: Option<&str>,
) -> Response<Payload> {
    let after = page.last.as_deref().unwrap_or_default();
    let start = answer.tags.partition_point(|tag| tag.as_str() <= after);
    let rest = &answer.tags[start..];
    let shown = &rest[..page.count.min(rest.len())];
    let names: Vec<&str> = shown.iter().map(|tag| tag.as_str()).collect();
    let mut response = json_body(json!({"name": name, "tags": names}).to_string());
    if let Some(last) = names.last().filter(|_| shown.len() < rest.len()) {
        next_page(response.headers_mut(), path, page.count, last, namespace, None);
    }
    served(response.headers_mut(), &answer.served, false);
    response
}

/// A page of repositories.
pub fn catalog(names: &[String], more: bool, page: &Page, path: &str) -> Response<Payload> {
    let mut response = json_body(json!({"repositories": names}).to_string());
    if let Some(last) = names.last().filter(|_| more) {
        next_page(response.headers_mut(), path, page.count, last, None, None);
    }
    response
}

/// A page of what refers to a manifest, as an index, filtered where that was asked for.
pub fn referrers(
    answer: &ReferrersAnswer,
    artifact_type: Option<&str>,
    page: &Page,
    path: &str,
    namespace: Option<&str>,
) -> Response<Payload> {
    let after = page.last.as_deref().unwrap_or_default();
    let wanted = |entry: &&Referrer| {
        entry.digest.as_str() > after
            && artifact_type.is_none_or(|kind| entry.artifact_type.as_deref() == Some(kind))
    };
    let mut rest: Vec<&Referrer> = answer.referrers.iter().filter(wanted).collect();
    rest.sort_by(|one, other| one.digest.cmp(&other.digest));
    let (mut shown, mut bytes, mut last) = (Vec::new(), 0, None);
    for entry in rest.iter().take(page.count) {
        let entry_json = json!(entry);
        bytes += entry_json.to_string().len();
        if bytes > REFERRERS_BYTES && !shown.is_empty() {
            break;
        }
        shown.push(entry_json);
        last = Some(entry.digest.as_str());
    }
    let more = shown.len() < rest.len();
    let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": shown});
    let mut response = json_body(index.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MediaType::OCI_INDEX));
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = last.filter(|_| more) {
        next_page(headers, path, page.count, last, namespace, artifact_type);
    }
    served(headers, &answer.served, false);
    response
}

/// The answer to who asks whether there is a search.
pub fn search_ping() -> Response<Payload> {
    let mut response = json_body(json!({"standalone": true}).to_string());
    response.headers_mut().insert(STANDALONE, HeaderValue::from_static("true"));
    response
}

/// What was found: names and descriptions.
pub fn search(term: &str, found: &[(String, String)]) -> Response<Payload> {
    let results: Vec<_> = found
        .iter()
        .map(|(name, description)| {
            json!({
                "name": name, "description": description, "star_count": 0, "is_official": false,
                "is_automated": false,
            })
        })
        .collect();
    json_body(json!({"query": term, "num_results": results.len(), "results": results}).to_string())
}

fn empty(status: StatusCode, body: Payload) -> Response<Payload> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// `0-<last byte>` of an upload; `0-0` where there is none yet, too.
pub fn received_range(received: u64) -> HeaderValue {
    header_value(format!("0-{}", received.saturating_sub(1)))
}

fn of_upload(
    mut response: Response<Payload>,
    location: String,
    id: UploadId,
    received: u64,
) -> Response<Payload> {
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, header_value(location));
    headers.insert(header::RANGE, received_range(received));
    headers.insert(UPLOAD_UUID, header_value(id.to_string()));
    response
}

/// An upload goes on at `location`.
pub fn upload(location: String, id: UploadId, received: u64) -> Response<Payload> {
    of_upload(empty(StatusCode::ACCEPTED, Payload::EMPTY), location, id, received)
}

pub fn upload_status(location: String, id: UploadId, received: u64) -> Response<Payload> {
    of_upload(no_content(), location, id, received)
}

pub fn no_content() -> Response<Payload> {
    empty(StatusCode::NO_CONTENT, Payload::Absent(None))
}

/// It will be, and is, gone.
pub fn accepted() -> Response<Payload> {
    empty(StatusCode::ACCEPTED, Payload::EMPTY)
}

/// What was sent is kept, and found at `location`.
pub fn created(location: String, digest: &Digest) -> Response<Payload> {
    let mut response = empty(StatusCode::CREATED, Payload::EMPTY);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, header_value(location));
    named_by(headers, digest);
    response
}

/// A manifest is kept. Each of its tags is confirmed; a subject, so that clients keep no list of
/// referrers themselves.
pub fn manifest_created(location: String, pushed: &Pushed) -> Response<Payload> {
    let mut response = created(location, &pushed.digest);
    let headers = response.headers_mut();
    if let Some(subject) = &pushed.subject {
        headers.insert(OCI_SUBJECT, header_value(subject.to_string()));
    }
    for tag in &pushed.tags {
        headers.append(OCI_TAG, header_value(tag.to_string()));
    }
    response
}

/// How the metrics count an answer.
pub fn outcome(served: &Served) -> Outcome {
    match served {
        Served::Hit | Served::Revalidated => Outcome::Hit,
        Served::Stale(_) => Outcome::Stale,
        Served::Miss | Served::Joined | Served::Range => Outcome::Miss,
    }
}

fn json_body(body: String) -> Response<Payload> {
    let mut response = Response::new(Payload::Full(Bytes::from(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn named_by(headers: &mut HeaderMap, digest: &Digest) {
    let mut room = DigestText::default();
    let text = digest.text(&mut room);
    let mut quoted = Vec::with_capacity(text.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(text.as_bytes());
    quoted.push(b'"');
    let quoted = Bytes::from(quoted);
    headers.insert(CONTENT_DIGEST, header_value(quoted.slice(1..quoted.len() - 1)));
    headers.insert(header::ETAG, header_value(quoted));
}

/// Whether `If-None-Match` names the content (RFC 9110, 13.1.2).
fn is_held(request: &HeaderMap, digest: &Digest) -> bool {
    if !request.contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    let digest = digest.to_string();
    let names = |tag: &str| {
        let tag = tag.trim();
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag.trim_matches('"') == digest
    };
    let lines = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(names)
}

fn not_modified(mut response: Response<Payload>) -> Response<Payload> {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = Payload::Absent(None);
    response.headers_mut().remove(header::CONTENT_RANGE);
    response
}

/// `Cache-Status` (RFC 9211), and a warning where the content may be outdated. Of heads and lists
/// nothing is stored, so a miss says so of fetched content only.
fn served(headers: &mut HeaderMap, served: &Served, fetched: bool) {
    let status = match served {
        Served::Hit => "forebay; hit",
        Served::Revalidated => "forebay; hit; detail=revalidated",
        Served::Stale(_) => STALE,
        Served::Miss if fetched => "forebay; fwd=uri-miss; stored",
        Served::Miss => "forebay; fwd=uri-miss",
        Served::Joined => "forebay; fwd=uri-miss; collapsed",
        Served::Range => "forebay; fwd=uri-miss; detail=range",
    };
    headers.insert(CACHE_STATUS, HeaderValue::from_static(status));
    if let Served::Stale(reason) = served {
        let safe = |c: char| match c {
            '"' | '\\' => '\'',
            ' '..='~' => c,
            _ => ' ',
        };
        let reason: String = reason.chars().map(safe).take(REASON_MAX).collect();
        headers.insert(header::WARNING, header_value(format!("{STALE_BECAUSE}{reason}\"")));
    }
}

fn next_page(
    headers: &mut HeaderMap,
    path: &str,
    count: usize,
    last: &str,
    namespace: Option<&str>,
    artifact_type: Option<&str>,
) {
    let mut link = format!("<{path}?n={count}&last={last}");
    let further = [("ns", namespace), ("artifactType", artifact_type)];
    for (key, value) in further.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        let value: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
        // Writing to a String does not fail.
        let _ = write!(link, "&{key}={value}");
    }
    link.push_str(">; rel=\"next\"");
    headers.insert(header::LINK, header_value(link));
}

#[cfg(test)]
mod tests;
