//! Forebay, the binary under test, as its own process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::process::{Process, Wait, command, free_port};
use super::{http, http_client};

#[derive(Clone, Debug, Default)]
pub struct MirrorOptions {
    /// `http://127.0.0.1:PORT` of what stands for docker.io.
    pub upstream: String,
    /// The text of `forebay.toml`; without it there is no configuration file.
    pub config: Option<String>,
    /// Environment variables besides those of the test.
    pub environment: Vec<(String, String)>,
    /// Further arguments of `forebay serve`.
    pub arguments: Vec<String>,
    /// The program, with its arguments, that becomes Forebay, such as `prlimit --nofile=1024`.
    pub under: Vec<String>,
    /// Files of a certificate and of its key; without them HTTP is served.
    pub tls: Option<(PathBuf, PathBuf)>,
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

    /// `http://127.0.0.1:PORT`, or `https://…`
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.host())
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

    /// What it said so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Puts `config` into the configuration file. SIGHUP or a restart takes it up.
    pub fn configure(&mut self, config: &str) {
        std::fs::write(config_file(&self.directory), config).unwrap();
        self.options.config = Some(config.to_owned());
    }

    /// What `/metrics` says of the series `name{label="value"}`, labels in the order of the alphabet.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = http().get(self.url() + "/metrics").send().await.unwrap().text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    /// Waits until so many fetched blobs are on disk.
    pub async fn committed(&self, blobs: usize) {
        let wait = Wait::for_("blobs to be kept");
        while self.metric(r#"forebay_fills_total{result="committed"}"#).await < blobs as f64 {
            wait.a_little().await;
        }
        // Counted before they are renamed: after this no fill is under way.
        while self.metric("forebay_fills_in_flight").await > 0.0 {
            wait.a_little().await;
        }
    }

    /// Waits for a link below the data directory's repositories: links are written behind answers.
    pub async fn linked(&self, path: &str) {
        let link = self.data().join("docker/registry/v2/repositories").join(path);
        let wait = Wait::for_("a link to be kept");
        while !link.exists() {
            wait.a_little().await;
        }
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
        // Which certificate it has is for the tests to check.
        let client = http_client().tls_danger_accept_invalid_certs(true).build().unwrap();
        let wait = Wait::for_("forebay's /healthz");
        while !client.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
            self.process.assert_running();
            wait.a_little().await;
        }
    }
}

/// No test passes over a panic in the server.
impl Drop for Mirror {
    fn drop(&mut self) {
        let log = self.log();
        if !std::thread::panicking() {
            assert!(!log.contains("panicked at"), "{log}");
        }
    }
}

/// The binary with these arguments.
pub fn forebay<const N: usize>(arguments: [&str; N]) -> Command {
    command(env!("CARGO_BIN_EXE_forebay"), arguments)
}

fn config_file(directory: &Path) -> PathBuf {
    directory.join("forebay.toml")
}

fn spawn(directory: &Path, port: u16, options: &MirrorOptions) -> Process {
    let listen = format!("127.0.0.1:{port}");
    let upstream = format!("docker.io={}", options.upstream);
    let mut words = options.under.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_forebay")]);
    let mut command = command(words.next().unwrap(), words);
    command.args(["serve", "--listen", &listen, "--upstream", &upstream]);
    command.arg("--data").arg(directory.join("data")).args(&options.arguments);
    if let Some(config) = &options.config {
        let file = config_file(directory);
        std::fs::write(&file, config).unwrap();
        command.arg("--config").arg(file);
    }
    if let Some((certificate, key)) = &options.tls {
        command.arg("--tls-certificate-file").arg(certificate).arg("--tls-key-file").arg(key);
    }
    command.envs(options.environment.iter().map(|(name, value)| (name, value)));
    Process::start("forebay", &mut command, &directory.join("log"))
}
