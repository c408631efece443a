//! Membership in a consumer group: which partitions are this process's, for how long, and what is committed for them.
//!
//! The classic protocol, cooperative, with a protocol name and an assignor of our own. `member` decides (its module doc
//! has the rules), `holdings` keeps what is owned, `commits` what waits to be committed, `renewals` what was committed and
//! must be again, `assignor` what a leader gives to whom, and `subscription` how members say it. `task` asks the brokers
//! and tells the consumer. Invariant: a lease that is valid means that no other member owns its partition.
//!
//! Each rule of `member` has its tests beside it, `rule_1_…` and so on, each at the moment that matters. These show it
//! of the parts together: on coordinators that follow a script (`tests/scripted`), on a real Kafka (`tests`, and its
//! neighbours under `log/kafka`) and through the front door (`tests/it`). The one named `cluster_…`, which `make soak`
//! runs, has three members under load while their coordinator dies.
//!
//! ```text
//! 1 no heartbeat in a join      commits_go_on_while_a_join_waits_for_a_silent_member
//! 2 a join's patience           join_that_is_not_answered_is_begun_again_on_a_new_connection
//! 3 rebalances                  partitions_have_one_owner_while_members_come_and_go
//!                               partition_that_is_not_given_up_in_time_is_lost
//!                               revoked_partition_is_released_with_all_it_has_done
//!                               rolling_restart_loses_repeats_and_reorders_nothing
//! 4 forgotten, or fenced        stopped_member_loses_its_partitions_and_its_commits
//!                               static_member_comes_back_to_its_partitions
//!                               owner_that_wakes_too_late_overwrites_nothing
//!                               sidecar_whose_name_another_one_has_taken_ends
//! 5 another coordinator         join_at_a_coordinator_that_is_none_any_more_is_begun_again_at_the_new_one
//!                               coordinator_that_restarts_keeps_its_member
//!                               cluster_that_loses_nodes_loses_repeats_and_reorders_nothing
//! 6 what is committed           member_gets_partitions_and_what_was_committed_for_them
//!                               fullest_checkpoint_is_kept_by_kafka_and_says_nothing_but_the_truth
//!                               cluster_that_loses_nodes_loses_repeats_and_reorders_nothing
//! 7 where a partition begins    member_gets_partitions_and_what_was_committed_for_them
//!                               old_partition_without_a_checkpoint_waits_for_a_person
//!                               records_that_were_deleted_unread_are_counted
//!                               partition_that_ends_too_early_is_not_read_again
//! 8 a consumer that is stuck    consumer_that_takes_nothing_loses_the_membership
//!                               worker_that_makes_no_turn_loses_its_partitions
//! 9 topics that change          topics_that_are_made_or_grow_are_assigned
//!                               partitions_that_a_follower_sees_first_are_shared_out
//!                               tasks_that_come_after_their_topic_was_deleted_are_made
//! 10 leaving                    leaving_does_not_wait_for_a_join
//!                               leaving_a_silent_coordinator_is_bounded
//!                               member_goes_when_nobody_holds_it
//!                               rolling_restart_loses_repeats_and_reorders_nothing
//! ```

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::{MAX_METADATA_CHARS, committed::ID_CHARS, config::Config, security::Security};
use crate::log::{CommitError, Epoch, Lease, Loss};

mod assignor;
mod commits;
mod holdings;
mod member;
mod renewals;
mod subscription;
mod task;
#[cfg(test)]
mod tests;

pub(super) use self::member::Standing;
pub(super) use super::committed::{Committed, TopicId};

/// Events that the consumer has not taken.
const QUEUED_EVENTS: usize = 64;
/// Commits that the task has not taken.
const QUEUED_COMMANDS: usize = 64;

/// Characters of what is committed beside an offset.
pub(super) const MAX_WORDS: usize = MAX_METADATA_CHARS - ID_CHARS;

/// A topic to have partitions of.
#[derive(Clone, Debug)]
pub(super) struct GroupTopic {
    pub(super) name: Arc<str>,
    /// Whose tasks it holds. Partition *p* of all topics of a target goes to one member.
    pub(super) target: Arc<str>,
    /// What the target is at this member: where its server is, or a name that was given to that. It is shown in logs.
    pub(super) fingerprint: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct TopicPartition {
    topic: Arc<str>,
    partition: i32,
}

/// What a member was given, in the leader's words; nothing where those are not ours.
pub(super) fn assigned_in(words: bytes::Bytes) -> Vec<(Arc<str>, u32)> {
    let assigned = subscription::decode_assignment(words).map_or_else(|_| Default::default(), |(assigned, _)| assigned);
    let place = |of: TopicPartition| Some((of.topic, u32::try_from(of.partition).ok()?));
    assigned.into_iter().filter_map(place).collect()
}

/// What happens to partitions.
#[derive(Debug)]
pub(super) enum Event {
    Assigned {
        topic: Arc<str>,
        partition: i32,
        epoch: Epoch,
        /// None where nothing was ever committed, or that is forgotten.
        committed: Option<Committed>,
        lease: Lease,
    },
    /// Finish, commit, and drop `done`. After two thirds of the rebalance timeout the partition is lost.
    Revoking {
        topic: Arc<str>,
        partition: i32,
        done: oneshot::Sender<()>,
    },
    Lost {
        topic: Arc<str>,
        partition: i32,
        loss: Loss,
    },
}

/// What a reader found out about a partition that it was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// There is no such topic, at the broker that was asked.
    Missing,
    /// It ends before what was read of it, so that what was committed says nothing about it.
    Cut,
}

/// What the task is asked.
enum Command {
    Commit {
        partition: TopicPartition,
        epoch: Epoch,
        offset: i64,
        metadata: String,
        answer: oneshot::Sender<Result<(), CommitError>>,
    },
    Doubt {
        partition: TopicPartition,
        epoch: Epoch,
        doubt: Doubt,
    },
    Leave,
}

/// A membership, or the wish for one. Dropping it leaves the group, though nobody waits for that.
pub(super) struct Group {
    commands: mpsc::Sender<Command>,
    standing: watch::Receiver<Standing>,
}

impl Group {
    /// Joins as soon as that is possible, and again whenever it must. The events end when it has left or failed.
    pub(super) fn join(
        config: Arc<Config>,
        security: Security,
        topics: Vec<GroupTopic>,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (commands, commanded) = mpsc::channel(QUEUED_COMMANDS);
        let (events, received) = mpsc::channel(QUEUED_EVENTS);
        let (tell, standing) = watch::channel(Standing::Outside { problem: None });
        let task = task::Task::new(config, security, topics, commanded, events, tell);
        tokio::spawn(task.run());
        (Self { commands, standing }, received)
    }

    /// Commits an offset with words of at most [`MAX_WORDS`] characters. Waits through a rebalance, but no longer than the
    /// session timeout and one request.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves unknown whether it is committed.
    pub(super) async fn commit(
        &self,
        topic: &Arc<str>,
        partition: i32,
        epoch: Epoch,
        offset: i64,
        metadata: String,
    ) -> Result<(), CommitError> {
        let partition = TopicPartition { topic: topic.clone(), partition };
        let (answer, answered) = oneshot::channel();
        let command = Command::Commit { partition, epoch, offset, metadata, answer };
        self.commands.send(command).await.map_err(|_| CommitError::Closed)?;
        answered.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Tells that the records of a partition may not be those that were assigned. Whoever is not heard tells it again.
    pub(super) fn doubt(&self, topic: &Arc<str>, partition: i32, epoch: Epoch, doubt: Doubt) {
        let partition = TopicPartition { topic: topic.clone(), partition };
        let _ = self.commands.try_send(Command::Doubt { partition, epoch, doubt });
    }

    /// Where this member stands, now and from now on.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Ends the leases and the membership; what is to be committed was committed before. Bounded, and idempotent.
    pub(super) async fn leave(&self) {
        // It may have been told before.
        let _ = self.commands.send(Command::Leave).await;
        self.commands.closed().await;
    }
}
