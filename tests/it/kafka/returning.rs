//! A Redis that many sidecars have waited for returns: together they do not knock it over.
//!
//! `FLEET` sets how many there are: `make soak` takes ten. What each sends and when is what the server itself saw.

use std::collections::BTreeMap;

use super::{flags, reaches_kafka};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    number_from_environment, set, wait_until,
};

/// The ceiling of each sidecar, in units per second, and what of it is given to a server that was started again.
const MAX_RATE: usize = 400;
const SPARED_RATE: f64 = 100.0;

/// What each makes on average.
const TASKS: usize = 300;

/// A batch at that rate, and what may be sent in the time for which the machine may hold one up.
const ALLOWED_MORE: f64 = 2.0 + SPARED_RATE * 0.1;

/// What no more than half of the fleet may do together, in seconds. That nothing but chance has them do it is for the
/// breaker's own tests to say.
const AN_INSTANT: f64 = 0.002;

#[test]
fn fleet_keeps_to_the_ceilings_and_lets_go_one_after_the_other() {
    let fleet = number_from_environment("FLEET", 3) as usize;
    let (mut redis, kafka, topic) = (Redis::durable(), Kafka::shared(), unique("returning"));
    let mut flags = flags(kafka, &topic);
    flags.extend([format!("--kafka-partitions={fleet}"), format!("--redis-max-rate={MAX_RATE}")]);
    // So many processes that start together may not get to say that they are there.
    flags.retain(|flag| !flag.starts_with("--kafka-session-timeout"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let sidecars: Vec<Sidecar> = (0..fleet).map(|_| Sidecar::start(&redis.url(), &flags)).collect();
    sidecars.iter().for_each(|sidecar| wait_until("Kafka takes tasks", || reaches_kafka(sidecar)));
    wait_until("each to have a partition", || sidecars.iter().all(|sidecar| super::fleet::owned_by(sidecar) == 1));

    redis.kill9();
    for (number, sidecar) in sidecars.iter().enumerate() {
        let task = |task| set(&format!("{number}-{task}"), &format!("made:{number}:{task}"), "v");
        sidecar.batch(&(0..TASKS).map(task).collect::<Vec<_>>());
    }
    sidecars.iter().for_each(|sidecar| drop(sidecar.wait_for_log("Holding the tasks of default")));
    // Up, but of no use until all can be seen that is sent to it.
    redis.restart_with(&["--min-replicas-to-write", "1"]);
    wait_until("it answers", || redis.try_cli(&["PING"]).is_ok_and(|reply| reply.text() == "PONG"));
    let mut monitor = redis.client();
    monitor.ask(&["MONITOR"]).expect("the server answers");
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    wait_until("everything to be made", || {
        redis.cli(&["EVAL", "return #redis.call('KEYS', 'made:*')", "0"]).text() == (fleet * TASKS).to_string()
    });
    redis.cli(&["ECHO", "that is all"]);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|line: &String| !line.contains("that is all")) {
        seen.push(monitor.next().expect("the server goes on").text());
    }

    let sent = writes(&seen);
    assert_eq!(sent.len(), fleet, "each has a share: {:?}", sent.keys());
    assert_eq!(sent.values().map(Vec::len).sum::<usize>(), fleet * TASKS, "each is sent once");
    for (boot, times) in &sent {
        for (index, from) in times.iter().enumerate() {
            for (after, to) in times[index..].iter().enumerate() {
                let allowed = (to - from) * SPARED_RATE + ALLOWED_MORE;
                assert!(after as f64 <= allowed, "{boot} sent {after} in {} s", to - from);
            }
        }
    }
    let firsts = sent.values().map(|times| times[0]).collect();
    check_apart("the first batch", firsts);
    let told = |text: &str| sidecars.iter().map(|sidecar| second(&sidecar.wait_for_log(text))).collect();
    check_apart("the last step of the ramp", told("is sent as many batches at a time as before"));
    let all: Vec<f64> = sorted(sent.into_values().flatten().collect());
    let most = (0..all.len()).map(|from| all[from..].partition_point(|at| *at < all[from] + 1.0)).max();
    eprintln!(
        "{fleet} sidecars at {SPARED_RATE} a second each: {} at most within a second",
        most.expect("some were sent")
    );
}

/// When the server got each write of a task, in seconds, by the process that sent it.
fn writes(seen: &[String]) -> BTreeMap<String, Vec<f64>> {
    let mut names = BTreeMap::new();
    let mut writes: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in seen {
        // `1700000000.123456 [0 127.0.0.1:40000] "SET" "key" "value"`
        let (head, command) = line.split_once("] ").expect("a line says who sent it");
        let (time, client) = head.split_once(" [").expect("and when");
        if let Some((_, name)) = command.split_once(r#""SETNAME" "redrive-"#) {
            names.insert(client, name.split('-').next().expect("a name has a boot id").to_owned());
        } else if command.starts_with(r#""SET" "made:"#) {
            let name = names.get(client).expect("who writes has a name");
            writes.entry(name.clone()).or_default().push(time.parse().expect("it is a time"));
        }
    }
    writes
}

fn second(line: &serde_json::Value) -> f64 {
    let time: jiff::Timestamp = line["timestamp"].as_str().and_then(|at| at.parse().ok()).expect("lines have a time");
    time.as_microsecond() as f64 / 1e6
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

/// Not together: no instant has more than half of the fleet.
fn check_apart(what: &str, times: Vec<f64>) {
    let times = sorted(times);
    let together = |from: &f64| times.iter().filter(|at| (*from..from + AN_INSTANT).contains(at)).count();
    let most = times.iter().map(together).max().expect("there is a fleet");
    let shown: Vec<String> = times.iter().map(|at| format!("{:.3}", at - times[0])).collect();
    eprintln!("{what}, seconds after the first: {}", shown.join(" "));
    assert!(most <= times.len().div_ceil(2), "{what}: {most} of {} together: {shown:?}", times.len());
}
