//! Media types of manifests (OCI image-spec, media-types.md; Docker image manifest v2).

use std::fmt;
use std::sync::Arc;

/// All kinds of manifest that Forebay takes, for `Accept`: a registry that is asked for fewer
/// may convert or refuse what it holds.
pub const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json";

/// A media type without parameters, in lower case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

impl MediaType {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    /// Drops parameters (`; charset=utf-8`) and folds case; `None` where nothing is left or a
    /// character could not stand in a header.
    pub fn parse(text: &str) -> Option<Self> {
        let essence = text.split(';').next()?.trim();
        let fits = !essence.is_empty()
            && essence.len() <= 255
            && essence.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b',');
        fits.then(|| Self(essence.to_ascii_lowercase().into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Docker's manifests before 2016, signed and not content addressed: no client of today takes them.
    pub fn is_schema1(&self) -> bool {
        matches!(
            self.as_str(),
            "application/vnd.docker.distribution.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v1+prettyjws"
        )
    }

    pub fn is_artifact(&self) -> bool {
        self.as_str() == Self::OCI_ARTIFACT
    }

    pub fn is_index(&self) -> bool {
        matches!(self.as_str(), Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// One of the four kinds that are pushed and pulled today.
    pub fn is_manifest(&self) -> bool {
        self.is_index() || matches!(self.as_str(), Self::OCI_MANIFEST | Self::DOCKER_MANIFEST)
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter() {
        let plain = MediaType::parse(MediaType::OCI_INDEX);
        assert_eq!(MediaType::parse("Application/vnd.oci.image.INDEX.v1+json; charset=utf-8"), plain);
        for bad in ["", " ; x", "a b", "a\r\nb", "\""] {
            assert_eq!(MediaType::parse(bad), None, "{bad:?}");
        }
    }
}
