//! How `forebay export` and `forebay import` show what they do: bars on a terminal, else lines.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bars::Bars;
use crate::telemetry::size;

/// How often progress is told where it is told in lines.
const TICK: Duration = Duration::from_millis(200);

/// What is told, one JSON object a line with `--json`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    Progress {
        image: String,
        bytes: u64,
        bytes_here: u64,
    },
    Exported(Moved),
    Imported(Moved),
    Failed {
        image: String,
        error: String,
    },
    /// The last one, if every image came to its end.
    Totals(Totals),
}

/// An image that is where it was to go.
#[derive(Serialize)]
pub struct Moved {
    pub image: String,
    /// Its whole name.
    pub name: String,
    pub digest: String,
    pub bytes: u64,
    /// Of these, what was not there before.
    pub bytes_moved: u64,
    pub platforms: Vec<String>,
    /// Manifests of its index that are left out.
    pub left_out: u64,
    /// Why its tag may not be the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    #[serde(flatten)]
    pub count: Count,
    pub failed: u64,
    pub bytes: u64,
    pub bytes_moved: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    Exported(u64),
    Imported(u64),
}

impl Default for Count {
    fn default() -> Self {
        Self::Exported(0)
    }
}

pub struct Output {
    json: bool,
    bars: Option<Bars>,
    next: Instant,
    pub totals: Totals,
}

impl Output {
    /// For so many images, of which none is counted yet.
    pub fn new(json: bool, images: usize, count: Count) -> Self {
        let bars = !json && io::stdout().is_terminal() && io::stderr().is_terminal();
        let totals = Totals { count, ..Totals::default() };
        Self { json, bars: bars.then(|| Bars::new(images)), next: Instant::now(), totals }
    }

    /// Tells how far an image has come, now and then.
    pub fn progress(&mut self, image: &str, bytes: u64, bytes_here: u64) -> io::Result<()> {
        if let Some(bars) = &mut self.bars {
            bars.progress(image, bytes, bytes_here);
        } else if self.json && Instant::now() >= self.next {
            self.next = Instant::now() + TICK;
            return line(&Told::Progress { image: image.to_owned(), bytes, bytes_here });
        }
        Ok(())
    }

    pub fn moved(&mut self, moved: Moved) -> io::Result<()> {
        self.totals.bytes += moved.bytes;
        self.totals.bytes_moved += moved.bytes_moved;
        if let Some(bars) = &mut self.bars {
            bars.ended(&moved.image);
        }
        let (verb, told) = match &mut self.totals.count {
            Count::Exported(count) => {
                *count += 1;
                ("exported", Told::Exported as fn(Moved) -> Told)
            }
            Count::Imported(count) => {
                *count += 1;
                ("imported", Told::Imported as fn(Moved) -> Told)
            }
        };
        if self.json { line(&told(moved)) } else { self.say(&sentence(verb, &moved)) }
    }

    /// What failed goes to standard error.
    pub fn failed(&mut self, image: &str, error: &str) -> io::Result<()> {
        self.totals.failed += 1;
        if let Some(bars) = &mut self.bars {
            bars.ended(image);
        }
        self.warn(&format!("failed    {image}  {error}"));
        if !self.json {
            return Ok(());
        }
        line(&Told::Failed { image: image.to_owned(), error: error.to_owned() })
    }

    pub fn warn(&self, text: &str) {
        let warn = || eprintln!("forebay: {text}");
        self.bars.as_ref().map_or_else(warn, |bars| bars.above(warn));
    }

    pub fn end(&mut self) -> io::Result<()> {
        if let Some(bars) = &mut self.bars {
            bars.finish();
        }
        if self.json { line(&Told::Totals(self.totals)) } else { self.say(&summed(&self.totals)) }?;
        io::stdout().flush()
    }

    fn say(&self, text: &str) -> io::Result<()> {
        let say = || writeln!(io::stdout(), "{text}");
        self.bars.as_ref().map_or_else(say, |bars| bars.above(say))
    }
}

fn line(told: &Told) -> io::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string(told)?)
}

fn sentence(verb: &str, moved: &Moved) -> String {
    let Moved { name, digest, bytes, bytes_moved, platforms, left_out, stale, .. } = moved;
    let new = match bytes_moved {
        0 => "there already".to_owned(),
        new if new == bytes => "all of it new".to_owned(),
        new => format!("{} of it new", size(*new)),
    };
    let platforms = match (platforms.is_empty(), left_out) {
        (true, _) => String::new(),
        (false, 0) => format!("; {}", platforms.join(", ")),
        (false, left_out) => format!("; {}, {left_out} more of the index left out", platforms.join(", ")),
    };
    let stale = stale.as_ref().map_or(String::new(), |why| format!("; may not be current: {why}"));
    format!("{verb}  {name}  {digest}  {}, {new}{platforms}{stale}", size(*bytes))
}

fn summed(totals: &Totals) -> String {
    let Totals { count, failed, bytes, bytes_moved } = *totals;
    let (verb, count) = match count {
        Count::Exported(count) => ("exported", count),
        Count::Imported(count) => ("imported", count),
    };
    let plural = if count == 1 { "" } else { "s" };
    let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
    format!("{count} image{plural} {verb}{failed}: {}, of it {} new", size(bytes), size(bytes_moved))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(bytes_moved: u64, left_out: u64) -> Moved {
        let platforms = vec!["linux/amd64".to_owned()];
        let (image, name, digest) = ("a".into(), "docker.io/library/a:1".into(), "sha256:00".into());
        Moved { image, name, digest, bytes: 2 << 20, bytes_moved, platforms, left_out, stale: None }
    }

    #[test]
    fn lines_read_well() {
        assert_eq!(
            sentence("exported", &moved(2 << 20, 0)),
            "exported  docker.io/library/a:1  sha256:00  2.0 MiB, all of it new; linux/amd64"
        );
        let told = sentence("imported", &moved(1 << 20, 3));
        assert!(
            told.ends_with("2.0 MiB, 1.0 MiB of it new; linux/amd64, 3 more of the index left out"),
            "{told}"
        );
        let stale = Moved { stale: Some("why".into()), platforms: vec![], ..moved(0, 0) };
        assert!(sentence("exported", &stale).ends_with("2.0 MiB, there already; may not be current: why"));
        let totals = Totals { count: Count::Imported(1), failed: 2, bytes: 2 << 20, bytes_moved: 1 << 20 };
        assert_eq!(summed(&totals), "1 image imported, 2 failed: 2.0 MiB, of it 1.0 MiB new");
    }

    /// What other programs read: these lines are a format.
    #[test]
    fn lines_are_as_documented() {
        let json = |told: &Told| serde_json::to_string(told).unwrap();
        assert_eq!(
            json(&Told::Imported(moved(3, 1))),
            r#"{"imported":{"image":"a","name":"docker.io/library/a:1","digest":"sha256:00","bytes":2097152,"bytes_moved":3,"platforms":["linux/amd64"],"left_out":1}}"#
        );
        let totals = Totals { count: Count::Exported(1), failed: 2, bytes: 3, bytes_moved: 4 };
        assert_eq!(
            json(&Told::Totals(totals)),
            r#"{"totals":{"exported":1,"failed":2,"bytes":3,"bytes_moved":4}}"#
        );
    }
}
