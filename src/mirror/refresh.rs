//! Tags asked for upstream before anybody has to wait for it.

use std::sync::Arc;

use super::Mirror;
use super::manifest::Request;
use super::memory::Subject;
use super::tag::Resolved;
use crate::answer::Error;
use crate::oci::{Reference, Tag};

impl Mirror {
    /// Asks upstream about a tag, fresh or not. Where it does not answer, what is known stays as it is.
    pub(super) async fn confirm(
        self: &Arc<Self>,
        request: &Request<'_>,
        tag: &Tag,
    ) -> Result<Resolved, Error> {
        let repository = request.repository;
        let reference = Reference::Tag(tag.clone());
        let subject = Subject::Manifest(reference.clone());
        let access = self.access(repository, &request.standing, &subject, request.asker.hops).await?;
        let upstream = self.upstream_for(repository, &access.hops)?;
        let head = upstream.manifest_head(access.identity, &repository.name, &reference).await;
        let head = head.map_err(|error| self.translate(request.who(), repository, &subject, error).0)?;
        let known = self.known_tag(request, tag).await;
        self.told(repository, tag, head, known.as_deref(), upstream.paused_for(access.identity))
    }
}
