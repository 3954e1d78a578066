//! What a pusher asks for.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use reqwest::Method;

use super::super::super::support::image::Content;
use super::super::super::support::repository::{Answer, Repository, ending};
use super::super::{Gone, Round, one_more};
use super::REPOSITORIES;

#[track_caller]
pub fn expect(answer: Answer, statuses: &[u16], what: &str) -> Answer {
    let said = String::from_utf8_lossy(&answer.body);
    assert!(statuses.contains(&answer.status), "{what}: {}: {said}", answer.status);
    answer
}

pub async fn delete(round: &Round, repository: &Repository, path: &str) -> Result<(), Gone> {
    expect(round.ask(repository.request(Method::DELETE, path)).await?, &[202], path);
    Ok(())
}

pub async fn begin(round: &Round, repository: &Repository, query: &str) -> Result<String, Gone> {
    let post = repository.request(Method::POST, &format!("blobs/uploads/{query}"));
    let answer = expect(round.ask(post).await?, &[202], "the begin of an upload");
    Ok(answer.header("location").unwrap().to_owned())
}

/// In one of the ways in which clients bring a blob that may be there.
pub async fn push_blob(
    round: &Round,
    repository: &Repository,
    blob: &Content,
    random: &mut StdRng,
) -> Result<(), Gone> {
    let head = repository.request(Method::HEAD, &format!("blobs/{}", blob.digest));
    if random.random_bool(0.7) && round.ask(head).await?.status == 200 {
        return Ok(());
    }
    if random.random_bool(0.3) {
        let from = REPOSITORIES.choose(random).unwrap();
        let mount = format!("blobs/uploads/?mount={}&from={from}", blob.digest);
        let answer = round.ask(repository.request(Method::POST, &mount)).await?;
        let answer = expect(answer, &[201, 202], "a mount");
        if answer.status == 201 {
            return Ok(());
        }
        let end = ending(answer.header("location").unwrap(), &blob.digest);
        let put = repository.request(Method::PUT, &end).body(blob.bytes.clone());
        expect(round.ask(put).await?, &[201], "an upload in place of a mount");
        return Ok(());
    }
    upload(round, repository, blob, random).await
}

pub async fn upload(
    round: &Round,
    repository: &Repository,
    blob: &Content,
    random: &mut StdRng,
) -> Result<(), Gone> {
    let request = if random.random_bool(0.5) {
        repository.request(Method::POST, &format!("blobs/uploads/?digest={}", blob.digest))
    } else {
        let location = begin(round, repository, "").await?;
        repository.request(Method::PUT, &ending(&location, &blob.digest))
    };
    expect(round.ask(request.body(blob.bytes.clone())).await?, &[201], "an upload");
    Ok(())
}

/// False: something that it names was collected, for this pusher took longer than a lease.
pub async fn put(round: &Round, repository: &Repository, to: &str, manifest: &Content) -> Result<bool, Gone> {
    let put = repository.request(Method::PUT, &format!("manifests/{to}"));
    let put = put.header("Content-Type", manifest.media_type).body(manifest.bytes.clone());
    let answer = round.ask(put).await?;
    if String::from_utf8_lossy(&answer.body).contains("_UNKNOWN") {
        one_more(&round.count.refused);
        return Ok(false);
    }
    expect(answer, &[201], "a manifest");
    Ok(true)
}
