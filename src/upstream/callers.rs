//! The logins of callers who pull with their own. In memory alone, so many of them, and forgotten when
//! nobody has come with them for a while.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::credential::Fingerprint;
use super::{Cause, Error, Identity, Login, PrivatePolicy, Upstream};
use crate::oci::{Name, Reference};
use crate::tasks::{Flights, Tasks};

/// Logins remembered for one upstream, and as many wrong ones.
pub const CALLERS_MAX: u64 = 10_000;
/// A login that nobody came with for so long is forgotten, unless its proofs count for longer.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a wrong password is known to be wrong: repeated upstream, it would lock the account.
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
    wrong: Cache<Fingerprint, ()>,
    checks: Flights<Fingerprint, Result<CallerId, Cause>>,
}

impl Callers {
    pub fn new(private: PrivatePolicy, tasks: Tasks) -> Self {
        let idle = match private {
            PrivatePolicy::PerCaller(proofs) => IDLE.max(proofs.hold.saturating_add(proofs.stale)),
            PrivatePolicy::Refuse | PrivatePolicy::Shared => IDLE,
        };
        Self {
            secret: rand::random(),
            logins: Cache::builder().max_capacity(CALLERS_MAX).time_to_idle(idle).build(),
            right: Cache::builder().max_capacity(CALLERS_MAX).time_to_idle(idle).build(),
            wrong: Cache::builder()
                .max_capacity(CALLERS_MAX)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(WRONG_FOR)
                .build(),
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

    /// What is known of a login without asking. An error: that it is wrong.
    fn remembered(&self, key: &Fingerprint) -> Option<Result<CallerId, Cause>> {
        if let Some(id) = self.right.get(key).filter(|id| self.logins.get(id).is_some()) {
            return Some(Ok(id));
        }
        self.wrong.get(key).map(|()| Err(wrong()))
    }

    fn enter(&self, login: Login) -> CallerId {
        let id = CallerId(rand::random());
        self.logins.insert(id, Arc::new(login));
        id
    }
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
        let known = self.callers.remembered(&self.callers.key(login))?;
        Some(known.map_err(|cause| self.error("log in for", name, "", cause)))
    }

    /// Who comes with this login, after the upstream has taken it. `Denied`: it does not. Whether the
    /// caller may pull the repository is another question. Also tells whether this call had it asked,
    /// and not one that came before with the same login.
    pub async fn log_in(self: &Arc<Self>, name: &Name, login: Login) -> (Result<CallerId, Error>, bool) {
        let key = self.callers.key(&login);
        let (upstream, of) = (self.clone(), name.clone());
        let mut is_first = false;
        let checked = self.callers.checks.join(key, || {
            is_first = true;
            async move { upstream.check_login(key, &of, login).await }
        });
        let ended = || Err(Cause::Trouble("the request was ended".to_owned()));
        let checked = checked.await.unwrap_or_else(ended);
        (checked.map_err(|cause| self.error("log in for", name, "", cause)), is_first)
    }

    async fn check_login(&self, key: Fingerprint, name: &Name, login: Login) -> Result<CallerId, Cause> {
        // Whoever was first may have landed meanwhile.
        if let Some(known) = self.callers.remembered(&key) {
            return known;
        }
        let tag = TRIED.parse().map_err(|_| Cause::Trouble(format!("`{TRIED}` is no tag")))?;
        let id = self.callers.enter(login);
        let identity = Identity::Caller(id);
        let answer = self.manifest_head(identity, name, &Reference::Tag(tag)).await;
        match answer.map_err(|error| error.cause) {
            Ok(_) | Err(Cause::NotFound) => {}
            Err(Cause::Denied(_)) if !self.refuses(id) => {}
            Err(cause) => {
                self.callers.forget(id);
                if !matches!(cause, Cause::Denied(_)) {
                    return Err(cause);
                }
                self.callers.wrong.insert(key, ());
                return Err(wrong());
            }
        }
        self.callers.right.insert(key, id);
        Ok(id)
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
        callers.right.insert(one, id);
        assert!(matches!(callers.remembered(&one), Some(Ok(known)) if known == id));
        assert!(callers.remembered(&other).is_none());
        callers.forget(id);
        assert!(callers.remembered(&one).is_none() && callers.login(id).is_none());
        callers.wrong.insert(other, ());
        assert!(matches!(callers.remembered(&other), Some(Err(Cause::Denied(_)))));
    }

    #[test]
    fn so_many_are_remembered() {
        let callers = Callers::new(PrivatePolicy::Refuse, Tasks::default());
        for n in 0..CALLERS_MAX + 500 {
            callers.enter(Login::new(n.to_string(), "x"));
        }
        callers.logins.run_pending_tasks();
        assert!(callers.logins.entry_count() <= CALLERS_MAX);
    }
}
