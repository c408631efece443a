//! Records that did not come through the front door.

use base64::Engine as _;

use super::{
    world::{OFTEN, World, count, partition, set, until, until_async},
    *,
};

#[tokio::test]
async fn record_of_another_producer_is_made_like_any_other() {
    let world = World::new(OFTEN);
    let _owner = world.start(|config| config.policy.base = Duration::from_millis(1));
    let partition = partition(2);
    world.put(&partition, &set("plain", "1"));
    world.put(&partition, r#"{"type":"simple","command":"INCR","args":["n"],"id":"order-1"}"#);
    world.put(&partition, r#"{"type":"simple","command":"INCR","args":["n"],"id":"order-1"}"#);
    world.put(&partition, r#"{"type":"simple","command":"LPUSH","args":["plain","x"]}"#);
    world.log.assign(&partition);
    until("all are settled", || world.watermark(&partition) == 4).await;
    assert_eq!((world.get("plain"), world.get("n")), ("1".to_owned(), "1".to_owned()), "a repetition is one here too");
    let letters = world.letters().await;
    let ids: Vec<&str> = letters.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(ids, ["default.normal:2:3"], "it is named by where it is");
}

/// As old as its log says: a time to live counts from then.
#[tokio::test]
async fn record_of_another_producer_was_accepted_when_it_was_appended() {
    let world = World::new(OFTEN);
    let _owner = world.start(|_| {});
    let now = Timestamp::now().as_millisecond();
    let minute = 60_000;
    for (key, appended_at) in [("new", now), ("old", now - minute), ("ahead", now + minute), ("timeless", -1)] {
        let body = format!(r#"{{"type":"simple","command":"SET","args":["{key}","1","PX","{minute}"]}}"#);
        world.put_at(&partition(0), &body, appended_at);
        let body = format!(r#"{{"type":"simple","command":"SET","args":["{key}:long","1","PX","{}"]}}"#, 2 * minute);
        world.put_at(&partition(0), &body, appended_at);
    }
    world.log.assign(&partition(0));
    until("all are settled", || world.watermark(&partition(0)) == 8).await;
    let left = |key: &str| world.redis.cli(&["PTTL", key]).text().parse::<i64>().expect("it is a number");
    assert_eq!(left("old"), -2, "it was over");
    assert!((minute / 2..=minute).contains(&left("old:long")));
    for key in ["new", "ahead", "timeless"] {
        assert!((minute / 2..=minute).contains(&left(key)), "{key}");
        assert!((minute..=2 * minute).contains(&left(&format!("{key}:long"))), "{key}");
    }
}

#[tokio::test]
async fn what_is_refused_is_a_dead_letter_with_its_bytes_and_stops_nothing() {
    let world = World::new(OFTEN);
    let _owner = world.start(|_| {});
    let refused = [
        ("", "malformed-json"),
        ("not JSON", "malformed-json"),
        (r#"{"type":"simple","command":"SET","args":["k"]}"#, "validation-failed"),
        (r#"{"type":"simple","command":"FLUSHALL","args":[]}"#, "command-not-allowed"),
        (r#"{"type":"simple","command":"DEL","args":["redrive:x"]}"#, "key-not-allowed"),
        (r#"{"type":"simple","command":"DEL","args":["k"],"target":"sessions"}"#, "other-target"),
    ];
    for (bytes, _) in refused {
        world.put(&partition(0), bytes);
    }
    world.put(&partition(0), &set("behind", "1"));
    world.log.assign(&partition(0));
    until("what comes behind is applied", || world.get("behind") == "1").await;
    until("all are settled", || world.watermark(&partition(0)) == 7).await;
    let mut letters = world.letters().await;
    letters.sort_by_key(|letter| letter.offset);
    assert_eq!(letters.len(), refused.len());
    for (letter, (bytes, code)) in letters.iter().zip(refused) {
        assert_eq!((&*letter.reason, &*letter.code), ("refused-record", code), "{bytes}");
        let kept = match (&letter.task, &letter.task_base64) {
            (Some(task), None) => task.get().as_bytes().to_vec(),
            (None, Some(encoded)) => base64::engine::general_purpose::STANDARD.decode(encoded).expect("it is base64"),
            _ => panic!("a letter has its bytes in one way"),
        };
        assert_eq!(kept, bytes.as_bytes());
    }
}

/// Another process may be configured for it.
#[tokio::test]
async fn unknown_target_is_held_and_not_dead() {
    let world = World::new(OFTEN);
    let owner = world.start(|_| {});
    world.put(&partition(0), r#"{"type":"simple","command":"DEL","args":["k"],"target":"elsewhere","id":"held-1"}"#);
    for n in 0..3 {
        world.submit(&partition(0), &count(&format!("n:{n}")));
    }
    world.log.assign(&partition(0));
    until("the others are finished and written down", || {
        world.state(&partition(0)).is_some_and(|(_, state)| (1..4).all(|offset| state.finished.contains(offset)))
    })
    .await;
    assert_eq!(world.watermark(&partition(0)), 0, "it is not");
    assert!(world.letters().await.is_empty());
    until_async("it is counted as held", async || owner.overview().await.held == 1).await;
    let first = owner.overview().await.partitions[0].first.clone().expect("it is unfinished");
    assert_eq!(first.state, WaitState::Held);
    let waiting = owner.find("held-1").await.expect("it waits");
    assert_eq!(waiting.state, WaitState::Held);
    assert!(waiting.held_by.is_some_and(|reason| reason.contains("not configured")));
}

#[tokio::test]
async fn record_that_is_larger_than_any_task_is_a_dead_letter_with_its_beginning() {
    let world = World::new(OFTEN);
    let _owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    let offset = world.put(&partition(0), &"x".repeat(1 << 20));
    until("it is settled", || world.watermark(&partition(0)) == offset + 1).await;
    let letters = world.letters().await;
    let kept = letters[0].task_base64.as_ref().expect("it is no JSON").len();
    assert!((300 << 10..512 << 10).contains(&kept), "{kept}");
}
