//! dockerd: `daemon.json` for Docker Hub, `hosts.toml` for the others.

use super::asked::Asked;
use super::{Plan, containerd, list, quoted};

pub fn plan(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let etc = asked.etc("docker");
    let authority = asked.server.authority();
    let ca = etc.join("certs.d").join(authority).join("ca.crt");
    match mirror(asked) {
        Some(mirror) => {
            plan.file(etc.join("daemon.json"), daemon_json(asked, &mirror));
            if mirror != asked.server.url() {
                plan.note("dockerd takes a mirror with a path from version 24 on");
            }
        }
        None => plan.note("dockerd's mirrors in daemon.json are of Docker Hub alone, which is not asked for"),
    }
    let others = asked.upstreams.iter().filter(|upstream| !upstream.is_docker_hub());
    for upstream in others.clone() {
        let file = etc.join("certs.d").join(containerd::folder(upstream)).join("hosts.toml");
        plan.file(file, containerd::hosts_toml(asked, upstream, &ca));
    }
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    if let Some(prefix) = others.filter_map(|upstream| upstream.prefix()).next() {
        plan.note(format!(
            "hosts.toml is read by Docker 29 and later, with the containerd image store; an older dockerd has \
             mirrors of Docker Hub alone, and pulls other images as {authority}{prefix}/..."
        ));
    }
    plan.note(match asked.home {
        None => "then: systemctl reload docker",
        Some(_) => "then: systemctl --user restart docker",
    });
    plan
}

fn daemon_json(asked: &Asked, mirror: &str) -> String {
    let mut lines = vec![format!("  \"registry-mirrors\": [{}]", quoted(mirror))];
    lines.extend(insecure(asked).map(|host| format!("  \"insecure-registries\": {}", list(&[host]))));
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// dockerd's arguments that say the same.
pub fn arguments(asked: &Asked) -> Vec<String> {
    let mirror = mirror(asked).map(|mirror| format!("--registry-mirror={mirror}"));
    mirror.into_iter().chain(insecure(asked).map(|host| format!("--insecure-registry={host}"))).collect()
}

/// The mirror of Docker Hub.
fn mirror(asked: &Asked) -> Option<String> {
    let prefix = asked.docker_hub()?.prefix()?;
    Some(format!("{}{prefix}", asked.server.url()))
}

/// A mirror is asked as its URL says; this is for what is pulled from here by name.
fn insecure(asked: &Asked) -> Option<String> {
    let server = &asked.server;
    (server.is_plain() && !server.is_loopback()).then(|| server.authority().to_owned())
}
