//! What may run next: the order of units that share a key.
//!
//! Units are inserted in the order of their records. A unit waits for every earlier unfinished unit that shares a key
//! with it; keys are known by their 64-bit hashes, so that a collision can add an order but never lose one. A unit
//! without known keys (a barrier) waits for all earlier ones, and all later ones wait for it. Pure: no IO, and time
//! is passed in.
//!
//! ```text
//!            insert                 pop_ready              finish
//!  record ──────────▶ blocked ─▶ ready ─────────▶ running ────────▶ gone, wakes what waited
//!                                  ▲                   │
//!                                  ├───── put_back ────┤
//!                                  │                   │ postpone (keeps its keys)
//!                                  ├─ wake ─ backoff ◀─┤
//!                                  │                   │ wait_for_checkpoint (keeps its keys)
//!                                  ├──────── waiting ◀─┤
//!                                  │   release_waiting │ hold (keeps its keys)
//!                                  └────────── held ◀──┘
//!                                      release_held
//! ```

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Instant,
};

use hashbrown::HashMap;

/// The place of a unit in its schedule; reused after it was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId(u32);

impl UnitId {
    /// No unit: for one that was done before it came here.
    pub const NONE: Self = Self(u32::MAX);
}

/// What a unit conflicts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Everything: its keys are not known.
    Barrier,
    One(u64),
    /// Distinct.
    Many(Box<[u64]>),
}

impl Keys {
    /// One key, the usual case, takes no allocation.
    pub fn new(hashes: impl IntoIterator<Item = u64>) -> Self {
        let mut hashes = hashes.into_iter();
        let Some(first) = hashes.next() else { return Self::Barrier };
        let Some(second) = hashes.next() else { return Self::One(first) };
        let mut hashes: Vec<u64> = [first, second].into_iter().chain(hashes).collect();
        hashes.sort_unstable();
        hashes.dedup();
        match hashes.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Many(hashes.into()),
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Empty for a barrier.
    pub fn as_slice(&self) -> &[u64] {
        match self {
            Self::Barrier => &[],
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

/// Whether a unit runs, or what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Behind a barrier, or behind units that share a key.
    Blocked,
    Ready,
    Running,
    Backoff(Instant),
    /// It may run when the next checkpoint is durable.
    Waiting,
    /// It may run when the target takes such units again.
    Held,
}

struct Node<T> {
    payload: T,
    keys: Keys,
    state: UnitState,
    /// Earlier unfinished units that share a key, counted once per key.
    blockers: u32,
    /// Later units that this one blocks, once per key.
    blocked: Vec<UnitId>,
    /// It runs alone: see [`Schedule::set_apart`].
    apart: bool,
    /// It was postponed before.
    again: bool,
}

/// The units of one partition.
pub struct Schedule<T> {
    nodes: Vec<Option<Node<T>>>,
    free: Vec<UnitId>,
    /// The last unfinished unit of each key.
    tails: HashMap<u64, UnitId>,
    ready: VecDeque<UnitId>,
    /// Ready units that were postponed before.
    again: VecDeque<UnitId>,
    /// Ready units that run alone.
    apart: VecDeque<UnitId>,
    backoff: BinaryHeap<Reverse<(Instant, UnitId)>>,
    /// Units that wait for a checkpoint, in the order in which they would have run.
    waiting: Vec<UnitId>,
    /// Units that are held, in the order in which they would have run.
    held: Vec<UnitId>,
    /// Units that take part in the order by key: not behind a barrier, not finished.
    linked: usize,
    /// A barrier that waits or runs, and what came after it.
    barrier: Option<UnitId>,
    behind: VecDeque<UnitId>,
}

impl<T: Copy> Default for Schedule<T> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            tails: HashMap::new(),
            ready: VecDeque::new(),
            again: VecDeque::new(),
            apart: VecDeque::new(),
            backoff: BinaryHeap::new(),
            waiting: Vec::new(),
            held: Vec::new(),
            linked: 0,
            barrier: None,
            behind: VecDeque::new(),
        }
    }
}

impl<T: Copy> Schedule<T> {
    /// Adds a unit after all that were inserted before.
    pub fn insert(&mut self, keys: Keys, payload: T) -> UnitId {
        let node = Node {
            payload,
            keys,
            state: UnitState::Blocked,
            blockers: 0,
            blocked: Vec::new(),
            apart: false,
            again: false,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                UnitId(u32::try_from(self.nodes.len() - 1).expect("windows hold far fewer than 2^32 units"))
            }
        };
        if self.barrier.is_some() {
            self.behind.push_back(id);
        } else {
            self.link(id);
        }
        id
    }

    /// The unit that has been ready for longest, now running; one that was postponed before only if there is no other.
    pub fn pop_ready(&mut self) -> Option<(UnitId, T)> {
        match self.ready.pop_front() {
            Some(id) => Some(self.run(id)),
            None => self.pop_again(),
        }
    }

    /// The unit that was postponed before and has been ready for longest since, now running.
    pub fn pop_again(&mut self) -> Option<(UnitId, T)> {
        let id = self.again.pop_front()?;
        Some(self.run(id))
    }

    /// Looks through at most `depth` ready units that were never postponed for one that is wanted, takes it out and lets
    /// it run.
    pub fn pop_ready_if(&mut self, depth: usize, wanted: impl Fn(T) -> bool) -> Option<(UnitId, T)> {
        let found = self.ready.iter().take(depth).position(|id| wanted(self.node(*id).payload))?;
        let id = self.ready.remove(found).expect("the position was found in this queue");
        Some(self.run(id))
    }

    /// The unit set apart that has been ready for longest, now running.
    pub fn pop_apart(&mut self) -> Option<(UnitId, T)> {
        let id = self.apart.pop_front()?;
        Some(self.run(id))
    }

    fn run(&mut self, id: UnitId) -> (UnitId, T) {
        let node = self.node_mut(id);
        node.state = UnitState::Running;
        (id, node.payload)
    }

    /// From now on a running unit is handed out by [`Schedule::pop_apart`] only, or again with the others.
    pub fn set_apart(&mut self, id: UnitId, apart: bool) {
        self.node_mut(id).apart = apart;
    }

    /// A unit did not run after all: it is the next one again.
    pub fn put_back(&mut self, id: UnitId) {
        let node = self.node_mut(id);
        node.state = UnitState::Ready;
        match (node.apart, node.again) {
            (true, _) => self.apart.push_front(id),
            (false, true) => self.again.push_front(id),
            (false, false) => self.ready.push_front(id),
        }
    }

    /// A running unit is tried again at `until`; until then its keys stay taken.
    pub fn postpone(&mut self, id: UnitId, until: Instant) {
        let node = self.node_mut(id);
        (node.state, node.again) = (UnitState::Backoff(until), true);
        self.backoff.push(Reverse((until, id)));
    }

    /// A running unit did not run after all, and may not before a checkpoint is durable; until then its keys stay taken.
    pub fn wait_for_checkpoint(&mut self, id: UnitId) {
        self.node_mut(id).state = UnitState::Waiting;
        self.waiting.push(id);
    }

    /// A running unit did not run after all, since its target takes no such units now; until then its keys stay taken.
    pub fn hold(&mut self, id: UnitId) {
        self.node_mut(id).state = UnitState::Held;
        self.held.push(id);
    }

    /// Units that wait for a checkpoint are the next ones again, in their old order. Those that have to wait once more
    /// are found out when they are popped.
    pub fn release_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for id in waiting.drain(..).rev() {
            self.put_back(id);
        }
        self.waiting = waiting;
    }

    /// As [`Schedule::release_waiting`], of held units.
    pub fn release_held(&mut self) {
        for id in std::mem::take(&mut self.held).into_iter().rev() {
            self.put_back(id);
        }
    }

    /// Makes those units ready whose time has come.
    pub fn wake(&mut self, now: Instant) {
        while let Some(Reverse((until, id))) = self.backoff.peek().copied()
            && until <= now
        {
            self.backoff.pop();
            self.make_ready(id);
        }
    }

    /// Makes a unit ready that is in backoff, before its time.
    pub fn hurry(&mut self, id: UnitId) {
        if let Some(UnitState::Backoff(until)) = self.state(id) {
            self.backoff.retain(|Reverse(entry)| *entry != (until, id));
            self.make_ready(id);
        }
    }

    /// When [`Schedule::wake`] has something to do next.
    pub fn next_wake(&self) -> Option<Instant> {
        self.backoff.peek().map(|Reverse((until, _))| *until)
    }

    /// Ends a running unit and lets go what waited for it.
    pub fn finish(&mut self, id: UnitId) {
        let node = self.nodes[id.0 as usize].take().expect("a unit is finished once");
        debug_assert_eq!(node.state, UnitState::Running);
        self.free.push(id);
        self.linked -= 1;
        for key in node.keys.as_slice() {
            if self.tails.get(key) == Some(&id) {
                self.tails.remove(key);
            }
        }
        for blocked in node.blocked {
            self.unblock(blocked);
        }
        match self.barrier {
            Some(barrier) if barrier == id => self.lift_barrier(),
            Some(barrier) if self.linked == 1 && self.node(barrier).state == UnitState::Blocked => {
                self.make_ready(barrier);
            }
            _ => {}
        }
        if self.linked == 0 && self.behind.is_empty() {
            self.give_back_memory();
        }
    }

    /// None: the unit is finished.
    pub fn state(&self, id: UnitId) -> Option<UnitState> {
        self.nodes.get(id.0 as usize)?.as_ref().map(|node| node.state)
    }

    /// What an unfinished unit conflicts on.
    pub fn keys(&self, id: UnitId) -> &Keys {
        &self.node(id).keys
    }

    /// One of the unit's keys, always the same; none where it has none.
    pub fn first_key(&self, id: UnitId) -> Option<u64> {
        self.node(id).keys.as_slice().first().copied()
    }

    pub fn ready_len(&self) -> usize {
        self.ready.len() + self.again.len()
    }

    /// Ready units that were never postponed.
    pub fn fresh_len(&self) -> usize {
        self.ready.len()
    }

    #[cfg(test)]
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    pub fn apart_len(&self) -> usize {
        self.apart.len()
    }

    pub fn backoff_len(&self) -> usize {
        self.backoff.len()
    }

    /// Units that wait for a checkpoint.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    fn link(&mut self, id: UnitId) {
        self.linked += 1;
        let keys = std::mem::replace(&mut self.node_mut(id).keys, Keys::Barrier);
        if keys == Keys::Barrier {
            self.barrier = Some(id);
            if self.linked == 1 {
                self.make_ready(id);
            }
            return;
        }
        let mut blockers = 0;
        for key in keys.as_slice() {
            if let Some(earlier) = self.tails.insert(*key, id) {
                self.node_mut(earlier).blocked.push(id);
                blockers += 1;
            }
        }
        let node = self.node_mut(id);
        node.keys = keys;
        node.blockers = blockers;
        if blockers == 0 {
            self.make_ready(id);
        }
    }

    fn unblock(&mut self, id: UnitId) {
        let node = self.node_mut(id);
        node.blockers -= 1;
        if node.blockers == 0 {
            self.make_ready(id);
        }
    }

    /// Links what came after a finished barrier, up to the next one.
    fn lift_barrier(&mut self) {
        self.barrier = None;
        while self.barrier.is_none()
            && let Some(id) = self.behind.pop_front()
        {
            self.link(id);
        }
    }

    fn make_ready(&mut self, id: UnitId) {
        let node = self.node_mut(id);
        node.state = UnitState::Ready;
        match (node.apart, node.again) {
            (true, _) => self.apart.push_back(id),
            (false, true) => self.again.push_back(id),
            (false, false) => self.ready.push_back(id),
        }
    }

    /// After a large backlog the tables would keep their size for ever.
    fn give_back_memory(&mut self) {
        const KEEP: usize = 1024;
        if self.nodes.capacity() > KEEP {
            self.nodes = Vec::new();
            self.free = Vec::new();
            self.ready.shrink_to(KEEP);
            self.again.shrink_to(KEEP);
            self.behind.shrink_to(KEEP);
            self.waiting.shrink_to(KEEP);
            self.tails.shrink_to(KEEP);
        }
    }

    fn node(&self, id: UnitId) -> &Node<T> {
        self.nodes[id.0 as usize].as_ref().expect("the unit is not finished")
    }

    fn node_mut(&mut self, id: UnitId) -> &mut Node<T> {
        self.nodes[id.0 as usize].as_mut().expect("the unit is not finished")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn keys(keys: &[u64]) -> Keys {
        Keys::new(keys.to_vec())
    }

    fn drain(schedule: &mut Schedule<u32>) -> Vec<u32> {
        let mut ran = Vec::new();
        while let Some((id, payload)) = schedule.pop_ready() {
            ran.push(payload);
            schedule.finish(id);
        }
        ran
    }

    #[test]
    fn a_unit_waits_for_all_earlier_ones_on_its_keys() {
        let mut schedule = Schedule::default();
        schedule.insert(keys(&[1]), 0);
        schedule.insert(keys(&[2]), 1);
        schedule.insert(keys(&[1, 2]), 2);
        schedule.insert(keys(&[3]), 3);
        schedule.insert(keys(&[2]), 4);
        let (first, _) = schedule.pop_ready().expect("0 waits for nothing");
        let (second, _) = schedule.pop_ready().expect("1 waits for nothing");
        assert_eq!(schedule.pop_ready().map(|(_, payload)| payload), Some(3));
        assert_eq!(schedule.pop_ready(), None);
        schedule.finish(second);
        assert_eq!(schedule.pop_ready(), None);
        schedule.finish(first);
        assert_eq!(drain(&mut schedule), [2, 4]);
    }

    #[test]
    fn a_unit_in_backoff_keeps_its_keys_and_lets_others_pass() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.insert(keys(&[1]), 0);
        schedule.insert(keys(&[1]), 1);
        schedule.insert(keys(&[2]), 2);
        let (id, _) = schedule.pop_ready().expect("0 is ready");
        schedule.postpone(id, start + Duration::from_secs(1));
        assert_eq!(drain(&mut schedule), [2]);
        schedule.wake(start);
        assert_eq!(drain(&mut schedule), [0; 0]);
        assert_eq!(schedule.next_wake(), Some(start + Duration::from_secs(1)));
        schedule.wake(start + Duration::from_secs(1));
        assert_eq!(drain(&mut schedule), [0, 1]);
    }

    #[test]
    fn units_that_waited_for_a_checkpoint_come_first_and_in_their_old_order() {
        let mut schedule = Schedule::default();
        for (unit, key) in [1, 2, 3, 1].into_iter().enumerate() {
            schedule.insert(keys(&[key]), unit as u32);
        }
        let (first, _) = schedule.pop_ready().expect("0 is ready");
        let (second, _) = schedule.pop_ready().expect("1 is ready");
        schedule.set_apart(second, true);
        schedule.insert(keys(&[4]), 4);
        let (fifth, _) = schedule.pop_ready_if(9, |unit| unit == 4).expect("4 is ready");
        for id in [first, second, fifth] {
            schedule.wait_for_checkpoint(id);
        }
        assert_eq!((schedule.waiting_len(), schedule.state(first)), (3, Some(UnitState::Waiting)));
        assert_eq!(schedule.pop_apart(), None);
        schedule.insert(keys(&[5]), 5);
        schedule.release_waiting();
        assert_eq!(schedule.waiting_len(), 0);
        assert_eq!(schedule.pop_apart().map(|(_, unit)| unit), Some(1), "it still runs alone");
        assert_eq!(drain(&mut schedule), [0, 4, 2, 5, 3]);
    }

    #[test]
    fn what_was_postponed_comes_back_among_its_like() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for unit in 0..4 {
            schedule.insert(keys(&[u64::from(unit)]), unit);
        }
        let (first, _) = schedule.pop_ready().expect("0 is ready");
        schedule.postpone(first, now);
        schedule.wake(now);
        assert_eq!((schedule.ready_len(), schedule.fresh_len()), (4, 3));
        assert_eq!(schedule.pop_again().map(|(_, unit)| unit), Some(0));
        schedule.put_back(first);
        assert_eq!((schedule.ready_len(), schedule.fresh_len()), (4, 3), "it stays one of them");
        assert_eq!(drain(&mut schedule), [1, 2, 3, 0]);
    }

    #[test]
    fn held_units_keep_their_keys_and_their_order() {
        let mut schedule = Schedule::default();
        for (unit, key) in [(0, 1), (1, 2), (2, 1), (3, 3)] {
            schedule.insert(keys(&[key]), unit);
        }
        for _ in 0..2 {
            let (id, _) = schedule.pop_ready().expect("0 and 1 are ready");
            schedule.hold(id);
        }
        let (id, unit) = schedule.pop_ready().expect("3 is ready");
        assert_eq!((unit, schedule.held_len()), (3, 2));
        schedule.finish(id);
        assert_eq!(schedule.pop_ready(), None, "2 waits for 0");
        schedule.release_held();
        assert_eq!(drain(&mut schedule), [0, 1, 2]);
    }

    #[test]
    fn a_barrier_waits_for_all_and_all_wait_for_it() {
        let mut schedule = Schedule::default();
        schedule.insert(keys(&[1]), 0);
        schedule.insert(Keys::Barrier, 1);
        schedule.insert(keys(&[2]), 2);
        schedule.insert(Keys::Barrier, 3);
        schedule.insert(keys(&[3]), 4);
        let (id, payload) = schedule.pop_ready().expect("0 is ready");
        assert_eq!(payload, 0);
        assert_eq!(schedule.pop_ready(), None);
        schedule.finish(id);
        assert_eq!(drain(&mut schedule), [1, 2, 3, 4]);
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Step {
        Finish,
        PutBack,
        Postpone,
        WaitForCheckpoint,
        Hold,
        /// Of all that wait, and the unit finishes.
        Release,
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let step = prop_oneof![
            5 => Just(Step::Finish),
            1 => Just(Step::PutBack),
            2 => Just(Step::Postpone),
            2 => Just(Step::WaitForCheckpoint),
            2 => Just(Step::Hold),
            1 => Just(Step::Release),
        ];
        prop::collection::vec((0..4usize, step), 0..200)
    }

    proptest! {
        /// Units run while others of their keys run, are put back or in backoff: the order by key must hold, and
        /// everything must run in the end.
        #[test]
        fn units_that_share_a_key_never_overtake(
            units in prop::collection::vec(prop::collection::vec(0..6u64, 0..4), 1..60),
            steps in steps(),
        ) {
            let mut schedule = Schedule::default();
            let mut now = Instant::now();
            let mut inserted = 0;
            let mut running: Vec<(UnitId, u32)> = Vec::new();
            let mut finished: Vec<u32> = Vec::new();
            let mut steps = steps.into_iter();
            loop {
                // Records arrive while others run.
                if inserted < units.len() {
                    schedule.insert(keys(&units[inserted]), inserted as u32);
                    inserted += 1;
                }
                while running.len() < 4 && let Some((id, unit)) = schedule.pop_ready() {
                    for earlier in (0..unit).filter(|earlier| !finished.contains(earlier)) {
                        let (mine, other) = (&units[unit as usize], &units[earlier as usize]);
                        let shared = mine.iter().any(|key| other.contains(key));
                        prop_assert!(!shared && !mine.is_empty() && !other.is_empty(), "{unit} overtook {earlier}");
                    }
                    running.push((id, unit));
                }
                if running.is_empty() {
                    if let Some(wake) = schedule.next_wake() {
                        now = wake;
                        schedule.wake(now);
                        continue;
                    }
                    if schedule.waiting_len() > 0 || schedule.held_len() > 0 {
                        schedule.release_waiting();
                        schedule.release_held();
                        continue;
                    }
                    if inserted == units.len() {
                        break;
                    }
                    continue;
                }
                let (which, step) = steps.next().unwrap_or((0, Step::Finish));
                let (id, unit) = running.swap_remove(which % running.len());
                if step == Step::Release {
                    schedule.release_waiting();
                }
                match step {
                    Step::Finish | Step::Release => {
                        schedule.finish(id);
                        finished.push(unit);
                    }
                    Step::PutBack => schedule.put_back(id),
                    Step::Postpone => schedule.postpone(id, now + Duration::from_millis(10)),
                    Step::WaitForCheckpoint => schedule.wait_for_checkpoint(id),
                    Step::Hold => schedule.hold(id),
                }
            }
            finished.sort_unstable();
            prop_assert_eq!(finished, (0..units.len() as u32).collect::<Vec<_>>());
        }
    }
}
