//! Whole images that mirrors hold, pulled by real clients in a network of their own.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::report::{Quantity, Turn};
use crate::servers::{Kind, Role, Server, each};
use crate::support::clients::{Client, Containerd, Skopeo};
use crate::support::faulty::Upstream;
use crate::support::image::Image;
use crate::support::namespace::isolated;
use crate::support::process::run as run_command;
use crate::turns::{Named, Part, Run, alternate, watched};

const PART: Part = Part { name: "pull", limit: Duration::from_secs(60), whole: Duration::from_secs(180) };

const LAYERS: usize = 6;
const LAYER: usize = 20 << 20;
const IMAGE: &str = "image:1";

#[derive(Clone, Copy)]
enum Work {
    Skopeo,
    Containerd,
}

impl Named for Work {
    fn name(&self) -> String {
        let client = match self {
            Self::Skopeo => "skopeo",
            Self::Containerd => "containerd",
        };
        format!("{client} pulls a held image of {LAYERS} layers, {} MiB", (LAYERS * LAYER) >> 20)
    }
}

/// Makes a runtime of its own, for threads enter a network when they are made.
pub fn run(run: &mut Run) {
    let mut works = run.select(&PART, [Work::Skopeo, Work::Containerd]);
    if !rustix::process::geteuid().is_root() {
        eprintln!("containerd and networks need root: pulls of images are left out");
        works.clear();
    }
    if !works.is_empty() {
        let upstreams = run.upstreams.clone();
        isolated(async |scratch| {
            run.upstreams = Handle::current();
            measure_all(run, &works, &scratch).await;
        });
        run.upstreams = upstreams;
    }
}

async fn measure_all(run: &mut Run, works: &[Work], scratch: &Path) {
    let upstream = Upstream::start().await;
    upstream.put_image("library/image", "1", &Image::random(1, LAYERS, LAYER));
    let url = upstream.url();
    let servers = each(&Kind::REGISTRIES, &run.rivals, async |kind| {
        let directory = scratch.join(kind.name());
        let server = Server::start(kind, &directory, Role::Mirror(&url), &run.rivals, None).await;
        // Twice: some keep a blob only some time after they have served it.
        for _ in 0..2 {
            by_skopeo(&server, scratch).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        server
    })
    .await;
    let containerd = Containerd::start(&scratch.join("containerd"), "http://127.0.0.1:1").await;
    alternate(run, &PART, works, &servers, async |work, server| {
        Some(match work {
            Work::Skopeo => by_skopeo(server, scratch).await,
            Work::Containerd => by_containerd(&containerd, server, scratch).await,
        })
    })
    .await;
}

async fn by_skopeo(server: &Server, scratch: &Path) -> Turn {
    let copy = tempfile::tempdir_in(scratch).unwrap();
    let skopeo = Skopeo::new(&scratch.join("skopeo"), &server.url());
    let source = format!("docker://{}/library/{IMAGE}", server.address);
    let mut pull = skopeo.skopeo(["copy", "--quiet", "--src-tls-verify=false", &source]);
    pull.arg(format!("dir:{}", copy.path().display()));
    timed(server, run_command(pull)).await
}

async fn by_containerd(containerd: &Containerd, server: &Server, scratch: &Path) -> Turn {
    let hosts = scratch.join("hosts").join(server.kind.name());
    let docker = hosts.join("docker.io");
    std::fs::create_dir_all(&docker).unwrap();
    let text =
        format!("server = \"{0}\"\n[host.\"{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", server.url());
    std::fs::write(docker.join("hosts.toml"), text).unwrap();
    let turn = timed(server, containerd.pull_by(&hosts, IMAGE)).await;
    containerd.remove(IMAGE).await;
    turn
}

async fn timed<T>(server: &Server, pull: impl Future<Output = T>) -> Turn {
    let begun = Instant::now();
    let (wall, cost) = watched(server, async {
        pull.await;
        begun.elapsed().as_secs_f64()
    })
    .await;
    cost.turn([(Quantity::Wall, wall), (Quantity::Cpu, cost.cpu)])
}
