//! `images.txt`: an image a line, remarks behind `#`.

/// The images of a list.
pub fn images(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_and_blank_lines_are_skipped() {
        let text = "\u{feff}# ours\r\nnginx:1.27\r\n\n  ghcr.io/org/app:main  # the app\n#x\nredis";
        assert_eq!(images(text), ["nginx:1.27", "ghcr.io/org/app:main", "redis"]);
        assert!(images("").is_empty() && images("#\n \n").is_empty());
    }
}
