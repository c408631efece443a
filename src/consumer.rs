//! Executes what the log holds: windows of records, the order of keys, execution, settling.
//!
//! One thread for all targets, with a worker per target, so that a target which is down holds nobody else up. What
//! belongs here: deciding what runs next and writing down what is finished. What does not: how Redis is spoken to
//! (`target`), what a failure means (`retry`), HTTP. Invariant: a position is below the watermark of a checkpoint
//! only after its task was applied, or settled with a stated outcome, or stored as a dead letter.

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    dead_letters::DeadLetters,
    log::{Checkpoint, Log, QueueName},
    queue::Queues,
    retry::Policy,
    target::{FindingCode, Target, limiter::Limits},
    task::{Lane, Rules, TaskId},
    telemetry::metrics::Metrics,
};

mod checkpoint;
mod coalesce;
mod entry;
pub mod letter;
#[cfg(test)]
mod model;
mod plan;
mod prepared;
mod rows;
mod schedule;
mod seen;
mod timing;
mod turns;
mod units;
mod window;
mod windows;
mod worker;

/// How the consumer works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of all windows together.
    pub memory_bytes: usize,
    pub policy: Policy,
    /// The longest time between two probes of a target that is down.
    pub outage_probe_cap: Duration,
    /// How much is sent to each target at a time, and how fast.
    pub limits: Limits,
    /// Names this process in checkpoints and on the targets.
    pub boot_id: [u8; 16],
    /// How long the markers of what ran once live.
    pub marker_ttl: Duration,
    /// How long what is under way may take once its partition is to be given up, or the process stops; the last checkpoint
    /// comes after that. Together they must be shorter than the log waits.
    pub revoke_bound: Duration,
    /// Works beside another consumer of the same targets, which shows how they are.
    pub is_beside: bool,
}

/// A partition's last checkpoint is not waited for any longer than this.
pub const LAST_CHECKPOINT_BOUND: Duration = Duration::from_secs(3);

/// What the consumer works with.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub queues: Arc<Queues>,
    pub dead_letters: Arc<DeadLetters>,
    pub rules: Arc<Rules>,
    pub targets: Vec<Target>,
    pub metrics: Arc<Metrics>,
}

/// A consumer at work, on a thread of its own.
pub struct Consumer {
    handle: Handle,
    stop: CancellationToken,
    ended: CancellationToken,
    thread: JoinHandle<Result<(), Panicked>>,
}

/// A worker panicked: its target's tasks stand still until the process is started again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker of the target {target} panicked")]
pub struct Panicked {
    pub target: String,
}

impl Consumer {
    /// Starts a worker for each target.
    pub fn start(config: &Config, parts: Parts) -> std::io::Result<Self> {
        let Parts { log, queues, dead_letters, rules, targets, metrics } = parts;
        let stop = CancellationToken::new();
        let ended = CancellationToken::new();
        let budget = window::Budget::new(config.memory_bytes);
        let mut questions = Vec::new();
        let mut workers = Vec::new();
        metrics.know_warnings(FindingCode::ALL.map(FindingCode::as_str));
        let seen = Arc::new(Mutex::new(seen::Seen::new(config.marker_ttl)));
        for target in targets {
            let (sender, receiver) = mpsc::channel(64);
            questions.push(sender);
            let name: Arc<str> = target.name().into();
            let lanes = Lane::ALL.map(|lane| QueueName { target: name.clone(), lane: lane.as_str() });
            workers.push((
                name,
                worker::Parts {
                    metrics: match config.is_beside {
                        true => metrics.target(target.name()).without_gauges(),
                        false => metrics.target(target.name()),
                    },
                    target,
                    log: log.clone(),
                    queues: queues.clone(),
                    dead_letters: dead_letters.clone(),
                    rules: rules.clone(),
                    policy: config.policy,
                    probe_cap: config.outage_probe_cap,
                    limits: config.limits,
                    budget: budget.clone(),
                    boot_id: config.boot_id,
                    revoke_bound: config.revoke_bound,
                    seen: seen.clone(),
                    assignments: log.consume(lanes.to_vec()),
                    questions: receiver,
                    stop: stop.clone(),
                },
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (all_ended, told) = (ended.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("consumer".into()).spawn(move || {
            // Also when a worker panics: whoever waits for the end must hear of it.
            let _ended = all_ended.drop_guard();
            drive(runtime, run(workers, told))
        })?;
        Ok(Self { handle: Handle { questions, beside: Vec::new(), beside_log: None }, stop, ended, thread })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when the consumer has ended, which it does by itself only when a worker panicked.
    pub fn ended(&self) -> impl Future<Output = ()> + 'static {
        self.ended.clone().cancelled_owned()
    }

    /// Stops reading and sending, lets end what is in flight, and writes the last checkpoints; as for a partition that is
    /// given up there is a bound to both ([`Config::revoke_bound`], [`LAST_CHECKPOINT_BOUND`]).
    ///
    /// # Cancellation
    ///
    /// Dropping the future lets the consumer end by itself.
    pub async fn stop(self) -> Result<(), Panicked> {
        self.stop.cancel();
        self.ended.cancelled().await;
        self.thread.join().unwrap_or_else(|_| Err(Panicked { target: "of none".to_owned() }))
    }
}

/// Runs the work to its end, and leaves behind what cannot be told to stop: looking up the name of a Redis blocks a
/// thread of the runtime for as long as the name server is silent, which may be longer than a stop may take.
fn drive<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Workers end when they are told to, and without any there is the same end.
async fn run(workers: Vec<(Arc<str>, worker::Parts)>, stop: CancellationToken) -> Result<(), Panicked> {
    let mut running = tokio::task::JoinSet::new();
    for (name, parts) in workers {
        running.spawn(async move {
            let worker = tokio::spawn(worker::Worker::run(parts));
            worker.await.map_err(|_| Panicked { target: name.to_string() })
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap_or_else(|_| Err(Panicked { target: "of none".to_owned() }))?;
    }
    stop.cancelled().await;
    Ok(())
}

/// What the rest of the process may ask the consumer.
#[derive(Clone)]
pub struct Handle {
    questions: Vec<mpsc::Sender<Question>>,
    /// Another one with a log of its own.
    beside: Vec<mpsc::Sender<Question>>,
    beside_log: Option<Arc<dyn Log>>,
}

pub(crate) enum Question {
    Find(TaskId, oneshot::Sender<Option<Waiting>>),
    Overview(oneshot::Sender<TargetOverview>),
    Breaker(oneshot::Sender<BreakerOverview>),
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
    /// `closed`, `open`, `half_open` or `ramp`.
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

/// Whether a target is used, how much and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerOverview {
    pub target: String,
    /// `closed`, `open`, `half_open` or `ramp`.
    pub state: &'static str,
    /// What opened it, until it is closed again: a code and what it means.
    pub reason: Option<(String, String)>,
    /// When it came to this state.
    pub since: Timestamp,
    pub next_probe_at: Option<Timestamp>,
    pub held: u64,
    /// Under way now.
    pub batches: usize,
    pub limit_batches: usize,
    /// The most units that the next batch has.
    pub batch_units: usize,
    /// Units sent in the last second.
    pub rate: f64,
    /// Units per second that may be sent now; none: no limit.
    pub rate_limit: Option<f64>,
    /// Until when less is sent because the server was started again.
    pub spared_until: Option<Timestamp>,
    pub ping: Option<Duration>,
    pub ping_baseline: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionOverview {
    pub lane: &'static str,
    pub index: u32,
    pub watermark: u64,
    /// Records read into the window and not finished.
    pub unfinished: u64,
    /// The task at the watermark.
    pub first: Option<FirstTask>,
}

/// What holds a watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstTask {
    pub id: String,
    pub accepted_at: Timestamp,
    pub state: WaitState,
    /// What it waits for, where that is known.
    pub waits_for: Option<String>,
}

impl Handle {
    /// A handle to nothing: a process that only takes tasks.
    pub fn none() -> Self {
        Self { questions: Vec::new(), beside: Vec::new(), beside_log: None }
    }

    /// Knows what the windows of another consumer hold, too, which works on another log.
    pub fn beside(mut self, other: &Self, log: Arc<dyn Log>) -> Self {
        self.beside.extend(other.questions.iter().cloned());
        self.beside_log = Some(log);
        self
    }

    /// The task, if it waits in a window. Workers that do not answer within a second are passed over.
    pub async fn find(&self, id: &TaskId) -> Option<Waiting> {
        let workers = self.questions.iter().chain(&self.beside);
        let asked = ask(workers, |answer| Question::Find(id.clone(), answer)).await;
        asked.into_iter().flatten().next()
    }

    /// Every target, in the order of the configuration. Workers that do not answer within a second are left out.
    pub async fn overview(&self) -> Vec<TargetOverview> {
        ask(self.questions.iter(), Question::Overview).await
    }

    /// The log of the consumer beside this one, where there is one, and how its workers' targets are.
    pub async fn overview_beside(&self) -> Option<(Arc<dyn Log>, Vec<TargetOverview>)> {
        let log = self.beside_log.clone()?;
        Some((log, ask(self.beside.iter(), Question::Overview).await))
    }

    /// What is sent to the targets, in the same order.
    pub async fn breakers(&self) -> Vec<BreakerOverview> {
        ask(self.questions.iter(), Question::Breaker).await
    }
}

async fn ask<T>(
    workers: impl Iterator<Item = &mpsc::Sender<Question>>,
    question: impl Fn(oneshot::Sender<T>) -> Question,
) -> Vec<T> {
    let answers = workers.filter_map(|worker| {
        let (sender, receiver) = oneshot::channel();
        worker.try_send(question(sender)).ok().map(|()| receiver)
    });
    let patience = std::time::Duration::from_secs(1);
    let answers = answers.map(|answer| tokio::time::timeout(patience, answer));
    futures_util::future::join_all(answers).await.into_iter().flatten().flatten().collect()
}

/// Whether a checkpoint says that the task at this offset is finished.
pub fn is_finished(checkpoint: &Checkpoint, offset: u64) -> bool {
    let Checkpoint { watermark, state } = checkpoint;
    let above = || checkpoint::State::decode(*watermark, state).is_some_and(|state| state.finished.contains(offset));
    offset < *watermark || above()
}

#[cfg(test)]
mod tests;
