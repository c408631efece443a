//! The tasks that a person must look at.
//!
//! A dead letter is written before its task counts as finished, so no task is ever dead in silence. Letters are kept
//! in a table of the log, keyed by task id: a task that dies again after a crash replaces its own letter. Nothing is
//! capped: what does not fit stays unfinished in its queue.
//!
//! The index in memory (20 bytes a letter) is built when somebody first asks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    sync::{MappedMutexGuard, MutexGuard},
    time::{Instant, sleep},
};

use crate::{
    log::{Log, Table, TableEntry, TableError},
    task::TaskId,
};

const TABLE: &str = "dead-letters";

/// How long a log that cannot be asked for what others wrote is left alone: questions are answered without it.
const PAUSE: Duration = Duration::from_secs(5);

/// How long who asks for letters waits for the index, where there is none and the log cannot be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to build it.
const SHORT_PAUSE: Duration = Duration::from_millis(250);

/// A task that was given up, with the reasons. Stored as JSON; `schema` guards its meaning.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    pub schema: u32,
    pub id: String,
    pub target: String,
    pub lane: String,
    /// Where the task's record was in its queue.
    pub partition: u32,
    pub offset: u64,
    pub accepted_at: Timestamp,
    pub dead_at: Timestamp,
    /// The class of the reason, from a closed list: see `retry::ReasonClass`.
    pub reason: String,
    /// The server's error code, or a code of ours such as `timeout`.
    pub code: String,
    /// What the server said, without anything that may be an argument.
    pub message: String,
    /// Executions that counted.
    pub attempts: u32,
    pub first_error_at: Timestamp,
    pub last_error_at: Timestamp,
    /// Units of a pipeline, where the task has several: which failed, and how.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<DeadUnit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The task's own bytes, as they were accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Box<RawValue>>,
    /// The record's bytes in base64, where they are not JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_base64: Option<String>,
}

/// How a part of a pipeline ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadUnit {
    /// The command's place in the pipeline.
    pub index: u32,
    /// `applied`, or the class of the reason.
    pub outcome: String,
    pub code: String,
    pub message: String,
}

impl DeadLetter {
    pub const SCHEMA: u32 = 1;
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// Newest first.
    pub items: Vec<DeadLetter>,
    /// Where the next page begins; none at the end.
    pub next: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLetterError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("the dead letter at position {position} cannot be read")]
    Unreadable { position: u64 },
}

/// All dead letters of this data directory, or of all sidecars that share a Kafka.
pub struct DeadLetters {
    table: Arc<dyn Table>,
    index: tokio::sync::Mutex<Option<Index>>,
}

/// Positions, ascending, and the hash of the key of each.
#[derive(Default)]
struct Index {
    letters: Vec<(u64, u64)>,
    /// From where on other processes may have written.
    next: u64,
    /// Where that could not be asked, it is not asked again before.
    ask_at: Option<Instant>,
}

impl Index {
    fn put(&mut self, key: u64, position: u64) {
        self.letters.retain(|(_, found)| *found != key);
        self.letters.push((position, key));
    }

    /// Takes the last position of each of these keys; none: it was removed.
    fn take(&mut self, changes: HashMap<u64, Option<u64>>) {
        if changes.is_empty() {
            return;
        }
        self.letters.retain(|(_, key)| !changes.contains_key(key));
        self.letters.extend(changes.into_iter().filter_map(|(key, position)| Some((position?, key))));
        self.letters.sort_unstable();
    }
}

impl DeadLetters {
    pub fn open(log: &Arc<dyn Log>) -> Result<Arc<Self>, TableError> {
        Ok(Arc::new(Self { table: log.table(TABLE)?, index: tokio::sync::Mutex::new(None) }))
    }

    /// Stores a letter durably, in place of an earlier one of the same task.
    pub async fn put(&self, letter: &DeadLetter) -> Result<(), TableError> {
        let key = Bytes::copy_from_slice(letter.id.as_bytes());
        let value = serde_json::to_vec(letter).expect("a letter has only strings, numbers and JSON").into();
        self.put_raw(key, value).await
    }

    /// Stores a letter as it was read from another table.
    pub async fn put_raw(&self, key: Bytes, value: Bytes) -> Result<(), TableError> {
        // The index is held over the write, so that a list never shows less than what was answered as stored.
        let mut index = self.index.lock().await;
        let position = self.table.put(key.clone(), value).await?;
        if let Some(index) = index.as_mut() {
            index.put(hash(&key), position);
        }
        Ok(())
    }

    /// Removes a letter that is kept elsewhere.
    pub async fn remove(&self, key: Bytes) -> Result<(), TableError> {
        let mut index = self.index.lock().await;
        if let Some(index) = index.as_mut() {
            index.take(HashMap::from([(hash(&key), None)]));
        }
        self.table.delete(key).await
    }

    /// Shows every letter as it is stored; `visit` is called on a blocking thread.
    pub async fn scan(&self, mut visit: Box<dyn FnMut(Bytes, Bytes) -> bool + Send>) -> Result<(), TableError> {
        self.table.scan(Box::new(move |entry| visit(entry.key, entry.value))).await
    }

    /// Up to `limit` letters, newest first, from `before` on (a position that an earlier page gave). Waits up to 10 s for
    /// the index.
    pub async fn list(&self, before: Option<u64>, limit: usize) -> Result<Page, DeadLetterError> {
        let positions: Vec<u64> = {
            let letters = &self.waited_for().await?.letters;
            let end =
                before.map_or(letters.len(), |before| letters.partition_point(|(position, _)| *position < before));
            letters[..end].iter().rev().take(limit + 1).map(|(position, _)| *position).collect()
        };
        let mut items = Vec::with_capacity(limit.min(positions.len()));
        for position in positions.iter().take(limit) {
            // One that was replaced or removed since the index was read is on a newer page, or gone.
            if let Some(entry) = self.table.read(*position).await? {
                items.push(parse(&entry)?);
            }
        }
        let next = (positions.len() > limit).then(|| positions[limit - 1]);
        Ok(Page { items, next })
    }

    /// Waits up to 10 s for the index.
    pub async fn find(&self, id: &TaskId) -> Result<Option<DeadLetter>, DeadLetterError> {
        let position = {
            let wanted = hash(id.as_str().as_bytes());
            let letters = &self.waited_for().await?.letters;
            letters.iter().rev().find(|(_, key)| *key == wanted).map(|(position, _)| *position)
        };
        let Some(position) = position else { return Ok(None) };
        let Some(entry) = self.table.read(position).await? else { return Ok(None) };
        if entry.key != id.as_str().as_bytes() {
            return Ok(None);
        }
        parse(&entry).map(Some)
    }

    /// How many there are. Builds the index.
    pub async fn count(&self) -> Result<usize, DeadLetterError> {
        Ok(self.built().await?.letters.len())
    }

    /// The index; where it cannot be built at once, that is tried again for a while. Nobody else is kept waiting for it.
    async fn waited_for(&self) -> Result<MappedMutexGuard<'_, Index>, TableError> {
        let last_try = Instant::now() + PATIENCE - SHORT_PAUSE;
        loop {
            match self.built().await {
                Err(TableError::Unavailable { .. }) if Instant::now() < last_try => sleep(SHORT_PAUSE).await,
                built => return built,
            }
        }
    }

    /// The index, with what other processes have written meanwhile where they share the table.
    async fn built(&self) -> Result<MappedMutexGuard<'_, Index>, TableError> {
        let mut index = self.index.lock().await;
        match &mut *index {
            Some(index) => self.bring_up_to_date(index).await,
            None => {
                let next = self.table.changes(None, Box::new(|_, _| {})).await?;
                let (sender, receiver) = std::sync::mpsc::channel();
                let visit = move |entry: TableEntry| sender.send((entry.position, hash(&entry.key))).is_ok();
                self.table.scan(Box::new(visit)).await?;
                *index = Some(Index { letters: receiver.try_iter().collect(), next, ask_at: None });
            }
        }
        Ok(MutexGuard::map(index, |index| index.as_mut().expect("it is built by now")))
    }

    async fn bring_up_to_date(&self, index: &mut Index) {
        if index.ask_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let visit = move |key: &[u8], position| {
            let _ = sender.send((hash(key), position));
        };
        match self.table.changes(Some(index.next), Box::new(visit)).await {
            Ok(next) => {
                index.next = next;
                index.ask_at = None;
                index.take(receiver.try_iter().collect());
            }
            // What is known is still true of this process.
            Err(error) => {
                tracing::debug!("New dead letters of others are not known: {error}");
                index.ask_at = Some(Instant::now() + PAUSE);
            }
        }
    }
}

fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

fn parse(entry: &TableEntry) -> Result<DeadLetter, DeadLetterError> {
    serde_json::from_slice(&entry.value).map_err(|_| DeadLetterError::Unreadable { position: entry.position })
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    #[test]
    fn index_takes_what_others_wrote_and_removed() {
        let mut index = Index { letters: vec![(1, 10), (2, 20), (5, 50)], next: 6, ask_at: None };
        index.take(HashMap::from([(20, Some(9)), (10, None), (30, Some(7)), (40, None)]));
        assert_eq!(index.letters, [(5, 50), (7, 30), (9, 20)]);
    }

    /// A table that is empty, and away until then.
    struct Away(Instant);

    impl Table for Away {
        fn put(&self, _key: Bytes, _value: Bytes) -> BoxFuture<'_, Result<u64, TableError>> {
            Box::pin(std::future::ready(Ok(0)))
        }

        fn delete(&self, _key: Bytes) -> BoxFuture<'_, Result<(), TableError>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn scan(&self, _visit: Box<dyn FnMut(TableEntry) -> bool + Send>) -> BoxFuture<'_, Result<(), TableError>> {
            let away = TableError::Unavailable { reason: "away".to_owned() };
            Box::pin(std::future::ready(if Instant::now() < self.0 { Err(away) } else { Ok(()) }))
        }

        fn read(&self, _position: u64) -> BoxFuture<'_, Result<Option<TableEntry>, TableError>> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_first_waits_for_a_table_that_comes_back_within_ten_seconds() {
        for (seconds, comes_in_time) in [(9, true), (11, false)] {
            let begun = Instant::now();
            let away = Arc::new(Away(begun + Duration::from_secs(seconds)));
            let letters = DeadLetters { table: away, index: tokio::sync::Mutex::new(None) };
            assert!(letters.count().await.is_err());
            assert_eq!(begun.elapsed(), Duration::ZERO, "what only counts them does not wait");
            assert_eq!(letters.list(None, 1).await.is_ok(), comes_in_time);
            assert!(begun.elapsed() <= PATIENCE, "{:?}", begun.elapsed());
        }
    }
}
