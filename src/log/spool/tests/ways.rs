//! Which way a record goes, and when it is answered.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{remote::Weather, *};
use crate::log::{
    AppendError, HeadersBuilder, NewRecord, Record,
    conformance::{tail, values},
    journal::tests::sim::SimDisk,
};

fn normal() -> QueueName {
    queue("normal")
}

/// Keeps a paused clock from running ahead while a thread of the journal is at work: it moves only when it is told to.
struct HeldClock {
    _release: std::sync::mpsc::Sender<()>,
}

impl HeldClock {
    fn hold() -> Self {
        let (_release, released) = std::sync::mpsc::channel::<()>();
        // An error means that it was dropped.
        tokio::task::spawn_blocking(move || released.recv());
        Self { _release }
    }

    /// Moves the clock on until the future is ready, and says by how much; it is polled at each step.
    async fn advance_until<T>(&self, future: impl Future<Output = T>) -> (T, Duration) {
        let begun = (Instant::now(), std::time::Instant::now());
        let mut future = std::pin::pin!(future);
        loop {
            // Time for the journal's thread, in real life; then a step.
            for _ in 0..4 {
                if let std::task::Poll::Ready(ready) = futures_util::poll!(future.as_mut()) {
                    return (ready, begun.0.elapsed());
                }
                std::thread::sleep(Duration::from_micros(20));
                tokio::task::yield_now().await;
            }
            assert!(begun.1.elapsed() < Duration::from_secs(60), "it hangs");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn remote_that_takes_records_gets_them_at_once() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, when_away());
    for value in ["a", "b"] {
        assert_eq!(append(&spool, &normal(), value).await, Durability::Kafka);
    }
    assert_eq!(remote.values(&normal()), ["a", "b"]);
    assert_eq!(spool.spooled(), []);
    assert!(!dir.path().join("queues").exists(), "the spool is not even made");
}

#[tokio::test]
async fn records_of_an_absence_are_forwarded_in_order_and_unchanged() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, when_away());
    append(&spool, &normal(), "before").await;
    remote.set(Weather::Away);
    let mut expected = vec![record("before").record];
    let mut keys = vec![Bytes::from_static(b"k")];
    for n in 0..300 {
        let mut headers = HeadersBuilder::default();
        headers.push("number", &[n as u8]);
        let record = Record { headers: headers.build(), value: format!("value {n}").into() };
        let ordering_key = Bytes::from(vec![n as u8; n * 300]);
        expected.push(record.clone());
        keys.push(ordering_key.clone());
        let appended = spool.append(&normal(), NewRecord { ordering_key, record }).await.expect("there is room");
        assert_eq!(appended.durability, Durability::Local);
    }
    assert_eq!(spool.ready(), Ok(()), "it takes records as before");
    let [spooled] = &spool.spooled()[..] else { panic!("it holds one queue") };
    assert_eq!((spooled.records, &spooled.path), (300, &dir.path().join("queues/default/normal")));
    assert!(spooled.path.is_dir());
    assert_eq!(spool.forwarded(), 0);
    remote.set(Weather::Fair);
    until_empty(&spool).await;
    until("all of it is counted", || spool.forwarded() == 300).await;
    assert_eq!(remote.records(&normal()), expected);
    assert_eq!(remote.keys(), keys);
    assert!(remote.batches().iter().any(|batch| *batch > 16), "{:?}", remote.batches());
    assert_eq!(append(&spool, &normal(), "after").await, Durability::Kafka);
}

#[tokio::test]
async fn record_of_unknown_fate_is_spooled_and_comes_twice_at_most() {
    for (weather, times) in [(Weather::Forgetful, 2), (Weather::Lossy, 1)] {
        let (remote, dir) = (Remote::new(1), private_dir());
        let spool = open(&remote, &dir, when_away());
        remote.set(weather);
        let queue = normal();
        let (together, ()) = tokio::join!(spool.append_many(&queue, vec![record("a"), record("b")]), async {
            until("it was asked", || remote.asked() > 0).await;
            remote.set(Weather::Fair);
        });
        let together = together.expect("it can always be spooled");
        assert!(together.iter().all(|one| one.durability == Durability::Local));
        until_empty(&spool).await;
        let values = remote.values(&normal());
        // The forwarder may have met the same weather, with one record.
        assert!(values.ends_with(&["a".to_owned(), "b".to_owned()]), "{values:?}");
        assert_eq!(values.iter().filter(|value| *value == "b").count(), times, "{values:?}");
    }
}

#[tokio::test]
async fn record_that_the_remote_can_never_take_is_refused() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, Config { max_record_bytes: 1000, ..when_away() });
    remote.set(Weather::Narrow(500));
    let refused = spool.append(&normal(), record(&"x".repeat(600))).await;
    assert!(matches!(refused, Err(AppendError::TooLarge { limit: 500, .. })), "{refused:?}");
    assert_eq!(spool.spooled(), []);
    // Nor is it kept for a remote that is away.
    remote.set(Weather::Away);
    append(&spool, &normal(), "a").await;
    let refused = spool.append(&normal(), record(&"x".repeat(1001))).await;
    assert!(matches!(refused, Err(AppendError::TooLarge { limit: 1000, .. })), "{refused:?}");
    remote.set(Weather::Fair);
    until_empty(&spool).await;
    assert_eq!(remote.values(&normal()), ["a"]);
}

#[tokio::test]
async fn record_that_is_found_too_large_when_forwarded_waits_for_somebody() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, when_away());
    remote.set(Weather::Away);
    let large = "x".repeat(600);
    let halves = ["1", "2", "3", "4"].map(|half| half.repeat(300));
    for value in ["a", &large].into_iter().chain(halves.iter().map(|half| &**half)) {
        append(&spool, &normal(), value).await;
    }
    remote.set(Weather::Narrow(500));
    until("what is before it is forwarded", || remote.values(&normal()) == ["a"]).await;
    let asked = remote.asked();
    until("it is tried again", || remote.asked() > asked + 3).await;
    assert_eq!(remote.values(&normal()), ["a"], "nothing passes it, nothing is dropped");
    remote.set(Weather::Narrow(record(&large).record.size()));
    until_empty(&spool).await;
    let [first, second, third, fourth] = &halves;
    assert_eq!(remote.values(&normal()), ["a", &large, first, second, third, fourth], "each alone, if not together");
}

#[tokio::test]
async fn queue_goes_direct_again_under_load() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = Arc::new(open(&remote, &dir, when_away()));
    remote.set(Weather::Away);
    append(&spool, &normal(), "first").await;
    // So many that somebody is always on the way into the spool.
    let clients: Vec<_> = (0..64)
        .map(|client| {
            let spool = spool.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while append(&spool, &normal(), &format!("{client}-{count}")).await == Durability::Local {
                    count += 1;
                    assert!(count < 20_000, "it never goes direct again");
                }
                count
            })
        })
        .collect();
    until("all are at it", || spool.spooled().first().is_some_and(|spooled| spooled.records > 200)).await;
    remote.set(Weather::Fair);
    let mut spooled = 1;
    for client in clients {
        spooled += client.await.expect("it does not panic");
    }
    until_empty(&spool).await;
    assert_eq!(remote.values(&normal()).len(), spooled + 64, "each is there once");
}

#[tokio::test]
async fn forwarding_asks_for_one_thing_at_a_time() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, always());
    remote.set(Weather::Stormy);
    let queue = normal();
    let appends = (0..200).map(|n| {
        let (spool, queue) = (&spool, &queue);
        async move { append(spool, queue, &n.to_string()).await }
    });
    let durabilities = futures_util::future::join_all(appends).await;
    assert!(durabilities.iter().all(|durability| *durability == Durability::Local), "always here first");
    remote.set(Weather::Fair);
    until_empty(&spool).await;
    assert_eq!(remote.most_under_way(), 1);
    assert_eq!(append(&spool, &queue, "later").await, Durability::Local);
}

#[tokio::test]
async fn what_an_earlier_process_left_is_forwarded_first() {
    for (before, after) in [(always(), when_away()), (when_away(), always()), (when_away(), when_away())] {
        let (remote, dir) = (Remote::new(1), private_dir());
        let spool = open(&remote, &dir, before);
        remote.set(Weather::Away);
        for value in ["a", "b"] {
            append(&spool, &normal(), value).await;
        }
        spool.crash().await;
        let spool = open(&remote, &dir, after);
        assert_eq!(append(&spool, &normal(), "c").await, Durability::Local);
        remote.set(Weather::Fair);
        until_empty(&spool).await;
        assert_eq!(remote.values(&normal()), ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn what_is_spooled_is_part_of_the_tail() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, when_away());
    for value in ["a", "b", "c"] {
        append(&spool, &normal(), value).await;
    }
    remote.set(Weather::Away);
    append(&spool, &normal(), "spooled, and forwarded").await;
    remote.set(Weather::Fair);
    until_empty(&spool).await;
    remote.set(Weather::Away);
    for value in ["e", "f"] {
        append(&spool, &normal(), value).await;
    }
    append(&spool, &queue("low"), "another queue").await;
    // Everything of one's own is known while the remote cannot be read.
    let entries = tail(&spool, &normal(), 10, usize::MAX);
    assert_eq!(values(&entries), ["e", "f"]);
    assert_eq!(entries[1].record, record("f").record);
    assert!(spool.depth().iter().any(|depth| depth.partition.queue == queue("low")), "it is worth asking for");
    // With the forwarder held up, and the remote readable.
    remote.set(Weather::Fair);
    let entries = tail(&spool, &normal(), 10, usize::MAX);
    let mut seen = values(&entries);
    assert_eq!(seen.split_off(4), ["e", "f"]);
    assert_eq!(seen, ["a", "b", "c", "spooled, and forwarded"]);
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
    assert_eq!(values(&tail(&spool, &normal(), 3, usize::MAX)), ["spooled, and forwarded", "e", "f"]);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_dead_remote_once_and_not_each() {
    // No disk in it that has hiccups of its own.
    let (remote, disk) = (Remote::new(1), Arc::new(SimDisk::new()));
    let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
    let spool = open_on(&remote, config, disk, when_away());
    let clock = HeldClock::hold();
    remote.set(Weather::Silent);
    let (durability, took) = clock.advance_until(append(&spool, &normal(), "first")).await;
    assert_eq!(durability, Durability::Local);
    assert!((3.0..4.0).contains(&took.as_secs_f64()), "{took:?}");
    for n in 0..20 {
        let (durability, took) = clock.advance_until(append(&spool, &normal(), &n.to_string())).await;
        assert_eq!(durability, Durability::Local);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_answered_in_time_whatever_the_remote_does() {
    // No disk in it that has hiccups of its own.
    let (remote, disk) = (Remote::new(1), Arc::new(SimDisk::new()));
    let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
    let spool = open_on(&remote, config, disk, when_away());
    let clock = HeldClock::hold();
    for weather in [Weather::Silent, Weather::Fair, Weather::Forgetful, Weather::Silent, Weather::Away] {
        remote.set(weather);
        let queue = normal();
        let appends = (0..20).map(|n| {
            let (spool, queue) = (&spool, &queue);
            async move {
                tokio::time::sleep(Duration::from_millis(n * 50)).await;
                let begun = Instant::now();
                let durability = append(spool, queue, &n.to_string()).await;
                (durability, begun.elapsed())
            }
        });
        let (answered, _) = clock.advance_until(futures_util::future::join_all(appends)).await;
        let longest = answered.iter().map(|(_, took)| *took).max().expect("there are some");
        assert!(longest <= Duration::from_secs(4), "{longest:?} while {weather:?}");
    }
}
