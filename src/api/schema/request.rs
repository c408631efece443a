//! What writes send. These shapes are documentation only: `task` parses the bytes, and says more than they can.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// A Redis operation to be made later.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Task)]
pub(in crate::api) struct TaskDocument {
    /// What the task does: one command, several, or a script.
    #[serde(rename = "type")]
    kind: TaskType,
    /// Of a `simple` task: the command's name.
    #[schema(nullable = false, example = "SET")]
    command: Option<String>,
    /// Of a `simple` task: the command's arguments. Of a `lua` task: ARGV. Numbers are taken as strings.
    #[schema(nullable = false, max_items = 1024)]
    args: Option<Vec<String>>,
    /// Of a `pipeline`: its commands.
    #[schema(nullable = false, max_items = 128)]
    commands: Option<Vec<CommandDocument>>,
    /// Of a `pipeline`: whether its commands have results of their own or run in one MULTI/EXEC.
    #[schema(nullable = false)]
    mode: Option<PipelineMode>,
    /// Of a `lua` task: the script's source.
    #[schema(nullable = false)]
    script: Option<String>,
    /// Of a `lua` task: KEYS.
    #[schema(nullable = false, max_items = 1024)]
    keys: Option<Vec<String>>,
    /// How all arguments and keys are written. Default: as text; `base64` is for those that are none.
    #[schema(nullable = false)]
    encoding: Option<Encoding>,
    /// Running the operation twice is harmless. Default: decided by the command.
    #[schema(nullable = false)]
    idempotent: Option<bool>,
    /// The task's id; a UUIDv7 is made where there is none. Repeating a request with the same id stores nothing again.
    #[schema(nullable = false, pattern = "^[A-Za-z0-9_.:-]{1,128}$", example = "order-1")]
    id: Option<String>,
    /// The configured Redis to write to. Default: `default`.
    #[schema(nullable = false, example = "default")]
    target: Option<String>,
    /// The task's lane. Default: `normal`.
    #[schema(nullable = false)]
    priority: Option<Priority>,
    /// Executions after the first one before the task becomes a dead letter. Default: the configured number.
    #[schema(nullable = false, minimum = 0, maximum = 20)]
    max_retries: Option<u8>,
    /// Orders the task with others of the same ordering key, beside its own keys.
    #[schema(nullable = false)]
    ordering_key: Option<String>,
    /// Whether a later write of the whole key may replace this task. Default: `true`.
    #[schema(nullable = false)]
    coalesce: Option<bool>,
    /// What the service knows of its own try. Default: `refused`.
    #[schema(nullable = false)]
    first_try: Option<FirstTry>,
    /// When the service tried. Default: the time of acceptance. At most 5 minutes in the future.
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    occurred_at: Option<Timestamp>,
    /// Context, kept and shown: the trace in which the service failed.
    #[schema(nullable = false)]
    trace_id: Option<String>,
    /// Context, kept and shown: the user for whom the service wrote.
    #[schema(nullable = false)]
    user_uuid: Option<String>,
    /// Context, kept and shown: the device for which the service wrote.
    #[schema(nullable = false)]
    device_id: Option<String>,
    /// Context, kept and shown: the service, or its part.
    #[schema(nullable = false, example = "orders")]
    source: Option<String>,
    /// Context, kept and shown: the error that the service saw.
    #[schema(nullable = false)]
    error: Option<String>,
}

/// What a task does.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum TaskType {
    Simple,
    Pipeline,
    Lua,
}

/// A command of a pipeline.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Command)]
struct CommandDocument {
    /// The command's name.
    #[schema(example = "HSET")]
    command: String,
    /// Its arguments. Numbers are taken as strings.
    #[schema(max_items = 1024)]
    args: Vec<String>,
}

/// How a pipeline's commands belong together.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum PipelineMode {
    Each,
    Atomic,
}

/// How arguments and keys are written.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum Encoding {
    Base64,
}

/// A task's lane.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum Priority {
    High,
    Normal,
    Low,
}

/// What the service knows of its own try: that it did not run, or nothing.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum FirstTry {
    Refused,
    Unknown,
}

/// Several tasks.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch)]
pub(in crate::api) struct BatchDocument {
    /// The tasks. Those of one lane and target keep their order.
    #[schema(min_items = 1, max_items = 500)]
    tasks: Vec<TaskDocument>,
}
