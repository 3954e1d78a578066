//! docker's token flow, step by step.

use super::*;

const TOKENS: &str = "login_hosts = [\"*\"]\nanonymous_pull = false\n[auth.tokens]\nservice = \"registry.corp\"\n\
                      lifetime = \"2m\"\n";

async fn rig() -> Rig {
    let rig = Rig::start(&["alice"], TOKENS).await;
    rig.repository("app", "alice").push(&Image::random(1, 1, 100), "1").await;
    rig
}

async fn post(rig: &Rig, form: &[(&str, &str)]) -> Answer {
    Answer::of(http().post(rig.mirror.url() + "/token").form(form)).await
}

fn bearer(answer: &Answer) -> By {
    By::Bearer(answer.json()["access_token"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_challenge_leads_to_a_token_that_opens_what_was_asked_for() {
    let rig = rig().await;
    let realm = format!("Bearer realm=\"{}/token\",service=\"registry.corp\"", rig.mirror.url());
    assert_eq!(rig.get("/v2/", &By::Nobody).await.expect(401).challenge(), realm);
    let pull = rig.get("/v2/app/manifests/1", &By::Nobody).await.expect(401);
    assert_eq!(pull.challenge(), format!("{realm},scope=\"repository:app:pull\""));
    let push = rig.ask(Method::POST, "/v2/app/blobs/uploads/", &By::Nobody).await.expect(401);
    assert_eq!(push.challenge(), format!("{realm},scope=\"repository:app:pull,push\""));
    assert_eq!(push.json()["errors"][0]["code"], "UNAUTHORIZED");

    let path = "/token?service=registry.corp&scope=repository:app:pull&account=alice&client_id=docker";
    let answer = rig.get(path, &user("alice")).await.expect(200);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let said = answer.json();
    assert_eq!((&said["token"], &said["expires_in"]), (&said["access_token"], &json!(120)));
    assert!(said["issued_at"].as_str().unwrap().ends_with('Z') && said.get("refresh_token").is_none());
    let token = bearer(&answer);
    rig.get("/v2/", &token).await.expect(200);
    rig.get("/v2/app/manifests/1", &token).await.expect(200);
    let beyond = rig.ask(Method::POST, "/v2/app/blobs/uploads/", &token).await.expect(401);
    let expected = format!("{realm},scope=\"repository:app:pull,push\",error=\"insufficient_scope\"");
    assert_eq!(beyond.challenge(), expected);
    rig.get("/v2/other/manifests/1", &token).await.expect(401);
    let forged = rig.get("/v2/app/manifests/1", &By::Bearer("eyJ.a.b".to_owned())).await.expect(401);
    assert!(forged.challenge().ends_with("error=\"invalid_token\""), "{}", forged.challenge());
    rig.get("/token", &token).await.expect(401);
}

#[tokio::test]
async fn less_than_was_asked_for_is_no_error() {
    let rig = rig().await;
    let claims = |answer: &Answer| {
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token).unwrap()
    };
    let access = async |query: &str, by: By| claims(&rig.get(query, &by).await.expect(200))["access"].clone();
    let granted =
        |name: &str, actions: &[&str]| json!([{"type": "repository", "name": name, "actions": actions}]);
    let pull = "/token?scope=repository:app:pull,push,fly";
    assert_eq!(access(pull, user("alice")).await, granted("app", &["pull", "push"]));
    assert_eq!(access(pull, By::Nobody).await, json!([]));
    assert_eq!(
        access("/token?scope=repository:app:*", user("alice")).await,
        granted("app", &["pull", "push", "delete"])
    );
    // The mirror is free, and can only be read.
    let mirrored = "/token?scope=repository:library/nginx:pull,push";
    assert_eq!(access(mirrored, By::Nobody).await, granted("library/nginx", &["pull"]));
    let two = "/token?scope=repository:app:pull+repository(plugin):b:pull&scope=repository:c:push&scope=x:y:z&scope=a";
    let names: Vec<Value> =
        access(two, user("alice")).await.as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["app", "b", "c"]);
    for bad in ["/token?scope=repository:A:pull", "/token?scope=repository:app", "/token"] {
        assert_eq!(access(bad, user("alice")).await, json!([]), "{bad}");
    }
    rig.get("/token?service=other", &user("alice")).await.expect(400);
    let many = format!("/token?{}", "scope=repository:a:pull&".repeat(65));
    rig.get(&many, &user("alice")).await.expect(400);
    let wrong = rig.get("/token", &By::Password("alice", "wrong".to_owned())).await.expect(401);
    assert_eq!(wrong.challenge(), "Basic realm=\"forebay\"");
    rig.ask(Method::PUT, "/token", &user("alice")).await.expect(405);
}

#[tokio::test]
async fn forms_take_passwords_and_refresh_tokens() {
    let rig = rig().await;
    let scope = ("scope", "repository:app:pull repository:b:push");
    let login = [
        ("grant_type", "password"),
        ("service", "registry.corp"),
        ("client_id", "containerd"),
        ("username", "alice"),
        ("password", "alice"),
        ("access_type", "offline"),
        scope,
    ];
    let answer = post(&rig, &login).await.expect(200);
    assert_eq!(answer.json()["scope"], "repository:app:pull repository:b:push");
    rig.get("/v2/app/manifests/1", &bearer(&answer)).await.expect(200);
    let refresh = answer.json()["refresh_token"].as_str().unwrap().to_owned();
    rig.get("/v2/app/manifests/1", &By::Bearer(refresh.clone())).await.expect(401);
    let again = [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str()), scope];
    let answer = post(&rig, &again).await.expect(200);
    rig.get("/v2/app/manifests/1", &bearer(&answer)).await.expect(200);
    assert!(answer.json().get("refresh_token").is_none(), "the old one stays");

    // `docker login` fetches its refresh token by GET; nobody gets one without a login.
    let offline = "/token?offline_token=true&account=alice";
    assert!(rig.get(offline, &user("alice")).await.expect(200).json()["refresh_token"].is_string());
    assert!(rig.get(offline, &By::Nobody).await.expect(200).json().get("refresh_token").is_none());

    for (form, status) in [
        (&[("grant_type", "password"), ("username", "alice"), ("password", "bob")][..], 401),
        (&[("grant_type", "password"), ("username", "alice")], 400),
        (&[("grant_type", "refresh_token"), ("refresh_token", "x")], 401),
        (&[("grant_type", "refresh_token")], 400),
        (&[("grant_type", "implicit")], 400),
        (&[], 400),
    ] {
        post(&rig, form).await.expect(status);
    }
    let long = "x".repeat(70_000);
    post(&rig, &[("grant_type", "password"), ("username", "alice"), ("password", &long)]).await.expect(400);

    // A changed password ends what the old one opened.
    let token = bearer(&answer);
    let other = format!("alice:{}\n", htpasswd::hash("other", 4).unwrap());
    std::fs::write(rig.directory.path().join("htpasswd"), other).unwrap();
    let wait = support::process::Wait::for_("the new password");
    while rig.get("/v2/app/manifests/1", &token).await.status != 401 {
        wait.a_little().await;
    }
    post(&rig, &again).await.expect(401);
}

#[tokio::test]
async fn the_realm_is_where_the_client_came_in() {
    let rig = Rig::start(&["alice"], &format!("{TOKENS}[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n")).await;
    let realm = async |headers: &[(&'static str, &str)]| {
        let mut ask = http().get(rig.mirror.url() + "/v2/app/tags/list");
        for (name, value) in headers {
            ask = ask.header(*name, *value);
        }
        let answer = ask.send().await.unwrap();
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
        challenge.split('"').nth(1).unwrap().to_owned()
    };
    assert_eq!(realm(&[("Host", "registry.corp:5000")]).await, "http://registry.corp:5000/token");
    let proxied =
        [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "hub.corp"), ("X-Forwarded-Prefix", "/images")];
    assert_eq!(realm(&proxied).await, "https://hub.corp/images/token");
    assert_eq!(realm(&[("Host", "a\"b")]).await, "http://localhost/token");
}

#[tokio::test]
async fn tokens_outlive_a_restart_and_not_another_data_directory() {
    let mut rig = rig().await;
    let token = bearer(&rig.get("/token?scope=repository:app:pull", &user("alice")).await);
    rig.mirror.terminate(support::process::PATIENCE);
    rig.mirror.restart().await;
    rig.get("/v2/app/manifests/1", &token).await.expect(200);
    let other = self::rig().await;
    other.get("/v2/app/manifests/1", &token).await.expect(401);
}
