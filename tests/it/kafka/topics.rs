//! Topics that change, and a broker that asks to slow down, while tasks are handed in.

use super::{load::Load, reaches_kafka, start};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, Setup, unique},
    rpush, set, wait_until,
};

#[test]
fn tasks_of_a_topic_that_was_made_anew_are_made_once_its_offset_is_reset() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("deleted"));
    let mut sidecar = start(&redis, kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    for number in 0..50 {
        sidecar.post(&rpush(&format!("before-{number}"), &format!("list:{}", number % 5)));
    }
    sidecar.wait_until_done();
    kafka.delete_topic(&topic);
    for number in 0..50 {
        sidecar.post(&rpush(&format!("after-{number}"), &format!("list:{}", number % 5)));
    }
    // Where it had read up to says nothing about the new topic. That is for a person to decide.
    sidecar.wait_for_log("the topic was made anew");
    assert!(sidecar.term().success());
    kafka.commit(&format!("{topic}-group"), &topic, 0..3, 0);
    let said = sidecar.logged("the topic was made anew").len() + sidecar.logged("failed, trying again").len();
    assert!(said <= 3 * 3, "{said} lines: once it is said is enough");
    sidecar.restart();
    for list in 0..5 {
        let of = |when: &str| (0..50).filter(|n| n % 5 == list).map(|n| format!("{when}-{n}")).collect::<Vec<_>>();
        let expected = [of("before"), of("after")].concat();
        wait_until("what came after it is made", || redis.list(&format!("list:{list}")) == expected);
    }
    wait_until("Kafka takes tasks again", || reaches_kafka(&sidecar));
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
