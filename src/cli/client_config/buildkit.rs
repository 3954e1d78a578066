//! BuildKit by itself, and the builders of `docker buildx`. It says which registry it means (`?ns=`).

use std::path::{Path, PathBuf};

use super::asked::Asked;
use super::{Plan, list, quoted};

pub fn buildkit(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    let ca = asked.etc("buildkit").join("forebay-ca.crt");
    plan.file(asked.etc("buildkit").join("buildkitd.toml"), buildkitd_toml(asked, &ca));
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    plan.note("then: restart buildkitd");
    plan
}

pub fn buildx(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    // buildx takes the CA into the builder by itself, from where it is on this machine.
    let ca = PathBuf::from("forebay-ca.crt");
    plan.file("buildkitd.toml", buildkitd_toml(asked, &ca));
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    plan.note(
        "wherever these files are: docker buildx create --use --name forebay --buildkitd-config buildkitd.toml \
         (--config before buildx 0.13)",
    );
    plan
}

fn buildkitd_toml(asked: &Asked, ca: &Path) -> String {
    let server = &asked.server;
    let authority = server.authority();
    let mirrors = list(&[authority.to_owned()]);
    let mut text = String::new();
    for upstream in &asked.upstreams {
        let http = if upstream.is_plain { "http = true\n" } else { "" };
        text += &format!("[registry.{}]\nmirrors = {mirrors}\n{http}\n", quoted(&upstream.host));
    }
    // Said either way: of this very machine, BuildKit takes plain HTTP for granted.
    text += &format!("[registry.{}]\nhttp = {}\n", quoted(authority), server.is_plain());
    if asked.ca.is_some() {
        text += &format!("ca = {}\n", list(&[ca.display().to_string()]));
    }
    text
}
