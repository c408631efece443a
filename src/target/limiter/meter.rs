//! How many units were sent in the last second.

use std::time::{Duration, Instant};

const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Meter {
    start: Instant,
    /// The number of the slot that was counted in last, and what was counted in each.
    last: u64,
    slots: [u64; SLOTS + 1],
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self { start: now, last: 0, slots: [0; SLOTS + 1] }
    }

    pub fn count(&mut self, units: usize, now: Instant) {
        let number = self.number(now);
        for skipped in self.last + 1..=number.min(self.last + self.slots.len() as u64) {
            self.slots[place(skipped)] = 0;
        }
        // What comes after a long pause finds all of them empty.
        if number > self.last + self.slots.len() as u64 {
            self.slots = [0; SLOTS + 1];
        }
        self.last = self.last.max(number);
        self.slots[place(number)] += units as u64;
    }

    /// Per second, of the last slots that are over.
    pub fn rate(&self, now: Instant) -> f64 {
        let number = self.number(now);
        let first = number.saturating_sub(SLOTS as u64);
        let units: u64 = (first..number.min(self.last + 1))
            .filter(|slot| slot + self.slots.len() as u64 > self.last)
            .map(|slot| self.slots[place(slot)])
            .sum();
        units as f64 / (SLOT * SLOTS as u32).as_secs_f64()
    }

    fn number(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_millis() / SLOT.as_millis()) as u64
    }
}

fn place(number: u64) -> usize {
    (number % (SLOTS as u64 + 1)) as usize
}
