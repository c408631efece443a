//! The proof of the proof: with each of these bugs in the sidecar the end is wrong, and is found to be.
//!
//! Each bug has the shortest way to bring it out. A scenario is run without the bug, and must end as it should, and then
//! with it.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Proxy, Redis, Sidecar, set, simple, wait_for, wait_until};

use super::{links, nemesis::QUICK, workload::now_ms};

/// Says what the end is that should have been another one.
type Scenario = fn(bug: &str) -> Result<(), String>;

fn check(bug: &str, scenario: Scenario) {
    scenario("").expect("without the bug all is well");
    scenario(bug).expect_err("the bug is not found");
}

fn must_be(what: &str, expected: &str, found: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?} and not {expected:?}")) }
}

#[test]
fn no_marker_is_found() {
    check("no-marker", |bug| {
        let redis = Redis::start(&[]);
        let proxy = Proxy::start(redis.port());
        let sidecar = Sidecar::start_with(bug, &proxy.url(), &QUICK);
        // A script that the server does not know yet is answered by that, which is not the answer to lose.
        sidecar.post(&simple("before", "INCR", &["before"]));
        redis.wait_for_value("before", "1");
        proxy.mute_link_of("counter");
        sidecar.post(&simple("increment", "INCR", &["counter"]));
        sidecar.wait_until_done();
        must_be("the counter", "1", &redis.get("counter"))
    });
}

#[test]
fn marker_after_the_effect_is_found() {
    check("marker-after-effect", |bug| {
        let redis = Redis::start(&[]);
        let proxy = Proxy::start(redis.port());
        let sidecar = Sidecar::start_with(bug, &proxy.url(), &QUICK);
        // What fails midway stays half done, and must not be half done twice.
        let script = "redis.call('INCR', KEYS[1]) error('no')";
        sidecar.post(&lua("before", script, "before"));
        wait_for("the dead letter", || sidecar.dead_letter("before"));
        proxy.mute_link_of("counter");
        sidecar.post(&lua("midway", script, "counter"));
        wait_for("the dead letter", || sidecar.dead_letter("midway"));
        must_be("the counter", "1", &redis.get("counter"))
    });
}

#[test]
fn no_wait_for_a_checkpoint_is_found() {
    check("no-wait-for-checkpoint", |bug| {
        let redis = Redis::start(&[]);
        // Between the effect of the second and any checkpoint that says so.
        let faults = format!("kill-after-send=2,{bug}");
        let mut sidecar = Sidecar::start_with(faults.trim_end_matches(','), &redis.url(), &QUICK);
        sidecar.batch(&[set("zero", "counter", "0"), simple("increment", "INCR", &["counter"])]);
        wait_until("the sidecar to end", || sidecar.has_ended());
        sidecar.set_faults(bug);
        sidecar.restart();
        sidecar.wait_until_done();
        must_be("the counter", "1", &redis.get("counter"))
    });
}

#[test]
fn connection_that_is_not_closed_is_found() {
    check("no-client-kill", |bug| {
        let redis = Redis::start(&[]);
        let proxy = Proxy::start(redis.port());
        let sidecar = Sidecar::start_with(bug, &proxy.url(), &QUICK);
        must_be("the key", "2", &links::end_after_a_late_packet(&redis, &proxy, &sidecar, "key"))
    });
}

#[test]
fn relative_ttl_as_it_is_is_found() {
    check("relative-ttl-as-is", |bug| {
        let redis = Redis::start(&[]);
        let sidecar = Sidecar::start_with(bug, &redis.url(), &QUICK);
        let mut task = simple("minute-late", "SET", &["key", "1", "EX", "100"]);
        let tried = jiff::Timestamp::from_millisecond(now_ms() - 60_000).expect("it is of our days");
        task["occurred_at"] = tried.to_string().into();
        sidecar.post(&task);
        sidecar.wait_until_done();
        let left: i64 = redis.cli(&["TTL", "key"]).text().parse().expect("TTL answers a number");
        if (1..=41).contains(&left) { Ok(()) } else { Err(format!("{left} s are left")) }
    });
}

#[test]
fn version_as_a_number_is_found() {
    check("version-as-number", |bug| {
        let redis = Redis::start(&[]);
        let sidecar = Sidecar::start_with(bug, &redis.url(), &QUICK);
        // The same number, to who has 53 bits.
        for (value, version) in [("old", (1_u64 << 53)), ("new", (1 << 53) + 1)] {
            let mut task = set(value, "key", value);
            task["version"] = version.to_string().into();
            task["coalesce"] = false.into();
            sidecar.post(&task);
        }
        sidecar.wait_until_done();
        must_be("the key", "new", &redis.get("key"))
    });
}

#[test]
fn faults_are_in_no_release() {
    let with_assertions = cfg!(debug_assertions);
    let binary = fs::read(env!("CARGO_BIN_EXE_redrive")).expect("the binary is built");
    let names = redrive::faults::POINTS.iter().chain(&redrive::faults::BUGS);
    for name in names {
        let is_there = binary.windows(name.len()).any(|found| found == name.as_bytes());
        assert_eq!(is_there, with_assertions, "{name}");
    }
    let given = if with_assertions { "no-such-bug" } else { "no-marker" };
    let mut sidecar = Sidecar::start(Redis::start(&[]).url().as_str(), &[]);
    sidecar.kill9();
    sidecar.set_faults(given);
    let (status, line) = sidecar.fail_to_restart();
    assert_eq!(status, Some(2));
    assert!(line.contains("REDRIVE_FAULTS"), "{line}");
}

fn lua(id: &str, script: &str, key: &str) -> Value {
    json!({"type": "lua", "id": id, "script": script, "keys": [key]})
}
