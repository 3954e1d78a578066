//! Many tags and many repositories: every list is whole and in order, whatever the page.

use std::path::Path;

use futures_util::{StreamExt, stream};
use reqwest::Method;

use super::plain;
use super::support::hosting::{Hosting, hosting};
use super::support::namespace::isolated;
use super::support::process::{command, run};
use super::support::registry::{Registry, RegistryOptions};
use super::support::repository::{Repository, pages};

const TAGS: usize = 2000;
const REPOSITORIES: usize = 300;

/// What has one image under so many tags, pushed by several at once.
async fn tagged(repository: &Repository, tags: &[String]) {
    let image = plain(&[b"layer".to_vec()], "tagged");
    for blob in &image.blobs {
        repository.push_blob(blob.bytes.clone()).await;
    }
    let puts = tags.iter().map(|tag| repository.push_manifest(tag, &image.index));
    stream::iter(puts).buffer_unordered(16).collect::<()>().await;
}

/// The peer writes them, into memory, for it is quick: what is looked at here is how they are listed.
#[test]
fn two_thousand_tags_and_three_hundred_repositories_come_whole_and_in_order() {
    isolated(async |directory| {
        run(command("mount", ["-t", "tmpfs", "tmpfs", directory.to_str().unwrap()])).await;
        listed_whole_and_in_order(&directory).await;
    });
}

async fn listed_whole_and_in_order(directory: &Path) {
    let (first, place) = (directory.join("distribution"), directory.join("forebay"));
    let mut registry = Registry::start(&first, RegistryOptions::default()).await;
    // Numbers without leading zeros, so that the order of numbers is not that of the list.
    let mut tags: Vec<String> = (0..TAGS).map(|n| format!("v{n}")).collect();
    tagged(&Repository::new(&registry.url(), "app"), &tags).await;
    let other =
        |n| if n % 3 == 0 { format!("app{n}") } else { format!("corp.internal/team-{}/app{n}", n % 7) };
    let mut names: Vec<String> = (1..REPOSITORIES).map(other).collect();
    let pushes = names.iter().map(|name| {
        let repository = Repository::new(&registry.url(), name);
        let tags = &tags[..1];
        async move { tagged(&repository, tags).await }
    });
    stream::iter(pushes).buffer_unordered(16).collect::<()>().await;
    registry.stop();
    std::fs::create_dir_all(&place).unwrap();
    std::fs::rename(registry.storage(), place.join("data")).unwrap();

    let mirror = hosting(&place, "[hosted]\nrepositories = [\"*\", \"corp.internal/**\"]\n").await;
    let repository = Repository::new(&mirror.url(), "app");
    // One more of each, and one fewer.
    tagged(&repository, &["v2a".to_owned()]).await;
    repository.delete("manifests/v7").await.expect(202);
    tagged(&Repository::new(&mirror.url(), "zebra"), &tags[..1]).await;
    tags.push("v2a".to_owned());
    tags.retain(|tag| tag != "v7");
    tags.sort();
    names.extend(["app".to_owned(), "zebra".to_owned()]);
    names.sort();
    for n in [None, Some(333), Some(10_000)] {
        assert_eq!(repository.tags(n).await, tags, "{n:?}");
    }
    assert_eq!(pages(&repository, "tags/list?n=7&last=v998", "tags").await, ["v999"]);
    let answer = repository.send(Method::GET, "tags/list?n=0").await.expect(200);
    let none: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((none["tags"].as_array().map(Vec::len), answer.header("link")), (Some(0), None));
    for n in ["", "?n=41", "?n=1000"] {
        assert_eq!(pages(&repository, &format!("/v2/_catalog{n}"), "repositories").await, names, "{n}");
    }
}

/// Whatever a tag is made of: the peer has the same ones, in no order.
#[tokio::test]
async fn lists_are_the_peers() {
    let directory = tempfile::tempdir().unwrap();
    let tags = ["10", "9", "A", "_", "a", "a-b", "a.b", "a_b", "latest"].map(str::to_owned);
    for registry in Hosting::both(directory.path()).await {
        let repository = registry.repository("app");
        tagged(&repository, &tags).await;
        tagged(&registry.repository("zebra"), &tags[..1]).await;
        tagged(&registry.repository("app-two"), &tags[..1]).await;
        let mut listed = repository.tags(None).await;
        if matches!(registry, Hosting::Distribution(_)) {
            listed.sort();
        }
        assert_eq!(listed, tags);
        let catalog = pages(&repository, "/v2/_catalog?n=2", "repositories").await;
        assert_eq!(catalog, ["app", "app-two", "zebra"]);
    }
}
