//! What there is to see of all partitions, whoever works on them, and of how their topics are set up: asked for every now
//! and then, so that it is known of a process that consumes nothing too, and before anything has passed it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Inner, LANES,
    admin::{Admin, AdminError, ByPlace, TopicKind, Which},
    depths::Seen,
    group, queue_of, table,
};
use crate::log::{Partition, QueueName};

/// Between two looks at how topics are set up, where none of them keeps tasks waiting.
const INSPECT_INTERVAL: Duration = Duration::from_secs(60);

/// Looks until the log is closed or gone.
pub(super) async fn watch(inner: Weak<Inner>) {
    let Some(closing) = inner.upgrade().map(|inner| inner.source.closing.clone()) else { return };
    closing.run_until_cancelled(looks(inner)).await;
}

async fn looks(inner: Weak<Inner>) {
    let mut inspect_at = Instant::now();
    let Some(mut admin) = inner.upgrade().map(|inner| Admin::new(inner.config.clone(), inner.security.clone())) else {
        return;
    };
    while let Some(inner) = inner.upgrade() {
        let topics = inner.known_topics();
        if Instant::now() >= inspect_at || inner.inspected.forbids_any() {
            match inner.inspect(&mut admin, &topics).await {
                Ok(()) => inspect_at = Instant::now() + INSPECT_INTERVAL,
                Err(error) => tracing::debug!("Topics cannot be looked at now: {error}"),
            }
        }
        if let Err(error) = inner.look_at_partitions(&mut admin, &topics).await {
            tracing::debug!("Partitions cannot be looked at now: {error}");
        }
        let pause = inner.config.metadata_refresh.mul_f64(0.75 + fastrand::f64() / 2.0);
        drop(inner);
        sleep(pause).await;
    }
}

impl Inner {
    /// The topics of all targets that this process knows, and of all queues that it has seen.
    pub(super) fn known_topics(&self) -> Vec<(Arc<str>, TopicKind)> {
        let of_target = |target: &Arc<str>| LANES.map(|lane| QueueName { target: target.clone(), lane });
        let mut tasks: Vec<Arc<str>> =
            self.identities.keys().flat_map(of_target).map(|queue| self.topic_of(&queue).into()).collect();
        tasks.extend(self.source.depths.all().into_iter().map(|((topic, _), _)| topic));
        tasks.extend(self.inspected.topics());
        tasks.retain(|topic| queue_of(&self.config.topic, topic).is_some());
        tasks.sort_unstable();
        tasks.dedup();
        let letters = table::topic_of(&self.config.topic, table::LETTERS).into();
        tasks.into_iter().map(|topic| (topic, TopicKind::Tasks)).chain([(letters, TopicKind::Table)]).collect()
    }

    /// Looks at how these topics are set up.
    pub(super) async fn inspect(&self, admin: &mut Admin, topics: &[(Arc<str>, TopicKind)]) -> Result<(), AdminError> {
        self.inspected.note(admin.inspect(topics).await?);
        Ok(())
    }

    /// Asks how far each partition is written and finished, and who works on it.
    async fn look_at_partitions(&self, admin: &mut Admin, topics: &[(Arc<str>, TopicKind)]) -> Result<(), AdminError> {
        let names: Vec<Arc<str>> =
            topics.iter().filter(|(_, kind)| *kind == TopicKind::Tasks).map(|(name, _)| name.clone()).collect();
        let cluster = admin.cluster(&names).await?;
        let of_topic = |name: &Arc<str>| {
            let partitions = cluster.topics.get(&**name).into_iter().flat_map(BTreeMap::keys);
            partitions.filter_map(|index| Some((name.clone(), u32::try_from(*index).ok()?))).collect::<Vec<_>>()
        };
        let places: Vec<(Arc<str>, u32)> = names.iter().flat_map(of_topic).collect();
        // Of what is held here more is known.
        let is_held = |place: &(Arc<str>, u32)| {
            let queue = queue_of(&self.config.topic, &place.0);
            queue.is_some_and(|queue| self.consumers.holds(&Partition { queue, index: place.1 }))
        };
        self.source.depths.retain(|place| cluster.topics.contains_key(&*place.0) || is_held(place));
        if places.is_empty() {
            return Ok(());
        }
        // Before the ends: what is finished meanwhile must not seem to lie behind the end.
        let committed = unless_forbidden(admin.committed(&cluster, &places).await)?;
        let new: Vec<_> =
            committed.iter().filter(|(_, stored)| stored.is_none()).map(|(place, _)| place.clone()).collect();
        let starts = admin.offsets(&cluster, Which::Start, &new).await?;
        let ends = admin.offsets(&cluster, Which::End, &places).await?;
        let owners = unless_forbidden(owners(admin).await)?;
        for (place, end) in ends {
            let finished = match committed.get(&place) {
                Some(Some(stored)) => u64::try_from(stored.offset).ok(),
                Some(None) => starts.get(&place).map(|start| start.offset),
                None => None,
            };
            let owner = owners.get(&place).cloned();
            let finished = finished.filter(|_| !is_held(&place));
            let topic_id = cluster.ids.get(&*place.0).copied();
            self.source.depths.note_seen(place, Seen { end: end.offset, finished, owner, topic_id });
        }
        Ok(())
    }
}

/// Whoever may not ask about the group sees less.
fn unless_forbidden<T: Default>(answer: Result<T, AdminError>) -> Result<T, AdminError> {
    match answer {
        Err(error) if error.is_permanent() => Ok(T::default()),
        answer => answer,
    }
}

/// Who works on what, as the group tells it.
async fn owners(admin: &mut Admin) -> Result<ByPlace<Arc<str>>, AdminError> {
    let mut owners = BTreeMap::new();
    for seat in admin.seats().await? {
        let name: Arc<str> = seat.name.into();
        for place in group::assigned_in(seat.assignment) {
            owners.insert(place, name.clone());
        }
    }
    Ok(owners)
}
