//! The state of a checkpoint: what a partition's consumer has finished above the watermark.
//!
//! ```text
//! | version u8 = 1 | flags u8 (1: released) | boot id 16 bytes | finished | half-done | attempts |
//!
//! finished:  | form u8 (0 runs, 1 bits) | length varint | …
//!            runs: repeated varints, unfinished and finished in turn, from the watermark on
//!            bits: one per offset from the watermark on, lowest bit first
//! half-done: | count varint | repeated: offset - watermark varint | units varint | one byte a unit, 0 = unfinished,
//!            1 = applied, 2 = dead and then | code length u8 | code | reason length u8 | reason |,
//!            3 = expired, 4 = invalidated, 5 = stale, 6 = discarded
//! attempts:  | count varint | repeated: offset - watermark varint | unit varint | attempts varint |
//! ```
//!
//! Offsets from the end of `finished` on are unfinished. Offsets that the log skipped count as finished. Numbers are
//! LEB128 varints. A state that cannot be read, or is of a later version, counts as "nothing above the watermark":
//! the tasks concerned run again, none is lost.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

use crate::task::Outcome;

const VERSION: u8 = 1;
const RELEASED: u8 = 1;

/// The bytes of units that ended without a dead letter.
const SETTLED: [(u8, Outcome); 5] = [
    (1, Outcome::Applied),
    (3, Outcome::Expired),
    (4, Outcome::Invalidated),
    (5, Outcome::Stale),
    (6, Outcome::Discarded),
];

/// What is known above the watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub boot_id: [u8; 16],
    /// The owner stopped in order: nothing of it is on its way to Redis any more.
    pub released: bool,
    pub finished: Finished,
    /// Units of `each` pipelines of which some are done, by offset.
    pub half_done: BTreeMap<u64, Vec<UnitEnd>>,
    /// Attempts spent on unfinished units, by offset and unit.
    pub attempts: BTreeMap<(u64, u32), u32>,
}

/// How far a unit of a half-done pipeline came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitEnd {
    Unfinished,
    /// How, other than dead.
    Settled(Outcome),
    Dead {
        code: String,
        reason: String,
    },
}

/// A set of finished offsets: runs of unfinished and finished ones in turn, the first run unfinished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    watermark: u64,
    /// Where each run ends; even places are ends of unfinished runs, odd ones of finished runs.
    ends: Vec<u64>,
}

impl Finished {
    /// From the ascending unfinished offsets at or above `watermark`; all others below `end` are finished.
    pub fn from_unfinished(watermark: u64, unfinished: impl Iterator<Item = u64>, end: u64) -> Self {
        let mut ends: Vec<u64> = Vec::new();
        let mut at = watermark;
        for offset in unfinished {
            if offset > at {
                ends.extend([at, offset]);
            }
            at = offset + 1;
        }
        if end > at {
            ends.extend([at, end]);
        }
        Self { watermark, ends }
    }

    pub fn contains(&self, offset: u64) -> bool {
        if offset < self.watermark {
            return true;
        }
        self.ends.partition_point(|end| *end <= offset) % 2 == 1
    }

    /// Takes over what `earlier` says from `from` on, which is where this one ends or beyond.
    pub fn extend_from(&mut self, earlier: &Self, from: u64) {
        for run in earlier.ends.chunks_exact(2) {
            let (start, end) = (run[0].max(from), run[1]);
            match self.ends.last_mut() {
                _ if start >= end => {}
                Some(last) if *last >= start => *last = end,
                _ => self.ends.extend([start, end]),
            }
        }
    }

    /// The offset from which on nothing is finished.
    pub fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.watermark)
    }

    fn span(&self) -> u64 {
        self.ends.last().map_or(0, |end| end - self.watermark)
    }
}

impl State {
    /// The stored form, for a checkpoint with this watermark.
    pub fn encode(&self, watermark: u64) -> Bytes {
        let mut out = Vec::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u8(if self.released { RELEASED } else { 0 });
        out.put_slice(&self.boot_id);
        let mut runs = Vec::new();
        let mut last = watermark;
        for end in &self.finished.ends {
            put_varint(&mut runs, end - last);
            last = *end;
        }
        let bits_len = usize::try_from(self.finished.span().div_ceil(8)).unwrap_or(usize::MAX);
        if runs.len() <= bits_len {
            out.put_u8(0);
            put_varint(&mut out, runs.len() as u64);
            out.put_slice(&runs);
        } else {
            let mut bits = vec![0_u8; bits_len];
            for run in self.finished.ends.chunks_exact(2) {
                for offset in run[0] - watermark..run[1] - watermark {
                    bits[(offset / 8) as usize] |= 1 << (offset % 8);
                }
            }
            out.put_u8(1);
            put_varint(&mut out, bits.len() as u64);
            out.put_slice(&bits);
        }
        put_varint(&mut out, self.half_done.len() as u64);
        for (offset, units) in &self.half_done {
            put_varint(&mut out, offset - watermark);
            put_varint(&mut out, units.len() as u64);
            for unit in units {
                match unit {
                    UnitEnd::Unfinished => out.put_u8(0),
                    UnitEnd::Settled(outcome) => {
                        let byte = SETTLED.iter().find(|(_, settled)| settled == outcome).map(|(byte, _)| *byte);
                        out.put_u8(byte.expect("a unit ends in one of these ways, or dead"));
                    }
                    UnitEnd::Dead { code, reason } => {
                        out.put_u8(2);
                        put_short(&mut out, code);
                        put_short(&mut out, reason);
                    }
                }
            }
        }
        put_varint(&mut out, self.attempts.len() as u64);
        for ((offset, unit), attempts) in &self.attempts {
            put_varint(&mut out, offset - watermark);
            put_varint(&mut out, u64::from(*unit));
            put_varint(&mut out, u64::from(*attempts));
        }
        out.into()
    }

    /// Reads the stored form; none where it is of another version or damaged.
    pub fn decode(watermark: u64, stored: &[u8]) -> Option<Self> {
        let mut rest = stored;
        let rest = &mut rest;
        if take(rest, 1)? != [VERSION] {
            return None;
        }
        let released = take(rest, 1)?[0] & RELEASED != 0;
        let boot_id = take(rest, 16)?.try_into().ok()?;
        let form = take(rest, 1)?[0];
        let len = usize::try_from(take_varint(rest)?).ok()?;
        let mut packed = take(rest, len)?;
        let mut ends = Vec::new();
        match form {
            0 => {
                let mut end = watermark;
                while !packed.is_empty() {
                    end = end.checked_add(take_varint(&mut packed)?)?;
                    ends.push(end);
                }
            }
            1 => {
                let mut inside = false;
                for offset in 0..packed.len() as u64 * 8 {
                    let finished = packed[(offset / 8) as usize] & (1 << (offset % 8)) != 0;
                    if finished != inside {
                        ends.push(watermark.checked_add(offset)?);
                        inside = finished;
                    }
                }
                if inside {
                    ends.push(watermark.checked_add(packed.len() as u64 * 8)?);
                }
            }
            _ => return None,
        }
        if ends.len() % 2 != 0 {
            return None;
        }
        let mut half_done = BTreeMap::new();
        for _ in 0..take_varint(rest)? {
            let offset = watermark.checked_add(take_varint(rest)?)?;
            let mut units = Vec::new();
            for _ in 0..take_varint(rest)? {
                units.push(match take(rest, 1)?[0] {
                    0 => UnitEnd::Unfinished,
                    2 => UnitEnd::Dead { code: take_short(rest)?, reason: take_short(rest)? },
                    byte => UnitEnd::Settled(SETTLED.iter().find(|(known, _)| *known == byte)?.1),
                });
            }
            half_done.insert(offset, units);
        }
        let mut attempts = BTreeMap::new();
        for _ in 0..take_varint(rest)? {
            let offset = watermark.checked_add(take_varint(rest)?)?;
            let unit = u32::try_from(take_varint(rest)?).ok()?;
            attempts.insert((offset, unit), u32::try_from(take_varint(rest)?).ok()?);
        }
        Some(Self { boot_id, released, finished: Finished { watermark, ends }, half_done, attempts })
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_short(out: &mut Vec<u8>, text: &str) {
    let len = text.floor_char_boundary(255);
    out.push(len as u8);
    out.extend_from_slice(&text.as_bytes()[..len]);
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_short(rest: &mut &[u8]) -> Option<String> {
    let len = usize::from(take(rest, 1)?[0]);
    String::from_utf8(take(rest, len)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_state_is_read_as_it_was_written(
            watermark in 0..1_000_u64,
            unfinished in prop::collection::btree_set(0..3_000_u64, 0..400),
            beyond in 0..100_u64,
        ) {
            let unfinished: Vec<u64> = unfinished.into_iter().map(|offset| watermark + offset).collect();
            let end = unfinished.last().map_or(watermark, |last| last + 1) + beyond;
            let finished = Finished::from_unfinished(watermark, unfinished.iter().copied(), end);
            for offset in watermark..end + 10 {
                prop_assert_eq!(finished.contains(offset), offset < end && !unfinished.contains(&offset), "{}", offset);
            }
            let mut state = State { boot_id: [7; 16], released: true, finished, ..State::default() };
            if let Some(first) = unfinished.first() {
                let dead = UnitEnd::Dead { code: "WRONGTYPE".into(), reason: "wrong-type".into() };
                state.half_done.insert(*first, vec![UnitEnd::Settled(Outcome::Applied), dead, UnitEnd::Unfinished]);
                state.attempts.insert((*first, 2), 3);
            }
            let read = State::decode(watermark, &state.encode(watermark)).expect("it was written just now");
            for offset in watermark..end + 10 {
                prop_assert_eq!(read.finished.contains(offset), state.finished.contains(offset));
            }
            prop_assert_eq!((read.half_done, read.attempts), (state.half_done, state.attempts));
            prop_assert!(read.released);
        }

        #[test]
        fn what_was_not_read_again_is_kept(
            earlier in prop::collection::btree_set(0..200_u64, 0..100),
            unfinished in prop::collection::btree_set(0..100_u64, 0..50),
        ) {
            let earlier = Finished::from_unfinished(0, earlier.iter().copied(), 200);
            let mut finished = Finished::from_unfinished(0, unfinished.iter().copied(), 100);
            finished.extend_from(&earlier, 100);
            for offset in 0..210 {
                let expected = if offset < 100 { !unfinished.contains(&offset) } else { earlier.contains(offset) };
                prop_assert_eq!(finished.contains(offset), expected, "{}", offset);
            }
        }

        #[test]
        fn damage_is_never_a_panic(watermark in any::<u64>(), stored in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = State::decode(watermark, &stored);
        }
    }

    /// These bytes are in journals: a change of the format must go on reading them.
    #[test]
    fn stored_form_is_stable() {
        let mut state = State { boot_id: [1; 16], ..State::default() };
        state.finished = Finished::from_unfinished(10, [10, 12].into_iter(), 20);
        state.half_done.insert(12, vec![UnitEnd::Settled(Outcome::Applied), UnitEnd::Unfinished]);
        state.attempts.insert((10, 0), 2);
        let mut golden = vec![1, 0];
        golden.extend_from_slice(&[1; 16]);
        golden.extend_from_slice(&[1, 2, 0b1111_1010, 0b0000_0011]);
        golden.extend_from_slice(&[1, 2, 2, 1, 0]);
        golden.extend_from_slice(&[1, 0, 0, 2]);
        assert_eq!(state.encode(10), golden);
    }

    #[test]
    fn a_million_positions_fit() {
        let every_other = (0..1_048_576_u64).step_by(2);
        let state = State { finished: Finished::from_unfinished(0, every_other, 1_048_576), ..State::default() };
        assert!(state.encode(0).len() < 132 * 1024);
        let contiguous = State { finished: Finished::from_unfinished(0, 1..30_000, 1_048_576), ..State::default() };
        assert!(contiguous.encode(0).len() < 64);
    }
}
