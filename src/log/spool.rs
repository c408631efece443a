//! Any [`Log`], with a journal in front of it while it is away.
//!
//! What belongs here: which way a record goes, and forwarding. What does not: what the remote log is, which this
//! never knows, and what a record means.
//!
//! ```text
//!                      ┌─────── Direct ────────────────────────────▶ remote log
//!   append ─▶ room ─▶ line                                             ▲
//!           reserved   └─ Spooled ─▶ frame ─▶ journal ─▶ forwarder ────┘
//!                            ▲                   │
//!     failed, or its fate is unknown        answered: local
//! ```
//!
//! The invariants, for each queue:
//!
//! - `Ok` is answered for what the remote log has acknowledged, or what is durable in the journal.
//! - A record that was acknowledged before another one came is in front of it in the remote log, however often either
//!   of the two ways breaks: while the spool holds something, all new records go behind it (`line`).
//! - An error other than [`AppendError::FateUnknown`] means that nothing was stored: room in the journal is reserved
//!   before anything is sent (`room`), so that what may have been stored can always be spooled and so becomes true.
//! - A record is forwarded twice only where the remote log left its fate open, or where this process ended between its
//!   acknowledgement and the checkpoint that notes it (`forwarder`).
//!
//! The spool of a queue that holds something is what other parts call an open breaker: requests do not wait for the
//! remote log then, and the forwarder alone asks whether it is back.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{
    future::{BoxFuture, Either, select},
    stream::BoxStream,
};
use tokio::{
    runtime::Handle,
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    forwarder::Forwarder,
    line::{Line, Route, Way, Writing},
    room::{Reservation, Room},
};
use super::{
    AppendError, Appended, Assignment, Checkpoint, Checkpointing, CommitError, Depth, Entry, Epoch, Log, NewRecord,
    Owner, Partition, QueueName, ReadError, Record, Table, TableError,
    journal::{Disk, JournalConfig, JournalLog, JournalStats, OpenError},
};

mod forwarder;
mod frame;
mod line;
mod pace;
mod room;
#[cfg(test)]
mod tests;

/// An append is answered at most so long after the remote log's own deadline.
const GRACE: Duration = Duration::from_secs(1);
/// What is left of that for the journal when the remote log has not kept its deadline.
const FOR_THE_JOURNAL: Duration = Duration::from_millis(750);
/// Where the offsets of spooled records begin, as [`Log::tail`] shows them: behind all that a remote log has.
const SPOOLED_OFFSET: u64 = 1 << 63;

/// When records go into the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the remote log does not take them.
    WhenAway,
    /// Always: they are acknowledged when they are on this disk, and forwarded later.
    Always,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub mode: Mode,
    /// The remote log's own deadline for an append.
    pub produce_timeout: Duration,
    /// The largest record that the remote log takes, ordering key and headers included. Default: none is too large.
    pub max_record_bytes: usize,
    /// Requests that are under way hold at most this much; less where the journal is small. Default 32 MiB.
    pub max_in_flight_bytes: u64,
    /// How long closing goes on forwarding. Default 3 s.
    pub close_within: Duration,
    /// Between two tries to reach a remote log that is away. Default 100 ms, growing to 5 s.
    pub min_pause: Duration,
    pub max_pause: Duration,
    /// When a record was accepted, in milliseconds since 1970, where it says so. Default: none does.
    pub accepted_at: fn(&Record) -> Option<i64>,
    #[cfg(test)]
    bug: Option<tests::Bug>,
}

impl Config {
    pub fn new(mode: Mode, produce_timeout: Duration) -> Self {
        Self {
            mode,
            produce_timeout,
            max_record_bytes: usize::MAX,
            max_in_flight_bytes: 32 << 20,
            close_within: Duration::from_secs(3),
            min_pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(5),
            accepted_at: |_| None,
            #[cfg(test)]
            bug: None,
        }
    }
}

/// What the spool holds of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spooled {
    pub queue: QueueName,
    /// At most so many, and exactly so many unless some were damaged.
    pub records: u64,
    /// On disk, room that is not used yet included.
    pub bytes: u64,
    /// When the oldest of them was accepted, in milliseconds since 1970, where that is known.
    pub oldest_ms: Option<i64>,
    pub path: PathBuf,
}

/// A [`Log`] that keeps for a remote one what that does not take now. Dropping it without [`Log::close`] loses
/// nothing either.
pub struct Spool {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    remote: Arc<dyn Log>,
    journal: Arc<JournalLog>,
    room: Arc<Room>,
    branches: RwLock<HashMap<QueueName, Arc<Branch>>>,
    /// Nothing new is taken.
    closing: CancellationToken,
    /// Nothing new will come into the spool.
    finishing: CancellationToken,
    /// Forwarding ends.
    stop: CancellationToken,
    requests: TaskTracker,
    forwarders: TaskTracker,
    /// Where forwarders live, and what outlives the request that asked for it.
    runtime: Handle,
    closed: OnceCell<()>,
    /// Records of the spool that the remote log has acknowledged.
    forwarded: Arc<AtomicU64>,
}

/// A queue's line and, from its first spooled record on, its forwarder.
struct Branch {
    line: Arc<Line>,
    forwarding: std::sync::Once,
}

impl Spool {
    /// Opens the spool, and goes on forwarding what an earlier process left in it.
    ///
    /// # Panics
    ///
    /// Outside of a runtime: the forwarders live in the one that it is called in.
    pub fn open(
        remote: Arc<dyn Log>,
        journal: JournalConfig,
        disk: Arc<dyn Disk>,
        config: Config,
    ) -> Result<Self, OpenError> {
        let max_in_flight = config.max_in_flight_bytes.min(journal.max_bytes / 20);
        let journal = Arc::new(JournalLog::open(JournalConfig { room_is_promised: true, ..journal }, disk)?);
        let inner = Arc::new(Inner {
            config: Arc::new(config),
            remote,
            room: Room::new(journal.clone(), max_in_flight),
            journal,
            branches: RwLock::default(),
            closing: CancellationToken::new(),
            finishing: CancellationToken::new(),
            stop: CancellationToken::new(),
            requests: TaskTracker::new(),
            forwarders: TaskTracker::new(),
            runtime: Handle::current(),
            closed: OnceCell::new(),
            forwarded: Arc::default(),
        });
        for spooled in inner.spooled() {
            tracing::info!(
                queue = %spooled.queue,
                "{} holds {} records that are forwarded first",
                spooled.path.display(),
                spooled.records
            );
            inner.begin_forwarding(&inner.branch(&spooled.queue, Route::Spooled));
        }
        Ok(Self { inner })
    }

    /// Each queue of which the spool holds something: also after [`Log::close`], when it stays there.
    pub fn spooled(&self) -> Vec<Spooled> {
        self.inner.spooled()
    }

    /// Records that the remote log has acknowledged since the start of the process, of those that were here.
    pub fn forwarded(&self) -> u64 {
        self.inner.forwarded.load(Ordering::Relaxed)
    }

    /// Counters of the spool's files.
    pub fn stats(&self) -> Arc<JournalStats> {
        self.inner.journal.stats()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.inner.closing.cancel();
        self.inner.stop.cancel();
    }
}

impl Inner {
    fn spooled(&self) -> Vec<Spooled> {
        let held = |depth: Depth| {
            let records = depth.end.saturating_sub(depth.finished);
            let queue = depth.partition.queue;
            let path = self.journal.queue_dir(&queue);
            let branches = self.branches.read().unwrap_or_else(PoisonError::into_inner);
            let oldest_ms = branches.get(&queue).and_then(|branch| branch.line.oldest_ms());
            (records > 0).then_some(Spooled { queue, records, bytes: depth.bytes, oldest_ms, path })
        };
        self.journal.depth().into_iter().filter_map(held).collect()
    }

    /// A queue's branch, with the route that it has if it is new.
    fn branch(&self, queue: &QueueName, route: Route) -> Arc<Branch> {
        if let Some(branch) = self.branches.read().unwrap_or_else(PoisonError::into_inner).get(queue) {
            return branch.clone();
        }
        let mut branches = self.branches.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Branch { line: Line::new(queue.clone(), route), forwarding: std::sync::Once::new() });
        branches.entry(queue.clone()).or_insert_with(new).clone()
    }

    fn begin_forwarding(&self, branch: &Branch) {
        branch.forwarding.call_once(|| {
            let forwarder = Forwarder::new(
                branch.line.clone(),
                self.journal.clone(),
                self.remote.clone(),
                self.config.clone(),
                self.finishing.clone(),
                self.forwarded.clone(),
            );
            let stop = self.stop.clone();
            let forwarding = async move {
                stop.run_until_cancelled(forwarder.run()).await;
            };
            self.forwarders.spawn_on(forwarding, &self.runtime);
        });
    }

    async fn append(
        self: &Arc<Self>,
        queue: &QueueName,
        records: Vec<NewRecord>,
    ) -> Result<Vec<Appended>, AppendError> {
        let under_way = self.requests.token();
        if self.closing.is_cancelled() {
            return Err(AppendError::Closed);
        }
        let deadline = Instant::now() + self.config.produce_timeout + GRACE;
        let bytes = self.measure(&records)?;
        let reservation = self.reserve(queue, bytes)?;
        let request = Request { records, bytes, deadline, kept: (reservation, under_way) };
        let at_first = match self.config.mode {
            Mode::WhenAway => Route::Direct,
            Mode::Always => Route::Spooled,
        };
        let branch = self.branch(queue, at_first);
        loop {
            match self.way(&branch) {
                Way::Direct => return self.append_directly(&branch, request).await,
                Way::Spooled(writing) => return self.spool(&branch, request, writing, None).await,
                Way::Handover => branch.line.handover_over().await,
            }
        }
    }

    fn way(&self, branch: &Branch) -> Way {
        #[cfg(test)]
        if self.config.bug == Some(tests::Bug::DirectPastSpool) {
            return Way::Direct;
        }
        branch.line.enter()
    }

    /// The bytes that the records take in the journal, if neither log finds them too large.
    fn measure(&self, records: &[NewRecord]) -> Result<usize, AppendError> {
        let size = |new: &NewRecord| new.ordering_key.len() + new.record.size();
        let largest = records.iter().map(size).max().unwrap_or(0);
        let limit = self.config.max_record_bytes;
        if largest > limit {
            return Err(AppendError::TooLarge { bytes: largest, limit });
        }
        let bytes = records.iter().map(frame::stored_bytes).sum();
        let limit = self.journal.max_request_bytes();
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        Ok(bytes)
    }

    fn reserve(&self, queue: &QueueName, bytes: usize) -> Result<Option<Reservation>, AppendError> {
        #[cfg(test)]
        if self.config.bug == Some(tests::Bug::NoReservation) {
            return Ok(None);
        }
        self.room.reserve(&queue.target, bytes as u64).map(Some)
    }

    async fn append_directly(
        self: &Arc<Self>,
        branch: &Branch,
        request: Request,
    ) -> Result<Vec<Appended>, AppendError> {
        let queue = &branch.line.queue;
        let append = async {
            match &request.records[..] {
                [record] => self.remote.append(queue, record.clone()).await.map(|appended| vec![appended]),
                records => self.remote.append_many(queue, records.to_vec()).await,
            }
        };
        let cut_off = request.deadline - FOR_THE_JOURNAL;
        let error = match timeout_at(cut_off, append).await.unwrap_or(Err(AppendError::FateUnknown)) {
            Ok(appended) => return Ok(appended),
            Err(error @ (AppendError::TooLarge { .. } | AppendError::Closed)) => return Err(error),
            Err(error) => error,
        };
        let writing = branch.line.divert();
        if branch.line.is_news(Route::Spooled) {
            tracing::warn!(%queue, "The remote log does not take records of {queue}, and they are spooled: {error}");
        }
        self.spool(branch, request, writing, Some(error)).await
    }

    /// Stores a request in the spool. `failed` says what came of it at the remote log, if it was sent there.
    async fn spool(
        self: &Arc<Self>,
        branch: &Branch,
        request: Request,
        writing: Writing,
        failed: Option<AppendError>,
    ) -> Result<Vec<Appended>, AppendError> {
        self.begin_forwarding(branch);
        let Request { records, bytes, deadline, kept } = request;
        let (line, journal) = (branch.line.clone(), self.journal.clone());
        // In a task of its own: whoever asked may go away, and the line must know when it is over.
        let storing = self.runtime.spawn(async move {
            let permit = line.pass_gate(records.len(), bytes).await;
            let framed = records.iter().map(frame::encode).collect();
            drop(records);
            let appended = journal.append_many(&line.queue, framed).await;
            drop((permit, writing, kept));
            appended
        });
        let stored = match timeout_at(deadline, storing).await {
            Ok(Ok(stored)) => stored,
            // The disk hangs, or the task panicked.
            Err(_) | Ok(Err(_)) => Err(AppendError::FateUnknown),
        };
        match stored {
            Err(_) if failed == Some(AppendError::FateUnknown) => Err(AppendError::FateUnknown),
            stored => stored,
        }
    }

    /// Shows the end of the remote log and what the spool holds behind it. Which partition that will go to is not known
    /// yet: it is shown behind the first.
    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        let watermark = self.journal.depth().into_iter().find(|depth| depth.partition == *partition);
        let watermark = watermark.map_or(u64::MAX, |depth| depth.finished);
        // What was forwarded is in the remote log, and its records are not gone from the files at once.
        let held = |entry: &Entry| entry.offset >= watermark;
        let (mut records, mut bytes) = (0, 0);
        self.journal.tail(partition, max_records, max_bytes, &mut |entry| {
            if held(&entry) {
                records += 1;
                bytes += entry.record.size();
            }
        })?;
        let (left_records, left_bytes) = (max_records - records, max_bytes.saturating_sub(bytes));
        if let Err(error) = self.remote.tail(partition, left_records, left_bytes, visit) {
            tracing::warn!(%partition, "Only the spooled records of {partition} are known yet: {error}");
        }
        self.journal.tail(partition, records, max_bytes, &mut |entry| {
            if held(&entry)
                && let Ok(NewRecord { record, .. }) = frame::decode(&entry.record)
            {
                visit(Entry { offset: SPOOLED_OFFSET + entry.offset, record, ..entry });
            }
        })
    }

    fn depth(&self) -> Vec<Depth> {
        let mut depths = self.remote.depth();
        for Spooled { queue, .. } in self.spooled() {
            if !depths.iter().any(|depth| depth.partition.queue == queue) {
                let partition = Partition { queue, index: 0 };
                depths.push(Depth { partition, end: 0, finished: 0, bytes: 0, owner: Owner::Us, held_by: None });
            }
        }
        depths
    }

    async fn close(&self) {
        self.closing.cancel();
        self.requests.close();
        self.forwarders.close();
        let until = Instant::now() + self.config.close_within;
        // Each request has a deadline, but a stop has one too.
        let _ = timeout_at(until, self.requests.wait()).await;
        self.finishing.cancel();
        let _ = timeout_at(until, self.forwarders.wait()).await;
        self.stop.cancel();
        self.forwarders.wait().await;
        tokio::join!(self.remote.close(), self.journal.close());
    }
}

/// Records on their way.
struct Request {
    records: Vec<NewRecord>,
    /// What they take in the journal.
    bytes: usize,
    deadline: Instant,
    /// Given back when their fate is known.
    kept: (Option<Reservation>, tokio_util::task::task_tracker::TaskTrackerToken),
}

impl Log for Spool {
    /// The position of a record that went into the spool is its place there.
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move { self.inner.append(queue, vec![record]).await.map(|appended| appended[0]) })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(async move {
            if records.is_empty() {
                return Ok(Vec::new());
            }
            self.inner.append(queue, records).await
        })
    }

    /// Whether there is room in the spool: nothing is taken without, and with it nothing else is needed.
    fn ready(&self) -> Result<(), AppendError> {
        if self.inner.closing.is_cancelled() {
            return Err(AppendError::Closed);
        }
        self.inner.journal.ready()
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        self.inner.remote.consume(queues)
    }

    fn checkpointing(&self) -> Checkpointing {
        self.inner.remote.checkpointing()
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        self.inner.remote.commit(partition, epoch, checkpoint)
    }

    /// What is spooled comes last. A remote log that cannot be read is passed over: tasks are taken without it too.
    fn committed<'a>(&'a self, partition: &'a Partition) -> BoxFuture<'a, Option<Checkpoint>> {
        self.inner.remote.committed(partition)
    }

    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        self.inner.tail(partition, max_records, max_bytes, visit)
    }

    /// Of the remote log. A queue that only the spool knows has nothing there yet.
    fn depth(&self) -> Vec<Depth> {
        self.inner.depth()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        self.inner.remote.table(name)
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let either = select(self.inner.remote.failed(), self.inner.journal.failed());
        Box::pin(async move {
            match either.await {
                Either::Left((reason, _)) | Either::Right((reason, _)) => reason,
            }
        })
    }

    /// Forwards what it can within [`Config::close_within`]; [`Spool::spooled`] says what stays.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.inner.closed.get_or_init(|| self.inner.close()).await;
        })
    }
}
