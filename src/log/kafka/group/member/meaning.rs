//! What the errors of a group mean for its members, and for a person.

use kafka_protocol::{error::ResponseError, messages::GroupId};

use crate::log::kafka::permission::{Operation, Permission};

/// What an error of the group means.
pub(super) enum Meaning {
    /// It has another coordinator by now, or none yet.
    NoCoordinator,
    Rebalance,
    /// This is no member of it, or not any more.
    Forgotten,
    Fenced,
    /// It takes a person.
    Refused,
}

pub(super) fn meaning(error: ResponseError) -> Meaning {
    match error {
        ResponseError::NotCoordinator
        | ResponseError::CoordinatorNotAvailable
        | ResponseError::CoordinatorLoadInProgress => Meaning::NoCoordinator,
        ResponseError::RebalanceInProgress => Meaning::Rebalance,
        ResponseError::UnknownMemberId | ResponseError::IllegalGeneration => Meaning::Forgotten,
        ResponseError::FencedInstanceId => Meaning::Fenced,
        _ => Meaning::Refused,
    }
}

/// What a person is told, with what ends it. `topic`: what was asked for, where it was one.
pub(super) fn refusal(error: ResponseError, group: &GroupId, topic: &str) -> String {
    let allowing = |needs: Permission| format!("{error}; {needs}");
    let remedy = match error {
        ResponseError::GroupAuthorizationFailed => {
            return allowing(Permission::on_group(Operation::Read, group.as_str()));
        }
        ResponseError::TopicAuthorizationFailed => return allowing(Permission::on_topic(Operation::Read, topic)),
        ResponseError::InconsistentGroupProtocol => {
            "consumers of another kind are in the group; give Redrive a group of its own (kafka.group)"
        }
        ResponseError::InvalidSessionTimeout => {
            "kafka.session_timeout must be within the broker's group.min.session.timeout.ms and its maximum"
        }
        ResponseError::OffsetMetadataTooLarge => "the broker's offset.metadata.max.bytes must be at least 4096",
        ResponseError::GroupMaxSizeReached => "the broker's group.max.size is reached",
        _ => return error.to_string(),
    };
    format!("{error}: {remedy}")
}
