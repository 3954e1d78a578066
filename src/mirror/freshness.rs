//! How long a tag is taken as it was last seen.

use std::time::Duration;

use crate::oci::{Repository, Tag, TagPattern as Pattern};

/// Rules in order: the first pattern that matches decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Freshness {
    pub rules: Vec<(Pattern, Duration)>,
    /// Tags that look like full versions: `1.27.3`, `v2.0.1-alpine`.
    pub versions: Duration,
    pub others: Duration,
    /// Share by which each time is lengthened or shortened at random: 0.1 for +-10 %.
    pub jitter: f64,
}

impl Freshness {
    pub fn of(&self, repository: &Repository, tag: &Tag) -> Duration {
        let rule = self.rules.iter().find(|(pattern, _)| pattern.matches(repository, tag));
        let base = match rule {
            Some((_, time)) => *time,
            None if is_version(tag.as_str()) => self.versions,
            None => self.others,
        };
        self.varied(base)
    }

    /// Of what is no tag and changes as tags do: lists of referrers.
    pub fn of_others(&self) -> Duration {
        self.varied(self.others)
    }

    fn varied(&self, base: Duration) -> Duration {
        let jitter = self.jitter.clamp(0.0, 1.0);
        base.mul_f64(1.0 + rand::random_range(-jitter..=jitter))
    }
}

/// Three numbers, with or without `v` in front and something behind: rarely moved once pushed.
fn is_version(tag: &str) -> bool {
    let mut numbers = tag.strip_prefix('v').unwrap_or(tag).splitn(3, '.');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    numbers.next().is_some_and(number)
        && numbers.next().is_some_and(number)
        && numbers.next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Owner, UpstreamHost};

    #[test]
    fn the_first_rule_that_matches_decides() {
        let seconds = Duration::from_secs;
        let rule = |text: &str, time| (Pattern::parse(text).unwrap(), seconds(time));
        let freshness = Freshness {
            rules: vec![rule("latest", 60), rule("library/*:1.*", 7), rule("docker.io/team/**:x", 8)],
            versions: seconds(3600),
            others: seconds(300),
            jitter: 0.0,
        };
        let of = |name: &str, tag: &str| {
            let owner = Owner::Upstream(UpstreamHost::docker_hub());
            let repository = Repository { owner, name: name.parse().unwrap() };
            freshness.of(&repository, &tag.parse().unwrap()).as_secs()
        };
        assert_eq!(of("library/nginx", "latest"), 60);
        assert_eq!(of("library/nginx", "1.27.3"), 7);
        assert_eq!(of("team/nginx", "1.27.3"), 3600);
        assert_eq!(of("team/a/b", "x"), 8);
        for version in ["v2.0.1-alpine", "0.0.1", "2024.01.02"] {
            assert_eq!(of("a/b", version), 3600, "{version}");
        }
        for other in ["1.27", "1", "v1", "stable", "1.x.3", "a.1.2"] {
            assert_eq!(of("a/b", other), 300, "{other}");
        }
        assert!(Pattern::parse("[").unwrap_err().to_string().contains('['));
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let owner = Owner::Upstream(UpstreamHost::docker_hub());
        let repository = Repository { owner, name: "a/b".parse().unwrap() };
        let freshness = Freshness {
            rules: vec![],
            versions: Duration::ZERO,
            others: Duration::from_secs(100),
            jitter: 0.1,
        };
        for _ in 0..1000 {
            let time = freshness.of(&repository, &"x".parse().unwrap()).as_secs_f64();
            assert!((90.0..=110.0).contains(&time), "{time}");
        }
    }
}
