//! The whole of it, on real brokers.

use bytes::Bytes;
use futures_util::StreamExt;

use super::{
    testing::{Kafka, unique},
    *,
};
use crate::log::{
    Assigned,
    conformance::{self, queue, read, record, values},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(address: String) -> Config {
    let name: Arc<str> = unique("log").into();
    Config {
        brokers: vec![address],
        topic: name.clone(),
        group: name,
        partitions: 1,
        // As long as a busy machine needs, where the time is not what is tested.
        produce_timeout: Duration::from_secs(30),
        metadata_refresh: Duration::from_secs(1),
        ..Config::default()
    }
}

fn open_with(config: Config) -> KafkaLog {
    KafkaLog::open(config, HashMap::new()).expect("it names no files")
}

async fn open() -> (KafkaLog, ()) {
    (open_with(config(Kafka::shared().address())), ())
}

// All but `queue_is_assigned_when_it_comes_to_exist`: whoever consumes a queue makes its topic, so that the group knows
// what there is to share out.
conformance::suite!(open;
    appended_records_are_read_in_order
    reader_waits_until_a_record_is_appended
    reader_keeps_to_the_bytes_asked_for_but_hands_out_one
    dropped_read_loses_nothing
    records_appended_together_lie_next_to_each_other
    concurrent_appends_are_each_read_once
    next_assignment_starts_from_the_last_checkpoint
    assignment_comes_with_a_valid_lease
    old_epoch_commits_nothing
    queues_do_not_share_records
    tail_has_the_last_records
    depth_says_what_is_left
    table_keeps_the_last_write_of_each_key
    table_scan_stops_when_told_to
    closed_log_takes_nothing_and_ends_its_readers
);

/// The next thing that happens to partitions.
async fn next(stream: &mut BoxStream<'static, Assignment>) -> Assignment {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something is due").expect("it goes on")
}

async fn next_assigned(stream: &mut BoxStream<'static, Assignment>) -> Assigned {
    match next(stream).await {
        Assignment::Assigned(assigned) => assigned,
        Assignment::Revoking { partition, .. } => panic!("{partition} is revoked"),
        Assignment::Lost { partition } => panic!("{partition} is lost"),
    }
}

fn with_key(key: &str) -> NewRecord {
    NewRecord { ordering_key: Bytes::copy_from_slice(key.as_bytes()), ..record(key) }
}

#[test]
fn topics_are_named_after_target_and_lane() {
    let check = |target: &str, lane: &'static str, topic: &str| {
        let queue = QueueName { target: target.into(), lane };
        assert_eq!(topic_of("redis-retry-queue", &queue), topic);
        assert_eq!(queue_of("redis-retry-queue", topic), Some(queue));
    };
    check("default", "normal", "redis-retry-queue");
    check("default", "high", "redis-retry-queue.high");
    check("default", "low", "redis-retry-queue.low");
    check("sessions", "normal", "redis-retry-queue.sessions");
    check("sessions", "low", "redis-retry-queue.sessions.low");
    for other in
        ["other", "redis-retry-queue.dlq", "redis-retry-queue.a.b", "redis-retry-queue2", "redis-retry-queue.a.low.x"]
    {
        assert_eq!(queue_of("redis-retry-queue", other), None, "{other}");
    }
}

#[tokio::test]
async fn target_with_the_name_of_a_lane_is_refused() {
    let identities = HashMap::from([("high".into(), "redis://h".into())]);
    assert!(matches!(KafkaLog::open(config("127.0.0.1:1".into()), identities), Err(OpenError::ReservedTarget(_))));
}

#[tokio::test]
async fn lanes_of_a_target_have_as_many_partitions_and_all_are_consumed() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    kafka.create_topic(&format!("{}.low", config.topic), 3, &[]);
    let log = open_with(config);
    let queues = ["normal", "low"].map(queue);
    let mut stream = log.consume(queues.to_vec());
    let mut assigned = Vec::new();
    for _ in 0..6 {
        assigned.push(next_assigned(&mut stream).await);
    }
    let mut partitions: Vec<Partition> = assigned.iter().map(|assigned| assigned.partition.clone()).collect();
    partitions.sort_unstable();
    partitions.dedup();
    assert_eq!(partitions.len(), 6, "{partitions:?}");

    let keys: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for queue in &queues {
        let appended = log.append_many(queue, keys.iter().map(|key| with_key(key)).collect()).await.expect("stored");
        for assigned in assigned.iter_mut().filter(|assigned| assigned.partition.queue == *queue) {
            let here = keys.iter().zip(&appended);
            let here = here.filter(|(_, appended)| appended.position.partition == assigned.partition.index);
            let expected: Vec<String> = here.map(|(key, _)| key.clone()).collect();
            assert!(!expected.is_empty());
            assert_eq!(values(&read(assigned, expected.len()).await), expected);
        }
    }
}

#[tokio::test]
async fn partitions_move_to_a_second_process_with_their_checkpoints() {
    let config = Config { partitions: 2, ..config(Kafka::shared().address()) };
    let (first, second) = (open_with(config.clone()), open_with(config));
    let queue = queue("normal");
    let mut of_first = first.consume(vec![queue.clone()]);
    let mut held = [next_assigned(&mut of_first).await, next_assigned(&mut of_first).await];
    let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    first.append_many(&queue, keys.iter().map(|key| with_key(key)).collect()).await.expect("they are stored");

    let mut of_second = second.consume(vec![queue.clone()]);
    let hand_over = async {
        let Assignment::Revoking { partition, done } = next(&mut of_first).await else { panic!("none is revoked") };
        let assigned = held.iter_mut().find(|held| held.partition == partition).expect("it is one of them");
        let entries = read(assigned, 2).await;
        let checkpoint = Checkpoint { watermark: entries[1].offset, state: Bytes::from_static(&[0, 255]) };
        first.commit(&partition, assigned.epoch, checkpoint.clone()).await.expect("it is still owned");
        drop(done);
        (partition, checkpoint, values(&entries[1..2]))
    };
    let ((partition, checkpoint, next_value), mut taken) =
        tokio::join!(hand_over, async { next_assigned(&mut of_second).await });
    assert_eq!((&taken.partition, taken.checkpoint.as_ref()), (&partition, Some(&checkpoint)));
    assert_eq!(values(&read(&mut taken, 1).await[..1]), next_value);
    let assigned = held.iter().find(|held| held.partition == partition).expect("it is one of them");
    let late = first.commit(&partition, assigned.epoch, Checkpoint::default()).await;
    assert_eq!(late, Err(CommitError::EpochOver));
}

#[tokio::test]
async fn checkpoint_that_kafka_cannot_keep_is_refused_and_harms_nothing() {
    let (log, ()) = open().await;
    let queue = queue("normal");
    let assigned = conformance::assigned(&log, &queue).await;
    let commit = async |bytes: usize| {
        let checkpoint = Checkpoint { watermark: 0, state: vec![7; bytes].into() };
        log.commit(&assigned.partition, assigned.epoch, checkpoint).await
    };
    assert_eq!(commit(3072).await, Ok(()));
    assert!(matches!(commit(3073).await, Err(CommitError::Unavailable { .. })));
    assert_eq!(commit(3072).await, Ok(()));
}

#[tokio::test]
async fn log_that_is_opened_before_its_kafka_works_when_that_is_there() {
    let mut kafka = Kafka::start();
    kafka.terminate();
    let log = open_with(config(kafka.address()));
    let queue = queue("normal");
    let mut stream = log.consume(vec![queue.clone()]);
    assert!(futures_util::poll!(stream.next()).is_pending());
    kafka.restart();
    let (mut assigned, appended) = tokio::join!(next_assigned(&mut stream), log.append(&queue, record("a")));
    assert_eq!(appended.expect("it is stored").durability, Durability::Kafka);
    assert_eq!(values(&read(&mut assigned, 1).await), ["a"]);
}
