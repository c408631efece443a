//! Dead letters that have no room in Kafka, while everything else has.

use super::{flags, reaches_kafka};
use crate::{
    disk::{NO_LETTER, check_nothing_is_settled, check_the_letter_comes, held_for_want_of_a_letter},
    harness::{
        Redis, Sidecar,
        kafka::{Kafka, unique},
        rpush, wait_until,
    },
};

#[test]
fn dead_letter_waits_until_its_topic_takes_it() {
    let (redis, topic, kafka) = (Redis::start(&[]), unique("letters"), Kafka::start());
    redis.cli(&["SET", "text", "1"]);
    let mut other = kafka.start_beside();
    let letters = format!("{topic}.dlq");
    kafka.create_topic_on(&letters, &[1, 2], &[("cleanup.policy", "compact"), ("min.insync.replicas", "2")]);
    // One is not enough for the letters, and for nothing else are more needed.
    other.kill9();
    wait_until("one of two to be left", || !kafka.is_in_sync(&letters));
    let mut flags = flags(&kafka, &topic);
    flags.push("--kafka-partitions=1".to_owned());
    let mut sidecar = Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));

    sidecar.post(&rpush("poison", "text"));
    check_nothing_is_settled(&sidecar, &redis, "poison");
    // Also while another try is under way, which takes seconds.
    let tries = || sidecar.logged("The dead letter of task poison cannot be stored").len();
    let before = tries();
    while tries() < before + 2 {
        let status = sidecar.get("poison").json();
        assert_eq!(status["held_by"], NO_LETTER, "{status}");
    }
    sidecar.kill9();
    sidecar.restart();
    held_for_want_of_a_letter(&sidecar, "poison");
    assert_eq!((sidecar.dead_letter("poison"), redis.get("text")), (None, "1".to_owned()));

    kafka.set_topic_config(&letters, "min.insync.replicas", "1");
    check_the_letter_comes(&sidecar, &redis, "poison");
    assert_eq!(kafka.end_of(&letters, 0), Some(1), "it is there once");
    assert_eq!(kafka.committed(&format!("{topic}-group"), &topic).0, kafka.end_of(&topic, 0).unwrap_or_default());
}
