//! The server that ingest is compared with: axum behind the same listener on the same kind of runtime, which checks the
//! same, answers the same, and keeps nothing.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use bytes::Bytes;
use jiff::Timestamp;
use redrive::{
    api::{
        ProblemType,
        server::{Limits, Listen, Server},
    },
    shutdown::Shutdown,
    task::{self, Rules, Task, TaskId},
    telemetry::metrics::Metrics,
};

pub async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let rules = Arc::new(Rules::new(task::Config::default(), ["default".to_owned()]));
    let router = Router::new().route("/tasks", post(accept)).with_state(rules);
    let server = Server::bind(&[Listen::Tcp(address)], Limits::default())?;
    let until_killed = Shutdown::new();
    server.serve(router, Metrics::new(&ProblemType::slugs()), until_killed.token(), Duration::ZERO).await;
    Ok(())
}

async fn accept(State(rules): State<Arc<Rules>>, body: Bytes) -> impl IntoResponse {
    let accepted_at = Timestamp::now();
    let id = match Task::parse(&body, &rules, accepted_at) {
        Ok(task) => task.id.unwrap_or_else(TaskId::new),
        Err(refusal) => return (StatusCode::UNPROCESSABLE_ENTITY, refusal.detail.to_string()).into_response(),
    };
    let answer = format!(r#"{{"id":"{id}","status":"queued","durability":"local","accepted_at":"{accepted_at}"}}"#);
    (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], answer).into_response()
}
