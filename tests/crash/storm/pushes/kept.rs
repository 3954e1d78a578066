//! What a pusher finds after a start: what it was told, and of what it was not told either outcome.

use std::time::Instant;

use reqwest::Method;

use super::super::super::support::image::Image;
use super::super::super::support::repository::{Repository, ending};
use super::super::super::support::sha256;
use super::super::content::digests;
use super::super::{LEASE, UPLOAD_AGE, ask};
use super::requests::expect;
use super::{Held, Pusher};

impl Pusher {
    /// Blobs that nothing but a lease keeps, as long as that does; and an upload that goes on.
    pub async fn check_blobs(&mut self, url: &str, started: Instant) {
        let Some(killed) = self.killed else { return };
        for (at, digest, bytes, begun) in std::mem::take(&mut self.alone) {
            let answer = Repository::new(url, at).get(&format!("blobs/{digest}")).await;
            match answer.status {
                200 => assert!(answer.body == bytes, "{at} {digest} has other bytes"),
                404 => {
                    let leased = killed.saturating_duration_since(begun) < LEASE && started.elapsed() < LEASE;
                    assert!(!leased, "{at} {digest} is lost");
                }
                status => panic!("{at} {digest}: {status}"),
            }
            self.checked += u64::from(answer.status == 200);
        }
        let Some(mut open) = self.open.take() else { return };
        let repository = Repository::new(url, open.repository);
        let answer = ask(repository.request(Method::GET, &open.location)).await.unwrap();
        if answer.status == 404 && open.at.elapsed() > UPLOAD_AGE {
            return;
        }
        let Some((_, last)) = answer.header("range").and_then(|range| range.split_once('-')) else {
            // Its end came before the kill, and not to this client.
            assert_eq!((answer.status, open.taken), (404, open.bytes.len()), "an upload is lost");
            return;
        };
        let last: usize = last.parse().unwrap();
        let held = if last == 0 { open.taken.min(1) } else { last + 1 };
        assert!(held >= open.taken, "of {} that were taken, {held} are there", open.taken);
        (open.taken, open.location) = (held, answer.header("location").unwrap().to_owned());
        if held < open.bytes.len() {
            let answer = ask(open.piece(&repository, open.bytes.len())).await.unwrap();
            open.location = open.taken(answer, open.bytes.len());
        }
        let end = ending(&open.location, &sha256(&open.bytes));
        expect(ask(repository.request(Method::PUT, &end)).await.unwrap(), &[201], "an upload that went on");
        self.checked += 1;
    }

    /// All that was acknowledged, in this registry or another one over the same directory.
    pub async fn check(&mut self, url: &str) {
        for (name, held) in &mut self.tags {
            let repository = Repository::new(url, name.0);
            let found = repository.get(&format!("manifests/{}", name.1)).await;
            let is_found = |held: &&Held| match held {
                Some(image) => found.status == 200 && found.body == image.index.bytes,
                None => found.status == 404,
            };
            let Some(right) = held.iter().find(is_found).cloned() else {
                panic!("{name:?} is none of the {} things that it may be: {found:?}", held.len());
            };
            if let Some(image) = &right {
                whole(&repository, &name.1, image).await;
            }
            // Of what was not acknowledged, this is what came true.
            let before = std::mem::replace(held, vec![right.clone()]);
            self.checked += u64::from(before.len() == 1);
        }
        for (name, image) in &self.untagged {
            whole(&Repository::new(url, name.0), &name.1, image).await;
            self.checked += 1;
        }
        for (at, path) in &self.deleted {
            assert_eq!(Repository::new(url, at).get(path).await.status, 404, "{at} {path} was deleted");
            self.checked += 1;
        }
    }

    /// The tags that it has in a repository.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let here = self.tags.iter().filter(|((at, _), held)| *at == repository && held[0].is_some());
        here.map(|((_, tag), _)| tag.clone()).collect()
    }
}

async fn whole(repository: &Repository, reference: &str, image: &Image) {
    let whole = repository.whole(reference).await.unwrap();
    let (found, all): (Vec<&str>, _) = (whole.keys().map(String::as_str).collect(), digests(image));
    assert!(found.iter().eq(all.iter()), "{}:{reference} is not whole", repository.name);
}
