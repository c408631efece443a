//! What the readers of a journal may see: its segments and how far the newest one is synced. The writer puts it here
//! after each sync; readers wait for it as state, so that no wake-up can be lost.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::segment::Segment;

pub struct Shelf {
    books: Mutex<Books>,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Books {
    /// Oldest first; ordinals and first numbers grow.
    segments: VecDeque<Arc<Segment>>,
    /// The one that is written to, and where its synced frames end.
    growing: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number that the next record gets.
    pub next_seq: u64,
    pub watermark: u64,
    /// Zero-filled space included.
    pub disk_bytes: u64,
    pub closed: bool,
}

/// How far a segment may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Growing(u64),
    Sealed,
}

impl Shelf {
    pub fn new(segments: VecDeque<Arc<Segment>>, growing: Option<(u64, u64)>, progress: Progress) -> Arc<Self> {
        Arc::new(Self { books: Mutex::new(Books { segments, growing }), progress: watch::Sender::new(progress) })
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// A new segment takes over.
    pub fn push(&self, segment: Arc<Segment>, end: u64) {
        let mut books = self.lock();
        books.growing = Some((segment.ordinal, end));
        books.segments.push_back(segment);
    }

    /// The frames before `end` in the newest segment are durable.
    pub fn grow(&self, end: u64, next_seq: u64) {
        if let Some((_, synced)) = &mut self.lock().growing {
            *synced = end;
        }
        self.update(|progress| progress.next_seq = next_seq);
    }

    pub fn remove(&self, ordinal: u64) {
        self.lock().segments.retain(|segment| segment.ordinal != ordinal);
    }

    /// The segment that a record of that number is in, or else the first behind it.
    pub fn holding(&self, seq: u64) -> Option<Arc<Segment>> {
        let books = self.lock();
        let after = books.segments.partition_point(|segment| segment.first_seq <= seq);
        books.segments.get(after.saturating_sub(1)).cloned()
    }

    pub fn by_ordinal(&self, ordinal: u64) -> Option<Arc<Segment>> {
        let books = self.lock();
        let at = books.segments.binary_search_by_key(&ordinal, |segment| segment.ordinal).ok()?;
        Some(books.segments[at].clone())
    }

    pub fn after(&self, ordinal: u64) -> Option<Arc<Segment>> {
        let books = self.lock();
        let after = books.segments.partition_point(|segment| segment.ordinal <= ordinal);
        books.segments.get(after).cloned()
    }

    /// Newest first.
    pub fn newest_first(&self) -> Vec<Arc<Segment>> {
        self.lock().segments.iter().rev().cloned().collect()
    }

    pub fn extent(&self, segment: &Segment) -> Extent {
        match self.lock().growing {
            Some((ordinal, end)) if ordinal == segment.ordinal => Extent::Growing(end),
            _ => Extent::Sealed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
