use super::*;
use crate::http::query::TAG_PARAMETERS_MAX;
use crate::http::{OwnersOptions, Scope};
use crate::oci::UpstreamHost;
use proptest::prelude::*;

fn owners() -> Owners {
    Owners::new(OwnersOptions {
        upstreams: vec![
            (UpstreamHost::docker_hub(), vec!["dockerhub".to_owned()]),
            ("ghcr.io".parse().unwrap(), vec![]),
        ],
        hosted: vec!["*".to_owned()],
        ..OwnersOptions::default()
    })
    .unwrap()
}

fn request(method: &Method, target: &str) -> Result<Routed, ApiError> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    parse(&owners(), at_no_host(&Scope::default()), method, path, query)
}

fn at_no_host(scope: &Scope) -> Entrance<'_> {
    Entrance { scope, authority: "localhost:5000" }
}

fn get(target: &str) -> Result<Route, ApiError> {
    request(&Method::GET, target).map(|routed| routed.route)
}

fn status(target: &str) -> u16 {
    get(target).err().map_or(200, |error| error.status().as_u16())
}

fn digest() -> String {
    Digest::sha256(b"x").to_string()
}

/// `owner: name` and what of it.
fn read(target: &str) -> String {
    match get(target) {
        Ok(Route::Manifest(repository, reference)) => {
            format!("{}: {} manifest {reference}", repository.owner, repository.name)
        }
        Ok(Route::Blob(repository, _)) => format!("{}: {} blob", repository.owner, repository.name),
        Ok(Route::Tags(repository, name, _)) => {
            format!("{}: {} tags of {name}", repository.owner, repository.name)
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn endpoints_are_told_apart_from_the_right() {
    let digest = digest();
    for (target, expected) in [
        ("/v2/library/nginx/manifests/1.27", "docker.io: library/nginx manifest 1.27"),
        ("/v2/app/manifests/latest", "hosted: app manifest latest"),
        ("/v2/app/manifests/list", "hosted: app manifest list"),
        ("/v2/org/manifests/manifests/1", "docker.io: org/manifests manifest 1"),
        ("/v2/org/blobs/uploads/manifests/1", "docker.io: org/blobs/uploads manifest 1"),
        ("/v2/v2/manifests/1", "hosted: v2 manifest 1"),
        ("/v2/org/tags/tags/list", "docker.io: org/tags tags of org/tags"),
        ("/v2/ghcr.io/org/app/manifests/1", "ghcr.io: org/app manifest 1"),
        ("/v2/ghcr.io/org/app/tags/list", "ghcr.io: org/app tags of ghcr.io/org/app"),
        ("/ghcr.io/v2/org/app/manifests/1", "ghcr.io: org/app manifest 1"),
        ("/dockerhub/v2/nginx/manifests/1", "docker.io: library/nginx manifest 1"),
        ("/v2/nginx/manifests/1?ns=docker.io", "docker.io: library/nginx manifest 1"),
        ("/v2/org/app/manifests/1?ns=ghcr.io", "ghcr.io: org/app manifest 1"),
        ("/dockerhub/v2/org/app/manifests/1?ns=docker.io", "docker.io: org/app manifest 1"),
        ("/v2/library%2Fnginx/manifests/1%2E27", "docker.io: library/nginx manifest 1.27"),
    ] {
        assert_eq!(read(target), expected, "{target}");
    }
    assert_eq!(read(&format!("/v2/org/blobs/blobs/{digest}")), "docker.io: org/blobs blob");
    assert_eq!(read(&format!("/v2/a/blobs/{}", digest.replace(':', "%3A"))), "hosted: a blob");
    assert_eq!(read(&format!("/v2/a/manifests/{digest}")), format!("hosted: a manifest {digest}"));
}

#[test]
fn fixed_paths() {
    for (path, route) in [
        ("/v2/", Route::Base),
        ("/v2", Route::ToBase("/v2/".to_owned())),
        ("/ghcr.io/v2/", Route::Base),
        ("/ghcr.io/v2", Route::ToBase("/ghcr.io/v2/".to_owned())),
        ("/", Route::Home),
        ("/metrics", Route::Metrics),
        ("/healthz", Route::Healthz),
        ("/readyz", Route::Readyz),
    ] {
        assert_eq!(get(path), Ok(route), "{path}");
    }
}

#[test]
fn the_namespace_is_kept_for_the_answer() {
    let routed = request(&Method::GET, "/v2/a/manifests/1?x=1&ns=docker.io&ns=ghcr.io").unwrap();
    assert_eq!(routed.namespace.as_deref(), Some("docker.io"));
}

#[test]
fn what_does_not_parse_has_its_status() {
    let digest = digest();
    for (target, expected) in [
        ("/v2/UPPER/manifests/1", 400),
        ("/v2/a//b/manifests/1", 400),
        ("/v2/manifests/1", 400),
        ("/v2/tags/list", 400),
        ("/v2/a/manifests/sha256:baddigeststring", 400),
        ("/v2/a/manifests/.no-tag", 404),
        ("/v2/a/manifests/", 404),
        ("/v2/a/blobs/latest", 400),
        ("/v2/a/blobs/md5:00", 400),
        ("/v2/%ff/manifests/1", 400),
        ("/v2/a/manifests/1?ns=quay.io", 404),
        ("/v2/a/manifests/1?ns=", 404),
        ("/quay.io/v2/a/manifests/1", 404),
        ("/quay.io/v2/", 404),
        ("/dockerhub/v2/org/app/manifests/1?ns=ghcr.io", 404),
        ("/v2/a/what/1", 404),
        ("/v2/a", 404),
        ("/v1/repositories", 404),
        ("/v1/search?n=x", 400),
        ("/v20/", 404),
        ("/favicon.ico", 404),
        ("*", 404),
        ("", 404),
        ("/v2/a/tags/list?n=-1", 400),
        ("/v2/a/tags/list?n=x", 400),
        ("/v2/a/blobs/uploads/", 405),
        ("/v2/a/referrers/sha256:00", 400),
    ] {
        assert_eq!(status(target), expected, "{target}");
    }
    assert_eq!(status(&format!("/v2/a/referrers/{digest}?n=x")), 400);
}

#[test]
fn each_endpoint_has_its_methods() {
    let digest = digest();
    let id = UploadId::random();
    let (blob, upload) = (format!("/v2/a/blobs/{digest}"), format!("/v2/a/blobs/uploads/{id}"));
    let put = format!("{upload}?digest={digest}");
    let all = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
    for (target, served) in [
        ("/v2/a/manifests/1", "GET HEAD PUT DELETE"),
        ("/v2/", "GET HEAD"),
        ("/v2/a/blobs/uploads/", "POST"),
        ("/v2/a/blobs/uploads", "POST"),
        ("/v2/a/tags/list", "GET HEAD"),
        ("/v2/_catalog", "GET HEAD"),
        ("/v1/search", "GET HEAD"),
        ("/metrics", "GET HEAD"),
        (&blob, "GET HEAD DELETE"),
        (&put, "GET HEAD PUT PATCH DELETE"),
    ] {
        for method in all {
            let answer = request(&method.parse().unwrap(), target);
            let expected = if served.split(' ').any(|one| one == method) { None } else { Some(405) };
            assert_eq!(answer.err().map(|error| error.status().as_u16()), expected, "{method} {target}");
        }
    }
}

#[test]
fn what_is_mirrored_is_never_written_to() {
    let upload = format!("blobs/uploads/{}", UploadId::random());
    for name in ["library/a", "ghcr.io/a", "dockerhub/a"] {
        for rest in ["manifests/1", "manifests/sha256:bad", "blobs/uploads/", "blobs/uploads/bad", &upload] {
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                let error = request(&method, &format!("/v2/{name}/{rest}")).unwrap_err();
                assert_eq!(error.status().as_u16(), 405, "{method} {name} {rest}");
            }
        }
    }
}

#[test]
fn writes_are_read_with_their_parameters() {
    let (digest, id) = (Digest::sha256(b"x"), UploadId::random());
    let write = |method: &str, target: &str| {
        let routed = request(&method.parse().unwrap(), target);
        match routed.map(|routed| (routed.route, routed.place)) {
            Ok((Route::Write(repository, write), place)) => {
                assert_eq!((repository.name.as_str(), place.as_str()), ("a", "/v2/a"));
                Ok(write)
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.status().as_u16()),
        }
    };
    let begin = |query: &str| write("POST", &format!("/v2/a/blobs/uploads/?{query}"));
    assert_eq!(begin(""), Ok(Write::Begin(Begin::default())));
    assert_eq!(
        begin(&format!("mount={digest}&from=b%2Fc")),
        Ok(Write::Begin(Begin { mount: Some(digest), from: Some("b/c".to_owned()), digest: None }))
    );
    assert!(begin("digest-algorithm=sha512").is_ok());
    for bad in ["digest=x", "mount=sha256:zz", "digest-algorithm=md5"] {
        assert_eq!(begin(bad), Err(400), "{bad}");
    }
    let upload = format!("/v2/a/blobs/uploads/{id}");
    assert_eq!(write("PATCH", &format!("{upload}?_state=x")), Ok(Write::Append(id)));
    assert_eq!(write("PUT", &format!("{upload}?_state=x&digest={digest}")), Ok(Write::Finish(id, digest)));
    assert_eq!(write("PUT", &upload), Err(400), "no digest");
    for bad in ["x", "0-1", "..", &id.to_string().to_uppercase()] {
        assert_eq!(write("PATCH", &format!("/v2/a/blobs/uploads/{bad}")), Err(404), "{bad}");
    }
    let tags = write("PUT", &format!("/v2/a/manifests/{digest}?tag=1&tag=2"));
    let expected = ["1", "2"].map(|tag| tag.parse().unwrap()).to_vec();
    assert_eq!(tags, Ok(Write::PutManifest(Reference::Digest(digest), expected)));
    for (bad, status) in [(".x", 400), ("sha256:bad", 400), ("1?tag=.x", 400)] {
        assert_eq!(write("PUT", &format!("/v2/a/manifests/{bad}")), Err(status), "{bad}");
    }
    let many = "tag=x&".repeat(TAG_PARAMETERS_MAX + 1);
    assert_eq!(write("PUT", &format!("/v2/a/manifests/1?{many}")), Err(414));
    assert!(write("PUT", &format!("/v2/a/manifests/1?{}", "tag=x&".repeat(TAG_PARAMETERS_MAX))).is_ok());
}

#[test]
fn pages_are_bounded() {
    let page = |query: &str| match get(&format!("/v2/a/tags/list{query}")) {
        Ok(Route::Tags(_, _, page)) => (page.count, page.last),
        other => panic!("{other:?}"),
    };
    assert_eq!(page(""), (TAGS_MAX, None));
    assert_eq!(page("?n=0"), (0, None));
    assert_eq!(page("?n=7&last=v1%2B"), (7, Some("v1+".to_owned())));
    assert_eq!(page("?n=99999999999999999999999"), (TAGS_MAX, None));
    let Ok(Route::Catalog(page)) = get("/v2/_catalog?n=5000") else { panic!("the catalog") };
    assert_eq!(page.count, CATALOG_MAX);
}

#[test]
fn traversal_is_refused_in_every_encoding() {
    for dots in ["..", "%2e%2e", "%2E.", "%252e%252e", "..%00", "..%5c", "%c0%ae%c0%ae"] {
        for slash in ["/", "%2f", "%2F", "%252f", "%5c"] {
            for target in [
                format!("/v2/a{slash}{dots}{slash}b/manifests/1"),
                format!("/v2/{dots}{slash}{dots}{slash}etc/manifests/passwd"),
                format!("/v2/a/manifests/{dots}{slash}{dots}{slash}1"),
                format!("/v2/a/blobs/{dots}{slash}{dots}{slash}{}", digest()),
                format!("/{dots}/v2/a/manifests/1"),
                format!("/v2/a/manifests/1?ns={dots}"),
            ] {
                assert!(get(&target).is_err(), "{target}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_request_panics_and_what_parses_is_plain(
        path in "(/v2/)?([a-z./%0-9A-F:_-]{0,20}|/manifests/|/blobs/|/tags/list|\\.\\./|%2e%2e|.){0,6}",
        query in proptest::option::of("(n=|last=|ns=|&|[a-z0-9%.]){0,8}"),
    ) {
        if let Ok(routed) = parse(&owners(), at_no_host(&Scope::default()), &Method::GET, &path, query.as_deref()) {
            let repository = match &routed.route {
                Route::Manifest(repository, _) | Route::Blob(repository, _) | Route::Tags(repository, _, _) => repository,
                _ => return Ok(()),
            };
            let name = std::path::Path::new(repository.name.as_str());
            prop_assert!(name.components().all(|c| matches!(c, std::path::Component::Normal(_))));
        }
    }

    #[test]
    fn every_name_of_the_grammar_finds_its_way(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){1,4}", tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}") {
        prop_assume!(!name.starts_with("dockerhub/"));
        prop_assert_eq!(read(&format!("/v2/{name}/manifests/{tag}")), format!("docker.io: {name} manifest {tag}"));
    }
}
