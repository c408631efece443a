//! Shapes that the API document shows. What is only documented, and parsed or written elsewhere, is here.

use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use super::problem::ProblemDocument;

/// A Redis operation to be made later.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Task)]
pub(super) struct TaskDocument {
    /// What the task does.
    #[serde(rename = "type")]
    kind: TaskType,
}

/// What a task does.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum TaskType {
    /// One command.
    Simple,
    /// Several commands.
    Pipeline,
    /// A script.
    Lua,
}

/// The promise that a task is stored.
#[derive(Serialize, ToSchema)]
pub(super) struct AcceptedTask {
    /// The task's id.
    id: String,
}

/// Answers that all writes share.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation only")]
pub(super) enum SubmitProblems {
    /// The body is not JSON, or the request is malformed.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDocument<'static>),
}

/// One example of each shape.
pub(super) mod examples {
    use serde_json::{Value, json};

    pub fn task() -> Value {
        json!({"type": "simple", "command": "SET", "args": ["user:42", "{\"name\":\"Ada\"}", "EX", "3600"], "id": "order-1"})
    }

    pub fn accepted() -> Value {
        json!({
            "id": "order-1", "status": "queued", "durability": "local", "accepted_at": "2026-11-25T12:00:00.123Z"
        })
    }
}
