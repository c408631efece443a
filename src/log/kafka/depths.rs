//! How far each partition has been written and finished, and who works on it: as far as it has passed this process, and
//! else as it was last told (`watcher`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// A partition of a topic.
pub(super) type Place = (Arc<str>, u32);

#[derive(Default)]
pub(super) struct Depths(Mutex<BTreeMap<Place, Extent>>);

/// The offset after the last record, and the committed watermark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) end: u64,
    pub(super) finished: u64,
    /// The member of the group that works on it.
    pub(super) owner: Option<Arc<str>>,
    /// Why nothing of it is read, where that takes a person.
    pub(super) held_by: Option<&'static str>,
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

    /// What was told of a partition. `finished` where nobody here knows better.
    pub(super) fn note_seen(&self, place: Place, end: u64, finished: Option<u64>, owner: Option<Arc<str>>) {
        let mut depths = self.lock();
        let extent = depths.entry(place).or_default();
        extent.finished = finished.unwrap_or(extent.finished);
        extent.end = extent.end.max(end).max(extent.finished);
        extent.owner = owner;
    }

    /// Nothing of the partition is read, for that reason; none when it is. Answers whether that is new.
    pub(super) fn note_held(&self, place: &Place, held_by: Option<&'static str>) -> bool {
        let mut depths = self.lock();
        let extent = depths.entry(place.clone()).or_default();
        std::mem::replace(&mut extent.held_by, held_by) != held_by
    }

    pub(super) fn all(&self) -> Vec<(Place, Extent)> {
        self.lock().iter().map(|(place, extent)| (place.clone(), extent.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Extent>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}
