//! What becomes of promises when the disk does not do its part.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Fault, Faults, Redis, Sidecar, rpush, set, sidecar::Address, simple, wait_for, wait_until};

/// Why a task is held whose dead letter has no room.
pub const NO_LETTER: &str = "its dead letter cannot be stored";

/// Waits until the task is said to be held because its letter has no room; answers what is said.
pub fn held_for_want_of_a_letter(sidecar: &Sidecar, id: &str) -> Value {
    wait_for(&format!("{id} to be held"), || {
        let status = sidecar.get(id).json();
        (status["held_by"] == NO_LETTER).then_some(status)
    })
}

/// A task whose dead letter cannot be stored is where it was, and so is all that must come behind it.
pub fn check_nothing_is_settled(sidecar: &Sidecar, redis: &Redis, id: &str) {
    let status = held_for_want_of_a_letter(sidecar, id);
    assert_eq!((&status["status"], &status["outcome"]), (&json!("held"), &Value::Null), "{status}");
    assert!(status["held_since"].is_string(), "{status}");
    assert_eq!(status["last_error"]["code"], "WRONGTYPE", "{status}");
    assert_eq!(sidecar.dead_letter(id), None);
    // After a restart it would take the place of what waits before it.
    let mut behind = set("behind", "text", "behind");
    behind["coalesce"] = false.into();
    sidecar.post(&behind);
    // What shares no key with it goes on, and would have been made after what is behind it.
    sidecar.post(&set("other", "other", "1"));
    redis.wait_for_value("other", "1");
    assert_eq!(redis.get("text"), "1");
    assert_eq!(sidecar.get("behind").json()["status"], "ready");
    // The watermark stays before it, so that a restart begins with it.
    wait_until("all but two to be settled", || {
        let partitions = sidecar.ops("/admin/v1/partitions").json();
        let items = partitions["items"].as_array().expect("a list has items");
        let partition = items.iter().find(|partition| partition["first_id"] == id);
        partition.is_some_and(|partition| partition["in_window"] == 2)
            && partition.is_some_and(|partition| partition["first_waits_for"] == NO_LETTER)
            && sidecar.metric("kafka_consumer_lag") == 3.0
    });
    let line = sidecar.wait_for_log(&format!("The dead letter of task {id} cannot be stored"));
    assert_eq!((&line["level"], &line["task.id"]), (&json!("ERROR"), &json!(id)));
    assert!(sidecar.logged(&format!("Gave up task {id} ")).is_empty());
}

pub fn check_the_letter_comes(sidecar: &Sidecar, redis: &Redis, id: &str) {
    let letter = wait_for("the dead letter", || sidecar.dead_letter(id));
    assert_eq!((&letter["reason"], &letter["code"]), (&json!("wrong-type"), &json!("WRONGTYPE")), "{letter}");
    redis.wait_for_value("text", "behind");
    sidecar.wait_until_done();
    let status = sidecar.get(id).json();
    assert_eq!((&status["status"], &status["outcome"]), (&json!("settled"), &json!("dead")), "{status}");
}

#[test]
fn dead_letter_waits_for_room_on_the_disk() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let faults = Faults::new();
    let sidecar = Sidecar::start_in(faults.environment(), &redis.url(), &[]);
    sidecar.post(&set("before", "before", "1"));
    sidecar.wait_until_done();
    faults.begin(Fault::FullDisk);
    // The journal has written ahead: there is room for small tasks for a while, and for no dead letter.
    sidecar.post(&rpush("poison", "text"));
    check_nothing_is_settled(&sidecar, &redis, "poison");
    let large = |number: usize| simple(&format!("large-{number}"), "SET", &["large", &"x".repeat(120 * 1024)]);
    let mut number = 0;
    let refused = wait_for("the room to be used up", || {
        number += 1;
        let answer = sidecar.try_post(&large(number)).expect("the sidecar answers");
        (answer.status != 202).then_some(answer)
    });
    assert_eq!((refused.status, &refused.json()["type"]), (503, &json!("urn:redrive:problem:queue-full")));
    assert_eq!(sidecar.settled("dead"), 0);

    faults.end(Fault::FullDisk);
    check_the_letter_comes(&sidecar, &redis, "poison");
    assert_eq!(sidecar.settled("dead"), 1);
    sidecar.post(&large(number));
}

/// The same with a disk that has room, and a budget that has none; and with a crash in between.
#[test]
fn dead_letter_waits_for_room_in_the_budget() {
    let redis = Redis::start(&[]);
    redis.cli(&["SET", "text", "1"]);
    let smallest = [("REDRIVE_JOURNAL_MAX_BYTES".to_owned(), "8MiB".to_owned())];
    let mut sidecar = Sidecar::start_in(smallest.into(), &redis.url(), &[]);
    // Tasks give their room back when they are settled; their letters do not.
    let padding = "x".repeat(100 * 1024);
    let mut letters = 0;
    let held = loop {
        let id = format!("poison-{letters}");
        sidecar.post(&simple(&id, "RPUSH", &["text", &padding]));
        let is_settled = wait_for("it to be settled or held", || {
            let status = sidecar.get(&id).json();
            let is_held = status["held_by"] == NO_LETTER;
            (is_held || status["status"] == "settled").then_some(!is_held)
        });
        if !is_settled {
            break id;
        }
        letters += 1;
    };
    assert!(letters > 10, "only {letters} letters had room");
    check_nothing_is_settled(&sidecar, &redis, &held);
    assert_eq!(sidecar.settled("dead"), letters);

    sidecar.kill9();
    sidecar.restart();
    held_for_want_of_a_letter(&sidecar, &held);
    assert_eq!((sidecar.dead_letter(&held), redis.get("text")), (None, "1".to_owned()));
    assert_eq!(sidecar.settled("dead"), 0);

    assert_eq!(sidecar.term().code(), Some(0));
    sidecar.restart_with(&["--journal-max-bytes", "64MiB"]);
    check_the_letter_comes(&sidecar, &redis, &held);
    let kept = sidecar.ops("/admin/v1/dead-letters?limit=500").json();
    assert_eq!(kept["items"].as_array().map(Vec::len), Some(letters as usize + 1), "each is there once");
}

/// What a client knows of its tasks.
#[derive(Default)]
struct Told {
    accepted: Vec<String>,
    /// Without an answer: stored or not.
    unknown: Vec<String>,
}

/// Sends tasks one after the other until one is not accepted.
fn send_until_the_end(address: Address, client: usize) -> Told {
    let mut told = Told::default();
    loop {
        let id = format!("{client}-{}", told.accepted.len());
        match address.post(&rpush(&id, "log")) {
            Ok(answer) if answer.status == 202 => told.accepted.push(id),
            // Came after the failure: it says that nothing was accepted, and the process ends.
            Ok(answer) => {
                assert_eq!((answer.status, &answer.json()["accepted"]), (503, &json!(false)), "{}", answer.body);
                return told;
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::ConnectionRefused {
                    told.unknown.push(id);
                }
                return told;
            }
        }
    }
}

#[test]
fn disk_that_hangs_refuses_at_once_what_has_no_room_and_keeps_all_else_waiting() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let faults = Faults::new();
    let sidecar = Sidecar::start_in(faults.environment(), &redis.url(), &["--admission-max-inflight-bytes=8MiB"]);
    // There is a segment: what hangs is the sync of tasks.
    sidecar.post(&set("first", "first", "1"));
    faults.begin(Fault::HungSync);
    // Twice as much as may be under way.
    let value = "v".repeat(48 << 10);
    let address = sidecar.address();
    let accepted = Arc::<AtomicUsize>::default();
    let clients: Vec<_> = (0..340)
        .map(|number| {
            let task = set(&format!("big-{number}"), &format!("big:{number}"), &value);
            let accepted = accepted.clone();
            std::thread::spawn(move || {
                let answer = address.post(&task).expect("each is answered");
                accepted.fetch_add(usize::from(answer.status == 202), Ordering::Relaxed);
                (answer.status, answer.body)
            })
        })
        .collect();
    // They are answered while the disk hangs: a refusal waits for nothing. All others do, and none is answered.
    wait_until("what has no room to be answered", || {
        clients.iter().filter(|client| client.is_finished()).count() >= 120
    });
    assert_eq!(accepted.load(Ordering::Relaxed), 0, "accepted, and not synced");
    let mut took: Vec<Duration> = (0..21)
        .map(|number| {
            let task = set(&format!("more-{number}"), &format!("more:{number}"), &value);
            let begun = Instant::now();
            assert_eq!(address.post(&task).expect("it is answered").status, 503);
            begun.elapsed()
        })
        .collect();
    took.sort();
    // A quarter of them, as others use the processors too.
    assert!(took[5] <= Duration::from_millis(5), "{took:?}");
    faults.end(Fault::HungSync);
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().expect("no client panics")).collect();
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 202).collect();
    assert!((140..200).contains(&refused.len()), "{} of 340 were refused", refused.len());
    assert!(refused.iter().all(|(status, body)| *status == 503 && body.contains("overloaded")), "{refused:?}");
    redis.restart();
    sidecar.wait_until_done();
    assert_eq!(sidecar.settled("applied"), 1 + 340 - refused.len() as u64);
}

#[test]
fn failed_sync_is_not_answered_and_ends_the_process() {
    let mut redis = Redis::start(&[]);
    // Nothing is executed, so what is synced are tasks and nothing else.
    redis.kill9();
    let faults = Faults::new();
    let mut sidecar = Sidecar::start_in(faults.environment(), &redis.url(), &[]);
    let address = sidecar.address();
    let clients: Vec<_> =
        (0..8).map(|client| std::thread::spawn(move || send_until_the_end(address, client))).collect();
    wait_until("tasks to be stored", || sidecar.metric("kafka_consumer_lag") > 100.0);
    faults.begin(Fault::FailedSync);
    assert_eq!(sidecar.wait().code(), Some(1));
    let told: Vec<Told> = clients.into_iter().map(|client| client.join().expect("no client panics")).collect();
    let unknown: Vec<&String> = told.iter().flat_map(|told| &told.unknown).collect();
    assert!(!unknown.is_empty(), "the requests of the failed sync were answered");
    // The logs are JSON; beside them is the line for whoever started it.
    wait_until("the line that says why", || sidecar.logs().iter().any(|line| !line.starts_with('{')));
    let said: Vec<String> = sidecar.logs().into_iter().filter(|line| !line.starts_with('{')).collect();
    assert!(matches!(&said[..], [line] if line.contains("the log has failed: a sync failed: ")), "{said:?}");

    faults.end(Fault::FailedSync);
    redis.restart();
    sidecar.restart();
    // Whoever does not know sends it again with the same id.
    unknown.iter().for_each(|id| drop(sidecar.post(&rpush(id, "log"))));
    sidecar.wait_until_done();
    let mut wanted: Vec<String> =
        told.iter().flat_map(|told| told.accepted.iter().chain(&told.unknown)).cloned().collect();
    let mut made = redis.list("log");
    wanted.sort();
    made.sort();
    assert_eq!(made, wanted, "each once");
}
