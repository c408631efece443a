//! Choosing what is sent next, and putting it into batches.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use jiff::Timestamp;

use super::{CANARY_FRESH, Event, Flight, Sent, TRIAL_SEARCH, Worker};
use crate::{
    consumer::{
        entry::UnitRef,
        plan::{Moment, Plan},
        schedule::UnitId,
        turns::{Ready, Turn, Turns},
        window::{Gate, Window},
        windows::WindowId,
    },
    faults,
    retry::Failure,
    target::{
        Batch, MAX_BATCH_BYTES,
        breaker::{Admission, State as BreakerState, TRIAL_UNITS},
        command_hold::Sending,
    },
    task::Lane,
};

/// Which of the ready units a batch is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Any,
    /// Idempotent ones, where there is a choice: a trial of the target should not be one of what cannot be repeated.
    Idempotent,
    /// Those that a target takes whose memory is full. The others are held.
    Freeing,
}

/// A batch in the making.
struct Draft {
    batch: Batch,
    sent: Vec<Sent>,
    choice: Choice,
    /// When it was begun: what is still true then is sent.
    now: Instant,
    today: Timestamp,
}

impl Worker {
    pub(super) fn send(&mut self, now: Instant) {
        self.limited_until = None;
        let probe_at = self.breaker.next_probe_at().unwrap_or(self.probe_due);
        let is_open = matches!(self.breaker.state(), BreakerState::Open { .. });
        if probe_at <= now && self.has_work() || !is_open && self.limiter.wants_ping(now) {
            self.probe();
        }
        if !self.known {
            // Times to live need to know the target's clock.
            return;
        }
        if !self.past.is_empty() {
            // What may still arrive must not arrive after anything that is sent now.
            return self.fence();
        }
        if !self.breaker.state().is_out_of_memory() {
            self.windows.values_mut().for_each(|window| window.schedule.release_held());
        }
        if !self.has_ready() {
            return;
        }
        if self.windows.values().any(|window| window.schedule.apart_len() > 0) {
            match self.breaker.state() {
                BreakerState::Closed | BreakerState::Ramp { .. } => return self.send_suspect(now),
                // A probe has just succeeded, and where nothing else is ready a suspect is the trial.
                BreakerState::HalfOpen { .. } if !self.has_ordinary() => return self.send_suspect(now),
                BreakerState::HalfOpen { .. } | BreakerState::Open { .. } => {}
            }
        }
        while self.has_ordinary() {
            let wanted = self.windows.values().map(|window| window.schedule.ready_len()).sum();
            let granted = match self.limiter.grant(wanted, now) {
                Ok(granted) => granted,
                Err(until) => {
                    self.limited_until = Some(until);
                    return;
                }
            };
            let (batches, units, choice) = match self.breaker.admit() {
                Admission::Free => (self.limiter.batches(), granted, Choice::Any),
                Admission::Ramp(batches) => (batches.min(self.limiter.batches()), granted, Choice::Any),
                Admission::Trial => (usize::MAX, granted.min(TRIAL_UNITS), Choice::Idempotent),
                Admission::Freeing => (1, granted, Choice::Freeing),
                Admission::Refused => return,
            };
            if self.in_flight >= batches {
                return;
            }
            let draft = self.gather(units, choice, now);
            if draft.sent.is_empty() {
                self.breaker.on_trial_not_sent();
                return;
            }
            self.start_batch(draft, batches);
        }
    }

    fn has_ready(&self) -> bool {
        let ready = |window: &Window| window.schedule.ready_len() + window.schedule.apart_len() > 0;
        self.windows.values().any(|window| ready(window) && window.may_send())
    }

    fn has_ordinary(&self) -> bool {
        self.windows.values().any(|window| window.schedule.ready_len() > 0 && window.may_send())
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
        let suspect = self
            .windows
            .iter_mut()
            .filter(|(_, window)| window.may_send())
            .find_map(|(id, window)| window.schedule.pop_apart().map(|(node, unit)| (id, node, unit)));
        if let Some((id, node, unit)) = suspect {
            let mut draft = self.draft(Choice::Any, now);
            self.push(id, node, unit, &mut draft);
            if let [only] = draft.sent.as_mut_slice() {
                only.on_trial = true;
                return self.start_batch(draft, 1);
            }
        }
        self.breaker.on_trial_not_sent();
    }

    fn draft(&self, choice: Choice, now: Instant) -> Draft {
        Draft { batch: self.target.batch(), sent: Vec::new(), choice, now, today: Timestamp::now() }
    }

    /// Collects ready units of all lanes, each in its turn.
    fn gather(&mut self, units: usize, choice: Choice, now: Instant) -> Draft {
        let mut draft = self.draft(choice, now);
        let mut lanes = self.lanes();
        let mut ready = lanes.each_ref().map(|lane| self.ready_in(lane));
        while draft.sent.len() < units && draft.batch.bytes() < MAX_BATCH_BYTES {
            let Some(turn) = self.turns.next(ready) else { break };
            let Some(number) = self.next_window(&lanes[turn.lane], turn) else { break };
            let (schedule, entries) = self.windows[number].schedule_and_entries();
            let next = match choice {
                Choice::Idempotent => schedule
                    .pop_ready_if(TRIAL_SEARCH, |unit| entries.is_idempotent(unit))
                    .or_else(|| draft.sent.is_empty().then(|| schedule.pop_ready()).flatten()),
                Choice::Any | Choice::Freeing if turn.again => schedule.pop_again(),
                Choice::Any | Choice::Freeing => schedule.pop_ready(),
            };
            if let Some((node, unit)) = next {
                if self.would_overflow(&draft.batch, number, unit) {
                    self.windows[number].schedule.put_back(node);
                    break;
                }
                let before = draft.sent.len();
                self.push(number, node, unit, &mut draft);
                // What came to its end without being sent was nobody's turn.
                if draft.sent.len() > before {
                    self.turns.sent(turn);
                }
            } else {
                lanes[turn.lane].retain(|other| *other != number);
            }
            // What a unit lets go is in its own window.
            ready[turn.lane] = self.ready_in(&lanes[turn.lane]);
        }
        draft
    }

    /// The windows that may be sent from, by lane.
    fn lanes(&self) -> [Vec<WindowId>; Lane::ALL.len()] {
        let mut lanes: [Vec<WindowId>; Lane::ALL.len()] = Default::default();
        for (windows, lane) in lanes.iter_mut().zip(Turns::lanes()) {
            let of_lane = self.windows.iter().filter(|(_, window)| window.partition.queue.lane == lane.as_str());
            windows.extend(of_lane.filter(|(_, window)| window.may_send()).map(|(number, _)| number));
        }
        lanes
    }

    /// What of a lane is ready.
    fn ready_in(&self, lane: &[WindowId]) -> Ready {
        lane.iter()
            .map(|number| ready_of(&self.windows[*number]))
            .fold(Ready::default(), |all, one| Ready { fresh: all.fresh || one.fresh, again: all.again || one.again })
    }

    /// The window of the lane that it is the turn of.
    fn next_window(&mut self, lane: &[WindowId], turn: Turn) -> Option<WindowId> {
        let windows = &self.windows;
        let has_some = |number: &&WindowId| {
            let ready = ready_of(&windows[**number]);
            if turn.again { ready.again } else { ready.fresh }
        };
        let place = self.turns.partition(turn.lane, lane.iter().filter(has_some).count());
        lane.iter().filter(has_some).nth(place).copied()
    }

    /// Whether a unit would make a batch larger than what the response timeout allows for. One alone never does.
    fn would_overflow(&self, batch: &Batch, number: WindowId, unit: UnitRef) -> bool {
        let bytes = self.windows[number].entry(unit.task).envelope.value.len();
        !batch.is_empty() && batch.bytes() + bytes > MAX_BATCH_BYTES
    }

    /// Puts a running unit into the batch, unless it must wait or has come to its end.
    fn push(&mut self, number: WindowId, node: UnitId, unit: UnitRef, draft: &mut Draft) {
        let window = &mut self.windows[number];
        let entry = window.entry(unit.task);
        let state = &entry.units[unit.unit as usize];
        let may_run = window.rows.may_run(window.schedule.keys(node), state.kind);
        let lacks_word = window.lacks_word(node, entry.offset);
        if (!may_run || lacks_word) && !faults::planted("no-wait-for-checkpoint") {
            window.word_wanted |= lacks_word;
            return window.schedule.wait_for_checkpoint(node);
        }
        let refused = state.refused;
        let moment = Moment {
            now_ms: draft.today.as_millisecond(),
            clock_offset_ms: self.clock_offset_ms,
            has_absolute_ttl: self.has_absolute_ttl,
        };
        let task;
        let plan = match &entry.prepared {
            Some(prepared) => Plan::of_prepared(entry, prepared, moment),
            None => {
                task = entry
                    .envelope
                    .task(&self.rules, &window.partition.queue.target)
                    .expect("the same bytes were parsed by the same rules when they were read");
                Plan::of_task(entry, &task, unit.unit, moment)
            }
        };
        let sending = match plan {
            Plan::Send(sending) => sending,
            Plan::Settle(outcome) => {
                if entry.units.len() > 1 {
                    // After a crash nobody knows whether what stands before it in its pipeline was sent, and it is: to
                    // remove that.
                    let (offset, kind) = (entry.offset, state.kind);
                    self.windows[number].note_run(node, kind, offset);
                }
                return self.end_unit(number, node, unit, outcome, draft.today);
            }
        };
        if draft.choice == Choice::Freeing && sending.needs_memory() {
            window.schedule.hold(node);
            return window.reconsider(node);
        }
        let (command, outcome) = (sending.command, sending.outcome);
        match self.holds.may_send(command, draft.now) {
            Sending::Free if refused => return self.condemn(number, node, unit),
            Sending::Free | Sending::Probe => {}
            Sending::WaitUntil(until) => {
                self.windows[number].schedule.postpone(node, until);
                return self.park(number, node, unit, command);
            }
        }
        sending.push(&mut draft.batch);
        if refused {
            self.windows[number].entry_mut(unit.task).units[unit.unit as usize].refused = false;
        }
        draft.sent.push(Sent { window: number, node, unit, command, outcome, on_trial: false });
    }

    /// `batches`: how many may be under way at a time.
    fn start_batch(&mut self, Draft { batch, sent, now, .. }: Draft, batches: usize) {
        self.in_flight += 1;
        self.limiter.spend(sent.len(), now);
        self.units_in_flight += sent.len();
        let held = self.idle.pop();
        let target = self.target.clone();
        let mut windows: Vec<WindowId> = sent.iter().map(|sent| sent.window).collect();
        windows.dedup();
        sent.iter().for_each(|sent| self.windows[sent.window].in_flight += 1);
        let gates: Vec<Gate> = windows.iter().map(|id| self.windows[*id].gate.clone()).collect();
        let name = Arc::new(OnceLock::new());
        let flight = self.next_flight;
        self.next_flight += 1;
        let at_limit = self.in_flight >= batches;
        let connection = name.clone();
        self.flights.insert(flight, Flight { windows, connection, begun: now, at_limit, is_cut: false });
        self.events.push(Box::pin(async move {
            let mut connection = match held {
                Some(connection) => connection,
                None => match target.connect().await {
                    Ok(connection) => connection,
                    Err(failure) => return Event::Batch { flight, sent, connection: None, result: Err(failure) },
                },
            };
            // Making a connection takes its time, and so does what goes before a script is sent a second time.
            let may_send = || gates.iter().all(Gate::is_open);
            if !may_send() {
                let over = Failure::hold(Failure::NO_CONNECTION, "a partition was given up before anything was sent");
                return Event::Batch { flight, sent, connection: Some(connection), result: Err(over) };
            }
            name.get_or_init(|| connection.name());
            let may_send = || {
                let may_send = may_send();
                faults::hit("before-send");
                may_send
            };
            let result = connection.execute_while(batch, may_send).await;
            faults::hit("after-send");
            let connection = result.reusable.then_some(connection);
            Event::Batch { flight, sent, connection, result: Ok(result) }
        }));
    }
}

fn ready_of(window: &Window) -> Ready {
    let fresh = window.schedule.fresh_len();
    Ready { fresh: fresh > 0, again: window.schedule.ready_len() > fresh }
}
