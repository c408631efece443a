//! Tasks in a real Kafka: stored there, shared out among sidecars, and kept on disk while it is away.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    number_from_environment, rpush, run, set, simple, wait_until,
};

mod away;
mod checkpoints;
mod cluster;
mod fleet;
mod foreign;
mod letters;
mod load;
mod ownership;
mod returning;
mod security;
mod topics;

/// After which a sidecar with these flags does without Kafka.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(2);

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
    ];
    flags.extend(quick.map(str::to_owned));
    flags.push(format!("--kafka-produce-timeout={}s", PRODUCE_TIMEOUT.as_secs()));
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

#[test]
fn largest_task_has_room_in_the_dead_letters() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("largest"));
    let mut flags = flags(kafka, &topic);
    flags.push("--admission-max-body=600KiB".to_owned());
    let sidecar = Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    redis.cli(&["SET", "text", "1"]);
    // Nearly as much as a record may have, and each part is refused with many words.
    let command = json!({"command": "HSET", "args": ["text", "field", "x".repeat(4000)]});
    let task = json!({"id": "largest", "type": "pipeline", "commands": vec![command; 128]});
    assert!((515_000..523_000).contains(&task.to_string().len()), "{}", task.to_string().len());
    let answer = sidecar.post(&task);
    assert_eq!((answer.status, durability(&answer.json())), (202, "kafka"), "{}", answer.body);
    wait_until("it is dead", || sidecar.settled("dead") == 1);
    let letter = sidecar.dead_letter("largest").expect("it is there");
    assert_eq!(letter["units"].as_array().map(Vec::len), Some(128));
    assert_eq!(letter["task"], task);
    let letter_bytes = letter.to_string().len();
    assert!(letter_bytes > 512 * 1024, "{letter_bytes} bytes would fit anywhere");
}

/// Whether a sidecar answers that the task is settled, and with what outcome.
fn settled(sidecar: &Sidecar, id: &str) -> Option<Value> {
    let answer = sidecar.get(id).json();
    (answer["status"] == "settled").then(|| answer["outcome"].clone())
}

#[test]
fn task_that_another_sidecar_executes_is_settled_where_it_was_accepted() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("elsewhere"));
    let mut flags = flags(kafka, &topic);
    flags.push("--role=gateway".to_owned());
    let gateway = Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("Kafka takes tasks", || reaches_kafka(&gateway));
    redis.cli(&["SET", "text", "1"]);
    gateway.post(&rpush("made", "list"));
    gateway.post(&simple("dead", "RPUSH", &["text", "x"]));
    assert_eq!(gateway.get("made").json()["status"], "queued");

    let mut worker = start(&redis, kafka, &topic);
    wait_until("it is settled elsewhere", || settled(&gateway, "made") == Some(Value::Null));
    wait_until("there is a dead letter", || settled(&gateway, "dead") == Some(json!("dead")));
    assert_eq!(redis.list("list"), ["made"]);
    assert!(worker.term().success());

    // What is committed is asked for anew.
    gateway.post(&rpush("waits", "list"));
    assert_eq!(gateway.get("waits").json()["status"], "queued");
    worker.restart();
    wait_until("it is settled elsewhere", || settled(&gateway, "waits") == Some(Value::Null));
}
