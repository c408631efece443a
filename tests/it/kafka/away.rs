//! Kafka goes, comes back, and does not answer, while services go on handing in.

use std::time::{Duration, Instant};

use super::{flags_at, load::Load, number_from_environment, reaches_kafka, start};
use crate::harness::{
    BrokerProxy, Redis, Sidecar,
    kafka::{Kafka, unique},
    rpush, wait_until,
};

#[test]
fn nothing_is_refused_while_kafka_is_away() {
    let away = Duration::from_secs(number_from_environment("KAFKA_AWAY_SECONDS", 8));
    let (redis, topic) = (Redis::start(&[]), unique("gone"));
    let mut kafka = Kafka::start();
    let sidecar = start(&redis, &kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    let load = Load::start(vec![sidecar.address()]);
    load.go_on_for(100);
    kafka.kill9();
    let until = Instant::now() + away;
    while Instant::now() < until {
        load.go_on_for(20);
        assert!(sidecar.is_ready());
    }
    kafka.restart();
    load.go_on_for(200);
    assert_eq!(load.unanswered(), 0);
    load.end(&redis);
    wait_until("Kafka takes tasks again", || reaches_kafka(&sidecar));
}

#[test]
fn spool_is_forwarded_in_its_order_though_kafka_dies_again_and_again() {
    let rounds = number_from_environment("KAFKA_DEATHS", 3);
    let (redis, topic) = (Redis::start(&[]), unique("dying"));
    let mut kafka = Kafka::start();
    let sidecar = start(&redis, &kafka, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    kafka.kill9();
    let names: Vec<String> = (0..6000).map(|number| format!("n-{number}")).collect();
    for names in names.chunks(500) {
        sidecar.batch(&names.iter().map(|name| rpush(name, "list")).collect::<Vec<_>>());
    }
    let stored = |kafka: &Kafka| (0..3).map(|partition| kafka.end_of(&topic, partition)).sum::<Option<i64>>();
    // Of a thousand and more each time, so that there is something left for the last.
    let mut before = 0;
    for _ in 0..rounds {
        kafka.restart();
        wait_until("some more to be forwarded", || stored(&kafka).is_some_and(|now| now > before));
        kafka.kill9();
        before += 1000;
    }
    kafka.restart();
    wait_until("all of it to be made", || redis.list("list").len() >= names.len());
    sidecar.wait_until_done();
    assert!(redis.list("list") == names, "each once, and in their order");
}

#[test]
fn append_whose_answer_is_lost_has_its_effect_once() {
    let (redis, topic, proxy) = (Redis::start(&[]), unique("unanswered"), BrokerProxy::start());
    let _kafka = Kafka::start_behind(proxy.port(), |port| proxy.lead_to(port));
    let flags = flags_at(&format!("127.0.0.1:{}", proxy.port()), &topic);
    let sidecar = Sidecar::start(&redis.url(), &flags.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    let load = Load::start(vec![sidecar.address()]);
    for _ in 0..4 {
        load.go_on_for(50);
        proxy.lose_answers(true);
        let before = proxy.lost();
        wait_until("answers to be lost", || proxy.lost() >= before + 4);
        proxy.lose_answers(false);
        wait_until("Kafka takes tasks again", || reaches_kafka(&sidecar));
    }
    load.end(&redis);
    let duplicates = sidecar.settled("duplicate");
    assert!(duplicates > 0, "nothing was stored twice, so that nothing was proven");
}
