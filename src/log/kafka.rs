//! A log in Kafka: appends acknowledged by all in-sync replicas, partitions shared out by a consumer group, checkpoints
//! in the group's committed offsets.
//!
//! ```text
//! queue                       topic
//! default, normal      ──▶    redis-retry-queue
//! default, high        ──▶    redis-retry-queue.high
//! sessions, normal     ──▶    redis-retry-queue.sessions
//! sessions, low        ──▶    redis-retry-queue.sessions.low
//!
//! append ─▶ producer ─▶ outbox of the partition ─▶ leader          (rskafka)
//! consume ◀─ group (membership, leases, commits)                    (wire)
//! reader ◀─ fetcher ◀─ leader                                       (wire)
//! checkpoint: watermark = committed offset, state = its metadata, in base64
//! ```
//!
//! A table is a compacted topic of one partition, `redis-retry-queue.dlq` for one.
//!
//! What belongs here: names, and how the parts are joined. Nothing needs Kafka to be there when the log is opened.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{
    admin::{Admin, AdminError, Finding, Inspection, NewTopic, TopicKind, Which},
    config::Config,
    connector::Connector,
    consumers::Consumers,
    depths::Depths,
    fetcher::{Fetcher, Source},
    inspection::Inspected,
    producer::Producer,
    progress::Progress,
    record::Outgoing,
    security::{Security, SecurityError},
    table::KafkaTable,
    turns::Heard,
};
use super::{
    AppendError, Appended, Assignment, Checkpoint, Checkpointing, CommitError, Depth, Durability, Entry, Epoch, Log,
    NewRecord, Owner, Partition, QueueName, ReadError, Table, TableError,
};

pub mod admin;
mod batch;
mod beginning;
mod committed;
pub mod config;
mod connector;
mod consumers;
mod depths;
mod failure;
mod fetcher;
mod group;
mod inspection;
mod login;
pub mod nodelay;
mod outbox;
mod partitioner;
pub mod permission;
mod producer;
mod progress;
mod record;
pub mod security;
mod table;
#[cfg(test)]
#[allow(dead_code, reason = "shared with tests that use other parts of it")]
mod testing;
#[cfg(test)]
mod tests;
mod topics;
mod turns;
mod watcher;
pub mod wire;

/// Kafka's own limit for what is committed beside an offset, in characters.
pub const MAX_METADATA_CHARS: usize = 4096;

/// Each checkpoint is a record in a topic of the brokers.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Between attempts to make topics.
const PAUSE: Duration = Duration::from_secs(1);

const LANES: [&str; 3] = ["high", DEFAULT_LANE, "low"];
/// What is not in the name of a topic.
const DEFAULT_LANE: &str = "normal";
const DEFAULT_TARGET: &str = "default";

/// Names of targets that would make the topic of one queue that of another.
const RESERVED_TARGETS: [&str; 5] = ["high", DEFAULT_LANE, "low", "dlq", "settings"];

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("a target cannot be called {0} where tasks are kept in Kafka: its topics would be those of others")]
    ReservedTarget(Arc<str>),
}

/// A log in Kafka. See the [module](self).
pub struct KafkaLog {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    security: Security,
    /// What each target is at this process: members of a group that do not agree on it do not share its tasks.
    identities: HashMap<Arc<str>, Arc<str>>,
    producer: Producer,
    /// Reads tables.
    tables: Connector,
    source: Source,
    making: tokio::sync::Mutex<()>,
    consumers: Arc<Consumers>,
    inspected: Inspected,
    progress: Progress,
    /// Where membership lives: not with the consumer, which may get stuck.
    runtime: Handle,
    failure: watch::Sender<Option<String>>,
}

impl KafkaLog {
    /// Reads the files that the configuration names. Needs a runtime, and no Kafka. `identities` says what each target
    /// is: its server's address, or a name given to it.
    pub fn open(config: Config, identities: HashMap<Arc<str>, Arc<str>>) -> Result<Self, OpenError> {
        if let Some(target) = identities.keys().find(|target| RESERVED_TARGETS.contains(&&***target)) {
            return Err(OpenError::ReservedTarget(target.clone()));
        }
        let config = Arc::new(config);
        let security = Security::load(config.tls.as_ref(), config.sasl.as_ref())?;
        let depths = Arc::<Depths>::default();
        let source = Source {
            config: config.clone(),
            security: security.clone(),
            depths: depths.clone(),
            lost: Arc::default(),
            unreadable: Arc::default(),
            closing: CancellationToken::new(),
        };
        let tables = Connector::new(config.clone(), security.clone());
        let producer = Producer::start(config.clone(), Connector::new(config.clone(), security.clone()), depths);
        let inner = Arc::new(Inner {
            config,
            security,
            identities,
            producer,
            tables,
            source,
            making: tokio::sync::Mutex::default(),
            consumers: Arc::default(),
            inspected: Inspected::default(),
            progress: Progress::default(),
            runtime: Handle::current(),
            failure: watch::Sender::new(None),
        });
        tokio::spawn(watcher::watch(Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// What about the topics breaks a promise, or will, as far as they were looked at.
    pub fn findings(&self) -> Vec<Finding> {
        self.inner.inspected.all()
    }

    /// How many batches of records could not be read as others made them.
    pub fn unreadable_batches(&self) -> u64 {
        self.inner.source.unreadable.load(Ordering::Relaxed)
    }

    /// How many records were deleted by Kafka before they were read.
    pub fn lost_records(&self) -> u64 {
        self.inner.source.lost.load(Ordering::Relaxed)
    }
}

/// Looks at the topics of these targets and at what may be done with them, without taking part in anything. `executes`:
/// whether tasks are made here, or only taken.
pub async fn inspect(
    config: Config,
    targets: impl IntoIterator<Item = Arc<str>>,
    executes: bool,
) -> Result<Vec<Finding>, SecurityError> {
    let security = Security::load(config.tls.as_ref(), config.sasl.as_ref())?;
    let queues = targets.into_iter().flat_map(|target| LANES.map(|lane| QueueName { target: target.clone(), lane }));
    let tasks = queues.map(|queue| (topic_of(&config.topic, &queue).into(), TopicKind::Tasks));
    let letters = (table::topic_of(&config.topic, table::LETTERS).into(), TopicKind::Table);
    let topics: Vec<(Arc<str>, TopicKind)> = tasks.chain([letters]).collect();
    let found = Admin::new(Arc::new(config), security).check(&topics, executes).await;
    Ok(found.unwrap_or_else(|error| vec![admin::unasked(&error)]))
}

/// The topic of a queue.
fn topic_of(base: &str, queue: &QueueName) -> String {
    let mut topic = base.to_owned();
    for part in [&*queue.target, queue.lane].into_iter().filter(|part| ![DEFAULT_TARGET, DEFAULT_LANE].contains(part)) {
        topic.push('.');
        topic.push_str(part);
    }
    topic
}

/// The queue of a topic, if it is one's.
fn queue_of(base: &str, topic: &str) -> Option<QueueName> {
    let lane_of = |part: &str| LANES.into_iter().find(|lane| *lane == part);
    let parts: Vec<&str> = topic.strip_prefix(base)?.split('.').collect();
    let (target, lane) = match parts[..] {
        [""] => (DEFAULT_TARGET, DEFAULT_LANE),
        ["", part] if lane_of(part).is_some() => (DEFAULT_TARGET, part),
        ["", part] if !RESERVED_TARGETS.contains(&part) => (part, DEFAULT_LANE),
        ["", target, lane] => (target, lane),
        _ => return None,
    };
    Some(QueueName { target: target.into(), lane: lane_of(lane)? })
}

impl Inner {
    fn topic_of(&self, queue: &QueueName) -> String {
        topic_of(&self.config.topic, queue)
    }

    async fn append(&self, queue: &QueueName, records: Vec<NewRecord>) -> Result<Vec<Appended>, AppendError> {
        let deadline = Instant::now() + self.config.produce_timeout;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let records: Vec<Outgoing> = records.into_iter().map(Outgoing::from).collect();
        let room = self.producer.reserve(&records, self.config.max_record_bytes)?;
        let topic = self.topic_of(queue);
        if self.producer.partitions(&topic).is_none() && self.config.create_topics {
            self.make_if_missing(&topic, self.make_topics(std::slice::from_ref(queue)), deadline).await?;
        }
        let mut verdict = self.inspected.verdict(&topic);
        if verdict.is_none() {
            self.look_at_topic(&topic, deadline).await?;
            verdict = self.inspected.verdict(&topic);
        }
        if let Some(Err(reason)) = verdict {
            return Err(AppendError::Unavailable { reason });
        }
        let positions = self.producer.append(&topic, records, room, deadline).await?;
        let appended = |position| Appended { position, durability: Durability::Kafka };
        Ok(positions.into_iter().map(appended).collect())
    }

    /// Has a topic made if it is missing, and waits until it is known.
    async fn make_if_missing(
        &self,
        topic: &str,
        make: impl Future<Output = Result<(), AdminError>>,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let make = async {
            let _making = self.making.lock().await;
            if self.producer.count(topic).await.is_none() {
                make.await?;
                while self.producer.count(topic).await.is_none() {
                    // It is on its way from one broker to the others.
                }
            }
            Ok::<(), AdminError>(())
        };
        let unavailable = |reason: String| AppendError::Unavailable { reason };
        match timeout_at(deadline, self.source.closing.run_until_cancelled(make)).await {
            Ok(Some(made)) => made.map_err(|error| unavailable(error.to_string())),
            Ok(None) => Err(AppendError::Closed),
            Err(_) => Err(unavailable(self.producer.reason())),
        }
    }

    /// Makes the topics of these queues that do not exist. All lanes of a target have as many partitions.
    async fn make_topics(&self, queues: &[QueueName]) -> Result<(), AdminError> {
        let mut admin = Admin::new(self.config.clone(), self.security.clone());
        for queue in queues {
            let lanes = LANES.map(|lane| QueueName { lane, ..queue.clone() });
            let siblings: Vec<Arc<str>> = lanes.iter().map(|lane| self.topic_of(lane).into()).collect();
            let cluster = admin.cluster(&siblings).await?;
            let counts = cluster.topics.values().filter_map(|partitions| i32::try_from(partitions.len()).ok());
            let partitions = counts.max().unwrap_or(self.config.partitions);
            let topic = NewTopic { name: self.topic_of(queue).into(), kind: TopicKind::Tasks, partitions };
            admin.create_topics(&[topic]).await?;
        }
        Ok(())
    }

    async fn commit(&self, partition: &Partition, epoch: Epoch, checkpoint: Checkpoint) -> Result<(), CommitError> {
        if self.source.closing.is_cancelled() {
            return Err(CommitError::Closed);
        }
        let Some(holding) = self.consumers.holding(partition, epoch) else {
            return Err(CommitError::EpochOver);
        };
        let unavailable = |reason: String| CommitError::Unavailable { reason };
        let metadata = BASE64_STANDARD.encode(&checkpoint.state);
        if metadata.len() > group::MAX_WORDS {
            return Err(unavailable(format!(
                "it takes {} characters, and Kafka keeps {}",
                metadata.len(),
                group::MAX_WORDS
            )));
        }
        let offset = i64::try_from(checkpoint.watermark).map_err(|error| unavailable(error.to_string()))?;
        let index = i32::try_from(partition.index).expect("Kafka counts partitions in 31 bits");
        holding.group.commit(&holding.topic, index, holding.epoch_in_group, offset, metadata).await?;
        self.source.depths.note_finished(&holding.topic, partition.index, checkpoint.watermark);
        Ok(())
    }

    /// Makes the topics that are missing; waits until there is a Kafka to make them in.
    async fn make_missing_topics(&self, queues: &[QueueName]) {
        while let Err(error) = self.make_topics(queues).await {
            if error.is_permanent() {
                tracing::warn!("Topics cannot be made, and those that exist are used: {error}");
                break;
            }
            tracing::debug!("Topics cannot be made now: {error}");
            sleep(PAUSE).await;
        }
    }

    /// Looks at a topic before it is given its first task.
    async fn look_at_topic(&self, topic: &str, deadline: Instant) -> Result<(), AppendError> {
        let look = async {
            let _looking = self.inspected.looking.lock().await;
            if self.inspected.verdict(topic).is_some() {
                return Ok(());
            }
            let mut admin = Admin::new(self.config.clone(), self.security.clone());
            self.inspect(&mut admin, &[(topic.into(), TopicKind::Tasks)]).await
        };
        match timeout_at(deadline, self.source.closing.run_until_cancelled(look)).await {
            Ok(Some(Ok(()))) => Ok(()),
            // Where nobody may look, what is stored is as safe as whoever set it up has made it.
            Ok(Some(Err(error))) if error.is_permanent() => {
                self.inspected.note(Inspection { topics: vec![topic.into()], findings: Vec::new() });
                Ok(())
            }
            Ok(Some(Err(error))) => Err(AppendError::Unavailable { reason: error.to_string() }),
            Ok(None) => Err(AppendError::Closed),
            Err(_) => Err(AppendError::Unavailable { reason: self.producer.reason() }),
        }
    }

    /// Says what about the topics breaks a promise, or will.
    async fn report_findings(&self) {
        let mut admin = Admin::new(self.config.clone(), self.security.clone());
        if let Err(error) = self.inspect(&mut admin, &self.known_topics()).await {
            tracing::warn!("The configuration of the topics cannot be checked: {error}");
        }
    }

    /// The last records of a partition.
    async fn read_tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        let unavailable = |error: AdminError| ReadError::Unavailable { reason: error.to_string() };
        let place = (Arc::<str>::from(self.topic_of(&partition.queue)), partition.index);
        let mut admin = Admin::new(self.config.clone(), self.security.clone());
        let cluster = admin.cluster(std::slice::from_ref(&place.0)).await.map_err(unavailable)?;
        let index = i32::try_from(partition.index).expect("Kafka counts partitions in 31 bits");
        if !cluster.topics.get(&*place.0).is_some_and(|partitions| partitions.contains_key(&index)) {
            return Ok(());
        }
        let mut offset = async |which| {
            let told = admin.offsets(&cluster, which, std::slice::from_ref(&place)).await.map_err(unavailable)?;
            let leaderless = || ReadError::Unavailable { reason: format!("nobody leads {}/{}", place.0, place.1) };
            told.get(&place).map(|told| told.offset).ok_or_else(leaderless)
        };
        let (oldest, end) = (offset(Which::Start).await?, offset(Which::End).await?);
        let start = end.saturating_sub(max_records as u64).max(oldest);
        // What is read here is read again, and counted then.
        let source = Source { lost: Arc::default(), unreadable: Arc::default(), ..self.source.clone() };
        let mut reader = Fetcher::new(source, place, Some(start)).without_waiting();
        let mut last = VecDeque::new();
        let mut bytes = 0;
        while let Some(entries) = reader.next_below(end).await? {
            for entry in entries {
                bytes += entry.record.size();
                last.push_back(entry);
                while bytes > max_bytes {
                    bytes -= last.pop_front().map_or(bytes, |entry: Entry| entry.record.size());
                }
            }
        }
        last.into_iter().for_each(&mut *visit);
        Ok(())
    }
}

impl Log for KafkaLog {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move {
            let appended = self.inner.append(queue, vec![record]).await?;
            Ok(*appended.first().expect("each record has a place"))
        })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(self.inner.append(queue, records))
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.inner.producer.ready()
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        let listening = (self.inner.clone(), Some(queues), None);
        Box::pin(stream::unfold(listening, |(inner, queues, heard)| async move {
            let closing = inner.source.closing.clone();
            let next = async {
                let mut heard: Heard = match queues {
                    Some(queues) => inner.listen(queues).await,
                    None => heard?,
                };
                let assignment = heard.next().await?;
                Some((assignment, (inner, None, Some(heard))))
            };
            closing.run_until_cancelled(next).await?
        }))
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        Box::pin(self.inner.commit(partition, epoch, checkpoint))
    }

    fn committed<'a>(&'a self, partition: &'a Partition) -> BoxFuture<'a, Option<Checkpoint>> {
        Box::pin(self.inner.committed(partition))
    }

    fn checkpointing(&self) -> Checkpointing {
        Checkpointing { interval: CHECKPOINT_INTERVAL, max_state_bytes: group::MAX_WORDS / 4 * 3 }
    }

    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        let (send, entries) = std::sync::mpsc::sync_channel(64);
        std::thread::scope(|scope| {
            // This thread may be one of a runtime, which cannot be waited on from within.
            let reading = scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| ReadError::Unavailable { reason: error.to_string() })?;
                let mut visit = |entry| {
                    let _ = send.send(entry);
                };
                runtime.block_on(self.inner.read_tail(partition, max_records, max_bytes, &mut visit))
            });
            entries.into_iter().for_each(visit);
            reading.join().unwrap_or_else(|_| Err(ReadError::Unavailable { reason: "its thread panicked".to_owned() }))
        })
    }

    /// As it passed this process, and as it was told lately of what passes others.
    fn depth(&self) -> Vec<Depth> {
        let depth = |((topic, index), extent): (depths::Place, depths::Extent)| {
            let partition = Partition { queue: queue_of(&self.inner.config.topic, &topic)?, index };
            let depths::Extent { end, finished, owner, held_by, .. } = extent;
            let owner = match owner {
                // What is held from the consumer is this process's all the same.
                _ if held_by.is_some() || self.inner.consumers.holds(&partition) => Owner::Us,
                Some(member) => Owner::Other(member),
                None => Owner::Nobody,
            };
            Some(Depth { partition, end, finished, bytes: 0, owner, held_by })
        };
        self.inner.source.depths.all().into_iter().filter_map(depth).collect()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        if self.inner.source.closing.is_cancelled() {
            return Err(TableError::Closed);
        }
        Ok(Arc::new(KafkaTable::new(self.inner.clone(), name)))
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let mut failure = self.inner.failure.subscribe();
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
            self.inner.source.closing.cancel();
            self.inner.producer.close().await;
            self.inner.consumers.leave().await;
        })
    }
}
