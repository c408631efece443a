//! Appends records to the partitions of topics, acknowledged by all in-sync replicas.
//!
//! Each partition has an outbox and a task, a *sender*. One request of a partition is in flight at a time, so that
//! its records keep their order; what comes meanwhile goes with the next one, so that batches grow with the load and
//! nobody waits for a clock. Every append is answered by its deadline, `produce_timeout` after its arrival, whatever happens:
//!
//! | what happens | answer |
//! |---|---|
//! | acknowledged | the offset |
//! | refused by a broker or not sent, until the deadline | `Unavailable`: nothing was stored |
//! | sent and not answered, or answered with a doubt, and not made good by a further attempt | `FateUnknown` |
//! | no room to wait in | `Full`, at once |
//!
//! A further attempt may store records a second time: the consumer recognises them. A client whose call was not
//! answered is thrown away with its connections.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    config::Config,
    connector::{Connector, Leader},
    depths::Depths,
    failure::{Cause, Failure},
    outbox::{Batch, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Outbox, Parcel, Room},
    partitioner::partition_of,
    record::Outgoing,
    topics::Topics,
};
use crate::log::{AppendError, Position};

/// What waits in all outboxes together is bounded by this, for the reason that the journal's inbox has.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// When they are full, they are so for about as long as a few requests take.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Between attempts that fail.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Between questions for the topics, while they are not answered or somebody waits.
const IMPATIENCE: Duration = Duration::from_millis(500);
const SHORTEST_REFRESH: Duration = Duration::from_millis(50);
/// A connection that is not used for so long is closed by us: brokers, and what stands between, close them silently.
const IDLE: Duration = Duration::from_secs(180);

/// By topic and partition.
type Outboxes = HashMap<Arc<str>, HashMap<u32, Arc<Outbox>>>;

/// A handle: dropping it ends the tasks behind it, closing it ends them in order.
pub(super) struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    connector: Connector,
    depths: Arc<Depths>,
    topics: Topics,
    outboxes: Mutex<Outboxes>,
    waiting_bytes: Arc<AtomicUsize>,
    trouble: Trouble,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Producer {
    /// Needs no Kafka; needs a runtime.
    pub(super) fn start(config: Arc<Config>, connector: Connector, depths: Arc<Depths>) -> Self {
        let shared = Arc::new(Shared {
            config,
            connector,
            depths,
            topics: Topics::default(),
            outboxes: Mutex::default(),
            waiting_bytes: Arc::default(),
            trouble: Trouble::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let refresh = refresh_topics(shared.clone());
        shared.tasks.spawn(shared.closing.clone().run_until_cancelled_owned(refresh));
        Self { shared }
    }

    /// Takes room for records, of at most `limit` bytes each, to wait in.
    pub(super) fn reserve(&self, records: &[Outgoing], limit: usize) -> Result<Room, AppendError> {
        if self.shared.closing.is_cancelled() {
            return Err(AppendError::Closed);
        }
        if let Some(bytes) = records.iter().map(Outgoing::wire_size).find(|size| *size > limit) {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        let bytes = records.iter().map(Outgoing::wire_size).sum();
        Room::take(&self.shared.waiting_bytes, bytes, MAX_WAITING_BYTES)
            .ok_or(AppendError::Full { retry_after: FULL_RETRY })
    }

    /// Appends records, for which there is room, to a topic until a deadline, each to the partition that its ordering
    /// key chooses; answers where they are, in their order. Those of one partition lie next to each other, as far as no
    /// other producer comes between.
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes nothing back.
    pub(super) async fn append(
        &self,
        topic: &str,
        records: Vec<Outgoing>,
        room: Room,
        deadline: Instant,
    ) -> Result<Vec<Position>, AppendError> {
        let count = match timeout_at(deadline, self.shared.topics.count(topic)).await {
            Ok(Some(count)) => count,
            Ok(None) => return Err(AppendError::Unavailable { reason: format!("topic {topic} does not exist") }),
            Err(_) => return Err(AppendError::Unavailable { reason: self.shared.trouble.reason() }),
        };
        self.append_to(topic, count, records, deadline, Arc::new(room)).await
    }

    async fn append_to(
        &self,
        topic: &str,
        count: u32,
        records: Vec<Outgoing>,
        deadline: Instant,
        room: Arc<Room>,
    ) -> Result<Vec<Position>, AppendError> {
        let mut places: BTreeMap<u32, (Vec<usize>, Vec<Outgoing>)> = BTreeMap::new();
        for (at, record) in records.into_iter().enumerate() {
            let place = places.entry(partition_of(&record.key, count)).or_default();
            place.0.push(at);
            place.1.push(record);
        }
        let now = Timestamp::now().as_millisecond();
        let mut waiting = Vec::new();
        for (partition, (numbers, records)) in places {
            let outbox = self.shared.outbox(topic, partition);
            let mut numbers = numbers.into_iter();
            for records in chunks(records) {
                let numbers: Vec<usize> = numbers.by_ref().take(records.len()).collect();
                let (parcel, ticket) = Parcel::new(records, now, deadline, room.clone());
                outbox.push(parcel);
                waiting.push((partition, numbers, ticket));
            }
        }
        let mut positions = Vec::new();
        let mut errors = Vec::new();
        for (partition, numbers, ticket) in waiting {
            match ticket.answered(|| self.shared.trouble.reason()).await {
                Ok(first) => {
                    let offsets = (first..).map(|offset| Position { partition, offset });
                    positions.extend(numbers.into_iter().zip(offsets));
                }
                Err(error) => errors.push(error),
            }
        }
        match errors.into_iter().reduce(|first, other| if other == AppendError::FateUnknown { other } else { first }) {
            None => {
                positions.sort_unstable_by_key(|(number, _)| *number);
                Ok(positions.into_iter().map(|(_, position)| position).collect())
            }
            // All or none were asked for, and it is neither.
            Some(_) if !positions.is_empty() => Err(AppendError::FateUnknown),
            Some(error) => Err(error),
        }
    }

    /// Whether one more record could be stored now, as far as is known; else why not.
    pub(super) fn ready(&self) -> Result<(), AppendError> {
        if self.shared.closing.is_cancelled() {
            return Err(AppendError::Closed);
        }
        if self.shared.waiting_bytes.load(Ordering::Relaxed) >= MAX_WAITING_BYTES {
            return Err(AppendError::Full { retry_after: FULL_RETRY });
        }
        self.shared.trouble.current().map_or(Ok(()), |reason| Err(AppendError::Unavailable { reason }))
    }

    /// How many partitions a topic has, as heard last.
    pub(super) fn partitions(&self, topic: &str) -> Option<u32> {
        self.shared.topics.known(topic)
    }

    /// The same; where it is not known, as heard anew. Waits as long as that takes.
    pub(super) async fn count(&self, topic: &str) -> Option<u32> {
        self.shared.topics.count(topic).await
    }

    /// Why nothing came of an append.
    pub(super) fn reason(&self) -> String {
        self.shared.trouble.reason()
    }

    /// Takes no more records, and waits until what was taken is answered: little longer than `produce_timeout`.
    pub(super) async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// Parts of a partition's records that fit into one request each.
fn chunks(records: Vec<Outgoing>) -> Vec<Vec<Outgoing>> {
    let mut chunks: Vec<Vec<Outgoing>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = record.wire_size();
        bytes += size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < MAX_BATCH_RECORDS && bytes <= MAX_BATCH_BYTES => chunk.push(record),
            _ => {
                bytes = size;
                chunks.push(vec![record]);
            }
        }
    }
    chunks
}

impl Shared {
    /// The outbox of a partition. The first time, with a sender behind it.
    fn outbox(self: &Arc<Self>, topic: &str, partition: u32) -> Arc<Outbox> {
        let mut outboxes = self.outboxes.lock().expect("nothing panics while it holds this lock");
        if let Some(outbox) = outboxes.get(topic).and_then(|outboxes| outboxes.get(&partition)) {
            return outbox.clone();
        }
        let (topic, outbox) = (Arc::<str>::from(topic), Arc::<Outbox>::default());
        outboxes.entry(topic.clone()).or_default().insert(partition, outbox.clone());
        let sender = Sender {
            shared: self.clone(),
            topic,
            partition,
            outbox: outbox.clone(),
            leader: None,
            pause: FIRST_PAUSE,
            max_bytes: MAX_BATCH_BYTES,
        };
        self.tasks.spawn(sender.run());
        outbox
    }
}

/// Sends what is in one partition's outbox.
struct Sender {
    shared: Arc<Shared>,
    topic: Arc<str>,
    partition: u32,
    outbox: Arc<Outbox>,
    leader: Option<Leader>,
    /// Before the next attempt, if this one fails.
    pause: Duration,
    /// Of one request: less where the topic takes less.
    max_bytes: usize,
}

impl Sender {
    async fn run(mut self) {
        loop {
            if !self.outbox.has_work() && !self.wait().await {
                return;
            }
            let Some(leader) = self.connect().await else { continue };
            let batch = self.outbox.take(self.max_bytes);
            if batch.parcels.is_empty() {
                self.leader = Some(leader);
                continue;
            }
            self.send(leader, batch).await;
        }
    }

    /// Waits for work, or until there is something else to do; false when there is none and none will come.
    async fn wait(&mut self) -> bool {
        let rest = if self.is_in_trouble() { LONGEST_PAUSE } else { IDLE };
        tokio::select! {
            biased;
            () = self.outbox.filled() => true,
            () = self.shared.closing.cancelled() => false,
            () = sleep(rest) => {
                if self.is_in_trouble() {
                    // Nobody sends to a partition that is not ready: it is for us to find out when it is again.
                    self.leader = self.connect().await;
                } else {
                    self.leader = None;
                }
                true
            }
        }
    }

    /// A connection to the partition's leader: the one that is there, or a new one. Where there is none for now, it has
    /// waited a little.
    async fn connect(&mut self) -> Option<Leader> {
        if let Some(leader) = self.leader.take() {
            return Some(leader);
        }
        match self.shared.connector.leader(&self.topic, self.partition).await {
            Ok(leader) => {
                self.shared.trouble.over(&self.source());
                Some(leader)
            }
            Err(failure) => {
                let cause = failure.cause();
                if cause == Cause::Unknown && !self.outbox.has_work() {
                    // The topic is gone, and nobody misses it.
                    self.shared.trouble.over(&self.source());
                    return None;
                }
                self.shared.trouble.begins(self.source(), &failure);
                if cause == Cause::Refused {
                    self.outbox.refuse_all(&unavailable(&failure));
                }
                self.rest().await;
                None
            }
        }
    }

    async fn send(&mut self, leader: Leader, batch: Batch) {
        let parcels = batch.parcels.iter();
        let records =
            parcels.flat_map(|parcel| parcel.records.iter().map(|record| record.to_kafka(parcel.appended_at_ms)));
        let failure = match leader.produce(records.collect(), batch.deadline()).await {
            Ok(first) => {
                let end = batch.stored(first);
                self.shared.depths.note_end(&self.topic, self.partition, end);
                self.shared.trouble.over(&self.source());
                self.pause = FIRST_PAUSE;
                self.leader = Some(leader);
                return;
            }
            Err(failure) => failure,
        };
        let cause = failure.cause();
        tracing::debug!(
            kafka.topic = &*self.topic,
            kafka.partition = self.partition,
            "An append to partition {} of {} failed ({cause:?}): {failure}",
            self.partition,
            self.topic
        );
        match cause {
            Cause::TooLarge => {
                self.leader = Some(leader);
                return self.send_less(batch);
            }
            Cause::Refused => {
                self.leader = Some(leader);
                batch.refuse(&unavailable(&failure));
            }
            Cause::Busy => {
                self.leader = Some(leader);
                self.outbox.put_back(batch, false);
            }
            Cause::Moved | Cause::Unknown => self.outbox.put_back(batch, false),
            Cause::Doubtful => self.outbox.put_back(batch, true),
            Cause::Broken => {
                self.shared.connector.discard(leader);
                self.outbox.put_back(batch, true);
            }
        }
        self.shared.trouble.begins(self.source(), &failure);
        self.rest().await;
    }

    /// After the topic refused a batch as too large: smaller ones, until it is known which record it is.
    fn send_less(&mut self, batch: Batch) {
        if batch.parcels.len() > 1 {
            self.max_bytes = batch.bytes / 2;
            return self.outbox.put_back(batch, false);
        }
        tracing::warn!(
            kafka.topic = &*self.topic,
            "Topic {} refused a batch of {} bytes: its max.message.bytes is too low",
            self.topic,
            batch.bytes
        );
        // Kafka does not say what its limit is.
        let error = AppendError::TooLarge { bytes: batch.bytes, limit: batch.bytes - 1 };
        batch.refuse(&error);
    }

    async fn rest(&mut self) {
        sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn is_in_trouble(&self) -> bool {
        self.shared.trouble.is_from(&self.source())
    }

    fn source(&self) -> Source {
        Source::Partition(self.topic.clone(), self.partition)
    }
}

fn unavailable(failure: &Failure) -> AppendError {
    AppendError::Unavailable { reason: failure.to_string() }
}

/// Keeps what is known of topics fresh.
async fn refresh_topics(shared: Arc<Shared>) {
    let mut wishes = shared.topics.wishes();
    loop {
        let wish = *wishes.borrow_and_update();
        let rest = match shared.connector.topics().await {
            Ok(topics) => {
                shared.trouble.over(&Source::Cluster);
                let ours = topics.into_iter().filter(|topic| topic.name.starts_with(&*shared.config.topic));
                let count = |count: usize| u32::try_from(count).expect("Kafka counts partitions in 31 bits");
                shared.topics.hear(ours.map(|topic| (topic.name, count(topic.partitions.len()))).collect(), wish);
                shared.config.metadata_refresh
            }
            Err(failure) => {
                shared.trouble.begins(Source::Cluster, &failure);
                IMPATIENCE
            }
        };
        let shortest = rest.min(SHORTEST_REFRESH);
        sleep(shortest).await;
        tokio::select! {
            () = sleep(rest - shortest) => {}
            _ = wishes.changed() => {}
        }
    }
}

/// Where trouble comes from, and who can say that it is over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// No broker answers.
    Cluster,
    Partition(Arc<str>, u32),
}

/// Why records cannot be appended at the moment.
#[derive(Default)]
struct Trouble(Mutex<Troubles>);

#[derive(Default)]
struct Troubles {
    reasons: BTreeMap<Source, String>,
    /// What only a person can end, as far as it was told since the first of them began.
    told: BTreeSet<String>,
}

impl Trouble {
    /// Told is the first reason and then, once each, those that only a person can end: a broker that was away may not
    /// let this process in any more when it is back.
    fn begins(&self, source: Source, failure: &Failure) {
        let reason = failure.to_string();
        let mut troubles = self.troubles();
        let is_told = failure.is_permanent() && troubles.told.insert(reason.clone());
        if is_told || troubles.reasons.is_empty() {
            tracing::warn!("Appends to Kafka are failing: {reason}");
        }
        troubles.reasons.insert(source, reason);
    }

    fn over(&self, source: &Source) {
        let mut troubles = self.troubles();
        if troubles.reasons.remove(source).is_some() && troubles.reasons.is_empty() {
            troubles.told.clear();
            tracing::info!("Appends to Kafka succeed again");
        }
    }

    fn is_from(&self, source: &Source) -> bool {
        self.troubles().reasons.contains_key(source)
    }

    fn current(&self) -> Option<String> {
        self.troubles().reasons.values().next().cloned()
    }

    fn reason(&self) -> String {
        self.current().unwrap_or_else(|| "Kafka did not answer in time".to_owned())
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests;
