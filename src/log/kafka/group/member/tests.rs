//! The rules of the module doc, by their numbers, each at the moment that matters.

use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchResponse, TopicName,
    join_group_response::JoinGroupResponseMember,
    offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic},
};

use super::*;
use crate::log::{Lease, Loss};

const SECOND: Duration = Duration::from_secs(1);

/// A member that only ever hears what a test says, at the time that the test says.
struct Scene {
    member: Member,
    now: Instant,
    at: BootTime,
    /// Of the next generation.
    generation: i32,
    held: BTreeMap<i32, (Epoch, Lease)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Assigned(i32, Option<i64>),
    Revoking(i32),
    Lost(i32),
    Gone(i32),
    Committed(u64),
    Refused(u64, CommitError),
    Conflicts(usize),
}

fn topic() -> Arc<str> {
    "q".into()
}

fn partition(index: i32) -> TopicPartition {
    TopicPartition { topic: topic(), partition: index }
}

fn set(partitions: &[i32]) -> BTreeSet<TopicPartition> {
    partitions.iter().copied().map(partition).collect()
}

fn counts(partitions: i32) -> BTreeMap<Arc<str>, Seen> {
    seen(partitions, 1)
}

fn seen(partitions: i32, id: u8) -> BTreeMap<Arc<str>, Seen> {
    [(topic(), Seen { partitions, id: TopicId::new([id; 16]) })].into()
}

impl Scene {
    fn new(config: &Config) -> Self {
        let now = Instant::now();
        let topics = vec![GroupTopic { name: topic(), target: "default".into(), fingerprint: "redis:6379/0".into() }];
        let mut member = Member::new(Settings::new(config, topics), now);
        assert!(member.wants_coordinator(now));
        member.coordinator_found();
        member.topics_seen(counts(3));
        member.size_seen(0, now);
        Self { member, now, at: BootTime::now(), generation: 1, held: BTreeMap::new() }
    }

    /// A member that has joined and holds these partitions of the topic.
    fn holding(partitions: &[i32]) -> Self {
        let mut scene = Self::new(&Config::default());
        scene.join_with_new_id();
        scene.sync(partitions);
        scene.fetch(&[]);
        let assigned: Vec<Heard> = partitions.iter().map(|index| Heard::Assigned(*index, None)).collect();
        assert_eq!(scene.heard(), assigned);
        scene
    }

    /// The same of a static member.
    fn holding_as(instance: &str, index: i32) -> Self {
        let mut scene = Self::new(&Config { instance_id: Some(instance.into()), ..Config::default() });
        scene.join_question();
        scene.answer_join(|answer| answer);
        scene.sync(&[index]);
        scene.fetch(&[]);
        assert_eq!(scene.heard(), [Heard::Assigned(index, None)]);
        scene
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.at = self.at + time;
        self.member.tick(self.now);
    }

    fn question(&mut self) -> Option<Question> {
        self.member.next_question(self.now, self.at)
    }

    fn join_question(&mut self) -> JoinGroupRequest {
        match self.question() {
            Some(Question::Join(request)) => request,
            other => panic!("it does not join: {other:?}"),
        }
    }

    fn answer_join(&mut self, change: impl FnOnce(JoinGroupResponse) -> JoinGroupResponse) {
        let answer = JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)))
            .with_member_id(StrBytes::from_static_str("m1"))
            .with_leader(StrBytes::from_static_str("another"));
        self.generation += 1;
        self.member.answered(Ok(Answer::Join(change(answer))), self.now);
    }

    fn refuse_join(&mut self, error: ResponseError) {
        self.answer_join(|answer| answer.with_generation_id(-1).with_error_code(error.code()));
    }

    fn join_with_new_id(&mut self) {
        self.member.size_seen(0, self.now);
        assert_eq!(self.join_question().member_id.as_str(), "");
        self.refuse_join(ResponseError::MemberIdRequired);
        assert_eq!(self.join_question().member_id.as_str(), "m1");
        self.answer_join(|answer| answer);
    }

    fn rejoin(&mut self) -> JoinGroupRequest {
        let request = self.join_question();
        self.answer_join(|answer| answer);
        request
    }

    fn sync_question(&mut self) -> SyncGroupRequest {
        match self.question() {
            Some(Question::Sync(request)) => request,
            other => panic!("it does not sync: {other:?}"),
        }
    }

    fn sync(&mut self, partitions: &[i32]) {
        self.sync_question();
        self.answer_sync(partitions, &[]);
    }

    fn answer_sync(&mut self, partitions: &[i32], conflicts: &[Conflict]) {
        let assignment = subscription::encode_assignment(&set(partitions), conflicts);
        let answer = SyncGroupResponse::default().with_assignment(assignment);
        self.member.answered(Ok(Answer::Sync(answer)), self.now);
    }

    fn refuse_sync(&mut self, error: ResponseError) {
        let answer = SyncGroupResponse::default().with_error_code(error.code());
        self.member.answered(Ok(Answer::Sync(answer)), self.now);
    }

    /// Lets a heartbeat's time come, and answers it.
    fn beat(&mut self, error_code: i16) {
        self.pass(2 * SECOND);
        assert!(matches!(self.question(), Some(Question::Heartbeat(_))));
        self.answer_beat(error_code);
    }

    fn answer_beat(&mut self, error_code: i16) {
        let answer = HeartbeatResponse::default().with_error_code(error_code);
        self.member.answered(Ok(Answer::Heartbeat(answer)), self.now);
    }

    fn offsets_question(&mut self) -> Option<OffsetsQuestion> {
        self.member.next_offsets_question(self.now, self.at)
    }

    /// Answers what is fetched; what is not listed was never committed.
    fn fetch(&mut self, committed: &[(i32, i64, &'static str)]) {
        let Some(OffsetsQuestion::Fetch(request)) = self.offsets_question() else {
            panic!("it does not fetch");
        };
        let answered = request.topics.expect("it asks for some").into_iter().map(|topic| {
            // Brokers answer in any order.
            let partitions = topic.partition_indexes.into_iter().rev().map(|index| {
                let found = committed.iter().find(|(partition, ..)| *partition == index);
                let (_, offset, metadata) = found.copied().unwrap_or((index, -1, ""));
                OffsetFetchResponsePartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(offset)
                    .with_metadata(Some(StrBytes::from_static_str(metadata)))
            });
            OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions.collect())
        });
        let answer = OffsetFetchResponse::default().with_topics(answered.collect());
        self.member.answered_offsets(Ok(OffsetsAnswer::Fetch(answer)), self.now);
    }

    fn commit(&mut self, index: i32, offset: i64, id: u64) {
        let epoch = self.held[&index].0;
        self.member.commit(partition(index), epoch, offset, String::new(), CommitId(id), self.now);
    }

    fn commit_question(&mut self) -> OffsetCommitRequest {
        match self.offsets_question() {
            Some(OffsetsQuestion::Commit(request)) => request,
            other => panic!("it does not commit: {other:?}"),
        }
    }

    fn answer_commit(&mut self, results: &[(i32, i16)]) {
        let partitions = results.iter().rev().map(|(index, code)| {
            OffsetCommitResponsePartition::default().with_partition_index(*index).with_error_code(*code)
        });
        let topic = OffsetCommitResponseTopic::default()
            .with_name(TopicName(StrBytes::from_static_str("q")))
            .with_partitions(partitions.collect());
        let answer = OffsetCommitResponse::default().with_topics(vec![topic]);
        self.member.answered_offsets(Ok(OffsetsAnswer::Commit(answer)), self.now);
    }

    fn heard(&mut self) -> Vec<Heard> {
        let outputs = self.member.take_outputs();
        let heard = outputs.into_iter().map(|output| match output {
            Output::Change(Change::Assigned { partition, epoch, committed, lease }) => {
                self.held.insert(partition.partition, (epoch, lease));
                Heard::Assigned(partition.partition, committed.map(|committed| committed.offset))
            }
            Output::Change(Change::Revoking { partition, .. }) => Heard::Revoking(partition.partition),
            Output::Change(Change::Lost { partition, loss: Loss::ToAnother }) => Heard::Lost(partition.partition),
            Output::Change(Change::Lost { partition, loss: Loss::OfRecords }) => Heard::Gone(partition.partition),
            Output::Committed { id, result: Ok(()) } => Heard::Committed(id.0),
            Output::Committed { id, result: Err(error) } => Heard::Refused(id.0, error),
            Output::Conflicts(conflicts) => Heard::Conflicts(conflicts.len()),
        });
        heard.collect()
    }

    fn drain(&mut self, index: i32) {
        let epoch = self.held[&index].0;
        self.member.drained(&partition(index), epoch);
    }

    fn has_lease(&self, index: i32) -> bool {
        self.held[&index].1.is_valid(self.at)
    }

    fn owned_in(request: &JoinGroupRequest) -> (BTreeSet<TopicPartition>, i32) {
        let view = subscription::decode_subscription("m", request.protocols[0].metadata.clone());
        let view = view.expect("it is our own");
        (view.owned, view.generation)
    }
}

const OK: i16 = 0;
const REBALANCE: i16 = ResponseError::RebalanceInProgress.code();
const ILLEGAL_GENERATION: i16 = ResponseError::IllegalGeneration.code();
const UNKNOWN_MEMBER: i16 = ResponseError::UnknownMemberId.code();
const FENCED: i16 = ResponseError::FencedInstanceId.code();
const NOT_COORDINATOR: i16 = ResponseError::NotCoordinator.code();

#[test]
fn rule_1_no_heartbeat_is_sent_while_a_join_is_in_flight() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.join_question();
    scene.pass(20 * SECOND);
    assert_eq!(scene.question(), None, "a join is in flight");
    scene.answer_join(|answer| answer);
    scene.sync_question();
    scene.pass(5 * SECOND);
    assert_eq!(scene.question(), None, "a sync is in flight");
}

#[test]
fn rule_1_answer_to_an_older_member_counts_for_nothing() {
    for late in [OK, REBALANCE, ILLEGAL_GENERATION, FENCED] {
        let mut scene = Scene::holding(&[0]);
        scene.pass(2 * SECOND);
        assert!(matches!(scene.question(), Some(Question::Heartbeat(_))));
        // Meanwhile the other connection hears that all is lost, and the member is a new one.
        scene.commit(0, 5, 1);
        scene.commit_question();
        scene.answer_commit(&[(0, UNKNOWN_MEMBER)]);
        assert_eq!(scene.heard(), [Heard::Lost(0), Heard::Refused(1, CommitError::EpochOver)]);
        scene.answer_beat(late);
        assert_eq!(scene.heard(), []);
        scene.join_with_new_id();
    }
}

#[test]
fn rule_2_join_is_waited_for_longer_than_the_group_waits() {
    let mut scene = Scene::new(&Config::default());
    let question = scene.question().expect("it joins");
    let patience = scene.member.patience(&question, 5 * SECOND);
    assert_eq!(patience, 35 * SECOND);
    scene.member.answered(Err("no answer".to_owned()), scene.now + patience);
    assert!(!scene.member.has_coordinator());
}

#[test]
fn rule_3_rebalance_joins_at_once_with_what_is_owned_and_goes_on() {
    let mut scene = Scene::holding(&[0, 1]);
    scene.beat(REBALANCE);
    let request = scene.join_question();
    assert_eq!(Scene::owned_in(&request), (set(&[0, 1]), 2));
    assert_eq!(request.protocols.len(), 1);
    assert_eq!(request.protocols[0].name.as_str(), "redrive-v1");
    assert_eq!(scene.heard(), [], "the consumer is not disturbed");
    scene.commit(0, 5, 1);
    assert_eq!(scene.commit_question().generation_id_or_member_epoch, 2, "the old one is good until the new begins");
    scene.answer_commit(&[(0, OK)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);
    scene.answer_join(|answer| answer);
    scene.sync(&[0, 1]);
    assert_eq!(scene.heard(), []);
    assert!(scene.has_lease(0));
}

#[test]
fn rule_3_what_goes_is_drained_and_committed_and_then_free() {
    let mut scene = Scene::holding(&[0, 1]);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync(&[0]);
    assert_eq!(scene.heard(), [Heard::Revoking(1)]);
    assert_eq!(scene.question(), None, "it says nothing before it is drained");
    scene.commit(1, 9, 1);
    assert_eq!(scene.commit_question().generation_id_or_member_epoch, 3);
    scene.answer_commit(&[(1, OK)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);
    scene.drain(1);
    let request = scene.rejoin();
    assert_eq!(Scene::owned_in(&request), (set(&[0]), 3));
    scene.sync(&[0]);
    scene.pass(SECOND);
    assert_eq!(scene.question(), None, "it has been said");
}

#[test]
fn rule_3_partition_that_is_not_drained_in_time_is_lost() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync(&[]);
    assert_eq!(scene.heard(), [Heard::Revoking(0)]);
    for _ in 0..9 {
        scene.beat(OK);
    }
    assert_eq!(scene.heard(), []);
    scene.commit(0, 3, 1);
    scene.pass(2 * SECOND);
    assert_eq!(scene.heard(), [Heard::Lost(0), Heard::Refused(1, CommitError::EpochOver)]);
    assert!(!scene.has_lease(0));
    assert_eq!(Scene::owned_in(&scene.join_question()), (set(&[]), 3));
}

#[test]
fn rule_4_forgotten_member_has_lost_all_and_is_a_new_one() {
    for error in [UNKNOWN_MEMBER, ILLEGAL_GENERATION] {
        let mut scene = Scene::holding(&[0, 1]);
        scene.commit(1, 5, 1);
        scene.beat(error);
        assert_eq!(scene.heard(), [Heard::Lost(0), Heard::Lost(1), Heard::Refused(1, CommitError::EpochOver)]);
        assert!(!scene.has_lease(0));
        scene.commit(0, 6, 2);
        assert_eq!(scene.heard(), [Heard::Refused(2, CommitError::EpochOver)]);
        assert_eq!(scene.question(), None, "another one may have its place");
        assert!(scene.member.wants_size(scene.now));
        scene.member.size_seen(4, scene.now);
        let request = scene.join_question();
        assert_eq!((request.member_id.as_str(), Scene::owned_in(&request)), ("", (set(&[]), -1)));
    }
}

#[test]
fn rule_4_member_forgotten_at_its_join_has_lost_all() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.join_question();
    scene.refuse_join(ResponseError::UnknownMemberId);
    assert_eq!(scene.heard(), [Heard::Lost(0)]);
    scene.join_with_new_id();
}

#[test]
fn rule_4_fenced_instance_fails_for_good() {
    let config = Config { instance_id: Some("pod-0".into()), ..Config::default() };
    let mut scene = Scene::new(&config);
    assert_eq!(scene.join_question().group_instance_id.as_deref(), Some("pod-0"));
    scene.refuse_join(ResponseError::FencedInstanceId);
    let Standing::Failed { reason } = scene.member.standing() else { panic!("it goes on") };
    assert!(reason.contains("pod-0"));
    scene.pass(60 * SECOND);
    assert_eq!(scene.question(), None);
    assert!(!scene.member.wants_coordinator(scene.now));
}

#[test]
fn rule_4_any_answer_may_fence_an_instance() {
    let ways: [fn(&mut Scene); 3] = [
        |scene| scene.beat(FENCED),
        |scene| {
            scene.beat(REBALANCE);
            scene.rejoin();
            scene.sync_question();
            scene.refuse_sync(ResponseError::FencedInstanceId);
        },
        |scene| {
            scene.commit(0, 5, 1);
            scene.commit_question();
            scene.answer_commit(&[(0, FENCED)]);
        },
    ];
    for fence in ways {
        let mut scene = Scene::holding_as("pod-0", 0);
        fence(&mut scene);
        assert!(matches!(scene.member.standing(), Standing::Failed { .. }));
        assert_eq!(scene.heard()[0], Heard::Lost(0));
        assert!(!scene.has_lease(0));
        assert_eq!(scene.question(), None);
    }
}

#[test]
fn rule_5_moved_coordinator_keeps_member_and_generation() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(NOT_COORDINATOR);
    assert_eq!(scene.question(), None, "there is nobody to ask");
    assert!(!scene.member.wants_coordinator(scene.now), "not at once");
    scene.pass(SECOND);
    assert!(scene.member.wants_coordinator(scene.now));
    scene.member.coordinator_found();
    scene.pass(2 * SECOND);
    let Some(Question::Heartbeat(request)) = scene.question() else { panic!("it does not go on") };
    assert_eq!((request.member_id.as_str(), request.generation_id), ("m1", 2));
    scene.answer_beat(OK);
    assert_eq!(scene.heard(), [], "nothing is lost");
    assert!(scene.has_lease(0));
}

#[test]
fn rule_5_cut_connection_begins_a_join_again_with_the_same_member() {
    for cut_at_sync in [false, true] {
        let mut scene = Scene::holding(&[0]);
        scene.beat(REBALANCE);
        scene.join_question();
        if cut_at_sync {
            scene.answer_join(|answer| answer);
            scene.sync_question();
        }
        scene.member.answered(Err("cut".to_owned()), scene.now);
        scene.pass(SECOND);
        assert!(scene.member.wants_coordinator(scene.now));
        scene.member.coordinator_found();
        let request = scene.join_question();
        assert_eq!(request.member_id.as_str(), "m1");
        assert_eq!(Scene::owned_in(&request).0, set(&[0]));
        assert_eq!(scene.heard(), []);
    }
}

#[test]
fn rule_5_question_to_an_old_coordinator_is_given_up() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.join_question();
    scene.member.given_up();
    assert_eq!(scene.join_question().member_id.as_str(), "m1");
}

#[test]
fn rule_6_commit_waits_while_the_group_is_between_generations() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.join_question();
    scene.commit(0, 5, 1);
    scene.commit_question();
    scene.answer_commit(&[(0, REBALANCE)]);
    scene.answer_join(|answer| answer);
    scene.pass(SECOND);
    assert_eq!(scene.offsets_question(), None, "nothing is taken before the sync");
    scene.sync(&[0]);
    assert_eq!(scene.commit_question().generation_id_or_member_epoch, 3);
    scene.answer_commit(&[(0, OK)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);
}

#[test]
fn rule_6_commit_that_a_new_generation_overtook_is_sent_again() {
    let mut scene = Scene::holding(&[0]);
    scene.commit(0, 5, 1);
    assert_eq!(scene.commit_question().generation_id_or_member_epoch, 2);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync(&[0]);
    scene.answer_commit(&[(0, ILLEGAL_GENERATION)]);
    assert_eq!(scene.heard(), [], "it is owned, and only the generation was old");
    scene.pass(SECOND);
    assert_eq!(scene.commit_question().generation_id_or_member_epoch, 3);
}

#[test]
fn rule_6_commit_that_was_not_answered_is_sent_again() {
    let mut scene = Scene::holding(&[0]);
    scene.commit(0, 5, 1);
    scene.commit_question();
    scene.member.answered_offsets(Err("cut".to_owned()), scene.now);
    scene.pass(SECOND);
    assert!(scene.member.wants_coordinator(scene.now));
    scene.member.coordinator_found();
    assert_eq!(scene.commit_question().topics[0].partitions[0].committed_offset, 5);
    scene.answer_commit(&[(0, OK)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);
}

#[test]
fn rule_6_commit_of_an_earlier_assignment_is_refused() {
    let mut scene = Scene::holding(&[0]);
    let (old, _) = scene.held[&0].clone();
    scene.beat(UNKNOWN_MEMBER);
    scene.join_with_new_id();
    scene.sync(&[0]);
    scene.fetch(&[]);
    assert_eq!(scene.heard(), [Heard::Lost(0), Heard::Assigned(0, None)]);
    scene.member.commit(partition(0), old, 5, String::new(), CommitId(1), scene.now);
    assert_eq!(scene.heard(), [Heard::Refused(1, CommitError::EpochOver)]);
    assert_eq!(scene.offsets_question(), None);
}

#[test]
fn rule_6_newest_commit_stands_for_the_older_ones() {
    let mut scene = Scene::holding(&[0, 1]);
    scene.commit(0, 5, 1);
    let sent = scene.commit_question();
    assert_eq!(sent.topics[0].partitions[0].committed_offset, 5);
    scene.commit(0, 6, 2);
    scene.commit(0, 7, 3);
    scene.commit(1, 1, 4);
    assert_eq!(scene.offsets_question(), None, "one is in flight");
    scene.answer_commit(&[(0, ResponseError::CoordinatorLoadInProgress.code())]);
    scene.pass(SECOND);
    scene.member.coordinator_found();
    let sent = scene.commit_question();
    let offsets: Vec<i64> = sent.topics[0].partitions.iter().map(|partition| partition.committed_offset).collect();
    assert_eq!(offsets, [7, 1]);
    scene.answer_commit(&[(0, OK), (1, ResponseError::OffsetMetadataTooLarge.code())]);
    let heard = scene.heard();
    assert!(matches!(&heard[0], Heard::Refused(4, CommitError::Unavailable { .. })), "{heard:?}");
    assert_eq!(heard[1..], [Heard::Committed(2), Heard::Committed(3), Heard::Committed(1)]);
}

#[test]
fn rule_6_commit_is_not_waited_for_for_ever() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(NOT_COORDINATOR);
    scene.commit(0, 5, 1);
    scene.pass(9 * SECOND);
    assert_eq!(scene.heard(), []);
    scene.pass(SECOND);
    assert!(matches!(&scene.heard()[..], [Heard::Refused(1, CommitError::Unavailable { .. })]));
    scene.member.coordinator_found();
    assert_eq!(scene.offsets_question(), None, "nobody waits for it");
}

#[test]
fn rule_6_what_is_committed_is_committed_again_when_nothing_new_is() {
    let mut scene = Scene::holding(&[0, 1]);
    scene.commit(0, 7, 1);
    scene.commit_question();
    scene.answer_commit(&[(0, 0)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);
    scene.pass(11 * 3600 * SECOND);
    assert_eq!(scene.offsets_question(), None);
    scene.pass(2 * 3600 * SECOND);
    let request = scene.commit_question();
    let partitions = &request.topics[0].partitions;
    assert_eq!(partitions.len(), 1, "of the other one nothing is stored");
    assert_eq!((partitions[0].partition_index, partitions[0].committed_offset), (0, 7));
    scene.answer_commit(&[(0, 0)]);
    scene.heard();
    // Something newer counts from then on.
    scene.pass(11 * 3600 * SECOND);
    scene.commit(0, 8, 2);
    scene.commit_question();
    scene.answer_commit(&[(0, 0)]);
    scene.heard();
    scene.pass(11 * 3600 * SECOND);
    assert_eq!(scene.offsets_question(), None);
    scene.pass(2 * 3600 * SECOND);
    assert_eq!(scene.commit_question().topics[0].partitions[0].committed_offset, 8);
}

#[test]
fn rule_6_offset_of_an_earlier_owner_is_committed_again_too() {
    let mut scene = Scene::new(&Config::default());
    scene.join_with_new_id();
    scene.sync(&[0]);
    scene.fetch(&[(0, 5, "words")]);
    scene.heard();
    scene.pass(13 * 3600 * SECOND);
    let request = scene.commit_question();
    let partition = &request.topics[0].partitions[0];
    assert_eq!(partition.committed_offset, 5);
    assert_eq!(partition.committed_metadata.as_ref().map(|words| words.as_str()), Some("words@AQEBAQEBAQEBAQEBAQEBAQ"));
}

#[test]
fn rule_7_partition_comes_with_what_is_committed_for_it() {
    let mut scene = Scene::new(&Config::default());
    scene.join_with_new_id();
    scene.sync(&[0, 1]);
    assert_eq!(scene.heard(), [], "where it begins is not known");
    scene.fetch(&[(1, 42, "words")]);
    assert_eq!(scene.heard(), [Heard::Assigned(0, None), Heard::Assigned(1, Some(42))]);
}

#[test]
fn rule_7_offset_that_cannot_be_read_now_is_asked_for_again() {
    let mut scene = Scene::new(&Config::default());
    scene.join_with_new_id();
    scene.sync(&[0]);
    assert!(matches!(scene.offsets_question(), Some(OffsetsQuestion::Fetch(_))));
    let refusal = OffsetFetchResponse::default().with_error_code(ResponseError::CoordinatorLoadInProgress.code());
    scene.member.answered_offsets(Ok(OffsetsAnswer::Fetch(refusal)), scene.now);
    scene.pass(SECOND);
    scene.member.coordinator_found();
    scene.fetch(&[(0, 3, "")]);
    assert_eq!(scene.heard(), [Heard::Assigned(0, Some(3))]);
}

#[test]
fn rule_8_stuck_consumer_ends_the_membership() {
    let mut scene = Scene::holding(&[0]);
    scene.member.stuck(60 * SECOND);
    assert!(matches!(scene.member.standing(), Standing::Failed { .. }));
    let farewell = scene.member.farewell().expect("others may go on");
    assert_eq!(farewell.members[0].member_id.as_str(), "m1");
    assert!(!scene.has_lease(0));
}

#[test]
fn rule_9_any_member_says_that_topics_have_changed() {
    let mut scene = Scene::holding(&[0]);
    scene.member.topics_seen(counts(3));
    assert_eq!(scene.question(), None);
    scene.member.topics_seen(counts(5));
    let request = scene.join_question();
    let view = subscription::decode_subscription("m", request.protocols[0].metadata.clone()).expect("our own");
    assert_eq!(view.targets[0].topics, [(topic(), 5)]);
}

#[test]
fn rule_9_partitions_of_another_topic_of_the_same_name_are_lost_and_fetched_anew() {
    let mut scene = Scene::holding(&[0]);
    scene.commit(0, 5, 1);
    let batch = scene.commit_question();
    let words = batch.topics[0].partitions[0].committed_metadata.as_ref().expect("there are some");
    assert_eq!(words.as_str(), "@AQEBAQEBAQEBAQEBAQEBAQ", "what is stored is of this topic");
    scene.answer_commit(&[(0, OK)]);
    assert_eq!(scene.heard(), [Heard::Committed(1)]);

    scene.commit(0, 6, 2);
    scene.member.topics_seen(seen(3, 2));
    assert_eq!(scene.heard(), [Heard::Gone(0), Heard::Refused(2, CommitError::EpochOver)]);
    assert!(!scene.has_lease(0));
    // What somebody has stored meanwhile for the old one says nothing of the new one.
    scene.fetch(&[(0, 5, "@AQEBAQEBAQEBAQEBAQEBAQ")]);
    assert_eq!(scene.heard(), [Heard::Assigned(0, None)]);
    assert_eq!(scene.question(), None, "the group need not hear of it");
    scene.commit(0, 1, 3);
    let batch = scene.commit_question();
    let words = batch.topics[0].partitions[0].committed_metadata.as_ref().expect("there are some");
    assert_eq!(words.as_str(), "@AgICAgICAgICAgICAgICAg");
}

#[test]
fn rule_9_topic_is_gone_when_it_is_missing_twice() {
    let mut scene = Scene::holding(&[0]);
    scene.member.topics_seen(BTreeMap::new());
    assert!(scene.member.takes_a_look(), "once may be a broker that has just started");
    scene.member.topics_seen(counts(3));
    scene.member.topics_seen(BTreeMap::new());
    assert_eq!((scene.heard(), scene.question()), (vec![], None));
    scene.member.topics_seen(BTreeMap::new());
    assert_eq!(scene.heard(), [Heard::Gone(0)]);
    assert_eq!(scene.offsets_question(), None, "there is nothing to ask for");
    let request = scene.rejoin();
    assert_eq!(Scene::owned_in(&request).0, set(&[0]), "the group hears that it is free");
    scene.sync(&[]);
    assert_eq!(scene.heard(), []);
}

#[test]
fn rule_9_brokers_that_tell_no_ids_change_nothing() {
    let mut scene = Scene::holding(&[0]);
    let unknown: BTreeMap<_, _> = [(topic(), Seen { partitions: 3, id: None })].into();
    scene.member.topics_seen(unknown.clone());
    scene.member.topics_seen(counts(3));
    assert_eq!((scene.heard(), scene.question()), (vec![], None));
    scene.member.topics_seen(unknown.clone());
    scene.member.topics_seen(seen(3, 2));
    assert_eq!(scene.heard(), [Heard::Gone(0)], "the id was not forgotten over it");
    let mut scene = Scene::new(&Config::default());
    scene.member.topics_seen(unknown);
    scene.join_with_new_id();
    scene.sync(&[0]);
    scene.fetch(&[(0, 5, "AP8=@AQEBAQEBAQEBAQEBAQEBAQ")]);
    assert_eq!(scene.heard(), [Heard::Assigned(0, Some(5))]);
}

#[test]
fn rule_9_partition_that_was_cut_begins_anew() {
    let mut scene = Scene::holding(&[0, 1]);
    let (epoch, _) = scene.held[&0];
    scene.member.doubt(&partition(0), epoch, Doubt::Cut);
    assert_eq!(scene.heard(), [Heard::Gone(0)]);
    scene.fetch(&[(0, 9, "")]);
    assert_eq!(scene.heard(), [Heard::Assigned(0, None)], "what is committed says nothing");
    scene.member.doubt(&partition(0), epoch, Doubt::Cut);
    assert_eq!(scene.heard(), [], "of an assignment that is over");
    assert!(scene.has_lease(1));
}

#[test]
fn rule_10_leaving_ends_leases_and_membership() {
    let mut scene = Scene::holding(&[0]);
    let farewell = scene.member.farewell().expect("it is a member");
    assert_eq!(farewell.members[0].member_id.as_str(), "m1");
    assert!(!scene.has_lease(0));
    let mut outside = Scene::new(&Config::default());
    assert_eq!(outside.member.farewell(), None, "it was never in");
}

#[test]
fn rule_10_static_member_keeps_its_membership() {
    let mut scene = Scene::holding_as("pod-0", 0);
    assert_eq!(scene.member.farewell(), None);
    assert!(!scene.has_lease(0));
}

#[test]
fn lease_lasts_from_the_question_and_less_than_the_groups_patience() {
    let mut scene = Scene::holding(&[0]);
    scene.pass(2 * SECOND);
    assert!(matches!(scene.question(), Some(Question::Heartbeat(_))));
    // The answer takes three seconds; the group may have heard the question at once.
    scene.pass(3 * SECOND);
    scene.answer_beat(OK);
    scene.pass(4 * SECOND);
    assert!(scene.has_lease(0));
    scene.pass(SECOND);
    assert!(!scene.has_lease(0), "eight of ten seconds after the question");
    // The group has not given the partition to anybody, as it turns out.
    assert!(matches!(scene.question(), Some(Question::Heartbeat(_))));
    scene.answer_beat(OK);
    assert!(scene.has_lease(0));
}

#[test]
fn commits_renew_leases_while_a_join_waits_but_not_past_the_rebalance() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(OK);
    scene.beat(REBALANCE);
    scene.join_question();
    for round in 0..25 {
        scene.pass(SECOND);
        scene.commit(0, i64::from(round), 1);
        scene.commit_question();
        scene.answer_commit(&[(0, OK)]);
        assert!(scene.has_lease(0), "second {round}");
    }
    // The rebalance may have begun right after the last heartbeat that knew of none: 27 seconds ago. The group waits 30
    // seconds for a member that does not join.
    scene.pass(SECOND);
    scene.commit(0, 99, 1);
    scene.commit_question();
    scene.answer_commit(&[(0, OK)]);
    assert!(!scene.has_lease(0));
}

#[test]
fn leader_gives_to_all_and_newcomers_get_what_is_free() {
    let mut scene = Scene::holding(&[0, 1, 2]);
    scene.beat(REBALANCE);
    let request = scene.join_question();
    let mine = request.protocols[0].metadata.clone();
    let targets = subscription::decode_subscription("m1", mine.clone()).expect("our own").targets;
    let others = subscription::encode_subscription(&targets, &set(&[]), -1);
    let members =
        [("m1", mine), ("m2", others), ("foreign", bytes::Bytes::from_static(b"\x00\x09"))].map(|(id, words)| {
            JoinGroupResponseMember::default().with_member_id(StrBytes::from_static_str(id)).with_metadata(words)
        });
    scene.answer_join(|answer| answer.with_leader(StrBytes::from_static_str("m1")).with_members(members.to_vec()));
    let assignments: BTreeMap<String, usize> = scene
        .sync_question()
        .assignments
        .into_iter()
        .map(|given| {
            let (partitions, _) = subscription::decode_assignment(given.assignment).expect("our own");
            (given.member_id.to_string(), partitions.len())
        })
        .collect();
    let expected = [("m1".to_owned(), 2), ("m2".to_owned(), 0), ("foreign".to_owned(), 0)];
    assert_eq!(assignments, expected.into(), "one is to be given up first; foreign words get nothing");
}

#[test]
fn conflict_is_told_when_it_begins_and_when_it_ends() {
    let mut scene = Scene::new(&Config::default());
    scene.join_with_new_id();
    scene.sync_question();
    let conflict = Conflict { target: "default".into(), fingerprints: vec!["x".into(), "y".into()] };
    scene.answer_sync(&[], std::slice::from_ref(&conflict));
    assert_eq!(scene.heard(), [Heard::Conflicts(1)]);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync_question();
    scene.answer_sync(&[], std::slice::from_ref(&conflict));
    assert_eq!(scene.heard(), []);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync(&[]);
    assert_eq!(scene.heard(), [Heard::Conflicts(0)]);
}

#[test]
fn partition_of_an_unknown_topic_is_not_taken() {
    let mut scene = Scene::new(&Config::default());
    scene.join_with_new_id();
    scene.sync_question();
    let foreign: BTreeSet<TopicPartition> = [TopicPartition { topic: "other".into(), partition: 0 }].into();
    let assignment = subscription::encode_assignment(&foreign, &[]);
    scene.member.answered(Ok(Answer::Sync(SyncGroupResponse::default().with_assignment(assignment))), scene.now);
    assert_eq!(scene.offsets_question(), None);
}

#[test]
fn refusal_that_takes_a_person_is_told_and_tried_again() {
    let mut scene = Scene::new(&Config::default());
    scene.join_question();
    scene.refuse_join(ResponseError::InconsistentGroupProtocol);
    let Standing::Outside { problem: Some(problem) } = scene.member.standing() else { panic!("it is told of") };
    assert!(problem.contains("kafka.group"), "{problem}");
    scene.pass(4 * SECOND);
    assert_eq!(scene.question(), None);
    scene.pass(SECOND);
    scene.join_with_new_id();
    scene.sync(&[]);
    assert!(matches!(scene.member.standing(), Standing::Member { generation: 3, partitions: 0 }));
}

#[test]
fn sync_that_a_rebalance_overtakes_is_followed_by_a_join() {
    let mut scene = Scene::holding(&[0]);
    scene.beat(REBALANCE);
    scene.rejoin();
    scene.sync_question();
    scene.refuse_sync(ResponseError::RebalanceInProgress);
    scene.pass(SECOND);
    assert_eq!(Scene::owned_in(&scene.rejoin()).0, set(&[0]));
    assert_eq!(scene.heard(), []);
}

#[test]
fn group_with_members_enough_is_left_alone() {
    let now = Instant::now();
    let topics = ["q", "q.high"]
        .map(|name| GroupTopic { name: name.into(), target: "default".into(), fingerprint: "x".into() })
        .to_vec();
    let mut member = Member::new(Settings::new(&Config::default(), topics), now);
    assert!(!member.wants_size(now), "nobody can be asked");
    member.coordinator_found();
    let three = Seen { partitions: 3, id: None };
    member.topics_seen([("q".into(), three), ("q.high".into(), three)].into());
    assert!(member.wants_size(now));
    member.size_seen(5, now);
    assert_eq!(member.standing(), Standing::Spare);
    assert_eq!(member.next_question(now, BootTime::now()), None);
    let session = 10 * SECOND;
    assert!(!member.wants_size(now + session.mul_f64(0.7)));
    assert!(member.wants_size(now + session.mul_f64(1.3)), "some of them may be dead");
    member.size_seen(5, now);
    assert!(!member.wants_size(now + 22 * SECOND));
    assert!(member.wants_size(now + 38 * SECOND));
    member.size_seen(4, now);
    assert!(matches!(member.next_question(now, BootTime::now()), Some(Question::Join(_))));
}

#[test]
fn member_joins_where_it_may_not_look_at_the_size() {
    let mut scene = Scene::new(&Config::default());
    scene.member.forgotten(scene.now);
    scene.member.size_unknown(false, scene.now);
    assert_eq!(scene.question(), None);
    assert!(!scene.member.wants_size(scene.now));
    assert!(scene.member.wants_size(scene.now + SECOND));
    scene.member.size_unknown(true, scene.now);
    scene.join_question();
}
