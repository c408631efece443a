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

use axum::{
    Router, middleware,
    routing::{any, get, post},
};

use crate::{consumer, dead_letters::DeadLetters, queue::Queues, task::Rules, telemetry::metrics::Metrics};

mod admin;
mod batch;
mod body;
#[cfg(feature = "swagger-ui")]
mod docs;
mod front;
mod guard;
mod idempotency;
pub mod openapi;
mod ops;
pub mod problem;
mod readiness;
mod schema;
pub mod server;
mod status;
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
}

/// The routes of the data plane, which answers to these hosts.
pub fn data_plane(state: &Arc<State>, hosts: Hosts) -> Router {
    let guard = Guard { hosts: Some(hosts), token: None };
    let guarded = data_routes().route("/openapi.json", get(openapi::get_document));
    #[cfg(feature = "swagger-ui")]
    let guarded = guarded.merge(docs::routes());
    let guarded = behind(state, guard, guarded.fallback(front::not_found));
    let open = Router::new().route("/readyz", get(ops::get_readiness));
    behind(state, Guard::default(), open).merge(guarded).with_state(state.clone())
}

/// The routes of the ops plane, whose admin part answers to these hosts.
pub fn ops_plane(state: &Arc<State>, hosts: Hosts) -> Router {
    let guard = Guard { hosts: Some(hosts), token: state.config.token.clone() };
    // What is not there needs the token too: nobody learns which paths there are.
    let admin = admin_routes().route("/admin", any(front::not_found)).route("/admin/{*path}", any(front::not_found));
    let open = probe_routes().fallback(front::not_found);
    behind(state, guard, admin).merge(behind(state, Guard::default(), open)).with_state(state.clone())
}

fn behind(state: &State, guard: Guard, routes: Router<Arc<State>>) -> Router<Arc<State>> {
    let front = Arc::new(Front { metrics: state.metrics.clone(), guard });
    routes
        .method_not_allowed_fallback(front::method_not_allowed)
        .layer(middleware::from_fn_with_state(front, front::front))
}

/// What the API document says of these is beside each handler; a test compares the paths.
fn data_routes() -> Router<Arc<State>> {
    Router::new()
        .route("/tasks", post(submit::submit_task))
        .route("/tasks/batch", post(batch::submit_batch))
        .route("/tasks/{id}", get(status::get_task))
}

fn probe_routes() -> Router<Arc<State>> {
    Router::new()
        .route("/livez", get(ops::get_liveness))
        .route("/readyz", get(ops::get_readiness))
        .route("/startupz", get(ops::get_startup))
        .route("/metrics", get(ops::get_metrics))
        .route("/version", get(ops::get_version))
}

fn admin_routes() -> Router<Arc<State>> {
    Router::new()
        .route("/admin/v1/overview", get(admin::get_overview))
        .route("/admin/v1/breakers", get(admin::list_breakers))
        .route("/admin/v1/partitions", get(admin::list_partitions))
        .route("/admin/v1/dead-letters", get(admin::list_dead_letters))
        .route("/admin/v1/dead-letters/{id}", get(admin::get_dead_letter))
}

#[cfg(test)]
mod tests;
