//! `storage` and `proxy`: where content is, whose it is, and what may be done with it.

use url::Url;

use super::super::error::{ConfigError, Place};
use super::super::tree::Kind;
use super::super::units::format_time;
use super::Mapping;
use super::reader::{Given, Table};
use crate::oci::UpstreamHost;
use crate::upstream::Secret;

type Result<T> = std::result::Result<T, ConfigError>;

/// Where the filesystem driver keeps everything unless told otherwise.
const ROOT: &str = "/var/lib/registry";
/// As long as a time may be here: in effect, never.
const LONGEST: &str = "366days";

pub fn storage(mapping: &mut Mapping, mut storage: Table, is_proxy: bool, has_auth: bool) -> Result<()> {
    let parts = ["cache", "delete", "maintenance", "redirect", "tag"];
    let drivers: Vec<String> =
        storage.names().into_iter().filter(|name| !parts.contains(&name.as_str())).collect();
    match drivers.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return Err(storage.given().error("no storage is named; add `filesystem`")),
        ["filesystem"] => filesystem(mapping, storage.table("filesystem")?)?,
        ["inmemory"] => {
            return Err(storage.given().error(
                "`inmemory` is not available; use `filesystem`, with `rootdirectory` on a tmpfs if all is to be \
                 forgotten",
            ));
        }
        [driver @ ("s3" | "s3aws" | "gcs" | "azure" | "oss" | "swift")] => {
            return Err(storage.given().error(format!(
                "`{driver}` is not available: content is kept on a local disk; copy the bucket's `docker/` into a \
                 directory and name that as storage.filesystem.rootdirectory"
            )));
        }
        [driver] => {
            return Err(storage
                .given()
                .error(format!("`{driver}` is no storage that is known; use `filesystem`")));
        }
        _ => {
            return Err(storage
                .given()
                .error(format!("one storage is wanted here, not {}", drivers.join(" and "))));
        }
    }
    let read_only = maintenance(mapping, storage.table("maintenance")?, is_proxy)?;
    let mut delete = storage.table("delete")?;
    let off = delete.default("enabled", false);
    let enabled = delete.switch("enabled")?.unwrap_or(off);
    delete.finish(&mut mapping.warnings);
    if !is_proxy {
        hosted(mapping, read_only, &enabled, has_auth);
    }
    storage.skip(&["cache", "redirect", "tag"]);
    storage.finish(&mut mapping.warnings);
    Ok(())
}

/// Without a proxy every name is hosted, and there is nobody to fetch anything from.
fn hosted(mapping: &mut Mapping, read_only: Option<Given<bool>>, delete: &Given<bool>, has_auth: bool) {
    let no_proxy = Given { key: "proxy".to_owned(), place: Place::Default, value: () };
    mapping.text(&["default_upstream"], &no_proxy, "none");
    mapping.texts(&["hosted", "repositories"], &no_proxy, ["**".to_owned()]);
    match read_only {
        Some(given) => {
            mapping.text(&["hosted", "push"], &given, "off");
            mapping.switch(&["hosted", "delete"], &given, false);
        }
        None => {
            mapping.switch(&["hosted", "delete"], delete, delete.value);
            if !has_auth {
                let open = Given { key: "auth".to_owned(), place: Place::Default, value: () };
                mapping.text(&["hosted", "push"], &open, "open");
            }
        }
    }
}

fn filesystem(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    let usual = table.default("rootdirectory", ROOT.to_owned());
    let root = table.text("rootdirectory")?.unwrap_or(usual);
    mapping.text(&["data"], &root, root.value.clone());
    table.skip(&["maxthreads"]);
    table.finish(&mut mapping.warnings);
    Ok(())
}

/// Gives back `readonly`, where it is on.
fn maintenance(mapping: &mut Mapping, mut table: Table, is_proxy: bool) -> Result<Option<Given<bool>>> {
    let mut purging = table.table("uploadpurging")?;
    let enabled = purging.switch("enabled")?.filter(|enabled| !enabled.value);
    let dry = purging.switch("dryrun")?.filter(|dry| dry.value);
    let age = purging.time("age")?;
    if !is_proxy {
        match (enabled.or(dry), age) {
            (Some(never), _) => mapping.text(&["hosted", "upload_age"], &never, LONGEST),
            (None, Some(age)) => mapping.text(&["hosted", "upload_age"], &age, format_time(age.value)),
            (None, None) => {}
        }
    }
    mapping.ignore(&mut purging, &["interval"]);
    purging.finish(&mut mapping.warnings);
    let mut read_only = table.table("readonly")?;
    let enabled = read_only.switch("enabled")?.filter(|enabled| enabled.value);
    read_only.finish(&mut mapping.warnings);
    table.finish(&mut mapping.warnings);
    Ok(enabled)
}

/// The upstream that a proxy is of; None without one.
pub fn proxy(mapping: &mut Mapping, mut proxy: Table) -> Result<Option<Given<String>>> {
    let Some(remote) = proxy.text("remoteurl")? else {
        if !proxy.is_empty() {
            mapping
                .warn(&proxy.given(), "without effect: proxy.remoteurl is not set, so nothing is mirrored");
        }
        return Ok(None);
    };
    let host = remote.read(|text| host(text))?;
    let upstream = |key| ["upstream", host.as_str(), key];
    mapping.text(&["default_upstream"], &remote, host.as_str());
    mapping.text(&upstream("url"), &remote, remote.value.clone());
    // All names are the upstream's, also those of one component.
    mapping.put(&["hosted", "repositories"], &remote, Kind::List(Vec::new()));
    if proxy.has("exec") && !proxy.table("exec")?.is_empty() {
        return Err(proxy.given().error(
            "proxy.exec is not taken up from here: name the program as `credential_helper` in a forebay.toml, or set \
             proxy.username and proxy.password",
        ));
    }
    let (username, password) = (proxy.text("username")?, proxy.text("password")?);
    if let Some(username) = &username {
        mapping.text(&upstream("username"), username, username.value.clone());
        mapping.text(&upstream("private"), username, "shared");
        mapping.warn(
            username,
            "as with registry:2, whoever may pull here may pull what this login may pull, private repositories too; \
             `private = \"refuse\"` of a forebay.toml keeps those back",
        );
    }
    match (username, password) {
        (None, None) => {}
        (Some(_), Some(password)) => {
            let secret = Secret::new(password.value.clone());
            mapping.put(&upstream("password"), &password, Kind::Secret(secret));
        }
        (Some(alone), None) => return Err(alone.error("a username needs a password; set proxy.password too")),
        (None, Some(alone)) => return Err(alone.error("a password needs a username; set proxy.username too")),
    }
    // Tags are confirmed upstream as ever, so what `ttl` bounds is the disk, which has other bounds here.
    if let Some(ttl) = proxy.time("ttl")? {
        mapping.ignored.push(ttl.key);
    }
    mapping.ignore(&mut proxy, &["cachewritetimeout"]);
    proxy.finish(&mut mapping.warnings);
    Ok(Some(remote.with(host.as_str().to_owned())))
}

/// The name that the registry at this URL goes by.
fn host(text: &str) -> std::result::Result<UpstreamHost, String> {
    // Not shown: it may hold a password.
    let wrong = "this is no URL of a registry; write it as in `https://registry-1.docker.io`";
    let url = Url::parse(text).map_err(|_| wrong)?;
    let host = url.host_str().ok_or(wrong)?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{host}{port}").parse().map_err(|error| format!("{error}; {wrong}"))
}
