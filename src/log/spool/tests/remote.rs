//! A remote log by script: away, silent, or of the kind that stores a record and does not say so.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::watch;

use crate::log::{
    AppendError, Appended, Assignment, Checkpoint, CommitError, Depth, Durability, Entry, Epoch, Log, NewRecord,
    Partition, QueueName, ReadError, Record, Table, TableError, memory::MemoryLog,
};

/// What comes of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Refused at once.
    Away,
    /// No answer until it changes, and then that nobody knows; not stored.
    Silent,
    /// Stored, and answered that nobody knows.
    Forgetful,
    /// Not stored, and answered that nobody knows.
    Lossy,
    /// By chance any of fair, away, forgetful and lossy; at once or a little later.
    Stormy,
    /// Nothing over so many bytes is taken.
    Narrow(usize),
}

/// Remembers everything. Closing it changes nothing.
#[derive(Clone)]
pub struct Remote {
    log: MemoryLog,
    state: Arc<Mutex<State>>,
    changes: watch::Sender<usize>,
}

struct State {
    weather: HashMap<&'static str, Weather>,
    chance: fastrand::Rng,
    /// The values of which it did not say what became of them.
    unknown: HashSet<Bytes>,
    /// The ordering keys of what it took, in order.
    keys: Vec<Bytes>,
    /// How many records each append brought that was taken.
    batches: Vec<usize>,
    under_way: usize,
    most_under_way: usize,
    asked: usize,
}

impl Remote {
    pub fn new(seed: u64) -> Self {
        let state = State {
            weather: HashMap::new(),
            chance: fastrand::Rng::with_seed(seed),
            unknown: HashSet::new(),
            keys: Vec::new(),
            batches: Vec::new(),
            under_way: 0,
            most_under_way: 0,
            asked: 0,
        };
        Self { log: MemoryLog::default(), state: Arc::new(Mutex::new(state)), changes: watch::Sender::new(0) }
    }

    pub fn set(&self, weather: Weather) {
        for lane in ["high", "normal", "low"] {
            self.set_for(lane, weather);
        }
    }

    /// For one lane.
    pub fn set_for(&self, lane: &'static str, weather: Weather) {
        self.lock().weather.insert(lane, weather);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Everything that a queue holds, in order.
    pub fn records(&self, queue: &QueueName) -> Vec<Record> {
        let stream = self.log.consume(vec![queue.clone()]).next().now_or_never();
        let Some(Some(Assignment::Assigned(mut assigned))) = stream else { return Vec::new() };
        let entries = assigned.reader.next(usize::MAX).now_or_never().unwrap_or(Ok(Vec::new()));
        entries.expect("it is open").into_iter().map(|entry| entry.record).collect()
    }

    pub fn values(&self, queue: &QueueName) -> Vec<String> {
        let text = |record: Record| String::from_utf8(record.value.to_vec()).expect("values are text");
        self.records(queue).into_iter().map(text).collect()
    }

    pub fn is_unknown(&self, value: &str) -> bool {
        self.lock().unknown.contains(value.as_bytes())
    }

    pub fn keys(&self) -> Vec<Bytes> {
        self.lock().keys.clone()
    }

    pub fn batches(&self) -> Vec<usize> {
        self.lock().batches.clone()
    }

    pub fn most_under_way(&self) -> usize {
        self.lock().most_under_way
    }

    /// How many appends it was asked for.
    pub fn asked(&self) -> usize {
        self.lock().asked
    }

    fn weather(&self, queue: &QueueName) -> Weather {
        self.lock().weather.get(queue.lane).copied().unwrap_or(Weather::Fair)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    async fn take(&self, queue: &QueueName, records: Vec<NewRecord>) -> Result<Vec<Appended>, AppendError> {
        let asked = Asked::new(self, &records);
        let (weather, late) = match self.weather(queue) {
            Weather::Stormy => {
                let mut state = self.lock();
                let all = [Weather::Fair, Weather::Fair, Weather::Away, Weather::Forgetful, Weather::Lossy];
                let late = state.chance.bool().then(|| Duration::from_micros(state.chance.u64(..2_000)));
                (all[state.chance.usize(..all.len())], late)
            }
            weather => (weather, None),
        };
        match late {
            Some(late) => tokio::time::sleep(late).await,
            // It is never there before others have asked.
            None => tokio::task::yield_now().await,
        }
        let answer = match weather {
            Weather::Fair => self.store(queue, records).await,
            Weather::Away => Err(AppendError::Unavailable { reason: "it is away".to_owned() }),
            Weather::Silent => {
                let mut changes = self.changes.subscribe();
                while self.weather(queue) == Weather::Silent {
                    changes.changed().await.expect("its sender is here");
                }
                Err(AppendError::FateUnknown)
            }
            Weather::Forgetful => self.store(queue, records).await.and(Err(AppendError::FateUnknown)),
            Weather::Lossy => Err(AppendError::FateUnknown),
            Weather::Narrow(limit) => match records.iter().map(|new| new.record.size()).sum() {
                bytes if bytes > limit => Err(AppendError::TooLarge { bytes, limit }),
                _ => self.store(queue, records).await,
            },
            Weather::Stormy => unreachable!("it was drawn above"),
        };
        if answer != Err(AppendError::FateUnknown) {
            asked.answered();
        }
        answer
    }

    async fn store(&self, queue: &QueueName, records: Vec<NewRecord>) -> Result<Vec<Appended>, AppendError> {
        {
            let mut state = self.lock();
            state.keys.extend(records.iter().map(|new| new.ordering_key.clone()));
            state.batches.push(records.len());
        }
        let appended = self.log.append_many(queue, records).await?;
        Ok(appended.into_iter().map(|one| Appended { durability: Durability::Kafka, ..one }).collect())
    }
}

/// An append under way: whoever does not wait for its answer does not know.
struct Asked<'a> {
    remote: &'a Remote,
    values: Vec<Bytes>,
}

impl<'a> Asked<'a> {
    fn new(remote: &'a Remote, records: &[NewRecord]) -> Self {
        let mut state = remote.lock();
        state.asked += 1;
        state.under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way);
        Self { remote, values: records.iter().map(|new| new.record.value.clone()).collect() }
    }

    fn answered(mut self) {
        self.values.clear();
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.remote.lock();
        state.under_way -= 1;
        state.unknown.extend(std::mem::take(&mut self.values));
    }
}

impl Log for Remote {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move { self.take(queue, vec![record]).await.map(|appended| appended[0]) })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(self.take(queue, records))
    }

    fn ready(&self) -> Result<(), AppendError> {
        Err(AppendError::Unavailable { reason: "nobody should ask".to_owned() })
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        self.log.consume(queues)
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        self.log.commit(partition, epoch, checkpoint)
    }

    fn tail(
        &self,
        queue: &QueueName,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        match self.weather(queue) {
            Weather::Fair => {}
            _ => return Err(ReadError::Unavailable { reason: "it is away".to_owned() }),
        }
        self.log.tail(queue, max_records, max_bytes, visit)
    }

    fn depth(&self) -> Vec<Depth> {
        self.log.depth()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        self.log.table(name)
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        self.log.failed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
