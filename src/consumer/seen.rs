//! Which tasks were settled recently: what a repetition is recognised by, wherever it comes from.
//!
//! A ring of identities and a table that finds them, one for the process. It says nothing of tasks that are not settled:
//! those are in a window, and a record that is read again after its partition was taken away must not be taken for a
//! repetition of itself. What it forgets is run again, as it would have been without it: once-units are still known by
//! their markers, for as long as an identity is remembered here at most.

use std::time::Duration;

use hashbrown::HashTable;
use jiff::Timestamp;

use crate::task::Identity;

/// How many are remembered: 20 bytes each in the ring and 5 for each place of the table, which are 2^17 then: 2.8 MiB,
/// and 3.2 while the table grows. It was to be at most 4.
pub const CAPACITY: usize = 7 << 14;

/// Identities in the order in which they were remembered, the oldest overwritten first.
pub struct Seen {
    ring: Vec<Slot>,
    /// Slot numbers by the hash of the identity.
    index: HashTable<u32>,
    /// The slot that is overwritten next, once all are in use.
    oldest: usize,
    /// Seconds after its acceptance for which a task is remembered.
    life: i64,
}

#[derive(Clone, Copy)]
struct Slot {
    identity: Identity,
    /// Seconds since 1970.
    accepted_at: u32,
}

impl Seen {
    /// `life` is for how long after its acceptance a task is remembered at most; after that its id may be used again.
    pub fn new(life: Duration) -> Self {
        Self {
            // Reserved, not touched: memory that holds nothing yet costs nothing.
            ring: Vec::with_capacity(CAPACITY),
            index: HashTable::new(),
            oldest: 0,
            life: i64::try_from(life.as_secs()).unwrap_or(i64::MAX),
        }
    }

    /// Whether a task with this identity was settled, as far as that is remembered.
    pub fn contains(&self, identity: &Identity, now: Timestamp) -> bool {
        self.index.find(identity.id_hash(), |number| self.ring[*number as usize].identity == *identity).is_some_and(
            |number| {
                let age = now.as_second().saturating_sub(i64::from(self.ring[*number as usize].accepted_at));
                age < self.life
            },
        )
    }

    /// A task was settled, in this process or, as its log says, in an earlier one.
    pub fn remember(&mut self, identity: Identity, accepted_at: Timestamp) {
        let accepted_at = u32::try_from(accepted_at.as_second().max(0)).unwrap_or(u32::MAX);
        let slot = Slot { identity, accepted_at };
        let number = if self.ring.len() < CAPACITY {
            self.ring.push(slot);
            self.ring.len() - 1
        } else {
            let number = self.oldest;
            self.oldest = (self.oldest + 1) % CAPACITY;
            let forgotten = std::mem::replace(&mut self.ring[number], slot).identity.id_hash();
            // It is not there where the same identity was remembered again later.
            if let Ok(entry) = self.index.find_entry(forgotten, |found| *found as usize == number) {
                entry.remove();
            }
            number
        };
        let (ring, number) = (&self.ring, u32::try_from(number).expect("the capacity is far below 2^32"));
        match self.index.find_mut(identity.id_hash(), |found| ring[*found as usize].identity == identity) {
            Some(found) => *found = number,
            None => {
                self.index
                    .insert_unique(identity.id_hash(), number, |number| ring[*number as usize].identity.id_hash());
            }
        }
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
        let capacity = CAPACITY as u64;
        for id in 0..capacity / 2 {
            seen.remember(identity(id, id), at(0));
        }
        // Again, so that the older half of the ring means nothing.
        for id in 0..2 * capacity {
            seen.remember(identity(id % capacity, id % capacity), at(0));
        }
        assert!((0..capacity).all(|id| seen.contains(&identity(id, id), at(1))));
        for id in capacity..3 * capacity {
            seen.remember(identity(id, id), at(0));
        }
        let known: Vec<u64> = (0..3 * capacity).filter(|id| seen.contains(&identity(*id, *id), at(1))).collect();
        assert_eq!(known, (2 * capacity..3 * capacity).collect::<Vec<_>>());
        assert_eq!(seen.index.len(), CAPACITY);
        assert_eq!(seen.ring.capacity(), CAPACITY);
        // While a table grows its half is there as well.
        let bytes = seen.ring.capacity() * size_of::<Slot>() + seen.index.allocation_size() * 3 / 2;
        assert!(bytes <= 4 << 20, "{bytes} bytes");
    }
}
