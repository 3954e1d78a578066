use super::*;
use crate::oci::{ByteRange, MediaType, Tag};

fn text<'a>(response: &'a Response<Payload>, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
}

fn digest() -> Digest {
    Digest::sha256(b"{}")
}

fn answer(served: Served) -> ManifestAnswer {
    ManifestAnswer {
        digest: digest(),
        media_type: MediaType::parse(MediaType::OCI_MANIFEST).unwrap(),
        size: 2,
        bytes: Some(Bytes::from_static(b"{}")),
        served,
    }
}

fn part(range: Option<(u64, u64)>, size: Option<u64>) -> Response<Payload> {
    let range = range.map(|(start, end)| ByteRange { start, end });
    blob(BlobAnswer { size, range, body: None, served: Served::Miss }, &digest(), &HeaderMap::new())
}

#[test]
fn a_manifest_has_the_headers_that_clients_need() {
    let response = manifest(answer(Served::Hit), &HeaderMap::new());
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(&response, "content-type"), Some(MediaType::OCI_MANIFEST));
    assert_eq!(text(&response, "docker-content-digest"), Some(digest().to_string().as_str()));
    assert_eq!(text(&response, "etag"), Some(format!("\"{}\"", digest()).as_str()));
    assert_eq!(text(&response, "cache-status"), Some("forebay; hit"));
    assert_eq!(response.body().length(), Some(2));
    let head = manifest(ManifestAnswer { bytes: None, ..answer(Served::Hit) }, &HeaderMap::new());
    assert_eq!(head.body().length(), Some(2));
}

#[test]
fn only_what_was_fetched_is_said_to_be_stored() {
    let status = |response: &Response<Payload>| text(response, "cache-status").unwrap().to_owned();
    let whole = manifest(answer(Served::Miss), &HeaderMap::new());
    assert_eq!(status(&whole), "forebay; fwd=uri-miss; stored");
    let head = manifest(ManifestAnswer { bytes: None, ..answer(Served::Miss) }, &HeaderMap::new());
    assert_eq!(status(&head), "forebay; fwd=uri-miss");
    assert_eq!(status(&part(None, Some(10))), "forebay; fwd=uri-miss", "a blob's head");
    let list = TagsAnswer { tags: Vec::new(), served: Served::Miss };
    assert_eq!(status(&tags_of(&list, &Page { count: 1, last: None })), "forebay; fwd=uri-miss");
}

#[test]
fn if_none_match_is_heeded() {
    let digest = digest();
    for held in
        [format!("\"{digest}\""), format!("W/\"{digest}\""), format!("\"x\", \"{digest}\""), "*".to_owned()]
    {
        let request = headers(&[(header::IF_NONE_MATCH, &held)]);
        let response = manifest(answer(Served::Hit), &request);
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{held}");
        assert_eq!(response.body().length(), None);
        assert!(text(&response, "etag").is_some());
        assert_eq!(blob_want(false, &request, &digest), BlobWant::Head);
    }
    let request = headers(&[(header::IF_NONE_MATCH, "\"sha256:00\"")]);
    assert_eq!(manifest(answer(Served::Hit), &request).status(), StatusCode::OK);
}

#[test]
fn a_part_says_which() {
    let response = part(Some((2, 5)), Some(10));
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(text(&response, "content-range"), Some("bytes 2-4/10"));
    assert_eq!(response.body().length(), Some(3));
    assert_eq!(text(&part(Some((2, 5)), None), "content-range"), Some("bytes 2-4/*"));
    let whole = part(None, Some(10));
    assert_eq!((whole.status(), whole.body().length()), (StatusCode::OK, Some(10)));
    assert_eq!(text(&whole, "content-type"), Some("application/octet-stream"));
    assert_eq!(text(&whole, "accept-ranges"), Some("bytes"));
    assert_eq!(text(&whole, "cache-control"), Some("max-age=31536000"));
    assert_eq!(text(&whole, "content-encoding"), None);
    assert_eq!(part(None, None).body().length(), None);
}

#[test]
fn a_range_is_wanted_where_one_was_asked_for() {
    let (digest, range) = (digest(), |range: &'static str| (header::RANGE, range));
    let want = |lines: &[(HeaderName, &str)]| blob_want(false, &headers(lines), &digest);
    assert_eq!(want(&[]), BlobWant::Whole);
    assert_eq!(want(&[range("bytes=5-")]), BlobWant::Range(RangeRequest::From(5)));
    assert_eq!(want(&[range("bytes=0-1,3-4")]), BlobWant::Whole);
    assert_eq!(blob_want(true, &headers(&[range("bytes=5-")]), &digest), BlobWant::Head);
    let same = format!("\"{digest}\"");
    assert_eq!(want(&[range("bytes=5-"), (header::IF_RANGE, &same)]), BlobWant::Range(RangeRequest::From(5)));
    assert_eq!(want(&[range("bytes=5-"), (header::IF_RANGE, "\"other\"")]), BlobWant::Whole);
}

#[test]
fn stale_is_said_in_a_header_that_nothing_breaks() {
    let reason = format!("line\r\nx-evil: 1 \"quoted\\\" ä {}", "long ".repeat(200));
    let response = manifest(answer(Served::Stale(reason)), &HeaderMap::new());
    assert_eq!(text(&response, "cache-status"), Some("forebay; hit; detail=stale"));
    let warning = text(&response, "warning").unwrap();
    assert!(warning.starts_with("299 - \"stale: line  x-evil: 1 'quoted''"), "{warning}");
    assert!(warning.len() < 300 && warning.matches('"').count() == 2, "{warning}");
    assert_eq!(text(&response, "x-evil"), None);
}

fn page(count: usize, last: Option<&str>) -> (Vec<String>, Option<String>) {
    let tags = ["a", "b", "c", "d"].map(|tag| tag.parse::<Tag>().unwrap()).to_vec();
    let page = Page { count, last: last.map(str::to_owned) };
    let answer = TagsAnswer { tags, served: Served::Hit };
    let response = tags_of(&answer, &page);
    let link = text(&response, "link").map(str::to_owned);
    let Payload::Full(body) = response.into_body() else { panic!("a body") };
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["name"], "x");
    (serde_json::from_value(body["tags"].clone()).unwrap(), link)
}

fn tags_of(answer: &TagsAnswer, page: &Page) -> Response<Payload> {
    tags(answer, "x", page, "/v2/x/tags/list", Some("ghcr.io"))
}

#[test]
fn tags_come_in_pages() {
    let link = |last: &str| Some(format!("</v2/x/tags/list?n=2&last={last}&ns=ghcr.io>; rel=\"next\""));
    let strings = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
    assert_eq!(page(10, None), (strings(&["a", "b", "c", "d"]), None));
    assert_eq!(page(4, None).1, None);
    assert_eq!(page(2, None), (strings(&["a", "b"]), link("b")));
    assert_eq!(page(2, Some("b")), (strings(&["c", "d"]), None));
    assert_eq!(page(2, Some("aa")), (strings(&["b", "c"]), link("c")));
    assert_eq!(page(0, None), (strings(&[]), None));
    assert_eq!(page(2, Some("z")), (strings(&[]), None));
}
