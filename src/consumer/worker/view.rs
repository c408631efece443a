//! What a worker shows of itself: gauges, and answers to questions.

use std::time::Instant;

use jiff::Timestamp;

use super::Worker;
use crate::{
    consumer::{
        BreakerOverview, FirstTask, LastError, PartitionOverview, Question, TargetOverview, WaitState, Waiting,
        entry::{Entry, Unit},
        schedule::UnitState,
        window::Window,
    },
    target::breaker::State as BreakerState,
    task::TaskId,
};

impl Worker {
    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        let (mut unfinished, mut held) = (0, 0);
        for window in self.windows.values() {
            unfinished += window.len() as u64;
            held += window.held as u64;
            counts.backoff += window.schedule.backoff_len() as u64;
        }
        counts.in_flight = self.units_in_flight as u64;
        let waiting = unfinished.saturating_sub(held + counts.backoff + counts.in_flight);
        counts.held = held;
        match self.breaker.state() {
            BreakerState::Open { .. } => counts.held += waiting,
            BreakerState::Closed | BreakerState::HalfOpen { .. } | BreakerState::Ramp { .. } => counts.ready = waiting,
        }
        counts
    }

    pub(super) fn set_gauges(&self) {
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
            BreakerState::Ramp { .. } => 3,
        });
        let now = Instant::now();
        self.metrics.limit_batches.set(self.allowed_batches() as i64);
        self.metrics.rate_limit.set(self.limiter.ceiling(now).unwrap_or(0.0));
        self.metrics.ping.set(self.limiter.pings().last.unwrap_or_default().as_secs_f64());
    }

    fn oldest(&self) -> Option<Timestamp> {
        self.windows.values().filter_map(|window| window.entries().next()).map(|entry| entry.envelope.accepted_at).min()
    }

    pub(super) fn answer(&self, question: Question) {
        // Whoever asked may have gone away meanwhile.
        match question {
            Question::Find(id, answer) => drop(answer.send(self.find(&id))),
            Question::Overview(answer) => drop(answer.send(self.overview())),
            Question::Breaker(answer) => drop(answer.send(self.breaker_overview())),
        }
    }

    pub(super) fn find(&self, id: &TaskId) -> Option<Waiting> {
        let (window, entry) = self
            .windows
            .values()
            .find_map(|window| window.entries().find(|entry| entry.envelope.id == *id).map(|entry| (window, entry)))?;
        let (state, until) = self.state_of(window, entry);
        let held = state == WaitState::Held;
        let held_by = self.trouble_of(entry);
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

    /// What keeps a task from being made.
    fn trouble_of(&self, entry: &Entry) -> Option<String> {
        match self.breaker.state() {
            BreakerState::Open { reason, .. } => Some(format!("{} ({})", reason.message, reason.code)),
            _ if entry.letter.is_wanting() => Some("its dead letter cannot be stored".to_owned()),
            _ => entry.trouble.as_ref().map(|trouble| format!("{} ({})", trouble.last.message, trouble.last.code)),
        }
    }

    fn first_task(&self, window: &Window, entry: &Entry) -> FirstTask {
        let (state, _) = self.state_of(window, entry);
        let is_waiting = |unit: &Unit| window.schedule.state(unit.node) == Some(UnitState::Waiting);
        let for_checkpoint = state == WaitState::Ready && entry.units.iter().any(is_waiting);
        let waits_for = match state {
            WaitState::InFlight => None,
            _ if for_checkpoint => Some("a checkpoint of what was made before it on its keys".to_owned()),
            _ => self.trouble_of(entry),
        };
        FirstTask { id: entry.envelope.id.to_string(), accepted_at: entry.envelope.accepted_at, state, waits_for }
    }

    /// What a task does, or what its first unfinished unit waits for.
    fn state_of(&self, window: &Window, entry: &Entry) -> (WaitState, Option<Instant>) {
        // Without units it waits for somebody else, or to be called dead.
        if entry.letter.is_wanting() || entry.units.is_empty() {
            return (WaitState::Held, None);
        }
        let open = entry.units.iter().filter(|unit| unit.end.is_none());
        let mut state = (WaitState::Ready, None);
        for unit in open {
            match window.schedule.state(unit.node) {
                Some(UnitState::Running) => return (WaitState::InFlight, None),
                Some(UnitState::Held) => state = (WaitState::Held, None),
                Some(UnitState::Backoff(_)) if unit.refused => state = (WaitState::Held, None),
                Some(UnitState::Backoff(until)) => state = (WaitState::Backoff, Some(until)),
                Some(UnitState::Ready | UnitState::Blocked | UnitState::Waiting | UnitState::Covered) | None => {}
            }
        }
        if state.0 == WaitState::Ready && matches!(self.breaker.state(), BreakerState::Open { .. }) {
            state.0 = WaitState::Held;
        }
        state
    }

    /// How many batches may be under way at a time.
    fn allowed_batches(&self) -> usize {
        match self.breaker.state() {
            BreakerState::Closed => self.limiter.batches(),
            BreakerState::Ramp { batches, .. } => self.limiter.batches().min(*batches),
            BreakerState::HalfOpen { .. } => 1,
            state @ BreakerState::Open { .. } => usize::from(!state.is_shut()),
        }
    }

    fn breaker_overview(&self) -> BreakerOverview {
        let (now, today) = (Instant::now(), Timestamp::now());
        let at = |instant: Instant| today + instant.saturating_duration_since(now);
        let pings = self.limiter.pings();
        BreakerOverview {
            target: self.target.name().to_owned(),
            state: self.breaker.state().as_str(),
            reason: self.breaker.state().reason().map(|reason| (reason.code.to_string(), reason.message.to_string())),
            since: self.shown.since,
            next_probe_at: self.breaker.next_probe_at().map(at),
            held: self.counts().held,
            batches: self.in_flight,
            limit_batches: self.allowed_batches(),
            batch_units: self.limiter.batch_units(),
            rate: self.limiter.rate(now),
            rate_limit: self.limiter.ceiling(now),
            spared_until: self.limiter.spared_until(now).map(at),
            ping: pings.last,
            ping_baseline: pings.baseline,
        }
    }

    fn overview(&self) -> TargetOverview {
        let Counts { ready, backoff, held, in_flight } = self.counts();
        let reason = match self.breaker.state() {
            BreakerState::Open { reason, .. } | BreakerState::HalfOpen { reason, .. } => Some(reason),
            BreakerState::Closed | BreakerState::Ramp { .. } => None,
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
            window_bytes: self.windows.values().map(|window| window.cost as u64).sum(),
            oldest_accepted_at: self.oldest(),
            partitions: self
                .windows
                .values()
                .map(|window| PartitionOverview {
                    lane: window.partition.queue.lane,
                    index: window.partition.index,
                    watermark: window.watermark(),
                    unfinished: window.len() as u64,
                    first: window.entries().next().map(|entry| self.first_task(window, entry)),
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
