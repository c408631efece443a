//! One target's worker: reads its queues, runs what is ready, and writes down what is finished.
//!
//! A single task that owns everything it decides on. What takes time (a read, a batch, a dead letter, a checkpoint, a
//! probe) is a future of its own that ends as an [`Event`]; between two events the worker decides and starts more.
//!
//! The order of effects: a unit is applied, or its dead letter is durable, before its keys are let go; a task is
//! finished when all of its units are; a checkpoint that says so comes after.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered},
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    LastError, PartitionOverview, Question, TargetOverview, WaitState, Waiting,
    checkpoint::UnitEnd,
    entry::{End, Entry, Letter, TaskSlot, Unit, UnitRef, remembered_failure},
    letter,
    prepared::Prepared,
    schedule::{Keys, UnitId, UnitState},
    window::{Budget, Window},
};
use crate::{
    commands::Class,
    dead_letters::DeadLetters,
    log::{Assigned, Assignment, CommitError, Entry as LogEntry, Log, ReadError, Reader, TableError},
    queue::{Envelope, Queues, recent::Settled},
    retry::{self, Executed, Failure, FailureClass, History, Policy, ReasonClass, Verdict},
    target::{
        Batch, BatchResult, Connection, MAX_BATCH_BYTES, MAX_BATCH_UNITS, ProbeReport, Target,
        breaker::{Admission, Breaker, State as BreakerState, TRIAL_UNITS},
        command_hold::{CommandHolds, Ruling, Sending, Waiting as Parked},
    },
    task::{Command, Lane, Mode, Operation, Outcome, Rules, Task, TaskId},
    telemetry::metrics::TargetMetrics,
};

/// The time between two checkpoints while there is something new to write down.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);

/// The time between two updates of the gauges.
const GAUGE_INTERVAL: Duration = Duration::from_millis(250);

/// How long after its success a canary write still says that the target is well.
const CANARY_FRESH: Duration = Duration::from_secs(1);

/// The pause after a read or a dead letter failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How much of a batch each lane gets while all have something ready.
const LANE_WEIGHTS: [(Lane, usize); 3] = [(Lane::High, 8), (Lane::Normal, 3), (Lane::Low, 1)];

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
    pub connections: usize,
    pub budget: Arc<Budget>,
    pub boot_id: [u8; 16],
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
    connections: usize,
    budget: Arc<Budget>,
    boot_id: [u8; 16],
    metrics: TargetMetrics,
    rng: fastrand::Rng,
    windows: Vec<Window>,
    breaker: Breaker,
    /// When the breaker opened, as a time of day.
    held_since: Option<Timestamp>,
    holds: CommandHolds,
    /// Units that wait because their command was refused, by command.
    parked: HashMap<&'static str, Vec<(usize, UnitId, UnitRef)>>,
    idle: Vec<Connection>,
    in_flight: usize,
    units_in_flight: usize,
    probing: bool,
    /// When a canary was last written, and nothing was ambiguous since.
    canary_at: Option<Instant>,
    canary_warned: bool,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    stopping: bool,
    checkpoint_due: Instant,
    gauges_due: Instant,
    /// Something happened since the gauges were set.
    gauges_stale: bool,
    settled: Vec<Settled>,
}

/// A unit that was sent.
struct Sent {
    window: usize,
    node: UnitId,
    unit: UnitRef,
    command: &'static str,
    /// Alone on a target that had just taken a canary write.
    on_trial: bool,
}

enum Event {
    Read {
        window: usize,
        reader: Box<dyn Reader>,
        result: Result<Vec<LogEntry>, ReadError>,
    },
    /// A read failed; this is the pause after it.
    ReadAgain {
        window: usize,
        reader: Box<dyn Reader>,
    },
    Batch {
        sent: Vec<Sent>,
        connection: Option<Connection>,
        result: Result<BatchResult, Failure>,
    },
    Probed(Result<ProbeReport, Failure>),
    Letter {
        window: usize,
        task: TaskSlot,
        result: Result<(), TableError>,
    },
    LetterAgain {
        window: usize,
        task: TaskSlot,
    },
    Committed {
        window: usize,
        result: Result<(), CommitError>,
    },
}

impl Worker {
    pub async fn run(parts: Parts) {
        let Parts { mut assignments, mut questions, stop, .. } = parts;
        let now = Instant::now();
        let mut worker = Self {
            breaker: Breaker::new(parts.probe_cap, fastrand::Rng::new()),
            target: Arc::new(parts.target),
            log: parts.log,
            queues: parts.queues,
            dead_letters: parts.dead_letters,
            rules: parts.rules,
            policy: parts.policy,
            connections: parts.connections,
            budget: parts.budget,
            boot_id: parts.boot_id,
            metrics: parts.metrics,
            rng: fastrand::Rng::new(),
            windows: Vec::new(),
            held_since: None,
            holds: CommandHolds::default(),
            parked: HashMap::new(),
            idle: Vec::new(),
            in_flight: 0,
            units_in_flight: 0,
            probing: false,
            canary_at: None,
            canary_warned: false,
            events: FuturesUnordered::new(),
            stopping: false,
            checkpoint_due: now,
            gauges_due: now,
            gauges_stale: true,
            settled: Vec::new(),
        };
        // What is wrong with a target should be in the log before the first task needs it.
        worker.probe();
        while !(worker.stopping && worker.is_quiet()) {
            let wake_at = worker.advance(Instant::now());
            tokio::select! {
                () = stop.cancelled(), if !worker.stopping => worker.stopping = true,
                Some(event) = worker.events.next() => worker.take(event),
                Some(assignment) = assignments.next(), if !worker.stopping => worker.assign(assignment),
                Some(question) = questions.recv() => worker.answer(question),
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
        worker.release().await;
    }

    /// Nothing of this worker is under way but reads, which may be dropped.
    fn is_quiet(&self) -> bool {
        self.in_flight == 0
            && !self.windows.iter().any(|window| {
                window.committing || window.entries().any(|entry| matches!(entry.letter, Letter::Writing { .. }))
            })
    }

    /// The last checkpoints: they say that nothing of this process is on its way to the target any more.
    async fn release(mut self) {
        self.flush_settled();
        for window in std::mem::take(&mut self.windows) {
            let checkpoint = window.checkpoint(self.boot_id, true);
            let (partition, epoch) = (window.partition.clone(), window.epoch);
            if let Err(error) = self.log.commit(&partition, epoch, checkpoint).await {
                tracing::warn!(partition = %partition, "The last checkpoint of {partition} was not stored: {error}");
            }
        }
    }

    /// Does all that can be done now; returns when there is more to do at the latest.
    fn advance(&mut self, now: Instant) -> Instant {
        // Take what has ended meanwhile before deciding what to start.
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.take(event);
        }
        for window in &mut self.windows {
            window.schedule.wake(now);
        }
        if !self.stopping {
            self.read();
            self.send(now);
        }
        self.flush_settled();
        if now >= self.checkpoint_due {
            self.commit();
            self.checkpoint_due = now + CHECKPOINT_INTERVAL;
        }
        if now >= self.gauges_due {
            self.gauges_stale = false;
            self.set_gauges();
            self.gauges_due = now + GAUGE_INTERVAL;
        }
        self.wake_at(now)
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let mut wake_at = now + Duration::from_secs(3600);
        for window in &self.windows {
            wake_at = window.schedule.next_wake().map_or(wake_at, |at| at.min(wake_at));
            if window.changed {
                wake_at = wake_at.min(self.checkpoint_due);
            }
        }
        // The age of the oldest task grows by itself.
        if self.gauges_stale || self.has_work() {
            wake_at = wake_at.min(self.gauges_due);
        }
        if !self.probing && self.has_work() {
            wake_at = self.breaker.next_probe_at().map_or(wake_at, |at| at.min(wake_at));
        }
        wake_at
    }

    fn has_work(&self) -> bool {
        self.windows.iter().any(|window| window.len() > 0)
    }

    fn take(&mut self, event: Event) {
        self.gauges_stale = true;
        match event {
            Event::Read { window, reader, result } => self.take_read(window, reader, result),
            Event::ReadAgain { window, reader } => self.windows[window].reader = Some(reader),
            Event::Batch { sent, connection, result } => self.take_batch(sent, connection, result),
            Event::Probed(result) => self.take_probe(result),
            Event::Letter { window, task, result } => self.take_letter(window, task, result),
            Event::LetterAgain { window, task } => self.write_letter(window, task),
            Event::Committed { window, result } => self.take_commit(window, result),
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        match assignment {
            Assignment::Assigned(Assigned { partition, epoch, checkpoint, reader }) => {
                let watermark = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
                tracing::info!(partition = %partition, watermark, "Consuming {partition} from offset {watermark}");
                self.windows.push(Window::new(partition, epoch, checkpoint, reader, self.budget.clone()));
            }
            // A journal has one owner, who never loses a partition.
            Assignment::Revoking { partition, .. } | Assignment::Lost { partition } => {
                tracing::error!(partition = %partition, "{partition} was taken away, which this log never does");
            }
        }
    }
}

/// Reading.
impl Worker {
    fn read(&mut self) {
        for (number, window) in self.windows.iter_mut().enumerate() {
            if let Some(max_bytes) = window.room()
                && let Some(mut reader) = window.reader.take()
            {
                self.events.push(Box::pin(async move {
                    let result = reader.next(max_bytes).await;
                    Event::Read { window: number, reader, result }
                }));
            }
        }
    }

    fn take_read(&mut self, number: usize, reader: Box<dyn Reader>, result: Result<Vec<LogEntry>, ReadError>) {
        let entries = match result {
            Ok(entries) => entries,
            Err(ReadError::Closed) => return,
            Err(error) => {
                let partition = &self.windows[number].partition;
                tracing::warn!(partition = %partition, "Reading {partition} failed, trying again: {error}");
                self.events.push(Box::pin(async move {
                    tokio::time::sleep(PAUSE).await;
                    Event::ReadAgain { window: number, reader }
                }));
                return;
            }
        };
        self.windows[number].reader = Some(reader);
        let bytes = entries.iter().map(|entry| entry.record.size() as u64).sum();
        let Some(last) = entries.last().map(|entry| entry.offset) else { return };
        for entry in entries {
            self.admit(number, entry);
        }
        self.windows[number].note_read(last, bytes);
    }

    /// Takes a record into its window.
    fn admit(&mut self, number: usize, LogEntry { offset, record }: LogEntry) {
        let now = Timestamp::now();
        let mut envelope = match Envelope::decode(&record) {
            Ok(envelope) => envelope,
            Err(error) => {
                let failure =
                    Failure::dead(ReasonClass::RefusedRecord, Executed::No, "unreadable-record", &error.to_string());
                let id = format!("unreadable-{}-{offset}", self.windows[number].partition.index);
                let id = TaskId::parse(&id).expect("letters, digits and dashes are an id");
                let envelope = Envelope::of_unreadable(id, now, record.value);
                return self.refuse_record(number, offset, envelope, &failure);
            }
        };
        let Some(earlier) = self.windows[number].earlier(offset) else {
            self.settled.push(Settled { identity: envelope.identity, outcome: None, attempts: 0, last_error: None });
            return;
        };
        // The record is a slice of what was read with it, which one waiting task must not keep in memory.
        let value = std::mem::take(&mut envelope.value);
        envelope.value = bytes::Bytes::copy_from_slice(&value);
        let task = match Task::parse(&value, &self.rules, envelope.accepted_at) {
            Ok(task) => task,
            Err(refusal) => {
                let failure =
                    Failure::dead(ReasonClass::RefusedRecord, Executed::No, refusal.kind.as_str(), &refusal.detail);
                return self.refuse_record(number, offset, envelope, &failure);
            }
        };
        let ordering_key =
            task.ordering_key.as_ref().map(|key| xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), 1));
        let units: Vec<(Keys, bool)> = task
            .operation
            .units()
            .map(|unit| {
                let hashes = unit.keys.iter().map(|key| xxhash_rust::xxh3::xxh3_64(key.bytes));
                // A unit whose keys are not known stays a barrier: the ordering key adds an order and removes none.
                let ordering_key = ordering_key.filter(|_| !unit.is_barrier());
                (Keys::new(hashes.chain(ordering_key)), task.idempotent || unit.class == Class::Idempotent)
            })
            .collect();
        let entry = Entry {
            offset,
            max_retries: task.max_retries.unwrap_or(self.policy.max_retries),
            units: Vec::with_capacity(units.len()),
            open: 0,
            keys: units.iter().map(|(keys, _)| keys.len()).sum(),
            trouble: None,
            letter: Letter::None,
            prepared: Prepared::of(&task, &value),
            envelope,
        };
        let window = &mut self.windows[number];
        let slot = window.insert(entry, units.len());
        for (place, (keys, idempotent)) in units.into_iter().enumerate() {
            let end = match earlier.units.get(place) {
                Some(UnitEnd::Applied) => Some(End::Applied),
                Some(UnitEnd::Dead { code, reason }) => {
                    let (failure, reason) = remembered_failure(code, reason);
                    window.entry_mut(slot).note_death(place as u32, &failure, reason, now);
                    Some(End::Dead)
                }
                Some(UnitEnd::Unfinished) | None => None,
            };
            let attempts =
                earlier.attempts.iter().find(|(unit, _)| *unit as usize == place).map_or(0, |(_, attempts)| *attempts);
            let reference = UnitRef { task: slot, unit: place as u32 };
            let node = match end {
                None => window.schedule.insert(keys, reference),
                Some(_) => UnitId::NONE,
            };
            let entry = window.entry_mut(slot);
            entry.open += usize::from(end.is_none());
            entry.units.push(Unit {
                node,
                idempotent,
                attempts,
                strikes: 0,
                suspect: false,
                refused: false,
                parked: false,
                end,
            });
        }
        if !earlier.units.is_empty() || !earlier.attempts.is_empty() {
            window.note(slot);
        }
        let entry = window.entry_mut(slot);
        if entry.is_dead() {
            // Written by the last process, which may have ended before it could say how the other units did.
            entry.letter = Letter::Written { outdated: true };
        }
        if entry.open == 0 {
            self.finish(number, slot, now);
        }
    }

    fn refuse_record(&mut self, number: usize, offset: u64, envelope: Envelope, failure: &Failure) {
        let mut entry = Entry {
            offset,
            envelope,
            prepared: None,
            max_retries: 0,
            units: Vec::new(),
            open: 0,
            keys: 0,
            trouble: None,
            letter: Letter::None,
        };
        entry.note_death(0, failure, ReasonClass::RefusedRecord, Timestamp::now());
        let slot = self.windows[number].insert(entry, 0);
        self.write_letter(number, slot);
    }
}

/// Sending.
impl Worker {
    fn send(&mut self, now: Instant) {
        if self.breaker.next_probe_at().is_some_and(|at| at <= now) && self.has_work() {
            self.probe();
        }
        if !self.has_ready() {
            return;
        }
        if self.windows.iter().any(|window| window.schedule.apart_len() > 0) {
            match self.breaker.state() {
                BreakerState::Closed => return self.send_suspect(now),
                // A probe has just succeeded, and where nothing else is ready a suspect is the trial.
                BreakerState::HalfOpen { .. } if !self.has_ordinary() => return self.send_suspect(now),
                BreakerState::HalfOpen { .. } | BreakerState::Open { .. } => {}
            }
        }
        while self.in_flight < self.connections && self.has_ordinary() {
            let (units, trial) = match self.breaker.admit() {
                Admission::Free => (MAX_BATCH_UNITS, false),
                Admission::Trial => (TRIAL_UNITS, true),
                Admission::Refused => return,
            };
            let (batch, sent) = self.gather(units, trial, now);
            if sent.is_empty() {
                if trial {
                    self.breaker.on_trial_not_sent();
                }
                return;
            }
            self.start_batch(batch, sent);
        }
    }

    fn has_ready(&self) -> bool {
        self.windows.iter().any(|window| window.schedule.ready_len() + window.schedule.apart_len() > 0)
    }

    fn has_ordinary(&self) -> bool {
        self.windows.iter().any(|window| window.schedule.ready_len() > 0)
    }

    /// Suspects run one at a time, with nothing else under way, after a canary was written: so that what goes wrong is
    /// theirs.
    fn send_suspect(&mut self, now: Instant) {
        if self.in_flight > 0 {
            return;
        }
        if self.canary_at.is_none_or(|at| now.saturating_duration_since(at) > CANARY_FRESH) {
            self.probe();
            return;
        }
        if self.breaker.admit() == Admission::Refused {
            return;
        }
        for number in 0..self.windows.len() {
            if let Some((node, unit)) = self.windows[number].schedule.pop_apart() {
                let mut batch = Batch::new();
                let mut sent = Vec::new();
                self.push(number, node, unit, &mut batch, &mut sent, now);
                if let [only] = sent.as_mut_slice() {
                    only.on_trial = true;
                    return self.start_batch(batch, sent);
                }
                break;
            }
        }
        self.breaker.on_trial_not_sent();
    }

    /// Collects ready units of all lanes, by their weights.
    fn gather(&mut self, units: usize, trial: bool, now: Instant) -> (Batch, Vec<Sent>) {
        let mut batch = Batch::new();
        let mut sent = Vec::new();
        let order = self.lanes();
        let all: usize = order.iter().map(|(_, weight)| weight).sum();
        // First each lane its share, then whoever has more.
        for round in 0..2 {
            for (number, weight) in &order {
                let share = if round == 0 { (units * weight / all.max(1)).max(1) } else { units };
                let mut taken = 0;
                while taken < share && sent.len() < units && batch.bytes() < MAX_BATCH_BYTES {
                    let window = &mut self.windows[*number];
                    let next = if trial {
                        let (schedule, entries) = window.schedule_and_entries();
                        // A trial of the target should not be one of what cannot be repeated, where there is a choice.
                        schedule
                            .pop_ready_if(TRIAL_SEARCH, |unit| entries.is_idempotent(unit))
                            .or_else(|| sent.is_empty().then(|| schedule.pop_ready()).flatten())
                    } else {
                        window.schedule.pop_ready()
                    };
                    let Some((node, unit)) = next else { break };
                    if self.would_overflow(&batch, *number, unit) {
                        self.windows[*number].schedule.put_back(node);
                        return (batch, sent);
                    }
                    self.push(*number, node, unit, &mut batch, &mut sent, now);
                    taken += 1;
                }
            }
        }
        (batch, sent)
    }

    /// The windows that have something ready, the most urgent lane first, with their weights.
    fn lanes(&self) -> Vec<(usize, usize)> {
        let mut order = Vec::with_capacity(self.windows.len());
        for (lane, weight) in LANE_WEIGHTS {
            for (number, window) in self.windows.iter().enumerate() {
                if window.partition.queue.lane == lane.as_str() && window.schedule.ready_len() > 0 {
                    order.push((number, weight));
                }
            }
        }
        order
    }

    /// Whether a unit would make a batch larger than what the response timeout allows for. One alone never does.
    fn would_overflow(&self, batch: &Batch, number: usize, unit: UnitRef) -> bool {
        let bytes = self.windows[number].entry(unit.task).envelope.value.len();
        !batch.is_empty() && batch.bytes() + bytes > MAX_BATCH_BYTES
    }

    /// Puts a running unit into the batch, unless its command is held or was condemned.
    fn push(
        &mut self,
        number: usize,
        node: UnitId,
        unit: UnitRef,
        batch: &mut Batch,
        sent: &mut Vec<Sent>,
        now: Instant,
    ) {
        let entry = self.windows[number].entry(unit.task);
        let refused = entry.units[unit.unit as usize].refused;
        let value = &entry.envelope.value;
        let parsed = match &entry.prepared {
            Some(_) => None,
            None => Some(
                Task::parse(value, &self.rules, entry.envelope.accepted_at)
                    .expect("the same bytes were parsed by the same rules when they were read"),
            ),
        };
        let sendable = match (&entry.prepared, &parsed) {
            (Some(prepared), _) => Sendable::Prepared(prepared),
            (None, Some(task)) => Sendable::Parsed(&task.operation, unit.unit),
            (None, None) => unreachable!("what is not prepared was parsed just above"),
        };
        let command = sendable.command();
        match self.holds.may_send(command, now) {
            Sending::Free if refused => return self.condemn(number, node, unit),
            Sending::Free | Sending::Probe => {}
            Sending::WaitUntil(until) => {
                self.windows[number].schedule.postpone(node, until);
                return self.park(number, node, unit, command);
            }
        }
        sendable.push(value, batch);
        if refused {
            self.windows[number].entry_mut(unit.task).units[unit.unit as usize].refused = false;
        }
        sent.push(Sent { window: number, node, unit, command, on_trial: false });
    }

    fn start_batch(&mut self, batch: Batch, sent: Vec<Sent>) {
        self.in_flight += 1;
        self.units_in_flight += sent.len();
        let held = self.idle.pop();
        let target = self.target.clone();
        self.events.push(Box::pin(async move {
            let mut connection = match held {
                Some(connection) => connection,
                None => match target.connect().await {
                    Ok(connection) => connection,
                    Err(failure) => return Event::Batch { sent, connection: None, result: Err(failure) },
                },
            };
            let result = connection.execute(batch).await;
            let connection = result.reusable.then_some(connection);
            Event::Batch { sent, connection, result: Ok(result) }
        }));
    }

    fn probe(&mut self) {
        if self.probing {
            return;
        }
        self.probing = true;
        let target = self.target.clone();
        self.events.push(Box::pin(async move { Event::Probed(target.probe().await) }));
    }
}

/// Judging.
impl Worker {
    fn take_batch(&mut self, sent: Vec<Sent>, connection: Option<Connection>, result: Result<BatchResult, Failure>) {
        self.in_flight -= 1;
        self.units_in_flight -= sent.len();
        self.idle.extend(connection);
        let now = Instant::now();
        let today = Timestamp::now();
        match result {
            Err(failure) => {
                self.note_target_failure(&failure, now, today);
                for sent in sent.iter().rev() {
                    self.hold(sent, &failure, today);
                }
            }
            Ok(result) => {
                let signal = result.target_failure().cloned();
                match signal {
                    Some(failure) => self.note_target_failure(&failure, now, today),
                    None => {
                        if self.breaker.on_batch() {
                            self.note_target_return();
                        }
                    }
                }
                // Backwards, so that those put back stand in their old order again.
                for (sent, result) in sent.iter().zip(result.results).rev() {
                    match result {
                        Ok(()) => self.applied(sent, today),
                        Err(failure) => self.failed(sent, failure, now, today),
                    }
                }
            }
        }
    }

    fn applied(&mut self, sent: &Sent, today: Timestamp) {
        self.metrics.attempts[0].inc();
        if let Some(waiting) = self.holds.on_success(sent.command) {
            self.unpark(sent.command, waiting);
        }
        let window = &mut self.windows[sent.window];
        window.schedule.finish(sent.node);
        let entry = window.entry_mut(sent.unit.task);
        entry.units[sent.unit.unit as usize].end = Some(End::Applied);
        entry.letter.outdate();
        entry.open -= 1;
        if entry.open == 0 {
            self.finish(sent.window, sent.unit.task, today);
        } else {
            window.note(sent.unit.task);
        }
    }

    /// All units of a task have ended. Its dead letter must say how all of them did: whoever sends the task again
    /// goes by that.
    fn finish(&mut self, number: usize, task: TaskSlot, today: Timestamp) {
        match self.windows[number].entry(task).letter {
            Letter::Written { outdated: true } => self.write_letter(number, task),
            Letter::Written { outdated: false } | Letter::None => self.settle_at(number, task, today),
            // Settled when the letter is stored.
            Letter::Writing { .. } | Letter::Failed => {}
        }
    }

    fn failed(&mut self, sent: &Sent, failure: Failure, now: Instant, today: Timestamp) {
        self.metrics.attempts[attempt_class(failure.class)].inc();
        if failure.class == FailureClass::Dead && CommandHolds::concerns(&failure) {
            return self.refused(sent, failure, now, today);
        }
        let window = &mut self.windows[sent.window];
        let entry = window.entry_mut(sent.unit.task);
        let policy = Policy { max_retries: entry.max_retries, ..self.policy };
        let unit = &mut entry.units[sent.unit.unit as usize];
        let history = History { attempts: unit.attempts, strikes: unit.strikes, on_trial: sent.on_trial };
        let verdict = retry::decide(&policy, history, &failure, &mut self.rng);
        if !matches!(failure.class, FailureClass::Ambiguous | FailureClass::Hold) {
            unit.suspect = false;
            unit.strikes = 0;
            window.schedule.set_apart(sent.node, false);
        }
        match verdict {
            Verdict::Hold | Verdict::Route => self.hold(sent, &failure, today),
            Verdict::Retry { after, attempt } => {
                let entry = window.entry_mut(sent.unit.task);
                entry.units[sent.unit.unit as usize].attempts = attempt;
                entry.note_failure(&failure, today);
                log_retry(entry, self.target.name(), &failure, attempt, after);
                self.metrics.retry_count.inc();
                window.schedule.postpone(sent.node, now + after);
                window.note(sent.unit.task);
            }
            Verdict::Suspect { after, strikes } => {
                let entry = window.entry_mut(sent.unit.task);
                let unit = &mut entry.units[sent.unit.unit as usize];
                unit.strikes = strikes;
                unit.suspect = true;
                entry.note_failure(&failure, today);
                tracing::info!(
                    task.id = %entry.envelope.id,
                    trace_id = %trace_id(entry),
                keys = entry.keys,
                    redis.target = self.target.name(),
                    error.code = %failure.code,
                    strikes,
                    "Whether task {} ran is unknown ({}); it runs alone next",
                    entry.envelope.id,
                    failure.code
                );
                window.schedule.set_apart(sent.node, true);
                window.schedule.postpone(sent.node, now + after);
            }
            Verdict::Dead { reason } => {
                if reason == ReasonClass::RetriesExhausted {
                    self.metrics.retry_max_reached.inc();
                }
                self.die(sent.window, sent.unit, &failure, reason, today);
            }
        }
    }

    /// The target, or a command on it, cannot be used: the unit is the next one again.
    fn hold(&mut self, sent: &Sent, failure: &Failure, today: Timestamp) {
        let window = &mut self.windows[sent.window];
        window.entry_mut(sent.unit.task).note_failure(failure, today);
        window.schedule.put_back(sent.node);
    }

    /// The command was refused: this may be the task's fault or the target's.
    fn refused(&mut self, sent: &Sent, failure: Failure, now: Instant, today: Timestamp) {
        let window = &mut self.windows[sent.window];
        let entry = window.entry_mut(sent.unit.task);
        entry.note_failure(&failure, today);
        let unit = &mut entry.units[sent.unit.unit as usize];
        unit.refused = true;
        // One without keys counts as a key of its own.
        let id_hash = entry.envelope.identity.id_hash();
        let key = window.schedule.first_key(sent.node).unwrap_or(id_hash);
        let was_held = self.holds.held().any(|held| held == sent.command);
        let until = match self.holds.on_refused(sent.command, key, now) {
            Ruling::WaitUntil(until) => until,
            Ruling::Held => {
                if !was_held {
                    tracing::warn!(
                        redis.target = self.target.name(),
                        command = sent.command,
                        error.code = %failure.code,
                        "{} refuses {} on many keys ({}): holding its tasks until it is allowed",
                        self.target.name(),
                        sent.command,
                        failure.code
                    );
                }
                match self.holds.may_send(sent.command, now) {
                    Sending::WaitUntil(until) => until,
                    Sending::Free | Sending::Probe => now,
                }
            }
        };
        window.schedule.postpone(sent.node, until);
        self.park(sent.window, sent.node, sent.unit, sent.command);
    }

    /// Lists a unit that waits because its command was refused, once however often it wakes in between.
    fn park(&mut self, number: usize, node: UnitId, unit: UnitRef, command: &'static str) {
        let parked = &mut self.windows[number].entry_mut(unit.task).units[unit.unit as usize].parked;
        if !std::mem::replace(parked, true) {
            self.parked.entry(command).or_default().push((number, node, unit));
        }
    }

    /// A command that had been refused succeeded: its waiting units are sent again, or known to be at fault.
    fn unpark(&mut self, command: &'static str, waiting: Parked) {
        if waiting == Parked::Released {
            tracing::info!(redis.target = self.target.name(), command, "{} takes {command} again", self.target.name());
        }
        for (number, node, unit) in self.parked.remove(command).unwrap_or_default() {
            let window = &mut self.windows[number];
            // Units that went on meanwhile are listed no longer where they stand.
            if !window.is_waiting(node, unit) {
                continue;
            }
            let parked = &mut window.entry_mut(unit.task).units[unit.unit as usize];
            parked.parked = false;
            if waiting == Parked::Released {
                parked.refused = false;
            }
            window.schedule.hurry(node);
        }
    }

    /// A refused unit whose command works for others, or which waited long enough: it is dead.
    fn condemn(&mut self, number: usize, node: UnitId, unit: UnitRef) {
        debug_assert_eq!(self.windows[number].schedule.state(node), Some(UnitState::Running));
        let entry = self.windows[number].entry(unit.task);
        let failure = entry.trouble.as_ref().expect("a refused unit has a failure").last.clone();
        let reason = failure.reason;
        self.die(number, unit, &failure, reason, Timestamp::now());
    }

    /// Begins a unit's end: its keys stay taken until the dead letter is durable.
    fn die(&mut self, number: usize, unit: UnitRef, failure: &Failure, reason: ReasonClass, today: Timestamp) {
        let entry = self.windows[number].entry_mut(unit.task);
        entry.units[unit.unit as usize].end = Some(End::Dying);
        entry.note_death(unit.unit, failure, reason, today);
        match &mut entry.letter {
            Letter::Writing { outdated } => *outdated = true,
            Letter::Failed => {}
            Letter::None | Letter::Written { .. } => self.write_letter(number, unit.task),
        }
    }

    fn write_letter(&mut self, number: usize, task: TaskSlot) {
        let window = &mut self.windows[number];
        let partition = window.partition.clone();
        let entry = window.entry_mut(task);
        entry.letter = Letter::Writing { outdated: false };
        let letter = letter::of_entry(entry, &partition, &self.rules, Timestamp::now());
        let dead_letters = self.dead_letters.clone();
        self.events.push(Box::pin(async move {
            let result = dead_letters.put(&letter).await;
            Event::Letter { window: number, task, result }
        }));
    }

    fn take_letter(&mut self, number: usize, task: TaskSlot, result: Result<(), TableError>) {
        let window = &mut self.windows[number];
        let entry = window.entry_mut(task);
        if let Err(error) = result {
            tracing::error!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(entry),
                keys = entry.keys,
                "The dead letter of task {} cannot be stored, so the task stays where it is: {error}",
                entry.envelope.id
            );
            entry.letter = Letter::Failed;
            self.events.push(Box::pin(async move {
                tokio::time::sleep(PAUSE).await;
                Event::LetterAgain { window: number, task }
            }));
            return;
        }
        if entry.letter == (Letter::Writing { outdated: true }) {
            // What ended meanwhile is not in the letter yet.
            self.write_letter(number, task);
            return;
        }
        entry.letter = Letter::Written { outdated: false };
        let mut nodes = Vec::new();
        for unit in entry.units.iter_mut().filter(|unit| unit.end == Some(End::Dying)) {
            unit.end = Some(End::Dead);
            nodes.push(unit.node);
        }
        entry.open -= nodes.len();
        let open = entry.open;
        for node in nodes {
            window.schedule.finish(node);
        }
        if open == 0 {
            self.settle(number, task);
        } else {
            window.note(task);
        }
    }

    fn settle(&mut self, number: usize, task: TaskSlot) {
        self.settle_at(number, task, Timestamp::now());
    }

    /// The task has come to its end.
    fn settle_at(&mut self, number: usize, task: TaskSlot, today: Timestamp) {
        let entry = self.windows[number].remove(task);
        let outcome = if entry.is_dead() { Outcome::Dead } else { Outcome::Applied };
        self.metrics.settled[outcome as usize].inc();
        let age = (today.as_millisecond() - entry.envelope.accepted_at.as_millisecond()).max(0);
        self.metrics.settle_seconds.observe(age as f64 / 1000.0);
        let attempts = entry.attempts();
        if outcome == Outcome::Dead {
            self.metrics.dead_letters.inc();
            let trouble = entry.trouble.as_ref().expect("a dead task has a failure");
            let (_, failure, reason) = trouble.dead.first().expect("a dead task has a dead unit");
            tracing::warn!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(&entry),
                keys = entry.keys,
                redis.target = self.target.name(),
                reason = reason.as_str(),
                error.code = %failure.code,
                attempts,
                "Gave up task {} after {attempts} attempts ({}): it is in the dead letters",
                entry.envelope.id,
                reason.as_str()
            );
        } else {
            tracing::debug!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(&entry),
                keys = entry.keys,
                redis.target = self.target.name(),
                attempts,
                "Applied task {}",
                entry.envelope.id
            );
        }
        self.settled.push(Settled {
            identity: entry.envelope.identity,
            outcome: Some(outcome),
            attempts,
            last_error: entry.trouble.map(|trouble| format!("{}: {}", trouble.last.code, trouble.last.message).into()),
        });
    }

    fn note_target_failure(&mut self, failure: &Failure, now: Instant, today: Timestamp) {
        self.canary_at = None;
        if self.breaker.on_failure(failure, now) {
            self.held_since.get_or_insert(today);
            // What is left of the old connections is as dead as the one that failed.
            self.idle.clear();
            tracing::warn!(
                redis.target = self.target.name(),
                error.code = %failure.code,
                "Holding the tasks of {}: {} ({})",
                self.target.name(),
                failure.message,
                failure.code
            );
        }
    }

    fn note_target_return(&mut self) {
        if let Some(since) = self.held_since.take() {
            let seconds = (Timestamp::now().as_millisecond() - since.as_millisecond()) as f64 / 1000.0;
            tracing::info!(
                redis.target = self.target.name(),
                seconds,
                "Released the tasks of {} after {seconds:.1} s",
                self.target.name()
            );
        }
    }

    fn take_probe(&mut self, result: Result<ProbeReport, Failure>) {
        self.probing = false;
        let now = Instant::now();
        match result {
            Ok(report) => {
                self.canary_at = Some(now);
                if let Some(refused) = report.canary_refused
                    && !self.canary_warned
                {
                    self.canary_warned = true;
                    tracing::warn!(
                        redis.target = self.target.name(),
                        error.code = %refused.code,
                        "{} does not take Redrive's own keys ({}): allow its user to write them, so that a target that cannot be written is noticed",
                        self.target.name(),
                        refused.code
                    );
                }
                self.breaker.on_probe(Ok(()), now);
            }
            Err(failure) => {
                self.canary_at = None;
                if !matches!(self.breaker.state(), BreakerState::Open { .. }) {
                    self.note_target_failure(&failure, now, Timestamp::now());
                } else {
                    tracing::debug!(redis.target = self.target.name(), error.code = %failure.code, "{} is still not usable", self.target.name());
                    self.breaker.on_probe(Err(&failure), now);
                }
            }
        }
    }
}

/// Writing down, and being asked.
impl Worker {
    fn commit(&mut self) {
        for (number, window) in self.windows.iter_mut().enumerate() {
            if !window.changed || window.committing {
                continue;
            }
            window.changed = false;
            window.committing = true;
            let checkpoint = window.checkpoint(self.boot_id, false);
            let (log, partition, epoch) = (self.log.clone(), window.partition.clone(), window.epoch);
            self.events.push(Box::pin(async move {
                let result = log.commit(&partition, epoch, checkpoint).await;
                Event::Committed { window: number, result }
            }));
        }
    }

    fn take_commit(&mut self, number: usize, result: Result<(), CommitError>) {
        let window = &mut self.windows[number];
        window.committing = false;
        if let Err(error) = result {
            // The next checkpoint says the same and more.
            window.changed = !matches!(error, CommitError::Closed);
            tracing::warn!(partition = %window.partition, "A checkpoint of {} was not stored: {error}", window.partition);
        }
    }

    fn flush_settled(&mut self) {
        if !self.settled.is_empty() {
            self.queues.settle(self.settled.drain(..));
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let mut unfinished = 0;
        for window in &self.windows {
            unfinished += window.len() as u64;
            counts.backoff += window.schedule.backoff_len() as u64;
        }
        counts.in_flight = self.units_in_flight as u64;
        let waiting = unfinished.saturating_sub(counts.backoff + counts.in_flight);
        match self.breaker.state() {
            BreakerState::Open { .. } => counts.held = waiting,
            BreakerState::Closed | BreakerState::HalfOpen { .. } => counts.ready = waiting,
        }
        counts
    }

    fn set_gauges(&self) {
        let Counts { ready, backoff, held, in_flight } = self.counts();
        for (gauge, count) in self.metrics.tasks.iter().zip([ready, backoff, held, in_flight]) {
            gauge.set(count as i64);
        }
        let oldest = self
            .oldest()
            .map_or(0.0, |oldest| (Timestamp::now().as_millisecond() - oldest.as_millisecond()).max(0) as f64 / 1000.0);
        self.metrics.oldest_age.set(oldest);
        self.metrics.breaker.set(match self.breaker.state() {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen { .. } => 1,
            BreakerState::Open { .. } => 2,
        });
    }

    fn oldest(&self) -> Option<Timestamp> {
        self.windows.iter().filter_map(|window| window.entries().next()).map(|entry| entry.envelope.accepted_at).min()
    }

    fn answer(&self, question: Question) {
        // Whoever asked may have gone away meanwhile.
        match question {
            Question::Find(id, answer) => drop(answer.send(self.find(&id))),
            Question::Overview(answer) => drop(answer.send(self.overview())),
        }
    }

    fn find(&self, id: &TaskId) -> Option<Waiting> {
        let (window, entry) = self
            .windows
            .iter()
            .find_map(|window| window.entries().find(|entry| entry.envelope.id == *id).map(|entry| (window, entry)))?;
        let (state, until) = self.state_of(window, entry);
        let held = state == WaitState::Held;
        let held_by = match self.breaker.state() {
            BreakerState::Open { reason, .. } => Some(format!("{} ({})", reason.message, reason.code)),
            _ if entry.letter == Letter::Failed => Some("its dead letter cannot be stored".to_owned()),
            _ => entry.trouble.as_ref().map(|trouble| format!("{} ({})", trouble.last.message, trouble.last.code)),
        };
        Some(Waiting {
            target: self.target.name().to_owned(),
            lane: window.partition.queue.lane,
            accepted_at: entry.envelope.accepted_at,
            state,
            attempts: entry.attempts(),
            not_before: until.map(|until| {
                let ahead = until.saturating_duration_since(Instant::now());
                Timestamp::now() + ahead
            }),
            held_since: held.then(|| {
                self.held_since
                    .or(entry.trouble.as_ref().map(|trouble| trouble.first_error_at))
                    .unwrap_or_else(Timestamp::now)
            }),
            held_by: held_by.filter(|_| held),
            last_error: entry.trouble.as_ref().map(|trouble| LastError {
                code: trouble.last.code.to_string(),
                message: trouble.last.message.to_string(),
                at: trouble.last_error_at,
            }),
        })
    }

    /// What a task does, or what its first unfinished unit waits for.
    fn state_of(&self, window: &Window, entry: &Entry) -> (WaitState, Option<Instant>) {
        if entry.letter == Letter::Failed {
            return (WaitState::Held, None);
        }
        let open = entry.units.iter().filter(|unit| unit.end.is_none());
        let mut state = (WaitState::Ready, None);
        for unit in open {
            match window.schedule.state(unit.node) {
                Some(UnitState::Running) => return (WaitState::InFlight, None),
                Some(UnitState::Backoff(_)) if unit.refused => state = (WaitState::Held, None),
                Some(UnitState::Backoff(until)) => state = (WaitState::Backoff, Some(until)),
                Some(UnitState::Ready | UnitState::Blocked) | None => {}
            }
        }
        if state.0 == WaitState::Ready && matches!(self.breaker.state(), BreakerState::Open { .. }) {
            state.0 = WaitState::Held;
        }
        state
    }

    fn overview(&self) -> TargetOverview {
        let Counts { ready, backoff, held, in_flight } = self.counts();
        let reason = match self.breaker.state() {
            BreakerState::Open { reason, .. } | BreakerState::HalfOpen { reason, .. } => Some(reason),
            BreakerState::Closed => None,
        };
        TargetOverview {
            target: self.target.name().to_owned(),
            url: self.target.display_url().to_owned(),
            breaker: self.breaker.state().as_str(),
            held_since: reason.and(self.held_since),
            held_by: reason.map(|reason| format!("{} ({})", reason.message, reason.code)),
            held_commands: self.holds.held().map(str::to_owned).collect(),
            ready,
            backoff,
            held,
            in_flight,
            window_bytes: self.windows.iter().map(|window| window.cost as u64).sum(),
            oldest_accepted_at: self.oldest(),
            partitions: self
                .windows
                .iter()
                .map(|window| PartitionOverview {
                    lane: window.partition.queue.lane,
                    index: window.partition.index,
                    watermark: window.watermark(),
                    unfinished: window.len() as u64,
                    first: window
                        .entries()
                        .next()
                        .map(|entry| (entry.envelope.id.to_string(), self.state_of(window, entry).0)),
                })
                .collect(),
        }
    }
}

#[derive(Default)]
struct Counts {
    ready: u64,
    backoff: u64,
    held: u64,
    in_flight: u64,
}

/// A unit's commands.
enum Sendable<'e, 'a> {
    Prepared(&'e Prepared),
    /// Which unit of the operation.
    Parsed(&'e Operation<'a>, u32),
}

impl Sendable<'_, '_> {
    /// The name by which the unit's command is held.
    fn command(&self) -> &'static str {
        match self {
            Self::Prepared(prepared) => prepared.command,
            Self::Parsed(Operation::Simple(command), _) => command.spec.name,
            Self::Parsed(Operation::Pipeline { mode: Mode::Each, commands }, unit) => {
                commands[*unit as usize].spec.name
            }
            Self::Parsed(Operation::Pipeline { mode: Mode::Atomic, .. }, _) => "MULTI",
            Self::Parsed(Operation::Lua(_), _) => "EVAL",
        }
    }

    /// `value` is what the task was parsed from.
    fn push(&self, value: &[u8], batch: &mut Batch) {
        match self {
            Self::Prepared(prepared) => batch.push_command(prepared.command, prepared.args(value)),
            Self::Parsed(Operation::Simple(command), _) => push_command(batch, command),
            Self::Parsed(Operation::Pipeline { mode: Mode::Each, commands }, unit) => {
                push_command(batch, &commands[*unit as usize]);
            }
            Self::Parsed(Operation::Pipeline { mode: Mode::Atomic, commands }, _) => batch.push_atomic(
                commands.iter().map(|command| (command.spec.name, command.args.iter().map(AsRef::as_ref))),
            ),
            Self::Parsed(Operation::Lua(script), _) => batch.push_script(
                script.source.as_bytes(),
                script.keys.iter().map(AsRef::as_ref),
                script.args.iter().map(AsRef::as_ref),
            ),
        }
    }
}

fn push_command(batch: &mut Batch, command: &Command<'_>) {
    batch.push_command(command.spec.name, command.args.iter().map(AsRef::as_ref));
}

fn attempt_class(class: FailureClass) -> usize {
    match class {
        FailureClass::Hold => 1,
        FailureClass::Ambiguous => 2,
        FailureClass::Route => 3,
        FailureClass::Backoff => 4,
        FailureClass::Dead => 5,
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

fn log_retry(entry: &Entry, target: &str, failure: &Failure, attempt: u32, after: Duration) {
    tracing::info!(
        task.id = %entry.envelope.id,
        trace_id = %trace_id(entry),
                keys = entry.keys,
        redis.target = target,
        error.code = %failure.code,
        attempt,
        after_ms = after.as_millis() as u64,
        "Task {} failed ({}); retry {attempt} in {} ms",
        entry.envelope.id,
        failure.code,
        after.as_millis()
    );
}
