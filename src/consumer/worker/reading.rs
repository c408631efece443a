//! Taking records into windows: what a record says, and what an earlier process had done of it.

use jiff::Timestamp;

use super::{Event, PAUSE, Worker};
use crate::{
    commands::Class,
    consumer::{
        checkpoint::UnitEnd,
        entry::{End, Entry, Letter, Unit, UnitRef, remembered_failure},
        prepared::Prepared,
        rows::ReplayKind,
        schedule::{Keys, UnitId},
        timing::Due,
    },
    log::{Entry as LogEntry, Partition, ReadError, Reader},
    queue::{Envelope, REFILL_BYTES, REFILL_RECORDS, recent::Settled},
    retry::{Executed, Failure, ReasonClass},
    task::{Outcome, Task, TaskId},
};

impl Worker {
    pub(super) fn read(&mut self) {
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

    pub(super) fn take_read(
        &mut self,
        number: usize,
        reader: Box<dyn Reader>,
        result: Result<Vec<LogEntry>, ReadError>,
    ) {
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
        let now = Timestamp::now();
        for entry in entries {
            self.admit(number, entry, now);
        }
        self.windows[number].note_read(last, bytes);
    }

    /// Takes a record into its window.
    fn admit(&mut self, number: usize, LogEntry { offset, record, .. }: LogEntry, now: Timestamp) {
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
            self.remember(&envelope);
            self.settled.push(Settled { identity: envelope.identity, outcome: None, attempts: 0, last_error: None });
            return;
        };
        if self.is_duplicate(&envelope, now) {
            return self.drop_duplicate(number, &envelope);
        }
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
        let due = Due::of(&task, envelope.accepted_at, envelope.late);
        let units: Vec<(Keys, bool, ReplayKind)> = task
            .operation
            .units()
            .enumerate()
            .map(|(place, unit)| {
                let hashes = unit.keys.iter().map(|key| xxhash_rust::xxh3::xxh3_64(key.bytes));
                // A unit whose keys are not known stays a barrier: the ordering key adds an order and removes none.
                let ordering_key = ordering_key.filter(|_| !unit.is_barrier());
                let keys = Keys::new(hashes.chain(ordering_key));
                (keys, task.idempotent || unit.class == Class::Idempotent, ReplayKind::of(&task, place, &unit, &due))
            })
            .collect();
        let entry = Entry {
            offset,
            max_retries: task.max_retries.or(envelope.max_retries).unwrap_or(self.policy.max_retries),
            units: Vec::with_capacity(units.len()),
            open: 0,
            keys: units.iter().map(|(keys, ..)| keys.len()).sum(),
            trouble: None,
            letter: Letter::None,
            may_have_run: self.windows[number].may_have_run(&envelope),
            prepared: if envelope.late.is_none() { Prepared::of(&task, &value, envelope.accepted_at) } else { None },
            envelope,
        };
        let window = &mut self.windows[number];
        let slot = window.insert(entry, units.len());
        for (place, (keys, idempotent, kind)) in units.into_iter().enumerate() {
            let end = match earlier.units.get(place) {
                Some(UnitEnd::Settled(outcome)) => Some(End::Settled(*outcome)),
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

    fn is_duplicate(&self, envelope: &Envelope, now: Timestamp) -> bool {
        self.windows.iter().any(|window| window.holds(&envelope.identity))
            || self.seen.lock().expect("nothing panics while it holds this lock").contains(&envelope.identity, now)
    }

    /// The same task was stored a second time: its request was repeated after its id had been forgotten, or the answer
    /// of the log was lost.
    fn drop_duplicate(&mut self, number: usize, envelope: &Envelope) {
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

    /// Remembers what was finished before a partition was taken over, as far as its log still has it.
    pub(super) fn remember_finished(&self, partition: &Partition, watermark: u64) {
        let result = self.log.tail(&partition.queue, REFILL_RECORDS, REFILL_BYTES, &mut |entry| {
            if entry.offset < watermark
                && let Ok(envelope) = Envelope::decode(&entry.record)
            {
                self.remember(&envelope);
            }
        });
        if let Err(error) = result {
            tracing::warn!(
                partition = %partition,
                "The end of {partition} could not be read, so tasks that were stored twice may run twice: {error}"
            );
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
            may_have_run: false,
        };
        entry.note_death(0, failure, ReasonClass::RefusedRecord, Timestamp::now());
        let slot = self.windows[number].insert(entry, 0);
        self.write_letter(number, slot);
    }
}
