//! Who in this process works on which partitions. The process is one member of the group, for the queues of all of its
//! targets, so that a partition of each lane goes to the same process; each target's worker hears of its own queues.
//!
//! ```text
//! group ──events──▶ dispatcher ──┬─▶ stream of the worker of `default`
//!                                ├─▶ stream of the worker of `sessions`
//!                                └─▶ parked, until somebody asks for those queues
//! ```
//!
//! Invariant: what was assigned is held under an epoch of ours, which no other assignment of the process ever had; the
//! group counts its own anew in each membership.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle, JoinSet},
};

use super::{
    Inner,
    beginning::BEGUN,
    committed::Committed,
    fetcher::Fetcher,
    group::{Event, Group, GroupTopic, Standing},
    queue_of,
    turns::{self, Heard, Teller},
};
use crate::log::{Assigned, Assignment, Checkpoint, Epoch, Lease, Loss, Partition, QueueName};

/// Assignments that a worker has not taken.
const QUEUED: usize = 16;

#[derive(Default)]
pub(super) struct Consumers {
    state: Mutex<State>,
    /// Held while a membership begins.
    joining: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    last_epoch: u64,
    held: HashMap<Partition, Holding>,
    listeners: Vec<Listener>,
    /// Assigned partitions that nobody has asked for yet.
    parked: Vec<Assigned>,
    membership: Option<Membership>,
}

/// An assigned partition.
#[derive(Clone)]
pub(super) struct Holding {
    epoch: Epoch,
    lease: Lease,
    pub(super) epoch_in_group: Epoch,
    pub(super) group: Arc<Group>,
    pub(super) topic: Arc<str>,
}

/// One who works on queues.
struct Listener {
    queues: Vec<QueueName>,
    assignments: Teller,
}

struct Membership {
    group: Arc<Group>,
    queues: Vec<QueueName>,
    dispatcher: JoinHandle<()>,
    watchdog: JoinHandle<()>,
}

impl Membership {
    /// Leaves the group. No event of it is told any more.
    async fn end(self) {
        self.watchdog.abort();
        self.dispatcher.abort();
        // It was told to end, or has ended before.
        let _ = self.dispatcher.await;
        self.group.leave().await;
    }
}

impl Consumers {
    /// What is held, if it is held under that epoch.
    pub(super) fn holding(&self, partition: &Partition, epoch: Epoch) -> Option<Holding> {
        self.state().held.get(partition).filter(|holding| holding.epoch == epoch).cloned()
    }

    /// Nobody says here when a partition that was revoked has been given up; its lease does.
    pub(super) fn holds(&self, partition: &Partition) -> bool {
        self.state().held.get(partition).is_some_and(|holding| !holding.lease.has_ended())
    }

    /// Leaves the group; the streams end.
    pub(super) async fn leave(&self) {
        let membership = self.state().membership.take();
        if let Some(membership) = membership {
            membership.end().await;
        }
        let mut state = self.state();
        *state = State { last_epoch: state.last_epoch, ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Inner {
    /// Begins to hear of the partitions of these queues. Whoever listened for one of them before hears no more, and
    /// they are assigned anew.
    pub(super) async fn listen(self: &Arc<Self>, queues: Vec<QueueName>) -> Heard {
        let _joining = self.consumers.joining.lock().await;
        let (assignments, received) = turns::channel(QUEUED);
        let (wanted, earlier) = {
            let mut state = self.consumers.state();
            let shares = |listener: &Listener| listener.queues.iter().any(|queue| queues.contains(queue));
            let is_repeated = state.listeners.iter().any(shares);
            state.listeners.retain(|listener| !shares(listener) && !listener.assignments.is_closed());
            let wanted = self.wanted(&state.listeners, &queues);
            let is_member = |membership: &Membership| wanted.iter().all(|queue| membership.queues.contains(queue));
            if !is_repeated && state.membership.as_ref().is_some_and(is_member) {
                let (ours, others) =
                    state.parked.drain(..).partition(|assigned| queues.contains(&assigned.partition.queue));
                state.parked = others;
                let ours: Vec<Assigned> = ours;
                // More than a channel takes at once.
                let (assignments, received) = turns::channel(QUEUED.max(ours.len()));
                for assigned in ours {
                    assignments.try_tell(Assignment::Assigned(assigned));
                }
                state.listeners.push(Listener { queues, assignments });
                return received;
            }
            (wanted, state.membership.take())
        };
        if let Some(earlier) = earlier {
            earlier.end().await;
            self.lose_all().await;
        }
        self.consumers.state().listeners.push(Listener { queues, assignments });
        if self.config.create_topics {
            self.make_missing_topics(&wanted).await;
        }
        self.report_findings().await;
        self.join(wanted);
        received
    }

    /// The queues of all who listen, and those of all targets that this process knows.
    fn wanted(&self, listeners: &[Listener], more: &[QueueName]) -> Vec<QueueName> {
        let of_targets = self
            .identities
            .keys()
            .flat_map(|target| super::LANES.map(|lane| QueueName { target: target.clone(), lane }));
        let listened = listeners.iter().flat_map(|listener| &listener.queues).chain(more).cloned();
        let mut wanted: Vec<QueueName> = of_targets.chain(listened).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    fn join(self: &Arc<Self>, queues: Vec<QueueName>) {
        let topics = queues.iter().map(|queue| GroupTopic {
            name: self.topic_of(queue).into(),
            target: queue.target.clone(),
            fingerprint: self.identities.get(&queue.target).unwrap_or(&queue.target).clone(),
        });
        let _there = self.runtime.enter();
        let (group, events) = Group::join(self.config.clone(), self.security.clone(), topics.collect());
        let group = Arc::new(group);
        let dispatcher = tokio::spawn(dispatch(self.clone(), group.clone(), events));
        let watchdog = tokio::spawn(watch(self.clone(), group.clone()));
        self.consumers.state().membership = Some(Membership { group, queues, dispatcher, watchdog });
    }

    /// Nothing is held any more: whoever worked on something hears it.
    async fn lose_all(&self) {
        let lost: Vec<Partition> = {
            let mut state = self.consumers.state();
            state.parked.clear();
            state.held.drain().map(|(partition, _)| partition).collect()
        };
        for partition in lost {
            self.tell(Assignment::Lost { partition, loss: Loss::ToAnother }).await;
        }
    }

    async fn tell(&self, assignment: Assignment) {
        let queue = match &assignment {
            Assignment::Assigned(Assigned { partition, .. })
            | Assignment::Revoking { partition, .. }
            | Assignment::Lost { partition, .. } => &partition.queue,
        };
        let telling = {
            let mut state = self.consumers.state();
            match (state.listeners.iter().find(|listener| listener.queues.contains(queue)), assignment) {
                (Some(listener), assignment) => listener.assignments.tell(assignment),
                (None, Assignment::Assigned(assigned)) => return state.parked.push(assigned),
                (None, Assignment::Revoking { partition, .. } | Assignment::Lost { partition, .. }) => {
                    return state.parked.retain(|assigned| assigned.partition != partition);
                }
            }
        };
        telling.await;
    }

    /// The records that a partition had are gone.
    fn note_gone(&self, topic: &Arc<str>, partition: i32) {
        let Ok(partition) = u32::try_from(partition) else { return };
        let extent = self.source.depths.forget(&(topic.clone(), partition));
        let lost = extent.end.saturating_sub(extent.finished);
        self.source.lost.fetch_add(lost, Ordering::Relaxed);
        tracing::warn!(
            kafka.topic = &**topic,
            kafka.partition = partition,
            lost,
            "Partition {topic}/{partition} is not the one any more that was read here: its topic was deleted or made \
             anew, or it was cut. {lost} records above its committed offset went with it; it is read from its beginning"
        );
    }

    /// What an event of the group means to the consumer.
    fn assignment(&self, group: &Arc<Group>, event: Event) -> Option<Assignment> {
        let partition = |topic: &str, index: i32| {
            Some(Partition { queue: queue_of(&self.config.topic, topic)?, index: u32::try_from(index).ok()? })
        };
        match event {
            Event::Assigned { topic, partition: index, epoch: epoch_in_group, committed, lease } => {
                let partition = partition(&topic, index)?;
                let from = committed.as_ref().and_then(|committed| u64::try_from(committed.offset).ok());
                let checkpoint = committed
                    .filter(|committed| committed.metadata != BEGUN)
                    .map(|committed| checkpoint_of(&partition, committed));
                if let Some(from) = from {
                    self.source.depths.note_finished(&topic, partition.index, from);
                }
                let reader = Fetcher::new(self.source.clone(), (topic.clone(), partition.index), from);
                let (told, topic_told) = (group.clone(), topic.clone());
                let reader =
                    Box::new(reader.with_doubts(move |doubt| told.doubt(&topic_told, index, epoch_in_group, doubt)));
                let mut state = self.consumers.state();
                state.last_epoch += 1;
                let epoch = Epoch(state.last_epoch);
                let holding = Holding { epoch, lease: lease.clone(), epoch_in_group, group: group.clone(), topic };
                state.held.insert(partition.clone(), holding);
                Some(Assignment::Assigned(Assigned { partition, epoch, checkpoint, lease, reader }))
            }
            Event::Revoking { topic, partition: index, done } => {
                Some(Assignment::Revoking { partition: partition(&topic, index)?, done })
            }
            Event::Lost { topic, partition: index, loss } => {
                let partition = partition(&topic, index)?;
                self.consumers.state().held.remove(&partition);
                Some(Assignment::Lost { partition, loss })
            }
        }
    }
}

/// Hands a membership's events on until it ends. A partition without a checkpoint is handed on once it is known from where
/// it is read.
async fn dispatch(inner: Arc<Inner>, group: Arc<Group>, mut events: mpsc::Receiver<Event>) {
    let closing = inner.source.closing.clone();
    let mut beginnings = Beginnings::default();
    loop {
        let happened = async {
            tokio::select! {
                event = events.recv() => event.map(next),
                Some(begun) = beginnings.running.join_next() => Some(Next::Begun(begun.ok())),
            }
        };
        let happened = closing.run_until_cancelled(happened).await;
        if let Some(Some(Next::Event(Event::Lost { topic, partition, loss: Loss::OfRecords }))) = &happened {
            inner.note_gone(topic, *partition);
        }
        let event = match happened {
            Some(Some(Next::Unbegun { topic, partition, epoch, lease })) => {
                let begin = begin(inner.clone(), group.clone(), topic.clone(), partition, epoch, lease);
                let handle = beginnings.running.spawn(begin);
                beginnings.waiting.insert((topic, partition), (epoch, handle));
                continue;
            }
            Some(Some(Next::Begun(begun))) => match begun.filter(|event| beginnings.is_waited_for(event)) {
                Some(event) => event,
                None => continue,
            },
            // Nobody has heard of it yet.
            Some(Some(Next::Event(
                Event::Revoking { topic, partition, .. } | Event::Lost { topic, partition, .. },
            ))) if beginnings.give_up(&inner, &topic, partition) => {
                continue;
            }
            Some(Some(Next::Event(event))) => event,
            Some(None) | None => break,
        };
        if let Some(assignment) = inner.assignment(&group, event) {
            inner.tell(assignment).await;
        }
    }
    if let Standing::Failed { reason } = &*group.standing().borrow() {
        inner.failure.send_replace(Some(reason.clone()));
    }
}

/// Partitions of which it is being found out from where they are read. Dropping it ends that.
#[derive(Default)]
struct Beginnings {
    running: JoinSet<Event>,
    waiting: HashMap<(Arc<str>, i32), (Epoch, AbortHandle)>,
}

enum Next {
    Event(Event),
    /// Assigned, and without a checkpoint.
    Unbegun {
        topic: Arc<str>,
        partition: i32,
        epoch: Epoch,
        lease: Lease,
    },
    /// It is known; none: it was given up.
    Begun(Option<Event>),
}

impl Beginnings {
    /// Whether the partition is still to be handed on.
    fn is_waited_for(&mut self, event: &Event) -> bool {
        let Event::Assigned { topic, partition, epoch, .. } = event else { return false };
        let place = (topic.clone(), *partition);
        let is_waited_for = self.waiting.get(&place).is_some_and(|(wanted, _)| wanted == epoch);
        if is_waited_for {
            self.waiting.remove(&place);
        }
        is_waited_for
    }

    /// The partition is taken away. False if it was handed on before.
    fn give_up(&mut self, inner: &Inner, topic: &Arc<str>, partition: i32) -> bool {
        let Some((_, begin)) = self.waiting.remove(&(topic.clone(), partition)) else { return false };
        begin.abort();
        if let Ok(index) = u32::try_from(partition) {
            inner.source.depths.note_held(&(topic.clone(), index), None);
        }
        true
    }
}

fn next(event: Event) -> Next {
    match event {
        Event::Assigned { topic, partition, epoch, committed: None, lease } => {
            Next::Unbegun { topic, partition, epoch, lease }
        }
        event => Next::Event(event),
    }
}

async fn begin(
    inner: Arc<Inner>,
    group: Arc<Group>,
    topic: Arc<str>,
    partition: i32,
    epoch: Epoch,
    lease: Lease,
) -> Event {
    let place = (topic.clone(), u32::try_from(partition).expect("brokers count partitions from 0"));
    let committed = Some(inner.begin(group, place, epoch).await);
    Event::Assigned { topic, partition, epoch, committed, lease }
}

/// Gives up what workers hold that make no turn any more.
async fn watch(inner: Arc<Inner>, group: Arc<Group>) {
    let look = || {
        let state = inner.consumers.state();
        let mut stuck = state.listeners.iter().filter(|listener| listener.assignments.look());
        stuck.next().and_then(|listener| listener.queues.first()).map(|queue| queue.target.clone())
    };
    let target = turns::stuck(inner.config.stuck_after, look).await;
    let seconds = inner.config.stuck_after.as_secs();
    let reason =
        format!("the worker of the target {target} has made no turn for {seconds} s; its partitions go to others");
    tracing::error!("Leaving the group: {reason}");
    group.leave().await;
    inner.failure.send_replace(Some(reason));
}

/// What was committed. Whoever resets a group's offsets by hand commits no words beside them: then nothing above the
/// watermark is known to be finished.
fn checkpoint_of(partition: &Partition, committed: Committed) -> Checkpoint {
    let is_without_words = committed.metadata.is_empty();
    let checkpoint = committed.into_checkpoint();
    if checkpoint.state.is_empty() && !is_without_words {
        tracing::warn!("What was committed beside the offset of {partition} is not ours: only the offset is taken");
    }
    checkpoint
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::conformance::queue;

    #[test]
    fn words_of_others_beside_an_offset_are_no_checkpoint() {
        let partition = Partition { queue: queue("normal"), index: 0 };
        let check = |metadata: &str, state: &'static [u8]| {
            let committed = Committed { offset: 7, metadata: metadata.to_owned() };
            let expected = Checkpoint { watermark: 7, state: Bytes::from_static(state) };
            assert_eq!(checkpoint_of(&partition, committed), expected);
        };
        check("AP8=", &[0, 255]);
        check("", b"");
        check("reset by hand", b"");
    }
}
