//! The seam between what Redrive decides and where its records are kept.
//!
//! A [`Log`] keeps records of named queues durably, hands them out by partition in the order in which they were
//! appended, and remembers per partition how far its consumer has come. It never looks into a record: what a record
//! means is the business of `queue`.
//!
//! # The contract
//!
//! 1. [`Log::append`] answers `Ok` only when the record is durable. An error other than [`AppendError::FateUnknown`]
//!    means that the record was not and will not be stored.
//! 2. Offsets of one partition grow strictly. They may have gaps; an offset is never used twice, also not after
//!    damage or a restart.
//! 3. A [`Reader`] hands out durable records only, each exactly once per assignment, in offset order, from the
//!    watermark of the assignment's checkpoint on.
//! 4. [`Log::commit`] answers `Ok` only when the checkpoint is durable. The newest committed checkpoint is the one
//!    that the next assignment of the partition carries. A commit of an epoch that is over is refused.
//! 5. While the lease of an assignment is valid, no other process is assigned the partition. A partition that was taken
//!    away may be assigned again, under a new epoch and from the newest checkpoint.
//! 6. Records below a committed watermark may be forgotten, others not.
//! 7. [`Table`] writes are durable when they return; the last write of a key wins.
//!
//! `log/conformance.rs` holds every implementation to this.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{future::BoxFuture, stream::BoxStream};

#[cfg(test)]
pub(crate) mod conformance;
pub mod journal;
pub mod kafka;
mod lease;
pub mod memory;
#[cfg(test)]
pub(crate) mod scripted;
pub mod spool;

pub use self::lease::{BootTime, Lease, LeaseKeeper};

/// What a queue is called: a target and a lane. Targets never share a queue, so that one which is down for hours
/// does not hold another one up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName {
    /// The target's name: letters, digits, `-` and `_`, at most 64 of them.
    pub target: Arc<str>,
    /// The lane's name: `high`, `normal` or `low`.
    pub lane: &'static str,
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.target, self.lane)
    }
}

/// One of the ordered parts of a queue. A journal has one per queue, index 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub queue: QueueName,
    pub index: u32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.queue, self.index)
    }
}

/// Where a record is: its partition's index and its offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub partition: u32,
    pub offset: u64,
}

/// The names and values that travel beside a record's value, packed into one buffer.
///
/// ```text
/// repeated: | name length u8 | name | value length u16 little-endian | value |
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

impl Headers {
    /// Takes bytes that [`Headers::as_bytes`] gave; they are checked when they are read.
    pub fn from_packed(packed: Bytes) -> Self {
        Self(packed)
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The pairs in the order in which they were put. Ends early at bytes that are not well formed.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&name_len, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(name_len))?;
            let (value_len, after) = after.split_first_chunk::<2>()?;
            let (value, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*value_len)))?;
            rest = after;
            Some((std::str::from_utf8(name).ok()?, value))
        })
    }

    /// The value of the first header of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

/// Builds [`Headers`].
#[derive(Debug, Default)]
pub struct HeadersBuilder(BytesMut);

impl HeadersBuilder {
    pub fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Adds a pair. A name is at most 255 bytes, a value at most 65,535; both are Redrive's own and known to fit.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        let name_len = u8::try_from(name.len()).expect("header names are constants of a few bytes");
        let value_len = u16::try_from(value.len()).expect("header values are bounded by the rules of admission");
        self.0.reserve(name.len() + value.len() + 3);
        self.0.put_u8(name_len);
        self.0.put_slice(name.as_bytes());
        self.0.put_u16_le(value_len);
        self.0.put_slice(value);
    }

    pub fn build(self) -> Headers {
        Headers(self.0.freeze())
    }
}

/// Opaque bytes to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub headers: Headers,
    pub value: Bytes,
}

impl Record {
    /// Bytes of headers and value together: what bounds and budgets count.
    pub fn size(&self) -> usize {
        self.headers.0.len() + self.value.len()
    }
}

/// Where an appended record is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// On this machine's disk, synced.
    Local,
    /// Acknowledged by all in-sync replicas of a Kafka partition.
    Kafka,
}

impl Durability {
    pub const ALL: [Self; 2] = [Self::Local, Self::Kafka];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Kafka => "kafka",
        }
    }
}

/// The proof that a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub position: Position,
    pub durability: Durability,
}

/// A record on its way into a log.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// Chooses the partition where a queue has several.
    pub ordering_key: Bytes,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no room. Nothing was stored; the same append may succeed later.
    #[error("the log is full")]
    Full { retry_after: Duration },
    /// The record can never be stored.
    #[error("a record of {bytes} bytes is over the log's limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The log cannot take records now, for a reason that passes. Nothing was stored.
    #[error("the log cannot take records now: {reason}")]
    Unavailable { reason: String },
    /// The log is stopping or has stopped. Nothing was stored.
    #[error("the log is closed")]
    Closed,
    /// The record may or may not be durable: whoever waits for it must get no answer.
    #[error("whether the record was stored is unknown")]
    FateUnknown,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Another owner has the partition by now. Nothing was stored; stop working on it.
    #[error("the partition's epoch is over")]
    EpochOver,
    /// The checkpoint could not be stored now; a later one may be.
    #[error("the checkpoint could not be stored: {reason}")]
    Unavailable { reason: String },
    #[error("the log is closed")]
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Reading failed for a reason that may pass; read again.
    #[error("records could not be read: {reason}")]
    Unavailable { reason: String },
    #[error("the log is closed")]
    Closed,
}

/// How far a partition's consumer has come. Every record below the watermark is finished; `state` says what is
/// finished above it, in a form that only the consumer knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub watermark: u64,
    pub state: Bytes,
}

/// How a log wants its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointing {
    /// The time between two checkpoints of a partition while nothing waits for one.
    pub interval: Duration,
    /// The most bytes of a [`Checkpoint::state`]; a longer one may be refused. At least
    /// [`Checkpointing::LEAST_STATE_BYTES`].
    pub max_state_bytes: usize,
}

impl Checkpointing {
    /// A consumer describes some thousands of positions in this.
    pub const LEAST_STATE_BYTES: usize = 2048;
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub offset: u64,
    pub record: Record,
    /// When it was appended, in milliseconds since 1970, where the log knows it: what a record of another producer,
    /// which says nothing of it, is as old as.
    pub appended_at_ms: Option<i64>,
}

/// Reads one assigned partition. Records are pulled, so that a full window stops its own partition only.
pub trait Reader: Send {
    /// The next records, at least one, in offset order; stops before more than `max_bytes` of them, but always hands
    /// out one. Waits until there is one, or until [`position`](Self::position) moves: then there is none.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses no record: the next call hands out what this one would have.
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>>;

    /// Up to where all was handed out that there is, where that is more than up to the last record.
    fn position(&self) -> Option<u64> {
        None
    }
}

/// The number of an assignment: a commit that carries an older one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// What happens to the partitions that this process may consume.
pub enum Assignment {
    Assigned(Assigned),
    /// The partition will go to another owner: finish, commit, then drop `done`. It is taken away at the latest when
    /// the log's own bound has passed.
    Revoking {
        partition: Partition,
        done: tokio::sync::oneshot::Sender<()>,
    },
    /// The partition is gone already: nothing may be committed any more.
    Lost {
        partition: Partition,
        loss: Loss,
    },
}

/// Why a partition is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Another owner has it, or may have.
    ToAnother,
    /// The records that were assigned are gone: whoever keeps them has deleted or lost them. It may be assigned again,
    /// with others.
    OfRecords,
}

pub struct Assigned {
    pub partition: Partition,
    pub epoch: Epoch,
    /// None where the partition was never committed: it is read from its beginning.
    pub checkpoint: Option<Checkpoint>,
    /// While it is valid, no other process works on the partition.
    pub lease: Lease,
    pub reader: Box<dyn Reader>,
}

/// How much one partition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depth {
    pub partition: Partition,
    /// The offset that the next record gets at the earliest.
    pub end: u64,
    /// The committed watermark.
    pub finished: u64,
    /// Bytes on disk, where the log knows them.
    pub bytes: u64,
    pub owner: Owner,
    /// Why nothing of it is read, where that takes a person: a word.
    pub held_by: Option<&'static str>,
}

/// Who works on a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This process.
    Us,
    Other(Arc<str>),
    Nobody,
}

impl Depth {
    /// Records that are appended and not finished.
    pub fn lag(&self) -> u64 {
        self.end.saturating_sub(self.finished)
    }

    /// Whether another process answers for its records.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.owner, Owner::Other(_))
    }
}

/// A record of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    pub key: Bytes,
    pub value: Bytes,
    /// Grows with every put, so that entries can be listed by age.
    pub position: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("the table has no room")]
    Full,
    #[error("the table cannot be used now: {reason}")]
    Unavailable { reason: String },
    #[error("whether the write was stored is unknown")]
    FateUnknown,
    #[error("the log is closed")]
    Closed,
}

/// Sees a key, and the position of its value unless that was removed.
pub type VisitChange = Box<dyn FnMut(&[u8], Option<u64>) + Send>;

/// Durable values by key; the last write of a key wins.
pub trait Table: Send + Sync {
    /// Stores a value and returns its position.
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<u64, TableError>>;

    /// Removes a key; one that is not there is no error.
    fn delete(&self, key: Bytes) -> BoxFuture<'_, Result<(), TableError>>;

    /// Every live entry once, in order of position. Entries written meanwhile may or may not be among them. The
    /// visitor answers whether to go on. Reads from disk: `visit` is called on a blocking thread.
    fn scan(&self, visit: Box<dyn FnMut(TableEntry) -> bool + Send>) -> BoxFuture<'_, Result<(), TableError>>;

    /// What was written since an earlier call, oldest first: each key, and the position of its value unless it was removed.
    /// Answers what to ask with next; `None` shows nothing, and is asked with before a scan. Where only this process writes
    /// there is nothing that it does not know.
    fn changes(&self, since: Option<u64>, visit: VisitChange) -> BoxFuture<'_, Result<u64, TableError>> {
        drop(visit);
        Box::pin(async move { Ok(since.unwrap_or(0)) })
    }

    /// The entry put at `position`, if it is still there.
    fn read(&self, position: u64) -> BoxFuture<'_, Result<Option<TableEntry>, TableError>>;
}

/// Keeps records durably. See the [module](self) for the contract.
pub trait Log: Send + Sync {
    /// Stores one record.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not take the record back: it may be stored or not.
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>>;

    /// Stores all of the records or none, next to each other where they go to one partition.
    ///
    /// # Cancellation
    ///
    /// As for [`Log::append`].
    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>>;

    /// Whether one more record could be stored now; else why not.
    fn ready(&self) -> Result<(), AppendError>;

    /// Starts consuming the queues. Each is assigned as soon as it exists: at once, or when the first append has made
    /// it; consuming makes none. The stream ends when the log closes.
    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment>;

    /// How often checkpoints should be written, and how long they may be.
    fn checkpointing(&self) -> Checkpointing;

    /// Stores how far a partition has come.
    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>>;

    /// What is committed for a partition, whoever works on it, as of a few seconds ago at the most; none where that is not
    /// known. Waits at most a second. Only a log that several processes consume needs to tell.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing.
    fn committed<'a>(&'a self, partition: &'a Partition) -> BoxFuture<'a, Option<Checkpoint>> {
        let _ = partition;
        Box::pin(async { None })
    }

    /// Shows the records appended last to a partition, oldest first, at most `max_records` of them and `max_bytes`
    /// together: what a memory of recent tasks is filled from. Offsets are the partition's own: the consumer takes what is
    /// below its watermark for finished. A record that will come to the partition and has no offset there yet may be shown
    /// too, last and under `u64::MAX`. Reads from disk: call it before serving. A partition that does not exist has none,
    /// and a log that would have to ask another machine may show none.
    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError>;

    /// What each partition that exists holds, whoever works on it, as far as that is known.
    fn depth(&self) -> Vec<Depth>;

    /// The table of that name, made when first written to.
    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError>;

    /// Resolves with the reason when the log can no longer keep its promises and the process must end.
    fn failed(&self) -> BoxFuture<'static, String>;

    /// Takes no more appends, finishes those that wait, and closes. Idempotent.
    fn close(&self) -> BoxFuture<'_, ()>;
}
