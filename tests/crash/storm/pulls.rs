//! Clients that pull.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use reqwest::Method;

use super::super::support::image::{Content, Image};
use super::super::support::repository::Repository;
use super::content::{Library, digests};
use super::{Count, Gone, Round, one_more};

/// Pulls of a check that are under way at the same time.
const AT_ONCE: usize = 12;

/// Pulls at random until the kill.
pub async fn puller(round: Arc<Round>, library: Arc<Library>, mut random: StdRng) {
    while pull(&round, &library, &mut random).await.is_ok() {
        one_more(&round.count.pulls);
    }
}

async fn pull(round: &Round, library: &Library, random: &mut StdRng) -> Result<(), Gone> {
    let (name, image) = library.any(random);
    let repository = Repository::new(&round.url, &name);
    let blob = image.blobs.choose(random).unwrap();
    match random.random_range(0..10) {
        0..3 => round.excused(by_tag(&repository, library, "1").await),
        3..5 => round.excused(by_tag(&repository, library, "moving").await),
        5..7 => round.excused(by_digest(&repository, image).await),
        7..9 => range(round, &repository, blob, random).await,
        _ => leave(round, &repository, blob).await,
    }
}

async fn by_tag(repository: &Repository, library: &Library, tag: &str) -> Result<(), String> {
    // `whole` has compared each with its digest.
    let whole = repository.whole(tag).await?;
    let is_root = |digest: &&String| library.may_be(&repository.name, digest);
    let root = whole.keys().find(is_root).ok_or_else(|| format!("{}:{tag} is another's", repository.name))?;
    let known = whole.iter().all(|(digest, bytes)| library.bytes.get(digest) == Some(bytes));
    assert!(known, "{}:{tag}, {root}, with other bytes", repository.name);
    Ok(())
}

async fn by_digest(repository: &Repository, image: &Image) -> Result<(), String> {
    let whole = repository.whole(image.digest()).await?;
    assert!(whole.keys().map(String::as_str).eq(digests(image)), "{} is not whole", image.digest());
    Ok(())
}

async fn range(
    round: &Round,
    repository: &Repository,
    blob: &Content,
    random: &mut StdRng,
) -> Result<(), Gone> {
    let first = random.random_range(0..blob.bytes.len());
    let last = random.random_range(first..blob.bytes.len());
    let get = repository.request(Method::GET, &format!("blobs/{}", blob.digest));
    let answer = round.ask(get.header("Range", format!("bytes={first}-{last}"))).await?;
    let said = || String::from_utf8_lossy(&answer.body).into_owned();
    let right = match answer.status {
        206 => blob.bytes.slice(first..=last),
        200 => blob.bytes.clone(),
        status => panic!("{} {first}-{last}: {status}: {}", blob.digest, said()),
    };
    assert!(answer.body == right, "{} {first}-{last} has other bytes", blob.digest);
    Ok(())
}

/// A client that goes after the first bytes.
async fn leave(round: &Round, repository: &Repository, blob: &Content) -> Result<(), Gone> {
    let get = repository.request(Method::GET, &format!("blobs/{}", blob.digest));
    let mut answer = round.excused(get.send().await.map_err(|error| format!("{error:?}")))?;
    assert_eq!(answer.status(), 200, "{}", blob.digest);
    let first = round.excused(answer.chunk().await.map_err(|error| format!("{error:?}")))?;
    assert!(first.is_some_and(|first| blob.bytes.starts_with(&first)), "{} begins otherwise", blob.digest);
    Ok(())
}

/// Every mirrored image can be pulled.
pub async fn all(url: &str, library: &Library, count: &Count) {
    // Of those of a repository, each is pulled in one way here, and in the other by its other name.
    let ways = [Some("1"), None, None, Some("moving")].into_iter().cycle();
    let pulls = library.mirrored().zip(ways).map(|((name, image), tag)| async move {
        let repository = Repository::new(url, &name);
        match tag {
            Some(tag) => by_tag(&repository, library, tag).await,
            None => by_digest(&repository, image).await,
        }
    });
    let pulled: Result<Vec<()>, String> = stream::iter(pulls)
        .buffer_unordered(AT_ONCE)
        .inspect_ok(|()| one_more(&count.pulls))
        .try_collect()
        .await;
    pulled.unwrap();
}
