//! What must not be taken for garbage, and what a pass that dies leaves behind.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::disk::simulated::{Simulated, Trouble};
use crate::oci::Tag;

/// An image of some blobs under a tag; gives its digest.
async fn push_image(store: &Arc<Store>, grant: &Grant, blobs: &[&str], tag: &str) -> Digest {
    let mut digests = Vec::new();
    for blob in blobs {
        digests.push(push(store, grant, blob.as_bytes()).await);
    }
    commit(store, grant, &new(&image(&digests, None), &digests, &[], &[tag]))
}

/// An operator moved a team's images to another disk, and left a symbolic link.
#[tokio::test]
async fn what_is_served_through_a_symbolic_link_stays() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, clock) = open(dir.path());
    let grant = hosted("corp.internal/a");
    push_image(&store, &grant, &["a"], "1").await;
    push_image(&store, &hosted("b"), &["b"], "1").await;
    let (team, moved) =
        (dir.path().join("docker/registry/v2/repositories/corp.internal"), elsewhere.path().join("team"));
    assert!(std::process::Command::new("mv").arg(&team).arg(&moved).status().unwrap().success());
    std::os::unix::fs::symlink(&moved, &team).unwrap();
    clock.advance(TERM * 2);
    let error = collect(&store, false).unwrap_err().to_string();
    assert!(error.contains("corp.internal") && error.contains("mount"), "{error}");
    assert_eq!(assert_whole(&store, &grant.repository), 1);
}

/// The part of the tree with the repositories is on a disk that is not mounted.
#[tokio::test]
async fn without_any_repository_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    clock.advance(TERM);
    assert_eq!(collect(&store, false).unwrap(), [], "nothing is held at all");
    let blob = push(&store, &hosted("a"), b"a").await;
    let repositories = dir.path().join(layout::REPOSITORIES_DIR);
    std::fs::rename(&repositories, dir.path().join("unmounted")).unwrap();
    std::fs::create_dir(&repositories).unwrap();
    clock.advance(TERM * 2);
    let error = collect(&store, false).unwrap_err().to_string();
    assert!(error.contains("repositories") && error.contains("mount"), "{error}");
    assert!(is_held(&store, &blob));
}

/// What it points to would count as without a tag, and what it signs as missing.
#[tokio::test]
async fn a_repository_with_a_tag_that_cannot_be_read_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (grant, tag) = (hosted("a"), "1".parse::<Tag>().unwrap());
    push_image(&store, &grant, &["a"], "1").await;
    push_image(&store, &grant, &["b"], "2").await;
    push(&store, &grant, b"spare").await;
    std::fs::write(dir.path().join(layout::tag_current(&grant.repository, &tag)), "").unwrap();
    clock.advance(TERM * 2);
    assert_eq!(collect(&store, false).unwrap(), []);
    assert!(!drop_tag(&store, &grant, &"2".parse().unwrap()));
    assert_eq!(assert_whole(&store, &grant.repository), 2);
}

fn drop_tag(store: &Store, grant: &Grant, tag: &Tag) -> bool {
    let mut report = |_| ();
    let mut pass = Pass::new(store, false, &mut report, &|| false);
    let mut marked = pass.mark(&grant.repository).unwrap();
    pass.drop_tags(&mut marked, std::slice::from_ref(tag)).unwrap();
    store.tag(&grant.repository, tag).unwrap().is_none()
}

#[tokio::test]
async fn a_tag_stays_while_what_it_points_to_is_leased() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (grant, tag) = (hosted("a"), "1".parse().unwrap());
    push_image(&store, &grant, &["a"], "1").await;
    assert!(!drop_tag(&store, &grant, &tag), "right after the start");
    clock.advance(TERM * 2);
    push_image(&store, &grant, &["a"], "1").await;
    assert!(!drop_tag(&store, &grant, &tag), "right after the push");
    clock.advance(TERM);
    assert!(drop_tag(&store, &grant, &tag));
}

/// Else who asks for enough that is not here keeps collection from ever removing anything.
#[tokio::test]
async fn what_is_not_here_takes_no_place_among_the_leases() {
    let dir = tempfile::tempdir().unwrap();
    let (store, clock) = open(dir.path());
    let (grant, absent) = (hosted("a"), Digest::sha256(b"absent"));
    let manifest = push_image(&store, &grant, &["a"], "1").await;
    clock.advance(TERM * 2);
    assert!(!store.is_proven(&grant, &absent).unwrap());
    assert_eq!(store.lease_blob(&grant.repository, &absent).unwrap(), None);
    assert!(!store.mount(&grant, &hosted("b").repository, &absent).unwrap());
    let missing = store.commit_manifest(&grant, &new("{}", &[absent], &[absent], &[])).unwrap();
    assert_eq!(missing, ManifestCommit::Missing(vec![absent; 2]));
    assert!(!store.leases.is_data_leased(&absent) && !store.leases.is_leased(&grant.repository, &absent));
    // A manifest that a pusher of an index asks for is leased all the same.
    store.lease_blob(&grant.repository, &manifest).unwrap();
    assert!(store.leases.is_leased(&grant.repository, &manifest));
}

fn start(disk: &Simulated) -> (Arc<Store>, Clock) {
    open_on(Path::new("/data"), disk.clone())
}

/// Two repositories that share a blob; in each something goes: a blob that was never needed, and a
/// manifest without a tag, with what it alone needs.
async fn fill(store: &Arc<Store>) {
    for name in ["a", "b"] {
        let grant = hosted(name);
        push_image(store, &grant, &["shared", name], "1").await;
        push_image(store, &grant, &["shared", &format!("old of {name}")], "2").await;
        assert!(store.remove_tag(&grant.repository, &"2".parse().unwrap()).unwrap());
        push(store, &grant, format!("spare of {name}").as_bytes()).await;
    }
}

/// The process dies at each call of a pass that changes something, by power loss or kill.
#[tokio::test]
async fn a_pass_that_dies_leaves_whole_images_and_the_next_one_goes_on() {
    let filled = Simulated::default();
    let (store, _) = start(&filled);
    fill(&store).await;
    drop(store);
    for at in 0.. {
        let disk = filled.after_power_loss(|| false);
        let (store, clock) = start(&disk);
        clock.advance(TERM);
        disk.make(Some(Trouble::Death(at)));
        let ended = collect(&store, false);
        let is_over = disk.calls().1 <= at;
        assert_eq!(ended.is_ok(), is_over, "call {at}: {ended:?}");
        let mut chance = StdRng::seed_from_u64(at);
        for (how, disk) in [
            ("power loss", disk.after_power_loss(|| false)),
            ("power loss that left something", disk.after_power_loss(|| chance.random())),
            ("kill", disk.after_kill()),
        ] {
            let (store, clock) = start(&disk);
            clock.advance(TERM);
            let tag = "1".parse().unwrap();
            for pass in ["before", "after"] {
                for name in ["a", "b"] {
                    let repository = hosted(name).repository;
                    assert!(store.tag(&repository, &tag).unwrap().is_some(), "call {at}, {how}");
                    let whole = assert_whole(&store, &repository);
                    assert!(
                        if pass == "before" { whole > 0 } else { whole == 1 },
                        "call {at}, {how}, {pass}"
                    );
                }
                collect(&store, false).unwrap_or_else(|error| panic!("call {at}, {how}: {error}"));
            }
            let held = ["shared", "a", "b"].map(|blob| Digest::sha256(blob.as_bytes()));
            assert!(held.iter().all(|blob| is_held(&store, blob)), "call {at}, {how}");
            for gone in ["old of a", "old of b", "spare of a", "spare of b"] {
                assert!(!is_held(&store, &Digest::sha256(gone.as_bytes())), "call {at}, {how}: {gone}");
            }
        }
        if is_over {
            assert!(at > 20, "{at} calls change something");
            return;
        }
    }
}
