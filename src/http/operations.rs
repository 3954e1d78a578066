//! The operator's routes: metrics, health, the page.

use http::header::{self, HeaderValue};
use http::{Response, StatusCode, request};

use super::body::Payload;
use super::connection::{Arrival, Door};
use super::error::{ApiError, Code};
use super::handler::Service;
use super::page;
use super::route::Route;
use crate::metrics::Outcome;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4";
const HTML: &str = "text/html; charset=utf-8";

/// Answers one of the operator's routes; where they have a listener of their own, only health is
/// told at the others.
pub fn answer(
    service: &Service,
    route: &Route,
    request: &request::Parts,
    arrival: &Arrival,
) -> Result<(Response<Payload>, Outcome), ApiError> {
    let elsewhere = arrival.door == Door::Public;
    let response = match route {
        Route::Healthz => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
        Route::Readyz => readiness(service),
        Route::Metrics if !elsewhere => {
            let rendered = service.reports.metrics.render();
            let mut response = text(StatusCode::OK, METRICS, String::new());
            *response.body_mut() = Payload::Full(rendered.into());
            response
        }
        Route::Home if !elsewhere => home(service, request, arrival),
        _ => return Err(ApiError::new(Code::NoEndpoint, "this is served at the operator's listener only")),
    };
    let outcome = if response.status().is_success() { Outcome::Hit } else { Outcome::Error };
    Ok((response, outcome))
}

fn readiness(service: &Service) -> Response<Payload> {
    let (status, reason) = if service.draining.has_begun() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else if service.content.is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be used yet\n")
    } else {
        (StatusCode::OK, "ready\n")
    };
    text(status, TEXT, reason.to_owned())
}

fn home(service: &Service, request: &request::Parts, arrival: &Arrival) -> Response<Payload> {
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri.authority().map(|authority| authority.as_str()));
    let scheme = if arrival.tls { "https" } else { "http" };
    let base = format!("{scheme}://{}", host.unwrap_or("localhost:5000"));
    let upstreams = service.content.as_ref().map(|content| page::upstreams(&content.mirror));
    let totals = page::totals(&service.reports.metrics);
    let body = page::render(&base, &upstreams.unwrap_or_default(), &totals);
    let mut response = text(StatusCode::OK, HTML, body);
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Payload> {
    let mut response = Response::new(Payload::Full(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
