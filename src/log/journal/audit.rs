//! Follows sequence numbers while frames are read, and says what is missing: exactly which records, in which file,
//! once per process.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::warn;

use super::{
    frame::{Frame, Kind},
    segment::Segment,
    stats::JournalStats,
};

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Its number was seen already: bytes that somebody copied.
    Repeated,
}

/// Checks the frames of one pass over a journal.
pub struct Audit {
    report: Arc<DamageReport>,
    /// The number that the next record should have, once one is known.
    expected: Option<u64>,
    /// Damage after the last good frame: which records it took is known when the next number is.
    open: Option<(Arc<Segment>, Range<u64>)>,
}

impl Audit {
    pub fn new(report: Arc<DamageReport>) -> Self {
        Self { report, expected: None, open: None }
    }

    /// The number of the next record, as far as this pass has come.
    pub fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// A segment begins. Records missing below `forgotten` were finished, and their segments are gone on purpose.
    pub fn enter(&mut self, segment: &Arc<Segment>, forgotten: u64) {
        self.reach(segment, segment.first_seq, forgotten);
    }

    pub fn frame(&mut self, segment: &Arc<Segment>, frame: &Frame) -> Verdict {
        if self.expected.is_some_and(|expected| frame.seq < expected) {
            return Verdict::Repeated;
        }
        // Numbers left out before a Resume were skipped by recovery, which reported what it cut off.
        let forgotten = if frame.kind == Kind::Resume { frame.seq } else { 0 };
        self.reach(segment, frame.seq, forgotten);
        if frame.kind.takes_number() {
            self.expected = Some(frame.seq + 1);
        }
        Verdict::Keep
    }

    pub fn damage(&mut self, segment: &Arc<Segment>, bytes: Range<u64>) {
        self.open = Some(match self.open.take() {
            Some((same, earlier)) if Arc::ptr_eq(&same, segment) => (same, earlier.start..bytes.end),
            _ => (segment.clone(), bytes),
        });
    }

    fn reach(&mut self, segment: &Arc<Segment>, seq: u64, forgotten: u64) {
        let expected = self.expected.replace(seq.max(self.expected.unwrap_or(0))).unwrap_or(seq);
        let damage = self.open.take();
        if seq > expected && seq > forgotten {
            let lost = expected.max(forgotten)..seq;
            let (place, bytes) = damage.as_ref().map_or((segment, None), |(place, bytes)| (place, Some(bytes)));
            self.report.lost(place, lost, bytes);
        } else if let Some((place, bytes)) = damage {
            self.report.harmless(&place, &bytes);
        }
    }
}

/// Tells of damage: a log line and a counter for each place, however often it is read.
pub struct DamageReport {
    journal: String,
    stats: Arc<JournalStats>,
    told: Mutex<HashSet<Told>>,
}

/// A place that was told of.
#[derive(PartialEq, Eq, Hash)]
enum Told {
    /// The number of the first record.
    Lost(u64),
    /// The segment's ordinal, and where in it.
    Harmless(u64, u64),
    /// The file's name, and where in it.
    Unreadable(String, u64),
}

/// Places that are remembered as told of; beyond them some may be told of again.
const REMEMBERED: usize = 4096;

impl DamageReport {
    pub fn new(journal: String, stats: Arc<JournalStats>) -> Arc<Self> {
        Arc::new(Self { journal, stats, told: Mutex::default() })
    }

    /// Records were lost: in the damaged bytes, or with a segment that is not there.
    pub fn lost(&self, segment: &Segment, records: Range<u64>, bytes: Option<&Range<u64>>) {
        if !self.is_news(Told::Lost(records.start)) {
            return;
        }
        self.stats.count_damaged(records.end - records.start);
        let (first, last) = (records.start, records.end - 1);
        let (journal, file) = (&self.journal, segment.file_name());
        match bytes {
            Some(bytes) => warn!(
                journal,
                file,
                first,
                last,
                from = bytes.start,
                to = bytes.end,
                "Journal {journal} lost records {first} to {last}: bytes {} to {} of {file} are damaged",
                bytes.start,
                bytes.end
            ),
            None => warn!(
                journal,
                file,
                first,
                last,
                "Journal {journal} lost records {first} to {last}: they are missing before {file} or in it"
            ),
        }
    }

    fn harmless(&self, segment: &Segment, bytes: &Range<u64>) {
        if self.is_news(Told::Harmless(segment.ordinal, bytes.start)) {
            let (journal, file) = (&self.journal, segment.file_name());
            warn!(
                journal,
                file,
                from = bytes.start,
                to = bytes.end,
                "Journal {journal} has damaged bytes {} to {} in {file}, which held no record",
                bytes.start,
                bytes.end
            );
        }
    }

    /// The end of the newest segment was not a frame.
    pub fn torn(&self, segment: &Segment, bytes: &Range<u64>, next: u64) {
        self.stats.count_torn_tail();
        let (journal, file) = (&self.journal, segment.file_name());
        warn!(
            journal,
            file,
            from = bytes.start,
            to = bytes.end,
            next,
            "Journal {journal} ended in an unfinished write, which was cut: bytes {} to {} of {file}; if it is damage \
             instead, records from {next} on are lost",
            bytes.start,
            bytes.end
        );
    }

    /// The disk has lost bytes of a file. Which records they held is said when it is known.
    pub fn unreadable(&self, path: &Path, bytes: &Range<u64>, error: &io::Error) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if self.is_news(Told::Unreadable(file.clone(), bytes.start)) {
            let journal = &self.journal;
            warn!(
                journal,
                file,
                from = bytes.start,
                to = bytes.end,
                %error,
                "Journal {journal} cannot read bytes {} to {} of {file}, which count as damaged: {error}",
                bytes.start,
                bytes.end
            );
        }
    }

    /// Something is in the directory that does not belong there, or not under that name.
    pub fn foreign(&self, path: &Path, why: &str) {
        let (journal, file) = (&self.journal, path.display());
        warn!(journal, %file, "Journal {journal} leaves {file} alone: {why}");
    }

    fn is_news(&self, place: Told) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= REMEMBERED {
            told.clear();
        }
        told.insert(place)
    }
}
