//! `POST /tasks/batch`: many tasks in one request, each with its own result.
//!
//! What is wrong with the envelope refuses all of it; what is wrong with a task refuses that task.

use std::{fmt, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State as Extract},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use tracing::debug;

use super::{
    State,
    idempotency::IDEMPOTENCY_KEY,
    problem::{Problem, ProblemType},
    schema::{BatchAnswer, BatchDocument, BatchResult, WriteProblems},
    server::NoAnswer,
    submit::{self, Failure},
    trace,
};
use crate::{
    queue::Submission,
    task::{Task, TaskId},
};

/// The most tasks that any batch may have: what is over it is counted and not kept.
const MOST_TASKS: usize = 65_536;

/// Submit several tasks
///
/// Stores each task that is in order, and says for each what became of it. 202: all are stored. 207: some are not. Any
/// other answer means that none was accepted.
#[utoipa::path(
    post, path = "/tasks/batch", operation_id = "submitBatch", tag = "tasks",
    params(("traceparent" = Option<String>, Header, nullable = false,
        description = "W3C trace context. Kept with every task; one that is malformed is ignored.")),
    request_body(content = BatchDocument, examples(("two" = (summary = "A SET and a DEL that failed", value = json!({
        "tasks": [
            {"type": "simple", "command": "SET", "args": ["user:42", "Ada"], "id": "order-1"},
            {"type": "simple", "command": "DEL", "args": ["user:43"], "id": "order-2"},
        ]
    }))))),
    responses(
        (status = 202, description = "All tasks are stored.", body = BatchAnswer, examples(("stored" = (
            summary = "Both are stored", value = json!({"accepted": 2, "refused": 0, "results": [
                {"index": 0, "status": "accepted", "id": "order-1"},
                {"index": 1, "status": "accepted", "id": "order-2"},
            ]}))))),
        (status = 207, description = "Some tasks are not stored.", body = BatchAnswer, examples(("mixed" = (
            summary = "The second is refused", value = json!({"accepted": 1, "refused": 1, "results": [
                {"index": 0, "status": "accepted", "id": "order-1"},
                {"index": 1, "status": "refused", "problem": {
                    "type": "urn:redrive:problem:command-not-allowed", "title": "The command may not be queued",
                    "status": 422, "detail": "/command: reads only", "retryable": false, "accepted": false,
                    "errors": [{"pointer": "/tasks/1/command", "detail": "reads only"}]}},
            ]}))))),
        WriteProblems,
    ),
    security((), ("bearer" = [])),
)]
pub(super) async fn submit_batch(Extract(state): Extract<Arc<State>>, request: Request) -> Result<Response, Problem> {
    state.readiness.check_not_draining()?;
    if request.headers().contains_key(IDEMPOTENCY_KEY) {
        let detail = "a batch has no Idempotency-Key: give each of its tasks an id";
        return Err(Problem::new(ProblemType::IdempotencyKeyInvalid, detail));
    }
    let read = state.intake.read(request, state.config.max_batch_body).await?;
    let started = Instant::now();
    let traceparent = trace::traceparent(&read.headers);

    let mut results = Vec::new();
    let mut submissions = Vec::new();
    let mut places = Vec::new();
    for (index, item) in open(&read.body, state.config.max_batch)?.into_iter().enumerate() {
        results.push(match prepare(&state, item, traceparent) {
            Ok((id, submission)) => {
                places.push(index);
                submissions.push(submission);
                Ok(id)
            }
            Err(problem) => Err(problem),
        });
    }
    let prepared = submissions.len();
    let mut unstored = Vec::new();
    match submit::store(&state, submissions).await {
        Ok(fates) => {
            for (index, fate) in places.into_iter().zip(fates) {
                match fate.map_err(Failure::from) {
                    Ok(_) => {}
                    Err(Failure::Refused(problem)) => unstored.push((index, problem)),
                    // It cannot be said of one task alone that nothing is known of it.
                    Err(Failure::Unknown) => return Ok(NoAnswer::response()),
                }
            }
        }
        Err(error) => match Failure::from(error) {
            Failure::Refused(problem) => return Err(problem),
            Failure::Unknown => return Ok(NoAnswer::response()),
        },
    }
    if prepared == results.len()
        && unstored.len() == results.len()
        && let Some((_, problem)) = unstored.iter().find(|(_, problem)| problem.kind.retryable())
    {
        return Err(problem.clone());
    }
    for (index, problem) in unstored {
        results[index] = Err(problem);
    }
    state.metrics.accept_seconds.observe(started.elapsed().as_secs_f64());
    Ok(answer(&state, results))
}

/// The tasks of a batch, each as its own bytes.
fn open(body: &Bytes, max_batch: usize) -> Result<Vec<Bytes>, Problem> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            // The parser's words name the expected shape, and fields only by their names.
            Problem::new(ProblemType::ValidationFailed, "the batch is not an object with a list of tasks")
                .with_error("/tasks", "must be a list, and the batch's only field")
        } else {
            Problem::new(ProblemType::MalformedJson, "the body is not JSON")
        }
    })?;
    let count = envelope.tasks.count;
    if count == 0 {
        return Err(Problem::new(ProblemType::ValidationFailed, "the batch is empty")
            .with_error("/tasks", "must have at least one task"));
    }
    let limit = max_batch.min(MOST_TASKS);
    if count > limit {
        let detail = format!("the batch has {count} tasks; the limit is {limit}");
        return Err(Problem::new(ProblemType::ValidationFailed, detail)
            .with_error("/tasks", format!("must have at most {limit} tasks")));
    }
    Ok(envelope.tasks.items.into_iter().map(|item| body.slice_ref(item.get().as_bytes())).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    tasks: Items<'a>,
}

/// A list's items, unparsed, and how many there are. A list of many tiny items takes no more memory than one of as
/// many as any batch may have.
struct Items<'a> {
    items: Vec<&'a RawValue>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Items<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tasks")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items<'de>, A::Error> {
                let mut items = Vec::new();
                let mut count = 0;
                while let Some(item) = list.next_element::<&RawValue>()? {
                    count += 1;
                    if count <= MOST_TASKS {
                        items.push(item);
                    }
                }
                Ok(Items { items, count })
            }
        }

        deserializer.deserialize_seq(List)
    }
}

fn prepare(state: &State, item: Bytes, traceparent: Option<&str>) -> Result<(TaskId, Submission), Problem> {
    if item.len() > state.config.max_body {
        let detail = format!("the task is over the limit of {} bytes", state.config.max_body);
        return Err(Problem::new(ProblemType::PayloadTooLarge, detail));
    }
    let accepted_at = submit::now();
    let task = Task::parse(&item, &state.rules, accepted_at)?;
    let id = task.id.clone().unwrap_or_else(TaskId::new);
    let submission = submit::submission(&state.rules, &task, &id, item.clone(), accepted_at, traceparent);
    Ok((id, submission))
}

fn answer(state: &State, results: Vec<Result<TaskId, Problem>>) -> Response {
    let results: Vec<_> =
        results.into_iter().enumerate().map(|(index, result)| (index, result.map_err(placed(index)))).collect();
    let refused = results.iter().filter(|(_, result)| result.is_err()).count();
    for problem in results.iter().filter_map(|(_, result)| result.as_ref().err()) {
        state.metrics.count_refused(problem.kind.slug());
    }
    let accepted = results.len() - refused;
    debug!(accepted, refused, "Accepted {accepted} tasks of a batch and refused {refused}");
    let results = results.iter().map(|(index, result)| match result {
        Ok(id) => BatchResult { index: *index, status: "accepted", id: Some(id.to_string()), problem: None },
        Err(problem) => {
            BatchResult { index: *index, status: "refused", id: None, problem: Some(problem.document(Some(false))) }
        }
    });
    let body = serde_json::to_vec(&BatchAnswer { accepted, refused, results: results.collect() })
        .expect("an answer has only strings and numbers");
    let status = if refused == 0 { StatusCode::ACCEPTED } else { StatusCode::MULTI_STATUS };
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// A task's pointers begin at the task; those of the answer begin at the body.
fn placed(index: usize) -> impl Fn(Problem) -> Problem {
    move |mut problem| {
        for error in &mut problem.errors {
            error.pointer.insert_str(0, &format!("/tasks/{index}"));
        }
        problem
    }
}
