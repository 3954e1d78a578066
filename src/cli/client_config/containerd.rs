//! containerd: a `hosts.toml` for each registry. It says by itself which one it means (`?ns=`).

use std::path::Path;

use super::asked::{Asked, Mirrored};
use super::{Plan, quoted};

pub fn plan(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let directory = asked.etc("containerd").join("certs.d");
    let ca = asked.etc("containerd").join("forebay-ca.crt");
    for upstream in &asked.upstreams {
        plan.file(directory.join(folder(upstream)).join("hosts.toml"), hosts_toml(asked, upstream, &ca));
    }
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    let (at, config) = (directory.display(), asked.etc("containerd").join("config.toml"));
    let user = if asked.home.is_some() { " --user" } else { "" };
    plan.note(format!(
        "Kubernetes pulls by it if {} has, in [plugins.\"io.containerd.cri.v1.images\".registry] (containerd 1: \
         [plugins.\"io.containerd.grpc.v1.cri\".registry]), config_path = \"{at}\"; then: systemctl{user} \
         restart containerd. Once it is so, changes need no restart",
        config.display()
    ));
    plan.note(format!("by hand: ctr images pull --hosts-dir {at} ..., or nerdctl pull"));
    plan
}

/// A directory's name, where a port stands as `_5000_`.
pub fn folder(upstream: &Mirrored) -> String {
    match upstream.host.split_once(':') {
        Some((host, port)) => format!("{host}_{port}_"),
        None => upstream.host.clone(),
    }
}

/// With the registry itself as the last resort.
pub fn hosts_toml(asked: &Asked, upstream: &Mirrored, ca: &Path) -> String {
    let server = quoted(&upstream.url());
    let url = quoted(asked.server.url());
    let mut text = format!("server = {server}\n\n[host.{url}]\ncapabilities = [\"pull\", \"resolve\"]\n");
    if asked.ca.is_some() {
        text += &format!("ca = {}\n", quoted(&ca.display().to_string()));
    }
    text
}
