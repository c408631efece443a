//! A Redis that comes back is not knocked over by its own backlog.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Redis, Sidecar, set, simple, wait_for, wait_until};

/// What `/admin/v1/breakers` says of the only target.
fn breaker(sidecar: &Sidecar) -> Value {
    sidecar.ops("/admin/v1/breakers").json()["items"][0].take()
}

/// Hands in SETs of keys that begin with this, none of which may be retried.
fn hand_in(sidecar: &Sidecar, prefix: &str, count: usize) {
    let tasks: Vec<Value> = (0..count)
        .map(|number| {
            let mut task = set(&format!("{prefix}-{number}"), &format!("{prefix}:{number}"), "v");
            task["max_retries"] = 0.into();
            task
        })
        .collect();
    tasks.chunks(500).for_each(|tasks| sidecar.batch(tasks));
}

#[test]
fn rate_ceiling_holds_from_the_front_door_to_redis() {
    let redis = Redis::start(&["--maxmemory", "1"]);
    let sidecar = Sidecar::start(&redis.url(), &["--redis-max-rate", "1000", "--redis-adaptive=false"]);
    hand_in(&sidecar, "key", 3000);
    sidecar.wait_for_log("Holding the tasks of default that need memory");
    let mut client = redis.client();
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let mut made = || client.ask(&["DBSIZE"]).expect("it answers").text().parse::<u64>().expect("a number");
    let begun = Instant::now();
    let mut samples = Vec::new();
    while samples.last().is_none_or(|(_, made)| *made < 3000) {
        // The time after the answer: so much may have been sent until then.
        let made = made();
        samples.push((begun.elapsed(), made));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", samples.last());
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = samples.iter().find(|(_, made)| *made > 1).expect("it was made").0;
    let took = samples[samples.len() - 1].0 - first;
    assert!(took >= Duration::from_millis(2_700), "3,000 tasks in {took:?} at 1,000 a second");
    assert!(took <= Duration::from_secs(6), "3,000 tasks in {took:?} at 1,000 a second");
    for (index, (from, before)) in samples.iter().enumerate() {
        for (to, after) in &samples[index..] {
            // The probe's key, a bucket's worth of tokens, and what the two clocks are apart.
            let allowed = (*to - *from).as_secs_f64() * 1000.0 + 20.0 + 1.0 + 40.0;
            assert!((after - before) as f64 <= allowed, "{before} at {from:?}, {after} at {to:?}");
        }
    }
    sidecar.wait_until_done();
    assert_eq!(sidecar.metric(r#"redrive_rate_limit{target="default"}"#), 1000.0);
}

#[test]
fn what_is_not_sent_spends_nothing_of_the_rate() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &["--redis-max-rate", "10"]);
    let late: Vec<Value> = (0..500)
        .map(|number| {
            let mut task = set(&format!("late-{number}"), &format!("late:{number}"), "v");
            task["deadline"] = "2020-01-01T00:00:00Z".into();
            task
        })
        .collect();
    let begun = Instant::now();
    sidecar.batch(&late);
    sidecar.wait_until_done();
    assert!(begun.elapsed() < Duration::from_secs(10), "500 tasks that are over took {:?}", begun.elapsed());
    assert_eq!(sidecar.settled("expired"), 500);
}

#[test]
fn full_memory_holds_what_needs_some_and_lets_deletes_pass_in_order() {
    let redis = Redis::start(&[]);
    for key in ["gone", "short", "twice", "replaced"] {
        redis.cli(&["SET", key, "old"]);
    }
    let sidecar = Sidecar::start(&redis.url(), &[]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    // More than is read ahead: what frees memory is found behind it.
    hand_in(&sidecar, "full", 1500);
    let mut delete = simple("del-twice", "DEL", &["twice"]);
    delete["coalesce"] = false.into();
    sidecar.post(&set("set-twice", "twice", "new"));
    sidecar.post(&delete);
    sidecar.post(&set("set-replaced", "replaced", "new"));
    sidecar.post(&simple("del-replaced", "DEL", &["replaced"]));
    sidecar.post(&simple("del", "DEL", &["gone"]));
    sidecar.post(&simple("expire", "EXPIRE", &["short", "1000"]));
    wait_until("the delete to pass", || redis.cli(&["EXISTS", "gone"]).text() == "0");
    wait_until("the expiry to pass", || redis.cli(&["TTL", "short"]).text() != "-1");
    let found = breaker(&sidecar);
    assert_eq!((&found["state"], &found["reason"]["code"]), (&"open".into(), &"OOM".into()), "{found}");
    assert!(found["held"].as_u64() >= Some(1500), "{found}");
    assert_eq!(sidecar.get("full-7").json()["status"], "held");
    wait_until("the delete to pass that leaves nothing of what is held", || {
        redis.cli(&["EXISTS", "replaced"]).text() == "0"
    });
    assert_eq!(redis.get("twice"), "old", "a delete does not overtake the write that it follows");
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    sidecar.wait_until_done();
    assert_eq!(redis.cli(&["EXISTS", "twice"]).text(), "0");
    assert_eq!(redis.get("full:1499"), "v");
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (0, 1505));
    assert_eq!(sidecar.settled("superseded"), 1);
    assert_eq!(sidecar.metric("redis_retry_count"), 0.0);
}

#[test]
fn server_that_was_started_again_is_spared_and_every_state_is_told() {
    let mut redis = Redis::durable();
    let sidecar = Sidecar::start(&redis.url(), &[]);
    sidecar.post(&set("before", "before", "1"));
    redis.wait_for_value("before", "1");
    let well = breaker(&sidecar);
    assert_eq!((&well["state"], &well["rate_limit"]), (&"closed".into(), &20_000.0.into()), "{well}");
    assert_eq!((&well["limit_batches"], well.get("spared_until")), (&4.into(), None), "{well}");
    assert!(well["ping_baseline_ms"].as_f64() > Some(0.0), "{well}");

    redis.kill9();
    hand_in(&sidecar, "during", 2000);
    sidecar.wait_for_log("Holding the tasks of default");
    // The connection that was lost opened it, and the probes know better.
    let down =
        wait_for("a probe", || Some(breaker(&sidecar)).filter(|it| it["reason"]["code"] == "connection-refused"));
    assert_eq!((&down["state"], &down["limit_batches"]), (&"open".into(), &0.into()), "{down}");
    assert!(down["next_probe_at"].is_string() && down["since"].is_string(), "{down}");
    wait_until("it shows in the metrics", || sidecar.metric(r#"redrive_breaker_state{target="default"}"#) == 2.0);

    redis.restart();
    sidecar.wait_until_done();
    let back = breaker(&sidecar);
    // A quarter, or half of that while this machine is too busy to answer a PING.
    assert!(back["rate_limit"].as_f64() == Some(5_000.0) || back["rate_limit"].as_f64() == Some(2_500.0), "{back}");
    assert!(back["spared_until"].is_string(), "{back}");
    wait_until("it is closed", || breaker(&sidecar)["state"] == "closed");
    let told = [
        "Holding the tasks of default",
        "default was started again",
        "default answers again: one batch tries it out",
        "Released the tasks of default after",
        "default is sent as many batches at a time as before",
    ];
    let logs = sidecar.logs();
    let places = told.map(|text| logs.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text}")));
    assert!(places.is_sorted(), "{places:?}");
}
