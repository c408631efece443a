//! A cluster of three: it loses leaders, coordinators and its quorum while three sidecars share the work.

use std::time::{Duration, Instant};

use super::{
    change, flags_at,
    fleet::{memberships, owned_by, wait_until_at_rest},
    load::Load,
    reaches_kafka,
};
use crate::harness::{
    Redis, Sidecar,
    kafka::{Kafka, unique},
    set, wait_until,
};

const OFFSETS: &str = "__consumer_offsets";

/// Longer than any node of the cluster is away: who loses its membership loses it by a fault of its own.
const SESSION: &str = "20s";

/// Some looks at topics, and some heartbeats.
const REST: Duration = Duration::from_secs(5);

/// What is made, each once and in its order, is one thing that this shows. The other is that members keep theirs while
/// the coordinator moves (rule 5 of a member), and that what they committed meanwhile is stored (rule 6).
#[test]
#[ignore = "three brokers at once: make soak runs it"]
fn cluster_that_loses_nodes_loses_repeats_and_reorders_nothing() {
    let (redis, topic) = (Redis::start(&[]), unique("cluster"));
    let mut cluster = Kafka::start_cluster();
    let addresses: Vec<String> = cluster.iter().map(Kafka::address).collect();
    let mut flags = flags_at(&addresses.join(","), &topic);
    for flag in ["--kafka-replication=3", "--kafka-min-insync=2", "--kafka-rebalance-timeout=60s"] {
        change(&mut flags, flag);
    }
    change(&mut flags, &format!("--kafka-session-timeout={SESSION}"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let sidecars = [(); 3].map(|()| Sidecar::start(&redis.url(), &flags));
    for sidecar in &sidecars {
        wait_until("Kafka takes tasks", || reaches_kafka(sidecar));
    }
    let load = Load::start_apart(sidecars.iter().map(Sidecar::address).collect());
    load.go_on_for(200);
    wait_until("each to have a share", || sidecars.iter().all(|sidecar| owned_by(sidecar) == 1));
    let before = wait_until_at_rest(&sidecars, REST);

    for lost in [topic.as_str(), OFFSETS] {
        let leader = cluster[0].leader_of(lost).expect("somebody leads it");
        eprintln!("node {leader} leads {lost}, and is killed");
        let said = memberships(&sidecars);
        cluster[place_of(leader)].kill9();
        let survivor = &cluster[(place_of(leader) + 1) % 3];
        wait_until("another one to lead", || survivor.leader_of(lost).is_some_and(|now| now != leader));
        load.go_on_for(200);
        wait_until("Kafka takes tasks again", || sidecars.iter().all(reaches_kafka));
        if lost == OFFSETS {
            let is_back = |(now, then): (&Vec<String>, &Vec<String>)| now.len() > then.len();
            wait_until("all to find the new coordinator", || memberships(&sidecars).iter().zip(&said).all(is_back));
        }
        cluster[place_of(leader)].restart_without_waiting();
        wait_until_whole(&cluster, &topic);
        assert_eq!(last(&memberships(&sidecars)), last(&before), "each is the member that it was");
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

    sidecars.iter().for_each(Sidecar::wait_until_done);
    // One that dies while it joins is waited for by the group as often as it is thought to be there.
    wait_until_at_rest(&sidecars, REST);
    drop(sidecars);
    let heir = Sidecar::start(&redis.url(), &flags);
    wait_until("another one to have all partitions", || owned_by(&heir) == 3);
    let keys: Vec<String> = (0..30).map(|number| format!("after:{number}")).collect();
    heir.batch(&keys.iter().map(|key| set(key, key, "1")).collect::<Vec<_>>());
    keys.iter().for_each(|key| redis.wait_for_value(key, "1"));
    heir.wait_until_done();
    assert_eq!(heir.executions() as usize, keys.len(), "all that was made before is committed");
}

/// Each member's generation, as it said last.
fn last(said: &[Vec<String>]) -> Vec<Option<&String>> {
    said.iter().map(|said| said.last()).collect()
}

fn place_of(node: u16) -> usize {
    usize::from(node) - 1
}

fn wait_until_whole(cluster: &[Kafka], topic: &str) {
    wait_until("all replicas to be in sync", || {
        cluster.iter().all(|node| node.is_in_sync(topic) && node.is_in_sync(OFFSETS))
    });
}
