//! The crash model: a journal on a simulated disk does what chance says, dies in the middle of it, and must after
//! any number of crashes hold every acknowledged record, nothing that was not appended, in order, and a checkpoint
//! that is not older than the last durable one. The same cases are tried each time, unless
//! `REDRIVE_CRASH_CASES` sets how many: then from a random seed on, which is printed. `REDRIVE_CRASH_SEED` sets the
//! seed of the first, to repeat what was found.
//!
//! That the model would notice is shown by planting bugs: it must find each.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    super::{
        audit::DamageReport,
        budget::{Budget, Purpose},
        chain::{Chain, Item, WriteError},
        frame::{Kind, Pair},
        reader::Source,
        segment::{Aside, Home, Shape},
        stats::JournalStats,
    },
    sim::{Faults, SimDisk},
};
use crate::log::{Checkpoint, Entry};

/// What a journal must not do; planted to see that the model would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    AcknowledgeBeforeSync,
    NoDirectorySync,
    UnlinkBeforeCheckpoint,
    ReuseSequence,
    ReaderAheadOfSync,
}

const DIR: &str = "/data/queues/default/normal";

#[test]
fn acknowledged_records_survive_any_crash() {
    let asked = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let soak = asked("REDRIVE_CRASH_CASES");
    let cases = soak.unwrap_or(20_000);
    // A normal run is the same every time; a long one looks where nobody has looked yet.
    let first = asked("REDRIVE_CRASH_SEED").unwrap_or_else(|| if soak.is_some() { fastrand::u64(..) } else { 0 });
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..cases).step_by(threads as usize).map(|case| first.wrapping_add(case)) {
                    if let Err(found) = Case::new(seed, None).run() {
                        panic!("seed {seed}: {found}");
                    }
                }
            });
        }
    });
}

/// Two attempts to write the journal's identity survived beside each other, and the wrong one won.
#[test]
fn identity_survives_the_crash_that_once_lost_it() {
    Case::new(14_864_720_018_179_286_027, None).run().expect("nothing is lost");
}

#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::AcknowledgeBeforeSync,
        Bug::NoDirectorySync,
        Bug::UnlinkBeforeCheckpoint,
        Bug::ReuseSequence,
        Bug::ReaderAheadOfSync,
    ] {
        let found = (0..5_000).find(|seed| Case::new(*seed, Some(bug)).run().is_err());
        assert!(found.is_some(), "{bug:?} was not found");
    }
}

/// One life of a journal, with everything that is known about it from outside.
struct Case {
    chance: fastrand::Rng,
    disk: SimDisk,
    bug: Option<Bug>,
    /// Acknowledged records by number.
    acknowledged: BTreeMap<u64, Bytes>,
    /// Records whose append was broken off: there or not, after the next recovery.
    doubtful: Vec<Bytes>,
    /// Records that a reader has handed out.
    seen: BTreeMap<u64, Bytes>,
    /// The last durable checkpoint, and those broken off after it.
    checkpoint: Option<Checkpoint>,
    doubtful_checkpoints: Vec<Checkpoint>,
    values: u64,
}

type Verdict<T = ()> = Result<T, String>;

/// An opened journal and a reader of it.
struct Open {
    chain: Chain,
    reader: Source,
}

impl Case {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed),
            disk: SimDisk::new(),
            bug,
            acknowledged: BTreeMap::new(),
            doubtful: Vec::new(),
            seen: BTreeMap::new(),
            checkpoint: None,
            doubtful_checkpoints: Vec::new(),
            values: 0,
        }
    }

    fn run(mut self) -> Verdict {
        for _ in 0..self.chance.u8(1..=4) {
            // Most crashes come while the journal is used, some already while it is opened.
            let changes_left = if self.chance.u8(..4) == 0 { self.chance.u64(..8) } else { self.chance.u64(..150) };
            self.disk.set_faults(Faults { changes_left: Some(changes_left), ..Faults::default() });
            if let Some(open) = self.open() {
                self.live(open)?;
            }
            self.crash();
            self.check()?;
        }
        Ok(())
    }

    fn crash(&mut self) {
        if self.chance.u8(..4) == 0 {
            self.disk.kill();
        } else {
            self.disk.cut_power(&mut self.chance);
        }
    }

    fn open(&mut self) -> Option<Open> {
        let home = self.home();
        let chain = if home.disk.inspect(&home.dir).is_ok() { Chain::open(home, true).ok()? } else { Chain::new(home) };
        let reader = self.reader(&chain);
        Some(Open { chain, reader })
    }

    fn reader(&self, chain: &Chain) -> Source {
        let from = chain.checkpoint().map_or(0, |checkpoint| checkpoint.watermark);
        Source::new(chain.home().clone(), chain.shelf().clone(), from)
    }

    fn home(&self) -> Arc<Home> {
        let stats = Arc::new(JournalStats::default());
        Arc::new(Home {
            root: "/".into(),
            dir: DIR.into(),
            disk: Arc::new(self.disk.clone()),
            shape: Shape { segment_bytes: 4096, first_step: 512, max_step: 1024, min_free_bytes: 0 },
            account: Budget::new(1 << 30, &["default".into()], stats.clone()).account(Some("default".into())),
            report: DamageReport::new("model".to_owned(), stats),
            aside: Aside::default(),
            bug: self.bug,
        })
    }

    /// Does things until the disk dies, or enough is done.
    fn live(&mut self, mut open: Open) -> Verdict {
        // What was recovered is what everybody sees from here on.
        self.settle(&open)?;
        for _ in 0..self.chance.u8(1..40) {
            match self.chance.u8(..20) {
                0..11 => self.append(&mut open)?,
                11..16 => self.commit(&mut open),
                16..19 => self.read(&mut open)?,
                _ => self.fill_disk(),
            }
            if self.disk.changes_left() == Some(0) {
                break;
            }
        }
        // A reader is never ahead of what is durable, also not while a write is failing.
        self.read(&mut open)
    }

    fn append(&mut self, open: &mut Open) -> Verdict {
        let mut items: Vec<Item> = Vec::new();
        for _ in 0..self.chance.u8(1..5) {
            self.values += 1;
            let len = if self.chance.u8(..8) == 0 { self.chance.usize(500..1500) } else { self.chance.usize(..200) };
            let mut value = format!("value {} ", self.values).into_bytes();
            value.resize(value.len() + len, b'x');
            items.push((Kind::Record, Pair { first: Bytes::new(), second: value.into() }));
        }
        let values = items.iter().map(|(_, pair)| pair.second.clone());
        match open.chain.append(&items, Purpose::Append) {
            Ok(first) => {
                let used = self.acknowledged.keys().chain(self.seen.keys()).max();
                if used.is_some_and(|used| *used >= first) {
                    return Err(format!("number {first} was given before"));
                }
                self.acknowledged.extend((first..).zip(values));
            }
            Err(WriteError::Poisoned(_) | WriteError::Refused(_)) => self.doubtful.extend(values),
            // Nothing was stored, whatever happens from here on.
            Err(WriteError::Full | WriteError::TooLarge { .. } | WriteError::BeyondEnd { .. }) => {}
        }
        Ok(())
    }

    /// The disk is full, or about to be; or there is room again.
    fn fill_disk(&mut self) {
        let room = self.chance.bool().then(|| self.chance.u64(..3000));
        let short_writes = self.chance.bool();
        self.disk.set_faults(Faults {
            room,
            short_writes,
            changes_left: self.disk.changes_left(),
            ..Faults::default()
        });
    }

    fn commit(&mut self, open: &mut Open) {
        let done = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
        let end = open.chain.shelf().progress().next_seq;
        self.values += 1;
        let mut state = self.values.to_le_bytes().to_vec();
        state.resize(self.chance.usize(8..300), 7);
        let checkpoint = Checkpoint { watermark: self.chance.u64(done.min(end)..=end), state: state.into() };
        match open.chain.commit(&checkpoint) {
            Ok(()) => {
                self.checkpoint = Some(checkpoint);
                self.doubtful_checkpoints.clear();
            }
            Err(_) => self.doubtful_checkpoints.push(checkpoint),
        }
    }

    fn read(&mut self, open: &mut Open) -> Verdict {
        let max_bytes = self.chance.usize(1..2000);
        for entry in open.reader.read(max_bytes).map_err(|error| error.to_string())? {
            self.see(&entry)?;
        }
        Ok(())
    }

    fn see(&mut self, entry: &Entry) -> Verdict {
        let Entry { offset, record, .. } = entry;
        let known = self.acknowledged.get(offset).or(self.seen.get(offset));
        if known.is_some_and(|known| *known != record.value) {
            return Err(format!("number {offset} is another record than before"));
        }
        if known.is_none() && !self.doubtful.contains(&record.value) {
            return Err(format!("number {offset} was never appended"));
        }
        self.seen.insert(*offset, record.value.clone());
        Ok(())
    }

    /// Opens what the crash left, perhaps crashing in that several times, and compares.
    fn check(&mut self) -> Verdict {
        while self.chance.u8(..3) == 0 {
            let changes_left = Some(self.chance.u64(..12));
            self.disk.set_faults(Faults { changes_left, ..Faults::default() });
            drop(self.open());
            self.crash();
        }
        self.disk.set_faults(Faults::default());
        let open = self.open().ok_or("it does not open")?;
        self.settle(&open)
    }

    /// Compares an opened journal with what is known, and learns the fate of what was doubtful.
    fn settle(&mut self, open: &Open) -> Verdict {
        let found = open.chain.checkpoint().cloned();
        if found != self.checkpoint
            && !self.doubtful_checkpoints.iter().any(|doubtful| Some(doubtful) == found.as_ref())
        {
            return Err(format!("the checkpoint went from {:?} to {found:?}", self.checkpoint));
        }
        self.checkpoint = found;
        self.doubtful_checkpoints.clear();
        let watermark = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);

        let entries = self.reader(&open.chain).read(usize::MAX).map_err(|error| error.to_string())?;
        if !entries.is_sorted_by(|a, b| a.offset < b.offset) {
            return Err("the order is lost".to_owned());
        }
        let there: BTreeMap<u64, Bytes> =
            entries.iter().map(|entry| (entry.offset, entry.record.value.clone())).collect();
        let due = self.acknowledged.range(watermark..).chain(self.seen.range(watermark..));
        for (number, value) in due {
            if there.get(number) != Some(value) {
                return Err(format!("record {number} is lost"));
            }
        }
        for entry in &entries {
            self.see(entry)?;
        }
        self.doubtful.clear();
        self.acknowledged.extend(there);
        let end = open.chain.shelf().progress().next_seq;
        match self.acknowledged.keys().next_back() {
            Some(last) if *last >= end => Err(format!("number {last} would be given again")),
            _ => Ok(()),
        }
    }
}
