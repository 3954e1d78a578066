//! What clients get while upstream is slow, thin, broken or gone: each server with nothing held and a
//! scripted upstream of its own. (zot is asked for images as a whole; see `pull`.)

mod ground;
mod rows;

use std::time::Duration;

use crate::servers::Kind;
use crate::turns::{Part, Run, alternate};
use ground::{Ground, Way};
use rows::Row;

const PART: Part = Part { name: "cold", limit: Duration::from_secs(75), whole: Duration::from_secs(420) };

pub async fn run(run: &mut Run) {
    let rows = run.select(&PART, Row::ALL);
    if rows.is_empty() {
        return;
    }
    let kinds = [Kind::Forebay, Kind::DockerRegistry, Kind::Distribution].into_iter();
    let ways = kinds.filter(|kind| kind.is_there(&run.rivals)).map(Way::Through);
    let ways: Vec<Way> = ways.chain([Way::Straight]).collect();
    let (rivals, upstreams, turn) = (run.rivals.clone(), run.upstreams.clone(), run.turn);
    alternate(run, &PART, &rows, &ways, async |row, way| match row.is_for(*way) {
        true => Some(row.run(&Ground::new(*way, &rivals, &upstreams, turn)).await),
        false => None,
    })
    .await;
}
