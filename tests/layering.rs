//! The house holds: imports point downward only, files and status codes stay where they belong.
//!
//! Reads the source as text, without comments and without test code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each module may import, from the top of the house to its ground floor. A module may be
/// moved down freely; an edge that is missing here wants a reason before it is added.
const ALLOWED: [(&str, &[&str]); 20] = [
    ("main", &["app", "cli"]),
    ("cli", &["access", "config", "control", "layout", "telemetry"]),
    (
        "app",
        &[
            "access",
            "clock",
            "config",
            "control",
            "disk",
            "events",
            "http",
            "metrics",
            "mirror",
            "oci",
            "registry",
            "store",
            "tasks",
            "telemetry",
            "upstream",
        ],
    ),
    ("config", &["access", "events", "http", "mirror", "oci", "registry", "store", "telemetry", "upstream"]),
    (
        "http",
        &[
            "access",
            "answer",
            "clock",
            "events",
            "metrics",
            "mirror",
            "oci",
            "registry",
            "store",
            "tasks",
            "telemetry",
            "upstream",
        ],
    ),
    ("events", &["clock", "metrics", "oci", "tasks"]),
    ("control", &["tasks"]),
    // The directories of who runs a command: not to be mixed up with what the store holds.
    ("layout", &["oci", "tasks"]),
    ("access", &["clock", "metrics", "mirror", "oci", "tasks"]),
    ("mirror", &["answer", "clock", "metrics", "oci", "store", "tasks", "upstream"]),
    ("registry", &["answer", "clock", "metrics", "oci", "store", "tasks"]),
    ("answer", &["oci", "store"]),
    ("store", &["clock", "disk", "metrics", "oci", "tasks"]),
    ("upstream", &["clock", "metrics", "oci", "tasks"]),
    ("disk", &[]),
    ("oci", &[]),
    ("telemetry", &[]),
    ("metrics", &["tasks"]),
    ("tasks", &[]),
    ("clock", &[]),
];

/// Files outside `disk` that touch the file system. None of them touches held content.
const FILES: &[(&str, &str)] = &[
    ("access/issuers.rs", "reads the certificates of a token server"),
    ("access/mint.rs", "makes and reads the key that tokens are signed with"),
    ("access/remote.rs", "reads the CA file of an issuer"),
    ("access/watched.rs", "reads passwords and keys, again whenever they change"),
    ("cli/ca.rs", "prints the forward proxy's CA"),
    ("cli/client_config/asked.rs", "reads the CA that clients are to trust"),
    ("cli/client_config/install.rs", "writes the files of a client, at the operator's wish"),
    ("cli/htpasswd.rs", "writes the file of passwords, at the operator's wish"),
    ("cli/images/mod.rs", "reads the files that name images to fetch"),
    ("config/mod.rs", "reads the configuration file, before there is a store"),
    ("config/files.rs", "checks the files that the configuration names"),
    ("control/socket.rs", "makes and removes the control socket, which is no content"),
    ("events/endpoint.rs", "reads a secret header when it is needed, so that none stays in memory"),
    ("http/forward/ca.rs", "reads the forward proxy's CA"),
    ("http/socket.rs", "makes and removes the Unix sockets that are listened on"),
    ("http/tls.rs", "reads certificate and key, again whenever they change"),
    ("layout/directory.rs", "opens what is in a layout, and nothing outside"),
    ("upstream/client.rs", "reads the CA file of an upstream"),
    ("upstream/helper.rs", "looks for the programs that are asked for logins"),
    ("upstream/source.rs", "reads a password when it is needed, so that a rotated one is taken up"),
];

/// `http` gives answers their status codes, `upstream` reads those of remote registries. `control`
/// has a protocol of its own.
const STATUS_CODES: [&str; 3] = ["control", "http", "upstream"];

struct Source {
    /// Below `src/`.
    path: String,
    code: String,
}

impl Source {
    /// The first component: `http` for `http/tls.rs`, `clock` for `clock.rs`.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// How many `super::` lead from here to the crate's root.
    fn depth(&self) -> usize {
        self.path.split('/').count() - usize::from(self.path.ends_with("/mod.rs"))
    }

    /// The top-level modules that the code names.
    fn imports(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let own = if self.path == "main.rs" { "forebay::" } else { "crate::" };
        for root in [own, &"super::".repeat(self.depth())] {
            for (at, _) in self.code.match_indices(root) {
                found.extend(first_names(&self.code[at + root.len()..]));
            }
        }
        found.remove(self.module());
        found
    }
}

/// `a` of `a::b`, or every first name of `{a, b::{c, d}}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut names, mut open, mut start) = (Vec::new(), 1, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 || (open == 1 && c == ',') {
            names.push(name(group[start..at].trim_start()));
            start = at + 1;
        }
        if open == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_name().is_some_and(|name| name != "tests.rs")
            {
                sources.push(source(&root, path));
            }
        }
    }
    sources
}

fn source(root: &Path, path: PathBuf) -> Source {
    let text = std::fs::read_to_string(&path).unwrap();
    // Test modules within a file stand at its end.
    let tested =
        text.find("\n#[cfg(test)]\nmod tests {").or(text.find("\n#[cfg(test)]\npub(super) mod tests {"));
    let code =
        text[..tested.unwrap_or(text.len())].lines().map(without_remark).collect::<Vec<_>>().join("\n");
    Source { path: path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), code }
}

fn without_remark(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) }
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn imports_point_downward() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "lib.rs" {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(module, _)| *module == source.module());
        let Some((module, allowed)) = allowed else {
            wrong.push(format!("src/{}: `{}` is not in the table", source.path, source.module()));
            continue;
        };
        for import in source.imports().iter().filter(|import| !allowed.contains(&import.as_str())) {
            wrong.push(format!("src/{}: `{module}` may not import `{import}`", source.path));
        }
    }
    assert_none(wrong);
}

/// The table itself: no module imports one that stands above it, and the named neighbours stay apart.
#[test]
fn the_table_points_downward() {
    let place = |module: &str| ALLOWED.iter().position(|(name, _)| *name == module).unwrap();
    for (module, allowed) in ALLOWED {
        for import in allowed {
            assert!(place(module) < place(import), "{module} -> {import} points upward");
        }
    }
    let may = |module: &str, import: &str| ALLOWED[place(module)].1.contains(&import);
    for (one, other) in [("store", "upstream"), ("mirror", "registry")] {
        assert!(!may(one, other) && !may(other, one), "{one} and {other} are to meet elsewhere");
    }
    let of_disk: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).filter(|name| may(name, "disk")).collect();
    assert_eq!(of_disk, ["app", "store"]);
}

#[test]
fn files_are_touched_by_disk_alone() {
    let touches = |code: &str| ["std::fs", "tokio::fs", "rustix::fs"].iter().any(|path| code.contains(path));
    let sources: Vec<Source> = sources().into_iter().filter(|source| touches(&source.code)).collect();
    let listed = |path: &str| FILES.iter().any(|(listed, _)| *listed == path);
    let outside = sources.iter().filter(|source| source.module() != "disk" && !listed(&source.path));
    assert_none(
        outside.map(|source| format!("src/{}: files are the business of `disk`", source.path)).collect(),
    );
    for (path, reason) in FILES {
        assert!(sources.iter().any(|source| source.path == *path), "{path} ({reason}) is listed for nothing");
    }
}

#[test]
fn status_codes_stay_with_http() {
    let outside = sources()
        .into_iter()
        .filter(|source| source.code.contains("StatusCode") && !STATUS_CODES.contains(&source.module()));
    assert_none(
        outside.map(|source| format!("src/{}: status codes belong into `http`", source.path)).collect(),
    );
}

#[test]
fn main_only_starts() {
    let lines = include_str!("../src/main.rs").lines().count();
    assert!(lines < 80, "src/main.rs has {lines} lines");
}

#[test]
fn imports_are_read_in_every_form() {
    let source = |path: &str, code: &str| Source { path: path.into(), code: code.into() };
    let imports = |path, code| source(path, code).imports().into_iter().collect::<Vec<_>>();
    assert_eq!(imports("a/b.rs", "use crate::{x, y::{self, z}, q as r};"), ["q", "x", "y"]);
    assert_eq!(imports("a/b.rs", "pub(crate) use crate::x::Y; fn f() { crate::w::g() }"), ["w", "x"]);
    assert_eq!(imports("a/b.rs", "use super::super::x; use super::y;"), ["x"]);
    assert_eq!(imports("a/mod.rs", "use super::x; use self::y;"), ["x"]);
    assert_eq!(imports("a.rs", "use super::x::Y; use crate::a::b;"), ["x"]);
    assert_eq!(imports("main.rs", "use forebay::cli::{self, Command};"), ["cli"]);
    assert_eq!(without_remark("    /// [`crate::x`]"), "");
    assert_eq!(without_remark("let url = \"https://x\"; // crate::y"), "let url = \"https://x\";");
}
