//! The catalog and lists of tags: held and upstream's, page by page.

use serde_json::{Value, json};

use super::support::http;
use super::support::process::Wait;
use super::{Rig, put_empty};

/// The list at `path`, from page to page, and how many pages there were.
async fn paged(rig: &Rig, path: &str, key: &str) -> (Vec<String>, usize) {
    let (mut all, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    while let Some(path) = next {
        let answer = http().get(rig.mirror.url() + &path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        next = answer.headers().get("link").map(|link| {
            let link = link.to_str().unwrap().strip_prefix('<').unwrap();
            link.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
        });
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        all.extend(body[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        pages += 1;
    }
    (all, pages)
}

async fn tags(rig: &Rig) -> (u16, Value) {
    let (status, body) = rig.get("/v2/library/x/tags/list").await;
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn tags_are_upstreams_and_held_ones_or_held_ones_alone() {
    let mut rig = Rig::start().await;
    for tag in ["held", "pushed-over"] {
        put_empty(&rig.upstream, "library/x", tag, tag);
    }
    assert_eq!(rig.get("/v2/library/x/manifests/held").await.0, 200);
    rig.mirror.linked("library/x/_manifests/tags/held/current/link").await;
    rig.upstream.remove("library/x", "held");
    let merged = json!({ "name": "library/x", "tags": ["held", "pushed-over"] });
    assert_eq!(tags(&rig).await, (200, merged));

    rig.upstream.stop().await;
    rig.mirror.kill();
    rig.mirror.restart().await;
    assert_eq!(tags(&rig).await, (200, json!({ "name": "library/x", "tags": ["held"] })));
    assert_eq!(rig.get("/v2/library/none/tags/list").await.0, 503);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let rig = Rig::start().await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        put_empty(&rig.upstream, "library/x", name, name);
        put_empty(&rig.upstream, &format!("library/{name}"), "1", name);
        assert_eq!(rig.get(&format!("/v2/library/{name}/manifests/1")).await.0, 200);
    }
    assert_eq!(
        paged(&rig, "/v2/library/x/tags/list?n=2", "tags").await,
        (names.map(str::to_owned).to_vec(), 3)
    );
    assert_eq!(
        paged(&rig, "/v2/library/x/tags/list?n=2&last=c", "tags").await,
        (vec!["d".into(), "e".into()], 1)
    );

    let held = names.map(|name| format!("library/{name}"));
    let wait = Wait::for_("repositories to be kept");
    while paged(&rig, "/v2/_catalog", "repositories").await.0.len() < held.len() {
        wait.a_little().await;
    }
    assert_eq!(paged(&rig, "/v2/_catalog?n=2", "repositories").await, (held.to_vec(), 3));
    let behind = paged(&rig, "/v2/_catalog?last=library/d", "repositories").await;
    assert_eq!(behind, (vec!["library/e".into()], 1));
    for bad in ["/v2/_catalog?n=x", "/v2/library/x/tags/list?n=-1"] {
        assert_eq!(rig.get(bad).await.0, 400, "{bad}");
    }
}
