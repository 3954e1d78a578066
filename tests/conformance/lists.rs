//! Tags (end-8a, 8b), the catalog, and `docker search`.

use serde_json::json;

use crate::{Rig, next};

#[tokio::test]
async fn tags_are_sorted_and_come_in_pages() {
    let rig = Rig::start().await;
    rig.get("/v2/app/tags/list").await.refuses(404, "NAME_UNKNOWN", &[]);
    let tags = ["10", "2", "A", "_x", "a", "a.b", "a_b"];
    for tag in ["a", "2", "_x", "a_b", "A", "a.b", "10"] {
        rig.image("app", tag, "a").await;
    }
    let whole = rig.get("/v2/app/tags/list").await;
    assert_eq!(
        (whole.status, whole.json(), next(&whole)),
        (200, json!({ "name": "app", "tags": tags }), None)
    );
    let none = rig.get("/v2/app/tags/list?n=0").await;
    assert_eq!((none.json()["tags"].clone(), next(&none)), (json!([]), None));
    let (mut all, mut path) = (Vec::new(), "/v2/app/tags/list?n=3".to_owned());
    loop {
        let page = rig.get(&path).await;
        all.extend(page.json()["tags"].as_array().unwrap().clone());
        let Some(link) = next(&page) else { break };
        assert!(link.starts_with("/v2/app/tags/list?n=3&last="), "{link}");
        path = link;
    }
    assert_eq!(json!(all), json!(tags));
    let behind = rig.get("/v2/app/tags/list?last=a.").await;
    assert_eq!(behind.json()["tags"], json!(["a.b", "a_b"]), "`last` need not be there");
    rig.get("/v2/app/tags/list?n=x").await.refuses(400, "PAGINATION_NUMBER_INVALID", &["`n=x`"]);
    for tag in tags {
        assert_eq!(rig.delete(&format!("/v2/app/manifests/{tag}")).await.status, 202);
    }
    assert_eq!(rig.get("/v2/app/tags/list").await.json()["tags"], json!([]));
}

#[tokio::test]
async fn repositories_are_listed_and_found() {
    let rig = Rig::with("[hosted]\nrepositories = [\"*\", \"corp.internal/**\"]").await;
    for name in ["web", "corp.internal/team/web", "db"] {
        rig.image(name, "1", name).await;
    }
    let catalog = rig.get("/v2/_catalog?n=2").await;
    assert_eq!(catalog.json(), json!({ "repositories": ["corp.internal/team/web", "db"] }));
    assert_eq!(rig.get(&next(&catalog).unwrap()).await.json(), json!({ "repositories": ["web"] }));

    let ping = rig.get("/v1/_ping").await;
    assert_eq!((ping.status, ping.json()), (200, json!({ "standalone": true })));
    let found = rig.send("GET", "/v1/search?q=WEB&n=25", &[("X-Docker-Token", "true")], "").await.json();
    let entry = |name: &str| {
        json!({
            "name": name, "description": "hosted here", "star_count": 0, "is_official": false, "is_automated": false,
        })
    };
    assert_eq!(
        found,
        json!({ "query": "WEB", "num_results": 2, "results": [entry("corp.internal/team/web"), entry("web")] })
    );
    assert_eq!(rig.get("/v1/search?q=web&n=1").await.json()["num_results"], 1);
    assert_eq!(rig.get("/v1/search?q=none").await.json()["results"], json!([]));
    assert_eq!(rig.get("/v1/search").await.json()["num_results"], 3);
}
