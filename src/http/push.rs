//! Writes to hosted repositories: uploads, manifests, deletes.

use bytes::Bytes;
use http::{HeaderMap, Response, header};

use super::body::Payload;
use super::error::{ApiError, Code};
use super::exchange::Exchange;
use super::handler::{Answer, Service};
use super::receive::RequestBody;
use super::respond;
use super::route::{Begin, Write};
use crate::access::{Action, Caller};
use crate::events::{self, Target};
use crate::metrics::{Kind, Outcome};
use crate::oci::{Digest, Owner, Reference, Repository, Tag, UploadId};
use crate::registry::{Hosted, Naming, PushError, Turn};
use crate::store::OriginState;

/// Repositories that are looked through for a blob that is to be mounted from anywhere.
const MOUNT_SEARCH_MAX: usize = 1000;

/// Where a repository is in the paths of this request: `/v2/<name>` as the client writes it.
#[derive(Clone, Copy)]
pub struct Place<'a>(pub &'a str);

impl Place<'_> {
    fn upload(self, id: UploadId) -> String {
        format!("{}/blobs/uploads/{id}", self.0)
    }

    fn blob(self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.0)
    }

    fn manifest(self, digest: &Digest) -> String {
        format!("{}/manifests/{digest}", self.0)
    }
}

impl Write {
    /// What it takes to do this, and how it is counted.
    pub fn nature(&self) -> (Action, Kind, Option<Reference>) {
        match self {
            Self::Begin(_) | Self::Status(_) | Self::Append(_) | Self::Finish(..) | Self::Cancel(_) => {
                (Action::Push, Kind::Upload, None)
            }
            Self::PutManifest(reference, _) => (Action::Push, Kind::Manifest, Some(reference.clone())),
            Self::DeleteManifest(reference) => (Action::Delete, Kind::Manifest, Some(reference.clone())),
            Self::DeleteBlob(digest) => (Action::Delete, Kind::Blob, Some(Reference::Digest(*digest))),
        }
    }
}

/// Who writes where.
pub struct Writing<'a> {
    pub caller: &'a Caller,
    pub exchange: &'a Exchange,
    pub repository: &'a Repository,
    pub place: Place<'a>,
    pub headers: &'a HeaderMap,
}

impl Service {
    /// The caller may do this; nothing of the body was read.
    pub(super) async fn write(&self, at: Writing<'_>, write: Write, body: &mut RequestBody) -> Answer {
        let (_, kind, _) = write.nature();
        let Writing { repository, place, headers, .. } = at;
        let hosted = &self.content(kind, Some(repository))?.hosted;
        let response = match write {
            Write::Begin(begin) => self.begin(&at, hosted, begin, body).await?,
            Write::Status(id) => {
                let turn = hosted.upload(repository, id).await?;
                respond::upload_status(place.upload(id), id, turn.received())
            }
            Write::Append(id) => {
                let turn = hosted.upload(repository, id).await?;
                let turn = added(turn, headers, place, body).await?;
                respond::upload(place.upload(id), id, turn.received())
            }
            Write::Finish(id, digest) => {
                let turn = hosted.upload(repository, id).await?;
                let turn = added(turn, headers, place, body).await?;
                let size = turn.finish(digest).await?;
                self.pushed(&at, &digest, size)
            }
            Write::Cancel(id) => {
                hosted.upload(repository, id).await?.cancel().await?;
                respond::no_content()
            }
            Write::PutManifest(reference, tags) => {
                self.put_manifest(&at, hosted, reference, tags, body).await?
            }
            Write::DeleteManifest(reference) => {
                let deleted = hosted.delete_manifest(repository, &reference).await?;
                if let Some(digest) = deleted.manifest {
                    self.tell(&at, events::Action::Delete, || Target::removed(repository, &digest));
                }
                for tag in deleted.tags {
                    self.tell(&at, events::Action::Delete, || Target::untagged(repository, &tag));
                }
                respond::accepted()
            }
            Write::DeleteBlob(digest) => {
                hosted.delete_blob(repository, &digest).await?;
                self.tell(&at, events::Action::Delete, || Target::removed(repository, &digest));
                respond::accepted()
            }
        };
        Ok((response, Outcome::Hit))
    }

    fn tell(&self, at: &Writing<'_>, action: events::Action, target: impl FnOnce() -> Target) {
        at.exchange.tell(&self.events, action, target);
    }

    async fn begin(
        &self,
        at: &Writing<'_>,
        hosted: &Hosted,
        begin: Begin,
        body: &mut RequestBody,
    ) -> Result<Response<Payload>, ApiError> {
        let Writing { repository, place, .. } = *at;
        if let Some(digest) = begin.mount {
            let sources = self.sources(at.caller, hosted, &digest, begin.from.as_deref()).await;
            if let Some(source) = hosted.mount(repository, sources, &digest).await? {
                if source != *repository {
                    let target = || Target::blob(repository, &digest, None).mounted_from(&source);
                    self.tell(at, events::Action::Mount, target);
                }
                return Ok(respond::created(place.blob(&digest), &digest));
            }
        }
        let turn = hosted.begin(repository).await?;
        let id = turn.id();
        let Some(digest) = begin.digest.filter(|_| begin.mount.is_none()) else {
            return Ok(respond::upload(place.upload(id), id, 0));
        };
        let length = body.length();
        let size = turn.receive_whole(body.take(), length, digest).await?;
        Ok(self.pushed(at, &digest, size))
    }

    fn pushed(&self, at: &Writing<'_>, digest: &Digest, size: u64) -> Response<Payload> {
        self.tell(at, events::Action::Push, || Target::blob(at.repository, digest, Some(size)));
        respond::created(at.place.blob(digest), digest)
    }

    async fn put_manifest(
        &self,
        at: &Writing<'_>,
        hosted: &Hosted,
        reference: Reference,
        tags: Vec<Tag>,
        body: &mut RequestBody,
    ) -> Result<Response<Payload>, ApiError> {
        let (digest, mut all) = match reference {
            Reference::Digest(digest) => (Some(digest), Vec::new()),
            Reference::Tag(tag) => (None, vec![tag]),
        };
        all.extend(tags);
        let content_type = content_type(at.headers)?;
        let bytes = manifest_bytes(hosted, body).await?;
        let naming = Naming { digest, tags: all };
        let pushed = hosted.put_manifest(at.repository, naming, content_type, bytes).await?;
        let tell = |tag: Option<&Tag>| {
            let target =
                || Target::manifest(at.repository, &pushed.digest, &pushed.media_type, pushed.size, tag);
            self.tell(at, events::Action::Push, target);
        };
        match pushed.tags.as_slice() {
            [] => tell(None),
            tags => tags.iter().for_each(|tag| tell(Some(tag))),
        }
        Ok(respond::manifest_created(at.place.manifest(&pushed.digest), &pushed))
    }

    /// The hosted repositories that the caller may pull a blob from. Whether others exist, or have
    /// it, the answer does not show.
    async fn sources(
        &self,
        caller: &Caller,
        hosted: &Hosted,
        digest: &Digest,
        from: Option<&str>,
    ) -> Vec<Repository> {
        let may_pull = |source: &Repository| {
            source.owner == Owner::Hosted && self.authorise(caller, Action::Pull, source).is_ok()
        };
        if let Some(from) = from {
            return self.owners.resolve(None, from).ok().filter(may_pull).into_iter().collect();
        }
        if !hosted.is_stored(digest).await.unwrap_or(false) {
            return Vec::new();
        }
        let held = hosted.held().await.unwrap_or_default();
        let known = held.iter().filter(|(_, origin)| *origin != OriginState::Absent);
        let sources = known.filter_map(|(name, origin)| self.served(name, origin)).filter(may_pull);
        sources.take(MOUNT_SEARCH_MAX).collect()
    }
}

/// The body behind what the upload has, where it says that it belongs there.
async fn added(
    turn: Turn,
    headers: &HeaderMap,
    place: Place<'_>,
    body: &mut RequestBody,
) -> Result<Turn, ApiError> {
    let location = place.upload(turn.id());
    let refused = |error: PushError| ApiError::of_upload(&error, &location);
    let mut length = body.length();
    if let Some((start, end)) = content_range(headers)? {
        turn.expect(start).map_err(refused)?;
        let promised = end - start + 1;
        if let Some(got) = length.filter(|length| *length != promised) {
            let received = turn.received();
            return Err(refused(PushError::Length { promised, got, received }));
        }
        length = Some(promised);
    }
    if length == Some(0) {
        return Ok(turn);
    }
    turn.receive(body.take(), length).await.map_err(refused)
}

/// `<first>-<last>`, without a unit (OCI distribution-spec, "Pushing a blob in chunks").
fn content_range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let parsed = value.to_str().ok().and_then(|text| {
        let (start, end) = text.split_once('-')?;
        Some((number(start)?, number(end)?))
    });
    match parsed {
        Some((start, end)) if start <= end && end < u64::MAX => Ok(Some((start, end))),
        _ => {
            let shown: String = String::from_utf8_lossy(value.as_bytes()).chars().take(80).collect();
            let message =
                format!("Content-Range `{shown}` is none: write the first and the last byte, as in `0-1023`");
            Err(ApiError::new(Code::BlobUploadInvalid, message))
        }
    }
}

fn content_type(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let text = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().map(str::to_owned));
    text.transpose().map_err(|_| {
        ApiError::new(
            Code::ManifestInvalid,
            "the Content-Type header is no text: send the manifest's media type",
        )
    })
}

async fn manifest_bytes(hosted: &Hosted, body: &mut RequestBody) -> Result<Bytes, PushError> {
    let max = hosted.options().max_manifest;
    if body.length().is_some_and(|length| length > max as u64) {
        return Err(PushError::ManifestTooLarge(max));
    }
    hosted.collect_manifest(body.take()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_content_range_has_two_numbers_in_order() {
        let of = |text: &'static str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_RANGE, HeaderValue::from_static(text))]);
            content_range(&headers).map_err(|error| error.status().as_u16())
        };
        assert_eq!(of("0-0"), Ok(Some((0, 0))));
        assert_eq!(of("10-1023"), Ok(Some((10, 1023))));
        for bad in ["", "-", "1-", "-1", "1-0", "a-b", "bytes 0-1", "0-1/2", "+0-1", "0-18446744073709551615"]
        {
            assert_eq!(of(bad), Err(400), "{bad}");
        }
        assert_eq!(content_range(&HeaderMap::new()), Ok(None));
    }
}
