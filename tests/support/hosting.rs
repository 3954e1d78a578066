//! A registry that is pushed to: Forebay, or the peer that shows that a scenario can come true.

use std::path::Path;
use std::time::Duration;

use super::mirror::{Mirror, MirrorOptions, forebay};
use super::process::{attempt, command, free_port, run};
use super::registry::{Registry, RegistryOptions};
use super::repository::Repository;

/// Short enough to be waited for.
pub const LEASE: Duration = Duration::from_secs(1);
/// The configuration with it.
pub const SHORT_LEASE: &str = "[gc]\nlease = \"1s\"\ninterval = \"off\"\n";

pub enum Hosting {
    Distribution(Registry),
    Forebay(Mirror),
}

impl Hosting {
    /// The peer, first, and Forebay, both empty and open to pushes from this machine.
    pub async fn both(directory: &Path) -> [Self; 2] {
        Self::both_with(directory, "").await
    }

    /// The same, with this configuration of Forebay.
    pub async fn both_with(directory: &Path, config: &str) -> [Self; 2] {
        let peer = Registry::start(&directory.join("distribution"), RegistryOptions::default()).await;
        [Self::Distribution(peer), Self::forebay(&directory.join("forebay"), config).await]
    }

    /// Forebay, configured so, without an upstream that answers.
    pub async fn forebay(directory: &Path, config: &str) -> Self {
        Self::Forebay(hosting(directory, config).await)
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        match self {
            Self::Distribution(registry) => registry.host(),
            Self::Forebay(mirror) => mirror.host(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    pub fn repository(&self, name: &str) -> Repository {
        Repository::new(&self.url(), name)
    }

    /// Lets what nobody needs be collected: from the peer while it stands still, as it must; from
    /// Forebay as it runs, when no lease is left.
    pub async fn collect(&mut self) {
        match self {
            Self::Distribution(registry) => {
                registry.stop();
                let config = registry.storage().with_file_name("config.yml");
                let mut collect =
                    command("docker-registry", ["garbage-collect".as_ref(), config.as_os_str()]);
                collect.env("OTEL_TRACES_EXPORTER", "none");
                run(collect).await;
                registry.restart().await;
            }
            Self::Forebay(mirror) => {
                tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
                collect(mirror).await;
            }
        }
    }
}

/// Forebay as a registry, for `Hosting::forebay` and for those who kill it.
pub async fn hosting(directory: &Path, config: &str) -> Mirror {
    let upstream = format!("http://127.0.0.1:{}", free_port());
    let options = MirrorOptions { upstream, config: Some(config.to_owned()), ..Default::default() };
    Mirror::with(directory, options).await
}

/// `forebay gc`, on a running server. What it printed.
pub async fn collect(mirror: &Mirror) -> String {
    try_collect(mirror).await.unwrap()
}

/// The same, which may fail.
pub async fn try_collect(mirror: &Mirror) -> Result<String, String> {
    let mut gc = forebay(["gc", "--data"]);
    gc.arg(mirror.data());
    attempt(gc).await
}
