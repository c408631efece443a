//! Tasks in a real Kafka: stored there, shared out among sidecars, and kept on disk while it is away.

use serde_json::{Value, json};

use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    rpush, run, set, simple, wait_until,
};

mod away;
mod cluster;
mod fleet;
mod foreign;
mod load;
mod ownership;
mod security;
mod topics;

/// Flags for a small Kafka and a group that notices soon who is gone.
pub fn flags(kafka: &Kafka, topic: &str) -> Vec<String> {
    flags_at(&kafka.address(), topic)
}

/// The same for a Kafka that is reached by another address than its own.
fn flags_at(broker: &str, topic: &str) -> Vec<String> {
    let group = format!("{topic}-group");
    let mut flags = vec![format!("--kafka-brokers={broker}")];
    flags.extend([format!("--kafka-topic={topic}"), format!("--kafka-group={group}")]);
    let quick = [
        "--kafka-replication=1",
        "--kafka-min-insync=1",
        "--kafka-session-timeout=3s",
        "--kafka-heartbeat-interval=500ms",
        "--kafka-rebalance-timeout=9s",
        "--kafka-metadata-refresh=1s",
        "--kafka-produce-timeout=2s",
    ];
    flags.extend(quick.map(str::to_owned));
    flags
}

/// Sets one of the flags in another way.
fn change(flags: &mut Vec<String>, flag: &str) {
    let (name, _) = flag.split_once('=').expect("a flag has a value");
    flags.retain(|found| !found.starts_with(&format!("{name}=")));
    flags.push(flag.to_owned());
}

pub fn start(redis: &Redis, kafka: &Kafka, topic: &str) -> Sidecar {
    let flags = flags(kafka, topic);
    Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What makes a long test of a short one; `make soak` sets it.
fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("it is a number"))
}

/// Hands in a task, and says whether Kafka has it.
pub fn reaches_kafka(sidecar: &Sidecar) -> bool {
    let answer = sidecar.post(&json!({"type": "simple", "command": "SET", "args": ["probe", "1"]}));
    durability(&answer.json()) == "kafka"
}

pub fn durability(answer: &Value) -> &str {
    answer["durability"].as_str().expect("an answer says where the task is")
}

#[test]
fn tasks_are_stored_in_kafka_and_made_in_their_order() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("order"));
    let sidecar = start(&redis, kafka, &topic);
    // The first may come before the topic is there.
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    for number in 0..200 {
        let answer = sidecar.post(&rpush(&format!("t-{number}"), &format!("list:{}", number % 7)));
        assert_eq!((answer.status, durability(&answer.json())), (202, "kafka"), "{}", answer.body);
    }
    for list in 0..7 {
        let expected: Vec<String> = (0..200).filter(|n| n % 7 == list).map(|n| format!("t-{n}")).collect();
        wait_until("the list is whole", || redis.list(&format!("list:{list}")) == expected);
    }
    sidecar.wait_until_done();
    let repeated = sidecar.post(&rpush("t-3", "list:3"));
    assert_eq!(repeated.header("idempotent-replayed"), Some("true"));
}

#[test]
fn tasks_are_taken_while_kafka_is_away_and_forwarded_in_their_order() {
    let (redis, topic) = (Redis::start(&[]), unique("away"));
    let mut kafka = Kafka::start();
    let mut sidecar = start(&redis, &kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    sidecar.post(&rpush("before", "list"));
    kafka.kill9();
    let names: Vec<String> = (0..60).map(|number| format!("away-{number}")).collect();
    for name in &names {
        let answer = sidecar.post(&rpush(name, "list"));
        assert_eq!((answer.status, durability(&answer.json())), (202, "local"), "{}", answer.body);
        assert!(sidecar.is_ready());
    }
    sidecar.kill9();
    sidecar.restart();
    assert!(sidecar.is_ready(), "nothing needs Kafka to be there");
    sidecar.post(&rpush("after", "list"));
    kafka.restart();
    let expected: Vec<String> =
        ["before"].into_iter().map(str::to_owned).chain(names).chain(["after".to_owned()]).collect();
    wait_until("all of it was forwarded and made", || redis.list("list") == expected);
    wait_until("Kafka takes tasks again", || reaches_kafka(&sidecar));
}

#[test]
fn partitions_of_a_sidecar_that_dies_go_to_another_one() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("share"));
    let [mut first, second] = [(); 2].map(|()| start(&redis, kafka, &topic));
    wait_until("Kafka takes tasks", || reaches_kafka(&first));
    let counters: Vec<String> = (0..30).map(|number| format!("counter:{number}")).collect();
    let send = |sidecar: &Sidecar, round: usize| {
        let tasks: Vec<Value> = counters.iter().map(|key| simple(&format!("{key}-{round}"), "INCR", &[key])).collect();
        sidecar.batch(&tasks);
    };
    for round in 0..20 {
        send(if round % 2 == 0 { &first } else { &second }, round);
    }
    first.kill9();
    for round in 20..30 {
        send(&second, round);
    }
    for counter in &counters {
        wait_until("each was made once", || redis.get(counter) == "30");
    }
    second.wait_until_done();
    assert!(counters.iter().all(|counter| redis.get(counter) == "30"), "and no more");
}

#[test]
fn sidecar_starts_without_kafka() {
    let redis = Redis::start(&[]);
    let mut kafka = Kafka::start();
    kafka.kill9();
    let sidecar = start(&redis, &kafka, &unique("late"));
    assert!(sidecar.is_ready());
    assert_eq!(durability(&sidecar.post(&set("early", "key", "1")).json()), "local");
    kafka.restart();
    redis.wait_for_value("key", "1");
}

#[test]
fn dead_letters_are_in_kafka_and_outlive_the_sidecar() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("dead"));
    let mut first = start(&redis, kafka, &topic);
    redis.cli(&["SET", "text", "v"]);
    first.post(&simple("bad", "LPUSH", &["text", "v"]));
    wait_until("it is given up", || first.dead_letter("bad").is_some());
    first.kill9();
    let second = start(&redis, kafka, &topic);
    let letter = second.dead_letter("bad").expect("another sidecar shows it");
    assert_eq!(letter["reason"], "wrong-type");
}

#[test]
fn gateway_takes_what_a_worker_makes() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("roles"));
    let flags = flags(kafka, &topic);
    let with_role = |role, url: &str| {
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--role", role]).collect();
        Sidecar::start(url, &flags)
    };
    // Nobody listens there: a gateway does not ask.
    let gateway = with_role("gateway", "redis://127.0.0.1:1/0");
    let worker = with_role("worker", &redis.url());
    assert!(gateway.is_ready() && gateway.listening().len() == 2);
    assert_eq!(worker.listening().len(), 1, "only the ops plane");
    gateway.post(&set("by-gateway", "key", "1"));
    redis.wait_for_value("key", "1");
    assert!(gateway.logged("Holding the tasks").is_empty() && gateway.logged("Consuming").is_empty());
}

#[test]
fn tasks_of_the_other_way_of_keeping_them_are_not_forgotten() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let mut kafka = Kafka::start();
    kafka.kill9();
    let refused = |sidecar: &Sidecar, more: &[&str], expected: &str| {
        let data = sidecar.data_dir();
        let args =
            ["serve", "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0", "--data-dir", data.to_str().expect("text")];
        let output = run(&[&args[..], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    let brokers = format!("--kafka-brokers={}", kafka.address());

    let mut in_journal = Sidecar::start(&redis.url(), &[]);
    in_journal.post(&set("waits", "key", "1"));
    in_journal.term();
    refused(&in_journal, &[&brokers, "--role=gateway"], "a gateway makes none");

    let mut in_spool = start(&redis, &kafka, &unique("other"));
    in_spool.post(&set("waits", "key", "1"));
    in_spool.term();
    let last = in_spool.logged("").pop().expect("it says something");
    let said = last["message"].as_str().expect("a line has a message").to_owned();
    let left = format!("1 tasks in {}", in_spool.data_dir().join("spool").display());
    assert!(said.starts_with("Stopped") && said.contains(&left), "{said}");
    refused(&in_spool, &[], "wait for Kafka, and `kafka.brokers` is not set");
}
