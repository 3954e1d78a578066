//! podman, buildah, skopeo and CRI-O: a drop-in of `registries.conf`. They do not say which registry they
//! mean, so it is part of the mirror's location.

use super::asked::Asked;
use super::{Plan, quoted};

pub fn podman(asked: &Asked) -> Plan {
    let mut plan = drop_in(asked);
    plan.note("it counts from the next pull on, for podman, buildah and skopeo");
    plan
}

pub fn crio(asked: &Asked) -> Plan {
    let mut plan = drop_in(asked);
    plan.note("then: systemctl reload crio");
    plan
}

fn drop_in(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let authority = asked.server.authority();
    let insecure = |plain| if plain { "insecure = true\n" } else { "" };
    let mut tables = Vec::new();
    for upstream in &asked.upstreams {
        let Some(prefix) = upstream.prefix() else {
            plan.note(upstream.no_prefix());
            continue;
        };
        let host = quoted(&upstream.host);
        let location = quoted(&format!("{authority}{prefix}"));
        // A drop-in replaces all that other files say of a prefix.
        tables.push(format!(
            "[[registry]]\nprefix = {host}\nlocation = {host}\n{}\n[[registry.mirror]]\nlocation = {location}\n{}",
            insecure(upstream.is_plain),
            insecure(asked.server.is_plain())
        ));
    }
    if asked.server.is_plain() {
        tables.push(format!(
            "# For what is pulled from here by name.\n[[registry]]\nlocation = {}\ninsecure = true\n",
            quoted(authority)
        ));
    }
    let etc = asked.etc("containers");
    plan.file(etc.join("registries.conf.d/50-forebay.conf"), tables.join("\n"));
    if let Some(pem) = &asked.ca {
        plan.file(etc.join("certs.d").join(authority).join("ca.crt"), pem.as_str());
    }
    plan
}
