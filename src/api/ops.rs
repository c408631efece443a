//! The ops plane's probes: what an orchestrator and a scraper ask.

use std::sync::Arc;

use axum::{
    extract::State as Extract,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::State;

/// Whether the process is alive. It is while it answers: nothing that a restart would not cure makes it fail.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Whether one more task could be stored durably now. Redis being down does not matter.
pub(super) async fn ready(Extract(state): Extract<Arc<State>>) -> Response {
    if state.readiness.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match state.queues.log().ready() {
        Ok(()) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

pub(super) async fn metrics(Extract(state): Extract<Arc<State>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}
