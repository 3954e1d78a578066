//! What becomes of clients and of the disk when the upstream is broken, lying, hostile or gone, and
//! when the client itself sends what it should not. The real binary, in front of a scripted upstream.
//!
//! What must hold in every case is checked by `bench` at every answer and at the end.

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod bench;
mod blobs;
mod credentials;
mod input;
mod limits;
mod manifests;
mod redirects;
mod stale;
