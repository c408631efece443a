//! The ops plane's open part: what an orchestrator and a scraper ask.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    State,
    problem::{Problem, ProblemType},
    schema::{ProbeProblems, Version},
};

/// Whether the process is alive
///
/// It is while it answers: nothing that a restart would not cure makes this fail.
#[utoipa::path(
    get, path = "/livez", operation_id = "getLiveness", tag = "probes",
    params(("verbose" = Option<String>, Query, nullable = false, description = "List the checks.")),
    responses((status = 200, description = "Yes.", body = String, content_type = "text/plain",
        examples(("alive" = (summary = "Alive", value = json!("ok\n"))))), ProbeProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_liveness(RawQuery(query): RawQuery) -> Response {
    probe(&[("process", Ok(()))], query.as_deref())
}

/// Whether one more task could be stored
///
/// Green while tasks can be stored durably, also when Redis is down: that is what this program is for.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "probes",
    params(("verbose" = Option<String>, Query, nullable = false, description = "List the checks.")),
    responses((status = 200, description = "Yes.", body = String, content_type = "text/plain",
        examples(("ready" = (summary = "Ready", value = json!("ok\n"))))), ProbeProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_readiness(Extract(state): Extract<Arc<State>>, RawQuery(query): RawQuery) -> Response {
    probe(&readiness(&state), query.as_deref())
}

/// Whether the process has started
///
/// Green once everything that a task needs is running.
#[utoipa::path(
    get, path = "/startupz", operation_id = "getStartup", tag = "probes",
    params(("verbose" = Option<String>, Query, nullable = false, description = "List the checks.")),
    responses((status = 200, description = "Yes.", body = String, content_type = "text/plain",
        examples(("started" = (summary = "Started", value = json!("ok\n"))))), ProbeProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_startup(Extract(state): Extract<Arc<State>>, RawQuery(query): RawQuery) -> Response {
    let started = if state.readiness.is_started() { Ok(()) } else { Err("the process is starting".to_owned()) };
    probe(&[("started", started)], query.as_deref())
}

/// Metrics
///
/// In the exposition format 0.0.4 of Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "probes",
    responses((status = 200, description = "All metrics.", body = String, content_type = "text/plain",
        examples(("lag" = (summary = "One gauge", value = json!("kafka_consumer_lag 0\n"))))), ProbeProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_metrics(Extract(state): Extract<Arc<State>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}

/// The running version
///
/// Which program answers.
#[utoipa::path(
    get, path = "/version", operation_id = "getVersion", tag = "probes",
    responses((status = 200, description = "The version.", body = Version,
        examples(("version" = (summary = "A version", value = json!({"version": "0.1.0"}))))), ProbeProblems),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

type Check = (&'static str, Result<(), String>);

pub(super) fn readiness(state: &State) -> [Check; 2] {
    let draining = if state.readiness.is_draining() { Err("the server is stopping".to_owned()) } else { Ok(()) };
    [("log", state.queues.log().ready().map_err(|error| error.to_string())), ("serving", draining)]
}

/// `?verbose` is for a person at a terminal, who gets a line for each check.
fn probe(checks: &[Check], query: Option<&str>) -> Response {
    let failed = checks.iter().find_map(|(name, result)| result.as_ref().err().map(|why| format!("{name}: {why}")));
    let verbose = query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
    if verbose {
        let status = if failed.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let lines = checks.iter().map(|(name, result)| match result {
            Ok(()) => format!("[+] {name} ok\n"),
            Err(why) => format!("[-] {name}: {why}\n"),
        });
        return (status, lines.collect::<String>()).into_response();
    }
    match failed {
        None => "ok\n".into_response(),
        Some(why) => Problem::new(ProblemType::NotReady, why).into_response(),
    }
}
