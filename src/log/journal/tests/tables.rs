//! Tables: what stays, and what disk space comes back.

use std::{fs, sync::Arc};

use tempfile::TempDir;

use super::{
    super::{JournalConfig, JournalLog, disk::RealDisk},
    config, private_dir,
};
use crate::log::{Log, Table, TableEntry};

fn open(dir: &TempDir) -> JournalLog {
    let config = JournalConfig { max_bytes: 1 << 20, ..config(dir) };
    JournalLog::open(config, Arc::new(RealDisk)).expect("it opens")
}

async fn scan(table: &Arc<dyn Table>) -> Vec<TableEntry> {
    let (send, received) = std::sync::mpsc::channel();
    table.scan(Box::new(move |entry| send.send(entry).is_ok())).await.expect("it is read");
    received.into_iter().collect()
}

fn segments(dir: &TempDir) -> usize {
    let names = fs::read_dir(dir.path().join("tables/things")).expect("it is there");
    names.filter(|name| name.as_ref().is_ok_and(|name| name.path().extension().is_some())).count()
}

#[tokio::test]
async fn last_writes_survive_a_restart() {
    let dir = private_dir();
    let log = open(&dir);
    let table = log.table("things").expect("it is made");
    for n in 0..50 {
        table.put(format!("k{}", n % 10).into(), format!("v{n}").into()).await.expect("there is room");
    }
    table.delete("k3".into()).await.expect("it is deleted");
    let before = scan(&table).await;
    assert_eq!(before.len(), 9);
    drop(table);
    log.close().await;
    let log = open(&dir);
    let table = log.table("things").expect("it is there");
    assert_eq!(scan(&table).await, before);
    let next = table.put("k3".into(), "new".into()).await.expect("there is room");
    assert_eq!(next, 51, "positions go on");
    assert_eq!(scan(&table).await.last().expect("it is there").value, "new");
}

#[tokio::test]
async fn segments_without_live_entries_go_and_nothing_comes_back() {
    let dir = private_dir();
    let log = open(&dir);
    let table = log.table("things").expect("it is made");
    let value = "x".repeat(1000);
    for n in 0..300 {
        table.put(format!("k{n}").into(), value.clone().into()).await.expect("there is room");
    }
    assert_eq!(scan(&table).await.len(), 300);
    let all = segments(&dir);
    assert!(all > 5, "{all}");
    // One entry in the middle stays: what is before it may go, what is behind it may not.
    for n in (0..300).filter(|n| *n != 150) {
        table.delete(format!("k{n}").into()).await.expect("it is deleted");
    }
    assert_eq!(scan(&table).await.len(), 1);
    // The writer works in order: after this write it has let go of them.
    table.put("last".into(), "v".into()).await.expect("there is room");
    let left = segments(&dir);
    assert!(left < all && left > 2, "{left} of {all}");
    log.close().await;
    let log = open(&dir);
    let keys: Vec<_> =
        scan(&log.table("things").expect("it is there")).await.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["k150", "last"]);
    assert_eq!(log.stats().damaged_records(), 0);
}

#[tokio::test]
async fn table_not_written_to_leaves_no_files() {
    let dir = private_dir();
    let log = open(&dir);
    let table = log.table("things").expect("it is made");
    assert_eq!(scan(&table).await, []);
    assert_eq!(table.read(7).await, Ok(None));
    assert!(!dir.path().join("tables").exists());
}
