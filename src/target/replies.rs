//! Reads the replies to a batch into one result per unit.
//!
//! A reply's content is not looked at, only whether it is an error: what a write answers is nobody's any more.

use deadpool_redis::redis::{Cmd, Value};

use super::batch::{self, Batch, Unit};
use crate::retry::{self, Context, Failure, FailureClass, Origin};

mod atomic;

/// Codes after which the connection itself is of no use: to a demoted primary, or without a valid login.
const SPOILS_CONNECTION: [&str; 4] = ["READONLY", "NOAUTH", "WRONGPASS", "DENIED"];

/// Codes that say that what was asked for is there already.
const DONE_BEFORE: [&str; 1] = ["BUSYGROUP"];

/// What the replies say.
pub(super) struct Reading {
    /// One per unit.
    pub(super) results: Vec<Result<(), Failure>>,
    /// Whether the next command on the connection will be taken for itself and its reply be told from others'.
    pub(super) in_step: bool,
}

impl Reading {
    /// Whether the connection can carry another batch.
    pub(super) fn reusable(&self) -> bool {
        self.in_step && !self.results.iter().any(|result| result.as_ref().is_err_and(spoils_connection))
    }
}

/// One result per unit. The client waits for as many replies as there are commands, so each unit finds its own.
pub(super) fn read(batch: &Batch, replies: Vec<Value>) -> Reading {
    let mut replies = replies.into_iter();
    let mut first = 0;
    let mut in_step = true;
    let mut results = Vec::with_capacity(batch.len());
    for unit in &batch.units {
        let mut commands = batch.commands(first);
        first += unit.commands();
        let result = match unit {
            Unit::Command => judge_next(&mut replies, Origin::Command, &mut commands),
            Unit::Script { .. } => judge_next(&mut replies, Origin::Script, &mut commands),
            Unit::Atomic { members } => {
                let frame = atomic::Frame::take(&mut replies, *members);
                let members: Vec<&Cmd> = commands.skip(1).take(*members).collect();
                in_step &= frame.as_ref().is_some_and(atomic::Frame::is_closed);
                frame.map_or_else(|| Err(missing_reply()), |frame| frame.judge(&members))
            }
        };
        in_step &= !matches!(&result, Err(failure) if failure.class == FailureClass::Ambiguous);
        results.push(result);
    }
    Reading { results, in_step }
}

fn spoils_connection(failure: &Failure) -> bool {
    SPOILS_CONNECTION.contains(&&*failure.code)
}

fn judge_next<'a>(
    replies: &mut impl Iterator<Item = Value>,
    origin: Origin,
    commands: &mut impl Iterator<Item = &'a Cmd>,
) -> Result<(), Failure> {
    let command = commands.next().expect("a unit has as many commands as it counts");
    replies.next().map_or_else(|| Err(missing_reply()), |reply| judge(&reply, origin, command))
}

/// Judges the reply to one command.
fn judge(reply: &Value, origin: Origin, command: &Cmd) -> Result<(), Failure> {
    match reply {
        Value::ServerError(error) if DONE_BEFORE.contains(&error.code()) => Ok(()),
        Value::ServerError(error) => {
            let arguments: Vec<&[u8]> = batch::arguments(command).collect();
            let context = Context { origin, arguments: &arguments };
            Err(retry::classify(error.code(), error.details().unwrap_or_default(), context))
        }
        _ => Ok(()),
    }
}

fn missing_reply() -> Failure {
    Failure::ambiguous("protocol-error", "there were fewer replies than commands")
}
