//! kill -9 at any moment: what is served after it is right, what was kept or acknowledged is there,
//! and nothing is left of what was not. `FOREBAY_FULL=1` runs all rounds.

#[path = "../support/mod.rs"]
mod support;

mod fills;
mod pushes;
mod rot;
mod storm;

use bytes::Bytes;

use support::http;

const SEED: u64 = 20_260_101;

async fn get(url: &str) -> (u16, Bytes) {
    let answer = http().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap())
}
