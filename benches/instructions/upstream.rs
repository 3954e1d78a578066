//! A registry that has one image.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const NAME: &str = "library/counted";
const TAG: &str = "1.0.0";

/// A manifest of about 3 KiB and two blobs.
pub struct Image {
    manifest: Vec<u8>,
    small: Vec<u8>,
    medium: Vec<u8>,
}

impl Image {
    /// The same each time.
    pub fn made() -> Self {
        let (small, medium) = (filled(10 << 10), filled(1 << 20));
        let of = |kind: &str, blob: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(blob), "size": blob.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": of("config.v1+json", &small),
            "layers": [of("layer.v1.tar+gzip", &medium)],
            "annotations": { "org.example.filling": "x".repeat(2500) },
        });
        Self { manifest: manifest.to_string().into_bytes(), small, medium }
    }

    pub fn tag_path(&self) -> String {
        format!("/v2/{NAME}/manifests/{TAG}")
    }

    pub fn manifest_path(&self) -> String {
        format!("/v2/{NAME}/manifests/{}", digest(&self.manifest))
    }

    pub fn small_path(&self) -> String {
        format!("/v2/{NAME}/blobs/{}", digest(&self.small))
    }

    pub fn medium_path(&self) -> String {
        format!("/v2/{NAME}/blobs/{}", digest(&self.medium))
    }

    /// Media type and bytes of what is at a path.
    fn at(&self, path: &str) -> Option<(&str, &[u8])> {
        // Which upstream's it is may be asked in the query.
        let path = path.split('?').next().unwrap_or(path);
        match path {
            "/v2/" => Some(("application/json", b"{}")),
            path if path == self.tag_path() || path == self.manifest_path() => {
                Some((MANIFEST, &self.manifest))
            }
            path if path == self.small_path() => Some(("application/octet-stream", &self.small)),
            path if path == self.medium_path() => Some(("application/octet-stream", &self.medium)),
            _ => None,
        }
    }
}

fn filled(size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at * 31) >> 3) as u8).collect()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Answers until the process ends.
pub fn start(image: Image) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, image) = (listener.local_addr().unwrap(), Arc::new(image));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let image = image.clone();
            std::thread::spawn(move || answer(&image, stream));
        }
    });
    address
}

/// Until the client leaves.
fn answer(image: &Image, mut stream: TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    loop {
        let request = lines.next()?.ok()?;
        while !lines.next()?.ok()?.is_empty() {}
        let mut words = request.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let found = image.at(path);
        let (kind, bytes) = found.unwrap_or(("application/json", br#"{"errors":[]}"#));
        let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
        let (digest, length) = (digest(bytes), bytes.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nDocker-Content-Digest: {digest}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        if method != "HEAD" {
            stream.write_all(bytes).ok()?;
        }
    }
}
