//! Names and passwords. bcrypt is slow by design, so a password that was right is remembered for a
//! time, by a keyed hash, and what is not known yet is checked by a few threads, a few at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Client;
use super::htpasswd::{self, Entries};
use super::limits::network_of;
use super::watched::Watched;
use crate::clock::Clock;
use crate::tasks::{Flights, Tasks, lock};

/// How long a right password is taken for right without bcrypt. A changed file ends it at once.
const RIGHT_FOR: Duration = Duration::from_secs(600);
/// A client's retries of a wrong one stay cheap.
const WRONG_FOR: Duration = Duration::from_secs(30);
const REMEMBERED: u64 = 10_000;
/// Checks that wait for a thread: of all clients, and of one.
const WAITING: usize = 256;
const WAITING_OF_CLIENT: u32 = 8;

/// Too many passwords are being checked already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What became of a name and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    pub right: bool,
    /// It was known already.
    pub cached: bool,
}

type Key = [u8; 32];

pub struct Passwords {
    file: Watched<Entries>,
    /// Of this process: what is remembered tells nobody else which passwords are right.
    secret: [u8; 32],
    right: Cache<Key, ()>,
    wrong: Cache<Key, ()>,
    checks: Flights<Key, bool>,
    threads: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    waiting: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Passwords {
    pub fn open(path: &Path, clock: Clock, tasks: Tasks) -> Result<Self, String> {
        let file = Watched::open("htpasswd", path, parse, clock)?;
        // Half of the cores go on with everything else.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            file,
            secret: rand::random(),
            right: remembering(RIGHT_FOR),
            wrong: remembering(WRONG_FOR),
            checks: Flights::new(tasks, "password"),
            threads: Arc::new(Semaphore::new((cores / 2).max(1))),
            queue: Arc::new(Semaphore::new(WAITING)),
            waiting: Arc::default(),
        })
    }

    /// Whether this is the user's password.
    pub async fn check(&self, client: Client, user: &str, password: &str) -> Result<Checked, Busy> {
        let entries = self.file.current().await;
        let hash = entries.hash(user);
        let key = self.key(&[user, password, hash]);
        if self.right.get(&key).is_some() {
            return Ok(Checked { right: true, cached: true });
        }
        if self.wrong.get(&key).is_some() {
            return Ok(Checked { right: false, cached: true });
        }
        // Held by who waits, also for another's check, and by the check itself, whoever leaves.
        let place = Arc::new(self.place(client)?);
        let held = place.clone();
        let (password, hash, threads) = (password.to_owned(), hash.to_owned(), self.threads.clone());
        let checked = self.checks.join(key, move || async move {
            let _held = held;
            // Fails only where the semaphore is closed, which it never is.
            let _thread = threads.acquire_owned().await;
            tokio::task::spawn_blocking(move || htpasswd::verify(&password, &hash)).await.unwrap_or(false)
        });
        // None: shutdown came first.
        let right = checked.await.ok_or(Busy)?;
        if right { &self.right } else { &self.wrong }.insert(key, ());
        Ok(Checked { right, cached: false })
    }

    /// What changes with the user's password, and tells nothing of it. None: there is no such user.
    pub async fn fingerprint(&self, user: &str) -> Option<String> {
        let entries = self.file.current().await;
        let hash = entries.get(user)?;
        Some(hex::encode(&Sha256::digest(hash)[..12]))
    }

    fn key(&self, parts: &[&str]) -> Key {
        let mut hasher = Sha256::new_with_prefix(self.secret);
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    /// A place in the queue, which one client alone cannot fill.
    fn place(&self, client: Client) -> Result<Place, Busy> {
        let client = network_of(client.address);
        {
            let mut waiting = lock(&self.waiting);
            let count = waiting.entry(client).or_insert(0);
            if *count >= WAITING_OF_CLIENT {
                return Err(Busy);
            }
            *count += 1;
        }
        let mut place = Place { client, waiting: self.waiting.clone(), _queue: None };
        place._queue = Some(self.queue.clone().try_acquire_owned().map_err(|_| Busy)?);
        Ok(place)
    }
}

fn parse(bytes: &[u8]) -> Result<Entries, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    Entries::parse(text).map_err(|error| error.to_string())
}

fn remembering(time: Duration) -> Cache<Key, ()> {
    let lru = EvictionPolicy::lru();
    Cache::builder().max_capacity(REMEMBERED).eviction_policy(lru).time_to_live(time).build()
}

/// One that waits, counted until it goes.
struct Place {
    client: IpAddr,
    waiting: Arc<Mutex<HashMap<IpAddr, u32>>>,
    _queue: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        if let Some(count) = waiting.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: Result<Checked, Busy> = Ok(Checked { right: true, cached: false });
    const RIGHT_AGAIN: Result<Checked, Busy> = Ok(Checked { right: true, cached: true });
    const WRONG: Result<Checked, Busy> = Ok(Checked { right: false, cached: false });

    struct Case {
        passwords: Passwords,
        clock: Clock,
        path: std::path::PathBuf,
        _folder: tempfile::TempDir,
    }

    fn case() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        write(&path, "right");
        let clock = Clock::default();
        let passwords = Passwords::open(&path, clock.clone(), Tasks::default()).unwrap();
        Case { passwords, clock, path, _folder: folder }
    }

    fn write(path: &Path, password: &str) {
        std::fs::write(path, format!("alice:{}\n", htpasswd::hash(password, 4).unwrap())).unwrap();
    }

    fn client(last: u8) -> Client {
        Client { address: [192, 0, 2, last].into() }
    }

    impl Case {
        async fn check(&self, user: &str, password: &str) -> Result<Checked, Busy> {
            self.passwords.check(client(1), user, password).await
        }
    }

    #[tokio::test]
    async fn a_right_password_is_checked_once() {
        let case = case();
        assert_eq!(case.check("alice", "right").await, RIGHT);
        assert_eq!(case.check("alice", "right").await, RIGHT_AGAIN);
        assert_eq!(case.check("alice", "wrong").await, WRONG);
        assert_eq!(case.check("alice", "wrong").await, Ok(Checked { right: false, cached: true }));
        assert_eq!(case.check("alice", "").await, WRONG);
        assert_eq!(case.check("bob", "right").await, WRONG);
        assert_eq!(case.check("ALICE", "right").await, WRONG);
        assert_eq!(case.check("alicer", "ight").await, WRONG);
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once_and_a_broken_one_does_not() {
        let case = case();
        let before = case.passwords.fingerprint("alice").await;
        assert_eq!(case.check("alice", "right").await, RIGHT);
        write(&case.path, "new");
        case.clock.advance(Duration::from_secs(1));
        assert_eq!(case.check("alice", "right").await, WRONG, "though it is remembered");
        assert_eq!(case.check("alice", "new").await, RIGHT);
        assert_ne!(case.passwords.fingerprint("alice").await, before);
        std::fs::write(&case.path, "alice:$apr1$x$y\n").unwrap();
        case.clock.advance(Duration::from_secs(1));
        assert_eq!(case.check("alice", "new").await, RIGHT_AGAIN);
        std::fs::write(&case.path, "").unwrap();
        case.clock.advance(Duration::from_secs(1));
        assert_eq!(case.check("alice", "new").await, WRONG);
        assert_eq!(case.passwords.fingerprint("alice").await, None);
    }

    #[tokio::test]
    async fn one_client_cannot_fill_the_queue_and_all_together_find_its_end() {
        let case = case();
        // Nobody gets a thread.
        let threads = case.passwords.threads.clone();
        let _held = threads.acquire_many(threads.available_permits() as u32).await.unwrap();
        let passwords = Arc::new(case.passwords);
        let ask = |last: u8, n: usize| {
            let passwords = passwords.clone();
            tokio::spawn(async move { passwords.check(client(last), "alice", &format!("wrong {n}")).await })
        };
        let mut waiting: Vec<_> = (0..WAITING_OF_CLIENT as usize).map(|n| ask(1, n)).collect();
        while lock(&passwords.waiting).get(&client(1).address) != Some(&WAITING_OF_CLIENT) {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(1, 99).await.unwrap(), Err(Busy), "the client has its share");
        let places = WAITING - WAITING_OF_CLIENT as usize;
        waiting.extend((0..places).map(|n| ask(2 + (n / 8) as u8, n)));
        while passwords.queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(200, 1).await.unwrap(), Err(Busy), "the queue is full");
        drop(_held);
        for one in waiting {
            assert_eq!(one.await.unwrap().map(|checked| checked.right), Ok(false));
        }
        assert_eq!(passwords.queue.available_permits(), WAITING);
        assert!(lock(&passwords.waiting).is_empty());
    }

    #[tokio::test]
    async fn those_who_ask_the_same_at_once_share_one_check() {
        let case = case();
        let all = futures_util::future::join_all((0..50).map(|n| {
            let of = client(n);
            case.passwords.check(of, "alice", "right")
        }));
        assert!(all.await.iter().all(|checked| checked.is_ok_and(|checked| checked.right)));
    }
}
