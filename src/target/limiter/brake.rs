//! What a PING says of those who use the target live: if it takes much longer than it used to, so does all they ask.

use std::time::Duration;

use super::Pings;

/// How much longer than the baseline is too long.
const SLOW_FACTOR: u32 = 3;

/// Below this no PING is slow: so long this process may take itself until it looks at the answer.
const NEVER_SLOW: Duration = Duration::from_millis(2);

/// The most times that the rate is halved.
const MAX_HALVINGS: u32 = 4;

/// How fast the baseline follows PINGs that are longer than it: of fine ones, and of slow ones, which are perhaps the way
/// it is from now on.
const FOLLOW: u32 = 32;
const FOLLOW_SLOW: u32 = 128;

#[derive(Debug, Default)]
pub struct Brake {
    pings: Pings,
    halvings: u32,
}

impl Brake {
    /// A slow one halves the rate, each further one again; a fine one doubles it until it is whole.
    pub fn on_ping(&mut self, round_trip: Duration) {
        let baseline = self.pings.baseline.unwrap_or(round_trip);
        let is_slow = round_trip > (baseline * SLOW_FACTOR).max(NEVER_SLOW);
        self.halvings = match is_slow {
            true => (self.halvings + 1).min(MAX_HALVINGS),
            false => self.halvings.saturating_sub(1),
        };
        let behind = round_trip.saturating_sub(baseline);
        let baseline = baseline.min(round_trip) + behind / if is_slow { FOLLOW_SLOW } else { FOLLOW };
        self.pings = Pings { baseline: Some(baseline), last: Some(round_trip) };
    }

    /// What is left of the rate.
    pub fn factor(&self) -> f64 {
        0.5_f64.powi(self.halvings as i32)
    }

    pub fn is_on(&self) -> bool {
        self.halvings > 0
    }

    pub fn pings(&self) -> Pings {
        self.pings
    }
}
