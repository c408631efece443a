//! What is answered: these structs are written as they are documented.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::problem::ProblemDocument;

/// The promise that a task is stored.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct AcceptedTask {
    /// The task's id.
    pub id: String,
    /// `queued`.
    pub status: &'static str,
    /// Where the task is safe: `local`, synced to the disk here, or `kafka`, acknowledged by all in-sync replicas.
    pub durability: &'static str,
    /// When the task was accepted, by the first request with its id.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
}

/// What became of each task of a batch.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct BatchAnswer<'a> {
    /// How many tasks are stored.
    pub accepted: usize,
    /// How many are not.
    pub refused: usize,
    /// One for each task, in the order of the request.
    pub results: Vec<BatchResult<'a>>,
}

/// What became of a task of a batch.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct BatchResult<'a> {
    /// The task's place in the request, from 0.
    pub index: usize,
    /// `accepted` or `refused`.
    pub status: &'static str,
    /// The task's id, where it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// Why the task was refused. Pointers begin with the task's place: `/tasks/3/args/0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub problem: Option<ProblemDocument<'a>>,
}

/// What is known of a task.
#[derive(Default, Serialize, ToSchema)]
pub(in crate::api) struct TaskStatus {
    /// The task's id.
    pub id: String,
    /// `queued` (stored, not read yet), `ready` (waits for its turn), `backoff` (failed, and is tried again), `held`
    /// (its target is unavailable, which spends no attempt), `in_flight`, or `settled`.
    pub status: &'static str,
    /// How a settled task ended: `applied`, `superseded`, `expired`, `invalidated`, `stale`, `dead`, `discarded` or
    /// `duplicate`. Absent where that is not known: it was settled before the process started, or by another process, and
    /// has no dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub outcome: Option<&'static str>,
    /// Of a superseded task: the id of the later task that has replaced what it writes, so that it need not run. Absent
    /// where that is not remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub superseded_by: Option<String>,
    /// Executions that counted so far.
    pub attempts: u32,
    /// When the task was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub accepted_at: Option<Timestamp>,
    /// The Redis that it writes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub target: Option<String>,
    /// Its priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lane: Option<String>,
    /// In `backoff`: when it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub not_before: Option<Timestamp>,
    /// While `held`: since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub held_since: Option<Timestamp>,
    /// While `held`: by what.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub held_by: Option<String>,
    /// What its last failed execution met.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_error: Option<TaskError>,
    /// Of a dead task: the class of the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
}

/// A failed execution.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct TaskError {
    /// The server's error code, or one of ours such as `timeout`, where it is still known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub code: Option<String>,
    /// What was said.
    pub message: String,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
}

/// The running program.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Version {
    /// Semantic version.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
}

/// The process at a glance.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Overview {
    /// What these numbers are about: `process`.
    pub scope: &'static str,
    /// Semantic version.
    pub version: &'static str,
    /// Whether one more task could be stored now.
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub not_ready_because: Option<String>,
    /// Records that are stored and not finished.
    pub unfinished: u64,
    /// Bytes of the queues on disk.
    pub bytes: u64,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Every configured target whose worker answered within a second.
    pub targets: Vec<TargetStatus>,
}

/// What a target's worker is doing.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct TargetStatus {
    pub target: String,
    /// Without user name and password.
    pub url: String,
    /// Whether writes go to the target: `closed` (they do), `open`, `half_open` or `ramp` (more and more do).
    pub breaker: &'static str,
    /// While the breaker is open: since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub held_since: Option<Timestamp>,
    /// While the breaker is open: by what.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub held_by: Option<String>,
    /// Commands that are held because the target refuses them on many keys.
    pub held_commands: Vec<String>,
    /// Tasks in the windows that wait for their turn.
    pub ready: u64,
    /// Tasks that failed and are tried again.
    pub backoff: u64,
    /// Tasks that wait for the target.
    pub held: u64,
    /// Tasks that are being executed.
    pub in_flight: u64,
    /// Bytes of the tasks in the windows.
    pub window_bytes: u64,
    /// When the oldest unfinished task was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub oldest_accepted_at: Option<Timestamp>,
}

/// What is sent to each target.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct BreakerList {
    /// Every configured target whose worker answered within a second.
    pub items: Vec<BreakerStatus>,
}

/// Whether a target is used, how much and how fast.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct BreakerStatus {
    pub target: String,
    /// `closed` (the target is used), `open` (it is only probed), `half_open` (one batch tries it out) or `ramp` (it is
    /// used more and more).
    pub state: &'static str,
    /// What opened it, until it is closed again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<BreakerReason>,
    /// When it came to this state.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// While it is open: when the target is asked again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub next_probe_at: Option<Timestamp>,
    /// Tasks that wait for the target.
    pub held: u64,
    /// Batches on their way now.
    pub batches: usize,
    /// Batches that may be on their way at a time.
    pub limit_batches: usize,
    /// The most units of tasks that the next batch has.
    pub batch_units: usize,
    /// Units sent in the last second.
    pub rate: f64,
    /// Units that may be sent per second. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub rate_limit: Option<f64>,
    /// Until when less is sent because the server was started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub spared_until: Option<Timestamp>,
    /// Milliseconds that the last PING took.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ping_ms: Option<f64>,
    /// Milliseconds that a PING takes when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ping_baseline_ms: Option<f64>,
}

/// Why a target is not used, or not wholly.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct BreakerReason {
    /// The server's error code, or one of ours such as `connection-refused`.
    pub code: String,
    /// What was said.
    pub message: String,
}

/// All partitions that exist.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct PartitionList {
    pub items: Vec<PartitionStatus>,
}

/// An ordered part of a queue.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct PartitionStatus {
    pub target: String,
    pub lane: &'static str,
    pub partition: u32,
    /// `earlier`: it is in the journal of before `kafka.brokers` was set, whose tasks are made beside those in Kafka, and
    /// is listed until they are. Absent for all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub log: Option<&'static str>,
    /// The offset that the next record gets at the earliest.
    pub end: u64,
    /// The committed watermark: every record below is finished.
    pub finished: u64,
    /// Records from `finished` to `end`.
    pub lag: u64,
    /// Who works on it: `this`, `none`, or another member of the group by its id and address. In Kafka others' numbers
    /// are as old as `kafka.metadata_refresh`.
    pub owner: String,
    /// Why nothing of it is read until a person says so: `no_checkpoint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub held_by: Option<&'static str>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Records in the consumer's window that are not finished.
    pub in_window: u64,
    /// The id of the task at the watermark, if the window has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub first_id: Option<String>,
    /// What that task waits for: the values of a task's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub first_status: Option<&'static str>,
    /// What keeps it from being made, where something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub first_waits_for: Option<String>,
    /// When it was accepted: the oldest unfinished task of the partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub oldest_accepted_at: Option<Timestamp>,
}

/// A page of dead letters, newest first.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct DeadLetterList {
    /// Without the tasks' own bytes.
    pub items: Vec<DeadLetterDocument>,
    /// Asks for the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_cursor: Option<String>,
}

/// A task that was given up, and why.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(in crate::api) struct DeadLetterDocument {
    /// The task's id.
    pub id: String,
    pub target: String,
    pub lane: String,
    /// Where the task's record was in its queue.
    pub partition: u32,
    pub offset: u64,
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub dead_at: Timestamp,
    /// The class of the reason.
    pub reason: String,
    /// The server's error code, or one of ours such as `timeout`.
    pub code: String,
    /// What the server said, without anything that may be an argument.
    pub message: String,
    /// Executions that counted.
    pub attempts: u32,
    #[schema(value_type = String, format = DateTime)]
    pub first_error_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last_error_at: Timestamp,
    /// Of a task with several commands: how each ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<DeadUnitDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub traceparent: Option<String>,
    /// The task as it was sent. Only in the answer for one dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub task: Option<Box<RawValue>>,
    /// The record's bytes in base64, where they are not JSON. Only in the answer for one dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub task_base64: Option<String>,
}

/// How a command of a pipeline ended.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadUnit)]
pub(in crate::api) struct DeadUnitDocument {
    /// The command's place in the pipeline, from 0.
    pub index: u32,
    /// `applied`, or the class of the reason.
    pub outcome: String,
    pub code: String,
    pub message: String,
}
