//! nginx in front, as operators set it up: it passes bodies on as they come.

use std::path::Path;
use std::time::Duration;

use super::support::clients::{Client, Skopeo};
use super::support::hosting::hosting;
use super::support::image::{Image, random_bytes};
use super::support::mirror::Mirror;
use super::support::namespace::isolated;
use super::support::process::{Process, Wait, command, free_port};
use super::support::pushers::Pusher;
use super::support::repository::Repository;
use super::support::{http, sha256};

/// A running nginx that passes all on to Forebay, over connections that it keeps.
struct Nginx {
    _process: Process,
    port: u16,
}

impl Nginx {
    async fn start(directory: &Path, to: &Mirror) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let (port, at) = (free_port(), directory.display());
        let file = directory.join("nginx.conf");
        let text = format!(
            "daemon off; error_log {at}/error; pid {at}/pid; worker_processes 1;\n\
             events {{ }}\n\
             http {{\n access_log off;\n client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             upstream forebay {{ server {host}; keepalive 4; }}\n\
             server {{\n listen 127.0.0.1:{port};\n client_max_body_size 0;\n\
             location / {{\n proxy_pass http://forebay;\n proxy_http_version 1.1;\n\
             proxy_request_buffering off; proxy_buffering off;\n\
             proxy_set_header Connection \"\"; proxy_set_header Host $http_host;\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
             proxy_set_header X-Forwarded-Proto $scheme;\n }} }} }}\n",
            host = to.host(),
        );
        std::fs::write(&file, text).unwrap();
        let mut nginx = command("nginx", ["-c".as_ref(), file.as_os_str()]);
        let mut process = Process::start("nginx", &mut nginx, &directory.join("log"));
        let wait = Wait::for_("nginx");
        while http().get(format!("http://127.0.0.1:{port}/v2/")).send().await.is_err() {
            process.assert_running();
            wait.a_little().await;
        }
        Self { _process: process, port }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

#[test]
fn pushes_go_through_nginx() {
    isolated(async |directory| {
        // From a proxy comes anybody: who trusts it says so.
        let config = "[hosted]\npush = \"open\"\n\
                      [limits]\ntrusted_proxies = [\"127.0.0.1/32\"]\nidle_timeout = \"1s\"\n";
        let mirror = hosting(&directory.join("forebay"), config).await;
        let nginx = Nginx::start(&directory.join("nginx"), &mirror).await;
        let (image, layout) = (Image::random(1, 1, 8 << 20), directory.join("layout"));
        image.write_layout(&layout, "1");
        let skopeo = Skopeo::new(&directory.join("skopeo"), "");
        let name = format!("{}/app:1", nginx.host());
        skopeo.load(&layout, &name).await;
        assert_eq!(skopeo.push(&name).await, image.digest());
        skopeo.remove(&name).await;
        skopeo.pull(&name).await;
        assert!(skopeo.held(&name).await.contains(&image.digest().to_owned()));

        // Every `Location` leads through nginx; and connections that Forebay has closed meanwhile,
        // nginx does not use.
        let repository = Repository::new(&format!("http://{}", nginx.host()), "app");
        for seed in 0..2 {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let bytes = random_bytes(seed, 100_000);
            let location = repository.begin().await;
            assert!(
                location.starts_with('/') || location.starts_with(&format!("http://{}/", nginx.host())),
                "{location}"
            );
            let digest = repository.push_blob(bytes.clone()).await;
            assert_eq!(digest, sha256(&bytes));
            assert_eq!(repository.get(&format!("blobs/{digest}")).await.expect(200).body, bytes);
        }
    });
}
