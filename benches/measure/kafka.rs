//! Kafka for the measurements: a real broker, or one that keeps everything in memory and costs little; sidecars that use
//! it; and a producer that does nothing else.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use redrive::log::kafka::nodelay;
use rskafka::{
    client::{
        ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record,
};
use tokio::sync::{mpsc, oneshot};

use super::processes::UNLIMITED;

#[allow(dead_code, reason = "shared with the tests, which use the rest of it")]
#[path = "../../src/log/kafka/testing.rs"]
mod broker;

pub use broker::{Kafka as RealBroker, unique};

/// What a batch of the producer has at most, as the sidecar's.
const MAX_BATCH: usize = 100;

/// The names of a queue's lanes, as they follow a topic's name.
const LANES: [&str; 3] = ["", ".high", ".low"];

/// A broker in memory.
pub struct MockBroker {
    child: Child,
    pub address: String,
}

impl MockBroker {
    /// Builds it, which takes minutes the first time, and starts it with the topics of one queue.
    pub fn start(topic: &str, partitions: u16) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mock-broker");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
            .arg(root.join("benches/mock-broker/Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status()?;
        anyhow::ensure!(built.success(), "the mock broker is not built");
        let mut child = Command::new(target.join("release/mock-broker"))
            .arg(partitions.to_string())
            .args(LANES.map(|lane| format!("{topic}{lane}")))
            .arg(format!("{topic}.dlq"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut address)?;
        Ok(Self { child, address: address.trim_end().to_owned() })
    }
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What makes a sidecar use a broker, without limits. Each group reads a topic from its beginning.
pub fn flags(address: &str, topic: &str, group: &str, partitions: u16) -> Vec<String> {
    let settings = [
        ("brokers", address),
        ("topic", topic),
        ("group", group),
        ("partitions", &partitions.to_string()),
        ("replication", "1"),
        ("min-insync", "1"),
    ];
    let flags = settings.into_iter().map(|(name, value)| format!("--kafka-{name}={value}"));
    flags.chain(UNLIMITED.map(str::to_owned)).collect()
}

/// A producer and nothing else: callers hand a record over and wait for its acknowledgement; one request of a partition
/// is under way at a time, and what comes meanwhile goes with the next.
#[derive(Clone)]
pub struct RawProducer {
    partitions: Arc<[mpsc::UnboundedSender<Waiting>]>,
}

/// A record, and who waits for its acknowledgement.
type Waiting = (Record, oneshot::Sender<bool>);

impl RawProducer {
    pub async fn connect(address: &str, topic: &str, partitions: u16) -> anyhow::Result<Self> {
        let client = ClientBuilder::new(vec![address.to_owned()]).build().await?;
        let mut senders = Vec::new();
        for partition in 0..partitions {
            let leader = client.partition_client(topic, i32::from(partition), UnknownTopicHandling::Retry).await?;
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(produce(leader, receiver));
            senders.push(sender);
        }
        let raw = Self { partitions: senders.into() };
        // Its connections are made by now.
        for number in 0..u32::from(partitions) {
            anyhow::ensure!(raw.send(number, b"first".to_vec()).await, "the broker takes nothing");
        }
        nodelay::set_on_new_connections(Duration::from_secs(20))?;
        Ok(raw)
    }

    /// Whether the record was acknowledged.
    pub async fn send(&self, number: u32, value: Vec<u8>) -> bool {
        let record = Record {
            key: Some(number.to_be_bytes().to_vec()),
            value: Some(value),
            headers: Default::default(),
            timestamp: chrono::DateTime::UNIX_EPOCH,
        };
        let (acknowledge, acknowledged) = oneshot::channel();
        let partition = &self.partitions[number as usize % self.partitions.len()];
        partition.send((record, acknowledge)).is_ok() && acknowledged.await.unwrap_or(false)
    }
}

async fn produce(leader: PartitionClient, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (records, callers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let acknowledged = leader.produce(records, Compression::NoCompression).await.is_ok();
        for caller in callers {
            let _ = caller.send(acknowledged);
        }
    }
}
