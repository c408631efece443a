//! Which tasks were settled recently: what a repetition is recognised by, wherever it comes from.
//!
//! Two generations of identities, one memory for the process: when the newer one is full it takes the place of the
//! older one, which is forgotten as a whole. It says nothing of tasks that are not settled: those are in a window, and a
//! record that is read again after its partition was taken away must not be taken for a repetition of itself. What it
//! forgets is run again, as it would have been without it: once-units are still known by their markers, for as long as
//! an identity is remembered here at most.
//!
//! A partition that is taken away takes with it what was settled there since its last durable checkpoint: its next owner
//! runs that again, from any point of it on, and where the partition comes back before all of it ran, the rest must run
//! here. So each window lists what of it is not saved yet ([`Unsaved`]).

use std::time::Duration;

use hashbrown::HashMap;
use jiff::Timestamp;

use crate::task::Identity;

/// The identities of a generation; between one and two generations are remembered. They fill a table of 2^16 places of 21
/// bytes: 1.4 MB, so the two and the half of one that is there while it grows are 3.5 MB. It was to be at most 4 MiB.
const GENERATION: usize = 7 << 13;

/// Identities of settled tasks, and when these were accepted.
pub struct Seen {
    newer: Generation,
    older: Generation,
    /// Seconds after its acceptance for which a task is remembered.
    life: i64,
}

/// The most that is listed of one window: what is settled in seconds.
const MAX_UNSAVED: usize = 65_536;

/// By identity, seconds since 1970.
type Generation = HashMap<Identity, u32>;

impl Seen {
    /// `life` is for how long after its acceptance a task is remembered at most; after that its id may be used again.
    pub fn new(life: Duration) -> Self {
        Self {
            newer: Generation::new(),
            older: Generation::new(),
            life: i64::try_from(life.as_secs()).unwrap_or(i64::MAX),
        }
    }

    /// Whether a task with this identity was settled, as far as that is remembered.
    pub fn contains(&self, identity: &Identity, now: Timestamp) -> bool {
        let accepted_at = self.newer.get(identity).or_else(|| self.older.get(identity));
        accepted_at.is_some_and(|second| now.as_second().saturating_sub(i64::from(*second)) < self.life)
    }

    /// A task was settled, in this process or, as its log says, in an earlier one.
    pub fn remember(&mut self, identity: Identity, accepted_at: Timestamp) {
        if self.newer.len() == GENERATION {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(identity, u32::try_from(accepted_at.as_second().max(0)).unwrap_or(u32::MAX));
    }

    /// What was settled will not count as settled.
    pub fn forget(&mut self, unsaved: &Unsaved) {
        if unsaved.is_too_long || unsaved.sealed_is_too_long {
            self.newer.clear();
            self.older.clear();
            return;
        }
        for (_, identity) in &unsaved.list {
            self.newer.remove(identity);
            self.older.remove(identity);
        }
    }
}

/// What was settled in one partition while no durable checkpoint says so.
#[derive(Debug, Default)]
pub struct Unsaved {
    /// By offset, in the order in which they were settled.
    list: Vec<(u64, Identity)>,
    /// How many of these the checkpoint says that is being written.
    sealed: usize,
    /// More was settled than is listed, since that checkpoint and before.
    is_too_long: bool,
    sealed_is_too_long: bool,
}

impl Unsaved {
    pub fn push(&mut self, offset: u64, identity: Identity) {
        if self.list.len() < MAX_UNSAVED {
            self.list.push((offset, identity));
        } else {
            self.is_too_long = true;
        }
    }

    /// A checkpoint is going to be written that says all that was settled until now.
    pub fn seal(&mut self) {
        self.sealed = self.list.len();
        self.sealed_is_too_long = std::mem::take(&mut self.is_too_long);
    }

    /// It is durable. `cut`: it says nothing from that offset on.
    pub fn saved(&mut self, cut: Option<u64>) {
        let sealed = std::mem::take(&mut self.sealed);
        match cut {
            None => {
                self.sealed_is_too_long = false;
                self.list.drain(..sealed);
            }
            Some(cut) => {
                self.unsealed();
                let mut number = 0;
                self.list.retain(|(offset, _)| {
                    number += 1;
                    number > sealed || *offset >= cut
                });
            }
        }
        // A list that was long once would keep its memory for ever.
        self.list.shrink_to(sealed.saturating_mul(16).max(64));
    }

    /// It was not stored, or may not have been.
    pub fn unsealed(&mut self) {
        self.sealed = 0;
        self.is_too_long |= std::mem::take(&mut self.sealed_is_too_long);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn identity(id: u64, operation: u64) -> Identity {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        bytes[8..].copy_from_slice(&operation.to_le_bytes());
        Identity::from_bytes(bytes)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("it is in range")
    }

    #[test]
    fn only_the_same_operation_under_the_same_id_is_a_repetition() {
        let mut seen = Seen::new(DAY);
        seen.remember(identity(1, 1), at(0));
        assert!(seen.contains(&identity(1, 1), at(10)));
        assert!(!seen.contains(&identity(1, 2), at(10)));
        assert!(!seen.contains(&identity(2, 1), at(10)));
    }

    #[test]
    fn an_id_may_be_used_again_when_its_time_is_over() {
        let mut seen = Seen::new(DAY);
        seen.remember(identity(1, 1), at(100));
        let day = i64::try_from(DAY.as_secs()).expect("a day is short");
        assert!(seen.contains(&identity(1, 1), at(99 + day)));
        assert!(!seen.contains(&identity(1, 1), at(100 + day)));
        seen.remember(identity(1, 1), at(100 + day));
        assert!(seen.contains(&identity(1, 1), at(100 + day)), "it was accepted anew");
    }

    #[test]
    fn the_newest_are_remembered_in_bounded_memory() {
        let mut seen = Seen::new(DAY);
        let generation = GENERATION as u64;
        let mut most_bytes = 0;
        for id in 0..5 * generation {
            seen.remember(identity(id, id), at(0));
            // While a table grows its half is there as well.
            let sizes = [&seen.newer, &seen.older].map(|generation| generation.allocation_size());
            most_bytes = most_bytes.max(sizes[0] * 3 / 2 + sizes[1]);
            if (id + 1) % 10_007 == 0 {
                assert!((id.saturating_sub(generation - 1)..=id).all(|id| seen.contains(&identity(id, id), at(1))));
            }
        }
        assert!(!seen.contains(&identity(2, 2), at(1)), "it was forgotten long ago");
        assert!(most_bytes <= 4 << 20, "{most_bytes} bytes");
    }

    #[test]
    fn what_is_remembered_again_takes_no_more_room() {
        let mut seen = Seen::new(DAY);
        seen.remember(identity(1, 1), at(0));
        for _ in 0..2 * GENERATION {
            seen.remember(identity(2, 2), at(0));
        }
        assert!(seen.contains(&identity(1, 1), at(1)));
    }

    /// Settles tasks at these offsets and says which are forgotten when the partition is taken away.
    fn forgotten(steps: impl FnOnce(&mut dyn FnMut(&mut Unsaved, u64), &mut Unsaved)) -> Vec<u64> {
        let (mut seen, mut unsaved) = (Seen::new(DAY), Unsaved::default());
        let mut settled = Vec::new();
        let mut settle = |unsaved: &mut Unsaved, offset: u64| {
            settled.push(offset);
            seen.remember(identity(offset, 1), at(0));
            unsaved.push(offset, identity(offset, 1));
        };
        steps(&mut settle, &mut unsaved);
        seen.forget(&unsaved);
        settled.into_iter().filter(|offset| !seen.contains(&identity(*offset, 1), at(1))).collect()
    }

    #[test]
    fn what_no_checkpoint_says_goes_with_its_partition() {
        assert_eq!(forgotten(|settle, unsaved| settle(unsaved, 1)), [1]);
        let two = |settle: &mut dyn FnMut(&mut Unsaved, u64), unsaved: &mut Unsaved| {
            (1..=4).for_each(|offset| settle(unsaved, offset));
            unsaved.seal();
            settle(unsaved, 5);
        };
        assert_eq!(forgotten(two), [1, 2, 3, 4, 5], "the checkpoint may not be durable");
        let saved = |cut| {
            forgotten(move |settle, unsaved| {
                two(settle, unsaved);
                unsaved.saved(cut);
            })
        };
        assert_eq!(saved(None), [5]);
        assert_eq!(saved(Some(3)), [3, 4, 5]);
        let failed = forgotten(|settle, unsaved| {
            two(settle, unsaved);
            unsaved.unsealed();
        });
        assert_eq!(failed, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_list_that_became_too_long_makes_forget_everything() {
        let many = MAX_UNSAVED as u64 + 1;
        let overflow = |settle: &mut dyn FnMut(&mut Unsaved, u64), unsaved: &mut Unsaved| {
            (0..many).for_each(|offset| settle(unsaved, offset));
            unsaved.seal();
        };
        assert_eq!(forgotten(overflow).len() as u64, many);
        let saved = forgotten(|settle, unsaved| {
            overflow(settle, unsaved);
            unsaved.saved(None);
            settle(unsaved, many);
        });
        assert_eq!(saved.last(), Some(&many));
        assert!(saved.len() < many as usize, "what is saved is remembered");
        let cut = forgotten(|settle, unsaved| {
            overflow(settle, unsaved);
            unsaved.saved(Some(many));
        });
        assert_eq!(cut.len() as u64, many);
    }
}
