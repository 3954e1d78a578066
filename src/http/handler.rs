//! From a request to its answer: id, client, route, limit, content.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, Version, request};
use ipnet::IpNet;
use tracing::Instrument;

use super::address::Entrance;
use super::body::{Body, Payload};
use super::connection::{Arrival, Door};
use super::error::{ApiError, Code};
use super::exchange::{Exchange, Reports, RequestIds};
use super::operations::Public;
use super::owners::Owners;
use super::push::{Place, Writing};
use super::receive::RequestBody;
use super::route::{self, Route};
use super::{operations, respond};
use crate::access::{Action, Caller, Client, External, Gate, Limits};
use crate::answer::{BlobWant, Error, Served};
use crate::events::{self, Events, Target};
use crate::metrics::{Kind, Outcome};
use crate::mirror::Mirror;
use crate::oci::{Digest, Owner, Reference, Repository};
use crate::registry::Hosted;
use crate::store::BlobReader;
use crate::tasks::Tasks;
use crate::upstream::Hops;

/// What answers requests. Replaced as a whole when the configuration changes.
pub struct Service {
    pub owners: Arc<Owners>,
    pub gate: Arc<Gate>,
    pub limits: Limits,
    pub trusted_proxies: Vec<IpNet>,
    /// None while the store cannot be used: only the operator's pages are served then.
    pub content: Option<Content>,
    pub reports: Reports,
    /// Who is told of what requests do.
    pub events: Events,
    pub ids: RequestIds,
    pub draining: Draining,
    pub tasks: Tasks,
    /// Where clients connect.
    pub public: Public,
}

/// Where content comes from.
#[derive(Clone)]
pub struct Content {
    pub mirror: Arc<Mirror>,
    pub hosted: Arc<Hosted>,
}

/// Whether shutdown has begun. Clones share it.
#[derive(Clone, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An answer, and how the metrics count it.
pub(super) type Answer = Result<(Response<Payload>, Outcome), ApiError>;

impl Service {
    /// Answers a request. Its body is read only where the answer depends on it.
    pub async fn handle<B>(&self, request: Request<B>, arrival: &Arrival) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let (request, body) = request.into_parts();
        let mut body = RequestBody::new(body, &request, &arrival.activity);
        let client = Client::seen(arrival.peer.ip(), &request.headers, &self.trusted_proxies);
        let id = self.ids.of(&request.headers);
        // What is logged on behalf of a request, by background work too, names the request.
        let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
        let external = self.external(&request, arrival);
        let mut exchange = Exchange::begin(self.reports.clone(), id, client, external, &request, arrival);
        let answered = async {
            let answer = self.answer(&request, arrival, &mut exchange, &mut body).await;
            answer.inspect_err(|error| error.log(request.uri.path()))
        };
        let answer = answered.instrument(span).await;
        body.discard(&self.tasks);
        let (response, outcome) = answer.unwrap_or_else(|error| {
            let outcome = error.outcome;
            (error.response(), outcome)
        });
        let (path, query) = (request.uri.path(), request.uri.query());
        let namespace = route::namespace(&self.owners, arrival.scope.serve, path, query);
        exchange.deliver(respond::with_namespace(response, namespace), outcome)
    }

    /// By which base the client came here.
    pub(super) fn external(&self, request: &request::Parts, arrival: &Arrival) -> External {
        // Over HTTP/2, and where a request line has a host, that is the one that counts.
        let host = request.uri.authority().map(http::uri::Authority::as_str);
        let host = host.or_else(|| request.headers.get(http::header::HOST)?.to_str().ok());
        // What TLS was asked for counts where the request says nothing else.
        let host = host.or(arrival.server_name.as_deref());
        External::seen(arrival.peer.ip(), &request.headers, host, arrival.tls, &self.trusted_proxies)
    }

    async fn answer(
        &self,
        request: &request::Parts,
        arrival: &Arrival,
        exchange: &mut Exchange,
        body: &mut RequestBody,
    ) -> Answer {
        let (path, query) = (request.uri.path(), request.uri.query());
        if arrival.door != Door::Operations && self.gives_tokens_at(path) {
            self.limits.request(exchange.client).await.map_err(ApiError::too_many)?;
            return Box::pin(self.token(request, arrival, exchange.client, body)).await;
        }
        let authority = exchange.external.authority.clone();
        let entrance = Entrance { scope: &arrival.scope, authority: &authority };
        let routed = route::parse(&self.owners, entrance, &request.method, path, query);
        let of_operator = routed.as_ref().is_ok_and(|routed| routed.route.is_operations());
        let caller = self.identify(request, arrival, exchange.client).await?;
        if of_operator || arrival.door == Door::Operations {
            exchange.of_operations();
        } else {
            self.limits.request(&caller).await.map_err(ApiError::too_many)?;
        }
        exchange.of_caller(&caller);
        let routed = routed.map_err(|error| error.among(|| self.open_upstreams(&caller)))?;
        if !of_operator && arrival.door == Door::Operations {
            let message = "this listener is the operator's: images are served at the other one";
            return Err(ApiError::new(Code::NoEndpoint, message));
        }
        let namespace = routed.namespace.as_deref();
        let hops = &Hops::read(&request.headers);
        Ok(match routed.route {
            Route::Base => {
                self.admit(&caller, &routed.address, true)?;
                self.admit_to_upstream(&caller, &routed.address)?;
                (respond::base(), Outcome::Hit)
            }
            Route::ToBase(location) => (respond::redirect(location), Outcome::Hit),
            Route::Manifest(repository, reference) => {
                exchange.of_repository(Kind::Manifest, &repository, Some(reference.clone()));
                self.authorise(&caller, Action::Pull, &repository)?;
                if let Reference::Digest(digest) = &reference {
                    self.lease(request, &caller, &repository, digest).await;
                }
                self.manifest(request, hops, &caller, exchange, &repository, &reference).await?
            }
            Route::Blob(repository, digest) => {
                exchange.of_repository(Kind::Blob, &repository, Some(Reference::Digest(digest)));
                self.authorise(&caller, Action::Pull, &repository)?;
                self.lease(request, &caller, &repository, &digest).await;
                self.blob(request, hops, &caller, exchange, &repository, &digest).await?
            }
            Route::Tags(repository, name, page) => {
                exchange.of_repository(Kind::Tags, &repository, None);
                self.authorise(&caller, Action::Pull, &repository)?;
                let answer = Box::pin(self.tags(hops, &caller, &repository)).await?;
                let listed = respond::tags(&answer, &name, &page, path, namespace);
                (listed, respond::outcome(&answer.served))
            }
            Route::Referrers(repository, digest, artifact_type, page) => {
                exchange.of_repository(Kind::Referrers, &repository, Some(Reference::Digest(digest)));
                self.authorise(&caller, Action::Pull, &repository)?;
                let answer = Box::pin(self.referrers(hops, &caller, &repository, &digest)).await?;
                let listed = respond::referrers(&answer, artifact_type.as_deref(), &page, path, namespace);
                (listed, respond::outcome(&answer.served))
            }
            Route::Catalog(page) => {
                exchange.of_list(Kind::Catalog);
                self.admit(&caller, &routed.address, false)?;
                Box::pin(self.catalog(path, &caller, &routed.address, &page)).await?
            }
            Route::SearchPing => (respond::search_ping(), Outcome::Hit),
            Route::Search(search) => {
                exchange.of_list(Kind::Search);
                self.admit(&caller, &routed.address, false)?;
                Box::pin(self.search(&caller, &routed.address, &search)).await?
            }
            Route::Write(repository, write) => {
                let (action, kind, reference) = write.nature();
                exchange.of_repository(kind, &repository, reference);
                self.authorise(&caller, action, &repository)?;
                let place = Place(&routed.place);
                let (caller, repository, headers) = (&caller, &repository, &request.headers);
                let writing = Writing { caller, exchange, repository, place, headers };
                Box::pin(self.write(writing, write, body)).await?
            }
            route @ (Route::Metrics | Route::Healthz | Route::Readyz | Route::Home) => {
                operations::answer(self, &route, &exchange.external, arrival)?
            }
        })
    }

    pub(super) fn content(&self, kind: Kind, repository: Option<&Repository>) -> Result<&Content, ApiError> {
        self.content.as_ref().ok_or_else(|| ApiError::not_ready(kind, repository))
    }

    async fn manifest(
        &self,
        request: &request::Parts,
        hops: &Hops,
        caller: &Caller,
        exchange: &Exchange,
        repository: &Repository,
        reference: &Reference,
    ) -> Answer {
        let content = self.content(Kind::Manifest, Some(repository))?;
        let body = request.method != Method::HEAD;
        let answer = match repository.owner {
            Owner::Upstream(_) => {
                let toll = self.limits.toll(caller);
                let asker = self.asker(&toll, hops, caller, repository);
                content.mirror.manifest(asker, repository, reference, body).await
            }
            Owner::Hosted => content.hosted.manifest(repository, reference, body).await,
        };
        let answer =
            answer.map_err(|error| self.without_content(caller, &error, Kind::Manifest, repository))?;
        if body && answer.bytes.is_none() {
            return Err(without_body(&answer.digest, Kind::Manifest, repository));
        }
        if body && answer.served == Served::Miss {
            exchange.tell(&self.events, events::Action::Pull, || {
                let tag = match reference {
                    Reference::Tag(tag) => Some(tag),
                    Reference::Digest(_) => None,
                };
                Target::manifest(repository, &answer.digest, &answer.media_type, answer.size, tag)
            });
        }
        let outcome = respond::outcome(&answer.served);
        Ok((respond::manifest(answer, &request.headers), outcome))
    }

    async fn blob(
        &self,
        request: &request::Parts,
        hops: &Hops,
        caller: &Caller,
        exchange: &Exchange,
        repository: &Repository,
        digest: &Digest,
    ) -> Answer {
        let content = self.content(Kind::Blob, Some(repository))?;
        let want = respond::blob_want(request.method == Method::HEAD, &request.headers, digest);
        let answer = match repository.owner {
            Owner::Upstream(_) => {
                let toll = self.limits.toll(caller);
                let asker = self.asker(&toll, hops, caller, repository);
                content.mirror.blob(asker, repository, digest, want).await
            }
            Owner::Hosted => content.hosted.blob(repository, digest, want).await,
        };
        let mut answer =
            answer.map_err(|error| self.without_content(caller, &error, Kind::Blob, repository))?;
        if exchange.takes_windows {
            answer.body = answer.body.map(BlobReader::by_windows);
        }
        if want != BlobWant::Head {
            if answer.body.is_none() {
                return Err(without_body(digest, Kind::Blob, repository));
            }
            // An HTTP/1.0 client takes the connection's end for the body's, so it could not tell a
            // body that was broken off from a whole one.
            if request.version < Version::HTTP_11 && answer.size.is_none() && answer.range.is_none() {
                let message = format!("{digest}: its size is not known yet: ask for it over HTTP/1.1");
                return Err(ApiError::new(Code::BlobUnknown, message));
            }
            if answer.served == Served::Miss {
                exchange.tell(&self.events, events::Action::Pull, || {
                    Target::blob(repository, digest, answer.size)
                });
            }
        }
        let outcome = respond::outcome(&answer.served);
        Ok((respond::blob(answer, digest, &request.headers), outcome))
    }

    /// A pusher that learns from a HEAD that something is here does not send it: it stays for a while.
    async fn lease(
        &self,
        request: &request::Parts,
        caller: &Caller,
        repository: &Repository,
        digest: &Digest,
    ) {
        let is_pusher = request.method == Method::HEAD
            && repository.owner == Owner::Hosted
            && self.authorise(caller, Action::Push, repository).is_ok();
        if let Some(content) = self.content.as_ref().filter(|_| is_pusher)
            && let Err(error) = Box::pin(content.hosted.lease_blob(repository, digest)).await
        {
            tracing::debug!(%repository, %digest, %error, "no lease");
        }
    }
}

/// An answer that lacks the content that was asked for. No layer below means to give one.
fn without_body(digest: &Digest, kind: Kind, repository: &Repository) -> ApiError {
    let (subject, why) = (digest.to_string(), "found, and its content not given".to_owned());
    ApiError::of_content(&Error::Disk { subject, why }, kind, repository)
}
