//! Every identity, each action, both faces, all spellings of a name.

use super::*;

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];

const RULES: &str = r#"
login_hosts = ["*"]
[auth.tokens]
[auth.issuer.gitlab]
issuer = "https://gitlab.corp"
jwks_file = "$DIRECTORY/jwks"
audience = ["registry.corp"]
username_claim = "project_path"
[upstream."docker.io"]
aliases = ["hub"]
[hosted]
repositories = ["corp.internal/**"]
[[access.rule]]
who = ["alice", "gitlab:corp/*"]
repositories = ["corp.internal/app"]
actions = ["pull", "push", "delete"]
[[access.rule]]
who = ["bob"]
repositories = ["corp.internal/*"]
actions = ["pull"]
[[access.rule]]
who = ["dave"]
repositories = ["corp.internal/dave"]
actions = ["pull", "push"]
[[access.rule]]
who = ["anonymous", "*"]
repositories = ["docker.io/library/**"]
actions = ["pull"]
[[access.rule]]
who = ["alice"]
repositories = ["docker.io/closed/**"]
actions = ["pull"]
"#;

/// Before `/manifests/…`, for `NAME` of Docker Hub.
const SPELLINGS: [&str; 5] =
    ["/v2/NAME", "/v2/docker.io/NAME", "/v2/index.docker.io/NAME", "/v2/hub/NAME", "/docker.io/v2/NAME"];

struct Case {
    rig: Rig,
    gitlab: Issuer,
}

async fn case() -> Case {
    let gitlab = Issuer::new("one");
    let directory = tempfile::tempdir().unwrap();
    let jwks = directory.path().join("jwks");
    std::fs::write(&jwks, gitlab.jwks()).unwrap();
    let config = RULES.replace("$DIRECTORY/jwks", jwks.to_str().unwrap());
    let rig = Rig::start(&USERS, &config).await;
    let image = Image::random(1, 1, 1000);
    for repository in ["library/nginx", "closed/app"] {
        rig.upstream.put_image(repository, "1", &image);
    }
    rig.repository("corp.internal/app", "alice").push(&image, "1").await;
    Case { rig, gitlab }
}

impl Case {
    /// A token for all that its bearer may do with one repository.
    async fn token(&self, by: &By, scope: &str) -> By {
        let path = format!("/token?service=forebay&scope={scope}");
        let token = self.rig.get(&path, by).await.expect(200).json();
        By::Bearer(token["token"].as_str().unwrap().to_owned())
    }

    async fn identities(&self, repository: &str) -> Vec<(&'static str, By)> {
        let scope = format!("repository:{repository}:*");
        let elsewhere = "repository:corp.internal/other:pull,push";
        let id_token = self.gitlab.token("corp/x");
        vec![
            ("nobody", By::Nobody),
            ("alice", user("alice")),
            ("bob", user("bob")),
            ("carol", user("carol")),
            ("wrong", By::Password("alice", "bob".to_owned())),
            ("unknown", By::Password("mallory", "mallory".to_owned())),
            ("forged", By::Bearer("eyJhbGciOiJub25lIn0.e30.".to_owned())),
            ("alice's token", self.token(&user("alice"), &scope).await),
            ("bob's token", self.token(&user("bob"), &scope).await),
            ("carol's token", self.token(&user("carol"), &scope).await),
            ("nobody's token", self.token(&By::Nobody, &scope).await),
            ("alice's token for another", self.token(&user("alice"), elsewhere).await),
            ("project", By::Password("ci", id_token.clone())),
            ("project's bearer", By::Bearer(id_token.clone())),
            ("project's token", self.token(&By::Password("ci", id_token), &scope).await),
            ("other project", By::Bearer(self.gitlab.token("other/x"))),
        ]
    }
}

#[tokio::test]
async fn hosted_repositories_are_for_whom_the_rules_name() {
    let case = case().await;
    // Who pulls, pushes, deletes.
    let expected = |who: &str| match who {
        "alice" | "alice's token" | "project" | "project's bearer" | "project's token" => [200, 202, 202],
        "bob" | "bob's token" => [200, 403, 403],
        "carol" | "carol's token" | "other project" => [403, 403, 403],
        _ => [401, 401, 401],
    };
    let at = "/v2/corp.internal/app";
    for (who, by) in case.identities("corp.internal/app").await {
        let [pull, push, delete] = expected(who);
        for path in ["manifests/1", "manifests/absent", "tags/list"] {
            let answer = case.rig.get(&format!("{at}/{path}"), &by).await;
            let pull = if path.ends_with("absent") && pull == 200 { 404 } else { pull };
            assert_eq!(answer.status, pull, "{who} {path}: {:?}", answer.body);
            assert_eq!(answer.challenge().is_empty(), pull != 401, "{who} {path}");
        }
        let answer = case.rig.ask(Method::POST, &format!("{at}/blobs/uploads/"), &by).await;
        assert_eq!(answer.status, push, "{who} pushes: {:?}", answer.body);
        let put = case.rig.ask(Method::PUT, &format!("{at}/manifests/2"), &by).await;
        assert_eq!(put.status, if push == 202 { 400 } else { push }, "{who} puts: {:?}", put.body);
        if push == 403 {
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(said.contains("DENIED") && said.contains("push corp.internal/app"), "{said}");
        }
        let digest = format!("sha256:{:064}", 0);
        let answer = case.rig.ask(Method::DELETE, &format!("{at}/manifests/{digest}"), &by).await;
        assert_eq!(answer.status, if delete == 202 { 404 } else { delete }, "{who} deletes");
    }
}

#[tokio::test]
async fn mirrored_repositories_are_one_whatever_their_spelling_and_never_challenge() {
    let case = case().await;
    for (who, by) in case.identities("closed/app").await {
        let closed = if who.starts_with("alice") { 200 } else { 403 };
        for spelling in SPELLINGS {
            for (name, status) in [("library/nginx", 200), ("closed/app", closed)] {
                let at = spelling.replace("NAME", name);
                for query in ["", "?ns=docker.io"] {
                    let (path, plain) = (format!("{at}/manifests/1{query}"), spelling == SPELLINGS[0]);
                    if !query.is_empty() && !plain {
                        continue;
                    }
                    let answer = case.rig.get(&path, &by).await;
                    assert_eq!(answer.status, status, "{who} {path}: {:?}", answer.body);
                    assert_eq!(answer.challenge(), "", "{who} {path}");
                }
                for method in [Method::PUT, Method::DELETE] {
                    let answer = case.rig.ask(method.clone(), &format!("{at}/manifests/1"), &by).await;
                    assert_eq!(answer.status, 405, "{who} {method} {at}: {:?}", answer.body);
                }
            }
        }
        for ping in ["/docker.io/v2/", "/v2/?ns=docker.io"] {
            case.rig.get(ping, &by).await.expect(200);
        }
    }
}

#[tokio::test]
async fn lists_show_what_the_caller_may_pull() {
    let case = case().await;
    for repository in ["library/nginx", "closed/app"] {
        case.rig.get(&format!("/v2/{repository}/manifests/1"), &user("alice")).await.expect(200);
        case.rig.mirror.linked(&format!("{repository}/_manifests/tags/1/current/link")).await;
    }
    case.rig.repository("corp.internal/dave", "dave").push(&Image::random(2, 1, 100), "1").await;
    let nobody = case.token(&By::Nobody, "registry:catalog:*").await;
    let bob = case.token(&user("bob"), "registry:catalog:*").await;
    let (own, daves) = ("corp.internal/app", "corp.internal/dave");
    for (by, expected) in [
        (user("alice"), vec!["closed/app", own, "library/nginx"]),
        (user("bob"), vec![own, daves, "library/nginx"]),
        (bob, vec![own, daves, "library/nginx"]),
        (user("carol"), vec!["library/nginx"]),
        (user("dave"), vec![daves, "library/nginx"]),
        (nobody, vec!["library/nginx"]),
    ] {
        let listed = case.rig.get("/v2/_catalog", &by).await.expect(200).json();
        assert_eq!(listed["repositories"], json!(expected), "{by:?}");
        let found = case.rig.get("/v1/search?q=app&n=25", &by).await.expect(200).json();
        let apps = expected.iter().filter(|name| name.contains("app")).count();
        assert_eq!(found["results"].as_array().unwrap().len(), apps, "{by:?} {found}");
    }
    for path in ["/v2/_catalog", "/v2/", "/v1/search?q=app"] {
        case.rig.get(path, &By::Nobody).await.expect(401);
        case.rig.get(path, &By::Password("alice", "wrong".to_owned())).await.expect(401);
    }
}

/// A mount from where one may not read is answered as one from where there is nothing.
#[tokio::test]
async fn a_mount_tells_nothing_of_what_one_may_not_read() {
    let case = case().await;
    let digest = Image::random(1, 1, 1000).blobs[0].digest.clone();
    let mount = async |from: &str, digest: &str, by: &By| {
        let path = format!("/v2/corp.internal/dave/blobs/uploads/?mount={digest}&from={from}");
        let answer = case.rig.ask(Method::POST, &path, by).await;
        (answer.status, answer.body.len(), answer.headers.contains_key("docker-content-digest"))
    };
    let absent = format!("sha256:{:064}", 0);
    let scope = "repository:corp.internal/dave:pull,push&scope=repository:corp.internal/app:pull";
    for by in [user("dave"), case.token(&user("dave"), scope).await] {
        let there = mount("corp.internal/app", &digest, &by).await;
        assert_eq!(there.0, 202);
        assert_eq!(mount("corp.internal/app", &absent, &by).await, there);
        assert_eq!(mount("corp.internal/nothing", &digest, &by).await, there);
    }
    // And of one that may be read, it is one.
    let path = format!("/v2/corp.internal/app/blobs/uploads/?mount={digest}&from=corp.internal/app");
    case.rig.ask(Method::POST, &path, &user("alice")).await.expect(201);
}

#[tokio::test]
async fn with_the_mirror_closed_it_asks_for_a_login_too() {
    let rig = Rig::start(&["alice"], "mirror = true\n[upstream.\"docker.io\"]\naliases = [\"hub\"]\n").await;
    rig.upstream.put_image("library/nginx", "1", &Image::random(1, 1, 100));
    for spelling in SPELLINGS {
        let path = format!("{}/manifests/1", spelling.replace("NAME", "library/nginx"));
        let answer = rig.get(&path, &By::Nobody).await.expect(401);
        assert_eq!(answer.challenge(), "Basic realm=\"forebay\"");
        rig.get(&path, &By::Password("alice", "wrong".to_owned())).await.expect(401);
        rig.get(&path, &user("alice")).await.expect(200);
    }
    for ping in ["/v2/", "/docker.io/v2/", "/v2/?ns=docker.io"] {
        rig.get(ping, &By::Nobody).await.expect(401);
    }
}

#[tokio::test]
async fn a_host_that_dockerd_may_have_as_its_mirror_does_not_ask() {
    let rig = Rig::start(&["alice"], "").await;
    for path in ["/v2/", "/v2/_catalog"] {
        rig.get(path, &By::Nobody).await.expect(200);
        rig.get(path, &By::Password("alice", "wrong".to_owned())).await.expect(401);
    }
    rig.get("/v2/app/manifests/1", &By::Nobody).await.expect(401);
    let rig = Rig::start(&["alice"], "login_hosts = [\"registry.corp:5000\"]\n").await;
    let ping = async |host: &str| {
        let ask = http().get(rig.mirror.url() + "/v2/").header("Host", host);
        ask.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ping("registry.corp:5000").await, 401);
    assert_eq!(ping("Registry.Corp:5000").await, 401);
    for other in ["registry.corp", "127.0.0.1:5000", "registry.corp:5001"] {
        assert_eq!(ping(other).await, 200, "{other}");
    }
}

#[tokio::test]
async fn the_operators_pages_leave_the_public_listener() {
    let rig = Rig::start(&["alice"], "").await;
    for path in ["/", "/metrics"] {
        for by in [By::Nobody, user("alice")] {
            rig.get(path, &by).await.expect(404);
        }
    }
    rig.get("/healthz", &By::Nobody).await.expect(200);
    rig.get("/readyz", &By::Nobody).await.expect(200);
}
