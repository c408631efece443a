//! HTTP in front of everything: the data plane takes tasks, the ops plane shows what becomes of them.
//!
//! What belongs here: requests, answers, the problems that answers report, the listeners, and the API document. What
//! does not: judging a task (`task`), keeping it (`queue`), executing it (`consumer`). Invariants: 202 is answered only
//! for what is stored, every other answer means that nothing was accepted, and where neither can be said the
//! connection is closed without one. No `GET` changes anything.
//!
//! ```text
//!  server ─▶ front ─▶ guard ─▶ submit, batch, status ─▶ queue
//!  accept,   panics,  Host,    probes, admin         ─▶ consumer, dead letters
//!  time      answers  Origin,
//!                     token
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{consumer, dead_letters::DeadLetters, queue::Queues, task::Rules, telemetry::metrics::Metrics};

mod body;
mod front;
mod guard;
mod idempotency;
mod ops;
pub mod problem;
mod readiness;
mod schema;
pub mod server;
mod submit;
mod trace;

pub use guard::{Hosts, Token};
pub use problem::{Problem, ProblemType};
pub use readiness::Readiness;
pub use server::{Bound, Listen, Server};

use body::Intake;
use front::Front;
use guard::Guard;

/// Settings of both planes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the data plane listens.
    pub listen: Vec<Listen>,
    /// Where the ops plane listens.
    pub ops_listen: SocketAddr,
    /// Further names that may be in `Host`, with or without a port.
    pub allowed_hosts: Vec<String>,
    /// Bytes of one task.
    pub max_body: usize,
    /// Tasks of one batch.
    pub max_batch: usize,
    /// Bytes of one batch.
    pub max_batch_body: usize,
    /// Bytes of all bodies that are being read or stored. At least `max_batch_body`, or no large batch is ever taken.
    pub max_inflight_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bounds on the connections of each plane.
    pub connections: server::Limits,
    /// What opens `/admin`; none: everybody may, which is for loopback only.
    pub token: Option<Token>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 7379)))],
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 7380)),
            allowed_hosts: Vec::new(),
            max_body: 256 * 1024,
            max_batch: 500,
            max_batch_body: 4 * 1024 * 1024,
            max_inflight_bytes: 32 * 1024 * 1024,
            body_timeout: Duration::from_secs(10),
            connections: server::Limits::default(),
            token: None,
        }
    }
}

/// What the handlers work with.
pub struct State {
    pub queues: Arc<Queues>,
    pub consumer: consumer::Handle,
    pub dead_letters: Arc<DeadLetters>,
    pub metrics: Arc<Metrics>,
    pub rules: Arc<Rules>,
    pub config: Config,
    pub readiness: Readiness,
    intake: Intake,
}

impl State {
    pub fn new(
        queues: Arc<Queues>,
        consumer: consumer::Handle,
        dead_letters: Arc<DeadLetters>,
        metrics: Arc<Metrics>,
        rules: Arc<Rules>,
        config: Config,
    ) -> Arc<Self> {
        let intake = Intake::new(&config);
        Arc::new(Self {
            queues,
            consumer,
            dead_letters,
            metrics,
            rules,
            config,
            readiness: Readiness::default(),
            intake,
        })
    }

    fn front(&self, guard: Guard) -> Arc<Front> {
        Arc::new(Front { metrics: self.metrics.clone(), guard })
    }
}

/// The routes of the data plane, which answers to these hosts.
pub fn data_plane(state: &Arc<State>, hosts: Hosts) -> Router {
    let front = state.front(Guard { hosts: Some(hosts), token: None });
    let (router, _) = data_routes().split_for_parts();
    router
        .fallback(front::not_found)
        .method_not_allowed_fallback(front::method_not_allowed)
        .layer(middleware::from_fn_with_state(front, front::front))
        .with_state(state.clone())
}

fn data_routes() -> OpenApiRouter<Arc<State>> {
    OpenApiRouter::new().routes(routes!(submit::submit_task))
}

/// The routes of the ops plane.
pub fn ops_plane(state: &Arc<State>, _hosts: Hosts) -> Router {
    use axum::routing::get;
    Router::new()
        .route("/livez", get(ops::live))
        .route("/readyz", get(ops::ready))
        .route("/startupz", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .with_state(state.clone())
}

#[cfg(test)]
mod tests;
