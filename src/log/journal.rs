//! The embedded journal: a log on the local disk, for when no Kafka is configured and for when it is away. One owner,
//! one journal per queue, one table per name; each a row of segment files.
//!
//! ```text
//! data_dir/                          mode 0700, locked
//!   LOCK
//!   queues/default/normal/
//!     META                           which log this is
//!     0000000001-00000000000000000000.seg     ordinal, first sequence number
//!     0000000002-00000000000000052341.seg     the newest: written to
//!     0000000001-00000000000000000000.bad     damaged bytes, kept aside for a person
//!   tables/dead_letters/
//!     ...                            the same
//!
//! segment:   | header | copy of the header at 1024 | frames from 2048 on | zeros, filled in ahead |
//!
//! header:    | magic FF "REDRIVE" 8 | version u8 | 0 x 7 | log id 16 | nonce 16 | ordinal u64 | first seq u64 |
//!            | crc32c u32 of all that |
//!
//! frame:     | magic FF 'r' FE 'd' 4 | kind u8 | flags u8 | payload length u32 | seq u64 |
//!            | crc32c u32 of nonce, kind to seq, payload | payload |
//!
//! payload:   record      | length of headers u32 | headers | value |
//!            put         | length of key u32 | key | value |
//!            delete      | length of key u32 | key |
//!            checkpoint  | log id 16 | watermark u64 | state |
//!            resume      nothing
//! ```
//!
//! Numbers are little-endian. META is a segment's header that stands alone.
//!
//! Records (puts, deletes) are numbered without gaps, so a gap is a loss, and names what is lost. A checkpoint is a
//! frame like others; the last valid one counts, and each segment begins with a copy of the one of its time. Nothing
//! is moved or rewritten; a segment whose records are all finished is unlinked.
//!
//! `chain` writes, `recovery` opens, `follower` reads; these are synchronous and work on [`disk::Disk`], so that
//! tests can cut the power anywhere. `salvage` gets them past sectors that the disk has lost. `writer`, `inbox` and `reader` put threads and futures around them.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::{oneshot, watch};

use self::{
    audit::DamageReport,
    budget::{Budget, Purpose},
    chain::Chain,
    disk::{FileKind, Lock},
    frame::{Kind, Pair},
    inbox::Work,
    recovery::RecoveryError,
    segment::{Aside, Home, Shape},
    table::JournalTable,
    writer::{Failure, Writer},
};
use super::{
    AppendError, Appended, Assigned, Assignment, Checkpoint, Checkpointing, CommitError, Depth, Durability, Entry,
    Epoch, Lease, Log, NewRecord, Owner, Partition, Position, QueueName, ReadError, Table, TableError,
};

pub use self::{
    disk::{Disk, RealDisk},
    inbox::{ITEM_OVERHEAD, MAX_QUEUED_BYTES, MAX_REQUEST_BYTES},
    reader::JournalReader,
    stats::JournalStats,
};

mod audit;
mod budget;
mod chain;
mod checkpoint;
pub mod disk;
mod follower;
mod frame;
mod inbox;
mod reader;
mod recovery;
mod salvage;
mod scanner;
mod segment;
mod shelf;
mod stats;
mod table;
#[cfg(test)]
pub(super) mod tests;
mod writer;

/// A request becomes frames that its reader takes for frames.
const _: () = assert!(MAX_REQUEST_BYTES <= frame::MAX_PAYLOAD_BYTES);

/// A checkpoint is one more frame in the next sync.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(100);

/// What a record takes beside its headers and value.
pub const RECORD_OVERHEAD_BYTES: usize = frame::FRAME_HEADER_BYTES + Pair::OVERHEAD_BYTES;

const LOCK: &str = "LOCK";
const QUEUES: &str = "queues";
const TABLES: &str = "tables";
const LANES: [&str; 3] = ["high", "normal", "low"];
const FULL_RETRY: Duration = Duration::from_secs(5);

/// Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Made if it is not there, with mode 0700.
    pub dir: PathBuf,
    /// All that the directory may hold, zero-filled space included. Default 1 GiB.
    pub max_bytes: u64,
    /// What appends leave free of the file system. Default 256 MiB.
    pub min_free_bytes: u64,
    /// Take a file system that is memory all the same. Default false.
    pub allow_volatile: bool,
    /// How large a segment grows; less where `max_bytes` is small. Default 16 MiB.
    pub segment_bytes: u64,
    /// The configured targets: each has a guaranteed share.
    pub targets: Vec<Arc<str>>,
    /// Appends may use the reserve: whoever appends asks for [`JournalLog::room`] first, and counts what he was
    /// promised. Default false.
    pub room_is_promised: bool,
}

impl JournalConfig {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            max_bytes: 1 << 30,
            min_free_bytes: 256 << 20,
            allow_volatile: false,
            segment_bytes: 16 << 20,
            targets: vec!["default".into()],
            room_is_promised: false,
        }
    }

    /// The segments of a target's lanes that are kept in any case, two for each, leave half of its share free.
    fn shape(&self) -> Shape {
        let targets = self.targets.len().max(1) as u64;
        // Longer steps were measured to gain nothing, and on a slow disk the commit that fills one waits for it.
        let max_step = (self.max_bytes / 64).clamp(4 << 10, 1 << 20);
        Shape {
            segment_bytes: self.segment_bytes.min(self.max_bytes / (32 * targets)).max(16 << 10),
            first_step: max_step.min(256 << 10),
            max_step,
            min_free_bytes: self.min_free_bytes,
        }
    }

    /// Whether a journal was opened there before. Opening one makes it.
    pub fn exists(&self) -> bool {
        self.dir.join(QUEUES).is_dir()
    }

    fn queue_dir(&self, queue: &QueueName) -> PathBuf {
        self.dir.join(QUEUES).join(&*queue.target).join(queue.lane)
    }

    /// What the journals of queues are charged as.
    fn append_purpose(&self) -> Purpose {
        if self.room_is_promised { Purpose::Reserve } else { Purpose::Append }
    }

    /// What one request may hold.
    fn max_request_bytes(&self) -> usize {
        MAX_REQUEST_BYTES.min(usize::try_from(self.max_bytes / 16).unwrap_or(usize::MAX))
    }
}

/// Why a journal was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process", dir.display())]
    InUse { dir: PathBuf },
    #[error("{} can be written to by others than its owner; name a directory that cannot, or one inside it", dir.display())]
    SharedWritable { dir: PathBuf },
    #[error("{} is memory, which a restart empties; allow that, or name a directory on a disk", dir.display())]
    Volatile { dir: PathBuf },
    #[error("{} is a symbolic link, and links are not followed; name what it points to", path.display())]
    Symlink { path: PathBuf },
    #[error("{} is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("{} has format {version}, which a later version of Redrive wrote", path.display())]
    NewerFormat { path: PathBuf, version: u8 },
    #[error("{} could not be read or written", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path: path.clone(), source }
    }
}

impl From<RecoveryError> for OpenError {
    fn from(error: RecoveryError) -> Self {
        match error {
            RecoveryError::Symlink { path } => Self::Symlink { path },
            RecoveryError::NewerFormat { path, version } => Self::NewerFormat { path, version },
            RecoveryError::Io { path, source } => Self::Io { path, source },
        }
    }
}

/// A [`Log`] on the local disk. Dropping it without [`Log::close`] finishes what is queued too, but blocks meanwhile.
pub struct JournalLog {
    inner: Arc<Inner>,
}

struct Inner {
    config: JournalConfig,
    disk: Arc<dyn Disk>,
    budget: Arc<Budget>,
    stats: Arc<JournalStats>,
    failure: Failure,
    closed: watch::Sender<bool>,
    queues: RwLock<HashMap<QueueName, Arc<Writer>>>,
    /// How many queues exist: tells consumers that one was made.
    made: watch::Sender<usize>,
    tables: Mutex<HashMap<String, Arc<JournalTable>>>,
    /// Given back after the writers have ended.
    lock: Mutex<Option<Lock>>,
}

impl JournalLog {
    /// Opens the directory and all that it holds.
    pub fn open(config: JournalConfig, disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let lock = claim(&config, &*disk)?;
        let stats = Arc::new(JournalStats::default());
        let inner = Inner {
            budget: Budget::new(config.max_bytes, &config.targets, stats.clone()),
            stats,
            failure: Failure::default(),
            closed: watch::Sender::new(false),
            queues: RwLock::default(),
            made: watch::Sender::new(0),
            tables: Mutex::default(),
            config,
            disk,
            lock: Mutex::new(Some(lock)),
        };
        inner.open_queues()?;
        inner.open_tables()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Counters over all journals and tables of the directory.
    pub fn stats(&self) -> Arc<JournalStats> {
        self.inner.stats.clone()
    }

    /// The most that one request may hold, [`RECORD_OVERHEAD_BYTES`] for each record included.
    pub fn max_request_bytes(&self) -> usize {
        self.inner.config.max_request_bytes()
    }

    /// Whether a target's queues may grow by that many bytes: by the rules for appends, the reserve left alone. What
    /// the file system has left is another question.
    pub fn room(&self, target: &Arc<str>, bytes: u64) -> Result<(), AppendError> {
        self.inner.usable()?;
        if self.inner.budget.has_room(target, bytes) {
            Ok(())
        } else {
            Err(AppendError::Full { retry_after: FULL_RETRY })
        }
    }

    /// What the file system has left for appends.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let config = &self.inner.config;
        Ok(self.inner.disk.space(&config.dir)?.free_bytes.saturating_sub(config.min_free_bytes))
    }

    /// Where a queue's files are.
    pub fn queue_dir(&self, queue: &QueueName) -> PathBuf {
        self.inner.config.queue_dir(queue)
    }

    /// Assigns a queue, made if need be, to a consumer that also wants to know when it has read everything.
    pub async fn follow(&self, queue: &QueueName) -> Result<Following, AppendError> {
        self.inner.usable()?;
        let writer = self.inner.queue_or_new(queue).map_err(|reason| AppendError::Unavailable { reason })?;
        self.inner.follow(queue.clone(), &writer).await.ok_or(AppendError::Closed)
    }
}

/// A queue's only consumer.
pub struct Following {
    pub partition: Partition,
    pub epoch: Epoch,
    pub checkpoint: Option<Checkpoint>,
    pub reader: JournalReader,
}

/// Makes, checks and locks the directory.
fn claim(config: &JournalConfig, disk: &dyn Disk) -> Result<Lock, OpenError> {
    let dir = &config.dir;
    let error = OpenError::io(dir);
    disk::make_dirs(disk, dir).map_err(|failed| match failed {
        disk::DurableError::Refused(source) | disk::DurableError::Sync(source) => error(source),
    })?;
    let found = disk.inspect(dir).map_err(&error)?;
    match found.kind {
        FileKind::Dir => {}
        FileKind::Symlink => return Err(OpenError::Symlink { path: dir.clone() }),
        FileKind::File | FileKind::Other => return Err(OpenError::NotADirectory { path: dir.clone() }),
    }
    if found.shared_writable {
        return Err(OpenError::SharedWritable { dir: dir.clone() });
    }
    if !config.allow_volatile && disk.space(dir).map_err(&error)?.volatile {
        return Err(OpenError::Volatile { dir: dir.clone() });
    }
    // The process that made it may have died before its name was durable. Above it may be none of our business.
    match disk.sync_dir(&disk::parent_of(dir)) {
        Err(source) if source.kind() != io::ErrorKind::PermissionDenied => return Err(error(source)),
        _ => {}
    }
    let lock = dir.join(LOCK);
    if matches!(disk.inspect(&lock), Ok(found) if found.kind == FileKind::Symlink) {
        return Err(OpenError::Symlink { path: lock });
    }
    disk.lock(&lock).map_err(&error)?.ok_or_else(|| OpenError::InUse { dir: dir.clone() })
}

impl Inner {
    fn open_queues(&self) -> Result<(), OpenError> {
        let queues = self.config.dir.join(QUEUES);
        for target in self.subdirectories(&queues)? {
            for lane in self.subdirectories(&queues.join(&target))? {
                let dir = queues.join(&target).join(&lane);
                let Some(lane) = LANES.into_iter().find(|known| *known == lane) else {
                    tracing::warn!(dir = %dir.display(), "No lane is called {lane}: {} is left alone", dir.display());
                    continue;
                };
                let queue = QueueName { target: target.as_str().into(), lane };
                let writer = self.open_chain(&dir, Some(&queue.target), self.config.append_purpose())?;
                self.queues.write().unwrap_or_else(PoisonError::into_inner).insert(queue, Arc::new(writer));
            }
        }
        Ok(())
    }

    fn open_tables(&self) -> Result<(), OpenError> {
        let tables = self.config.dir.join(TABLES);
        for name in self.subdirectories(&tables)? {
            let writer = self.open_chain(&tables.join(&name), None, Purpose::Reserve)?;
            let table = JournalTable::new(writer, self.config.max_request_bytes());
            self.tables().insert(name, Arc::new(table));
        }
        Ok(())
    }

    /// The names of the directories in a directory, which need not be there.
    fn subdirectories(&self, dir: &Path) -> Result<Vec<String>, OpenError> {
        let error = OpenError::io(dir);
        match self.disk.inspect(dir) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(error(source)),
            Ok(found) if found.kind == FileKind::Symlink => return Err(OpenError::Symlink { path: dir.to_owned() }),
            Ok(_) => {}
        }
        let mut names = Vec::new();
        for listed in self.disk.list(dir).map_err(&error)? {
            match listed.kind {
                FileKind::Dir => names.push(listed.name),
                FileKind::Symlink => return Err(OpenError::Symlink { path: dir.join(listed.name) }),
                FileKind::File | FileKind::Other => {
                    let path = dir.join(listed.name);
                    tracing::warn!(file = %path.display(), "{} is not a directory and left alone", path.display());
                }
            }
        }
        Ok(names)
    }

    fn open_chain(&self, dir: &Path, target: Option<&Arc<str>>, purpose: Purpose) -> Result<Writer, OpenError> {
        let chain = Chain::open(self.home(dir, target), target.is_some())?;
        Writer::start(chain, purpose, self.failure.clone()).map_err(OpenError::io(dir))
    }

    fn home(&self, dir: &Path, target: Option<&Arc<str>>) -> Arc<Home> {
        let name = dir.strip_prefix(&self.config.dir).unwrap_or(dir).display().to_string();
        Arc::new(Home {
            root: self.config.dir.clone(),
            dir: dir.to_owned(),
            disk: self.disk.clone(),
            shape: self.config.shape(),
            account: self.budget.account(target.cloned()),
            report: DamageReport::new(name, self.stats.clone()),
            aside: Aside::default(),
            #[cfg(test)]
            bug: None,
        })
    }

    fn queue(&self, name: &QueueName) -> Option<Arc<Writer>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The queue's writer, started if this is its first use. Files are made by its first write.
    fn queue_or_new(&self, name: &QueueName) -> Result<Arc<Writer>, String> {
        if let Some(writer) = self.queue(name) {
            return Ok(writer);
        }
        // It becomes a path.
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.target.is_empty() || !name.target.bytes().all(is_part) || !LANES.contains(&name.lane) {
            return Err(format!("{name} cannot be the name of a queue"));
        }
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        if *self.closed.borrow() {
            return Err("the log is closed".to_owned());
        }
        if let Some(writer) = queues.get(name) {
            return Ok(writer.clone());
        }
        let dir = self.config.queue_dir(name);
        let chain = Chain::new(self.home(&dir, Some(&name.target)));
        let writer = Writer::start(chain, self.config.append_purpose(), self.failure.clone())
            .map_err(|error| error.to_string())?;
        let writer = Arc::new(writer);
        queues.insert(name.clone(), writer.clone());
        self.made.send_replace(queues.len());
        Ok(writer)
    }

    fn tables(&self) -> MutexGuard<'_, HashMap<String, Arc<JournalTable>>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state in which nothing can be appended, whatever it is.
    fn usable(&self) -> Result<(), AppendError> {
        if *self.closed.borrow() {
            return Err(AppendError::Closed);
        }
        match self.failure.reason() {
            Some(reason) => Err(AppendError::Unavailable { reason }),
            None => Ok(()),
        }
    }

    async fn append(
        &self,
        queue: &QueueName,
        records: impl ExactSizeIterator<Item = NewRecord>,
        bytes: usize,
    ) -> Result<u64, AppendError> {
        let limit = self.config.max_request_bytes();
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        self.usable()?;
        let writer = self.queue_or_new(queue).map_err(|reason| AppendError::Unavailable { reason })?;
        let items = records.map(|new| {
            let pair = Pair { first: new.record.headers.as_bytes().clone(), second: new.record.value };
            (Kind::Record, pair)
        });
        writer.inbox.append(items, bytes)?.await
    }

    /// Gives a queue to a new consumer; the one before it can commit no more. `None` when the log closes.
    async fn follow(&self, queue: QueueName, writer: &Writer) -> Option<Following> {
        let (answer, assigned) = oneshot::channel();
        if !writer.inbox.ask(Work::Assign { answer }) {
            return None;
        }
        let (epoch, checkpoint) = assigned.await.ok()?;
        let from = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
        let reader = JournalReader::new(writer.home.clone(), writer.shelf.clone(), from);
        Some(Following { partition: Partition { queue, index: 0 }, epoch, checkpoint, reader })
    }

    async fn assign(&self, queue: QueueName, writer: Arc<Writer>) -> Option<Assignment> {
        let Following { partition, epoch, checkpoint, reader } = self.follow(queue, &writer).await?;
        // The lock on the data directory keeps everybody else out.
        let lease = Lease::forever();
        Some(Assignment::Assigned(Assigned { partition, epoch, checkpoint, lease, reader: Box::new(reader) }))
    }

    async fn commit(&self, partition: &Partition, epoch: Epoch, checkpoint: Checkpoint) -> Result<(), CommitError> {
        let Some(writer) = self.queue(&partition.queue).filter(|_| partition.index == 0) else {
            return Err(CommitError::EpochOver);
        };
        let (answer, committed) = oneshot::channel();
        if !writer.inbox.ask(Work::Commit { epoch, checkpoint, answer }) {
            return Err(CommitError::Closed);
        }
        committed.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Blocks until all writers have ended.
    fn close(&self) {
        self.closed.send_replace(true);
        let queues: Vec<_> = self.queues.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let tables: Vec<_> = self.tables().values().cloned().collect();
        // All are told before the first is waited for: they sync side by side.
        queues.iter().for_each(|writer| writer.inbox.close());
        tables.iter().for_each(|table| table.writer().inbox.close());
        queues.iter().for_each(|writer| writer.close());
        tables.iter().for_each(|table| table.writer().close());
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Assigns queues as they come to exist. Nothing is ever revoked: there is one owner, this process.
struct Consumption {
    inner: Arc<Inner>,
    /// Not assigned yet, in the order in which they were asked for.
    waiting: Vec<QueueName>,
    made: watch::Receiver<usize>,
    closed: watch::Receiver<bool>,
}

impl Consumption {
    async fn next(&mut self) -> Option<Assignment> {
        loop {
            // Seen before the look: a queue made after it wakes the wait below.
            self.made.borrow_and_update();
            let found = self.waiting.iter().enumerate().find_map(|(at, queue)| Some((at, self.inner.queue(queue)?)));
            if let Some((at, writer)) = found {
                return self.inner.assign(self.waiting.remove(at), writer).await;
            }
            tokio::select! {
                _ = self.closed.wait_for(|closed| *closed) => return None,
                made = self.made.changed() => made.ok()?,
            }
        }
    }
}

impl Drop for JournalLog {
    fn drop(&mut self) {
        self.inner.close();
    }
}

fn appended(offset: u64) -> Appended {
    Appended { position: Position { partition: 0, offset }, durability: Durability::Local }
}

fn frame_bytes(new: &NewRecord) -> usize {
    new.record.size() + RECORD_OVERHEAD_BYTES
}

impl Log for JournalLog {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        let bytes = frame_bytes(&record);
        Box::pin(async move { self.inner.append(queue, std::iter::once(record), bytes).await.map(appended) })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(async move {
            let count = records.len() as u64;
            if count == 0 {
                return Ok(Vec::new());
            }
            let bytes = records.iter().map(frame_bytes).sum();
            let first = self.inner.append(queue, records.into_iter(), bytes).await?;
            Ok((first..first + count).map(appended).collect())
        })
    }

    fn ready(&self) -> Result<(), AppendError> {
        let inner = &self.inner;
        inner.usable()?;
        let step = inner.config.shape().first_step;
        let space = inner
            .disk
            .space(&inner.config.dir)
            .map_err(|error| AppendError::Unavailable { reason: error.to_string() })?;
        if !inner.budget.any_room(step) || space.free_bytes < inner.config.min_free_bytes.saturating_add(step) {
            return Err(AppendError::Full { retry_after: FULL_RETRY });
        }
        Ok(())
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        let consumption = Consumption {
            inner: self.inner.clone(),
            waiting: queues,
            made: self.inner.made.subscribe(),
            closed: self.inner.closed.subscribe(),
        };
        Box::pin(stream::unfold(consumption, |mut consumption| async move {
            consumption.next().await.map(|assignment| (assignment, consumption))
        }))
    }

    fn checkpointing(&self) -> Checkpointing {
        Checkpointing { interval: CHECKPOINT_INTERVAL, max_state_bytes: checkpoint::MAX_STATE_BYTES }
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        Box::pin(self.inner.commit(partition, epoch, checkpoint))
    }

    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        let Some(writer) = self.inner.queue(&partition.queue).filter(|_| partition.index == 0) else {
            return Ok(());
        };
        reader::tail(&writer.home, &writer.shelf, max_records, max_bytes, visit)
            .map_err(|error| ReadError::Unavailable { reason: error.to_string() })
    }

    fn depth(&self) -> Vec<Depth> {
        let queues = self.inner.queues.read().unwrap_or_else(PoisonError::into_inner);
        let depth = |(queue, writer): (&QueueName, &Arc<Writer>)| {
            let progress = writer.shelf.progress();
            Depth {
                partition: Partition { queue: queue.clone(), index: 0 },
                end: progress.next_seq,
                finished: progress.watermark,
                bytes: progress.disk_bytes,
                owner: Owner::Us,
                held_by: None,
            }
        };
        queues.iter().map(depth).collect()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        let inner = &self.inner;
        let mut tables = inner.tables();
        if *inner.closed.borrow() {
            return Err(TableError::Closed);
        }
        if let Some(table) = tables.get(name) {
            return Ok(table.clone());
        }
        let chain = Chain::new(inner.home(&inner.config.dir.join(TABLES).join(name), None));
        let writer = Writer::start(chain, Purpose::Reserve, inner.failure.clone())
            .map_err(|error| TableError::Unavailable { reason: error.to_string() })?;
        let table = Arc::new(JournalTable::new(writer, inner.config.max_request_bytes()));
        tables.insert(name.to_owned(), table.clone());
        Ok(table)
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let mut failure = self.inner.failure.subscribe();
        Box::pin(async move {
            let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // The log is gone without having failed, and now it never will.
                None => std::future::pending().await,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            // A writer's last sync may take a while, and nothing can be done about a panic here.
            let _ = tokio::task::spawn_blocking(move || inner.close()).await;
        })
    }
}
