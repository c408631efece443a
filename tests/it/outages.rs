//! An outage spends nothing: whatever keeps Redis from taking writes, tasks without a single retry wait it out.

use std::time::{Duration, Instant};

use crate::harness::{Proxy, Redis, Sidecar, first_occurrences, proxy::Mode, rpush, set, simple, wait_until};

/// Keys that are written again and again during an outage.
const KEYS: usize = 4;
const ROUNDS: usize = 10;

/// The timeouts that make an outage show within a test; the same code runs with any.
const FAST: [&str; 4] = ["--redis-response-timeout", "300ms", "--redis-probe-timeout", "200ms"];

struct Outage {
    redis: Redis,
    proxy: Proxy,
    sidecar: Sidecar,
}

impl Outage {
    fn new(redis: Redis) -> Self {
        let proxy = Proxy::start(redis.port());
        let sidecar = Sidecar::start(&proxy.url(), &FAST);
        sidecar.post(&set("before", "before", "1"));
        redis.wait_for_value("before", "1");
        Self { redis, proxy, sidecar }
    }

    /// Queues tasks of no retries while Redis is away, and waits until that was noticed.
    fn queue(&self) {
        for round in 0..ROUNDS {
            for key in 0..KEYS {
                let mut task = set(&format!("s{key}-{round}"), &format!("last:{key}"), &round.to_string());
                task["max_retries"] = 0.into();
                self.sidecar.post(&task);
                let mut task = rpush(&format!("r{key}-{round}"), &format!("log:{key}"));
                task["max_retries"] = 0.into();
                self.sidecar.post(&task);
            }
            assert!(self.sidecar.is_ready(), "Redis being away is no reason to refuse tasks");
        }
        self.sidecar.wait_for_log("Holding the tasks of default");
    }

    /// Lets the outage go on for a while: what is sent meanwhile is bounded, and tasks go on being taken.
    fn endure(&self) {
        let (connections, executions) = (self.proxy.accepted(), self.executions());
        let until = Instant::now() + Duration::from_millis(1500);
        let mut number = 0;
        while Instant::now() < until {
            number += 1;
            self.sidecar.post(&set(&format!("during-{number}"), "during", &number.to_string()));
            assert!(self.sidecar.is_ready());
            std::thread::sleep(Duration::from_millis(50));
        }
        // A probe at most every 100 ms or tenth of the outage, with jitter down to half; a trial now and then.
        let connections = self.proxy.accepted() - connections;
        assert!(connections <= 60, "{connections} connections in 1.5 s");
        let executions = self.executions() - executions;
        assert!(executions <= 500, "{executions} executions in 1.5 s");
        assert_eq!(self.sidecar.settled("dead"), 0);
    }

    fn executions(&self) -> u64 {
        ["hold", "ambiguous", "route", "backoff"].iter().map(|class| self.sidecar.attempts(class)).sum()
    }

    /// Redis is back: everything is made, in order, and nothing was spent.
    fn check(&self, returned: Instant, within: Duration) {
        wait_until("the first task after the return", || {
            self.redis.try_cli(&["EXISTS", "last:0"]).is_ok_and(|reply| reply.text() == "1")
        });
        let took = returned.elapsed();
        assert!(took < within, "the first task was made {took:?} after the return");
        self.sidecar.wait_until_done();
        for key in 0..KEYS {
            assert_eq!(self.redis.get(&format!("last:{key}")), (ROUNDS - 1).to_string());
            let log = self.redis.list(&format!("log:{key}"));
            let firsts = first_occurrences(&log);
            assert_eq!(firsts, (0..ROUNDS as u64).collect::<Vec<_>>(), "{log:?}");
        }
        assert_eq!(self.sidecar.settled("dead"), 0);
        assert_eq!(self.sidecar.metric("redis_retry_count"), 0.0);
        assert_eq!(self.sidecar.metric("redis_retry_max_reached"), 0.0);
    }
}

/// The outage lasts a second or two, so a probe comes within a fifth of a second; the rest is the machine's.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn refused_connections_spend_nothing() {
    let mut outage = Outage::new(Redis::durable());
    outage.redis.kill9();
    outage.queue();
    outage.endure();
    outage.redis.restart();
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn hung_server_spends_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.redis.stop();
    outage.queue();
    outage.endure();
    outage.redis.cont();
    outage.check(Instant::now(), AT_ONCE + Duration::from_secs(1));
}

#[test]
fn half_open_link_spends_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.proxy.set_mode(Mode::BlackHole);
    outage.queue();
    outage.endure();
    // The old connections stay dead: only new ones reach the server again.
    outage.proxy.set_mode(Mode::Pass);
    outage.check(Instant::now(), AT_ONCE + Duration::from_secs(1));
}

#[test]
fn dropped_answers_spend_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.proxy.set_mode(Mode::DropReplies);
    outage.queue();
    outage.endure();
    outage.proxy.set_mode(Mode::Pass);
    // The first commands ran while their answers were lost, so the first effect says nothing here.
    outage.check(Instant::now(), Duration::MAX);
}

#[test]
fn cut_connections_spend_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.proxy.set_mode(Mode::Refuse);
    outage.proxy.cut();
    outage.queue();
    outage.endure();
    outage.proxy.set_mode(Mode::Pass);
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn loading_server_spends_nothing() {
    let mut redis = Redis::start(&["--save", "3600 1"]);
    redis.cli(&["DEBUG", "POPULATE", "4000"]);
    redis.cli(&["SAVE"]);
    let outage = Outage::new({
        redis.kill9();
        redis.restart();
        redis
    });
    let Outage { mut redis, proxy, sidecar } = outage;
    redis.kill9();
    // About half a millisecond a key.
    redis.restart_with(&["--key-load-delay", "800", "--loading-process-events-interval-bytes", "1024"]);
    let outage = Outage { redis, proxy, sidecar };
    wait_until("the server to be loading", || {
        outage.redis.try_cli(&["PING"]).is_ok_and(|reply| reply.text().starts_with("LOADING"))
    });
    outage.queue();
    wait_until("the server to have loaded", || {
        outage.redis.try_cli(&["PING"]).is_ok_and(|reply| reply.text() == "PONG")
    });
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn read_only_server_spends_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    outage.queue();
    outage.endure();
    outage.redis.cli(&["REPLICAOF", "NO", "ONE"]);
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn server_out_of_memory_spends_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    outage.queue();
    outage.endure();
    outage.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn password_set_at_run_time_spends_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.redis.cli(&["CONFIG", "SET", "requirepass", "rotated"]);
    // Connections that were authenticated before stay so: an operator restarts the clients, or closes them.
    outage.proxy.cut();
    outage.queue();
    outage.endure();
    outage.redis.cli_as("rotated", &["CONFIG", "SET", "requirepass", ""]);
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn missing_replicas_spend_nothing() {
    let outage = Outage::new(Redis::start(&[]));
    outage.redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    outage.queue();
    outage.endure();
    outage.redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    outage.check(Instant::now(), AT_ONCE);
}

#[test]
fn error_of_a_state_in_the_middle_of_a_batch_holds_only_what_did_not_run() {
    let outage = Outage::new(Redis::start(&[]));
    let mut refused = 0;
    outage.proxy.answer(move |command| {
        let is_it = command[0] == b"SET" && command[1].starts_with(b"last:") && refused < 3;
        refused += usize::from(is_it);
        is_it.then(|| "LOADING Redis is loading the dataset in memory".to_owned())
    });
    outage.queue();
    outage.check(Instant::now(), Duration::MAX);
    // Refused is not run, and run is known: so nothing ran twice either.
    for key in 0..KEYS {
        assert_eq!(outage.redis.list(&format!("log:{key}")).len(), ROUNDS);
    }
}

#[test]
fn target_that_is_down_slows_no_other() {
    let mut down = Redis::start(&[]);
    let well = Redis::start(&[]);
    down.kill9();
    let target = format!("well={}", well.url());
    let sidecar = Sidecar::start(&down.url(), &["--target", &target]);
    sidecar.post(&set("held", "held", "1"));
    sidecar.wait_for_log("Holding the tasks of default");
    for number in 0..50 {
        let mut task = rpush(&number.to_string(), "log");
        task["target"] = "well".into();
        let sent = Instant::now();
        sidecar.post(&task);
        wait_until("the task to be made", || well.cli(&["LLEN", "log"]).text() == (number + 1).to_string());
        assert!(sent.elapsed() < Duration::from_secs(1), "task {number} took {:?}", sent.elapsed());
    }
    down.restart();
    down.wait_for_value("held", "1");
}

#[test]
fn task_that_waits_alone_is_made_after_every_kind_of_silence() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::start(redis.port());
    let sidecar = Sidecar::start(&proxy.url(), &FAST);
    for (round, mode) in [Mode::BlackHole, Mode::DropReplies, Mode::Refuse].into_iter().enumerate() {
        let before = sidecar.logged("Holding the tasks of default").len();
        proxy.set_mode(mode);
        if mode == Mode::Refuse {
            proxy.cut();
        }
        sidecar.post(&simple(&format!("alone-{round}"), "SET", &[&format!("alone:{round}"), "1"]));
        wait_until("the outage to be noticed", || {
            sidecar.logged("Holding the tasks of default").len() > before
                || sidecar.logged("it runs alone next").len() > before
        });
        proxy.set_mode(Mode::Pass);
        redis.wait_for_value(&format!("alone:{round}"), "1");
        sidecar.wait_until_done();
    }
    assert_eq!(sidecar.settled("dead"), 0);
}
