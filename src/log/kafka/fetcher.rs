//! Reads one partition: fetches ahead of what was handed out by one answer at most, whole batches of records as brokers
//! send them.
//!
//! Offsets have holes: those of control records, and of what a compaction took. Where an answer has no record though
//! there is something to read, the next offset is tried, and not before it is certain that this one has none: a
//! transaction may have been open when the fetch was answered, and closed since.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use rskafka::record::RecordAndOffset;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    batch,
    connector::{Connector, Leader, offset},
    depths::{Depths, Place},
    failure::{Cause, Failure},
    group::Doubt,
    record::from_kafka,
};
use crate::log::{Entry, ReadError, Reader};

/// One answer has at most this many bytes, or one batch of records.
const FETCH_BYTES: usize = 256 << 10;
/// One answer has one batch of records.
const FEW_BYTES: usize = 1;
/// How long a broker waits for a record before it answers that there is none.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// So often in a row a partition has to end before what was read of it.
const CERTAIN: u32 = 2;
/// How long the last look may take after the log was closed.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What the readers of a log share.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) connector: Arc<Connector>,
    pub(super) depths: Arc<Depths>,
    /// Records that were deleted before they were read.
    pub(super) lost: Arc<AtomicU64>,
    /// Batches that could not be read as they are.
    pub(super) unreadable: Arc<AtomicU64>,
    pub(super) closing: CancellationToken,
    /// How long an answer may take that nobody has to wait for.
    pub(super) patience: Duration,
}

/// What an answer brought.
type Fetched = Result<Vec<Entry>, Failure>;

/// A [`Reader`] of one partition.
pub(super) struct Fetcher {
    source: Source,
    place: Place,
    cursor: Cursor,
    /// A fetch under way, with the cursor; kept here, so that a dropped future loses nothing.
    fetching: Option<BoxFuture<'static, (Cursor, Fetched)>>,
    /// Fetched, and over the caller's bound.
    held: VecDeque<Entry>,
    /// Hears of what the assignment may be wrong about.
    doubts: Option<Box<dyn Fn(Doubt) + Send>>,
}

/// Where reading goes on, and over which connection.
#[derive(Default)]
struct Cursor {
    leader: Option<Leader>,
    /// None before the first fetch of a partition that is read from its beginning.
    next: Option<u64>,
    /// How often in a row the partition ended before `next`.
    beyond_end: u32,
}

impl Fetcher {
    /// Reads from an offset on, or from the oldest record that there is.
    pub(super) fn new(source: Source, place: Place, from: Option<u64>) -> Self {
        let cursor = Cursor { next: from, ..Cursor::default() };
        Self { source, place, cursor, fetching: None, held: VecDeque::new(), doubts: None }
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
            self.held.extend(fetched.map_err(|failure| ReadError::Unavailable { reason: failure.to_string() })?);
        }
        Ok(self.hand_out(max_bytes))
    }

    /// The next entries below `end`; none when there are no more.
    pub(super) async fn next_below(&mut self, end: u64) -> Result<Option<Vec<Entry>>, ReadError> {
        while self.held.is_empty() {
            if self.cursor.next.is_some_and(|next| next >= end) {
                return Ok(None);
            }
            let entries = self.fetch().await;
            let entries = entries.map_err(|failure| ReadError::Unavailable { reason: failure.to_string() })?;
            self.held.extend(entries.into_iter().filter(|entry| entry.offset < end));
        }
        Ok(Some(self.held.drain(..).collect()))
    }

    /// What the next answer brings.
    async fn fetch(&mut self) -> Fetched {
        let fetching = self.fetching.get_or_insert_with(|| {
            let cursor = std::mem::take(&mut self.cursor);
            Box::pin(step(self.source.clone(), self.place.clone(), cursor, LONGEST_WAIT))
        });
        let (cursor, fetched) = fetching.await;
        self.fetching = None;
        self.cursor = cursor;
        if let (Some(doubts), Err(failure)) = (&self.doubts, &fetched) {
            match failure.cause() {
                Cause::Unknown => doubts(Doubt::Missing),
                Cause::OutOfRange if self.cursor.beyond_end >= CERTAIN => doubts(Doubt::Cut),
                _ => {}
            }
        }
        fetched
    }

    /// When the log closes: what is there already can still be read.
    async fn look_once_more(&mut self) -> Result<Fetched, ReadError> {
        if let Some(fetching) = self.fetching.take() {
            // It waits for records to come, unless it was answered by now; and it has the cursor.
            match futures_util::FutureExt::now_or_never(fetching) {
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
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.held.pop_front() {
            bytes += entry.record.size();
            if bytes > max_bytes && !entries.is_empty() {
                self.held.push_front(entry);
                break;
            }
            entries.push(entry);
        }
        entries
    }
}

impl Reader for Fetcher {
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(self.read(max_bytes))
    }
}

/// Fetches once, with the cursor moved on by what came of it.
async fn step(source: Source, place: Place, mut cursor: Cursor, wait: Duration) -> (Cursor, Fetched) {
    let leader = match cursor.leader.take() {
        Some(leader) => leader,
        None => match source.connector.leader(&place.0, place.1).await {
            Ok(leader) => leader,
            Err(failure) => return (cursor, Err(failure)),
        },
    };
    let fetched = fetch(&source, &place, &leader, &mut cursor, wait).await;
    match fetched.as_ref().map_err(Failure::cause) {
        Err(Cause::Broken) => source.connector.discard(leader),
        Err(Cause::Moved | Cause::Unknown) => {}
        _ => cursor.leader = Some(leader),
    }
    (cursor, fetched)
}

async fn fetch(source: &Source, place: &Place, leader: &Leader, cursor: &mut Cursor, wait: Duration) -> Fetched {
    let deadline = || Instant::now() + source.patience;
    let from = match cursor.next {
        Some(from) => from,
        None => *cursor.next.insert(leader.earliest(deadline()).await?),
    };
    let mut looked = look(leader, from, wait, source.patience).await;
    if looked.as_ref().is_err_and(Failure::is_unreadable) {
        // The next batch by itself may be a good one.
        looked = look_at(leader, from, FEW_BYTES, Duration::ZERO, source.patience).await;
    }
    let look = match looked {
        Err(failure) if failure.is_unreadable() => {
            return fetch_odd(source, place, from, &mut cursor.next, &failure).await;
        }
        Err(failure) if failure.cause() == Cause::OutOfRange => {
            let beyond_end = &mut cursor.beyond_end;
            cursor.next = Some(oldest(source, place, leader, from, failure, beyond_end).await?);
            return Ok(Vec::new());
        }
        look => look?,
    };
    source.depths.note_end(&place.0, place.1, look.end);
    cursor.beyond_end = 0;
    cursor.next = Some(look.next);
    Ok(look.records.into_iter().map(from_kafka).collect())
}

/// What there is from an offset on.
pub(super) struct Look {
    pub(super) records: Vec<RecordAndOffset>,
    /// Where to look next.
    pub(super) next: u64,
    /// The offset after the last record that is durable.
    end: u64,
}

/// Reads what the library does not.
async fn fetch_odd(source: &Source, place: &Place, from: u64, next: &mut Option<u64>, failure: &Failure) -> Fetched {
    let (topic, partition) = place;
    let mut admin = source.connector.admin();
    let answer = admin.fetch_batches(topic, *partition, from, FEW_BYTES as i32).await;
    let answer = answer.map_err(|error| Failure::NoClient(error.to_string()))?;
    let batches = batch::read(answer, from);
    tracing::debug!("Records of {topic}/{partition} from {from} on are taken apart here: {failure}");
    for batch::Unreadable { first, last, bytes, why } in &batches.unreadable {
        source.unreadable.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            kafka.topic = &**topic,
            kafka.partition = partition,
            "Records {first} to {last} of {topic}/{partition} cannot be read, as {why}: they become one dead letter, with \
             {} of the {bytes} bytes",
            bytes.min(&batch::MAX_KEPT_BYTES)
        );
    }
    // An answer without a whole batch is no answer.
    let Some(after) = batches.next else {
        return Err(Failure::NoClient(format!("there is no batch of records at {from}: {failure}")));
    };
    source.depths.note_end(topic, *partition, after);
    *next = Some(after);
    Ok(batches.entries)
}

/// Asks once. There may be none, though there are more to come: then the next look is at a later offset.
pub(super) async fn look(leader: &Leader, from: u64, wait: Duration, patience: Duration) -> Result<Look, Failure> {
    look_at(leader, from, FETCH_BYTES, wait, patience).await
}

async fn look_at(
    leader: &Leader,
    from: u64,
    max_bytes: usize,
    wait: Duration,
    patience: Duration,
) -> Result<Look, Failure> {
    let deadline = || Instant::now() + patience;
    let (mut records, end) = leader.fetch(from, max_bytes, wait, deadline() + wait).await?;
    let mut next = from;
    if records.is_empty() && end > from {
        let readable = leader.latest(deadline()).await?;
        // Only now it is certain that what comes is all that there is below `readable`.
        records = leader.fetch(from, max_bytes, Duration::ZERO, deadline()).await?.0;
        if records.is_empty() && readable > from {
            next = from + 1;
        }
    }
    if let Some(last) = records.last() {
        next = offset(last.offset) + 1;
    }
    Ok(Look { records, next, end })
}

/// Where reading goes on when the partition has no record at `from` any more. What is gone is counted.
async fn oldest(
    source: &Source,
    place: &Place,
    leader: &Leader,
    from: u64,
    failure: Failure,
    beyond_end: &mut u32,
) -> Result<u64, Failure> {
    let (topic, partition) = place;
    let oldest = leader.earliest(Instant::now() + source.patience).await?;
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
        return Err(failure);
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
