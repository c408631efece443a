//! What every [`Log`](super::Log) must do, whatever is behind it. `suite!(open)` runs all of it as tests of the module
//! that says so; `open` makes an empty log and something to keep alive beside it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};

use super::{
    AppendError, Assigned, Assignment, BootTime, Checkpoint, Checkpointing, CommitError, Entry, HeadersBuilder, Log,
    NewRecord, Partition, QueueName, ReadError, Record, TableEntry, TableError,
};

/// A test for each property.
macro_rules! suite {
    ($open:path) => {
        $crate::log::conformance::suite!($open;
            appended_records_are_read_in_order
            reader_waits_until_a_record_is_appended
            reader_keeps_to_the_bytes_asked_for_but_hands_out_one
            dropped_read_loses_nothing
            queue_is_assigned_when_it_comes_to_exist
            records_appended_together_lie_next_to_each_other
            concurrent_appends_are_each_read_once
            next_assignment_starts_from_the_last_checkpoint
            assignment_comes_with_a_valid_lease
            state_as_long_as_is_allowed_is_kept
            old_epoch_commits_nothing
            queues_do_not_share_records
            tail_has_the_last_records
            depth_says_what_is_left
            table_keeps_the_last_write_of_each_key
            table_scan_stops_when_told_to
            closed_log_takes_nothing_and_ends_its_readers
        );
    };
    ($open:path; $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let (log, _kept) = $open().await;
                let body = $crate::log::conformance::$name(&log);
                tokio::time::timeout(std::time::Duration::from_secs(60), body).await.expect("it hangs");
            }
        )*
    };
}
pub(crate) use suite;

const ALL: usize = usize::MAX;

pub(crate) fn queue(lane: &'static str) -> QueueName {
    QueueName { target: "default".into(), lane }
}

pub(crate) fn record(value: &str) -> NewRecord {
    let mut headers = HeadersBuilder::default();
    headers.push("length", value.len().to_string().as_bytes());
    let record = Record { headers: headers.build(), value: Bytes::copy_from_slice(value.as_bytes()) };
    NewRecord { ordering_key: Bytes::from_static(b"k"), record }
}

pub(crate) async fn append(log: &dyn Log, queue: &QueueName, value: &str) -> u64 {
    log.append(queue, record(value)).await.expect("there is room").position.offset
}

pub(crate) async fn assigned(log: &dyn Log, queue: &QueueName) -> Assigned {
    match log.consume(vec![queue.clone()]).next().await {
        Some(Assignment::Assigned(assigned)) => assigned,
        _ => panic!("queue {queue} was not assigned"),
    }
}

/// The assignment of a queue that nothing was appended to, brought about by a record that is read.
async fn assigned_when_made(log: &dyn Log, queue: &QueueName) -> Assigned {
    let (mut assigned, _) = tokio::join!(assigned(log, queue), append(log, queue, "the first"));
    assert_eq!(values(&read(&mut assigned, 1).await), ["the first"]);
    assigned
}

/// Reads until `count` records are there.
pub(crate) async fn read(assigned: &mut Assigned, count: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    while entries.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(30), assigned.reader.next(ALL));
        entries.extend(next.await.expect("a record is due").expect("it can be read"));
    }
    entries
}

pub(crate) fn values(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.record.value).into_owned()).collect()
}

pub(crate) async fn appended_records_are_read_in_order(log: &dyn Log) {
    let queue = queue("normal");
    let mut offsets = Vec::new();
    for value in ["a", "b", "c"] {
        offsets.push(append(log, &queue, value).await);
    }
    assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
    let mut assigned = assigned(log, &queue).await;
    assert_eq!(assigned.checkpoint, None);
    let entries = read(&mut assigned, 3).await;
    assert_eq!(values(&entries), ["a", "b", "c"]);
    assert_eq!(entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), offsets);
    assert_eq!(entries[1].record, record("b").record);
}

pub(crate) async fn reader_waits_until_a_record_is_appended(log: &dyn Log) {
    let queue = queue("normal");
    let mut assigned = assigned_when_made(log, &queue).await;
    for value in ["a", "b"] {
        let read = assigned.reader.next(ALL);
        let (read, _) = tokio::join!(read, append(log, &queue, value));
        assert_eq!(values(&read.expect("it can be read")), [value]);
    }
}

pub(crate) async fn reader_keeps_to_the_bytes_asked_for_but_hands_out_one(log: &dyn Log) {
    let queue = queue("normal");
    for value in ["aaaa", "bbbb", "cccc"] {
        append(log, &queue, value).await;
    }
    let two = record("aaaa").record.size() * 2;
    let mut assigned = assigned(log, &queue).await;
    assert_eq!(values(&assigned.reader.next(two).await.expect("it can be read")), ["aaaa", "bbbb"]);
    assert_eq!(values(&assigned.reader.next(1).await.expect("it can be read")), ["cccc"]);
}

pub(crate) async fn dropped_read_loses_nothing(log: &dyn Log) {
    let queue = queue("normal");
    let mut assigned = assigned_when_made(log, &queue).await;
    assert!(assigned.reader.next(ALL).now_or_never().is_none());
    for value in ["a", "b", "c"] {
        append(log, &queue, value).await;
        // Given up at its first wait, wherever that is.
        let dropped = assigned.reader.next(ALL).now_or_never();
        let entries = match dropped {
            Some(entries) => entries.expect("it can be read"),
            None => read(&mut assigned, 1).await,
        };
        assert_eq!(values(&entries), [value]);
    }
}

pub(crate) async fn queue_is_assigned_when_it_comes_to_exist(log: &dyn Log) {
    let [first, second, never] = ["low", "high", "normal"].map(queue);
    append(log, &first, "a").await;
    let mut stream = log.consume(vec![never, second.clone(), first.clone()]);
    let mut next = async || match tokio::time::timeout(Duration::from_secs(30), stream.next()).await {
        Ok(Some(Assignment::Assigned(assigned))) => assigned,
        _ => panic!("nothing was assigned"),
    };
    assert_eq!(next().await.partition.queue, first, "it exists already");
    assert_eq!(log.depth().len(), 1, "consuming makes no queue");
    let (mut assigned, _) = tokio::join!(next(), append(log, &second, "b"));
    assert_eq!(assigned.partition.queue, second);
    assert_eq!(values(&read(&mut assigned, 1).await), ["b"]);
}

pub(crate) async fn records_appended_together_lie_next_to_each_other(log: &dyn Log) {
    let queue = queue("normal");
    let together = ["a", "b", "c"].map(record).to_vec();
    let (appended, ..) =
        tokio::join!(log.append_many(&queue, together), append(log, &queue, "x"), append(log, &queue, "y"));
    let appended = appended.expect("there is room");
    let first = appended[0].position.offset;
    assert_eq!(appended.iter().map(|one| one.position.offset).collect::<Vec<_>>(), [first, first + 1, first + 2]);
    let entries = read(&mut assigned(log, &queue).await, 5).await;
    let at = entries.iter().position(|entry| entry.offset == first).expect("it is there");
    assert_eq!(values(&entries[at..at + 3]), ["a", "b", "c"]);
    assert_eq!(log.append_many(&queue, Vec::new()).await, Ok(Vec::new()));
}

pub(crate) async fn concurrent_appends_are_each_read_once(log: &dyn Log) {
    let queue = queue("normal");
    let appends = (0..500).map(|n| {
        let queue = queue.clone();
        async move { (append(log, &queue, &n.to_string()).await, n.to_string()) }
    });
    let mut expected = futures_util::future::join_all(appends).await;
    expected.sort_unstable();
    let entries = read(&mut assigned(log, &queue).await, 500).await;
    let found: Vec<(u64, String)> = entries.iter().map(|entry| entry.offset).zip(values(&entries)).collect();
    assert_eq!(found, expected);
}

pub(crate) async fn next_assignment_starts_from_the_last_checkpoint(log: &dyn Log) {
    let queue = queue("normal");
    for value in ["a", "b", "c"] {
        append(log, &queue, value).await;
    }
    let mut first = assigned(log, &queue).await;
    let entries = read(&mut first, 3).await;
    for (watermark, state) in [(entries[1].offset, "one"), (entries[2].offset, "two")] {
        let checkpoint = Checkpoint { watermark, state: Bytes::from_static(state.as_bytes()) };
        log.commit(&first.partition, first.epoch, checkpoint).await.expect("the epoch is current");
    }
    let mut second = assigned(log, &queue).await;
    let checkpoint = second.checkpoint.clone().expect("it was committed");
    assert_eq!((checkpoint.watermark, &checkpoint.state[..]), (entries[2].offset, &b"two"[..]));
    assert!(second.epoch > first.epoch);
    assert_eq!(values(&read(&mut second, 1).await), ["c"]);
}

pub(crate) async fn assignment_comes_with_a_valid_lease(log: &dyn Log) {
    let queue = queue("normal");
    append(log, &queue, "a").await;
    assert!(assigned(log, &queue).await.lease.is_valid(BootTime::now()));
}

pub(crate) async fn state_as_long_as_is_allowed_is_kept(log: &dyn Log) {
    let queue = queue("normal");
    append(log, &queue, "a").await;
    let longest = log.checkpointing().max_state_bytes;
    assert!(longest >= Checkpointing::LEAST_STATE_BYTES);
    // All kinds of bytes, and no more of them than a log in a test has room for.
    let state: Bytes = (0..longest.min(64 * 1024)).map(|place| (place % 251) as u8).collect();
    let checkpoint = Checkpoint { watermark: 0, state };
    let first = assigned(log, &queue).await;
    log.commit(&first.partition, first.epoch, checkpoint.clone()).await.expect("it is as long as is allowed");
    assert_eq!(assigned(log, &queue).await.checkpoint, Some(checkpoint));
}

pub(crate) async fn old_epoch_commits_nothing(log: &dyn Log) {
    let queue = queue("normal");
    append(log, &queue, "a").await;
    let first = assigned(log, &queue).await;
    let second = assigned(log, &queue).await;
    let late = Checkpoint { watermark: 1, state: Bytes::new() };
    assert_eq!(log.commit(&first.partition, first.epoch, late).await, Err(CommitError::EpochOver));
    assert_eq!(assigned(log, &queue).await.checkpoint, None);
    assert_eq!(
        log.commit(&second.partition, second.epoch, Checkpoint::default()).await,
        Err(CommitError::EpochOver),
        "the third assignment ended it"
    );
}

pub(crate) async fn queues_do_not_share_records(log: &dyn Log) {
    let other_target = QueueName { target: "other".into(), lane: "normal" };
    for (queue, value) in [(queue("normal"), "a"), (queue("low"), "b"), (other_target.clone(), "c")] {
        append(log, &queue, value).await;
        let mut assigned = assigned(log, &queue).await;
        assert_eq!(assigned.partition.queue, queue);
        assert_eq!(values(&read(&mut assigned, 1).await), [value]);
    }
    assert_eq!(log.depth().len(), 3);
}

/// What [`Log::tail`] shows.
pub(crate) fn tail(log: &dyn Log, queue: &QueueName, max_records: usize, max_bytes: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let partition = Partition { queue: queue.clone(), index: 0 };
    log.tail(&partition, max_records, max_bytes, &mut |entry| entries.push(entry)).expect("it can be read");
    entries
}

pub(crate) async fn tail_has_the_last_records(log: &dyn Log) {
    let queue = queue("normal");
    assert_eq!(tail(log, &queue, 10, ALL), [], "a queue that does not exist");
    for n in 0..10 {
        append(log, &queue, &n.to_string()).await;
    }
    let one = record("0").record.size();
    let tail = |records, bytes| values(&tail(log, &queue, records, bytes));
    assert_eq!(tail(3, ALL), ["7", "8", "9"]);
    assert_eq!(tail(100, 2 * one), ["8", "9"]);
    assert_eq!(tail(100, ALL).len(), 10);
    assert!(tail(0, ALL).is_empty());
}

pub(crate) async fn depth_says_what_is_left(log: &dyn Log) {
    let queue = queue("normal");
    for value in ["a", "b", "c"] {
        append(log, &queue, value).await;
    }
    let assigned = assigned(log, &queue).await;
    let checkpoint = Checkpoint { watermark: 2, state: Bytes::new() };
    log.commit(&assigned.partition, assigned.epoch, checkpoint).await.expect("the epoch is current");
    let depth = log.depth();
    assert_eq!(depth.len(), 1);
    assert_eq!((depth[0].end, depth[0].finished), (3, 2));
    assert_eq!(depth[0].partition, assigned.partition);
}

async fn scan(log: &dyn Log, limit: usize) -> Vec<TableEntry> {
    let (send, received) = std::sync::mpsc::channel();
    let mut left = limit;
    let visit = move |entry| {
        let _ = send.send(entry);
        left -= 1;
        left > 0
    };
    log.table("things").expect("it is made").scan(Box::new(visit)).await.expect("it can be read");
    received.into_iter().collect()
}

pub(crate) async fn table_keeps_the_last_write_of_each_key(log: &dyn Log) {
    let table = log.table("things").expect("it is made");
    assert_eq!(scan(log, ALL).await, []);
    let put = |key: &'static str, value: &'static str| {
        let table = table.clone();
        async move { table.put(key.into(), value.into()).await.expect("there is room") }
    };
    let first = put("a", "1").await;
    put("b", "2").await;
    let c = put("c", "3").await;
    let a = put("a", "4").await;
    table.delete("b".into()).await.expect("it is deleted");
    table.delete("never".into()).await.expect("it is no error");
    let entry = |key: &'static str, value: &'static str, position| TableEntry {
        key: key.into(),
        value: value.into(),
        position,
    };
    assert_eq!(scan(log, ALL).await, [entry("c", "3", c), entry("a", "4", a)]);
    assert_eq!(table.read(a).await, Ok(Some(entry("a", "4", a))));
    assert_eq!(table.read(first).await, Ok(None), "it was overwritten");
    let b = put("b", "5").await;
    assert!(b > a);
    assert_eq!(scan(log, ALL).await.last(), Some(&entry("b", "5", b)));
}

pub(crate) async fn table_scan_stops_when_told_to(log: &dyn Log) {
    let table = log.table("things").expect("it is made");
    for key in ["a", "b", "c"] {
        table.put(key.into(), "v".into()).await.expect("there is room");
    }
    assert_eq!(scan(log, 2).await.len(), 2);
}

pub(crate) async fn closed_log_takes_nothing_and_ends_its_readers(log: &dyn Log) {
    let queue = queue("normal");
    append(log, &queue, "a").await;
    let table = log.table("things").expect("it is made");
    let mut stream = log.consume(vec![queue.clone()]);
    let Some(Assignment::Assigned(mut assigned)) = stream.next().await else {
        panic!("it was not assigned");
    };
    assert_eq!(log.ready(), Ok(()));
    log.close().await;
    log.close().await;
    assert_eq!(log.append(&queue, record("b")).await, Err(AppendError::Closed));
    assert_eq!(log.ready(), Err(AppendError::Closed));
    assert_eq!(log.commit(&assigned.partition, assigned.epoch, Checkpoint::default()).await, Err(CommitError::Closed));
    assert_eq!(values(&read(&mut assigned, 1).await), ["a"], "what is durable can still be read");
    assert_eq!(assigned.reader.next(ALL).await, Err(ReadError::Closed));
    assert!(stream.next().await.is_none());
    assert!(matches!(log.table("more"), Err(TableError::Closed)));
    drop(table);
}
