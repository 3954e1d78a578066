//! Referrers: end-12a, 12b.

use serde_json::{Value, json};

use crate::support::image::{INDEX, MANIFEST};
use crate::support::sha256;
use crate::{Reply, Rig, descriptor, index, next, sha512};

/// Pushes a manifest that refers to `subject`, changed by `change`; its descriptor as listed.
async fn refer(rig: &Rig, subject: &[u8], note: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut manifest = rig.manifest("app", note).await;
    manifest["subject"] = descriptor(MANIFEST, subject);
    manifest["annotations"] = json!({ "note": note });
    change(&mut manifest);
    let bytes = manifest.to_string();
    let put = rig.put("app", &sha256(bytes.as_bytes()), MANIFEST, bytes.clone()).await;
    assert_eq!((put.status, put.header("oci-subject")), (201, &*sha256(subject)), "{put}");
    let mut listed = descriptor(MANIFEST, bytes.as_bytes());
    let own = manifest.get("artifactType").unwrap_or(&manifest["config"]["mediaType"]);
    listed["artifactType"] = own.clone();
    listed["annotations"] = json!({ "note": note });
    listed
}

fn of_type(kind: &'static str) -> impl FnOnce(&mut Value) {
    move |manifest| manifest["artifactType"] = json!(kind)
}

async fn referrers(rig: &Rig, subject: &[u8], query: &str) -> Reply {
    let reply = rig.get(&format!("/v2/app/referrers/{}{query}", sha256(subject))).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, INDEX), "{reply}");
    let list = reply.json();
    assert_eq!((&list["schemaVersion"], &list["mediaType"]), (&json!(2), &json!(INDEX)));
    reply
}

/// The manifests listed, sorted by digest.
fn listed(reply: &Reply) -> Vec<Value> {
    sorted(reply.json()["manifests"].as_array().unwrap().clone())
}

fn sorted(mut entries: Vec<Value>) -> Vec<Value> {
    entries.sort_by_key(|entry| entry["digest"].as_str().unwrap().to_owned());
    entries
}

#[tokio::test]
async fn what_refers_to_a_manifest_is_listed() {
    let mut rig = Rig::start().await;
    assert!(listed(&referrers(&rig, b"none", "").await).is_empty(), "of an unknown repository too");
    let early = refer(&rig, b"subject", "early", of_type("application/vnd.example.sbom")).await;
    let mut expected = vec![early];
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), expected);
    // The index is there now, and follows.
    expected.push(refer(&rig, b"subject", "config's type", |_| {}).await);
    refer(&rig, b"another", "of another", |_| {}).await;
    let of_index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": descriptor(MANIFEST, b"subject"),
    })
    .to_string();
    assert_eq!(rig.put("app", "index", INDEX, of_index.clone()).await.status, 201);
    expected.push(descriptor(INDEX, of_index.as_bytes()));
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), sorted(expected.clone()));

    let gone = expected.remove(0);
    let path = format!("/v2/app/manifests/{}", gone["digest"].as_str().unwrap());
    assert_eq!(rig.delete(&path).await.status, 202);
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), sorted(expected.clone()));
    rig.forebay.kill();
    rig.forebay.restart().await;
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), sorted(expected), "read from the tree again");
    for bad in ["sha256:bad", "latest", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        rig.get(&format!("/v2/app/referrers/{bad}")).await.refuses(400, "DIGEST_INVALID", &[]);
    }
}

#[tokio::test]
async fn a_list_is_filtered_by_type() {
    let rig = Rig::start().await;
    let kind = "application/vnd.example.signature.v1+json";
    let signature = refer(&rig, b"subject", "signature", of_type(kind)).await;
    refer(&rig, b"subject", "other", of_type("application/x")).await;
    for query in [kind.replace('+', "%2B"), kind.replace('+', "%2b").replace('/', "%2F")] {
        let reply = referrers(&rig, b"subject", &format!("?artifactType={query}")).await;
        assert_eq!(reply.header("oci-filters-applied"), "artifactType");
        assert_eq!(listed(&reply), std::slice::from_ref(&signature));
    }
    let all = referrers(&rig, b"subject", "").await;
    assert_eq!((listed(&all).len(), all.header("oci-filters-applied")), (2, ""));
    let none = referrers(&rig, b"subject", "?artifactType=application/none").await;
    assert_eq!((listed(&none).len(), none.header("oci-filters-applied")), (0, "artifactType"));
}

#[tokio::test]
async fn a_long_list_comes_in_pages() {
    let rig = Rig::start().await;
    let kind = "application/a+b";
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(refer(&rig, b"subject", &number.to_string(), of_type(kind)).await);
        refer(&rig, b"subject", &format!("other {number}"), |_| {}).await;
    }
    let (mut all, mut pages) = (Vec::new(), 0);
    let mut path = format!("/v2/app/referrers/{}?n=2&artifactType=application%2Fa%2Bb", sha256(b"subject"));
    loop {
        let page = rig.get(&path).await;
        all.extend(page.json()["manifests"].as_array().unwrap().clone());
        pages += 1;
        let Some(link) = next(&page) else { break };
        path = link;
    }
    assert_eq!((sorted(all), pages), (sorted(expected), 3));
    // No answer is longer than what clients read of a manifest.
    for number in 0..4 {
        let long = "x".repeat(1_500_000);
        refer(&rig, b"large", &number.to_string(), |manifest| {
            manifest["annotations"] = json!({ "long": long, "note": number.to_string() });
        })
        .await;
    }
    let first = referrers(&rig, b"large", "").await;
    assert!(first.body.len() < 4 << 20 && next(&first).is_some(), "{} bytes", first.body.len());
    assert!(!listed(&first).is_empty());
}

#[tokio::test]
async fn fallback_tags_are_honoured() {
    let rig = Rig::start().await;
    let own = refer(&rig, b"subject", "own", |_| {}).await;
    let pushed = rig.image("app", "pushed", "pushed before there was the API").await;
    let tagged = json!({
        "mediaType": MANIFEST, "digest": pushed, "size": 7, "artifactType": "application/y",
        "annotations": { "a": "b" },
    });
    let mut again = own.clone();
    again["annotations"] = json!({ "note": "what the manifest says counts" });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [tagged] }).to_string();
    let tag = sha256(b"subject").replace(':', "-");
    assert_eq!(rig.put("app", &tag, INDEX, list).await.status, 201);
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), sorted(vec![own.clone(), tagged.clone()]));
    let both = index(&[tagged.clone(), again]);
    assert_eq!(rig.put("app", &tag, INDEX, both).await.status, 201);
    assert_eq!(listed(&referrers(&rig, b"subject", "").await), sorted(vec![own, tagged.clone()]));
    let filtered = referrers(&rig, b"subject", "?artifactType=application/y").await;
    assert_eq!(listed(&filtered), [tagged]);
    // An image under such a name is no list.
    rig.image("app", &sha256(b"odd").replace(':', "-"), "odd").await;
    assert!(listed(&referrers(&rig, b"odd", "").await).is_empty());
}

#[tokio::test]
async fn a_referrer_by_sha512_is_listed_once() {
    let rig = Rig::start().await;
    let mut manifest = rig.manifest("app", "long").await;
    manifest["subject"] = descriptor(MANIFEST, b"subject");
    let bytes = manifest.to_string();
    let digest = sha512(bytes.as_bytes());
    for asked_before in [false, true] {
        if asked_before {
            assert_eq!(rig.delete(&format!("/v2/app/manifests/{digest}")).await.status, 202);
            assert!(listed(&referrers(&rig, b"subject", "").await).is_empty());
        }
        assert_eq!(rig.put("app", &digest, MANIFEST, bytes.clone()).await.status, 201);
        let entries = listed(&referrers(&rig, b"subject", "").await);
        assert_eq!(entries.iter().map(|entry| &entry["digest"]).collect::<Vec<_>>(), [&digest]);
    }
}
