//! The vocabulary of images, pure: no I/O, no clock, no configuration.
//!
//! Parse, don't validate: a value of one of these types in hand is a valid one.

mod digest;
mod manifest;
mod media_type;
mod name;
mod pattern;
mod platform;
mod range;
mod reference;
mod referrer;
mod repository;
mod upload;

pub use digest::{Algorithm, Digest, DigestText, Hasher, InvalidDigest};
pub use manifest::{Descriptor, InvalidManifest, MANIFEST_CEILING, MANIFEST_MAX, Manifest, ManifestKind};
pub use media_type::{MANIFEST_ACCEPT, MediaType};
pub use name::{InvalidName, Name};
pub use pattern::{InvalidTagPattern, RepositoryPattern, TagPattern};
pub use platform::{InvalidPlatform, Platform, Platforms};
pub use range::{ByteRange, RangeRequest, Unsatisfiable};
pub use reference::{InvalidReference, Reference, Tag};
pub use referrer::{Referrer, referrers};
pub use repository::{InvalidHost, Owner, Repository, UpstreamHost};
pub use upload::{InvalidUploadId, UploadId};
