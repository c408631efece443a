//! What is to be seen of Kafka by whoever runs sidecars on it, and what happens where it is not as it should be.

use serde_json::{Value, json};

use crate::{
    harness::{
        Redis, Sidecar,
        kafka::{Kafka, unique},
        rpush, run, set, simple, wait_for, wait_until,
    },
    kafka::{durability, flags, reaches_kafka, start},
};

fn with_role(role: &str, url: &str, flags: &[String]) -> Sidecar {
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--role", role]).collect();
    Sidecar::start(url, &flags)
}

/// The partition of the lane `normal` that has records.
fn busy_partition(sidecar: &Sidecar) -> Option<Value> {
    let list = sidecar.ops("/admin/v1/partitions").json();
    let items = list["items"].as_array()?.iter();
    items.into_iter().find(|item| item["lane"] == "normal" && item["end"].as_u64() > Some(0)).cloned()
}

#[test]
fn gateway_sees_what_a_worker_works_on_and_what_is_left() {
    let (mut redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("seen"));
    let flags = flags(kafka, &topic);
    let worker = with_role("worker", &redis.url(), &flags);
    let gateway = with_role("gateway", "redis://127.0.0.1:1/0", &flags);
    wait_until("Kafka takes tasks", || reaches_kafka(&gateway));
    gateway.post(&set("first", "key", "1"));
    redis.wait_for_value("key", "1");
    wait_until("nothing is left", || gateway.metric("kafka_consumer_lag") == 0.0);
    redis.kill9();
    gateway.post(&set("second", "key", "2"));
    wait_until("one is left", || gateway.metric("kafka_consumer_lag") == 1.0);
    let seen = busy_partition(&gateway).expect("it is there");
    assert!(seen["owner"].as_str().is_some_and(|owner| owner.starts_with("redrive-")), "{seen}");
    let held = wait_for("the worker to hold it", || {
        busy_partition(&worker).filter(|seen| seen["first_id"] == "second" && seen["first_status"] == "held")
    });
    assert_eq!((&held["owner"], &held["lag"]), (&"this".into(), &1.into()));
    assert!(held["first_waits_for"].is_string() && held["oldest_accepted_at"].is_string(), "{held}");
}

#[test]
fn dead_letters_of_another_sidecar_are_seen_without_a_restart() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("letters"));
    let flags = flags(kafka, &topic);
    let worker = with_role("all", &redis.url(), &flags);
    let gateway = with_role("gateway", "redis://127.0.0.1:1/0", &flags);
    wait_until("Kafka takes tasks", || reaches_kafka(&worker));
    redis.cli(&["SET", "text", "v"]);
    for id in ["one", "two"] {
        worker.post(&simple(id, "LPUSH", &["text", "v"]));
        wait_until("the gateway shows it", || gateway.dead_letter(id).is_some());
    }
}

#[test]
fn topic_that_would_lose_tasks_is_found_and_given_none() {
    let (redis, kafka, topic) = (Redis::durable(), Kafka::shared(), unique("compacted"));
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
    let flags = flags(kafka, &topic);
    let url = redis.url();
    let check = [&["check", "--redis-url", &url], &*flags.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let output = run(&check);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("error: topic {topic}: it is compacted")), "{said}");
    assert!(said.contains("[compacted-tasks]") && said.contains("[replication-low]"), "{said}");

    let sidecar = start(&redis, kafka, &topic);
    assert_eq!(durability(&sidecar.post(&set("kept", "key", "1")).json()), "local");
    wait_until("it is in the metrics", || {
        sidecar.metric(r#"redrive_startup_warning{code="compacted-tasks"}"#) == 1.0
            && sidecar.metric("redrive_spool_records") == 1.0
    });
    assert!(sidecar.metric("redrive_spool_oldest_age_seconds") > 0.0);
    kafka.set_topic_config(&topic, "cleanup.policy", "delete");
    redis.wait_for_value("key", "1");
    wait_until("it has left the disk", || sidecar.metric("redrive_spool_records") == 0.0);
    assert_eq!(sidecar.metric("redrive_spool_forwarded_total"), 1.0);
}

#[test]
fn journal_of_before_kafka_is_worked_off_beside_it() {
    let (mut redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("before"));
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    redis.cli(&["SET", "text", "v"]);
    sidecar.post(&simple("bad", "LPUSH", &["text", "v"]));
    wait_until("it is given up", || sidecar.dead_letter("bad").is_some());
    redis.kill9();
    for n in 0..20 {
        sidecar.post(&rpush(&format!("t-{n}"), "list"));
    }
    sidecar.term();

    sidecar.restart_with(&flags(kafka, &topic).iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    assert_eq!(sidecar.get("t-7").json()["status"], "held", "it is known");
    let repeated = sidecar.post(&rpush("t-7", "list"));
    assert_eq!(repeated.header("idempotent-replayed"), Some("true"));
    let earlier = || -> Vec<Value> {
        let partitions = sidecar.ops("/admin/v1/partitions").json();
        let items = partitions["items"].as_array().expect("it is a list");
        items.iter().filter(|item| item["log"] == "earlier").cloned().collect()
    };
    let [left] = &earlier()[..] else { panic!("there is one: {:?}", earlier()) };
    assert_eq!((&left["lane"], &left["lag"], &left["in_window"]), (&json!("normal"), &json!(20), &json!(20)), "{left}");
    assert_eq!((&left["first_id"], &left["first_status"]), (&json!("t-0"), &json!("held")), "{left}");
    redis.restart();
    let expected: Vec<String> = (0..20).map(|n| format!("t-{n}")).collect();
    wait_until("all of it is made", || redis.list("list") == expected);
    sidecar.wait_for_log("All tasks of before Kafka was set are made");
    assert!(earlier().is_empty(), "nothing is left");
    sidecar.post(&set("after", "key", "1"));
    redis.wait_for_value("key", "1");
    sidecar.wait_until_done();
    sidecar.kill9();

    let other = start(&redis, kafka, &topic);
    assert!(other.dead_letter("bad").is_some(), "it is where all are");
    sidecar.restart();
    // In both of its lives with Kafka.
    assert_eq!(sidecar.logged("tasks of before Kafka was set: they are made").len(), 1, "it was done once");
}
