//! What every request passes first and every answer last, on both planes.
//!
//! One layer instead of one for each concern: a request is checked against the plane's guard, a panic becomes a
//! problem, a problem becomes bytes and is counted, and every answer gets the same protective headers. What could not
//! be read as a request is answered here too. Nothing here reads a body.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::{debug, error, info};

use super::{
    guard::Guard,
    problem::{Problem, ProblemType, Refused},
};
use crate::telemetry::metrics::Metrics;

/// What the layer needs to know.
pub(super) struct Front {
    pub metrics: Arc<Metrics>,
    pub guard: Guard,
}

/// The layer.
pub(super) async fn front(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let writes = !request.method().is_safe();
    let mut response = match front.guard.check(&request) {
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            // The panic hook has printed what happened, with the place.
            error!("A request's handler panicked");
            Problem::new(ProblemType::Internal, "the server failed to handle the request").into_response()
        }),
        Err(problem) => problem.into_response(),
    };
    if let Some(Refused(problem)) = response.extensions_mut().remove() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = refuse(&front.metrics, &problem, writes);
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    }
    protect(response)
}

/// Answers bytes that are no request. They may have been meant as a write, so the answer says that nothing was
/// accepted.
pub(super) fn unreadable(metrics: &Metrics, error: &hyper::Error) -> Response {
    let too_large = error.is_parse_too_large();
    let kind = if too_large { ProblemType::HeadTooLarge } else { ProblemType::InvalidRequest };
    // The words of the error are from a list: nothing of what was sent is in them.
    protect(refuse(metrics, &Problem::new(kind, format!("the request cannot be read: {error}")), true))
}

fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refuse(metrics: &Metrics, problem: &Problem, writes: bool) -> Response {
    let slug = problem.kind.slug();
    metrics.count_refused(slug);
    // A refused task is a write that its service may have lost; all else is for who looks closer.
    if writes && problem.kind.status().as_u16() == 422 {
        info!(reason = slug, "Refused a request: {}", problem.kind.title());
    } else {
        debug!(reason = slug, "Refused a request: {}", problem.kind.title());
    }
    problem.render(writes.then_some(false))
}

/// Answers for paths that are not there.
pub(super) async fn not_found(_: Uri) -> Problem {
    Problem::new(ProblemType::NotFound, "there is nothing at this path; see /openapi.json for the paths there are")
}

/// Answers for methods that a path does not know. The router adds `Allow`.
pub(super) async fn method_not_allowed(_: Method) -> Problem {
    Problem::new(ProblemType::MethodNotAllowed, "the path does not know this method")
}
