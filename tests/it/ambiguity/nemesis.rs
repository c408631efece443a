//! What goes wrong: with the link, with Redis, with the sidecar, at random moments, one thing on top of the other.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use crate::harness::{
    Proxy, Redis, Sidecar,
    proxy::{LastReply, Mode},
};

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

/// Where a sidecar ends by itself, and how often it comes there at most before it does.
const KILLS: [(&str, u32); 9] = [
    ("after-append", 20),
    ("before-send", 40),
    ("after-send", 40),
    ("before-checkpoint", 30),
    ("after-checkpoint", 30),
    ("before-letter", 8),
    ("after-letter", 8),
    ("before-fence", 3),
    ("after-fence", 3),
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
}

/// All of them, the more frequent ones more than once.
const FAULTS: [Fault; 19] = [
    Fault::KillSidecar,
    Fault::KillSidecar,
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

/// What goes wrong in one round: about half of all that can. What one fault does, another one often undoes, so that
/// rounds with all of them would find less.
pub fn some_faults(random: &mut fastrand::Rng) -> Vec<Fault> {
    let some: Vec<_> = FAULTS.into_iter().filter(|_| random.bool()).collect();
    if some.is_empty() { FAULTS.to_vec() } else { some }
}

pub struct Nemesis<'a> {
    pub faults: Vec<Fault>,
    /// Decides what goes wrong, and in which order.
    pub random: fastrand::Rng,
    /// Decides where the next life of the sidecar ends.
    pub lives: fastrand::Rng,
    pub redis: &'a mut Redis,
    pub proxy: &'a Proxy,
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
        match *self.random.choice(&self.faults).expect("every round has some") {
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
                self.proxy.stall_link_of(":");
            }
            Fault::OneLinkFallsSilent => {
                self.tell("one link falls silent");
                self.proxy.mute_link_of(":");
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
        }
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
        if self.random.u8(..3) == 0 {
            self.kill_sidecar();
            self.pause(10..300);
        }
        self.proxy.set_mode(Mode::Pass);
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
