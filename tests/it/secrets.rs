//! What a task holds is nobody's business: no value, key or password comes out, however much is logged.

use serde_json::{Value, json};

use crate::harness::{Answer, Proxy, Redis, Sidecar, proxy::Mode, set, simple, wait_until};

/// In every value, argument, key and body.
const CANARY: &str = "canary5309";
/// In the password of the URL, and of the wrong URL.
const PASSWORD: &str = "hunter5309";
/// In the token of the admin API.
const TOKEN: &str = "token5309-token5309";

/// Sends a task, which may be refused, with an id of its own.
fn post(sidecar: &Sidecar, answers: &mut Vec<Answer>, mut task: Value) {
    task["id"] = format!("task-{}", answers.len()).into();
    answers.push(sidecar.try_post(&task).expect("the sidecar answers"));
}

#[test]
fn nothing_that_a_task_holds_comes_out() {
    let redis = Redis::start(&["--requirepass", PASSWORD]);
    let proxy = Proxy::start(redis.port());
    let url = proxy.url().replace("redis://", &format!("redis://default:{PASSWORD}@"));
    let wrong = url.replace(PASSWORD, &format!("{PASSWORD}-wrong"));
    let token = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(token.path(), format!("{TOKEN}\n")).expect("the file can be written");
    let token_file = token.path().display().to_string();
    let mut sidecar = Sidecar::start(
        &url,
        &[
            "--log-level=trace",
            "--target",
            &format!("wrong={wrong}"),
            "--admin-token-file",
            &token_file,
            "--redis-response-timeout",
            "200ms",
            "--retry-base",
            "10ms",
        ],
    );
    let (key, value) = (format!("user:{CANARY}"), format!("value {CANARY}"));
    let mut answers = Vec::new();

    // Good ones, and every way to die.
    post(&sidecar, &mut answers, set("", &key, &value));
    post(&sidecar, &mut answers, simple("", "RPUSH", &[&key, &value]));
    post(&sidecar, &mut answers, simple("", "INCR", &[&key]));
    post(&sidecar, &mut answers, simple("", "INCRBY", &[&format!("n:{CANARY}"), CANARY]));
    post(&sidecar, &mut answers, simple("", "ZADD", &[&format!("z:{CANARY}"), CANARY, &value]));
    post(&sidecar, &mut answers, simple("", "SET", &[&key, &value, CANARY]));
    post(
        &sidecar,
        &mut answers,
        json!({"type": "lua", "script": format!("return redis.call('{CANARY}', KEYS[1])"), "keys": [key]}),
    );
    post(
        &sidecar,
        &mut answers,
        json!({"type": "lua", "script": format!("error(ARGV[1]) -- {CANARY}"), "keys": [key], "args": [value]}),
    );
    post(&sidecar, &mut answers, json!({"type": "lua", "script": format!("syntax error {CANARY}"), "keys": [key]}));
    post(
        &sidecar,
        &mut answers,
        json!({"type": "pipeline", "mode": "atomic", "commands": [
        {"command": "RPUSH", "args": [key, value]}, {"command": "SET", "args": [key, value]}]}),
    );
    post(&sidecar, &mut answers, json!({"type": "simple", "command": "SET", "args": [key, value], "target": "wrong"}));
    // What is refused is told what is wrong, not what it said.
    post(&sidecar, &mut answers, simple("", "GET", &[&key]));
    post(&sidecar, &mut answers, json!({"type": "simple", "command": "SET", "args": [key, null, {"a": CANARY}]}));
    post(&sidecar, &mut answers, json!({"type": "simple", "command": "SET", "args": [value], "max_retries": CANARY}));
    post(
        &sidecar,
        &mut answers,
        json!({"type": "simple", "command": "SET", "args": [CANARY, CANARY], "encoding": "base64"}),
    );
    post(
        &sidecar,
        &mut answers,
        json!({"type": "simple", "command": "SET", "args": [key, value], "occurred_at": CANARY}),
    );
    wait_until("the good and the dead ones to be settled", || {
        sidecar.settled("applied") >= 1 && sidecar.metric("kafka_consumer_lag") <= 1.0
    });
    // Outages of every kind, and what is held by them.
    for mode in [Mode::BlackHole, Mode::DropReplies, Mode::Refuse] {
        proxy.set_mode(mode);
        if mode == Mode::Refuse {
            proxy.cut();
        }
        post(&sidecar, &mut answers, set("", &key, &value));
        wait_until("the outage to be noticed", || sidecar.metric(r#"redrive_breaker_state{target="default"}"#) == 2.0);
        answers.push(sidecar.ops("/metrics"));
        proxy.set_mode(Mode::Pass);
        wait_until("the return", || sidecar.metric("kafka_consumer_lag") <= 1.0);
    }
    answers.push(sidecar.ops("/metrics"));
    answers.push(sidecar.ops("/readyz"));
    answers.push(sidecar.ops("/admin/v1/overview"));
    // Who may see the dead letters sees what went wrong, and a task's own bytes only where it asks for that task.
    let dead = sidecar.ops_with(TOKEN, "/admin/v1/dead-letters");
    assert!(dead.json()["items"].as_array().is_some_and(|items| items.len() >= 5), "{}", dead.body);
    answers.push(dead);
    answers.push(sidecar.ops_with(TOKEN, "/admin/v1/overview"));
    answers.push(sidecar.ops_with(TOKEN, "/admin/v1/partitions"));
    sidecar.term();

    assert!(sidecar.logs().iter().any(|line| line.contains(r#""level":"DEBUG""#)), "the level has no effect");
    for secret in [CANARY, PASSWORD, TOKEN] {
        for line in sidecar.logs() {
            assert!(!line.contains(secret), "{secret} is in the log: {line}");
        }
        for answer in &answers {
            let headers = format!("{:?}", answer.headers);
            assert!(!answer.body.contains(secret) && !headers.contains(secret), "{secret} is in {answer:?}");
        }
    }
}
