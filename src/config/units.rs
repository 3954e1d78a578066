//! Sizes, times and rates as people write them. Errors say what to write instead.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::access::Rate;
use crate::upstream::Reserve;

/// Longer is a slip, and far from where adding to a clock would overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const SIZES: [(&str, u64); 11] = [
    ("PiB", 1 << 50),
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// `64GiB` (powers of 1024) or `10MB` (powers of 1000), in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("`{text}` is negative; a size is 0B or more"));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    if number.is_empty() {
        return Err(format!(
            "`{text}` is no size; write a whole number and a unit, such as `64GiB` or `10MB`"
        ));
    }
    if unit.is_empty() {
        return Err(format!("`{text}` has no unit; write `{text}GiB`, `{text}MiB` or `{text}B`"));
    }
    if unit.starts_with(['.', ',']) {
        return Err(format!(
            "`{text}` is no whole number; take a smaller unit, such as `1536MiB` for 1.5 GiB"
        ));
    }
    if unit == "%" {
        return Err(format!("`{text}` is a part, and a size is wanted here: write it as in `64GiB`"));
    }
    if let Some(size) = text.strip_suffix("/s") {
        return Err(format!(
            "`{text}` is no size; where a rate is meant, it is one in a second: write `{size}`"
        ));
    }
    let Some((_, factor)) = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
        return Err(format!(
            "`{unit}` is no unit of size; write B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB, PiB \
             (powers of 1024)"
        ));
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    bytes.ok_or_else(|| format!("`{text}` is too large; the largest size is 16383PiB"))
}

/// A size that [`size`] reads back as the same.
pub fn format_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    let (unit, factor) = SIZES.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// `30s`, `5m`, `6h`, `1h 30m`: a time of a year at most, nothing too.
pub fn time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("`{text}` is negative; a time is 0s or more"));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{text}` has no unit; write `{text}s`, `{text}m` or `{text}h`"));
    }
    if text.contains('M') {
        return Err(format!("`{text}`: write `m` for minutes, as in `5m`, or `ms` for milliseconds"));
    }
    let time = humantime::parse_duration(text).map_err(|error| {
        // Others tell of the parser.
        let why = match error {
            humantime::DurationError::UnknownUnit { .. } => format!(" ({error})"),
            _ => String::new(),
        };
        format!("`{text}` is no time{why}; write it as in `30s`, `5m` or `6h`")
    })?;
    if time > LONGEST {
        return Err(format!("`{text}` is too long; the longest time is 366days"));
    }
    Ok(time)
}

/// A [`time`] to wait for something: never nothing.
pub fn timeout(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err(format!("`{text}`: nothing answers in no time; write it as in `30s`")),
        time => Ok(time),
    }
}

/// A time, or None for `forever`.
pub fn time_or_forever(text: &str) -> Result<Option<Duration>, String> {
    if text.trim() == "forever" {
        Ok(None)
    } else {
        time(text).map(Some).map_err(|e| format!("{e}, or `forever`"))
    }
}

/// What [`time_or_forever`] reads back as the same.
pub fn format_time_or_forever(time: Option<Duration>) -> String {
    time.map_or_else(|| "forever".to_owned(), format_time)
}

/// A time that [`time`] reads back as the same.
pub fn format_time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// `120/m`, `2/s`, `120/m burst 500`; `unlimited` is None. Without a burst, it is twice the rate.
pub fn rate(text: &str) -> Result<Option<Rate>, String> {
    let text = text.trim();
    if text == "unlimited" {
        return Ok(None);
    }
    let bad = |why: &str| format!("`{text}` {why}; write `120/m`, `2/s`, `120/m burst 500` or `unlimited`");
    let (rate, burst) = match text.split_once("burst") {
        Some((rate, burst)) => (rate.trim().trim_end_matches(','), Some(burst.trim())),
        None => (text, None),
    };
    let (number, unit) = rate.split_once('/').ok_or_else(|| bad("has no `/m`"))?;
    let number: u32 = number.trim().parse().map_err(|_| bad("is no rate"))?;
    let per_minute = match unit.trim() {
        "m" | "min" | "minute" => Some(number),
        "s" | "sec" | "second" => number.checked_mul(60),
        _ => return Err(bad("has an unknown unit")),
    };
    let per_minute = per_minute.ok_or_else(|| bad("is too large"))?;
    let per_minute = NonZeroU32::new(per_minute).ok_or_else(|| bad("lets nothing pass"))?;
    let burst = match burst {
        Some(burst) => burst.parse().map_err(|_| bad("has no whole number above 0 as its burst"))?,
        None => per_minute.saturating_mul(NonZeroU32::MIN.saturating_add(1)),
    };
    Ok(Some(Rate { per_minute, burst }))
}

/// A rate that [`rate`] reads back as the same.
pub fn format_rate(rate: Option<Rate>) -> String {
    match rate {
        Some(Rate { per_minute, burst }) => format!("{per_minute}/m burst {burst}"),
        None => "unlimited".into(),
    }
}

/// `10%` of a quota, or a number of pulls.
pub fn reserve(text: &str) -> Result<Reserve, String> {
    let text = text.trim();
    let bad = || format!("`{text}` is no part of a quota; write `10%`, or a number of pulls such as `20`");
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent = percent.trim().parse().ok().filter(|percent| *percent <= 100);
            percent.map(Reserve::Percent).ok_or_else(bad)
        }
        None => text.parse().map(Reserve::Pulls).map_err(|_| bad()),
    }
}

/// A reserve that [`reserve`] reads back as the same.
pub fn format_reserve(reserve: Reserve) -> String {
    match reserve {
        Reserve::Percent(percent) => format!("{percent}%"),
        Reserve::Pulls(pulls) => pulls.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(per_minute: u32, burst: u32) -> Option<Rate> {
        let number = |n| NonZeroU32::new(n).unwrap();
        Some(Rate { per_minute: number(per_minute), burst: number(burst) })
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("64GiB", 64 << 30), ("10MB", 10_000_000), ("0B", 0), ("1 kib", 1024), ("5B", 5), ("1KB", 1000)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, hint) in [
            ("64", "`64GiB`"),
            ("-1GiB", "negative"),
            ("1.5GiB", "1536MiB"),
            ("GiB", "`64GiB`"),
            ("", "`64GiB`"),
            ("64G", "GiB"),
            ("64 parsecs", "`parsecs` is no unit"),
            ("80%", "a size is wanted"),
            ("20MiB/s", "write `20MiB`"),
            ("16384PiB", "too large"),
            ("99999999999999999999B", "too large"),
        ] {
            let error = size(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(size("16383PiB").is_ok());
    }

    #[test]
    fn times() {
        for (text, millis) in
            [("30s", 30_000), ("5m", 300_000), ("6h", 21_600_000), ("250ms", 250), ("0s", 0)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, hint) in [
            ("30", "`30s`"),
            ("0", "no unit"),
            ("-5s", "negative"),
            ("5M", "`m` for minutes"),
            ("5 parsecs", "`30s`"),
            ("", "`30s`"),
            ("367days", "366days"),
            ("99999999999999999999s", "no time"),
            ("18446744073709551615h", "no time"),
        ] {
            let error = time(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert_eq!(time("never").unwrap_err(), "`never` is no time; write it as in `30s`, `5m` or `6h`");
        assert!(time("366days").is_ok());
        assert!(timeout("0s").unwrap_err().contains("`30s`"));
        assert!(timeout("1ms").is_ok());
    }

    #[test]
    fn rates() {
        for (text, expected) in [
            ("120/m", limit(120, 240)),
            ("2/s", limit(120, 240)),
            ("120/m burst 7", limit(120, 7)),
            ("120 / minute, burst 500", limit(120, 500)),
            ("unlimited", None),
            ("4294967295/m", limit(u32::MAX, u32::MAX)),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "120",
            "0/m",
            "120/h",
            "-1/m",
            "4294967296/m",
            "4294967295/s",
            "1/m burst 0",
            "1/m burst",
            "/m",
        ] {
            let error = rate(text).unwrap_err();
            assert!(error.contains("`120/m`"), "{text}: {error}");
        }
    }

    #[test]
    fn reserves() {
        for (text, expected) in [
            ("10%", Reserve::Percent(10)),
            ("0 %", Reserve::Percent(0)),
            ("100%", Reserve::Percent(100)),
            ("20", Reserve::Pulls(20)),
            ("0", Reserve::Pulls(0)),
        ] {
            assert_eq!(reserve(text), Ok(expected), "{text}");
            assert_eq!(reserve(&format_reserve(expected)), Ok(expected));
        }
        for text in ["", "%", "101%", "-1", "10.5%", "ten", "1e3", "99999999999999999999999"] {
            assert!(reserve(text).unwrap_err().contains("`10%`"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_formatted_is_read_back(bytes: u64, millis in 0..=LONGEST.as_millis() as u64, rates in (1u32.., 1u32..)) {
            prop_assert_eq!(size(&format_size(bytes)), Ok(bytes));
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(time(&format_time(duration)), Ok(duration));
            let limit = limit(rates.0, rates.1);
            prop_assert_eq!(rate(&format_rate(limit)), Ok(limit));
        }

        #[test]
        fn nothing_panics_and_errors_quote_what_was_written(text in "\\PC{0,24}") {
            for error in [size(&text).err(), time(&text).err(), rate(&text).err()].into_iter().flatten() {
                prop_assert!(error.contains('`'));
            }
        }

        #[test]
        fn numbers_of_any_length_are_taken_or_refused(number in "[0-9]{1,40}", unit in "(B|GiB|PB|s|h|days|/m|/s)") {
            let text = format!("{number}{unit}");
            let _ = (size(&text), time(&text), rate(&text));
        }
    }
}
