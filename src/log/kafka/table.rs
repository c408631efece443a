//! A table in a compacted topic of one partition: a put is a record with a key, a delete one without a value, and a
//! position is an offset. What a key's last record is, is found by reading: brokers remove earlier ones in their own time.
//!
//! Only sidecars write here, and none of them in a transaction: records of one that was aborted would be taken for others,
//! as the library does not tell.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rskafka::record::RecordAndOffset;
use tokio::{sync::mpsc, time::Instant};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Inner,
    admin::{Admin, NewTopic, TopicKind},
    connector::{Leader, offset},
    failure::{Cause, Failure},
    record::Outgoing,
};
use crate::log::{AppendError, Headers, Table, TableEntry, TableError, VisitChange};

/// The table of dead letters.
pub(super) const LETTERS: &str = "dead-letters";

/// Entries on their way to a visitor.
const QUEUED: usize = 64;

/// Asks for one record, or the batch that it is in.
const FEW_BYTES: usize = 1;
/// So many bytes of a table are in memory at a time while it is gone through, or one batch of records.
const SCAN_BYTES: usize = 256 << 10;

pub(super) struct KafkaTable {
    inner: Arc<Inner>,
    topic: Arc<str>,
    known: tokio::sync::Mutex<Known>,
}

/// What was read of the topic so far. 24 bytes and more for each key: tables are for what people look at.
#[derive(Default)]
struct Known {
    next: u64,
    /// The offset of each key's last record.
    last: HashMap<u128, u64>,
}

impl KafkaTable {
    pub(super) fn new(inner: Arc<Inner>, name: &str) -> Self {
        let topic = topic_of(&inner.config.topic, name).into();
        Self { inner, topic, known: tokio::sync::Mutex::default() }
    }

    /// Appends a record of a key, and answers its offset.
    async fn append(&self, key: Bytes, value: Option<Bytes>) -> Result<u64, AppendError> {
        let inner = &self.inner;
        let deadline = Instant::now() + inner.config.produce_timeout;
        let records = vec![Outgoing { key, headers: Headers::default(), value }];
        let room = inner.producer.reserve(&records, inner.config.max_value_bytes())?;
        if inner.producer.partitions(&self.topic).is_none() && inner.config.create_topics {
            let make = async {
                let topic = NewTopic { name: self.topic.clone(), kind: TopicKind::Table, partitions: 1 };
                let mut admin = Admin::new(inner.config.clone(), inner.security.clone());
                admin.create_topics(&[topic]).await.map(drop)
            };
            inner.make_if_missing(&self.topic, make, deadline).await?;
        }
        if let Some(count) = inner.producer.partitions(&self.topic).filter(|count| *count != 1) {
            let reason = format!("topic {} has {count} partitions, and a table has one", self.topic);
            return Err(AppendError::Unavailable { reason });
        }
        let positions = inner.producer.append(&self.topic, records, room, deadline).await?;
        Ok(positions.first().expect("each record has a place").offset)
    }

    /// Connects for reading; answers the first offset and the one after the last, too. None where there is no topic.
    async fn open(&self) -> Result<Option<(Leader, u64, u64)>, Failure> {
        let leader = match self.inner.tables.leader(&self.topic, 0).await {
            Err(failure) if failure.cause() == Cause::Unknown => return Ok(None),
            leader => leader?,
        };
        let deadline = || Instant::now() + self.inner.config.request_timeout;
        let end = leader.latest(deadline()).await?;
        let first = leader.earliest(deadline()).await?;
        Ok(Some((leader, first, end)))
    }

    /// The next records from `next` on, which moves; none when all below `end` were read.
    async fn records(&self, leader: &Leader, next: &mut u64, end: u64) -> Result<Vec<RecordAndOffset>, Failure> {
        while *next < end {
            let records = self.look(leader, next).await?;
            if !records.is_empty() {
                return Ok(records.into_iter().filter(|record| offset(record.offset) < end).collect());
            }
        }
        Ok(Vec::new())
    }

    /// Asks once. There may be none, though there are more to come: of what a compaction took there is no trace.
    async fn look(&self, leader: &Leader, next: &mut u64) -> Result<Vec<RecordAndOffset>, Failure> {
        let deadline = || Instant::now() + self.inner.config.request_timeout;
        let (mut records, end) = leader.fetch(*next, SCAN_BYTES, Duration::ZERO, deadline()).await?;
        if records.is_empty() && end > *next {
            let readable = leader.latest(deadline()).await?;
            // Only now it is certain that what comes is all that there is below `readable`.
            records = leader.fetch(*next, SCAN_BYTES, Duration::ZERO, deadline()).await?.0;
            if records.is_empty() && readable > *next {
                *next += 1;
            }
        }
        if let Some(last) = records.last() {
            *next = offset(last.offset) + 1;
        }
        Ok(records)
    }

    async fn scan_to(&self, visitor: &mpsc::Sender<TableEntry>) -> Result<(), Failure> {
        let Some((leader, first, end)) = self.open().await? else { return Ok(()) };
        // Twice: first to learn which record is the last of its key, so that no value has to be kept.
        let mut last: HashMap<u128, u64> = HashMap::new();
        let mut next = first;
        loop {
            let records = self.records(&leader, &mut next, end).await?;
            if records.is_empty() {
                break;
            }
            last.extend(records.iter().map(|record| (hash(record), offset(record.offset))));
        }
        let mut next = first;
        loop {
            let records = self.records(&leader, &mut next, end).await?;
            if records.is_empty() {
                return Ok(());
            }
            for record in records {
                let is_last = last.get(&hash(&record)) == Some(&offset(record.offset));
                if let Some(entry) = entry_of(record).filter(|_| is_last)
                    && visitor.send(entry).await.is_err()
                {
                    return Ok(());
                }
            }
        }
    }

    async fn changes_since(&self, since: Option<u64>, mut visit: VisitChange) -> Result<u64, Failure> {
        let Some((leader, first, end)) = self.open().await? else { return Ok(since.unwrap_or(0)) };
        let Some(since) = since else { return Ok(end) };
        let mut next = since.max(first);
        loop {
            let records = self.records(&leader, &mut next, end).await?;
            if records.is_empty() {
                return Ok(end.max(since));
            }
            for read in records {
                let position = read.record.value.is_some().then(|| offset(read.offset));
                visit(read.record.key.as_deref().unwrap_or_default(), position);
            }
        }
    }

    async fn read_at(&self, position: u64) -> Result<Option<TableEntry>, Failure> {
        let Some((leader, first, end)) = self.open().await? else { return Ok(None) };
        if position < first || position >= end {
            return Ok(None);
        }
        let deadline = Instant::now() + self.inner.config.request_timeout;
        // A broker sends a whole batch, however few bytes are asked for.
        let (records, _) = leader.fetch(position, FEW_BYTES, Duration::ZERO, deadline).await?;
        let Some(record) = records.into_iter().find(|record| offset(record.offset) == position) else {
            return Ok(None);
        };
        let is_last = self.last_of(&leader, first, end, hash(&record)).await? == Some(position);
        Ok(Some(record).filter(|_| is_last).and_then(entry_of))
    }

    /// Where the last record of a key below `end` is.
    async fn last_of(&self, leader: &Leader, first: u64, end: u64, key: u128) -> Result<Option<u64>, Failure> {
        let mut known = self.known.lock().await;
        let mut next = known.next.max(first);
        loop {
            let records = self.records(leader, &mut next, end).await?;
            if records.is_empty() {
                return Ok(known.last.get(&key).copied());
            }
            known.last.extend(records.iter().map(|record| (hash(record), offset(record.offset))));
            known.next = next;
        }
    }
}

/// The topic of a table: dead letters are where those who know Kafka look for them.
pub(super) fn topic_of(base: &str, name: &str) -> String {
    format!("{base}.{}", if name == LETTERS { "dlq" } else { name })
}

fn hash(record: &RecordAndOffset) -> u128 {
    xxh3_128(record.record.key.as_deref().unwrap_or_default())
}

/// None where the record says that there is no value any more.
fn entry_of(read: RecordAndOffset) -> Option<TableEntry> {
    let position = offset(read.offset);
    let key = read.record.key.unwrap_or_default().into();
    read.record.value.map(|value| TableEntry { key, value: value.into(), position })
}

impl Table for KafkaTable {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<u64, TableError>> {
        Box::pin(async move { self.append(key, Some(value)).await.map_err(not_appended) })
    }

    fn delete(&self, key: Bytes) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(async move { self.append(key, None).await.map(drop).map_err(not_appended) })
    }

    fn scan(&self, mut visit: Box<dyn FnMut(TableEntry) -> bool + Send>) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(async move {
            let (send, mut entries) = mpsc::channel(QUEUED);
            let visiting = tokio::task::spawn_blocking(move || {
                while let Some(entry) = entries.blocking_recv() {
                    if !visit(entry) {
                        break;
                    }
                }
            });
            let result = self.scan_to(&send).await.map_err(unavailable);
            drop(send);
            // All that was read has been shown when this returns.
            visiting.await.map_err(|error| TableError::Unavailable { reason: error.to_string() })?;
            result
        })
    }

    fn changes(&self, since: Option<u64>, visit: VisitChange) -> BoxFuture<'_, Result<u64, TableError>> {
        Box::pin(async move { self.changes_since(since, visit).await.map_err(unavailable) })
    }

    fn read(&self, position: u64) -> BoxFuture<'_, Result<Option<TableEntry>, TableError>> {
        Box::pin(async move { self.read_at(position).await.map_err(unavailable) })
    }
}

fn unavailable(failure: Failure) -> TableError {
    TableError::Unavailable { reason: failure.to_string() }
}

fn not_appended(error: AppendError) -> TableError {
    match error {
        AppendError::Full { .. } => TableError::Full,
        AppendError::FateUnknown => TableError::FateUnknown,
        AppendError::Closed => TableError::Closed,
        error @ (AppendError::TooLarge { .. } | AppendError::Unavailable { .. }) => {
            TableError::Unavailable { reason: error.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_tables_are_those_of_no_queue() {
        for (name, topic) in [("dead-letters", "redis-retry-queue.dlq"), ("settings", "redis-retry-queue.settings")] {
            assert_eq!(topic_of("redis-retry-queue", name), topic);
            assert_eq!(super::super::queue_of("redis-retry-queue", topic), None);
        }
    }
}
