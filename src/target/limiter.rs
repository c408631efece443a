//! How much is sent to a target at a time, and how fast: values and a clock go in, values come out.
//!
//! ```text
//!   round trips of batches ─▶ batches: how many at a time, how many units in each ─┐
//!   redis.max_rate, restarts ─▶ ceiling ─▶ bucket: how many units now ─────────────┼─▶ the next batch
//!   PING of a probe ─▶ brake: half of the ceiling ─────────────────────────────────┘
//! ```
//!
//! Redrive is the background load: whoever reads and writes the target live goes first. The invariant: in any stretch of
//! time no more units are sent than the ceiling allows for it and one batch.

use std::time::{Duration, Instant};

mod batches;
mod brake;
mod bucket;
mod meter;

use batches::Batches;
pub use batches::Round;
use brake::Brake;
use bucket::Bucket;
use meter::Meter;

/// How long a server that was started again is spared: its caches are empty, and its replicas copy everything.
pub const AFTER_RESTART: Duration = Duration::from_secs(30);

/// What of the ceiling it is then given.
const RESTART_SHARE: f64 = 0.25;

/// The ceiling then where there is none otherwise, in units per second.
const RESTART_RATE: f64 = 5000.0;

/// The time between two looks at the target's PING while it is busy with us.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// So many units since the last look make it busy: what trickles in slows nobody down.
const BUSY_UNITS: u64 = 256;

/// Where there is no ceiling, the brake takes half of what was sent, and of no less than this.
const MIN_BRAKED_RATE: f64 = 1000.0;

/// Within which bounds it may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most batches at a time: the connections.
    pub max_batches: usize,
    /// Units per second; 0: as many as the target takes.
    pub max_rate: u32,
    /// False: always the most batches, as large as they may be, and no other rate than `max_rate`.
    pub adaptive: bool,
}

/// One target's limiter.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    batches: Batches,
    bucket: Bucket,
    brake: Brake,
    meter: Meter,
    /// While the server is spared because it was started again.
    spared_until: Option<Instant>,
    /// Of a target without a ceiling: what was sent per second before the brake was put on.
    unbraked_rate: f64,
    pinged_at: Instant,
    units_since_ping: u64,
}

/// Round trips of a PING over a connection that no batch holds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pings {
    /// As it is when all is well.
    pub baseline: Option<Duration>,
    pub last: Option<Duration>,
}

impl Limiter {
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            batches: Batches::new(limits.max_batches, now),
            bucket: Bucket::new(now),
            brake: Brake::default(),
            meter: Meter::new(now),
            spared_until: None,
            unbraked_rate: MIN_BRAKED_RATE,
            pinged_at: now,
            units_since_ping: 0,
        }
    }

    /// The most batches that should be under way at a time.
    pub fn batches(&self) -> usize {
        if self.limits.adaptive { self.batches.limit() } else { self.limits.max_batches }
    }

    /// The most units that the next batch should have.
    pub fn batch_units(&self) -> usize {
        if self.limits.adaptive { self.batches.units() } else { super::MAX_BATCH_UNITS }
    }

    /// How many of `wanted` units may be sent now; the error is when to ask again. Nothing is spent: see
    /// [`Limiter::spend`].
    pub fn grant(&mut self, wanted: usize, now: Instant) -> Result<usize, Instant> {
        let wanted = wanted.min(self.batch_units());
        match self.ceiling(now) {
            Some(rate) => self.bucket.grant(wanted, rate, now),
            None => Ok(wanted),
        }
    }

    /// So many units are sent now.
    pub fn spend(&mut self, units: usize, now: Instant) {
        if let Some(rate) = self.ceiling(now) {
            self.bucket.spend(units, rate, now);
        }
        self.meter.count(units, now);
        self.units_since_ping += units as u64;
    }

    /// A batch came back without a sign that anything is wrong with the target.
    pub fn on_batch(&mut self, round: Round, now: Instant) {
        self.batches.on_batch(round, self.brake.pings().baseline.unwrap_or_default(), now);
    }

    /// A batch did not come back in time.
    pub fn on_timeout(&mut self, now: Instant) {
        self.batches.on_timeout(now);
    }

    /// The target cannot be used: once it can, it begins with small batches.
    pub fn on_outage(&mut self) {
        self.batches.on_outage();
    }

    /// Another server answers, or the same one was started again.
    pub fn on_restart(&mut self, now: Instant) {
        self.spared_until = Some(now + AFTER_RESTART);
    }

    /// How long the target took to answer a PING. True: with this one the brake was put on, or came off.
    pub fn on_ping(&mut self, round_trip: Duration, now: Instant) -> bool {
        (self.pinged_at, self.units_since_ping) = (now, 0);
        let was_on = self.brake.is_on();
        if !was_on {
            self.unbraked_rate = self.meter.rate(now).max(MIN_BRAKED_RATE);
        }
        self.brake.on_ping(round_trip);
        self.limits.adaptive && was_on != self.brake.is_on()
    }

    /// Whether less is sent because the target answers PINGs slowly.
    pub fn brakes(&self) -> bool {
        self.limits.adaptive && self.brake.is_on()
    }

    /// Whether it is time to look at the target's PING.
    pub fn wants_ping(&self, now: Instant) -> bool {
        self.limits.adaptive
            && self.units_since_ping >= BUSY_UNITS
            && now.saturating_duration_since(self.pinged_at) >= PING_INTERVAL
    }

    /// Units per second that may be sent now; none: as many as the target takes.
    pub fn ceiling(&self, now: Instant) -> Option<f64> {
        let configured = (self.limits.max_rate > 0).then(|| f64::from(self.limits.max_rate));
        if !self.limits.adaptive {
            return configured;
        }
        let whole = match self.spared_until {
            Some(until) if now < until => Some(configured.map_or(RESTART_RATE, |rate| rate * RESTART_SHARE)),
            _ => configured,
        };
        match whole {
            Some(rate) => Some((rate * self.brake.factor()).max(1.0)),
            None => self.brake.is_on().then(|| self.unbraked_rate * self.brake.factor()),
        }
    }

    /// Units sent in the last second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.meter.rate(now)
    }

    /// Until when the server is spared because it was started again.
    pub fn spared_until(&self, now: Instant) -> Option<Instant> {
        self.spared_until.filter(|until| self.limits.adaptive && now < *until)
    }

    pub fn pings(&self) -> Pings {
        self.brake.pings()
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
