//! A [`Log`] in memory of which a test says who has which partition, and when: for what is built on partitions that come
//! and go. One process consumes at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    AppendError, Appended, Assigned, Assignment, BootTime, Checkpoint, Checkpointing, CommitError, Depth, Durability,
    Entry, Epoch, Lease, LeaseKeeper, Log, Loss, NewRecord, Owner, Partition, Position, QueueName, ReadError, Reader,
    Record, Table, TableError, memory::MemoryLog,
};

/// Leases that nobody ends last until long after the test.
const LEASE: std::time::Duration = std::time::Duration::from_secs(3600);

#[derive(Clone)]
pub(crate) struct ScriptedLog {
    shared: Arc<Shared>,
    checkpointing: Checkpointing,
    /// For its tables.
    memory: MemoryLog,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes, so that readers and commits wait for state and not for an event.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<Partition, Kept>,
    consumer: Option<mpsc::UnboundedSender<Assignment>>,
    holds_commits: bool,
    holds_tails: bool,
}

#[derive(Default)]
struct Kept {
    /// With the times at which they were appended.
    records: Vec<(Record, i64)>,
    epoch: u64,
    lease: Option<LeaseKeeper>,
    checkpoint: Option<Checkpoint>,
    commits: usize,
}

impl ScriptedLog {
    pub(crate) fn new(checkpointing: Checkpointing) -> Self {
        let shared = Shared { state: Mutex::default(), changed: watch::Sender::new(0) };
        Self { shared: Arc::new(shared), checkpointing, memory: MemoryLog::default() }
    }

    /// Puts a record into a partition, as any producer may.
    pub(crate) fn push(&self, partition: &Partition, record: Record) -> u64 {
        self.push_at(partition, record, jiff::Timestamp::now().as_millisecond())
    }

    /// As if it had been appended then.
    pub(crate) fn push_at(&self, partition: &Partition, record: Record, appended_at_ms: i64) -> u64 {
        let offset = {
            let mut state = self.shared.lock();
            let records = &mut state.partitions.entry(partition.clone()).or_default().records;
            records.push((record, appended_at_ms));
            records.len() as u64 - 1
        };
        self.shared.change();
        offset
    }

    /// Assigns a partition to whoever consumes now.
    pub(crate) fn assign(&self, partition: &Partition) {
        let mut state = self.shared.lock();
        let kept = state.partitions.entry(partition.clone()).or_default();
        kept.epoch += 1;
        let (lease, keeper) = Lease::until(BootTime::now() + LEASE);
        kept.lease = Some(keeper);
        let next = kept.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
        let assigned = Assigned {
            partition: partition.clone(),
            epoch: Epoch(kept.epoch),
            checkpoint: kept.checkpoint.clone(),
            lease,
            reader: Box::new(ScriptedReader {
                shared: self.shared.clone(),
                partition: partition.clone(),
                next,
                changed: self.shared.changed.subscribe(),
            }),
        };
        state.tell(Assignment::Assigned(assigned));
    }

    /// What is answered ends when the partition was given up.
    pub(crate) fn revoke(&self, partition: &Partition) -> oneshot::Receiver<()> {
        let (done, given_up) = oneshot::channel();
        self.shared.lock().tell(Assignment::Revoking { partition: partition.clone(), done });
        given_up
    }

    /// Another process has the partition from now on.
    pub(crate) fn lose(&self, partition: &Partition) {
        self.depose(partition);
        self.shared.lock().tell(Assignment::Lost { partition: partition.clone(), loss: Loss::ToAnother });
    }

    /// Another process has the partition from now on, and nobody says so.
    pub(crate) fn depose(&self, partition: &Partition) {
        self.shared.lock().kept(partition).epoch += 1;
    }

    /// The lease of the partition's owner ends.
    pub(crate) fn end_lease(&self, partition: &Partition) {
        let lease = self.shared.lock().kept(partition).lease.take();
        lease.expect("the partition is assigned").end();
    }

    /// From now on the ends of partitions are not read, or again.
    pub(crate) fn hold_tails(&self, hold: bool) {
        self.shared.lock().holds_tails = hold;
    }

    /// From now on commits are not answered, or again.
    pub(crate) fn hold_commits(&self, hold: bool) {
        self.shared.lock().holds_commits = hold;
        self.shared.change();
    }

    pub(crate) fn checkpoint(&self, partition: &Partition) -> Option<Checkpoint> {
        self.shared.lock().kept(partition).checkpoint.clone()
    }

    /// How many checkpoints were stored.
    pub(crate) fn commits(&self, partition: &Partition) -> usize {
        self.shared.lock().kept(partition).commits
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }
}

impl State {
    fn kept(&mut self, partition: &Partition) -> &mut Kept {
        self.partitions.get_mut(partition).expect("the partition was made before")
    }

    fn tell(&self, assignment: Assignment) {
        let consumer = self.consumer.as_ref().expect("somebody consumes");
        assert!(consumer.send(assignment).is_ok(), "the consumer listens");
    }

    fn commit(&mut self, partition: &Partition, epoch: Epoch, checkpoint: Checkpoint) -> Result<(), CommitError> {
        let kept = self.kept(partition);
        if kept.epoch != epoch.0 {
            return Err(CommitError::EpochOver);
        }
        kept.checkpoint = Some(checkpoint);
        kept.commits += 1;
        Ok(())
    }
}

struct ScriptedReader {
    shared: Arc<Shared>,
    partition: Partition,
    next: u64,
    changed: watch::Receiver<u64>,
}

impl Reader for ScriptedReader {
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(async move {
            loop {
                self.changed.borrow_and_update();
                let mut entries = Vec::new();
                {
                    let mut state = self.shared.lock();
                    let records = &state.kept(&self.partition).records;
                    let mut bytes = 0;
                    for (record, appended_at_ms) in
                        records.iter().skip(usize::try_from(self.next).expect("it is a place"))
                    {
                        bytes += record.size();
                        if bytes > max_bytes && !entries.is_empty() {
                            break;
                        }
                        let appended_at_ms = Some(*appended_at_ms);
                        entries.push(Entry { offset: self.next, record: record.clone(), appended_at_ms });
                        self.next += 1;
                    }
                }
                if !entries.is_empty() {
                    return Ok(entries);
                }
                self.changed.changed().await.map_err(|_| ReadError::Closed)?;
            }
        })
    }
}

impl Log for ScriptedLog {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move {
            let partition = Partition { queue: queue.clone(), index: 0 };
            let offset = self.push(&partition, record.record);
            Ok(Appended { position: Position { partition: 0, offset }, durability: Durability::Kafka })
        })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(async move {
            let mut appended = Vec::new();
            for record in records {
                appended.push(self.append(queue, record).await?);
            }
            Ok(appended)
        })
    }

    fn ready(&self) -> Result<(), AppendError> {
        Ok(())
    }

    fn consume(&self, _queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        let (consumer, assignments) = mpsc::unbounded_channel();
        self.shared.lock().consumer = Some(consumer);
        stream::unfold(assignments, |mut assignments| async move { Some((assignments.recv().await?, assignments)) })
            .boxed()
    }

    fn checkpointing(&self) -> Checkpointing {
        self.checkpointing
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        assert!(checkpoint.state.len() <= self.checkpointing.max_state_bytes, "a commit never fails for its size");
        Box::pin(async move {
            let mut changed = self.shared.changed.subscribe();
            loop {
                changed.borrow_and_update();
                {
                    let mut state = self.shared.lock();
                    if !state.holds_commits {
                        return state.commit(partition, epoch, checkpoint);
                    }
                }
                changed.changed().await.map_err(|_| CommitError::Closed)?;
            }
        })
    }

    fn tail(
        &self,
        _partition: &Partition,
        _max_records: usize,
        _max_bytes: usize,
        _visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        while self.shared.lock().holds_tails {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    fn depth(&self) -> Vec<Depth> {
        let state = self.shared.lock();
        let depth = |(partition, kept): (&Partition, &Kept)| Depth {
            partition: partition.clone(),
            end: kept.records.len() as u64,
            finished: kept.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark),
            bytes: kept.records.iter().map(|(record, _)| record.size() as u64).sum(),
            owner: Owner::Us,
            held_by: None,
        };
        state.partitions.iter().map(depth).collect()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        self.memory.table(name)
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        Box::pin(std::future::pending())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.memory.close()
    }
}
