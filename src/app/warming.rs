//! What the control socket is told to warm with: texts in, the running configuration's mirror at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, stream};

use crate::control::{
    Command, Report, WarmFailed, WarmHeld, WarmLine, WarmProgress, WarmRequest, WarmTotals,
};
use crate::http::Service;
use crate::mirror::{Account, IMAGES_AT_ONCE, Image, Mirror, Tally, Warmed};
use crate::oci::Platforms;

/// How often a client hears of an image's progress.
const TICK: Duration = Duration::from_millis(200);

/// Fetches images by the configuration of the moment.
pub fn warming(service: Arc<ArcSwap<Service>>) -> Command {
    Command::new(move |request, told| {
        let service = service.load_full();
        async move { warm(&service, request, told).await.map(WarmLine::Totals) }.boxed()
    })
}

async fn warm(service: &Service, request: WarmRequest, told: Report<WarmLine>) -> Result<WarmTotals, String> {
    let platforms = Platforms::parse(&request.platforms).map_err(|error| error.to_string())?;
    let Some(content) = &service.content else { return Err("the store cannot be used".to_owned()) };
    let port = Some(service.public.port);
    let images = stream::iter(request.images).map(|text| {
        let (told, platforms, mirror) = (told.clone(), &platforms, &content.mirror);
        async move {
            let ended = match service.owners.image(&text, port) {
                Ok((repository, reference)) => {
                    let image = Image { text: text.clone(), repository, reference };
                    one(mirror, &image, platforms, &told).await
                }
                Err(error) => Err(error.to_string()),
            };
            let (line, totals) = line(text, ended);
            // Whoever asked may have left.
            told.tell(&line).await;
            totals
        }
    });
    let ended: Vec<WarmTotals> = images.buffer_unordered(IMAGES_AT_ONCE).collect().await;
    Ok(ended.into_iter().fold(WarmTotals::default(), |sum, one| WarmTotals {
        held: sum.held + one.held,
        failed: sum.failed + one.failed,
        bytes: sum.bytes + one.bytes,
        bytes_fetched: sum.bytes_fetched + one.bytes_fetched,
    }))
}

async fn one(
    mirror: &Arc<Mirror>,
    image: &Image,
    platforms: &Platforms,
    told: &Report<WarmLine>,
) -> Result<Warmed, String> {
    let tell = progress(told, &image.text, WarmLine::Progress);
    let warmed = mirror.warm(image, platforms, Account::Background, &tell).await;
    warmed.map_err(|error| error.to_string())
}

/// Tells of an image's progress, so often and no more.
pub fn progress<'a, L: serde::Serialize>(
    told: &'a Report<L>,
    image: &'a str,
    line: impl Fn(WarmProgress) -> L + Send + Sync + 'a,
) -> impl Fn(Tally) + Send + Sync + 'a {
    let (begun, next) = (Instant::now(), AtomicU64::new(0));
    move |Tally { bytes, bytes_here, .. }| {
        let now = begun.elapsed().as_millis() as u64;
        let due = next.load(Ordering::Relaxed);
        if now >= due {
            next.store(now + TICK.as_millis() as u64, Ordering::Relaxed);
            // Where the client is slow, it hears of the next.
            told.try_tell(&line(WarmProgress { image: image.to_owned(), bytes, bytes_here }));
        }
    }
}

fn line(image: String, ended: Result<Warmed, String>) -> (WarmLine, WarmTotals) {
    match ended {
        Ok(Warmed { digest, tally, stale }) => {
            let Tally { blobs, bytes, bytes_fetched, .. } = tally;
            let held = WarmHeld { image, digest: digest.to_string(), blobs, bytes, bytes_fetched, stale };
            (WarmLine::Held(held), WarmTotals { held: 1, failed: 0, bytes, bytes_fetched })
        }
        Err(error) => {
            let totals = WarmTotals { failed: 1, ..WarmTotals::default() };
            (WarmLine::Failed(WarmFailed { image, error }), totals)
        }
    }
}
