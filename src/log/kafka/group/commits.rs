//! Offsets that wait to be committed: the newest of each partition, and who waits for it.
//!
//! Bounded by what is committed at all: an entry per owned partition, each with a checkpoint of at most 4,096 characters.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::TopicPartition;
use crate::log::Epoch;

/// Names one call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CommitId(pub(super) u64);

impl CommitId {
    /// Nobody waits.
    pub(super) const NOBODY: Self = Self(0);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) epoch: Epoch,
    pub(super) offset: i64,
    pub(super) metadata: String,
    waiting: Vec<Waiting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    id: CommitId,
    until: Instant,
}

impl Commit {
    pub(super) fn new(epoch: Epoch, offset: i64, metadata: String, id: CommitId, until: Instant) -> Self {
        Self { epoch, offset, metadata, waiting: vec![Waiting { id, until }] }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = CommitId> {
        self.waiting.iter().map(|waiting| waiting.id)
    }
}

#[derive(Default)]
pub(super) struct Commits(BTreeMap<TopicPartition, Commit>);

impl Commits {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, partition: &TopicPartition) -> bool {
        self.0.contains_key(partition)
    }

    /// A newer commit of a partition stands for the older one too.
    pub(super) fn push(&mut self, partition: TopicPartition, mut commit: Commit) {
        if let Some(older) = self.0.remove(&partition) {
            commit.waiting.splice(0..0, older.waiting);
        }
        self.0.insert(partition, commit);
    }

    /// Puts back what was sent and not stored, unless there is a newer one by now, which then stands for it.
    pub(super) fn put_back(&mut self, partition: TopicPartition, mut commit: Commit) {
        match self.0.get_mut(&partition) {
            Some(newer) => newer.waiting.append(&mut commit.waiting),
            None => {
                self.0.insert(partition, commit);
            }
        }
    }

    pub(super) fn take(&mut self) -> BTreeMap<TopicPartition, Commit> {
        std::mem::take(&mut self.0)
    }

    /// Takes out those whose epoch is over.
    pub(super) fn take_over(&mut self, is_over: impl Fn(&TopicPartition, Epoch) -> bool) -> Vec<CommitId> {
        let over = self.0.extract_if(.., |partition, commit| is_over(partition, commit.epoch));
        over.flat_map(|(_, commit)| commit.waiting).map(|waiting| waiting.id).collect()
    }

    /// Takes out those who have waited long enough; what nobody waits for is not sent.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<CommitId> {
        let mut overdue = Vec::new();
        self.0.retain(|_, commit| {
            overdue.extend(commit.waiting.extract_if(.., |waiting| waiting.until <= now).map(|waiting| waiting.id));
            !commit.waiting.is_empty()
        });
        overdue
    }

    pub(super) fn next_overdue(&self) -> Option<Instant> {
        self.0.values().flat_map(|commit| &commit.waiting).map(|waiting| waiting.until).min()
    }
}
