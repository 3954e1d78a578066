//! What was recorded, and whether what is counted now is within it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// What may be more, or less, without a word.
const ALLOWED: f64 = 0.05;
/// What differs from one count to the next: not recorded, so that the reason of a figure is its own.
const NOISE: f64 = 0.02;
const COMMAND: &str = "cargo bench --profile counted --bench instructions";

#[derive(Default, Deserialize)]
pub struct Recorded {
    /// The compiler by which it was counted.
    rustc: String,
    #[serde(flatten)]
    works: BTreeMap<String, Figure>,
}

#[derive(Deserialize)]
struct Figure {
    instructions: u64,
    /// Why it last changed.
    why: String,
}

impl Recorded {
    /// Nothing, where there is no file yet.
    pub fn read(path: &Path) -> Self {
        let Ok(text) = std::fs::read_to_string(path) else { return Self::default() };
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn take(&mut self, counted: &[(&'static str, u64)], why: &str) {
        self.rustc = rustc();
        self.works.retain(|name, _| counted.iter().any(|(work, _)| work == name));
        for (work, instructions) in counted {
            let held = self.works.get(*work);
            if held.is_none_or(|held| growth(held.instructions, *instructions).abs() > NOISE) {
                let figure = Figure { instructions: *instructions, why: why.trim().to_owned() };
                self.works.insert((*work).to_owned(), figure);
            }
        }
    }

    pub fn write(&self, path: &Path) {
        let mut text =
            format!("# Instructions that a request takes. Written by: {COMMAND} -- --record \"why\"\n");
        let quoted = |text: &str| toml::Value::from(text).to_string();
        writeln!(text, "rustc = {}", quoted(&self.rustc)).unwrap();
        for (work, Figure { instructions, why }) in &self.works {
            let (work, why) = (quoted(work), quoted(why));
            writeln!(text, "\n[{work}]\ninstructions = {instructions}\nwhy = {why}").unwrap();
        }
        std::fs::write(path, text).unwrap();
    }

    /// Says what was counted, and of what it is not as recorded. False: something has grown, or is not recorded.
    pub fn holds(&self, counted: &[(&'static str, u64)]) -> bool {
        let (mut grown, mut shrunk) = (false, false);
        println!("{:<28}{:>14}{:>14}{:>10}", "instructions a request", "counted", "recorded", "growth");
        for (work, instructions) in counted {
            let Some(held) = self.works.get(*work) else {
                println!("{work:<28}{instructions:>14}{:>14}{:>10}", "-", "-");
                grown = true;
                continue;
            };
            let growth = growth(held.instructions, *instructions);
            let verdict = match growth {
                growth if growth > ALLOWED => "  too many",
                growth if growth < -ALLOWED => "  fewer",
                _ => "",
            };
            (grown, shrunk) = (grown || growth > ALLOWED, shrunk || growth < -ALLOWED);
            let percent = format!("{:+.1} %", growth * 100.0);
            println!("{work:<28}{instructions:>14}{:>14}{percent:>10}{verdict}", held.instructions);
        }
        let record = format!("{COMMAND} -- --record \"why\"");
        if grown {
            println!(
                "\nOver {:.0} % more than recorded, or not recorded. If that has its reason: {record}",
                ALLOWED * 100.0
            );
        } else if shrunk {
            println!("\nFewer than recorded: please keep it so, by {record}");
        }
        if rustc() != self.rustc && (grown || shrunk) {
            println!("Recorded with {:?}, counted with {:?}: that alone may be why.", self.rustc, rustc());
        }
        !grown
    }
}

/// As a part of what it was.
fn growth(from: u64, to: u64) -> f64 {
    to as f64 / from as f64 - 1.0
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("the compiler can be asked");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
