//! The agent's HTTP server: metrics, health, who is profiled, and profiles for
//! `go tool pprof`. Answers; changes nothing.

mod access;
mod credentials;
mod listen;
mod page;
mod profile;

use std::sync::Arc;

use axum::{
    Router,
    extract::State as Shared,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};

use super::state::{State, lock};
use access::Access;
pub(super) use listen::{Refresher, Server};
use profile::Profiles;
pub use profile::{Asked, MAX_SECONDS, understand};

/// The format of the metrics, as Prometheus names it.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// A page loads nothing, runs nothing and is in no frame.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

/// What every answer is made from.
#[derive(Clone)]
struct Served {
    state: Arc<State>,
    profiles: Arc<Profiles>,
}

/// What answers requests, to clients of two kinds.
fn routers(state: &Arc<State>, access: [Access; 2]) -> [Router; 2] {
    let profiles = Arc::new(Profiles::new());
    access.map(|access| {
        let (state, profiles) = (Arc::clone(state), Arc::clone(&profiles));
        Router::new()
            .route("/", get(index))
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/targets", get(targets))
            .route("/debug/goprof/profile", get(profile::answer))
            .with_state(Served { state, profiles })
            .layer(middleware::from_fn_with_state(access, access::check))
    })
}

async fn index() -> Response {
    let text = "goprof agent\n\n\
        /metrics               for Prometheus\n\
        /targets               every process, and what is collected of it\n\
        /debug/goprof/profile  ?pid=PID, ?pod=POD or ?service=NAME, &seconds=30; for go tool pprof\n\
        /healthz  /readyz\n";
    plain(StatusCode::OK, text)
}

async fn ready(Shared(served): Shared<Served>) -> Response {
    match served.state.is_ready() {
        true => plain(StatusCode::OK, "ready\n"),
        false => plain(StatusCode::SERVICE_UNAVAILABLE, "not sampling\n"),
    }
}

async fn metrics(Shared(served): Shared<Served>) -> Response {
    match served.state.metrics_text() {
        Ok(text) => answer(StatusCode::OK, METRICS_TYPE, text),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}\n")),
    }
}

async fn targets(Shared(served): Shared<Served>, headers: HeaderMap) -> Response {
    let view = lock(&served.state.view).clone();
    // Browsers ask for it by name.
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        let mut page = answer(StatusCode::OK, "text/html; charset=utf-8", page::of(&view));
        let policy = HeaderValue::from_static(PAGE_POLICY);
        page.headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, policy);
        return page;
    }
    match serde_json::to_string_pretty(&view) {
        Ok(text) => answer(StatusCode::OK, "application/json", text + "\n"),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn plain(status: StatusCode, text: &str) -> Response {
    answer(status, "text/plain; charset=utf-8", text.to_owned())
}

/// An answer that no browser takes for another kind than it is.
fn answer(status: StatusCode, kind: &'static str, body: impl Into<axum::body::Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, body.into()).into_response()
}
