//! The same task accepted twice, by those who could not know.

use crate::harness::{Redis, Sidecar, set, simple};

use super::nemesis::QUICK;

/// More than the memory of what was accepted is filled with at a start.
const FORGOTTEN_BYTES: usize = 17 * 1024 * 1024;

const VALUE_BYTES: usize = 100 * 1024;

#[test]
fn task_that_two_sidecars_take_is_applied_once() {
    let redis = Redis::start(&[]);
    let sidecars = [Sidecar::start(&redis.url(), &QUICK), Sidecar::start(&redis.url(), &QUICK)];
    for number in 0..20 {
        for sidecar in &sidecars {
            sidecar.post(&simple(&format!("increment-{number}"), "INCR", &["counter"]));
        }
    }
    for sidecar in &sidecars {
        sidecar.wait_until_done();
        assert_eq!((sidecar.settled("applied"), sidecar.settled("dead")), (20, 0));
    }
    assert_eq!(redis.get("counter"), "20");
}

#[test]
fn task_that_was_forgotten_is_applied_once() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &QUICK);
    let increment = simple("increment", "INCR", &["counter"]);
    sidecar.post(&increment);
    sidecar.wait_until_done();
    let value = "x".repeat(VALUE_BYTES);
    let fillers: Vec<_> = (0..FORGOTTEN_BYTES / VALUE_BYTES).map(|n| set(&n.to_string(), "filler", &value)).collect();
    for chunk in fillers.chunks(30) {
        sidecar.batch(chunk);
    }
    sidecar.wait_until_done();
    sidecar.kill9();
    sidecar.restart();
    let again = sidecar.post(&increment);
    assert_eq!(again.header("idempotent-replayed"), None, "it is remembered, so this shows nothing");
    sidecar.wait_until_done();
    assert_eq!(redis.get("counter"), "1");
    assert_eq!(sidecar.settled("dead"), 0);
}
