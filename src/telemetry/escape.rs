//! Text that strangers chose, made safe for a line of a log.

use std::fmt::Write;

/// Appends `text` in quotes, as a JSON string of printable ASCII: no line break, no terminal
/// sequence, no look-alike gets through. What is longer than `longest` bytes is cut, marked by `…`.
pub fn push_quoted(out: &mut String, text: &str, longest: usize) {
    let is_plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    // Nearly all is, and this is for each request: looked at as a whole, several bytes go at once.
    if text.len() <= longest && text.bytes().fold(true, |all, b| all & is_plain(b)) {
        out.push('"');
        out.push_str(text);
        return out.push('"');
    }
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let shown = &text[..end.unwrap_or(0)];
    out.push('"');
    let mut plain_from = 0;
    for (at, c) in shown.char_indices() {
        if matches!(c, ' '..='~') && c != '"' && c != '\\' {
            continue;
        }
        out.push_str(&shown[plain_from..at]);
        plain_from = at + c.len_utf8();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            _ => push_escape(out, c),
        }
    }
    out.push_str(&shown[plain_from..]);
    if shown.len() < text.len() {
        push_escape(out, '…');
    }
    out.push('"');
}

/// JSON escapes are UTF-16 (RFC 8259, section 7).
fn push_escape(out: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a String cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(text: &str, longest: usize) -> String {
        let mut out = String::new();
        push_quoted(&mut out, text, longest);
        out
    }

    #[test]
    fn cuts_between_characters_and_says_so() {
        assert_eq!(quoted("abc", 3), r#""abc""#);
        assert_eq!(quoted("abcd", 3), r#""abc\u2026""#);
        assert_eq!(quoted("aää", 4), r#""a\u00e4\u2026""#);
        assert_eq!(quoted("a\"\\\n\u{1b}😀", 99), r#""a\"\\\u000a\u001b\ud83d\ude00""#);
    }

    proptest! {
        #[test]
        fn json_reads_it_back(text in any::<String>()) {
            let quoted = quoted(&text, usize::MAX);
            prop_assert!(quoted.bytes().all(|b| (b' '..=b'~').contains(&b)), "{}", quoted);
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        }

        #[test]
        fn it_is_bounded(text in any::<String>(), longest in 0usize..40) {
            prop_assert!(quoted(&text, longest).len() <= 6 * longest + 8);
        }
    }
}
