//! A backlog is not replayed write by write: what a later write of the whole key replaces is not sent, unless it must be.

use serde_json::{Value, json};

use crate::harness::{Redis, Sidecar, rpush, set, simple, wait_until};

/// Queues tasks while Redis is away, after one of its own, by which that is noticed, so that none of them is on its way;
/// and makes them when all have been read.
fn queue_in_outage(redis: &mut Redis, sidecar: &Sidecar, tasks: &[Value]) {
    let held = || sidecar.metric(r#"redrive_tasks{state="held",target="default"}"#);
    redis.kill9();
    sidecar.post(&set("notice", "noticed", "1"));
    wait_until("the outage to be noticed", || held() == 1.0);
    tasks.iter().for_each(|task| drop(sidecar.post(task)));
    wait_until("all to be held", || held() == 1.0 + tasks.len() as f64);
    redis.restart();
    sidecar.wait_until_done();
}

/// How often Redis was asked for a command since it was started.
fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]).text();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().and_then(|calls| calls.parse().ok()).expect("calls are a number"))
}

fn with(mut task: Value, field: &str, value: Value) -> Value {
    task[field] = value;
    task
}

#[test]
fn only_the_last_of_many_writes_is_sent() {
    let mut redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let mut tasks = Vec::new();
    for number in 0..100 {
        for key in ["a", "b", "c"] {
            tasks.push(simple(&format!("{key}-{number}"), "SETEX", &[key, "1000", &number.to_string()]));
        }
        if number % 10 == 0 {
            tasks.push(rpush(&format!("r-{number}"), "log"));
            tasks.push(simple(&format!("i-{number}"), "INCR", &["n"]));
        }
    }
    queue_in_outage(&mut redis, &sidecar, &tasks);

    for key in ["a", "b", "c"] {
        assert_eq!(redis.get(key), "99");
    }
    assert_eq!((redis.list("log").len(), redis.get("n").as_str()), (10, "10"), "nothing replaces these");
    let sent = calls(&redis, "set") + calls(&redis, "setex");
    assert_eq!((sidecar.settled("superseded"), sidecar.settled("applied")), (297, 24));
    assert!(sent < 30, "{sent} writes and canaries were sent");
    let status = sidecar.get("b-7").json();
    assert_eq!(
        (&status["status"], &status["outcome"], &status["superseded_by"], &status["attempts"]),
        (&json!("settled"), &json!("superseded"), &json!("b-99"), &json!(0))
    );
    assert!(sidecar.get("b-99").json()["superseded_by"].is_null());
    let line = sidecar.wait_for_log("Task b-7 need not run");
    assert_eq!((&line["superseded_by"], &line["level"]), (&json!("b-99"), &json!("INFO")));
}

#[test]
fn who_asks_for_every_write_gets_it() {
    let mut redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let every = |task| with(task, "coalesce", false.into());
    let mut tasks: Vec<Value> = (0..50).map(|number| every(set(&format!("a-{number}"), "a", "1"))).collect();
    // Neither does it take the place of others.
    tasks.extend([set("b-1", "b", "1"), every(set("b-2", "b", "2"))]);
    queue_in_outage(&mut redis, &sidecar, &tasks);
    assert_eq!((sidecar.settled("applied"), sidecar.settled("superseded")), (53, 0));
    assert!(calls(&redis, "set") >= 52);
}

#[test]
fn each_key_of_a_write_is_looked_at_and_commands_of_pipelines_too() {
    let mut redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let each = json!({"type": "pipeline", "id": "each", "commands": [
        {"command": "INCR", "args": ["b"]}, {"command": "HSET", "args": ["h", "f", "1"]}]});
    let tasks = [
        set("a", "a", "1"),
        each,
        simple("both", "MSET", &["a", "2", "b", "x"]),
        simple("copy", "COPY", &["a", "copied"]),
        set("last", "a", "3"),
    ];
    queue_in_outage(&mut redis, &sidecar, &tasks);
    let found: Vec<String> = ["a", "b", "copied"].iter().map(|key| redis.get(key)).collect();
    assert_eq!(found, ["3", "x", "2"], "what was copied is not skipped");
    assert_eq!(calls(&redis, "incr"), 0);
    assert_eq!(sidecar.get("a").json()["superseded_by"], "both");
    assert_eq!(sidecar.get("each").json()["outcome"], "applied", "one of its commands was");
    assert_eq!(sidecar.settled("superseded"), 1);
}

#[test]
fn what_a_dead_task_would_have_replaced_is_made() {
    let mut redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let tasks = [
        set("first", "k", "5"),
        simple("second", "INCR", &["k"]),
        // What it restores is not what Redis once dumped.
        simple("dead", "RESTORE", &["k", "0", "garbage", "REPLACE"]),
        simple("behind", "APPEND", &["k", "!"]),
    ];
    queue_in_outage(&mut redis, &sidecar, &tasks);
    assert_eq!(redis.get("k"), "6!");
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied"), sidecar.settled("superseded")), (1, 4, 0));
    assert!(sidecar.dead_letter("dead").is_some());
    assert_eq!(sidecar.get("first").json()["outcome"], "applied");
}
