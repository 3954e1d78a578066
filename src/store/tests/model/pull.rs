//! Pulls, as a mirror does them: the manifest, its tag, then blobs that are held nowhere in the trust domain.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::act::{INDEX, World};
use super::*;

/// An upstream that gives a blob, in pieces.
struct Upstream(Bytes);

impl Source for Upstream {
    fn spare_place(&self) -> Option<Place> {
        None
    }

    fn place(&self) -> BoxFuture<'_, Result<Place, SourceError>> {
        let place = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        async { Ok(Arc::new(place)) }.boxed()
    }

    fn open(&self, _: Place, start: u64, _: Option<u64>) -> BoxFuture<'_, Result<SourceStream, SourceError>> {
        let rest = self.0.slice(start as usize..);
        let pieces: Vec<Bytes> = rest.chunks(PIECE).map(Bytes::copy_from_slice).collect();
        let stream = futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed();
        let total = Some(self.0.len() as u64);
        async move { Ok(SourceStream { start, total, bounded: false, stream }) }.boxed()
    }
}

impl World {
    pub(super) async fn pull(
        &mut self,
        to: usize,
        image: usize,
        tag: usize,
        whole: bool,
    ) -> Result<(), String> {
        let children = if image == INDEX { vec![0, 1] } else { vec![image] };
        let digest = self.pull_manifest(to, image)?;
        let seen = SystemTime::now();
        let done = self.store().put_tag(&grant(to), &TAGS[tag].parse().unwrap(), &digest, seen);
        self.model.becomes(Item::Tag(to, TAGS[tag]), Some(digest), done.is_ok());
        done.map_err(|error| error.to_string())?;
        for child in children {
            self.pull_manifest(to, child)?;
            let blobs = MANIFESTS[child].0;
            for blob in if whole { blobs } else { &blobs[..1] } {
                self.pull_blob(to, *blob).await?;
            }
        }
        Ok(())
    }

    fn pull_manifest(&mut self, to: usize, number: usize) -> Result<Digest, String> {
        let (grant, bytes) = (grant(to), manifest(number));
        let digest = named(&bytes, false);
        let done = self.store().put_manifest(&grant, &digest, &bytes);
        self.model.becomes(Item::Manifest(to, digest), Some(digest), done.is_ok());
        done.map_err(|error| error.to_string())?;
        self.store().want(&grant.repository, &digest);
        Ok(digest)
    }

    async fn pull_blob(&mut self, to: usize, number: usize) -> Result<(), String> {
        let (store, grant, bytes) = (self.store().clone(), grant(to), Bytes::from(content(number)));
        let (digest, told) = (named(&bytes, false), |error: Error| error.to_string());
        let is_linked = store.has_layer(&grant.repository, &digest).map_err(told)?;
        if is_linked && store.blob(&digest).map_err(told)?.is_some() {
            return Ok(());
        }
        let item = Item::Blob(to, digest);
        if !is_linked && store.is_proven(&grant, &digest).map_err(told)? {
            let done = store.link_layer(&grant, &digest);
            self.model.becomes(item, Some(digest), done.is_ok());
            return done.map_err(told);
        }
        let troubles = || store.metrics.store_errors.get() + store.metrics.fill_relays.get();
        let before = troubles();
        let source = Arc::new(Upstream(bytes.clone()));
        match store.start_fill(&grant, &digest, source, Demand::Whole, !is_linked).await {
            Start::Reading(reader) => {
                let fill = reader.fill().clone();
                let read = read_all(BlobReader::fill(reader)).await;
                while store.lists(&fill) {
                    tokio::task::yield_now().await;
                }
                if let Ok(read) = &read {
                    assert_eq!(*read, bytes, "a pull was completed with other bytes");
                }
                self.evicted();
                let failed = troubles() != before;
                let is_kept = store.has_layer(&grant.repository, &digest).is_ok_and(|has| has)
                    && store.blob(&digest).is_ok_and(|held| held.is_some());
                assert!(is_kept || failed || self.tainted || self.is_capped(), "a pull is not kept");
                self.model.becomes(item, Some(digest), is_kept && !failed && !self.tainted);
                read.map(drop)
            }
            Start::Held | Start::Unproven => Err("it is said to be held, and was not".to_owned()),
        }
    }
}

pub(super) async fn read_all(mut reader: BlobReader) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        all.extend_from_slice(&piece.map_err(|error| error.to_string())?);
    }
    Ok(all)
}
