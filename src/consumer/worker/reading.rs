//! Taking records into windows: what a record says, and what an earlier process had done of it.

use std::time::Instant;

use jiff::Timestamp;

use super::{Event, PAUSE, Worker};
use crate::{
    consumer::{
        entry::{Entry, Letter},
        letter,
        prepared::Prepared,
        timing::Due,
        units,
        windows::WindowId,
    },
    log::{Entry as LogEntry, Partition, ReadError, Reader},
    queue::{Envelope, REFILL_BYTES, REFILL_RECORDS, envelope::EnvelopeError, recent::Settled},
    retry::{Executed, Failure, ReasonClass},
    task::{Identity, Outcome, Refusal, RefusalKind, Task, TaskId},
};

impl Worker {
    pub(super) fn read(&mut self, now: Instant) {
        let ahead = self.is_held_back();
        for (id, window) in self.windows.iter_mut() {
            if window.catches_up_until().is_some_and(|until| until <= now) {
                tracing::warn!(
                    partition = %window.partition,
                    "Not all that was read of {} before was read again in time: a write that a later one has replaced may be made before that one is made again",
                    window.partition
                );
                window.stop_catching_up();
            }
            if let Some(max_bytes) = window.room(ahead)
                && let Some(mut reader) = window.reader.take()
            {
                let gate = window.gate.clone();
                self.events.push(Box::pin(async move {
                    match gate.run_until_closed(reader.next(max_bytes)).await {
                        Some(result) => Event::Read { window: id, reader, result },
                        None => Event::Closed,
                    }
                }));
            }
        }
    }

    pub(super) fn take_read(
        &mut self,
        id: WindowId,
        reader: Box<dyn Reader>,
        result: Result<Vec<LogEntry>, ReadError>,
    ) {
        let Some(window) = self.windows.get_mut(id).filter(|window| window.leaving.is_none()) else { return };
        let entries = match result {
            Ok(entries) => entries,
            Err(ReadError::Closed) => return,
            Err(error) => {
                let (partition, gate) = (&window.partition, window.gate.clone());
                if !std::mem::replace(&mut window.reading_fails, true) {
                    tracing::warn!(partition = %partition, "Reading {partition} failed, trying again: {error}");
                }
                self.events.push(Box::pin(async move {
                    match gate.run_until_closed(tokio::time::sleep(PAUSE)).await {
                        Some(()) => Event::ReadAgain { window: id, reader },
                        None => Event::Closed,
                    }
                }));
                return;
            }
        };
        let next = reader.position().or_else(|| entries.last().map(|entry| entry.offset + 1));
        window.reader = Some(reader);
        window.reading_fails = false;
        let Some(next) = next else { return };
        // What is finished has moved, though no task was.
        window.changed |= entries.is_empty();
        let bytes = entries.iter().map(|entry| entry.record.size() as u64).sum();
        let now = Timestamp::now();
        for entry in entries {
            self.admit(id, entry, now);
        }
        self.windows[id].note_read(next, bytes);
    }

    /// Takes a record into its window.
    fn admit(&mut self, id: WindowId, entry: LogEntry, now: Timestamp) {
        let LogEntry { offset, record, appended_at_ms } = entry;
        let partition = &self.windows[id].partition;
        let envelope = match Envelope::decode(&record) {
            Ok(envelope) => envelope,
            Err(EnvelopeError::Foreign) => {
                let made_id = made_id(partition, offset);
                let accepted_at = appended_at(appended_at_ms, now);
                match Envelope::adopt(&record, &self.rules, &partition.queue.target, &made_id, accepted_at) {
                    Ok(envelope) => envelope,
                    Err(refusal) => {
                        // One that is refused for good may have an id that belongs to another task's dead letter.
                        let waits = refusal.kind == RefusalKind::UnknownTarget;
                        let named = waits.then(|| named_id(&record.value)).flatten();
                        let value = as_much_as_a_letter_takes(partition, offset, record.value);
                        let envelope = Envelope::of_unreadable(named.unwrap_or(made_id), accepted_at, value);
                        return self.refuse(id, offset, envelope, &refusal);
                    }
                }
            }
            Err(error) => {
                let failure =
                    Failure::dead(ReasonClass::RefusedRecord, Executed::No, "unreadable-record", &error.to_string());
                let value = as_much_as_a_letter_takes(partition, offset, record.value);
                let envelope = Envelope::of_unreadable(made_id(partition, offset), now, value);
                return self.refuse_record(id, offset, envelope, &failure);
            }
        };
        self.admit_envelope(id, offset, envelope, now);
    }

    fn admit_envelope(&mut self, number: WindowId, offset: u64, mut envelope: Envelope, now: Timestamp) {
        let Some(earlier) = self.windows[number].earlier(offset) else {
            self.remember(&envelope);
            self.settled.push(Settled {
                identity: envelope.identity,
                outcome: None,
                attempts: 0,
                last_error: None,
                superseded_by: None,
            });
            return;
        };
        if self.is_duplicate(&envelope, now) {
            return self.drop_duplicate(number, &envelope);
        }
        // The record is a slice of what was read with it, which one waiting task must not keep in memory.
        let value = std::mem::take(&mut envelope.value);
        envelope.value = bytes::Bytes::copy_from_slice(&value);
        let target = &*self.windows[number].partition.queue.target;
        let task = match Task::parse_for(&value, &self.rules, envelope.accepted_at, target) {
            Ok(task) if task.target == target => task,
            Ok(_) => {
                let detail = "the task names another target than the one whose queue it is in";
                let failure = Failure::dead(ReasonClass::RefusedRecord, Executed::No, "other-target", detail);
                return self.refuse_record(number, offset, envelope, &failure);
            }
            Err(refusal) => return self.refuse(number, offset, envelope, &refusal),
        };
        let due = Due::of(&task, envelope.accepted_at, envelope.late);
        let units = units::of_task(&task, &due, self.hash_seed);
        let entry = Entry {
            offset,
            max_retries: task.max_retries.or(envelope.max_retries).unwrap_or(self.policy.max_retries),
            units: Vec::new(),
            open: 0,
            keys: units.iter().map(|unit| unit.keys.len()).sum(),
            trouble: None,
            letter: Letter::None,
            may_have_run: self.windows[number].may_have_run(&envelope),
            superseded_by: None,
            prepared: if envelope.late.is_none() { Prepared::of(&task, &value, envelope.accepted_at) } else { None },
            envelope,
        };
        let window = &mut self.windows[number];
        let slot = window.take_in(entry, units, &earlier, now);
        let entry = window.entry(slot);
        if entry.open == 0 {
            self.finish(number, slot, now);
        }
    }

    fn is_duplicate(&self, envelope: &Envelope, now: Timestamp) -> bool {
        self.windows.values().any(|window| window.holds(&envelope.identity))
            || self.seen.lock().expect("nothing panics while it holds this lock").contains(&envelope.identity, now)
    }

    /// The same task was stored a second time: its request was repeated after its id had been forgotten, or the answer
    /// of the log was lost.
    fn drop_duplicate(&mut self, number: WindowId, envelope: &Envelope) {
        self.windows[number].changed = true;
        self.metrics.settled[Outcome::Duplicate as usize].inc();
        tracing::info!(
            task.id = %envelope.id,
            redis.target = self.target.name(),
            outcome = Outcome::Duplicate.as_str(),
            "Task {} was stored a second time: it runs once",
            envelope.id
        );
    }

    pub(super) fn remember(&self, envelope: &Envelope) {
        let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
        seen.remember(envelope.identity, envelope.accepted_at);
    }

    /// Finds out what was finished before a partition was taken over, as far as its log still has it. Nothing of the
    /// partition is read before; everything else goes on, as a log may take its time to answer.
    pub(super) fn look_back(&mut self, id: WindowId, watermark: u64) {
        let window = &mut self.windows[id];
        let Some(reader) = window.reader.take() else { return };
        let (log, partition, gate) = (self.log.clone(), window.partition.clone(), window.gate.clone());
        let looking = tokio::task::spawn_blocking(move || {
            let mut finished = Vec::new();
            let result = log.tail(&partition, REFILL_RECORDS, REFILL_BYTES, &mut |entry| {
                if entry.offset < watermark
                    && let Ok(envelope) = Envelope::decode(&entry.record)
                {
                    finished.push((envelope.identity, envelope.accepted_at));
                }
            });
            (finished, result)
        });
        self.events.push(Box::pin(async move {
            match gate.run_until_closed(looking).await {
                Some(Ok((finished, result))) => Event::LookedBack { window: id, reader, finished, result },
                Some(Err(panic)) => {
                    let result = Err(ReadError::Unavailable { reason: panic.to_string() });
                    Event::LookedBack { window: id, reader, finished: Vec::new(), result }
                }
                None => Event::Closed,
            }
        }));
    }

    pub(super) fn take_look_back(
        &mut self,
        id: WindowId,
        reader: Box<dyn Reader>,
        finished: Vec<(Identity, Timestamp)>,
        result: Result<(), ReadError>,
    ) {
        let Some(window) = self.windows.get_mut(id).filter(|window| window.leaving.is_none()) else { return };
        window.reader = Some(reader);
        if let Err(error) = result {
            let partition = &window.partition;
            tracing::warn!(
                partition = %partition,
                "The end of {partition} could not be read, so tasks that were stored twice may run twice: {error}"
            );
        }
        let mut seen = self.seen.lock().expect("nothing panics while it holds this lock");
        finished.into_iter().for_each(|(identity, accepted_at)| seen.remember(identity, accepted_at));
    }

    /// A record is no task by the rules of this process. Where that is only because it does not know the target, another
    /// process may: the record waits.
    fn refuse(&mut self, id: WindowId, offset: u64, mut envelope: Envelope, refusal: &Refusal) {
        if refusal.kind != RefusalKind::UnknownTarget {
            let failure =
                Failure::dead(ReasonClass::RefusedRecord, Executed::No, refusal.kind.as_str(), &refusal.detail);
            return self.refuse_record(id, offset, envelope, &failure);
        }
        if self.windows[id].earlier(offset).is_none() {
            return;
        }
        tracing::warn!(
            task.id = %envelope.id,
            redis.target = self.target.name(),
            "Task {} names a target that is not configured here: it waits",
            envelope.id
        );
        // It is read again by whoever knows its target.
        envelope.value = bytes::Bytes::new();
        let mut entry = without_units(offset, envelope);
        entry
            .note_failure(&Failure::hold(refusal.kind.as_str(), "its target is not configured here"), Timestamp::now());
        let window = &mut self.windows[id];
        window.insert(entry, 0);
        window.held += 1;
    }

    /// A record can never be executed: it goes to the dead letters, with its bytes.
    fn refuse_record(&mut self, number: WindowId, offset: u64, envelope: Envelope, failure: &Failure) {
        if self.windows[number].earlier(offset).is_none() {
            // Its letter was written before.
            return;
        }
        let mut entry = without_units(offset, envelope);
        entry.note_death(0, failure, ReasonClass::RefusedRecord, Timestamp::now());
        let slot = self.windows[number].insert(entry, 0);
        self.write_letter(number, slot);
    }
}

/// A record of another producer may be larger than any task, and than what a dead letter has room for.
fn as_much_as_a_letter_takes(partition: &Partition, offset: u64, value: bytes::Bytes) -> bytes::Bytes {
    let is_json = || serde_json::from_slice::<&serde_json::value::RawValue>(&value).is_ok();
    if value.len() <= letter::MAX_NOT_JSON || value.len() <= letter::MAX_TASK && is_json() {
        return value;
    }
    tracing::warn!(
        partition = %partition,
        offset,
        "Of the {} bytes of record {offset} of {partition}, which is no task, its dead letter has {}",
        value.len(),
        letter::MAX_NOT_JSON
    );
    value.slice(..letter::MAX_NOT_JSON)
}

/// When a record was accepted that does not say so: as its log says, which is the same each time it is read, or now. A
/// producer's clock may be ahead of ours, or there may be none.
fn appended_at(milliseconds: Option<i64>, now: Timestamp) -> Timestamp {
    let now_ms = now.as_millisecond();
    let appended_ms = milliseconds.filter(|at| *at > 0).map_or(now_ms, |at| at.min(now_ms));
    Timestamp::from_millisecond(appended_ms).unwrap_or(now)
}

/// The id of a record that names none: the same each time it is read.
fn made_id(partition: &Partition, offset: u64) -> TaskId {
    let id = format!("{}:{}:{offset}", partition.queue, partition.index);
    TaskId::parse(&id).expect("a queue's name, dots, colons and digits are an id")
}

/// The id that a task names which cannot be parsed by the rules of this process.
fn named_id(value: &[u8]) -> Option<TaskId> {
    #[derive(serde::Deserialize)]
    struct Named {
        id: Option<String>,
    }
    TaskId::parse(&serde_json::from_slice::<Named>(value).ok()?.id?).ok()
}

fn without_units(offset: u64, envelope: Envelope) -> Entry {
    Entry {
        offset,
        envelope,
        prepared: None,
        max_retries: 0,
        units: Vec::new(),
        open: 0,
        keys: 0,
        trouble: None,
        letter: Letter::None,
        may_have_run: false,
        superseded_by: None,
    }
}
