//! Forebay, the binary under test, as its own process.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::http;
use super::process::{Process, Wait, command, free_port};

#[derive(Clone, Debug, Default)]
pub struct MirrorOptions {
    /// `http://127.0.0.1:PORT` of what stands for docker.io.
    pub upstream: String,
    /// The text of `forebay.toml`; without it there is no configuration file.
    pub config: Option<String>,
    /// Environment variables besides those of the test.
    pub environment: Vec<(String, String)>,
}

/// A running Forebay with its data and log in one directory.
pub struct Mirror {
    process: Process,
    pub port: u16,
    directory: PathBuf,
    options: MirrorOptions,
}

impl Mirror {
    /// Starts a mirror of the registry at `upstream`, all else by default, data under `directory`.
    pub async fn start(directory: &Path, upstream: &str) -> Self {
        let options = MirrorOptions { upstream: upstream.to_owned(), ..Default::default() };
        Self::with(directory, options).await
    }

    pub async fn with(directory: &Path, options: MirrorOptions) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let port = free_port();
        let process = spawn(directory, port, &options);
        let mut mirror = Self { process, port, directory: directory.to_owned(), options };
        mirror.ready().await;
        mirror
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM. The exit status, or `None` where it had to be killed after `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Option<ExitStatus> {
        self.process.terminate(patience)
    }

    /// Starts it again, after `kill` or `terminate`, on the same port and data.
    pub async fn restart(&mut self) {
        self.process = spawn(&self.directory, self.port, &self.options);
        self.ready().await;
    }

    async fn ready(&mut self) {
        let url = self.url() + "/healthz";
        let client = http();
        let wait = Wait::for_("forebay's /healthz");
        while !client.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
            self.process.assert_running();
            wait.a_little().await;
        }
    }
}

fn spawn(directory: &Path, port: u16, options: &MirrorOptions) -> Process {
    let listen = format!("127.0.0.1:{port}");
    let upstream = format!("docker.io={}", options.upstream);
    let program = env!("CARGO_BIN_EXE_forebay");
    let mut command = command(program, ["serve", "--listen", &listen, "--upstream", &upstream]);
    command.arg("--data").arg(directory.join("data"));
    if let Some(config) = &options.config {
        let file = directory.join("forebay.toml");
        std::fs::write(&file, config).unwrap();
        command.arg("--config").arg(file);
    }
    command.envs(options.environment.iter().map(|(name, value)| (name, value)));
    Process::start("forebay", &mut command, &directory.join("log"))
}
