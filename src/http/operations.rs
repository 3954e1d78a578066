//! The operator's routes: metrics, health, the page.

use http::header::{self, HeaderValue};
use http::uri::Authority;
use http::{Response, StatusCode};

use super::body::Payload;
use super::connection::{Arrival, Door};
use super::error::{ApiError, Code};
use super::handler::Service;
use super::page;
use super::route::Route;
use crate::access::External;
use crate::metrics::Outcome;

/// The scheme and port at which images are served, as they were at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Public {
    pub tls: bool,
    pub port: u16,
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4";
const HTML: &str = "text/html; charset=utf-8";

/// Answers one of the operator's routes. Where they have a listener of their own, and once there is
/// authentication, only health is told at the others.
pub fn answer(
    service: &Service,
    route: &Route,
    external: &External,
    arrival: &Arrival,
) -> Result<(Response<Payload>, Outcome), ApiError> {
    let elsewhere = arrival.door == Door::Public || (arrival.door == Door::All && service.gate.has_logins());
    let response = match route {
        Route::Healthz => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
        Route::Readyz => readiness(service),
        Route::Metrics if !elsewhere => {
            // What was told of a quota is forgotten in silence.
            let upstreams = service.content.iter().flat_map(|content| content.mirror.upstreams().values());
            upstreams.for_each(|upstream| upstream.show_quota());
            let rendered = service.reports.metrics.render();
            let mut response = text(StatusCode::OK, METRICS, String::new());
            *response.body_mut() = Payload::Full(rendered.into());
            response
        }
        Route::Home if !elsewhere => home(service, external, arrival),
        _ => {
            return Err(ApiError::new(
                Code::NoEndpoint,
                "this is served at the operator's listener only (`operations`)",
            ));
        }
    };
    let outcome = if response.status().is_success() { Outcome::Hit } else { Outcome::Error };
    Ok((response, outcome))
}

/// A disk in trouble is no reason to take a mirror out: pulls flow, and from elsewhere they would cost
/// more. Pushes are refused by themselves.
fn readiness(service: &Service) -> Response<Payload> {
    let unready = |reason: &str| text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n"));
    if service.draining.has_begun() {
        return unready("shutting down");
    }
    let Some(content) = &service.content else { return unready("the store cannot be used yet") };
    let disk = content.hosted.trouble().map(|trouble| format!("{}\n", page::degraded(&trouble)));
    text(StatusCode::OK, TEXT, format!("ready\n{}", disk.unwrap_or_default()))
}

fn home(service: &Service, external: &External, arrival: &Arrival) -> Response<Payload> {
    let images = images(external, arrival, service.public);
    let upstreams = service.content.as_ref().map(|content| page::upstreams(&content.mirror));
    let totals = page::totals(&service.reports.metrics);
    let (upstreams, now) = (upstreams.unwrap_or_default(), std::time::SystemTime::now());
    let trouble = service.content.as_ref().and_then(|content| content.hosted.trouble());
    let body = page::render(&images, &external.prefix, &upstreams, &totals, trouble.as_ref(), now);
    let mut response = text(StatusCode::OK, HTML, body);
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// Where clients find the mirror: at the address that the browser used, or, of the operator's
/// listener, on the same host at the public port.
fn images(external: &External, arrival: &Arrival, public: Public) -> External {
    if arrival.door != Door::Operations {
        return external.clone();
    }
    let authority = external.authority.parse::<Authority>();
    let name = authority.as_ref().map_or("localhost", Authority::host);
    let authority = match (public.tls, public.port) {
        // 0: nobody knows which.
        (true, 443) | (false, 80) | (_, 0) => name.to_owned(),
        (_, port) => format!("{name}:{port}"),
    };
    External { tls: public.tls, authority, prefix: String::new() }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(host: &str, door: Door, tls: bool, port: u16) -> String {
        // The operator's listener speaks plain HTTP whatever the public one does.
        let arrived = tls && door != Door::Operations;
        let arrival = Arrival::new(([127, 0, 0, 1], 1).into(), door, arrived);
        let external = External::seen(arrival.peer.ip(), &http::HeaderMap::new(), Some(host), arrived, &[]);
        images(&external, &arrival, Public { tls, port }).base()
    }

    #[test]
    fn the_page_shows_the_address_of_images() {
        let of_operator = |host, tls, port| shown(host, Door::Operations, tls, port);
        assert_eq!(of_operator("mirror.test:9090", false, 5000), "http://mirror.test:5000");
        assert_eq!(of_operator("mirror.test", true, 5443), "https://mirror.test:5443");
        assert_eq!(of_operator("[::1]:9090", false, 5000), "http://[::1]:5000");
        assert_eq!(of_operator("mirror.test:9090", true, 443), "https://mirror.test");
        assert_eq!(of_operator("mirror.test:9090", false, 80), "http://mirror.test");
        assert_eq!(of_operator("mirror.test:9090", true, 80), "https://mirror.test:80");
        assert_eq!(of_operator("<not a host>", false, 5000), "http://localhost:5000");
        // Elsewhere the browser has come to the right place, whatever leads there.
        assert_eq!(shown("mirror.test:7000", Door::All, false, 5000), "http://mirror.test:7000");
        assert_eq!(shown("mirror.test", Door::All, true, 5000), "https://mirror.test");
    }
}
