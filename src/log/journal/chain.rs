//! The writing side of a journal, synchronous and without threads: one write, one sync, then the readers are told.
//! `writer` runs it on a thread; the crash tests drive it directly.
//!
//! The order of effects is the point of this file:
//!
//! - A segment's file: create, header, sync the file, sync the directory; only then is a frame put into it.
//! - Frames: write, sync, show to readers, and only then does [`Chain::append`] return.
//! - Segments that are not needed: the checkpoint that says so is durable first; then unlink, then sync the directory.
//! - After a failed sync nothing is written any more, and nothing is called a success.

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc};

use super::{
    budget::Purpose,
    checkpoint,
    disk::{DiskFile, DurableError, make_dirs, write_all_at},
    frame::{FRAME_HEADER_BYTES, FRAMES_START, Kind, Pair, Seed, SegmentHeader, encode_frame},
    recovery::{self, RecoveryError},
    segment::{Home, Segment, SegmentName, fill_zeros},
    shelf::{Progress, Shelf},
};
use crate::log::Checkpoint;

pub const META: &str = "META";

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// No room; nothing was stored.
    #[error("no room")]
    Full,
    /// Nothing was stored.
    #[error("the disk refused")]
    Refused(#[source] io::Error),
    /// A sync failed: whether something was stored is unknown, and nothing more can be.
    #[error("a sync failed")]
    Poisoned(#[source] io::Error),
    /// Nothing was stored, and the same checkpoint never will be.
    #[error("a checkpoint's state of {bytes} bytes is over the journal's limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// Nothing was stored: what has no number yet cannot be finished.
    #[error("a checkpoint up to {watermark} is beyond the journal's end at {end}")]
    BeyondEnd { watermark: u64, end: u64 },
}

/// One frame to append: its kind, and headers and value or key and value.
pub type Item = (Kind, Pair);

pub struct Chain {
    home: Arc<Home>,
    shelf: Arc<Shelf>,
    state: Recovered,
    /// The journal's identity if it is still to be made: the same at each try, so that no two lie beside each other.
    new_log_id: [u8; 16],
    buffer: Vec<u8>,
    poisoned: bool,
}

/// What a journal is known to be before its next write.
#[derive(Default)]
pub struct Recovered {
    /// `None` until the directory was made.
    pub log_id: Option<[u8; 16]>,
    /// The segments before the active one and that one, oldest first, with the bytes that each takes.
    pub segments: VecDeque<(Arc<Segment>, u64)>,
    pub active: Option<Active>,
    pub next_seq: u64,
    pub checkpoint: Option<Checkpoint>,
    /// Numbers were skipped, and the next write must say so.
    pub resume: bool,
}

/// The segment that is written to.
pub struct Active {
    pub segment: Arc<Segment>,
    pub seed: Seed,
    pub file: Arc<dyn DiskFile>,
    /// Where the next frame goes: behind the last durable one.
    pub end: u64,
    /// The size of the file; zeros from `end` to here.
    pub filled: u64,
}

impl Chain {
    /// A journal that does not exist yet: its directory is made by the first write.
    pub fn new(home: Arc<Home>) -> Self {
        Self::recovered(home, Recovered::default())
    }

    /// Opens a journal that exists. `with_checkpoints` is false for tables.
    pub fn open(home: Arc<Home>, with_checkpoints: bool) -> Result<Self, RecoveryError> {
        let state = recovery::recover(&home, with_checkpoints)?;
        let mut chain = Self::recovered(home, state);
        chain.resume()?;
        Ok(chain)
    }

    fn recovered(home: Arc<Home>, state: Recovered) -> Self {
        let segments = state.segments.iter().map(|(segment, _)| segment.clone()).collect();
        let growing = state.active.as_ref().map(|active| (active.segment.ordinal, active.end));
        let progress = Progress {
            next_seq: state.next_seq,
            watermark: state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark),
            disk_bytes: state.segments.iter().map(|(_, bytes)| bytes).sum(),
            closed: false,
        };
        let shelf = Shelf::new(segments, growing, progress);
        Self { home, shelf, state, new_log_id: random_id(), buffer: Vec::new(), poisoned: false }
    }

    pub fn home(&self) -> &Arc<Home> {
        &self.home
    }

    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// The newest durable checkpoint.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.state.checkpoint.as_ref()
    }

    /// Stores all of the items, durably, or none. Answers the number of the first.
    pub fn append(&mut self, items: &[Item], purpose: Purpose) -> Result<u64, WriteError> {
        let first = self.state.next_seq;
        let bytes = items.iter().map(|(_, pair)| pair.frame_bytes()).sum();
        self.write(bytes, items.len() as u64, purpose, |buffer, seed| {
            for (seq, (kind, pair)) in (first..).zip(items) {
                pair.encode(buffer, seed, *kind, seq);
            }
        })?;
        Ok(first)
    }

    /// Stores a checkpoint, durably, and then lets go of the segments that it makes superfluous.
    pub fn commit(&mut self, checkpoint: &Checkpoint) -> Result<(), WriteError> {
        #[cfg(test)]
        if self.has(super::tests::model::Bug::UnlinkBeforeCheckpoint) {
            self.forget_below(checkpoint.watermark)?;
        }
        self.check(checkpoint)?;
        let log_id = self.make_home()?;
        let next_seq = self.state.next_seq;
        let bytes = checkpoint::OVERHEAD_BYTES + checkpoint.state.len();
        self.write(bytes, 0, Purpose::Reserve, |buffer, seed| {
            checkpoint::encode(buffer, seed, log_id, next_seq, checkpoint);
        })?;
        self.state.checkpoint = Some(checkpoint.clone());
        self.shelf.update(|progress| progress.watermark = checkpoint.watermark);
        self.forget_below(checkpoint.watermark)
    }

    /// Whether this can be read back as a checkpoint of this journal.
    fn check(&self, Checkpoint { watermark, state }: &Checkpoint) -> Result<(), WriteError> {
        let (limit, end) = (checkpoint::MAX_STATE_BYTES, self.state.next_seq);
        if state.len() > limit {
            return Err(WriteError::TooLarge { bytes: state.len(), limit });
        }
        if *watermark > end {
            return Err(WriteError::BeyondEnd { watermark: *watermark, end });
        }
        Ok(())
    }

    /// Unlinks the segments that hold no record at or above the watermark. The newest one stays, and so does the one
    /// before it: it holds the previous checkpoint, and the records that were appended last.
    fn forget_below(&mut self, watermark: u64) -> Result<(), WriteError> {
        let firsts: Vec<(u64, u64)> =
            self.state.segments.iter().map(|(segment, _)| (segment.ordinal, segment.first_seq)).collect();
        let old = &firsts[..firsts.len().saturating_sub(2)];
        let done: Vec<u64> = old
            .iter()
            .zip(&firsts[1.min(firsts.len())..])
            .filter(|((_, first), (_, next))| next <= &watermark || first == next)
            .map(|((ordinal, _), _)| *ordinal)
            .collect();
        self.forget(&done)
    }

    /// Unlinks segments; the newest one is never among them.
    pub fn forget(&mut self, ordinals: &[u64]) -> Result<(), WriteError> {
        let newest = self.state.segments.back().map(|(segment, _)| segment.ordinal);
        let mut unlinked = false;
        for ordinal in ordinals.iter().filter(|ordinal| Some(**ordinal) != newest) {
            let Some(at) = self.state.segments.iter().position(|(segment, _)| segment.ordinal == *ordinal) else {
                continue;
            };
            let (segment, bytes) = &self.state.segments[at];
            match self.home.disk.unlink(&segment.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // It stays in the list, and is tried again at the next checkpoint.
                Err(error) => {
                    tracing::debug!(%error, file = segment.file_name(), "A finished segment could not be unlinked");
                    continue;
                }
            }
            unlinked = true;
            self.home.account.give_back(*bytes);
            self.shelf.remove(*ordinal);
            self.state.segments.remove(at);
        }
        if unlinked {
            self.show_bytes();
            let dir = self.home.dir.clone();
            self.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Makes durable that numbers were skipped, lest the next process give them out. A full disk is no reason not to
    /// start: then the next write says it.
    fn resume(&mut self) -> Result<(), RecoveryError> {
        if !self.state.resume {
            return Ok(());
        }
        match self.write(0, 0, Purpose::Reserve, |_, _| ()) {
            Err(WriteError::Poisoned(source)) => Err(RecoveryError::Io { path: self.home.dir.clone(), source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Gives memory back while there is nothing to do.
    pub fn shrink(&mut self) {
        const KEPT: usize = 16 * 1024;
        if self.buffer.capacity() > KEPT {
            self.buffer = Vec::new();
        }
    }

    fn write(
        &mut self,
        bytes: usize,
        numbers: u64,
        purpose: Purpose,
        encode: impl FnOnce(&mut Vec<u8>, Seed),
    ) -> Result<(), WriteError> {
        let log_id = self.make_home()?;
        self.make_room(bytes as u64, purpose)?;
        let active = self.state.active.as_mut().expect("making room leaves a segment to write to");
        self.buffer.clear();
        // First of all: what comes behind it has the numbers after those that were skipped.
        if self.state.resume {
            encode_frame(&mut self.buffer, active.seed, Kind::Resume, self.state.next_seq, &[]);
        }
        if active.end == FRAMES_START
            && let Some(checkpoint) = &self.state.checkpoint
        {
            checkpoint::encode(&mut self.buffer, active.seed, log_id, self.state.next_seq, checkpoint);
        }
        encode(&mut self.buffer, active.seed);
        if let Err(error) = write_all_at(&*active.file, &self.buffer, active.end) {
            return Err(self.cut_back(error));
        }
        let end = active.end + self.buffer.len() as u64;
        #[cfg(test)]
        if self.has(super::tests::model::Bug::ReaderAheadOfSync) {
            self.shelf.grow(end, self.state.next_seq + numbers);
        }
        self.sync_frames()?;
        self.state.next_seq += numbers;
        self.state.resume = false;
        self.state.active.as_mut().expect("it was written to").end = end;
        self.shelf.grow(end, self.state.next_seq);
        Ok(())
    }

    /// A write failed, perhaps after a part. Nobody is told that nothing was stored before that is true on disk.
    fn cut_back(&mut self, error: io::Error) -> WriteError {
        let active = self.state.active.as_mut().expect("it was written to");
        let cut = active.file.truncate(active.end).and_then(|()| active.file.sync_data());
        if let Err(error) = cut {
            return self.poison(error);
        }
        let freed = active.filled - active.end;
        active.filled = active.end;
        self.home.account.give_back(freed);
        self.count_active();
        refusal(error)
    }

    /// Sees to it that there is a segment whose zero-filled space holds `bytes` and what goes in front of them.
    fn make_room(&mut self, bytes: u64, purpose: Purpose) -> Result<(), WriteError> {
        let resume = if self.state.resume { FRAME_HEADER_BYTES as u64 } else { 0 };
        let copy = self
            .state
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| (checkpoint::OVERHEAD_BYTES + checkpoint.state.len()) as u64);
        let segment_bytes = self.home.shape.segment_bytes;
        // What was skipped is said where it was skipped: the next segment's first number would look like a loss.
        let fits = self.state.active.as_ref().is_some_and(|active| {
            self.state.resume || active.end == FRAMES_START || active.end + bytes <= segment_bytes
        });
        if !fits {
            self.roll(purpose)?;
        }
        let active = self.state.active.as_ref().expect("rolling leaves a segment to write to");
        let in_front = if active.end == FRAMES_START { resume + copy } else { resume };
        self.grow(active.end + bytes + in_front, purpose)
    }

    /// Grows the active segment's file, with zeros, to at least `size`: syncing frames into space that was written
    /// before is much cheaper than growing the file with each.
    fn grow(&mut self, size: u64, purpose: Purpose) -> Result<(), WriteError> {
        let active = self.state.active.as_mut().expect("there is a segment to grow");
        if size <= active.filled {
            return Ok(());
        }
        let shape = &self.home.shape;
        let needed = (size - active.filled).next_multiple_of(512);
        let ahead = active.filled.clamp(shape.first_step, shape.max_step);
        let left = shape.segment_bytes.saturating_sub(active.filled);
        let wished = ahead.min(left).max(needed);
        if purpose == Purpose::Append {
            let space = self.home.disk.space(&self.home.dir).map_err(WriteError::Refused)?;
            if space.free_bytes < shape.min_free_bytes.saturating_add(needed) {
                return Err(WriteError::Full);
            }
        }
        let account = &self.home.account;
        let Some(step) = [wished, needed].into_iter().find(|step| account.take(*step, purpose)) else {
            return Err(WriteError::Full);
        };
        if let Err(error) = fill_zeros(&*active.file, active.filled..active.filled + step) {
            account.give_back(step);
            // What was filled are zeros behind the end: harmless, but for the room that they take.
            let _ = active.file.truncate(active.filled);
            return Err(refusal(error));
        }
        active.filled += step;
        self.count_active();
        Ok(())
    }

    /// Starts the next segment.
    fn roll(&mut self, purpose: Purpose) -> Result<(), WriteError> {
        let log_id = self.make_home()?;
        let last = self.state.segments.back().map_or(0, |(segment, _)| segment.ordinal);
        let mut header =
            SegmentHeader { log_id, nonce: random_id(), ordinal: last + 1, first_seq: self.state.next_seq };
        if !self.home.account.take(FRAMES_START, purpose) {
            return Err(WriteError::Full);
        }
        let made = self.create_segment(&mut header);
        let (file, path) = match made {
            Ok(made) => made,
            Err(error) => {
                self.home.account.give_back(FRAMES_START);
                return Err(refusal(error));
            }
        };
        file.sync_data().map_err(|error| self.poison(error))?;
        let dir = self.home.dir.clone();
        self.sync_dir(&dir)?;
        if let Some(old) = &self.state.active {
            let _ = old.segment.sealed_end.set(old.end);
        }
        let segment = Segment::new(&header, path);
        self.state.segments.push_back((segment.clone(), FRAMES_START));
        self.shelf.push(segment.clone(), FRAMES_START);
        let seed = header.seed();
        self.state.active = Some(Active { segment, seed, file, end: FRAMES_START, filled: FRAMES_START });
        self.show_bytes();
        Ok(())
    }

    /// Creates the file under the first free ordinal, with its header.
    fn create_segment(&self, header: &mut SegmentHeader) -> io::Result<(Arc<dyn DiskFile>, PathBuf)> {
        loop {
            let name = SegmentName { ordinal: header.ordinal, first_seq: header.first_seq };
            let path = name.path_in(&self.home.dir);
            match self.home.disk.create(&path) {
                Ok(file) => {
                    return match write_all_at(&*file, &header.encode(), 0) {
                        Ok(()) => Ok((file, path)),
                        Err(error) => {
                            let _ = self.home.disk.unlink(&path);
                            Err(error)
                        }
                    };
                }
                // A foreign file of that name is left alone.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => header.ordinal += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the directory and the journal's identity, unless they are there. After a failed sync nothing is made.
    fn make_home(&mut self) -> Result<[u8; 16], WriteError> {
        if self.poisoned {
            return Err(WriteError::Refused(io::Error::other("an earlier sync failed")));
        }
        if let Some(log_id) = self.state.log_id {
            return Ok(log_id);
        }
        let (disk, dir) = (&*self.home.disk, &self.home.dir);
        let log_id = self.new_log_id;
        let made = make_dirs(disk, dir).and_then(|()| write_meta(&self.home, log_id));
        made.map_err(|error| match error {
            // Nothing was stored: the next write tries again.
            DurableError::Refused(error) => refusal(error),
            DurableError::Sync(error) => self.poison(error),
        })?;
        self.state.log_id = Some(log_id);
        Ok(log_id)
    }

    fn sync_frames(&mut self) -> Result<(), WriteError> {
        #[cfg(test)]
        if self.has(super::tests::model::Bug::AcknowledgeBeforeSync) {
            return Ok(());
        }
        let active = self.state.active.as_ref().expect("it was written to");
        active.file.sync_data().map_err(|error| self.poison(error))
    }

    fn sync_dir(&mut self, dir: &std::path::Path) -> Result<(), WriteError> {
        #[cfg(test)]
        if self.has(super::tests::model::Bug::NoDirectorySync) {
            return Ok(());
        }
        self.home.disk.sync_dir(dir).map_err(|error| self.poison(error))
    }

    fn poison(&mut self, error: io::Error) -> WriteError {
        self.poisoned = true;
        WriteError::Poisoned(error)
    }

    fn count_active(&mut self) {
        if let (Some((_, bytes)), Some(active)) = (self.state.segments.back_mut(), &self.state.active) {
            *bytes = active.filled;
        }
        self.show_bytes();
    }

    fn show_bytes(&self) {
        let bytes = self.state.segments.iter().map(|(_, bytes)| bytes).sum();
        self.shelf.update(|progress| progress.disk_bytes = bytes);
    }

    #[cfg(test)]
    fn has(&self, bug: super::tests::model::Bug) -> bool {
        self.home.bug == Some(bug)
    }
}

/// Random enough to be unlike any other; not a secret.
pub fn random_id() -> [u8; 16] {
    let mut id = [0; 16];
    fastrand::fill(&mut id);
    id
}

/// Writes the file that says which log the segments of a directory belong to: a segment's header that stands alone.
pub fn write_meta(home: &Home, log_id: [u8; 16]) -> Result<(), DurableError> {
    let path = home.dir.join(META);
    let header = SegmentHeader { log_id, nonce: [0; 16], ordinal: 0, first_seq: 0 };
    let file = match home.disk.create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => home.disk.open(&path),
        created => created,
    };
    let file = file.map_err(DurableError::Refused)?;
    write_all_at(&*file, &header.encode(), 0).map_err(DurableError::Refused)?;
    // All names above it too: the process that made them may have died before it synced them.
    file.sync_data().and_then(|()| home.sync_names()).map_err(DurableError::Sync)
}

fn refusal(error: io::Error) -> WriteError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => WriteError::Full,
        _ => WriteError::Refused(error),
    }
}
