//! Behind nginx, under a path of its own.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::events::Receiver;
use super::support::http;
use super::support::image::Image;
use super::support::mirror::MirrorOptions;
use super::support::process::{Process, Wait, command, free_port};
use super::{Rig, get, pull, put_empty};

/// nginx, which has everything below `/reg/` answered at a port of this machine.
struct Nginx {
    port: u16,
    _process: Process,
    _directory: tempfile::TempDir,
}

impl Nginx {
    async fn before(port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let own = free_port();
        std::fs::write(directory.path().join("nginx.conf"), configuration(own, port)).unwrap();
        let mut process =
            Process::start("nginx", &mut nginx(directory.path()), &directory.path().join("log"));
        let wait = Wait::for_("nginx");
        while http().get(format!("http://127.0.0.1:{own}/ready")).send().await.is_err() {
            process.assert_running();
            wait.a_little().await;
        }
        Self { port: own, _process: process, _directory: directory }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn nginx(directory: &Path) -> Command {
    let mut command = command("nginx", ["-e", "stderr", "-c", "nginx.conf", "-p"]);
    command.arg(directory);
    command
}

fn configuration(own: u16, port: u16) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    // Where TLS ends elsewhere, the proxy is told so by its configuration.
    format!(
        "daemon off; pid nginx.pid; user root; events {{}} http {{ access_log off; {temporary} \
         server {{ listen 127.0.0.1:{own}; client_max_body_size 0; location /reg/ {{ \
         proxy_pass http://127.0.0.1:{port}/; proxy_http_version 1.1; proxy_request_buffering off; \
         proxy_buffering off; proxy_redirect off; \
         proxy_set_header Host inner.example; proxy_set_header Forwarded \"\"; \
         proxy_set_header X-Forwarded-For 192.0.2.7; proxy_set_header X-Forwarded-Proto https; \
         proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Prefix /reg; }} }} }}"
    )
}

const TRUSTED: &str = "[limits]\ntrusted_proxies = [\"127.0.0.1\"]\n";

/// A header of the answer at this URL, asked for with a header that the proxy has to replace.
async fn header(url: &str, name: &str) -> String {
    let answer = http().get(url).header("X-Forwarded-Prefix", "/evil").send().await.unwrap();
    answer.headers()[name].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn paths_lead_through_the_proxy_that_is_trusted() {
    let receiver = Receiver::start(0, &[]).await;
    let events = format!("[[events.endpoint]]\nname = \"ci\"\nurl = \"{}\"\n", receiver.url());
    let config = Some(format!("{TRUSTED}{events}"));
    let mut rig = Rig::with(MirrorOptions { config, ..MirrorOptions::default() }).await;
    let nginx = Nginx::before(rig.mirror.port).await;
    let image = Image::random(7, 2, 100_000);
    rig.upstream.put_image("library/x", "1", &image);
    pull(&nginx.url("/reg/v2/library/x"), "1", &image).await;
    for tag in ["2", "3", "4"] {
        put_empty(&rig.upstream, "library/x", tag, tag);
    }

    let (mut tags, mut next) = (Vec::new(), Some("/reg/v2/library/x/tags/list?n=1".to_owned()));
    while let Some(path) = next {
        let answer = http().get(nginx.url(&path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        next = answer.headers().get("link").map(|link| {
            let link = link.to_str().unwrap().strip_prefix('<').unwrap();
            link.strip_suffix(">; rel=\"next\"").unwrap().to_owned()
        });
        let page: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        tags.push(page["tags"][0].as_str().unwrap().to_owned());
    }
    assert_eq!(tags, ["1", "2", "3", "4"]);
    assert_eq!(header(&nginx.url("/reg/v2"), "location").await, "/reg/v2/");

    let (status, page) = get(&nginx.url("/reg/")).await;
    let page = String::from_utf8(page.to_vec()).unwrap();
    let base = format!("https://127.0.0.1:{}/reg", nginx.port);
    assert!(status == 200 && page.contains(&format!("[host.\"{base}\"]")), "{page}");
    assert!(page.contains("href=\"/reg/metrics\""), "{page}");
    assert_eq!(get(&nginx.url("/reg/metrics")).await.0, 200);

    let wait = Wait::for_("an event");
    while receiver.events().is_empty() {
        wait.a_little().await;
    }
    let event = receiver.events().remove(0);
    let url = format!("{base}/v2/docker.io/library/x/manifests/{}", image.digest());
    assert_eq!((&event["target"]["url"], &event["target"]["tag"]), (&url.into(), &"1".into()));
    assert_eq!(event["request"]["addr"], "192.0.2.7", "the client's, as the proxy says");

    // The same proxy, no longer trusted: it is a client like any other.
    rig.mirror.configure("");
    rig.mirror.process().signal(Signal::HUP);
    let path = nginx.url("/reg/v2/library/x/tags/list?n=1");
    while header(&path, "link").await != "</v2/library/x/tags/list?n=1&last=1>; rel=\"next\"" {
        wait.a_little().await;
    }
    let (_, page) = get(&nginx.url("/reg/")).await;
    assert!(String::from_utf8(page.to_vec()).unwrap().contains("http://inner.example"), "its own Host");
}
