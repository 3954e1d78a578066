//! Forebay: a pull-through mirror of container registries and a registry beside it, in one binary.
//!
//! This page is the tour for who works on it; README.md is for who uses it.
//!
//! # Bird's-eye view
//!
//! Clients (dockerd, containerd, podman, BuildKit) speak the OCI distribution API to [`http`]. What
//! they ask for is a repository of an upstream, answered by [`mirror`], or a hosted one, answered by
//! [`registry`] from what is on disk. The mirror answers from memory, from [`store`], or, once for
//! everybody who waits, from [`upstream`]. The configuration alone decides whose a name is.
//!
//! # Code map
//!
//! Imports point downward only; `tests/layering.rs` has the table of allowed ones.
//!
//! | module | what belongs there |
//! |---|---|
//! | `main.rs` | parse, run, exit code |
//! | [`cli`] | the command line: a file for each subcommand |
//! | [`app`] | the composition root: checked options in, a running server out; reload and shutdown |
//! | [`config`] | file, environment and flags become checked options; `defaults` has every default |
//! | [`control`] | the socket by which commands speak to the running server: both sides of it |
//! | [`layout`] | OCI image layouts, which commands write and read for whoever runs them |
//! | [`http`] | listeners, TLS, routes, heads and bodies; `error` gives failures their status codes |
//! | [`access`] | who a client is, seen through trusted proxies, what it may do and how much it may ask for |
//! | [`events`] | webhooks: what happened to images, posted to whoever wants to know |
//! | [`mirror`] | pull-through: hit, miss, fresh, stale; no HTTP types |
//! | [`registry`] | hosted repositories: uploads, manifests, deletes, referrers; never fetched |
//! | [`answer`] | what mirror and registry both answer, and why there may be no answer |
//! | [`upstream`] | one remote registry: requests, tokens, redirects, quota, limits, retries |
//! | [`store`] | verified content at rest: blobs, fills, uploads, manifests, tags, origins, collection, scrub |
//! | [`disk`] | the file-system calls, behind a trait that a simulated disk can take |
//! | [`oci`] | the vocabulary, pure: names, tags, digests, ranges, media types, manifests |
//! | [`clock`], [`tasks`], [`metrics`], [`telemetry`] | the ground floor: time, tracked tasks and shared flights, counters, logs |
//!
//! `store` and `upstream` are siblings that meet only in `mirror`. A module owns its `Options`;
//! `config` builds them, and nothing below it knows of `config`.
//!
//! # How a pull flows
//!
//! ```text
//! client -> http::listen -> http::handler -> http::route   whose is the name?
//!                               |
//!             mirror::manifest, mirror::tag, mirror::blob  may it be served? is it held, and fresh?
//!               |                            |
//!              hit: memory, then store      miss: upstream -> store::fill -> every reader
//!               |                            |
//!           http::respond  <-----------------+             head, then body as it comes
//! ```
//!
//! 1. `http::route` reads method, path and query once; `http::address` says what listener, host, path and
//!    `?ns=` are addressed to, and `http::owners` turns every spelling of a repository into one
//!    [`oci::Repository`]. Nothing below sees a raw string.
//! 2. A tag is fresh for a time, then confirmed by one HEAD however many clients wait. Where upstream
//!    is in trouble, or slow, the tag that is held is served as stale. A digest is never confirmed.
//! 3. A manifest that is not held is fetched by one GET. Before it is given out for the first time,
//!    the image's configuration blob is fetched, unless blobs of that upstream flowed just now: some
//!    clients are bound to a mirror that gave them a manifest.
//! 4. A blob that is not held gets a fill (`store::fill`), one for each digest and trust domain, in a
//!    task of its own. Its driver takes bytes from upstream, the sink hashes and writes them in
//!    order, and each reader follows at its own pace. A transfer that breaks is resumed by Range with
//!    the hash state kept. A range far ahead gets an extent of its own, and so does each connection
//!    beside the first. Of a large blob that is read by small ranges there are only extents.
//! 5. The last bytes are held back until the digest matches. Then the file is synced, renamed and
//!    linked into its repository. Where the disk cannot take the blob, the fill goes on as a relay; while the
//!    disk is known to be in trouble (`store::health`), it begins as one.
//! 6. A held blob goes from its file to a plain HTTP/1.1 connection without passing through the process: its
//!    body is made of windows (`store::window`), which `http::direct` sends from the file. Elsewhere it is
//!    read into `store::buffers`; `http::gather` puts HTTP/2's frames together.
//! 7. `http::exchange` follows the answer to its body's end: counters and the access line.
//!
//! # How a push flows
//!
//! ```text
//! client -> http::handler -> http::auth       who asks, and may it?
//!               |
//!           http::push -> registry::uploads   whose turn is it with this upload?
//!               |             |
//!               |         store::uploads      batches hashed and written; sync, rename, link at the end
//!               |
//!           registry::push                    is the manifest one, and does it say what it names?
//!               |
//!           store::manifests                  all that it names leased, there and durable; then it, then its tags
//! ```
//!
//! 1. An upload is in one hand at a time: whoever comes for it meanwhile waits, then is refused. What a
//!    request brought before it broke off stays, for the next one or the next process.
//! 2. `store::home` remembers which names this process has synced. Whatever else is seen on disk is synced
//!    before anything that builds on it is acknowledged; what failed to sync is never believed again.
//! 3. `store::leases` keeps collection off what a pusher was told of. Whoever makes links renews leases
//!    first; collection looks at them last, under the same lock. Locks are taken in one order: that of the
//!    repository, then that of the data.
//!
//! # How room is made
//!
//! `store::index` has what is held in memory: data, links, tags, and what each manifest names. It is read from
//! the tree at the start, in the background, and every change of the tree is an `Event` for it, recorded under the
//! lock under which the change was made. A fill reserves its room (`store::room`) before it writes; where that is
//! not there, `store::index::choose`, which is pure, says which images go, and `store::evict` takes them away:
//! links first, durably, then data that nothing links. Whoever remembers what is held, such as the mirror's
//! memory, is told. What is open counts until it is closed (`store::open`).
//!
//! # The promises, and what holds them
//!
//! | promise | held by |
//! |---|---|
//! | one cold blob crosses once, whoever asks, by ranges or whole, whoever leaves | `tests/fill/once.rs`, `parallel.rs`, `lazy.rs`, `sharing.rs`; `store::fill` |
//! | no wrong blob is completed or kept | `store::fill` (`tests.rs`), `http::body` |
//! | a push that was acknowledged survives kill -9, power loss and a failing disk | `store/tests/crash.rs`, `tests/crash/pushes.rs` |
//! | collection takes nothing that a pusher or an image relies on | `store/collect/tests.rs`, `tests/push/race.rs`, `collect.rs` |
//! | real clients push, log in and find what is theirs | `tests/push/` |
//! | kill -9 leaves right bytes or none | `tests/crash/` |
//! | the cache keeps to its size, by whole images, and takes nothing that is pinned, hosted or read | `store::index` (`tests.rs`), `store/tests/evict.rs`, `tests/life/holding.rs` |
//! | what rots on disk is found, put aside, and fetched again or told | `store::scrub` (`tests.rs`), `mirror::scrub`, `mirror::mend`, `tests/life/verify.rs`, `tests/crash/rot.rs` |
//! | kill -9 in a storm of pulls, pushes, evictions and collections leaves no orphan for longer than a lease and a pass | `tests/crash/storm/`, `store::collect` (`linked`) |
//! | what we hold, we serve, and say that it is stale | `tests/mirror.rs`, `tests/weather/`, `tests/crash/`, `tests/clients.rs` |
//! | an upstream that is slow, gone or in a circle holds up nobody | `upstream::breaker`, `upstream::round`, `upstream/tests/weather.rs`, `tests/weather/links.rs`, `tests/life/chain.rs` |
//! | the forward proxy answers for configured registries and reaches no private address | `http::forward`, `tests/weather/forward.rs` |
//! | a login that fails is said once, tried seldom, and holds up nobody | `upstream::login`, `upstream::helper`, `tests/faults/credentials.rs` |
//! | what was warmed is pulled though its registry is gone | `tests/life/warm.rs`; `mirror::warm` |
//! | what is carried to a site without a way out is pulled there | `tests/life/airgap.rs`, `tests/weather/carried.rs`; `mirror::brought` |
//! | no layout leads outside its directory, or brings what it is not | `layout` (`tests.rs`) |
//! | no manifest is given whose blobs cannot be had | `tests/mirror.rs` |
//! | a disk that is full, read-only or gone breaks no pull | `tests/fill/disk.rs` |
//! | a disk in trouble is told, refuses pushes, holds up nobody, and is used again when it is well | `tests/fill/trouble.rs`; `store::health` |
//! | clients pull by what `client-config` prints | `tests/client_config.rs`, `cli::client_config` (`tests.rs`) |
//! | the registry's API is that of the specification | `tests/conformance/`; `http::push`, `http::lists`, `registry` |
//! | quota is spent once, read and obeyed | `tests/limits/quota.rs`, `upstream/tests/limits.rs` |
//! | quota is given up in order, shared out, and its leaks are told | `tests/limits/budget.rs`, `tests/mirror/budget.rs`; `upstream::budget` |
//! | what is private stays so; credentials go where they belong | `tests/limits/private.rs`, `tests/callers/`, `upstream/tests/auth.rs`, `credentials.rs`, `hops.rs` |
//! | who may do what is a rule's or a default's word, whatever the spelling | `access::policy`, `tests/access/` |
//! | a name has one owner, by configuration alone | `http::owners`, `http::address`, `config/tests/upstreams.rs`, `tests/mirror.rs` |
//! | the tree is that of CNCF distribution, both ways | `tests/life/tree.rs`, `dropin.rs`, `round_trip.rs` |
//! | a directory that is something else, newer or another user's is refused in one line; nothing behind a link is touched | `store/directory/tests.rs`, `store::home::way`, `tests/life/directory.rs` |
//! | one server has the directory; a copy made while it works holds what was acknowledged | `tests/life/directory.rs`, `tests/push/backup.rs` |
//! | no spelling of a path leads outside the tree | `http/route/tests.rs`, `store::layout` |
//! | everything has a limit | `tests/limits/`, `http/listen/tests.rs`, `upstream::gate`, `access::limits` |
//! | a configuration is taken whole or refused in one line | `tests/life/configuration.rs`, `signals.rs`, `config/tests/` |
//! | the log holds up no request and tells no secret | `telemetry::access`, `tests/life/operations.rs` |
//! | imports, files and status codes stay where they belong | `tests/layering.rs` |
//! | README.md names every key and metric, and no other | `tests/docs.rs` |
//!
//! # Invariants
//!
//! - A blob is served from a repository only if it is linked there. Bytes are shared without a
//!   transfer only within a trust domain: one upstream, credential and visibility.
//! - A configured credential spends quota; it opens no doors (`mirror::standing`). Where callers show their own
//!   logins, nobody reads, joins or learns anything before its right is shown (`mirror::right`).
//! - Every repository on disk has an origin (`store::origins`). One that disagrees with the
//!   configuration is refused and left alone.
//! - No 5xx for a mirrored blob, and no 401 for what is mirrored unless `auth.mirror` or `per-caller` says so:
//!   `http::error` says why.
//! - What somebody may do is decided on a repository's identity, never on a spelling (`access::Policy`).
//! - Manifest bytes are kept and served verbatim; parsing them gives a view.
//! - Errors are one small enum a layer; they are logged once, where they end.
//! - Tasks start through [`tasks::Tasks`] and are drained at shutdown. No globals but the windows, since
//!   addresses are the process's; metrics are one struct whose label values are enums.
//! - Whoever writes to a connection that was given windows looks up each address: read, they are zeros.
//! - Blocking calls run on blocking threads, but for the ones that [`disk`] names as short.

// Forebay is a program: its documentation is read by who changes it, with private items in it.
#![allow(rustdoc::private_intra_doc_links)]

pub mod access;
pub mod answer;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod disk;
pub mod events;
pub mod http;
pub mod layout;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod registry;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upstream;
