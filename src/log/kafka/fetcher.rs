//! Reads one partition: whole batches of records as brokers send them, one answer at a time, and the next one when that
//! was handed out. To ask ahead was tried, and gained nothing: while one partition waits for its answer others are worked on.
//!
//! Offsets have holes: those of control records, of aborted transactions, and of what a compaction took. A batch says where
//! the next one begins, also where all of its records are gone; where no batch comes there is none yet. So it is told how
//! far there is nothing, too: what is finished reaches to the end of a partition, whatever lies there.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        BrokerId, FetchRequest, FetchResponse,
        fetch_request::{FetchPartition, FetchTopic},
        fetch_response::PartitionData,
    },
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    admin::{Admin, AdminError, Which, milliseconds, partition_refused, topic_name},
    batch,
    config::Config,
    depths::{Depths, Place},
    group::Doubt,
    security::Security,
    wire::{Connection, WireError},
};
use crate::log::{Entry, ReadError, Reader};

/// One answer has at most this many bytes, or one batch of records.
const FETCH_BYTES: i32 = 256 << 10;
/// How long a broker waits for a record where somebody waits for one.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A partition whose answers bring little is asked this seldom at least: who has read all would else ask again for each
/// few records that are produced, and the broker would spend as much on answering as on storing.
const PACE: Duration = Duration::from_millis(10);
/// An answer of fewer bytes says that there was no more.
const LITTLE: usize = 64 << 10;
/// So often in a row a partition has to end before what was read of it.
const CERTAIN: u32 = 2;
/// How long the last look may take after the log was closed.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// What is in a transaction that has not ended is not there yet, nor is what lies behind it; and of those that have ended
/// the broker says which were aborted.
const READ_COMMITTED: i8 = 1;

/// What the readers of a log share.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) config: Arc<Config>,
    pub(super) security: Security,
    pub(super) depths: Arc<Depths>,
    /// Records that were deleted before they were read.
    pub(super) lost: Arc<AtomicU64>,
    /// Batches that could not be read as they are.
    pub(super) unreadable: Arc<AtomicU64>,
    pub(super) closing: CancellationToken,
}

/// What an answer brought.
type Fetched = Result<Vec<Entry>, AdminError>;

/// A [`Reader`] of one partition.
pub(super) struct Fetcher {
    source: Source,
    place: Place,
    /// How long a broker waits for a record before it answers that there is none.
    wait: Duration,
    cursor: Cursor,
    /// A fetch under way, with the cursor; kept here, so that a dropped future loses nothing.
    fetching: Option<BoxFuture<'static, (Cursor, Fetched)>>,
    /// Fetched, and over the caller's bound.
    held: VecDeque<Entry>,
    /// Up to where the caller knows what there is.
    told: u64,
    /// Hears of what the assignment may be wrong about.
    doubts: Option<Box<dyn Fn(Doubt) + Send>>,
}

/// Where reading goes on, and over which connection.
#[derive(Default)]
struct Cursor {
    /// To the broker that leads it.
    leader: Option<Connection>,
    /// None before the first fetch of a partition that is read from its beginning.
    next: Option<u64>,
    /// Not before this is it asked again.
    rest_until: Option<Instant>,
    /// How often in a row the partition ended before `next`.
    beyond_end: u32,
    /// Where a batch begins that could not be read: it may be another one when it comes again.
    doubted: Option<u64>,
}

impl Fetcher {
    /// Reads from an offset on, or from the oldest record that there is.
    pub(super) fn new(source: Source, place: Place, from: Option<u64>) -> Self {
        let cursor = Cursor { next: from, ..Cursor::default() };
        let (told, held) = (from.unwrap_or(0), VecDeque::new());
        Self { source, place, wait: LONGEST_WAIT, cursor, fetching: None, held, told, doubts: None }
    }

    /// For [`Fetcher::next_below`], which waits for nothing.
    pub(super) fn without_waiting(self) -> Self {
        Self { wait: Duration::ZERO, ..self }
    }

    /// Tells what it finds out about the assignment.
    pub(super) fn with_doubts(self, doubts: impl Fn(Doubt) + Send + 'static) -> Self {
        Self { doubts: Some(Box::new(doubts)), ..self }
    }

    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        while self.held.is_empty() {
            let closing = self.source.closing.clone();
            let fetched = match closing.run_until_cancelled(self.fetch()).await {
                Some(fetched) => fetched,
                None => self.look_once_more().await?,
            };
            self.held = fetched.map_err(unavailable)?.into();
            let before = self.told;
            self.told = self.cursor.next.unwrap_or(before);
            if self.held.is_empty() && self.told > before {
                return Ok(Vec::new());
            }
        }
        Ok(self.hand_out(max_bytes))
    }

    /// The next entries below `end` that can be read now; none when there are no more.
    pub(super) async fn next_below(&mut self, end: u64) -> Result<Option<Vec<Entry>>, ReadError> {
        loop {
            let next = self.cursor.next;
            if next.is_some_and(|next| next >= end) {
                return Ok(None);
            }
            let mut entries = self.fetch().await.map_err(unavailable)?;
            if self.cursor.next == next && self.cursor.doubted.is_none() {
                return Ok(None);
            }
            entries.retain(|entry| entry.offset < end);
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
    }

    /// What the next answer brings.
    async fn fetch(&mut self) -> Fetched {
        if let Some(until) = self.cursor.rest_until {
            sleep_until(until).await;
            self.cursor.rest_until = None;
        }
        let fetching = self.fetching.get_or_insert_with(|| {
            let cursor = std::mem::take(&mut self.cursor);
            Box::pin(step(self.source.clone(), self.place.clone(), cursor, self.wait))
        });
        let (cursor, fetched) = fetching.await;
        self.fetching = None;
        self.cursor = cursor;
        if let (Some(doubts), Err(AdminError::Refused { error, .. })) = (&self.doubts, &fetched) {
            match error {
                ResponseError::UnknownTopicOrPartition => doubts(Doubt::Missing),
                ResponseError::OffsetOutOfRange if self.cursor.beyond_end >= CERTAIN => doubts(Doubt::Cut),
                _ => {}
            }
        }
        fetched
    }

    /// When the log closes: what is there already can still be read.
    async fn look_once_more(&mut self) -> Result<Fetched, ReadError> {
        if let Some(fetching) = self.fetching.take() {
            // It waits for records to come, unless it was answered by now; and it has the cursor.
            match fetching.now_or_never() {
                Some((cursor, fetched)) => {
                    self.cursor = cursor;
                    if fetched.as_ref().is_ok_and(|entries| !entries.is_empty()) {
                        return Ok(fetched);
                    }
                }
                None => return Err(ReadError::Closed),
            }
        }
        let cursor = std::mem::take(&mut self.cursor);
        let last = step(self.source.clone(), self.place.clone(), cursor, Duration::ZERO);
        match timeout(LAST_LOOK, last).await {
            Ok((cursor, Ok(entries))) if !entries.is_empty() => {
                self.cursor = cursor;
                Ok(Ok(entries))
            }
            _ => Err(ReadError::Closed),
        }
    }

    fn hand_out(&mut self, max_bytes: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.record.size();
            bytes <= max_bytes
        };
        let count = self.held.iter().take_while(fits).count().max(1);
        let rest = self.held.split_off(count);
        std::mem::replace(&mut self.held, rest).into()
    }
}

impl Reader for Fetcher {
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(self.read(max_bytes))
    }

    fn position(&self) -> Option<u64> {
        self.cursor.next.filter(|_| self.held.is_empty())
    }
}

fn unavailable(error: AdminError) -> ReadError {
    ReadError::Unavailable { reason: error.to_string() }
}

/// Takes one answer, with the cursor moved on by what came of it.
async fn step(source: Source, place: Place, mut cursor: Cursor, wait: Duration) -> (Cursor, Fetched) {
    let fetched = fetch(&source, &place, &mut cursor, wait).await;
    (cursor, fetched)
}

/// After an error there is no connection: who leads the partition is found out anew.
async fn fetch(source: &Source, place: &Place, cursor: &mut Cursor, wait: Duration) -> Fetched {
    let from = match cursor.next {
        Some(from) => from,
        None => *cursor.next.insert(earliest(source, place).await?),
    };
    let asked_at = Instant::now();
    let (leader, answered) = ask(source, place, cursor.leader.take(), &question(place, from, wait), wait).await?;
    let told = answered.responses.into_iter().flat_map(|topic| topic.partitions).next();
    let code = told.as_ref().map_or(answered.error_code, |told| told.error_code);
    let told = match (ResponseError::try_from_code(code), told) {
        (None, Some(told)) => told,
        (Some(error @ ResponseError::OffsetOutOfRange), _) => {
            let beyond_end = &mut cursor.beyond_end;
            cursor.next = Some(oldest(source, place, from, error, beyond_end).await?);
            return Ok(Vec::new());
        }
        (error, _) => return Err(refused(place, error.unwrap_or(ResponseError::UnknownServerError))),
    };
    cursor.beyond_end = 0;
    if !wait.is_zero() && told.records.as_ref().is_some_and(|records| records.len() < LITTLE) {
        cursor.rest_until = Some(asked_at + PACE);
    }
    let entries = take_apart(source, place, from, cursor, told)?;
    // What is in doubt comes over another connection.
    cursor.leader = Some(leader).filter(|_| cursor.doubted.is_none());
    Ok(entries)
}

/// What the leader answers, with the connection to it: the one that there is, or a new one.
async fn ask(
    source: &Source,
    place: &Place,
    leader: Option<Connection>,
    question: &FetchRequest,
    wait: Duration,
) -> Result<(Connection, FetchResponse), AdminError> {
    let within = wait + source.config.request_timeout;
    if let Some(mut leader) = leader {
        match leader.call(question, within).await {
            Ok(answer) => return Ok((leader, answer)),
            // Brokers close connections that were quiet for long, and when a login is over.
            Err(WireError::Closed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut leader = admin(source).connect_to_leader(&place.0, place.1).await?;
    let answer = leader.call(question, within).await?;
    Ok((leader, answer))
}

fn admin(source: &Source) -> Admin {
    Admin::new(source.config.clone(), source.security.clone())
}

fn refused((topic, partition): &Place, error: ResponseError) -> AdminError {
    partition_refused(topic, *partition, error)
}

/// What a leader is asked: for what there is from an offset on, or for what comes there within `wait`.
fn question((topic, partition): &Place, from: u64, wait: Duration) -> FetchRequest {
    let index = i32::try_from(*partition).expect("Kafka counts partitions in 31 bits");
    let asked = FetchPartition::default()
        .with_partition(index)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(i64::try_from(from).expect("Kafka counts records in 63 bits"))
        .with_partition_max_bytes(FETCH_BYTES);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(milliseconds(wait))
        .with_min_bytes(1)
        .with_max_bytes(FETCH_BYTES)
        .with_isolation_level(READ_COMMITTED)
        .with_session_epoch(-1)
        .with_topics(vec![FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![asked])])
}

/// The records of an answer, as far as they can be read or have come twice; the cursor moves behind them.
fn take_apart(source: &Source, place: &Place, from: u64, cursor: &mut Cursor, told: PartitionData) -> Fetched {
    let (topic, partition) = place;
    let answer = told.records.unwrap_or_default();
    let is_empty = answer.is_empty();
    let mut batches = batch::read(answer, from, told.aborted_transactions.unwrap_or_default());
    let doubted = batches.unreadable.take_if(|batch| cursor.doubted != Some(batch.first));
    cursor.doubted = doubted.map(|batch| batch.first);
    if let Some(first) = cursor.doubted {
        batches.entries.retain(|entry| entry.offset < first);
        batches.next = Some(first.max(from));
    }
    if let Some(batch::Unreadable { first, last, bytes, why }) = &batches.unreadable {
        source.unreadable.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            kafka.topic = &**topic,
            kafka.partition = partition,
            "Records {first} to {last} of {topic}/{partition} cannot be read, as {why}: they become one dead letter, with \
             {} of the {bytes} bytes",
            bytes.min(&batch::MAX_KEPT_BYTES)
        );
    }
    let Some(after) = batches.next.or(is_empty.then_some(from)) else {
        // Asked again, it would say the same.
        return Err(refused(place, ResponseError::CorruptMessage));
    };
    source.depths.note_end(topic, *partition, u64::try_from(told.high_watermark).unwrap_or(0).max(after));
    cursor.next = Some(after);
    Ok(batches.entries)
}

/// The offset of the oldest record of a partition.
async fn earliest(source: &Source, place: &Place) -> Result<u64, AdminError> {
    let mut admin = admin(source);
    let cluster = admin.cluster(std::slice::from_ref(&place.0)).await?;
    let told = admin.offsets(&cluster, Which::Start, std::slice::from_ref(place)).await?;
    told.get(place).map(|told| told.offset).ok_or_else(|| refused(place, ResponseError::LeaderNotAvailable))
}

/// Where reading goes on when the partition has no record at `from` any more. What is gone is counted.
async fn oldest(
    source: &Source,
    place: &Place,
    from: u64,
    error: ResponseError,
    beyond_end: &mut u32,
) -> Result<u64, AdminError> {
    let (topic, partition) = place;
    let oldest = earliest(source, place).await?;
    if oldest <= from {
        // Beyond the end. A leader that was elected lately may not have heard of its own last records yet. Else the
        // cluster has lost some, and others got their offsets: whoever takes them for finished would lose these too.
        *beyond_end += 1;
        if *beyond_end == CERTAIN {
            tracing::error!(
                kafka.topic = &**topic,
                kafka.partition = partition,
                "Partition {topic}/{partition} ends before offset {from}, up to which it was read: it has lost records, \
                 or the topic was made anew"
            );
        }
        return Err(refused(place, error));
    }
    source.lost.fetch_add(oldest - from, Ordering::Relaxed);
    tracing::error!(
        kafka.topic = &**topic,
        kafka.partition = partition,
        "Records {from} to {} of partition {topic}/{partition} were deleted before they were read: the topic's \
         retention is too short",
        oldest - 1
    );
    Ok(oldest)
}

#[cfg(test)]
mod tests;
