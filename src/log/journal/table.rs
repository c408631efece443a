//! Values by key, kept in the same segments and frames as a queue. An index in memory says which frame of a key is its
//! last; it is built by the first look into the table and follows the writer from then on, so that a table that
//! nobody looks into costs no memory, and nothing at start.
//!
//! The oldest segment goes when nothing in it is live. Only the oldest: a removal must outlive what it removed.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    follower::Follower,
    frame::{Kind, Pair},
    inbox::Work,
    scanner::{Scanner, Step},
    shelf::Extent,
    writer::Writer,
};
use crate::log::{AppendError, Table, TableEntry, TableError};

/// After so many removals an index that exists looks whether a segment can go.
const REMOVALS_BETWEEN_LOOKS: usize = 256;
/// Live entries that a scan notes at a time.
const PAGE: usize = 1024;

pub struct JournalTable {
    shared: Arc<Shared>,
    max_bytes: usize,
    removals: AtomicUsize,
}

struct Shared {
    writer: Writer,
    index: Mutex<Option<Index>>,
}

struct Index {
    follower: Follower,
    by_key: HashMap<u128, u64>,
    by_position: BTreeMap<u64, Spot>,
    /// How many entries of each segment are live.
    live: BTreeMap<u64, usize>,
    /// The segment that was read last.
    reached: u64,
}

/// Where a live entry's frame is.
#[derive(Clone, Copy)]
struct Spot {
    ordinal: u64,
    at: u64,
}

impl JournalTable {
    /// `max_bytes` bounds one entry.
    pub fn new(writer: Writer, max_bytes: usize) -> Self {
        let shared = Arc::new(Shared { writer, index: Mutex::new(None) });
        Self { shared, max_bytes, removals: AtomicUsize::new(0) }
    }

    pub fn writer(&self) -> &Writer {
        &self.shared.writer
    }

    async fn write(&self, kind: Kind, key: Bytes, value: Bytes) -> Result<u64, TableError> {
        let pair = Pair { first: key, second: value };
        let bytes = pair.frame_bytes();
        if bytes > self.max_bytes {
            return Err(TableError::Unavailable {
                reason: format!("an entry of {bytes} bytes is over the table's limit of {}", self.max_bytes),
            });
        }
        let written = match self.shared.writer.inbox.append(std::iter::once((kind, pair)), bytes) {
            Ok(ticket) => ticket.await,
            Err(error) => Err(error),
        };
        written.map_err(|error| match error {
            AppendError::Full { .. } => TableError::Full,
            AppendError::FateUnknown => TableError::FateUnknown,
            AppendError::Closed => TableError::Closed,
            AppendError::TooLarge { .. } | AppendError::Unavailable { .. } => {
                TableError::Unavailable { reason: error.to_string() }
            }
        })
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TableError> {
        let shared = self.shared.clone();
        match tokio::task::spawn_blocking(move || look(&shared)).await {
            Ok(result) => result.map_err(|error| TableError::Unavailable { reason: error.to_string() }),
            Err(_) => Err(TableError::Closed),
        }
    }
}

impl Table for JournalTable {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<u64, TableError>> {
        Box::pin(self.write(Kind::Put, key, value))
    }

    fn delete(&self, key: Bytes) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(async move {
            self.write(Kind::Delete, key, Bytes::new()).await?;
            if self.removals.fetch_add(1, Ordering::Relaxed) % REMOVALS_BETWEEN_LOOKS == REMOVALS_BETWEEN_LOOKS - 1 {
                self.look(Shared::tidy).await?;
            }
            Ok(())
        })
    }

    fn scan(&self, mut visit: Box<dyn FnMut(TableEntry) -> bool + Send>) -> BoxFuture<'_, Result<(), TableError>> {
        Box::pin(self.look(move |shared| shared.scan(&mut *visit)))
    }

    fn read(&self, position: u64) -> BoxFuture<'_, Result<Option<TableEntry>, TableError>> {
        Box::pin(self.look(move |shared| {
            let spot = shared.with_index(|index| Ok(index.by_position.get(&position).copied()))?;
            let Some(spot) = spot else {
                return Ok(None);
            };
            Ok(Cursor::default().entry(&shared.writer, spot)?.filter(|entry| entry.position == position))
        }))
    }
}

impl Shared {
    fn scan(&self, visit: &mut dyn FnMut(TableEntry) -> bool) -> io::Result<()> {
        let mut cursor = Cursor::default();
        let mut from = 0;
        self.tidy_built()?;
        loop {
            // Noted by the page: the index stays free for others, and the notes small.
            let page: Vec<(u64, Spot)> = self.with_index(|index| {
                Ok(index.by_position.range(from..).take(PAGE).map(|(position, spot)| (*position, *spot)).collect())
            })?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            from = last + 1;
            for (_, spot) in page {
                if let Some(entry) = cursor.entry(&self.writer, spot)?
                    && !visit(entry)
                {
                    return Ok(());
                }
            }
        }
    }

    /// Lets segments go, if an index exists already.
    fn tidy(&self) -> io::Result<()> {
        let exists = self.index.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if exists { self.tidy_built() } else { Ok(()) }
    }

    fn tidy_built(&self) -> io::Result<()> {
        let dead = self.with_index(|index| Ok(index.dead_segments(&self.writer)))?;
        if !dead.is_empty() {
            self.writer.inbox.ask(Work::Forget(dead));
        }
        Ok(())
    }

    /// Builds the index or brings it up to what is synced, and looks into it.
    fn with_index<T>(&self, look: impl FnOnce(&Index) -> io::Result<T>) -> io::Result<T> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let index = index.get_or_insert_with(|| Index::new(&self.writer));
        index.catch_up()?;
        look(index)
    }
}

impl Index {
    fn new(writer: &Writer) -> Self {
        Self {
            follower: Follower::new(writer.home.clone(), writer.shelf.clone(), 0),
            by_key: HashMap::new(),
            by_position: BTreeMap::new(),
            live: BTreeMap::new(),
            reached: 0,
        }
    }

    fn catch_up(&mut self) -> io::Result<()> {
        while let Some(located) = self.follower.next_frame()? {
            self.reached = located.ordinal;
            let (kind, position) = (located.frame.kind, located.frame.seq);
            let Some(pair) = Pair::decode(located.frame.payload) else {
                continue;
            };
            let key = xxh3_128(&pair.first);
            match kind {
                Kind::Put => {
                    self.remove(key);
                    self.by_key.insert(key, position);
                    self.by_position.insert(position, Spot { ordinal: located.ordinal, at: located.at });
                    *self.live.entry(located.ordinal).or_default() += 1;
                }
                Kind::Delete => self.remove(key),
                Kind::Record | Kind::Checkpoint | Kind::Resume => {}
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: u128) {
        let spot = self.by_key.remove(&key).and_then(|position| self.by_position.remove(&position));
        if let Some(spot) = spot
            && let Some(live) = self.live.get_mut(&spot.ordinal)
        {
            *live -= 1;
        }
    }

    /// The oldest segments, up to the first that holds a live entry or was not read to its end.
    fn dead_segments(&self, writer: &Writer) -> Vec<u64> {
        let segments = writer.shelf.newest_first();
        let is_dead = |ordinal: &u64| *ordinal < self.reached && self.live.get(ordinal).is_none_or(|live| *live == 0);
        segments.iter().rev().map(|segment| segment.ordinal).take_while(is_dead).collect()
    }
}

/// Reads entries by their place; those near each other with one read from disk.
#[derive(Default)]
struct Cursor(Option<(u64, Scanner)>);

impl Cursor {
    /// `None` where the entry's segment has gone since: then the entry had, too.
    fn entry(&mut self, writer: &Writer, spot: Spot) -> io::Result<Option<TableEntry>> {
        if self.0.as_ref().is_none_or(|(ordinal, scanner)| *ordinal != spot.ordinal || scanner.limit() <= spot.at) {
            self.0 = open(writer, spot)?.map(|scanner| (spot.ordinal, scanner));
        }
        let Some((_, scanner)) = &mut self.0 else {
            return Ok(None);
        };
        scanner.seek(spot.at);
        let Step::Frame(frame) = scanner.step()? else {
            return Ok(None);
        };
        let position = frame.seq;
        // Copies: an entry may be kept, and a slice would keep its whole chunk.
        Ok(Pair::decode(frame.payload).map(|pair| TableEntry {
            key: Bytes::copy_from_slice(&pair.first),
            value: Bytes::copy_from_slice(&pair.second),
            position,
        }))
    }
}

fn open(writer: &Writer, spot: Spot) -> io::Result<Option<Scanner>> {
    let Some(segment) = writer.shelf.by_ordinal(spot.ordinal) else {
        return Ok(None);
    };
    let Some(seed) = segment.seed else {
        return Ok(None);
    };
    let file = match writer.home.open(&segment.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let limit = match writer.shelf.extent(&segment) {
        Extent::Growing(end) => end,
        Extent::Sealed => file.size()?,
    };
    Ok(Some(Scanner::new(file, seed, spot.at, limit)))
}
