//! Kafka goes, comes back, and does not answer, while services go on handing in.

use std::time::{Duration, Instant};

use super::{
    PRODUCE_TIMEOUT, flags, flags_at, fleet::owned_by, load::Load, number_from_environment, reaches_kafka, start,
};
use crate::harness::{
    BrokerProxy, Redis, Sidecar,
    kafka::{Kafka, unique},
    rpush, wait_until,
};

/// How much longer a broker is frozen than a sidecar waits for it: once for less than a session, once for more.
const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_millis(1500);

/// Three that share the work, each with a partition of its own.
fn share_out(redis: &Redis, kafka: &Kafka, topic: &str, more: &[&str]) -> [Sidecar; 3] {
    let flags = flags(kafka, topic);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let sidecars = [(); 3].map(|()| Sidecar::start(&redis.url(), &flags));
    wait_until_shared_out(&sidecars);
    sidecars
}

fn wait_until_shared_out(sidecars: &[Sidecar]) {
    wait_until("Kafka takes tasks", || sidecars.iter().all(reaches_kafka));
    wait_until("each to have a share", || sidecars.iter().all(|sidecar| owned_by(sidecar) == 1));
}

fn put_under_load(sidecars: &[Sidecar]) -> Load {
    Load::start_apart(sidecars.iter().map(Sidecar::address).collect())
}

#[test]
fn nothing_is_refused_while_kafka_is_away() {
    let away = Duration::from_secs(number_from_environment("KAFKA_AWAY_SECONDS", 8));
    let (redis, topic) = (Redis::start(&[]), unique("gone"));
    let mut kafka = Kafka::start();
    let sidecars = share_out(&redis, &kafka, &topic, &[]);
    let load = put_under_load(&sidecars);
    load.go_on_for(100);
    kafka.kill9();
    let until = Instant::now() + away;
    while Instant::now() < until {
        load.go_on_for(20);
        assert!(sidecars.iter().all(Sidecar::is_ready));
    }
    kafka.restart();
    load.go_on_for(200);
    load.check_answers();
    load.end_when_settled(&redis, &sidecars);
    wait_until("Kafka takes tasks again", || sidecars.iter().all(reaches_kafka));
}

#[test]
fn broker_that_is_frozen_again_and_again_holds_nobody_up() {
    // Where a freeze leaves one of a sidecar's three partitions alone, it keeps the client that it has, and with it one
    // connection that the others share by now: two such at most.
    const MORE_FILES: usize = 2;
    let rounds = number_from_environment("KAFKA_FREEZES", 3);
    let (redis, topic, kafka) = (Redis::start(&[]), unique("frozen"), Kafka::start());
    let sidecars = share_out(&redis, &kafka, &topic, &["--redis-connections=1"]);
    let load = put_under_load(&sidecars);
    let freeze = |more: Duration| {
        kafka.stop();
        let until = Instant::now() + PRODUCE_TIMEOUT + more;
        while Instant::now() < until {
            load.go_on_for(1);
        }
    };
    let open_files = || sidecars.each_ref().map(Sidecar::open_files);
    let come_to_rest = || {
        wait_until_shared_out(&sidecars);
        let paused = load.pause();
        load.wait_until_made(&redis);
        paused
    };
    load.go_on_for(100);
    freeze(SHORT);
    kafka.cont();
    // From now on the spools are open.
    let paused = come_to_rest();
    let before = open_files();
    drop(paused);
    for round in 0..rounds {
        load.go_on_for(50);
        // In turns: after all has been forwarded, for longer than a session; and while it is being forwarded.
        if round % 2 == 1 {
            freeze(SHORT);
            kafka.cont();
            continue;
        }
        wait_until_shared_out(&sidecars);
        freeze(LONG);
        // So that nothing newer covers up what should not have been made.
        let silence = load.pause();
        kafka.cont();
        load.wait_until_made(&redis);
        sidecars.iter().for_each(Sidecar::wait_until_done);
        load.wait_until_made(&redis);
        drop(silence);
    }
    let paused = come_to_rest();
    let mut after = open_files();
    wait_until("what was opened to be closed", || {
        after = open_files();
        after.iter().zip(&before).all(|(after, before)| *after <= before + MORE_FILES)
    });
    eprintln!("open files: {before:?}, and {after:?} after {rounds} more freezes");
    drop(paused);
    load.check_answers();
    load.end_when_settled(&redis, &sidecars);
}

#[test]
fn sidecar_and_broker_that_are_killed_at_one_moment_lose_repeat_and_reorder_nothing() {
    let rounds = number_from_environment("KAFKA_DEATHS", 3) as usize;
    let (redis, topic) = (Redis::start(&[]), unique("both"));
    let mut kafka = Kafka::start();
    let mut sidecars = share_out(&redis, &kafka, &topic, &[]);
    let load = put_under_load(&sidecars);
    for round in 0..rounds {
        // The first time out of quiet, then while what the last one left is being forwarded.
        load.go_on_for(if round == 0 { 200 } else { 30 });
        let number = round % sidecars.len();
        let sidecar = &mut sidecars[number];
        std::thread::scope(|scope| {
            scope.spawn(|| kafka.kill9());
            sidecar.kill9();
        });
        load.go_on_for(50);
        sidecar.restart();
        load.moved(number, sidecar.address());
        load.go_on_for(50);
        kafka.restart();
    }
    load.go_on_for(200);
    load.end_when_settled(&redis, &sidecars);
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
