//! Which addresses of a name are connected to, and in which order.
//!
//! The connector tries the addresses of one family one after the other and gives each its share of the
//! time to connect; the other family is tried beside them after 300 ms. So the list is short, that no
//! share gets too small, and the address that answered last is first: one that is dead costs its share
//! once.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use moka::sync::Cache;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::guard::public_only;

/// Most addresses of one family.
const PER_FAMILY: usize = 4;
const NAMES: u64 = 256;

type Looked = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Clones share what they know.
#[derive(Clone)]
pub struct Resolver {
    lookup: fn(String) -> Looked,
    answered: Cache<String, IpAddr>,
    public_only: bool,
}

impl Resolver {
    pub fn new() -> Self {
        Self::over(|name| Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) }))
    }

    fn over(lookup: fn(String) -> Looked) -> Self {
        Self { lookup, answered: Cache::new(NAMES), public_only: false }
    }

    /// The same, giving public addresses only, so that what is judged is what is connected to.
    pub fn guarded(&self) -> Self {
        Self { public_only: true, ..self.clone() }
    }

    /// Takes note that an address of this name answered.
    pub fn answered(&self, name: &str, address: IpAddr) {
        if self.answered.get(name) != Some(address) {
            self.answered.insert(name.to_owned(), address);
        }
    }

    async fn addresses(
        self,
        name: String,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let mut addresses = (self.lookup)(name.clone()).await?;
        if self.public_only {
            addresses = public_only(addresses)?;
        }
        Ok(ordered(addresses, self.answered.get(&name)))
    }
}

fn ordered(mut addresses: Vec<SocketAddr>, first: Option<IpAddr>) -> Vec<SocketAddr> {
    if let Some(at) = addresses.iter().position(|address| Some(address.ip()) == first) {
        addresses[..=at].rotate_right(1);
    }
    let (mut v4, mut v6) = (0, 0);
    addresses.retain(|address| {
        let seen = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        *seen += 1;
        *seen <= PER_FAMILY
    });
    addresses
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone().addresses(name.as_str().to_owned());
        Box::pin(async move { Ok(Box::new(addresses.await?.into_iter()) as Addrs) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::guard::PrivateAddress;
    use std::time::Duration;
    use tokio::net::{TcpListener, TcpSocket};

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn who_answered_is_first_and_lists_are_short() {
        let all =
            addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "192.0.2.4", "192.0.2.5"]);
        let short = ordered(all.clone(), None);
        assert_eq!(short, addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "192.0.2.4"]));
        let first = ordered(all.clone(), Some("192.0.2.5".parse().unwrap()));
        assert_eq!(first[0].ip().to_string(), "192.0.2.5");
        assert_eq!(first.len(), 5);
        assert_eq!(ordered(all, Some("203.0.113.9".parse().unwrap())), short, "no address of it any more");
    }

    #[tokio::test]
    async fn the_guarded_resolver_hides_private_addresses() {
        let guarded = Resolver::new().guarded();
        let error = guarded.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(error.is::<PrivateAddress>(), "{error}");
    }

    /// An address whose connections are never taken: its queue is full, and what comes is dropped.
    async fn black_hole(address: &str) -> (TcpListener, Vec<tokio::task::JoinHandle<()>>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(address.parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let at = listener.local_addr().unwrap();
        let mut held = Vec::new();
        loop {
            let connect = tokio::net::TcpStream::connect(at);
            match tokio::time::timeout(Duration::from_millis(300), connect).await {
                Ok(stream) => held.push(tokio::spawn(async move {
                    let _stream = stream;
                    std::future::pending::<()>().await;
                })),
                Err(_) => return (listener, held),
            }
        }
    }

    #[tokio::test]
    async fn a_dead_first_address_costs_its_share_and_only_once() {
        let (hole, held) = black_hole("127.0.0.2:0").await;
        let port = hole.local_addr().unwrap().port();
        let server = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                let served = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, served));
            }
        });
        let resolver = Resolver::over(|_| Box::pin(async { Ok(addresses(&["127.0.0.2", "127.0.0.3"])) }));
        let client = reqwest::Client::builder()
            .no_proxy()
            .dns_resolver(resolver.clone())
            .connect_timeout(Duration::from_secs(4))
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let url = format!("http://registry.example:{port}/");
        let first = client.get(&url).send().await.unwrap();
        let answered = first.remote_addr().unwrap().ip();
        assert_eq!(answered.to_string(), "127.0.0.3", "the second address was tried within the time for one");
        resolver.answered("registry.example", answered);
        let next: Vec<_> = resolver.resolve("registry.example".parse().unwrap()).await.unwrap().collect();
        assert_eq!(next, addresses(&["127.0.0.3", "127.0.0.2"]), "the dead one is not tried first again");
        held.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
