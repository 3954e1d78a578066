//! What a request asks for: method, path and query read into a [`Route`], purely.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::error::{ApiError, Code};
use super::owners::Owners;
use crate::oci::{Digest, Reference, Repository};

/// Names in one answer of `_catalog`, at most.
pub const CATALOG_MAX: usize = 1000;
/// Tags in one answer of `tags/list`, at most.
pub const TAGS_MAX: usize = 10_000;

/// What is asked for, its method already checked: GET or HEAD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is there a registry?
    Base,
    /// `/v2`, which lacks its slash.
    ToBase(String),
    Manifest(Repository, Reference),
    Blob(Repository, Digest),
    /// The name is as the client wrote it.
    Tags(Repository, String, Page),
    Catalog(Page),
    Metrics,
    Healthz,
    Readyz,
    Home,
}

/// A part of a list: `count` at most, from behind `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub count: usize,
    pub last: Option<String>,
}

/// A route, and the `?ns=` that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    pub route: Route,
    pub namespace: Option<String>,
}

impl Route {
    /// Of the operator, not of the registry's API.
    pub fn is_operations(&self) -> bool {
        matches!(self, Self::Metrics | Self::Healthz | Self::Readyz | Self::Home)
    }
}

/// Reads a request line. Percent-encoding is decoded once; what is then no plain name, tag or
/// digest is an error, so no spelling of `..` or `/` leads anywhere.
pub fn parse(owners: &Owners, method: &Method, path: &str, query: Option<&str>) -> Result<Routed, ApiError> {
    let path = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_| ApiError::new(Code::NameInvalid, "the path is not UTF-8".to_owned()))?;
    let read = matches!(*method, Method::GET | Method::HEAD);
    if let Some(route) = operations(&path) {
        return if read {
            Ok(Routed { route, namespace: None })
        } else {
            Err(ApiError::method(format!("{method} {path} is not served: use GET")))
        };
    }
    let Some((prefix, rest)) = api(&path) else { return Err(no_endpoint(method, &path)) };
    let query = Query::parse(query);
    let prefix = prefix.map(|host| owners.upstream(host).map(|_| host)).transpose()?;
    let endpoint = Endpoint::parse(rest).ok_or_else(|| no_endpoint(method, &path))?;
    if !read {
        return Err(ApiError::method(match endpoint {
            Endpoint::Upload(name) | Endpoint::Manifest(name, _) | Endpoint::Blob(name, _) => {
                format!("{method} is not supported: {} can only be read here", short(name))
            }
            _ => format!("{method} {} is not supported: use GET", short(&path)),
        }));
    }
    let named = query.namespace.as_deref().or(prefix);
    let route = endpoint.route(owners, named, &path, &query)?;
    Ok(Routed { route, namespace: query.namespace.map(Cow::into_owned) })
}

fn operations(path: &str) -> Option<Route> {
    Some(match path {
        "/" => Route::Home,
        "/metrics" => Route::Metrics,
        "/healthz" => Route::Healthz,
        "/readyz" => Route::Readyz,
        _ => return None,
    })
}

/// The host in front of `/v2`, and what follows it: None where the slash is missing.
fn api(path: &str) -> Option<(Option<&str>, Option<&str>)> {
    let path = path.strip_prefix('/')?;
    let after = |path: &'_ str| match path.strip_prefix("v2")? {
        "" => Some(None),
        rest => Some(Some(rest.strip_prefix('/')?.len())),
    };
    let tail = |length: Option<usize>| length.map(|length| &path[path.len() - length..]);
    if let Some(length) = after(path) {
        return Some((None, tail(length)));
    }
    let (host, rest) = path.split_once('/')?;
    Some((Some(host), tail(after(rest)?)))
}

/// An endpoint of the distribution API, its parts still as they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint<'a> {
    Base,
    ToBase,
    Catalog,
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Referrers(&'a str, &'a str),
    Tags(&'a str),
    Upload(&'a str),
}

impl<'a> Endpoint<'a> {
    /// Reads from the right, since a name may hold components such as `manifests` or `blobs`.
    fn parse(rest: Option<&'a str>) -> Option<Self> {
        let Some(rest) = rest else { return Some(Self::ToBase) };
        match rest {
            "" => return Some(Self::Base),
            "_catalog" => return Some(Self::Catalog),
            _ => {}
        }
        let (front, last) = rest.rsplit_once('/')?;
        let (name, what) = front.rsplit_once('/').unwrap_or(("", front));
        match (what, last) {
            ("manifests", _) => Some(Self::Manifest(name, last)),
            ("blobs", "uploads") => Some(Self::Upload(name)),
            ("blobs", _) => Some(Self::Blob(name, last)),
            ("referrers", _) => Some(Self::Referrers(name, last)),
            ("tags", "list") => Some(Self::Tags(name)),
            ("uploads", _) => Some(Self::Upload(name.strip_suffix("/blobs")?)),
            _ => None,
        }
    }

    fn route(
        self,
        owners: &Owners,
        named: Option<&str>,
        path: &str,
        query: &Query,
    ) -> Result<Route, ApiError> {
        let of = |name: &str| owners.resolve(named, name);
        Ok(match self {
            Self::Base => Route::Base,
            Self::ToBase => Route::ToBase(format!("{path}/")),
            Self::Catalog => Route::Catalog(query.page(CATALOG_MAX)?),
            Self::Manifest(name, reference) => {
                let repository = of(name)?;
                Route::Manifest(repository, reference.parse::<Reference>()?)
            }
            Self::Blob(name, digest) => Route::Blob(of(name)?, digest.parse::<Digest>()?),
            Self::Tags(name) => Route::Tags(of(name)?, name.to_owned(), query.page(TAGS_MAX)?),
            Self::Referrers(name, digest) => {
                let (repository, digest) = (of(name)?, digest.parse::<Digest>()?);
                let message = format!(
                    "no referrers API for {repository}@{digest}: use the tag `{}`",
                    digest.to_string().replace(':', "-")
                );
                return Err(ApiError::new(Code::NoEndpoint, message));
            }
            Self::Upload(name) => {
                of(name)?;
                return Err(ApiError::method(format!("there are no uploads to {}", short(name))));
            }
        })
    }
}

fn no_endpoint(method: &Method, path: &str) -> ApiError {
    ApiError::new(Code::NoEndpoint, format!("nothing is served at {method} {}", short(path)))
}

/// As much of a client's text as fits into a message.
fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

/// The parameters that are known; the first of each counts.
#[derive(Default)]
struct Query<'a> {
    namespace: Option<Cow<'a, str>>,
    count: Option<Cow<'a, str>>,
    last: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    fn parse(query: Option<&'a str>) -> Self {
        let mut known = Self::default();
        for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let place = match &*key {
                "ns" => &mut known.namespace,
                "n" => &mut known.count,
                "last" => &mut known.last,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        known
    }

    fn page(&self, max: usize) -> Result<Page, ApiError> {
        let count = match self.count.as_deref() {
            None => max,
            Some(count) if !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()) => {
                count.parse().unwrap_or(max).min(max)
            }
            Some(count) => {
                let message = format!("`n={}` is no number of entries: use 0 to {max}", short(count));
                return Err(ApiError::new(Code::PaginationNumberInvalid, message));
            }
        };
        let last = self.last.as_deref().filter(|last| !last.is_empty()).map(str::to_owned);
        Ok(Page { count, last })
    }
}

#[cfg(test)]
mod tests;
