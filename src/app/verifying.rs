//! What the control socket is told to verify with.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;

use crate::control::{self, Command, Report, VerifyFound, VerifyLine, VerifyProgress, VerifyRequest};
use crate::mirror::{Finding, Found, Named, Progress, Scrubber, VerifyTotals};
use crate::store::{LinkFault, Part};

/// How often a client hears how far it has come.
const TICK: Duration = Duration::from_millis(500);

/// Checks all that is held; the scrubber logs what it finds.
pub fn verifying(scrubber: Arc<Scrubber>) -> Command {
    Command::new(move |request, told| verify(scrubber.clone(), request, told).boxed())
}

async fn verify(
    scrubber: Arc<Scrubber>,
    request: VerifyRequest,
    told: Report<VerifyLine>,
) -> Result<VerifyLine, String> {
    let (report, mut findings) = mpsc::channel(1);
    let progress: Arc<Progress> = Arc::default();
    let tell = async {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                finding = findings.recv() => match finding {
                    // Whoever asked may have left.
                    Some(finding) => drop(told.tell(&VerifyLine::Found(line(finding))).await),
                    None => return,
                },
                // Where the client is slow, it hears of the next.
                _ = tick.tick() => told.try_tell(&VerifyLine::Progress(seen(&progress))),
            }
        }
    };
    let (ended, ()) = tokio::join!(scrubber.verify(request.repair, request.rate, report, &progress), tell);
    let VerifyTotals { blobs, bytes, repositories, links, wrong, mended } =
        ended.map_err(|error| error.to_string())?;
    let totals = control::VerifyTotals { blobs, bytes, repositories, links, wrong, repaired: mended };
    Ok(VerifyLine::Totals(totals))
}

fn seen(progress: &Progress) -> VerifyProgress {
    let Progress { blobs, bytes, repositories } = progress;
    let [blobs, bytes, repositories] =
        [blobs, bytes, repositories].map(|count| count.load(Ordering::Relaxed));
    VerifyProgress { blobs, bytes, repositories }
}

fn line(finding: Finding) -> VerifyFound {
    let problem = finding.problem();
    let (what, subject, repositories) = match &finding.found {
        Found::Data(damage) => ("data", damage.digest.to_string(), damage.repositories()),
        Found::Link(repository, fault) => {
            let what = match fault {
                LinkFault::Dangling { part: Part::Blob, .. }
                | LinkFault::Illegible { part: Part::Blob, .. } => "blob",
                LinkFault::Dangling { .. } | LinkFault::Illegible { .. } => "manifest",
                LinkFault::Tag { .. } => "tag",
                LinkFault::Incomplete { .. } => "image",
            };
            (what, Named(fault).to_string(), vec![repository.clone()])
        }
    };
    let Finding { images, done, .. } = finding;
    let (what, push, repaired) = (what.to_owned(), done.needs_push(), done.is_mended());
    VerifyFound { what, subject, repositories, images, problem, done: done.to_string(), push, repaired }
}
