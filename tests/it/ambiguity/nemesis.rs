//! What goes wrong: with the link, with Redis, with the sidecar, at random moments, one thing on top of the other.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use crate::harness::{
    Proxy, Redis, Sidecar,
    kafka::Kafka,
    proxy::{LastReply, Mode},
};

use super::workload;

/// Settings under which a test need not wait long for what takes its time.
pub const QUICK: [&str; 10] = [
    "--retry-base",
    "10ms",
    "--retry-cap",
    "50ms",
    "--redis-response-timeout",
    "200ms",
    "--redis-probe-timeout",
    "200ms",
    "--retry-outage-probe-cap",
    "200ms",
];

/// Later than any answer that a sidecar with these settings waits for: its timeout, what it allows for transfer, and
/// 300 ms more.
const TOO_LATE: Duration = Duration::from_millis(200 + 64 + 300);

/// Where a sidecar ends by itself, and how often it comes there at most before it does: few times, so that most lives
/// do end there.
const KILLS: [(&str, u32); 11] = [
    ("after-append", 10),
    ("before-send", 10),
    ("after-send", 10),
    ("after-send", 10),
    ("before-checkpoint", 10),
    ("before-checkpoint", 10),
    ("after-checkpoint", 10),
    ("before-letter", 4),
    ("after-letter", 4),
    ("before-fence", 2),
    ("after-fence", 2),
];

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    KillSidecar,
    KillRedis,
    HangRedis,
    FillRedis,
    /// All links, for a while.
    Links(Mode),
    /// The next one that carries a task's key, until it is healed.
    OneLinkStalls,
    /// The next one that carries a task's key.
    OneLinkFallsSilent,
    HalfAnswered,
    Reset,
    /// What was stalled arrives.
    Heal,
    KillBroker,
    KillBrokerAndSidecar,
}

/// All of them but the one that every round has; the more frequent ones more than once.
const FAULTS: [Fault; 17] = [
    Fault::KillRedis,
    Fault::HangRedis,
    Fault::FillRedis,
    Fault::Links(Mode::BlackHole),
    Fault::Links(Mode::Stall),
    Fault::Links(Mode::Stall),
    Fault::Links(Mode::DropReplies),
    Fault::Links(Mode::Late(TOO_LATE)),
    Fault::OneLinkStalls,
    Fault::OneLinkStalls,
    Fault::OneLinkStalls,
    Fault::OneLinkFallsSilent,
    Fault::OneLinkFallsSilent,
    Fault::HalfAnswered,
    Fault::HalfAnswered,
    Fault::Reset,
    Fault::Heal,
];

/// What goes wrong in one round: about half of all that can, and the sidecar is killed in each. What one fault does,
/// another one often undoes, so that rounds with all of them would find less.
pub fn some_faults(random: &mut fastrand::Rng) -> Vec<Fault> {
    let some = FAULTS.into_iter().filter(|_| random.bool());
    some.chain([Fault::KillSidecar, Fault::KillSidecar]).collect()
}

/// As `some_faults`, where tasks are in Kafka.
pub fn some_faults_with_kafka(random: &mut fastrand::Rng) -> Vec<Fault> {
    let more = [Fault::KillBroker, Fault::KillBroker, Fault::KillBrokerAndSidecar];
    some_faults(random).into_iter().chain(more).collect()
}

pub struct Nemesis<'a> {
    pub faults: Vec<Fault>,
    /// Decides what goes wrong, and in which order.
    pub random: fastrand::Rng,
    /// Decides where the next life of the sidecar ends.
    pub lives: fastrand::Rng,
    pub redis: &'a mut Redis,
    pub proxy: &'a Proxy,
    pub kafka: Option<&'a mut Kafka>,
    pub sidecar: &'a mut Sidecar,
    /// A bug that every life of the sidecar has.
    pub bug: &'a str,
    pub is_over: bool,
    pub begun: Instant,
    /// What was done, and when.
    pub story: Vec<String>,
}

impl Nemesis<'_> {
    /// One fault, from its beginning to its end. What is stalled may outlive it.
    pub fn strike(&mut self) {
        match *self.random.choice(&self.faults).expect("the sidecar is killed in every round") {
            Fault::KillSidecar => self.kill_sidecar(),
            Fault::KillRedis => {
                self.tell("Redis is killed");
                self.redis.kill9();
                self.pause(10..500);
                self.redis.restart();
            }
            Fault::HangRedis => {
                self.tell("Redis hangs");
                self.redis.stop();
                self.pause(100..600);
                self.redis.cont();
            }
            Fault::FillRedis => {
                self.tell("Redis is full");
                self.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
                self.pause(10..300);
                self.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            Fault::Links(mode) => self.with_mode(mode),
            Fault::OneLinkStalls => {
                self.tell("one link stalls");
                self.proxy.stall_link_of(workload::KEYS);
            }
            Fault::OneLinkFallsSilent => {
                self.tell("one link falls silent");
                self.proxy.mute_link_of(workload::KEYS);
            }
            Fault::HalfAnswered => {
                let last = if self.random.bool() { LastReply::ThenSilence } else { LastReply::ThenReset };
                let replies = self.random.usize(..30);
                self.tell(&format!("{replies} more replies, {last:?}"));
                self.proxy.answer_only(replies, last);
                self.pause(10..300);
            }
            Fault::Reset => {
                self.tell("connections are reset");
                self.proxy.cut();
            }
            Fault::Heal => self.heal(),
            Fault::KillBroker => self.kill_broker(),
            Fault::KillBrokerAndSidecar => {
                self.kill_broker();
                self.kill_sidecar();
            }
        }
    }

    /// It comes back by itself, seconds later.
    fn kill_broker(&mut self) {
        self.tell("Kafka is killed");
        let pause = Duration::from_millis(self.random.u64(10..1000));
        let kafka = self.kafka.as_mut().expect("only rounds with Kafka have this");
        kafka.kill9();
        std::thread::sleep(pause);
        kafka.restart_without_waiting();
    }

    /// Waits, and starts the sidecar again where it ended at one of its points.
    pub fn pause(&mut self, ms: Range<u64>) {
        let until = Instant::now() + Duration::from_millis(self.random.u64(ms));
        while Instant::now() < until {
            self.tend();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn tend(&mut self) {
        if self.sidecar.has_ended() {
            self.tell("the sidecar has ended at its point");
            self.start_sidecar();
        }
    }

    /// Nothing goes wrong any more; but what is stalled is still to come.
    pub fn make_peace(&mut self) {
        self.tell("peace");
        self.proxy.calm();
        self.is_over = true;
        self.tend();
    }

    /// What was stalled arrives.
    pub fn heal(&mut self) {
        let stalled = self.proxy.stalled();
        let ran = self.proxy.heal();
        self.tell(&format!("{stalled} links deliver what they hold: {ran:?}"));
    }

    fn with_mode(&mut self, mode: Mode) {
        self.tell(&format!("{mode:?}"));
        self.proxy.set_mode(mode);
        self.pause(10..700);
        let kill = self.random.u8(..3);
        if kill == 0 {
            self.kill_sidecar();
            self.pause(10..300);
        }
        self.proxy.set_mode(Mode::Pass);
        if kill == 1 {
            // While it makes all that waited.
            self.pause(100..400);
            self.kill_sidecar();
        }
    }

    fn kill_sidecar(&mut self) {
        self.tell("the sidecar is killed");
        self.sidecar.kill9();
        self.start_sidecar();
    }

    fn start_sidecar(&mut self) {
        loop {
            let (point, most) = *self.lives.choice(&KILLS).expect("there are some");
            let kill = match self.is_over || self.lives.u8(..3) == 0 {
                true => String::new(),
                false => format!("kill-{point}={}", self.lives.u32(1..=most)),
            };
            self.tell(&format!("the sidecar starts, {}", if kill.is_empty() { "well" } else { &kill }));
            self.sidecar.set_faults([&kill, self.bug].join(",").trim_matches(','));
            if self.sidecar.try_restart() {
                return;
            }
        }
    }

    fn tell(&mut self, what: &str) {
        self.story.push(format!("{:6} ms  {what}", self.begun.elapsed().as_millis()));
    }
}
