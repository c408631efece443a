//! A cluster of three: it loses leaders, coordinators and its quorum while three sidecars share the work.

use std::time::{Duration, Instant};

use super::{change, flags_at, load::Load, reaches_kafka};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    wait_until,
};

const OFFSETS: &str = "__consumer_offsets";

#[test]
#[ignore = "three brokers at once: make soak runs it"]
fn cluster_that_loses_nodes_loses_repeats_and_reorders_nothing() {
    let (redis, topic) = (Redis::start(&[]), unique("cluster"));
    let mut cluster = Kafka::start_cluster();
    let addresses: Vec<String> = cluster.iter().map(Kafka::address).collect();
    let mut flags = flags_at(&addresses.join(","), &topic);
    change(&mut flags, "--kafka-replication=3");
    change(&mut flags, "--kafka-min-insync=2");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let sidecars = [(); 3].map(|()| Sidecar::start(&redis.url(), &flags));
    for sidecar in &sidecars {
        wait_until("Kafka takes tasks", || reaches_kafka(sidecar));
    }
    let load = Load::start_apart(sidecars.iter().map(Sidecar::address).collect());
    load.go_on_for(200);

    for lost in [topic.as_str(), OFFSETS] {
        let leader = cluster[0].leader_of(lost).expect("somebody leads it");
        eprintln!("node {leader} leads {lost}, and is killed");
        cluster[place_of(leader)].kill9();
        let survivor = &cluster[(place_of(leader) + 1) % 3];
        wait_until("another one to lead", || survivor.leader_of(lost).is_some_and(|now| now != leader));
        load.go_on_for(200);
        wait_until("Kafka takes tasks again", || sidecars.iter().all(reaches_kafka));
        cluster[place_of(leader)].restart_without_waiting();
        wait_until_whole(&cluster, &topic);
    }

    eprintln!("two nodes are killed");
    cluster[1].kill9();
    cluster[2].kill9();
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        load.go_on_for(20);
    }
    assert!(!sidecars.iter().any(reaches_kafka), "one of three is not enough");
    cluster[1].restart_without_waiting();
    cluster[2].restart_without_waiting();
    wait_until_whole(&cluster, &topic);
    load.go_on_for(200);
    assert_eq!(load.unanswered(), 0);
    load.end(&redis);
    wait_until("Kafka takes tasks again", || sidecars.iter().all(reaches_kafka));
}

fn place_of(node: u16) -> usize {
    usize::from(node) - 1
}

fn wait_until_whole(cluster: &[Kafka], topic: &str) {
    wait_until("all replicas to be in sync", || {
        cluster.iter().all(|node| node.is_in_sync(topic) && node.is_in_sync(OFFSETS))
    });
}
