//! Serving what is held, by plain HTTP/1.1.

use std::path::Path;
use std::time::Duration;

use crate::load::{Asked, Generators, How, Load};
use crate::servers::content::{Content, HUGE, LARGE, MEDIUM, SMALL};
use crate::servers::{Kind, Pair, holding};
use crate::turns::{Part, Run, alternate};

const PART: Part = Part { name: "warm", limit: Duration::from_secs(40), whole: Duration::from_secs(400) };

pub async fn run(run: &mut Run) {
    let scratch = tempfile::tempdir().unwrap();
    let mut works = vec![Load::new(Asked::Digest, How::Plain, 64)];
    works.extend([1, 64, 1000].map(|connections| Load::new(Asked::Tag, How::Heads, connections)));
    works.extend(Load::each(How::Plain));
    serve(run, &PART, works, &Kind::ALL, scratch.path(), None).await;
}

/// Has these do the works of a part. The largest blob is made only if it is asked for, and only those
/// hold it who are asked.
pub async fn serve(
    run: &mut Run,
    part: &Part,
    works: Vec<Load>,
    kinds: &[Kind],
    scratch: &Path,
    pair: Option<&Pair>,
) {
    let works = run.select(part, works);
    if works.is_empty() {
        return;
    }
    let generators = Generators::find(scratch, pair);
    let (huge, ordinary): (Vec<Load>, Vec<Load>) = works
        .into_iter()
        .filter(|work| work.can_run(&generators))
        .partition(|work| work.asked == Asked::Blob(HUGE));
    let (two, turn) = ([Kind::Forebay, Kind::Nginx], run.turn);
    for (works, sizes, kinds) in
        [(ordinary, [SMALL, MEDIUM, LARGE], kinds), (huge, [SMALL, MEDIUM, HUGE], &two)]
    {
        if works.is_empty() {
            continue;
        }
        let ground = tempfile::tempdir_in(scratch).unwrap();
        let content = Content::of(&sizes);
        let upstream = content.upstream(&run.upstreams).await;
        let servers = holding(kinds, ground.path(), &content, &upstream.url(), &run.rivals, pair).await;
        alternate(run, part, &works, &servers, async |work, server| match work.is_for(server.kind) {
            true => Some(work.measure(server, &content, &generators, turn).await),
            false => None,
        })
        .await;
    }
}
