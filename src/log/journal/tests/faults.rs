//! A disk that refuses: full, short of breath, or broken. Whatever it does, no answer is a lie.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    super::{JournalConfig, JournalLog, OpenError, disk::Disk},
    sim::{Faults, SimDisk},
};
use crate::log::{
    AppendError, Checkpoint, CommitError, Log, TableError,
    conformance::{append, assigned, queue, read, record, tail, values},
};

fn open(disk: &SimDisk, max_bytes: u64) -> JournalLog {
    let config = JournalConfig { max_bytes, min_free_bytes: 0, ..JournalConfig::new("/data") };
    JournalLog::open(config, Arc::new(disk.clone())).expect("it opens")
}

fn full(error: Result<impl Sized, AppendError>) -> bool {
    matches!(error, Err(AppendError::Full { .. }))
}

#[tokio::test]
async fn full_disk_refuses_and_goes_on_when_there_is_room() {
    for short_writes in [false, true] {
        let disk = SimDisk::new();
        let log = open(&disk, 1 << 20);
        let queue = queue("normal");
        append(&log, &queue, "before").await;
        disk.set_faults(Faults { room: Some(100), short_writes, ..Faults::default() });
        let large = "x".repeat(40_000);
        assert!(full(log.append(&queue, record(&large)).await));
        disk.set_faults(Faults::default());
        append(&log, &queue, "after").await;
        assert_eq!(values(&read(&mut assigned(&log, &queue).await, 2).await), ["before", "after"]);
        drop(log);
        disk.cut_power(&mut fastrand::Rng::with_seed(1));
        let log = open(&disk, 1 << 20);
        assert_eq!(values(&tail(&log, &queue, 10, 1000)), ["before", "after"]);
        assert_eq!((log.stats().damaged_records(), log.stats().torn_tails()), (0, 0));
    }
}

#[tokio::test]
async fn failed_sync_answers_nobody_and_is_the_end() {
    let disk = SimDisk::new();
    let log = open(&disk, 1 << 20);
    let queue = queue("normal");
    append(&log, &queue, "before").await;
    let mut assigned = assigned(&log, &queue).await;
    assert_eq!(values(&read(&mut assigned, 1).await), ["before"]);
    disk.set_faults(Faults { sync_fails: true, ..Faults::default() });
    assert_eq!(log.append(&queue, record("lost")).await, Err(AppendError::FateUnknown));
    let reason = tokio::time::timeout(Duration::from_secs(10), log.failed()).await.expect("it has failed");
    assert!(reason.contains("the disk is broken"), "{reason}");
    // The disk works again, but what it dropped is not known: there is no second try.
    disk.set_faults(Faults::default());
    assert!(matches!(log.append(&queue, record("later")).await, Err(AppendError::Unavailable { .. })));
    assert!(matches!(log.append(&super::lane("low"), record("later")).await, Err(AppendError::Unavailable { .. })));
    assert!(log.commit(&assigned.partition, assigned.epoch, Checkpoint::default()).await.is_err());
    assert!(log.ready().is_err());
    let table = log.table("things").expect("it is made");
    assert!(matches!(table.put("a".into(), "b".into()).await, Err(TableError::Unavailable { .. })));
    for made in ["queues/default/low", "tables"] {
        assert!(disk.inspect(&Path::new("/data").join(made)).is_err(), "{made} was made after the end");
    }
    let none = tokio::time::timeout(Duration::from_millis(50), assigned.reader.next(1000)).await;
    assert!(none.is_err(), "a reader sees nothing that was not synced");
}

#[tokio::test]
async fn broken_write_that_cannot_be_cut_back_is_the_end() {
    let disk = SimDisk::new();
    let log = open(&disk, 1 << 20);
    let queue = queue("normal");
    append(&log, &queue, "before").await;
    // A part is written, and then neither the rest nor the cut.
    disk.set_faults(Faults { short_writes: true, changes_left: Some(1), ..Faults::default() });
    assert_eq!(log.append(&queue, record("lost")).await, Err(AppendError::FateUnknown));
    log.failed().await;
}

#[tokio::test]
async fn checkpoint_that_could_not_be_read_back_is_refused() {
    let log = open(&SimDisk::new(), 1 << 30);
    let queue = queue("normal");
    append(&log, &queue, "a").await;
    let first = assigned(&log, &queue).await;
    let commit = |watermark, bytes: usize| {
        let checkpoint = Checkpoint { watermark, state: vec![7; bytes].into() };
        log.commit(&first.partition, first.epoch, checkpoint)
    };
    commit(1, 10).await.expect("it is stored");
    for (watermark, bytes, expected) in [(1, 16 << 20, "over the journal's limit"), (2, 10, "beyond the journal's end")]
    {
        match commit(watermark, bytes).await {
            Err(CommitError::Unavailable { reason }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let kept = assigned(&log, &queue).await.checkpoint.expect("there is one");
    assert_eq!((kept.watermark, kept.state.len()), (1, 10), "the one before stays");
}

#[tokio::test]
async fn full_journal_refuses_appends_and_drains() {
    let disk = SimDisk::new();
    let log = open(&disk, 1 << 20);
    let queue = queue("normal");
    let value = "x".repeat(3000);
    let mut stored = 0;
    while !full(log.append(&queue, record(&value)).await) {
        stored += 1;
    }
    assert!((200..350).contains(&stored), "{stored} records of 3 kB in 1 MiB less the reserve");
    assert!(log.stats().disk_bytes() <= (1 << 20) * 9 / 10);
    assert!(full(log.ready()));
    // The reserve is for what lets it drain.
    let table = log.table("dead").expect("it is made");
    table.put("a".into(), value.clone().into()).await.expect("there is a reserve");
    let mut consumer = assigned(&log, &queue).await;
    let entries = read(&mut consumer, stored).await;
    assert_eq!(entries.len(), stored, "nothing was dropped");
    let checkpoint = Checkpoint { watermark: entries[stored - 1].offset + 1, state: Bytes::new() };
    log.commit(&consumer.partition, consumer.epoch, checkpoint).await.expect("there is a reserve");
    append(&log, &queue, "after").await;
    assert_eq!(log.ready(), Ok(()));
    assert_eq!(values(&read(&mut consumer, 1).await), ["after"]);
}

#[tokio::test]
async fn table_reports_a_full_journal() {
    let disk = SimDisk::new();
    let log = open(&disk, 1 << 20);
    let table = log.table("dead").expect("it is made");
    let value = Bytes::from("x".repeat(30_000));
    let refused = async {
        for n in 0.. {
            if let Err(error) = table.put(format!("{n}").into(), value.clone()).await {
                return error;
            }
        }
        unreachable!("a number has an end");
    };
    assert_eq!(refused.await, TableError::Full);
    append(&log, &queue("normal"), "a target's share is its own").await;
}

#[tokio::test]
async fn record_over_the_limit_is_refused() {
    let log = open(&SimDisk::new(), 1 << 20);
    let large = record(&"x".repeat(70_000));
    let refused = log.append(&queue("normal"), large.clone()).await;
    assert!(matches!(refused, Err(AppendError::TooLarge { limit: 65_536, .. })), "{refused:?}");
    assert!(matches!(log.append_many(&queue("normal"), vec![large]).await, Err(AppendError::TooLarge { .. })));
}

#[tokio::test]
async fn queue_to_the_writer_is_bounded() {
    let log = open(&SimDisk::new(), 1 << 30);
    let queue = queue("normal");
    let value = "x".repeat(1 << 20);
    let appends = (0..64).map(|_| log.append(&queue, record(&value)));
    let results = futures_util::future::join_all(appends).await;
    let (stored, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert!((31..64).contains(&stored.len()), "{} stored", stored.len());
    assert!(refused.into_iter().all(full));
    assert_eq!(read(&mut assigned(&log, &queue).await, stored.len()).await.len(), stored.len());
}

#[test]
fn failing_disk_is_said_at_the_start() {
    let disk = SimDisk::new();
    let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
    disk.set_faults(Faults { changes_left: Some(0), ..Faults::default() });
    let refused = JournalLog::open(config, Arc::new(disk));
    assert!(matches!(refused, Err(OpenError::Io { .. })));
}
