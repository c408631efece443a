//! Opens a journal that exists: finds out what its files hold and where the next frame goes. Only the newest segment
//! is read whole; of the others the headers, and the rest when somebody reads them.
//!
//! The invariants: whatever the directory holds, a journal opens (only a later format, a symbolic link and a disk that
//! fails are refused); opening twice, or again after a crash in the middle, gives the same journal; what is shown to
//! readers afterwards is durable, also where the process before died between its write and its sync.

use std::{collections::BTreeMap, io, ops::Range, path::PathBuf, sync::Arc};

use super::{
    audit::Audit,
    chain::{Active, META, Recovered, random_id, write_meta},
    checkpoint,
    disk::{DiskFile, DurableError, FileKind, read_full_at, write_all_at},
    frame::{FRAME_HEADER_BYTES, FRAMES_START, FoundHeader, Kind, Pair, Seed, SegmentHeader, encode_frame},
    scanner::{Scanner, Step},
    segment::{Home, Segment, SegmentName},
};
use crate::log::Checkpoint;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("{} is a symbolic link", path.display())]
    Symlink { path: PathBuf },
    #[error("{} has format {version}, which a later version of Redrive wrote", path.display())]
    NewerFormat { path: PathBuf, version: u8 },
    #[error("{} could not be read or written", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Opens the journal in `home`. `with_checkpoints` is false for tables, which have none to look for.
pub fn recover(home: &Arc<Home>, with_checkpoints: bool) -> Result<Recovered, RecoveryError> {
    let found = look_around(home)?;
    let log_id = identify(home, &found)?;
    let segments = sort_out(home, found.segments, log_id)?;
    let mut state = Recovered { log_id: Some(log_id), ..Recovered::default() };
    for segment in segments {
        home.account.take_found(segment.size);
        state.segments.push_back((segment.segment, segment.size));
    }
    if let Some((newest, size)) = state.segments.back().cloned() {
        read_newest(home, &newest, size, &mut state)?;
    }
    if with_checkpoints && state.checkpoint.is_none() {
        state.checkpoint = find_checkpoint(home, &state, log_id)?;
    }
    let watermark = state.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
    state.next_seq = state.next_seq.max(watermark);
    #[cfg(test)]
    if home.bug == Some(super::tests::model::Bug::ReuseSequence) {
        state.next_seq = state.next_seq.saturating_sub(1);
    }
    if let Some((oldest, _)) = state.segments.front()
        && with_checkpoints
        && oldest.first_seq > watermark
    {
        home.report.lost(oldest, watermark..oldest.first_seq, None);
    }
    // The names too may be those of a process that died before it made them durable.
    home.sync_names().map_err(|source| io_error(&home.dir, source))?;
    Ok(state)
}

struct Found {
    meta: FoundHeader,
    /// Both copies in META are there and the same.
    meta_is_whole: bool,
    segments: Vec<FoundSegment>,
}

struct FoundSegment {
    name: SegmentName,
    path: PathBuf,
    header: FoundHeader,
    size: u64,
    /// Made but never used: a crash came between.
    unused: bool,
}

struct Sorted {
    segment: Arc<Segment>,
    size: u64,
}

fn look_around(home: &Home) -> Result<Found, RecoveryError> {
    let mut found = Found { meta: FoundHeader::Unreadable, meta_is_whole: false, segments: Vec::new() };
    for listed in home.disk.list(&home.dir).map_err(|source| io_error(&home.dir, source))? {
        let path = home.dir.join(&listed.name);
        match listed.kind {
            FileKind::Symlink => return Err(RecoveryError::Symlink { path }),
            FileKind::Dir | FileKind::Other => home.report.foreign(&path, "it is not a file"),
            FileKind::File => look_at(home, &listed.name, path, &mut found)?,
        }
    }
    Ok(found)
}

fn look_at(home: &Home, name: &str, path: PathBuf, found: &mut Found) -> Result<(), RecoveryError> {
    let parsed = SegmentName::parse(name);
    if parsed.is_none() && name != META {
        match name.strip_suffix(".bad").and_then(|stem| SegmentName::parse(&format!("{stem}.seg"))) {
            Some(_) => home.aside.found(),
            None => home.report.foreign(&path, "it is none of the journal's"),
        }
        return Ok(());
    }
    let read = || {
        let file = home.open(&path)?;
        let mut head = vec![0; FRAMES_START as usize];
        let len = read_full_at(&*file, &mut head, 0)?;
        head.truncate(len);
        let size = file.size()?;
        io::Result::Ok((head, size, file))
    };
    let (head, size, file) = read().map_err(|source| io_error(&path, source))?;
    let header = SegmentHeader::decode(&head);
    if let FoundHeader::Newer(version) = header {
        return Err(RecoveryError::NewerFormat { path, version });
    }
    match parsed {
        None => {
            // The process before may have died between writing it and syncing it.
            file.sync_data().map_err(|source| io_error(&path, source))?;
            found.meta = header;
            found.meta_is_whole = matches!(header, FoundHeader::Valid(header) if header.encode() == head);
        }
        Some(name) => {
            let unused =
                header == FoundHeader::Unreadable && is_zero(&*file, size).map_err(|source| io_error(&path, source))?;
            found.segments.push(FoundSegment { name, path, header, size, unused });
        }
    }
    Ok(())
}

fn is_zero(file: &dyn DiskFile, size: u64) -> io::Result<bool> {
    let mut piece = vec![0; 64 * 1024];
    let mut at = 0;
    while at < size {
        let read = read_full_at(file, &mut piece, at)?;
        if read == 0 {
            break;
        }
        if piece[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

/// Which log the directory is: as its META file says, else as most of its segments do. Mends META: were its copies to
/// differ, losing one would change the answer.
fn identify(home: &Home, found: &Found) -> Result<[u8; 16], RecoveryError> {
    let log_id = match found.meta {
        FoundHeader::Valid(header) => header.log_id,
        FoundHeader::Newer(_) | FoundHeader::Unreadable => vote(&found.segments).unwrap_or_else(random_id),
    };
    if !found.meta_is_whole {
        match write_meta(home, log_id) {
            Err(DurableError::Sync(source)) => return Err(io_error(&home.dir.join(META), source)),
            // A full disk is no reason not to start: the segments say the same.
            Ok(()) | Err(DurableError::Refused(_)) => {}
        }
    }
    Ok(log_id)
}

fn vote(segments: &[FoundSegment]) -> Option<[u8; 16]> {
    let mut votes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    for segment in segments {
        if let FoundHeader::Valid(header) = segment.header {
            *votes.entry(header.log_id).or_default() += 1;
        }
    }
    votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(log_id, _)| log_id)
}

/// Brings the segments into order, by what their headers say, and leaves out what does not belong to them.
fn sort_out(home: &Home, found: Vec<FoundSegment>, log_id: [u8; 16]) -> Result<Vec<Sorted>, RecoveryError> {
    let mut by_ordinal: BTreeMap<u64, (bool, Sorted)> = BTreeMap::new();
    for FoundSegment { name, path, header, size, unused } in found {
        if unused {
            home.disk.unlink(&path).map_err(|source| io_error(&path, source))?;
            continue;
        }
        let (segment, in_place) = match header {
            FoundHeader::Valid(header) if header.log_id != log_id => {
                home.report.foreign(&path, "it belongs to another log");
                continue;
            }
            FoundHeader::Valid(header) => {
                let own = SegmentName { ordinal: header.ordinal, first_seq: header.first_seq };
                (Segment::new(&header, path), own == name)
            }
            FoundHeader::Newer(_) | FoundHeader::Unreadable => (Segment::unreadable(name, path), false),
        };
        let sorted = Sorted { segment, size };
        // Of two that say the same, the one under its own name is the original.
        match by_ordinal.entry(sorted.segment.ordinal) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert((in_place, sorted));
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let repeats = if in_place && !entry.get().0 { entry.insert((in_place, sorted)).1 } else { sorted };
                home.report.foreign(&repeats.segment.path, "it repeats another segment");
            }
        }
    }
    Ok(by_ordinal
        .into_values()
        .map(|(in_place, sorted)| {
            if !in_place {
                let why = if sorted.segment.seed.is_some() {
                    "it is read, but has another one's name"
                } else {
                    "its header is damaged"
                };
                home.report.foreign(&sorted.segment.path, why);
            }
            sorted
        })
        .collect())
}

/// Reads the newest segment whole, cuts what an unfinished write left behind its last frame, and makes durable what
/// is left.
fn read_newest(home: &Home, newest: &Arc<Segment>, size: u64, state: &mut Recovered) -> Result<(), RecoveryError> {
    state.next_seq = newest.first_seq;
    let Some(seed) = newest.seed else {
        // What it held is lost, and so are the numbers that it may have used.
        state.next_seq += size / MIN_RECORD_BYTES + 1;
        return Ok(());
    };
    let context = |source| io_error(&newest.path, source);
    let file = home.open(&newest.path).map_err(context)?;
    let scan = scan_newest(home, newest, file.clone(), seed, size, state).map_err(context)?;
    let (mut end, mut filled) = (scan.end, size);
    if let Some(bytes) = scan.torn {
        home.report.torn(newest, &bytes, state.next_seq);
        // Its numbers are skipped: were it damage instead, somebody could know them.
        state.next_seq += (bytes.end - bytes.start) / MIN_RECORD_BYTES + 1;
        end = skip_numbers(&*file, seed, scan.end, state).map_err(context)?;
        // This reads no sector that is lost: what cannot be read is cut from its beginning on.
        file.truncate(end).map_err(context)?;
        home.account.give_back(size);
        home.account.take_found(end);
        filled = end;
    }
    file.sync_data().map_err(context)?;
    if let Some((_, bytes)) = state.segments.back_mut() {
        *bytes = filled;
    }
    state.active = Some(Active { segment: newest.clone(), seed, file, end, filled });
    Ok(())
}

/// Writes over what is cut that numbers were skipped, before the rest of it goes: once it is gone, nothing else tells
/// the next start of them. Answers where the next frame goes. Where the disk refuses it, the next write has to say it.
fn skip_numbers(file: &dyn DiskFile, seed: Seed, end: u64, state: &mut Recovered) -> io::Result<u64> {
    let mut resume = Vec::with_capacity(FRAME_HEADER_BYTES);
    encode_frame(&mut resume, seed, Kind::Resume, state.next_seq, &[]);
    match write_all_at(file, &resume, end) {
        Ok(()) => {
            file.sync_data()?;
            Ok(end + resume.len() as u64)
        }
        Err(error) => {
            tracing::debug!(%error, "That numbers were skipped is written later");
            state.resume = true;
            Ok(end)
        }
    }
}

const MIN_RECORD_BYTES: u64 = (FRAME_HEADER_BYTES + Pair::OVERHEAD_BYTES) as u64;

struct Scan {
    /// Behind the last frame.
    end: u64,
    torn: Option<Range<u64>>,
}

fn scan_newest(
    home: &Home,
    newest: &Arc<Segment>,
    file: Arc<dyn DiskFile>,
    seed: Seed,
    size: u64,
    state: &mut Recovered,
) -> io::Result<Scan> {
    let log_id = state.log_id.unwrap_or_default();
    let mut audit = Audit::new(home.report.clone());
    audit.enter(newest, 0);
    let mut scanner = Scanner::new(file, seed, FRAMES_START, size);
    let mut scan = Scan { end: FRAMES_START, torn: None };
    loop {
        match scanner.step()? {
            Step::Frame(frame) => {
                audit.frame(newest, &frame);
                state.checkpoint = checkpoint::decode(&frame, log_id).or(state.checkpoint.take());
                scan.end = scanner.at();
                state.next_seq = audit.expected().unwrap_or(state.next_seq);
            }
            Step::Damage { bytes, inside } => {
                home.aside.keep(&*home.disk, newest, &mut scanner, &bytes);
                if inside {
                    audit.damage(newest, bytes);
                } else {
                    scan.torn = Some(bytes);
                    return Ok(scan);
                }
            }
            Step::End => return Ok(scan),
        }
    }
}

/// Looks for the newest checkpoint in the segments before the newest, one after the other. A segment begins with a
/// copy of the checkpoint of its time: one that begins with anything else ends the search.
fn find_checkpoint(home: &Home, state: &Recovered, log_id: [u8; 16]) -> Result<Option<Checkpoint>, RecoveryError> {
    for (segment, size) in state.segments.iter().rev() {
        let Some(seed) = segment.seed else {
            continue;
        };
        let search = || -> io::Result<(Option<Checkpoint>, bool)> {
            let file = home.open(&segment.path)?;
            let mut scanner = Scanner::new(file, seed, FRAMES_START, *size);
            let mut newest = None;
            let mut ends_search = false;
            loop {
                let from = scanner.at();
                match scanner.step()? {
                    Step::Frame(frame) if frame.kind == Kind::Checkpoint => {
                        newest = checkpoint::decode(&frame, log_id).or(newest);
                    }
                    // A segment whose first write was cut off begins with that alone.
                    Step::Frame(frame) if frame.kind == Kind::Resume => {}
                    Step::Frame(_) => ends_search |= from == FRAMES_START,
                    Step::Damage { .. } => {}
                    Step::End => return Ok((newest, ends_search)),
                }
            }
        };
        let (newest, ends_search) = search().map_err(|source| io_error(&segment.path, source))?;
        if newest.is_some() || ends_search {
            return Ok(newest);
        }
    }
    Ok(None)
}

fn io_error(path: &std::path::Path, source: io::Error) -> RecoveryError {
    RecoveryError::Io { path: path.to_owned(), source }
}
