//! A real Redis, a log whose partitions go where the test says, and processes that consume from it.

use std::time::Instant;

use bytes::Bytes;

use super::*;
use crate::{
    consumer::checkpoint::State,
    dead_letters::DeadLetter,
    log::{Checkpointing, Partition, Record, scripted::ScriptedLog},
    queue::Envelope,
    target::{self, testing::RedisServer},
    task::{self, DefaultRule, Task},
};

/// How long anything may take before a test fails: generous, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// As Kafka's, but more often.
pub const OFTEN: Checkpointing = Checkpointing { interval: Duration::from_millis(20), max_state_bytes: 3072 };

/// Only when a unit waits for it.
pub const ON_DEMAND: Checkpointing = Checkpointing { interval: Duration::from_secs(3600), max_state_bytes: 3072 };

pub struct World {
    pub redis: RedisServer,
    pub log: ScriptedLog,
    pub dead_letters: Arc<DeadLetters>,
    rules: Arc<Rules>,
}

/// A process. It stops when it is dropped.
pub struct Owner {
    consumer: Consumer,
}

impl World {
    pub fn new(checkpointing: Checkpointing) -> Self {
        let log = ScriptedLog::new(checkpointing);
        let shared: Arc<dyn Log> = Arc::new(log.clone());
        let dead_letters = DeadLetters::open(&shared).expect("tables are there");
        let targets = ["default", "sessions"].map(str::to_owned);
        let rule = DefaultRule { max_retries: Some(7), ..DefaultRule::default() };
        let rules = Rules::new(task::Config::default(), targets).with_defaults(vec![rule]);
        Self { redis: RedisServer::start(&[]), log, dead_letters, rules: Arc::new(rules) }
    }

    /// Starts a process.
    pub fn start(&self, configure: impl FnOnce(&mut Config)) -> Owner {
        let mut config = Config {
            memory_bytes: 24 << 20,
            policy: Policy { max_retries: 3, base: Duration::from_millis(200), cap: Duration::from_secs(30) },
            outage_probe_cap: Duration::from_millis(200),
            limits: Limits { max_batches: 2, max_rate: 0, adaptive: true },
            boot_id: fastrand::u128(..).to_be_bytes(),
            marker_ttl: Duration::from_secs(24 * 3600),
            revoke_bound: Duration::from_secs(20),
            is_beside: false,
        };
        configure(&mut config);
        // So long that no connection ends by itself.
        let response_timeout = Duration::from_secs(600);
        let boot_id = config.boot_id;
        let target = target::Config { boot_id, response_timeout, ..target::Config::new(self.redis.url()) };
        let log: Arc<dyn Log> = Arc::new(self.log.clone());
        let metrics = Metrics::new(&[]);
        let parts = Parts {
            queues: Queues::new(log.clone(), metrics.clone()),
            log,
            dead_letters: self.dead_letters.clone(),
            rules: self.rules.clone(),
            targets: vec![Target::try_new("default", target).expect("the URL is fine")],
            metrics,
        };
        Owner { consumer: Consumer::start(&config, parts).expect("threads can be made") }
    }

    /// Puts a task into a partition, as the front door does, under an id of its own.
    pub fn submit(&self, partition: &Partition, body: &str) -> u64 {
        let task = Task::parse(body.as_bytes(), &self.rules, Timestamp::now()).expect(body);
        let value = Bytes::copy_from_slice(body.as_bytes());
        let id = TaskId::parse(&format!("t{}", fastrand::u64(..))).expect("it is one");
        let envelope = Envelope::accept(&self.rules, &task, &id, value, Timestamp::now(), None);
        // Retries are as each test says.
        self.log.push(partition, Envelope { max_retries: None, ..envelope }.encode())
    }

    /// Puts bytes into a partition, as anybody may.
    pub fn put(&self, partition: &Partition, bytes: &str) -> u64 {
        self.put_at(partition, bytes, Timestamp::now().as_millisecond())
    }

    pub fn put_at(&self, partition: &Partition, bytes: &str, appended_at_ms: i64) -> u64 {
        let value = Bytes::copy_from_slice(bytes.as_bytes());
        self.log.push_at(partition, Record { value, ..Record::default() }, appended_at_ms)
    }

    pub fn get(&self, key: &str) -> String {
        self.redis.cli(&["GET", key]).text()
    }

    pub fn get_all(&self, keys: impl Iterator<Item = String>) -> Vec<String> {
        let words: Vec<String> = std::iter::once("MGET".to_owned()).chain(keys).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.redis.cli(&words).items().iter().map(|reply| reply.text()).collect()
    }

    /// The durable watermark, and what is said above it.
    pub fn state(&self, partition: &Partition) -> Option<(u64, State)> {
        let checkpoint = self.log.checkpoint(partition)?;
        let state = State::decode(checkpoint.watermark, &checkpoint.state).expect("a state is never garbled");
        Some((checkpoint.watermark, state))
    }

    pub fn watermark(&self, partition: &Partition) -> u64 {
        self.state(partition).map_or(0, |(watermark, _)| watermark)
    }

    pub async fn letters(&self) -> Vec<DeadLetter> {
        self.dead_letters.list(None, 10_000).await.expect("they can be read").items
    }

    /// Assigns an empty partition and waits until its owner would send from it.
    pub async fn assign_and_warm_up(&self, partition: &Partition) {
        let offset = self.submit(partition, &set(&format!("warm:{}", partition.index), "1"));
        self.log.assign(partition);
        until("the first task is applied", || self.get(&format!("warm:{}", partition.index)) == "1").await;
        let is_due = self.log.checkpointing().interval < PATIENCE;
        until("its owner, or that too, is written down", || {
            self.log.commits(partition) > 0 && (!is_due || self.watermark(partition) == 1)
        })
        .await;
        assert_eq!(offset, 0);
    }

    /// Clients that name themselves as a process does and whose last command was this one.
    pub fn clients(&self, command: &str) -> usize {
        let list = self.redis.cli(&["CLIENT", "LIST"]).text();
        let is_one = |line: &&str| line.contains("name=redrive-") && line.contains(&format!("cmd={command} "));
        list.lines().filter(is_one).count()
    }
}

impl Owner {
    pub async fn overview(&self) -> TargetOverview {
        let mut targets = self.consumer.handle().overview().await;
        targets.pop().expect("there is one target")
    }

    pub async fn find(&self, id: &str) -> Option<Waiting> {
        self.consumer.handle().find(&TaskId::parse(id).expect("it is one")).await
    }

    /// The partitions that it has, by index.
    pub async fn partitions(&self) -> Vec<u32> {
        self.overview().await.partitions.iter().map(|partition| partition.index).collect()
    }
}

impl Owner {
    /// Has it stop in order.
    pub fn stop(&self) {
        self.consumer.stop.cancel();
    }

    /// Waits until it has.
    pub async fn stopped(&self) {
        tokio::time::timeout(PATIENCE, self.consumer.ended()).await.expect("it ends in time");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn partition(index: u32) -> Partition {
    Partition { queue: QueueName { target: "default".into(), lane: "normal" }, index }
}

pub fn set(key: &str, value: &str) -> String {
    format!(r#"{{"type":"simple","command":"SET","args":["{key}","{value}"]}}"#)
}

/// Not once with a marker, so that a second run shows.
pub fn count(key: &str) -> String {
    format!(r#"{{"type":"simple","command":"INCR","args":["{key}"],"idempotent":true}}"#)
}

/// Polls until it is so.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    until_async(what, async || is()).await;
}

pub async fn until_async(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "it never was so: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a partition was given up.
pub async fn given_up(done: oneshot::Receiver<()>) {
    let dropped = tokio::time::timeout(PATIENCE, done).await.expect("it is given up in time");
    assert!(dropped.is_err(), "it is dropped, not sent");
}
