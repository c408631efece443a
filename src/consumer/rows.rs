//! Which units may run on a key before the next checkpoint.
//!
//! A process that dies between an effect and the checkpoint leaves behind units that run again: on each key those that
//! finished since the last durable checkpoint, in their order, and from any of them on, since a checkpoint may fall
//! anywhere between them. Invariant: what finished on a key since the last durable checkpoint is a *row* that may be
//! run again from any of its units on, and leaves the key as it was. These are the rows:
//!
//! - once-units in any number, whose markers make them no-ops, and after them one other unit;
//! - overwrites of the whole key, whatever was there and whenever they run;
//! - units that set or remove fields of one type, of which those that remove come in one block. Were a removal followed
//!   by an addition and another removal, then the first one, run again, could remove what was the last field by then,
//!   and the key with its TTL.
//!
//! A unit that would make something else of a row waits for a checkpoint. One that has several keys must fit the rows
//! of all of them, and one whose keys are not known those of every key.
//!
//! While a checkpoint is being written it is not known which one a new process would find. So what finished before it
//! (`sealed`) and since (`current`) are kept apart; a unit must fit both together, and what is sealed is forgotten when
//! the checkpoint is durable.
//!
//! A checkpoint may have room for less than all that finished: then it says nothing from some position on. A row of which
//! a part finished there is kept as a whole, as if the checkpoint said nothing of it.
//!
//! What is kept is a row for each key on which something finished since the last durable checkpoint. Once there are
//! [`MAX_KEYS`] of them, everything waits for a checkpoint: so the memory is bounded by that, twice, and by the keys of
//! what is in flight. Keys are known by their hashes: a collision can make a unit wait, but never lets one run.

use hashbrown::HashMap;

use super::{schedule::Keys, timing::Due};
use crate::{
    commands::Overwrite,
    task::{Command, Mode, Operation, Task, Unit},
};

/// The most keys between two checkpoints: as many as fill a table of 272 KiB, and many times what a target takes while a
/// checkpoint is written.
const MAX_KEYS: usize = 14 * 1024;

/// The most keys that an unused table keeps its memory for.
const KEPT_KEYS: usize = 1024;

/// What another run of a unit does, right after the first or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayKind {
    /// Nothing: its marker, or its version, says that it was applied.
    Once,
    /// Replaces or removes each of its keys as a whole, whatever was there and whenever it runs: it has no TTL, no
    /// deadline and no version, and it is never too late for it.
    Overwrite,
    /// Sets or removes fields whatever was there, whenever it runs.
    Fields(FieldType, FieldChange),
    /// Nothing right after the first run, else unknown.
    Other,
}

/// What has the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    Hash,
    Set,
    SortedSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldChange {
    Add,
    Remove,
}

/// What finished on one key, as far as the next unit must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Empty,
    Once,
    Overwrites,
    Fields(FieldType, Changes),
    /// Nothing may follow.
    Closed,
}

/// Additions, then removals, then additions; each of the three there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changes {
    added: bool,
    removed: bool,
    /// Only where `removed`.
    added_again: bool,
}

impl ReplayKind {
    /// Of the unit of that number, when it is sent as what it is. Where its keys are unlinked in its place, that is an
    /// [`ReplayKind::Overwrite`]: it will be so each time.
    pub fn of(task: &Task<'_>, number: usize, unit: &Unit<'_>, due: &Due) -> Self {
        if task.version.is_some() || task.is_once(unit) {
            // Its marker is not asked when its keys are unlinked in its place.
            return if due.may_invalidate() { Self::Other } else { Self::Once };
        }
        if due.changes() {
            return Self::Other;
        }
        match &task.operation {
            Operation::Simple(command) => Self::of_command(command),
            // When it is too late for one of them, it may be for others too.
            Operation::Pipeline { mode: Mode::Each, commands } if commands.iter().any(|one| one.ttl().is_some()) => {
                Self::Other
            }
            Operation::Pipeline { mode: Mode::Each, commands } => Self::of_command(&commands[number]),
            Operation::Pipeline { mode: Mode::Atomic, commands } => {
                let overwrite = commands.iter().all(|command| Self::of_command(command) == Self::Overwrite);
                if overwrite { Self::Overwrite } else { Self::Other }
            }
            Operation::Lua(_) => Self::Other,
        }
    }

    fn of_command(command: &Command<'_>) -> Self {
        let change = match command.spec.name {
            "HDEL" | "SREM" | "ZREM" => FieldChange::Remove,
            _ => FieldChange::Add,
        };
        match command.replay_kind() {
            Overwrite::Whole => Self::Overwrite,
            Overwrite::Field => Self::Fields(FieldType::Hash, change),
            Overwrite::Member => Self::Fields(FieldType::Set, change),
            Overwrite::ScoredMember => Self::Fields(FieldType::SortedSet, change),
            Overwrite::None => Self::Other,
        }
    }
}

impl Row {
    /// What a unit makes of an empty row.
    fn of(kind: ReplayKind) -> Self {
        match kind {
            ReplayKind::Once => Self::Once,
            ReplayKind::Overwrite => Self::Overwrites,
            ReplayKind::Fields(field_type, change) => {
                let added = change == FieldChange::Add;
                Self::Fields(field_type, Changes { added, removed: !added, added_again: false })
            }
            ReplayKind::Other => Self::Closed,
        }
    }

    /// This row and then another one.
    fn then(self, later: Self) -> Self {
        match (self, later) {
            (Self::Empty, row) | (row, Self::Empty) => row,
            (Self::Once, Self::Once) => Self::Once,
            (Self::Overwrites, Self::Overwrites) => Self::Overwrites,
            (Self::Fields(field_type, changes), Self::Fields(same, later)) if field_type == same => {
                changes.then(later).map_or(Self::Closed, |changes| Self::Fields(field_type, changes))
            }
            _ => Self::Closed,
        }
    }

    fn may_be_followed_by(self, kind: ReplayKind) -> bool {
        self.is_open() || self.then(Self::of(kind)) != Self::Closed
    }

    /// Whether one unit of any kind may follow.
    fn is_open(self) -> bool {
        matches!(self, Self::Empty | Self::Once)
    }
}

impl Changes {
    /// None: the removals would not be one block.
    fn then(self, later: Self) -> Option<Self> {
        match (self.removed, later.removed) {
            (false, _) => Some(Self { added: self.added || later.added, ..later }),
            (true, false) => Some(Self { added_again: self.added_again || later.added, ..self }),
            (true, true) if self.added_again || later.added => None,
            (true, true) => Some(Self { added_again: later.added_again, ..self }),
        }
    }
}

/// What finished in one partition since its last durable checkpoint.
#[derive(Default)]
pub struct Rows {
    sealed: Generation,
    current: Generation,
}

/// How far above [`Generation::base`] an offset is. What is below it, or too far above, has the nearest place there is.
type Place = u32;

/// The place of the first unit. Others may lie below it, or above, but never as far as this.
const MIDDLE: Place = 1 << 31;

/// A row, and the place of its highest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    row: Row,
    last: Place,
}

/// What finished between two checkpoints.
struct Generation {
    rows: HashMap<u64, Kept>,
    /// The row of each key that is not in `rows`: what units without known keys made of it.
    others: Kept,
    /// How many of `rows` are not open.
    not_open: usize,
    /// What places are counted from.
    base: u64,
}

impl Rows {
    /// Whether a unit may run now, and be run again by another process. If not, it waits for a checkpoint; one is worth
    /// writing then, since something finished.
    pub fn may_run(&self, keys: &Keys, kind: ReplayKind) -> bool {
        if self.current.rows.len() >= MAX_KEYS {
            return false;
        }
        let fits = |sealed: Row, current: Row| sealed.then(current).may_be_followed_by(kind);
        match keys {
            Keys::Barrier => fits(self.sealed.any_row(), self.current.any_row()),
            keys => keys.as_slice().iter().all(|key| fits(self.sealed.row(*key), self.current.row(*key))),
        }
    }

    /// Whether a checkpoint is worth writing before units have to wait for it.
    pub fn want_checkpoint(&self) -> bool {
        self.current.rows.len() >= MAX_KEYS / 2
    }

    /// The unit of the record at `offset` has run and will not run again in this process. A once-unit that was refused
    /// left no marker, so it counts as [`ReplayKind::Other`]; what was settled without being sent does not count at all,
    /// but for commands of pipelines, which may be sent next time to remove what others of the pipeline have written.
    pub fn finished(&mut self, keys: &Keys, kind: ReplayKind, offset: u64) {
        let later = self.current.kept(Row::of(kind), offset);
        match keys {
            Keys::Barrier => self.current.add_to_all(later),
            keys => keys.as_slice().iter().for_each(|key| self.current.add(*key, later)),
        }
    }

    /// A checkpoint that says all that finished until now is going to be written. There is one at a time: the one before
    /// was [`Rows::checkpointed`] or [`Rows::unsealed`].
    pub fn seal(&mut self) {
        debug_assert!(self.sealed.is_empty(), "one checkpoint is written at a time");
        std::mem::swap(&mut self.sealed, &mut self.current);
    }

    /// The checkpoint is durable. `cut`: it says nothing from that offset on.
    pub fn checkpointed(&mut self, cut: Option<u64>) {
        match cut {
            None => self.sealed.clear(),
            Some(offset) => {
                self.sealed.forget_below(offset);
                self.unsealed();
            }
        }
    }

    /// The checkpoint was not stored, or may not have been.
    pub fn unsealed(&mut self) {
        let later = std::mem::replace(&mut self.current, std::mem::take(&mut self.sealed));
        self.current.append(later);
    }
}

impl Kept {
    const NOTHING: Self = Self { row: Row::Empty, last: 0 };

    /// This row and then another one.
    fn then(self, later: Self) -> Self {
        Self { row: self.row.then(later.row), last: self.last.max(later.last) }
    }
}

impl Default for Generation {
    fn default() -> Self {
        Self { rows: HashMap::new(), others: Kept::NOTHING, not_open: 0, base: 0 }
    }
}

impl Generation {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.others.row == Row::Empty
    }

    /// What is kept of a row that ends at `offset` and is going to be added.
    fn kept(&mut self, row: Row, offset: u64) -> Kept {
        if self.is_empty() {
            self.base = offset.saturating_sub(u64::from(MIDDLE));
        }
        Kept { row, last: self.place(offset) }
    }

    fn place(&self, offset: u64) -> Place {
        Place::try_from(offset.saturating_sub(self.base)).unwrap_or(Place::MAX)
    }

    fn row(&self, key: u64) -> Row {
        self.rows.get(&key).unwrap_or(&self.others).row
    }

    /// What a unit that touches all keys must fit: the row that lets least follow.
    fn any_row(&self) -> Row {
        match self.others.row {
            _ if self.not_open > 0 => Row::Closed,
            Row::Empty if !self.rows.is_empty() => Row::Once,
            others => others,
        }
    }

    fn add(&mut self, key: u64, later: Kept) {
        if self.others.row == Row::Closed {
            self.others.last = self.others.last.max(later.last);
            return;
        }
        let kept = self.rows.entry(key).or_insert(self.others);
        let was_open = kept.row.is_open();
        *kept = kept.then(later);
        self.not_open += usize::from(was_open && !kept.row.is_open());
    }

    fn add_to_all(&mut self, later: Kept) {
        let row = self.any_row().then(later.row);
        self.others = Kept { row, last: self.others.last.max(later.last) };
        if !row.is_open() {
            self.others.row = Row::Closed;
            self.others.last = self.rows.values().map(|kept| kept.last).fold(self.others.last, Place::max);
            self.forget_rows();
        }
    }

    fn append(&mut self, later: Self) {
        let base = later.base;
        let offset = |kept: Kept| base.saturating_add(u64::from(kept.last));
        if later.others.row != Row::Empty {
            let others = self.kept(later.others.row, offset(later.others));
            self.add_to_all(others);
        }
        for (key, kept) in later.rows {
            let kept = self.kept(kept.row, offset(kept));
            self.add(key, kept);
        }
    }

    /// Forgets the rows that lie wholly below an offset.
    fn forget_below(&mut self, offset: u64) {
        let place = self.place(offset);
        if self.others.row != Row::Empty && self.others.last >= place {
            // It is part of every row.
            return;
        }
        self.others = Kept::NOTHING;
        // Counted anew, so that places stay small however long this goes on.
        let passed = place.saturating_sub(MIDDLE);
        let mut not_open = 0;
        self.rows.retain(|_, kept| {
            let stays = kept.last >= place;
            not_open += usize::from(stays && !kept.row.is_open());
            kept.last = kept.last.saturating_sub(passed);
            stays
        });
        self.not_open = not_open;
        self.base = self.base.saturating_add(u64::from(passed));
    }

    fn clear(&mut self) {
        self.others = Kept::NOTHING;
        self.forget_rows();
    }

    fn forget_rows(&mut self) {
        // A table that was large once would be swept for ever.
        let worth_keeping = self.rows.len().saturating_mul(16).max(KEPT_KEYS);
        self.rows.clear();
        self.rows.shrink_to(worth_keeping);
        self.not_open = 0;
    }
}

#[cfg(test)]
mod tests;
