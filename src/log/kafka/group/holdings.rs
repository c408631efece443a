//! The partitions of this member: what the group says is its own, what of that it holds, and what it is giving up.
//!
//! ```text
//!             assigned                 committed offset fetched             not assigned any more
//!   (nothing) ────────▶ fetching ─────────────────────────────▶ held ─────────────────────────▶ draining
//!       ▲                  │ not assigned any more                                                  │
//!       └──────────────────┴────────────────────────────────── drained, or its time is over ────────┘
//! ```
//!
//! Where the records of a partition are not those any more that were assigned, it is lost, and fetched again.
//!
//! Invariant: a partition that is held or draining is named in every join, so that the leader gives it to nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::time::Instant;

use super::{Committed, TopicPartition};
use crate::log::{BootTime, Epoch, Lease, LeaseKeeper, Loss};

#[derive(Default)]
pub(super) struct Holdings {
    /// What the group says is this member's.
    assigned: BTreeSet<TopicPartition>,
    owned: BTreeMap<TopicPartition, Holding>,
    /// What the last join named.
    claimed: BTreeSet<TopicPartition>,
    last_epoch: u64,
    lease_end: Option<BootTime>,
}

struct Holding {
    epoch: Epoch,
    stage: Stage,
}

enum Stage {
    /// Where its records are read from is not known yet; nobody was told of it. `cut`: what is committed says nothing.
    Fetching {
        cut: bool,
    },
    Held(LeaseKeeper),
    Draining {
        lease: LeaseKeeper,
        until: Instant,
    },
}

/// What the consumer hears.
#[derive(Debug)]
pub(super) enum Change {
    Assigned { partition: TopicPartition, epoch: Epoch, committed: Option<Committed>, lease: Lease },
    Revoking { partition: TopicPartition, epoch: Epoch },
    Lost { partition: TopicPartition, loss: Loss },
}

impl Holdings {
    /// What a join says that this member owns.
    pub(super) fn claim(&mut self) -> &BTreeSet<TopicPartition> {
        self.claimed = self.owned.keys().cloned().collect();
        &self.claimed
    }

    /// Takes what the group says from now on. What is not this member's any more is drained until `drain_until`.
    pub(super) fn assign(&mut self, assigned: BTreeSet<TopicPartition>, drain_until: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (partition, mut holding) in std::mem::take(&mut self.owned) {
            if !assigned.contains(&partition) {
                holding.stage = match holding.stage {
                    Stage::Fetching { .. } => continue,
                    Stage::Held(lease) => {
                        changes.push(Change::Revoking { partition: partition.clone(), epoch: holding.epoch });
                        Stage::Draining { lease, until: drain_until }
                    }
                    draining @ Stage::Draining { .. } => draining,
                };
            }
            self.owned.insert(partition, holding);
        }
        self.assigned = assigned;
        self.take_up();
        changes
    }

    /// Begins with what is assigned and not owned.
    fn take_up(&mut self) {
        for partition in &self.assigned {
            if !self.owned.contains_key(partition) {
                self.last_epoch += 1;
                let holding = Holding { epoch: Epoch(self.last_epoch), stage: Stage::Fetching { cut: false } };
                self.owned.insert(partition.clone(), holding);
            }
        }
    }

    /// The partitions whose committed offset is not known yet.
    pub(super) fn unfetched(&self) -> Vec<(TopicPartition, Epoch)> {
        let fetching = self.owned.iter().filter(|(_, holding)| holding.is_fetching());
        fetching.map(|(partition, holding)| (partition.clone(), holding.epoch)).collect()
    }

    /// The partition is held from now on. `None` if it was given up meanwhile.
    pub(super) fn fetched(
        &mut self,
        partition: &TopicPartition,
        epoch: Epoch,
        committed: Option<Committed>,
    ) -> Option<Change> {
        let holding = self.owned.get_mut(partition).filter(|holding| holding.epoch == epoch)?;
        let Stage::Fetching { cut } = holding.stage else { return None };
        let committed = committed.filter(|_| !cut);
        let (lease, keeper) = Lease::until(self.lease_end?);
        holding.stage = Stage::Held(keeper);
        Some(Change::Assigned { partition: partition.clone(), epoch, committed, lease })
    }

    /// The consumer has given up what it was asked for.
    pub(super) fn drained(&mut self, partition: &TopicPartition, epoch: Epoch) {
        let is_draining = |holding: &Holding| holding.epoch == epoch && matches!(holding.stage, Stage::Draining { .. });
        if self.owned.get(partition).is_some_and(is_draining) {
            self.give_up(partition);
        }
    }

    /// Takes away what should have been given up by now.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Change> {
        let overdue = self.owned.iter().filter(|(_, holding)| holding.drain_until().is_some_and(|until| until <= now));
        let overdue: Vec<TopicPartition> = overdue.map(|(partition, _)| partition.clone()).collect();
        for partition in &overdue {
            self.give_up(partition);
        }
        overdue.into_iter().map(|partition| Change::Lost { partition, loss: Loss::ToAnother }).collect()
    }

    /// The topic is gone, or another one of its name is there: what is held of it is lost with its records.
    pub(super) fn lose_topic(&mut self, topic: &Arc<str>) -> Vec<Change> {
        let gone: Vec<(TopicPartition, Holding)> =
            self.owned.extract_if(.., |partition, _| partition.topic == *topic).collect();
        let mut changes = Vec::new();
        for (partition, holding) in gone {
            if let Stage::Held(lease) | Stage::Draining { lease, .. } = holding.stage {
                lease.end();
                changes.push(Change::Lost { partition, loss: Loss::OfRecords });
            }
        }
        self.take_up();
        changes
    }

    /// The partition ends before what was read of it. It begins again, as if nothing was committed for it.
    pub(super) fn cut(&mut self, partition: &TopicPartition, epoch: Epoch) -> Option<Change> {
        if self.epoch(partition) != Some(epoch) {
            return None;
        }
        self.give_up(partition);
        if let Some(holding) = self.owned.get_mut(partition) {
            holding.stage = Stage::Fetching { cut: true };
        }
        Some(Change::Lost { partition: partition.clone(), loss: Loss::OfRecords })
    }

    fn give_up(&mut self, partition: &TopicPartition) {
        if let Some(Holding { stage: Stage::Held(lease) | Stage::Draining { lease, .. }, .. }) =
            self.owned.remove(partition)
        {
            lease.end();
        }
        // The group may have said meanwhile that it stays here.
        self.take_up();
    }

    /// When the next partition is taken away.
    pub(super) fn next_overdue(&self) -> Option<Instant> {
        self.owned.values().filter_map(Holding::drain_until).min()
    }

    /// Whether the group must hear that something which it was told of is free now.
    pub(super) fn has_given_up(&self) -> bool {
        let drains = self.owned.values().any(|holding| holding.drain_until().is_some());
        let is_free = |partition| !self.owned.contains_key(partition) && !self.assigned.contains(partition);
        !drains && self.claimed.iter().any(is_free)
    }

    /// Others may own all of it.
    pub(super) fn lose_all(&mut self) -> Vec<Change> {
        self.assigned.clear();
        self.claimed.clear();
        self.lease_end = None;
        let mut changes = Vec::new();
        for (partition, holding) in std::mem::take(&mut self.owned) {
            if let Stage::Held(lease) | Stage::Draining { lease, .. } = holding.stage {
                lease.end();
                changes.push(Change::Lost { partition, loss: Loss::ToAnother });
            }
        }
        changes
    }

    /// Nobody else owns any of it before `end`.
    pub(super) fn renew(&mut self, end: BootTime) {
        self.lease_end = Some(self.lease_end.map_or(end, |known| known.max(end)));
        for holding in self.owned.values() {
            if let Stage::Held(lease) | Stage::Draining { lease, .. } = &holding.stage {
                lease.renew(end);
            }
        }
    }

    /// The epoch in which something may be committed for the partition.
    pub(super) fn epoch(&self, partition: &TopicPartition) -> Option<Epoch> {
        let holding = self.owned.get(partition)?;
        (!holding.is_fetching()).then_some(holding.epoch)
    }

    pub(super) fn held(&self) -> usize {
        self.owned.values().filter(|holding| !holding.is_fetching()).count()
    }
}

impl Holding {
    fn is_fetching(&self) -> bool {
        matches!(self.stage, Stage::Fetching { .. })
    }

    fn drain_until(&self) -> Option<Instant> {
        match self.stage {
            Stage::Draining { until, .. } => Some(until),
            Stage::Fetching { .. } | Stage::Held(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn partition(index: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition: index }
    }

    fn set(partitions: &[i32]) -> BTreeSet<TopicPartition> {
        partitions.iter().copied().map(partition).collect()
    }

    /// Holdings that hold these partitions, and the leases.
    fn holding(partitions: &[i32], now: Instant) -> (Holdings, Vec<Lease>) {
        let mut holdings = Holdings::default();
        holdings.renew(BootTime::now() + 100 * SECOND);
        holdings.claim();
        assert!(holdings.assign(set(partitions), now).is_empty());
        let leases = holdings.unfetched().into_iter().map(|(partition, epoch)| {
            match holdings.fetched(&partition, epoch, None) {
                Some(Change::Assigned { lease, .. }) => lease,
                other => panic!("it is not assigned: {other:?}"),
            }
        });
        let leases = leases.collect();
        (holdings, leases)
    }

    #[test]
    fn partition_that_goes_is_drained_and_then_free() {
        let now = Instant::now();
        let (mut holdings, leases) = holding(&[0, 1], now);
        assert_eq!(*holdings.claim(), set(&[0, 1]));
        let changes = holdings.assign(set(&[0]), now + SECOND);
        let [Change::Revoking { partition: going, epoch }] = &changes[..] else {
            panic!("one goes: {changes:?}");
        };
        assert_eq!(*going, partition(1));
        assert!(!holdings.has_given_up(), "it is not given up yet");
        assert!(leases[1].is_valid(BootTime::now()), "what is in flight may finish");
        assert_eq!(*holdings.claim(), set(&[0, 1]), "a join meanwhile still names it");
        holdings.drained(going, *epoch);
        assert!(holdings.has_given_up());
        assert!(!leases[1].is_valid(BootTime::now()));
        assert_eq!(*holdings.claim(), set(&[0]));
        assert!(!holdings.has_given_up(), "it is said once");
    }

    #[test]
    fn partition_that_is_not_drained_in_time_is_taken() {
        let now = Instant::now();
        let (mut holdings, leases) = holding(&[0], now);
        holdings.claim();
        holdings.assign(set(&[]), now + SECOND);
        assert!(holdings.take_overdue(now).is_empty());
        assert_eq!(holdings.next_overdue(), Some(now + SECOND));
        assert!(matches!(&holdings.take_overdue(now + SECOND)[..], [Change::Lost { .. }]));
        assert!(!leases[0].is_valid(BootTime::now()));
        assert_eq!(holdings.epoch(&partition(0)), None);
        assert!(holdings.has_given_up());
    }

    #[test]
    fn partition_that_comes_back_while_it_drains_is_assigned_anew() {
        let now = Instant::now();
        let (mut holdings, _leases) = holding(&[0], now);
        let old = holdings.epoch(&partition(0)).expect("it is held");
        holdings.claim();
        holdings.assign(set(&[]), now + SECOND);
        holdings.claim();
        assert!(holdings.assign(set(&[0]), now + SECOND).is_empty());
        assert!(holdings.unfetched().is_empty(), "its consumer is still at work");
        holdings.drained(&partition(0), old);
        assert!(!holdings.has_given_up(), "it stays here");
        let [(_, new)] = holdings.unfetched()[..] else { panic!("it is fetched again") };
        assert!(new > old);
    }

    #[test]
    fn offset_fetched_for_an_earlier_assignment_is_not_used() {
        let now = Instant::now();
        let mut holdings = Holdings::default();
        holdings.renew(BootTime::now() + SECOND);
        holdings.assign(set(&[0]), now);
        let [(_, early)] = holdings.unfetched()[..] else { panic!("it is fetched") };
        holdings.lose_all();
        holdings.renew(BootTime::now() + SECOND);
        holdings.assign(set(&[0]), now);
        assert!(holdings.fetched(&partition(0), early, None).is_none());
    }

    #[test]
    fn what_is_lost_has_no_epoch_and_no_lease() {
        let now = Instant::now();
        let (mut holdings, leases) = holding(&[0, 1], now);
        assert_eq!(holdings.lose_all().len(), 2);
        assert!(leases.iter().all(|lease| !lease.is_valid(BootTime::now())));
        assert_eq!(holdings.epoch(&partition(0)), None);
        assert_eq!(*holdings.claim(), set(&[]));
    }
}
