//! Bots that ask all day for what tags there are.

use futures_util::StreamExt;

use super::support::clients::skopeo_push;
use super::support::http_client;
use super::support::image::Image;
use super::support::mirror::Mirror;
use super::support::namespace::isolated;
use super::support::registry::{Registry, RegistryOptions};

const ASKED: usize = 10_000;

#[test]
fn ten_thousand_lists_of_tags_cost_upstream_one() {
    isolated(async |directory| {
        let upstream = Registry::start(&directory.join("upstream"), RegistryOptions::default()).await;
        let layout = directory.join("layout");
        Image::random(1, 1, 1000).write_layout(&layout, "1");
        for tag in ["1", "2", "3"] {
            skopeo_push(&layout, "1", &format!("{}/library/app:{tag}", upstream.host()), None).await;
        }
        let mirror = Mirror::start(&directory.join("mirror"), &upstream.url()).await;
        let url = format!("{}/v2/library/app/tags/list", mirror.url());
        let client = http_client().pool_max_idle_per_host(64).build().unwrap();
        let before = upstream.requests().await.len();
        let mut answers = futures_util::stream::iter(0..ASKED)
            .map(|_| async {
                let answer = client.get(&url).send().await.unwrap();
                (
                    answer.status(),
                    serde_json::from_slice::<serde_json::Value>(&answer.bytes().await.unwrap()).unwrap(),
                )
            })
            .buffer_unordered(64);
        let mut answered = 0;
        while let Some((status, body)) = answers.next().await {
            assert_eq!(status, 200, "{body}");
            assert_eq!(body["tags"], serde_json::json!(["1", "2", "3"]));
            answered += 1;
        }
        assert_eq!(answered, ASKED);
        let asked = upstream.requests().await;
        let lists = asked[before..].iter().filter(|request| request.target.contains("/tags/list")).count();
        // A list is believed for a minute, which a slow machine may spend here.
        assert!((1..=3).contains(&lists), "{lists}");
    });
}
