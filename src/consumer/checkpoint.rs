//! The state of a checkpoint: what a partition's consumer has finished above the watermark.
//!
//! ```text
//! | version u8 = 2 | flags u8 (1: released, 2: more may have run) | boot id 16 bytes |
//! | finished | half-done | attempts | deaths | word, or nothing |
//!
//! finished:  | form u8 (0 runs, 1 bits) | length varint | …
//!            runs: repeated varints, unfinished and finished in turn, from the watermark on
//!            bits: one per offset from the watermark on, lowest bit first
//! half-done: | count varint | repeated: offset - watermark varint | units varint | half a byte a unit, the lower half
//!            first: 0 unfinished, 1 applied, 2 dead, 3 expired, 4 invalidated, 5 stale, 6 discarded, 7 superseded
//! attempts:  | count varint | repeated: offset - that of the one before, or the watermark, varint
//!            | unit * 32 + attempts varint |
//! deaths:    | count varint | repeated: offset - watermark varint | unit varint
//!            | code length u8 | code | reason length u8 | reason |
//! word:      | offset - watermark varint |
//! ```
//!
//! The *word* is that units below this offset may have taken the place of earlier ones (`coalesce`): who owns the
//! partition next reads that far before it sends anything.
//!
//! Offsets from the end of `finished` on are unfinished. Offsets that the log skipped count as finished. Numbers are
//! LEB128 varints. In version 1 the units of a half-done pipeline take a byte each, why one is dead stands right behind
//! its byte, attempts are | offset - watermark varint | unit varint | attempts varint |, and there are no deaths. A state
//! that cannot be read, or is of a later version, counts as "nothing above the
//! watermark": the tasks concerned run again, none is lost.
//!
//! A log may bound a state's bytes. Attempts and why units are dead are left out first, those of the highest positions
//! before others; then everything from one position on. Invariant: what is said is true, and where a finished unit is
//! left out nothing is said of any later position. Otherwise an earlier write of a key could run again, and a later one
//! that was finished, too, could not.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

use crate::task::Outcome;

const VERSION: u8 = 2;

const RELEASED: u8 = 1;
const MORE_MAY_HAVE_RUN: u8 = 2;

/// More attempts than a task may have.
const ATTEMPTS: u64 = 32;

/// What stands for a unit that is dead.
const DEAD: u8 = 2;

/// What stands for units that ended without a dead letter.
const SETTLED: [(u8, Outcome); 6] = [
    (1, Outcome::Applied),
    (3, Outcome::Expired),
    (4, Outcome::Invalidated),
    (5, Outcome::Stale),
    (6, Outcome::Discarded),
    (7, Outcome::Superseded),
];

/// What is known above the watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub boot_id: [u8; 16],
    /// The owner stopped in order: nothing of it is on its way to Redis any more.
    pub released: bool,
    /// What is called unfinished may have been sent all the same.
    pub more_may_have_run: bool,
    pub finished: Finished,
    /// Units of `each` pipelines of which some are done, by offset.
    pub half_done: BTreeMap<u64, Vec<UnitEnd>>,
    /// Attempts spent on unfinished units, by offset and unit.
    pub attempts: BTreeMap<(u64, u32), u32>,
    /// The offset below which what took the place of others is; none is below the watermark.
    pub word: u64,
}

/// How far a unit of a half-done pipeline came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitEnd {
    Unfinished,
    /// How, other than dead.
    Settled(Outcome),
    /// Both empty where a checkpoint had no room for them.
    Dead {
        code: String,
        reason: String,
    },
}

/// What a checkpoint may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Nothing is said of this position, or a later one.
    pub until: u64,
    pub max_bytes: usize,
}

/// The stored form of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub state: Bytes,
    /// Nothing is said of this position, or a later one.
    pub until: u64,
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

    /// The runs below `until`.
    fn runs(&self, until: u64) -> impl Iterator<Item = (u64, u64)> {
        let runs = self.ends.as_chunks::<2>().0.iter();
        runs.map(move |[start, end]| (*start, *end.min(&until))).take_while(|(start, end)| start < end)
    }

    fn put(&self, out: &mut Vec<u8>, watermark: u64, until: u64) {
        let mut runs = Vec::new();
        let mut last = watermark;
        for (start, end) in self.runs(until) {
            put_varint(&mut runs, start - last);
            put_varint(&mut runs, end - start);
            last = end;
        }
        let bits_len = bits_len(last - watermark);
        if runs.len() <= bits_len {
            out.put_u8(0);
            put_varint(out, runs.len() as u64);
            out.put_slice(&runs);
            return;
        }
        let mut bits = vec![0_u8; bits_len];
        for (start, end) in self.runs(until) {
            for offset in start - watermark..end - watermark {
                bits[(offset / 8) as usize] |= 1 << (offset % 8);
            }
        }
        out.put_u8(1);
        put_varint(out, bits.len() as u64);
        out.put_slice(&bits);
    }

    fn take(rest: &mut &[u8], watermark: u64) -> Option<Self> {
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
        ends.len().is_multiple_of(2).then_some(Self { watermark, ends })
    }
}

fn bits_len(span: u64) -> usize {
    usize::try_from(span.div_ceil(8)).unwrap_or(usize::MAX)
}

/// The most bytes that a state needs, beside attempts and why units are dead, for so many positions above the watermark
/// and what [`bytes_of_pipeline`] says of each task with several units among them.
pub fn most_bytes(span: u64, of_pipelines: usize) -> usize {
    // The version, the flags, the boot id, a form and a length, three counts, and the word.
    const FIXED: usize = 1 + 1 + 16 + 1 + 4 + 3 * 4 + 4;
    FIXED.saturating_add(bits_len(span)).saturating_add(of_pipelines)
}

/// The most bytes for one task with that many units while it is half done.
pub fn bytes_of_pipeline(units: usize) -> usize {
    // Where it is, and how many units it has.
    const FIXED: usize = 5 + 3;
    FIXED + units.div_ceil(2)
}

impl State {
    /// The stored form, for a checkpoint with this watermark. `bounds.max_bytes` is as many as
    /// [`Checkpointing`](crate::log::Checkpointing) allows at least.
    pub fn encode(&self, watermark: u64, bounds: Bounds) -> Encoded {
        let Bounds { mut until, max_bytes } = bounds;
        let mut word = Vec::new();
        if self.word > watermark {
            put_varint(&mut word, self.word - watermark);
        }
        let max_bytes = max_bytes.saturating_sub(word.len());
        // Room for the two counts of what may be left out.
        let max_necessary = max_bytes.saturating_sub(2);
        let mut out = self.necessary(watermark, until);
        if out.len() > max_necessary {
            let (mut fits, mut too_long) = (watermark, until);
            while too_long - fits > 1 {
                let middle = fits + (too_long - fits) / 2;
                if self.necessary(watermark, middle).len() <= max_necessary {
                    fits = middle;
                } else {
                    too_long = middle;
                }
            }
            until = fits;
            out = self.necessary(watermark, until);
        }
        let attempts = self.attempts.iter().take_while(|((offset, _), _)| *offset < until);
        let mut last = watermark;
        put_while_room(&mut out, max_bytes.saturating_sub(1), attempts, |out, ((offset, unit), attempts)| {
            put_varint(out, offset - last);
            put_varint(out, u64::from(*unit) * ATTEMPTS + u64::from(*attempts).min(ATTEMPTS - 1));
            last = *offset;
        });
        let deaths = self.half_done.range(..until).flat_map(|(offset, units)| {
            units.iter().enumerate().filter_map(move |(unit, end)| match end {
                UnitEnd::Dead { code, reason } => Some((offset, unit, code, reason)),
                UnitEnd::Unfinished | UnitEnd::Settled(_) => None,
            })
        });
        put_while_room(&mut out, max_bytes, deaths, |out, (offset, unit, code, reason)| {
            put_varint(out, offset - watermark);
            put_varint(out, unit as u64);
            put_short(out, code);
            put_short(out, reason);
        });
        out.put_slice(&word);
        Encoded { state: out.into(), until }
    }

    /// What cannot be left out, for positions below `until`.
    fn necessary(&self, watermark: u64, until: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let left_out = self.finished.end() > until || self.half_done.range(until..).next().is_some();
        let mut flags = if self.released { RELEASED } else { 0 };
        if self.more_may_have_run || left_out {
            flags |= MORE_MAY_HAVE_RUN;
        }
        out.put_u8(VERSION);
        out.put_u8(flags);
        out.put_slice(&self.boot_id);
        self.finished.put(&mut out, watermark, until);
        let half_done = self.half_done.range(..until);
        put_varint(&mut out, half_done.clone().count() as u64);
        for (offset, units) in half_done {
            put_varint(&mut out, offset - watermark);
            put_varint(&mut out, units.len() as u64);
            for pair in units.chunks(2) {
                out.put_u8(pair[0].number() | pair.get(1).map_or(0, |unit| unit.number() << 4));
            }
        }
        out
    }

    /// Reads the stored form; none where it is of another version or damaged.
    pub fn decode(watermark: u64, stored: &[u8]) -> Option<Self> {
        let mut rest = stored;
        let rest = &mut rest;
        let version = take(rest, 1)?[0];
        if version != 1 && version != VERSION {
            return None;
        }
        let flags = take(rest, 1)?[0];
        let boot_id = take(rest, 16)?.try_into().ok()?;
        let finished = Finished::take(rest, watermark)?;
        let mut half_done = BTreeMap::new();
        for _ in 0..take_varint(rest)? {
            let offset = watermark.checked_add(take_varint(rest)?)?;
            let count = take_varint(rest)?;
            half_done
                .insert(offset, if version == 1 { take_long_units(rest, count)? } else { take_units(rest, count)? });
        }
        let mut attempts = BTreeMap::new();
        let mut last = watermark;
        for _ in 0..take_varint(rest)? {
            let offset = last.checked_add(take_varint(rest)?)?;
            let (unit, spent) = if version == 1 {
                (take_varint(rest)?, take_varint(rest)?)
            } else {
                last = offset;
                let packed = take_varint(rest)?;
                (packed / ATTEMPTS, packed % ATTEMPTS)
            };
            attempts.insert((offset, u32::try_from(unit).ok()?), u32::try_from(spent).ok()?);
        }
        if version > 1 {
            for _ in 0..take_varint(rest)? {
                let offset = watermark.checked_add(take_varint(rest)?)?;
                let unit = usize::try_from(take_varint(rest)?).ok()?;
                let death = UnitEnd::Dead { code: take_short(rest)?, reason: take_short(rest)? };
                *half_done.get_mut(&offset)?.get_mut(unit)? = death;
            }
        }
        let word = if rest.is_empty() { 0 } else { watermark.checked_add(take_varint(rest)?)? };
        let (released, more_may_have_run) = (flags & RELEASED != 0, flags & MORE_MAY_HAVE_RUN != 0);
        Some(Self { boot_id, released, more_may_have_run, finished, half_done, attempts, word })
    }
}

impl UnitEnd {
    /// What stands for it.
    fn number(&self) -> u8 {
        match self {
            Self::Unfinished => 0,
            Self::Dead { .. } => DEAD,
            Self::Settled(outcome) => {
                let number = SETTLED.iter().find(|(_, settled)| settled == outcome).map(|(number, _)| *number);
                number.expect("a unit ends in one of these ways, or dead")
            }
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Unfinished,
            DEAD => Self::Dead { code: String::new(), reason: String::new() },
            number => Self::Settled(SETTLED.iter().find(|(known, _)| *known == number)?.1),
        })
    }
}

/// Puts a count and as many of the items, from the first on, as there is room for.
fn put_while_room<T>(
    out: &mut Vec<u8>,
    most: usize,
    items: impl Iterator<Item = T>,
    mut put: impl FnMut(&mut Vec<u8>, T),
) {
    let (mut packed, mut count) = (Vec::new(), 0_u64);
    for item in items {
        let before = packed.len();
        put(&mut packed, item);
        if out.len() + varint_len(count + 1) + packed.len() > most {
            packed.truncate(before);
            break;
        }
        count += 1;
    }
    put_varint(out, count);
    out.put_slice(&packed);
}

fn take_units(rest: &mut &[u8], count: u64) -> Option<Vec<UnitEnd>> {
    let count = usize::try_from(count).ok()?;
    let packed = take(rest, count.div_ceil(2))?;
    (0..count).map(|unit| UnitEnd::of_number(packed[unit / 2] >> (4 * (unit % 2)) & 0xf)).collect()
}

/// As version 1 has them.
fn take_long_units(rest: &mut &[u8], count: u64) -> Option<Vec<UnitEnd>> {
    let mut units = Vec::new();
    for _ in 0..count {
        units.push(match take(rest, 1)?[0] {
            DEAD => UnitEnd::Dead { code: take_short(rest)?, reason: take_short(rest)? },
            number => UnitEnd::of_number(number)?,
        });
    }
    Some(units)
}

fn varint_len(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    bits.div_ceil(7).max(1) as usize
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
mod tests;
