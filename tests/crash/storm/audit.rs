//! What is on disk once all is quiet: nothing that nobody needs, and as much as the index says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::support::hosting::try_collect;
use super::super::support::mirror::Mirror;
use super::super::support::process::{PATIENCE, Wait};
use super::super::support::registry::{Registry, RegistryOptions};
use super::super::support::repository::Repository;
use super::super::support::{sha256, unfinished};
use super::pushes::REPOSITORIES;
use super::{LEASE, Storm};

/// What stands in the tree, read apart from the code under test.
struct Tree {
    /// Data by digest, and its size.
    data: BTreeMap<String, u64>,
    /// Links of repositories, and what they lead to.
    links: BTreeMap<PathBuf, String>,
    proofs: BTreeMap<PathBuf, String>,
    uploads: Vec<PathBuf>,
    /// Directories in which what they are for is missing.
    husks: Vec<PathBuf>,
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>, empty: &mut Vec<PathBuf>) {
    let entries: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().map(Result::unwrap).collect();
    if entries.is_empty() {
        empty.push(directory.to_owned());
    }
    for entry in entries {
        match entry.file_type().unwrap().is_dir() {
            true => files_below(&entry.path(), found, empty),
            false => found.push(entry.path()),
        }
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

impl Tree {
    fn read(root: &Path) -> Self {
        let (mut data, mut links, mut proofs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut files, mut empty, mut uploads) = (Vec::new(), Vec::new(), Vec::new());
        let registry = root.join("docker/registry/v2");
        files_below(&registry.join("blobs"), &mut files, &mut empty);
        for file in files.drain(..) {
            let (bytes, hex) = (std::fs::read(&file).unwrap(), name(file.parent().unwrap()));
            assert_eq!(name(&file), "data", "{}", file.display());
            assert_eq!(sha256(&bytes), format!("sha256:{hex}"), "{} holds other bytes", file.display());
            data.insert(sha256(&bytes), bytes.len() as u64);
        }
        // With a slash behind them, those that lead somewhere.
        let mut tags = BTreeSet::new();
        files_below(&registry.join("repositories"), &mut files, &mut empty);
        for file in files.drain(..) {
            let text = file.to_str().unwrap();
            if let Some((tag, _)) = text.split_once("/current/link") {
                tags.insert(format!("{tag}/"));
            } else if let Some((tag, _)) = text.split_once("/index/") {
                tags.insert(tag.to_owned());
            } else if text.contains("/_uploads/") {
                uploads.push(file);
            } else if text.contains("/_layers/") || text.contains("/_manifests/revisions/") {
                let to = std::fs::read_to_string(&file).unwrap();
                links.insert(file, to);
            } else {
                panic!("{text} is nothing that is known");
            }
        }
        files_below(&root.join("forebay/proofs"), &mut files, &mut empty);
        for file in files.drain(..) {
            let digest = format!("sha256:{}", name(&file));
            proofs.insert(file, digest);
        }
        let is_hex = |path: &PathBuf| name(path).len() == 64;
        let is_in = |path: &PathBuf, part| path.to_str().unwrap().contains(part);
        uploads.extend(empty.extract_if(.., |path| is_in(path, "/_uploads/")));
        let is_husk = |path: &PathBuf| is_hex(path) || is_in(path, "/_manifests/tags/");
        let mut husks: Vec<_> = empty.into_iter().filter(is_husk).collect();
        let is_husk = |tag: &&String| !tag.ends_with('/') && !tags.contains(&format!("{tag}/"));
        husks.extend(tags.iter().filter(is_husk).map(PathBuf::from));
        Self { data, links, proofs, uploads, husks }
    }

    /// Everything that should not be there, in words.
    fn orphans(&self) -> Vec<String> {
        let linked: BTreeSet<&String> = self.links.values().collect();
        let data = self.data.keys().filter(|digest| !linked.contains(digest));
        let data = data.map(|digest| format!("data without a link: {digest}"));
        let no_data = |(_, to): &(&PathBuf, &String)| !self.data.contains_key(*to);
        let links =
            self.links.iter().filter(no_data).map(|(link, _)| format!("link to nothing: {}", link.display()));
        let proofs = self
            .proofs
            .iter()
            .filter(no_data)
            .map(|(proof, _)| format!("proof of nothing: {}", proof.display()));
        let uploads = self.uploads.iter().map(|upload| format!("old upload: {}", upload.display()));
        let husks = self.husks.iter().map(|husk| format!("husk: {}", husk.display()));
        data.chain(links).chain(proofs).chain(uploads).chain(husks).collect()
    }

    fn totals(&self) -> (f64, f64) {
        (self.data.values().sum::<u64>() as f64, self.data.len() as f64)
    }
}

async fn counted(mirror: &Mirror) -> (f64, f64) {
    (mirror.metric("forebay_store_bytes").await, mirror.metric("forebay_store_entries").await)
}

fn is_uploading(data: &Path) -> bool {
    let repositories = data.join("docker/registry/v2/repositories");
    REPOSITORIES.iter().any(|name| {
        let uploads = std::fs::read_dir(repositories.join(name).join("_uploads"));
        uploads.is_ok_and(|uploads| uploads.count() > 0)
    })
}

/// All is quiet: lets what nobody needs go, and looks at what is left.
pub async fn audit(mirror: &mut Mirror) {
    let data = mirror.data();
    let wait = Wait::for_("the end of all fills and uploads");
    while mirror.metric("forebay_fills_in_flight").await > 0.0 || is_uploading(&data) {
        wait.a_little().await;
    }
    let wait = Wait::for_("a pass that ends within a lease");
    loop {
        // It may take itself for too slow, where the machine is busy.
        tokio::time::sleep(LEASE + Duration::from_millis(100)).await;
        if try_collect(mirror).await.is_ok() {
            break;
        }
        wait.a_little().await;
    }
    let tree = Tree::read(&data);
    assert_eq!(tree.orphans(), Vec::<String>::new());
    assert_eq!(unfinished(&data), Vec::<PathBuf>::new(), "left in the staging");
    assert_eq!(counted(mirror).await, tree.totals(), "counted as it went along");
    assert!(mirror.terminate(PATIENCE).expect("it ends by itself").success());
    let tree = Tree::read(&data);
    assert_eq!(tree.orphans(), Vec::<String>::new());
    mirror.restart().await;
    let wait = Wait::for_("the index");
    while mirror.metric("forebay_store_index_whole").await < 1.0 {
        wait.a_little().await;
    }
    assert_eq!(counted(mirror).await, tree.totals(), "counted anew");
}

/// The sum of a field over all lines with this message.
pub fn logged(log: &str, message: &str, field: &str) -> u64 {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines = lines.filter(|line| line.to_string().contains(&format!("\"{message}\"")));
    lines.filter_map(|line| line.get(field).or_else(|| line["fields"].get(field))?.as_u64()).sum()
}

/// Everything that passes of collection took away.
pub fn collected(log: &str) -> u64 {
    let fields = ["tags", "manifests", "links", "blobs"];
    let messages = ["garbage was collected", "garbage was collected in part"];
    messages.iter().flat_map(|message| fields.map(|field| logged(log, message, field))).sum()
}

/// CNCF distribution opens the directory, and serves what is hosted.
pub async fn taken_over(mut storm: Storm, directory: &Path) {
    assert!(storm.mirror.terminate(PATIENCE).expect("it ends by itself").success());
    std::fs::create_dir_all(directory).unwrap();
    std::fs::rename(storm.mirror.data(), directory.join("storage")).unwrap();
    let registry = Registry::start(directory, RegistryOptions::default()).await;
    for pusher in &mut storm.pushers {
        pusher.check(&registry.url()).await;
    }
    for repository in REPOSITORIES {
        let listed = Repository::new(&registry.url(), repository);
        // In no order, as it lists them.
        let tags: BTreeSet<_> = storm.pushers.iter().flat_map(|pusher| pusher.tags(repository)).collect();
        assert_eq!(listed.tags(None).await.into_iter().collect::<BTreeSet<_>>(), tags, "{repository}");
    }
}
