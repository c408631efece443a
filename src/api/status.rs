//! `GET /tasks/{id}`: what became of a task.
//!
//! Three places know something: the memory of recent tasks that it was accepted, the consumer's windows what it waits
//! for, the dead letters why it was given up. Of a task that another process executes, what that has committed says that
//! it is finished.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State as Extract, rejection::PathRejection},
};

use super::{
    State,
    problem::{Problem, ProblemType},
    schema::{ReadProblems, TaskError, TaskStatus},
};
use crate::{
    consumer::{self, Waiting},
    dead_letters::{DeadLetter, DeadLetterError},
    queue::recent::{Progress, Remembered},
    task::{Outcome, TaskId},
};

/// Look a task up
///
/// Says where a task is and why. Tasks are remembered for a while after they are settled; dead ones as long as their
/// dead letters are kept.
#[utoipa::path(
    get, path = "/tasks/{id}", operation_id = "getTask", tag = "tasks",
    params(("id" = String, Path, description = "The task's id.")),
    responses(
        (status = 200, description = "What is known of the task.", body = TaskStatus, examples(("held" = (
            summary = "Redis is down", value = json!({
                "id": "order-1", "status": "held", "attempts": 0, "accepted_at": "2026-11-25T12:00:00.123Z",
                "target": "default", "lane": "normal", "held_since": "2026-11-25T11:58:00Z",
                "held_by": "connection refused"}))))),
        ReadProblems,
    ),
    security((), ("bearer" = [])),
)]
pub(super) async fn get_task(
    Extract(state): Extract<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<TaskStatus>, Problem> {
    let id = id.ok().and_then(|Path(id)| TaskId::parse(&id).ok()).ok_or_else(unknown)?;
    let remembered = state.queues.find(&id);
    if let Some(remembered) = &remembered
        && let Progress::Settled(outcome) = remembered.progress
    {
        return settled(&state, &id, remembered, outcome).await.map(Json);
    }
    if let Some(waiting) = state.consumer.find(&id).await {
        return Ok(Json(waits(&id, waiting)));
    }
    // It may have been settled while the consumer was asked.
    match state.queues.find(&id) {
        Some(remembered) => match remembered.progress {
            Progress::Settled(outcome) => settled(&state, &id, &remembered, outcome).await,
            Progress::Stored if is_finished_elsewhere(&state, &remembered).await => {
                settled(&state, &id, &remembered, None).await
            }
            Progress::Stored => Ok(queued(&id, &remembered)),
        },
        None => find_letter(&state, &id).await?.map(|letter| dead(&id, letter)).ok_or_else(unknown),
    }
    .map(Json)
}

/// Whether another process has finished it, as far as the log knows.
async fn is_finished_elsewhere(state: &State, remembered: &Remembered) -> bool {
    let Some((partition, offset)) = &remembered.place else { return false };
    let checkpoint = state.queues.log().committed(partition).await;
    checkpoint.is_some_and(|checkpoint| consumer::is_finished(&checkpoint, *offset))
}

fn unknown() -> Problem {
    Problem::new(
        ProblemType::TaskUnknown,
        "no such task is known: it was never accepted here, or it was settled and is past what is remembered",
    )
}

async fn settled(
    state: &State,
    id: &TaskId,
    remembered: &Remembered,
    outcome: Option<Outcome>,
) -> Result<TaskStatus, Problem> {
    // What another process settled, before or elsewhere, may have died there.
    if matches!(outcome, None | Some(Outcome::Dead))
        && let Some(letter) = find_letter(state, id).await?
    {
        return Ok(dead(id, letter));
    }
    let message = remembered.last_error.as_deref().map(str::to_owned);
    Ok(TaskStatus {
        id: id.to_string(),
        status: "settled",
        outcome: outcome.map(Outcome::as_str),
        attempts: remembered.attempts,
        accepted_at: Some(remembered.accepted_at),
        superseded_by: remembered.superseded_by.as_ref().map(TaskId::to_string),
        last_error: message.map(|message| TaskError { code: None, message, at: None }),
        ..TaskStatus::default()
    })
}

fn queued(id: &TaskId, remembered: &Remembered) -> TaskStatus {
    TaskStatus {
        id: id.to_string(),
        status: "queued",
        accepted_at: Some(remembered.accepted_at),
        ..TaskStatus::default()
    }
}

fn waits(id: &TaskId, waiting: Waiting) -> TaskStatus {
    TaskStatus {
        id: id.to_string(),
        status: waiting.state.as_str(),
        outcome: None,
        attempts: waiting.attempts,
        accepted_at: Some(waiting.accepted_at),
        target: Some(waiting.target),
        lane: Some(waiting.lane.to_owned()),
        not_before: waiting.not_before,
        held_since: waiting.held_since,
        held_by: waiting.held_by,
        last_error: waiting.last_error.map(|error| TaskError {
            code: Some(error.code),
            message: error.message,
            at: Some(error.at),
        }),
        ..TaskStatus::default()
    }
}

fn dead(id: &TaskId, letter: DeadLetter) -> TaskStatus {
    TaskStatus {
        id: id.to_string(),
        status: "settled",
        outcome: Some(Outcome::Dead.as_str()),
        attempts: letter.attempts,
        accepted_at: Some(letter.accepted_at),
        target: Some(letter.target),
        lane: Some(letter.lane),
        last_error: Some(TaskError {
            code: Some(letter.code),
            message: letter.message,
            at: Some(letter.last_error_at),
        }),
        reason: Some(letter.reason),
        ..TaskStatus::default()
    }
}

async fn find_letter(state: &State, id: &TaskId) -> Result<Option<DeadLetter>, Problem> {
    state.dead_letters.find(id).await.map_err(Problem::from)
}

impl From<DeadLetterError> for Problem {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Table(_) => {
                Self::new(ProblemType::QueueUnavailable, "the dead letters cannot be read now")
            }
            DeadLetterError::Unreadable { position } => {
                Self::new(ProblemType::Internal, format!("the dead letter at position {position} cannot be read"))
            }
        }
    }
}
