//! What a member asks on its other connection, which a pending join does not block: what is committed for partitions that
//! it was given, and that what it has finished be committed.

use std::{collections::BTreeMap, sync::Arc};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
    },
    protocol::StrBytes,
};
use tokio::time::Instant;

use super::{
    FIRST_BACKOFF, Identity, Member, Output, Phase, REBALANCE_BACKOFF, REFUSED_BACKOFF,
    meaning::{Meaning, meaning, refusal},
};
use crate::log::{
    BootTime, CommitError, Epoch,
    kafka::{
        admin::text,
        group::{
            Committed, TopicPartition,
            commits::{Commit, CommitId},
        },
    },
};

/// What is asked on the other one, which a pending join does not block.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::log::kafka::group) enum OffsetsQuestion {
    Fetch(OffsetFetchRequest),
    Commit(OffsetCommitRequest),
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::log::kafka::group) enum OffsetsAnswer {
    Fetch(OffsetFetchResponse),
    Commit(OffsetCommitResponse),
}

pub(super) enum AskedOffsets {
    Fetch(Vec<(TopicPartition, Epoch)>),
    Commit { identity: Identity, at: BootTime, batch: BTreeMap<TopicPartition, Commit> },
}

impl Member {
    /// What to ask about offsets now, if there is something; its answer goes to [`Self::answered_offsets`].
    pub(in crate::log::kafka::group) fn next_offsets_question(
        &mut self,
        now: Instant,
        at: BootTime,
    ) -> Option<OffsetsQuestion> {
        if self.asked_offsets.is_some() || !self.has_coordinator || self.failure.is_some() {
            return None;
        }
        let mut unfetched = self.holdings.unfetched();
        // Whose it is what was committed is known once the topic was seen; others may see it first.
        let seen = self.seen.as_ref();
        unfetched.retain(|(partition, _)| seen.is_some_and(|seen| seen.contains_key(&partition.topic)));
        if !unfetched.is_empty() && now >= self.fetch_not_before {
            let request = OffsetFetchRequest::default()
                .with_group_id(self.settings.group.clone())
                .with_topics(Some(fetch_topics(&unfetched)));
            self.asked_offsets = Some(AskedOffsets::Fetch(unfetched));
            return Some(OffsetsQuestion::Fetch(request));
        }
        // Between a join and its sync the group takes no commits.
        if self.commits.is_empty() || now < self.commit_not_before || matches!(self.phase, Phase::Syncing(_)) {
            return None;
        }
        let batch = self.commits.take();
        let request = OffsetCommitRequest::default()
            .with_group_id(self.settings.group.clone())
            .with_generation_id_or_member_epoch(self.identity.generation)
            .with_member_id(self.identity.member_id.clone())
            .with_group_instance_id(self.settings.instance_id.clone())
            .with_topics(self.commit_topics(&batch));
        self.asked_offsets = Some(AskedOffsets::Commit { identity: self.identity.clone(), at, batch });
        Some(OffsetsQuestion::Commit(request))
    }

    pub(in crate::log::kafka::group) fn answered_offsets(
        &mut self,
        answer: Result<OffsetsAnswer, String>,
        now: Instant,
    ) {
        match (self.asked_offsets.take(), answer) {
            (Some(AskedOffsets::Fetch(asked)), Ok(OffsetsAnswer::Fetch(answer))) => self.fetched(&asked, &answer, now),
            (Some(AskedOffsets::Commit { identity, at, batch }), Ok(OffsetsAnswer::Commit(answer))) => {
                self.committed(&identity, at, batch, &answer, now);
            }
            (Some(AskedOffsets::Commit { batch, .. }), Err(problem)) => {
                self.put_back(batch);
                self.coordinator_lost(problem, now);
            }
            (Some(AskedOffsets::Fetch(_)), Err(problem)) => self.coordinator_lost(problem, now),
            (Some(AskedOffsets::Commit { batch, .. }), Ok(_)) => self.put_back(batch),
            (Some(AskedOffsets::Fetch(_)) | None, _) => {}
        }
    }

    fn fetched(&mut self, asked: &[(TopicPartition, Epoch)], answer: &OffsetFetchResponse, now: Instant) {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return self.fetch_refused(error, "", now);
        }
        let mut found = BTreeMap::new();
        for topic in &answer.topics {
            for partition in &topic.partitions {
                found.insert((topic.name.as_str(), partition.partition_index), partition);
            }
        }
        for (partition, epoch) in asked {
            let Some(stored) = found.get(&(&*partition.topic, partition.partition)) else {
                self.fetch_not_before = now + FIRST_BACKOFF;
                continue;
            };
            if let Some(error) = ResponseError::try_from_code(stored.error_code) {
                self.fetch_refused(error, &partition.topic, now);
                continue;
            }
            let words = stored.metadata.as_ref().map_or("", |words| words.as_str());
            let committed = Committed::read(stored.committed_offset, words, self.topic_id(&partition.topic));
            if committed.is_none() && stored.committed_offset >= 0 {
                let TopicPartition { topic, partition } = partition;
                tracing::info!("What was committed for {topic}/{partition} is of an earlier topic of its name");
            }
            self.fetch_problem = None;
            if let Some(committed) = &committed {
                self.renewals.note(partition.clone(), *epoch, committed.clone(), now);
            }
            let change = self.holdings.fetched(partition, *epoch, committed);
            self.outputs.extend(change.map(Output::Change));
        }
    }

    fn fetch_refused(&mut self, error: ResponseError, topic: &str, now: Instant) {
        match meaning(error) {
            Meaning::NoCoordinator => self.coordinator_lost(error.to_string(), now),
            Meaning::Refused if !error.is_retriable() => {
                self.fetch_problem = Some(refusal(error, &self.settings.group, topic));
                self.fetch_not_before = now + REFUSED_BACKOFF;
            }
            _ => self.fetch_not_before = now + FIRST_BACKOFF,
        }
    }

    /// Takes what is to be committed. The result comes with the id.
    pub(in crate::log::kafka::group) fn commit(
        &mut self,
        partition: TopicPartition,
        epoch: Epoch,
        offset: i64,
        metadata: String,
        id: CommitId,
        now: Instant,
    ) {
        if self.holdings.epoch(&partition) == Some(epoch) {
            let until = now + self.settings.session;
            self.commits.push(partition, Commit::new(epoch, offset, metadata, id, until));
        } else {
            self.outputs.push(Output::Committed { id, result: Err(CommitError::EpochOver) });
        }
    }

    fn committed(
        &mut self,
        identity: &Identity,
        at: BootTime,
        mut batch: BTreeMap<TopicPartition, Commit>,
        answer: &OffsetCommitResponse,
        now: Instant,
    ) {
        let is_current = *identity == self.identity;
        let joins = !matches!(self.phase, Phase::Stable);
        let mut is_stored = false;
        let mut is_forgotten = false;
        for topic in &answer.topics {
            for answered in &topic.partitions {
                let partition =
                    TopicPartition { topic: topic.name.as_str().into(), partition: answered.partition_index };
                let Some(error) = ResponseError::try_from_code(answered.error_code) else {
                    is_stored = true;
                    self.commit_problem = None;
                    let stored = batch.remove(&partition);
                    if let Some(Commit { epoch, offset, metadata, .. }) = &stored {
                        let committed = Committed { offset: *offset, metadata: metadata.clone() };
                        self.renewals.note(partition, *epoch, committed, now);
                    }
                    self.settle(stored, &Ok(()));
                    continue;
                };
                match meaning(error) {
                    Meaning::NoCoordinator => self.coordinator_lost(error.to_string(), now),
                    Meaning::Rebalance => self.commit_not_before = now + REBALANCE_BACKOFF,
                    // While it joins, what the join is answered decides.
                    Meaning::Forgotten if joins || !is_current => self.commit_not_before = now + REBALANCE_BACKOFF,
                    Meaning::Forgotten => is_forgotten = true,
                    Meaning::Fenced => return self.fenced_at_commit(batch, now),
                    Meaning::Refused if error.is_retriable() => {
                        self.wants_look |= error == ResponseError::UnknownTopicOrPartition;
                        self.commit_problem = Some(error.to_string());
                        self.commit_not_before = now + FIRST_BACKOFF;
                    }
                    Meaning::Refused => {
                        let reason = refusal(error, &self.settings.group, &partition.topic);
                        self.settle(batch.remove(&partition), &Err(CommitError::Unavailable { reason }));
                    }
                }
            }
        }
        if is_stored && is_current {
            self.renew(at);
        }
        self.put_back(batch);
        if is_forgotten {
            self.forgotten(now);
        }
    }

    fn fenced_at_commit(&mut self, batch: BTreeMap<TopicPartition, Commit>, now: Instant) {
        self.put_back(batch);
        self.fenced(now);
    }

    fn commit_topics(&self, batch: &BTreeMap<TopicPartition, Commit>) -> Vec<OffsetCommitRequestTopic> {
        let mut topics: BTreeMap<&Arc<str>, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (partition, commit) in batch {
            let words = Committed::stored(&commit.metadata, self.topic_id(&partition.topic));
            topics.entry(&partition.topic).or_default().push(
                OffsetCommitRequestPartition::default()
                    .with_partition_index(partition.partition)
                    .with_committed_offset(commit.offset)
                    .with_committed_metadata(Some(StrBytes::from_string(words))),
            );
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            OffsetCommitRequestTopic::default().with_name(TopicName(text(topic))).with_partitions(partitions)
        });
        topics.collect()
    }

    fn put_back(&mut self, batch: BTreeMap<TopicPartition, Commit>) {
        for (partition, commit) in batch {
            self.commits.put_back(partition, commit);
        }
        self.drop_commits();
    }

    /// Refuses what is not owned any more.
    pub(super) fn drop_commits(&mut self) {
        let holdings = &self.holdings;
        let over = self.commits.take_over(|partition, epoch| holdings.epoch(partition) != Some(epoch));
        let refused = over.into_iter().map(|id| Output::Committed { id, result: Err(CommitError::EpochOver) });
        self.outputs.extend(refused);
    }

    fn settle(&mut self, commit: Option<Commit>, result: &Result<(), CommitError>) {
        let ids = commit.iter().flat_map(Commit::ids);
        self.outputs.extend(ids.map(|id| Output::Committed { id, result: result.clone() }));
    }
}

fn fetch_topics(partitions: &[(TopicPartition, Epoch)]) -> Vec<OffsetFetchRequestTopic> {
    let mut topics: BTreeMap<&Arc<str>, Vec<i32>> = BTreeMap::new();
    for (partition, _) in partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        OffsetFetchRequestTopic::default().with_name(TopicName(text(topic))).with_partition_indexes(partitions)
    });
    topics.collect()
}
