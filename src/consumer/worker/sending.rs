//! Choosing what is sent next, and putting it into batches.

use std::time::Instant;

use super::{CANARY_FRESH, Event, LANE_WEIGHTS, Sent, TRIAL_SEARCH, Worker};
use crate::{
    consumer::{entry::UnitRef, prepared::Prepared, schedule::UnitId},
    target::{
        Batch, MAX_BATCH_BYTES, MAX_BATCH_UNITS,
        breaker::{Admission, State as BreakerState, TRIAL_UNITS},
        command_hold::Sending,
    },
    task::{Command, Mode, Operation, Task},
};

impl Worker {
    pub(super) fn send(&mut self, now: Instant) {
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
                let mut batch = self.target.batch();
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
        let mut batch = self.target.batch();
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
    pub(super) fn push(
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
