//! Bodies of blobs that break, lie or never come.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::bench::{Bench, Reply};
use crate::support::faulty::{Cut, Fault, Upstream};
use crate::support::image::random_bytes;
use crate::support::process::Wait;
use crate::support::sha256;
use crate::support::token::TokenServer;

const SIZE: usize = 300_000;
/// Where bodies break.
const PART: u64 = 100_000;

/// What the client is to see of a blob.
enum Sees {
    Whole,
    /// A body that breaks off.
    Broken,
    /// Status, code, and parts of the message.
    Refused(u16, &'static str, &'static [&'static str]),
}

use Sees::{Broken, Refused, Whole};

/// One blob and what happens to it, in a repository named after it.
struct Case {
    name: &'static str,
    bytes: Bytes,
    /// What each answer suffers, in turn. The last holds for all that follow where `for_ever`.
    answers: Vec<Vec<Fault>>,
    for_ever: bool,
    sees: Sees,
}

/// The first answers suffer so, and then all is well.
fn once<const N: usize>(name: &'static str, answers: [Vec<Fault>; N], sees: Sees) -> Case {
    // Other bytes for every name, and so a fill of its own.
    let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    let bytes = Bytes::from(random_bytes(seed, SIZE));
    Case { name, bytes, answers: answers.to_vec(), for_ever: false, sees }
}

/// The first answers suffer so, and the last of them again and again.
fn always<const N: usize>(name: &'static str, answers: [Vec<Fault>; N], sees: Sees) -> Case {
    Case { for_ever: true, ..once(name, answers, sees) }
}

impl Case {
    fn digest(&self) -> String {
        sha256(&self.bytes)
    }

    fn path(&self) -> String {
        format!("blobs/{}/blobs/{}", self.name, self.digest())
    }

    fn set_up(&self, upstream: &Upstream) {
        upstream.put_blob(&format!("blobs/{}", self.name), self.bytes.clone());
        for (number, faults) in self.answers.iter().enumerate() {
            let last = number + 1 == self.answers.len();
            let mut rule = upstream.on("GET", &self.path());
            if !(last && self.for_ever) {
                rule = rule.times(1);
            }
            for fault in faults {
                rule = rule.then(fault.clone());
            }
        }
    }

    fn check(&self, reply: &Reply) {
        match self.sees {
            Whole => reply.gives(&self.bytes),
            Broken => {
                reply.breaks();
                // The last bytes are held back until the digest is known.
                assert!(reply.body.len() < SIZE, "{reply}");
            }
            Refused(status, code, says) => {
                reply.refuses(status, code, &[says, &[&self.digest(), self.name]].concat());
            }
        }
    }
}

fn cut(after: u64) -> Fault {
    Fault::Cut { after, how: Cut::Fin }
}

fn resized() -> Fault {
    let range = format!("bytes {PART}-{}/{}", SIZE, SIZE + 1);
    Fault::Header("Content-Range", range)
}

fn cases() -> Vec<Case> {
    let reset = |after| Fault::Cut { after, how: Cut::Reset };
    let stall = |after| Fault::Stall { after };
    let unknown = |says| Refused(404, "BLOB_UNKNOWN", says);
    vec![
        once("cut", [vec![cut(PART)]], Whole),
        once("cut-by-reset", [vec![reset(PART)]], Whole),
        once("cut-behind-the-head", [vec![cut(0)]], Whole),
        always("cut-into-slices", [vec![cut(PART)]], Whole),
        always("cut-for-good", [vec![cut(PART)], vec![cut(0)]], Broken),
        always("reset-for-good", [vec![reset(PART)], vec![Fault::Reset]], Broken),
        once("stalled", [vec![stall(PART)]], Whole),
        always("stalled-for-good", [vec![stall(PART)], vec![stall(0)]], Broken),
        once("flipped-bit", [vec![Fault::Flip(12_345)]], Broken),
        once("flipped-last-bit", [vec![Fault::Flip(SIZE - 1)]], Broken),
        once("length-too-large", [vec![Fault::Length(SIZE as u64 + 100)]], Broken),
        once("length-too-small", [vec![Fault::Length(SIZE as u64 - 100)]], Broken),
        once("bytes-too-many", [vec![Fault::Append(7)]], Broken),
        once("chunked", [vec![Fault::Chunked]], Whole),
        once("chunked-and-cut", [vec![Fault::Chunked, cut(PART)]], Whole),
        once("chunked-and-flipped", [vec![Fault::Chunked, Fault::Flip(SIZE - 1)]], Broken),
        once("no-length", [vec![Fault::CloseDelimited]], Whole),
        // Without a length, a cut cannot be told from the end: only the digest shows it.
        once("no-length-and-cut", [vec![Fault::CloseDelimited, cut(PART)]], Broken),
        once("another-digest-told", [vec![Fault::Header("Docker-Content-Digest", sha256(b"x"))]], Whole),
        once("range-ignored", [vec![cut(PART)], vec![Fault::IgnoreRange]], Whole),
        once("resized", [vec![cut(PART)], vec![resized()]], Broken),
        once("resized-whole", [vec![cut(PART)], vec![Fault::IgnoreRange, Fault::Append(1)]], Broken),
        once("gone-at-resume", [vec![cut(PART)], vec![Fault::status(404)]], Broken),
        once("passing-reset", [vec![Fault::Reset]], Whole),
        once("passing-500", [vec![Fault::status(500)]], Whole),
        always("reset", [vec![Fault::Reset]], unknown(&["cannot be had"])),
        always("silent", [vec![Fault::Delay(Duration::MAX)]], unknown(&["cannot be had"])),
        always(
            "error-500",
            [vec![Fault::status(500)]],
            unknown(&["cannot be had", "500", "told to answer 500"]),
        ),
        always("error-503", [vec![Fault::status(503)]], unknown(&["cannot be had", "503"])),
        always(
            "login-page",
            [vec![Fault::login_page()]],
            unknown(&["a page of HTML", "login page in between?"]),
        ),
        always("compressed", [vec![Fault::Gzip]], unknown(&["encoded as gzip"])),
        always("missing", [vec![Fault::status(404)]], unknown(&["not known"])),
        always("forbidden", [vec![Fault::status(403)]], Refused(403, "DENIED", &["`private = \"shared\"`"])),
        always(
            "login-wanted",
            [vec![Fault::status(401)]],
            Refused(403, "DENIED", &["does not say how to log in"]),
        ),
        always(
            "limited",
            [vec![Fault::status_with(429, "Retry-After", 2)]],
            Refused(429, "TOOMANYREQUESTS", &["rate limit", "try again in"]),
        ),
    ]
}

#[tokio::test]
async fn no_wrong_blob_ends_cleanly_or_stays() {
    let mut bench = Bench::start().await;
    let cases = cases();
    cases.iter().for_each(|case| case.set_up(&bench.upstream));
    assert_eq!(cases.iter().map(Case::digest).collect::<BTreeSet<_>>().len(), cases.len());
    join_all(cases.iter().map(async |case| case.check(&bench.get(&case.path()).await))).await;

    let whole = cases.iter().filter(|case| matches!(case.sees, Whole)).map(Case::digest);
    let whole: BTreeSet<String> = whole.collect();
    bench.keeps(&whole.iter().collect::<Vec<_>>()).await;
    assert_eq!(bench.held().await, whole);
    let ended = async |how| bench.metric(&format!("forebay_fills_total{{result=\"{how}\"}}")).await;
    assert_eq!(ended("committed").await as usize, whole.len());
    assert!(ended("corrupt").await >= 6.0 && ended("failed").await >= 10.0);
    assert!(bench.metric("forebay_fill_resumes_total").await >= 10.0);

    // What failed leaves nothing behind that would hinder the next try.
    bench.upstream.clear_rules();
    join_all(cases.iter().map(async |case| bench.get_at_last(&case.path()).await.gives(&case.bytes))).await;
    bench.keeps(&cases.iter().map(Case::digest).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_broken_body_is_taken_up_where_it_broke() {
    let mut bench = Bench::start().await;
    let case = once("resumed", [vec![cut(PART)], vec![cut(PART)]], Whole);
    case.set_up(&bench.upstream);
    case.check(&bench.get(&case.path()).await);
    let ranges = bench.upstream.requests_for("GET", "/blobs/");
    let ranges: Vec<_> = ranges.iter().map(|seen| seen.headers.get("range").map(str::to_owned)).collect();
    let from = |at: u64| Some(format!("bytes={at}-"));
    assert_eq!(ranges, [None, from(PART), from(2 * PART)]);
    assert_eq!(bench.metric("forebay_fill_resumes_total").await, 2.0);
    bench.keeps(&[&case.digest()]).await;
    // From disk now.
    case.check(&bench.get(&case.path()).await);
    assert_eq!(bench.asked("GET", "/blobs/"), 3);
}

#[tokio::test]
async fn everybody_who_waits_sees_a_wrong_body_break() {
    let mut bench = Bench::start().await;
    let case = once("shared", [vec![Fault::Flip(5), Fault::Rate(200_000)]], Broken);
    case.set_up(&bench.upstream);
    let replies = join_all((0..8).map(async |_| {
        // A rate that lets all of them in while the first body flows.
        bench.get(&case.path()).await
    }))
    .await;
    assert_eq!(bench.asked("GET", "/blobs/"), 1);
    replies.iter().for_each(Reply::breaks);
    assert_eq!(bench.held().await, BTreeSet::new());
}

#[tokio::test]
async fn connections_that_are_reset_at_once_are_tried_again() {
    let mut bench = Bench::start().await;
    let image = bench.put_image("library/x", "1", 1);
    bench.upstream.refuse(2);
    bench.pull(&image).await;
    let cold = bench.put_image("library/y", "1", 2);
    // No connection of before is left to be used again.
    bench.upstream.stop().await;
    bench.upstream.refuse(u64::MAX);
    bench.upstream.restart().await;
    bench.get(&cold.by_tag()).await.refuses(503, "UNAVAILABLE", &["docker.io/library/y:1", "cannot be had"]);
    bench.get(&cold.blob(&cold.layer)).await.refuses(404, "BLOB_UNKNOWN", &["cannot be had"]);
    bench.get(&image.blob(&image.layer)).await.gives(&image.layer.bytes);
    bench.get(&image.by_tag()).await.is_held_stale("library/x:1");
    assert_eq!(bench.held().await.len(), 3);
    bench.upstream.refuse(0);
    bench.get_at_last(&cold.by_tag()).await.gives(&cold.manifest.bytes);
}

#[tokio::test]
async fn a_token_that_expires_within_a_body_is_replaced_once() {
    let tokens = TokenServer::start().await;
    tokens.allow_anonymous("*", "pull");
    let mut bench = Bench::start().await;
    bench.upstream.protect(&tokens);
    let case = once("expiring", [vec![], vec![Fault::Stall { after: PART }]], Whole);
    case.set_up(&bench.upstream);
    let expire = async {
        let wait = Wait::for_("a part of the body");
        let part_sent = || bench.upstream.requests().last().is_some_and(|seen| seen.sent() == PART);
        while !part_sent() {
            wait.a_little().await;
        }
        assert_eq!(tokens.requests().len(), 1);
        bench.upstream.expire_tokens();
    };
    let path = case.path();
    let (reply, ()) = tokio::join!(bench.get(&path), expire);
    case.check(&reply);
    assert_eq!(tokens.requests().len(), 2);
    bench.keeps(&[&case.digest()]).await;
}
