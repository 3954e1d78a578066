//! Referrers: manifests that name another as their `subject`: signatures, attestations, SBOMs
//! (OCI distribution-spec, "Listing Referrers").

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Digest, Tag};

/// A descriptor as the referrers API gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    /// In its text form; a well-formed one of a known algorithm, where it was read by [`referrers`].
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: Option<u64>,
    /// `null` for none, as some servers write it.
    manifests: Option<Vec<Referrer>>,
}

/// The entries of an index that lists referrers, each digest once; entries with a digest that cannot
/// be asked for are left out. `Ok(None)` where the JSON is no index.
pub fn referrers(index: &[u8]) -> Result<Option<Vec<Referrer>>, serde_json::Error> {
    let index: Index = serde_json::from_slice(index)?;
    let entries = match index {
        Index { manifests: Some(entries), .. } => entries,
        Index { schema_version: Some(2), .. } => Vec::new(),
        Index { .. } => return Ok(None),
    };
    let mut seen = HashSet::new();
    let is_new = |entry: &Referrer| entry.digest.parse::<Digest>().is_ok_and(|digest| seen.insert(digest));
    Ok(Some(entries.into_iter().filter(is_new).collect()))
}

impl Tag {
    /// The tag of the index that lists the referrers of `subject` in a registry without the API
    /// (distribution-spec, "Referrers Tag Schema"): algorithm, `-`, 64 characters of the digest.
    pub fn of_referrers(subject: &Digest) -> Self {
        let hex = subject.hex();
        Self::unchecked(format!("{}-{}", subject.algorithm().as_str(), &hex[..hex.len().min(64)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    #[test]
    fn the_fallback_tag_is_a_tag_for_every_algorithm() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            let tag = Tag::of_referrers(&digest);
            assert_eq!(tag.as_str().parse::<Tag>().unwrap(), tag);
            assert_eq!(tag.as_str(), format!("{}-{}", algorithm.as_str(), &digest.hex()[..64]));
        }
    }

    #[test]
    fn entries_are_read_once_and_only_where_they_can_be_asked_for() {
        let entry = |digest: &str| format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
        let one = Digest::sha256(b"1").to_string();
        let text = [&one, "md5:00", &one, "sha256:zz"].map(entry).join(",");
        let read = referrers(format!(r#"{{"manifests":[{text}]}}"#).as_bytes()).unwrap().unwrap();
        assert_eq!(read.iter().map(|entry| entry.digest.as_str()).collect::<Vec<_>>(), [one]);
        // As it is written, it is read.
        let again = serde_json::to_string(&read[0]).unwrap();
        assert_eq!(again, entry(&read[0].digest));
        assert_eq!(serde_json::from_str::<Referrer>(&again).unwrap(), read[0]);
        for empty in [r#"{"manifests":[]}"#, r#"{"manifests":null,"schemaVersion":2}"#] {
            assert_eq!(referrers(empty.as_bytes()).unwrap(), Some(vec![]), "{empty}");
        }
        for other in ["{}", r#"{"errors":[]}"#, r#"{"schemaVersion":1}"#] {
            assert_eq!(referrers(other.as_bytes()).unwrap(), None, "{other}");
        }
        for bad in ["", "[", r#"{"manifests":3}"#, r#"{"manifests":[{"digest":"x"}]}"#] {
            assert!(referrers(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = referrers(&bytes);
        }
    }
}
