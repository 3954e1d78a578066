//! What was measured, and the tables that say so: those that a run prints, and README's.
//!
//! `tests/docs.rs` uses this file too, so it knows nothing of servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[path = "headlines.rs"]
mod headlines;
pub use headlines::{gaps, readme, retold};

pub const OURS: &str = "Forebay";
/// In the place of a server: no server at all.
pub const STRAIGHT: &str = "no mirror";

/// What a turn of a work came to, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Quantity {
    #[serde(rename = "requests/s")]
    Requests,
    #[serde(rename = "MB/s")]
    Throughput,
    #[serde(rename = "CPU us/request")]
    CpuRequest,
    #[serde(rename = "CPU s/GB")]
    CpuGigabyte,
    #[serde(rename = "CPU s")]
    Cpu,
    #[serde(rename = "wall s")]
    Wall,
    #[serde(rename = "p50 ms")]
    Median,
    #[serde(rename = "p99 ms")]
    Tail,
    #[serde(rename = "first byte ms")]
    FirstByte,
    #[serde(rename = "last first byte ms")]
    LastFirstByte,
    #[serde(rename = "upstream requests")]
    UpstreamRequests,
    #[serde(rename = "upstream MiB")]
    UpstreamMebibytes,
    #[serde(rename = "intact")]
    Intact,
    /// 0 where there is no answer.
    #[serde(rename = "status")]
    Status,
    #[serde(rename = "resident MiB")]
    Resident,
    #[serde(rename = "peak MiB")]
    Peak,
}

use Quantity::{Intact, Requests, Status, Throughput};

impl Quantity {
    pub fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    pub fn show(self, value: f64) -> String {
        match self {
            Self::UpstreamRequests | Intact | Status => format!("{value:.0}"),
            _ => number(value),
        }
    }

    /// How many times better `ours` is than `theirs`; `None` where that says nothing.
    fn advantage(self, ours: f64, theirs: f64) -> Option<f64> {
        let times = match self {
            Intact | Status => return None,
            Requests | Throughput => ours / theirs,
            _ => theirs / ours,
        };
        times.is_finite().then_some(times)
    }
}

/// Empty where the server failed.
pub type Turn = BTreeMap<Quantity, f64>;

#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    pub date: String,
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    /// By server.
    pub versions: BTreeMap<String, String>,
    pub rows: Vec<Row>,
}

/// A work and a server.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub part: String,
    pub work: String,
    pub server: String,
    /// One a round; fewer where a turn takes long.
    pub turns: Vec<Turn>,
}

/// The median of some figures with the lowest and the highest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Figure {
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = figures.collect();
        all.sort_by(f64::total_cmp);
        let (middle, odd) = (all.len() / 2, all.len() % 2 == 1);
        let median = if odd { *all.get(middle)? } else { (all.get(middle)? + all[middle - 1]) / 2.0 };
        Some(Self { median, lowest: *all.first()?, highest: *all.last()? })
    }

    fn show(&self, number: impl Fn(f64) -> String) -> String {
        let [median, lowest, highest] = [self.median, self.lowest, self.highest].map(number);
        if lowest == highest { median } else { format!("{median} ({lowest}-{highest})") }
    }
}

impl Row {
    pub fn figure(&self, quantity: Quantity) -> Option<Figure> {
        Figure::of(self.turns.iter().filter_map(|turn| turn.get(&quantity).copied()))
    }

    pub fn quantities(&self) -> Vec<Quantity> {
        let mut all: Vec<Quantity> = self.turns.iter().flat_map(|turn| turn.keys().copied()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// How many times better this row is than `other`, round by round: what slows one turn down
    /// often slows its neighbour too.
    fn advantage(&self, other: &Self, quantity: Quantity) -> Option<Figure> {
        let rounds = self.turns.len().max(other.turns.len());
        Figure::of((0..rounds).filter_map(|round| {
            let of = |row: &Self| row.turns[round.min(row.turns.len() - 1)].get(&quantity).copied();
            quantity.advantage(of(self)?, of(other)?)
        }))
    }

    fn failures(&self) -> usize {
        self.turns.iter().filter(|turn| turn.is_empty()).count()
    }
}

impl Results {
    pub fn add(&mut self, part: &str, work: &str, server: &str, mut turn: Turn) {
        // No clock here knows more, and the file stays short.
        turn.values_mut().for_each(|value| *value = format!("{value:.4e}").parse().unwrap_or(*value));
        let same = |row: &&mut Row| row.part == part && row.work == work && row.server == server;
        match self.rows.iter_mut().find(same) {
            Some(row) => row.turns.push(turn),
            None => {
                let [part, work, server] = [part, work, server].map(str::to_owned);
                self.rows.push(Row { part, work, server, turns: vec![turn] });
            }
        }
    }

    fn row(&self, part: &str, work: &str, server: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.part == part && row.work == work && row.server == server)
    }

    /// The lines of some works of a part.
    pub fn print(&self, part: &str, works: &[String]) -> String {
        let measured = |work: &&String| self.rows.iter().any(|row| row.part == part && row.work == **work);
        works.iter().filter(measured).map(|work| self.section(part, work)).collect()
    }

    fn section(&self, part: &str, work: &str) -> String {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.part == part && row.work == work).collect();
        let mut quantities: Vec<Quantity> = rows.iter().flat_map(|row| row.quantities()).collect();
        quantities.sort();
        quantities.dedup();
        let mut heading = vec![String::new()];
        heading.extend(quantities.iter().flat_map(|quantity| [quantity.name(), TIMES.to_owned()]));
        let ours = self.row(part, work, OURS);
        let mut lines = vec![heading];
        for row in rows {
            let mut line = vec![row.server.clone()];
            for quantity in &quantities {
                let other = ours.filter(|_| row.server != OURS);
                let times = other.and_then(|ours| ours.advantage(row, *quantity));
                line.push(
                    row.figure(*quantity)
                        .map_or(String::new(), |figure| figure.show(|value| quantity.show(value))),
                );
                line.push(times.map_or(String::new(), |times| times.show(number)));
            }
            match row.failures() {
                0 => {}
                failures => line[0] += &format!(" (fails, {failures} of {})", row.turns.len()),
            }
            lines.push(line);
        }
        format!("\n{part}: {work}\n{}", aligned(&lines))
    }
}

/// Heads the columns that say how many times better Forebay is.
const TIMES: &str = "x";

/// Lines of cells, the first column to the left and the others to the right. Columns with nothing
/// below their heading are left out.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let wide = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(wide).collect();
    let empty = |column: usize| column > 0 && lines.iter().skip(1).all(|line| line[column].is_empty());
    let cell = |(column, text): (usize, &String)| match column {
        0 => format!("  {text:<0$}", widths[0]),
        _ if empty(column) => String::new(),
        _ => format!("  {text:>0$}", widths[column]),
    };
    let show = |line: &Vec<String>| line.iter().enumerate().map(cell).collect::<String>() + "\n";
    lines.iter().map(show).collect()
}

/// Three digits that say something, thousands set apart.
pub fn number(value: f64) -> String {
    match value.abs() {
        small if small < 0.0005 => "0".to_owned(),
        small if small < 0.1 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut text = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            text
        }
    }
}
