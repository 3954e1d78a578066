//! The login of an upstream: from a file, from Docker's configuration, or from a helper.

use std::path::{Path, PathBuf};

use url::Url;

use crate::upstream::{self, Credential, Password, Secret};

use super::environment::Environment;
use super::error::ConfigError;
use super::files;
use super::section::{Found, Section};

/// The value of `docker_config` that means what Docker itself would take.
pub const OF_ENVIRONMENT: &str = "env";

/// `url` is where the login is sent to, and so whose it has to be.
pub fn read(
    table: &mut Section,
    url: &Url,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Option<Credential>, ConfigError> {
    let secret = table.secret("password");
    for (key, file) in [("password", "password_file"), ("token", "token_file")] {
        let remedy = format!(
            "secrets do not belong into this file; write it into a file of its own and name that as `{file}`"
        );
        table.refuse(key, &remedy)?;
    }
    let username = table.text("username")?;
    let password_file = table.text("password_file")?;
    let token_file = table.text("token_file")?;
    let docker_config = table.text("docker_config")?;
    let helper = table.text("credential_helper")?;
    one_of(&[&username, &token_file, &docker_config, &helper])?;
    one_of(&[&password_file, &token_file, &docker_config, &helper])?;
    if let Some(token) = token_file {
        return Ok(Some(Credential::IdentityToken(Password::File(secret_file(&token, warnings)?))));
    }
    if let Some(found) = docker_config {
        return docker(&found, url, environment, warnings).map(Some);
    }
    if let Some(found) = helper {
        let program = found.read(|text| program(text, &search(environment)))?;
        return Ok(Some(Credential::Helper { program }));
    }
    let (username, password) = match (username, password_file, secret) {
        (None, None, _) => return Ok(None),
        (Some(username), Some(file), _) => (username, Password::File(secret_file(&file, warnings)?)),
        (Some(username), None, Some(secret)) => (username, Password::Inline(secret)),
        (Some(alone), None, None) => {
            return Err(alone.error("a username needs a password; set `password_file` too"));
        }
        (None, Some(alone), _) => return Err(alone.error("a password needs a username; set `username` too")),
    };
    if username.value.is_empty() || username.value.contains(':') || username.value.contains(char::is_control)
    {
        return Err(username.error(
            "a username is not empty and holds no `:` (RFC 7617); write it as the registry knows it",
        ));
    }
    Ok(Some(Credential::Password { username: username.value, password }))
}

/// A login has one place.
fn one_of(places: &[&Option<Found<String>>]) -> Result<(), ConfigError> {
    let mut given = places.iter().filter_map(|place| place.as_ref());
    let (Some(first), Some(second)) = (given.next(), given.next()) else { return Ok(()) };
    let name = |found: &Found<String>| found.key.rsplit('.').next().unwrap_or_default().to_owned();
    Err(second.error(format!("there is a login by `{}` already; keep one of the two", name(first))))
}

fn secret_file(found: &Found<String>, warnings: &mut Vec<String>) -> Result<PathBuf, ConfigError> {
    let path = found.read(|path| files::secret(path))?;
    warnings.extend(files::exposed(&path));
    Ok(path)
}

fn search(environment: &Environment) -> Vec<PathBuf> {
    environment.path("PATH").map(|path| upstream::search_path(path.as_os_str())).unwrap_or_default()
}

/// Found now, so that neither a changed `PATH` nor a changed directory leads to another program.
fn program(text: &str, search: &[PathBuf]) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        let path = PathBuf::from(text);
        return if upstream::is_program(&path) {
            Ok(path)
        } else {
            Err(format!("{text} is no program that can be run; correct the path, or `chmod +x` it"))
        };
    }
    if !upstream::is_helper_name(text) {
        return Err(format!(
            "`{text}` is no helper; write `ecr-login` for docker-credential-ecr-login, or an absolute path"
        ));
    }
    upstream::find_helper(text, search)
}

/// Docker's configuration, and whether it has a login for this registry now.
fn docker(
    found: &Found<String>,
    url: &Url,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Credential, ConfigError> {
    let search = search(environment);
    let (path, inline) = if found.value == OF_ENVIRONMENT {
        found.read(|_| of_environment(environment))?
    } else {
        (Some(PathBuf::from(&found.value)), None)
    };
    let text = path.as_deref().map(|path| found.read(|_| config_file(path))).transpose()?;
    if let Some(path) = &path {
        warnings.extend(files::exposed(path));
    }
    let texts = [inline.as_ref().map(Secret::reveal), text.as_deref()];
    let has_login = found.read(|_| upstream::has_docker_login(&texts, url, &search))?;
    if !has_login {
        warnings.push(format!(
            "{}: {}: there is no login for {} in it, so that is asked anonymously until there is one; `docker login` \
             adds one",
            found.origin,
            found.key,
            url.host_str().unwrap_or_default()
        ));
    }
    Ok(Credential::DockerConfig { path, inline, search })
}

type Places = (Option<PathBuf>, Option<Secret>);

/// `DOCKER_AUTH_CONFIG`, and `config.json` in `DOCKER_CONFIG` or `~/.docker` (docker/cli).
fn of_environment(environment: &Environment) -> Result<Places, String> {
    let inline = match environment.path("DOCKER_AUTH_CONFIG") {
        Some(text) => {
            let text = text.into_os_string().into_string();
            Some(Secret::new(text.map_err(|_| "DOCKER_AUTH_CONFIG is no UTF-8 text; write JSON into it")?))
        }
        None => None,
    };
    let directory =
        environment.path("DOCKER_CONFIG").or_else(|| Some(environment.path("HOME")?.join(".docker")));
    let path = directory.map(|directory| directory.join("config.json"));
    match (path.filter(|path| inline.is_none() || path.exists()), inline) {
        (None, None) => {
            Err("neither DOCKER_AUTH_CONFIG nor DOCKER_CONFIG nor HOME is set; set one, or write a \
                             path"
                .to_owned())
        }
        places => Ok(places),
    }
}

fn config_file(path: &Path) -> Result<String, String> {
    String::from_utf8(files::read(path)?).map_err(|_| format!("{} is no UTF-8 text", path.display()))
}
