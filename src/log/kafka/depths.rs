//! How far each partition has been written and finished, and who works on it: as far as it has passed this process, and
//! else as it was last told (`watcher`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::committed::TopicId;

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
    /// Of the topic that was told of.
    topic_id: Option<TopicId>,
}

/// What was told of a partition.
pub(super) struct Seen {
    pub(super) end: u64,
    /// None where it is known better here.
    pub(super) finished: Option<u64>,
    pub(super) owner: Option<Arc<str>>,
    pub(super) topic_id: Option<TopicId>,
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

    /// Takes what was told of a partition. One of another topic of the same name begins anew.
    pub(super) fn note_seen(&self, place: Place, seen: Seen) {
        let Seen { end, finished, owner, topic_id } = seen;
        let mut depths = self.lock();
        let extent = depths.entry(place).or_default();
        // Where it is known better, so is that.
        if finished.is_some() && TopicId::differs(extent.topic_id, topic_id) {
            *extent = Extent::default();
        }
        extent.finished = finished.unwrap_or(extent.finished);
        extent.end = extent.end.max(end).max(extent.finished);
        extent.owner = owner;
        extent.topic_id = topic_id;
    }

    /// Keeps the partitions that exist.
    pub(super) fn retain(&self, exists: impl Fn(&Place) -> bool) {
        self.lock().retain(|place, _| exists(place));
    }

    /// The partition is no more, or has other records. Answers how it was.
    pub(super) fn forget(&self, place: &Place) -> Extent {
        self.lock().remove(place).unwrap_or_default()
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
