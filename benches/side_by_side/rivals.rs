//! Rivals that are built from source: Go builds them once, and they are kept below `target/rivals`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Those that could be built.
#[derive(Clone, Default)]
pub struct Rivals {
    pub distribution: Option<PathBuf>,
    pub zot: Option<PathBuf>,
}

struct Module {
    name: &'static str,
    package: &'static str,
    version: &'static str,
    /// What is built in, beside the least.
    tags: &'static str,
    program: &'static str,
}

const DISTRIBUTION: Module = Module {
    name: "distribution",
    package: "github.com/distribution/distribution/v3/cmd/registry",
    version: "v3.1.2",
    tags: "",
    program: "registry",
};

const ZOT: Module = Module {
    name: "zot",
    package: "zotregistry.dev/zot/v2/cmd/zot",
    version: "v2.1.20",
    tags: "sync",
    program: "zot",
};

pub const DISTRIBUTION_VERSION: &str = DISTRIBUTION.version;
pub const ZOT_VERSION: &str = ZOT.version;

/// What a build takes at most.
const SECONDS: &str = "600";

impl Rivals {
    pub fn build() -> Self {
        Self { distribution: DISTRIBUTION.build(), zot: ZOT.build() }
    }
}

impl Module {
    fn build(&self) -> Option<PathBuf> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let directory = target.join("rivals").join(format!("{}-{}", self.name, self.version));
        let program = directory.join(self.program);
        if program.exists() {
            return Some(program);
        }
        eprintln!("{} {} is built", self.name, self.version);
        std::fs::create_dir_all(&directory).unwrap();
        let mut go = Command::new("timeout");
        go.args([SECONDS, "nice", "go", "install", "-tags", self.tags]);
        go.arg(format!("{}@{}", self.package, self.version));
        go.env("GOBIN", &directory).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
        let said = match go.output() {
            Ok(output) if output.status.success() => return Some(program),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let reason = said.lines().last().unwrap_or("no reason given");
        eprintln!("{} could not be built and is left out: {reason}", self.name);
        None
    }
}
