//! What a request asks for: method, path and query read into a [`Route`], purely.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::address::{self, Address, Entrance, Serve};
use super::error::{ApiError, Code};
use super::owners::Owners;
use super::query::{Query, short};
use crate::oci::{Digest, InvalidReference, Owner, Reference, Repository, Tag, UploadId};
use crate::registry::PushError;

/// Names in one answer of `_catalog`, at most.
pub const CATALOG_MAX: usize = 1000;
/// Tags in one answer of `tags/list`, at most.
pub const TAGS_MAX: usize = 10_000;
/// Referrers in one answer, at most.
pub const REFERRERS_MAX: usize = 1000;
/// What a search finds, unless asked for more or fewer, and at most.
const SEARCH: (usize, usize) = (25, 100);

const READ: &str = "GET, HEAD";

/// What is asked for, its method already checked.
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
    /// With the artifact type that is asked for.
    Referrers(Repository, Digest, Option<String>, Page),
    /// `/v1/_ping` and `/v1/search`, for `docker search`.
    SearchPing,
    Search(Search),
    /// What changes a hosted repository, or is part of that.
    Write(Repository, Write),
    Metrics,
    Healthz,
    Readyz,
    Home,
}

/// A step of a push, or a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Begin(Begin),
    Status(UploadId),
    Append(UploadId),
    Finish(UploadId, Digest),
    Cancel(UploadId),
    PutManifest(Reference, Vec<Tag>),
    DeleteManifest(Reference),
    DeleteBlob(Digest),
}

/// How an upload is begun: with the whole blob, by a mount from somewhere or anywhere, or plainly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begin {
    pub digest: Option<Digest>,
    pub mount: Option<Digest>,
    pub from: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    pub term: String,
    pub count: usize,
}

/// A part of a list: `count` at most, from behind `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub count: usize,
    pub last: Option<String>,
}

/// A route, and by which address and `?ns=` it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    pub route: Route,
    pub address: Address,
    pub namespace: Option<String>,
    /// Where the repository is in the path, as the client wrote it: `/v2/<name>`.
    pub place: String,
}

impl Routed {
    fn plain(route: Route, address: Address) -> Self {
        Self { route, address, namespace: None, place: String::new() }
    }
}

impl Route {
    /// Of the operator, not of the registry's API.
    pub fn is_operations(&self) -> bool {
        matches!(self, Self::Metrics | Self::Healthz | Self::Readyz | Self::Home)
    }
}

/// Reads a request line. Percent-encoding is decoded once; what is then no plain name, tag or
/// digest is an error, so no spelling of `..` or `/` leads anywhere.
pub fn parse(
    owners: &Owners,
    entrance: Entrance<'_>,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Result<Routed, ApiError> {
    let path = decoded(path)?;
    let read = matches!(*method, Method::GET | Method::HEAD);
    if let Some(route) = operations(&path).filter(|_| read) {
        return Ok(Routed::plain(route, Address::default()));
    }
    let fixed = operations(&path).map(Ok).or_else(|| search(&path, query));
    if let Some(route) = fixed {
        return if read {
            let address = Address::of(owners, entrance, None, None);
            route.and_then(|route| Ok(Routed::plain(route, address?)))
        } else {
            Err(ApiError::method(format!("{method} {path} is not served: use GET"), READ))
        };
    }
    let Some((prefix, rest)) = api(&path) else { return Err(no_endpoint(method, &path)) };
    let query = Query::parse(query);
    let namespace = query.first("ns");
    let address = Address::of(owners, entrance, prefix, namespace)?;
    let endpoint = Endpoint::parse(rest).ok_or_else(|| no_endpoint(method, &path))?;
    let names = Names { owners, address: &address };
    let writes = !read || !endpoint.is_readable();
    if writes && !endpoint.name().is_empty() {
        if address.serve == Serve::Mirror && address.upstream().is_none() {
            let message = "this listener serves mirrored images, which can only be read: push at another one";
            return Err(ApiError::method(message.to_owned(), READ));
        }
        refuse_mirrored(&names.find(endpoint.name())?, method)?;
    }
    let methods = endpoint.methods();
    if !methods.split(", ").any(|known| known == method.as_str()) {
        let path = short(&path);
        return Err(ApiError::method(format!("{method} {path} is not supported: use {methods}"), methods));
    }
    let place = path[..path.len() - rest.map_or(0, str::len) + endpoint.name().len()].to_owned();
    let route = match endpoint.write(method) {
        Some(write) => write.route(&names, &query)?,
        None => endpoint.read(&names, &path, &query)?,
    };
    let namespace = namespace.map(str::to_owned);
    Ok(Routed { route, address, namespace, place })
}

/// Hardly any path has something to decode.
fn decoded(path: &str) -> Result<Cow<'_, str>, ApiError> {
    if !path.contains('%') {
        return Ok(path.into());
    }
    let decoded = percent_decode_str(path).decode_utf8();
    decoded.map_err(|_| ApiError::new(Code::NameInvalid, "the path is not UTF-8".to_owned()))
}

/// The `?ns=` that a request's answer depends on, whether it is one or an error.
pub fn namespace(owners: &Owners, serve: Serve, path: &str, query: Option<&str>) -> Option<String> {
    api(path)?;
    let query = Query::parse(query);
    query.first("ns").filter(|asked| address::counts(owners, serve, asked)).map(str::to_owned)
}

/// Whose the names in a path are.
struct Names<'a> {
    owners: &'a Owners,
    address: &'a Address,
}

impl Names<'_> {
    fn find(&self, name: &str) -> Result<Repository, ApiError> {
        Ok(self.address.repository(self.owners, name)?)
    }
}

/// What is mirrored is read only, whoever asks and whatever else is wrong.
fn refuse_mirrored(repository: &Repository, method: &Method) -> Result<(), ApiError> {
    let Owner::Upstream(host) = &repository.owner else { return Ok(()) };
    let message = format!(
        "{method} is not supported: {repository} is mirrored from {host}, and can only be read here; push there, or \
         here under a hosted name"
    );
    Err(ApiError::method(message, READ))
}

fn operations(path: &str) -> Option<Route> {
    Some(match path {
        "/" => Route::Home,
        "/metrics" => Route::Metrics,
        "/healthz" => Route::Healthz,
        // The second is where CNCF distribution has it.
        "/readyz" | "/debug/health" => Route::Readyz,
        _ => return None,
    })
}

/// `None`: another path. The API that `docker search` speaks is older than `/v2/`.
fn search(path: &str, query: Option<&str>) -> Option<Result<Route, ApiError>> {
    match path {
        "/v1/_ping" => Some(Ok(Route::SearchPing)),
        "/v1/search" => {
            let query = Query::parse(query);
            let count = query.number("n", SEARCH.1).map(|count| count.unwrap_or(SEARCH.0));
            let term = query.first("q").unwrap_or_default().chars().take(255).collect();
            Some(count.map(|count| Route::Search(Search { term, count })))
        }
        _ => None,
    }
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
    Uploads(&'a str),
    Upload(&'a str, &'a str),
}

/// An endpoint that is asked to change something.
struct Change<'a> {
    name: &'a str,
    what: What<'a>,
}

enum What<'a> {
    Begin,
    Upload(&'a str, Method),
    PutManifest(&'a str),
    DeleteManifest(&'a str),
    DeleteBlob(&'a str),
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
            ("blobs", "uploads") => Some(Self::Uploads(name)),
            ("blobs", _) => Some(Self::Blob(name, last)),
            ("referrers", _) => Some(Self::Referrers(name, last)),
            ("tags", "list") => Some(Self::Tags(name)),
            ("uploads", "") => Some(Self::Uploads(name.strip_suffix("/blobs")?)),
            ("uploads", _) => Some(Self::Upload(name.strip_suffix("/blobs")?, last)),
            _ => None,
        }
    }

    /// The repository's name as it stands in the path.
    fn name(self) -> &'a str {
        match self {
            Self::Base | Self::ToBase | Self::Catalog => "",
            Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Referrers(name, _)
            | Self::Tags(name)
            | Self::Uploads(name)
            | Self::Upload(name, _) => name,
        }
    }

    fn is_readable(self) -> bool {
        !matches!(self, Self::Uploads(_) | Self::Upload(..))
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Base | Self::ToBase | Self::Catalog | Self::Referrers(..) | Self::Tags(_) => READ,
            Self::Manifest(..) => "GET, HEAD, PUT, DELETE",
            Self::Blob(..) => "GET, HEAD, DELETE",
            Self::Uploads(_) => "POST",
            Self::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }

    /// What is to be changed by this method, which is one of the endpoint's.
    fn write(self, method: &Method) -> Option<Change<'a>> {
        let what = match (self, method) {
            (Self::Uploads(_), _) => What::Begin,
            (Self::Upload(_, id), method) => What::Upload(id, method.clone()),
            (Self::Manifest(_, reference), &Method::PUT) => What::PutManifest(reference),
            (Self::Manifest(_, reference), &Method::DELETE) => What::DeleteManifest(reference),
            (Self::Blob(_, digest), &Method::DELETE) => What::DeleteBlob(digest),
            _ => return None,
        };
        Some(Change { name: self.name(), what })
    }

    fn read(self, names: &Names<'_>, path: &str, query: &Query) -> Result<Route, ApiError> {
        let of = |name: &str| names.find(name);
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
                let artifact_type = query.first("artifactType").filter(|kind| !kind.is_empty());
                let page = query.page(REFERRERS_MAX)?;
                Route::Referrers(repository, digest, artifact_type.map(str::to_owned), page)
            }
            // These are for writing alone: `write` has them.
            Self::Uploads(_) | Self::Upload(..) => {
                return Err(ApiError::method("uploads are written to".to_owned(), self.methods()));
            }
        })
    }
}

impl Change<'_> {
    fn route(self, names: &Names<'_>, query: &Query) -> Result<Route, ApiError> {
        let repository = names.find(self.name)?;
        let write = match self.what {
            What::Begin => Write::Begin(query.begin()?),
            What::Upload(id, method) => upload(&repository, id, &method, query)?,
            What::PutManifest(reference) => Write::PutManifest(to_write(reference)?, query.tags()?),
            What::DeleteManifest(reference) => Write::DeleteManifest(reference.parse()?),
            What::DeleteBlob(digest) => Write::DeleteBlob(digest.parse()?),
        };
        Ok(Route::Write(repository, write))
    }
}

fn upload(repository: &Repository, id: &str, method: &Method, query: &Query) -> Result<Write, ApiError> {
    let id = id.parse::<UploadId>().map_err(|_| {
        let error = PushError::UploadUnknown { repository: repository.clone(), id: short(id) };
        ApiError::from(error)
    })?;
    Ok(match *method {
        Method::PATCH => Write::Append(id),
        Method::DELETE => Write::Cancel(id),
        Method::PUT => {
            let digest = query.first("digest").ok_or_else(|| {
                let message = "an upload ends with its digest: PUT <location>?digest=sha256:<hex>";
                ApiError::new(Code::DigestInvalid, message)
            })?;
            Write::Finish(id, digest.parse()?)
        }
        _ => Write::Status(id),
    })
}

/// A reference under which something is to be put: what is no tag is the client's mistake.
fn to_write(reference: &str) -> Result<Reference, ApiError> {
    reference.parse().map_err(|error| match error {
        InvalidReference::Tag(_) => ApiError::new(Code::TagInvalid, error.to_string()),
        InvalidReference::Digest(error) => error.into(),
    })
}

fn no_endpoint(method: &Method, path: &str) -> ApiError {
    ApiError::new(Code::NoEndpoint, format!("nothing is served at {method} {}", short(path)))
}

#[cfg(test)]
mod tests;
