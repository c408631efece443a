//! Where a command's keys are among its arguments.

use std::borrow::Cow;

use super::ArgumentFault;

/// A key's place among the arguments, and whether the command may write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyAt {
    pub index: usize,
    pub written: bool,
}

/// The keys of one command in the order of its arguments: up to two single ones, then a row of equal ones. All of
/// Redis' commands have this form, so no list is ever allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    single: [Option<KeyAt>; 2],
    row: Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    next: usize,
    end: usize,
    step: usize,
    written: bool,
}

impl Keys {
    fn single(index: usize, written: bool) -> Self {
        let none = Row { next: 0, end: 0, step: 1, written: false };
        Self { single: [Some(KeyAt { index, written }), None], row: none }
    }

    fn row(next: usize, end: usize, step: usize, written: bool) -> Self {
        Self { single: [None, None], row: Row { next, end, step, written } }
    }

    fn and(mut self, index: usize, written: bool) -> Self {
        self.add(index, written);
        self
    }

    fn then_row(mut self, next: usize, end: usize) -> Self {
        self.row = Row { next, end, step: 1, written: false };
        self
    }

    /// Adds the second single key: the destination that an option names.
    pub(super) fn add(&mut self, index: usize, written: bool) {
        self.single[1] = Some(KeyAt { index, written });
    }

    /// Sets whether the only key is written.
    pub(super) fn set_written(&mut self, written: bool) {
        if let Some(key) = &mut self.single[0] {
            key.written = written;
        }
    }
}

impl Iterator for Keys {
    type Item = KeyAt;

    fn next(&mut self) -> Option<KeyAt> {
        if let Some(key) = self.single[0].take().or_else(|| self.single[1].take()) {
            return Some(key);
        }
        let Row { next: index, end, step, written } = self.row;
        if index >= end {
            return None;
        }
        self.row.next = index + step;
        Some(KeyAt { index, written })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let singles = self.single.iter().flatten().count();
        let row = self.row.end.saturating_sub(self.row.next).div_ceil(self.row.step);
        (singles + row, Some(singles + row))
    }
}

impl ExactSizeIterator for Keys {}

/// How a command names its keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyRule {
    /// The first argument, which is written.
    First,
    /// The first argument, which is only read: an option names the written one.
    FirstRead,
    /// The second argument, behind a subcommand.
    Second,
    /// The first two, both written.
    FirstTwo,
    /// The first is read, the second written.
    SourceThenDest,
    /// The first is written, the second read.
    DestThenSource,
    /// All arguments, written.
    All,
    /// The first of each pair, written.
    Pairs,
    /// The argument at `dest` is written, all behind it are read.
    DestThenRest { dest: usize },
    /// The first argument is written; the second counts the keys behind it, which are read.
    DestThenCounted,
    /// The first argument counts the keys behind it, which are written.
    Counted,
    /// The first argument counts the pairs behind it, whose first ones are written.
    CountedPairs,
}

impl KeyRule {
    /// The arity has been checked, so that the fixed positions exist.
    pub(super) fn find(self, args: &[Cow<'_, [u8]>]) -> Result<Keys, ArgumentFault> {
        Ok(match self {
            Self::First => Keys::single(0, true),
            Self::FirstRead => Keys::single(0, false),
            Self::Second => Keys::single(1, true),
            Self::FirstTwo => Keys::single(0, true).and(1, true),
            Self::SourceThenDest => Keys::single(0, false).and(1, true),
            Self::DestThenSource => Keys::single(0, true).and(1, false),
            Self::All => Keys::row(0, args.len(), 1, true),
            Self::Pairs => {
                check_pairs(args, 0, "every key needs a value behind it")?;
                Keys::row(0, args.len(), 2, true)
            }
            Self::DestThenRest { dest } => Keys::single(dest, true).then_row(dest + 1, args.len()),
            Self::DestThenCounted => Keys::single(0, true).then_row(2, counted(args, 1, 1)?),
            Self::Counted => Keys::row(1, counted(args, 0, 1)?, 1, true),
            Self::CountedPairs => Keys::row(1, counted(args, 0, 2)?, 2, true),
        })
    }
}

/// Refuses a last argument without partner among those from `from` on.
pub(super) fn check_pairs(args: &[Cow<'_, [u8]>], from: usize, detail: &'static str) -> Result<(), ArgumentFault> {
    if (args.len() - from) % 2 == 1 {
        return Err(ArgumentFault::Invalid { index: args.len() - 1, detail });
    }
    Ok(())
}

/// The index behind the last of the keys that the argument at `index` counts. Each takes `step` arguments.
fn counted(args: &[Cow<'_, [u8]>], index: usize, step: usize) -> Result<usize, ArgumentFault> {
    let fault = |detail| ArgumentFault::Invalid { index, detail };
    let count = decimal(&args[index]).ok_or_else(|| fault("the number of keys must be a whole number above 0"))?;
    let end = count.checked_mul(step).and_then(|taken| taken.checked_add(index + 1)).filter(|end| *end <= args.len());
    end.ok_or_else(|| fault("the number of keys is larger than the number of arguments behind it"))
}

/// A positive decimal as Redis reads one: no sign, no leading zero.
pub(super) fn decimal(text: &[u8]) -> Option<usize> {
    if text.first().is_none_or(|first| *first == b'0') || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
