//! Sidecars on a simulated server, in simulated time: what a worker does with its breaker and its limiter, and a server
//! that has one thread.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{Limiter, Limits, Round};
use crate::{
    retry::Failure,
    target::breaker::{Admission, Breaker, State, TRIAL_UNITS},
};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Health {
    Well,
    Down,
    /// It answers nothing.
    Hangs,
}

pub struct Server {
    pub health: Health,
    /// There and back.
    pub network: Duration,
    pub per_batch: Duration,
    pub per_unit: Duration,
    /// What live clients add to the way of a PING.
    pub live: Duration,
    free_at: Instant,
}

impl Server {
    /// When the answer is back to what is sent now.
    fn serve(&mut self, units: usize, now: Instant) -> Instant {
        let begun = (now + self.network / 2).max(self.free_at);
        self.free_at = begun + self.per_batch + self.per_unit * units as u32;
        self.free_at + self.network / 2
    }
}

pub struct Sidecar {
    pub breaker: Breaker,
    pub limiter: Limiter,
    pub backlog: usize,
    in_flight: usize,
    probing: bool,
    /// When it looks next, if nothing happens before.
    look_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Look,
    Answered { units: usize, begun: Instant, at_limit: bool },
    TimedOut { units: usize },
    Refused { units: usize },
    Probed { begun: Instant, well: bool },
}

/// A batch that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub at: Instant,
    pub sidecar: usize,
    pub units: usize,
}

/// A step of a ramp.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub at: Instant,
}

pub struct Sim {
    pub server: Server,
    pub sidecars: Vec<Sidecar>,
    pub now: Instant,
    pub sent: Vec<Sent>,
    pub steps: Vec<Step>,
    /// The number of batches at a time whenever a sidecar looked.
    pub limits: Vec<(Instant, usize)>,
    events: BinaryHeap<Reverse<(Instant, u64, usize, Event)>>,
    number: u64,
}

impl Sim {
    pub fn new(sidecars: u64, limits: Limits, backlog: usize) -> Self {
        let now = Instant::now();
        let sidecar = |seed| Sidecar {
            breaker: Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(seed), now),
            limiter: Limiter::new(limits, now),
            backlog,
            in_flight: 0,
            probing: false,
            look_at: None,
        };
        let server = Server {
            health: Health::Well,
            network: Duration::from_micros(500),
            per_batch: Duration::from_micros(50),
            per_unit: Duration::from_micros(1),
            live: Duration::ZERO,
            free_at: now,
        };
        let mut sim = Self {
            server,
            sidecars: (0..sidecars).map(sidecar).collect(),
            now,
            sent: Vec::new(),
            steps: Vec::new(),
            limits: Vec::new(),
            events: BinaryHeap::new(),
            number: 0,
        };
        (0..sim.sidecars.len()).for_each(|number| sim.plan(now, number, Event::Look));
        sim
    }

    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, _, sidecar, event))) = self.events.peek().copied()
            && at <= until
        {
            self.events.pop();
            self.now = at;
            self.take(sidecar, event);
        }
        self.now = until;
    }

    /// The backlog of a sidecar is this from now on.
    pub fn hand_in(&mut self, sidecar: usize, tasks: usize) {
        self.sidecars[sidecar].backlog = tasks;
        self.look(sidecar);
    }

    /// All sidecars notice at once that the server is gone.
    pub fn go_down(&mut self) {
        self.server.health = Health::Down;
        for number in 0..self.sidecars.len() {
            self.sidecars[number].breaker.on_failure(&refused(), self.now);
            self.sidecars[number].limiter.on_outage();
            self.look(number);
        }
    }

    /// Units sent in a stretch of time.
    pub fn units(&self, from: Instant, to: Instant) -> usize {
        self.sent.iter().filter(|sent| from <= sent.at && sent.at < to).map(|sent| sent.units).sum()
    }

    /// The most units that one sidecar sent in any stretch of that length.
    pub fn most_units_within(&self, sidecar: usize, span: Duration) -> usize {
        let sent: Vec<&Sent> = self.sent.iter().filter(|sent| sent.sidecar == sidecar).collect();
        let (mut most, mut units, mut first) = (0, 0, 0);
        for last in &sent {
            units += last.units;
            while last.at - sent[first].at >= span {
                units -= sent[first].units;
                first += 1;
            }
            most = most.max(units);
        }
        most
    }

    fn plan(&mut self, at: Instant, sidecar: usize, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, sidecar, event)));
    }

    fn take(&mut self, number: usize, event: Event) {
        let (now, sidecar) = (self.now, &mut self.sidecars[number]);
        let batches = batches_of(sidecar.breaker.state());
        match event {
            Event::Look if sidecar.look_at.is_some_and(|at| at > now) => return,
            Event::Look => sidecar.look_at = None,
            Event::Answered { units, begun, at_limit } => {
                sidecar.in_flight -= 1;
                sidecar.limiter.on_batch(Round { units, at_limit, begun, took: now - begun }, now);
                sidecar.breaker.on_batch(begun, sidecar.limiter.batches(), now);
            }
            Event::TimedOut { units } | Event::Refused { units } => {
                sidecar.in_flight -= 1;
                sidecar.backlog += units;
                let is_timeout = matches!(event, Event::TimedOut { .. });
                let failure = if is_timeout { Failure::ambiguous(Failure::TIMEOUT, "") } else { refused() };
                if is_timeout {
                    sidecar.limiter.on_timeout(now);
                }
                if sidecar.breaker.on_failure(&failure, now) {
                    sidecar.limiter.on_outage();
                }
            }
            Event::Probed { begun, well } => {
                sidecar.probing = false;
                if well {
                    sidecar.limiter.on_ping(now - begun, now);
                }
                let failure = if now > begun { Failure::hold(Failure::TIMEOUT, "") } else { refused() };
                if !well && sidecar.breaker.next_probe_at().is_none() {
                    if sidecar.breaker.on_failure(&failure, now) {
                        sidecar.limiter.on_outage();
                    }
                } else {
                    sidecar.breaker.on_probe(if well { Ok(()) } else { Err(&failure) }, now);
                }
            }
        }
        let after = batches_of(self.sidecars[number].breaker.state());
        if after != batches && after.is_some() {
            self.steps.push(Step { at: now });
        }
        self.look(number);
    }

    fn look_at(&mut self, at: Instant, number: usize) {
        let sidecar = &mut self.sidecars[number];
        if sidecar.look_at.is_none_or(|planned| at < planned) {
            sidecar.look_at = Some(at);
            self.plan(at, number, Event::Look);
        }
    }

    fn probe(&mut self, number: usize) {
        if std::mem::replace(&mut self.sidecars[number].probing, true) {
            return;
        }
        let well = self.server.health == Health::Well;
        let answered = match self.server.health {
            Health::Well => self.server.serve(1, self.now) + self.server.live,
            Health::Down => self.now,
            Health::Hangs => self.now + PROBE_TIMEOUT,
        };
        self.plan(answered, number, Event::Probed { begun: self.now, well });
    }

    /// As a worker does between two events.
    fn look(&mut self, number: usize) {
        let now = self.now;
        if let Some(at) = self.sidecars[number].breaker.next_probe_at() {
            if at <= now {
                self.probe(number);
            } else {
                self.look_at(at, number);
            }
        } else if self.sidecars[number].limiter.wants_ping(now) {
            self.probe(number);
        }
        loop {
            let sidecar = &mut self.sidecars[number];
            if sidecar.backlog == 0 {
                return;
            }
            let granted = match sidecar.limiter.grant(sidecar.backlog, now) {
                Ok(granted) => granted,
                Err(at) => return self.look_at(at, number),
            };
            let (batches, units) = match sidecar.breaker.admit() {
                Admission::Free => (sidecar.limiter.batches(), granted),
                Admission::Ramp(batches) => (batches, granted),
                Admission::Trial => (usize::MAX, granted.min(TRIAL_UNITS)),
                Admission::Freeing | Admission::Refused => return,
            };
            if sidecar.in_flight >= batches {
                return;
            }
            sidecar.in_flight += 1;
            sidecar.backlog -= units;
            sidecar.limiter.spend(units, now);
            let at_limit = sidecar.in_flight >= batches;
            self.limits.push((now, sidecar.limiter.batches()));
            self.sent.push(Sent { at: now, sidecar: number, units });
            match self.server.health {
                Health::Well => {
                    let answered = self.server.serve(units, now);
                    self.plan(answered, number, Event::Answered { units, begun: now, at_limit });
                }
                Health::Down => self.plan(now, number, Event::Refused { units }),
                Health::Hangs => self.plan(now + RESPONSE_TIMEOUT, number, Event::TimedOut { units }),
            }
        }
    }
}

/// How many batches at a time the breaker says; none: none, or no limit.
fn batches_of(state: &State) -> Option<usize> {
    match state {
        State::Ramp { batches, .. } => Some(*batches),
        State::Closed => Some(usize::MAX),
        State::Open { .. } | State::HalfOpen { .. } => None,
    }
}

fn refused() -> Failure {
    Failure::hold("connection-refused", "")
}
