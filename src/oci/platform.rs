//! For which machines an image is (OCI image-spec, "Image Index", `platform`).

use std::fmt;
use std::str::FromStr;

use super::Descriptor;

/// An operating system and architecture, as in `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform: write it as in `linux/amd64` or `linux/arm/v7`")]
pub struct InvalidPlatform(String);

/// Which of an index's images are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Platforms {
    /// Every one, and what belongs to them, such as attestations.
    All,
    These(Vec<Platform>),
}

/// What architectures are called in images, and by Rust.
const ARCHITECTURES: [(&str, &str); 7] = [
    ("x86_64", "amd64"),
    ("x86", "386"),
    ("aarch64", "arm64"),
    ("powerpc64", "ppc64le"),
    ("loongarch64", "loong64"),
    ("mips64", "mips64le"),
    ("mips", "mipsle"),
];

impl Platform {
    /// Where this program runs.
    pub fn of_this_machine() -> Self {
        let ours = std::env::consts::ARCH;
        let architecture =
            ARCHITECTURES.iter().find(|(rust, _)| *rust == ours).map_or(ours, |(_, image)| image);
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether what is offered for a platform serves this one. Where no variant is asked for, any does.
    pub fn takes(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.plain_variant() == offered.plain_variant())
    }

    /// An attestation beside the images of an index says so by a platform that is none.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// The variant; None for the one that an architecture has by itself.
    fn plain_variant(&self) -> Option<&str> {
        let by_itself = [("arm64", "v8"), ("amd64", "v1"), ("arm", "v7")];
        let variant = self.variant.as_deref()?;
        (!by_itself.contains(&(self.architecture.as_str(), variant))).then_some(variant)
    }
}

impl Platforms {
    pub fn of_this_machine() -> Self {
        Self::These(vec![Platform::of_this_machine()])
    }

    /// The manifests of an index that serve these platforms, and the platforms that none serves. What
    /// says no platform may be for any.
    pub fn fitting<'a>(&self, manifests: &'a [Descriptor]) -> (Vec<&'a Descriptor>, Vec<String>) {
        let Self::These(wanted) = self else { return (manifests.iter().collect(), Vec::new()) };
        let takes = |offered: &Option<Platform>| match offered {
            Some(offered) => wanted.iter().any(|wanted| wanted.takes(offered)),
            None => true,
        };
        let is_served = |wanted: &&Platform| {
            manifests
                .iter()
                .any(|manifest| manifest.platform.as_ref().is_none_or(|offered| wanted.takes(offered)))
        };
        let missing = wanted.iter().filter(|wanted| !is_served(wanted)).map(ToString::to_string).collect();
        (manifests.iter().filter(|manifest| takes(&manifest.platform)).collect(), missing)
    }

    /// Reads `linux/amd64`, or `all`, which stands alone. Nothing: this machine's.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, InvalidPlatform> {
        match texts {
            [] => Ok(Self::of_this_machine()),
            [all] if all.as_ref() == "all" => Ok(Self::All),
            texts => {
                texts.iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>().map(Self::These)
            }
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let part = |part: &&str| {
            !part.is_empty()
                && part.len() <= 64
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
            _ => return Err(InvalidPlatform(text.chars().take(80).collect())),
        };
        if !parts.iter().all(part) {
            return Err(InvalidPlatform(text.chars().take(80).collect()));
        }
        Ok(Self { os: (*os).to_owned(), architecture: (*architecture).to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_platform_takes_what_runs_on_it() {
        let takes = |wanted: &str, offered: &str| {
            wanted.parse::<Platform>().unwrap().takes(&offered.parse::<Platform>().unwrap())
        };
        for (wanted, offered) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v6"),
            ("linux/arm/v7", "linux/arm"),
        ] {
            assert!(takes(wanted, offered), "{wanted} {offered}");
        }
        for (wanted, offered) in [
            ("linux/amd64", "windows/amd64"),
            ("linux/amd64", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v7"),
        ] {
            assert!(!takes(wanted, offered), "{wanted} {offered}");
        }
        assert!("unknown/unknown".parse::<Platform>().unwrap().is_unknown());
    }

    #[test]
    fn platforms_are_named_or_all() {
        assert_eq!(Platforms::parse(&["all"]), Ok(Platforms::All));
        assert_eq!(Platforms::parse::<&str>(&[]), Ok(Platforms::of_this_machine()));
        for bad in
            [&["linux"][..], &["all", "linux/amd64"], &["linux/"], &["a/b/c/d"], &["linux/amd 64"], &[""]]
        {
            assert!(Platforms::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "[a-z0-9/._-]{0,20}") {
            if let Ok(platform) = text.parse::<Platform>() {
                prop_assert_eq!(platform.to_string(), text);
            }
        }
    }
}
