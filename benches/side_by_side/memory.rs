//! What servers keep in memory: idle, and while a thousand slow clients read.

use std::time::Duration;

use crate::load::slow::readers;
use crate::report::{Quantity, Turn};
use crate::servers::content::{Content, LARGE, SMALL};
use crate::servers::{Kind, Server, holding};
use crate::turns::{Named, Part, Run, alternate, watched};

const PART: Part = Part { name: "memory", limit: Duration::from_secs(40), whole: Duration::from_secs(180) };

const READERS: usize = 1000;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Idle,
    Slow,
}

impl Named for Work {
    fn name(&self) -> String {
        match self {
            Self::Idle => "idle, after a few pulls".to_owned(),
            Self::Slow => format!("{READERS} slow readers of a held 64 MiB blob"),
        }
    }
}

pub async fn run(run: &mut Run) {
    let works = run.select(&PART, [Work::Idle, Work::Slow]);
    if works.is_empty() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let content = Content::of(&[SMALL, LARGE]);
    let upstream = content.upstream(&run.upstreams).await;
    let servers = holding(&Kind::ALL, scratch.path(), &content, &upstream.url(), &run.rivals, None).await;
    let (turn, path) = (run.turn * 4, content.blob_path(LARGE));
    // One after the other: what many readers leave behind is no idle server's.
    for work in works {
        alternate(run, &PART, &[work], &servers, async |work, server| {
            Some(match work {
                Work::Idle => Turn::from([(Quantity::Resident, server.resident_mib())]),
                Work::Slow => slow(server, &path, turn).await,
            })
        })
        .await;
    }
}

async fn slow(server: &Server, path: &str, turn: Duration) -> Turn {
    let (served, cost) = watched(server, readers(&server.address, path, READERS, turn)).await;
    cost.turn([(Quantity::Intact, served as f64), (Quantity::Cpu, cost.cpu)])
}
