//! Reads the replies to a batch into one result per unit.
//!
//! A reply's content is not looked at, only whether it is an error: what a write answers is nobody's any more.

use deadpool_redis::redis::{Cmd, Value};

use super::{
    Done,
    batch::{self, Call, Calls},
};
use crate::retry::{self, Context, Failure, FailureClass, Origin};

mod atomic;
mod scripted;

/// Codes after which the connection itself is of no use: to a demoted primary, or without a valid login.
const SPOILS_CONNECTION: [&str; 4] = ["READONLY", "NOAUTH", "WRONGPASS", "DENIED"];

/// Codes that say that what was asked for is there already.
const DONE_BEFORE: [&str; 1] = ["BUSYGROUP"];

/// Reads the replies to a pipeline into the results of its units, which stand for successes before. The client waits
/// for as many replies as there are commands, so each call finds its own.
///
/// False: the next command on the connection might not be taken for itself, or its reply for another's.
pub(super) fn read(calls: &Calls, replies: Vec<Value>, results: &mut [Result<Done, Failure>]) -> bool {
    let mut replies = replies.into_iter();
    let mut in_step = true;
    for (call, mut commands) in calls.iter() {
        if let Call::Atomic { unit, members } = call {
            let frame = atomic::Frame::take(&mut replies, *members);
            let members: Vec<&Cmd> = commands.skip(1).take(*members).collect();
            in_step &= frame.as_ref().is_some_and(atomic::Frame::is_closed);
            results[*unit] = frame.map_or_else(|| Err(missing_reply()), |frame| frame.judge(&members));
            continue;
        }
        let command = commands.next().expect("a call has commands");
        let Some(reply) = replies.next() else {
            call.units().for_each(|unit| results[unit] = Err(missing_reply()));
            continue;
        };
        match call {
            Call::Command { unit } => results[*unit] = judge(&reply, Origin::Command, command),
            Call::Script { unit, .. } => results[*unit] = judge(&reply, Origin::Script, command),
            Call::OnceScript { unit, .. } => results[*unit] = scripted::once_script(&reply, command),
            Call::Versioned { unit } => results[*unit] = scripted::versioned(&reply, command),
            Call::VersionedScript { unit, .. } => results[*unit] = scripted::versioned_script(&reply, command),
            Call::Once { units } => {
                for (place, result) in units.iter().zip(scripted::once(units, &reply, command)) {
                    results[place.unit] = result;
                }
            }
            Call::Atomic { .. } => unreachable!("it was read above"),
        }
    }
    let is_ambiguous = |unit: usize| matches!(&results[unit], Err(failure) if failure.class == FailureClass::Ambiguous);
    in_step && !calls.units().any(is_ambiguous)
}

/// Whether nothing in the results says that the connection is of no use any more.
pub(super) fn leave_usable(results: &[Result<Done, Failure>]) -> bool {
    !results.iter().any(|result| result.as_ref().is_err_and(spoils_connection))
}

fn spoils_connection(failure: &Failure) -> bool {
    SPOILS_CONNECTION.contains(&&*failure.code)
}

/// Judges the reply to one command.
fn judge(reply: &Value, origin: Origin, command: &Cmd) -> Result<Done, Failure> {
    match reply {
        Value::ServerError(error) if DONE_BEFORE.contains(&error.code()) => Ok(Done::Applied),
        Value::ServerError(error) => {
            let arguments: Vec<&[u8]> = batch::arguments(command).collect();
            let context = Context { origin, arguments: &arguments };
            Err(retry::classify(error.code(), error.details().unwrap_or_default(), context))
        }
        _ => Ok(Done::Applied),
    }
}

fn missing_reply() -> Failure {
    Failure::ambiguous("protocol-error", "there were fewer replies than commands")
}
