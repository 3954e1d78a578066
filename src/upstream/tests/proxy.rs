//! Proxies come from the environment, which a test may set for another process only.

use std::process::Command;

use super::*;

const CHILD: &str = "FOREBAY_TEST_PROXIED_UPSTREAM";

/// Runs `child` below, with an environment.
async fn run_child(mode: &str, url: &str, proxy: &Url, no_proxy: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "upstream::tests::proxy::child", "--nocapture"]);
    child.env(CHILD, format!("{mode} {url}")).env("HTTP_PROXY", proxy.as_str()).env("NO_PROXY", no_proxy);
    for other in ["http_proxy", "no_proxy", "ALL_PROXY", "all_proxy", "REQUEST_METHOD"] {
        child.env_remove(other);
    }
    let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{mode}: {text}");
}

/// Does nothing unless started by the test below.
#[tokio::test]
async fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (mode, url) = order.split_once(' ').unwrap();
    let base = options(url.parse().unwrap());
    let result = bench(base.clone()).get("a").await;
    match mode {
        "reached" => assert_eq!(&result.unwrap().bytes[..], b"{}"),
        // An upstream of unknown address is taken for a public one.
        "redirect_hosts" | "realm_hosts" => {
            let error = result.unwrap_err();
            assert!(matches!(&error.cause, Cause::Refused(why) if why.contains(mode)), "{error:?}");
            let hosts = vec!["127.0.0.1".to_owned()];
            let listed = Options { redirect_hosts: hosts.clone(), realm_hosts: hosts, ..base };
            bench(listed).get("a").await.unwrap();
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn proxies_are_used_and_private_targets_refused_behind_them() {
    let inside = Server::new(|seen| match seen.path() {
        "/token" => reply(200, r#"{"token":"t"}"#),
        _ => reply(200, "{}"),
    })
    .await;
    let (target, realm) = (inside.url("/inside"), inside.url("/token"));
    let proxy = Server::new(move |seen| match (seen.uri.host(), seen.header("authorization")) {
        (Some("redirects.example"), _) => redirect_to(&target),
        (Some("challenges.example"), None) => {
            reply(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        }
        (Some(_), _) => reply(200, "{}"),
        (None, _) => reply(400, "not asked as a proxy is"),
    })
    .await;
    let local = "127.0.0.0/8";
    run_child("reached", "http://registry.example/", &proxy.url("/"), local).await;
    assert_eq!(proxy.seen()[0].uri.to_string(), "http://registry.example/v2/a/manifests/latest");
    run_child("redirect_hosts", "http://redirects.example/", &proxy.url("/"), local).await;
    assert_eq!(inside.seen().len(), 1, "only when listed");
    run_child("realm_hosts", "http://challenges.example/", &proxy.url("/"), local).await;
    assert_eq!(inside.count("/token"), 1, "only when listed");
    let before = proxy.seen().len();
    run_child("reached", inside.url("/").as_str(), &proxy.url("/"), local).await;
    assert_eq!(proxy.seen().len(), before, "NO_PROXY is obeyed");
}
