use super::*;
use crate::metrics::UpstreamStatus;
use crate::oci::{Algorithm, MANIFEST_MAX};

const PLAIN_404: &str = "404 page not found\n";

fn subject() -> Digest {
    Digest::sha256(b"subject")
}

fn entry(number: usize) -> String {
    let digest = Digest::sha256(&number.to_le_bytes());
    format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1,"artifactType":"c/d"}}"#)
}

fn index(numbers: impl IntoIterator<Item = usize>) -> Reply {
    let entries: Vec<String> = numbers.into_iter().map(entry).collect();
    let body = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    reply(200, body).with("content-type", MediaType::OCI_INDEX)
}

fn refusal(status: u16, code: &str) -> Reply {
    reply(status, format!(r#"{{"errors":[{{"code":"{code}","message":"no"}}]}}"#))
        .with("content-type", "application/json")
}

/// How often the API was asked, and how often the fallback tag, by HEAD or GET.
fn asked(server: &Server) -> (usize, usize) {
    let seen = server.seen();
    let count = |part: &str| seen.iter().filter(|seen| seen.path().contains(part)).count();
    (count("/referrers/"), count("/manifests/"))
}

impl Bench {
    async fn told(&self, known: Option<Digest>) -> Result<ToldReferrers, Error> {
        self.upstream.referrers(Identity::Anonymous, &anybody(), &name("a/b"), &subject(), known).await
    }

    /// The list, as numbers of its entries' places in `0..`, and the fallback index.
    async fn list(&self) -> (usize, Option<Digest>) {
        match self.told(None).await.unwrap() {
            ToldReferrers::List { referrers, index } => (referrers.len(), index),
            ToldReferrers::Missing => (0, None),
            told => panic!("{told:?}"),
        }
    }
}

#[tokio::test]
async fn the_api_s_pages_are_put_together() {
    let server = Server::new(|seen| {
        // Links of every form; the second page has an entry of the first once more.
        match seen.uri.query() {
            None => index([0, 1]).with("link", format!("<{}?next=1>; rel=\"next\"", seen.path())),
            Some("next=1") => index([1, 2]).with("link", "<https://else.example/x?next=2>; rel=next"),
            Some("next=2") => index([3]).with("oci-filters-applied", "artifactType"),
            Some(other) => panic!("{other}"),
        }
    })
    .await;
    let bench = bench(options(server.url("/prefix/")));
    let ToldReferrers::List { referrers, index: None } = bench.told(None).await.unwrap() else { panic!() };
    let wanted: Vec<_> = (0..4).map(|n| serde_json::from_str(&entry(n)).unwrap()).collect();
    assert_eq!(referrers, wanted);
    let first = &server.seen()[0];
    assert_eq!(first.path(), format!("/prefix/v2/a/b/referrers/{}", subject()));
    assert_eq!(first.header("accept"), Some(MediaType::OCI_INDEX));
    let counted = bench.metrics.requests.cell(UpstreamCall::Referrers, UpstreamStatus::Ok);
    assert_eq!(counted.get(), 3);
}

#[tokio::test]
async fn lists_without_end_are_cut() {
    // Pages for ever; a circle of pages; pages that are too many entries, or too many bytes.
    let endless = Server::new(|seen| {
        let page: usize = seen.query("page").first().map_or(0, |page| page.parse().unwrap());
        index([page]).with("link", format!("<?page={}>; rel=next", page + 1))
    })
    .await;
    assert_eq!(bench(options(endless.url("/"))).list().await.0, 50);
    assert_eq!(asked(&endless), (50, 0));

    let circle = Server::new(|seen| match seen.uri.query() {
        None => index([0]).with("link", "<?a>; rel=next"),
        Some("a") => index([1]).with("link", "<?b>; rel=next"),
        _ => index([2]).with("link", "<?a>; rel=next"),
    })
    .await;
    assert_eq!(bench(options(circle.url("/"))).list().await.0, 3);
    assert_eq!(asked(&circle), (3, 0));

    let many = Server::new(|seen| {
        let page: usize = seen.query("page").first().map_or(0, |page| page.parse().unwrap());
        index(page * 6000..(page + 1) * 6000).with("link", format!("<?page={}>; rel=next", page + 1))
    })
    .await;
    assert_eq!(bench(options(many.url("/"))).list().await.0, 10_000);
    assert_eq!(asked(&many), (2, 0));

    let heavy = Server::new(|seen| {
        let page: usize = seen.query("page").first().map_or(0, |page| page.parse().unwrap());
        let padding = " ".repeat(MANIFEST_MAX - 1000);
        let body = format!(r#"{{"manifests":[{}]{padding}}}"#, entry(page));
        reply(200, body).with("link", format!("<?page={}>; rel=next", page + 1))
    })
    .await;
    assert_eq!(bench(options(heavy.url("/"))).list().await.0, 3);
    assert_eq!(asked(&heavy), (3, 0));
}

#[tokio::test]
async fn what_is_no_list_is_trouble_where_the_api_is() {
    let huge = Server::new(|_| reply(200, vec![b' '; MANIFEST_MAX + 1])).await;
    let error = bench(options(huge.url("/"))).told(None).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Corrupt(_)), "{error}");
    for body in ["{", r#"{"manifests":7}"#, r#"{"errors":[]}"#] {
        let server = Server::new(move |_| reply(200, body).with("content-type", "application/json")).await;
        let error = bench(options(server.url("/"))).told(None).await.unwrap_err();
        assert!(matches!(error.cause, Cause::Corrupt(_)), "{body}: {error}");
        assert!(error.to_string().starts_with("GET referrers docker.io/a/b@sha256:"), "{error}");
    }
    // A later page that is missing is no shorter list.
    let broken = Server::new(|seen| match seen.uri.query() {
        None => index([0]).with("link", "<?a>; rel=next"),
        _ => refusal(404, "NAME_UNKNOWN"),
    })
    .await;
    let error = bench(options(broken.url("/"))).told(None).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Corrupt(_)), "{error}");
}

#[tokio::test]
async fn without_the_api_the_fallback_tag_is_read_and_that_is_remembered() {
    let absent: [fn() -> Reply; 7] = [
        || reply(404, PLAIN_404),
        || refusal(404, "UNSUPPORTED"),
        || refusal(405, "UNSUPPORTED"),
        || reply(406, ""),
        || reply(501, ""),
        // A page for people, at the end of a redirect or not.
        || reply(200, "<html>").with("content-type", "text/html"),
        || reply(200, "welcome").with("content-type", "text/plain"),
    ];
    for api in absent {
        let server =
            Server::new(move |seen| if seen.path().contains("/referrers/") { api() } else { index([0, 1]) })
                .await;
        let bench = bench(options(server.url("/")));
        let digest = Digest::sha256(&index([0, 1]).chunks[0]);
        assert_eq!(bench.list().await, (2, Some(digest)));
        assert_eq!(asked(&server), (1, 2), "a HEAD and a GET of the tag");
        let tag = format!("/v2/a/b/manifests/sha256-{}", subject().hex());
        assert_eq!(server.count(&tag), 2);
        assert_eq!(bench.list().await, (2, Some(digest)));
        assert_eq!(asked(&server), (1, 4), "the API is not asked again");
        bench.clock.advance(Duration::from_secs(601));
        assert_eq!(bench.list().await, (2, Some(digest)));
        assert_eq!(asked(&server).0, 2, "but after a while it is");
    }
}

#[tokio::test]
async fn an_index_that_is_known_is_not_fetched_again() {
    let digest = Digest::sha256(&index([0]).chunks[0]);
    let server = Server::new(move |seen| {
        if seen.path().contains("/referrers/") {
            return reply(404, PLAIN_404);
        }
        index([0]).with("docker-content-digest", digest)
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert_eq!(bench.told(Some(digest)).await.unwrap(), ToldReferrers::Unchanged);
    assert_eq!(asked(&server), (1, 1));
    let other = Some(Digest::sha256(b"other"));
    assert!(matches!(bench.told(other).await.unwrap(), ToldReferrers::List { .. }));
    assert_eq!(asked(&server), (1, 3));
}

#[tokio::test]
async fn an_unknown_repository_has_no_referrers_and_says_nothing_of_the_api() {
    for code in ["NAME_UNKNOWN", "MANIFEST_UNKNOWN"] {
        let server =
            Server::new(
                move |seen| {
                    if seen.path().contains("/v2/known/") { index([0]) } else { refusal(404, code) }
                },
            )
            .await;
        let bench = bench(options(server.url("/")));
        assert_eq!(bench.told(None).await.unwrap(), ToldReferrers::Missing);
        assert_eq!(asked(&server), (1, 1));
        let known =
            bench.upstream.referrers(Identity::Anonymous, &anybody(), &name("known"), &subject(), None).await;
        assert!(matches!(known.unwrap(), ToldReferrers::List { referrers, .. } if referrers.len() == 1));
        assert_eq!(asked(&server), (2, 1), "the API is asked though one repository was not known");
    }
    // Neither the one nor the other: an empty list, and one request from then on.
    let server = Server::new(|_| reply(404, PLAIN_404)).await;
    let bench = bench(options(server.url("/")));
    for requests in [(1, 1), (1, 2)] {
        assert_eq!(bench.told(None).await.unwrap(), ToldReferrers::Missing);
        assert_eq!(asked(&server), requests);
    }
}

#[tokio::test]
async fn one_odd_answer_does_not_end_an_api_that_was_seen() {
    let answers = Arc::new(Mutex::new(0));
    let turn = answers.clone();
    let server = Server::new(move |seen| {
        if seen.path().contains("/manifests/") {
            return refusal(404, "MANIFEST_UNKNOWN");
        }
        let mut turn = lock(&turn);
        *turn += 1;
        match *turn {
            2 => reply(404, PLAIN_404),
            4 => reply(200, "<html>").with("content-type", "text/html"),
            _ => index([0]),
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    for _ in 0..2 {
        assert_eq!(bench.list().await.0, 1);
        let error = bench.told(None).await.unwrap_err();
        assert!(matches!(error.cause, Cause::Trouble(_)), "{error}");
    }
    assert_eq!(bench.list().await.0, 1);
    assert_eq!(asked(&server), (5, 0));
    // Where it was seen long ago only, it may be gone.
    *lock(&answers) = 1;
    bench.clock.advance(Duration::from_secs(601));
    assert_eq!(bench.list().await.0, 0);
    assert_eq!(asked(&server), (6, 1));
    // A digest that it does not take is not about the API either.
    let server = Server::new(|seen| match seen.path().contains("/referrers/sha512:") {
        true => refusal(400, "DIGEST_INVALID"),
        false if seen.path().contains("/referrers/") => index([0]),
        false => index([1, 2]),
    })
    .await;
    let bench = super::bench(options(server.url("/")));
    let long = Digest::of(Algorithm::Sha512, b"subject");
    let told =
        bench.upstream.referrers(Identity::Anonymous, &anybody(), &name("a/b"), &long, None).await.unwrap();
    assert!(matches!(told, ToldReferrers::List { referrers, index: Some(_) } if referrers.len() == 2));
    assert_eq!(server.count(&format!("/v2/a/b/manifests/sha512-{}", &long.hex()[..64])), 2);
    assert_eq!(bench.list().await, (1, None));
}

#[tokio::test]
async fn refusals_and_trouble_are_not_taken_for_a_missing_api() {
    for (status, is_it) in [
        (401, (|cause| matches!(cause, Cause::Denied(_))) as fn(&Cause) -> bool),
        (403, |cause| matches!(cause, Cause::Denied(_))),
        (429, |cause| matches!(cause, Cause::Limited(_))),
        (503, |cause| matches!(cause, Cause::Trouble(_))),
    ] {
        let server = Server::new(move |_| refusal(status, "UNKNOWN")).await;
        let bench = bench(options(server.url("/")));
        let error = bench.told(None).await.unwrap_err();
        assert!(is_it(&error.cause), "{status}: {error:?}");
        assert_eq!(asked(&server).1, 0, "{status}");
    }
    // What stands under the tag is no index, or a broken one: it lists nothing.
    for body in ["{}", "[", r#"{"config":{}}"#] {
        let server = Server::new(move |seen| match seen.path().contains("/referrers/") {
            true => reply(404, PLAIN_404),
            false => reply(200, body),
        })
        .await;
        let bench = bench(options(server.url("/")));
        assert_eq!(bench.list().await, (0, Some(Digest::sha256(body.as_bytes()))));
    }
    // One that is too large is refused.
    let server = Server::new(|seen| match seen.path().contains("/referrers/") {
        true => reply(404, PLAIN_404),
        false => reply(200, vec![b' '; MANIFEST_MAX + 1]),
    })
    .await;
    let error = bench(options(server.url("/"))).told(None).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Corrupt(_)), "{error}");
}
