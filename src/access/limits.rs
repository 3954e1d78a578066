//! Limits on clients: each IPv4 address or IPv6 /64 a client of its own, and who has logged in, from
//! wherever it comes.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::{Mutex, Semaphore};

use super::{Caller, Client, Identity, Options, Priority, Rate, Rates, Wild};
use crate::clock::{Clock, Pacer};
use crate::metrics::{Limit, Limited, Metrics};
use crate::mirror::{Purpose, Toll};

/// Clients remembered at most, for each limit. Who is forgotten starts afresh: one who commands so
/// many addresses is held by no limit per address.
const CLIENTS_MAX: u64 = 100_000;

/// How much of a name is remembered where a quota is shared out.
const NAME_MAX: usize = 128;

/// The limits on clients. Where none is configured, nothing is counted and nothing kept.
pub struct Limits {
    requests: Option<Limiter>,
    cold_misses: Option<Limiter>,
    priority: Priority,
}

impl Limits {
    pub fn new(options: Options, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let queue = Arc::new(Semaphore::new(options.queue.min(Semaphore::MAX_PERMITS)));
        let limiter = |limit, default, of: fn(Rates) -> Option<Rate>| {
            let networks = options.overrides.iter().map(|o| (Scope::Network(o.network), of(o.rates)));
            let identities =
                options.identities.iter().map(|o| (Scope::Identity(o.name.clone()), of(o.rates)));
            let rates = networks.chain(identities).collect();
            let (wait, queue) = (options.wait, queue.clone());
            Limiter::new(limit, default, rates, wait, queue, metrics.clone(), clock.clone())
        };
        Self {
            requests: limiter(Limit::Requests, options.requests, |rates| rates.requests),
            cold_misses: limiter(Limit::ColdMisses, options.cold_misses, |rates| rates.cold_misses),
            priority: options.priority,
        }
    }

    /// Waits for the client's turn, or refuses with the time after which to try again.
    pub async fn request(&self, of: impl Into<Payer>) -> Result<(), Duration> {
        match &self.requests {
            Some(limiter) => limiter.pass(&of.into()).await,
            None => Ok(()),
        }
    }

    /// What the mirror asks before it spends upstream quota for this client.
    pub fn toll(&self, of: impl Into<Visitor>) -> ClientToll<'_> {
        let Visitor { payer, address } = of.into();
        let has_priority = self.priority.includes(&payer, address);
        ClientToll { limits: self, payer, has_priority }
    }
}

/// On whose account a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// Whoever is at this IPv4 address, or in its IPv6 /64.
    Address(IpAddr),
    /// Somebody who has logged in.
    Identity(String),
}

impl From<Client> for Payer {
    fn from(client: Client) -> Self {
        Self::Address(client.address)
    }
}

impl From<&Caller> for Payer {
    fn from(caller: &Caller) -> Self {
        match &caller.identity {
            Identity::Anonymous => caller.client.into(),
            identity => Self::Identity(identity.to_string()),
        }
    }
}

/// Who asks for content, and from where.
#[derive(Clone, Debug)]
pub struct Visitor {
    payer: Payer,
    address: IpAddr,
}

impl From<Client> for Visitor {
    fn from(client: Client) -> Self {
        Self { payer: client.into(), address: client.address }
    }
}

impl From<&Caller> for Visitor {
    fn from(caller: &Caller) -> Self {
        Self { payer: caller.into(), address: caller.client.address }
    }
}

/// What one client may have of upstreams.
pub struct ClientToll<'a> {
    limits: &'a Limits,
    payer: Payer,
    has_priority: bool,
}

impl Toll for ClientToll<'_> {
    fn cold_miss(&self) -> Pin<Box<dyn Future<Output = Result<(), Duration>> + Send + '_>> {
        match &self.limits.cold_misses {
            Some(limiter) => Box::pin(limiter.pass(&self.payer)),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn purpose(&self) -> Purpose {
        if self.has_priority { Purpose::Priority } else { Purpose::Miss }
    }

    fn client(&self) -> Option<String> {
        Some(match &self.payer {
            Payer::Address(address) => match network_of(*address) {
                IpAddr::V6(network) => format!("{network}/64"),
                address => address.to_string(),
            },
            Payer::Identity(name) => name.chars().take(NAME_MAX).collect(),
        })
    }
}

/// One kind of limit: which rate holds for whom, and what each client has left of it.
struct Limiter {
    limit: Limit,
    /// Identities in their order, then networks, the longest prefix first; the default, which holds
    /// for everybody, last.
    rates: Vec<(Scope, Option<Rate>)>,
    /// By the rate's place in `rates` and who pays.
    buckets: Cache<(usize, Payer), Arc<Bucket>>,
    wait: Duration,
    queue: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// For whom a rate holds.
#[derive(Clone, Debug)]
enum Scope {
    Identity(Wild),
    Network(IpNet),
    Everybody,
}

impl Scope {
    /// Identities first, then the longest prefix.
    fn order(&self) -> (u8, std::cmp::Reverse<u8>) {
        match self {
            Self::Identity(_) => (0, std::cmp::Reverse(0)),
            Self::Network(network) => (1, std::cmp::Reverse(network.prefix_len())),
            Self::Everybody => (2, std::cmp::Reverse(0)),
        }
    }

    fn holds(&self, payer: &Payer) -> bool {
        match (self, payer) {
            (Self::Everybody, _) => true,
            (Self::Identity(wild), Payer::Identity(name)) => wild.matches(name),
            (Self::Network(network), Payer::Address(address)) => network.contains(address),
            _ => false,
        }
    }
}

impl Limiter {
    fn new(
        limit: Limit,
        default: Option<Rate>,
        mut rates: Vec<(Scope, Option<Rate>)>,
        wait: Duration,
        queue: Arc<Semaphore>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Option<Self> {
        rates.sort_by_key(|(scope, _)| scope.order());
        rates.push((Scope::Everybody, default));
        // After this rest the fullest bucket is full again, so that forgetting it changes nothing.
        let rest = rates.iter().filter_map(|(_, rate)| rate.map(full_again)).max()?;
        let buckets = Cache::builder()
            .max_capacity(CLIENTS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(rest.clamp(Duration::from_secs(60), Duration::from_secs(24 * 3600)))
            .build();
        Some(Self { limit, rates, buckets, wait, queue, metrics, clock })
    }

    fn bucket(&self, payer: &Payer) -> Option<Arc<Bucket>> {
        let place = self.rates.iter().position(|(scope, _)| scope.holds(payer))?;
        let rate = self.rates[place].1?;
        let account = match payer {
            Payer::Address(address) => Payer::Address(network_of(*address)),
            identity => identity.clone(),
        };
        let key = (place, account);
        Some(self.buckets.get_with(key, || Arc::new(Bucket::new(rate, self.clock.clone()))))
    }

    async fn pass(&self, payer: &Payer) -> Result<(), Duration> {
        let Some(bucket) = self.bucket(payer) else { return Ok(()) };
        let ahead = bucket.waiting.load(Ordering::Relaxed);
        // Nobody overtakes those who wait already.
        let next = if ahead == 0 { bucket.take() } else { Err(bucket.interval) };
        let Err(next) = next else { return Ok(()) };
        let expected = next.saturating_add(bucket.interval.saturating_mul(ahead));
        if expected > self.wait {
            return self.refuse(expected);
        }
        let Ok(_place) = self.queue.try_acquire() else { return self.refuse(expected) };
        match tokio::time::timeout(self.wait, bucket.turn()).await {
            Ok(()) => {
                self.metrics.limited.cell(self.limit, Limited::Waited).inc();
                Ok(())
            }
            Err(_) => self.refuse(bucket.interval),
        }
    }

    fn refuse(&self, retry_after: Duration) -> Result<(), Duration> {
        self.metrics.limited.cell(self.limit, Limited::Refused).inc();
        Err(retry_after)
    }
}

/// An IPv6 customer has a /64 at least, so addresses inside it are one client.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn interval(rate: Rate) -> Duration {
    Duration::from_secs(60) / rate.per_minute.get()
}

fn full_again(rate: Rate) -> Duration {
    interval(rate).saturating_mul(rate.burst.get())
}

/// What one client has left, and who of it waits, in order of arrival.
struct Bucket {
    governor: Pacer,
    clock: Clock,
    interval: Duration,
    waiting: AtomicU32,
    first: Mutex<()>,
}

impl Bucket {
    fn new(rate: Rate, clock: Clock) -> Self {
        Self {
            governor: clock.pacer(rate.per_minute, rate.burst),
            clock,
            interval: interval(rate),
            waiting: AtomicU32::new(0),
            first: Mutex::new(()),
        }
    }

    /// Takes one, or tells how long until there is one.
    fn take(&self) -> Result<(), Duration> {
        self.governor.check().map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Waits behind those who came before, then for one to take. Only the first in line holds a timer.
    async fn turn(&self) {
        let _waiting = Waiting::begin(&self.waiting);
        let _first = self.first.lock().await;
        while let Err(wait) = self.take() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// One who waits, counted until it is served or goes away.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{IdentityLimit, Override};
    use std::num::NonZeroU32;

    fn rate(per_minute: u32, burst: u32) -> Option<Rate> {
        let whole = |n| NonZeroU32::new(n).unwrap();
        Some(Rate { per_minute: whole(per_minute), burst: whole(burst) })
    }

    fn options() -> Options {
        Options {
            requests: rate(60, 3),
            cold_misses: None,
            overrides: Vec::new(),
            identities: Vec::new(),
            priority: Priority::default(),
            fair_share: true,
            wait: Duration::ZERO,
            queue: 10,
            trusted_proxies: Vec::new(),
        }
    }

    fn limits(options: Options) -> (Limits, Arc<Metrics>, Clock) {
        let (metrics, clock) = (Arc::new(Metrics::new()), Clock::default());
        (Limits::new(options, metrics.clone(), clock.clone()), metrics, clock)
    }

    fn client(address: &str) -> Client {
        Client { address: address.parse().unwrap() }
    }

    async fn passed(limits: &Limits, address: &str, tries: usize) -> usize {
        let mut passed = 0;
        for _ in 0..tries {
            passed += usize::from(limits.request(client(address)).await.is_ok());
        }
        passed
    }

    #[tokio::test]
    async fn the_burst_passes_and_then_one_for_each_interval() {
        let (limits, metrics, clock) = limits(options());
        assert_eq!(passed(&limits, "192.0.2.1", 5).await, 3);
        let retry_after = limits.request(client("192.0.2.1")).await.unwrap_err();
        assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(1));
        assert_eq!(metrics.limited.cell(Limit::Requests, Limited::Refused).get(), 3);
        clock.advance(Duration::from_secs(1));
        assert_eq!(passed(&limits, "192.0.2.1", 5).await, 1);
        clock.advance(Duration::from_secs(600));
        assert_eq!(passed(&limits, "192.0.2.1", 5).await, 3);
    }

    #[tokio::test]
    async fn addresses_are_clients_and_so_are_ipv6_networks() {
        let (limits, _, _) = limits(options());
        assert_eq!(passed(&limits, "192.0.2.1", 4).await, 3);
        assert_eq!(passed(&limits, "::ffff:192.0.2.1", 4).await, 0);
        assert_eq!(passed(&limits, "192.0.2.2", 4).await, 3);
        assert_eq!(passed(&limits, "2001:db8::1", 2).await, 2);
        assert_eq!(passed(&limits, "2001:db8::ffff:1", 2).await, 1);
        assert_eq!(passed(&limits, "2001:db8:0:1::1", 4).await, 3);
    }

    #[tokio::test]
    async fn the_longest_prefix_decides() {
        let network = |network: &str, requests| Override {
            network: network.parse().unwrap(),
            rates: Rates { requests, cold_misses: None },
        };
        let overrides = vec![network("10.0.0.0/8", rate(60, 1)), network("10.1.0.0/16", None)];
        let (limits, _, _) = limits(Options { overrides, ..options() });
        assert_eq!(passed(&limits, "10.0.0.1", 9).await, 1);
        assert_eq!(passed(&limits, "10.1.0.1", 9).await, 9);
        assert_eq!(passed(&limits, "192.0.2.1", 9).await, 3);
    }

    #[tokio::test]
    async fn who_has_logged_in_has_an_account_wherever_it_comes_from() {
        let identity = |name: &str, requests| IdentityLimit {
            name: Wild::new(name),
            rates: Rates { requests, cold_misses: None },
        };
        let identities = vec![identity("ci-*", rate(60, 1)), identity("*", rate(60, 2))];
        let (limits, _, _) = limits(Options { identities, ..options() });
        let of = async |name: &str, tries: usize| {
            let payer = Payer::Identity(name.to_owned());
            let mut passed = 0;
            for _ in 0..tries {
                passed += usize::from(limits.request(payer.clone()).await.is_ok());
            }
            passed
        };
        assert_eq!(of("ci-1", 5).await, 1);
        assert_eq!(of("ci-1", 5).await, 0);
        assert_eq!(of("ci-2", 5).await, 1, "each has its own");
        assert_eq!(of("alice", 5).await, 2);
        assert_eq!(of("certificate:ci-1", 5).await, 2);
        assert_eq!(passed(&limits, "192.0.2.1", 5).await, 3, "an address is no identity");
    }

    #[tokio::test]
    async fn cold_misses_are_a_limit_of_their_own() {
        let (limits, metrics, _) = limits(Options { requests: None, cold_misses: rate(60, 1), ..options() });
        assert_eq!(passed(&limits, "192.0.2.1", 50).await, 50);
        assert!(limits.toll(client("192.0.2.1")).cold_miss().await.is_ok());
        assert!(limits.toll(client("192.0.2.1")).cold_miss().await.is_err());
        assert_eq!(metrics.limited.cell(Limit::ColdMisses, Limited::Refused).get(), 1);
    }

    #[test]
    fn a_toll_says_who_pays_and_whether_the_reserve_is_theirs() {
        let priority =
            Priority { networks: vec!["10.0.0.0/8".parse().unwrap()], identities: vec![Wild::new("ci-*")] };
        let (limits, _, _) = limits(Options { priority, ..options() });
        let of = |address: &str, name: Option<&str>| {
            let address = address.parse().unwrap();
            let payer = name.map_or(Payer::Address(address), |name| Payer::Identity(name.to_owned()));
            let toll = limits.toll(Visitor { payer, address });
            (toll.client().unwrap(), toll.purpose())
        };
        let told = |client: &str, purpose| (client.to_owned(), purpose);
        assert_eq!(of("192.0.2.1", None), told("192.0.2.1", Purpose::Miss));
        assert_eq!(of("::ffff:10.1.2.3", None), told("10.1.2.3", Purpose::Priority));
        assert_eq!(of("2001:db8::7:1", None), told("2001:db8::/64", Purpose::Miss));
        assert_eq!(of("192.0.2.1", Some("ci-1")), told("ci-1", Purpose::Priority));
        assert_eq!(of("10.1.2.3", Some("alice")), told("alice", Purpose::Priority));
        assert_eq!(of("192.0.2.1", Some("alice")), told("alice", Purpose::Miss));
    }

    #[tokio::test]
    async fn without_a_limit_nothing_is_kept() {
        let (limits, _, _) = limits(Options { requests: None, ..options() });
        assert!(limits.requests.is_none() && limits.cold_misses.is_none());
        assert!(limits.toll(client("192.0.2.1")).cold_miss().await.is_ok());
    }

    #[tokio::test]
    async fn those_who_fit_into_the_wait_are_served_in_order() {
        let wait = Duration::from_secs(20);
        let (limits, metrics, _) = limits(Options { requests: rate(6000, 1), wait, ..options() });
        let order = std::sync::Mutex::new(Vec::new());
        let ask = |n: usize| {
            let (limits, order) = (&limits, &order);
            async move {
                limits.request(client("192.0.2.1")).await.unwrap();
                order.lock().unwrap().push(n);
            }
        };
        futures_util::future::join_all((0..8).map(ask)).await;
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
        assert_eq!(metrics.limited.cell(Limit::Requests, Limited::Waited).get(), 7);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_who_cannot_be_served_in_time_is_told_at_once() {
        let wait = Duration::from_millis(50);
        let narrow =
            Options { requests: rate(6000, 1), wait: Duration::from_secs(20), queue: 2, ..options() };
        let (limits, _, _) = self::limits(narrow.clone());
        let all = futures_util::future::join_all((0..5).map(|_| limits.request(client("192.0.2.1")))).await;
        assert_eq!(all.iter().filter(|one| one.is_ok()).count(), 3, "one at once, two from the queue");
        let (limits, _, _) =
            self::limits(Options { requests: rate(6000, 1), wait, queue: 1000, ..options() });
        let all = futures_util::future::join_all((0..50).map(|_| limits.request(client("192.0.2.1")))).await;
        let refused: Vec<_> = all.into_iter().filter_map(Result::err).collect();
        assert!(refused.len() >= 44, "five intervals fit into the wait: {}", refused.len());
        assert!(limits.requests.unwrap().queue.available_permits() == 1000);
    }
}
