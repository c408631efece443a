//! Appends to real brokers, and to none.

use bytes::Bytes;
use futures_util::future::join_all;

use super::*;
use crate::log::{
    Headers,
    kafka::testing::{Kafka, unique},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A producer for topics whose names begin with a word of this test alone.
struct Bench {
    producer: Producer,
    topic: String,
    depths: Arc<Depths>,
}

impl Bench {
    fn new(address: String, change: impl FnOnce(&mut Config)) -> Self {
        let topic = unique("produce");
        let mut config = Config { brokers: vec![address], topic: topic.as_str().into(), ..Config::default() };
        // As long as a busy machine needs, where the time is not what is tested.
        config.produce_timeout = Duration::from_secs(30);
        change(&mut config);
        let (config, depths) = (Arc::new(config), Arc::<Depths>::default());
        let connector = Connector::new(config.clone(), crate::log::kafka::security::Security::default());
        Self { producer: Producer::start(config, connector, depths.clone()), topic, depths }
    }

    fn shared() -> Self {
        Self::new(Kafka::shared().address(), |_| ())
    }

    /// With a topic of that many partitions.
    fn with_topic(self, kafka: &Kafka, partitions: u16, configs: &[(&str, &str)]) -> Self {
        kafka.create_topic(&self.topic, partitions, configs);
        self
    }

    async fn append(&self, key: &str, value: impl Into<Bytes>) -> Result<Position, AppendError> {
        self.append_many(vec![record(key, value)]).await.map(|positions| positions[0])
    }

    async fn append_many(&self, records: Vec<Outgoing>) -> Result<Vec<Position>, AppendError> {
        let deadline = Instant::now() + self.producer.shared.config.produce_timeout;
        let room = self.producer.reserve(&records, self.producer.shared.config.max_record_bytes)?;
        self.producer.append(&self.topic, records, room, deadline).await
    }

    fn reason(&self) -> String {
        match self.producer.ready() {
            Err(AppendError::Unavailable { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn record(key: &str, value: impl Into<Bytes>) -> Outgoing {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Outgoing { key, headers: Headers::default(), value: Some(value.into()) }
}

fn is_unavailable(result: &Result<Position, AppendError>) -> bool {
    matches!(result, Err(AppendError::Unavailable { .. }))
}

/// Polls until it is so.
async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn records_go_where_their_keys_belong_and_keep_their_order() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 3, &[]);
    wait_until("the topic to be known", async || bench.producer.partitions(&bench.topic).is_some()).await;
    let keys: Vec<String> = (0..300).map(|n| format!("key {}", n % 30)).collect();
    let appended = join_all(keys.iter().map(|key| bench.append(key, "v"))).await;
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    for (key, position) in keys.iter().zip(appended) {
        let Position { partition, offset } = position.expect("it is stored");
        assert_eq!(partition, partition_of(key.as_bytes(), 3));
        let next = ends.entry(partition).or_default();
        assert_eq!(offset, *next, "each follows the one appended before it");
        *next += 1;
    }
    assert_eq!(ends.len(), 3);
    let noted: BTreeMap<u32, u64> =
        bench.depths.all().iter().map(|((_, index), extent)| (*index, extent.end)).collect();
    assert_eq!(noted, ends);
}

#[tokio::test]
async fn records_appended_together_lie_together_in_each_partition() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 2, &[]);
    // More than go in one request, among others.
    let together = (0..250).map(|n| record(&(n % 7).to_string(), "v")).collect();
    let keys: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let alone = join_all(keys.iter().map(|key| bench.append(key, "x")));
    let (positions, alone) = tokio::join!(bench.append_many(together), alone);
    let positions = positions.expect("they are stored");
    assert_eq!(positions.len(), 250);
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for (n, position) in positions.iter().enumerate() {
        assert_eq!(position.partition, partition_of((n % 7).to_string().as_bytes(), 2));
        if let Some(before) = last.insert(position.partition, position.offset) {
            assert_eq!(position.offset, before + 1);
        }
    }
    assert!(alone.iter().all(Result::is_ok));
}

#[tokio::test]
async fn request_of_32_kib_takes_less_than_5_ms() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 1, &[]);
    let mut times = Vec::new();
    for _ in 0..101 {
        let start = Instant::now();
        bench.append("k", vec![b'v'; 32 << 10]).await.expect("it is stored");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    assert!(times[50] < Duration::from_millis(5), "p50 is {:?}, p90 is {:?}", times[50], times[90]);
}

#[tokio::test]
async fn appends_to_a_kafka_that_is_away_are_told_so_in_time() {
    let bench = Bench::new("127.0.0.1:1".to_owned(), |config| config.produce_timeout = Duration::from_millis(300));
    let start = Instant::now();
    let appends = join_all((0..20).map(|_| bench.append("k", "v"))).await;
    assert!(appends.iter().all(is_unavailable), "{appends:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(bench.reason().contains("refused"), "{}", bench.reason());
}

#[tokio::test]
async fn bytes_that_wait_are_bounded() {
    let bench = Bench::new("127.0.0.1:1".to_owned(), |config| config.produce_timeout = Duration::from_secs(2));
    let value = Bytes::from(vec![0; 256 << 10]);
    let appends = join_all((0..140).map(|_| bench.append("k", value.clone()))).await;
    let full = appends.iter().filter(|result| matches!(result, Err(AppendError::Full { .. }))).count();
    assert_eq!(full, 140 - MAX_WAITING_BYTES / ((256 << 10) + 41), "{appends:?}");
    assert_eq!(appends.iter().filter(|result| is_unavailable(result)).count(), 140 - full);
    assert!(is_unavailable(&bench.append("k", value).await), "there is room again");
}

#[tokio::test]
async fn topic_that_does_not_exist_is_used_as_soon_as_it_does() {
    let bench = Bench::shared();
    let Err(AppendError::Unavailable { reason }) = bench.append("k", "v").await else { panic!("it does not exist") };
    assert_eq!(reason, format!("topic {} does not exist", bench.topic));
    assert_eq!(bench.producer.ready(), Ok(()));
    let bench = bench.with_topic(Kafka::shared(), 1, &[]);
    assert_eq!(bench.append("k", "v").await, Ok(Position { partition: 0, offset: 0 }));
}

#[tokio::test]
async fn topic_that_grows_is_used_whole() {
    let bench = Bench::new(Kafka::shared().address(), |config| config.metadata_refresh = Duration::from_millis(100))
        .with_topic(Kafka::shared(), 1, &[]);
    bench.append("k", "v").await.expect("it is stored");
    Kafka::shared().grow_topic(&bench.topic, 4);
    let key = (0..).map(|n| format!("key {n}")).find(|key| partition_of(key.as_bytes(), 4) == 3).expect("there is one");
    wait_until("the new partition to be used", async || {
        bench.append(&key, "v").await.expect("it is stored").partition == 3
    })
    .await;
    assert_eq!(bench.producer.partitions(&bench.topic), Some(4));
}

/// Two brokers, both of which must have a record.
#[tokio::test]
async fn refusals_for_want_of_replicas_are_tried_again_until_the_deadline() {
    let kafka = Kafka::start();
    let mut other = kafka.start_beside();
    let bench = Bench::new(kafka.address(), |_| ());
    kafka.create_topic_on(&bench.topic, &[1, 2], &[("min.insync.replicas", "2")]);
    bench.append("k", "v").await.expect("both have it");
    other.kill9();
    // An append that is under way when the second dies waits for it; later ones are refused.
    let mut impatient = Bench::new(kafka.address(), |config| {
        config.topic = bench.topic.as_str().into();
        config.produce_timeout = Duration::from_millis(500);
    });
    impatient.topic.clone_from(&bench.topic);
    wait_until("the refusal", async || {
        let result = impatient.append("k", "v").await;
        result.is_err_and(|error| is_for_want(&error))
    })
    .await;
    let mend = async {
        wait_until("the trouble", async || bench.producer.ready().is_err_and(|error| is_for_want(&error))).await;
        other.restart_without_waiting();
    };
    let (appended, ()) = tokio::join!(bench.append("k", "v"), mend);
    appended.expect("both are there again");
    assert_eq!(bench.producer.ready(), Ok(()));
}

fn is_for_want(error: &AppendError) -> bool {
    matches!(error, AppendError::Unavailable { reason } if reason.contains("NotEnoughReplicas"))
}

#[tokio::test]
async fn partition_is_followed_to_its_next_leader() {
    let kafka = Kafka::start();
    let mut other = kafka.start_beside();
    let bench = Bench::new(kafka.address(), |_| ());
    kafka.create_topic_on(&bench.topic, &[2, 1], &[]);
    bench.append("k", "v").await.expect("the second leads, and both have it");
    other.kill9();
    bench.append("k", "v").await.expect("the first leads now");
}

#[tokio::test]
async fn batch_that_the_topic_refuses_as_too_large_is_sent_in_parts() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 1, &[("max.message.bytes", "3000")]);
    let appends = join_all((0..60).map(|n| bench.append("k", vec![b'v'; if n == 30 { 4000 } else { 500 }]))).await;
    for (n, result) in appends.iter().enumerate() {
        match result {
            Err(AppendError::TooLarge { .. }) => assert_eq!(n, 30),
            result => assert!(result.is_ok() && n != 30, "{n}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn record_over_the_limit_is_sent_to_nobody() {
    let bench = Bench::new("127.0.0.1:1".to_owned(), |config| config.max_record_bytes = 1000);
    let result = bench.append("k", vec![b'v'; 1000]).await;
    assert_eq!(result, Err(AppendError::TooLarge { bytes: 1041, limit: 1000 }));
}

#[tokio::test]
async fn append_that_nobody_waits_for_holds_nobody_up() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 1, &[]);
    for n in 0..50 {
        let append = bench.append("k", "v");
        let _ = tokio::time::timeout(Duration::from_micros(n * 50), append).await;
    }
    bench.append("k", "v").await.expect("it is stored");
    bench.producer.close().await;
    assert_eq!(bench.producer.shared.waiting_bytes.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn closing_finishes_what_waits() {
    let bench = Bench::shared().with_topic(Kafka::shared(), 3, &[]);
    bench.append("k", "v").await.expect("it is stored");
    let keys: Vec<String> = (0..400).map(|n| n.to_string()).collect();
    let mut appends = std::pin::pin!(join_all(keys.iter().map(|key| bench.append(key, "v"))));
    // They are all queued when it begins.
    assert!(futures_util::poll!(&mut appends).is_pending());
    let (appends, ()) = tokio::join!(appends, bench.producer.close());
    assert!(appends.iter().all(Result::is_ok), "{appends:?}");
    assert_eq!(bench.append("k", "v").await, Err(AppendError::Closed));
    assert_eq!(bench.producer.ready(), Err(AppendError::Closed));
}

#[tokio::test]
async fn append_outlives_the_death_of_its_broker() {
    let mut kafka = Kafka::start();
    let bench = Bench::new(kafka.address(), |_| ()).with_topic(&kafka, 1, &[]);
    bench.append("k", "v").await.expect("it is stored");
    kafka.kill9();
    let restart = async {
        wait_until("the trouble", async || bench.producer.ready().is_err()).await;
        kafka.restart_without_waiting();
    };
    let (appended, ()) = tokio::join!(bench.append("k", "v"), restart);
    assert_eq!(appended, Ok(Position { partition: 0, offset: 1 }));
}

/// Connections to a port, as the system counts them.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("/proc is there");
    let peer = format!("0100007F:{port:04X}");
    // 01 is established.
    table.lines().filter(|line| line.split_whitespace().nth(2) == Some(&*peer) && line.contains(" 01 ")).count()
}

/// A broker that hangs is met by a fresh client each time, and the stuck ones go.
#[tokio::test]
async fn broker_that_hangs_again_and_again_leaves_nothing_behind() {
    let kafka = Kafka::start();
    let bench = Bench::new(kafka.address(), |config| config.produce_timeout = Duration::from_millis(150)).with_topic(
        &kafka,
        1,
        &[],
    );
    let succeeds = async || wait_until("an append", async || bench.append("k", "v").await.is_ok()).await;
    let counted = || (connections_to(kafka.port()), tokio::runtime::Handle::current().metrics().num_alive_tasks());
    succeeds().await;
    let before = counted();
    let mut in_doubt = 0;
    for _ in 0..50 {
        kafka.stop();
        let start = Instant::now();
        // Some wait in the queue behind the one in flight; some are too large for the buffers of a connection.
        let value = vec![b'v'; 256 << 10];
        let (first, second) = tokio::join!(bench.append("k", value.clone()), bench.append("k", value));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        for result in [first, second] {
            match result {
                Err(AppendError::FateUnknown) => in_doubt += 1,
                result => assert!(is_unavailable(&result), "{result:?}"),
            }
        }
        kafka.cont();
        succeeds().await;
    }
    assert!(in_doubt >= 50, "{in_doubt}");
    wait_until("connections and tasks to be as before", async || counted() <= before).await;
    assert_eq!(bench.producer.shared.waiting_bytes.load(Ordering::Relaxed), 0);
}
