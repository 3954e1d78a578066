//! Retention: which tags of a repository go. A decision only; nothing is read or removed here.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use crate::oci::{Digest, Repository, RepositoryPattern, Tag, TagPattern};

/// What is kept of the repositories that it is for. A tag goes only if nothing here keeps it; where
/// nothing is said of tags, all stay.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub repositories: Vec<RepositoryPattern>,
    /// The newest tags.
    pub keep_last: Option<usize>,
    /// Tags that were pushed within this time.
    pub keep_for: Option<Duration>,
    pub keep_tags: Vec<TagPattern>,
    /// After which time manifests without a tag go.
    pub untagged_for: Option<Duration>,
}

/// The first rule that is for a repository decides.
pub fn rule<'a>(rules: &'a [Rule], repository: &Repository) -> Option<&'a Rule> {
    rules.iter().find(|rule| rule.repositories.iter().any(|pattern| pattern.matches(repository)))
}

impl Rule {
    /// The tags that go at this time, of all that a repository has, each with when it was pushed.
    ///
    /// A tag that is named by the digest of a manifest, as signatures are, is there for its sake: it
    /// stays as long as that is `held`, and none other goes because of it.
    pub fn expired(
        &self,
        repository: &Repository,
        tags: &[(&Tag, SystemTime)],
        held: &HashSet<Digest>,
        now: SystemTime,
        is_immutable: impl Fn(&Tag) -> bool,
    ) -> Vec<Tag> {
        if self.keep_last.is_none() && self.keep_for.is_none() && self.keep_tags.is_empty() {
            return Vec::new();
        }
        let mut own: Vec<_> = tags.iter().filter(|(tag, _)| subject(tag).is_none()).collect();
        own.sort_by(|(a, pushed), (b, other)| other.cmp(pushed).then(b.as_str().cmp(a.as_str())));
        let last: HashSet<&str> =
            own.iter().take(self.keep_last.unwrap_or(0)).map(|(tag, _)| tag.as_str()).collect();
        let is_kept = |tag: &Tag, pushed: &SystemTime| {
            // One that was pushed in the future was pushed just now.
            let age = now.duration_since(*pushed).unwrap_or_default();
            last.contains(tag.as_str())
                || self.keep_for.is_some_and(|time| age < time)
                || self.keep_tags.iter().any(|pattern| pattern.matches(repository, tag))
                || subject(tag).is_some_and(|subject| held.contains(&subject))
                || is_immutable(tag)
        };
        let gone = tags.iter().filter(|(tag, pushed)| !is_kept(tag, pushed));
        gone.map(|(tag, _)| (*tag).clone()).collect()
    }
}

/// The manifest that a tag is named by: `sha256-<hex>`, with or without `.sig` and the like.
fn subject(tag: &Tag) -> Option<Digest> {
    let (algorithm, rest) = tag.as_str().split_once('-')?;
    format!("{algorithm}:{}", rest.split('.').next().unwrap_or(rest)).parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Owner;

    fn repository() -> Repository {
        Repository { owner: Owner::Hosted, name: "corp.internal/ci/app".parse().unwrap() }
    }

    fn of(patterns: &[&str]) -> Rule {
        Rule {
            repositories: patterns.iter().map(|text| RepositoryPattern::parse(text).unwrap()).collect(),
            keep_last: None,
            keep_for: None,
            keep_tags: Vec::new(),
            untagged_for: None,
        }
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn expired(rule: &Rule, tags: &[(Tag, SystemTime)], now: u64) -> Vec<Tag> {
        let tags: Vec<_> = tags.iter().map(|(tag, pushed)| (tag, *pushed)).collect();
        rule.expired(&repository(), &tags, &HashSet::new(), at(now), |tag| tag.as_str() == "immutable")
    }

    #[test]
    fn the_first_rule_for_a_repository_decides() {
        let rules = [of(&["other/**"]), of(&["x", "corp.internal/ci/**"]), of(&["**"])];
        assert_eq!(rule(&rules, &repository()), Some(&rules[1]));
        assert_eq!(rule(&rules[..1], &repository()), None);
        assert_eq!(rule(&[of(&["corp.internal/*"])], &repository()), None);
    }

    #[test]
    fn each_keep_keeps_by_itself() {
        let tags: Vec<_> = [("a", 1), ("b", 2), ("v1", 3), ("immutable", 4), ("c", 50)]
            .map(|(name, t)| (tag(name), at(t)))
            .into();
        let gone =
            |rule: &Rule| expired(rule, &tags, 100).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(gone(&of(&["**"])), [""; 0], "it says nothing of tags");
        assert_eq!(gone(&Rule { keep_last: Some(2), ..of(&[]) }), ["a", "b", "v1"]);
        assert_eq!(gone(&Rule { keep_for: Some(Duration::from_secs(51)), ..of(&[]) }), ["a", "b", "v1"]);
        let versions = vec![TagPattern::parse("v*").unwrap()];
        assert_eq!(gone(&Rule { keep_tags: versions.clone(), ..of(&[]) }), ["a", "b", "c"]);
        assert_eq!(gone(&Rule { keep_tags: versions, keep_last: Some(1), ..of(&[]) }), ["a", "b"]);
    }

    #[test]
    fn signatures_stay_with_what_they_sign() {
        let (signed, lost) = (Digest::sha256(b"signed"), Digest::sha256(b"lost"));
        let names = [
            format!("sha256-{}.sig", signed.hex()),
            format!("sha256-{}", signed.hex()),
            format!("sha256-{}.att", lost.hex()),
            "old".to_owned(),
            "new".to_owned(),
        ];
        let tags: Vec<Tag> = names.iter().map(|name| tag(name)).collect();
        let tags: Vec<_> = tags.iter().zip([9, 9, 9, 1, 2].map(at)).collect();
        let rule = Rule { keep_last: Some(1), ..of(&[]) };
        let gone = rule.expired(&repository(), &tags, &HashSet::from([signed]), at(10), |_| false);
        assert_eq!(gone, [tag(&names[2]), tag("old")]);
    }

    proptest! {
        #[test]
        fn what_goes_is_kept_by_nothing_and_what_stays_by_something(
            times in proptest::collection::vec(0u64..50, 0..30),
            keep_last in proptest::option::of(1usize..10),
            keep_for in proptest::option::of(0u64..60),
            pattern in any::<bool>(),
        ) {
            let tags: Vec<_> =
                times.iter().enumerate().map(|(n, time)| (tag(&format!("{}{n}", ["a", "b"][n % 2])), at(*time))).collect();
            let keep_tags: Vec<_> = pattern.then(|| TagPattern::parse("b*").unwrap()).into_iter().collect();
            let keep_for = keep_for.map(Duration::from_secs);
            let rule = Rule { keep_last, keep_for, keep_tags, ..of(&["**"]) };
            let gone = expired(&rule, &tags, 50);
            let says_nothing = keep_last.is_none() && keep_for.is_none() && !pattern;
            for (name, pushed) in &tags {
                let newer = tags.iter().filter(|(_, other)| other > pushed).count();
                let not_older = tags.iter().filter(|(_, other)| other >= pushed).count();
                let surely_last = keep_last.is_some_and(|last| not_older <= last);
                let maybe_last = keep_last.is_some_and(|last| newer < last);
                let other = says_nothing
                    || keep_for.is_some_and(|time| at(50).duration_since(*pushed).unwrap() < time)
                    || (pattern && name.as_str().starts_with('b'));
                if gone.contains(name) {
                    prop_assert!(!other && !surely_last, "{name}");
                } else {
                    prop_assert!(other || maybe_last, "{name}");
                }
            }
            if let (Some(last), None, false) = (keep_last, keep_for, pattern) {
                prop_assert_eq!(tags.len() - gone.len(), last.min(tags.len()));
            }
        }
    }
}
