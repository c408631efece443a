//! Topics that change, and a broker that asks to slow down, while tasks are handed in.

use std::time::{Duration, Instant};

use super::{durability, load::Load, reaches_kafka, start};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, Setup, unique},
    rpush, set, wait_until,
};

/// From the deletion of a topic until all that came after it is made: the settings of these tests look at topics every
/// second, and as much again is for slow machines.
const BOUND: Duration = Duration::from_secs(20);

fn names(when: &str, list: usize) -> Vec<String> {
    (0..50).filter(|n| n % 5 == list).map(|n| format!("{when}-{n}")).collect()
}

fn post_all(sidecar: &Sidecar, when: &str) {
    for number in 0..50 {
        sidecar.post(&rpush(&format!("{when}-{number}"), &format!("list:{}", number % 5)));
    }
}

fn wait_until_made(redis: &Redis, whens: &[&str]) {
    for list in 0..5 {
        let expected: Vec<String> = whens.iter().flat_map(|when| names(when, list)).collect();
        wait_until("all of it is made in its order", || redis.list(&format!("list:{list}")) == expected);
    }
}

#[test]
fn tasks_that_come_after_their_topic_was_deleted_are_made() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("deleted"));
    let mut sidecars = [(); 2].map(|()| start(&redis, kafka, &topic));
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecars[0]));
    wait_until("both have a share", || sidecars.iter().all(|sidecar| !sidecar.logged("Consuming ").is_empty()));
    post_all(&sidecars[0], "before");
    wait_until_made(&redis, &["before"]);

    // Both are members, and each has partitions that are gone.
    kafka.delete_topic(&topic);
    let deleted = Instant::now();
    post_all(&sidecars[0], "after");
    wait_until_made(&redis, &["before", "after"]);
    assert!(deleted.elapsed() < BOUND, "{:?}", deleted.elapsed());
    wait_until("Kafka takes tasks again", || reaches_kafka(&sidecars[0]));

    // One that is not there while it happens.
    let [first, second] = &mut sidecars;
    assert!(second.term().success());
    first.kill9();
    kafka.delete_topic(&topic);
    first.restart();
    post_all(first, "later");
    wait_until_made(&redis, &["before", "after", "later"]);
    first.wait_until_done();
    assert!(redis.list("list:0").len() == 30, "nothing of it was made twice");
}

#[test]
fn unfinished_tasks_of_a_deleted_topic_are_counted() {
    let (mut redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("deleted-full"));
    let sidecar = start(&redis, kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    wait_until("all partitions are consumed", || sidecar.logged("Consuming ").len() == 9);
    sidecar.wait_until_done();
    redis.kill9();
    for number in 0..10 {
        assert_eq!(durability(&sidecar.post(&rpush(&format!("lost-{number}"), "list")).json()), "kafka");
    }
    let unfinished = || -> u64 {
        let lines = sidecar.logged("The records of ");
        lines.iter().filter_map(|line| line["unfinished"].as_u64()).sum()
    };
    kafka.delete_topic(&topic);
    wait_until("it is said how many went", || unfinished() == 10);
    assert_eq!(sidecar.metric("redrive_kafka_lost_records_total"), 10.0);
    sidecar.post(&rpush("kept", "list"));
    redis.restart();
    wait_until("what came after it is made", || redis.list("list") == ["kept"]);
    sidecar.wait_until_done();
}

#[test]
fn offset_that_was_committed_for_an_earlier_topic_is_not_believed() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("anew"));
    let mut sidecar = start(&redis, kafka, &topic);
    let group = format!("{topic}-group");
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    post_all(&sidecar, "before");
    wait_until_made(&redis, &["before"]);
    assert!(sidecar.term().success());
    let (_, words) = kafka.committed(&group, &topic);
    assert_eq!(words.split_once('@').map(|(_, id)| id.len()), Some(22), "it names its topic: {words}");

    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 3, &[]);
    let value = |name: &str, list: usize| rpush(name, &format!("list:{list}")).to_string();
    for list in 0..5 {
        for name in names("after", list) {
            kafka.produce(&topic, list as i32 % 3, b"key", value(&name, list).as_bytes());
        }
    }
    // As an owner of before does that has not noticed. It is within what there is by now.
    kafka.commit(&group, &topic, 0..3, 5, &words);
    sidecar.restart();
    wait_until_made(&redis, &["before", "after"]);
}

#[test]
fn partition_that_ends_before_its_committed_offset_is_read_from_its_beginning() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("cut"));
    kafka.create_topic(&topic, 1, &[]);
    for list in 0..5 {
        for name in names("all", list) {
            kafka.produce(&topic, 0, b"key", rpush(&name, &format!("list:{list}")).to_string().as_bytes());
        }
    }
    kafka.commit(&format!("{topic}-group"), &topic, 0..1, 1000, "");
    let sidecar = start(&redis, kafka, &topic);
    wait_until_made(&redis, &["all"]);
    sidecar.wait_until_done();
    assert_eq!(sidecar.logged("ends before offset 1000").len(), 1, "it is said, and once");
}

#[test]
fn partitions_that_a_topic_gets_are_used_and_consumed() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("grown"));
    let sidecars = [(); 2].map(|()| start(&redis, kafka, &topic));
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecars[0]));
    let load = Load::start(sidecars.iter().map(Sidecar::address).collect());
    load.go_on_for(100);
    // Its keys are to be elsewhere then, and those of before must be made before: nothing else keeps their order.
    let paused = load.pause();
    load.wait_until_made(&redis);
    kafka.grow_topic(&topic, 7);
    for sidecar in &sidecars {
        sidecar.wait_for_log("has 7 partitions now; it had 3");
    }
    drop(paused);
    load.go_on_for(300);
    load.end(&redis);
    let used = (3..7).filter(|partition| kafka.end_of(&topic, *partition).is_some_and(|end| end > 0)).count();
    assert!(used > 0, "the new ones are used");
}

#[test]
fn quota_on_producing_repeats_no_effect() {
    let (redis, topic) = (Redis::start(&[]), unique("quota"));
    let kafka = Kafka::start_with(|_| Setup { properties: vec!["quota.window.num=2".to_owned()], ..Setup::default() });
    let sidecar = start(&redis, &kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    let load = Load::start(vec![sidecar.address()]);
    load.go_on_for(50);
    kafka.limit_producing("redrive", Some(3000.0));
    load.go_on_for(400);
    kafka.limit_producing("redrive", None);
    load.go_on_for(50);
    load.end(&redis);
    sidecar.post(&set("last", "key", "1"));
    redis.wait_for_value("key", "1");
    assert!(sidecar.settled("duplicate") > 0, "nothing was stored twice, so that nothing was proven");
}
