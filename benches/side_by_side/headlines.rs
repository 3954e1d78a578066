//! README's table: a row a work, and what it is in Forebay and beside each rival.

use super::{Figure, OURS, Quantity, Results, Row, STRAIGHT, number};

/// Part, work, what of it is told.
const ROWS: &[(&str, &str, Quantity)] = &[
    ("warm", "manifest HEAD by tag, 64 connections", Quantity::Requests),
    ("warm", "manifest GET by tag, 64 connections", Quantity::Requests),
    ("warm", "manifest GET by digest, 64 connections", Quantity::Requests),
    ("cold", "warm tag GET, 64 clients, upstream answers after 50 ms", Quantity::Requests),
    ("warm", "blob GET, 10 KiB, 64 connections", Quantity::Requests),
    ("warm", "blob GET, 10 KiB, 64 connections", Quantity::CpuRequest),
    ("warm", "blob GET, 1 MiB, 64 connections", Quantity::CpuGigabyte),
    ("warm", "blob GET, 64 MiB, 64 connections", Quantity::CpuGigabyte),
    ("warm", "blob GET, 1 GiB, 4 connections", Quantity::CpuGigabyte),
    ("tls", "blob GET, 64 MiB, TLS, 64 connections", Quantity::CpuGigabyte),
    ("tls", "blob GET, 64 MiB, HTTP/2, 64 connections", Quantity::CpuGigabyte),
    ("tls", "new connection, manifest GET by tag, TLS, 32 connections", Quantity::CpuRequest),
    ("beside", "small GET beside 64 streams of a hot 64 MiB blob", Quantity::Tail),
    ("beside", "small GET beside 4 streams of cold 512 MiB blobs", Quantity::Tail),
    ("cold", "1 client, one cold 256 MiB blob, 300 MB/s from upstream", Quantity::Wall),
    ("cold", "1 client, one cold 256 MiB blob, 300 MB/s from upstream", Quantity::CpuGigabyte),
    ("cold", "1 client, one cold 512 MiB blob, as fast as upstream sends", Quantity::CpuGigabyte),
    ("cold", "20 clients, one cold 100 MiB blob, 100 MiB/s from upstream", Quantity::Wall),
    ("cold", "20 clients, one cold 100 MiB blob, 100 MiB/s from upstream", Quantity::UpstreamMebibytes),
    ("cold", "200 clients, one cold 256 MiB blob, 300 MB/s from upstream", Quantity::Wall),
    ("cold", "200 clients, one cold 256 MiB blob, 300 MB/s from upstream", Quantity::Peak),
    ("cold", "100 cold GETs of one tag at once, upstream answers after 100 ms", Quantity::Wall),
    ("cold", "20 clients, one cold 32 MiB blob, upstream sends RST after each 16 MiB", Quantity::Intact),
    ("cold", "held tag after a restart, upstream is down", Quantity::Status),
    ("cold", "tag that is not held, upstream is down", Quantity::Status),
    ("push", "push of an image of one 64 MiB layer", Quantity::Wall),
    ("push", "push of an image of 100 layers of 16 KiB, 5 at once", Quantity::Wall),
    ("pull", "skopeo pulls a held image of 6 layers, 120 MiB", Quantity::Wall),
    ("pull", "containerd pulls a held image of 6 layers, 120 MiB", Quantity::Wall),
    ("memory", "idle, after a few pulls", Quantity::Resident),
    ("memory", "1000 slow readers of a held 64 MiB blob", Quantity::Peak),
];

const RIVALS: [&str; 5] = ["nginx", "docker-registry", "distribution 3", "zot", STRAIGHT];

/// What README's table stands between.
const MARKS: [&str; 2] = ["<!-- measured: written by the harness -->\n", "<!-- measured: end -->"];

/// README with another table.
pub fn retold(document: &str, table: &str) -> Option<String> {
    let (before, rest) = document.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some([before, MARKS[0], table, MARKS[1], after].concat())
}

/// What the table would leave out.
pub fn gaps(results: &Results) -> impl Iterator<Item = &'static str> {
    ROWS.iter().filter(|(part, work, _)| results.row(part, work, OURS).is_none()).map(|(_, work, _)| *work)
}

/// The table with the line that says where its figures come from.
pub fn readme(results: &Results) -> String {
    let there = |rival: &&str| results.rows.iter().any(|row| row.server == **rival);
    let rivals: Vec<&str> = RIVALS.into_iter().filter(there).collect();
    let mut headings = format!("| | {OURS}");
    for rival in &rivals {
        let version = results.versions.get(*rival).map_or(String::new(), |version| format!(" {version}"));
        headings += &format!(" | {rival}{version}");
    }
    let mut text = format!(
        "Made on {}: Linux {}, {} cores, {}.\n\n{headings} |\n|---|{}\n",
        results.date,
        results.kernel,
        results.cores,
        results.processor,
        "---|".repeat(rivals.len() + 1)
    );
    for (part, work, quantity) in ROWS {
        let Some(ours) = results.row(part, work, OURS) else { continue };
        let of = |rival: &&str| cell(ours, results.row(part, work, rival), *quantity);
        let cells: Vec<String> = rivals.iter().map(of).collect();
        let figure = ours.figure(*quantity).map_or("fails".to_owned(), |figure| quantity.show(figure.median));
        text += &format!("| {work}: {} | {figure} | {} |\n", quantity.name(), cells.join(" | "));
    }
    text
}

/// How many times better than a rival we are, with the spread; its own figure where that says nothing.
fn cell(ours: &Row, theirs: Option<&Row>, quantity: Quantity) -> String {
    let Some(theirs) = theirs else { return String::new() };
    // Where it is tens, the spread says no more.
    let times = |times: Figure| match times.median >= 10.0 {
        true => format!("{} ×", number(times.median)),
        false => format!("{} ×", times.show(number)),
    };
    match (ours.advantage(theirs, quantity), theirs.figure(quantity)) {
        (Some(advantage), _) => times(advantage),
        (None, Some(figure)) => quantity.show(figure.median),
        (None, None) if theirs.turns.iter().all(|turn| turn.is_empty()) => "fails".to_owned(),
        (None, None) => String::new(),
    }
}
