//! What an error of the client means for whoever made the call: decided by its kind, never by its text.

use std::fmt;

use rskafka::{
    BackoffError,
    client::error::{Error, ProtocolError, RequestContext},
};

use super::permission::{Operation, Permission};

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer came in time.
    Late,
    NoClient(NoClient),
    Client(Error),
}

/// Why no client could be made, as a connection of our own or somebody else found out.
#[derive(Clone, Debug)]
pub(super) struct NoClient {
    pub(super) reason: String,
    /// Only a person can end it.
    pub(super) is_permanent: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The broker refused, and will take the same again soon: nothing was stored.
    Busy,
    /// Somebody else leads the partition, or nobody at the moment: nothing was stored.
    Moved,
    /// The connection or what came over it is unfit for use. What was asked for may have been done.
    Broken,
    /// The broker did what was asked for, but not as safely as it should be.
    Doubtful,
    /// More bytes than the topic takes at once: nothing was stored.
    TooLarge,
    /// The topic or the partition does not exist.
    Unknown,
    /// It needs a person: nothing was stored.
    Refused,
}

impl Failure {
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::Late | Self::NoClient(_) => Cause::Broken,
            Self::Client(error) => cause_of(error),
        }
    }

    /// Whether only a person can end it.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::NoClient(NoClient { is_permanent, .. }) => *is_permanent,
            Self::Late | Self::Client(_) => self.cause() == Cause::Refused,
        }
    }
}

fn cause_of(error: &Error) -> Cause {
    use ProtocolError as P;
    match error {
        Error::ServerError { protocol_error, .. } => match protocol_error {
            P::NotEnoughReplicas | P::ThrottlingQuotaExceeded | P::OffsetNotAvailable => Cause::Busy,
            P::NotLeaderOrFollower
            | P::LeaderNotAvailable
            | P::FencedLeaderEpoch
            | P::UnknownLeaderEpoch
            | P::ReplicaNotAvailable => Cause::Moved,
            P::NotEnoughReplicasAfterAppend
            | P::RequestTimedOut
            | P::NetworkException
            | P::KafkaStorageError
            | P::BrokerNotAvailable
            | P::UnknownServerError
            | P::CorruptMessage => Cause::Doubtful,
            P::MessageTooLarge | P::RecordListTooLarge => Cause::TooLarge,
            P::UnknownTopicOrPartition | P::UnknownTopicId => Cause::Unknown,
            _ => Cause::Refused,
        },
        // The client wraps what it does not try again itself, and is told to try nothing again.
        Error::RetryFailed(BackoffError::DeadlineExceded { source, .. }) => {
            source.downcast_ref().map_or(Cause::Broken, cause_of)
        }
        _ => Cause::Broken,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("no answer came in time"),
            Self::NoClient(NoClient { reason, .. }) => f.write_str(reason),
            Self::Client(error) => display(error, f),
        }
    }
}

/// Without the words that the client wraps around it.
fn display(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        Error::ServerError { protocol_error: error @ ProtocolError::TopicAuthorizationFailed, request, .. } => {
            let (operation, topic) = match request {
                RequestContext::Fetch { topic_name, .. } => (Operation::Read, topic_name),
                RequestContext::Partition(topic, _) => (Operation::Write, topic),
                RequestContext::Topic(topic) => (Operation::Describe, topic),
                _ => return write!(f, "the broker answered: {error}"),
            };
            write!(f, "the broker answered: {error}; {}", Permission::on_topic(operation, topic.as_str()))
        }
        Error::ServerError { protocol_error, .. } => write!(f, "the broker answered: {protocol_error}"),
        Error::RetryFailed(BackoffError::DeadlineExceded { source, .. }) => match source.downcast_ref::<Error>() {
            Some(error) => display(error, f),
            None => write!(f, "{source}"),
        },
        other => write!(f, "{other}"),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<tokio::time::error::Elapsed> for Failure {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Late
    }
}
