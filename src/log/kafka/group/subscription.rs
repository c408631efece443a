//! What members and their leader say to each other through the broker, which does not look into it.
//!
//! ```text
//! subscription:  | version i16 = 2 | topics | user data | owned partitions | generation |
//!   user data:   {"v":1,"targets":[{"name":…,"fingerprint":…,"topics":[[topic, partitions],…]},…]}
//! assignment:    | version i16 = 2 | partitions | user data |
//!   user data:   {"v":1,"conflicts":[{"target":…,"fingerprints":[…]},…]}
//! ```
//!
//! The outer form is that of Java's consumers, so that Kafka's own tools show who owns what. That there is user data at
//! all keeps consumers of Kafka's newer protocol out: for them the broker would turn the group into one of theirs, and
//! give out partitions by itself, but not where members are used to words of their own. What is not understood here is
//! a member without targets: it gets nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ConsumerProtocolAssignment, ConsumerProtocolSubscription, consumer_protocol_assignment,
        consumer_protocol_subscription,
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use serde::{Deserialize, Serialize};

use super::{
    TopicPartition,
    assignor::{Conflict, MemberView, TargetView},
};

/// Of both outer forms.
const VERSION: i16 = 2;
/// The newest outer form that is read.
const NEWEST_VERSION: i16 = 3;
/// Of both inner forms.
const USER_DATA_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct SubscriptionData<'a> {
    v: u32,
    #[serde(borrow)]
    targets: Vec<TargetData<'a>>,
}

#[derive(Serialize, Deserialize)]
struct TargetData<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    fingerprint: std::borrow::Cow<'a, str>,
    topics: Vec<(String, i32)>,
}

#[derive(Serialize, Deserialize)]
struct AssignmentData {
    v: u32,
    conflicts: Vec<ConflictData>,
}

#[derive(Serialize, Deserialize)]
struct ConflictData {
    target: String,
    fingerprints: Vec<String>,
}

/// Why a member's or the leader's words are not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordsError {
    #[error("version {version} is not known")]
    Version { version: i16 },
    #[error("{reason}")]
    Malformed { reason: String },
}

pub(super) fn encode_subscription(targets: &[TargetView], owned: &BTreeSet<TopicPartition>, generation: i32) -> Bytes {
    let data = SubscriptionData {
        v: USER_DATA_VERSION,
        targets: targets
            .iter()
            .map(|target| TargetData {
                name: (*target.name).into(),
                fingerprint: (*target.fingerprint).into(),
                topics: target.topics.iter().map(|(topic, count)| (topic.to_string(), *count)).collect(),
            })
            .collect(),
    };
    let data = serde_json::to_vec(&data).expect("strings and numbers become JSON");
    let topics = targets.iter().flat_map(|target| &target.topics).map(|(topic, _)| name(topic)).collect();
    let owned = by_topic(owned).into_iter().map(|(topic, partitions)| {
        consumer_protocol_subscription::TopicPartition::default()
            .with_topic(name(&topic).into())
            .with_partitions(partitions)
    });
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(topics)
        .with_user_data(Some(data.into()))
        .with_owned_partitions(owned.collect())
        .with_generation_id(generation);
    encode(&subscription)
}

pub(super) fn decode_subscription(id: &str, words: Bytes) -> Result<MemberView, WordsError> {
    let subscription: ConsumerProtocolSubscription = decode(words)?;
    let data = subscription.user_data.unwrap_or_default();
    let data: SubscriptionData =
        serde_json::from_slice(&data).map_err(|error| WordsError::Malformed { reason: error.to_string() })?;
    let targets = data.targets.into_iter().map(|target| TargetView {
        name: (*target.name).into(),
        fingerprint: (*target.fingerprint).into(),
        topics: target.topics.into_iter().map(|(topic, count)| (topic.into(), count)).collect(),
    });
    let owned = subscription.owned_partitions.into_iter().flat_map(|owned| {
        let topic: Arc<str> = owned.topic.as_str().into();
        owned.partitions.into_iter().map(move |partition| TopicPartition { topic: topic.clone(), partition })
    });
    Ok(MemberView {
        id: id.to_owned(),
        targets: targets.collect(),
        owned: owned.collect(),
        generation: subscription.generation_id,
    })
}

pub(super) fn encode_assignment(partitions: &BTreeSet<TopicPartition>, conflicts: &[Conflict]) -> Bytes {
    let data = AssignmentData {
        v: USER_DATA_VERSION,
        conflicts: conflicts
            .iter()
            .map(|conflict| ConflictData {
                target: conflict.target.to_string(),
                fingerprints: conflict.fingerprints.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    };
    let data = serde_json::to_vec(&data).expect("strings become JSON");
    let partitions = by_topic(partitions).into_iter().map(|(topic, partitions)| {
        consumer_protocol_assignment::TopicPartition::default()
            .with_topic(name(&topic).into())
            .with_partitions(partitions)
    });
    let assignment = ConsumerProtocolAssignment::default()
        .with_assigned_partitions(partitions.collect())
        .with_user_data(Some(data.into()));
    encode(&assignment)
}

/// An assignment, and the targets that nobody gets anything of. No bytes are no partitions: so brokers answer a member
/// for which the leader had no words.
pub(super) fn decode_assignment(words: Bytes) -> Result<(BTreeSet<TopicPartition>, Vec<Conflict>), WordsError> {
    if words.is_empty() {
        return Ok(Default::default());
    }
    let assignment: ConsumerProtocolAssignment = decode(words)?;
    let data = assignment.user_data.unwrap_or_default();
    let data: AssignmentData =
        serde_json::from_slice(&data).map_err(|error| WordsError::Malformed { reason: error.to_string() })?;
    let conflicts = data.conflicts.into_iter().map(|conflict| Conflict {
        target: conflict.target.into(),
        fingerprints: conflict.fingerprints.into_iter().map(Into::into).collect(),
    });
    let partitions = assignment.assigned_partitions.into_iter().flat_map(|assigned| {
        let topic: Arc<str> = assigned.topic.as_str().into();
        assigned.partitions.into_iter().map(move |partition| TopicPartition { topic: topic.clone(), partition })
    });
    Ok((partitions.collect(), conflicts.collect()))
}

fn encode<M: Encodable>(message: &M) -> Bytes {
    let mut words = BytesMut::new();
    words.put_i16(VERSION);
    message.encode(&mut words, VERSION).expect("the version is one that the message has");
    words.freeze()
}

fn decode<M: Decodable>(mut words: Bytes) -> Result<M, WordsError> {
    if words.len() < 2 {
        return Err(WordsError::Malformed { reason: "it is empty".to_owned() });
    }
    let version = words.get_i16();
    if !(0..=NEWEST_VERSION).contains(&version) {
        return Err(WordsError::Version { version });
    }
    M::decode(&mut words, version).map_err(|error| WordsError::Malformed { reason: error.to_string() })
}

fn by_topic(partitions: &BTreeSet<TopicPartition>) -> BTreeMap<Arc<str>, Vec<i32>> {
    let mut topics: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(partition.topic.clone()).or_default().push(partition.partition);
    }
    topics
}

fn name(topic: &Arc<str>) -> StrBytes {
    StrBytes::from_string(topic.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions() -> BTreeSet<TopicPartition> {
        [("q", 0), ("q", 2), ("q.high", 1)]
            .map(|(topic, partition)| TopicPartition { topic: topic.into(), partition })
            .into()
    }

    fn view() -> MemberView {
        let topics = vec![("q".into(), 3), ("q.high".into(), 3)];
        MemberView {
            id: "m".into(),
            targets: vec![TargetView { name: "default".into(), fingerprint: "redis:6379/0".into(), topics }],
            owned: partitions(),
            generation: 7,
        }
    }

    #[test]
    fn subscription_keeps_its_form() {
        let MemberView { targets, owned, generation, .. } = view();
        let words = encode_subscription(&targets, &owned, generation);
        let mut golden = BytesMut::new();
        golden.put_slice(b"\x00\x02\x00\x00\x00\x02\x00\x01q\x00\x06q.high\x00\x00\x00\x63");
        golden.put_slice(
            br#"{"v":1,"targets":[{"name":"default","fingerprint":"redis:6379/0","topics":[["q",3],["q.high",3]]}]}"#,
        );
        golden.put_slice(b"\x00\x00\x00\x02\x00\x01q\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02");
        golden.put_slice(b"\x00\x06q.high\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x07");
        assert_eq!(words, golden.freeze());
        assert_eq!(decode_subscription("m", words), Ok(view()));
    }

    #[test]
    fn assignment_keeps_its_form() {
        let conflict = Conflict { target: "a".into(), fingerprints: vec!["x".into(), "y".into()] };
        let words = encode_assignment(&partitions(), std::slice::from_ref(&conflict));
        let mut golden = BytesMut::new();
        golden.put_slice(b"\x00\x02\x00\x00\x00\x02\x00\x01q\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x02");
        golden.put_slice(b"\x00\x06q.high\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x3d");
        golden.put_slice(br#"{"v":1,"conflicts":[{"target":"a","fingerprints":["x","y"]}]}"#);
        assert_eq!(words, golden.freeze());
        assert_eq!(decode_assignment(words), Ok((partitions(), vec![conflict])));
    }

    #[test]
    fn foreign_words_are_refused() {
        assert_eq!(decode_subscription("m", Bytes::from_static(b"\x00\x09")), Err(WordsError::Version { version: 9 }));
        for words in [&b""[..], b"\x00", b"\x00\x02\x00", b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"] {
            let words = Bytes::from_static(words);
            assert!(decode_subscription("m", words.clone()).is_err());
            assert!(words.is_empty() || decode_assignment(words).is_err());
        }
    }

    #[test]
    fn no_words_are_no_partitions() {
        assert_eq!(decode_assignment(Bytes::new()), Ok(Default::default()));
    }
}
