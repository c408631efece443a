//! Decides what a member of a group says next, and what an answer means for its partitions. No IO and no clock: it is
//! told what was answered, and when. Here is membership itself; `offsets` is what is asked beside it, `room` whether to join
//! at all, `meaning` what errors mean.
//!
//! ```text
//!          ┌────────────── rebalance, or something was given up ◀──────────────┐
//!          ▼                                                                   │
//!   out ──▶ joining ──▶ syncing ──▶ stable (heartbeats) ───────────────────────┤
//!          ▲     the coordinator moved or is silent: the same member again ◀───┤
//!          └──── the group has forgotten the member: all is lost ◀─────────────┘
//! ```
//!
//! The rules, each with its tests in `tests`; what else shows them is in the doc of `group`:
//!
//! 1. No heartbeat while a join or sync is in flight; an answer counts only for the member and generation it was asked
//!    for.
//! 2. A join is waited for a little longer than the group waits for its members; then its connection is closed.
//! 3. A rebalance: join at once with what is owned, and go on working. What is missing from the new assignment is
//!    drained, and then said to be free by joining again.
//! 4. A member that the group does not know, or of an older generation, has lost everything, and becomes a new member.
//!    A fenced instance id ends the process.
//! 5. Without a coordinator, another one is looked for; member and generation stay.
//! 6. Committed is only what is owned in the epoch that it is committed for, in the newest generation; and the same again
//!    when nothing new was for long.
//! 7. A partition is handed out with what is committed for it, or with the word that nothing is.
//! 8. A consumer that takes no assignment loses the membership, for heartbeats alone would keep its partitions.
//! 9. Any member that sees topics change says so by joining again. Partitions of a topic that is gone, or another one
//!    by its id, are lost at once, and what was committed for another one counts for nothing.
//! 10. Leaving ends the leases, and then the membership; a static member keeps that for its next process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        SyncGroupRequest, SyncGroupResponse, join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity, sync_group_request::SyncGroupRequestAssignment,
    },
    protocol::StrBytes,
};
use tokio::time::Instant;

use self::{
    meaning::{Meaning, meaning, refusal},
    offsets::AskedOffsets,
    room::Room,
};
use super::{
    Committed, Doubt, GroupTopic, TopicId, TopicPartition,
    assignor::{self, Conflict, MemberView, TargetView},
    commits::{CommitId, Commits},
    holdings::{Change, Holdings},
    renewals::Renewals,
    subscription,
};
use crate::log::{
    BootTime, CommitError, Epoch,
    kafka::{
        admin::{group_id, milliseconds, text},
        config::Config,
    },
};

mod meaning;
mod offsets;
mod room;

pub(super) use self::offsets::{OffsetsAnswer, OffsetsQuestion};

/// Our own, so that a consumer of another kind fails loudly instead of committing tasks that it has not executed.
const PROTOCOL: &str = "redrive-v1";
/// What Kafka's tools show partitions of.
const PROTOCOL_TYPE: &str = "consumer";

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
/// Between tries of what only a person can mend.
const REFUSED_BACKOFF: Duration = Duration::from_secs(5);
/// While the group is between two generations.
const REBALANCE_BACKOFF: Duration = Duration::from_millis(100);

/// What is fixed while a member lives.
pub(super) struct Settings {
    group: GroupId,
    instance_id: Option<StrBytes>,
    session: Duration,
    rebalance: Duration,
    heartbeat: Duration,
    /// How long what goes to another member may take to be given up.
    drain: Duration,
    /// How much sooner than the group's patience a lease ends.
    margin: Duration,
    topics: Vec<GroupTopic>,
}

impl Settings {
    pub(super) fn new(config: &Config, topics: Vec<GroupTopic>) -> Self {
        Self {
            group: group_id(config),
            instance_id: config.instance_id.as_ref().map(text),
            session: config.session_timeout,
            rebalance: config.rebalance_timeout,
            heartbeat: config.heartbeat_interval,
            drain: config.rebalance_timeout * 2 / 3,
            margin: config.session_timeout / 5,
            topics,
        }
    }
}

/// What is asked on the connection that membership has for itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Question {
    Join(JoinGroupRequest),
    Sync(SyncGroupRequest),
    Heartbeat(HeartbeatRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Join(JoinGroupResponse),
    Sync(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
}

/// What comes of an answer.
#[derive(Debug)]
pub(super) enum Output {
    Change(Change),
    Committed {
        id: CommitId,
        result: Result<(), CommitError>,
    },
    /// What members mean differently, all of it; empty when they agree again.
    Conflicts(Vec<Conflict>),
}

/// Where a member stands in its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::log::kafka) enum Standing {
    /// On its way in, and what is in the way where something is.
    Outside {
        problem: Option<String>,
    },
    /// The group has members enough.
    Spare,
    Member {
        generation: i32,
        partitions: usize,
    },
    /// Not to be mended by this process.
    Failed {
        reason: String,
    },
    Left,
}

/// A topic that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) partitions: i32,
    /// Where the broker tells.
    pub(super) id: Option<TopicId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    member_id: StrBytes,
    generation: i32,
}

impl Identity {
    fn unknown() -> Self {
        Self { member_id: StrBytes::default(), generation: -1 }
    }
}

enum Phase {
    Out,
    Joining,
    Syncing(Vec<SyncGroupRequestAssignment>),
    Stable,
}

struct Asked {
    identity: Identity,
    at: BootTime,
}

pub(super) struct Member {
    settings: Settings,
    identity: Identity,
    phase: Phase,
    holdings: Holdings,
    commits: Commits,
    renewals: Renewals,
    /// Those that exist, once they are known.
    seen: Option<BTreeMap<Arc<str>, Seen>>,
    /// Seen before, and not the last time.
    missing: BTreeSet<Arc<str>>,
    /// Topics may not be as they were seen.
    wants_look: bool,
    conflicts: Vec<Conflict>,
    has_coordinator: bool,
    room: Room,
    /// Something has changed that the group must hear.
    must_rejoin: bool,
    asked: Option<Asked>,
    asked_offsets: Option<AskedOffsets>,
    /// When the last answer was asked for that said that no rebalance was going on.
    stable_at: Option<BootTime>,
    failures: u32,
    not_before: Instant,
    heartbeat_at: Instant,
    fetch_not_before: Instant,
    commit_not_before: Instant,
    /// Why this member cannot do what membership asks of it.
    problem: Option<String>,
    /// Why nothing can be handed out.
    fetch_problem: Option<String>,
    /// Why commits wait.
    commit_problem: Option<String>,
    failure: Option<String>,
    outputs: Vec<Output>,
}

impl Member {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            identity: Identity::unknown(),
            phase: Phase::Out,
            holdings: Holdings::default(),
            commits: Commits::default(),
            renewals: Renewals::default(),
            seen: None,
            missing: BTreeSet::new(),
            wants_look: false,
            conflicts: Vec::new(),
            has_coordinator: false,
            room: Room::Unknown { look_at: now },
            must_rejoin: false,
            asked: None,
            asked_offsets: None,
            stable_at: None,
            failures: 0,
            not_before: now,
            heartbeat_at: now,
            fetch_not_before: now,
            commit_not_before: now,
            problem: None,
            fetch_problem: None,
            commit_problem: None,
            failure: None,
            outputs: Vec::new(),
        }
    }

    pub(super) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    pub(super) fn standing(&self) -> Standing {
        let problem = self.problem.as_ref().or(self.fetch_problem.as_ref());
        match (&self.failure, &self.phase) {
            (Some(reason), _) => Standing::Failed { reason: reason.clone() },
            (None, Phase::Out) if matches!(self.room, Room::None { .. }) && problem.is_none() => Standing::Spare,
            (None, Phase::Stable) if problem.is_none() => {
                Standing::Member { generation: self.identity.generation, partitions: self.holdings.held() }
            }
            _ => Standing::Outside { problem: problem.cloned() },
        }
    }

    // Coordinator and topics

    pub(super) fn wants_coordinator(&self, now: Instant) -> bool {
        !self.has_coordinator && self.failure.is_none() && now >= self.not_before
    }

    pub(super) fn has_coordinator(&self) -> bool {
        self.has_coordinator
    }

    pub(super) fn coordinator_found(&mut self) {
        self.has_coordinator = true;
    }

    pub(super) fn coordinator_missing(&mut self, problem: String, now: Instant) {
        self.back_off(problem, now);
    }

    /// The coordinator has not answered, or is none any more.
    fn coordinator_lost(&mut self, problem: String, now: Instant) {
        // Two connections tell of the same thing; it counts once.
        if std::mem::replace(&mut self.has_coordinator, false) {
            self.back_off(problem, now);
        }
    }

    fn back_off(&mut self, problem: String, now: Instant) {
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(8)).min(LAST_BACKOFF);
        self.failures += 1;
        self.problem = Some(problem);
        self.not_before = now + backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
    }

    /// Takes the topics that exist. One that is missing is believed to be so when it is the second time: a broker that
    /// has just started may not know all of them.
    pub(super) fn topics_seen(&mut self, mut seen: BTreeMap<Arc<str>, Seen>) {
        let known = self.seen.take().unwrap_or_else(|| seen.clone());
        let before = std::mem::take(&mut self.missing);
        for (name, topic) in &known {
            match seen.get_mut(name) {
                Some(now) if TopicId::differs(topic.id, now.id) => self.lose_topic(name),
                // Not all brokers may tell.
                Some(now) => now.id = now.id.or(topic.id),
                None if before.contains(name) => self.lose_topic(name),
                None => {
                    seen.insert(name.clone(), *topic);
                    self.missing.insert(name.clone());
                    self.wants_look = true;
                }
            }
        }
        let partitions = |topics: &BTreeMap<Arc<str>, Seen>| -> Vec<(Arc<str>, i32)> {
            topics.iter().map(|(name, topic)| (name.clone(), topic.partitions)).collect()
        };
        self.must_rejoin |= partitions(&known) != partitions(&seen);
        self.seen = Some(seen);
    }

    fn lose_topic(&mut self, topic: &Arc<str>) {
        self.outputs.extend(self.holdings.lose_topic(topic).into_iter().map(Output::Change));
        self.drop_commits();
    }

    /// Takes what a reader found out about a partition of an assignment.
    pub(super) fn doubt(&mut self, partition: &TopicPartition, epoch: Epoch, doubt: Doubt) {
        if self.holdings.epoch(partition) != Some(epoch) {
            return;
        }
        match doubt {
            Doubt::Missing => self.wants_look = true,
            Doubt::Cut => {
                self.outputs.extend(self.holdings.cut(partition, epoch).map(Output::Change));
                self.drop_commits();
            }
        }
    }

    /// Whether topics should be looked at soon. Says so once.
    pub(super) fn takes_a_look(&mut self) -> bool {
        std::mem::take(&mut self.wants_look)
    }

    fn topic_id(&self, topic: &str) -> Option<TopicId> {
        self.seen.as_ref()?.get(topic)?.id
    }

    // Membership

    /// What to ask now, if there is something; its answer goes to [`Self::answered`].
    pub(super) fn next_question(&mut self, now: Instant, at: BootTime) -> Option<Question> {
        if self.asked.is_some() || !self.has_coordinator || self.failure.is_some() || now < self.not_before {
            return None;
        }
        let is_let_in = self.is_let_in();
        let question = match &mut self.phase {
            Phase::Out if is_let_in => self.join()?,
            Phase::Stable if self.must_rejoin || self.holdings.has_given_up() => self.join()?,
            Phase::Stable if now >= self.heartbeat_at => Question::Heartbeat(self.heartbeat()),
            Phase::Syncing(assignments) => {
                let assignments = std::mem::take(assignments);
                Question::Sync(self.sync(assignments))
            }
            Phase::Stable | Phase::Joining | Phase::Out => return None,
        };
        self.asked = Some(Asked { identity: self.identity.clone(), at });
        Some(question)
    }

    /// How long an answer may take: the group answers a join when all have joined.
    pub(super) fn patience(&self, question: &Question, request_timeout: Duration) -> Duration {
        match question {
            Question::Join(_) | Question::Sync(_) => self.settings.rebalance + request_timeout,
            Question::Heartbeat(_) => request_timeout.min(self.settings.session),
        }
    }

    fn join(&mut self) -> Option<Question> {
        let targets = targets(&self.settings.topics, self.seen.as_ref()?);
        let metadata = subscription::encode_subscription(&targets, self.holdings.claim(), self.identity.generation);
        self.phase = Phase::Joining;
        self.must_rejoin = false;
        let protocol =
            JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str(PROTOCOL)).with_metadata(metadata);
        Some(Question::Join(
            JoinGroupRequest::default()
                .with_group_id(self.settings.group.clone())
                .with_session_timeout_ms(milliseconds(self.settings.session))
                .with_rebalance_timeout_ms(milliseconds(self.settings.rebalance))
                .with_member_id(self.identity.member_id.clone())
                .with_group_instance_id(self.settings.instance_id.clone())
                .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
                .with_protocols(vec![protocol]),
        ))
    }

    fn sync(&self, assignments: Vec<SyncGroupRequestAssignment>) -> SyncGroupRequest {
        SyncGroupRequest::default()
            .with_group_id(self.settings.group.clone())
            .with_generation_id(self.identity.generation)
            .with_member_id(self.identity.member_id.clone())
            .with_group_instance_id(self.settings.instance_id.clone())
            .with_assignments(assignments)
    }

    fn heartbeat(&self) -> HeartbeatRequest {
        HeartbeatRequest::default()
            .with_group_id(self.settings.group.clone())
            .with_generation_id(self.identity.generation)
            .with_member_id(self.identity.member_id.clone())
            .with_group_instance_id(self.settings.instance_id.clone())
    }

    /// What ends the membership at once. None where there is nothing to end, or where it is kept for the next process.
    pub(super) fn farewell(&mut self) -> Option<LeaveGroupRequest> {
        self.outputs.extend(self.holdings.lose_all().into_iter().map(Output::Change));
        self.drop_commits();
        if self.identity.member_id.is_empty() || self.settings.instance_id.is_some() {
            return None;
        }
        let member = MemberIdentity::default().with_member_id(self.identity.member_id.clone());
        Some(LeaveGroupRequest::default().with_group_id(self.settings.group.clone()).with_members(vec![member]))
    }

    /// The last question's answer, or why there is none.
    pub(super) fn answered(&mut self, answer: Result<Answer, String>, now: Instant) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        // It was asked by a member that this is not any more.
        if asked.identity != self.identity {
            return;
        }
        match answer {
            Ok(Answer::Join(answer)) => self.joined(answer, &asked, now),
            Ok(Answer::Sync(answer)) => self.synced(answer, &asked, now),
            Ok(Answer::Heartbeat(answer)) => self.beaten(&answer, &asked, now),
            Err(problem) => {
                self.out_unless_stable();
                self.coordinator_lost(problem, now);
            }
        }
    }

    /// The question will have no answer: whom it was asked is not the coordinator any more.
    pub(super) fn given_up(&mut self) {
        if self.asked.take().is_some() {
            self.out_unless_stable();
        }
    }

    /// A join or sync that failed is begun again, with the same identity.
    fn out_unless_stable(&mut self) {
        if !matches!(self.phase, Phase::Stable) {
            self.phase = Phase::Out;
        }
    }

    fn joined(&mut self, answer: JoinGroupResponse, asked: &Asked, now: Instant) {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            self.phase = Phase::Out;
            if error == ResponseError::MemberIdRequired {
                self.identity.member_id = answer.member_id;
                return;
            }
            return self.group_refused(error, now);
        }
        self.identity = Identity { member_id: answer.member_id, generation: answer.generation_id };
        self.failures = 0;
        self.problem = None;
        // The generation began after this was asked, and no other one before that.
        self.stable_at = Some(asked.at);
        self.renew(asked.at);
        let mut assignments = Vec::new();
        if answer.leader == self.identity.member_id {
            let members: Vec<MemberView> = answer
                .members
                .into_iter()
                .map(|member| {
                    let id = member.member_id.to_string();
                    subscription::decode_subscription(&id, member.metadata).unwrap_or_else(|error| {
                        tracing::warn!("Member {id} of the group is given nothing, as it is not understood: {error}");
                        MemberView { id, targets: Vec::new(), owned: BTreeSet::new(), generation: -1 }
                    })
                })
                .collect();
            let plan = assignor::assign(&members);
            assignments = plan
                .assignments
                .into_iter()
                .map(|(id, partitions)| {
                    SyncGroupRequestAssignment::default()
                        .with_member_id(StrBytes::from_string(id))
                        .with_assignment(subscription::encode_assignment(&partitions, &plan.conflicts))
                })
                .collect();
        }
        self.phase = Phase::Syncing(assignments);
    }

    fn synced(&mut self, answer: SyncGroupResponse, asked: &Asked, now: Instant) {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            self.phase = Phase::Out;
            return self.group_refused(error, now);
        }
        let (mut assigned, conflicts) = match subscription::decode_assignment(answer.assignment) {
            Ok(assignment) => assignment,
            Err(error) => {
                self.phase = Phase::Out;
                return self.back_off(format!("the leader's assignment is not understood: {error}"), now);
            }
        };
        assigned.retain(|partition| self.settings.topics.iter().any(|topic| topic.name == partition.topic));
        self.phase = Phase::Stable;
        self.failures = 0;
        self.problem = None;
        self.stable_at = Some(asked.at);
        self.renew(asked.at);
        self.heartbeat_at = now + self.settings.heartbeat;
        self.fetch_not_before = now;
        self.commit_not_before = now;
        let changes = self.holdings.assign(assigned, now + self.settings.drain);
        self.outputs.extend(changes.into_iter().map(Output::Change));
        if conflicts != self.conflicts {
            self.conflicts.clone_from(&conflicts);
            self.outputs.push(Output::Conflicts(conflicts));
        }
    }

    fn beaten(&mut self, answer: &HeartbeatResponse, asked: &Asked, now: Instant) {
        self.heartbeat_at = now + self.settings.heartbeat;
        match ResponseError::try_from_code(answer.error_code) {
            None => {
                self.failures = 0;
                self.problem = None;
                self.stable_at = Some(asked.at);
                self.renew(asked.at);
            }
            Some(ResponseError::RebalanceInProgress) => {
                self.renew(asked.at);
                self.must_rejoin = true;
            }
            Some(error) => self.group_refused(error, now),
        }
    }

    /// Acts on an error that the group has answered to a question of membership.
    fn group_refused(&mut self, error: ResponseError, now: Instant) {
        match meaning(error) {
            Meaning::NoCoordinator => self.coordinator_lost(error.to_string(), now),
            Meaning::Rebalance => self.not_before = now + REBALANCE_BACKOFF,
            Meaning::Forgotten => self.forgotten(now),
            Meaning::Fenced => self.fenced(now),
            Meaning::Refused => {
                self.problem = Some(refusal(error, &self.settings.group, ""));
                self.not_before = now + REFUSED_BACKOFF;
            }
        }
    }

    /// The group has given everything to others, or may do so: this is a new member.
    fn forgotten(&mut self, now: Instant) {
        self.identity = Identity::unknown();
        self.room = Room::Unknown { look_at: now };
        self.phase = Phase::Out;
        self.stable_at = None;
        self.outputs.extend(self.holdings.lose_all().into_iter().map(Output::Change));
        self.drop_commits();
    }

    fn fenced(&mut self, now: Instant) {
        self.forgotten(now);
        let instance = self.settings.instance_id.as_deref().unwrap_or_default();
        self.failure = Some(format!("another process has joined the group as instance `{instance}`"));
    }

    /// The consumer is stuck: the partitions are another one's business.
    pub(super) fn stuck(&mut self, waited: Duration) {
        self.failure = Some(format!("the consumer has taken no assignment for {} s", waited.as_secs()));
    }

    /// Nobody else owned what this member owns when the coordinator got what was sent at `sent`, and nobody will before
    /// its patience is over. In a rebalance that is the one with a member that does not join; when it began is not
    /// known, but not before the last answer that told of none was asked for.
    fn renew(&mut self, sent: BootTime) {
        let by_session = sent + (self.settings.session - self.settings.margin);
        let by_rebalance = self.stable_at.map(|stable| stable + (self.settings.rebalance - self.settings.margin));
        self.holdings.renew(by_rebalance.map_or(by_session, |end| by_session.min(end)));
    }

    /// The consumer has given up a partition that it was asked for.
    pub(super) fn drained(&mut self, partition: &TopicPartition, epoch: Epoch) {
        self.holdings.drained(partition, epoch);
        self.drop_commits();
    }

    // Time

    /// Acts on what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        let lost = self.holdings.take_overdue(now);
        if !lost.is_empty() {
            self.outputs.extend(lost.into_iter().map(Output::Change));
            self.drop_commits();
        }
        // While a commit is on its way, what is stored changes.
        if self.asked_offsets.is_none() {
            let due = self.renewals.take_due(now, |partition| self.holdings.epoch(partition));
            for (partition, epoch, Committed { offset, metadata }) in due {
                if !self.commits.contains(&partition) {
                    self.commit(partition, epoch, offset, metadata, CommitId::NOBODY, now);
                }
            }
        }
        let problem = self.commit_problem.as_ref().or(self.problem.as_ref());
        let reason = problem.cloned().unwrap_or_else(|| "the group is rebalancing".to_owned());
        for id in self.commits.take_overdue(now) {
            let result = Err(CommitError::Unavailable { reason: reason.clone() });
            self.outputs.push(Output::Committed { id, result });
        }
    }

    /// When there may be something to do that no answer brings about.
    pub(super) fn next_tick(&self, now: Instant) -> Option<Instant> {
        let moments = [
            Some(self.not_before),
            Some(self.heartbeat_at),
            Some(self.fetch_not_before),
            Some(self.commit_not_before),
            self.room.look_at(),
            self.holdings.next_overdue(),
            self.commits.next_overdue(),
            self.renewals.next_due(),
        ];
        moments.into_iter().flatten().filter(|moment| *moment > now).min()
    }
}

/// What this member says of its targets. A topic that does not exist is not named.
fn targets(topics: &[GroupTopic], seen: &BTreeMap<Arc<str>, Seen>) -> Vec<TargetView> {
    let mut targets: BTreeMap<&Arc<str>, TargetView> = BTreeMap::new();
    for topic in topics {
        let target = targets.entry(&topic.target).or_insert_with(|| TargetView {
            name: topic.target.clone(),
            fingerprint: topic.fingerprint.clone(),
            topics: Vec::new(),
        });
        if let Some(seen) = seen.get(&topic.name) {
            target.topics.push((topic.name.clone(), seen.partitions));
        }
    }
    targets.into_values().collect()
}

#[cfg(test)]
mod tests;
