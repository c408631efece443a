//! 202 means stored: nothing that was acknowledged is lost, whatever ends the process and whenever.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use crate::harness::{Redis, Sidecar, first_occurrences, rpush, set, sidecar::Address, simple, wait_until};

const ROUNDS: usize = 50;

/// What a client knows of its tasks; written outside of everything that is killed.
#[derive(Default)]
struct Journal {
    sent: BTreeSet<String>,
    accepted: BTreeSet<String>,
}

/// Sends tasks until told to stop. One that got no answer is sent again with the same id, as a service would.
fn client(number: usize, address: &Mutex<Option<Address>>, stop: &AtomicBool, journal: &Mutex<Journal>) {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let ids: Vec<String> = (next..next + 1 + number * 3).map(|task| format!("c{number}-{task}")).collect();
        next += ids.len();
        let tasks: Vec<Value> = ids.iter().map(|id| rpush(id, &format!("log:{number}"))).collect();
        journal.lock().expect("no client panics").sent.extend(ids.iter().cloned());
        while !send(*address.lock().expect("no client panics"), &tasks) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        journal.lock().expect("no client panics").accepted.extend(ids);
    }
}

/// False: no answer, so nobody knows; or it was stopping, and nothing was accepted.
fn send(address: Option<Address>, tasks: &[Value]) -> bool {
    let Some(address) = address else { return false };
    let answer = match tasks {
        [task] => address.post(task),
        tasks => address.batch(tasks),
    };
    match answer {
        Ok(answer) if answer.status == 202 => true,
        Ok(answer) if answer.status == 503 && answer.body.contains("draining") => false,
        // Nothing else is a reason to refuse anything.
        Ok(answer) => panic!("{}: {}", answer.status, answer.body),
        Err(_) => false,
    }
}

#[test]
fn acknowledged_tasks_survive_fifty_ends() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let address = Arc::new(Mutex::new(Some(sidecar.address())));
    let stop = Arc::new(AtomicBool::new(false));
    let journal = Arc::new(Mutex::new(Journal::default()));
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let (address, stop, journal) = (address.clone(), stop.clone(), journal.clone());
            std::thread::spawn(move || client(number, &address, &stop, &journal))
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(random.u64(1..120)));
        if round % 10 == 9 {
            assert_eq!(sidecar.term().code(), Some(0));
        } else {
            sidecar.kill9();
        }
        *address.lock().expect("no client panics") = None;
        sidecar.restart();
        *address.lock().expect("no client panics") = Some(sidecar.address());
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no client panics");
    }
    sidecar.wait_until_done();

    let journal = journal.lock().expect("no client panics");
    assert!(journal.accepted.len() > ROUNDS, "only {} tasks were accepted", journal.accepted.len());
    let applied: BTreeSet<String> = (0..3).flat_map(|client| redis.list(&format!("log:{client}"))).collect();
    let lost: Vec<_> = journal.accepted.difference(&applied).collect();
    assert!(lost.is_empty(), "{} acknowledged tasks are lost: {lost:?}", lost.len());
    let invented: Vec<_> = applied.difference(&journal.sent).collect();
    assert!(invented.is_empty(), "never sent: {invented:?}");
    for client in 0..3 {
        let log = redis.list(&format!("log:{client}"));
        let firsts = first_occurrences(&log);
        assert!(firsts.is_sorted(), "out of order: {firsts:?}");
    }
}

#[test]
fn repeated_request_is_stored_once_also_after_a_crash() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let first = sidecar.post(&rpush("once", "log"));
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = sidecar.post(&rpush("once", "log"));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    sidecar.wait_until_done();
    sidecar.kill9();
    sidecar.restart();
    let later = sidecar.post(&rpush("once", "log"));
    assert_eq!(later.header("idempotent-replayed"), Some("true"));
    assert_eq!(later.json()["accepted_at"], first.json()["accepted_at"]);
    let other = sidecar.try_post(&rpush("once", "another")).expect("the sidecar answers");
    assert_eq!(other.status, 422);
    sidecar.post(&rpush("last", "log"));
    sidecar.wait_until_done();
    assert_eq!(redis.list("log"), ["once", "last"]);
}

#[test]
fn what_was_finished_long_ago_does_not_run_again_after_a_kill() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let mut sent = 0;
    for _ in 0..5 {
        for _ in 0..40 {
            sent += 1;
            sidecar.post(&simple(&format!("incr-{sent}"), "INCR", &["counter"]));
        }
        redis.wait_for_value("counter", &sent.to_string());
        // Idle: the checkpoint has been written when the journal says that nothing is unfinished.
        sidecar.wait_until_done();
        sidecar.kill9();
        sidecar.restart();
    }
    // Everything before it has been read again when this one has run.
    sidecar.post(&set("end", "counter-end", "1"));
    redis.wait_for_value("counter-end", "1");
    assert_eq!(redis.get("counter"), sent.to_string());
}

#[test]
fn tasks_wait_on_disk_through_a_kill_while_redis_is_down() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    for number in 0..50 {
        sidecar.post(&rpush(&number.to_string(), "log"));
    }
    sidecar.kill9();
    sidecar.restart();
    for number in 50..100 {
        sidecar.post(&rpush(&number.to_string(), "log"));
    }
    redis.restart();
    sidecar.wait_until_done();
    let wanted: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(redis.list("log"), wanted);
}

#[test]
fn full_journal_refuses_and_keeps_what_it_took() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let mut sidecar = Sidecar::start(&redis.url(), &["--journal-max-bytes", "8MiB"]);
    let padding = "x".repeat(64 * 1024);
    let mut accepted = 0;
    let refusal = loop {
        let task = simple(&format!("task-{accepted}"), "HSET", &["all", &accepted.to_string(), &padding]);
        let answer = sidecar.try_post(&task).expect("the sidecar answers");
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
    };
    assert_eq!((refusal.status, &refusal.json()["retryable"]), (503, &true.into()), "{}", refusal.body);
    assert!(refusal.header("retry-after").is_some());
    assert!(accepted > 10, "only {accepted} were accepted");
    sidecar.kill9();
    sidecar.restart();
    redis.restart();
    sidecar.wait_until_done();
    assert_eq!(redis.cli(&["HLEN", "all"]).text(), accepted.to_string());
    wait_until("there to be room again", || {
        sidecar.try_post(&set("after", "after", "1")).expect("the sidecar answers").status == 202
    });
}

#[test]
fn sigterm_ends_cleanly_and_loses_nothing() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let mut accepted = Vec::new();
    for round in 0..3 {
        for number in 0..100 {
            let id = format!("{round}-{number}");
            sidecar.post(&rpush(&id, "log"));
            accepted.push(id);
        }
        assert_eq!(sidecar.term().code(), Some(0));
        sidecar.restart();
    }
    sidecar.wait_until_done();
    // Stopped in order, so nothing ran twice either.
    assert_eq!(redis.list("log"), accepted);
}

#[test]
fn second_signal_ends_at_once_and_loses_nothing() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &["--redis-response-timeout", "60s", "--shutdown-grace", "60s"]);
    sidecar.post(&set("warm", "warm", "1"));
    redis.wait_for_value("warm", "1");
    // Frozen in the middle of a batch, so that the first signal alone would wait for its answer.
    redis.stop();
    sidecar.post(&set("stuck", "stuck", "1"));
    wait_until("the task to be sent", || sidecar.metric(r#"redrive_tasks{state="in_flight",target="default"}"#) == 1.0);
    sidecar.signal_term();
    sidecar.wait_for_log("another signal ends the process at once");
    sidecar.signal_term();
    assert_eq!(sidecar.wait().code(), Some(1));
    redis.cont();
    sidecar.restart();
    redis.wait_for_value("stuck", "1");
}

#[test]
fn sigterm_while_redis_is_down_ends_within_its_grace() {
    let mut redis = Redis::start(&[]);
    redis.kill9();
    let mut sidecar = Sidecar::start(&redis.url(), &["--shutdown-grace", "5s"]);
    sidecar.post(&set("waits", "key", "1"));
    sidecar.wait_for_log("Holding the tasks of default");
    let begun = std::time::Instant::now();
    assert_eq!(sidecar.term().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    redis.restart();
    sidecar.restart();
    redis.wait_for_value("key", "1");
}
