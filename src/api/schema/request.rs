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
    /// Of a `lua` task: which arguments are times to live. They are counted from `occurred_at`, and the script is given
    /// what is left of them; it does not run once one has ended.
    #[schema(nullable = false, max_items = 1024)]
    ttl_args: Option<Vec<TtlArgDocument>>,
    /// Of a `lua` task: which of its keys it writes. Default: all.
    #[schema(nullable = false, max_items = 1024)]
    written_keys: Option<Vec<String>>,
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
    /// The task's lane. Default: `normal`, or what a rule says.
    #[schema(nullable = false)]
    priority: Option<Priority>,
    /// Executions after the first one before the task becomes a dead letter. Default: the configured number, or what a
    /// rule says.
    #[schema(nullable = false, minimum = 0, maximum = 20)]
    max_retries: Option<u8>,
    /// Orders the task with others of the same ordering key, beside its own keys.
    #[schema(nullable = false)]
    ordering_key: Option<String>,
    /// Whether a later write of the whole key may replace this task while it waits, and this one earlier ones; it takes a
    /// `true` of both. A task with an `ordering_key` takes no part. Default: `true`.
    #[schema(nullable = false)]
    coalesce: Option<bool>,
    /// What the service knows of its own try. Default: `refused`.
    #[schema(nullable = false)]
    first_try: Option<FirstTry>,
    /// When the service tried. Default: the time of acceptance. At most 5 minutes in the future. Relative times to live
    /// are counted from it.
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    occurred_at: Option<Timestamp>,
    /// After it the task is not made any more and settles as `expired`. It may have passed already.
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    deadline: Option<Timestamp>,
    /// What to do with the task once it is older than its service likes. Default: what a rule says, else `replay`.
    #[schema(nullable = false)]
    late: Option<LateDocument>,
    /// Orders the writes of a key: the task is made only if its version is above the one made last, else it settles as
    /// `stale`. From 0 to 2^63 - 1. Only of a task that is one unit (`simple`, `lua`, `atomic`) and writes one key.
    #[schema(nullable = false, pattern = "^(0|[1-9][0-9]{0,18})$", example = "17")]
    version: Option<String>,
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

/// An argument of a script that is a time to live.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TtlArg)]
struct TtlArgDocument {
    /// Its index in `args`, from 0. The argument is a whole number above 0.
    #[schema(minimum = 0, example = 1)]
    index: u32,
    /// Its unit: seconds or milliseconds.
    unit: TtlUnit,
}

/// Seconds or milliseconds.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum TtlUnit {
    S,
    Ms,
}

/// What to do with a task that is late. Judged when it is sent.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Late)]
struct LateDocument {
    /// How old the task may be, counted from `occurred_at`, in milliseconds.
    #[schema(minimum = 0, maximum = 3_153_600_000_000_u64, example = 30000)]
    after_ms: u64,
    /// `replay`: make it all the same. `invalidate`: unlink the keys that it writes instead. `drop`: do nothing.
    #[serde(rename = "do")]
    action: LateAction,
}

/// What to do with a task that is late.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "documentation only")]
enum LateAction {
    Replay,
    Invalidate,
    Drop,
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
