//! Many tags and many repositories: every list is whole and in order, whatever the page.

use futures_util::{StreamExt, stream};

use super::plain;
use super::support::hosting::{Hosting, hosting};
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

#[tokio::test]
async fn two_thousand_tags_come_whole_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mirror = hosting(directory.path(), "").await;
    let repository = Repository::new(&mirror.url(), "app");
    // Numbers without leading zeros, so that the order of numbers is not that of the list.
    let mut tags: Vec<String> = (0..TAGS).map(|n| format!("v{n}")).collect();
    tagged(&repository, &tags).await;
    tags.sort();
    assert_eq!(repository.tags(Some(10_000)).await, tags);
    assert_eq!(repository.tags(None).await, tags);
    assert_eq!(repository.tags(Some(333)).await, tags);
    let last = pages(&repository, "tags/list?n=7&last=v998", "tags").await;
    assert_eq!(last, ["v999"]);
    let answer = repository.send(reqwest::Method::GET, "tags/list?n=0").await.expect(200);
    let none: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((none["tags"].as_array().map(Vec::len), answer.header("link")), (Some(0), None));
}

#[tokio::test]
async fn three_hundred_repositories_come_whole_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let mirror = hosting(directory.path(), "[hosted]\nrepositories = [\"*\", \"corp.internal/**\"]\n").await;
    let mut names: Vec<String> = (0..REPOSITORIES)
        .map(|n| if n % 3 == 0 { format!("app{n}") } else { format!("corp.internal/team-{}/app{n}", n % 7) })
        .collect();
    let tag = ["1".to_owned()];
    let pushes = names.iter().map(|name| {
        let repository = Repository::new(&mirror.url(), name);
        let tag = &tag;
        async move { tagged(&repository, tag).await }
    });
    stream::iter(pushes).buffer_unordered(16).collect::<()>().await;
    names.sort();
    let any = Repository::new(&mirror.url(), "any");
    for n in ["", "?n=1000", "?n=41"] {
        assert_eq!(pages(&any, &format!("/v2/_catalog{n}"), "repositories").await, names, "{n}");
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
