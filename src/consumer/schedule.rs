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
//!
//! A unit may take the place of those right before it on its key: see [`covering`].

mod covering;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Instant,
};

use hashbrown::HashMap;

use super::coalesce::Stake;

/// The place of a unit in its schedule; reused after it was finished. It changes when another unit takes its place
/// ([`Schedule::moved`]).
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
    /// It ends when the one that covers it does.
    Covered,
    /// It may run when the target takes such units again.
    Held,
}

/// What stands at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Unit,
    /// Nothing that could run: it ends when it is its turn.
    Relay,
}

struct Node<T> {
    payload: T,
    role: Role,
    keys: Keys,
    stake: Stake,
    state: UnitState,
    /// Of a unit with one key: the unit right before it on this key. Of a covered one: that which hangs before it on the
    /// same unit.
    before: UnitId,
    /// The last of the units that hang directly on it.
    covers: UnitId,
    /// Whether any of those that it covers, or they cover, could be refused by what is there.
    may_be_refused: bool,
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
    /// With some that are not in backoff any more, or not until then.
    backoff: BinaryHeap<Reverse<(Instant, UnitId)>>,
    backoff_len: usize,
    /// Units that wait for a checkpoint, in the order in which they would have run.
    waiting: Vec<UnitId>,
    /// Units that are held, in the order in which they would have run; with some that are not any more.
    held: Vec<UnitId>,
    /// What takes part in the order by key: not behind a barrier, not covered, not finished.
    linked: usize,
    /// A barrier that waits or runs, and what came after it.
    barrier: Option<UnitId>,
    behind: VecDeque<UnitId>,
    /// Units whose place has changed since this was last asked for.
    moved: Vec<(T, UnitId)>,
    /// Units that ended with the one that covered them since this was last asked for.
    superseded: Vec<T>,
}

impl<T> Node<T> {
    /// One that nothing stands next to yet.
    fn new(role: Role, keys: Keys, stake: Stake, state: UnitState, payload: T) -> Self {
        Self {
            payload,
            role,
            keys,
            stake,
            state,
            before: UnitId::NONE,
            covers: UnitId::NONE,
            may_be_refused: false,
            blockers: 0,
            blocked: Vec::new(),
            apart: false,
            again: false,
        }
    }
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
            backoff_len: 0,
            waiting: Vec::new(),
            held: Vec::new(),
            linked: 0,
            barrier: None,
            behind: VecDeque::new(),
            moved: Vec::new(),
            superseded: Vec::new(),
        }
    }
}

impl<T: Copy> Schedule<T> {
    /// Adds a unit after all that were inserted before. `checks` are the other hashes of its keys, in the order of
    /// the first ones, where it overwrites several; behind a barrier they are not needed any more, and it covers nothing.
    pub fn insert(&mut self, keys: Keys, stake: Stake, checks: &[(u64, u64)], payload: T) -> UnitId {
        let id = self.place(Node::new(Role::Unit, keys, stake, UnitState::Blocked, payload));
        if self.barrier.is_some() {
            self.behind.push_back(id);
            return id;
        }
        self.link(id, checks)
    }

    /// The unit that has been ready for longest, now running; one that was postponed before only if there is no other.
    pub fn pop_ready(&mut self) -> Option<(UnitId, T)> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(unit) = self.run(id) {
                return Some(unit);
            }
        }
        self.pop_again()
    }

    /// The unit that was postponed before and has been ready for longest since, now running.
    pub fn pop_again(&mut self) -> Option<(UnitId, T)> {
        while let Some(id) = self.again.pop_front() {
            if let Some(unit) = self.run(id) {
                return Some(unit);
            }
        }
        None
    }

    /// Looks through at most `depth` ready units that were never postponed for one that is wanted, takes it out and lets
    /// it run.
    pub fn pop_ready_if(&mut self, depth: usize, wanted: impl Fn(T) -> bool) -> Option<(UnitId, T)> {
        let found = self.ready.iter().take(depth).position(|id| {
            let node = self.node(*id);
            node.role == Role::Unit && wanted(node.payload)
        })?;
        let id = self.ready.remove(found).expect("the position was found in this queue");
        self.run(id)
    }

    /// The unit set apart that has been ready for longest, now running.
    pub fn pop_apart(&mut self) -> Option<(UnitId, T)> {
        let id = self.apart.pop_front()?;
        self.run(id)
    }

    /// None: a relay, which has ended now.
    fn run(&mut self, id: UnitId) -> Option<(UnitId, T)> {
        let node = self.node_mut(id);
        if node.role == Role::Relay {
            self.end(id);
            return None;
        }
        node.state = UnitState::Running;
        Some((id, node.payload))
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
        self.backoff_len += 1;
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
            if self.state(id) == Some(UnitState::Held) {
                self.put_back(id);
            }
        }
    }

    /// Makes those units ready whose time has come.
    pub fn wake(&mut self, now: Instant) {
        while let Some(Reverse((until, id))) = self.backoff.peek().copied()
            && until <= now
        {
            self.backoff.pop();
            if self.state(id) == Some(UnitState::Backoff(until)) {
                self.hurry(id);
            }
        }
    }

    /// Makes a unit ready that is in backoff, before its time, or held.
    pub fn hurry(&mut self, id: UnitId) {
        match self.state(id) {
            Some(UnitState::Backoff(_)) => self.backoff_len -= 1,
            Some(UnitState::Held) => {}
            _ => return,
        }
        self.make_ready(id);
    }

    /// When [`Schedule::wake`] has something to do next.
    pub fn next_wake(&self) -> Option<Instant> {
        self.backoff.peek().map(|Reverse((until, _))| *until)
    }

    /// Ends a running unit, and all that it covers, and lets go what waited for it.
    pub fn finish(&mut self, id: UnitId) {
        debug_assert_eq!(self.node(id).state, UnitState::Running);
        let covers = self.node(id).covers;
        if covers != UnitId::NONE {
            self.end_covered(covers);
        }
        self.end(id);
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
        self.backoff_len
    }

    /// Units that wait for a checkpoint.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    fn place(&mut self, node: Node<T>) -> UnitId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                UnitId(u32::try_from(self.nodes.len() - 1).expect("windows hold far fewer than 2^32 units"))
            }
        }
    }

    /// Returns where it stands.
    fn link(&mut self, id: UnitId, checks: &[(u64, u64)]) -> UnitId {
        self.linked += 1;
        let node = self.node_mut(id);
        let (keys, stake) = (std::mem::replace(&mut node.keys, Keys::Barrier), node.stake);
        if keys == Keys::Barrier {
            self.barrier = Some(id);
            if self.linked == 1 {
                self.make_ready(id);
            }
            return id;
        }
        let (mut blockers, mut runs) = (0, Vec::new());
        for key in keys.as_slice() {
            let Some(earlier) = self.tails.insert(*key, id) else { continue };
            self.node_mut(earlier).blocked.push(id);
            blockers += 1;
            if let Keys::One(_) = keys {
                self.node_mut(id).before = earlier;
            } else if let Ok(place) = checks.binary_search_by_key(key, |(hash, _)| *hash)
                && let Some(first) = self.first_covered(&stake, checks[place].1, earlier)
            {
                runs.push((first, earlier));
            }
        }
        let node = self.node_mut(id);
        node.keys = keys;
        node.blockers = blockers;
        if blockers == 0 {
            self.make_ready(id);
            return id;
        }
        for (first, last) in runs {
            self.cover_run(id, first, last);
        }
        self.cover(id)
    }

    /// Takes out what is over, and lets go what waited for it.
    fn end(&mut self, id: UnitId) {
        let node = self.nodes[id.0 as usize].take().expect("a unit is finished once");
        self.free.push(id);
        self.linked -= 1;
        for key in node.keys.as_slice() {
            if self.tails.get(key) == Some(&id) {
                self.tails.remove(key);
            }
        }
        for blocked in node.blocked {
            self.unblock(blocked, id);
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

    fn unblock(&mut self, id: UnitId, ended: UnitId) {
        let node = self.node_mut(id);
        if node.before == ended {
            node.before = UnitId::NONE;
        }
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
            self.link(id, &[]);
        }
    }

    fn make_ready(&mut self, id: UnitId) {
        let node = self.node_mut(id);
        if node.role == Role::Relay {
            return self.end(id);
        }
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
mod tests;
