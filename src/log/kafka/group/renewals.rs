//! What is stored for the partitions that are held, and when it is stored again: brokers forget the offsets of a
//! partition for which nothing was committed for long (`offsets.retention.minutes`, a day at the least).

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{Committed, TopicPartition};
use crate::log::Epoch;

const RENEW_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// Until it is tried again, unless it was stored meanwhile.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60 * 60);

#[derive(Default)]
pub(super) struct Renewals(BTreeMap<TopicPartition, Stored>);

struct Stored {
    epoch: Epoch,
    committed: Committed,
    due: Instant,
}

impl Renewals {
    /// This is stored for the partition now.
    pub(super) fn note(&mut self, partition: TopicPartition, epoch: Epoch, committed: Committed, now: Instant) {
        self.0.insert(partition, Stored { epoch, committed, due: now + RENEW_AFTER });
    }

    /// What is to be stored again; what is held no more is forgotten.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        epoch_of: impl Fn(&TopicPartition) -> Option<Epoch>,
    ) -> Vec<(TopicPartition, Epoch, Committed)> {
        if self.next_due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.0.retain(|partition, stored| epoch_of(partition) == Some(stored.epoch));
        let due = self.0.iter_mut().filter(|(_, stored)| stored.due <= now);
        let due = due.map(|(partition, stored)| {
            stored.due = now + TRY_AGAIN_AFTER;
            (partition.clone(), stored.epoch, stored.committed.clone())
        });
        due.collect()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.values().map(|stored| stored.due).min()
    }
}
