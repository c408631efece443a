//! A spool without room.

use super::{remote::Weather, *};
use crate::log::{
    AppendError,
    journal::tests::sim::{Faults, SimDisk},
};

const MAX_BYTES: u64 = 2 << 20;
/// What a request holds in these tests.
const VALUE_BYTES: usize = 10_000;

fn value(n: usize) -> String {
    format!("{n} {}", "x".repeat(VALUE_BYTES))
}

fn small(dir: &TempDir) -> JournalConfig {
    JournalConfig { max_bytes: MAX_BYTES, ..journal(dir) }
}

fn open_small(remote: &Remote, dir: &TempDir, config: Config) -> Spool {
    open_on(remote, small(dir), Arc::new(RealDisk), config)
}

/// Appends until the spool is full, and says how many there was room for.
async fn fill(spool: &Spool, queue: &QueueName) -> usize {
    for n in 0.. {
        match spool.append(queue, record(&value(n))).await {
            Ok(_) => {}
            Err(AppendError::Full { .. }) => return n,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("it is full before the numbers end")
}

#[tokio::test]
async fn full_spool_refuses_before_anything_is_sent_and_goes_on_when_there_is_room() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open_small(&remote, &dir, when_away());
    remote.set_for("low", Weather::Away);
    let low = queue("low");
    let count = fill(&spool, &low).await;
    assert!(count > 50, "{count}");
    // What one takes away from all is known to all: also to a queue whose remote is well.
    assert!(matches!(spool.ready(), Err(AppendError::Full { .. })), "{:?}", spool.ready());
    let asked = remote.asked();
    remote.set_for("low", Weather::Silent);
    until("the forwarder waits", || remote.asked() > asked).await;
    let asked = remote.asked();
    let normal = queue("normal");
    assert!(matches!(spool.append(&normal, record(&value(0))).await, Err(AppendError::Full { .. })));
    assert_eq!(remote.asked(), asked, "nothing was sent");
    assert_eq!(remote.values(&normal), [""; 0]);
    // After a restart it is full as before, and nothing of it is lost.
    spool.crash().await;
    let spool = open_small(&remote, &dir, when_away());
    assert!(spool.ready().is_err());
    remote.set(Weather::Fair);
    until_empty(&spool).await;
    assert_eq!(remote.values(&low), (0..count).map(value).collect::<Vec<_>>());
    assert_eq!(spool.ready(), Ok(()));
    assert_eq!(append(&spool, &normal, "a").await, Durability::Kafka);
}

#[tokio::test]
async fn target_that_is_away_takes_no_other_targets_share() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let targets = vec!["default".into(), "other".into()];
    let spool = open_on(&remote, JournalConfig { targets, ..small(&dir) }, Arc::new(RealDisk), when_away());
    remote.set_for("low", Weather::Away);
    fill(&spool, &queue("low")).await;
    assert!(matches!(spool.append(&queue("normal"), record(&value(0))).await, Err(AppendError::Full { .. })));
    let other = QueueName { target: "other".into(), lane: "low" };
    assert!(fill(&spool, &other).await > 20, "half of the half");
}

/// Many requests are sent while the spool is nearly full, and each is answered that nobody knows. Answers how many
/// were told so in turn, and how many were refused that the remote has.
async fn told_nothing_or_wrong(bug: Option<Bug>) -> (usize, usize) {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open_small(&remote, &dir, Config { bug, ..when_away() });
    remote.set_for("low", Weather::Away);
    for n in 0..100 {
        if spool.append(&queue("low"), record(&value(n))).await.is_err() {
            break;
        }
    }
    remote.set_for("normal", Weather::Forgetful);
    let normal = queue("normal");
    let appends = (0..200).map(|n| {
        let (spool, normal) = (&spool, &normal);
        async move { (value(n), spool.append(normal, record(&value(n))).await) }
    });
    let answers = futures_util::future::join_all(appends).await;
    let stored = remote.values(&normal);
    let untold = answers.iter().filter(|(_, answer)| *answer == Err(AppendError::FateUnknown)).count();
    let refused = |answer: &Result<_, _>| answer.as_ref().is_err_and(|error| *error != AppendError::FateUnknown);
    let wrong = answers.iter().filter(|(value, answer)| refused(answer) && stored.contains(value)).count();
    if bug.is_none() {
        assert!(answers.iter().any(|(_, answer)| answer.is_ok()), "there was room for some");
        assert!(answers.iter().any(|(_, answer)| answer.is_err()), "and not for all");
    }
    (untold, wrong)
}

#[tokio::test]
async fn what_may_have_been_stored_can_always_be_spooled() {
    assert_eq!(told_nothing_or_wrong(None).await, (0, 0));
}

#[tokio::test]
async fn missing_reservation_is_found() {
    let (untold, _) = told_nothing_or_wrong(Some(Bug::NoReservation)).await;
    assert!(untold > 0);
}

/// Reserved is what the journal may use; what others leave of the disk is not ours to promise.
#[tokio::test]
async fn no_answer_is_a_lie_where_the_disk_fills_up_meanwhile() {
    let full = AppendError::Full { retry_after: Duration::from_secs(5) };
    for (weather, expected) in [(Weather::Forgetful, AppendError::FateUnknown), (Weather::Away, full)] {
        let (remote, disk) = (Remote::new(1), SimDisk::new());
        let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
        let spool = open_on(&remote, config, Arc::new(disk.clone()), when_away());
        remote.set(weather);
        let normal = queue("normal");
        let (answer, ()) = tokio::join!(spool.append(&normal, record("a")), async {
            until("it was sent", || remote.asked() > 0).await;
            disk.set_faults(Faults { room: Some(0), ..Faults::default() });
        });
        assert_eq!(answer, Err(expected), "while {weather:?}");
        disk.set_faults(Faults::default());
        assert_eq!(append(&spool, &normal, "b").await, Durability::Local);
        remote.set(Weather::Fair);
        until_empty(&spool).await;
        assert_eq!(remote.values(&normal).contains(&"a".to_owned()), weather == Weather::Forgetful);
    }
}

#[tokio::test]
async fn what_is_under_way_is_bounded() {
    let (remote, dir) = (Remote::new(1), private_dir());
    let spool = open(&remote, &dir, Config { max_in_flight_bytes: 50_000, ..when_away() });
    remote.set(Weather::Silent);
    let normal = queue("normal");
    let mut appends: Vec<_> = (0..4).map(|n| Box::pin(append_large(&spool, &normal, n))).collect();
    for append in &mut appends {
        assert!(futures_util::poll!(append.as_mut()).is_pending());
    }
    let refused = spool.append(&normal, record(&value(9))).await;
    assert!(matches!(refused, Err(AppendError::Full { .. })), "{refused:?}");
    // Whoever gives up gives his room back.
    drop(appends);
    remote.set(Weather::Fair);
    append(&spool, &normal, &value(9)).await;
}

async fn append_large(spool: &Spool, queue: &QueueName, n: usize) -> Durability {
    append(spool, queue, &value(n)).await
}
