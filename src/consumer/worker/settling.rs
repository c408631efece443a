//! The end of units and tasks: dead letters, outcomes, checkpoints. Here the order of effects is kept.

use jiff::Timestamp;

use super::{Event, PAUSE, Worker, trace_id};
use crate::{
    consumer::{
        entry::{End, Letter, TaskSlot, UnitRef},
        letter,
        rows::ReplayKind,
        schedule::UnitId,
        window::{Claim, Draft},
        windows::WindowId,
    },
    faults,
    log::{CommitError, Loss, TableError},
    queue::recent::Settled,
    retry::{Failure, ReasonClass},
    task::Outcome,
};

impl Worker {
    /// Ends a running unit, other than dead, and lets its keys go.
    pub(super) fn end_unit(
        &mut self,
        number: WindowId,
        node: UnitId,
        unit: UnitRef,
        outcome: Outcome,
        today: Timestamp,
    ) {
        let window = &mut self.windows[number];
        let superseded = window.finish(node);
        if superseded.is_empty() {
            return self.note_end(number, unit, outcome, today);
        }
        // All of them here and now, so that they are in the same checkpoint.
        let by = window.entry(unit.task).envelope.id.clone();
        self.note_end(number, unit, outcome, today);
        for earlier in superseded {
            self.windows[number].entry_mut(earlier.task).superseded_by = Some(by.clone());
            self.note_end(number, earlier, Outcome::Superseded, today);
        }
    }

    fn note_end(&mut self, number: WindowId, unit: UnitRef, outcome: Outcome, today: Timestamp) {
        let window = &mut self.windows[number];
        let entry = window.entry_mut(unit.task);
        entry.units[unit.unit as usize].end = Some(End::Settled(outcome));
        entry.letter.outdate();
        entry.open -= 1;
        if entry.open == 0 {
            self.finish(number, unit.task, today);
        } else {
            window.note(unit.task);
        }
    }

    /// Begins a unit's end: its keys stay taken until the dead letter is durable.
    pub(super) fn die(
        &mut self,
        number: WindowId,
        unit: UnitRef,
        failure: &Failure,
        reason: ReasonClass,
        today: Timestamp,
    ) {
        let entry = self.windows[number].entry_mut(unit.task);
        entry.units[unit.unit as usize].end = Some(End::Dying);
        entry.note_death(unit.unit, failure, reason, today);
        match &mut entry.letter {
            Letter::Writing { outdated, .. } => *outdated = true,
            Letter::Failed => {}
            Letter::None | Letter::Written { .. } => self.write_letter(number, unit.task),
        }
    }

    pub(super) fn write_letter(&mut self, number: WindowId, task: TaskSlot) {
        let window = &mut self.windows[number];
        let partition = window.partition.clone();
        window.writing += 1;
        let entry = window.entry_mut(task);
        entry.letter = Letter::Writing { outdated: false, again: entry.letter == Letter::Failed };
        let letter = letter::of_entry(entry, &partition, &self.rules, Timestamp::now());
        let dead_letters = self.dead_letters.clone();
        self.events.push(Box::pin(async move {
            faults::hit("before-letter");
            let result = dead_letters.put(&letter).await;
            faults::hit("after-letter");
            Event::Letter { window: number, task, result }
        }));
    }

    pub(super) fn take_letter(&mut self, number: WindowId, task: TaskSlot, result: Result<(), TableError>) {
        let Some(window) = self.windows.get_mut(number) else { return };
        window.writing -= 1;
        let gate = window.gate.clone();
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
                match gate.run_until_closed(tokio::time::sleep(PAUSE)).await {
                    Some(()) => Event::LetterAgain { window: number, task },
                    None => Event::Closed,
                }
            }));
            return;
        }
        if matches!(entry.letter, Letter::Writing { outdated: true, .. }) {
            // What ended meanwhile is not in the letter yet.
            self.write_letter(number, task);
            return;
        }
        entry.letter = Letter::Written { outdated: false };
        let mut dead = Vec::new();
        for unit in entry.units.iter_mut().filter(|unit| unit.end == Some(End::Dying)) {
            unit.end = Some(End::Dead);
            // What was refused has left no marker, so that it would run again.
            let kind = if unit.kind == ReplayKind::Once { ReplayKind::Other } else { unit.kind };
            dead.push((unit.node, kind));
        }
        entry.open -= dead.len();
        let (open, offset) = (entry.open, entry.offset);
        for (node, kind) in dead {
            window.note_run(node, kind, offset);
            window.give_way(node);
        }
        if open == 0 {
            self.settle(number, task);
        } else {
            window.note(task);
        }
    }

    /// All units of a task have ended. Its dead letter must say how all of them did: whoever sends the task again
    /// goes by that.
    pub(super) fn finish(&mut self, number: WindowId, task: TaskSlot, today: Timestamp) {
        match self.windows[number].entry(task).letter {
            Letter::Written { outdated: true } => self.write_letter(number, task),
            Letter::Written { outdated: false } | Letter::None => self.settle_at(number, task, today),
            // Settled when the letter is stored.
            Letter::Writing { .. } | Letter::Failed => {}
        }
    }

    fn settle(&mut self, number: WindowId, task: TaskSlot) {
        self.settle_at(number, task, Timestamp::now());
    }

    /// The task has come to its end.
    fn settle_at(&mut self, number: WindowId, task: TaskSlot, today: Timestamp) {
        let entry = self.windows[number].remove(task);
        let outcome = entry.outcome();
        self.remember(&entry.envelope);
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
        } else if outcome == Outcome::Applied {
            tracing::debug!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(&entry),
                keys = entry.keys,
                redis.target = self.target.name(),
                attempts,
                "Applied task {}",
                entry.envelope.id
            );
        } else if let (Outcome::Superseded, Some(by)) = (outcome, &entry.superseded_by) {
            tracing::info!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(&entry),
                keys = entry.keys,
                redis.target = self.target.name(),
                outcome = outcome.as_str(),
                superseded_by = %by,
                attempts,
                "Task {} need not run: task {by} has replaced what it writes",
                entry.envelope.id
            );
        } else {
            tracing::info!(
                task.id = %entry.envelope.id,
                trace_id = %trace_id(&entry),
                keys = entry.keys,
                redis.target = self.target.name(),
                outcome = outcome.as_str(),
                attempts,
                "Task {} was settled as {}",
                entry.envelope.id,
                outcome.as_str()
            );
        }
        self.settled.push(Settled {
            identity: entry.envelope.identity,
            outcome: Some(outcome),
            attempts,
            superseded_by: entry.superseded_by.filter(|_| outcome == Outcome::Superseded),
            last_error: entry.trouble.map(|trouble| format!("{}: {}", trouble.last.code, trouble.last.message).into()),
        });
    }

    pub(super) fn flush_settled(&mut self) {
        if !self.settled.is_empty() {
            self.queues.settle(self.settled.drain(..));
        }
    }

    /// Writes checkpoints: where there is something new when they are `due`, and at once where a unit waits for one or
    /// soon would.
    pub(super) fn commit(&mut self, due: bool) {
        for (id, window) in self.windows.iter_mut() {
            let waited_for = window.schedule.waiting_len() > 0 || window.rows.want_checkpoint();
            // What a checkpoint had no room for does not fit into the next one at once.
            let wanted = window.claim == Claim::Claiming || waited_for && (window.more_to_say || window.word_wanted);
            let is_due = window.changed && due;
            if window.committing || window.leaving.is_some() || !(is_due || wanted) {
                continue;
            }
            window.changed = false;
            window.committing = true;
            window.seal();
            let claim = window.claim;
            let Draft { checkpoint, cut } = window.checkpoint(self.boot_id, false);
            let (log, partition, epoch) = (self.log.clone(), window.partition.clone(), window.epoch);
            self.events.push(Box::pin(async move {
                faults::hit("before-checkpoint");
                let result = log.commit(&partition, epoch, checkpoint).await;
                faults::hit("after-checkpoint");
                Event::Committed { window: id, claim, cut, result }
            }));
        }
    }

    pub(super) fn take_commit(
        &mut self,
        id: WindowId,
        claim: Claim,
        cut: Option<u64>,
        result: Result<(), CommitError>,
    ) {
        let Some(window) = self.windows.get_mut(id) else { return };
        window.committing = false;
        match result {
            Ok(()) => {
                window.checkpointed(cut);
                window.unstored_because = None;
                window.schedule.release_waiting();
                if claim == Claim::Claiming {
                    window.claim = Claim::Held;
                }
            }
            // Another owner has it, though that was not said yet.
            Err(CommitError::EpochOver) => self.lose_window(id, Loss::ToAnother),
            Err(error) => {
                window.unsealed();
                window.committing = true;
                let reason = Some(error.to_string());
                // It is tried again and again, and said once.
                if window.unstored_because != reason {
                    tracing::warn!(
                        partition = %window.partition,
                        "A checkpoint of {} was not stored: {error}",
                        window.partition
                    );
                    window.unstored_because = reason;
                }
                let gate = window.gate.clone();
                self.events.push(Box::pin(async move {
                    // One that is to be given up need not wait.
                    let _ = gate.run_until_closed(tokio::time::sleep(PAUSE)).await;
                    Event::CommitAgain { window: id }
                }));
            }
        }
    }
}
