//! The logins of callers who pull with their own. In memory alone, so many of them, and forgotten when
//! nobody has come with them for a while.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::{Cache, CacheBuilder};

use super::credential::Fingerprint;
use super::{Cause, Error, Identity, Login, PrivatePolicy, Upstream};
use crate::oci::{Name, Reference};
use crate::tasks::{Flights, Tasks};

/// Logins remembered for one upstream, and as many wrong ones.
pub const CALLERS_MAX: u64 = 10_000;
/// A login that nobody came with for so long is forgotten, unless its proofs count for longer.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a wrong password is known to be wrong: repeated upstream, it would lock the account. So may
/// one of which the upstream said nothing.
const WRONG_FOR: Duration = Duration::from_secs(300);
/// What is asked for to try a login. That a repository has no such tag tells as much.
const TRIED: &str = "latest";

/// Somebody with a login of the upstream. Random: a process that has another memory has other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallerId(u64);

impl CallerId {
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub fn number(self) -> u64 {
        self.0
    }
}

pub struct Callers {
    /// Of this process: what is remembered tells nobody which passwords are right.
    secret: [u8; 32],
    logins: Cache<CallerId, Arc<Login>>,
    /// Those that the upstream took.
    right: Cache<Fingerprint, CallerId>,
    /// Those of which it said nothing when asked for this repository: anybody may have it, or the login
    /// may not, or is no good.
    untold: Cache<(Fingerprint, Name), CallerId>,
    wrong: Cache<Fingerprint, ()>,
    checks: Flights<Fingerprint, Checked>,
}

/// What came of a login.
#[derive(Clone)]
struct Checked {
    known: Result<CallerId, Cause>,
    /// The upstream was asked, and did not take it.
    is_guess: bool,
}

impl Callers {
    pub fn new(private: PrivatePolicy, tasks: Tasks) -> Self {
        let idle = match private {
            PrivatePolicy::PerCaller(proofs) => IDLE.max(proofs.hold.saturating_add(proofs.stale)),
            PrivatePolicy::Refuse | PrivatePolicy::Shared => IDLE,
        };
        Self {
            secret: rand::random(),
            logins: latest().time_to_idle(idle).build(),
            right: latest().time_to_idle(idle).build(),
            untold: latest().time_to_live(WRONG_FOR).build(),
            wrong: latest().time_to_live(WRONG_FOR).build(),
            checks: Flights::new(tasks, "check login"),
        }
    }

    /// The login; None where it is forgotten.
    pub fn login(&self, id: CallerId) -> Option<Arc<Login>> {
        self.logins.get(&id)
    }

    /// Ends what a caller may do: its login is no good any more.
    pub fn forget(&self, id: CallerId) {
        self.logins.invalidate(&id);
    }

    fn key(&self, login: &Login) -> Fingerprint {
        login.fingerprint(&self.secret)
    }

    /// What is known of a login for a repository without asking. An error: that it is wrong.
    fn remembered(&self, key: &Fingerprint, name: &Name) -> Option<Result<CallerId, Cause>> {
        if self.wrong.contains_key(key) {
            return Some(Err(wrong()));
        }
        let at_hand = |id: &CallerId| self.logins.get(id).is_some();
        let untold = || self.untold.get(&(*key, name.clone())).filter(at_hand);
        self.right.get(key).filter(at_hand).or_else(untold).map(Ok)
    }

    fn enter(&self, login: Login) -> CallerId {
        let id = CallerId(rand::random());
        self.logins.insert(id, Arc::new(login));
        id
    }
}

impl Checked {
    /// Of one that the upstream was not asked about, or could not be.
    fn unasked(known: Result<CallerId, Cause>) -> Self {
        Self { known, is_guess: false }
    }
}

/// A cache that forgets first what was not used for longest.
fn latest<K, V>() -> CacheBuilder<K, V, Cache<K, V>>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(CALLERS_MAX).eviction_policy(EvictionPolicy::lru())
}

fn wrong() -> Cause {
    Cause::Denied(": it refuses the user name and password".to_owned())
}

impl Upstream {
    pub fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Who comes with this login, where that is known already. An error: nobody, it is wrong.
    pub fn remembered(&self, name: &Name, login: &Login) -> Option<Result<CallerId, Error>> {
        let known = self.callers.remembered(&self.callers.key(login), name)?;
        Some(known.map_err(|cause| self.error("log in for", name, "", cause)))
    }

    /// Who comes with this login, unless the upstream says that it is wrong: `Denied`. Whether the caller
    /// may pull the repository is another question. Also tells whether it may be a guess: this call, and
    /// not one that came before with the same login, had the upstream asked, which did not take it.
    pub async fn log_in(self: &Arc<Self>, name: &Name, login: Login) -> (Result<CallerId, Error>, bool) {
        let key = self.callers.key(&login);
        let (upstream, of) = (self.clone(), name.clone());
        let mut is_first = false;
        let checked = self.callers.checks.join(key, || {
            is_first = true;
            async move { upstream.check_login(key, &of, login).await }
        });
        let ended = || Checked::unasked(Err(Cause::Trouble("the request was ended".to_owned())));
        let Checked { known, is_guess } = checked.await.unwrap_or_else(ended);
        (known.map_err(|cause| self.error("log in for", name, "", cause)), is_first && is_guess)
    }

    async fn check_login(&self, key: Fingerprint, name: &Name, login: Login) -> Checked {
        // Whoever was first may have landed meanwhile.
        if let Some(known) = self.callers.remembered(&key, name) {
            return Checked::unasked(known);
        }
        let Ok(tag) = TRIED.parse() else {
            return Checked::unasked(Err(Cause::Trouble(format!("`{TRIED}` is no tag"))));
        };
        let id = self.callers.enter(login);
        let identity = Identity::Caller(id);
        let answer = self.manifest_shown(identity, name, &Reference::Tag(tag)).await;
        match answer.map_err(|error| error.cause) {
            Ok(_) | Err(Cause::NotFound) => {}
            Err(Cause::Denied(_)) if !self.refuses(id) => {}
            Err(Cause::Denied(_)) => {
                self.callers.forget(id);
                self.callers.wrong.insert(key, ());
                return Checked { known: Err(wrong()), is_guess: true };
            }
            Err(cause) => {
                self.callers.forget(id);
                return Checked::unasked(Err(cause));
            }
        }
        let taken = self.took(id);
        if taken {
            self.callers.right.insert(key, id);
        } else {
            self.callers.untold.insert((key, name.clone()), id);
        }
        Checked { known: Ok(id), is_guess: !taken }
    }

    /// Whether the caller's login was taken for something by the upstream.
    fn took(&self, id: CallerId) -> bool {
        self.endpoints.iter().any(|one| !one.is_mirror() && one.requests.took_login(Identity::Caller(id)))
    }

    /// Whether the upstream refused the caller's login itself a moment ago, whatever it was for.
    pub fn refuses(&self, id: CallerId) -> bool {
        self.endpoints.iter().any(|one| !one.is_mirror() && one.requests.refuses_login(Identity::Caller(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_told_apart_and_forgotten() {
        let callers = Callers::new(PrivatePolicy::Refuse, Tasks::default());
        let login = |user: &str, password: &str| Login::new(user.to_owned(), password);
        let (one, other) = (callers.key(&login("alice", "x")), callers.key(&login("alicex", "")));
        assert_ne!(one, other);
        assert_eq!(one, callers.key(&login("alice", "x")));
        let elsewhere = Callers::new(PrivatePolicy::Refuse, Tasks::default());
        assert_ne!(one, elsewhere.key(&login("alice", "x")), "each process has its own keys");
        let id = callers.enter(login("alice", "x"));
        let (here, there) = ("a/b".parse().unwrap(), "c/d".parse().unwrap());
        callers.right.insert(one, id);
        assert!(matches!(callers.remembered(&one, &here), Some(Ok(known)) if known == id));
        assert!(callers.remembered(&other, &here).is_none());
        callers.untold.insert((other, here.clone()), id);
        assert!(matches!(callers.remembered(&other, &here), Some(Ok(known)) if known == id));
        assert!(callers.remembered(&other, &there).is_none());
        callers.forget(id);
        assert!(callers.remembered(&one, &here).is_none() && callers.login(id).is_none());
        assert!(callers.remembered(&other, &here).is_none());
        callers.wrong.insert(other, ());
        assert!(matches!(callers.remembered(&other, &here), Some(Err(Cause::Denied(_)))));
    }

    #[test]
    fn so_many_are_remembered() {
        let callers = Callers::new(PrivatePolicy::Refuse, Tasks::default());
        for n in 0..CALLERS_MAX + 500 {
            let id = callers.enter(Login::new(n.to_string(), "x"));
            callers.logins.run_pending_tasks();
            assert!(callers.login(id).is_some(), "whoever comes last is known");
        }
        assert!(callers.logins.entry_count() <= CALLERS_MAX);
    }
}
