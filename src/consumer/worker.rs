//! One target's worker: reads its queues, runs what is ready, and writes down what is finished.
//!
//! A single task that owns everything it decides on. What takes time (a read, a batch, a dead letter, a checkpoint, a
//! probe) is a future of its own that ends as an [`Event`]; between two events the worker decides and starts more.
//!
//! The order of effects: a unit is applied, or its dead letter is durable, before its keys are let go; a task is
//! finished when all of its units are; a checkpoint that says so comes after.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::{BoxStream, FuturesUnordered},
};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Question,
    entry::{Entry, TaskSlot, UnitRef},
    schedule::UnitId,
    seen::{Seen, Unsaved},
    turns::Turns,
    window::{Budget, Claim, Window},
    windows::{WindowId, Windows},
};
use crate::{
    dead_letters::DeadLetters,
    log::{Assigned, Assignment, CommitError, Entry as LogEntry, Log, Loss, Partition, ReadError, Reader, TableError},
    queue::{Queues, recent::Settled},
    retry::{Failure, Policy},
    target::{
        BatchResult, Connection, ConnectionName, FenceReport, Finding, MarkerState, Past, ProbeReport, Target,
        breaker::Breaker,
        command_hold::CommandHolds,
        limiter::{Limiter, Limits},
    },
    task::{Identity, Outcome, Rules},
    telemetry::metrics::TargetMetrics,
};

mod health;
mod judging;
mod leaving;
mod reading;
mod sending;
mod settling;
mod view;

/// The time between two updates of the gauges.
const GAUGE_INTERVAL: Duration = Duration::from_millis(250);

/// How long after its success a canary write still says that the target is well.
const CANARY_FRESH: Duration = Duration::from_secs(1);

/// The time between two probes of a target that is well: clocks drift.
const PROBE_INTERVAL: Duration = Duration::from_secs(300);

/// The time to the next probe of a target that is in use and has not answered the last one in time.
const PROBE_AGAIN: Duration = Duration::from_secs(1);

/// The pause after a read or a dead letter failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How many ready units are looked through for an idempotent one.
const TRIAL_SEARCH: usize = 256;

/// What a worker is made of.
pub struct Parts {
    pub target: Target,
    pub log: Arc<dyn Log>,
    pub queues: Arc<Queues>,
    pub dead_letters: Arc<DeadLetters>,
    pub rules: Arc<Rules>,
    pub policy: Policy,
    pub probe_cap: Duration,
    pub limits: Limits,
    pub budget: Arc<Budget>,
    pub boot_id: [u8; 16],
    /// How long what is under way may take once its partition is to be given up.
    pub revoke_bound: Duration,
    pub seen: Arc<Mutex<Seen>>,
    pub metrics: TargetMetrics,
    pub assignments: BoxStream<'static, Assignment>,
    pub questions: mpsc::Receiver<Question>,
    /// Stop reading and sending; end what is under way.
    pub stop: CancellationToken,
}

pub struct Worker {
    target: Arc<Target>,
    log: Arc<dyn Log>,
    queues: Arc<Queues>,
    dead_letters: Arc<DeadLetters>,
    rules: Arc<Rules>,
    policy: Policy,
    budget: Arc<Budget>,
    boot_id: [u8; 16],
    /// Of the second hash of keys.
    hash_seed: u64,
    revoke_bound: Duration,
    checkpoint_interval: Duration,
    max_state_bytes: usize,
    metrics: TargetMetrics,
    rng: fastrand::Rng,
    windows: Windows,
    /// Partitions given up whose last checkpoint is being written.
    leaving: usize,
    breaker: Breaker,
    /// What was last said of the breaker's state, and since when it is so.
    shown: Shown,
    /// When the breaker opened, as a time of day.
    held_since: Option<Timestamp>,
    limiter: Limiter,
    /// When the limiter lets more be sent, if it does not now.
    limited_until: Option<Instant>,
    /// Of the server that answered last.
    run_id: Option<Box<str>>,
    turns: Turns,
    holds: CommandHolds,
    /// Units that wait because their command was refused, by command.
    parked: HashMap<&'static str, Vec<(WindowId, UnitId, UnitRef)>>,
    idle: Vec<Connection>,
    in_flight: usize,
    units_in_flight: usize,
    /// Batches that were started and have not ended.
    flights: HashMap<FlightId, Flight>,
    next_flight: FlightId,
    /// When the probe that is under way was begun.
    probing: Option<Instant>,
    /// When a canary was last written, and nothing was ambiguous since.
    canary_at: Option<Instant>,
    canary_warned: bool,
    /// Connections that may still have bytes on their way: nothing is sent until they are cut.
    past: Vec<Past>,
    fencing: bool,
    fence_warned: bool,
    /// What the server's clock shows more than ours, in milliseconds, and whether it takes absolute times.
    clock_offset_ms: i64,
    has_absolute_ttl: bool,
    /// A probe has told these, and the target was looked at.
    known: bool,
    /// When to ask again, while the target is well.
    probe_due: Instant,
    /// What was settled recently, to know what comes again.
    seen: Arc<Mutex<Seen>>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    stopping: bool,
    checkpoint_due: Instant,
    gauges_due: Instant,
    /// Something happened since the gauges were set.
    gauges_stale: bool,
    settled: Vec<Settled>,
}

/// A batch's number.
type FlightId = u64;

/// A state of the breaker, as it was logged.
struct Shown {
    state: &'static str,
    since: Timestamp,
}

/// A batch under way.
struct Flight {
    windows: Vec<WindowId>,
    /// Set when it is sent.
    connection: Arc<OnceLock<ConnectionName>>,
    begun: Instant,
    /// As many were under way with it as there may be.
    at_limit: bool,
    /// Its connection is cut, because one of its windows was given up.
    is_cut: bool,
}

/// A unit that was sent.
#[derive(Clone, Copy)]
struct Sent {
    window: WindowId,
    node: UnitId,
    unit: UnitRef,
    command: &'static str,
    /// How the unit has ended once this was applied.
    outcome: Outcome,
    /// Alone on a target that had just taken a canary write.
    on_trial: bool,
}

/// What is about a window that is no longer there changes nothing.
enum Event {
    Read {
        window: WindowId,
        reader: Box<dyn Reader>,
        result: Result<Vec<LogEntry>, ReadError>,
    },
    /// What was finished in a partition before it came here.
    LookedBack {
        window: WindowId,
        reader: Box<dyn Reader>,
        finished: Vec<(Identity, Timestamp)>,
        result: Result<(), ReadError>,
    },
    /// A read failed; this is the pause after it.
    ReadAgain {
        window: WindowId,
        reader: Box<dyn Reader>,
    },
    /// What waited to read from a partition, or to write something about it, ended with it.
    Closed,
    Batch {
        flight: FlightId,
        sent: Vec<Sent>,
        connection: Option<Connection>,
        result: Result<BatchResult, Failure>,
    },
    Probed(Result<ProbeReport, Failure>),
    Fenced {
        past: Vec<Past>,
        result: Result<FenceReport, Failure>,
    },
    Inspected(Vec<Finding>),
    /// The marker of a unit that would be dead because nobody knows whether it ran.
    Marker {
        sent: Sent,
        failure: Failure,
        result: Result<Option<MarkerState>, Failure>,
    },
    Letter {
        window: WindowId,
        task: TaskSlot,
        result: Result<(), TableError>,
    },
    LetterAgain {
        window: WindowId,
        task: TaskSlot,
    },
    Committed {
        window: WindowId,
        /// What the checkpoint says of the owner.
        claim: Claim,
        /// From where on it says nothing, where something could be said.
        cut: Option<u64>,
        result: Result<(), CommitError>,
    },
    /// A checkpoint could not be stored; this is the pause after it. The next one says the same and more.
    CommitAgain {
        window: WindowId,
    },
    /// A partition was given up.
    Left {
        partition: Partition,
        /// What was settled in it and is not saved, unless its last checkpoint is durable.
        unsaved: Unsaved,
        cut: Option<u64>,
        /// None: there was no answer in time.
        result: Option<Result<(), CommitError>>,
        /// Dropped last.
        done: oneshot::Sender<()>,
    },
}

impl Worker {
    pub async fn run(parts: Parts) {
        let Parts { assignments, mut questions, stop, .. } = parts;
        let mut assignments = assignments.fuse();
        let now = Instant::now();
        let checkpointing = parts.log.checkpointing();
        let mut worker = Self {
            breaker: Breaker::new(parts.probe_cap, fastrand::Rng::new(), now),
            shown: Shown { state: "closed", since: Timestamp::now() },
            limiter: Limiter::new(parts.limits, now),
            limited_until: None,
            run_id: None,
            turns: Turns::default(),
            target: Arc::new(parts.target),
            log: parts.log,
            queues: parts.queues,
            dead_letters: parts.dead_letters,
            rules: parts.rules,
            policy: parts.policy,
            budget: parts.budget,
            boot_id: parts.boot_id,
            hash_seed: fastrand::u64(..),
            revoke_bound: parts.revoke_bound,
            checkpoint_interval: checkpointing.interval,
            max_state_bytes: checkpointing.max_state_bytes,
            metrics: parts.metrics,
            rng: fastrand::Rng::new(),
            windows: Windows::default(),
            leaving: 0,
            held_since: None,
            holds: CommandHolds::default(),
            parked: HashMap::new(),
            idle: Vec::new(),
            in_flight: 0,
            units_in_flight: 0,
            flights: HashMap::new(),
            next_flight: 0,
            probing: None,
            canary_at: None,
            canary_warned: false,
            past: Vec::new(),
            fencing: false,
            fence_warned: false,
            clock_offset_ms: 0,
            has_absolute_ttl: true,
            known: false,
            probe_due: now + PROBE_INTERVAL,
            seen: parts.seen,
            events: FuturesUnordered::new(),
            stopping: false,
            checkpoint_due: now,
            gauges_due: now,
            gauges_stale: true,
            settled: Vec::new(),
        };
        // What is wrong with a target should be in the log before the first task needs it.
        worker.probe();
        let mut stop_until = None;
        while !worker.stopping || !worker.is_quiet() && stop_until.is_none_or(|until| Instant::now() < until) {
            let wake_at = worker.advance(Instant::now());
            let wake_at = stop_until.map_or(wake_at, |until: Instant| until.min(wake_at));
            tokio::select! {
                () = stop.cancelled(), if !worker.stopping => {
                    worker.stopping = true;
                    stop_until = Some(Instant::now() + worker.revoke_bound);
                }
                Some(event) = worker.events.next() => worker.take(event),
                Some(assignment) = assignments.next() => worker.take_assignment(assignment),
                Some(question) = questions.recv() => worker.answer(question),
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
        worker.release().await;
    }

    /// Nothing of this worker is under way but reads, which may be dropped.
    fn is_quiet(&self) -> bool {
        self.in_flight == 0
            && self.leaving == 0
            && !self.windows.values().any(|window| window.committing || window.writing > 0)
    }

    /// The last checkpoints: they say that nothing of this process is on its way to the target any more.
    async fn release(mut self) {
        self.flush_settled();
        // What may still be on its way is for the next process to cut.
        let released = self.past.is_empty() && self.in_flight == 0;
        let (log, boot_id) = (&self.log, self.boot_id);
        // One that is being written already is not overtaken.
        let windows = std::mem::take(&mut self.windows).into_values().filter(|window| !window.committing);
        let commits = windows.map(|window| async move {
            let checkpoint = window.checkpoint(boot_id, released).checkpoint;
            let problem = match leaving::commit_last(&**log, &window.partition, window.epoch, checkpoint).await {
                Some(Ok(())) => return,
                Some(Err(error)) => error.to_string(),
                None => "there was no answer in time".to_owned(),
            };
            let partition = &window.partition;
            tracing::warn!(partition = %partition, "The last checkpoint of {partition} was not stored: {problem}");
        });
        join_all(commits.collect::<Vec<_>>()).await;
    }

    /// Does all that can be done now; returns when there is more to do at the latest.
    fn advance(&mut self, now: Instant) -> Instant {
        // Take what has ended meanwhile before deciding what to start.
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.take(event);
        }
        for window in self.windows.values_mut() {
            window.schedule.wake(now);
        }
        if !self.stopping {
            self.read(now);
            self.send(now);
        }
        if !self.has_work() {
            self.breaker.on_nothing_left();
        }
        self.note_state();
        self.give_up_revoked(now);
        self.flush_settled();
        let due = now >= self.checkpoint_due;
        if due {
            self.checkpoint_due = now + self.checkpoint_interval;
        }
        self.commit(due);
        if now >= self.gauges_due {
            self.gauges_stale = false;
            self.set_gauges();
            self.gauges_due = now + GAUGE_INTERVAL;
        }
        self.wake_at(now)
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let mut wake_at = now + Duration::from_secs(3600);
        for window in self.windows.values() {
            wake_at = window.schedule.next_wake().map_or(wake_at, |at| at.min(wake_at));
            if window.changed {
                wake_at = wake_at.min(self.checkpoint_due);
            }
            if let Some(leaving) = &window.leaving {
                wake_at = wake_at.min(leaving.until);
            }
            wake_at = window.catches_up_until().map_or(wake_at, |at| at.min(wake_at));
        }
        // The age of the oldest task grows by itself.
        if self.gauges_stale || self.has_work() {
            wake_at = wake_at.min(self.gauges_due);
        }
        if !self.stopping {
            wake_at = self.limited_until.map_or(wake_at, |at| at.min(wake_at));
        }
        if !self.stopping && self.probing.is_none() && self.has_work() {
            wake_at = self.breaker.next_probe_at().unwrap_or(self.probe_due).min(wake_at);
        }
        wake_at
    }

    fn has_work(&self) -> bool {
        self.windows.values().any(|window| window.len() > 0)
    }

    fn take(&mut self, event: Event) {
        self.gauges_stale = true;
        match event {
            Event::Read { window, reader, result } => self.take_read(window, reader, result),
            Event::LookedBack { window, reader, finished, result } => {
                self.take_look_back(window, reader, finished, result);
            }
            Event::ReadAgain { window, reader } => {
                if let Some(window) = self.windows.get_mut(window) {
                    window.reader = Some(reader);
                }
            }
            Event::Closed => {}
            Event::Batch { flight, sent, connection, result } => self.take_batch(flight, &sent, connection, result),
            Event::Probed(result) => self.take_probe(result),
            Event::Letter { window, task, result } => self.take_letter(window, task, result),
            Event::LetterAgain { window, task } => {
                if self.windows.contains(window) {
                    self.write_letter(window, task);
                }
            }
            Event::Committed { window, claim, cut, result } => self.take_commit(window, claim, cut, result),
            Event::CommitAgain { window } => {
                if let Some(window) = self.windows.get_mut(window) {
                    window.committing = false;
                    window.changed = true;
                }
            }
            Event::Left { partition, unsaved, cut, result, done } => {
                self.take_left(&partition, unsaved, cut, result);
                drop(done);
            }
            Event::Fenced { past, result } => self.take_fence(&past, result),
            Event::Inspected(findings) => self.take_findings(&findings),
            Event::Marker { sent, failure, result } => self.take_marker(&sent, &failure, result),
        }
    }

    fn take_assignment(&mut self, assignment: Assignment) {
        self.gauges_stale = true;
        match assignment {
            // Whoever stops takes nothing on; the log gives it to somebody else.
            Assignment::Assigned(_) if self.stopping => {}
            Assignment::Assigned(assigned) => self.assign(assigned),
            Assignment::Revoking { partition, done } => self.revoke(&partition, done),
            Assignment::Lost { partition, loss } => self.lose(&partition, loss),
        }
    }

    fn assign(&mut self, assigned: Assigned) {
        let watermark = assigned.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
        let partition = &assigned.partition;
        // Of an assignment that is over, whether that was said or not, nothing may stay.
        self.lose(partition, Loss::ToAnother);
        tracing::info!(partition = %partition, watermark, "Consuming {partition} from offset {watermark}");
        let window = Window::new(assigned, self.boot_id, self.max_state_bytes, self.budget.clone());
        if let Claim::Fencing(boot_id) = window.claim {
            self.add_past(Past::Process(boot_id));
        }
        let id = self.windows.insert(window);
        // Of a partition that begins nothing was finished.
        if watermark > 0 {
            self.look_back(id, watermark);
        }
    }
}

/// The id of the trace that the task came with, for log lines; empty where it came with none.
fn trace_id(entry: &Entry) -> String {
    // version-traceid-parentid-flags
    let header = entry.envelope.traceparent.as_deref().and_then(|traceparent| traceparent.split('-').nth(1));
    match header {
        Some(id) => id.to_owned(),
        None => serde_json::from_slice::<Traced<'_>>(&entry.envelope.value)
            .ok()
            .and_then(|task| task.trace_id)
            .map_or(String::new(), |id| id.into_owned()),
    }
}

/// The one field of a task that log lines show.
#[derive(serde::Deserialize)]
struct Traced<'a> {
    #[serde(borrow, default)]
    trace_id: Option<std::borrow::Cow<'a, str>>,
}
