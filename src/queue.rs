//! The typed facade over the log: a task goes in with its lane and identity, and is stored at most once per id.
//!
//! What belongs here: the envelope of a record, and what was accepted recently. What does not: where and how records
//! are kept (`log`), and what happens to them (`consumer`). Invariant: `Ok` is answered only for what is durable, and
//! a task is never stored twice while its id is remembered.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;

use crate::{
    faults,
    log::{AppendError, Appended, Durability, Log, NewRecord, QueueName, ReadError},
    task::{Identity, Lane, TaskId},
    telemetry::metrics::Metrics,
};

pub mod envelope;
pub mod recent;

pub use envelope::Envelope;
use recent::{Begun, Progress, Recent, Remembered, Settled};

/// At most this much of a queue's end is read at the start, to remember what was accepted.
pub const REFILL_RECORDS: usize = 65_536;
pub const REFILL_BYTES: usize = 16 * 1024 * 1024;

/// A validated task on its way into the log.
#[derive(Clone, Debug)]
pub struct Submission {
    pub target: Arc<str>,
    pub lane: Lane,
    pub ordering_key: Bytes,
    pub envelope: Envelope,
}

/// The promise that a task is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub accepted_at: Timestamp,
    pub durability: Durability,
    /// It was stored by an earlier request with the same id and operation.
    pub replayed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The id belongs to a task with another operation.
    #[error("the id was used for another operation")]
    OtherOperation,
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// All queues of the process.
pub struct Queues {
    log: Arc<dyn Log>,
    recent: Mutex<Recent>,
    metrics: Arc<Metrics>,
}

impl Queues {
    pub fn new(log: Arc<dyn Log>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { log, recent: Mutex::new(Recent::new(recent::CAPACITY)), metrics })
    }

    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Remembers what the ends of all queues hold, so that a request repeated after a crash is recognised. Call it
    /// before the first request is answered; it reads from disk.
    pub fn refill(&self) -> Result<(), ReadError> {
        self.refill_from(&*self.log)
    }

    /// The same of another log, whose tasks are made too.
    pub fn refill_from(&self, log: &dyn Log) -> Result<(), ReadError> {
        let mut recent = self.recent();
        for depth in log.depth() {
            log.tail(&depth.partition, REFILL_RECORDS, REFILL_BYTES, &mut |entry| {
                // What cannot be read here is found again, and reported, by the consumer.
                let Ok(envelope) = Envelope::decode(&entry.record) else { return };
                let done = entry.offset < depth.finished;
                let progress = if done { Progress::Settled(None) } else { Progress::Stored };
                recent.remember(envelope.identity, envelope.accepted_at, Durability::Local, progress);
            })?;
        }
        Ok(())
    }

    /// Stores a task, unless it is stored already.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not take the task back: it is stored or not, and a repetition with the same id is
    /// told which.
    pub async fn submit(self: &Arc<Self>, submission: Submission) -> Result<Accepted, SubmitError> {
        let mut results = self.submit_many(vec![submission]).await;
        results.pop().expect("there is one result for each submission")
    }

    /// Stores several tasks; answers for each, in their order. Tasks of one queue keep their order and are stored
    /// together: all of them or none.
    ///
    /// # Cancellation
    ///
    /// As for [`Queues::submit`].
    pub async fn submit_many(self: &Arc<Self>, submissions: Vec<Submission>) -> Vec<Result<Accepted, SubmitError>> {
        let mut results: Vec<Option<Result<Accepted, SubmitError>>> = vec![None; submissions.len()];
        let mut waiting = Vec::new();
        let mut batches: Vec<Batch> = Vec::new();
        {
            let mut recent = self.recent();
            for (index, submission) in submissions.into_iter().enumerate() {
                match recent.begin(submission.envelope.identity) {
                    Begun::New => Batch::add(&mut batches, index, submission),
                    Begun::Known(accepted) => results[index] = Some(Ok(accepted)),
                    Begun::OtherOperation => results[index] = Some(Err(SubmitError::OtherOperation)),
                    Begun::Pending(fate) => waiting.push((index, fate)),
                }
            }
        }
        let stored = batches.into_iter().map(|batch| Storing::new(self.clone(), batch));
        for (index, result) in join_all(stored).await.into_iter().flatten() {
            results[index] = Some(result);
        }
        for (index, fate) in waiting {
            results[index] = Some(fate.await.unwrap_or(Err(AppendError::FateUnknown.into())));
        }
        results.into_iter().map(|result| result.expect("each submission got a result above")).collect()
    }

    /// Notes that tasks came to their end.
    pub fn settle(&self, settled: impl IntoIterator<Item = Settled>) {
        let mut recent = self.recent();
        for settled in settled {
            recent.settle(settled);
        }
    }

    /// What is remembered of a task that was accepted recently.
    pub fn find(&self, id: &TaskId) -> Option<Remembered> {
        self.recent().find(Identity::hash_of_id(id))
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().expect("nothing panics while it holds this lock")
    }
}

/// Tasks of one request that go to one queue.
struct Batch {
    queue: QueueName,
    /// Where each task stood in the request, and who it is.
    members: Vec<(usize, Identity, Timestamp)>,
    records: Vec<NewRecord>,
}

impl Batch {
    fn add(batches: &mut Vec<Self>, index: usize, submission: Submission) {
        let Submission { target, lane, ordering_key, envelope } = submission;
        let queue = QueueName { target, lane: lane.as_str() };
        let batch = match batches.iter().position(|batch| batch.queue == queue) {
            Some(found) => &mut batches[found],
            None => batches.push_mut(Self { queue, members: Vec::new(), records: Vec::new() }),
        };
        batch.members.push((index, envelope.identity, envelope.accepted_at));
        batch.records.push(NewRecord { ordering_key, record: envelope.encode() });
    }
}

/// An append under way. Whoever asked for it may go away; the append then ends in a task of its own, so that what is
/// remembered of its tasks is always their true fate.
struct Storing(Option<BoxFuture<'static, Fates>>);

/// What became of tasks, by their places in the request.
type Fates = Vec<(usize, Result<Accepted, SubmitError>)>;

impl Storing {
    fn new(queues: Arc<Queues>, batch: Batch) -> Self {
        Self(Some(Box::pin(async move { queues.store(batch).await })))
    }
}

impl Future for Storing {
    type Output = Fates;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        // Taken out meanwhile: an append that panics is not polled again by the drop below.
        let mut append = self.0.take().expect("a future is not polled after it was ready");
        let polled = append.as_mut().poll(cx);
        if polled.is_pending() {
            self.0 = Some(append);
        }
        polled
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        if let Some(append) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(append);
        }
    }
}

impl Queues {
    async fn store(&self, batch: Batch) -> Fates {
        let Batch { queue, members, mut records } = batch;
        let unfinished = Unfinished { queues: self, members: &members };
        let count = records.len() as u64;
        let appended = match records.len() {
            1 => {
                let record = records.pop().expect("there is one record");
                self.log.append(&queue, record).await.map(|appended| vec![appended])
            }
            _ => self.log.append_many(&queue, records).await,
        };
        // Nothing in it owns memory.
        std::mem::forget(unfinished);
        self.metrics.count_appends(count, appended.is_ok());
        faults::hit("after-append");
        let lane = Lane::ALL.iter().position(|lane| lane.as_str() == queue.lane).unwrap_or(0);
        let mut recent = self.recent();
        members
            .into_iter()
            .enumerate()
            .map(|(number, (index, identity, accepted_at))| {
                let fate = match &appended {
                    Ok(appended) => {
                        let durability = appended[number].durability;
                        self.metrics.count_accepted(lane, durability as usize);
                        Ok(Accepted { accepted_at, durability, replayed: false })
                    }
                    Err(error) => Err(SubmitError::Append(error.clone())),
                };
                let in_kafka = |appended: &&Appended| appended.durability == Durability::Kafka;
                let place = appended.as_ref().ok().map(|appended| &appended[number]).filter(in_kafka);
                recent.finish(identity, &fate, place.map(|appended| (&queue, appended.position)));
                (index, fate)
            })
            .collect()
    }
}

/// Tasks whose append did not come to its end, because it panicked or the runtime stopped: whoever waits for the same
/// fate must hear that it is unknown.
struct Unfinished<'a> {
    queues: &'a Queues,
    members: &'a [(usize, Identity, Timestamp)],
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut recent = self.queues.recent();
        for (_, identity, _) in self.members {
            recent.finish(*identity, &Err(AppendError::FateUnknown.into()), None);
        }
    }
}
