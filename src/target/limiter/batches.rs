//! How many batches are under way at a time, and how many units each has, by what their round trips say.
//!
//! More at a time help until the target's one thread is never idle; from there on they only wait in line, and live
//! requests wait behind them. So the number grows while round trips stay as short as they are, and shrinks when they
//! grow. The size is what the target does in a few milliseconds.

use std::time::{Duration, Instant};

use crate::target::MAX_BATCH_UNITS;

/// The fewest units that a batch is cut to.
const MIN_UNITS: usize = 16;

/// A batch that takes longer than this and a PING is too large for whoever waits behind it.
const LONGEST: Duration = Duration::from_millis(20);

/// How much longer than usual a round trip may be.
const TOLERANCE: f64 = 1.5;

/// What is left of the number when round trips grow, and after a timeout.
const ON_GROWTH: f64 = 0.9;
const ON_TIMEOUT: f64 = 0.5;

/// So many round trips after it shrank it grows again; twice as many each time that growing was of no use, up to the
/// most: else it would swing.
const REST: u32 = 32;
const LONGEST_REST: u32 = 2048;

/// So many round trips tell whether it may grow once more.
const GROWTH_REST: u32 = 8;

/// Of a new round trip of a full batch, how much goes into the average of the last ones, and into that of the usual
/// ones. A shorter one is usual soon, and a longer one late; and only while there is one batch at a time, as what is
/// longer for several is our own doing.
const SHORT_TERM: f64 = 1.0 / 8.0;
const LONG_TERM_DOWN: f64 = 1.0 / 8.0;
const LONG_TERM_UP: f64 = 1.0 / 128.0;

/// A batch's way to the target and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub units: usize,
    /// As many batches as may be were under way when it was sent.
    pub at_limit: bool,
    pub begun: Instant,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Batches {
    max: f64,
    limit: f64,
    units: usize,
    /// Seconds that a full batch takes, lately and usually.
    averages: Option<(f64, f64)>,
    /// When the number or the size was changed: what was sent before says nothing of it.
    changed_at: Instant,
    /// Round trips until it may grow, and how many there will be next time.
    rest: u32,
    next_rest: u32,
    /// The last change was that it grew.
    grew: bool,
}

impl Batches {
    /// It begins with the most, as nothing is known that speaks against it.
    pub fn new(max: usize, now: Instant) -> Self {
        let max = max as f64;
        Self {
            max,
            limit: max,
            units: MAX_BATCH_UNITS,
            averages: None,
            changed_at: now,
            rest: 0,
            next_rest: REST,
            grew: false,
        }
    }

    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    pub fn units(&self) -> usize {
        self.units
    }

    /// `ping`: how long the target takes for next to nothing.
    pub fn on_batch(&mut self, round: Round, ping: Duration, now: Instant) {
        // Small batches are as fast as the network, and say nothing of full ones.
        if round.begun < self.changed_at || round.units < self.units * 3 / 4 {
            return;
        }
        let work = round.took.saturating_sub(ping);
        if work > LONGEST {
            self.units = (self.units * 3 / 4).max(MIN_UNITS);
            return self.shrink(ON_GROWTH, now);
        }
        if work < LONGEST / 2 && self.units < MAX_BATCH_UNITS {
            self.units = (self.units + MIN_UNITS).min(MAX_BATCH_UNITS);
            self.changed_at = now;
            return;
        }
        let took = round.took.as_secs_f64();
        let (short, long) = self.averages.unwrap_or((took, took));
        let short = short + (took - short) * SHORT_TERM;
        let long = match short < long {
            true => long + (short - long) * LONG_TERM_DOWN,
            false if self.limit() == 1 => long + (short - long) * LONG_TERM_UP,
            false => long,
        };
        self.averages = Some((short, long));
        if short > long * TOLERANCE {
            self.shrink(ON_GROWTH, now);
        } else if self.rest > 0 {
            self.rest -= 1;
        } else if round.at_limit && self.limit < self.max {
            self.limit = (self.limit + 1.0).min(self.max);
            (self.changed_at, self.grew, self.rest) = (now, true, GROWTH_REST);
        } else if self.grew {
            // It grew and all is as it was.
            (self.grew, self.next_rest) = (false, REST);
        }
    }

    pub fn on_timeout(&mut self, now: Instant) {
        self.shrink(ON_TIMEOUT, now);
    }

    pub fn on_outage(&mut self) {
        self.units = MIN_UNITS;
    }

    fn shrink(&mut self, factor: f64, now: Instant) {
        self.limit = (self.limit * factor).max(1.0);
        if std::mem::take(&mut self.grew) {
            self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
        }
        (self.changed_at, self.rest) = (now, self.next_rest);
    }
}
