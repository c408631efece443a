//! Once, in order, and only while it is still true: whatever becomes of answers, connections and processes.
//!
//! How it is proven:
//!
//! - [`workload`] makes tasks from a seed: every kind of write, on few keys, so that all kinds meet on each.
//! - [`nemesis`] has everything go wrong meanwhile: answers are lost after the command ran, half a pipeline is answered,
//!   connections are reset, a link swallows commands or delivers them much later, Redis hangs, is full, is killed, and
//!   the sidecar is killed at random moments and at the worst ones (`redrive::faults`).
//! - [`model`] makes the same tasks one at a time on a second Redis that nothing happens to.
//! - [`round`] compares: every key, to the last byte and the second of its end, and the dead letters, which are those
//!   that the model's errors explain and no others.
//! - [`planted`] puts bugs into the sidecar, one at a time, to show that the proof would fail with each.
//!
//! Some rounds have the tasks in Kafka, and the broker is killed as well.
//!
//! `AMBIGUITY_SEED` and `AMBIGUITY_ROUNDS` repeat a round, or make many; `AMBIGUITY_BUG` plants a bug in each, which
//! they should find.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use self::round::Plan;
use crate::harness::number_from_environment;

mod duplicates;
mod links;
mod model;
mod nemesis;
mod planted;
mod round;
mod state;
mod workload;

/// Rounds that run at the same time: most of a round is waiting.
const AT_ONCE: usize = 4;

#[test]
fn without_faults_the_end_is_that_of_the_model() {
    match round::run(Plan { seed: 1, faults: false, kafka: false, bug: "" }) {
        Ok(summary) => eprintln!("{summary}"),
        Err(failed) => panic!("{failed}"),
    }
}

#[test]
fn whatever_happens_the_end_is_that_of_the_model() {
    let first = number_from_environment("AMBIGUITY_SEED", 1);
    let rounds = number_from_environment("AMBIGUITY_ROUNDS", 10);
    let bug = std::env::var("AMBIGUITY_BUG").unwrap_or_default();
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + rounds {
                        return;
                    }
                    let plan = Plan { seed, faults: true, kafka: false, bug: &bug };
                    let failed = match std::panic::catch_unwind(|| round::run(plan)) {
                        Ok(Ok(summary)) => {
                            eprintln!("seed {seed}: {summary}");
                            continue;
                        }
                        Ok(Err(failed)) => failed.to_string(),
                        Err(_) => "it panicked, see above".to_owned(),
                    };
                    failures.lock().expect("nobody panics with it").push(format!(
                        "seed {seed}: again with AMBIGUITY_SEED={seed} AMBIGUITY_ROUNDS=1 AMBIGUITY_BUG={bug} \
                         cargo test --test it whatever_happens\n{failed}"
                    ));
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panicked with it");
    assert!(failures.is_empty(), "{} of {rounds} rounds failed\n{}", failures.len(), failures.join("\n\n"));
}

#[test]
fn whatever_happens_with_kafka_the_end_is_that_of_the_model() {
    let first = number_from_environment("AMBIGUITY_SEED", 1);
    let rounds = number_from_environment("AMBIGUITY_KAFKA_ROUNDS", 1);
    let bug = std::env::var("AMBIGUITY_BUG").unwrap_or_default();
    for seed in first..first + rounds {
        match round::run(Plan { seed, faults: true, kafka: true, bug: &bug }) {
            Ok(summary) => eprintln!("seed {seed}: {summary}"),
            Err(failed) => panic!("seed {seed}: {failed}"),
        }
    }
}
