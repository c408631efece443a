//! Five targets out of use at once, each in a way of its own, and three of them in another way in the second half.
//!
//! `OUTAGE_SECONDS` sets for how long: `make soak` takes three minutes, a test as long as it takes to see it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Proxy, Redis, Sidecar, number_from_environment, proxy::Mode, resp::Client, rpush, wait_until};

/// What waits for each target before the outage goes on; meanwhile one more comes each second.
const TASKS: usize = 200;

/// The longest time between two probes, by default.
const PROBE_CAP: Duration = Duration::from_secs(5);

/// How soon the first task is made after a short outage. After a long one it may take a tenth of it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What the machine may take of its own between a probe that is due and a task that is made.
const SLACK: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
enum Outage {
    Killed,
    Frozen,
    ReadOnlyThenLoading,
    RefusedThenSilent,
    OutOfMemoryThenOfConnections,
}

use Outage::{Frozen, Killed, OutOfMemoryThenOfConnections, ReadOnlyThenLoading, RefusedThenSilent};

struct Target {
    name: &'static str,
    outage: Outage,
    redis: Redis,
    /// In between, where connections are counted: all but for the one that must not be there at all.
    proxy: Option<Proxy>,
    /// A connection from before, for when no others are let in.
    operator: Option<Client>,
    posted: usize,
}

impl Target {
    fn start(name: &'static str, outage: Outage, half: Duration) -> Self {
        let redis = match outage {
            ReadOnlyThenLoading => Redis::start(&["--save", "3600 1"]),
            _ => Redis::durable(),
        };
        if let ReadOnlyThenLoading = outage {
            // Twice what is loaded in that time, at 2 ms each.
            redis.cli(&["DEBUG", "POPULATE", &half.as_millis().to_string()]);
            redis.cli(&["SAVE"]);
        }
        let proxy = (!matches!(outage, Killed)).then(|| Proxy::start(redis.port()));
        let operator = matches!(outage, OutOfMemoryThenOfConnections).then(|| redis.client());
        Self { name, outage, redis, proxy, operator, posted: 0 }
    }

    fn url(&self) -> String {
        self.proxy.as_ref().map_or_else(|| self.redis.url(), Proxy::url)
    }

    fn set_mode(&self, mode: Mode) {
        let proxy = self.proxy.as_ref().expect("it is reached through one");
        proxy.set_mode(mode);
        if mode == Mode::Refuse {
            proxy.cut();
        }
    }

    fn operate(&mut self, command: &[&str]) {
        self.operator.as_mut().expect("it has one").ask(command).expect("the server answers");
    }

    fn begin(&mut self) {
        match self.outage {
            Killed => self.redis.kill9(),
            Frozen => self.redis.stop(),
            ReadOnlyThenLoading => {
                self.redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
            }
            RefusedThenSilent => self.set_mode(Mode::Refuse),
            OutOfMemoryThenOfConnections => self.operate(&["CONFIG", "SET", "maxmemory", "1"]),
        }
    }

    fn change(&mut self) {
        match self.outage {
            Killed | Frozen => {}
            ReadOnlyThenLoading => {
                self.redis.kill9();
                let slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
                self.redis.restart_with(&slow);
            }
            RefusedThenSilent => self.set_mode(Mode::BlackHole),
            OutOfMemoryThenOfConnections => {
                self.operate(&["CONFIG", "SET", "maxclients", "1"]);
                self.operate(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
                self.operate(&["CONFIG", "SET", "maxmemory", "0"]);
            }
        }
    }

    /// Ends the outage. A server that is started here ends with the thread that does it.
    fn end(&mut self) {
        match self.outage {
            Killed => self.redis.restart_with(&[]),
            Frozen => self.redis.cont(),
            ReadOnlyThenLoading => {
                self.redis.cli(&["CONFIG", "SET", "key-load-delay", "0"]);
            }
            RefusedThenSilent => self.set_mode(Mode::Pass),
            OutOfMemoryThenOfConnections => self.operate(&["CONFIG", "SET", "maxclients", "10000"]),
        }
    }

    /// Waits for the first task; how long it took from when the server takes writes again.
    fn wait_for_first(&self) -> Duration {
        let redis = &self.redis;
        wait_until("it takes writes", || redis.try_cli(&["SET", "back", "1"]).is_ok_and(|reply| reply.text() == "OK"));
        let returned = Instant::now();
        let mut client = redis.client();
        wait_until("the first task", || client.ask(&["EXISTS", "log"]).is_ok_and(|reply| reply.text() == "1"));
        returned.elapsed()
    }

    fn post(&mut self, sidecar: &Sidecar, count: usize) {
        let tasks: Vec<Value> = (self.posted..self.posted + count)
            .map(|number| {
                let mut task = rpush(&format!("{}-{number}", self.name), "log");
                task["target"] = self.name.into();
                task["max_retries"] = 0.into();
                task
            })
            .collect();
        self.posted += count;
        sidecar.batch(&tasks);
    }

    /// Probes that failed, and connections that were opened, so far.
    fn looks(&self, sidecar: &Sidecar) -> (usize, usize) {
        let probes = sidecar.logged(&format!("{} is still not usable", self.name)).len();
        (probes, self.proxy.as_ref().map_or(0, Proxy::accepted))
    }
}

/// The most probes of an outage: a tenth of its length apart, less a fifth for the jitter.
fn most_probes(outage: Duration) -> usize {
    let (mut at, mut probes) = (Duration::ZERO, 0);
    while at < outage {
        at += (at / 10).min(PROBE_CAP).mul_f64(0.8).max(Duration::from_millis(100));
        probes += 1;
    }
    probes
}

#[test]
fn five_targets_in_an_outage_spend_nothing_and_are_probed_over_one_connection_each() {
    let half = Duration::from_secs(number_from_environment("OUTAGE_SECONDS", 3)) / 2;
    let mut targets = [
        Target::start("default", Killed, half),
        Target::start("frozen", Frozen, half),
        Target::start("loading", ReadOnlyThenLoading, half),
        Target::start("link", RefusedThenSilent, half),
        Target::start("full", OutOfMemoryThenOfConnections, half),
    ];
    let more: Vec<String> = targets[1..].iter().map(|target| format!("{}={}", target.name, target.url())).collect();
    let mut args = vec!["--log-level=debug"];
    more.iter().for_each(|target| args.extend(["--target", target]));
    let sidecar = Sidecar::start(&targets[0].url(), &args);
    wait_until("all targets are known", || {
        let breakers = sidecar.ops("/admin/v1/breakers").json();
        breakers["items"].as_array().is_some_and(|items| items.iter().all(|item| item["ping_ms"].is_number()))
    });

    let begun = Instant::now();
    for target in &mut targets {
        target.begin();
        target.post(&sidecar, TASKS);
    }
    for target in &targets {
        sidecar.wait_for_log(&format!("Holding the tasks of {}", target.name));
    }
    let before = targets.each_ref().map(|target| target.looks(&sidecar));
    let held = Instant::now();
    let endure = |until: Duration, targets: &mut [Target]| {
        while held.elapsed() < until {
            std::thread::sleep(Duration::from_secs(1).min(until.saturating_sub(held.elapsed())));
            targets.iter_mut().for_each(|target| target.post(&sidecar, 1));
            assert!(sidecar.is_ready());
        }
    };
    endure(half, &mut targets);
    targets.iter_mut().for_each(Target::change);
    endure(half * 2, &mut targets);
    for target in &targets {
        let task = sidecar.get(&format!("{}-0", target.name)).json();
        assert_eq!((&task["status"], &task["attempts"]), (&"held".into(), &0.into()), "{task}");
    }

    let lasted = begun.elapsed();
    let after = targets.each_ref().map(|target| target.looks(&sidecar));
    for ((target, before), after) in targets.iter().zip(before).zip(after) {
        let (probes, connections) = (after.0 - before.0, after.1 - before.1);
        eprintln!("{}: {probes} probes over {connections} connections in {lasted:.1?}", target.name);
        // One may be under way at each end.
        assert!(connections <= probes + 2, "{}: {connections} connections for {probes} probes", target.name);
        assert!((3..=most_probes(lasted)).contains(&probes), "{}: {probes} probes in {lasted:?}", target.name);
    }

    let bound = AT_ONCE.max((lasted / 10).min(PROBE_CAP) + if lasted > AT_ONCE * 10 { SLACK } else { Duration::ZERO });
    let waits = std::thread::scope(|scope| {
        let waiting = targets.each_mut().map(|target| {
            target.end();
            let target: &Target = target;
            scope.spawn(|| target.wait_for_first())
        });
        waiting.map(|thread| thread.join().expect("it returns"))
    });
    for (target, wait) in targets.iter().zip(waits) {
        eprintln!("{}: the first task {wait:.2?} after the return", target.name);
        assert!(wait < bound, "{}: the first task came {wait:?} after the return", target.name);
    }
    sidecar.wait_until_done();
    for target in &targets {
        let wanted: Vec<String> = (0..target.posted).map(|number| format!("{}-{number}", target.name)).collect();
        assert_eq!(target.redis.list("log"), wanted, "each once and in order");
        let settled =
            |outcome| format!(r#"redrive_tasks_settled_total{{outcome="{outcome}",target="{}"}}"#, target.name);
        assert_eq!(sidecar.metric(&settled("dead")), 0.0);
        assert_eq!(sidecar.metric(&settled("applied")), target.posted as f64);
    }
    assert_eq!(sidecar.metric("redis_retry_count"), 0.0);
}

/// Up for a while and down for a while, again and again; services go on sending.
#[test]
fn server_that_comes_and_goes_gets_everything_once_and_in_order() {
    let flaps = number_from_environment("FLAPS", 3);
    let pause = Duration::from_millis(number_from_environment("FLAP_MILLIS", 500));
    let mut redis = Redis::durable();
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let mut number = 0;
    let mut post_for = |time: Duration| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let tasks: Vec<Value> = (number..number + 20)
                .map(|number| {
                    let mut task = rpush(&format!("r-{number}"), &format!("log:{}", number % 7));
                    task["max_retries"] = 0.into();
                    task
                })
                .collect();
            number += 20;
            sidecar.batch(&tasks);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for _ in 0..flaps {
        post_for(pause);
        redis.kill9();
        post_for(pause);
        redis.restart();
    }
    sidecar.wait_until_done();
    for log in 0..7 {
        let wanted: Vec<String> = (0..number).filter(|task| task % 7 == log).map(|task| format!("r-{task}")).collect();
        assert_eq!(redis.list(&format!("log:{log}")), wanted);
    }
    assert_eq!((sidecar.settled("dead"), sidecar.settled("applied")), (0, number as u64));
    assert_eq!(sidecar.metric("redis_retry_count"), 0.0);
}
