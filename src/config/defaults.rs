//! Every default, and why it is so.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use crate::access::Rate;
use crate::upstream::Reserve;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn minutes(minutes: u64) -> Duration {
    seconds(minutes * 60)
}

const fn hours(hours: u64) -> Duration {
    minutes(hours * 60)
}

const MIB: u64 = 1 << 20;

/// Read when no other file is named, and only if it is there.
pub const FILE: &str = "/etc/forebay/forebay.toml";

/// Only this machine, until somebody decides otherwise; 5000 is where registries are looked for.
pub fn listen() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, 5000).into(), (Ipv6Addr::LOCALHOST, 5000).into()]
}

/// Owner and group may connect: a Unix socket's mode is who may reach it.
pub const SOCKET_MODE: u32 = 0o660;

/// Where packages of system services keep their state.
pub const ROOT_DATA: &str = "/var/lib/forebay";

/// One-component names: no client asks a Docker Hub mirror for one.
pub const HOSTED: &str = "*";

/// Pushing is a bigger right than deleting what was pushed; `registry:2` has it off, and full disks.
pub const DELETE: bool = true;
/// A week, as `registry:2` has it: a broken push is tried again within days or never.
pub const UPLOAD_AGE: Duration = hours(168);
/// Each has a file open while it is used.
pub const MAX_UPLOADS: usize = 1000;

/// Docker Hub's API is not where its name points.
pub const DOCKER_HUB_URL: &str = "https://registry-1.docker.io/";

/// A registry on the same continent answers far sooner; a dead one is found out before clients give up.
pub const CONNECT_TIMEOUT: Duration = seconds(3);
/// containerd waits 30 s for us: a retry must fit in.
pub const HEADER_TIMEOUT: Duration = seconds(10);
/// containerd's patience: who is answered later has left.
pub const DEADLINE: Duration = seconds(30);
/// A body may be slow as a whole, for blobs are large, but not silent.
pub const BODY_IDLE_TIMEOUT: Duration = seconds(30);
/// A pull is over by then, and who was shut out upstream is soon shut out here.
pub const PROOF: Duration = minutes(5);
/// Whoever may pull is a question that only the upstream answers.
pub const PROOF_STALE: Duration = seconds(0);
/// Enough for a cluster's start, and not what an upstream takes for abuse.
pub const MAX_REQUESTS: usize = 64;
/// Blobs fetched at once: more share the same line without getting done sooner.
pub const MAX_FILLS: usize = 32;
/// Under containerd's 30 s, with time left to answer.
pub const QUEUE_TIMEOUT: Duration = seconds(20);
pub const QUEUE_LENGTH: usize = 1000;
/// Ten of the Hub's hundred: a deployment's worth, and not missed by the rest. Misses may spend it too
/// where nobody has priority.
pub const QUOTA_RESERVE: Reserve = Reserve::Percent(10);

/// Tags that move by their nature, under any repository.
pub const MOVING_TAGS: [&str; 4] = ["latest", "main", "edge", "nightly"];
/// A push is seen within a minute; a HEAD costs no quota.
pub const MOVING: Duration = seconds(60);
/// `1.27.3` is all but immutable; security rebuilds still arrive within the working day.
pub const VERSIONS: Duration = hours(6);
pub const OTHERS: Duration = minutes(5);
/// Tags that were pulled together are not revalidated together.
pub const JITTER: f64 = 0.1;

/// A tag that is about to be pushed is found soon.
pub const NOT_FOUND: Duration = seconds(30);
/// A changed permission is found soon; a denied client's retries stay here.
pub const DENIED: Duration = seconds(60);
/// A tag that upstream deleted by mistake survives a day of ours.
pub const STALE_NOT_FOUND: Option<Duration> = Some(hours(24));
/// Access that was taken away must end soon, though not at a token server's every hiccup.
pub const STALE_DENIED: Duration = minutes(15);
/// An outage has no length that would make a build's failure better than an image of before it.
pub const STALE_TROUBLE: Option<Duration> = None;

/// A tag that is pinned moves within the working day.
pub const WARM_EVERY: Duration = hours(6);
/// HEADs cost no quota; an upstream does not notice one a second.
pub const REFRESHES_PER_MINUTE: u32 = 60;
pub const PREFETCH_LAYERS: bool = false;

/// Half of it for manifests, tags and links (some 20,000 of 3 KB), half for small blobs.
pub const MEMORY: u64 = 128 * MIB;
/// What a client that left has begun is mostly wanted by the next one: two large layers' worth.
pub const UNREAD_BUDGET: u64 = 2048 * MIB;
pub const RESUMES: u32 = 5;
/// One slow reader must not hold up the others of a blob that passes through memory.
pub const READER_TIMEOUT: Duration = seconds(30);
/// One is as fast wherever the line is the limit; more help where the upstream limits each connection.
pub const FILL_CONNECTIONS: usize = 1;
/// Containers that are pulled lazily read a few per cent of their images to start; what reads this
/// much goes on to the whole.
pub const RANGE_SHARE: f64 = 0.25;
/// Fetched in seconds, and verified.
pub const RANGE_FLOOR: u64 = 64 * MIB;
/// A container reads in bursts as it starts; its next one on another machine is minutes away.
pub const RANGE_IDLE: Duration = minutes(5);

/// Once a day: what it frees was not in a hurry.
pub const GC_INTERVAL: Duration = hours(24);
/// Longer than the largest push takes from its first layer to its manifest.
pub const LEASE: Duration = hours(2);

/// Bits rot in years; a round a month finds them while the other copy is still there.
pub const SCRUB_INTERVAL: Duration = hours(30 * 24);
/// 1.7 TB in a day, a seventh of what one disk gives.
pub const SCRUB_RATE: NonZeroU64 = match NonZeroU64::new(20 * MIB) {
    Some(rate) => rate,
    None => NonZeroU64::MIN,
};
/// Enough to look into what has happened.
pub const QUARANTINE: u64 = 10 << 30;

/// Cold manifests spend the upstream's quota, so one client cannot have it all; a node that starts
/// fifty pods at once passes.
pub const COLD_MISSES: Rate = Rate { per_minute: number(120), burst: number(240) };
/// dockerd takes a 429 of ours to mean "ask the Hub": waiting is better while clients still wait.
pub const WAIT: Duration = seconds(20);
pub const WAITING: usize = 1000;

/// Each takes a file descriptor and some 10 KiB.
pub const MAX_CONNECTIONS: usize = 10_000;
/// A request's head is one packet or two.
pub const CLIENT_HEADER_TIMEOUT: Duration = seconds(30);
/// Longer than clients pause between the requests of one pull.
pub const CLIENT_IDLE_TIMEOUT: Duration = seconds(120);

/// A receiver that does no more than note an event answers far sooner.
pub const EVENT_TIMEOUT: Duration = seconds(5);
pub const EVENT_BACKOFF: Duration = seconds(1);
/// With pauses that double up to a minute, some five minutes: a receiver's restart.
pub const EVENT_ATTEMPTS: u32 = 10;
/// About a megabyte.
pub const EVENT_QUEUE: usize = 1000;

/// A large layer on a slow line gets through before a restart.
pub const SHUTDOWN_GRACE: Duration = seconds(300);

/// What clients are told that tokens are for.
pub const TOKEN_SERVICE: &str = "forebay";
/// What was allowed is asked again soon; clients fetch a token for each pull anyway.
pub const TOKEN_LIFETIME: Duration = minutes(5);

pub const LOG_LEVEL: &str = "info";
/// Who pulled what is the first question that is asked of a registry.
pub const ACCESS_LOG: bool = true;

const fn number(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}
