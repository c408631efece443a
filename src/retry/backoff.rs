//! How long to wait: before a unit is tried again, and before a target that is down is looked at again.

use std::time::Duration;

/// The shortest time between two probes of a target that is down.
pub const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// How much of a probe interval jitter may take away.
const PROBE_JITTER: f64 = 0.2;

/// A pause drawn evenly between nothing and `base` doubled `doublings` times, at most `cap`.
pub fn full_jitter(base: Duration, cap: Duration, doublings: u32, rng: &mut fastrand::Rng) -> Duration {
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(cap).mul_f64(rng.f64())
}

/// The time until the next probe of a target that has been down for `outage`: a tenth of that, so that what an outage
/// is prolonged by stays in proportion to it.
///
/// Jitter only shortens it. An outage of up to 10 s is thus noticed to be over within 1 s.
pub fn probe_interval(outage: Duration, cap: Duration, rng: &mut fastrand::Rng) -> Duration {
    let interval = (outage / 10).min(cap).max(MIN_PROBE_INTERVAL);
    interval.mul_f64(1.0 - PROBE_JITTER * rng.f64()).max(MIN_PROBE_INTERVAL)
}
