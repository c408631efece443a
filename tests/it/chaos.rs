//! Everything at once: faults of every kind at random moments, while services go on sending.
//!
//! A seed decides which faults come when. `CHAOS_SEED` and `CHAOS_SECONDS` repeat a run, or make a long
//! one; what a failing run was is the first thing that it says.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    Proxy, Redis, Sidecar, first_occurrences, number_from_environment, proxy::Mode, rpush, set, sidecar::Address,
};

const CLIENTS: usize = 3;
const KEYS_PER_CLIENT: usize = 4;

/// Sends to keys of its own until told to stop; returns how many tasks of each kind each key got. What got no answer is
/// repeated with the same id until there is one, so the order of acceptance is known.
fn client(number: usize, address: &Mutex<Address>, stop: &AtomicBool) -> Vec<u64> {
    let mut counts = vec![0; KEYS_PER_CLIENT];
    let mut random = fastrand::Rng::with_seed(number as u64);
    while !stop.load(Ordering::Relaxed) {
        let place = random.usize(..KEYS_PER_CLIENT);
        let (key, count) = (number * KEYS_PER_CLIENT + place, counts[place]);
        let mut tasks: Vec<Value> = vec![
            rpush(&format!("r{key}-{count}"), &format!("log:{key}")),
            set(&format!("s{key}-{count}"), &format!("last:{key}"), &count.to_string()),
        ];
        for task in &mut tasks {
            task["max_retries"] = 20.into();
        }
        loop {
            let address = *address.lock().expect("no client panics");
            match address.batch(&tasks) {
                Ok(answer) if answer.status == 202 => break,
                Ok(answer) => panic!("{}: {}", answer.status, answer.body),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        counts[place] += 1;
        // No faster than a Redis that syncs every write can follow: units of one key run one after the other.
        std::thread::sleep(Duration::from_millis(10));
    }
    counts
}

/// One fault, from its beginning to its end.
fn fault(random: &mut fastrand::Rng, redis: &mut Redis, proxy: &Proxy, sidecar: &mut Sidecar) -> &'static str {
    let a_while = Duration::from_millis(random.u64(10..500));
    let with_mode = |mode| {
        proxy.set_mode(mode);
        std::thread::sleep(a_while);
        proxy.set_mode(Mode::Pass);
    };
    match random.u8(..8) {
        0 | 1 => {
            sidecar.kill9();
            sidecar.restart();
            "the sidecar is killed"
        }
        2 => {
            redis.kill9();
            std::thread::sleep(a_while);
            redis.restart();
            "Redis is killed"
        }
        3 => {
            proxy.cut();
            "connections are cut"
        }
        4 => {
            with_mode(Mode::BlackHole);
            "connections die silently"
        }
        5 => {
            with_mode(Mode::DropReplies);
            "answers are lost"
        }
        6 => {
            redis.stop();
            std::thread::sleep(a_while);
            redis.cont();
            "Redis hangs"
        }
        _ => {
            redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
            std::thread::sleep(a_while);
            redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            "Redis is full"
        }
    }
}

#[test]
fn promises_hold_through_everything_at_once() {
    let seed = number_from_environment("CHAOS_SEED", 11);
    let seconds = number_from_environment("CHAOS_SECONDS", 12);
    eprintln!("seed {seed}, {seconds} s");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut redis = Redis::durable();
    let proxy = Proxy::start(redis.port());
    let mut refusals = random.fork();
    proxy.answer(move |command| {
        let is_write = command[0] == b"RPUSH" || (command[0] == b"SET" && command[1].starts_with(b"last"));
        (is_write && refusals.u8(..) < 8).then(|| "TRYAGAIN Multiple keys request during rehashing of slot".to_owned())
    });
    let quick = ["--retry-base", "10ms", "--retry-cap", "50ms", "--redis-response-timeout", "200ms"];
    let mut sidecar = Sidecar::start(&proxy.url(), &quick);
    let address = Arc::new(Mutex::new(sidecar.address()));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (address, stop) = (address.clone(), stop.clone());
            std::thread::spawn(move || client(number, &address, &stop))
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.u64(0..300)));
        let fault = fault(&mut random, &mut redis, &proxy, &mut sidecar);
        eprintln!("{fault}");
        *address.lock().expect("no client panics") = sidecar.address();
    }
    stop.store(true, Ordering::Relaxed);
    let counts: Vec<u64> = clients.into_iter().flat_map(|client| client.join().expect("no client panics")).collect();
    sidecar.wait_until_done();

    assert!(counts.iter().sum::<u64>() > seconds * 10, "hardly anything was accepted: {counts:?}");
    for (key, count) in counts.into_iter().enumerate() {
        let log = redis.list(&format!("log:{key}"));
        assert_eq!(first_occurrences(&log), (0..count).collect::<Vec<_>>(), "log:{key}");
        assert_eq!(redis.get(&format!("last:{key}")), (count - 1).to_string(), "last:{key}");
    }
    let list = sidecar.ops("/admin/v1/dead-letters").json();
    assert_eq!(list["items"], serde_json::json!([]), "an outage kills no task");
}
