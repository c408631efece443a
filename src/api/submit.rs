//! `POST /tasks`: one task in, one promise out.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State as Extract},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::FutureExt;
use jiff::Timestamp;
use tracing::{debug, error};

use super::{
    State,
    idempotency::decide_id,
    problem::{Problem, ProblemType},
    schema::{AcceptedTask, TaskDocument, WriteProblems},
    server::NoAnswer,
    trace,
};
use crate::{
    log::AppendError,
    queue::{Accepted, Envelope, Submission, SubmitError},
    task::{Rules, Task, TaskId},
};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Submit a task
///
/// Takes a Redis operation that could not be made, stores it durably, and makes it later. 202 means stored; any other
/// answer means that nothing was accepted. A connection that closes without an answer means that the fate is unknown:
/// repeat with the same id, which is safe.
#[utoipa::path(
    post, path = "/tasks", operation_id = "submitTask", tag = "tasks",
    params(
        ("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 1, max_length = 130,
            description = "The same thing as the task's `id`, quoted or bare."),
        ("traceparent" = Option<String>, Header, nullable = false,
            description = "W3C trace context. Kept with the task; one that is malformed is ignored."),
    ),
    request_body(content = TaskDocument, examples(
        ("set" = (summary = "A SET that failed", value = json!({
            "type": "simple", "command": "SET", "args": ["user:42", "Ada", "EX", "3600"], "id": "order-1"}))),
        ("late" = (summary = "A value that is deleted instead once it is older than half a minute", value = json!({
            "type": "simple", "command": "HSET", "args": ["cache:42", "name", "Ada"],
            "occurred_at": "2026-11-25T11:59:58.5Z", "late": {"after_ms": 30000, "do": "invalidate"},
            "deadline": "2026-11-25T13:00:00Z"}))),
        ("version" = (summary = "The seventeenth state of an order, unless a later one was written", value = json!({
            "type": "simple", "command": "SET", "args": ["order:4711", "paid"], "version": "17"}))),
        ("lua" = (summary = "A script with a time to live among its arguments", value = json!({
            "type": "lua", "script": "return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])",
            "keys": ["session:42"], "args": ["Ada", "600"], "ttl_args": [{"index": 1, "unit": "s"}],
            "idempotent": true}))),
    )),
    responses(
        (status = 202, description = "The task is stored.", body = AcceptedTask,
            headers(
                ("Location" = String, description = "Where the task's status is."),
                ("Idempotent-Replayed" = String, description = "`true` where the id was known: nothing was stored again."),
            ),
            examples(("stored" = (summary = "Stored on the local disk", value = json!({
                "id": "order-1", "status": "queued", "durability": "local",
                "accepted_at": "2026-11-25T12:00:00.123Z"}))))),
        WriteProblems,
    ),
    security((), ("bearer" = [])),
)]
pub(super) async fn submit_task(Extract(state): Extract<Arc<State>>, request: Request) -> Result<Response, Problem> {
    state.readiness.check_not_draining()?;
    let read = state.intake.read(request, state.config.max_body).await?;
    let started = Instant::now();
    let accepted_at = now();
    let task = Task::parse(&read.body, &state.rules, accepted_at)?;
    let id = decide_id(&read.headers, task.id.as_ref())?;
    let traceparent = trace::traceparent(&read.headers);
    let submission = submission(&state.rules, &task, &id, read.body.clone(), accepted_at, traceparent);
    let lane = submission.lane.as_str();
    let stored = store(&state, vec![submission]).await;
    let accepted = match stored.and_then(|mut stored| stored.pop().expect("there is a result for each task")) {
        Ok(accepted) => accepted,
        Err(error) => match Failure::from(error) {
            Failure::Refused(problem) => return Err(problem),
            Failure::Unknown => return Ok(NoAnswer::response()),
        },
    };
    state.metrics.accept_seconds.observe(started.elapsed().as_secs_f64());
    let trace_id = task.context.trace_id.as_deref().or(traceparent.map(trace::trace_id));
    let keys = || task.operation.units().map(|unit| unit.keys.len()).sum::<usize>();
    debug!(task.id = %id, trace_id, lane, keys = keys(), replayed = accepted.replayed, "Accepted task {id}");
    Ok(answer(&id, &accepted))
}

/// Where a task goes, and what is stored of it.
pub(super) fn submission(
    rules: &Rules,
    task: &Task<'_>,
    id: &TaskId,
    value: Bytes,
    accepted_at: Timestamp,
    traceparent: Option<&str>,
) -> Submission {
    Submission {
        target: (&*task.target).into(),
        lane: task.lane.or_else(|| rules.defaults(task).lane).unwrap_or_default(),
        ordering_key: Bytes::copy_from_slice(task.default_ordering_key(id)),
        envelope: Envelope::accept(rules, task, id, value, accepted_at, traceparent),
    }
}

/// The time of acceptance, in the milliseconds that are stored: a repetition is told the same.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// Stores tasks. A panic on the way leaves their fate unknown, and is answered as such.
pub(super) async fn store(
    state: &State,
    submissions: Vec<Submission>,
) -> Result<Vec<Result<Accepted, SubmitError>>, SubmitError> {
    AssertUnwindSafe(state.queues.submit_many(submissions)).catch_unwind().await.map_err(|_| {
        error!("Storing tasks panicked");
        SubmitError::Append(AppendError::FateUnknown)
    })
}

/// What to say about a task that was not stored.
pub(super) enum Failure {
    /// It was not and will not be.
    Refused(Problem),
    /// It may be stored: nothing may be said.
    Unknown,
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        let problem = match error {
            SubmitError::OtherOperation => {
                Problem::new(ProblemType::IdempotencyKeyReused, "the id was used for another operation")
            }
            SubmitError::Append(AppendError::FateUnknown) => return Self::Unknown,
            SubmitError::Append(AppendError::Full { retry_after }) => {
                Problem::new(ProblemType::QueueFull, "the queue has no room").with_retry_after(retry_after)
            }
            SubmitError::Append(AppendError::TooLarge { limit, .. }) => {
                let detail = format!("the task's record is over the storage's limit of {limit} bytes");
                Problem::new(ProblemType::PayloadTooLarge, detail)
            }
            SubmitError::Append(AppendError::Unavailable { .. }) => {
                Problem::new(ProblemType::QueueUnavailable, "the queue cannot take tasks now")
            }
            SubmitError::Append(AppendError::Closed) => Problem::new(ProblemType::Draining, "the server is stopping"),
        };
        Self::Refused(problem)
    }
}

/// The answer to a task that is stored. Ids need no escapes, so it is written in one go.
fn answer(id: &TaskId, accepted: &Accepted) -> Response {
    let Accepted { accepted_at, durability, replayed } = accepted;
    let durability = durability.as_str();
    let body =
        format!(r#"{{"id":"{id}","status":"queued","durability":"{durability}","accepted_at":"{accepted_at}"}}"#);
    let location =
        HeaderValue::try_from(format!("/tasks/{id}")).expect("ids have only characters that headers may have");
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::LOCATION, location);
    if *replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}
