use super::*;
use crate::oci::{Algorithm, MANIFEST_MAX};

fn by_digest(digest: Digest) -> Reference {
    Reference::Digest(digest)
}

async fn fetch(bench: &Bench, repository: &str, reference: &Reference) -> Result<FetchedManifest, Cause> {
    let fetched =
        bench.upstream.manifest_get(Identity::Anonymous, &anybody(), &name(repository), reference).await;
    fetched.map_err(|error| error.cause)
}

#[tokio::test]
async fn manifests_are_what_their_digest_says() {
    let sha512 = Digest::of(Algorithm::Sha512, b"{}");
    let server = Server::new(move |seen| {
        let answer =
            reply(200, "{}").with("content-type", "application/vnd.oci.image.index.v1+json; charset=x");
        match seen.path().split('/').nth(2).unwrap() {
            "liar" => answer.with("docker-content-digest", Digest::sha256(b"other")),
            "long" => answer.with("docker-content-digest", sha512),
            "odd" => answer.with("docker-content-digest", "sha256:nonsense"),
            _ => answer,
        }
    })
    .await;
    let bench = bench(options(server.url("/prefix/")));
    let (digest, latest) = (Digest::sha256(b"{}"), tag("latest"));
    let found = fetch(&bench, "a", &latest).await.unwrap();
    assert_eq!((found.digest, &found.bytes[..]), (digest, b"{}".as_slice()));
    assert_eq!(found.media_type.unwrap().as_str(), MediaType::OCI_INDEX);
    assert_eq!(server.seen()[0].path(), "/prefix/v2/a/manifests/latest");
    assert_eq!(fetch(&bench, "a", &by_digest(sha512)).await.unwrap().digest, sha512);
    let other = by_digest(Digest::sha256(b"other"));
    assert!(matches!(fetch(&bench, "a", &other).await, Err(Cause::Corrupt(_))));

    let bench = super::bench(options(server.url("/")));
    assert!(matches!(fetch(&bench, "liar", &latest).await, Err(Cause::Corrupt(_))));
    assert_eq!(fetch(&bench, "long", &latest).await.unwrap().digest, digest);
    assert_eq!(fetch(&bench, "odd", &latest).await.unwrap().digest, digest);

    let head = async |repository: &str, reference: &Reference| {
        let head = bench.upstream.manifest_head(Identity::Anonymous, &name(repository), reference).await;
        head.map_err(|error| error.cause)
    };
    assert_eq!(head("odd", &latest).await.unwrap().digest, None);
    let told = head("long", &latest).await.unwrap();
    assert_eq!((told.digest, told.media_type.unwrap().as_str()), (Some(sha512), MediaType::OCI_INDEX));
    assert!(head("long", &by_digest(digest)).await.is_ok());
    assert!(matches!(head("liar", &by_digest(digest)).await, Err(Cause::Corrupt(_))));
}

#[tokio::test]
async fn a_manifest_may_be_as_large_as_the_limit_and_no_larger() {
    let server = Server::new(|seen| {
        let large = MANIFEST_MAX + usize::from(!seen.path().contains("/fits/"));
        let answer = reply(200, vec![b' '; large]);
        if seen.path().contains("/told/") { answer.with("content-length", large) } else { answer }
    })
    .await;
    let bench = bench(options(server.url("/")));
    assert_eq!(bench.get("fits").await.unwrap().bytes.len(), MANIFEST_MAX);
    for repository in ["told", "chunked"] {
        let error = bench.get(repository).await.unwrap_err();
        let limit = MANIFEST_MAX.to_string();
        assert!(matches!(&error.cause, Cause::Corrupt(why) if why.contains(&limit)), "{error:?}");
    }
}

#[tokio::test]
async fn what_no_registry_sends_is_not_taken_for_content() {
    let server = Server::new(|seen| match seen.path().split('/').nth(2).unwrap() {
        "zipped" => reply(200, "x").with("content-encoding", "gzip"),
        "same" => reply(200, "{}").with("content-encoding", "identity"),
        "nothing" => reply(204, ""),
        _ => reply(200, "<html>").with("content-type", "Text/HTML; charset=utf-8"),
    })
    .await;
    let bench = bench(options(server.url("/")));
    bench.get("same").await.unwrap();
    assert!(matches!(bench.get("nothing").await.unwrap_err().cause, Cause::Trouble(_)));
    for repository in ["zipped", "page"] {
        assert!(matches!(bench.get(repository).await.unwrap_err().cause, Cause::Corrupt(_)), "{repository}");
        assert!(matches!(bench.head(repository).await.unwrap_err().cause, Cause::Corrupt(_)), "{repository}");
        let (repository, digest) = (name(repository), Digest::sha256(b""));
        let blob = bench.blob_of(Identity::Anonymous, &repository, &digest, 0, None).await;
        assert!(matches!(blob.err().unwrap().cause, Cause::Corrupt(_)), "{repository}");
    }
}

#[tokio::test]
async fn ranges_are_asked_for_and_checked() {
    let server = Server::new(|seen| match seen.header("range") {
        None => reply(200, "0123456789").with("content-length", 10),
        Some("bytes=4-") => reply(206, "456789").with("content-range", "bytes 4-9/10"),
        Some("bytes=4-5") => reply(206, "45").with("content-range", "bytes 4-5/*"),
        Some("bytes=5-") => reply(206, "456789").with("content-range", "bytes 4-9/10"),
        Some("bytes=6-") => reply(206, "6").with("content-range", "bytes 6-9/10"),
        Some("bytes=7-") => reply(206, "789+").with("content-range", "bytes 7-9/10"),
        Some("bytes=8-") => reply(206, "89"),
        Some("bytes=9-") => reply(200, "0123456789"),
        Some(_) => reply(416, ""),
    })
    .await;
    let bench = bench(options(server.url("/")));
    let whole = bench.blob(0, None).await.unwrap();
    assert_eq!((whole.start, whole.total), (0, Some(10)));
    assert_eq!(collect(whole).await.unwrap(), b"0123456789");
    assert_eq!(collect(bench.blob(4, None).await.unwrap()).await.unwrap(), b"456789");
    let part = bench.blob(4, Some(6)).await.unwrap();
    assert_eq!((part.start, part.total), (4, None));
    assert_eq!(collect(part).await.unwrap(), b"45");
    let ignored = bench.blob(9, None).await.unwrap();
    assert_eq!((ignored.start, ignored.total), (0, None));
    let broken = collect(bench.blob(6, None).await.unwrap()).await.unwrap_err();
    assert!(matches!(broken.cause, Cause::Trouble(_)), "{broken:?}");
    let long = collect(bench.blob(7, None).await.unwrap()).await.unwrap_err();
    assert!(matches!(long.cause, Cause::Corrupt(_)), "{long:?}");
    for start in [5, 8, 10] {
        let error = bench.blob(start, None).await.err().unwrap();
        assert!(matches!(error.cause, Cause::Corrupt(_)), "{start} {error:?}");
    }
    assert_eq!(bench.metrics.received_bytes.get(), 10 + 6 + 2 + 1 + 4);
}

#[tokio::test]
async fn heads_of_blobs_tell_the_size_or_not() {
    let server = Server::new(|seen| match seen.path().split('/').nth(2).unwrap() {
        "sized" => reply(200, "").with("content-length", 1234),
        "unsized" => reply(200, ""),
        _ => reply(404, ""),
    })
    .await;
    let bench = bench(options(server.url("/")));
    let head = async |repository: &str| {
        bench.upstream.blob_head(Identity::Anonymous, &name(repository), &Digest::sha256(b"")).await
    };
    assert_eq!(head("sized").await.unwrap(), Some(1234));
    assert_eq!(head("unsized").await.unwrap(), None);
    assert!(matches!(head("missing").await.unwrap_err().cause, Cause::NotFound));
}

#[tokio::test]
async fn tags_are_collected_page_by_page() {
    let server = Server::new(|seen| {
        let page = seen.query("last").concat().parse::<u32>().unwrap_or(0);
        let link = format!("<http://elsewhere.example/v2/x/tags/list?n=2&last={}>; rel=\"next\"", page + 1);
        match seen.path().split('/').nth(2).unwrap() {
            "short" if page == 2 => reply(200, r#"{"tags":null}"#),
            "short" => reply(200, format!(r#"{{"name":"short","tags":["p{page}","not a tag","q{page}"]}}"#))
                .with("link", link),
            "endless" => reply(200, r#"{"tags":["t"]}"#).with("link", link),
            "circle" => reply(200, r#"{"tags":["t"]}"#).with("link", "</x?n=1000>; rel=next"),
            "many" => {
                reply(200, format!(r#"{{"tags":["t"{}]}}"#, r#","t""#.repeat(60_000))).with("link", link)
            }
            "large" => reply(200, vec![b' '; MAX_PAGE + 1]),
            "wrong" => reply(200, "[]"),
            _ => reply(404, ""),
        }
    })
    .await;
    let bench = bench(options(server.url("/")));
    let tags = async |repository: &str| {
        let tags = bench.upstream.tags(Identity::Anonymous, &name(repository)).await;
        tags.map_err(|error| error.cause)
    };
    let found: Vec<String> = tags("short").await.unwrap().iter().map(Tag::to_string).collect();
    assert_eq!(found, ["p0", "q0", "p1", "q1"]);
    let seen = server.seen();
    assert_eq!(seen[0].uri.to_string(), "/v2/short/tags/list?n=1000");
    assert_eq!(seen[2].uri.to_string(), "/v2/short/tags/list?n=2&last=2");
    assert_eq!(tags("endless").await.unwrap().len(), 50);
    assert_eq!(tags("circle").await.unwrap().len(), 1);
    assert_eq!(tags("many").await.unwrap().len(), 100_000);
    assert!(matches!(tags("large").await, Err(Cause::Corrupt(_))));
    assert!(matches!(tags("wrong").await, Err(Cause::Corrupt(_))));
    assert!(matches!(tags("missing").await, Err(Cause::NotFound)));
}

const MAX_PAGE: usize = 8 << 20;
