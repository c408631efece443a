//! Opening a directory of the real file system: who may, what is refused, and what is found again.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    super::{JournalConfig, JournalLog, OpenError, disk::RealDisk},
    config, lane, private_dir,
};
use crate::log::{
    Checkpoint, Log,
    conformance::{append, assigned, queue, read, record, tail, values},
};

fn open(dir: &TempDir) -> Result<JournalLog, OpenError> {
    JournalLog::open(config(dir), Arc::new(RealDisk))
}

#[tokio::test]
async fn everything_is_found_again() {
    let dir = private_dir();
    let queue = queue("normal");
    let log = open(&dir).expect("it opens");
    for value in ["a", "b", "c"] {
        append(&log, &queue, value).await;
    }
    append(&log, &lane("low"), "l").await;
    let first = assigned(&log, &queue).await;
    let checkpoint = Checkpoint { watermark: 1, state: Bytes::from_static(b"state") };
    log.commit(&first.partition, first.epoch, checkpoint.clone()).await.expect("it is stored");
    log.table("things").expect("it is made").put("k".into(), "v".into()).await.expect("it is stored");
    log.close().await;

    let log = open(&dir).expect("it opens");
    let mut second = assigned(&log, &queue).await;
    assert_eq!(second.checkpoint, Some(checkpoint));
    assert_eq!(values(&read(&mut second, 2).await), ["b", "c"]);
    assert_eq!(append(&log, &queue, "d").await, 3);
    assert_eq!(values(&tail(&log, &queue, 9, 999)), ["a", "b", "c", "d"]);
    assert_eq!(log.depth().len(), 2);
    let table = log.table("things").expect("it is there");
    assert_eq!(table.read(0).await.expect("it is read").expect("it is there").value, "v");
    assert!(log.stats().disk_bytes() > 0);
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let dir = private_dir();
    let root = dir.path().join("a/b");
    let log =
        JournalLog::open(JournalConfig { dir: root.clone(), ..config(&dir) }, Arc::new(RealDisk)).expect("it opens");
    append(&log, &queue("normal"), "a").await;
    fn check(path: &Path) -> usize {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if !metadata.is_dir() {
            return 1;
        }
        let inside = fs::read_dir(path).expect("it is read");
        1 + inside.map(|entry| check(&entry.expect("it is read").path())).sum::<usize>()
    }
    assert_eq!(check(&root), 7, "the root, LOCK, queues, target, lane, META, one segment");
}

#[test]
fn second_owner_is_refused_until_the_first_is_gone() {
    let dir = private_dir();
    let first = open(&dir).expect("it opens");
    assert!(matches!(open(&dir), Err(OpenError::InUse { .. })));
    drop(first);
    open(&dir).expect("it is free again");
}

#[tokio::test]
async fn symbolic_links_are_refused() {
    let dir = private_dir();
    let log = open(&dir).expect("it opens");
    append(&log, &queue("normal"), "a").await;
    log.close().await;
    let elsewhere = private_dir();
    let places =
        ["queues/default/normal/0000000009-00000000000000000009.seg", "queues/default/low", "queues/other", "tables"];
    for place in places {
        let link = dir.path().join(place);
        symlink(elsewhere.path(), &link).expect("it is made");
        match open(&dir) {
            Err(OpenError::Symlink { path }) => assert_eq!(path, link),
            Err(other) => panic!("{place}: {other}"),
            Ok(_) => panic!("{place} was followed"),
        }
        fs::remove_file(link).expect("it is there");
    }
    let link = dir.path().with_extension("link");
    symlink(dir.path(), &link).expect("it is made");
    let refused = JournalLog::open(JournalConfig { dir: link.clone(), ..config(&dir) }, Arc::new(RealDisk));
    fs::remove_file(link).expect("it is there");
    assert!(matches!(refused, Err(OpenError::Symlink { .. })));
}

#[test]
fn directory_that_others_may_write_to_is_refused() {
    for mode in [0o770, 0o707] {
        let dir = private_dir();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("it is ours");
        assert!(matches!(open(&dir), Err(OpenError::SharedWritable { .. })), "{mode:o}");
    }
}

#[test]
fn memory_is_refused_unless_allowed() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        // Without a tmpfs at the usual place, what remains to be seen is that a disk is not taken for one.
        let dir = private_dir();
        JournalLog::open(JournalConfig { allow_volatile: false, ..config(&dir) }, Arc::new(RealDisk)).expect("a disk");
        return;
    };
    let refused = JournalLog::open(JournalConfig { allow_volatile: false, ..config(&dir) }, Arc::new(RealDisk));
    assert!(matches!(refused, Err(OpenError::Volatile { .. })));
    open(&dir).expect("it is allowed");
}

#[tokio::test]
async fn reserve_of_the_file_system_is_kept() {
    let dir = private_dir();
    let config = JournalConfig { min_free_bytes: 1 << 60, ..config(&dir) };
    let log = JournalLog::open(config, Arc::new(RealDisk)).expect("it opens");
    assert!(log.append(&queue("normal"), record("a")).await.is_err());
    assert!(log.ready().is_err());
}

#[tokio::test]
async fn finished_segments_are_unlinked_and_two_stay() {
    let dir = private_dir();
    let config = JournalConfig { max_bytes: 1 << 20, ..config(&dir) };
    let log = JournalLog::open(config.clone(), Arc::new(RealDisk)).expect("it opens");
    let queue = queue("normal");
    let value = "x".repeat(2000);
    let files = || {
        let names = fs::read_dir(dir.path().join("queues/default/normal")).expect("it is read");
        names.filter(|name| name.as_ref().is_ok_and(|name| name.path().extension().is_some())).count()
    };
    for _ in 0..200 {
        append(&log, &queue, &value).await;
    }
    assert!(files() > 10, "{}", files());
    let mut consumer = assigned(&log, &queue).await;
    let last = read(&mut consumer, 200).await.pop().expect("there are records").offset;
    let checkpoint = Checkpoint { watermark: last + 1, state: Bytes::new() };
    log.commit(&consumer.partition, consumer.epoch, checkpoint).await.expect("it is stored");
    assert_eq!(files(), 2);
    assert!(!tail(&log, &queue, 10, 100_000).is_empty(), "the last records are still known");
    log.close().await;
    let log = JournalLog::open(config, Arc::new(RealDisk)).expect("it opens");
    assert_eq!(append(&log, &queue, "next").await, last + 1);
    assert_eq!(log.stats().damaged_records(), 0, "what was unlinked is not missed");
}

/// Only the newest segment is read: the time does not grow with what is kept.
#[tokio::test]
async fn large_journal_opens_quickly() {
    let dir = private_dir();
    let queue = queue("normal");
    let log = open(&dir).expect("it opens");
    let value = "x".repeat(270);
    for _ in 0..100 {
        let records = (0..1000).map(|_| record(&value)).collect();
        log.append_many(&queue, records).await.expect("there is room");
    }
    log.close().await;
    let started = Instant::now();
    let log = open(&dir).expect("it opens");
    let taken = started.elapsed();
    assert_eq!(log.depth()[0].end, 100_000);
    // A debug build on a busy machine; a release build takes a twentieth.
    assert!(taken.as_secs() < 5, "{taken:?}");
}
