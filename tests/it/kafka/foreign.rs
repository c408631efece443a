//! Records that no sidecar wrote.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{flags, reaches_kafka};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    rpush, set, wait_for, wait_until,
};

/// A sidecar that takes tasks for a topic of one partition, so that what is put there has an order.
fn start_on_one_partition(redis: &Redis, kafka: &Kafka, topic: &str) -> Sidecar {
    let flags = flags(kafka, topic);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--kafka-partitions=1"]).collect();
    let sidecar = Sidecar::start(&redis.url(), &flags);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    sidecar
}

#[test]
fn poisoned_records_stop_nothing_and_keep_their_bytes() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("poison"));
    let sidecar = start_on_one_partition(&redis, kafka, &topic);
    let refused: [(&[u8], &str); 6] = [
        (b"", "malformed-json"),
        (b"\xff\xfe\0\x01 garbage", "malformed-json"),
        (br#"{"some":"other service's event"}"#, "validation-failed"),
        (br#"{"type":"simple","command":"SET","args":["k"]}"#, "validation-failed"),
        (br#"{"type":"simple","command":"FLUSHALL","args":[]}"#, "command-not-allowed"),
        (br#"{"type":"simple","command":"GET","args":["k"]}"#, "command-not-allowed"),
    ];
    let put = |value: &[u8]| kafka.produce(&topic, 0, b"key", value);
    let elsewhere = json!({
        "type": "simple", "id": "waits", "target": "elsewhere", "command": "SET", "args": ["key", "elsewhere"]
    });
    put(elsewhere.to_string().as_bytes());
    for (value, _) in &refused {
        put(value);
    }
    put(json!({"type": "simple", "command": "SET", "args": ["produced", "1"]}).to_string().as_bytes());
    sidecar.post(&set("behind", "posted", "1"));
    redis.wait_for_value("produced", "1");
    redis.wait_for_value("posted", "1");

    let letters: Vec<Value> = wait_for("all that is refused to be a dead letter", || {
        let list = sidecar.ops("/admin/v1/dead-letters").json();
        let items = list["items"].as_array().expect("a list has items").clone();
        (items.len() >= refused.len()).then_some(items)
    });
    assert_eq!(letters.len(), refused.len(), "{letters:?}");
    for (value, code) in refused {
        let kept = |letter: &&Value| has_kept(&sidecar, letter, value);
        let letter = letters.iter().find(kept).unwrap_or_else(|| panic!("{code} has no letter: {letters:?}"));
        assert_eq!((&letter["reason"], &letter["code"]), (&json!("refused-record"), &json!(code)));
    }
    // Another sidecar may know its target.
    assert!(sidecar.dead_letter("waits").is_none());
    sidecar.wait_for_log("Task waits names a target that is not configured here");
}

#[test]
fn tasks_of_a_transaction_are_made_when_it_is_committed_and_never_when_it_is_aborted() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("transaction"));
    let sidecar = start_on_one_partition(&redis, kafka, &topic);
    let task = |name: &str| rpush(name, "list").to_string().into_bytes();
    let [mut first, mut second] = [(); 2].map(|()| kafka.transactional(&topic, 0));
    first.produce(b"list", &task("aborted-1"));
    kafka.produce(&topic, 0, b"list", &task("plain-1"));
    second.produce(b"list", &task("committed-1"));
    first.produce(b"list", &task("aborted-2"));
    first.abort();
    first.produce(b"list", &task("committed-2"));
    kafka.produce(&topic, 0, b"list", &task("plain-2"));
    second.commit();
    first.commit();
    second.produce(b"list", &task("aborted-3"));
    second.abort();
    sidecar.post(&rpush("posted", "list"));
    let expected = ["plain-1", "committed-1", "committed-2", "plain-2", "posted"];
    wait_until("the last one is made", || redis.list("list").last().is_some_and(|name| name == "posted"));
    assert_eq!(redis.list("list"), expected);
    assert!((1..=3).all(|number| sidecar.dead_letter(&format!("aborted-{number}")).is_none()));

    let end = || kafka.end_of(&topic, 0).expect("it has a leader");
    let finished = || wait_until("all is finished", || kafka.committed(&format!("{topic}-group"), &topic).0 == end());
    finished();
    // Nothing comes behind it, and yet it is finished.
    second.produce(b"list", &task("aborted-4"));
    second.abort();
    finished();
    sidecar.wait_until_done();
    assert_eq!(redis.list("list"), expected);
}

/// Whether a dead letter has kept these bytes.
fn has_kept(sidecar: &Sidecar, letter: &Value, bytes: &[u8]) -> bool {
    let letter = sidecar.dead_letter(letter["id"].as_str().expect("a letter has an id")).expect("it is there");
    match letter["task_base64"].as_str() {
        Some(encoded) => BASE64_STANDARD.decode(encoded).expect("it is base64") == bytes,
        None => serde_json::from_slice::<Value>(bytes).is_ok_and(|value| letter["task"] == value),
    }
}
