//! What the control socket is told to take images in with: which blobs are wanted, then each of them, then
//! manifests. Hosted images are taken as from a pusher, mirrored ones as if they had been pulled.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};

use super::naming;
use crate::control::{Brought, Command, PutKind, PutLine, PutRequest, Report, WantedLine, WantedRequest};
use crate::http::{Content, Owners, Service};
use crate::oci::{Digest, MANIFEST_CEILING, Owner, Reference, Repository};
use crate::registry::{Hosted, Interrupted, Naming};
use crate::store::Store;

/// Says which blobs of an image are to be brought.
pub fn wanting(service: Arc<ArcSwap<Service>>, store: Arc<Store>) -> Command {
    Command::new(move |request: WantedRequest, told| {
        let (service, store) = (service.load_full(), store.clone());
        async move { wanted(&service, &store, request, told).await.map(WantedLine::Name) }.boxed()
    })
}

/// Takes a blob or a manifest.
pub fn taking(service: Arc<ArcSwap<Service>>) -> Command {
    Command::taking_bytes(move |request: PutRequest, brought, _: Report<PutLine>| {
        let service = service.load_full();
        async move {
            let size = request.size;
            put(&service, request, brought).await.map(|()| PutLine::Held(size))
        }
        .boxed()
    })
}

fn place<'a>(service: &'a Service, text: &str) -> Result<(&'a Content, Repository, Reference), String> {
    let content = service.content.as_ref().ok_or("the store cannot be used")?;
    let named = service.owners.named_elsewhere(text, Some(service.public.port));
    let (repository, reference) = named.map_err(|error| error.to_string())?;
    Ok((content, repository, reference))
}

fn digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

async fn wanted(
    service: &Service,
    store: &Store,
    request: WantedRequest,
    told: Report<WantedLine>,
) -> Result<String, String> {
    let (content, repository, reference) = place(service, &request.image)?;
    let blobs: Vec<Digest> = request.blobs.iter().map(|blob| digest(blob)).collect::<Result<_, _>>()?;
    let wanted = match repository.owner {
        Owner::Hosted => not_leased(&content.hosted, &repository, blobs).await?,
        Owner::Upstream(_) => {
            content.mirror.wanted(&repository, blobs).await.map_err(|error| error.to_string())?
        }
    };
    let full = Owners::full_name(&repository, &reference, service.public.port);
    let own = service.owners.own_image(&request.image).filter(|_| repository.owner != Owner::Hosted);
    if let Some((own, reference)) = own.filter(|_| store.owner_of(&repository.stored_name()).is_none()) {
        let own = naming::full_name(service, &own, &reference);
        let note = format!("`{}` means {full}; as an image of your own it is `{own}`", request.image);
        told.tell(&WantedLine::Note(note)).await;
    }
    for blob in wanted {
        told.tell(&WantedLine::Blob(blob.to_string())).await;
    }
    Ok(full)
}

/// The blobs that a hosted repository does not have; the others are kept for the manifest that comes.
async fn not_leased(
    hosted: &Hosted,
    repository: &Repository,
    blobs: Vec<Digest>,
) -> Result<Vec<Digest>, String> {
    let mut wanted = Vec::new();
    for blob in blobs {
        let held = hosted.lease_blob(repository, &blob).await;
        if held.map_err(|error| error.to_string())?.is_none() {
            wanted.push(blob);
        }
    }
    Ok(wanted)
}

async fn put(service: &Service, request: PutRequest, brought: Brought) -> Result<(), String> {
    let (content, repository, reference) = place(service, &request.image)?;
    let (digest, is_hosted) = (digest(&request.digest)?, repository.owner == Owner::Hosted);
    if request.kind == PutKind::Blob {
        return if is_hosted {
            let turn = content.hosted.begin(&repository).await.map_err(|error| error.to_string())?;
            let chunks = brought.map(|piece| piece.map_err(Interrupted::Broken)).boxed();
            let taken = turn.receive_whole(chunks, Some(request.size), digest).await;
            taken.map(drop).map_err(|error| error.to_string())
        } else {
            let taken = content.mirror.bring_blob(&repository, &digest, request.size, brought).await;
            taken.map_err(|error| error.to_string())
        };
    }
    let bytes = manifest(&content.hosted, request.size, brought).await?;
    let is_root = request.kind == PutKind::Image;
    let tag = match &reference {
        Reference::Tag(tag) if is_root => Some(tag.clone()),
        _ => None,
    };
    let put = if is_hosted {
        let naming = Naming { digest: Some(digest), tags: tag.into_iter().collect() };
        let put = content.hosted.put_manifest(&repository, naming, None, bytes).await;
        put.map(drop).map_err(|error| error.to_string())
    } else {
        let put = content.mirror.bring_manifest(&repository, &digest, tag, bytes).await;
        put.map_err(|error| error.to_string())
    };
    if is_root && put.is_ok() {
        tracing::info!(%repository, %reference, %digest, "an image was imported");
    }
    put
}

/// A manifest's bytes, no more than a pusher may send.
async fn manifest(hosted: &Hosted, size: u64, mut brought: Brought) -> Result<Bytes, String> {
    let max = hosted.options().max_manifest.min(MANIFEST_CEILING);
    if size > max as u64 {
        return Err(format!("the manifest is larger than {max} bytes (`hosted.max_manifest`)"));
    }
    let mut bytes = BytesMut::new();
    while let Some(piece) = brought.next().await {
        let piece = piece?;
        if bytes.len() + piece.len() > max {
            return Err(format!("the manifest is larger than {max} bytes (`hosted.max_manifest`)"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}
