//! What checkpoints say, how often they are written, and what a new owner makes of them.

use std::time::Instant;

use super::{
    world::{OFTEN, ON_DEMAND, World, count, partition, set, until},
    *,
};
use crate::{consumer::checkpoint::State, log::Checkpointing};

/// What PFADD takes for its own and finds broken: an error that may pass, and spends an attempt.
const BROKEN_SKETCH: &str = "HYLL\u{1}\0\0\0\0\0\0\0\0\0\0\0";

fn sketch(key: &str) -> String {
    format!(r#"{{"type":"simple","command":"PFADD","args":["{key}","x"]}}"#)
}

/// So long that nothing is tried again by chance.
fn once_in_ages(max_retries: u8) -> impl Fn(&mut Config) {
    let ages = Duration::from_secs(100_000_000);
    move |config| config.policy = Policy { max_retries, base: ages, cap: ages }
}

/// Every other one of 2,000 tasks is finished, and every one between has spent an attempt, when the owner is gone.
#[tokio::test]
async fn new_owner_repeats_nothing_that_is_finished_and_forgets_no_attempt() {
    let world = World::new(OFTEN);
    let partition = partition(0);
    let mut words = vec!["MSET".to_owned()];
    for n in 0..1000 {
        words.extend([format!("sketch:{n}"), BROKEN_SKETCH.to_owned()]);
        world.submit(&partition, &sketch(&format!("sketch:{n}")));
        world.submit(&partition, &count(&format!("n:{n}")));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    world.redis.cli(&words);
    let _first = world.start(once_in_ages(1));
    world.log.assign(&partition);
    until("half of it is written down, in what Kafka has room for", || {
        world.state(&partition).is_some_and(|(watermark, state)| {
            watermark == 0
                && state.attempts.len() == 1000
                && (0..2000).all(|offset| state.finished.contains(offset) == (offset % 2 == 1))
        })
    })
    .await;
    world.log.lose(&partition);

    let _second = world.start(once_in_ages(1));
    world.log.assign(&partition);
    until("all is finished", || world.watermark(&partition) == 2000).await;
    let letters = world.letters().await;
    assert_eq!(letters.len(), 1000);
    assert!(letters.iter().all(|letter| letter.attempts == 2 && letter.reason == "retries-exhausted"));
    let counts = world.get_all((0..1000).map(|n| format!("n:{n}")));
    assert!(counts.iter().all(|count| count == "1"), "what was finished did not run again");
}

/// Commands after each other on one key that may not both be repeated.
#[tokio::test]
async fn checkpoint_is_written_when_a_unit_waits_and_else_only_when_it_is_due() {
    let world = World::new(ON_DEMAND);
    let _owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    world.submit(&partition(0), &set("a", "1"));
    until("it is applied", || world.get("a") == "1").await;
    assert_eq!(world.log.commits(&partition(0)), 1, "only who the owner is was written down");
    for value in ["1", "2"] {
        let body = format!(r#"{{"type":"simple","command":"SET","args":["k","{value}","EX","1000"]}}"#);
        world.submit(&partition(0), &body);
    }
    until("both are applied", || world.get("k") == "2").await;
    assert!((2..5).contains(&world.log.commits(&partition(0))));
}

/// Where a checkpoint has no room for what a unit waits for, another one at once would have none either.
#[tokio::test]
async fn unit_above_the_cut_waits_without_a_storm_of_checkpoints() {
    const PAIRS: u64 = 350;
    let interval = Duration::from_millis(50);
    let world = World::new(Checkpointing { interval, ..OFTEN });
    let soon = Duration::from_millis(200);
    let _owner = world.start(|config| config.policy = Policy { max_retries: 20, base: soon, cap: soon });
    let partition = partition(0);
    // Each pipeline waits for a task before it, and they could not all be described once they are half done.
    let keys = || (0..PAIRS).map(|n| format!("sketch:{n}"));
    let mut break_all = vec!["MSET".to_owned()];
    for key in keys() {
        world.submit(&partition, &sketch(&key));
        let command = format!(r#"{{"command":"SET","args":["{key}","y"]}}"#);
        let body = format!(r#"{{"type":"pipeline","commands":[{command},{command}],"coalesce":false}}"#);
        world.submit(&partition, &body);
        break_all.extend([key, BROKEN_SKETCH.to_owned()]);
    }
    world.redis.cli(&break_all.iter().map(String::as_str).collect::<Vec<_>>());
    for value in ["1", "2"] {
        let command = format!(r#""command":"SET","args":["k","{value}","EX","1000"]"#);
        world.submit(&partition, &format!(r#"{{"type":"simple",{command},"coalesce":false}}"#));
    }
    world.log.assign(&partition);
    until("the first is applied", || world.get("k") == "1").await;
    until("a checkpoint leaves it out", || {
        let left_out = |state: &State| state.more_may_have_run && !state.finished.contains(2 * PAIRS);
        world.state(&partition).is_some_and(|(_, state)| left_out(&state))
    })
    .await;
    let (before, since) = (world.log.commits(&partition), Instant::now());
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(world.get("k"), "1", "no checkpoint says the first");
    }
    let written = (world.log.commits(&partition) - before) as u128;
    let due = since.elapsed().as_millis() / interval.as_millis() + 2;
    assert!(written <= due, "{written} checkpoints where {due} were due");
    let delete_all: Vec<String> = std::iter::once("DEL".to_owned()).chain(keys()).collect();
    world.redis.cli(&delete_all.iter().map(String::as_str).collect::<Vec<_>>());
    until("all is finished", || world.watermark(&partition) == 2 * PAIRS + 2).await;
    assert_eq!(world.get("k"), "2");
}

/// What a later write has replaced could be refused after that one was made: how far was read is durable before it is, and
/// the next owner makes neither of it otherwise.
#[tokio::test]
async fn word_is_written_down_before_what_took_a_place_is_made() {
    let world = World::new(ON_DEMAND);
    let partition = partition(0);
    world.submit(&partition, r#"{"type":"simple","command":"INCR","args":["k"]}"#);
    // So that it takes more than one read.
    for n in 0..8 {
        world.submit(&partition, &set(&format!("large:{n}"), &"x".repeat(100_000)));
    }
    world.submit(&partition, &set("k", "text"));
    {
        // Nothing is sent before all is read.
        world.redis.cli(&["CLIENT", "PAUSE", "1000"]);
        let _first = world.start(|_| {});
        world.log.assign(&partition);
        until("the last one is applied", || world.get("k") == "text").await;
        world.log.lose(&partition);
    }
    assert_eq!(world.state(&partition).map(|(watermark, state)| (watermark, state.word)), Some((0, 10)));
    let _second = world.start(|config| config.policy.max_retries = 0);
    world.log.assign(&partition);
    world.submit(&partition, &set("behind", "1"));
    until("all is applied", || world.get("behind") == "1").await;
    assert_eq!(world.get("k"), "text");
    assert_eq!(world.letters().await.len(), 0, "the first one was not made on what the last one had left");
}

#[tokio::test]
async fn log_that_takes_its_time_to_show_its_end_holds_up_its_own_partition_only() {
    let world = World::new(OFTEN);
    let (old, new) = (partition(0), partition(1));
    let first = world.start(|_| {});
    world.assign_and_warm_up(&old).await;
    world.submit(&old, &count("old"));
    until("it is finished", || world.watermark(&old) == 2).await;
    first.stop();
    first.stopped().await;

    world.log.hold_tails(true);
    let second = world.start(|_| {});
    world.submit(&old, &count("old"));
    world.log.assign(&old);
    world.submit(&new, &count("new"));
    world.log.assign(&new);
    until("what is elsewhere is made", || world.get("new") == "1").await;
    assert_eq!(second.partitions().await, [0, 1], "questions are answered");
    assert_eq!(world.get("old"), "1");
    world.log.hold_tails(false);
    until("and that when it is known what was finished", || world.get("old") == "2").await;
}
