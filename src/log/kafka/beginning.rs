//! Where a partition without a checkpoint is read from. Of tasks that are as old as the markers of those that have run
//! nobody knows whether they have: such a partition is held until a person says from where.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    Inner,
    admin::{Admin, AdminError, ByPlace, Told, Which},
    committed::Committed,
    config::Beginning,
    depths::Place,
    group::Group,
};
use crate::log::Epoch;

/// Why such a partition waits.
pub(super) const NO_CHECKPOINT: &str = "no_checkpoint";

/// Committed beside an offset that nobody has come from yet. Were it not, tasks that were held from the beginning on for
/// longer than markers live would be taken for such as may have run.
pub(super) const BEGUN: &str = "begun";

/// Between two tries to ask a broker; and as long as this is waited for what is committed here.
const PAUSE: Duration = Duration::from_secs(1);

/// What a partition holds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Offsets of the oldest record and after the last one.
    start: u64,
    end: u64,
    /// The oldest record that says when it was made.
    oldest: Option<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    From(u64),
    /// As a person has said.
    FromAsTold(u64),
    Hold,
}

impl Bounds {
    fn decide(&self, now_ms: i64, life: Duration, told: Beginning) -> Decision {
        let life = i64::try_from(life.as_millis()).unwrap_or(i64::MAX);
        let is_young = |oldest: &Told| oldest.offset <= self.start && now_ms.saturating_sub(oldest.at_ms) < life;
        if self.start >= self.end || self.oldest.as_ref().is_some_and(is_young) {
            return Decision::From(self.start);
        }
        match told {
            Beginning::Hold => Decision::Hold,
            Beginning::Earliest => Decision::FromAsTold(self.start),
            Beginning::Latest => Decision::FromAsTold(self.end),
        }
    }
}

impl Inner {
    /// Finds out where a partition begins: with what a person has said, if that was needed, else with its oldest record.
    /// Waits for ever where it is needed and not said. Commits it, so that it is found out once.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing, but for an offset that may be committed.
    pub(super) async fn begin(&self, group: Arc<Group>, place: Place, epoch: Epoch) -> Committed {
        let mut admin = Admin::new(self.config.clone(), self.security.clone());
        loop {
            let pause = match self.bounds(&mut admin, &place).await {
                Ok(Some(bounds)) => match self.begin_within(&bounds, &place) {
                    Some(committed) => {
                        self.store(&group, &place, epoch, &committed).await;
                        return committed;
                    }
                    None => self.config.metadata_refresh,
                },
                // Nobody leads it now.
                Ok(None) => PAUSE,
                Err(error) => {
                    tracing::debug!("The oldest record of {}/{} is not known: {error}", place.0, place.1);
                    PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    /// What is to be committed for it; none while it is held.
    fn begin_within(&self, bounds: &Bounds, place: &Place) -> Option<Committed> {
        let (topic, partition) = place;
        let committed = |offset: u64, words: &str| {
            let offset = i64::try_from(offset).expect("Kafka counts records in 63 bits");
            Committed { offset, metadata: words.to_owned() }
        };
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let told = match bounds.decide(now_ms, self.config.marker_life, self.config.beginning) {
            Decision::From(offset) => {
                self.source.depths.note_held(place, None);
                self.source.depths.note_finished(topic, *partition, offset);
                return Some(committed(offset, BEGUN));
            }
            Decision::FromAsTold(offset) => offset,
            Decision::Hold => {
                if self.source.depths.note_held(place, Some(NO_CHECKPOINT)) {
                    tracing::error!(
                        kafka.topic = &**topic,
                        kafka.partition = partition,
                        "Partition {topic}/{partition} has no committed offset of its own, and tasks older than \
                         once.marker_ttl, which may have run: it is held (no_checkpoint) until kafka.no_checkpoint says \
                         `earliest` or `latest`, or an offset is committed while no sidecar runs"
                    );
                }
                return None;
            }
        };
        self.source.depths.note_held(place, None);
        tracing::warn!(
            kafka.topic = &**topic,
            kafka.partition = partition,
            skipped = told - bounds.start,
            "Partition {topic}/{partition} has no committed offset of its own and is read from offset {told} on, as \
             kafka.no_checkpoint says: {} older records are passed over",
            told - bounds.start
        );
        Some(committed(told, ""))
    }

    /// Whoever consumes the partition commits later, so that this overwrites nothing, however long it takes.
    async fn store(&self, group: &Group, (topic, partition): &Place, epoch: Epoch, committed: &Committed) {
        let index = i32::try_from(*partition).expect("Kafka counts partitions in 31 bits");
        let Committed { offset, metadata } = committed.clone();
        match timeout(PAUSE, group.commit(topic, index, epoch, offset, metadata)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("Where {topic}/{partition} begins was not stored: {error}"),
            Err(_) => tracing::debug!("Where {topic}/{partition} begins was not stored in time"),
        }
    }

    async fn bounds(&self, admin: &mut Admin, place: &Place) -> Result<Option<Bounds>, AdminError> {
        let cluster = admin.cluster(std::slice::from_ref(&place.0)).await?;
        let places = std::slice::from_ref(place);
        let told = |told: ByPlace<Told>| told.get(place).copied();
        let oldest = told(admin.offsets(&cluster, Which::OldestDated, places).await?);
        let start = told(admin.offsets(&cluster, Which::Start, places).await?);
        let end = told(admin.offsets(&cluster, Which::End, places).await?);
        Ok(start.zip(end).map(|(start, end)| Bounds { start: start.offset, end: end.offset, oldest }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn decide(oldest: Option<(u64, i64)>, told: Beginning) -> Decision {
        let oldest = oldest.map(|(offset, at_ms)| Told { offset, at_ms });
        Bounds { start: 5, end: 9, oldest }.decide(100_000, LIFE, told)
    }

    #[test]
    fn what_is_younger_than_the_markers_is_read_from_its_beginning() {
        for told in [Beginning::Hold, Beginning::Latest] {
            assert_eq!(decide(Some((5, 40_001)), told), Decision::From(5));
        }
        let empty = Bounds { start: 9, end: 9, oldest: None };
        assert_eq!(empty.decide(100_000, LIFE, Beginning::Hold), Decision::From(9));
    }

    #[test]
    fn what_is_older_waits_for_a_person() {
        assert_eq!(decide(Some((5, 40_000)), Beginning::Hold), Decision::Hold);
        assert_eq!(decide(None, Beginning::Hold), Decision::Hold, "nobody knows how old it is");
        assert_eq!(decide(Some((6, 99_000)), Beginning::Hold), Decision::Hold, "nor of the first");
        assert_eq!(decide(Some((5, 40_000)), Beginning::Earliest), Decision::FromAsTold(5));
        assert_eq!(decide(Some((5, 40_000)), Beginning::Latest), Decision::FromAsTold(9));
    }
}
