//! How many units were sent in the last second.

use std::time::{Duration, Instant};

use crate::target::slots::Slots;

const SLOT: Duration = Duration::from_millis(100);

/// The slots of a second, and the one that is not over.
const SLOTS: usize = 11;

#[derive(Debug)]
pub struct Meter(Slots<u64, SLOTS>);

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self(Slots::new(SLOT, now))
    }

    pub fn count(&mut self, units: usize, now: Instant) {
        *self.0.current(now) += units as u64;
    }

    /// Per second, of the last slots that are over.
    pub fn rate(&self, now: Instant) -> f64 {
        let units: u64 = self.0.recent(now).filter(|(age, _)| *age > 0).map(|(_, units)| units).sum();
        units as f64
    }
}
