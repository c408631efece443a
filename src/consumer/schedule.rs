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
//! A unit may take the place of those right before it on its key ([`super::coalesce`]). It then stands where the first of
//! them stood, so that a key which is written again and again is not put off again and again, and they hang on it as its
//! *covered* units, each with those that it had covered before:
//!
//! ```text
//!   INCR ─▶ SET 1 ─▶ HSET ─▶ SET 2 ─▶ …          SET 2 ─▶ …
//!                                                ├─ HSET
//!                                                └─ SET 1
//!                                                   └─ INCR
//! ```
//!
//! With it they are finished. Where it gives way instead, those that hang directly on it run in their old order, and what
//! comes behind it waits for them. A unit with several keys that covers units of some of them stays where it is: a
//! *relay* stands in the place of the first of each key, and ends when it is its turn. A unit is covered and set free at
//! most once for each that covers it, so a key costs what its units cost, however many wait.

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

    /// A unit that was running waits again: the next one on its key may take its place.
    pub fn reconsider(&mut self, id: UnitId) {
        if let [next] = *self.node(id).blocked
            && self.node(next).before == id
        {
            self.cover(next);
        }
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

    /// Ends a running unit without the effect that it was to have. What it covers runs now; what waited for it waits for
    /// that.
    pub fn give_way(&mut self, id: UnitId) {
        let node = self.node_mut(id);
        debug_assert_eq!(node.state, UnitState::Running);
        let mut at = std::mem::replace(&mut node.covers, UnitId::NONE);
        if at == UnitId::NONE {
            return self.end(id);
        }
        (node.role, node.stake, node.state) = (Role::Relay, Stake::NONE, UnitState::Blocked);
        // From the last to the first, those of one key after each other.
        let (mut firsts, mut later) = (Vec::new(), id);
        while at != UnitId::NONE {
            self.linked += 1;
            self.node_mut(later).blockers += 1;
            let node = self.node_mut(at);
            (node.state, node.blocked) = (UnitState::Blocked, vec![later]);
            let (key, before) = (node.keys.clone(), node.before);
            if before != UnitId::NONE && self.node(before).keys == key {
                later = at;
            } else {
                self.node_mut(at).before = UnitId::NONE;
                firsts.push(at);
                later = id;
            }
            at = before;
        }
        for first in firsts.into_iter().rev() {
            self.make_ready(first);
        }
    }

    /// Whether units hang on this one that the next owner of the log must not run before it has read this one.
    pub fn needs_word(&self, id: UnitId) -> bool {
        let node = self.node(id);
        node.covers != UnitId::NONE && (node.may_be_refused || !node.stake.always)
    }

    /// The new places of units that have one, the last change last.
    pub fn moved(&mut self) -> impl Iterator<Item = (T, UnitId)> + use<'_, T> {
        self.moved.drain(..)
    }

    /// What ended with the unit that covered it, the earliest first.
    pub fn take_superseded(&mut self) -> Vec<T> {
        std::mem::take(&mut self.superseded)
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

    /// Of the units before and on the same key as `last`, itself included, the first up to which all can be covered.
    fn first_covered(&self, stake: &Stake, check: u64, last: UnitId) -> Option<UnitId> {
        let (mut first, mut at) = (None, last);
        while at != UnitId::NONE {
            let node = self.node(at);
            let waits = !matches!(node.state, UnitState::Running | UnitState::Covered);
            if node.role != Role::Unit || node.apart || !waits || !stake.supersedes(check, &node.stake) {
                break;
            }
            first = Some(at);
            at = node.before;
        }
        first
    }

    /// Puts a unit with one key into the place of the first that it can cover of those before it, if there are any.
    /// Returns where it stands.
    fn cover(&mut self, id: UnitId) -> UnitId {
        let node = self.node(id);
        let (before, stake) = (node.before, node.stake);
        let Some(first) = self.first_covered(&stake, stake.check, before) else { return id };
        let Keys::One(key) = node.keys else { return id };
        // What it covers already comes behind what is added.
        let mut own = node.covers;
        while own != UnitId::NONE && self.node(own).before != UnitId::NONE {
            own = self.node(own).before;
        }
        // The place is taken over with what waits behind it, and the unit that stood there goes to the other one.
        let waiting = std::mem::take(&mut self.node_mut(id).blocked);
        for later in &waiting {
            let node = self.node_mut(*later);
            if node.before == id {
                node.before = first;
            }
        }
        if self.tails.get(&key) == Some(&id) {
            self.tails.insert(key, first);
        }
        self.node_mut(first).blocked = waiting;
        self.swap(first, id);
        self.moved.push((self.node(first).payload, first));
        let last = if before == first { id } else { before };
        let may_be_refused = self.hang(last, first, id);
        let node = self.node_mut(first);
        node.may_be_refused |= may_be_refused;
        if own == UnitId::NONE {
            node.covers = last;
        } else {
            self.node_mut(own).before = last;
        }
        if !matches!(self.node(first).state, UnitState::Ready) {
            // That was the other one's.
            self.node_mut(first).again = false;
        }
        self.hurry(first);
        first
    }

    /// Hangs the units of one key from `first` to `last` on a unit with several keys.
    fn cover_run(&mut self, id: UnitId, first: UnitId, last: UnitId) {
        let node = self.node(first);
        let (payload, keys) = (node.payload, node.keys.clone());
        let other = self.place(Node::new(Role::Relay, keys, Stake::NONE, UnitState::Covered, payload));
        self.swap(first, other);
        self.node_mut(first).blocked = vec![id];
        // The relay takes part in the order in its place.
        self.linked += 1;
        let last = if last == first { other } else { last };
        let may_be_refused = self.hang(last, first, other);
        let covers = self.node(id).covers;
        self.node_mut(other).before = covers;
        let node = self.node_mut(id);
        node.covers = last;
        node.may_be_refused |= may_be_refused;
        self.hurry(first);
    }

    /// Exchanges what stands at two places of one key.
    fn swap(&mut self, one: UnitId, other: UnitId) {
        let [Some(a), Some(b)] =
            self.nodes.get_disjoint_mut([one.0 as usize, other.0 as usize]).expect("they are two places")
        else {
            unreachable!("neither unit is finished")
        };
        std::mem::swap(&mut a.payload, &mut b.payload);
        std::mem::swap(&mut a.role, &mut b.role);
        std::mem::swap(&mut a.stake, &mut b.stake);
        std::mem::swap(&mut a.covers, &mut b.covers);
        std::mem::swap(&mut a.may_be_refused, &mut b.may_be_refused);
        self.moved.push((b.payload, other));
    }

    /// Takes the units from `last` back to the one behind `first` out of the order, and that of `first`, which is at
    /// `other` now, as the first of them. Says whether any of them could be refused.
    fn hang(&mut self, last: UnitId, first: UnitId, other: UnitId) -> bool {
        let (mut at, mut may_be_refused) = (last, false);
        loop {
            self.linked -= 1;
            let node = self.node_mut(at);
            may_be_refused |= node.may_be_refused || !node.stake.overwrites;
            (node.state, node.blockers, node.blocked) = (UnitState::Covered, 0, Vec::new());
            if at == other {
                node.before = UnitId::NONE;
                return may_be_refused;
            }
            if node.before == first {
                node.before = other;
            }
            at = node.before;
        }
    }

    /// Ends all that hangs on a unit, of which this is the last.
    fn end_covered(&mut self, last: UnitId) {
        let from = self.superseded.len();
        let mut rest = vec![last];
        while let Some(id) = rest.pop() {
            let node = self.nodes[id.0 as usize].take().expect("what is covered is not finished");
            self.free.push(id);
            self.superseded.push(node.payload);
            // The later first: what it covers came right before it.
            rest.extend([node.before, node.covers].into_iter().filter(|id| *id != UnitId::NONE));
        }
        self.superseded[from..].reverse();
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn keys(keys: &[u64]) -> Keys {
        Keys::new(keys.to_vec())
    }

    fn insert(schedule: &mut Schedule<u32>, of: &[u64], unit: u32) -> UnitId {
        schedule.insert(keys(of), Stake::NONE, &[], unit)
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
        insert(&mut schedule, &[1], 0);
        insert(&mut schedule, &[2], 1);
        insert(&mut schedule, &[1, 2], 2);
        insert(&mut schedule, &[3], 3);
        insert(&mut schedule, &[2], 4);
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
        insert(&mut schedule, &[1], 0);
        insert(&mut schedule, &[1], 1);
        insert(&mut schedule, &[2], 2);
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
            insert(&mut schedule, &[key], unit as u32);
        }
        let (first, _) = schedule.pop_ready().expect("0 is ready");
        let (second, _) = schedule.pop_ready().expect("1 is ready");
        schedule.set_apart(second, true);
        insert(&mut schedule, &[4], 4);
        let (fifth, _) = schedule.pop_ready_if(9, |unit| unit == 4).expect("4 is ready");
        for id in [first, second, fifth] {
            schedule.wait_for_checkpoint(id);
        }
        assert_eq!((schedule.waiting_len(), schedule.state(first)), (3, Some(UnitState::Waiting)));
        assert_eq!(schedule.pop_apart(), None);
        insert(&mut schedule, &[5], 5);
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
            schedule.insert(keys(&[u64::from(unit)]), Stake::NONE, &[], unit);
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
            schedule.insert(keys(&[key]), Stake::NONE, &[], unit);
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
        insert(&mut schedule, &[1], 0);
        insert(&mut schedule, &[], 1);
        insert(&mut schedule, &[2], 2);
        insert(&mut schedule, &[], 3);
        insert(&mut schedule, &[3], 4);
        let (id, payload) = schedule.pop_ready().expect("0 is ready");
        assert_eq!(payload, 0);
        assert_eq!(schedule.pop_ready(), None);
        schedule.finish(id);
        assert_eq!(drain(&mut schedule), [1, 2, 3, 4]);
    }

    /// Gives way to later ones, and takes the place of earlier ones.
    const SET: Stake = Stake { gives_way: true, overwrites: true, always: true, ..Stake::NONE };
    /// Gives way only.
    const INCR: Stake = Stake { overwrites: false, ..SET };

    fn put(schedule: &mut Schedule<u32>, key: u64, stake: Stake, unit: u32) -> UnitId {
        schedule.insert(keys(&[key]), stake, &[], unit)
    }

    /// Runs what is ready, and says what ran and what ended with it.
    fn drain_with_superseded(schedule: &mut Schedule<u32>) -> Vec<(u32, Vec<u32>)> {
        let mut ran = Vec::new();
        while let Some((id, payload)) = schedule.pop_ready() {
            schedule.finish(id);
            ran.push((payload, schedule.take_superseded()));
        }
        ran
    }

    #[test]
    fn an_overwrite_takes_the_place_of_what_waits_before_it() {
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, INCR, 0);
        put(&mut schedule, 2, INCR, 1);
        put(&mut schedule, 1, SET, 2);
        put(&mut schedule, 1, INCR, 3);
        let last = put(&mut schedule, 1, SET, 4);
        put(&mut schedule, 1, INCR, 5);
        let moved: HashMap<u32, UnitId> = schedule.moved().collect();
        assert_eq!(moved[&4], last);
        assert!([0, 2, 3].iter().all(|unit| moved.get(unit).is_none_or(|id| *id != last)));
        assert_eq!(schedule.ready_len(), 2);
        let expected = [(4, vec![0, 2, 3]), (1, vec![]), (5, vec![])];
        assert_eq!(drain_with_superseded(&mut schedule), expected, "it runs where the first one stood");
    }

    #[test]
    fn nothing_takes_the_place_of_what_runs_or_stands_apart() {
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, SET, 0);
        let (running, _) = schedule.pop_ready().expect("0 is ready");
        put(&mut schedule, 1, SET, 1);
        put(&mut schedule, 1, SET, 2);
        assert_eq!(schedule.state(running), Some(UnitState::Running));
        schedule.set_apart(running, true);
        schedule.put_back(running);
        schedule.reconsider(running);
        assert_eq!(schedule.pop_apart().map(|(_, unit)| unit), Some(0));
        schedule.set_apart(running, false);
        schedule.put_back(running);
        schedule.reconsider(running);
        assert_eq!(drain_with_superseded(&mut schedule), [(2, vec![0, 1])], "now it waits like others");
    }

    #[test]
    fn what_waits_for_its_retry_is_not_waited_for() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, SET, 0);
        let (first, _) = schedule.pop_ready().expect("0 is ready");
        schedule.postpone(first, now + Duration::from_secs(1));
        put(&mut schedule, 1, SET, 1);
        assert_eq!((schedule.backoff_len(), schedule.ready_len()), (0, 1));
        assert_eq!(drain_with_superseded(&mut schedule), [(1, vec![0])]);
        schedule.wake(now + Duration::from_secs(2));
        assert_eq!(schedule.pop_ready(), None);
    }

    #[test]
    fn what_is_held_is_not_waited_for() {
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, SET, 0);
        let (first, _) = schedule.pop_ready().expect("0 is ready");
        put(&mut schedule, 1, SET, 1);
        schedule.hold(first);
        schedule.reconsider(first);
        assert_eq!(drain_with_superseded(&mut schedule), [(1, vec![0])]);
        put(&mut schedule, 2, SET, 2);
        let (place, _) = schedule.pop_ready().expect("2 is ready");
        schedule.hold(place);
        put(&mut schedule, 2, INCR, 3);
        let several = Stake { gives_way: false, ..SET };
        schedule.insert(keys(&[2, 3]), several, &[(2, 0), (3, 0)], 4);
        assert_eq!(drain_with_superseded(&mut schedule), [(4, vec![2, 3])]);
        schedule.release_held();
        assert_eq!(schedule.pop_ready(), None);
    }

    #[test]
    fn what_gives_way_lets_the_others_run_before_what_follows() {
        let mut schedule = Schedule::default();
        for (unit, stake) in [INCR, SET, INCR, INCR, SET].into_iter().enumerate() {
            put(&mut schedule, 1, stake, unit as u32);
        }
        put(&mut schedule, 1, INCR, 5);
        insert(&mut schedule, &[], 6);
        let (dead, payload) = schedule.pop_ready().expect("the last overwrite is ready");
        assert_eq!(payload, 4);
        schedule.give_way(dead);
        let expected = [(1, vec![0]), (2, vec![]), (3, vec![]), (5, vec![]), (6, vec![])];
        assert_eq!(drain_with_superseded(&mut schedule), expected);
    }

    #[test]
    fn each_key_of_an_overwrite_is_looked_at() {
        let build = || {
            let mut schedule = Schedule::default();
            put(&mut schedule, 1, SET, 0);
            put(&mut schedule, 1, INCR, 1);
            put(&mut schedule, 2, INCR, 2);
            put(&mut schedule, 3, Stake::NONE, 3);
            let several = Stake { gives_way: false, ..SET };
            schedule.insert(keys(&[1, 2, 3]), several, &[(1, 0), (2, 0), (3, 0)], 4);
            put(&mut schedule, 2, INCR, 5);
            schedule
        };
        assert_eq!(drain_with_superseded(&mut build()), [(3, vec![]), (4, vec![0, 1, 2]), (5, vec![])]);
        let mut schedule = build();
        let (third, _) = schedule.pop_ready().expect("one waits for nothing and does not give way");
        schedule.finish(third);
        let (dead, _) = schedule.pop_ready().expect("what is left waits");
        schedule.give_way(dead);
        assert_eq!(drain_with_superseded(&mut schedule), [(0, vec![]), (2, vec![]), (1, vec![]), (5, vec![])]);
    }

    #[test]
    fn keys_with_the_same_hash_are_told_apart() {
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, SET, 0);
        put(&mut schedule, 1, Stake { check: 7, ..SET }, 1);
        let several = Stake { gives_way: false, ..SET };
        schedule.insert(keys(&[1, 2]), several, &[(1, 0), (2, 0)], 2);
        assert_eq!(drain_with_superseded(&mut schedule), [(0, vec![]), (1, vec![]), (2, vec![])]);
    }

    #[test]
    fn what_comes_behind_a_barrier_gives_way_when_it_is_lifted() {
        let mut schedule = Schedule::default();
        insert(&mut schedule, &[], 0);
        let behind = [1, 2, 3].map(|unit| put(&mut schedule, 1, SET, unit));
        assert_eq!(schedule.moved().count(), 0);
        let (barrier, _) = schedule.pop_ready().expect("nothing is before it");
        schedule.finish(barrier);
        let moved: HashMap<u32, UnitId> = schedule.moved().collect();
        assert_eq!(moved[&3], behind[0]);
        assert_eq!(drain_with_superseded(&mut schedule), [(3, vec![1, 2])]);
    }

    /// Were it a cost of each unit for each, this would take hours.
    #[test]
    fn many_on_one_key_cost_what_they_cost() {
        const MANY: u32 = 200_000;
        let mut schedule = Schedule::default();
        for unit in 0..MANY {
            put(&mut schedule, 1, if unit % 3 == 1 { INCR } else { SET }, unit);
        }
        schedule.moved().for_each(drop);
        // All but one of the overwrites die.
        let mut last = None;
        while schedule.ready_len() > 0 && last != Some(0) {
            let (id, unit) = schedule.pop_ready().expect("one is ready");
            last = Some(unit);
            schedule.give_way(id);
            schedule.moved().for_each(drop);
        }
        let others = (0..MANY).filter(|unit| unit % 3 == 1).collect::<Vec<_>>();
        assert_eq!(drain(&mut schedule), others);
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
                    insert(&mut schedule, &units[inserted], inserted as u32);
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
