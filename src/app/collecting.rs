//! What the control socket is told to collect with.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::mpsc;

use crate::control::{self, Command, GcRequest, Line, Report};
use crate::registry::{Collector, Removed, Totals, What};

/// Collects garbage, which the collector logs.
pub fn collecting(collector: Arc<Collector>) -> Command {
    Command::new(move |request, told| collect(collector.clone(), request, told).boxed())
}

async fn collect(collector: Arc<Collector>, request: GcRequest, told: Report<Line>) -> Result<Line, String> {
    let (report, mut removed) = mpsc::channel(1);
    let tell = async {
        while let Some(removed) = removed.recv().await {
            // Whoever asked may have left.
            told.tell(&Line::Removed(line(removed))).await;
        }
    };
    let (ended, ()) = tokio::join!(collector.run(request.dry_run, report), tell);
    let Totals { tags, manifests, links, blobs, bytes } = ended.map_err(|error| error.to_string())?;
    Ok(Line::Totals(control::Totals { tags, manifests, links, blobs, bytes }))
}

fn line(removed: Removed) -> control::Removed {
    let Removed { repository, what, subject, bytes } = removed;
    let what = match what {
        What::Tag => "tag",
        What::Manifest => "manifest",
        What::Link => "link",
        What::Blob => "blob",
    };
    control::Removed { what: what.to_owned(), repository, subject, bytes }
}
