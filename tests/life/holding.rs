//! `forebay du`, `evict`, `pin` and `unpin`, and the cap of a running server.

use std::process::Command;

use serde_json::Value;

use super::support::faulty::Upstream;
use super::support::image::Image;
use super::support::mirror::{Mirror, MirrorOptions, forebay};
use super::support::process::{Wait, attempt, run};
use super::support::repository::Repository;
use super::{Rig, pull};

async fn lines(mirror: &Mirror, arguments: &[&str]) -> Vec<Value> {
    told(mirror, arguments).await.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn told(mirror: &Mirror, arguments: &[&str]) -> String {
    run(on(mirror, arguments)).await
}

async fn refused(mirror: &Mirror, arguments: &[&str]) -> String {
    attempt(on(mirror, arguments)).await.unwrap_err()
}

fn on(mirror: &Mirror, arguments: &[&str]) -> Command {
    let mut command = forebay([]);
    command.args(arguments).args(["--data", mirror.data().to_str().unwrap()]);
    command
}

impl Rig {
    async fn pull(&self, name: &str, tag: &str, image: &Image) {
        self.upstream.put_image(name, tag, image);
        self.pull_again(name, tag, image).await;
    }

    async fn pull_again(&self, name: &str, tag: &str, image: &Image) {
        pull(&format!("{}/v2/{name}", self.mirror.url()), tag, image).await;
    }

    async fn is_held(&self, text: &str) -> bool {
        let found = lines(&self.mirror, &["du", "--images", "--json"]).await;
        let name = |line: &Value| {
            let image = line.get("image")?;
            Some(format!("{}:{}", image["repository"].as_str()?, image["tags"][0].as_str()?))
        };
        found.iter().filter_map(name).any(|name| name == text)
    }

    /// What is answered is written behind the answers.
    async fn held(&self, text: &str) {
        let wait = Wait::for_("an image is held");
        while !self.is_held(text).await {
            wait.a_little().await;
        }
    }
}

#[tokio::test]
async fn what_uses_the_space_is_shown_and_evicted_by_name() {
    let rig = Rig::start().await;
    let (one, two) = (Image::random(1, 2, 50_000), Image::random(1, 1, 20_000));
    rig.pull("library/one", "1", &one).await;
    rig.pull("library/two", "latest", &two).await;
    rig.held("docker.io/library/one:1").await;
    rig.held("docker.io/library/two:latest").await;
    let wait = Wait::for_("all of it is linked");
    while lines(&rig.mirror, &["du", "--json"]).await.last().unwrap()["totals"]["bytes_unlinked"] != 0 {
        wait.a_little().await;
    }
    let shown = lines(&rig.mirror, &["du", "--json"]).await;
    assert_eq!(shown[0]["upstream"]["name"], "docker.io");
    assert_eq!(shown[0]["upstream"]["images"], 2);
    assert_eq!(shown[1]["repository"]["name"], "docker.io/library/one", "the largest first");
    let totals = &shown.last().unwrap()["totals"];
    assert_eq!(totals["bytes"], shown[0]["upstream"]["bytes"]);
    let metric = rig.mirror.metric("forebay_store_bytes").await;
    assert_eq!(totals["bytes"].as_f64().unwrap(), metric);
    let text = told(&rig.mirror, &["du", "--images"]).await;
    assert!(text.contains("docker.io: 2 repositories, 2 images") && text.contains("latest: "), "{text}");

    let dry = lines(&rig.mirror, &["evict", "library/one:1", "--dry-run", "--json"]).await;
    assert_eq!(dry[0]["evicted"]["tags"][0], "1");
    assert!(rig.is_held("docker.io/library/one:1").await);
    let gone = told(&rig.mirror, &["evict", "library/one:1"]).await;
    assert!(gone.contains("docker.io/library/one:1") && gone.contains("freed"), "{gone}");
    assert!(!rig.is_held("docker.io/library/one:1").await);
    assert!(rig.is_held("docker.io/library/two:latest").await);
    assert!(rig.mirror.metric("forebay_store_bytes").await < metric);
    let before = rig.upstream.requests_for("GET", "/library/one/").len();
    rig.pull_again("library/one", "1", &one).await;
    assert!(rig.upstream.requests_for("GET", "/library/one/").len() > before, "memory has forgotten it too");
    rig.held("docker.io/library/one:1").await;

    let absent = refused(&rig.mirror, &["evict", "library/three:1"]).await;
    assert!(absent.contains("library/three:1: it is not held"), "{absent}");
    let own = rig.mirror.url().replace("http://", "") + "/mine:1";
    let hosted = refused(&rig.mirror, &["evict", &own]).await;
    assert!(hosted.contains("one of your own images"), "{hosted}");
    let other = refused(&rig.mirror, &["evict", "library/one"]).await;
    assert!(other.contains("it means docker.io/library/one:latest; tags of it that are held: 1"), "{other}");
    let elsewhere = refused(&rig.mirror, &["evict", "--upstream", "quay.io"]).await;
    assert!(elsewhere.contains("quay.io: it is no upstream of this server"), "{elsewhere}");
    let short = told(&rig.mirror, &["evict", "--free", "1PiB", "--dry-run"]).await;
    assert!(short.contains(" would be freed, of 1024.0 TiB; there is no more"), "{short}");
    assert!(refused(&rig.mirror, &["evict"]).await.contains("--unused-for"));
    let none = told(&rig.mirror, &["evict", "--unused-for", "1day"]).await;
    assert!(none.contains("nothing went"), "{none}");
    let all = lines(&rig.mirror, &["evict", "--upstream", "docker.io", "--json"]).await;
    assert_eq!(all.last().unwrap()["totals"]["images"], 2);
    assert_eq!(rig.mirror.metric("forebay_store_bytes").await, 0.0);
}

#[tokio::test]
async fn pins_keep_images_through_a_restart_and_pressure() {
    let options = MirrorOptions {
        config: Some(
            "[cache]\nmax_size = \"8MiB\"\nmin_free = \"0B\"\n[[warm]]\nimages = [\"library/kept:1\"]\n"
                .to_owned(),
        ),
        ..MirrorOptions::default()
    };
    let mut rig = Rig::with(options).await;
    let pinned = Image::random(1, 1, 600_000);
    rig.pull("library/pinned", "1", &pinned).await;
    rig.held("docker.io/library/pinned:1").await;
    rig.pull("library/kept", "1", &Image::random(2, 1, 1000)).await;
    rig.held("docker.io/library/kept:1").await;
    let text = told(&rig.mirror, &["pin", "library/pinned:1", "library/later:1"]).await;
    assert!(text.contains("docker.io/library/pinned:1: pinned\n") && text.contains("not held yet"), "{text}");
    rig.mirror.kill();
    rig.mirror.restart().await;
    let listed = told(&rig.mirror, &["pin"]).await;
    assert!(
        listed.contains("docker.io/library/later:1  (not held)") && listed.contains("library/pinned:1\n"),
        "{listed}"
    );
    assert!(listed.contains("library/kept:1  (by `[[warm]]` in the configuration)"), "{listed}");
    for number in 0..12 {
        let image = Image::random(100 + number, 1, 600_000);
        rig.pull("library/many", &number.to_string(), &image).await;
        let name = format!("docker.io/library/many:{number}");
        rig.held(&name).await;
        assert!(rig.mirror.metric("forebay_store_bytes").await <= 8.0 * 1024.0 * 1024.0);
    }
    assert!(rig.mirror.metric("forebay_store_evictions_total").await >= 3.0);
    assert!(
        rig.is_held("docker.io/library/pinned:1").await && !rig.is_held("docker.io/library/many:0").await
    );
    let refused = refused(&rig.mirror, &["evict", "library/pinned:1"]).await;
    assert!(refused.contains("it is pinned by command: `forebay unpin`"), "{refused}");
    assert!(
        told(&rig.mirror, &["unpin", "library/kept:1"]).await.contains("; `[[warm]]` in the configuration")
    );
    let stay = told(&rig.mirror, &["evict", "--upstream", "docker.io"]).await;
    assert!(stay.contains(" freed; of the images that are meant these stay: 2 pinned, or kept"), "{stay}");
    assert!(told(&rig.mirror, &["unpin", "library/pinned:1"]).await.contains("may be evicted again"));
    assert!(told(&rig.mirror, &["unpin", "library/pinned:1"]).await.contains("was not pinned"));
    told(&rig.mirror, &["evict", "library/pinned:1"]).await;
    assert!(!rig.is_held("docker.io/library/pinned:1").await);
}

/// As docker has it, a name alone is Docker Hub's in commands; that it may have been meant otherwise is said.
#[tokio::test]
async fn own_images_go_by_this_servers_name_and_those_of_a_former_upstream_by_its() {
    let (directory, upstream) = (tempfile::tempdir().unwrap(), Upstream::start().await);
    let config = format!("[upstream.\"ghcr.io\"]\nurl = {:?}\n", upstream.url());
    let options =
        MirrorOptions { upstream: upstream.url(), config: Some(config), ..MirrorOptions::default() };
    let mirror = Mirror::with(directory.path(), options).await;
    let mut rig = Rig { upstream, mirror, _directory: directory };
    let image = Image::random(1, 1, 20_000);
    Repository::new(&rig.mirror.url(), "myapp").push(&image, "1.0").await;
    let own = format!("your own image is `localhost:{}/myapp:1.0`", rig.mirror.port);
    rig.held("myapp:1.0").await;
    let out = rig.mirror.data().join("../out");
    let export = ["export", "myapp:1.0", "--held-only", "-o", out.to_str().unwrap()];
    for arguments in [&["evict", "myapp:1.0"][..], &export] {
        let said = refused(&rig.mirror, arguments).await;
        assert!(said.contains("docker.io/library/myapp:1.0") && said.contains(&own), "{said}");
    }
    let pinned = lines(&rig.mirror, &["pin", "myapp:1.0", "--json"]).await;
    assert_eq!(pinned[0]["pinned"]["note"], *own, "{pinned:?}");
    let elsewhere = refused(&rig.mirror, &["evict", "localhost:1/myapp:1.0"]).await;
    assert!(
        elsewhere.contains(&format!("this server, which is `localhost:{}`", rig.mirror.port)),
        "{elsewhere}"
    );

    rig.upstream.put_image("org/app", "2.0", &image);
    pull(&format!("{}/v2/ghcr.io/org/app", rig.mirror.url()), "2.0", &image).await;
    rig.held("ghcr.io/org/app:2.0").await;
    told(&rig.mirror, &["pin", "ghcr.io/org/app:2.0"]).await;
    rig.mirror.kill();
    rig.mirror.configure("");
    rig.mirror.restart().await;
    rig.held("ghcr.io/org/app:2.0").await;
    let said = refused(&rig.mirror, &["evict", "ghcr.io/org/app:2.0"]).await;
    assert!(said.contains("it is pinned by command"), "{said}");
    told(&rig.mirror, &["unpin", "ghcr.io/org/app:2.0"]).await;
    assert!(told(&rig.mirror, &["evict", "ghcr.io/org/app:2.0"]).await.contains("freed"));
    let held = told(&rig.mirror, &["du"]).await;
    assert!(!held.contains("ghcr.io") && held.contains("hosted: 1 repository"), "{held}");
}
