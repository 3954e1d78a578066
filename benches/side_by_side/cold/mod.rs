//! What clients get while upstream is slow, thin, broken or gone: Forebay beside docker-registry,
//! each with nothing held and a scripted upstream of its own.

mod ground;
mod rows;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::{Selection, bounded};
use ground::{Ground, Kind};
use rows::Row;

/// One row of one server, its start and end included.
const ROW: Duration = Duration::from_secs(45);
/// All rows of both servers.
const PART: Duration = Duration::from_secs(170);

/// False where nothing of this part is selected.
pub async fn run(selection: &Selection, upstreams: &Handle) -> bool {
    let rows: Vec<Row> = Row::ALL.into_iter().filter(|row| selection.takes("cold", row.name())).collect();
    if rows.is_empty() {
        return false;
    }
    // A server that fails is a result; a line about it is enough.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("  {}", panic.to_string().lines().nth(1).unwrap_or("a failure without a reason"));
    }));
    let end = Instant::now() + PART;
    let peaks: [Arc<AtomicU64>; Kind::ALL.len()] = Default::default();
    let mut table = vec![("cold".to_owned(), Kind::ALL.map(|kind| kind.name().to_owned()))];
    for row in rows {
        let mut cells = [const { String::new() }; Kind::ALL.len()];
        for ((kind, peak), cell) in Kind::ALL.into_iter().zip(&peaks).zip(&mut cells) {
            eprintln!("{}: {}", row.name(), kind.name());
            let ground = Ground::new(kind, upstreams, peak);
            let limit = ROW.min(end.saturating_duration_since(Instant::now()));
            *cell = bounded(limit, row.run(&ground)).await.unwrap_or_else(|failure| failure);
        }
        table.push((row.name().to_owned(), cells));
    }
    std::panic::set_hook(hook);
    let mib = peaks.map(|peak| format!("{} MiB", peak.load(Ordering::Relaxed) >> 10));
    table.push(("peak resident memory in all of these".to_owned(), mib));
    print(&table);
    true
}

/// The table, its first row being the heading.
fn print(table: &[(String, [String; Kind::ALL.len()])]) {
    let wide =
        |cell: fn(&(String, [String; 2])) -> &str| table.iter().map(|row| cell(row).len()).max().unwrap_or(0);
    let (name, ours) = (wide(|row| &row.0), wide(|row| &row.1[0]));
    println!();
    for (work, cells) in table {
        println!("{work:<name$}  {:<ours$}  {}", cells[0], cells[1]);
    }
}
