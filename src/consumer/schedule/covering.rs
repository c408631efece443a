//! Units that take the place of others.
//!
//! A unit may take the place of those right before it on its key ([`coalesce`](super::super::coalesce)). It then stands
//! where the first of them stood, so that a key which is written again and again is not put off again and again, and they
//! hang on it as its *covered* units, each with those that it had covered before:
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

use super::{Keys, Node, Role, Schedule, Stake, UnitId, UnitState};

impl<T: Copy> Schedule<T> {
    /// A unit that was running waits again: the next one on its key may take its place.
    pub fn reconsider(&mut self, id: UnitId) {
        if let [next] = *self.node(id).blocked
            && self.node(next).before == id
        {
            self.cover(next);
        }
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

    /// Puts a unit with one key into the place of the first that it can cover of those before it, if there are any.
    /// Returns where it stands.
    pub(super) fn cover(&mut self, id: UnitId) -> UnitId {
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
    pub(super) fn cover_run(&mut self, id: UnitId, first: UnitId, last: UnitId) {
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

    /// Of the units before and on the same key as `last`, itself included, the first up to which all can be covered.
    pub(super) fn first_covered(&self, stake: &Stake, check: u64, last: UnitId) -> Option<UnitId> {
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
    pub(super) fn end_covered(&mut self, last: UnitId) {
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
}
