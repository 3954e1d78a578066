//! nginx with static files, at its best for them.

use std::path::Path;

use super::Pair;
use super::content::Content;
use crate::support::http_client;
use crate::support::image::MANIFEST;
use crate::support::process::{Process, Wait, command, free_port};

/// Its address, and the process.
pub async fn start(directory: &Path, content: &Content, tls: Option<&Pair>) -> (String, Process) {
    write_files(directory, content);
    let address = format!("127.0.0.1:{}", free_port());
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration(directory, &address, tls)).unwrap();
    let mut nginx = command("nginx", ["-c".as_ref(), file.as_os_str()]);
    let mut process = Process::start("nginx", &mut nginx, &directory.join("log"));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let client = http_client().tls_danger_accept_invalid_certs(true).build().unwrap();
    let wait = Wait::for_("nginx");
    while client.get(format!("{scheme}://{address}/")).send().await.is_err() {
        process.assert_running();
        wait.a_little().await;
    }
    (address, process)
}

fn write_files(directory: &Path, content: &Content) {
    for (path, held) in content.paths() {
        let file = directory.join("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, &held.bytes).unwrap();
    }
    let digest = &content.manifest().digest;
    std::fs::write(directory.join("locations.conf"), format!(
        "location ~ /manifests/ {{ default_type {MANIFEST}; add_header Docker-Content-Digest {digest}; }}\n\
         location ~ /blobs/(?<digest>.*)$ {{ add_header Docker-Content-Digest $digest; }}\n"
    ))
    .unwrap();
}

/// sendfile without `tcp_nopush`, connections kept, a worker a core; for TLS larger pieces than by
/// default, which cost it less.
fn configuration(directory: &Path, address: &str, tls: Option<&Pair>) -> String {
    let at = directory.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let (listen, tls) = match tls {
        None => (address.to_owned(), String::new()),
        Some(pair) => (
            format!("{address} ssl http2"),
            format!(
                "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3; ssl_session_tickets on;\n\
                 output_buffers 2 128k; http2_chunk_size 128k;\n",
                pair.certificate.display(),
                pair.key.display()
            ),
        ),
    };
    format!(
        "{user} daemon off; worker_processes auto; worker_rlimit_nofile 16384;\n\
         pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log {at}/access.log combined; sendfile on; tcp_nopush off;\n\
           keepalive_requests 100000000; default_type application/octet-stream;\n\
           client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;\n\
           uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
           {tls}\
           server {{ listen {listen} backlog=4096; root {at}/root; include {at}/locations.conf; }}\n\
         }}\n"
    )
}
