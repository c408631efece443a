//! The tasks of one partition that were read and are not settled.
//!
//! ```text
//!   watermark                          next
//!       ▼                               ▼
//! ──────┬──┬──┬──┬──┬──┬──┬──┬──┬──┬──┬─┬──────────▶ offsets
//!  done │  │ok│  │ok│ok│  │ok│  │  │ok│ │ not read
//!       └──┴──┴──┴──┴──┴──┴──┴──┴──┴──┴─┘
//!              one waits, the others go on
//! ```
//!
//! Bounded three times: by the span of offsets that a checkpoint can describe, by the memory of all windows together, and
//! by what is ready: reading on for more only helps when little of what was read can run, or nothing is sent anyway and
//! the more is read the less need be (`coalesce`).
//!
//! What a checkpoint describes is every position below one. That position is where the description would still fit if all
//! pipelines below it were half done: so it never moves back, and what one checkpoint said the next one says too.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    checkpoint::{self, Bounds, Finished, State, UnitEnd},
    entry::{End, Entry, Letter, TaskSlot, Unit, UnitRef, remembered_failure},
    rows::{ReplayKind, Rows},
    schedule::{Schedule, UnitId},
    seen::Unsaved,
    units::NewUnit,
};
use crate::{
    log::{Assigned, BootTime, Checkpoint, Epoch, Lease, Partition, Reader},
    queue::Envelope,
    task::Identity,
};

/// The most offsets between the watermark and what is read next.
const MAX_SPAN: u64 = 1_048_576;

/// So many offsets may be read whether a checkpoint could describe them or not. It can, unless many of them are pipelines.
const MIN_SPAN: u64 = 8192;

/// The most bytes of records between the watermark and what is read next: what one parked task can pin on disk.
const MAX_SPAN_BYTES: u64 = 256 * 1024 * 1024;

/// The most bytes that one read takes into memory.
const MAX_READ: usize = 256 * 1024;

/// As long as so many units are ready, nothing more is read: twice what goes into all batches at a time. What is read
/// long before it is sent has left the processor's caches by then.
const READY_AHEAD: usize = 1024;

/// How long an owner reads what the last one had read before it sends without.
const CATCH_UP_BOUND: Duration = Duration::from_secs(10);

/// Every window may hold this much, however full the others are.
const FLOOR: usize = 128 * 1024;

/// The memory that all windows of the process share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }
}

/// Whether this process may send units of a partition. What an earlier owner has on its way may arrive at any time, so
/// its connections are cut first; and whoever owns the partition next must know whose to cut, so the first unit waits
/// for a checkpoint that names this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The process of that boot id did not say that it had ended.
    Fencing([u8; 16]),
    /// The next checkpoint names this process.
    Claiming,
    Held,
}

/// Whether anything of a partition may be read or sent. Whoever waits for something before it sends looks again
/// afterwards.
#[derive(Clone)]
pub struct Gate {
    lease: Lease,
    closed: CancellationToken,
}

impl Gate {
    pub fn is_open(&self) -> bool {
        !self.closed.is_cancelled() && self.lease.is_valid(BootTime::now())
    }

    /// What to do until the gate is closed for good; none when it was.
    pub async fn run_until_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.closed.run_until_cancelled(work).await
    }
}

/// A partition that goes to another owner.
pub struct Leaving {
    /// What is under way then is not waited for.
    pub until: Instant,
    /// Dropped when all is done.
    pub done: oneshot::Sender<()>,
}

/// What a window has to write down.
pub struct Draft {
    pub checkpoint: Checkpoint,
    /// From where on nothing is said, where something could be.
    pub cut: Option<u64>,
}

pub struct Window {
    pub partition: Partition,
    pub epoch: Epoch,
    pub gate: Gate,
    pub claim: Claim,
    /// Where its partition is to be given up: nothing more is read or sent.
    pub leaving: Option<Leaving>,
    /// Units that were sent, or whose marker is being read, and not answered.
    pub in_flight: usize,
    /// Dead letters that are being written.
    pub writing: usize,
    /// Tasks that wait for a process that knows their target.
    pub held: usize,
    /// Tasks accepted before this were perhaps read by an owner that did not say all it had done.
    inherited_until: Option<Timestamp>,
    /// A task accepted after that was read.
    past_inherited: bool,
    /// What finished since the last durable checkpoint and would run again after a crash, by key.
    pub rows: Rows,
    /// Away while a read is under way.
    pub reader: Option<Box<dyn Reader>>,
    /// Reading has failed since it last succeeded, and the log says so.
    pub reading_fails: bool,
    pub schedule: Schedule<UnitRef>,
    /// Something finished or failed since the last checkpoint.
    pub changed: bool,
    /// Why the last checkpoint was not stored; none: it was.
    pub unstored_because: Option<String>,
    pub committing: bool,
    /// A unit finished of which the next checkpoint says more than the last one.
    pub more_to_say: bool,
    /// A unit waits for a checkpoint that says how far was read.
    pub word_wanted: bool,
    /// What of that the checkpoint says that is being written, and the last durable one.
    sealed_word: u64,
    word: u64,
    /// How far to read before anything is sent, and until when at most.
    catch_up: Option<(u64, Instant)>,
    /// From where on the last durable checkpoint said nothing, and the next one may have no room either.
    cut: Option<u64>,
    entries: Vec<Option<Entry>>,
    free: Vec<TaskSlot>,
    /// The slots of unsettled tasks, by offset.
    unfinished: BTreeMap<u64, TaskSlot>,
    /// The identities of unsettled tasks.
    identities: HashSet<Identity>,
    /// Offsets whose tasks have something that a checkpoint must say: attempts, or some units done.
    notable: BTreeMap<u64, TaskSlot>,
    /// The offset after the last one that was read.
    next: u64,
    /// What the checkpoint at the start says of offsets that were not read again yet.
    earlier: State,
    /// The offset after the last one of each read, and how many bytes it had, oldest first.
    reads: VecDeque<(u64, u64)>,
    span_bytes: u64,
    /// The most bytes of a checkpoint's state.
    max_state_bytes: usize,
    /// Of these, what unsettled pipelines take at most.
    pipeline_bytes: usize,
    /// What the checkpoint at the start said of positions below is said again by the next one.
    described: u64,
    /// What was settled here while no durable checkpoint says so.
    pub unsaved: Unsaved,
    /// Bytes that the entries count for.
    pub cost: usize,
    budget: Arc<Budget>,
}

impl Window {
    /// `boot_id` is this process's own.
    pub fn new(assigned: Assigned, boot_id: [u8; 16], max_state_bytes: usize, budget: Arc<Budget>) -> Self {
        let Assigned { partition, epoch, lease, checkpoint, reader } = assigned;
        let is_new = checkpoint.is_none();
        let Checkpoint { watermark, state } = checkpoint.unwrap_or_default();
        let mut is_garbled = false;
        let earlier = match State::decode(watermark, &state) {
            Some(state) => state,
            None if state.is_empty() => State::default(),
            None => {
                tracing::warn!(
                    partition = %partition,
                    "The checkpoint of {partition} cannot be read above offset {watermark}: what was finished there runs again"
                );
                is_garbled = true;
                State::default()
            }
        };
        let is_known = !is_new && earlier != State::default();
        let claim = match is_known && !earlier.released && earlier.boot_id != boot_id {
            true => Claim::Fencing(earlier.boot_id),
            // What this process itself had on its way was cut when the partition was taken away.
            false => Claim::Claiming,
        };
        let more_may_have_run = is_garbled || is_known && (!earlier.released || earlier.more_may_have_run);
        let half_done_end = earlier.half_done.last_key_value().map_or(watermark, |(offset, _)| offset + 1);
        let described = earlier.finished.end().max(half_done_end).max(watermark);
        Self {
            partition,
            epoch,
            gate: Gate { lease, closed: CancellationToken::new() },
            claim,
            leaving: None,
            in_flight: 0,
            writing: 0,
            held: 0,
            inherited_until: more_may_have_run.then(Timestamp::now),
            past_inherited: false,
            rows: Rows::default(),
            reader: Some(reader),
            reading_fails: false,
            schedule: Schedule::default(),
            changed: false,
            unstored_because: None,
            committing: false,
            more_to_say: false,
            word_wanted: false,
            sealed_word: earlier.word,
            word: earlier.word,
            catch_up: (earlier.word > watermark).then(|| (earlier.word, Instant::now() + CATCH_UP_BOUND)),
            cut: None,
            entries: Vec::new(),
            free: Vec::new(),
            unfinished: BTreeMap::new(),
            identities: HashSet::new(),
            notable: BTreeMap::new(),
            next: watermark,
            earlier,
            reads: VecDeque::new(),
            span_bytes: 0,
            max_state_bytes,
            pipeline_bytes: 0,
            described,
            unsaved: Unsaved::default(),
            cost: 0,
            budget,
        }
    }

    /// Every record below is finished.
    pub fn watermark(&self) -> u64 {
        self.unfinished.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }

    /// How many bytes may be read now, if any. `ahead`: however much is ready.
    pub fn room(&self, ahead: bool) -> Option<usize> {
        let span = self.next - self.watermark();
        let describable = checkpoint::most_bytes(span, self.pipeline_bytes) <= self.max_state_bytes;
        if self.leaving.is_some()
            || span >= MAX_SPAN
            || span >= MIN_SPAN && !describable
            || self.span_bytes >= MAX_SPAN_BYTES
            || self.schedule.ready_len() >= READY_AHEAD && !ahead && self.catch_up.is_none()
        {
            return None;
        }
        let used = self.budget.used.load(Ordering::Relaxed);
        let room = self.budget.limit.saturating_sub(used).max(FLOOR.saturating_sub(self.cost));
        // Tiny reads would cost more than they bring.
        (room >= MAX_READ.min(FLOOR) / 2).then_some(room.min(MAX_READ))
    }

    /// What the last process knew about this offset: None when its task is finished.
    pub fn earlier(&self, offset: u64) -> Option<Earlier> {
        if self.earlier.finished.contains(offset) {
            return None;
        }
        Some(Earlier {
            units: self.earlier.half_done.get(&offset).cloned().unwrap_or_default(),
            attempts: self
                .earlier
                .attempts
                .range((offset, 0)..=(offset, u32::MAX))
                .map(|((_, unit), attempts)| (*unit, *attempts))
                .collect(),
        })
    }

    /// Notes that all records below `next` were read, now `bytes` of them.
    pub fn note_read(&mut self, next: u64, bytes: u64) {
        self.next = next;
        self.catch_up = self.catch_up.filter(|(until, _)| self.next < *until);
        self.reads.push_back((next, bytes));
        self.span_bytes += bytes;
        if self.next >= self.earlier.finished.end() {
            let next = self.next;
            self.earlier.half_done.retain(|offset, _| *offset >= next);
            self.earlier.attempts.retain(|(offset, _), _| *offset >= next);
            if self.earlier.half_done.is_empty() && self.earlier.attempts.is_empty() {
                self.earlier = State::default();
            }
        }
        self.forget_reads();
    }

    /// Takes an entry in that will have `units` units. They are inserted into the schedule by whoever knows their
    /// keys.
    pub fn insert(&mut self, entry: Entry, units: usize) -> TaskSlot {
        let (offset, cost) = (entry.offset, entry.cost(units));
        self.pipeline_bytes += pipeline_bytes(units);
        self.identities.insert(entry.envelope.identity);
        self.cost += cost;
        self.budget.used.fetch_add(cost, Ordering::Relaxed);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot.0 as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                TaskSlot(u32::try_from(self.entries.len() - 1).expect("the budget holds far fewer than 2^32 tasks"))
            }
        };
        self.unfinished.insert(offset, slot);
        slot
    }

    /// Takes in a task with its units, as far as they are not done already.
    pub fn take_in(&mut self, entry: Entry, units: Vec<NewUnit>, earlier: &Earlier, now: Timestamp) -> TaskSlot {
        let slot = self.insert(entry, units.len());
        self.entry_mut(slot).units.reserve_exact(units.len());
        for (place, NewUnit { keys, stake, checks, idempotent, kind }) in (0_u32..).zip(units) {
            let end = match earlier.units.get(place as usize) {
                Some(UnitEnd::Settled(outcome)) => Some(End::Settled(*outcome)),
                Some(UnitEnd::Dead { code, reason }) => {
                    let (failure, reason) = remembered_failure(code, reason);
                    self.entry_mut(slot).note_death(place, &failure, reason, now);
                    Some(End::Dead)
                }
                Some(UnitEnd::Unfinished) | None => None,
            };
            let attempts =
                earlier.attempts.iter().find(|(unit, _)| *unit == place).map_or(0, |(_, attempts)| *attempts);
            let node = match end {
                None => self.schedule.insert(keys, stake, &checks, UnitRef { task: slot, unit: place }),
                Some(_) => UnitId::NONE,
            };
            self.follow_moves();
            let entry = self.entry_mut(slot);
            entry.open += usize::from(end.is_none());
            entry.units.push(Unit {
                node,
                idempotent,
                kind,
                attempts,
                strikes: 0,
                suspect: false,
                refused: false,
                parked: false,
                end,
            });
        }
        if !earlier.units.is_empty() || !earlier.attempts.is_empty() {
            self.note(slot);
        }
        let entry = self.entry_mut(slot);
        if entry.is_dead() {
            // Written by the last process, which may have ended before it could say how the other units did.
            entry.letter = Letter::Written { outdated: true };
        }
        slot
    }

    /// Ends a running unit in the schedule. Returns those whose place it had taken: they end with it.
    pub fn finish(&mut self, node: UnitId) -> Vec<UnitRef> {
        self.schedule.finish(node);
        self.follow_moves();
        self.schedule.take_superseded()
    }

    /// Ends a running unit in the schedule that is dead: those whose place it had taken run.
    pub fn give_way(&mut self, node: UnitId) {
        self.schedule.give_way(node);
        self.follow_moves();
    }

    /// A unit that was sent waits again: one that came meanwhile may take its place.
    pub fn reconsider(&mut self, node: UnitId) {
        self.schedule.reconsider(node);
        self.follow_moves();
    }

    /// Whether a unit may only be sent when a durable checkpoint says that its record was read. There is none yet.
    pub fn lacks_word(&self, node: UnitId, offset: u64) -> bool {
        offset >= self.word && self.schedule.needs_word(node)
    }

    fn follow_moves(&mut self) {
        for (unit, node) in self.schedule.moved() {
            let entry = self.entries[unit.task.0 as usize].as_mut().expect("what is in the schedule is not settled");
            // One that is only just coming is not there yet, and learns it otherwise.
            if let Some(unit) = entry.units.get_mut(unit.unit as usize) {
                // Where it is listed as refused it will not be found, and if it runs after all it is tried anew.
                (unit.node, unit.refused, unit.parked) = (node, false, false);
            }
        }
    }

    /// Removes a settled task.
    pub fn remove(&mut self, slot: TaskSlot) -> Entry {
        let entry = self.entries[slot.0 as usize].take().expect("a task is settled once");
        let cost = entry.cost(entry.units.len());
        self.cost -= cost;
        self.budget.used.fetch_sub(cost, Ordering::Relaxed);
        self.pipeline_bytes -= pipeline_bytes(entry.units.len());
        self.unfinished.remove(&entry.offset);
        self.identities.remove(&entry.envelope.identity);
        self.unsaved.push(entry.offset, entry.envelope.identity);
        self.notable.remove(&entry.offset);
        self.free.push(slot);
        self.changed = true;
        self.forget_reads();
        if self.unfinished.is_empty() && self.entries.capacity() > 1024 {
            self.entries = Vec::new();
            self.free = Vec::new();
            self.identities = HashSet::new();
        }
        entry
    }

    /// Whether an earlier process may have sent units of the task without a checkpoint that says so.
    pub fn may_have_run(&mut self, envelope: &Envelope) -> bool {
        let may_have_run = self.inherited_until.is_some_and(|until| envelope.accepted_at <= until);
        self.past_inherited |= !may_have_run;
        may_have_run
    }

    /// Whether a task with this identity is not settled.
    pub fn holds(&self, identity: &Identity) -> bool {
        self.identities.contains(identity)
    }

    pub fn entry(&self, slot: TaskSlot) -> &Entry {
        self.entries[slot.0 as usize].as_ref().expect("the task is not settled")
    }

    pub fn entry_mut(&mut self, slot: TaskSlot) -> &mut Entry {
        self.entries[slot.0 as usize].as_mut().expect("the task is not settled")
    }

    /// Whether the unit is the one that this node of the schedule stands for, and is not done.
    pub fn is_waiting(&self, node: UnitId, unit: UnitRef) -> bool {
        let entry = self.entries.get(unit.task.0 as usize).and_then(Option::as_ref);
        entry
            .and_then(|entry| entry.units.get(unit.unit as usize))
            .is_some_and(|found| found.node == node && found.end.is_none())
    }

    /// The schedule, and beside it what the units are.
    pub fn schedule_and_entries(&mut self) -> (&mut Schedule<UnitRef>, Entries<'_>) {
        (&mut self.schedule, Entries(&self.entries))
    }

    /// The next checkpoint must say something about this task.
    pub fn note(&mut self, slot: TaskSlot) {
        let offset = self.entry(slot).offset;
        self.notable.insert(offset, slot);
        self.changed = true;
    }

    /// Unsettled tasks in the order of their offsets.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.unfinished.values().map(|slot| self.entry(*slot))
    }

    pub fn len(&self) -> usize {
        self.unfinished.len()
    }

    /// Whether its units may be sent now.
    pub fn may_send(&self) -> bool {
        self.claim == Claim::Held && self.catch_up.is_none() && self.gate.is_open()
    }

    /// Until when nothing is sent at most, so that what the last owner had read is read before.
    pub fn catches_up_until(&self) -> Option<Instant> {
        self.catch_up.map(|(_, until)| until)
    }

    /// Sends without: there is no room for all of it, or it does not come.
    pub fn stop_catching_up(&mut self) {
        self.catch_up = None;
    }

    /// Nothing more is read or sent.
    pub fn close(&self) {
        self.gate.closed.cancel();
    }

    /// What to write down now. While an earlier owner is not fenced off its name stays in it.
    pub fn checkpoint(&self, boot_id: [u8; 16], released: bool) -> Draft {
        let watermark = self.watermark();
        let mut finished = Finished::from_unfinished(watermark, self.unfinished.keys().copied(), self.next);
        finished.extend_from(&self.earlier.finished, self.next);
        let (boot_id, released) = match self.claim {
            Claim::Fencing(earlier) => (earlier, false),
            Claim::Claiming | Claim::Held => (boot_id, released),
        };
        let more_may_have_run = self.more_may_have_run();
        let mut state =
            State { boot_id, released, more_may_have_run, finished, word: self.sealed_word, ..State::default() };
        for (offset, slot) in &self.notable {
            let entry = self.entry(*slot);
            if let Some(ends) = entry.unit_ends() {
                state.half_done.insert(*offset, ends);
            }
            for (place, unit) in entry.units.iter().enumerate() {
                if unit.attempts > 0 && unit.end.is_none() {
                    state.attempts.insert((*offset, place as u32), unit.attempts);
                }
            }
        }
        let next = self.next;
        state.half_done.extend(self.earlier.half_done.range(next..).map(|(offset, ends)| (*offset, ends.clone())));
        state.attempts.extend(self.earlier.attempts.range((next, 0)..).map(|(unit, attempts)| (*unit, *attempts)));
        let end = self.next.max(self.described);
        let until = self.describable_end().max(self.described);
        let encoded = state.encode(watermark, Bounds { until, max_bytes: self.max_state_bytes });
        Draft {
            checkpoint: Checkpoint { watermark, state: encoded.state },
            cut: (encoded.until < end).then_some(encoded.until),
        }
    }

    /// A unit of the task at that offset ended by having run: its keys may not be let go before this.
    pub fn note_run(&mut self, node: UnitId, kind: ReplayKind, offset: u64) {
        self.rows.finished(self.schedule.keys(node), kind, offset);
        self.more_to_say |= self.cut.is_none_or(|cut| offset < cut);
    }

    /// A checkpoint is going to be written, that says all that finished until now.
    pub fn seal(&mut self) {
        self.more_to_say = false;
        if std::mem::take(&mut self.word_wanted) {
            self.sealed_word = self.next;
        }
        self.rows.seal();
        self.unsaved.seal();
    }

    /// It is durable.
    pub fn checkpointed(&mut self, cut: Option<u64>) {
        self.cut = cut;
        self.word = self.sealed_word;
        self.rows.checkpointed(cut);
        self.unsaved.saved(cut);
    }

    /// It was not stored, or may not have been.
    pub fn unsealed(&mut self) {
        self.more_to_say = true;
        self.word_wanted |= self.sealed_word > self.word;
        self.rows.unsealed();
        self.unsaved.unsealed();
    }

    /// Below this a checkpoint can say everything, however many pipelines come to be half done.
    fn describable_end(&self) -> u64 {
        let (watermark, max) = (self.watermark(), self.max_state_bytes);
        if checkpoint::most_bytes(self.next - watermark, self.pipeline_bytes) <= max {
            return self.next;
        }
        let mut of_pipelines = 0;
        // As far as the bits for finished and unfinished go.
        let most = |of_pipelines| {
            let bytes = max.saturating_sub(checkpoint::most_bytes(0, of_pipelines));
            watermark + bytes as u64 * 8
        };
        for (offset, slot) in &self.unfinished {
            let with_this = of_pipelines + pipeline_bytes(self.entry(*slot).units.len());
            if most(with_this) <= *offset {
                return most(of_pipelines).min(*offset);
            }
            of_pipelines = with_this;
        }
        most(of_pipelines).min(self.next)
    }

    /// Whether some of what this window calls unfinished may have been sent by an earlier owner.
    fn more_may_have_run(&self) -> bool {
        self.inherited_until.is_some() && (!self.past_inherited || self.entries().any(|entry| entry.may_have_run))
    }

    fn forget_reads(&mut self) {
        let watermark = self.watermark();
        while let Some((next, bytes)) = self.reads.front().copied()
            && next <= watermark
        {
            self.span_bytes -= bytes;
            self.reads.pop_front();
        }
    }
}

/// Read access to the tasks while the schedule is worked on.
pub struct Entries<'a>(&'a [Option<Entry>]);

impl Entries<'_> {
    pub fn is_idempotent(&self, unit: UnitRef) -> bool {
        self.0[unit.task.0 as usize].as_ref().is_some_and(|entry| entry.units[unit.unit as usize].idempotent)
    }
}

/// What a task takes in a checkpoint while it is half done.
fn pipeline_bytes(units: usize) -> usize {
    if units > 1 { checkpoint::bytes_of_pipeline(units) } else { 0 }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.close();
        self.budget.used.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// What an earlier process had done of a task.
pub struct Earlier {
    /// How far each unit came; empty when nothing is known.
    pub units: Vec<super::checkpoint::UnitEnd>,
    /// Retries spent, by unit.
    pub attempts: Vec<(u32, u32)>,
}

#[cfg(test)]
mod tests;
