use super::*;

fn forward(data: &Path, tunnel: &[&str]) -> Forward {
    std::fs::create_dir_all(data.join("forebay")).unwrap();
    let registries = [("ghcr.io".to_owned(), "ghcr.io".parse().unwrap())].into();
    let tunnel = tunnel.iter().map(|pattern| (*pattern).to_owned()).collect();
    let options = ForwardOptions { listen: "127.0.0.1:0".parse().unwrap(), tunnel, registries };
    Forward::open(&options, data, Arc::new(Metrics::new()), Clock::default()).unwrap()
}

fn way(forward: &Forward, authority: &str) -> String {
    match forward.way(authority) {
        Ok(Way::Serve(host, upstream)) => format!("serves {host} as {upstream}"),
        Ok(Way::Tunnel(host)) => format!("passes on to {host}"),
        Err(why) => why,
    }
}

#[test]
fn registries_are_served_what_is_listed_is_passed_on_and_the_rest_refused() {
    let data = tempfile::tempdir().unwrap();
    let forward = forward(data.path(), &["*.example.com"]);
    assert_eq!(way(&forward, "ghcr.io:443"), "serves ghcr.io as ghcr.io");
    assert_eq!(way(&forward, "GHCR.io.:443"), "serves ghcr.io as ghcr.io");
    assert_eq!(way(&forward, "a.example.com:443"), "passes on to a.example.com");
    for (authority, part) in [
        ("ghcr.io:22", "port 443 only"),
        ("a.example.com:80", "port 443 only"),
        ("example.com:443", "forward_proxy.tunnel"),
        ("evil.example:443", "(ghcr.io)"),
        ("169.254.169.254:443", "forward_proxy.tunnel"),
        ("ghcr.io", "is no host with a port"),
        ("ghcr.io:99999", "is no host with a port"),
        ("", "is no host with a port"),
    ] {
        let why = way(&forward, authority);
        assert!(why.contains(part), "{authority}: {why}");
    }
}

#[tokio::test]
async fn no_private_address_is_connected_to_whatever_it_is_called() {
    for host in ["localhost", "127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1", "0.0.0.0"]
    {
        let opened = tunnel::open(host, PORT).await;
        assert!(matches!(opened, Err(tunnel::Refused::Private(_))), "{host}: {opened:?}");
    }
}
