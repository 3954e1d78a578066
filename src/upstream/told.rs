//! The headers by which an upstream tells of its limits.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// Longest pause that is believed.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// Longest window that is believed: so long is a word of an upstream that falls silent remembered.
pub const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);

/// The limit headers of one answer (Docker Hub, "pull usage and limits"). All missing: not limited,
/// or not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub window: Option<Duration>,
}

impl Told {
    /// How long the window is, at least.
    pub fn length(&self) -> Duration {
        self.window.unwrap_or(LONGEST_PAUSE)
    }

    pub fn read(headers: &HeaderMap) -> Self {
        let count = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).and_then(parse_count);
        let (limit, remaining) = (count("ratelimit-limit"), count("ratelimit-remaining"));
        let window = limit.and_then(|(_, window)| window).or(remaining.and_then(|(_, window)| window));
        Self { limit: limit.map(|(n, _)| n), remaining: remaining.map(|(n, _)| n), window }
    }
}

/// `<count>[;w=<seconds>]`; other parameters are skipped, and what follows a comma. The window is
/// [`LONGEST_WINDOW`] at most.
pub fn parse_count(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let count = digits(parts.next()?)?;
    let window = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        let seconds = digits(value.trim())?;
        key.trim().eq_ignore_ascii_case("w").then(|| Duration::from_secs(seconds).min(LONGEST_WINDOW))
    });
    Some((count, window))
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// `Retry-After` in either form (RFC 9110, section 10.2.3): at least a second, six hours at most.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match digits(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.clamp(Duration::from_secs(1), LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(k, v): &(&'static str, &str)| (HeaderName::from_static(k), HeaderValue::from_str(v).unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn limits_are_read() {
        let told = headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", " 76 ; w=21600")]);
        let expected = Told { limit: Some(100), remaining: Some(76), window: Some(LONGEST_PAUSE) };
        assert_eq!(Told::read(&told), expected);
        assert_eq!(Told::read(&HeaderMap::new()), Told::default());
    }

    #[test]
    fn counts_are_read_tolerantly() {
        assert_eq!(parse_count("0"), Some((0, None)));
        assert_eq!(parse_count("5 ; x=1 ;W = 60, 7;w=1"), Some((5, Some(MINUTE))));
        for bad in ["", ";w=1", "-1", "+1", "x", "1.5", "99999999999999999999999"] {
            assert_eq!(parse_count(bad), None, "{bad}");
        }
        assert_eq!(parse_count("1;w=x"), Some((1, None)));
        for long in ["604800", "604801", "18446744073709551615"] {
            assert_eq!(
                parse_count(&format!("{};w={long}", u64::MAX)),
                Some((u64::MAX, Some(LONGEST_WINDOW)))
            );
        }
    }

    #[test]
    fn retry_after_has_two_forms_and_bounds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let read = |text: &str| retry_after(&headers(&[("retry-after", text)]), now).map(|d| d.as_secs());
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(&httpdate::fmt_http_date(now + Duration::from_secs(90))), Some(90));
        assert_eq!(read(&httpdate::fmt_http_date(now - MINUTE)), Some(1));
        assert_eq!(read("0"), Some(1));
        assert_eq!(read("999999999"), Some(6 * 3600));
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    proptest! {
        #[test]
        fn no_count_panics_and_good_ones_round_trip(text in ".{0,40}", count: u64, window in prop::option::of(any::<u64>())) {
            let _ = parse_count(&text);
            let good = window.map_or(count.to_string(), |w| format!("{count};w={w}"));
            let window = window.map(|w| Duration::from_secs(w).min(LONGEST_WINDOW));
            prop_assert_eq!(parse_count(&good), Some((count, window)));
        }

        #[test]
        fn no_retry_after_panics(text in "[ -~]{0,40}") {
            let wait = retry_after(&headers(&[("retry-after", &text)]), SystemTime::now());
            prop_assert!(wait.is_none_or(|wait| wait <= LONGEST_PAUSE));
        }
    }
}
