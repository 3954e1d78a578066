//! Serving what is held over TLS, by HTTP/1.1 and HTTP/2, beside nginx.

use std::time::Duration;

use crate::load::{Asked, How, Load};
use crate::servers::{Kind, Pair};
use crate::turns::{Part, Run};
use crate::warm::serve;

const PART: Part = Part { name: "tls", limit: Duration::from_secs(40), whole: Duration::from_secs(360) };

pub async fn run(run: &mut Run) {
    let scratch = tempfile::tempdir().unwrap();
    let pair = Pair::new(scratch.path());
    let mut works = vec![Load::new(Asked::Tag, How::Handshakes, 32)];
    works.extend([How::Tls, How::Http2].into_iter().flat_map(Load::each));
    serve(run, &PART, works, &[Kind::Forebay, Kind::Nginx], scratch.path(), Some(&pair)).await;
}
