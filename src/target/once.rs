//! Once-units of commands, gathered into one call of the script that runs them.
//!
//! A call for each unit would cost the server several times as much, and one call for all would let others wait: a
//! call is bounded so that it takes well under a millisecond.

use deadpool_redis::redis::Cmd;

use super::{
    batch::{self, push_words},
    script::ONCE,
};

/// The most units of one call.
const MAX_UNITS: usize = 64;

/// The most bytes of one call. A single unit may be larger.
const MAX_BYTES: usize = 64 * 1024;

/// Units that will go in one call.
#[derive(Default)]
pub(super) struct Gathered {
    buckets: Vec<[String; 2]>,
    /// What follows the keys and the markers' life, as the script reads it.
    words: Cmd,
    count: usize,
    bytes: usize,
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

/// `EVALSHA`, the digest, the number of keys, and the markers' life.
const HEAD: usize = 4;
const HEAD_BYTES: usize = 64;

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
        buckets: [String; 2],
        field: &[u8],
        commands: impl ExactSizeIterator<Item = (&'a str, A)>,
    ) where
        A: Iterator<Item = &'a [u8]> + Clone,
    {
        let first = self.count;
        self.words.arg(field).arg(commands.len());
        self.count += 2;
        self.bytes += field.len() + buckets.iter().map(String::len).sum::<usize>();
        for (name, args) in commands {
            let (count, bytes) = push_words(&mut self.words, name, args);
            self.count += count;
            self.bytes += bytes;
        }
        self.buckets.push(buckets);
        self.units.push(Place { unit, first, count: self.count - first });
    }

    /// The call, and what it was gathered from. None: nothing was.
    pub(super) fn take(&mut self, life: &str) -> Option<(Cmd, Box<[Place]>)> {
        let Self { buckets, words, units, count, bytes } = std::mem::take(self);
        if units.is_empty() {
            return None;
        }
        let mut command = Cmd::with_capacity(HEAD + 2 * buckets.len() + count, HEAD_BYTES + bytes);
        command.arg("EVALSHA").arg(ONCE.digest()).arg(2 * buckets.len());
        for bucket in buckets.as_flattened() {
            command.arg(bucket);
        }
        command.arg(life);
        for word in batch::all_words(&words) {
            command.arg(word);
        }
        Some((command, units.into()))
    }
}
