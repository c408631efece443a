//! How far each partition has been written and finished, as far as this process has seen it pass: nothing is asked for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// A partition of a topic.
pub(super) type Place = (Arc<str>, u32);

#[derive(Default)]
pub(super) struct Depths(Mutex<BTreeMap<Place, Extent>>);

/// The offset after the last record, and the committed watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) end: u64,
    pub(super) finished: u64,
}

impl Depths {
    /// Records up to `end` are durable.
    pub(super) fn note_end(&self, topic: &Arc<str>, partition: u32, end: u64) {
        let mut depths = self.lock();
        let extent = depths.entry((topic.clone(), partition)).or_default();
        extent.end = extent.end.max(end);
    }

    /// Records below `finished` are done with.
    pub(super) fn note_finished(&self, topic: &Arc<str>, partition: u32, finished: u64) {
        let mut depths = self.lock();
        let extent = depths.entry((topic.clone(), partition)).or_default();
        extent.finished = finished;
        extent.end = extent.end.max(finished);
    }

    pub(super) fn all(&self) -> Vec<(Place, Extent)> {
        self.lock().iter().map(|(place, extent)| (place.clone(), *extent)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Extent>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}
