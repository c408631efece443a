//! Executes what the log holds: windows of records, the order of keys, execution, settling.
//!
//! One thread for all targets, with a worker per target, so that a target which is down holds nobody else up. What
//! belongs here: deciding what runs next and writing down what is finished. What does not: how Redis is spoken to
//! (`target`), what a failure means (`retry`), HTTP. Invariant: a position is below the watermark of a checkpoint
//! only after its task was applied, or settled with a stated outcome, or stored as a dead letter.

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::task::TaskId;

mod checkpoint;
mod entry;
mod letter;
mod schedule;
mod window;
mod worker;

/// What the rest of the process may ask the consumer.
#[derive(Clone)]
pub struct Handle {
    questions: Vec<mpsc::Sender<Question>>,
}

pub(crate) enum Question {
    Find(TaskId, oneshot::Sender<Option<Waiting>>),
    Overview(oneshot::Sender<TargetOverview>),
}

/// A task in a window: not settled yet, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub target: String,
    pub lane: &'static str,
    pub accepted_at: Timestamp,
    pub state: WaitState,
    /// Executions that counted.
    pub attempts: u32,
    /// Backoff: when it is tried again.
    pub not_before: Option<Timestamp>,
    /// Held: since when, and by what.
    pub held_since: Option<Timestamp>,
    pub held_by: Option<String>,
    pub last_error: Option<LastError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitState {
    /// Its turn comes when a connection is free, or when an earlier task on one of its keys is finished.
    Ready,
    Backoff,
    Held,
    InFlight,
}

impl WaitState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Held => "held",
            Self::InFlight => "in_flight",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    pub code: String,
    pub message: String,
    pub at: Timestamp,
}

/// What a target's worker is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetOverview {
    pub target: String,
    /// Without user name and password.
    pub url: String,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// While the breaker is open: since when, and by what.
    pub held_since: Option<Timestamp>,
    pub held_by: Option<String>,
    /// Commands that are held on this target because it refuses them on many keys.
    pub held_commands: Vec<String>,
    pub ready: u64,
    pub backoff: u64,
    pub held: u64,
    pub in_flight: u64,
    /// Bytes of the records in the windows.
    pub window_bytes: u64,
    pub oldest_accepted_at: Option<Timestamp>,
    /// Per lane: what the window's lowest unfinished position waits for.
    pub partitions: Vec<PartitionOverview>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOverview {
    pub lane: &'static str,
    pub index: u32,
    pub watermark: u64,
    /// Records read into the window and not finished.
    pub unfinished: u64,
    /// The task at the watermark, and why it waits.
    pub first: Option<(String, WaitState)>,
}

impl Handle {
    /// A handle to nothing: a process that only takes tasks.
    pub fn none() -> Self {
        Self { questions: Vec::new() }
    }

    /// The task, if it waits in a window. Workers that do not answer within a second are passed over.
    pub async fn find(&self, id: &TaskId) -> Option<Waiting> {
        let asked = self.ask(|answer| Question::Find(id.clone(), answer)).await;
        asked.into_iter().flatten().next()
    }

    /// Every target, in the order of the configuration. Workers that do not answer within a second are left out.
    pub async fn overview(&self) -> Vec<TargetOverview> {
        self.ask(Question::Overview).await
    }

    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Question) -> Vec<T> {
        let answers = self.questions.iter().filter_map(|worker| {
            let (sender, receiver) = oneshot::channel();
            worker.try_send(question(sender)).ok().map(|()| receiver)
        });
        let patience = std::time::Duration::from_secs(1);
        let answers = answers.map(|answer| tokio::time::timeout(patience, answer));
        futures_util::future::join_all(answers).await.into_iter().flatten().flatten().collect()
    }
}
