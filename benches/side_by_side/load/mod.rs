//! What servers that hold everything are asked to do.

mod h2load;
pub mod own;
pub mod slow;
mod wrk;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::report::{Quantity, Turn};
use crate::servers::content::{Content, HUGE, LARGE, MEDIUM, SMALL, tag_path};
use crate::servers::{Kind, Pair, Server};
use crate::turns::{Named, watched};
pub use wrk::Wrk;

const MANY: usize = 1000;

/// What got done.
pub struct Done {
    pub requests: u64,
    pub bytes: u64,
    pub seconds: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Asked {
    Tag,
    Digest,
    Blob(usize),
}

impl Asked {
    fn name(self) -> String {
        match self {
            Self::Tag => "manifest GET by tag".to_owned(),
            Self::Digest => "manifest GET by digest".to_owned(),
            Self::Blob(HUGE) => "blob GET, 1 GiB".to_owned(),
            Self::Blob(size) if size >= MEDIUM => format!("blob GET, {} MiB", size >> 20),
            Self::Blob(size) => format!("blob GET, {} KiB", size >> 10),
        }
    }

    pub fn path(self, content: &Content) -> String {
        match self {
            Self::Tag => tag_path(),
            Self::Digest => content.manifest_path(),
            Self::Blob(size) => content.blob_path(size),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum How {
    /// GETs by plain HTTP/1.1.
    Plain,
    /// GETs by HTTP/1.1 over TLS.
    Tls,
    /// GETs by HTTP/2 over TLS; with one connection, 64 at a time.
    Http2,
    Heads,
    /// A new TLS connection for each GET.
    Handshakes,
}

pub struct Load {
    pub asked: Asked,
    pub how: How,
    connections: usize,
}

/// Those that do the asking.
pub struct Generators {
    wrk: Option<Wrk>,
    h2load: bool,
    tls: Option<Arc<ClientConfig>>,
}

impl Generators {
    /// Names those that are not there.
    pub fn find(scratch: &Path, tls: Option<&Pair>) -> Self {
        let h2load = std::process::Command::new("h2load").arg("--version").output().is_ok();
        if tls.is_some() && !h2load {
            eprintln!("h2load is not there: HTTP/2 is left out");
        }
        Self { wrk: Wrk::find(scratch), h2load, tls: tls.map(own::trusting) }
    }
}

impl Load {
    pub fn new(asked: Asked, how: How, connections: usize) -> Self {
        Self { asked, how, connections }
    }

    /// The ways to ask that a part has, with each number of connections.
    pub fn each(how: How) -> Vec<Self> {
        let mut all = Vec::new();
        for asked in [Asked::Tag, Asked::Blob(SMALL), Asked::Blob(LARGE)] {
            all.extend([1, 64, MANY].map(|connections| Self::new(asked, how, connections)));
        }
        // h2load takes minutes to end with so much under way, and TLS does not differ in it.
        all.retain(|load| how == How::Plain || load.connections < MANY || !load.is_bulk());
        all.push(Self::new(Asked::Blob(MEDIUM), how, 64));
        all.push(Self::new(Asked::Blob(HUGE), how, 4));
        all
    }

    /// Where bytes are what counts; requests are, otherwise.
    fn is_bulk(&self) -> bool {
        matches!(self.asked, Asked::Blob(size) if size >= MEDIUM)
    }

    /// Registries do what everyone does: one number of connections, and no blob of a gibibyte.
    pub fn is_for(&self, kind: Kind) -> bool {
        let usual = self.connections == 64 && self.asked != Asked::Blob(HUGE);
        usual || matches!(kind, Kind::Forebay | Kind::Nginx)
    }

    pub fn can_run(&self, generators: &Generators) -> bool {
        match self.how {
            How::Plain | How::Tls => generators.wrk.is_some(),
            How::Http2 => generators.h2load,
            How::Heads | How::Handshakes => true,
        }
    }

    pub async fn measure(
        &self,
        server: &Server,
        content: &Content,
        generators: &Generators,
        turn: Duration,
    ) -> Turn {
        let (done, cost) = watched(server, self.run(server, content, generators, turn)).await;
        assert!(done.bytes > 0, "nothing was answered");
        match self.is_bulk() {
            true => cost.turn([
                (Quantity::Throughput, done.bytes as f64 / 1e6 / done.seconds),
                (Quantity::CpuGigabyte, cost.cpu / (done.bytes as f64 / 1e9)),
            ]),
            false => cost.turn([
                (Quantity::Requests, done.requests as f64 / done.seconds),
                (Quantity::CpuRequest, cost.cpu * 1e6 / done.requests as f64),
            ]),
        }
    }

    async fn run(&self, server: &Server, content: &Content, with: &Generators, turn: Duration) -> Done {
        let path = self.asked.path(content);
        // So that making the connections is the smaller part of it.
        let turn = if with.tls.is_some() && self.connections == MANY { turn * 3 } else { turn };
        let url = server.url() + &path;
        match self.how {
            How::Plain | How::Tls => with.wrk.as_ref().unwrap().get(&url, self.connections, turn).await,
            How::Http2 => h2load::get(&url, self.connections, turn).await,
            How::Heads => own::heads(&server.address, &path, self.connections, turn).await,
            How::Handshakes => {
                let tls = with.tls.clone().unwrap();
                own::handshakes(&server.address, &path, tls, self.connections, turn).await
            }
        }
    }
}

impl Named for Load {
    fn name(&self) -> String {
        let asked = match self.how {
            How::Heads => "manifest HEAD by tag".to_owned(),
            How::Handshakes => "new connection, manifest GET by tag".to_owned(),
            _ => self.asked.name(),
        };
        let how = match self.how {
            How::Plain | How::Heads => "",
            How::Tls | How::Handshakes => ", TLS",
            How::Http2 => ", HTTP/2",
        };
        match self.connections {
            1 => format!("{asked}{how}, 1 connection"),
            connections => format!("{asked}{how}, {connections} connections"),
        }
    }
}
