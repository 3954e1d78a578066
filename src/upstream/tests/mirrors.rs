use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;

fn endpoint(url: Url) -> EndpointOptions {
    EndpointOptions { url, credential: None, ca_file: None, proxy: Proxy::None }
}

fn mirrored(own: &Server, mirrors: &[&Server]) -> Options {
    let mirrors = mirrors.iter().map(|server| endpoint(server.url("/"))).collect();
    Options { mirrors, ..options(own.url("/")) }
}

/// Longer than any mirror is passed over.
const REST: Duration = Duration::from_secs(300);

#[tokio::test]
async fn whatever_a_mirror_says_but_yes_the_next_is_asked() {
    let wrong = Digest::sha256(b"other");
    let mirror = Server::new(move |seen| match seen.path().split('/').nth(2).unwrap() {
        "missing" => reply(404, ""),
        "denied" => reply(403, ""),
        "login" => reply(401, ""),
        "limited" => reply(429, "").with("ratelimit-remaining", "0;w=21600").with("retry-after", 77),
        "broken" => reply(500, ""),
        "page" => reply(200, "<html>").with("content-type", "text/html"),
        "wrong" => reply(200, "{}").with("docker-content-digest", wrong),
        _ => reply(200, "{}"),
    })
    .await;
    let own = Server::new(|_| reply(200, "{ }")).await;
    for repository in ["missing", "denied", "login", "limited", "broken", "page", "wrong"] {
        let bench = bench(mirrored(&own, &[&mirror]));
        assert_eq!(&bench.get(repository).await.unwrap().bytes[..], b"{ }", "{repository}");
        assert_eq!(bench.metrics.failovers.get(), 1, "{repository}");
        assert_eq!(bench.upstream.quota(), QuotaState::default(), "a mirror's limit is not the upstream's");
    }
    let bench = bench(mirrored(&own, &[&mirror]));
    assert_eq!(&bench.get("held").await.unwrap().bytes[..], b"{}");
    assert_eq!(own.count("/v2/held"), 0);
}

#[tokio::test]
async fn only_the_upstream_itself_says_no() {
    let mirror = Server::new(|_| reply(404, "")).await;
    let own = Server::new(|seen| match seen.path().split('/').nth(2).unwrap() {
        "denied" => reply(403, ""),
        "broken" => reply(418, ""),
        _ => reply(404, ""),
    })
    .await;
    let bench = bench(mirrored(&own, &[&mirror]));
    assert!(matches!(bench.head("denied").await.unwrap_err().cause, Cause::Denied(_)));
    assert!(matches!(bench.head("missing").await.unwrap_err().cause, Cause::NotFound));
    assert!(matches!(bench.head("broken").await.unwrap_err().cause, Cause::Trouble(_)));
    assert_eq!(mirror.seen().len(), 3, "a mirror that has no such thing is in good health");
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_for_a_while() {
    let mirror = Server::new(|_| reply(502, "")).await;
    let own = Server::new(|_| reply(200, "{}")).await;
    let bench = bench(mirrored(&own, &[&mirror]));
    bench.get("a").await.unwrap();
    let asked = mirror.seen().len();
    assert_eq!(asked, 2, "one retry");
    assert_eq!(bench.metrics.breakers_open.get(), 1);
    // The pause is drawn anew each time, so it may be over at once, but not always.
    let mut passed_over = 0;
    for _ in 0..20 {
        let before = mirror.seen().len();
        bench.get("a").await.unwrap();
        passed_over += usize::from(mirror.seen().len() == before);
    }
    assert!(passed_over > 0);
    bench.clock.advance(REST);
    let before = mirror.seen().len();
    bench.get("a").await.unwrap();
    assert!(mirror.seen().len() > before, "then it is tried again");
}

#[tokio::test]
async fn a_mirror_that_hangs_leaves_time_for_the_others() {
    let mirror = Server::new(|_| Reply { delay: Duration::from_secs(600), ..reply(200, "{}") }).await;
    let own = Server::new(|_| reply(200, "{}")).await;
    let options = Options { deadline: Duration::from_secs(2), ..mirrored(&own, &[&mirror]) };
    let bench = bench(options);
    bench.get("a").await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (1, 1));
}

#[tokio::test]
async fn the_deadline_ends_a_call() {
    let own = Server::new(|_| Reply { delay: Duration::from_secs(600), ..reply(200, "{}") }).await;
    let options = Options { deadline: Duration::from_millis(100), ..options(own.url("/")) };
    let error = bench(options).get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("`deadline`")), "{error:?}");
}

#[tokio::test]
async fn logins_do_not_mix() {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let server = async |expected: &'static str| {
        let taken = taken.clone();
        Server::new(move |seen| match seen.header("authorization") {
            Some(told) if told == format!("Basic {}", BASE64_STANDARD.encode(expected)) => {
                lock(&taken).push(expected);
                reply(404, "")
            }
            Some(other) => panic!("{expected} was wanted and {other} shown"),
            None => reply(401, "").with("www-authenticate", "Basic realm=\"r\""),
        })
        .await
    };
    let (own, mirror, open) = (server("ci-bot:right").await, server("robot:other").await, server("-").await);
    let (options, _dir) = with_credential(mirrored(&own, &[&mirror, &open]), "right");
    let mut options = options;
    let password = Password::Inline(Secret::new("other".to_owned()));
    options.mirrors[0].credential = Some(Credential::Password { username: "robot".into(), password });
    let bench = bench(options);
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::NotFound));
    assert_eq!(*lock(&taken), ["robot:other", "ci-bot:right"]);
    assert_eq!(open.seen().len(), 1, "it has no credential");
    // What anybody may have, only the upstream itself can say.
    let before = (mirror.seen().len(), open.seen().len());
    let asked = bench.upstream.manifest_head(Identity::Anonymous, &name("a"), &tag("latest")).await;
    assert!(matches!(asked.unwrap_err().cause, Cause::Denied(_)));
    assert_eq!((mirror.seen().len(), open.seen().len()), before);
}

#[tokio::test]
async fn paths_of_mirrors_stand_before_v2_or_after_it() {
    let harbor = Server::new(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => reply(200, r#"{"token":"t"}"#),
        ("/v2/hub-proxy/library/nginx/manifests/latest", Some("Bearer t")) => reply(200, "{}"),
        ("/v2/hub-proxy/library/nginx/manifests/latest", None) => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap());
            reply(401, "").with("www-authenticate", realm)
        }
        _ => reply(404, ""),
    })
    .await;
    let own = Server::new(|_| reply(404, "")).await;
    let forebay = Server::new(|seen| match seen.path() {
        "/docker.io/v2/library/redis/manifests/latest" => reply(200, "{}"),
        _ => reply(404, ""),
    })
    .await;
    let mirrors = vec![endpoint(harbor.url("/v2/hub-proxy/")), endpoint(forebay.url("/docker.io"))];
    let bench = bench(Options { mirrors, ..options(own.url("/")) });
    bench.get("library/nginx").await.unwrap();
    let token = harbor.seen().into_iter().find(|seen| seen.path() == "/token").unwrap();
    assert_eq!(token.query("scope"), ["repository:hub-proxy/library/nginx:pull"]);
    bench.get("library/redis").await.unwrap();
    assert_eq!(own.seen().len(), 0);
    // A name that would get too long there is not asked for there.
    let long = format!("a{}", "/b".repeat(125));
    assert!(matches!(bench.get(&long).await.unwrap_err().cause, Cause::NotFound));
    assert!(!harbor.seen().iter().any(|seen| seen.path().contains("/b/")));
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_elsewhere() {
    let mirror =
        Server::new(|_| Reply { stalls: true, ..reply(200, "01234") }.with("content-length", 10)).await;
    let own = Server::new(|seen| match seen.header("range") {
        Some("bytes=5-") => reply(206, "56789").with("content-range", "bytes 5-9/10"),
        _ => reply(500, ""),
    })
    .await;
    let options = Options { idle_timeout: Duration::from_millis(50), ..mirrored(&own, &[&mirror]) };
    let bench = bench(options);
    let first = bench.blob(0, None).await.unwrap();
    assert_eq!(first.total, Some(10));
    assert!(matches!(collect(first).await.unwrap_err().cause, Cause::Trouble(_)));
    assert_eq!(bench.metrics.breakers_open.get(), 1, "the mirror is passed over");
    // A pause that is drawn as nothing lets it be asked again.
    let rest = loop {
        let rest = bench.blob(5, None).await.unwrap();
        if rest.start == 5 {
            break rest;
        }
        drop(rest);
    };
    assert_eq!(collect(rest).await.unwrap(), b"56789");
}

#[tokio::test]
async fn a_mirror_s_wrong_blob_is_not_taken_from_it_again() {
    let mirror = Server::new(|seen| match seen.path() {
        path if path.contains("/blobs/") => reply(200, "y"),
        _ => reply(200, "{}"),
    })
    .await;
    let own = Server::new(|_| reply(200, "x")).await;
    let bench = bench(mirrored(&own, &[&mirror]));
    let wrong = bench.blob(0, None).await.unwrap();
    let giver = wrong.giver.clone();
    assert_eq!(collect(wrong).await.unwrap(), b"y");
    assert!(giver.is_mirror());
    giver.was_wrong(&Digest::sha256(b"x"));
    for _ in 0..3 {
        assert_eq!(collect(bench.blob(0, None).await.unwrap()).await.unwrap(), b"x");
    }
    assert_eq!(mirror.seen().len(), 1);
    bench.get("a").await.unwrap();
    assert_eq!(mirror.count("/v2/a/manifests"), 1, "for the rest it is as good as any");
    // Bytes of a manifest too.
    let wanted = Reference::Digest(Digest::sha256(b"x"));
    let got =
        bench.upstream.manifest_get(Identity::Configured, &anybody(), &name("c"), &wanted).await.unwrap();
    assert_eq!((&got.bytes[..], mirror.count("/v2/c")), (b"x".as_slice(), 0));
}

#[tokio::test]
async fn lists_are_the_upstream_s_own_while_it_answers() {
    let mirror = Server::new(|_| reply(200, r#"{"tags":["held"]}"#)).await;
    let own = Server::new(|seen| match seen.path().split('/').nth(2).unwrap() {
        "broken" => reply(418, ""),
        "missing" => reply(404, ""),
        _ => reply(200, r#"{"tags":["one","two"]}"#),
    })
    .await;
    let bench = bench(mirrored(&own, &[&mirror]));
    let tags = async |repository: &str| {
        let tags = bench.upstream.tags(Identity::Configured, &name(repository)).await;
        tags.map(|tags| tags.len()).map_err(|error| error.cause)
    };
    assert_eq!(tags("well").await.unwrap(), 2);
    assert!(matches!(tags("missing").await, Err(Cause::NotFound)));
    assert_eq!(mirror.seen().len(), 0);
    assert_eq!(tags("broken").await.unwrap(), 1);
}

async fn referrers(bench: &Bench) -> Result<ToldReferrers, Error> {
    let subject = Digest::sha256(b"subject");
    bench.upstream.referrers(Identity::Configured, &anybody(), &name("a"), &subject, None).await
}

#[tokio::test]
async fn a_list_that_stalls_is_no_fault_of_a_mirror() {
    let own = Server::new(|seen| match seen.path() {
        path if path.contains("/tags/") => Reply { stalls: true, ..reply(200, r#"{"tags":["#) },
        _ => Reply { stalls: true, ..reply(200, r#"{"manifests":["#) },
    })
    .await;
    let mirror = Server::new(|seen| match seen.path() {
        path if path.contains("/tags/") => reply(200, r#"{"tags":["held"]}"#),
        path if path.contains("/referrers/") => reply(200, r#"{"manifests":[]}"#),
        _ => reply(200, "{}"),
    })
    .await;
    // As by default, a body may be silent for as long as one request may take.
    let second = Duration::from_secs(1);
    let options = Options { idle_timeout: second, deadline: second, ..mirrored(&own, &[&mirror]) };
    let bench = bench(options);
    assert_eq!(bench.upstream.tags(Identity::Configured, &name("a")).await.unwrap().len(), 1);
    let told = referrers(&bench).await.unwrap();
    assert!(matches!(told, ToldReferrers::Mirrored { referrers, .. } if referrers.is_empty()));
    assert_eq!(bench.metrics.breakers_open.get(), 0);
    bench.get("a").await.unwrap();
    assert_eq!(own.count("/v2/a/manifests"), 0, "the mirror is asked first still");
}

#[tokio::test]
async fn all_pages_of_a_list_share_its_time() {
    let endless = Server::new(|seen| {
        let page: usize = seen.query("page").first().map_or(0, |page| page.parse().unwrap());
        let body = if seen.path().contains("/tags/") { r#"{"tags":[]}"# } else { r#"{"manifests":[]}"# };
        let reply = reply(200, body).with("link", format!("<?page={}>; rel=next", page + 1));
        Reply { delay: Duration::from_millis(100), ..reply }
    })
    .await;
    let bench = bench(Options { deadline: Duration::from_millis(200), ..options(endless.url("/")) });
    let tags = bench.upstream.tags(Identity::Configured, &name("a")).await.unwrap_err();
    let referrers = referrers(&bench).await.unwrap_err();
    for error in [tags, referrers] {
        assert!(matches!(&error.cause, Cause::Trouble(why) if why.contains("`deadline`")), "{error:?}");
    }
    let (tags, referrers) = (endless.count("/v2/a/tags"), endless.count("/v2/a/referrers"));
    assert!(tags < 50 && referrers < 50, "{tags} and {referrers} pages");
}

#[tokio::test]
async fn who_is_left_no_time_is_not_asked() {
    let server = Server::new(|_| reply(200, "{}")).await;
    let bench = bench(Options { deadline: Duration::ZERO, ..mirrored(&server, &[&server]) });
    let error = bench.get("a").await.unwrap_err();
    assert!(matches!(error.cause, Cause::Trouble(_)), "{error:?}");
    assert_eq!((server.seen().len(), bench.metrics.breakers_open.get()), (0, 0));
}

#[tokio::test]
async fn a_mirror_s_referrers_are_told_as_such() {
    let own = Server::new(|seen| match seen.path() {
        path if path.contains("/referrers/") => reply(429, "").with("retry-after", 77),
        _ => reply(404, ""),
    })
    .await;
    let entry = format!(r#"{{"mediaType":"a/b","digest":"{}","size":1}}"#, Digest::sha256(b"entry"));
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    let body = index.clone();
    let with_api = Server::new(move |_| reply(200, body.clone())).await;
    let told = referrers(&bench(mirrored(&own, &[&with_api]))).await.unwrap();
    let ToldReferrers::Mirrored { referrers: listed, error } = told else { panic!("{told:?}") };
    assert_eq!(listed.len(), 1);
    assert!(matches!(error.cause, Cause::Limited(wait) if wait == Duration::from_secs(77)), "{error:?}");

    // It has a fallback tag, of which it is not known whether the upstream reads it.
    let with_tag = Server::new(move |seen| match seen.path() {
        path if path.contains("/referrers/") => reply(404, ""),
        _ => reply(200, index.clone()),
    })
    .await;
    let told = referrers(&bench(mirrored(&own, &[&with_tag]))).await.unwrap();
    assert!(matches!(&told, ToldReferrers::Mirrored { referrers, .. } if referrers.len() == 1), "{told:?}");

    // It has neither: that says nothing of the API that the upstream may have.
    let without = Server::new(|_| reply(404, "")).await;
    let error = referrers(&bench(mirrored(&own, &[&without]))).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Limited(_)), "{error:?}");
}

#[tokio::test]
async fn a_paused_quota_does_not_hold_up_mirrors() {
    let mirror = Server::new(|seen| match seen.path() {
        path if path.contains("/held/") => reply(200, "{}"),
        _ => reply(404, ""),
    })
    .await;
    let own = Server::new(|_| reply(429, "").with("retry-after", 120)).await;
    let bench = bench(mirrored(&own, &[&mirror]));
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Limited(_)));
    assert!(matches!(bench.get("a").await.unwrap_err().cause, Cause::Limited(_)));
    assert_eq!(own.seen().len(), 1);
    bench.get("held").await.unwrap();
    for purpose in [Purpose::Background, Purpose::Revalidation, Purpose::Miss] {
        assert_eq!(bench.upstream.holds_back(Identity::Configured, purpose), None);
        assert_eq!(bench.upstream.holds_back_head(Identity::Configured, purpose), None);
    }
    // Who is not sent to mirrors is held up: a caller's login is for the upstream itself.
    let caller = Identity::Caller(CallerId::from_number(1));
    bench.upstream.quota.pause_gets(caller, None);
    assert!(bench.upstream.holds_back(caller, Purpose::Miss).is_some());
}

#[tokio::test]
async fn a_mirror_without_head_is_in_good_health_and_the_upstream_tells() {
    for status in [405, 501] {
        let script = move |seen: &Seen| match seen.method {
            Method::HEAD => reply(status, ""),
            _ => reply(200, "{}"),
        };
        let mirror = Server::new(script).await;
        let digest = Digest::sha256(b"{}");
        let own = Server::new(move |_| reply(200, "").with("docker-content-digest", digest)).await;
        let bench = bench(mirrored(&own, &[&mirror]));
        for _ in 0..10 {
            assert_eq!(bench.head("a").await.unwrap().digest, Some(digest));
            bench.get("a").await.unwrap();
        }
        assert_eq!((mirror.seen().len(), own.seen().len()), (20, 10));
        assert_eq!(bench.metrics.breakers_open.get(), 0);
        // Of the upstream itself, that it has none is no word on who may pull.
        let alone = super::bench(options(mirror.url("/")));
        assert_eq!(alone.head("a").await.unwrap(), ManifestHead::default());
        let shown = alone.upstream.manifest_shown(Identity::Anonymous, &name("a"), &tag("latest")).await;
        assert!(matches!(shown.unwrap_err().cause, Cause::Trouble(_)));
    }
}

#[tokio::test]
async fn loops_are_seen_and_told() {
    let told = "forebay; error=proxy_loop_detected; details=\"correct `url`\"";
    let server = Server::new(move |_| reply(400, "").with(PROXY_STATUS, told)).await;
    let bench = bench(options(server.url("/")));
    let first = bench.upstream.clone();
    let error = bench.get("a").await.unwrap_err();
    assert!(matches!(&error.cause, Cause::Loop(why) if why == "correct `url`"), "{error:?}");
    assert_eq!(server.seen().len(), 1, "not tried again");
    let via = Hops::read(&server.seen()[0].headers);
    let why = first.closes_loop(&via).unwrap();
    assert!(why.contains("`upstream.\"docker.io\".url`") && why.chars().count() < 200, "{why}");
    assert_eq!(first.closes_loop(&Hops::default()), None);
    // Another one passes the chain on, and is in it then.
    let other = super::bench(options(server.url("/")));
    assert_eq!(other.upstream.closes_loop(&via), None);
    let passed_on = other.upstream.on_behalf(&via);
    passed_on.blob_head(Identity::Anonymous, &name("a"), &Digest::sha256(b"x")).await.unwrap_err();
    let both = Hops::read(&server.seen()[1].headers);
    assert!(first.closes_loop(&both).is_some() && other.upstream.closes_loop(&both).is_some());
    // A mirror through which one comes back is passed over for this one request.
    let own = Server::new(|_| reply(200, "{}")).await;
    let peers = super::bench(mirrored(&own, &[&server]));
    peers.get("a").await.unwrap();
    peers.get("a").await.unwrap();
    assert_eq!(server.seen().len(), 4);
    assert_eq!(peers.metrics.breakers_open.get(), 0);
}
