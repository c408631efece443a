//! A task is never dead in silence: whatever cannot be made is in the dead letters, with the reason, and nothing that
//! could have been made is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Proxy, Redis, Sidecar, proxy::Mode, rpush, set, simple, wait_for, wait_until};

/// The backoff of tests.
const QUICK: [&str; 4] = ["--retry-base", "20ms", "--retry-cap", "100ms"];

/// Has the proxy refuse every write of a key as a cluster does whose slots move.
fn refuse_key(proxy: &Proxy, key: &'static str) {
    proxy.answer(move |command| {
        let is_it = command.get(1).is_some_and(|found| found == key.as_bytes());
        is_it.then(|| "TRYAGAIN Multiple keys request during rehashing of slot".to_owned())
    });
}

fn each(id: &str, commands: &[&[&str]]) -> Value {
    pipeline(id, "each", commands)
}

fn atomic(id: &str, commands: &[&[&str]]) -> Value {
    pipeline(id, "atomic", commands)
}

fn pipeline(id: &str, mode: &str, commands: &[&[&str]]) -> Value {
    let commands: Vec<Value> =
        commands.iter().map(|command| json!({"command": command[0], "args": command[1..]})).collect();
    json!({"type": "pipeline", "mode": mode, "id": id, "commands": commands})
}

fn lua(id: &str, script: &str, keys: &[&str], args: &[&str]) -> Value {
    json!({"type": "lua", "id": id, "script": script, "keys": keys, "args": args})
}

/// A dead task, everywhere where a person may look for it.
fn check_dead(sidecar: &Sidecar, id: &str, reason: &str, code: &str, attempts: u64) -> Value {
    let line = sidecar.wait_for_log(&format!("Gave up task {id} "));
    let letter = sidecar.dead_letter(id).expect("the letter is there before the task is called dead");
    assert_eq!(letter["reason"], reason, "{letter}");
    assert_eq!(letter["code"], code, "{letter}");
    assert_eq!(letter["attempts"], attempts, "{letter}");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["task.id"], id);
    assert_eq!(line["reason"], reason);
    let list = sidecar.ops("/admin/v1/dead-letters?limit=500").json();
    let listed = list["items"].as_array().expect("a list has items").iter().find(|letter| letter["id"] == id);
    assert_eq!(listed.expect("it is listed")["reason"], reason);
    let status = sidecar.get(id).json();
    assert_eq!((&status["status"], &status["outcome"]), (&json!("settled"), &json!("dead")));
    letter
}

#[test]
fn wrong_type_is_dead_at_once_and_its_key_goes_on() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    let mut task = rpush("poison", "text");
    task["source"] = "orders".into();
    task["trace_id"] = "trace-7".into();
    sidecar.post(&task);
    sidecar.post(&simple("after", "APPEND", &["text", "2"]));
    redis.wait_for_value("text", "12");
    let letter = check_dead(&sidecar, "poison", "wrong-type", "WRONGTYPE", 1);
    assert_eq!(letter["task"], task, "a person must be able to send it again");
    assert_eq!((&letter["source"], &letter["trace_id"]), (&json!("orders"), &json!("trace-7")));
    sidecar.wait_until_done();
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (1, 1));
    assert_eq!(sidecar.metric(r#"redrive_dead_letters{target="default"}"#), 1.0);
    assert_eq!(sidecar.attempts("dead"), 1);
}

#[test]
fn dead_letters_survive_a_kill() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let mut sidecar = Sidecar::start(&redis.url(), &QUICK);
    for number in 0..20 {
        sidecar.post(&rpush(&format!("poison-{number}"), "text"));
    }
    sidecar.wait_until_done();
    sidecar.kill9();
    sidecar.restart();
    for number in 0..20 {
        let letter = sidecar.dead_letter(&format!("poison-{number}")).expect("it is kept");
        assert_eq!(letter["reason"], "wrong-type");
    }
}

#[test]
fn every_retry_is_made_and_not_one_more() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    refuse_key(&proxy, "never");
    for (number, (max_retries, executions)) in [(Some(0), 1), (Some(2), 3), (None, 4)].into_iter().enumerate() {
        let before = proxy.count("SET", "never");
        let id = format!("never-{number}");
        let mut task = set(&id, "never", "1");
        if let Some(max_retries) = max_retries {
            task["max_retries"] = max_retries.into();
        }
        sidecar.post(&task);
        check_dead(&sidecar, &id, "retries-exhausted", "TRYAGAIN", executions as u64);
        assert_eq!(proxy.count("SET", "never") - before, executions);
        assert_eq!(sidecar.metric("redis_retry_max_reached"), (number + 1) as f64);
    }
    assert_eq!(sidecar.metric("redis_retry_count"), 5.0);
    // The key is not held up by what died on it.
    proxy.answer_nothing();
    sidecar.post(&set("now", "never", "2"));
    redis.wait_for_value("never", "2");
}

#[test]
fn retries_that_were_spent_stay_spent_over_a_restart() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    refuse_key(&proxy, "never");
    let mut sidecar = Sidecar::start(&proxy.url(), &["--retry-base", "300ms", "--retry-cap", "300ms"]);
    sidecar.post(&set("task", "never", "1"));
    wait_until("the first retry to be scheduled", || sidecar.metric("redis_retry_count") >= 1.0);
    assert_eq!(sidecar.term().code(), Some(0));
    sidecar.restart();
    check_dead(&sidecar, "task", "retries-exhausted", "TRYAGAIN", 4);
    assert_eq!(proxy.count("SET", "never"), 4);
}

#[test]
fn each_retries_only_what_is_unfinished_also_after_a_restart() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    refuse_key(&proxy, "later");
    let mut sidecar = Sidecar::start(&proxy.url(), &QUICK);
    let mut task = each("row", &[&["RPUSH", "a", "1"], &["SET", "later", "2"], &["RPUSH", "c", "3"]]);
    task["max_retries"] = 20.into();
    sidecar.post(&task);
    wait_until("a few retries", || proxy.count("SET", "later") >= 3);
    assert_eq!(sidecar.term().code(), Some(0));
    sidecar.restart();
    let tries = proxy.count("SET", "later");
    wait_until("a try after the restart", || proxy.count("SET", "later") > tries);
    proxy.answer_nothing();
    sidecar.wait_until_done();
    assert_eq!(redis.get("later"), "2");
    assert_eq!((redis.list("a"), redis.list("c")), (vec!["1".to_owned()], vec!["3".to_owned()]));
    assert_eq!(sidecar.settled("applied"), 1);
}

#[test]
fn each_is_dead_if_one_of_its_commands_is_and_the_others_are_made() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    sidecar.post(&each("row", &[&["SET", "a", "1"], &["RPUSH", "text", "2"], &["SET", "c", "3"]]));
    let letter = check_dead(&sidecar, "row", "wrong-type", "WRONGTYPE", 1);
    let outcomes: Vec<_> = (0..3).map(|unit| letter["units"][unit]["outcome"].clone()).collect();
    assert_eq!(outcomes, ["applied", "wrong-type", "applied"]);
    assert_eq!((redis.get("a"), redis.get("c")), ("1".to_owned(), "3".to_owned()));
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (1, 0));
}

#[test]
fn dead_letter_says_how_the_other_commands_ended_also_those_that_ended_later() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let proxy = Proxy::start(redis.port());
    refuse_key(&proxy, "later");
    let mut sidecar = Sidecar::start(&proxy.url(), &QUICK);
    let mut task = each("row", &[&["SET", "later", "1"], &["SADD", "text", "2"]]);
    task["max_retries"] = 20.into();
    sidecar.post(&task);
    let outcome =
        |sidecar: &Sidecar| wait_for("the dead letter", || sidecar.dead_letter("row"))["units"][0]["outcome"].clone();
    assert_eq!(outcome(&sidecar), "unfinished");
    assert_eq!(sidecar.term().code(), Some(0));
    sidecar.restart();
    proxy.answer_nothing();
    sidecar.wait_until_done();
    assert_eq!(outcome(&sidecar), "applied");
    assert_eq!(sidecar.settled("dead"), 1);
    // The dead one was not tried again.
    assert_eq!(proxy.count("SADD", "text"), 1);
}

#[test]
fn atomic_unit_of_which_one_member_failed_is_partial() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    sidecar.post(&atomic("pair", &[&["INCR", "counter"], &["RPUSH", "text", "2"]]));
    check_dead(&sidecar, "pair", "partial", "partial", 1);
    assert_eq!(redis.get("counter"), "1");
}

#[test]
fn aborted_transaction_waits_for_what_aborted_it() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let mut task = atomic("pair", &[&["INCR", "counter"], &["INCR", "counter"]]);
    task["max_retries"] = 0.into();
    sidecar.post(&task);
    sidecar.wait_for_log("Holding the tasks of default");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    redis.wait_for_value("counter", "2");
    sidecar.wait_until_done();
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (0, 1));
}

#[test]
fn script_that_fails_is_dead_and_what_it_wrote_stays() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    sidecar.post(&lua("midway", "redis.call('INCR', KEYS[1]); error('no')", &["counter"], &[]));
    let letter = wait_for("the dead letter", || sidecar.dead_letter("midway"));
    assert_eq!(letter["reason"], "script-error");
    assert_eq!(redis.get("counter"), "1");
    sidecar.post(&lua("typo", "return redis.call(", &["counter"], &[]));
    let letter = wait_for("the dead letter", || sidecar.dead_letter("typo"));
    assert_eq!(letter["reason"], "script-error");
}

#[test]
fn script_that_the_server_forgot_is_sent_again() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &QUICK);
    for number in 1..=3 {
        let mut task = lua(&format!("script-{number}"), "return redis.call('INCR', KEYS[1])", &["counter"], &[]);
        task["max_retries"] = 0.into();
        sidecar.post(&task);
        redis.wait_for_value("counter", &number.to_string());
        redis.cli(&["SCRIPT", "FLUSH"]);
    }
    sidecar.wait_until_done();
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (0, 3));
}

#[test]
fn task_whose_answer_is_lost_each_time_ends_as_ambiguous() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url(), &[&QUICK[..], &["--redis-response-timeout", "100ms"]].concat());
    sidecar.post(&set("well", "well", "1"));
    redis.wait_for_value("well", "1");
    proxy.lose_replies_of("killer");
    sidecar.post(&set("killer", "killer", "1"));
    let letter = wait_for("the dead letter", || sidecar.dead_letter("killer"));
    assert_eq!(letter["reason"], "ambiguous");
    let executions = proxy.count("SET", "killer");
    assert!((5..=7).contains(&executions), "{executions} executions");
    // Whatever it did to the server meanwhile, others are made.
    sidecar.post(&set("after", "after", "1"));
    redis.wait_for_value("after", "1");
    assert_eq!(proxy.mode(), Mode::Pass);
}

#[test]
fn command_refused_on_many_keys_is_held_and_on_few_is_dead() {
    let redis = Redis::start(&["--rename-command", "PFADD", ""]);
    redis.cli(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-rpush", "-sadd"]);
    let url = format!("redis://app:pw@127.0.0.1:{}/0", redis.port());
    let sidecar = Sidecar::start(&url, &QUICK);
    for number in 0..25 {
        let mut task = rpush(&format!("held-{number}"), &format!("log:{number}"));
        task["max_retries"] = 0.into();
        sidecar.post(&task);
    }
    sidecar.post(&simple("few", "SADD", &["set", "member"]));
    sidecar.post(&atomic("abort", &[&["SET", "aborted", "1"], &["PFADD", "hll", "1"]]));
    // It would take the place of what waits before it.
    let mut behind = set("behind", "set", "1");
    behind["coalesce"] = false.into();
    sidecar.post(&behind);
    sidecar.wait_for_log("refuses RPUSH on many keys");
    // Other commands go on.
    sidecar.post(&set("free", "free", "1"));
    redis.wait_for_value("free", "1");
    let begun = std::time::Instant::now();
    check_dead(&sidecar, "few", "no-permission", "NOPERM", 1);
    let letter = wait_for("the dead letter", || sidecar.dead_letter("abort"));
    assert_eq!(letter["reason"], "unknown-command", "{letter}");
    assert!(begun.elapsed() > Duration::from_secs(5), "it was not waited for others to tell whose fault it is");
    assert_eq!(redis.cli(&["EXISTS", "aborted"]).text(), "0");
    redis.wait_for_value("set", "1");

    redis.cli(&["ACL", "SETUSER", "app", "+rpush"]);
    // One of them is tried every 30 s.
    sidecar.wait_until_done();
    for number in 0..25 {
        assert_eq!(redis.list(&format!("log:{number}")), [format!("held-{number}")]);
    }
    assert_eq!(sidecar.settled("dead"), 2);
}
