//! How `forebay warm` shows what it does: bars on a terminal, else lines.

use std::io::{self, Write};

use super::bars::Bars;
use crate::control::{WarmFailed, WarmHeld, WarmLine, WarmProgress, WarmTotals};
use crate::telemetry::size;

pub struct Output {
    json: bool,
    bars: Option<Bars>,
}

impl Output {
    /// For so many images.
    pub fn new(json: bool, bars: bool, images: usize) -> Self {
        Self { json, bars: bars.then(|| Bars::new(images)) }
    }

    /// Shows a line; `text` is it as it came. What failed goes to standard error.
    pub fn line(&mut self, line: &WarmLine, text: &str) -> io::Result<()> {
        if self.json {
            if let WarmLine::Failed(failed) = line {
                eprintln!("forebay: {}", told_failed(failed));
            }
            return writeln!(io::stdout(), "{text}");
        }
        if let Some(bars) = &mut self.bars {
            match line {
                WarmLine::Progress(WarmProgress { image, bytes, bytes_here }) => {
                    bars.progress(image, *bytes, *bytes_here)
                }
                WarmLine::Held(WarmHeld { image, .. }) | WarmLine::Failed(WarmFailed { image, .. }) => {
                    bars.ended(image)
                }
                WarmLine::Totals(_) | WarmLine::Error(_) => bars.finish(),
            }
        }
        let told = match line {
            WarmLine::Held(held) => told_held(held),
            WarmLine::Totals(totals) => summed(totals),
            WarmLine::Failed(failed) => {
                self.above(|| {
                    eprintln!("forebay: {}", told_failed(failed));
                    Ok(())
                })?;
                return Ok(());
            }
            WarmLine::Progress(_) | WarmLine::Error(_) => return Ok(()),
        };
        self.above(|| writeln!(io::stdout(), "{told}"))
    }

    /// Writes where no bar is in the way.
    fn above(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.bars {
            Some(bars) => bars.above(write),
            None => write(),
        }
    }
}

fn told_held(held: &WarmHeld) -> String {
    let WarmHeld { image, digest, bytes, bytes_fetched, stale, .. } = held;
    let what = match bytes_fetched {
        0 => format!("{} held already", size(*bytes)),
        fetched if fetched == bytes => format!("{} fetched", size(*fetched)),
        fetched => format!("{} of {} fetched", size(*fetched), size(*bytes)),
    };
    let stale = stale.as_ref().map_or(String::new(), |why| format!("; may not be current: {why}"));
    format!("held    {image}  {digest}  {what}{stale}")
}

fn told_failed(failed: &WarmFailed) -> String {
    format!("failed  {}  {}", failed.image, failed.error)
}

fn summed(totals: &WarmTotals) -> String {
    let WarmTotals { held, failed, bytes, bytes_fetched } = *totals;
    let images = |count: u64| format!("{count} image{}", if count == 1 { "" } else { "s" });
    let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
    format!("{} held{failed}: {}, of it {} fetched now", images(held), size(bytes), size(bytes_fetched))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_well() {
        let held = |bytes_fetched, stale: Option<&str>| {
            told_held(&WarmHeld {
                image: "nginx:1".into(),
                digest: "sha256:00".into(),
                blobs: 3,
                bytes: 2 << 20,
                bytes_fetched,
                stale: stale.map(Into::into),
            })
        };
        assert_eq!(held(0, None), "held    nginx:1  sha256:00  2.0 MiB held already");
        assert_eq!(held(2 << 20, None), "held    nginx:1  sha256:00  2.0 MiB fetched");
        let told = held(1 << 20, Some("why"));
        assert_eq!(told, "held    nginx:1  sha256:00  1.0 MiB of 2.0 MiB fetched; may not be current: why");
        let totals = WarmTotals { held: 1, failed: 2, bytes: 2 << 20, bytes_fetched: 1 << 20 };
        assert_eq!(summed(&totals), "1 image held, 2 failed: 2.0 MiB, of it 1.0 MiB fetched now");
    }

    #[test]
    fn bars_take_every_line() {
        let mut output = Output::new(false, true, 2);
        let progress =
            |bytes_here| WarmLine::Progress(WarmProgress { image: "a".into(), bytes: 10, bytes_here });
        let failed = WarmLine::Failed(WarmFailed { image: "a".into(), error: "why".into() });
        for line in [progress(0), progress(20), failed, WarmLine::Totals(WarmTotals::default())] {
            output.line(&line, "").unwrap();
        }
        assert!(output.bars.unwrap().is_idle());
    }
}
