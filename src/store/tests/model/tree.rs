//! What the index says against what the tree says, and what is left in the tree.

use super::act::INDEX;
use super::*;

/// What is known of the store, by names.
#[derive(Debug, Default, PartialEq)]
struct Picture {
    /// Bytes where it is held, and links.
    data: BTreeMap<Digest, (Option<u64>, u32)>,
    repositories: BTreeMap<String, Part>,
}

#[derive(Debug, Default, PartialEq)]
struct Part {
    owner: Option<Owner>,
    layers: BTreeMap<Digest, Digest>,
    /// Where each leads, and what it names that is known here.
    manifests: BTreeMap<Digest, (Digest, BTreeSet<Digest>)>,
    tags: BTreeMap<Tag, Digest>,
}

/// All digests that can occur.
fn known() -> Vec<Digest> {
    let bytes = (0..BLOBS.len()).map(content).chain((0..=INDEX).map(manifest));
    bytes.flat_map(|bytes| [named(&bytes, false), named(&bytes, true)]).collect()
}

fn picture(store: &Store) -> Picture {
    let known = known();
    store.index.facts(|facts| {
        let names: BTreeMap<_, _> = known.iter().map(|digest| (facts.key(digest), *digest)).collect();
        let named = |key| names.get(key).copied();
        let data = facts.data().map(|(digest, size, links)| (digest, (size, links))).collect();
        let mut repositories = BTreeMap::new();
        for (name, held) in facts.repositories() {
            let lead = |data| facts.digest(data).expect("what a link leads to is known");
            let layers = held.layers.iter();
            let layers: BTreeMap<_, _> =
                layers.map(|(key, layer)| (named(key).unwrap(), lead(layer.data))).collect();
            let manifests = held.manifests.iter().map(|(key, manifest)| {
                let names = manifest.names.iter().map(|key| named(key).unwrap()).collect();
                (named(key).unwrap(), (lead(manifest.data), names))
            });
            let manifests: BTreeMap<_, _> = manifests.collect();
            let tags: BTreeMap<_, _> =
                held.tags.iter().map(|(tag, key)| (tag.clone(), named(key).unwrap())).collect();
            // Whose a repository is stays known where it is empty; a survey cannot find it.
            if !(layers.is_empty() && manifests.is_empty() && tags.is_empty()) {
                let owner = held.owner.clone();
                repositories.insert(name.to_string(), Part { owner, layers, manifests, tags });
            }
        }
        Picture { data, repositories }
    })
}

/// Compares what a process knows with what a new one finds. Not `exact`: after failures it may take more
/// for held or linked than is, never less.
pub fn compare(live: &Store, fresh: &Store, exact: bool, when: &str) {
    live.note_wanted();
    let (knows, finds) = (picture(live), picture(fresh));
    let bytes: u64 = finds.data.values().filter_map(|(size, _)| *size).sum();
    if exact {
        assert_eq!(knows, finds, "{when}: what is known, and what is found");
        assert_eq!((live.used(), fresh.used()), (bytes, bytes), "{when}: bytes that are used");
        return;
    }
    assert!(live.used() >= bytes, "{when}: {} bytes are used, not {}", bytes, live.used());
    for (digest, (size, links)) in &finds.data {
        let (known, linked) = knows.data.get(digest).copied().unwrap_or_default();
        assert!(
            size.is_none() || known == *size,
            "{when}: {size:?} bytes of {digest} are held, not {known:?}"
        );
        assert!(linked >= *links, "{when}: {links} links lead to {digest}, not {linked}");
    }
    for (name, found) in &finds.repositories {
        let known = knows.repositories.get(name);
        let known = known.unwrap_or_else(|| panic!("{when}: {name} is there, and not known"));
        // Where that could not be read, nothing of it is evicted.
        let owner = known.owner.as_ref();
        assert!(owner.is_none() || known.owner == found.owner, "{when}: {name} is taken for {owner:?}'s");
        let lacks = |part: &str, all_known: bool| {
            assert!(all_known, "{when}: {known:?} lacks some {part} of {found:?}")
        };
        lacks("layer", found.layers.iter().all(|(name, data)| known.layers.get(name) == Some(data)));
        // One that could not be read names nothing that is known: its blobs may go by themselves.
        let is_known = |name, (data, names): &(Digest, BTreeSet<Digest>)| {
            let known: Option<&(Digest, BTreeSet<Digest>)> = known.manifests.get(name);
            known.is_some_and(|(lead, known)| lead == data && (known == names || known.is_empty()))
        };
        lacks("manifest", found.manifests.iter().all(|(name, what)| is_known(name, what)));
        lacks("tag", found.tags.iter().all(|(tag, digest)| known.tags.get(tag) == Some(digest)));
    }
}

/// What is linked and not held.
pub fn dangling(store: &Store) -> Vec<Digest> {
    let data = picture(store).data.into_iter();
    data.filter(|(_, (size, links))| size.is_none() && *links > 0).map(|(digest, _)| digest).collect()
}

pub fn assert_no_orphans(store: &Store, when: &str) {
    let orphans = store.index.facts(|facts| facts.orphans().map(|(_, digest)| digest).collect::<Vec<_>>());
    assert_eq!(orphans, [], "{when}: nothing leads to these");
}

/// After collection: no data without a link, no proof without data, nothing unfinished.
pub fn assert_tidy(store: &Store, when: &str) {
    assert_no_orphans(store, when);
    for (file, is_dir) in walk(store, layout::PROOFS_DIR) {
        let digest = file.rsplit('/').next().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
        if let Some(digest) = digest.filter(|_| !is_dir) {
            let held = store.home.stat(&layout::data(&digest)).unwrap();
            assert!(held.is_some(), "{when}: the proof {file} is of nothing");
        }
    }
    assert_eq!(walk(store, layout::STAGING_DIR), [], "{when}: unfinished work is left");
    for of in 0..REPOSITORIES.len() {
        let uploads = layout::uploads(&grant(of).repository.stored_name());
        assert_eq!(walk(store, &uploads), [], "{when}: uploads are left");
    }
}

/// Directories of one digest or upload in which nothing is.
pub fn hollow(store: &Store) -> Vec<String> {
    let all = ["docker/registry/v2", layout::OWN_DIR].into_iter().flat_map(|dir| walk(store, dir));
    let is_hollow = |dir: &String| {
        let name = dir.rsplit('/').next().unwrap_or_default();
        name.len() >= 32 && store.home.list(dir).unwrap().is_empty()
    };
    all.filter(|(dir, is_dir)| *is_dir && is_hollow(dir)).map(|(dir, _)| dir).collect()
}

/// All that is in a directory, and whether each is one.
fn walk(store: &Store, root: &str) -> Vec<(String, bool)> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in store.home.list(&dir).unwrap() {
            let key = format!("{dir}/{}", entry.name.to_str().unwrap());
            if entry.is_dir {
                todo.push(key.clone());
            }
            found.push((key, entry.is_dir));
        }
    }
    found
}
