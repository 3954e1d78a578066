//! A view of a manifest's bytes. The bytes themselves are kept verbatim, always.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Digest, MediaType, Platform};

/// Largest manifest taken: what containerd reads at most (4 * 1048 * 1048 bytes).
pub const MANIFEST_MAX: usize = 4 * 1048 * 1048;

/// What `hosted.max_manifest` may be raised to: a manifest is read into memory whole.
pub const MANIFEST_CEILING: usize = 64 << 20;

/// A reference from a manifest to other content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Its bytes may live elsewhere by design (`urls`, non-distributable layers).
    pub foreign: bool,
    /// Within an index: for which machines.
    pub platform: Option<Platform>,
}

/// What a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestKind {
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    Index {
        manifests: Vec<Descriptor>,
    },
    /// Withdrawn before image-spec 1.1 and still found in registries: read, never to be pushed.
    Artifact {
        blobs: Vec<Descriptor>,
    },
}

/// What Forebay reads of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: MediaType,
    pub kind: ManifestKind,
    pub subject: Option<Descriptor>,
    pub artifact_type: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error("no manifest: {0}")]
    Json(String),
    #[error(
        "an image manifest of schema 1, which no current client takes: have it pushed again by a \
         current tool"
    )]
    Schema1,
    #[error("neither `config` and `layers` nor `manifests` is in it")]
    Shape,
    #[error("`mediaType` is `{field}`, the Content-Type header says `{header}`")]
    MediaType { field: MediaType, header: MediaType },
    #[error("a descriptor in it has a bad digest: {0}")]
    Descriptor(#[from] super::InvalidDigest),
    #[error(
        "`{0}` is no manifest's media type: send an OCI image manifest or index, or a Docker manifest or \
         manifest list of schema 2"
    )]
    Unknown(MediaType),
    #[error("the Content-Type header is `{header}`, the manifest is `{field}`: send it as what it is")]
    ContentType { field: MediaType, header: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
    signatures: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<serde::de::IgnoredAny>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

/// Anything may stand here: what is no platform is taken for none.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawPlatform {
    Named {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: Option<String>,
    },
    Other(serde::de::IgnoredAny),
}

impl Manifest {
    /// Reads manifest bytes. `header` is the Content-Type they came with, where there was one: it
    /// may not contradict the bytes, and decides nothing that the bytes can say, so that what is
    /// answered from disk years later is what was answered first.
    pub fn parse(bytes: &[u8], header: Option<&MediaType>) -> Result<Self, InvalidManifest> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|e| InvalidManifest::Json(e.to_string()))?;
        let field = raw.media_type.as_deref().and_then(MediaType::parse);
        let schema1 = raw.schema_version == Some(1) || raw.signatures.is_some();
        if schema1 || [field.as_ref(), header].into_iter().flatten().any(MediaType::is_schema1) {
            return Err(InvalidManifest::Schema1);
        }
        let (shape, kind) = match (raw.config, raw.layers, raw.manifests) {
            (Some(config), layers, None) => {
                let layers = layers.unwrap_or_default();
                let kind = ManifestKind::Image { config: config.view()?, layers: views(layers)? };
                (MediaType::OCI_MANIFEST, kind)
            }
            (None, None, Some(manifests)) => {
                (MediaType::OCI_INDEX, ManifestKind::Index { manifests: views(manifests)? })
            }
            (None, None, None) if field.as_ref().is_some_and(MediaType::is_artifact) => {
                let blobs = views(raw.blobs.unwrap_or_default())?;
                (MediaType::OCI_ARTIFACT, ManifestKind::Artifact { blobs })
            }
            _ => return Err(InvalidManifest::Shape),
        };
        let media_type = match field {
            Some(field) => field,
            None => MediaType::parse(shape).ok_or(InvalidManifest::Shape)?,
        };
        if media_type.is_index() != matches!(kind, ManifestKind::Index { .. })
            || media_type.is_artifact() != matches!(kind, ManifestKind::Artifact { .. })
        {
            return Err(InvalidManifest::Shape);
        }
        if let Some(header) = header.filter(|header| **header != media_type && is_manifest_type(header)) {
            return Err(InvalidManifest::MediaType { field: media_type, header: header.clone() });
        }
        Ok(Self {
            media_type,
            kind,
            subject: raw.subject.map(RawDescriptor::view).transpose()?,
            artifact_type: raw.artifact_type.filter(|kind| !kind.is_empty()),
            annotations: raw.annotations,
        })
    }

    /// Reads a manifest that is pushed here: what other registries and clients may refuse, or read
    /// in another way, is refused before it is kept. `content_type` is the header's text.
    pub fn pushed(bytes: &[u8], content_type: Option<&str>) -> Result<Self, InvalidManifest> {
        let json = |error: serde_json::Error| InvalidManifest::Json(error.to_string());
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        OneKeyEach.deserialize(&mut reader).and_then(|()| reader.end()).map_err(json)?;
        let manifest = Self::parse(bytes, None)?;
        let field = manifest.media_type.clone();
        if !field.is_manifest() {
            return Err(InvalidManifest::Unknown(field));
        }
        match content_type {
            Some(header) if MediaType::parse(header).as_ref() != Some(&field) => {
                Err(InvalidManifest::ContentType { field, header: header.chars().take(120).collect() })
            }
            _ => Ok(manifest),
        }
    }

    /// What it is to those who look for referrers (OCI distribution-spec, "Listing Referrers").
    pub fn referrer_type(&self) -> Option<&str> {
        match (&self.artifact_type, &self.kind) {
            (Some(kind), _) => Some(kind),
            (None, ManifestKind::Image { config, .. }) => Some(&config.media_type),
            (None, ManifestKind::Index { .. } | ManifestKind::Artifact { .. }) => None,
        }
    }
}

/// Reads any JSON and keeps nothing of it: no object may have a key twice, for readers differ in
/// which of the two they take. Nesting is bounded by serde_json itself.
struct OneKeyEach;

impl<'de> DeserializeSeed<'de> for OneKeyEach {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneKeyEach {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(OneKeyEach)?;
            if let Some(twice) = keys.replace(key) {
                let twice: String = twice.chars().take(80).collect();
                return Err(de::Error::custom(format_args!("the key `{twice}` is there twice")));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(OneKeyEach)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Servers that know no better answer `application/json` or `text/plain`: no contradiction.
fn is_manifest_type(media_type: &MediaType) -> bool {
    media_type.as_str().contains("manifest") || media_type.as_str().contains("index")
}

fn views(raw: Vec<RawDescriptor>) -> Result<Vec<Descriptor>, InvalidManifest> {
    raw.into_iter().map(RawDescriptor::view).collect()
}

impl RawDescriptor {
    fn view(self) -> Result<Descriptor, InvalidManifest> {
        let foreign = self.urls.is_some_and(|urls| !urls.is_empty())
            || self.media_type.contains("nondistributable")
            || self.media_type.contains(".foreign.");
        let platform = self.platform.and_then(|platform| match platform {
            RawPlatform::Named { os, architecture, variant } => {
                let variant = variant.filter(|variant| !variant.is_empty());
                Some(Platform { os, architecture, variant })
            }
            RawPlatform::Other(_) => None,
        });
        Ok(Descriptor {
            media_type: self.media_type,
            digest: self.digest.parse()?,
            size: self.size,
            foreign,
            platform,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor() -> String {
        format!(r#"{{"mediaType":"application/x","digest":"{}","size":3}}"#, Digest::sha256(b"abc"))
    }

    #[test]
    fn the_media_type_follows_from_the_bytes() {
        let image = format!(r#"{{"schemaVersion":2,"config":{0},"layers":[{0}]}}"#, descriptor());
        let manifest = Manifest::parse(image.as_bytes(), None).unwrap();
        assert_eq!(manifest.media_type.as_str(), MediaType::OCI_MANIFEST);
        let plain = MediaType::parse("text/plain").unwrap();
        assert_eq!(Manifest::parse(image.as_bytes(), Some(&plain)).unwrap(), manifest);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor());
        let manifest = Manifest::parse(index.as_bytes(), None).unwrap();
        assert_eq!(manifest.media_type.as_str(), MediaType::OCI_INDEX);
    }

    #[test]
    fn an_index_tells_for_which_machines_its_images_are() {
        let entry = |platform: &str| {
            let digest = Digest::sha256(platform.as_bytes());
            format!(r#"{{"digest":"{digest}","size":3,"platform":{platform}}}"#)
        };
        let platforms = [
            r#"{"os":"linux","architecture":"arm64","variant":"v8","os.features":["x"]}"#,
            r#"{"os":"linux","architecture":"amd64","variant":""}"#,
            "null",
            "7",
            r#"{"os":"linux"}"#,
        ];
        let index = format!(r#"{{"manifests":[{}]}}"#, platforms.map(entry).join(","));
        let ManifestKind::Index { manifests } = Manifest::parse(index.as_bytes(), None).unwrap().kind else {
            panic!("an index")
        };
        let told: Vec<_> =
            manifests.into_iter().map(|entry| entry.platform.map(|platform| platform.to_string())).collect();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(told, [text("linux/arm64/v8"), text("linux/amd64"), None, None, None]);
    }

    #[test]
    fn artifacts_of_both_kinds_are_read() {
        let empty = format!(
            r#"{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2,"data":"e30="}}"#,
            Digest::sha256(b"{}")
        );
        let artifact = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"a/b","config":{empty},"layers":[{empty}],
                "subject":{}}}"#,
            MediaType::OCI_MANIFEST,
            descriptor()
        );
        let manifest = Manifest::parse(artifact.as_bytes(), None).unwrap();
        assert_eq!(manifest.subject.unwrap().digest, Digest::sha256(b"abc"));
        let old = format!(
            r#"{{"mediaType":"{}","artifactType":"a/b","blobs":[{1}],"subject":{1}}}"#,
            MediaType::OCI_ARTIFACT,
            descriptor()
        );
        let header = MediaType::parse(MediaType::OCI_ARTIFACT);
        let manifest = Manifest::parse(old.as_bytes(), header.as_ref()).unwrap();
        assert!(matches!(manifest.kind, ManifestKind::Artifact { blobs } if blobs.len() == 1));
        assert_eq!(Some(manifest.media_type), header);
        let bare = format!(r#"{{"mediaType":"{}"}}"#, MediaType::OCI_ARTIFACT);
        assert!(Manifest::parse(bare.as_bytes(), None).is_ok());
    }

    #[test]
    fn refuses_what_is_no_manifest() {
        let both = format!(r#"{{"config":{0},"manifests":[{0}]}}"#, descriptor());
        let lie = format!(r#"{{"mediaType":"{}","config":{}}}"#, MediaType::OCI_INDEX, descriptor());
        for text in
            ["", "{}", "[]", "<html>", both.as_str(), lie.as_str(), r#"{"config":{"digest":"x","size":1}}"#]
        {
            assert!(Manifest::parse(text.as_bytes(), None).is_err(), "{text}");
        }
        let artifact = format!(r#"{{"mediaType":"{}","config":{}}}"#, MediaType::OCI_ARTIFACT, descriptor());
        assert_eq!(Manifest::parse(artifact.as_bytes(), None), Err(InvalidManifest::Shape));
        let one = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert_eq!(Manifest::parse(one, None), Err(InvalidManifest::Schema1));
        let index = MediaType::parse(MediaType::OCI_INDEX).unwrap();
        let image = format!(r#"{{"config":{}}}"#, descriptor());
        assert!(matches!(
            Manifest::parse(image.as_bytes(), Some(&index)),
            Err(InvalidManifest::MediaType { .. })
        ));
    }

    #[test]
    fn deep_nesting_is_refused_without_harm() {
        let deep = "[".repeat(100_000);
        assert!(Manifest::parse(deep.as_bytes(), None).is_err());
    }

    #[test]
    fn what_is_pushed_is_held_to_more() {
        let image =
            format!(r#"{{"mediaType":"{}","config":{},"layers":[]}}"#, MediaType::OCI_MANIFEST, descriptor());
        let pushed = |text: &str, header| Manifest::pushed(text.as_bytes(), header);
        for header in
            [None, Some(MediaType::OCI_MANIFEST), Some("application/vnd.OCI.image.manifest.v1+json; x=y")]
        {
            assert!(pushed(&image, header).is_ok(), "{header:?}");
        }
        for header in [MediaType::OCI_INDEX, MediaType::DOCKER_MANIFEST, "text/plain", "application/json", ""]
        {
            assert!(
                matches!(pushed(&image, Some(header)), Err(InvalidManifest::ContentType { .. })),
                "{header}"
            );
        }
        let unknown = image.replace(MediaType::OCI_MANIFEST, "application/x");
        assert!(matches!(pushed(&unknown, None), Err(InvalidManifest::Unknown(_))));
        let with = |extra: &str| image.replacen('{', &format!("{{{extra},"), 1);
        for twice in
            [r#""layers":[]"#, r#""x":{"a":1,"b":[{"c":1,"c":2}]}"#, r#""annotations":{"a":"","a":""}"#]
        {
            let error = pushed(&with(twice), None).unwrap_err().to_string();
            assert!(error.contains("twice"), "{twice}: {error}");
        }
        let deep = with(&format!(r#""x":{}{}"#, "[".repeat(200), "]".repeat(200)));
        assert!(Manifest::parse(deep.as_bytes(), None).is_ok() && pushed(&deep, None).is_err());
        assert!(pushed(&format!("{image} x"), None).is_err(), "something behind it");
        assert!(pushed(&with(r#""x":{"a":1,"b":-1.5e3,"c":null,"d":true,"e":"f"}"#), None).is_ok());
    }

    #[test]
    fn a_referrer_is_of_its_artifact_type_or_its_configs() {
        let image = format!(r#"{{"config":{},"annotations":{{"a":"b"}}}}"#, descriptor());
        let manifest = Manifest::parse(image.as_bytes(), None).unwrap();
        assert_eq!(manifest.referrer_type(), Some("application/x"));
        assert_eq!(manifest.annotations.unwrap()["a"], "b");
        let typed = image.replacen('{', r#"{"artifactType":"application/y","#, 1);
        assert_eq!(Manifest::parse(typed.as_bytes(), None).unwrap().referrer_type(), Some("application/y"));
        assert_eq!(Manifest::parse(br#"{"manifests":[]}"#, None).unwrap().referrer_type(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes, None);
            let _ = Manifest::pushed(&bytes, None);
        }
    }
}
