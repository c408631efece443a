//! Tasks that share a key run in the order in which they were accepted: through retries, holds and kills.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Proxy, Redis, Sidecar, first_occurrences, rpush, set, simple, wait_until};

const KEYS: usize = 5;
const PER_KEY: usize = 40;

/// The backoff of tests.
const QUICK: [&str; 4] = ["--retry-base", "20ms", "--retry-cap", "100ms"];

/// Each key is written in the order of acceptance, and its log shows it.
fn check(redis: &Redis) {
    for key in 0..KEYS {
        let firsts = first_occurrences(&redis.list(&format!("log:{key}")));
        assert_eq!(firsts, (0..PER_KEY as u64).collect::<Vec<_>>(), "log:{key}");
        assert_eq!(redis.get(&format!("last:{key}")), (PER_KEY - 1).to_string());
    }
}

fn send(sidecar: &Sidecar, number: usize) {
    for key in 0..KEYS {
        let mut tasks = [
            rpush(&format!("r{key}-{number}"), &format!("log:{key}")),
            set(&format!("s{key}-{number}"), &format!("last:{key}"), &number.to_string()),
        ];
        for task in &mut tasks {
            task["max_retries"] = 20.into();
            sidecar.post(task);
        }
    }
}

#[test]
fn order_holds_through_retries() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut random = fastrand::Rng::with_seed(1);
    proxy.answer(move |command| {
        let is_write = command[0] == b"RPUSH" || (command[0] == b"SET" && command[1].starts_with(b"last"));
        (is_write && random.u8(..) < 80).then(|| "TRYAGAIN Multiple keys request during rehashing of slot".to_owned())
    });
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    for number in 0..PER_KEY {
        send(&sidecar, number);
    }
    sidecar.wait_until_done();
    check(&redis);
    assert!(sidecar.metric("redis_retry_count") > 10.0);
    // Refused is not run, so nothing ran twice either.
    assert_eq!(redis.list("log:0").len(), PER_KEY);
}

#[test]
fn order_holds_through_retries_cuts_and_kills() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut random = fastrand::Rng::with_seed(2);
    proxy.answer(move |command| {
        let is_write = command[0] == b"RPUSH" || (command[0] == b"SET" && command[1].starts_with(b"last"));
        (is_write && random.u8(..) < 40).then(|| "TRYAGAIN Multiple keys request during rehashing of slot".to_owned())
    });
    let mut sidecar = Sidecar::start(&proxy.url(), &QUICK);
    let mut random = fastrand::Rng::with_seed(3);
    for number in 0..PER_KEY {
        send(&sidecar, number);
        match number % 8 {
            3 => {
                std::thread::sleep(Duration::from_millis(random.u64(0..30)));
                proxy.cut();
            }
            7 => {
                std::thread::sleep(Duration::from_millis(random.u64(0..30)));
                sidecar.kill9();
                sidecar.restart();
            }
            _ => {}
        }
    }
    sidecar.wait_until_done();
    check(&redis);
    assert_eq!(sidecar.settled("dead"), 0);
}

#[test]
fn task_that_waits_for_its_retry_holds_up_its_own_key_only() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    proxy.answer(|command| (command[0] == b"SET" && command[1] == b"parked").then(|| "TRYAGAIN not now".to_owned()));
    let sidecar = Sidecar::start(&proxy.url(), &["--retry-base", "30s", "--retry-cap", "30s"]);
    sidecar.post(&set("first", "parked", "1"));
    wait_until("the first try", || proxy.count("SET", "parked") == 1);
    sidecar.post(&rpush("second", "parked"));
    sidecar.post(&set("other", "free", "1"));
    redis.wait_for_value("free", "1");
    assert_eq!(redis.cli(&["EXISTS", "parked"]).text(), "0");
}

#[test]
fn several_keys_are_ordered_with_each_of_their_neighbours() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut refused = 0;
    proxy.answer(move |command| {
        let is_it = command[0] == b"SET" && command[1] == b"a" && refused < 3;
        refused += usize::from(is_it);
        is_it.then(|| "TRYAGAIN not now".to_owned())
    });
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    sidecar.post(&set("1", "a", "old"));
    sidecar.post(&simple("2", "RENAME", &["a", "b"]));
    sidecar.post(&set("3", "a", "new"));
    sidecar.post(&json!({"type": "lua", "id": "4", "script": "return redis.call('APPEND', KEYS[1], ARGV[1])",
        "keys": ["b"], "args": ["er"]}));
    sidecar.wait_until_done();
    assert_eq!((redis.get("a"), redis.get("b")), ("new".to_owned(), "older".to_owned()));
    assert_eq!(sidecar.settled("applied"), 4);
}

#[test]
fn script_without_keys_waits_for_all_and_all_wait_for_it() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut refused = 0;
    proxy.answer(move |command| {
        let is_it = command[0] == b"RPUSH" && command[2] == b"1" && refused < 3;
        refused += usize::from(is_it);
        is_it.then(|| "TRYAGAIN not now".to_owned())
    });
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    sidecar.post(&rpush("1", "log:a"));
    sidecar.post(&json!({"type": "lua", "id": "barrier", "script": "return redis.call('COPY', 'log:a', 'log:b')"}));
    sidecar.post(&rpush("2", "log:b"));
    sidecar.wait_until_done();
    assert_eq!(redis.list("log:b"), ["1", "2"]);
}

#[test]
fn ordering_key_joins_tasks_on_different_keys() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let mut refused = 0;
    proxy.answer(move |command| {
        let is_it = command[0] == b"RPUSH" && command[2] == b"1" && refused < 3;
        refused += usize::from(is_it);
        is_it.then(|| "TRYAGAIN not now".to_owned())
    });
    let sidecar = Sidecar::start(&proxy.url(), &QUICK);
    let mut first = rpush("1", "log");
    first["ordering_key"] = "user".into();
    sidecar.post(&first);
    let mut second = simple("2", "COPY", &["log", "copy"]);
    second["ordering_key"] = "user".into();
    sidecar.post(&second);
    let mut third = simple("3", "SET", &["elsewhere", "1"]);
    third["ordering_key"] = "user".into();
    sidecar.post(&third);
    sidecar.post(&set("4", "free", "1"));
    sidecar.wait_until_done();
    assert_eq!(redis.list("copy"), ["1"]);
    let order: Vec<_> = proxy.first_arguments().into_iter().filter(|key| key == "elsewhere" || key == "log").collect();
    assert_eq!(order.last().map(String::as_str), Some("elsewhere"), "{order:?}");
}
