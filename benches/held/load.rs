//! Requests over a few kept connections: one on each, then the answers to all of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const CONNECTIONS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Load {
    streams: Vec<TcpStream>,
    requests: Vec<Vec<u8>>,
    buffer: Vec<u8>,
    /// Where in the random order of requests it is.
    state: u64,
}

impl Load {
    pub fn new(address: SocketAddr, paths: &[String]) -> Self {
        let stream = |_| {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let request = |path: &String| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: held\r\n\r\n");
            request.into_bytes()
        };
        Self {
            streams: (0..CONNECTIONS).map(stream).collect(),
            requests: paths.iter().map(request).collect(),
            buffer: vec![0; 64 << 10],
            state: 1,
        }
    }

    /// Every path once.
    pub fn all(&mut self) {
        for path in 0..self.requests.len() {
            self.streams[0].write_all(&self.requests[path]).unwrap();
            self.answer(0);
        }
    }

    /// Random ones, at least so many. How many they were.
    pub fn some(&mut self, count: usize) -> usize {
        let rounds = count.div_ceil(CONNECTIONS);
        for _ in 0..rounds {
            for stream in 0..CONNECTIONS {
                let path = self.random() % self.requests.len();
                self.streams[stream].write_all(&self.requests[path]).unwrap();
            }
            for stream in 0..CONNECTIONS {
                self.answer(stream);
            }
        }
        rounds * CONNECTIONS
    }

    /// The same ones in each run.
    fn random(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) as usize
    }

    /// Reads an answer to its end.
    fn answer(&mut self, stream: usize) {
        let mut read = 0;
        let end = loop {
            read += self.more(stream, read);
            if let Some(end) = self.buffer[..read].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut left = length.parse::<usize>().unwrap() - (read - end);
        while left > 0 {
            left -= self.more(stream, 0);
        }
    }

    fn more(&mut self, stream: usize, from: usize) -> usize {
        let read = self.streams[stream].read(&mut self.buffer[from..]).expect("an answer in time");
        assert!(read > 0, "the server closed");
        read
    }
}
