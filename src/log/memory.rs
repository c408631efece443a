//! A [`Log`] in memory, for the tests of what is built on the seam. It keeps the contract but for durability.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

use super::{
    AppendError, Appended, Assigned, Assignment, Checkpoint, Checkpointing, CommitError, Depth, Durability, Entry,
    Epoch, Lease, Log, NewRecord, Owner, Partition, Position, QueueName, ReadError, Reader, Record, Table, TableEntry,
    TableError,
};

/// Records in memory; one partition for each queue.
#[derive(Clone)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that readers wait for state and not for an event.
    changed: watch::Sender<u64>,
    failure: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<QueueName, Queue>,
    tables: BTreeMap<&'static str, Arc<MemoryTable>>,
    max_bytes: Option<usize>,
    closed: bool,
}

#[derive(Default)]
struct Queue {
    records: Vec<Record>,
    epoch: u64,
    checkpoint: Option<Checkpoint>,
}

impl Queue {
    fn finished(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark)
    }

    fn bytes(&self) -> usize {
        let finished = usize::try_from(self.finished()).unwrap_or(usize::MAX);
        self.records.iter().skip(finished).map(Record::size).sum()
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        let (changed, failure) = (watch::Sender::new(0), watch::Sender::new(None));
        Self { shared: Arc::new(Shared { state: Mutex::default(), changed, failure }) }
    }
}

impl MemoryLog {
    /// Full once unfinished records of a queue take more than `max_bytes`.
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        self.shared.lock().max_bytes = Some(max_bytes);
        self
    }

    /// Breaks the log: nothing is taken any more, and [`Log::failed`] resolves.
    pub fn fail(&self, reason: &str) {
        self.shared.failure.send_replace(Some(reason.to_owned()));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, queue: &QueueName, records: Vec<NewRecord>) -> Result<Vec<Appended>, AppendError> {
        if self.failure.borrow().is_some() {
            return Err(AppendError::FateUnknown);
        }
        let mut state = self.lock();
        if state.closed {
            return Err(AppendError::Closed);
        }
        let max_bytes = state.max_bytes.unwrap_or(usize::MAX);
        let queue = state.queues.entry(queue.clone()).or_default();
        if queue.bytes() + records.iter().map(|new| new.record.size()).sum::<usize>() > max_bytes {
            return Err(AppendError::Full { retry_after: Duration::from_secs(1) });
        }
        let first = queue.records.len() as u64;
        queue.records.extend(records.into_iter().map(|new| new.record));
        let end = queue.records.len() as u64;
        drop(state);
        self.changed.send_modify(|changes| *changes += 1);
        let position = |offset| Position { partition: 0, offset };
        Ok((first..end).map(|offset| Appended { position: position(offset), durability: Durability::Local }).collect())
    }

    /// The assignment of the first of the queues that exists; it waits no more.
    fn assign(self: &Arc<Self>, waiting: &mut Vec<QueueName>) -> Option<Assignment> {
        let mut state = self.lock();
        let at = waiting.iter().position(|queue| state.queues.contains_key(queue))?;
        let queue = waiting.remove(at);
        let kept = state.queues.get_mut(&queue)?;
        kept.epoch += 1;
        let (epoch, checkpoint, next) = (Epoch(kept.epoch), kept.checkpoint.clone(), kept.finished());
        let reader =
            MemoryReader { shared: self.clone(), queue: queue.clone(), next, changed: self.changed.subscribe() };
        Some(Assignment::Assigned(Assigned {
            partition: Partition { queue, index: 0 },
            epoch,
            checkpoint,
            lease: Lease::forever(),
            reader: Box::new(reader),
        }))
    }

    fn commit(&self, partition: &Partition, epoch: Epoch, checkpoint: Checkpoint) -> Result<(), CommitError> {
        let mut state = self.lock();
        if state.closed {
            return Err(CommitError::Closed);
        }
        match state.queues.get_mut(&partition.queue) {
            Some(queue) if queue.epoch == epoch.0 => {
                queue.checkpoint = Some(checkpoint);
                Ok(())
            }
            _ => Err(CommitError::EpochOver),
        }
    }
}

struct MemoryReader {
    shared: Arc<Shared>,
    queue: QueueName,
    next: u64,
    changed: watch::Receiver<u64>,
}

impl MemoryReader {
    fn read(&mut self, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        let state = self.shared.lock();
        let records = state.queues.get(&self.queue).map_or(&[][..], |queue| &queue.records);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for record in records.iter().skip(usize::try_from(self.next).unwrap_or(usize::MAX)) {
            bytes += record.size();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(Entry { offset: self.next, record: record.clone(), appended_at_ms: None });
            self.next += 1;
        }
        if entries.is_empty() && state.closed { Err(ReadError::Closed) } else { Ok(entries) }
    }
}

impl Reader for MemoryReader {
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            loop {
                self.changed.borrow_and_update();
                let entries = self.read(max_bytes)?;
                if !entries.is_empty() {
                    return Ok(entries);
                }
                self.changed.changed().await.map_err(|_| ReadError::Closed)?;
            }
        })
    }
}

impl Log for MemoryLog {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move { self.shared.append(queue, vec![record]).map(|appended| appended[0]) })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(async move { self.shared.append(queue, records) })
    }

    fn ready(&self) -> Result<(), AppendError> {
        let state = self.shared.lock();
        let max_bytes = state.max_bytes.unwrap_or(usize::MAX);
        if state.closed {
            Err(AppendError::Closed)
        } else if let Some(reason) = self.shared.failure.borrow().clone() {
            Err(AppendError::Unavailable { reason })
        } else if state.queues.values().any(|queue| queue.bytes() >= max_bytes) {
            Err(AppendError::Full { retry_after: Duration::from_secs(1) })
        } else {
            Ok(())
        }
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        let state = (self.shared.clone(), queues, self.shared.changed.subscribe());
        Box::pin(stream::unfold(state, |(shared, mut waiting, mut changed)| async move {
            loop {
                changed.borrow_and_update();
                if shared.lock().closed {
                    return None;
                }
                if let Some(assignment) = shared.assign(&mut waiting) {
                    return Some((assignment, (shared, waiting, changed)));
                }
                changed.changed().await.ok()?;
            }
        }))
    }

    fn checkpointing(&self) -> Checkpointing {
        Checkpointing { interval: Duration::from_millis(100), max_state_bytes: 16 << 20 }
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        Box::pin(async move { self.shared.commit(partition, epoch, checkpoint) })
    }

    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        let state = self.shared.lock();
        let queue = state.queues.get(&partition.queue).filter(|_| partition.index == 0);
        let records = queue.map_or(&[][..], |queue| &queue.records);
        let mut bytes = 0;
        let fits = |record: &&Record| {
            bytes += record.size();
            bytes <= max_bytes
        };
        let count = records.iter().rev().take(max_records).take_while(fits).count();
        let first = records.len() - count;
        let entry = |(offset, record): (u64, &Record)| Entry { offset, record: record.clone(), appended_at_ms: None };
        (first as u64..).zip(&records[first..]).map(entry).for_each(visit);
        Ok(())
    }

    fn depth(&self) -> Vec<Depth> {
        let state = self.shared.lock();
        let depth = |(queue, kept): (&QueueName, &Queue)| Depth {
            partition: Partition { queue: queue.clone(), index: 0 },
            end: (kept.records.len() as u64).max(kept.finished()),
            finished: kept.finished(),
            bytes: kept.bytes() as u64,
            owner: Owner::Us,
            held_by: None,
        };
        state.queues.iter().map(depth).collect()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(TableError::Closed);
        }
        Ok(state.tables.entry(name).or_default().clone())
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let mut failure = self.shared.failure.subscribe();
        Box::pin(async move {
            let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.lock().closed = true;
            self.shared.changed.send_modify(|changes| *changes += 1);
        })
    }
}

#[derive(Default)]
struct MemoryTable(Mutex<Rows>);

#[derive(Default)]
struct Rows {
    by_position: BTreeMap<u64, (Bytes, Bytes)>,
    puts: u64,
}

impl MemoryTable {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table for MemoryTable {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<u64, TableError>> {
        Box::pin(async move {
            let mut rows = self.lock();
            rows.by_position.retain(|_, (present, _)| *present != key);
            let position = rows.puts;
            rows.puts += 1;
            rows.by_position.insert(position, (key, value));
            Ok(position)
        })
    }

    fn delete(&self, key: Bytes) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(async move {
            self.lock().by_position.retain(|_, (present, _)| *present != key);
            Ok(())
        })
    }

    fn scan(&self, mut visit: Box<dyn FnMut(TableEntry) -> bool + Send>) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(async move {
            let rows: Vec<TableEntry> = self.lock().by_position.iter().map(entry).collect();
            let _ = rows.into_iter().all(&mut *visit);
            Ok(())
        })
    }

    fn read(&self, position: u64) -> BoxFuture<'_, Result<Option<TableEntry>, TableError>> {
        Box::pin(async move { Ok(self.lock().by_position.get_key_value(&position).map(entry)) })
    }
}

fn entry((position, (key, value)): (&u64, &(Bytes, Bytes))) -> TableEntry {
    TableEntry { key: key.clone(), value: value.clone(), position: *position }
}

#[cfg(test)]
mod tests {
    use super::MemoryLog;

    async fn open() -> (MemoryLog, ()) {
        (MemoryLog::default(), ())
    }

    crate::log::conformance::suite!(open);
}
