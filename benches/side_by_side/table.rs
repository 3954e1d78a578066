//! Medians, spreads, ratios.

use crate::load::Work;

const OURS: &str = "forebay";

/// What one turn came to.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    pub requests_per_second: f64,
    pub bytes_per_second: f64,
    /// Seconds of the server's CPU time for each request.
    pub cpu_per_request: f64,
    /// Seconds of the server's CPU time for each 10^9 bytes of answers.
    pub cpu_per_gigabyte: f64,
}

/// Measurements by work and server, in the order in which they were first added.
#[derive(Default)]
pub struct Table {
    sections: Vec<Section>,
}

struct Section {
    work: &'static str,
    bulk: bool,
    rows: Vec<(&'static str, Vec<Measurement>)>,
}

/// The median of some figures with the lowest and the highest.
struct Figure {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Figure {
    fn of(measurements: &[Measurement], figure: impl Fn(&Measurement) -> f64) -> Self {
        let mut all: Vec<f64> = measurements.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        Self { median: all[all.len() / 2], lowest: all[0], highest: all[all.len() - 1] }
    }

    fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}-{:.decimals$})", self.median, self.lowest, self.highest)
    }
}

impl Table {
    /// `None` is a turn that failed.
    pub fn add(&mut self, work: &Work, server: &'static str, measurement: Option<Measurement>) {
        let at = self.sections.iter().position(|s| s.work == work.name).unwrap_or_else(|| {
            self.sections.push(Section { work: work.name, bulk: work.bulk, rows: Vec::new() });
            self.sections.len() - 1
        });
        let rows = &mut self.sections[at].rows;
        match rows.iter_mut().find(|(name, _)| *name == server) {
            Some((_, measurements)) => measurements.extend(measurement),
            None => rows.push((server, Vec::from_iter(measurement))),
        }
    }

    pub fn print(&self) {
        println!("median (lowest-highest); the ratio is forebay's figure over that server's");
        for section in &self.sections {
            section.print();
        }
    }
}

impl Section {
    fn print(&self) {
        let (speed, cost) = match self.bulk {
            true => ("MB/s", "CPU s/GB"),
            false => ("requests/s", "CPU us/request"),
        };
        println!("\n{:<28}{speed:>26}{:>8}{cost:>26}{:>8}", self.work, "ratio", "ratio");
        let ours = self.rows.iter().find(|(name, _)| *name == OURS).and_then(|(_, ours)| self.figures(ours));
        for (name, measurements) in &self.rows {
            let Some((speed, cost)) = self.figures(measurements) else {
                println!("  {name:<26}{:>26}", "fails");
                continue;
            };
            let ratio = |pick: fn(&(Figure, Figure)) -> f64, theirs: f64| match &ours {
                Some(ours) if *name != OURS => format!("{:.2}", pick(ours) / theirs),
                _ => "-".to_owned(),
            };
            let (speed_ratio, cost_ratio) =
                (ratio(|f| f.0.median, speed.median), ratio(|f| f.1.median, cost.median));
            let cost = cost.show(if self.bulk { 3 } else { 1 });
            println!("  {name:<26}{:>26}{speed_ratio:>8}{cost:>26}{cost_ratio:>8}", speed.show(0));
        }
    }

    /// Speed and cost in the units of the headings; `None` where every turn failed.
    fn figures(&self, measurements: &[Measurement]) -> Option<(Figure, Figure)> {
        if measurements.is_empty() {
            return None;
        }
        let of = |speed: fn(&Measurement) -> f64, cost: fn(&Measurement) -> f64| {
            Some((Figure::of(measurements, speed), Figure::of(measurements, cost)))
        };
        match self.bulk {
            true => of(|m| m.bytes_per_second / 1e6, |m| m.cpu_per_gigabyte),
            false => of(|m| m.requests_per_second, |m| m.cpu_per_request * 1e6),
        }
    }
}
