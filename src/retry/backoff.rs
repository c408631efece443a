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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(200);
    const CAP: Duration = Duration::from_secs(30);

    proptest! {
        #[test]
        fn pause_is_between_nothing_and_the_doubled_base(doublings in 0_u32..200, seed: u64) {
            let pause = full_jitter(BASE, CAP, doublings, &mut fastrand::Rng::with_seed(seed));
            let ceiling = if doublings < 8 { BASE * 2_u32.pow(doublings) } else { CAP };
            prop_assert!(pause <= ceiling.min(CAP));
        }

        #[test]
        fn probe_comes_within_a_tenth_of_the_outage(outage_ms in 0_u64..10_000_000, seed: u64) {
            let cap = Duration::from_secs(5);
            let outage = Duration::from_millis(outage_ms);
            let interval = probe_interval(outage, cap, &mut fastrand::Rng::with_seed(seed));
            let longest = (outage / 10).clamp(MIN_PROBE_INTERVAL, cap);
            prop_assert!(interval <= longest);
            prop_assert!(interval >= longest.mul_f64(0.79).max(MIN_PROBE_INTERVAL));
        }

        #[test]
        fn outage_of_up_to_ten_seconds_is_noticed_to_be_over_within_one(outage_ms in 0_u64..=10_000, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let end = Duration::from_millis(outage_ms);
            let mut probed_at = Duration::ZERO;
            while probed_at < end {
                probed_at += probe_interval(probed_at, Duration::from_secs(5), &mut rng);
            }
            prop_assert!(probed_at - end <= Duration::from_secs(1));
        }
    }

    #[test]
    fn pauses_spread_over_the_whole_range() {
        let mut rng = fastrand::Rng::with_seed(7);
        let pauses: Vec<_> = (0..1000).map(|_| full_jitter(BASE, CAP, 0, &mut rng)).collect();
        assert!(pauses.iter().any(|pause| *pause < BASE / 10));
        assert!(pauses.iter().any(|pause| *pause > BASE * 9 / 10));
    }

    #[test]
    fn nothing_overflows() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert!(full_jitter(Duration::MAX, Duration::MAX, u32::MAX, &mut rng) <= Duration::MAX);
        assert!(probe_interval(Duration::MAX, CAP, &mut rng) <= CAP);
    }
}
