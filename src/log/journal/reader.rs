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

    /// The number that the next record gets. What is below it and not lost, a read after this hands out; what comes
    /// later ends the next [`JournalReader::changed`].
    pub fn mark_end(&mut self) -> u64 {
        self.progress.borrow_and_update().next_seq
    }

    /// The number that the next record gets.
    pub fn end(&self) -> u64 {
        self.progress.borrow().next_seq
    }

    /// Waits until something has happened since [`JournalReader::mark_end`]: a record, or something else.
    pub async fn changed(&mut self) -> Result<(), ReadError> {
        if self.progress.borrow().closed {
            return Err(ReadError::Closed);
        }
        self.progress.changed().await.map_err(|_| ReadError::Closed)
    }

    /// What is durable and was not read yet, at most `max_bytes` but at least one; none if there is none.
    pub async fn read_now(&mut self, max_bytes: usize) -> Result<Vec<Entry>, ReadError> {
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

/// Shows the records appended last, oldest first: at most `max_records` of them and `max_bytes` together. Reads them
/// twice, first to learn where they begin: so none has to be kept.
pub fn tail(
    home: &Home,
    shelf: &Shelf,
    max_records: usize,
    max_bytes: usize,
    visit: &mut dyn FnMut(Entry),
) -> io::Result<()> {
    let mut tail = Tail::default();
    let mut segments = Vec::new();
    for segment in shelf.newest_first() {
        let mut earlier = Tail::default();
        let mut is_full = false;
        let room = (max_records - tail.records.len(), max_bytes - tail.bytes);
        scan(home, shelf, &segment, &mut |entry| is_full |= earlier.push(&entry, room))?;
        earlier.bytes += tail.bytes;
        earlier.records.append(&mut tail.records);
        tail = earlier;
        segments.push(segment);
        if is_full {
            break;
        }
    }
    let Some((first, _)) = tail.records.front().copied() else { return Ok(()) };
    drop(tail);
    for segment in segments.iter().rev() {
        scan(home, shelf, segment, &mut |entry| {
            if entry.offset >= first {
                visit(entry);
            }
        })?;
    }
    Ok(())
}

/// Where the last records are and how large.
#[derive(Default)]
struct Tail {
    records: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Tail {
    /// Answers whether earlier ones had to go for it.
    fn push(&mut self, entry: &Entry, (max_records, max_bytes): (usize, usize)) -> bool {
        let size = entry.record.size();
        self.bytes += size;
        self.records.push_back((entry.offset, size));
        let mut is_full = false;
        while self.records.len() > max_records || self.bytes > max_bytes {
            let Some((_, oldest)) = self.records.pop_front() else {
                break;
            };
            self.bytes -= oldest;
            is_full = true;
        }
        is_full
    }
}

/// Shows all records of a segment.
fn scan(home: &Home, shelf: &Shelf, segment: &Segment, visit: &mut dyn FnMut(Entry)) -> io::Result<()> {
    let Some(seed) = segment.seed else {
        return Ok(());
    };
    let file = match home.open(&segment.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let limit = match shelf.extent(segment) {
        Extent::Growing(end) => end,
        Extent::Sealed => file.size()?,
    };
    let mut scanner = Scanner::new(file, seed, FRAMES_START, limit);
    loop {
        match scanner.step()? {
            Step::Frame(frame) => entry_of(frame).into_iter().for_each(&mut *visit),
            Step::Damage { .. } => {}
            Step::End => return Ok(()),
        }
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
