//! The end of a spool.

use std::time::Instant;

use super::{remote::Weather, *};
use crate::log::{AppendError, conformance::tail, conformance::values};

#[tokio::test]
async fn closing_forwards_what_it_can() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, always());
    remote.set(Weather::Away);
    for n in 0..500 {
        append(&spool, &queue("normal"), &n.to_string()).await;
    }
    remote.set(Weather::Fair);
    let begun = Instant::now();
    spool.close().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "it ends when nothing is left");
    assert_eq!(spool.spooled(), []);
    assert_eq!(remote.values(&queue("normal")).len(), 500);
    assert_eq!(spool.append(&queue("normal"), record("late")).await, Err(AppendError::Closed));
}

#[tokio::test]
async fn closing_waits_neither_for_a_remote_that_is_away_nor_long_for_a_silent_one() {
    for (weather, at_most) in [(Weather::Away, Duration::from_secs(10)), (Weather::Silent, Duration::from_secs(10))] {
        let (remote, dir) = (Remote::new(1), private_dir());
        // A bound that no machine is too slow to keep apart from the other one.
        let close_within = if weather == Weather::Away { Duration::from_secs(60) } else { Duration::from_millis(50) };
        let config =
            Config { close_within, max_pause: Duration::from_secs(60), min_pause: Duration::from_secs(60), ..always() };
        let spool = open(&remote, &dir, config);
        remote.set(Weather::Away);
        for value in ["a", "b"] {
            append(&spool, &queue("normal"), value).await;
        }
        until("it was tried", || remote.asked() > 0).await;
        remote.set(weather);
        let begun = Instant::now();
        spool.close().await;
        assert!(begun.elapsed() < at_most, "{:?} while {weather:?}", begun.elapsed());
        let [left] = &spool.spooled()[..] else { panic!("one queue is left") };
        assert_eq!((left.records, &left.queue), (2, &queue("normal")));
        assert!(left.path.starts_with(dir.path()));
        drop(spool);

        let spool = open(&remote, &dir, always());
        assert_eq!(values(&tail(&spool, &queue("normal"), 10, usize::MAX)), ["a", "b"]);
        remote.set(Weather::Fair);
        until_empty(&spool).await;
        assert_eq!(remote.values(&queue("normal")), ["a", "b"]);
    }
}

#[tokio::test]
async fn closing_lets_those_who_wait_be_answered() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let config =
        Config { produce_timeout: Duration::from_millis(20), close_within: Duration::from_secs(30), ..when_away() };
    let spool = open(&remote, &dir, config);
    remote.set(Weather::Silent);
    let queue = queue("normal");
    let (durability, ()) = tokio::join!(append(&spool, &queue, "a"), async {
        until("it was sent", || remote.asked() > 0).await;
        remote.set(Weather::Away);
        tokio::join!(spool.close(), spool.close());
    });
    assert_eq!(durability, Durability::Local);
    assert_eq!(spool.spooled().len(), 1);
}

#[tokio::test]
async fn failure_of_either_log_is_the_spools() {
    use crate::log::journal::tests::sim::{Faults, SimDisk};
    let disk = SimDisk::new();
    let remote = MemoryLog::default();
    let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
    let open = |disk: &SimDisk| {
        Spool::open(Arc::new(remote.clone()), config.clone(), Arc::new(disk.clone()), always()).expect("it opens")
    };
    let spool = open(&disk);
    append(&spool, &queue("normal"), "a").await;
    until_empty(&spool).await;
    disk.set_faults(Faults { sync_fails: true, ..Faults::default() });
    assert_eq!(spool.append(&queue("normal"), record("b")).await, Err(AppendError::FateUnknown));
    let reason = tokio::time::timeout(Duration::from_secs(10), spool.failed()).await.expect("it has failed");
    assert!(reason.contains("the disk is broken"), "{reason}");
    assert!(spool.ready().is_err());
    assert!(matches!(spool.append(&queue("normal"), record("c")).await, Err(AppendError::Unavailable { .. })));

    let spool = open(&SimDisk::new());
    remote.fail("the remote is broken");
    let reason = tokio::time::timeout(Duration::from_secs(10), spool.failed()).await.expect("it has failed");
    assert_eq!(reason, "the remote is broken");
}
