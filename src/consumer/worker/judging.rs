//! What the result of a batch means for each of its units.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{Event, FlightId, Sent, Worker, trace_id};
use crate::{
    consumer::{
        entry::{Entry, UnitRef},
        schedule::{UnitId, UnitState},
        windows::WindowId,
    },
    retry::{self, Failure, FailureClass, History, Policy, ReasonClass, Verdict},
    target::{
        BatchResult, Connection, Done, Marker, MarkerState, Past,
        command_hold::{CommandHolds, Ruling, Sending, Waiting as Parked},
        limiter::Round,
    },
    task::Outcome,
};

impl Worker {
    pub(super) fn take_batch(
        &mut self,
        flight: FlightId,
        sent: &[Sent],
        connection: Option<Connection>,
        result: Result<BatchResult, Failure>,
    ) {
        self.in_flight -= 1;
        self.units_in_flight -= sent.len();
        let flight = self.flights.remove(&flight).expect("a batch ends once, and is known until then");
        let is_cut = flight.is_cut;
        if !is_cut {
            // One that is being cut is not for others: it goes back to the target, which looks before it is used again.
            self.idle.extend(connection);
        }
        for sent in sent {
            if let Some(window) = self.windows.get_mut(sent.window) {
                window.in_flight -= 1;
            }
        }
        let now = Instant::now();
        let today = Timestamp::now();
        match result {
            Err(failure) => {
                self.note_target_failure(&failure, now, today);
                if &*failure.code == Failure::NO_CONNECTION {
                    // Which is nothing that the target did.
                    self.breaker.on_trial_not_sent();
                }
                for sent in sent.iter().rev() {
                    if self.windows.contains(sent.window) {
                        self.hold(sent, &failure, today);
                    }
                }
            }
            Ok(result) => {
                if let Some(name) = result.spoilt {
                    self.add_past(Past::Connection(name));
                }
                let signal = result.target_failure().cloned();
                let round =
                    Round { units: sent.len(), at_limit: flight.at_limit, begun: flight.begun, took: result.took };
                match signal {
                    // That is our own doing, and says nothing of the target.
                    Some(failure) if is_cut && &*failure.code == Failure::CONNECTION_LOST => {
                        self.breaker.on_trial_not_sent();
                    }
                    Some(failure) => self.note_target_failure(&failure, now, today),
                    None => {
                        self.limiter.on_batch(round, now);
                        self.breaker.on_batch(flight.begun, self.limiter.batches(), now);
                        self.note_state();
                    }
                }
                // Backwards, so that those put back stand in their old order again.
                for (sent, result) in sent.iter().zip(result.results).rev() {
                    if !self.windows.contains(sent.window) {
                        continue;
                    }
                    match result {
                        Ok(Done::Applied | Done::AppliedBefore) => self.succeeded(sent, sent.outcome, today),
                        Ok(Done::Stale) => self.succeeded(sent, Outcome::Stale, today),
                        Err(failure) => self.failed(sent, failure, now, today),
                    }
                }
            }
        }
    }

    /// The target did what it was asked to.
    fn succeeded(&mut self, sent: &Sent, outcome: Outcome, today: Timestamp) {
        self.metrics.attempts[0].inc();
        if let Some(waiting) = self.holds.on_success(sent.command) {
            self.unpark(sent.command, waiting);
        }
        let window = &mut self.windows[sent.window];
        let entry = window.entry(sent.unit.task);
        let (offset, kind) = (entry.offset, entry.units[sent.unit.unit as usize].kind);
        window.note_run(sent.node, kind, offset);
        self.end_unit(sent.window, sent.node, sent.unit, outcome, today);
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
                window.reconsider(sent.node);
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
                if reason == ReasonClass::Ambiguous
                    && let Some(marker) = self.marker_of(sent)
                {
                    return self.read_marker(*sent, marker, failure);
                }
                if reason == ReasonClass::RetriesExhausted {
                    self.metrics.retry_max_reached.inc();
                }
                self.die(sent.window, sent.unit, &failure, reason, today);
            }
        }
    }

    /// The marker that a once-unit has left if it ran; none for other units.
    fn marker_of(&self, sent: &Sent) -> Option<Marker> {
        let window = &self.windows[sent.window];
        let envelope = &window.entry(sent.unit.task).envelope;
        let task = envelope.task(&self.rules, &window.partition.queue.target).ok()?;
        let unit = task.operation.units().nth(sent.unit.unit as usize)?;
        (task.version.is_none() && task.is_once(&unit)).then(|| Marker {
            id_hash: envelope.identity.id_hash(),
            unit: sent.unit.unit,
            accepted_at: envelope.accepted_at,
        })
    }

    /// Nobody knows whether a once-unit ran, and it will not be sent again: its marker knows, once nothing of it can
    /// arrive any more.
    fn read_marker(&mut self, sent: Sent, marker: Marker, failure: Failure) {
        self.in_flight += 1;
        self.units_in_flight += 1;
        self.windows[sent.window].in_flight += 1;
        let (target, past) = (self.target.clone(), self.past.clone());
        self.events.push(Box::pin(async move {
            let result = match target.fence(&past).await {
                Ok(_) => target.marker(&marker).await,
                Err(failure) => Err(failure),
            };
            Event::Marker { sent, failure, result }
        }));
    }

    pub(super) fn take_marker(&mut self, sent: &Sent, failure: &Failure, result: Result<Option<MarkerState>, Failure>) {
        self.in_flight -= 1;
        self.units_in_flight -= 1;
        let (now, today) = (Instant::now(), Timestamp::now());
        match self.windows.get_mut(sent.window) {
            Some(window) => window.in_flight -= 1,
            None => return,
        }
        match result {
            Ok(Some(MarkerState::Applied)) => self.succeeded(sent, sent.outcome, today),
            Ok(Some(MarkerState::Partial)) => self.die(sent.window, sent.unit, failure, ReasonClass::Partial, today),
            Ok(None) => self.die(sent.window, sent.unit, failure, ReasonClass::Ambiguous, today),
            Err(away) => {
                self.note_target_failure(&away, now, today);
                self.hold(sent, &away, today);
            }
        }
    }

    /// The target, or a command on it, cannot be used: the unit is the next one again.
    fn hold(&mut self, sent: &Sent, failure: &Failure, today: Timestamp) {
        let window = &mut self.windows[sent.window];
        window.entry_mut(sent.unit.task).note_failure(failure, today);
        window.schedule.put_back(sent.node);
        window.reconsider(sent.node);
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
    pub(super) fn park(&mut self, number: WindowId, node: UnitId, unit: UnitRef, command: &'static str) {
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
            // Units that went on meanwhile are listed no longer where they stand.
            let Some(window) = self.windows.get_mut(number).filter(|window| window.is_waiting(node, unit)) else {
                continue;
            };
            let parked = &mut window.entry_mut(unit.task).units[unit.unit as usize];
            parked.parked = false;
            if waiting == Parked::Released {
                parked.refused = false;
            }
            window.schedule.hurry(node);
        }
    }

    /// A refused unit whose command works for others, or which waited long enough: it is dead.
    pub(super) fn condemn(&mut self, number: WindowId, node: UnitId, unit: UnitRef) {
        debug_assert_eq!(self.windows[number].schedule.state(node), Some(UnitState::Running));
        let entry = self.windows[number].entry(unit.task);
        let failure = entry.trouble.as_ref().expect("a refused unit has a failure").last.clone();
        let reason = failure.reason;
        self.die(number, unit, &failure, reason, Timestamp::now());
    }
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
