//! Partitions that go from one sidecar to another while tasks of them are on their way.

use serde_json::Value;

use super::{change, flags, fleet::owned_by, load::Load, reaches_kafka, start};
use crate::harness::{
    Proxy, Redis, Sidecar,
    kafka::{Kafka, unique},
    proxy::Mode,
    set, simple, wait_until,
};

/// Starts one of several that share a partition. All reach Redis by the same address: else they would not share it.
fn start_with(faults: &str, redis: &str, topic: &str, more: &[&str]) -> Sidecar {
    let flags = flags(Kafka::shared(), topic);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--kafka-partitions=1"]).collect();
    Sidecar::start_with(faults, redis, &[&flags, more].concat())
}

fn worker(faults: &str, redis: &str, topic: &str) -> Sidecar {
    start_with(faults, redis, topic, &["--role=worker"])
}

/// Where an owner is frozen with a batch that is not made.
#[derive(Clone, Copy, Debug)]
enum Frozen {
    /// It has decided to send it, and looked at its lease.
    BeforeSending,
    /// Redis is down, and it waits for it.
    WhileHolding,
    /// It has sent it, and it is on its way.
    AfterSending,
}

/// An owner is frozen, another one takes its partition and makes newer writes, and the old one wakes. What is there in
/// the end.
fn end_of(frozen: Frozen, bug: &str) -> String {
    let (mut redis, topic) = (Redis::start(&[]), unique("zombie"));
    let proxy = Proxy::start(redis.port());
    let faults = if matches!(frozen, Frozen::BeforeSending) { "stop-before-send=1" } else { "" };
    let first = worker(faults, &proxy.url(), &topic);
    first.wait_for_log("Consuming");
    let second = worker(bug, &proxy.url(), &topic);
    second.wait_for_log("Member of the group");
    let gateway = start_with("", &proxy.url(), &topic, &["--role=gateway"]);
    let post = |id, value| {
        let mut task = set(id, "key", value);
        // Else the newer one would take the place of the older.
        task["coalesce"] = false.into();
        gateway.post(&task)
    };
    match frozen {
        Frozen::BeforeSending => {
            post("old", "old");
            first.wait_until_stopped();
        }
        Frozen::WhileHolding => {
            redis.kill9();
            post("old", "old");
            first.wait_for_log("Holding the tasks");
            first.stop();
            redis.restart();
        }
        Frozen::AfterSending => {
            proxy.stall_link_of("key");
            post("old", "old");
            wait_until("the batch is on its way", || proxy.stalled() == 1);
            first.stop();
        }
    }
    post("new", "new");
    redis.wait_for_value("key", "new");
    proxy.heal();
    let connections = proxy.accepted();
    first.cont();
    // What it does first when it wakes lies behind it then.
    first.wait_for_log("was lost to another owner");
    if matches!(frozen, Frozen::WhileHolding) {
        wait_until("it to look for Redis again", || proxy.accepted() > connections);
    }
    gateway.post(&set("after", "other", "1"));
    redis.wait_for_value("other", "1");
    if matches!(frozen, Frozen::WhileHolding) {
        // By the new owner. One that sends all that it has once more comes to the same end, by a detour.
        assert_eq!(proxy.count("SET", "key"), 2, "the old owner sends nothing");
    }
    redis.get("key")
}

#[test]
fn owner_that_wakes_too_late_overwrites_nothing() {
    std::thread::scope(|scope| {
        let ways = [Frozen::BeforeSending, Frozen::WhileHolding, Frozen::AfterSending];
        let ends = ways.map(|frozen| (frozen, scope.spawn(move || end_of(frozen, ""))));
        for (frozen, end) in ends {
            assert_eq!(end.join().expect("nothing fails"), "new", "{frozen:?}");
        }
    });
}

/// What holds the above, taken away: the test would notice.
#[test]
fn owner_that_wakes_too_late_would_be_noticed() {
    std::thread::scope(|scope| {
        let ways = [Frozen::BeforeSending, Frozen::AfterSending];
        let ends = ways.map(|frozen| (frozen, scope.spawn(move || end_of(frozen, "no-client-kill"))));
        for (frozen, end) in ends {
            assert_eq!(end.join().expect("nothing fails"), "old", "{frozen:?}");
        }
    });
}

#[test]
fn sidecar_whose_name_another_one_has_taken_ends() {
    let (redis, topic) = (Redis::start(&[]), unique("instance"));
    let start = || start_with("", &redis.url(), &topic, &["--kafka-instance-id=pod-0"]);
    let mut first = start();
    first.wait_for_log("Consuming default.normal/0");
    let second = start();
    second.wait_for_log("Consuming default.normal/0");
    assert_eq!(first.wait().code(), Some(1));
    assert!(first.logs().iter().any(|line| line.contains("another process has joined the group as instance `pod-0`")));
    second.post(&set("made", "key", "1"));
    redis.wait_for_value("key", "1");
}

#[test]
fn partition_that_goes_to_another_one_counts_there() {
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("counted"));
    let first = start(&redis, kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&first));
    wait_until("it has all", || owned_by(&first) == 3);
    let second = start(&redis, kafka, &topic);
    wait_until("each to have a share", || owned_by(&first) > 0 && owned_by(&second) > 0);
    let tasks: Vec<Value> = (0..60).map(|number| set(&format!("t-{number}"), &format!("key:{number}"), "1")).collect();
    first.batch(&tasks);
    for sidecar in [&first, &second] {
        sidecar.wait_until_done();
        let partitions = || sidecar.ops("/admin/v1/partitions").json()["items"].as_array().cloned().unwrap_or_default();
        let own = partitions().iter().filter(|item| item["lane"] == "normal" && item["owner"] == "this").count();
        assert_eq!(own, owned_by(sidecar), "{:?}", partitions());
        // Of those of the other one it is told.
        wait_until("nothing to lag", || partitions().iter().all(|item| item["lag"] == 0));
    }
}

#[test]
fn next_owner_repeats_little_and_forgets_no_attempt() {
    const TASKS: usize = 2000;
    let (redis, topic) = (Redis::start(&[]), unique("heir"));
    let proxy = Proxy::start(redis.port());
    proxy.answer(|command| {
        let is_stuck = command.get(1).is_some_and(|key| key == b"stuck");
        is_stuck.then(|| "TRYAGAIN Multiple keys request during rehashing of slot".to_owned())
    });
    let slow = ["--retry-base=1s", "--retry-cap=2s"];
    let start = || start_with("", &proxy.url(), &topic, &slow);
    let mut first = start();
    first.wait_for_log("Consuming");
    wait_until("Kafka takes tasks", || reaches_kafka(&first));
    let mut stuck = set("stuck", "stuck", "1");
    stuck["max_retries"] = 9.into();
    first.post(&stuck);
    let halves: [Vec<Value>; 2] = [0, 1].map(|half| (half * TASKS / 2..(half + 1) * TASKS / 2).map(task).collect());
    halves[0].chunks(500).for_each(|tasks| first.batch(tasks));
    let marks_sent = || proxy.count_with("mark:");
    let counters_are =
        |value: usize| (0..100).step_by(2).all(|counter| redis.get(&format!("counter:{counter}")) == value.to_string());
    wait_until("half of it is made", || marks_sent() == TASKS / 4 && counters_are(TASKS / 200));
    wait_until("some attempts are", || proxy.count("SET", "stuck") >= 2);
    // The second checkpoint from now on began after what has been seen.
    for tick in ["tick-1", "tick-2"] {
        let committed = || Kafka::shared().committed(&format!("{topic}-group"), &topic);
        let before = committed();
        first.post(&set(tick, tick, "1"));
        wait_until("a checkpoint to be committed", || committed() != before);
    }
    proxy.set_mode(Mode::Refuse);
    proxy.cut();
    halves[1].chunks(500).for_each(|tasks| first.batch(tasks));
    first.kill9();
    let of_first = proxy.count("SET", "stuck");
    proxy.set_mode(Mode::Pass);

    let second = start();
    wait_until("the stuck one is given up", || second.dead_letter("stuck").is_some());
    second.wait_until_done();
    assert!(counters_are(TASKS / 100));
    assert_eq!(marks_sent(), TASKS / 2, "what is finished is not sent again");
    assert_eq!(second.dead_letter("stuck").expect("it is dead")["attempts"], 10);
    // One may have been made after the last checkpoint.
    let of_second = proxy.count("SET", "stuck") - of_first;
    assert!((10..=11).contains(&(of_first + of_second)), "{of_first} and {of_second} attempts");
}

/// Increments counters, and leaves marks that show how often each was sent.
fn task(number: usize) -> Value {
    match number % 2 {
        0 => simple(&format!("count-{number}"), "INCR", &[&format!("counter:{}", number % 100)]),
        _ => set(&format!("mark-{number}"), &format!("mark:{number}"), "1"),
    }
}

/// Restarts three sidecars in turn while services hand in tasks.
fn roll(redis: &Redis, bugs: &str) -> (Load, [Sidecar; 3]) {
    let topic = unique("rolling");
    let mut flags = flags(Kafka::shared(), &topic);
    // What a sidecar spools has no order with what others take meanwhile.
    change(&mut flags, "--kafka-produce-timeout=20s");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut sidecars = [(); 3].map(|()| Sidecar::start_with(bugs, &redis.url(), &flags));
    for sidecar in &sidecars {
        wait_until("Kafka takes tasks", || reaches_kafka(sidecar));
    }
    let load = Load::start(sidecars.iter().map(Sidecar::address).collect());
    for (number, sidecar) in sidecars.iter_mut().enumerate() {
        load.go_on_for(200);
        assert!(sidecar.term().success(), "{number}");
        load.go_on_for(50);
        sidecar.restart();
        load.moved(number, sidecar.address());
    }
    load.go_on_for(200);
    (load, sidecars)
}

#[test]
fn rolling_restart_loses_repeats_and_reorders_nothing() {
    let redis = Redis::start(&[]);
    let (load, _sidecars) = roll(&redis, "");
    load.end(&redis);
}

/// What keeps tasks from being made twice, taken away: the test would notice.
#[test]
fn rolling_restart_that_repeats_would_be_noticed() {
    let redis = Redis::start(&[]);
    let (load, _sidecars) = roll(&redis, "no-marker,no-last-checkpoint");
    assert!(load.end_with_repetitions(&redis) > 0, "nothing was made twice");
}
