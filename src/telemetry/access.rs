//! A line for each request answered.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;

use super::escape::push_quoted;
use super::lines::Lines;
use super::{Format, Options};

/// Bytes of lines that wait to be written, at most.
const QUEUE: usize = 10 << 20;
/// Longest shown part of what clients choose freely, in bytes.
const LONGEST_PATH: usize = 1024;
const LONGEST_WORD: usize = 256;

/// What is told of a request.
#[derive(Clone, Copy, Debug)]
pub struct AccessLine<'a> {
    pub request_id: &'a str,
    pub client: IpAddr,
    pub method: &'a str,
    /// A query is left out: it may be signed.
    pub path: &'a str,
    /// Canonical, as far as the request named one.
    pub repository: Option<&'a str>,
    pub reference: Option<&'a str>,
    pub status: u16,
    /// Of the body, as sent.
    pub bytes: u64,
    /// From the request's head to the body's end.
    pub duration: Duration,
    /// `hit`, `miss`, `stale`…
    pub outcome: &'a str,
    /// Whether the body broke off.
    pub cut: bool,
    pub user_agent: &'a str,
}

/// Writes access lines to standard output without waiting for it. Dropped, it writes out what waits.
pub struct AccessLog {
    format: Format,
    /// None: not wanted.
    sink: Option<Sink>,
}

struct Sink {
    lines: Lines,
    dropped: IntCounter,
}

impl AccessLog {
    /// `dropped` counts the lines that there was no room for.
    pub fn new(options: &Options, dropped: IntCounter) -> Self {
        Self::over(std::io::stdout(), options, QUEUE, dropped)
    }

    /// Over another output, for tests. At most so many bytes wait for it.
    fn over(
        output: impl std::io::Write + Send + 'static,
        options: &Options,
        most: usize,
        dropped: IntCounter,
    ) -> Self {
        let start = || {
            let lines = Lines::over(output, most, "access-log");
            lines.inspect_err(
                |error| tracing::error!(%error, "there is no access log: no thread can be had for it"),
            )
        };
        let lines = if options.access { start().ok() } else { None };
        Self { format: options.format, sink: lines.map(|lines| Sink { lines, dropped }) }
    }

    /// Whether lines are wanted: without them, there is no need to gather what they tell.
    pub fn is_enabled(&self) -> bool {
        self.sink.is_some()
    }

    pub fn write(&self, line: &AccessLine<'_>) {
        thread_local! {
            static BUFFER: RefCell<String> = RefCell::new(String::with_capacity(1024));
        }
        let Some(sink) = &self.sink else { return };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            // Writing to a String cannot fail.
            let _ = match self.format {
                Format::Text => text(buffer, line, SystemTime::now()),
                Format::Json => json(buffer, line, SystemTime::now()),
            };
            if !sink.lines.add(buffer.as_bytes()) {
                sink.dropped.inc();
            }
        });
    }
}

fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

fn time(now: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(now)
}

// What follows is done for each request: without the machinery of `write!`, a line costs half as much.

fn push_number(out: &mut String, number: u64) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Milliseconds to three places.
fn push_millis(out: &mut String, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    push_number(out, micros / 1000);
    out.push('.');
    // The digits behind a 1 are the rest with its zeros in front.
    out.push_str(&itoa::Buffer::new().format(1000 + micros % 1000)[1..]);
}

fn push_address(out: &mut String, address: IpAddr) -> std::fmt::Result {
    let IpAddr::V4(address) = address else { return write!(out, "{address}") };
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        push_number(out, octet.into());
    }
    Ok(())
}

fn text(out: &mut String, line: &AccessLine<'_>, now: SystemTime) -> std::fmt::Result {
    write!(out, "{} ACCESS ", time(now))?;
    push_address(out, line.client)?;
    out.push(' ');
    push_quoted(out, line.method, LONGEST_WORD);
    out.push(' ');
    push_quoted(out, without_query(line.path), LONGEST_PATH);
    for (key, number) in [(" status=", line.status.into()), (" bytes=", line.bytes)] {
        out.push_str(key);
        push_number(out, number);
    }
    out.push_str(" ms=");
    push_millis(out, line.duration);
    out.push_str(" outcome=");
    push_quoted(out, line.outcome, LONGEST_WORD);
    if line.cut {
        out.push_str(" cut=true");
    }
    for (key, value) in [("repository", line.repository), ("reference", line.reference)] {
        if let Some(value) = value {
            out.extend([" ", key, "="]);
            push_quoted(out, value, LONGEST_WORD);
        }
    }
    out.push_str(" request_id=");
    push_quoted(out, line.request_id, LONGEST_WORD);
    out.push_str(" user_agent=");
    push_quoted(out, line.user_agent, LONGEST_WORD);
    out.push('\n');
    Ok(())
}

fn json(out: &mut String, line: &AccessLine<'_>, now: SystemTime) -> std::fmt::Result {
    write!(out, r#"{{"timestamp":"{}","level":"INFO","target":"access","client":""#, time(now))?;
    push_address(out, line.client)?;
    out.push('"');
    let words = [
        ("request_id", Some(line.request_id), LONGEST_WORD),
        ("method", Some(line.method), LONGEST_WORD),
        ("path", Some(without_query(line.path)), LONGEST_PATH),
        ("repository", line.repository, LONGEST_WORD),
        ("reference", line.reference, LONGEST_WORD),
        ("outcome", Some(line.outcome), LONGEST_WORD),
        ("user_agent", Some(line.user_agent), LONGEST_WORD),
    ];
    for (key, value, longest) in words {
        if let Some(value) = value {
            out.extend([",\"", key, "\":"]);
            push_quoted(out, value, longest);
        }
    }
    for (key, number) in [(r#","status":"#, line.status.into()), (r#","bytes":"#, line.bytes)] {
        out.push_str(key);
        push_number(out, number);
    }
    out.push_str(r#","millis":"#);
    push_millis(out, line.duration);
    out.push_str(if line.cut { ",\"cut\":true}\n" } else { ",\"cut\":false}\n" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const OPTIONS: Options = Options { format: Format::Json, level: String::new(), access: true };

    fn line() -> AccessLine<'static> {
        AccessLine {
            request_id: "r1",
            client: IpAddr::from([10, 0, 0, 1]),
            method: "GET",
            path: "/v2/library/nginx/manifests/1.27?signature=secret",
            repository: Some("docker.io/library/nginx"),
            reference: Some("1.27"),
            status: 200,
            bytes: 1234,
            duration: Duration::from_micros(3021),
            outcome: "hit",
            cut: false,
            user_agent: "containerd/2.0",
        }
    }

    fn rendered(
        format: fn(&mut String, &AccessLine<'_>, SystemTime) -> std::fmt::Result,
        line: &AccessLine<'_>,
    ) -> String {
        let mut out = String::new();
        format(&mut out, line, SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)).unwrap();
        out
    }

    fn dropped() -> IntCounter {
        IntCounter::new("dropped", "Dropped").unwrap()
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Says when it is written to, then waits until the other side lets go.
    struct Stuck(Sender<()>, Receiver<()>);

    impl std::io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_reads_well() {
        assert_eq!(
            rendered(text, &line()),
            "1970-01-01T00:00:01.500Z ACCESS 10.0.0.1 \"GET\" \"/v2/library/nginx/manifests/1.27\" status=200 bytes=1234 \
             ms=3.021 outcome=\"hit\" repository=\"docker.io/library/nginx\" reference=\"1.27\" request_id=\"r1\" \
             user_agent=\"containerd/2.0\"\n"
        );
        assert!(rendered(text, &AccessLine { cut: true, ..line() }).contains(" cut=true "));
    }

    #[test]
    fn json_holds_every_field() {
        let value: Value = serde_json::from_str(&rendered(json, &line())).unwrap();
        let expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:01.500Z", "level": "INFO", "target": "access", "client": "10.0.0.1",
            "request_id": "r1", "method": "GET", "path": "/v2/library/nginx/manifests/1.27",
            "repository": "docker.io/library/nginx", "reference": "1.27", "outcome": "hit",
            "user_agent": "containerd/2.0", "status": 200, "bytes": 1234, "millis": 3.021, "cut": false,
        });
        assert_eq!(value, expected);
        let without = AccessLine { repository: None, reference: None, ..line() };
        let value: Value = serde_json::from_str(&rendered(json, &without)).unwrap();
        assert_eq!(value.get("repository"), None);
    }

    #[test]
    fn what_was_written_is_there_once_the_log_is_dropped() {
        let output = Shared::default();
        let log = AccessLog::over(output.clone(), &OPTIONS, QUEUE, dropped());
        assert!(log.is_enabled());
        for _ in 0..50 {
            log.write(&line());
        }
        drop(log);
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count(), 50);
    }

    #[test]
    fn a_log_that_is_off_writes_nothing() {
        let output = Shared::default();
        let log = AccessLog::over(output.clone(), &Options { access: false, ..OPTIONS }, QUEUE, dropped());
        log.write(&line());
        assert!(!log.is_enabled());
        drop(log);
        assert!(output.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_stuck_reader_costs_lines_that_are_counted_and_no_waiting() {
        let (written, is_written) = channel();
        let (release, wait) = channel();
        let dropped = dropped();
        let length = 10 * rendered(json, &line()).len();
        let log = AccessLog::over(Stuck(written, wait), &OPTIONS, length, dropped.clone());
        log.write(&line());
        is_written.recv().unwrap();
        // The writer holds on to the first line; ten more wait; the rest finds no room.
        for _ in 0..15 {
            log.write(&line());
        }
        assert_eq!(dropped.get(), 5);
        drop(release);
    }

    proptest! {
        #[test]
        fn hostile_requests_stay_one_line(
            method in any::<String>(), path in any::<String>(), agent in any::<String>(), name in any::<Option<String>>()
        ) {
            let line = AccessLine {
                method: &method, path: &path, user_agent: &agent, repository: name.as_deref(), reference: name.as_deref(),
                request_id: &agent, outcome: &method, ..line()
            };
            for format in [text, json] {
                let out = rendered(format, &line);
                let body = out.strip_suffix('\n').unwrap();
                prop_assert!(body.bytes().all(|b| (b' '..=b'~').contains(&b)), "{}", body);
            }
            let value: Value = serde_json::from_str(&rendered(json, &line)).unwrap();
            let shown = without_query(&path);
            if shown.len() <= LONGEST_PATH {
                prop_assert_eq!(value["path"].as_str(), Some(shown));
            }
        }

        #[test]
        fn lines_are_bounded(agent in "[\\x00-\\x7f]{0,4000}", path in "/[\\x00-\\x7f]{0,9000}") {
            let line = AccessLine { path: &path, user_agent: &agent, method: &agent, ..line() };
            for format in [text, json] {
                prop_assert!(rendered(format, &line).len() < 12 * 1024);
            }
        }
    }
}
