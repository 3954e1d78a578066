//! A client that asks for one thing after the other, on one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::upstream::MANIFEST;

const PATIENCE: Duration = Duration::from_secs(60);
/// Until the server waits for the next request: whether it still looks for more when that comes is not left to chance.
const PAUSE: Duration = Duration::from_millis(1);

pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, address, buffer: vec![0; 64 << 10] }
    }

    pub fn ask(&mut self, method: &str, path: &str, times: usize) {
        let host = self.address;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {MANIFEST}\r\nUser-Agent: instructions\r\n\r\n"
        );
        for _ in 0..times {
            self.stream.write_all(request.as_bytes()).unwrap();
            self.answer(method == "HEAD");
            std::thread::sleep(PAUSE);
        }
    }

    /// Reads an answer to its end.
    fn answer(&mut self, head_alone: bool) {
        let mut read = 0;
        let end = loop {
            read += self.more(read);
            if let Some(end) = self.buffer[..read].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut left = if head_alone { 0 } else { length.parse().unwrap() };
        left -= read - end;
        while left > 0 {
            left -= self.more(0);
        }
    }

    fn more(&mut self, from: usize) -> usize {
        let read = self.stream.read(&mut self.buffer[from..]).expect("an answer in time");
        assert!(read > 0, "the server closed");
        read
    }
}
