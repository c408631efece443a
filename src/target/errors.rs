//! What the client library's own errors mean: those that are not a server's reply to one unit.

use std::{error::Error, io, sync::Arc};

use deadpool_redis::{
    PoolError, TimeoutType,
    redis::{ErrorKind, RedisError, ServerError, Value},
};

use crate::retry::{self, Context, Failure, FailureClass, Origin};

/// A connection could not be had. Nothing was sent, so whatever went wrong is a hold.
pub(super) fn of_pool(error: &PoolError) -> Failure {
    match error {
        PoolError::Backend(error) => before_sending(error),
        PoolError::Timeout(TimeoutType::Wait) => {
            Failure::hold(Failure::NO_CONNECTION, "all connections of the target were in use")
        }
        PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle) => {
            Failure::hold("connect-timeout", "connecting took longer than the connect timeout")
        }
        PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
            Failure::hold(Failure::NO_CONNECTION, "the target's connections are closed")
        }
    }
}

/// An error while a connection was made or checked.
pub(super) fn before_sending(error: &RedisError) -> Failure {
    if let Some(code) = error.code() {
        return as_hold(of_text(code, error.detail().unwrap_or_default()));
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            Failure::hold("authentication-failed", "the server refused the URL's user or password")
        }
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            Failure::hold("protocol-error", "what answers there does not speak the Redis protocol")
        }
        ErrorKind::Io if error.is_timeout() => {
            Failure::hold("connect-timeout", "connecting took longer than the connect timeout")
        }
        ErrorKind::Io if error.is_connection_refusal() => {
            Failure::hold("connection-refused", "nothing accepts connections there")
        }
        ErrorKind::Io if is_tls(error) => Failure::hold("tls", &error.to_string()),
        ErrorKind::Io if error.is_connection_dropped() => {
            Failure::hold(Failure::CONNECTION_LOST, "the server closed the connection while it was being made")
        }
        _ => Failure::hold("connection-failed", &error.to_string()),
    }
}

/// An error of a whole batch: it may have run, wholly or in part.
pub(super) fn after_sending(error: &RedisError) -> Failure {
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => {
            Failure::ambiguous(Failure::TIMEOUT, "no answer within the response timeout")
        }
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
            Failure::ambiguous("protocol-error", "the answer was not the Redis protocol")
        }
        _ => Failure::ambiguous(Failure::CONNECTION_LOST, "the connection was lost before the answer came"),
    }
}

/// A failure of something that is not a unit keeps no task waiting for attempts: the target is not usable.
pub(super) fn as_hold(failure: Failure) -> Failure {
    match failure.class {
        FailureClass::Hold => failure,
        _ => Failure::hold(&failure.code, &failure.message),
    }
}

/// A server's error in reply to what is not a unit: a question of ours, or the frame around an atomic one.
pub(super) fn of_reply(error: &ServerError) -> Failure {
    of_text(error.code(), error.details().unwrap_or_default())
}

/// What an answer says if it is an error.
pub(super) fn of_value(reply: &Value) -> Option<Failure> {
    match reply {
        Value::ServerError(error) => Some(of_reply(error)),
        _ => None,
    }
}

/// As `of_reply`, from an error's parts.
pub(super) fn of_text(code: &str, text: &str) -> Failure {
    retry::classify(code, text, Context { origin: Origin::Command, arguments: &[] })
}

/// What the client library keeps an error's cause in.
type Shared = Arc<dyn Error + Send + Sync>;

/// The TLS library's errors travel inside `io::Error`s.
fn is_tls(error: &RedisError) -> bool {
    let source = Error::source(error).and_then(|source| source.downcast_ref::<Shared>());
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::InvalidData)
}
