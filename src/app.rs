//! The composition root: checked options in, a running server out.

mod collecting;
mod evicting;
mod exporting;
mod holding;
mod importing;
mod naming;
mod pinning;
mod verifying;
mod warming;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::{Gate, Limits};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::control;
use crate::disk::RealDisk;
use crate::events::{self, Events};
use crate::http::{
    BindError, Content, Draining, Forward, ForwardError, InvalidPattern, Listeners, Owners, Reports,
    RequestIds, Service,
};
use crate::metrics::Metrics;
use crate::mirror::{Mirror, Pins, Scrubber};
use crate::oci::{Owner, UpstreamHost};
use crate::registry::{Collector, Hosted};
use crate::store::{self, OpenError, OriginState, Store};
use crate::tasks::Tasks;
use crate::telemetry::AccessLog;
use crate::upstream::{self, Upstream};

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listen(#[from] BindError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    #[error(transparent)]
    Control(control::SocketError),
    #[error(transparent)]
    Events(#[from] events::Error),
    #[error(transparent)]
    Hosted(#[from] InvalidPattern),
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error("{0}")]
    Access(String),
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
    #[error("the start was ended: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// Time for the last disk work at shutdown.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, then lets bodies finish; a second signal ends that. SIGHUP takes
/// up the configuration that `reload` gives.
pub async fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), Error> {
    let listeners = Listeners::bind(&config.http).await?;
    raise_descriptors(config.http.max_connections);
    let port = listeners.addresses().first().map_or(0, std::net::SocketAddr::port);
    let app = Arc::new(App::open(&config, events::Source::of_process(port)).await?);
    let hosted = app.hosted(&config, None);
    let service = Arc::new(ArcSwap::from_pointee(app.service(&config, hosted.clone(), None)?));
    let collector = Collector::new(config.gc.clone(), hosted, app.metrics.clone(), app.clock.clone());
    let mirror = service.load().content.as_ref().map(|content| content.mirror.clone());
    let scrubber = Scrubber::new(config.scrub.clone(), app.store.clone(), mirror, app.clock.clone());
    app.take_commands(&collector, &scrubber, service.clone()).await?;
    let forward = app.forward(&config).await?;
    app.spare(&config, &service.load().owners);
    let pins =
        service.load().content.as_ref().map(|content| Pins::new(config.warm.clone(), content.mirror.clone()));
    let grace = config.http.shutdown_grace;
    let hosts: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.host.as_str()).collect();
    tracing::info!(
        listen = listeners.public().join(", "),
        operations = listeners.operations().map(|address| address.to_string()),
        data = %app.store.data_dir().display(),
        upstreams = hosts.join(", "),
        forward_proxy = config.http.forward.as_ref().map(|forward| forward.listen.to_string()),
        tls = config.http.tls.is_some(),
        offline = config.mirror.offline,
        "serving"
    );
    app.tasks.spawn("disk", app.store.clone().watch_disk());
    app.survey(&config);
    app.store.tend();
    app.tend_uploads(service.clone());
    collector.schedule(&app.tasks);
    scrubber.schedule(&app.tasks);
    pins.iter().for_each(|pins| pins.schedule(&app.tasks));
    app.follow_hangups(service.clone(), collector, scrubber, pins, config, reload)?;
    let asked = stop_signals()?;
    let begun = OnceLock::new();
    let shutdown = async {
        asked.await;
        begun.get_or_init(Instant::now);
        tracing::info!(grace_seconds = grace.as_secs(), "shutting down: what is under way may finish");
    };
    listeners.serve(service, app.tasks.clone(), forward, shutdown).await;
    let spent = begun.get().map_or(grace, Instant::elapsed);
    // What was answered is being written behind the answers: that gets its time whatever clients took.
    if !app.tasks.drain(grace.saturating_sub(spent).max(LAST_WRITES)).await {
        tracing::warn!("background work was cut short; it is taken up again when asked for");
    }
    let store = app.store.clone();
    if let Err(error) = store.run(Store::end_run).await {
        tracing::warn!(%error, "the next start will not know that this stop was a clean one");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Every connection takes a file descriptor, and a blob that it reads from disk another.
fn raise_descriptors(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
    let wanted = (connections as u64).saturating_add(256);
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|allowed| *allowed < wanted) {
        tracing::warn!(
            allowed,
            wanted,
            "fewer files may be open than `limits.max_connections` can need: raise the limit (`ulimit -n`, \
             `LimitNOFILE=`) or lower the setting"
        );
    }
}

/// What lives as long as the process, whatever the configuration becomes.
struct App {
    clock: Clock,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    store: Arc<Store>,
    reports: Reports,
    source: events::Source,
    draining: Draining,
    started: Config,
}

impl App {
    async fn open(config: &Config, source: events::Source) -> Result<Self, Error> {
        let (metrics, tasks, clock) = (Arc::new(Metrics::new()), Tasks::default(), Clock::default());
        let (options, counted) = (config.store.clone(), metrics.clone());
        let (timed, tracked) = (clock.clone(), tasks.clone());
        let open = move || {
            let opened = Store::open(options, Arc::new(RealDisk), counted, timed, tracked);
            opened.inspect(|store| store.begin_run())
        };
        let store = tokio::task::spawn_blocking(open).await??;
        let log = AccessLog::new(&config.telemetry, metrics.access_lines_dropped.clone());
        let access_log = log.is_enabled().then(|| Arc::new(log));
        let reports = Reports { metrics: metrics.clone(), access_log };
        let (draining, started) = (Draining::default(), config.clone());
        Ok(Self { clock, tasks, metrics, store, reports, source, draining, started })
    }

    /// All that a configuration decides. From the `before` one comes what it leaves as it was, so
    /// that tokens, quota and what is in memory outlive a reload.
    fn service(
        &self,
        config: &Config,
        hosted: Arc<Hosted>,
        before: Option<(&Config, &Service)>,
    ) -> Result<Service, Error> {
        let old = before.and_then(|(_, service)| service.content.as_ref()).map(|content| &content.mirror);
        let mut upstreams = HashMap::new();
        for options in &config.upstreams {
            let kept = old.and_then(|mirror| mirror.upstreams().get(&options.host));
            let upstream = match kept.filter(|upstream| upstream.options() == options) {
                Some(upstream) => upstream.clone(),
                None => {
                    Upstream::new(options.clone(), &self.metrics, self.clock.clone(), self.tasks.clone())?
                }
            };
            upstreams.insert(options.host.clone(), upstream);
        }
        let unchanged =
            before.is_some_and(|(was, _)| was.mirror == config.mirror && was.upstreams == config.upstreams);
        let mirror = match old.filter(|_| unchanged) {
            Some(mirror) => mirror.clone(),
            None => Mirror::new(
                config.mirror.clone(),
                upstreams,
                self.store.clone(),
                self.clock.clone(),
                self.tasks.clone(),
            ),
        };
        let events = match before.filter(|(was, _)| was.events == config.events) {
            Some((_, service)) => service.events.clone(),
            None => {
                Events::new(&config.events, &self.source, &self.metrics, self.clock.clone(), &self.tasks)?
            }
        };
        let kept = before.filter(|(was, _)| was.auth == config.auth).map(|(_, service)| service.gate.clone());
        Ok(Service {
            gate: kept.map_or_else(|| self.gate(config), Ok)?,
            owners: Arc::new(Owners::new(config.owners.clone())?),
            limits: Limits::new(config.access.clone(), self.metrics.clone(), self.clock.clone()),
            trusted_proxies: config.access.trusted_proxies.clone(),
            content: Some(Content { mirror, hosted }),
            reports: self.reports.clone(),
            events,
            ids: RequestIds::default(),
            draining: self.draining.clone(),
            tasks: self.tasks.clone(),
            public: before.map_or_else(|| config.http.public(), |(_, service)| service.public),
        })
    }

    /// Who may do what. What is remembered of logins ends with it.
    fn gate(&self, config: &Config) -> Result<Arc<Gate>, Error> {
        let (options, data) = (config.auth.clone(), self.store.data_dir());
        let gate = Gate::open(options, data, self.metrics.clone(), &self.clock, &self.tasks);
        gate.map(Arc::new).map_err(Error::Access)
    }

    async fn forward(&self, config: &Config) -> Result<Option<Arc<Forward>>, Error> {
        let Some(options) = config.http.forward.clone() else { return Ok(None) };
        let (data, metrics) = (self.store.data_dir().to_owned(), self.metrics.clone());
        let clock = self.clock.clone();
        let open = move || Forward::open(&options, &data, metrics, clock);
        Ok(Some(Arc::new(tokio::task::spawn_blocking(open).await??)))
    }

    /// What is to be held at any time is not evicted, nor what is no upstream's any more.
    fn spare(&self, config: &Config, owners: &Arc<Owners>) {
        let images = config.warm.iter().flat_map(|pinned| &pinned.images);
        self.store.pin_configured(images.map(|image| (image.repository.clone(), image.reference.clone())));
        let owners = owners.clone();
        self.store.makes_room_of(Arc::new(move |repository| owners.mirrors(repository)));
    }

    fn hosted(&self, config: &Config, before: Option<&Service>) -> Arc<Hosted> {
        let before = before.and_then(|service| service.content.as_ref()).map(|content| &content.hosted);
        Arc::new(match before {
            Some(hosted) => hosted.with(config.registry.clone()),
            None => Hosted::new(
                config.registry.clone(),
                self.store.clone(),
                self.metrics.clone(),
                self.clock.clone(),
                self.tasks.clone(),
            ),
        })
    }

    /// Opens the control socket. Images are served without one too, but not where commands would
    /// reach another process than this.
    async fn take_commands(
        &self,
        collector: &Arc<Collector>,
        scrubber: &Arc<Scrubber>,
        service: Arc<ArcSwap<Service>>,
    ) -> Result<(), Error> {
        match control::Bound::bind(self.store.data_dir()).await {
            Ok(bound) => {
                let commands = control::Commands::from([
                    ("gc", collecting::collecting(collector.clone())),
                    ("du", holding::using(self.store.clone())),
                    ("evict", evicting::evicting(service.clone(), self.store.clone())),
                    ("pin", pinning::pinning(service.clone(), self.store.clone())),
                    ("unpin", pinning::unpinning(service.clone(), self.store.clone())),
                    ("export", exporting::exporting(service.clone(), self.store.clone())),
                    ("read", exporting::reading(service.clone(), self.store.clone())),
                    ("wanted", importing::wanting(service.clone(), self.store.clone())),
                    ("put", importing::taking(service.clone())),
                    ("verify", verifying::verifying(scrubber.clone())),
                    ("warm", warming::warming(service)),
                ]);
                self.tasks.spawn("control", control::serve(bound, commands, self.tasks.clone()));
                Ok(())
            }
            Err(live @ control::SocketError::Live(_)) => Err(Error::Control(live)),
            Err(error) => {
                tracing::warn!(%error, "commands such as `forebay gc` cannot reach this server");
                Ok(())
            }
        }
    }

    /// Names, in the log, what is held and will not be served as things stand.
    fn survey(&self, config: &Config) {
        let served: Vec<UpstreamHost> =
            config.upstreams.iter().map(|upstream| upstream.host.clone()).collect();
        let store = self.store.clone();
        self.tasks.spawn("survey", async move {
            let repositories = match store.run(Store::repositories).await {
                Ok(repositories) => repositories,
                Err(error) => return tracing::warn!(%error, "what is held cannot be listed"),
            };
            let mut unknown = 0;
            for (name, origin) in &repositories {
                match origin {
                    OriginState::Known(origin) => {
                        if let Owner::Upstream(host) = &origin.owner
                            && !served.contains(host)
                        {
                            tracing::warn!(repository = name, upstream = %host, "held and not served: its upstream is not configured");
                        }
                    }
                    OriginState::Unknown => unknown += 1,
                    OriginState::Absent => {}
                }
            }
            if unknown > 0 {
                tracing::warn!(
                    repositories = unknown,
                    "held, and no record says whose they are: names of one component are served as hosted, others \
                     not at all; start once with `--adopt docker.io`, or the host they were mirrored from, or \
                     `--adopt hosted`"
                );
            }
            tracing::info!(repositories = repositories.len(), "held");
        });
    }

    /// Removes unfinished uploads when they are old enough, now and then.
    fn tend_uploads(&self, service: Arc<ArcSwap<Service>>) {
        let stopping = self.tasks.stopping();
        self.tasks.spawn("upload purge", async move {
            tokio::pin!(stopping);
            loop {
                let Some(hosted) = service.load().content.as_ref().map(|content| content.hosted.clone())
                else {
                    return;
                };
                let (tended, pause) = hosted.tend_uploads().await;
                if let Err(error) = tended {
                    tracing::warn!(%error, "unfinished uploads cannot be looked through");
                }
                tokio::select! {
                    () = &mut stopping => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        });
    }

    /// Takes up a changed configuration at each SIGHUP, or keeps the old one and says why.
    fn follow_hangups(
        self: &Arc<Self>,
        service: Arc<ArcSwap<Service>>,
        collector: Arc<Collector>,
        scrubber: Arc<Scrubber>,
        pins: Option<Arc<Pins>>,
        mut config: Config,
        reload: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let mut hangups = signal(SignalKind::hangup()).map_err(Error::Signals)?;
        let (app, stopping) = (self.clone(), self.tasks.stopping());
        self.tasks.spawn("reload", async move {
            tokio::pin!(stopping);
            loop {
                tokio::select! {
                    () = &mut stopping => return,
                    hangup = hangups.recv() => if hangup.is_none() { return },
                }
                match app.reloaded(&service.load(), &collector, &config, &reload) {
                    Ok((new, replacement)) => {
                        app.spare(&new, &replacement.owners);
                        if let (Some(pins), Some(content)) = (&pins, &replacement.content) {
                            pins.follow(new.warm.clone(), content.mirror.clone());
                        }
                        let mirror = replacement.content.as_ref().map(|content| content.mirror.clone());
                        scrubber.follow(new.scrub.clone(), mirror);
                        service.store(Arc::new(replacement));
                        config = new;
                        tracing::info!("the configuration was read again");
                    }
                    Err(error) => tracing::error!("the configuration stays as it was: {error}"),
                }
            }
        });
        Ok(())
    }

    fn reloaded(
        &self,
        service: &Service,
        collector: &Collector,
        config: &Config,
        reload: &impl Fn() -> Result<Config, ConfigError>,
    ) -> Result<(Config, Service), Box<dyn std::error::Error + Send + Sync>> {
        let new = reload()?;
        for warning in &new.warnings {
            tracing::warn!("{warning}");
        }
        let waits = self.waits_for_start(&new);
        if !waits.is_empty() {
            tracing::warn!(
                sections = waits.join(", "),
                "changed since the start, and takes effect at the next one"
            );
        }
        let hosted = self.hosted(&new, Some(service));
        let replacement = self.service(&new, hosted.clone(), Some((config, service)))?;
        collector.follow(new.gc.clone(), hosted);
        Ok((new, replacement))
    }

    /// What of a configuration differs from what the process was started with and cannot be taken up.
    fn waits_for_start(&self, new: &Config) -> Vec<&'static str> {
        let (http, was) = (&new.http, &self.started.http);
        let (store, held) = (&new.store, &self.started.store);
        let as_held = store::Options {
            data: store.data.clone(),
            adopt: store.adopt.clone(),
            lease: store.lease,
            quarantine: store.quarantine,
            ..held.clone()
        };
        let parts = [
            ("listen", http.listen != was.listen),
            ("listener", http.listeners != was.listeners),
            ("forward_proxy", http.forward != was.forward),
            ("operations", http.operations != was.operations),
            ("tls", http.tls != was.tls),
            ("shutdown", http.shutdown_grace != was.shutdown_grace),
            (
                "limits on connections",
                (http.max_connections, http.header_timeout, http.idle_timeout)
                    != (was.max_connections, was.header_timeout, was.idle_timeout),
            ),
            ("data", store.data != held.data),
            ("adopt", store.adopt != held.adopt),
            ("gc.lease", store.lease != held.lease),
            ("scrub.quarantine", store.quarantine != held.quarantine),
            ("cache", *store != as_held),
            ("log", new.telemetry != self.started.telemetry),
        ];
        parts.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
    }
}

/// Completes at the first SIGTERM or SIGINT. A second one ends the process at once.
fn stop_signals() -> Result<impl Future<Output = ()>, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let (first, asked) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(first);
        loop {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            match first.take() {
                Some(first) => drop(first.send(())),
                // What was promised is on disk already; what is under way is fetched again.
                None => std::process::exit(1),
            }
        }
    });
    Ok(async move { drop(asked.await) })
}
