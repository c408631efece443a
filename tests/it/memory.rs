//! A backlog waits on disk, not in memory.

use serde_json::Value;

use crate::harness::{Redis, Sidecar, set};

const TASKS: usize = 200_000;
const PER_BATCH: usize = 500;

/// The window's own 24 MiB, and what the allocator and a debug build add to it.
const MOST: u64 = 40 * 1024 * 1024;

#[test]
fn backlog_of_two_hundred_thousand_tasks_stays_on_disk() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let sidecar = Sidecar::start(&redis.url(), &[]);
    sidecar.post(&set("first", "first", "1"));
    let idle = sidecar.resident_bytes();
    let mut highest = 0;
    for batch in 0..TASKS / PER_BATCH {
        let tasks: Vec<Value> = (0..PER_BATCH)
            .map(|task| set(&format!("t{batch}-{task}"), &format!("key:{batch}:{task}"), "some value of a service"))
            .collect();
        sidecar.batch(&tasks);
        highest = highest.max(sidecar.resident_bytes());
    }
    assert_eq!(sidecar.metric("kafka_consumer_lag"), (TASKS + 1) as f64);
    let grown = highest.saturating_sub(idle);
    eprintln!("{} MiB idle, {} MiB more at the most", idle >> 20, grown >> 20);
    assert!(grown < MOST, "{} MiB more than idle", grown / 1024 / 1024);
}
