//! Tokens that come in at a rate: one for each unit that is sent.

use std::time::{Duration, Instant};

use crate::target::MAX_BATCH_UNITS;

/// How much time's tokens are kept at most, and never more than a batch's: a pause is not made up for by a burst.
const KEPT: Duration = Duration::from_millis(20);

/// What rounding may take away.
const EPSILON: f64 = 1e-6;

#[derive(Debug)]
pub struct Bucket {
    /// Below zero where something was sent that could not wait.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(now: Instant) -> Self {
        Self { tokens: MAX_BATCH_UNITS as f64, at: now }
    }

    /// As many of `wanted` as there are tokens for, at `rate` tokens per second; the error is when there are enough. It
    /// is worth waiting for half of a full bucket, if so many are wanted: tiny batches cost more than they bring.
    pub fn grant(&mut self, wanted: usize, rate: f64, now: Instant) -> Result<usize, Instant> {
        self.refill(rate, now);
        let enough = (wanted as f64).min(capacity(rate) / 2.0).max(1.0);
        if self.tokens + EPSILON >= enough {
            return Ok(wanted.min((self.tokens + EPSILON) as usize));
        }
        // What is missing may be less than a clock can tell.
        Err(now + Duration::from_secs_f64((enough - self.tokens) / rate) + Duration::from_micros(1))
    }

    pub fn spend(&mut self, units: usize, rate: f64, now: Instant) {
        self.refill(rate, now);
        self.tokens -= units as f64;
    }

    fn refill(&mut self, rate: f64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + rate * elapsed).min(capacity(rate));
        self.at = self.at.max(now);
    }
}

fn capacity(rate: f64) -> f64 {
    (rate * KEPT.as_secs_f64()).clamp(1.0, MAX_BATCH_UNITS as f64)
}
