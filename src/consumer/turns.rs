//! Whose turn it is: lanes by their weights, the partitions of a lane in a row, and retries behind what is fresh.
//!
//! Every lane has a pass, which grows by its stride with each unit of it that is sent; the lane with the lowest pass is
//! next. So shares hold over any number of batches, also where a batch is a single unit, and a lane that waits is never
//! passed over for longer than its share explains. A lane that had nothing to send cannot save up its turns.

use crate::task::Lane;

/// How much each lane gets while all have something ready.
const WEIGHTS: [(Lane, u64); Lane::ALL.len()] = [(Lane::High, 8), (Lane::Normal, 3), (Lane::Low, 1)];

/// A stride times its weight: divisible by all of them.
const STRIDES: u64 = 24;

/// So many fresh units go before a retry, as long as there are any: retries are at most a fifth of what is sent.
const FRESH_PER_RETRY: u32 = 4;

/// What of a lane is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub fresh: bool,
    /// Units that were sent before.
    pub again: bool,
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its place in [`Turns::lanes`].
    pub lane: usize,
    pub again: bool,
    /// There is something fresh too.
    over_fresh: bool,
}

#[derive(Debug, Default)]
pub struct Turns {
    passes: [u64; WEIGHTS.len()],
    /// The pass of whoever was sent last.
    now: u64,
    was_ready: [bool; WEIGHTS.len()],
    /// Fresh units sent since the last retry, as far as they count.
    fresh: u32,
    partitions: [usize; WEIGHTS.len()],
}

impl Turns {
    pub fn lanes() -> impl Iterator<Item = Lane> {
        WEIGHTS.into_iter().map(|(lane, _)| lane)
    }

    /// Who is next; none where nothing is ready. Whoever then sends a unit says so with [`Turns::sent`].
    pub fn next(&mut self, ready: [Ready; WEIGHTS.len()]) -> Option<Turn> {
        for (lane, ready) in ready.iter().enumerate() {
            let is_ready = ready.fresh || ready.again;
            if is_ready && !self.was_ready[lane] {
                self.passes[lane] = self.passes[lane].max(self.now);
            }
            self.was_ready[lane] = is_ready;
        }
        let has_fresh = ready.iter().any(|ready| ready.fresh);
        let has_again = ready.iter().any(|ready| ready.again);
        let again = has_again && (!has_fresh || self.fresh >= FRESH_PER_RETRY);
        let wanted = |lane: &usize| if again { ready[*lane].again } else { ready[*lane].fresh };
        let lane = (0..WEIGHTS.len()).filter(wanted).min_by_key(|lane| self.passes[*lane])?;
        Some(Turn { lane, again, over_fresh: again && has_fresh })
    }

    /// Which of `count` partitions of the lane is next.
    pub fn partition(&mut self, lane: usize, count: usize) -> usize {
        self.partitions[lane] = self.partitions[lane].wrapping_add(1);
        self.partitions[lane] % count
    }

    /// A unit was sent.
    pub fn sent(&mut self, turn: Turn) {
        self.now = self.passes[turn.lane];
        self.passes[turn.lane] += STRIDES / WEIGHTS[turn.lane].1;
        self.fresh = match turn {
            Turn { again: false, .. } => (self.fresh + 1).min(FRESH_PER_RETRY),
            Turn { over_fresh: true, .. } => 0,
            Turn { .. } => self.fresh,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const HIGH: usize = 0;
    const LOW: usize = 2;

    fn all_fresh() -> [Ready; 3] {
        [Ready { fresh: true, again: false }; 3]
    }

    fn sent(turns: &mut Turns, ready: [Ready; 3]) -> Turn {
        let turn = turns.next(ready).expect("something is ready");
        turns.sent(turn);
        turn
    }

    #[test]
    fn shares_are_exact_over_any_twelve_units_in_a_row() {
        let mut turns = Turns::default();
        let order: Vec<usize> = (0..600).map(|_| sent(&mut turns, all_fresh()).lane).collect();
        for window in order[12..].windows(12) {
            let shares = [0, 1, 2].map(|lane| window.iter().filter(|sent| **sent == lane).count());
            assert_eq!(shares, [8, 3, 1], "{window:?}");
        }
    }

    #[test]
    fn lane_alone_gets_everything_and_saves_nothing_up() {
        let mut turns = Turns::default();
        let mut only_low = [Ready::default(); 3];
        only_low[LOW].fresh = true;
        for _ in 0..1000 {
            assert_eq!(sent(&mut turns, only_low).lane, LOW);
        }
        // High was idle meanwhile: it has its share now, not what it did not use.
        let mut both = only_low;
        both[HIGH].fresh = true;
        let low = (0..90).filter(|_| sent(&mut turns, both).lane == LOW).count();
        assert!((9..=11).contains(&low), "{low} of 90");
    }

    #[test]
    fn retries_are_a_fifth_while_there_is_fresh_work() {
        let mut turns = Turns::default();
        let mut ready = all_fresh();
        ready[HIGH].again = true;
        let order: Vec<bool> = (0..1000).map(|_| sent(&mut turns, ready).again).collect();
        for window in order.windows(5) {
            assert_eq!(window.iter().filter(|again| **again).count(), 1);
        }
        let only_again = [Ready { fresh: false, again: true }; 3];
        assert!((0..100).all(|_| sent(&mut turns, only_again).again));
    }

    /// Three partitions a lane under a rate ceiling, at which units come in at random: fast, so that there is a backlog,
    /// and slowly, so that lanes run empty in between. `per_step`: units that may be sent each step.
    fn check_ages(seed: u64, arrivals: [f64; 3], per_step: usize) {
        const PARTITIONS: usize = 3;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut turns = Turns::default();
        // Each unit knows how many units were sent before it came, and how many of its lane were before it.
        let mut queues: [[VecDeque<(usize, usize)>; PARTITIONS]; 3] = Default::default();
        let mut all_sent = 0;
        for _ in 0..4000 {
            for (lane, rate) in arrivals.iter().enumerate() {
                let count = *rate as usize + usize::from(rng.f64() < rate.fract());
                for _ in 0..count {
                    let ahead = queues[lane].iter().map(VecDeque::len).sum();
                    queues[lane][rng.usize(..PARTITIONS)].push_back((all_sent, ahead));
                }
            }
            for _ in 0..per_step {
                let ready = [0, 1, 2].map(|lane: usize| Ready {
                    fresh: queues[lane].iter().any(|queue| !queue.is_empty()),
                    again: false,
                });
                let Some(turn) = turns.next(ready) else { break };
                let partitions: Vec<usize> =
                    (0..PARTITIONS).filter(|partition| !queues[turn.lane][*partition].is_empty()).collect();
                let partition = partitions[turns.partition(turn.lane, partitions.len())];
                let (then, ahead) = queues[turn.lane][partition].pop_front().expect("it is not empty");
                turns.sent(turn);
                let waited = all_sent - then;
                all_sent += 1;
                // Of each twelve units sent, `weight` are of this lane. Partitions take turns, so that at most as many of
                // each other one go before it as of its own.
                let weight = [8, 3, 1][turn.lane];
                let longest = (ahead * PARTITIONS + PARTITIONS).div_ceil(weight) * 12 + 24;
                assert!(waited <= longest, "seed {seed}: lane {} waited {waited} with {ahead} ahead", turn.lane);
            }
        }
    }

    #[test]
    fn no_unit_waits_longer_than_its_share_explains() {
        for seed in 0..20 {
            check_ages(seed, [9.0, 4.0, 0.3], 10);
            check_ages(seed, [2.5, 0.2, 0.2], 1);
            check_ages(seed, [0.5, 0.3, 0.1], 1);
            check_ages(seed, [100.0, 100.0, 0.01], 64);
        }
    }
}
