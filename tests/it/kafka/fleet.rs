//! Many sidecars on one Kafka: those that only take tasks come and go without anybody's notice, and partitions of a
//! worker that dies go to one that stood by.

use std::time::{Duration, Instant};

use super::{change, flags, number_from_environment, reaches_kafka};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    simple, wait_until,
};

const PARTITIONS: usize = 6;
const SESSION: Duration = Duration::from_secs(5);

#[test]
fn gateways_come_and_go_unnoticed_and_a_stand_by_takes_over() {
    let gateways = number_from_environment("KAFKA_GATEWAYS", 6) as usize;
    // `make soak` has two more than there are partitions: those stand by.
    let workers = number_from_environment("KAFKA_WORKERS", 3) as usize;
    let (redis, kafka, topic) = (Redis::start(&[]), Kafka::shared(), unique("fleet"));
    let start = |role: &str| {
        let mut flags = flags(kafka, &topic);
        change(&mut flags, &format!("--kafka-session-timeout={}s", SESSION.as_secs()));
        let partitions = format!("--kafka-partitions={PARTITIONS}");
        let more = [partitions.as_str(), "--role", role];
        Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).chain(more).collect::<Vec<_>>())
    };
    let mut workers: Vec<Sidecar> = (0..workers).map(|_| start("worker")).collect();
    let mut gateways: Vec<Sidecar> = (0..gateways).map(|_| start("gateway")).collect();
    gateways.iter().for_each(|gateway| wait_until("Kafka takes tasks", || reaches_kafka(gateway)));
    let owned = |worker: &Sidecar| owned_by(worker);
    let all_owned = |workers: &[Sidecar]| workers.iter().map(owned).sum::<usize>() == PARTITIONS;
    wait_until("all partitions to have an owner", || all_owned(&workers));
    let members = workers.len().min(PARTITIONS);
    wait_until("all to have a share", || workers.iter().filter(|worker| owned(worker) > 0).count() == members);

    let counters: Vec<String> = (0..60).map(|number| format!("counter:{number}")).collect();
    let mut round = 0;
    let mut send = |gateways: &[Sidecar]| {
        for gateway in gateways {
            let incr = |key: &String| simple(&format!("{key}-{round}"), "INCR", &[key]);
            gateway.batch(&counters.iter().map(incr).collect::<Vec<_>>());
            round += 1;
        }
        round.to_string()
    };
    send(&gateways);
    let before = wait_until_at_rest(&workers, SESSION);
    let half = gateways.len() / 2;
    for gateway in &mut gateways[..half] {
        gateway.kill9();
        gateway.restart();
    }
    for gateway in &mut gateways[half..] {
        assert!(gateway.term().success());
        gateway.restart();
    }
    let sent = send(&gateways);
    for counter in &counters {
        wait_until("each to be made once", || redis.get(counter) == sent);
    }
    assert_eq!(memberships(&workers), before, "the group has not moved");

    let victim = workers.iter().position(|worker| owned(worker) > 0).expect("there are owners");
    let mut dead = workers.remove(victim);
    let died = Instant::now();
    dead.kill9();
    let sent = send(&gateways);
    wait_until("its partitions to have another owner", || all_owned(&workers));
    let took = died.elapsed();
    assert!(took < SESSION + Duration::from_secs(5), "{took:?}");
    for counter in &counters {
        wait_until("each to be made once", || redis.get(counter) == sent);
    }
}

/// What members have said of their generations, first to last.
pub fn memberships(members: &[Sidecar]) -> Vec<Vec<String>> {
    let said = |member: &Sidecar| {
        let lines = member.logged("Member of the group in generation");
        lines.iter().map(|line| line["message"].as_str().expect("a line has a message").to_owned()).collect()
    };
    members.iter().map(said).collect()
}

/// One rebalance may be followed by another, until each has what it is to have: waits until none was for so long.
pub fn wait_until_at_rest(members: &[Sidecar], rest: Duration) -> Vec<Vec<String>> {
    let (mut before, mut since) = (memberships(members), Instant::now());
    wait_until("the group to come to rest", || {
        let now = memberships(members);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > rest
    });
    before
}

/// How many partitions of the normal lane a worker has a window for.
pub fn owned_by(worker: &Sidecar) -> usize {
    let consuming = |what: &str| worker.logged(what).iter().filter(|line| is_normal(line)).count();
    let gone = consuming("was lost to another owner") + consuming("up to another owner");
    consuming("Consuming ").saturating_sub(gone)
}

fn is_normal(line: &serde_json::Value) -> bool {
    line["partition"].as_str().is_some_and(|partition| partition.starts_with("default.normal/"))
}
