//! How fast a queue is forwarded: pure, it decides and does nothing. A remote log that has failed is asked with one
//! record, after a pause that grows with its absence; while it answers, each batch is twice as large as the one
//! before.

use std::time::Duration;

use tokio::time::Instant;

/// How much of a pause jitter may take away.
const JITTER: f64 = 0.2;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_batch: usize,
    /// The first pause.
    pub min_pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
}

pub struct Pace {
    limits: Limits,
    batch: usize,
    failing_since: Option<Instant>,
}

impl Pace {
    pub fn new(limits: Limits) -> Self {
        Self { limits, batch: 1, failing_since: None }
    }

    /// How many records may be forwarded together.
    pub fn batch(&self) -> usize {
        self.batch
    }

    pub fn succeeded(&mut self) {
        self.failing_since = None;
        self.batch = (self.batch * 2).min(self.limits.max_batch);
    }

    /// Everything is forwarded: whatever comes next comes of a new failure.
    pub fn finished(&mut self) {
        *self = Self::new(self.limits);
    }

    /// They could not be taken together, whatever each alone may be.
    pub fn too_large(&mut self) {
        self.batch = 1;
    }

    /// Answers how long to wait before the next try: a tenth of the time since the first of these failures, so that
    /// what the absence is prolonged by stays in proportion to it. Jitter only shortens it.
    pub fn failed(&mut self, now: Instant, chance: &mut fastrand::Rng) -> Duration {
        self.batch = 1;
        let since = *self.failing_since.get_or_insert(now);
        let pause = (now.duration_since(since) / 10).clamp(self.limits.min_pause, self.limits.max_pause);
        pause.mul_f64(1.0 - JITTER * chance.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { max_batch: 100, min_pause: Duration::from_millis(100), max_pause: Duration::from_secs(5) };

    #[test]
    fn batches_grow_while_the_remote_answers_and_begin_anew_after_a_failure() {
        let mut pace = Pace::new(LIMITS);
        let mut seen = Vec::new();
        for _ in 0..9 {
            seen.push(pace.batch());
            pace.succeeded();
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
        pace.failed(Instant::now(), &mut fastrand::Rng::with_seed(1));
        assert_eq!(pace.batch(), 1);
    }

    #[test]
    fn pause_is_a_tenth_of_the_absence_within_its_bounds() {
        let mut chance = fastrand::Rng::with_seed(7);
        let start = Instant::now();
        let mut pace = Pace::new(LIMITS);
        for (after, longest) in [(0.0, 0.1), (0.5, 0.1), (10.0, 1.0), (40.0, 4.0), (3_000.0, 5.0)] {
            for _ in 0..100 {
                let pause = pace.failed(start + Duration::from_secs_f64(after), &mut chance).as_secs_f64();
                assert!((longest * 0.799..=longest * 1.001).contains(&pause), "{pause} after {after}");
            }
        }
        pace.succeeded();
        pace.succeeded();
        pace.finished();
        assert_eq!(pace.batch(), 1);
        let pause = pace.failed(start + Duration::from_secs(4_000), &mut chance);
        assert!(pause <= LIMITS.min_pause, "the next absence begins anew");
    }
}
