//! k3s, and RKE2 in the same way: `registries.yaml`, from which it makes files for its containerd.

use super::asked::Asked;
use super::{Plan, list, quoted};

pub fn plan(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let server = &asked.server;
    // No `rewrite`: its containerd says which registry it means, and the names are that registry's own.
    let mut text = "mirrors:\n".to_owned();
    for upstream in &asked.upstreams {
        let mut endpoints = vec![server.url().to_owned()];
        // Its last resort is the registry over HTTPS, unless that is said.
        endpoints.extend(upstream.is_plain.then(|| upstream.url()));
        text += &format!("  {}:\n    endpoint: {}\n", quoted(&upstream.host), list(&endpoints));
    }
    let ca = "/etc/rancher/k3s/forebay-ca.crt";
    if asked.ca.is_some() {
        let authority = quoted(server.authority());
        text += &format!("configs:\n  {authority}:\n    tls:\n      ca_file: {}\n", quoted(ca));
    }
    plan.file("/etc/rancher/k3s/registries.yaml", text);
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    plan.note("on every node, then: systemctl restart k3s (on agents: k3s-agent)");
    plan.note("RKE2 reads the same from /etc/rancher/rke2/registries.yaml");
    plan
}
