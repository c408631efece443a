//! Reading from real brokers.

use std::{collections::BTreeMap, sync::atomic::AtomicI64};

use jiff::Timestamp;
use kafka_protocol::{
    messages::{
        ProduceRequest, ProduceResponse, TopicName,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    protocol::StrBytes,
};
use rskafka::{
    client::{
        ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record as KafkaRecord,
};
use tokio::time::Instant;

use super::*;
use crate::log::kafka::{
    batch::testing::{batch, pack, raw_batch},
    testing::{Kafka, unique},
    wire::{Address, Call, Dialer},
};

mod scripted;

const ALL: usize = usize::MAX;

/// A topic of one partition, with a client that writes to it as any other would.
struct Bench {
    source: Source,
    topic: Arc<str>,
    client: PartitionClient,
    /// What the next record says of the time. It goes in seconds, so that segments end soon.
    clock: AtomicI64,
}

fn source(config: Arc<Config>) -> Source {
    Source {
        config,
        security: Security::default(),
        depths: Arc::default(),
        lost: Arc::default(),
        unreadable: Arc::default(),
        closing: CancellationToken::new(),
    }
}

/// The first records are as old as this.
const START: Duration = Duration::from_secs(3600);

impl Bench {
    async fn new(kafka: &Kafka, configs: &[(&str, &str)]) -> Self {
        let topic: Arc<str> = unique("fetch").into();
        kafka.create_topic(&topic, 1, configs);
        let config = Arc::new(Config { brokers: vec![kafka.address()], topic: topic.clone(), ..Config::default() });
        let client = ClientBuilder::new(config.brokers.clone()).build().await.expect("it is up");
        let client = client.partition_client(&*topic, 0, UnknownTopicHandling::Retry).await.expect("it is there");
        let source = source(config);
        let start = Timestamp::now() - START;
        Self { source, topic, client, clock: start.as_millisecond().into() }
    }

    async fn produce(&self, values: &[&str]) {
        self.produce_in(values, Compression::NoCompression).await;
    }

    async fn produce_in(&self, values: &[&str], compression: Compression) {
        let timestamp = self.clock.fetch_add(1000, Ordering::Relaxed);
        let record = |value: &&str| KafkaRecord {
            key: Some(b"k".to_vec()),
            value: Some(value.as_bytes().to_vec()),
            headers: BTreeMap::new(),
            timestamp: chrono::DateTime::from_timestamp_millis(timestamp).expect("it is in range"),
        };
        let records = values.iter().map(record).collect();
        self.client.produce(records, compression).await.expect("it is taken");
    }

    /// Produces a batch as it is.
    async fn produce_raw(&self, kafka: &Kafka, batch: Vec<u8>) {
        let config = Config { brokers: vec![kafka.address()], ..Config::default() };
        let address = Address::parse(&kafka.address()).expect("it is one");
        let mut connection = Dialer::new(&config, Security::default()).connect(&address).await.expect("it is up");
        let partition = PartitionProduceData::default().with_index(0).with_records(Some(batch.into()));
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_string(self.topic.to_string())))
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic]);
        let answer = connection.call(&request, Duration::from_secs(30)).await.expect("it answers");
        let taken = &answer.responses[0].partition_responses[0];
        assert_eq!(taken.error_code, 0, "{taken:?}");
    }

    fn reader(&self, from: Option<u64>) -> Fetcher {
        Fetcher::new(self.source.clone(), (self.topic.clone(), 0), from)
    }
}

impl Call for ProduceRequest {
    const NAME: &str = "ProduceRequest";
    const KEY: i16 = 0;
    const VERSION: i16 = 7;
    const NEWER: Option<i16> = None;
    type Answer = ProduceResponse;
}

/// In zstd, as a frame of one block that is not compressed.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("it is short");
    let block = (u32::from(length) << 3 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, length], &block[..3], bytes].concat()
}

/// Reads until `count` records are there, over errors that pass.
async fn read(reader: &mut Fetcher, count: usize) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while found.len() < count {
        match tokio::time::timeout_at(deadline, reader.next(ALL)).await.expect("a record is due") {
            Ok(entries) => found.extend(
                entries.iter().map(|entry| (entry.offset, String::from_utf8_lossy(&entry.record.value).into_owned())),
            ),
            Err(error) => {
                assert!(matches!(error, ReadError::Unavailable { .. }), "{error:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    found
}

fn owned(found: &[(u64, &str)]) -> Vec<(u64, String)> {
    found.iter().map(|(offset, value)| (*offset, (*value).to_owned())).collect()
}

#[tokio::test]
async fn records_are_read_from_where_it_was_said_and_waited_for() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    bench.produce(&["a", "b", "c"]).await;
    assert_eq!(read(&mut bench.reader(None), 3).await, owned(&[(0, "a"), (1, "b"), (2, "c")]));
    // In the middle of a batch.
    let mut reader = bench.reader(Some(1));
    assert_eq!(read(&mut reader, 2).await, owned(&[(1, "b"), (2, "c")]));
    let (found, ()) = tokio::join!(read(&mut reader, 1), bench.produce(&["d"]));
    assert_eq!(found, owned(&[(3, "d")]));
    assert_eq!(bench.source.depths.all()[0].1.end, 4);
}

#[tokio::test]
async fn record_says_when_it_was_appended() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    let now = bench.clock.load(Ordering::Relaxed);
    bench.produce(&["a"]).await;
    let entries = bench.reader(None).next(ALL).await.expect("it can be read");
    assert_eq!(entries[0].appended_at_ms, Some(now));
}

#[tokio::test]
async fn what_is_over_the_bound_comes_next_time() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    bench.produce(&["aaaa", "bbbb", "cccc"]).await;
    let mut reader = bench.reader(None);
    let values = |entries: Vec<Entry>| entries.iter().map(|entry| entry.offset).collect::<Vec<_>>();
    assert_eq!(values(reader.next(8).await.expect("it can be read")), [0, 1]);
    assert_eq!(values(reader.next(1).await.expect("it can be read")), [2]);
}

#[tokio::test]
async fn dropped_reads_lose_nothing_wherever_they_are_dropped() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    let mut reader = bench.reader(None);
    let values: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let mut found = Vec::new();
    for (n, value) in values.iter().enumerate() {
        bench.produce(&[value]).await;
        let bound = Duration::from_micros(n as u64 * 40);
        if let Ok(entries) = tokio::time::timeout(bound, reader.next(ALL)).await {
            found.extend(entries.expect("it can be read").into_iter().map(|entry| entry.offset));
        }
    }
    let left = values.len() - found.len();
    found.extend(read(&mut reader, left).await.into_iter().map(|(offset, _)| offset));
    assert_eq!(found, (0..40).collect::<Vec<u64>>());
}

#[tokio::test]
async fn holes_that_a_compaction_left_are_stepped_over() {
    let configs = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "100"),
        ("min.compaction.lag.ms", "0"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "0"),
    ];
    let kafka = Kafka::start_with(|_| crate::log::kafka::testing::Setup {
        properties: vec!["log.cleaner.backoff.ms=100".to_owned(), "log.initial.task.delay.ms=100".to_owned()],
        ..Default::default()
    });
    let bench = Bench::new(&kafka, &configs).await;
    for n in 0..30 {
        bench.produce(&[&n.to_string()]).await;
    }
    // The segment being written is never compacted: each record may begin a new one.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = 29;
    loop {
        last += 1;
        bench.produce(&[&last.to_string()]).await;
        let mut reader = bench.reader(None);
        let (offset, value) = read(&mut reader, 1).await.remove(0);
        assert_eq!(value, offset.to_string());
        if offset >= 29 {
            break;
        }
        assert!(Instant::now() < deadline, "nothing was compacted: the first record is {offset}");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    // From a hole on, and from its middle.
    for from in [0, 7] {
        let found = read(&mut bench.reader(Some(from)), 1).await;
        assert!(found[0].0 >= 29, "{found:?}");
    }
}

#[tokio::test]
async fn records_that_were_deleted_unread_are_counted() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    bench.produce(&["a", "b", "c", "d"]).await;
    let mut reader = bench.reader(Some(1));
    bench.client.delete_records(3, 10_000).await.expect("they are deleted");
    assert_eq!(read(&mut reader, 1).await, owned(&[(3, "d")]));
    assert_eq!(bench.source.lost.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn partition_that_ends_too_early_is_not_read_again() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    bench.produce(&["a"]).await;
    let mut reader = bench.reader(Some(5));
    for _ in 0..2 {
        let error = reader.next(ALL).await.expect_err("there is no such offset");
        assert!(
            matches!(&error, ReadError::Unavailable { reason } if reason.contains("OffsetOutOfRange")),
            "{error:?}"
        );
    }
    assert_eq!(bench.source.lost.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn reading_goes_on_after_the_broker_died() {
    let mut kafka = Kafka::start();
    let bench = Bench::new(&kafka, &[]).await;
    bench.produce(&["a"]).await;
    let mut reader = bench.reader(None);
    assert_eq!(read(&mut reader, 1).await, owned(&[(0, "a")]));
    assert!(reader.next(ALL).now_or_never().is_none(), "a fetch waits");
    kafka.kill9();
    let error = reader.next(ALL).await.expect_err("it is gone");
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error:?}");
    kafka.restart();
    let ((), found) = tokio::join!(bench.produce(&["b"]), read(&mut reader, 1));
    assert_eq!(found, owned(&[(1, "b")]));
}

#[tokio::test]
async fn broker_that_hangs_is_given_up() {
    let kafka = Kafka::start();
    let mut bench = Bench::new(&kafka, &[]).await;
    let request_timeout = Duration::from_millis(100);
    bench.source.config = Arc::new(Config { request_timeout, ..Config::clone(&bench.source.config) });
    bench.produce(&["a"]).await;
    let mut reader = bench.reader(None);
    assert_eq!(read(&mut reader, 1).await, owned(&[(0, "a")]));
    kafka.stop();
    let error = reader.next(ALL).await.expect_err("it hangs");
    let ReadError::Unavailable { reason } = error else { panic!("{error:?}") };
    assert!(reason.ends_with("did not answer FetchRequest within 5100 ms"), "{reason}");
    kafka.cont();
    let ((), found) = tokio::join!(bench.produce(&["b"]), read(&mut reader, 1));
    assert_eq!(found, owned(&[(1, "b")]));
}

#[tokio::test]
async fn closed_log_is_read_to_its_end() {
    let bench = Bench::new(Kafka::shared(), &[]).await;
    bench.produce(&["a"]).await;
    let mut reader = bench.reader(None);
    let mut waiting = bench.reader(Some(1));
    assert!(waiting.next(ALL).now_or_never().is_none());
    let close = async { bench.source.closing.cancel() };
    assert_eq!(tokio::join!(waiting.next(ALL), close).0, Err(ReadError::Closed));
    assert_eq!(reader.next(ALL).await.expect("it is there")[0].offset, 0);
    assert_eq!(reader.next(ALL).await, Err(ReadError::Closed));
}

#[tokio::test]
async fn odd_records_of_other_producers_stop_nothing() {
    let kafka = Kafka::shared();
    let bench = Bench::new(kafka, &[]).await;
    let now = Timestamp::now().as_millisecond();
    bench.produce(&["first"]).await;
    bench
        .produce_raw(
            kafka,
            batch(0, now, &[(b"without a value", &[(b"h", None)]), (b"odd name", &[(b"\xff", Some(b"v"))])]),
        )
        .await;
    let packed = pack(&[(b"in zstd", &[]), (b"as well", &[])]);
    bench.produce_raw(kafka, raw_batch(4, now, 2, &zstd(&packed))).await;
    bench.produce(&["last"]).await;
    let mut reader = bench.reader(None);
    let found = read(&mut reader, 5).await;
    let whole = found.iter().filter(|(offset, _)| *offset != 4).cloned().collect::<Vec<_>>();
    assert_eq!(whole, owned(&[(0, "first"), (1, "without a value"), (2, "odd name"), (5, "last")]));
    assert!(found[3].1.contains("in zstd"), "its bytes are there: {}", found[3].1);
    assert_eq!(bench.source.unreadable.load(Ordering::Relaxed), 1);
    // From the middle of it, as after a restart.
    assert_eq!(read(&mut bench.reader(Some(2)), 3).await[0], (2, "odd name".to_owned()));
}

#[tokio::test]
async fn tasks_of_aborted_transactions_are_left_out_wherever_reading_begins() {
    let kafka = Kafka::shared();
    let bench = Bench::new(kafka, &[]).await;
    let mut aborting = kafka.transactional(&bench.topic, 0);
    let mut committing = kafka.transactional(&bench.topic, 0);
    // Each is longer than one answer.
    let long = vec![b'x'; 2 * FETCH_BYTES as usize / 3];
    let aborted = [b"aborted ", &long[..]].concat();
    kafka.produce(&bench.topic, 0, b"k", b"before");
    for _ in 0..2 {
        aborting.produce(b"k", &aborted);
        committing.produce(b"k", b"committed");
        kafka.produce(&bench.topic, 0, b"k", &long);
        aborting.produce(b"k", &aborted);
    }
    aborting.abort();
    aborting.produce(b"k", b"committed later");
    aborting.commit();
    committing.commit();
    let long = String::from_utf8(long).expect("it is text");
    // Behind what ends comes a marker.
    let deadline = Instant::now() + Duration::from_secs(60);
    while kafka.end_of(&bench.topic, 0) < Some(13) {
        assert!(Instant::now() < deadline, "the transactions do not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kafka.produce(&bench.topic, 0, b"k", b"behind");
    let expected = [
        (0, "before"),
        (2, "committed"),
        (3, &long),
        (6, "committed"),
        (7, &long),
        (10, "committed later"),
        (13, "behind"),
    ];
    for from in 0..=13 {
        let expected: Vec<(u64, &str)> = expected.iter().filter(|(offset, _)| *offset >= from).copied().collect();
        let found = read(&mut bench.reader(Some(from)), expected.len()).await;
        assert!(found == owned(&expected), "from {from}: {:?}", found.iter().map(|(at, _)| at).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn it_is_told_how_far_there_is_nothing() {
    let kafka = Kafka::shared();
    let bench = Bench::new(kafka, &[]).await;
    bench.produce(&["first", "second"]).await;
    let mut reader = bench.reader(None);
    assert_eq!((reader.next(1).await.expect("it comes").len(), reader.position()), (1, None));
    assert_eq!((reader.next(1).await.expect("it is there").len(), reader.position()), (1, Some(2)));
    let mut aborting = kafka.transactional(&bench.topic, 0);
    for _ in 0..2 {
        aborting.produce(b"k", b"aborted");
    }
    aborting.abort();
    let mut position = Some(2);
    while position < Some(5) {
        let entries = timeout(Duration::from_secs(60), reader.next(ALL)).await.expect("it moves");
        assert_eq!(entries, Ok(Vec::new()));
        assert!(reader.position() > position, "there is neither a record nor news");
        position = reader.position();
    }
    let (found, ()) = tokio::join!(read(&mut reader, 1), bench.produce(&["behind"]));
    assert_eq!(found, owned(&[(5, "behind")]));
}

#[tokio::test]
async fn topic_that_a_broker_compresses_otherwise_stops_nothing() {
    let kafka = Kafka::shared();
    let bench = Bench::new(kafka, &[("compression.type", "zstd")]).await;
    bench.produce(&["one", "two"]).await;
    let mut reader = bench.reader(None);
    assert_eq!(read(&mut reader, 1).await[0].0, 1);
    kafka.set_topic_config(&bench.topic, "compression.type", "producer");
    // What is in charge of the partition hears of it a little later.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        bench.produce(&["three"]).await;
        if read(&mut reader, 1).await[0].1 == "three" {
            break;
        }
        assert!(Instant::now() < deadline, "it is compressed still");
    }
}

#[tokio::test]
async fn records_that_others_have_compressed_are_read() {
    let kafka = Kafka::shared();
    let long = "long ".repeat(100);
    // Java's Snappy is another one.
    let cases = [
        (Compression::Gzip, "producer"),
        (Compression::Snappy, "producer"),
        (Compression::NoCompression, "gzip"),
        (Compression::NoCompression, "snappy"),
    ];
    for (by_producer, by_broker) in cases {
        let bench = Bench::new(kafka, &[("compression.type", by_broker)]).await;
        bench.produce_in(&["a", &long], by_producer).await;
        assert_eq!(read(&mut bench.reader(None), 2).await, owned(&[(0, "a"), (1, &long)]));
        assert_eq!(bench.source.unreadable.load(Ordering::Relaxed), 0, "{by_producer:?} {by_broker}");
    }
}
