//! Where things stand in the tree: the layout of CNCF distribution
//! (`registry/storage/paths.go` there), and our own files beside it under `forebay/`.
//!
//! Keys are relative, parted by `/`, and made of parsed values only, so none leads outside.

use crate::oci::{Algorithm, Digest, Reference, Repository, Tag, UploadId};

const REPOSITORIES: &str = "docker/registry/v2/repositories";

/// Directory of all repositories.
pub const REPOSITORIES_DIR: &str = REPOSITORIES;
/// Longest that a stored name can be, and some.
pub const STORED_NAME_MAX: usize = 600;
/// Unfinished fills and writes; emptied at start.
pub const STAGING_DIR: &str = "forebay/fills";
/// What shows whether the disk takes writes.
pub const PROBE: &str = "forebay/fills/probe";
pub const ORIGINS_DIR: &str = "forebay/origins";
/// Our own files.
pub const OWN_DIR: &str = "forebay";
pub const LOCK: &str = "forebay/lock";
/// In which format all of it is.
pub const VERSION: &str = "forebay/version";
/// Bad data, by algorithm and hex: never served, the oldest goes first.
pub const QUARANTINE_DIR: &str = "forebay/quarantine";
/// Is there while a process runs; what it holds is told by [`super::scrub`].
pub const RUNNING: &str = "forebay/running";
/// How far the scrub has come. May be deleted: then it begins anew.
pub const SCRUB: &str = "forebay/scrub.json";
/// What was fetched within each trust domain, a directory each.
pub const PROOFS_DIR: &str = "forebay/proofs";

fn content(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{}/{}/{hex}", digest.algorithm().as_str(), &hex[..2])
}

fn path(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// Directory of all content of one algorithm.
pub fn content_root(algorithm: Algorithm) -> String {
    format!("docker/registry/v2/blobs/{}", algorithm.as_str())
}

/// Bytes of a blob or manifest.
pub fn data(digest: &Digest) -> String {
    format!("docker/registry/v2/blobs/{}/data", content(digest))
}

/// Directory that holds the bytes of a blob or manifest, and nothing else.
pub fn data_dir(digest: &Digest) -> String {
    format!("docker/registry/v2/blobs/{}", content(digest))
}

/// Where bad data of this digest is put aside.
pub fn quarantined(digest: &Digest) -> String {
    format!("{QUARANTINE_DIR}/{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// The parts of a repository under which links to content stand, by algorithm and hex.
pub const LAYERS: &str = "_layers";
pub const REVISIONS: &str = "_manifests/revisions";
/// Under which its tags stand, a directory each.
pub const TAGS: &str = "_manifests/tags";

/// Directory of the links of one part, whoever the repository belongs to.
pub fn links(stored_name: &str, part: &str) -> String {
    format!("{REPOSITORIES}/{stored_name}/{part}")
}

/// Directory of a repository's manifests and tags.
pub fn manifests(stored_name: &str) -> String {
    format!("{REPOSITORIES}/{stored_name}/_manifests")
}

pub fn repository(repository: &Repository) -> String {
    format!("{REPOSITORIES}/{}", repository.stored_name())
}

/// Directory of the links to blobs of one algorithm.
pub fn layers(repo: &Repository, algorithm: Algorithm) -> String {
    format!("{}/_layers/{}", repository(repo), algorithm.as_str())
}

/// Says that the repository has this blob.
pub fn layer(repo: &Repository, digest: &Digest) -> String {
    format!("{}/_layers/{}/link", repository(repo), path(digest))
}

/// Directory of the links to manifests of one algorithm.
pub fn revisions(repo: &Repository, algorithm: Algorithm) -> String {
    format!("{}/_manifests/revisions/{}", repository(repo), algorithm.as_str())
}

/// Says that the repository has this manifest.
pub fn revision(repo: &Repository, digest: &Digest) -> String {
    format!("{}/_manifests/revisions/{}/link", repository(repo), path(digest))
}

pub fn tags(repo: &Repository) -> String {
    format!("{}/_manifests/tags", repository(repo))
}

/// Directory of one tag.
pub fn tag(repo: &Repository, tag: &Tag) -> String {
    format!("{}/{tag}", tags(repo))
}

/// What the tag points to.
pub fn tag_current(repo: &Repository, name: &Tag) -> String {
    format!("{}/current/link", tag(repo, name))
}

/// Says that the tag pointed to this manifest at some time.
pub fn tag_index(repo: &Repository, name: &Tag, digest: &Digest) -> String {
    format!("{}/link", tag_history(repo, name, digest))
}

/// Directory of that.
pub fn tag_history(repo: &Repository, name: &Tag, digest: &Digest) -> String {
    format!("{}/index/{}", tag(repo, name), path(digest))
}

/// Directory of the links of one algorithm to all the manifests that the tag ever pointed to.
pub fn tag_past(repo: &Repository, name: &Tag, algorithm: Algorithm) -> String {
    format!("{}/index/{}", tag(repo, name), algorithm.as_str())
}

/// Directory of a repository's unfinished uploads.
pub fn uploads(stored_name: &str) -> String {
    format!("{REPOSITORIES}/{stored_name}/_uploads")
}

pub fn upload(stored_name: &str, id: UploadId) -> String {
    format!("{}/{id}", uploads(stored_name))
}

/// What has come of an upload.
pub fn upload_data(stored_name: &str, id: UploadId) -> String {
    format!("{}/data", upload(stored_name, id))
}

/// When an upload began, in RFC 3339.
pub fn upload_started(stored_name: &str, id: UploadId) -> String {
    format!("{}/startedat", upload(stored_name, id))
}

/// Whose the repository is. `_origin` is no component of a name, so it hides none.
pub fn origin(stored_name: &str) -> String {
    format!("{ORIGINS_DIR}/{stored_name}/_origin")
}

/// Since when upstream says that it has no such tag. `_tags` is no component of a name, so it hides none.
pub fn tag_gone(repository: &Repository, tag: &Tag) -> String {
    format!("forebay/gone/{}/_tags/{tag}", repository.stored_name())
}

/// What upstream told of a manifest's referrers. `_sha256` is no component of a name, so it hides none.
pub fn referrers(repository: &Repository, subject: &Digest) -> String {
    format!("forebay/referrers/{}/_{}", repository.stored_name(), path(subject))
}

/// Images that are not to be evicted.
pub const PINS_DIR: &str = "forebay/pins";

/// Directory of a repository's pins. Of what is in it, what begins with `_` is no component of a name.
pub fn pins(stored_name: &str) -> String {
    format!("{PINS_DIR}/{stored_name}")
}

/// Says that an image is not to be evicted, and since when.
pub fn pin(repository: &Repository, reference: &Reference) -> String {
    let pins = pins(&repository.stored_name());
    match reference {
        Reference::Tag(tag) => format!("{pins}/_tags/{tag}"),
        Reference::Digest(digest) => format!("{pins}/_{}", path(digest)),
    }
}

/// Says that the bytes of this blob were fetched within this trust domain.
pub fn proof(domain: &str, digest: &Digest) -> String {
    let domain = Digest::sha256(domain.as_bytes()).hex();
    proof_in(&domain[..16], digest)
}

/// The same in a directory of [`PROOFS_DIR`].
pub fn proof_in(dir: &str, digest: &Digest) -> String {
    format!("{PROOFS_DIR}/{dir}/{}", content(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Owner, UpstreamHost};

    #[test]
    fn paths_are_those_of_cncf_distribution() {
        let repo = Repository {
            owner: Owner::Upstream(UpstreamHost::docker_hub()),
            name: "library/nginx".parse().unwrap(),
        };
        let digest = Digest::sha256(b"");
        let hex = digest.hex();
        let tag: Tag = "1.27".parse().unwrap();
        assert_eq!(data(&digest), format!("docker/registry/v2/blobs/sha256/e3/{hex}/data"));
        let base = "docker/registry/v2/repositories/library/nginx";
        assert_eq!(layer(&repo, &digest), format!("{base}/_layers/sha256/{hex}/link"));
        assert_eq!(revision(&repo, &digest), format!("{base}/_manifests/revisions/sha256/{hex}/link"));
        assert_eq!(tag_current(&repo, &tag), format!("{base}/_manifests/tags/1.27/current/link"));
        assert_eq!(
            tag_index(&repo, &tag, &digest),
            format!("{base}/_manifests/tags/1.27/index/sha256/{hex}/link")
        );
        let (id, name) = (UploadId::random(), repo.stored_name());
        assert_eq!(upload_data(&name, id), format!("{base}/_uploads/{id}/data"));
        assert_eq!(upload_started(&name, id), format!("{base}/_uploads/{id}/startedat"));
    }
}
