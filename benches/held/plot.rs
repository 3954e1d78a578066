//! The growth as a picture: what is held from left to right, by powers of ten; what it costs from zero upward.

use std::fmt::Write;

use crate::growth::{Point, Series, WORKS};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 190.0;
/// Around a panel, for its title and the figures along it.
const LEFT: f64 = 50.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 30.0;
const BOTTOM: f64 = 35.0;
const COLOURS: [&str; 3] = ["#1f6fb2", "#d1641b", "#3a8a3f"];

type Line = (&'static str, fn(&Point) -> f64);

/// A column for each of the series.
pub fn draw(series: &[Series]) -> String {
    let costs: [Line; 3] = [
        (WORKS[0], |point| point.costs[0]),
        (WORKS[1], |point| point.costs[1]),
        (WORKS[2], |point| point.costs[2]),
    ];
    let start: [Line; 1] = [("until the first answer", |point| point.start.as_secs_f64() * 1e3)];
    let rows: [(&str, &[Line]); 2] = [("CPU for a request, us", &costs), ("start, ms", &start)];
    let (wide, high) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
    let (all_wide, all_high) = (wide * series.len() as f64, high * rows.len() as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_wide} {all_high}\" width=\"{all_wide}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"{all_wide}\" height=\"{all_high}\" fill=\"white\"/>\n"
    );
    for (row, (title, lines)) in rows.iter().enumerate() {
        for (column, series) in series.iter().enumerate() {
            let (x, y) = (wide * column as f64 + LEFT, high * row as f64 + TOP);
            writeln!(svg, "<g transform=\"translate({x} {y})\">").unwrap();
            panel(&mut svg, &format!("{title}, by {} held", series.name), &series.points, lines);
            svg.push_str("</g>\n");
        }
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, title: &str, points: &[Point], lines: &[Line]) {
    writeln!(svg, "<text y=\"-22\" font-size=\"13\">{title}</text>").unwrap();
    let highest = points.iter().flat_map(|point| lines.iter().map(|(_, of)| of(point))).fold(0.0, f64::max);
    let step = round_step(highest / 4.0);
    let top = (highest / step).ceil() * step;
    let y = |value: f64| HEIGHT * (1.0 - value / top);
    for mark in 0..=(top / step).round() as usize {
        let value = mark as f64 * step;
        let (at, decimals) = (y(value), usize::from(step < 1.0));
        writeln!(svg, "<path d=\"M0 {at:.1}H{WIDTH}\" stroke=\"#ddd\"/>").unwrap();
        writeln!(svg, "<text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{value:.decimals$}</text>", at + 4.0)
            .unwrap();
    }
    let log = |point: &Point| (point.size as f64).log10();
    let (first, last) = (points.first().map_or(0.0, log), points.last().map_or(0.0, log));
    let x = |point: &Point| WIDTH * (log(point) - first) / (last - first).max(1.0);
    for point in points {
        let (at, below, size) = (x(point), HEIGHT + 16.0, thousands(point.size));
        writeln!(svg, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{size}</text>").unwrap();
    }
    for (line, ((name, of), colour)) in lines.iter().zip(COLOURS).enumerate() {
        let at: Vec<(f64, f64)> = points.iter().map(|point| (x(point), y(of(point)))).collect();
        let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let path = path.join(" ");
        writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>")
            .unwrap();
        for (x, y) in at {
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>").unwrap();
        }
        let at = line as f64 * 135.0;
        writeln!(svg, "<text x=\"{at}\" y=\"-7\" fill=\"{colour}\">{name}</text>").unwrap();
    }
}

/// The next of 1, 2, 5, 10, 20 and so on.
fn round_step(at_least: f64) -> f64 {
    let power = 10_f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|step| *step >= at_least)
        .unwrap_or(10.0 * power)
}

fn thousands(number: usize) -> String {
    match number {
        number if number >= 1_000_000 => format!("{} M", number / 1_000_000),
        number if number >= 1_000 => format!("{} k", number / 1_000),
        number => number.to_string(),
    }
}
