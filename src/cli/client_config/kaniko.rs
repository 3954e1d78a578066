//! kaniko: arguments of its executor, one a line. They do for a shell's `$(...)` and for a list in YAML.

use super::Plan;
use super::asked::Asked;

pub fn plan(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let authority = asked.server.authority();
    let mut arguments = Vec::new();
    let mut maps = false;
    for upstream in &asked.upstreams {
        match upstream.prefix() {
            Some(prefix) if prefix.is_empty() => {
                arguments.push(format!("--registry-mirror={authority}"));
            }
            Some(prefix) => {
                // Docker Hub is known to it by this name.
                let host = if upstream.is_docker_hub() { "index.docker.io" } else { &upstream.host };
                arguments.push(format!("--registry-map={host}={authority}{prefix}"));
                maps = true;
            }
            None => plan.note(upstream.no_prefix()),
        }
    }
    let plain =
        asked.upstreams.iter().filter(|upstream| upstream.is_plain).map(|upstream| upstream.host.as_str());
    let plain = plain.chain(asked.server.is_plain().then_some(authority));
    arguments.extend(plain.map(|host| format!("--insecure-registry={host}")));
    let ca = "/kaniko/ssl/certs/forebay-ca.crt";
    if asked.ca.is_some() {
        arguments.push(format!("--registry-certificate={authority}={ca}"));
    }
    plan.file("kaniko.args", arguments.join("\n") + "\n");
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
        plan.note(format!("mount the CA into the container as {ca}"));
    }
    if maps {
        plan.note("--registry-map with a path is known to kaniko from version 1.23 on");
    }
    plan.note("these are further arguments of /kaniko/executor");
    plan
}
