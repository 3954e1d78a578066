//! `auth`: who may do anything at all. Distribution asks everybody for a login once there is one,
//! for pulls through a proxy too.

use super::super::error::ConfigError;
use super::Mapping;
use super::reader::{Given, Table};

type Result<T> = std::result::Result<T, ConfigError>;

/// Tells whether anybody has to log in.
pub fn auth(mapping: &mut Mapping, mut auth: Table) -> Result<bool> {
    let names = auth.names();
    if names.len() > 1 {
        return Err(auth.given().error(format!("one provider is wanted here, not {}", names.join(" and "))));
    }
    let Some(name) = names.first() else { return Ok(false) };
    match name.as_str() {
        "none" => Ok(false),
        "htpasswd" => {
            let table = auth.table("htpasswd")?;
            let given = table.given();
            htpasswd(mapping, table)?;
            everybody_logs_in(mapping, &given);
            Ok(true)
        }
        "token" => {
            let table = auth.table("token")?;
            let given = table.given();
            token(mapping, table)?;
            everybody_logs_in(mapping, &given);
            Ok(true)
        }
        "silly" => Err(auth.given().error(
            "`silly` lets in whoever sends any Authorization header; use `htpasswd`, or remove it to have no login",
        )),
        other => Err(auth.given().error(format!("`{other}` is no provider; use `htpasswd` or `token`"))),
    }
}

fn everybody_logs_in<T>(mapping: &mut Mapping, from: &Given<T>) {
    mapping.switch(&["auth", "anonymous_pull"], from, false);
    mapping.switch(&["auth", "mirror"], from, true);
    mapping.texts(&["auth", "login_hosts"], from, ["*".to_owned()]);
}

fn htpasswd(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    let realm = table.required("realm")?;
    mapping.text(&["auth", "realm"], &realm, realm.value.clone());
    let path = table.required("path")?;
    mapping.text(&["auth", "htpasswd_file"], &path, path.value.clone());
    table.finish(&mut mapping.warnings);
    Ok(())
}

fn token(mapping: &mut Mapping, mut table: Table) -> Result<()> {
    let server = |key| ["auth", "token_server", key];
    if let Some(given) = table.switch("autoredirect")?.filter(|given| given.value) {
        return Err(
            given.error("the token server is not guessed from the request; name it in auth.token.realm")
        );
    }
    for (theirs, ours) in [("realm", "realm"), ("service", "service"), ("issuer", "issuer")] {
        let given = table.required(theirs)?;
        mapping.text(&server(ours), &given, given.value.clone());
    }
    let files = [("rootcertbundle", "certificates_file"), ("jwks", "jwks_file")];
    let mut keys = 0;
    for (theirs, ours) in files {
        if let Some(given) = table.text(theirs)? {
            mapping.text(&server(ours), &given, given.value.clone());
            keys += 1;
        }
    }
    if keys == 0 {
        return Err(table.given().error(
            "tokens are checked by the token server's keys; name them in auth.token.rootcertbundle or auth.token.jwks",
        ));
    }
    if let Some(algorithms) = table.texts("signingalgorithms")? {
        mapping.warn(
            &algorithms,
            "ignored: every algorithm that fits the keys and is no shared secret is taken",
        );
    }
    table.skip(&["autoredirectpath"]);
    table.finish(&mut mapping.warnings);
    Ok(())
}
