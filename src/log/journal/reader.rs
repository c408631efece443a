//! Hands out a queue's records as they become durable: the async shell around [`Follower`].

use std::{collections::VecDeque, io, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    follower::Follower,
    frame::{FRAMES_START, Frame, Kind, Pair},
    scanner::{Scanner, Step},
    segment::{Home, Segment},
    shelf::{Extent, Progress, Shelf},
};
use crate::log::{Entry, Headers, ReadError, Reader, Record};

pub struct JournalReader {
    state: State,
    progress: watch::Receiver<Progress>,
}

enum State {
    Ready(Box<Source>),
    /// A read runs on a blocking thread. Kept here, so that a dropped future loses nothing.
    Reading(JoinHandle<(Box<Source>, io::Result<Vec<Entry>>)>),
    /// The thread that read is gone, with the place.
    Broken,
}

/// Reads entries from `from_seq` on.
pub struct Source {
    follower: Follower,
    from_seq: u64,
    /// Read, but over the caller's bound.
    held: Option<Entry>,
}

impl Source {
    pub fn new(home: Arc<Home>, shelf: Arc<Shelf>, from_seq: u64) -> Self {
        Self { follower: Follower::new(home, shelf, from_seq), from_seq, held: None }
    }

    /// The next entries that are synced, at most `max_bytes` of them but at least one; none if there is none.
    pub fn read(&mut self, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        loop {
            let entry = match self.held.take() {
                Some(entry) => entry,
                None => match self.follower.next_frame() {
                    Ok(Some(located)) => match entry_of(located.frame).filter(|entry| entry.offset >= self.from_seq) {
                        Some(entry) => entry,
                        None => continue,
                    },
                    Ok(None) => return Ok(entries),
                    // What was read before is handed out; the error comes again with the next read.
                    Err(_) if !entries.is_empty() => return Ok(entries),
                    Err(error) => return Err(error),
                },
            };
            bytes += entry.record.size();
            if bytes > max_bytes && !entries.is_empty() {
                self.held = Some(entry);
                return Ok(entries);
            }
            entries.push(entry);
        }
    }
}

impl JournalReader {
    pub fn new(home: Arc<Home>, shelf: Arc<Shelf>, from_seq: u64) -> Self {
        let progress = shelf.subscribe();
        Self { state: State::Ready(Box::new(Source::new(home, shelf, from_seq))), progress }
    }

    async fn read(&mut self, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        loop {
            // Seen before the read: what is synced after it wakes the wait below.
            let closed = self.progress.borrow_and_update().closed;
            let entries = self.read_now(max_bytes).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            if closed || self.progress.changed().await.is_err() {
                return Err(ReadError::Closed);
            }
        }
    }

    async fn read_now(&mut self, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
        if let State::Ready(source) = &mut self.state
            && source.follower.is_near_end()
        {
            return source.read(max_bytes).map_err(unavailable);
        }
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Ready(mut source) => State::Reading(tokio::task::spawn_blocking(move || {
                let entries = source.read(max_bytes);
                (source, entries)
            })),
            other => other,
        };
        let State::Reading(reading) = &mut self.state else {
            return Err(ReadError::Closed);
        };
        let (source, entries) = reading.await.map_err(|_| ReadError::Closed)?;
        self.state = State::Ready(source);
        entries.map_err(unavailable)
    }
}

impl Reader for JournalReader {
    fn next(&mut self, max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
        Box::pin(self.read(max_bytes))
    }
}

/// The records appended last, oldest first: at most `max_records` of them and `max_bytes` together.
pub fn tail(home: &Home, shelf: &Shelf, max_records: usize, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let mut entries: VecDeque<Entry> = VecDeque::new();
    let mut bytes = 0;
    for segment in shelf.newest_first() {
        let (max_records, max_bytes) = (max_records - entries.len(), max_bytes - bytes);
        let mut earlier = Tail { max_records, max_bytes, bytes: 0, entries: VecDeque::new() };
        let is_full = earlier.read(home, shelf, &segment)?;
        bytes += earlier.bytes;
        earlier.entries.append(&mut entries);
        entries = earlier.entries;
        if is_full {
            break;
        }
    }
    Ok(entries.into())
}

/// The last records of one segment.
struct Tail {
    max_records: usize,
    max_bytes: usize,
    bytes: usize,
    entries: VecDeque<Entry>,
}

impl Tail {
    /// Keeps the last records of a segment; answers whether some had to go.
    fn read(&mut self, home: &Home, shelf: &Shelf, segment: &Segment) -> io::Result<bool> {
        let Some(seed) = segment.seed else {
            return Ok(false);
        };
        let file = match home.disk.open(&segment.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let limit = match shelf.extent(segment) {
            Extent::Growing(end) => end,
            Extent::Sealed => file.size()?,
        };
        let mut scanner = Scanner::new(file, seed, FRAMES_START, limit);
        let mut is_full = false;
        loop {
            match scanner.step()? {
                Step::Frame(frame) => is_full |= entry_of(frame).is_some_and(|entry| self.push(entry)),
                Step::Damage { .. } => {}
                Step::End => return Ok(is_full),
            }
        }
    }

    fn push(&mut self, entry: Entry) -> bool {
        self.bytes += entry.record.size();
        self.entries.push_back(entry);
        let mut is_full = false;
        while self.entries.len() > self.max_records || self.bytes > self.max_bytes {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= oldest.record.size();
            is_full = true;
        }
        is_full
    }
}

fn entry_of(frame: Frame) -> Option<Entry> {
    if frame.kind != Kind::Record {
        return None;
    }
    let Pair { first, second } = Pair::decode(frame.payload)?;
    Some(Entry { offset: frame.seq, record: Record { headers: Headers::from_packed(first), value: second } })
}

fn unavailable(error: io::Error) -> ReadError {
    ReadError::Unavailable { reason: error.to_string() }
}
