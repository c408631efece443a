//! Once-units of commands, gathered into one call of the script that runs them.
//!
//! A call for each unit would cost the server several times as much, and one call for all would let others wait: a
//! call is bounded so that it takes well under a millisecond.

use std::fmt::Write as _;

use deadpool_redis::redis::Cmd;

use jiff::Timestamp;

use super::{
    batch::{self, push_words},
    marker::{Marker, OwnKeys},
    script::ONCE,
};

/// The most units of one call.
const MAX_UNITS: usize = 64;

/// The most bytes of one call. A single unit may be larger.
const MAX_BYTES: usize = 64 * 1024;

/// `EVALSHA`, its digest, how many keys there are, and what the script wants to know of all units.
const HEAD: usize = 7;
const HEAD_BYTES: usize = 96;

/// Units that will go in one call.
#[derive(Default)]
pub(super) struct Gathered {
    /// The buckets' names, each pair after the other, and where each ends.
    names: String,
    ends: Vec<usize>,
    /// What follows the head, as the script reads it.
    words: Cmd,
    count: usize,
    bytes: usize,
    oldest: Option<Timestamp>,
    units: Vec<Place>,
}

/// Where a unit is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its place in the batch.
    pub(super) unit: usize,
    /// Its words among those of its call.
    first: usize,
    count: usize,
}

impl Place {
    /// The unit's own words in its call, which has that many units.
    pub(super) fn words(self, command: &Cmd, units: usize) -> impl Iterator<Item = &[u8]> {
        batch::all_words(command).skip(HEAD + 2 * units + self.first).take(self.count)
    }
}

impl Gathered {
    /// Bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.units.len() >= MAX_UNITS || self.bytes >= MAX_BYTES
    }

    pub(super) fn push<'a, A>(
        &mut self,
        unit: usize,
        marker: &Marker,
        own: &OwnKeys,
        commands: impl ExactSizeIterator<Item = (&'a str, A)>,
    ) where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        let (first, field, names) = (self.count, marker.field(), self.names.len());
        for bucket in own.buckets(marker, "") {
            write!(self.names, "{bucket}").expect("writing into a string succeeds");
            self.ends.push(self.names.len());
        }
        self.words.arg(field.as_ref());
        self.count += 1;
        if commands.len() != 1 {
            self.words.arg(format!("-{}", commands.len()));
            self.count += 1;
        }
        self.bytes += field.as_ref().len() + self.names.len() - names;
        for (name, args) in commands {
            let (count, bytes) = push_words(&mut self.words, name, args);
            self.count += count;
            self.bytes += bytes;
        }
        self.oldest = Some(self.oldest.map_or(marker.accepted_at, |oldest| oldest.min(marker.accepted_at)));
        self.units.push(Place { unit, first, count: self.count - first });
    }

    /// The call, and what it was gathered from. None: nothing was.
    pub(super) fn take(&mut self, own: &OwnKeys, now: Timestamp) -> Option<(Cmd, Box<[Place]>)> {
        let Self { names, ends, words, units, count, bytes, oldest } = std::mem::take(self);
        let head = head(units.len(), oldest?, own, now);
        let mut command = Cmd::with_capacity(HEAD + ends.len() + count, HEAD_BYTES + bytes);
        command.arg("EVALSHA").arg(ONCE.digest()).arg(ends.len());
        // The units' own buckets first, then those of the hour before.
        for which in [0, 1] {
            for place in (which..ends.len()).step_by(2) {
                let start = if place == 0 { 0 } else { ends[place - 1] };
                command.arg(&names[start..ends[place]]);
            }
        }
        for word in head.iter().map(String::as_bytes).chain(batch::all_words(&words)) {
            command.arg(word);
        }
        Some((command, units.into()))
    }
}

/// What the script wants to know of all units: see there.
pub(super) fn head(units: usize, oldest: Timestamp, own: &OwnKeys, now: Timestamp) -> [String; 4] {
    let [keep, life] = own.marker_life().map(|time| time.as_millis().to_string());
    [units.to_string(), keep, life, u8::from(own.was_made_lately(oldest, now)).to_string()]
}
