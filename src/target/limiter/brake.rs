//! What a PING says of those who use the target live: if it takes much longer than it used to, so does all they ask.

use std::time::Duration;

use super::Pings;

/// How much longer than the baseline is too long.
const SLOW_FACTOR: u32 = 3;

/// Below this no PING is slow: so long this process may take itself until it looks at the answer.
const NEVER_SLOW: Duration = Duration::from_millis(2);

/// What is left of the rate then.
const BRAKED: f64 = 0.5;

/// How fast the baseline follows PINGs that are longer than it: of fine ones, and of slow ones, which are perhaps the way
/// it is from now on.
const FOLLOW: u32 = 32;
const FOLLOW_SLOW: u32 = 128;

#[derive(Debug, Default)]
pub struct Brake {
    pings: Pings,
    is_on: bool,
}

impl Brake {
    /// A slow one halves the rate, until one is fine again.
    pub fn on_ping(&mut self, round_trip: Duration) {
        let baseline = self.pings.baseline.unwrap_or(round_trip);
        self.is_on = round_trip > (baseline * SLOW_FACTOR).max(NEVER_SLOW);
        let behind = round_trip.saturating_sub(baseline);
        let baseline = baseline.min(round_trip) + behind / if self.is_on { FOLLOW_SLOW } else { FOLLOW };
        self.pings = Pings { baseline: Some(baseline), last: Some(round_trip) };
    }

    /// What is left of the rate.
    pub fn factor(&self) -> f64 {
        if self.is_on { BRAKED } else { 1.0 }
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    pub fn pings(&self) -> Pings {
        self.pings
    }
}
