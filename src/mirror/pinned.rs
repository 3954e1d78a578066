//! Images that are held at any time: warmed at the start, and again on their schedule.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Mirror;
use super::warm::{Account, Image, WarmError, Warmed};
use crate::oci::{Platforms, Reference, Repository};
use crate::tasks::{Tasks, lock};

/// When one that could not be had is tried again, if its schedule is not sooner.
const AGAIN: Duration = Duration::from_secs(300);
/// Share by which each pause varies, so that not all are asked for at once.
const JITTER: f64 = 0.1;

/// Images that are kept warm alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned {
    pub images: Vec<Image>,
    pub platforms: Platforms,
    pub every: Duration,
}

/// Keeps images warm, one after the other.
pub struct Pins {
    settings: Mutex<Settings>,
    changed: Notify,
}

#[derive(Clone)]
struct Settings {
    pins: Vec<Pinned>,
    mirror: Arc<Mirror>,
}

type Key = (Repository, Reference);

/// What is known of a pinned image.
struct State {
    due: Instant,
    /// None: it has not been warmed yet.
    problem: Option<Option<String>>,
    platforms: Platforms,
}

impl Pins {
    pub fn new(pins: Vec<Pinned>, mirror: Arc<Mirror>) -> Arc<Self> {
        Arc::new(Self { settings: Mutex::new(Settings { pins, mirror }), changed: Notify::new() })
    }

    /// Goes by other settings from the next image on.
    pub fn follow(&self, pins: Vec<Pinned>, mirror: Arc<Mirror>) {
        *lock(&self.settings) = Settings { pins, mirror };
        self.changed.notify_one();
    }

    pub fn schedule(self: &Arc<Self>, tasks: &Tasks) {
        let (pins, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("keep warm", async move {
            tokio::select! { () = pins.keep() => {}, () = stopping => {} }
        });
    }

    async fn keep(&self) {
        let mut states = HashMap::new();
        loop {
            let settings = lock(&self.settings).clone();
            let next = next(&settings, &mut states);
            count(&settings.mirror, &states);
            match next {
                Some((due, pin, image)) if due <= Instant::now() => {
                    warm(&settings.mirror, pin, image, &mut states).await;
                }
                Some((due, ..)) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }
}

/// Which image is due next, and when. What is pinned no more, or for other platforms, is forgotten.
fn next<'a>(
    settings: &'a Settings,
    states: &mut HashMap<Key, State>,
) -> Option<(Instant, &'a Pinned, &'a Image)> {
    let pinned = || settings.pins.iter().flat_map(|pin| pin.images.iter().map(move |image| (pin, image)));
    let platforms: HashMap<Key, &Platforms> =
        pinned().map(|(pin, image)| (key(image), &pin.platforms)).collect();
    states.retain(|key, state| platforms.get(key).is_some_and(|platforms| **platforms == state.platforms));
    let now = Instant::now();
    for (pin, image) in pinned() {
        let state = states.entry(key(image)).or_insert_with(|| State {
            due: now,
            problem: None,
            platforms: pin.platforms.clone(),
        });
        // A schedule that became shorter counts from now on.
        state.due = state.due.min(now + pin.every.mul_f64(1.0 + JITTER));
    }
    let due =
        pinned().map(|(pin, image)| (states.get(&key(image)).map_or(now, |state| state.due), pin, image));
    due.min_by_key(|(due, ..)| *due)
}

async fn warm(mirror: &Arc<Mirror>, pin: &Pinned, image: &Image, states: &mut HashMap<Key, State>) {
    let ended = mirror.warm(image, &pin.platforms, Account::Pinned, &|_| {}).await;
    let Some(state) = states.get_mut(&key(image)) else { return };
    tell(image, state.problem.as_ref().map(Option::is_some), &ended);
    let problem = match ended {
        Ok(warmed) => warmed.stale,
        Err(error) => Some(error.to_string()),
    };
    let pause = if problem.is_some() { pin.every.min(AGAIN) } else { pin.every };
    let varied = pause.mul_f64(1.0 + rand::random_range(-JITTER..=JITTER));
    *state = State { due: Instant::now() + varied, problem: Some(problem), platforms: pin.platforms.clone() };
}

/// Logs what became of an image, where it is not what became of it before.
fn tell(image: &Image, was_bad: Option<bool>, ended: &Result<Warmed, WarmError>) {
    let image = &image.text;
    match (was_bad, ended) {
        (Some(true), Ok(Warmed { stale: Some(_), .. }) | Err(_)) => {}
        (_, Err(error)) => tracing::warn!(image, %error, "an image that is to be kept warm is not held"),
        (_, Ok(Warmed { stale: Some(why), .. })) => {
            tracing::warn!(
                image,
                why,
                "an image that is kept warm could not be confirmed: it may not be current"
            );
        }
        (Some(false), Ok(_)) => {}
        (_, Ok(Warmed { digest, tally, .. })) => {
            tracing::info!(image, %digest, fetched_bytes = tally.bytes_fetched, "an image is kept warm");
        }
    }
}

fn count(mirror: &Mirror, states: &HashMap<Key, State>) {
    let failing = states.values().filter(|state| matches!(state.problem, Some(Some(_)))).count();
    let metrics = &mirror.store.metrics().warm;
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    metrics.pins.set(gauge(states.len()));
    metrics.pins_failing.set(gauge(failing));
}

fn key(image: &Image) -> Key {
    (image.repository.clone(), image.reference.clone())
}
