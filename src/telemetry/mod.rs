//! Logs: where they go and how they look. Events go through `tracing`; the line for each request
//! answered has a writer of its own ([`AccessLog`]), for it is most of what a hit costs.
//!
//! Both go to standard output through bounded queues, so that a slow reader of it delays no request.
//! A full queue drops lines; access lines have their own queue and so never push out an event.

mod access;
mod escape;
mod fields;
mod lines;
mod output;
mod size;

use std::io::IsTerminal;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

pub use access::{AccessLine, AccessLog};
pub use size::size;

/// What is configured of the logs.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub format: Format,
    /// A `tracing` filter: `info`, `forebay=debug,warn`.
    pub level: String,
    /// A line for each request answered.
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Why there can be no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Filter(String),
    #[error("the log was set up already in this process: {0}")]
    Twice(String),
}

/// Events that wait to be written, at most.
const EVENT_QUEUE: usize = 8_192;

/// Sends events to standard output from now on. The guard, dropped last, writes out what waits.
pub fn init(options: &Options) -> Result<WorkerGuard, Error> {
    let filter = parse_filter(&options.level).map_err(Error::Filter)?;
    let queue =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(EVENT_QUEUE).thread_name("log");
    let (writer, guard) = queue.finish(output::Output::new(std::io::stdout()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let set = match options.format {
        Format::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(std::io::stdout().is_terminal() && !plain).try_init()
        }
        Format::Json => builder.json().flatten_event(true).fmt_fields(fields::JsonFields).try_init(),
    };
    set.map_err(|error| Error::Twice(error.to_string()))?;
    Ok(guard)
}

/// Whether `level` is a filter; if not, why.
pub fn check_filter(level: &str) -> Result<(), String> {
    parse_filter(level).map(|_| ())
}

fn parse_filter(level: &str) -> Result<EnvFilter, String> {
    let example = "write a level (`error`, `warn`, `info`, `debug`, `trace`, `off`), or levels for parts, as in \
                   `info,forebay::upstream=debug`";
    // A lone word that is no level would be taken for a part's name, with everything logged for it.
    let words = level.split(',').map(str::trim);
    let is_level =
        |word: &str| !word.is_empty() && word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    let odd = words.filter(|word| !word.contains(['=', '['])).find(|word| !is_level(word));
    if let Some(odd) = odd {
        return Err(format!("`{odd}` is no level; {example}"));
    }
    EnvFilter::try_new(level).map_err(|error| format!("`{level}` is no log filter ({error}); {example}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for good in ["info", "WARN", "off", "forebay=debug,warn", "info,forebay::upstream=trace"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "loud", "info,loud", "forebay=loud", "a=b=c"] {
            let error = check_filter(bad).unwrap_err();
            assert!(error.contains("`info`"), "{bad}: {error}");
        }
    }
}
