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
        // Tests look away for as long as they like.
        stuck_after: Duration::from_secs(600),
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
        Assignment::Lost { partition, .. } => panic!("{partition} is lost"),
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

    let further = Checkpoint { watermark: checkpoint.watermark + 1, ..Checkpoint::default() };
    second.commit(&partition, taken.epoch, further.clone()).await.expect("it is the owner");
    until("the first one sees whose it is, and how far that comes", || {
        let depth = first.depth().into_iter().find(|depth| depth.partition == partition);
        depth.is_some_and(|depth| depth.is_elsewhere() && depth.finished == further.watermark)
    })
    .await;
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
    assert_eq!(commit(3054).await, Ok(()));
    assert!(matches!(commit(3055).await, Err(CommitError::Unavailable { .. })));
    assert_eq!(commit(3054).await, Ok(()));
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

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "it never was so: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// One that knows the queues of the target `default`.
fn knowing(config: &Config) -> KafkaLog {
    KafkaLog::open(config.clone(), HashMap::from([("default".into(), "redis:6379".into())])).expect("it names no files")
}

#[tokio::test]
async fn compacted_topic_is_given_no_tasks_until_it_is_mended() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    kafka.create_topic(&config.topic, 1, &[("cleanup.policy", "compact")]);
    let log = open_with(config.clone());
    let refused = log.append(&queue("normal"), with_key("a")).await;
    let reason = format!("topic {} is given no tasks, as it is compacted", config.topic);
    assert!(
        matches!(&refused, Err(AppendError::Unavailable { reason: said }) if said.starts_with(&reason)),
        "{refused:?}"
    );
    assert!(log.findings().iter().any(|finding| finding.code == admin::FindingCode::CompactedTasks));
    kafka.set_topic_config(&config.topic, "cleanup.policy", "delete");
    let deadline = Instant::now() + PATIENCE;
    while log.append(&queue("normal"), with_key("a")).await.is_err() {
        assert!(Instant::now() < deadline, "it is mended");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn depth_shows_what_others_work_on_and_what_nobody_has_touched() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    let worker = knowing(&config);
    for key in ["a", "b", "c"] {
        worker.append(&queue("normal"), with_key(key)).await.expect("stored");
    }
    let onlooker = knowing(&config);
    let normal = |log: &KafkaLog| log.depth().into_iter().find(|depth| depth.partition.queue == queue("normal"));
    until("it is seen before anybody works on it", || {
        normal(&onlooker).is_some_and(|depth| depth.lag() == 3 && depth.owner == Owner::Nobody)
    })
    .await;
    let mut stream = worker.consume(vec![queue("normal")]);
    let assigned = next_assigned(&mut stream).await;
    let checkpoint = Checkpoint { watermark: 2, ..Checkpoint::default() };
    worker.commit(&assigned.partition, assigned.epoch, checkpoint).await.expect("it is the owner");
    until("it is seen who works on it and how far", || {
        normal(&onlooker).is_some_and(|depth| depth.is_elsewhere() && (depth.end, depth.finished) == (3, 2))
    })
    .await;
    let ours = normal(&worker).expect("it is there");
    assert_eq!((ours.owner.clone(), ours.lag()), (Owner::Us, 1));
}

#[tokio::test]
async fn old_partition_without_a_checkpoint_waits_for_a_person() {
    let kafka = Kafka::shared();
    let config = Config { marker_life: Duration::ZERO, ..config(kafka.address()) };
    let log = open_with(config.clone());
    for key in ["a", "b"] {
        log.append(&queue("normal"), with_key(key)).await.expect("stored");
    }
    let mut stream = log.consume(vec![queue("normal")]);
    let held_by = || log.depth().first().and_then(|depth| depth.held_by);
    let deadline = Instant::now() + PATIENCE;
    while held_by() != Some("no_checkpoint") {
        assert!(Instant::now() < deadline, "nothing is held");
        let assigned = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
        assert!(assigned.is_err(), "it is not handed out");
    }
    log.close().await;

    let log = open_with(Config { beginning: config::Beginning::Latest, ..config.clone() });
    let mut stream = log.consume(vec![queue("normal")]);
    let assigned = next_assigned(&mut stream).await;
    assert_eq!(assigned.checkpoint.map(|checkpoint| checkpoint.watermark), Some(2));
    assert_eq!(log.depth().first().and_then(|depth| depth.held_by), None);
    log.close().await;

    // It was said once and for all.
    let log = open_with(config.clone());
    let mut stream = log.consume(vec![queue("normal")]);
    assert_eq!(next_assigned(&mut stream).await.checkpoint.map(|checkpoint| checkpoint.watermark), Some(2));
    log.close().await;

    let log = open_with(Config { beginning: config::Beginning::Earliest, group: unique("other").into(), ..config });
    let mut stream = log.consume(vec![queue("normal")]);
    let mut assigned = next_assigned(&mut stream).await;
    assert_eq!(values(&read(&mut assigned, 2).await), ["a", "b"]);
}

#[tokio::test]
async fn partition_that_was_held_from_its_beginning_on_is_not_taken_for_one_that_may_have_run() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    let log = open_with(config.clone());
    log.append(&queue("normal"), with_key("a")).await.expect("stored");
    let mut stream = log.consume(vec![queue("normal")]);
    assert_eq!(next_assigned(&mut stream).await.checkpoint, None);
    log.close().await;
    // Nothing was finished, and much later there is another one.
    let log = open_with(Config { marker_life: Duration::ZERO, ..config });
    let mut stream = log.consume(vec![queue("normal")]);
    let mut assigned = next_assigned(&mut stream).await;
    assert_eq!(assigned.checkpoint, None);
    assert_eq!(values(&read(&mut assigned, 1).await), ["a"]);
}

#[tokio::test]
async fn worker_that_makes_no_turn_loses_its_partitions() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    let stuck = open_with(Config { stuck_after: Duration::from_secs(1), ..config.clone() });
    let mut looked_away = stuck.consume(vec![queue("normal")]);
    let lost = next_assigned(&mut looked_away).await;
    let heir = open_with(config);
    let mut stream = heir.consume(vec![queue("normal")]);
    let inherited = next_assigned(&mut stream).await;
    assert_eq!(inherited.partition, lost.partition);
    assert!(!lost.lease.is_valid(crate::log::BootTime::now()));
    let reason = tokio::time::timeout(PATIENCE, stuck.failed()).await.expect("the process ends");
    assert!(reason.contains("the worker of the target default has made no turn for 1 s"), "{reason}");
}

#[tokio::test]
async fn table_tells_what_others_wrote() {
    let kafka = Kafka::shared();
    let config = config(kafka.address());
    let [ours, theirs] = [(); 2].map(|()| open_with(config.clone()));
    let [ours, others] = [&ours, &theirs].map(|log| log.table("dead-letters").expect("it is open"));
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    ours.put(bytes("a"), bytes("1")).await.expect("stored");
    let mark = ours.changes(None, Box::new(|_, _| panic!("nothing is shown"))).await.expect("it answers");
    let position = others.put(bytes("b"), bytes("2")).await.expect("stored");
    others.delete(bytes("a")).await.expect("stored");
    let (sender, receiver) = std::sync::mpsc::channel();
    let visit = move |key: &[u8], position| drop(sender.send((String::from_utf8_lossy(key).into_owned(), position)));
    let next = ours.changes(Some(mark), Box::new(visit)).await.expect("it answers");
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [("b".to_owned(), Some(position)), ("a".to_owned(), None)]);
    let none = ours.changes(Some(next), Box::new(|_, _| panic!("nothing is new"))).await;
    assert_eq!(none, Ok(next));
}
