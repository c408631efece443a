//! What was accepted recently: recognises repeated requests and says what became of a task.
//!
//! A ring of [`CAPACITY`] small slots, found by the hash of the task's id. It holds no task: what still waits is
//! known to the consumer in detail, this only knows that it was accepted, and how it was settled. Where another process
//! may execute tasks, it also knows where they are, eight bytes more for each. Requests that are
//! being stored at this moment are kept beside the ring with those who wait for the same fate.

use std::collections::{HashMap, VecDeque};

use hashbrown::HashTable;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Accepted, SubmitError};
use crate::{
    log::{Durability, Partition, Position, QueueName},
    task::{Identity, Outcome, TaskId},
};

/// How many accepted tasks are remembered: 40 bytes each, with the index.
pub const CAPACITY: usize = 100_000;

/// How many error texts of settled tasks are remembered.
const ERRORS: usize = 1024;

/// Of how many superseded tasks it is remembered by which: 24 bytes each, and the ids of those that took their places.
const SUPERSEDED: usize = 8192;

/// What is remembered of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub accepted_at: Timestamp,
    pub durability: Durability,
    pub progress: Progress,
    /// Executions that counted, once settled.
    pub attempts: u32,
    /// The last error's text, where it is still known.
    pub last_error: Option<Box<str>>,
    /// Of a superseded task: the one that took its place, where that is still known.
    pub superseded_by: Option<TaskId>,
    /// Where it is, if another process may execute it: the partition, and the offset there.
    pub place: Option<(Partition, u64)>,
}

/// How far a task has come, as far as the ring knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Stored,
    /// Finished, in this process or before its start.
    Settled(Option<Outcome>),
}

/// A task that came to its end.
#[derive(Clone, Debug)]
pub struct Settled {
    pub identity: Identity,
    /// None: finished by an earlier process, which is all that the checkpoint says.
    pub outcome: Option<Outcome>,
    pub attempts: u32,
    pub last_error: Option<Box<str>>,
    /// Of a superseded task: the one that took its place.
    pub superseded_by: Option<TaskId>,
}

/// The answer to a request whose id may be known.
pub enum Begun {
    /// Unknown until now: store it, then call [`Recent::finish`].
    New,
    /// Stored before with the same operation.
    Known(Accepted),
    /// Stored, or being stored, with another operation.
    OtherOperation,
    /// The same task is being stored at this moment: its fate comes through here. A sender that is dropped means
    /// that the fate is unknown.
    Pending(oneshot::Receiver<Result<Accepted, SubmitError>>),
}

#[derive(Clone, Copy)]
struct Slot {
    identity: Identity,
    accepted_at_ms: i64,
    progress: Progress,
    durability: Durability,
    attempts: u8,
}

struct Pending {
    identity: Identity,
    waiters: Vec<oneshot::Sender<Result<Accepted, SubmitError>>>,
    /// Set when the consumer was faster than the answer to the request.
    settled: Option<Settled>,
}

pub struct Recent {
    slots: Vec<Slot>,
    /// Slot numbers by the hash of the id.
    index: HashTable<u32>,
    /// The slot that is overwritten next, once all are in use.
    oldest: usize,
    capacity: usize,
    pending: HashMap<u64, Pending>,
    errors: VecDeque<(u64, Box<str>)>,
    superseded: VecDeque<(u64, TaskId)>,
    places: Places,
}

/// Where the tasks of the slots are, as far as another process may execute them. Takes no memory before there is one.
#[derive(Default)]
struct Places {
    /// By slot: a queue in 10 bits, a partition in 14 and an offset in 40; or [`Places::NONE`].
    packed: Vec<u64>,
    queues: Vec<QueueName>,
}

impl Places {
    const NONE: u64 = u64::MAX;

    /// What does not fit is not known.
    fn pack(&mut self, queue: &QueueName, position: Position) -> u64 {
        let number = self.queues.iter().position(|known| known == queue).unwrap_or_else(|| {
            self.queues.push(queue.clone());
            self.queues.len() - 1
        });
        let Position { partition, offset } = position;
        if number >= (1 << 10) - 1 || partition >= 1 << 14 || offset >= 1 << 40 {
            return Self::NONE;
        }
        (number as u64) << 54 | u64::from(partition) << 40 | offset
    }

    fn note(&mut self, slot: usize, place: Option<(&QueueName, Position)>, capacity: usize) {
        let packed = place.map_or(Self::NONE, |(queue, position)| self.pack(queue, position));
        if packed != Self::NONE && self.packed.len() <= slot {
            self.packed.reserve_exact(capacity.saturating_sub(self.packed.len()));
            self.packed.resize(slot + 1, Self::NONE);
        }
        if let Some(known) = self.packed.get_mut(slot) {
            *known = packed;
        }
    }

    fn of(&self, slot: usize) -> Option<(Partition, u64)> {
        let packed = self.packed.get(slot).copied().filter(|packed| *packed != Self::NONE)?;
        let queue = self.queues.get((packed >> 54) as usize)?.clone();
        Some((Partition { queue, index: (packed >> 40 & 0x3fff) as u32 }, packed & ((1 << 40) - 1)))
    }
}

impl Recent {
    pub fn new(capacity: usize) -> Self {
        Self {
            // Reserved, not touched: memory that holds nothing yet costs nothing.
            slots: Vec::with_capacity(capacity),
            index: HashTable::new(),
            oldest: 0,
            capacity,
            pending: HashMap::new(),
            errors: VecDeque::new(),
            superseded: VecDeque::new(),
            places: Places::default(),
        }
    }

    /// Asks whether a task may be stored, and if so marks it as being stored.
    pub fn begin(&mut self, identity: Identity) -> Begun {
        if let Some(slot) = self.slot(identity.id_hash()) {
            return if slot.identity == identity {
                Begun::Known(Accepted {
                    accepted_at: timestamp(slot.accepted_at_ms),
                    durability: slot.durability,
                    replayed: true,
                })
            } else {
                Begun::OtherOperation
            };
        }
        match self.pending.get_mut(&identity.id_hash()) {
            Some(pending) if pending.identity != identity => Begun::OtherOperation,
            Some(pending) => {
                let (sender, receiver) = oneshot::channel();
                pending.waiters.push(sender);
                Begun::Pending(receiver)
            }
            None => {
                let pending = Pending { identity, waiters: Vec::new(), settled: None };
                self.pending.insert(identity.id_hash(), pending);
                Begun::New
            }
        }
    }

    /// Ends what [`Recent::begin`] began, and tells those who wait for the same fate. `place`: where it is, if another
    /// process may execute it.
    pub fn finish(
        &mut self,
        identity: Identity,
        fate: &Result<Accepted, SubmitError>,
        place: Option<(&QueueName, Position)>,
    ) {
        let Some(pending) = self.pending.remove(&identity.id_hash()) else { return };
        if let Ok(accepted) = fate {
            self.remember(identity, accepted.accepted_at, accepted.durability, Progress::Stored);
            if let Some(slot) = self.number(identity.id_hash()) {
                self.places.note(slot, place, self.capacity);
            }
        }
        if let Some(settled) = pending.settled {
            self.settle(settled);
        }
        for waiter in pending.waiters {
            let fate = fate.clone().map(|accepted| Accepted { replayed: true, ..accepted });
            // Whoever stopped waiting does not need the answer.
            let _ = waiter.send(fate);
        }
    }

    /// Remembers a task that is stored, in place of the oldest one when the ring is full.
    pub fn remember(&mut self, identity: Identity, accepted_at: Timestamp, durability: Durability, progress: Progress) {
        if self.slot(identity.id_hash()).is_some() {
            return;
        }
        let slot = Slot { identity, accepted_at_ms: accepted_at.as_millisecond(), progress, durability, attempts: 0 };
        let number = if self.slots.len() < self.capacity {
            self.slots.push(slot);
            self.slots.len() - 1
        } else {
            let number = self.oldest;
            self.oldest = (self.oldest + 1) % self.capacity;
            let forgotten = self.slots[number].identity.id_hash();
            if let Ok(entry) = self.index.find_entry(forgotten, |found| *found as usize == number) {
                entry.remove();
            }
            self.slots[number] = slot;
            self.places.note(number, None, self.capacity);
            number
        };
        let slots = &self.slots;
        let number = u32::try_from(number).expect("the capacity is far below 2^32");
        self.index.insert_unique(identity.id_hash(), number, |number| slots[*number as usize].identity.id_hash());
    }

    /// Notes how a task was settled. One that is no longer remembered is passed over.
    pub fn settle(&mut self, settled: Settled) {
        let id = settled.identity.id_hash();
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.settled = Some(settled);
            return;
        }
        let Some(number) = self.number(id) else { return };
        let slot = &mut self.slots[number];
        slot.progress = Progress::Settled(settled.outcome);
        slot.attempts = u8::try_from(settled.attempts).unwrap_or(u8::MAX);
        if let Some(error) = settled.last_error {
            push_bounded(&mut self.errors, ERRORS, (id, error));
        }
        if let Some(by) = settled.superseded_by {
            push_bounded(&mut self.superseded, SUPERSEDED, (id, by));
        }
    }

    /// What is remembered of the task whose id has this hash.
    pub fn find(&self, id: u64) -> Option<Remembered> {
        let number = self.number(id)?;
        let slot = &self.slots[number];
        Some(Remembered {
            accepted_at: timestamp(slot.accepted_at_ms),
            durability: slot.durability,
            progress: slot.progress,
            attempts: u32::from(slot.attempts),
            last_error: newest(&self.errors, id),
            superseded_by: newest(&self.superseded, id),
            place: self.places.of(number),
        })
    }

    fn number(&self, id: u64) -> Option<usize> {
        self.index
            .find(id, |number| self.slots[*number as usize].identity.id_hash() == id)
            .map(|number| *number as usize)
    }

    fn slot(&self, id: u64) -> Option<&Slot> {
        self.number(id).map(|number| &self.slots[number])
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, most: usize, item: T) {
    if list.len() == most {
        list.pop_front();
    }
    list.push_back(item);
}

fn newest<T: Clone>(list: &VecDeque<(u64, T)>, id: u64) -> Option<T> {
    list.iter().rev().find(|(found, _)| *found == id).map(|(_, item)| item.clone())
}

fn timestamp(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).expect("the slot was filled from a timestamp")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: u64, operation: u64) -> Identity {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..].copy_from_slice(&operation.to_le_bytes());
        Identity::from_bytes(bytes)
    }

    fn accepted() -> Accepted {
        Accepted { accepted_at: Timestamp::UNIX_EPOCH, durability: Durability::Local, replayed: false }
    }

    #[test]
    fn a_second_request_waits_for_the_fate_of_the_first() {
        let mut recent = Recent::new(10);
        assert!(matches!(recent.begin(identity(1, 1)), Begun::New));
        let Begun::Pending(mut same) = recent.begin(identity(1, 1)) else { panic!("the first is still being stored") };
        assert!(matches!(recent.begin(identity(1, 2)), Begun::OtherOperation));
        recent.finish(identity(1, 1), &Ok(accepted()), None);
        assert!(same.try_recv().expect("the fate was told").expect("it was stored").replayed);
        assert!(matches!(recent.begin(identity(1, 1)), Begun::Known(_)));
        assert!(matches!(recent.begin(identity(1, 2)), Begun::OtherOperation));
    }

    #[test]
    fn a_task_that_could_not_be_stored_may_be_tried_again() {
        let mut recent = Recent::new(10);
        assert!(matches!(recent.begin(identity(1, 1)), Begun::New));
        recent.finish(identity(1, 1), &Err(SubmitError::OtherOperation), None);
        assert!(matches!(recent.begin(identity(1, 2)), Begun::New));
    }

    #[test]
    fn a_task_settled_before_its_answer_is_known_as_settled() {
        let mut recent = Recent::new(10);
        assert!(matches!(recent.begin(identity(1, 1)), Begun::New));
        recent.settle(Settled {
            identity: identity(1, 1),
            outcome: Some(Outcome::Applied),
            attempts: 1,
            last_error: None,
            superseded_by: None,
        });
        recent.finish(identity(1, 1), &Ok(accepted()), None);
        assert_eq!(recent.find(1).expect("it is remembered").progress, Progress::Settled(Some(Outcome::Applied)));
    }

    #[test]
    fn only_the_newest_are_remembered() {
        let mut recent = Recent::new(1000);
        for id in 0..5000 {
            recent.remember(identity(id, id), Timestamp::UNIX_EPOCH, Durability::Local, Progress::Stored);
        }
        assert_eq!(
            (0..5000).filter(|id| recent.find(*id).is_some()).collect::<Vec<_>>(),
            (4000..5000).collect::<Vec<_>>()
        );
        assert_eq!(recent.index.len(), 1000);
    }

    #[test]
    fn it_is_known_where_a_task_is_until_it_is_forgotten() {
        let mut recent = Recent::new(2);
        let queue = QueueName { target: "default".into(), lane: "high" };
        let mut store = |id: u64, offset: Option<u64>| {
            assert!(matches!(recent.begin(identity(id, id)), Begun::New));
            let place = offset.map(|offset| (&queue, Position { partition: 5, offset }));
            recent.finish(identity(id, id), &Ok(accepted()), place);
            recent.find(id).expect("it is remembered").place
        };
        let at = |offset| Some((Partition { queue: queue.clone(), index: 5 }, offset));
        assert_eq!(store(1, None), None);
        assert_eq!(store(2, Some((1 << 40) - 1)), at((1 << 40) - 1));
        assert_eq!(store(3, Some(7)), at(7), "in the place of the first");
        assert_eq!(store(4, None), None, "in the place of the second");
        assert_eq!(store(5, Some(1 << 40)), None, "it does not fit");
        let journal = Recent::new(100);
        assert_eq!(journal.places.packed.capacity(), 0, "who needs it not has none of it");
    }

    #[test]
    fn of_the_newest_it_is_known_what_superseded_them() {
        let mut recent = Recent::new(2 * SUPERSEDED);
        let by = TaskId::parse("later").expect("it is one");
        for id in 0..=SUPERSEDED as u64 {
            recent.remember(identity(id, id), Timestamp::UNIX_EPOCH, Durability::Local, Progress::Stored);
            recent.settle(Settled {
                identity: identity(id, id),
                outcome: Some(Outcome::Superseded),
                attempts: 0,
                last_error: None,
                superseded_by: Some(by.clone()),
            });
        }
        let superseded_by = |id| recent.find(id).expect("it is remembered").superseded_by;
        assert_eq!([0, 1, SUPERSEDED as u64].map(superseded_by), [None, Some(by.clone()), Some(by)]);
    }
}
