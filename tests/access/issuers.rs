//! ID tokens whose keys are fetched from their issuer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::support::http1::{self, Headers, Request, Server};
use super::*;

/// Gives out a key set, and counts how often.
struct Keys {
    server: Server,
    set: Arc<Mutex<String>>,
    fetched: Arc<AtomicU64>,
}

impl Keys {
    async fn start(set: String) -> Self {
        let (set, fetched) = (Arc::new(Mutex::new(set)), Arc::new(AtomicU64::new(0)));
        let (given, count) = (set.clone(), fetched.clone());
        let server = Server::start(0, move |mut stream| {
            let (given, count) = (given.clone(), count.clone());
            async move {
                while Request::read(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    let body = given.lock().unwrap().clone();
                    http1::answer(&mut stream, 200, Headers::default(), &body).await;
                }
            }
        });
        Self { server: server.await, set, fetched }
    }

    fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_not_at_every_strangers_wish() {
    let gitlab = Issuer::new("one");
    let mut keys = Keys::start(gitlab.jwks()).await;
    let config = format!(
        "[auth.issuer.gitlab]\nissuer = \"https://gitlab.corp\"\njwks_url = \"http://{}/keys\"\naudience = \
         [\"registry.corp\"]\nusername_claim = \"project_path\"\n[[access.rule]]\nwho = \
         [\"gitlab:project_path=corp/*\"]\nrepositories = [\"app\"]\nactions = [\"push\"]\n",
        keys.server.address
    );
    let rig = Rig::start(&["alice"], &config).await;
    let push = async |token: String| {
        let path = "/v2/app/blobs/uploads/";
        rig.ask(Method::POST, path, &By::Password("gitlab-ci-token", token)).await.status
    };
    assert_eq!(keys.fetched(), 0, "not before they are needed");
    for _ in 0..5 {
        assert_eq!(push(gitlab.token("corp/app")).await, 202);
    }
    assert_eq!(push(gitlab.token("other/app")).await, 403);
    assert_eq!(keys.fetched(), 1);

    // Tokens with keys that nobody knows: one look, not one for each.
    let stranger = Issuer::new("strange");
    for _ in 0..5 {
        assert_eq!(push(stranger.token("corp/app")).await, 401);
    }
    assert!(keys.fetched() <= 2, "{}", keys.fetched());
    // The issuer goes away, and who holds its tokens does not notice.
    *keys.set.lock().unwrap() = "gone".to_owned();
    keys.server.stop().await;
    assert_eq!(push(gitlab.token("corp/app")).await, 202);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_lets_nobody_in() {
    let config = "[auth.issuer.gitlab]\nissuer = \"https://gitlab.corp\"\njwks_url = \"http://127.0.0.1:9/\"\naudience = \
                  \"registry.corp\"\n";
    let rig = Rig::start(&["alice"], config).await;
    let token = By::Bearer(Issuer::new("one").token("corp/app"));
    for _ in 0..2 {
        let answer = rig.get("/v2/app/tags/list", &token).await.expect(401);
        assert!(String::from_utf8_lossy(&answer.body).contains("cannot be had"), "{:?}", answer.body);
    }
    rig.get("/v2/app/tags/list", &user("alice")).await.expect(404);
}
