//! Reads the replies to a batch into one result per unit.
//!
//! A reply's content is not looked at, only whether it is an error: what a write answers is nobody's any more.

use deadpool_redis::redis::{Cmd, RedisResult, ServerError, Value};

use super::{
    batch::{self, Batch, Unit},
    connection::BatchResult,
};
use crate::retry::{self, Context, Executed, Failure, FailureClass, Origin, ReasonClass};

/// Codes after which the connection itself is of no use: to a demoted primary, or without a valid login.
const SPOILS_CONNECTION: [&str; 4] = ["READONLY", "NOAUTH", "WRONGPASS", "DENIED"];

/// Codes that say that what was asked for is there already.
const DONE_BEFORE: [&str; 1] = ["BUSYGROUP"];

/// What `EXEC` says before the error that made it give up.
const ABORTED_BECAUSE: &str = "Transaction discarded because of: ";

/// One result per unit. `answers` has as many as the batch has commands: the client waits for exactly that many.
pub(super) fn read(batch: &Batch, answers: Vec<RedisResult<Value>>) -> BatchResult {
    let mut answers = answers.into_iter();
    let mut first = 0;
    let mut in_step = true;
    let mut results = Vec::with_capacity(batch.len());
    for unit in &batch.units {
        let commands = batch.commands(first);
        first += unit.commands();
        let result = match unit {
            Unit::Command => single(answers.next(), Origin::Command, commands),
            Unit::Script { .. } => single(answers.next(), Origin::Script, commands),
            Unit::Atomic { members } => {
                let replies: Vec<_> = answers.by_ref().take(members + 2).collect();
                atomic(replies, commands.skip(1).take(*members)).unwrap_or_else(|out_of_step| {
                    in_step = false;
                    Err(out_of_step)
                })
            }
        };
        results.push(result);
    }
    let spoilt = results.iter().filter_map(|result| result.as_ref().err()).any(spoils_connection);
    BatchResult { results, reusable: in_step && !spoilt }
}

fn spoils_connection(failure: &Failure) -> bool {
    failure.class == FailureClass::Ambiguous || SPOILS_CONNECTION.contains(&&*failure.code)
}

fn single<'a>(
    answer: Option<RedisResult<Value>>,
    origin: Origin,
    mut commands: impl Iterator<Item = &'a Cmd>,
) -> Result<(), Failure> {
    match answer {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => {
            let command = commands.next().expect("a unit has commands");
            judge(error.code().unwrap_or_default(), error.detail().unwrap_or_default(), origin, command)
        }
        None => Err(missing_answer()),
    }
}

fn judge(code: &str, text: &str, origin: Origin, command: &Cmd) -> Result<(), Failure> {
    if DONE_BEFORE.contains(&code) {
        return Ok(());
    }
    let arguments: Vec<&[u8]> = batch::arguments(command).collect();
    Err(retry::classify(code, text, Context { origin, arguments: &arguments }))
}

fn judge_member(error: &ServerError, command: &Cmd) -> Result<(), Failure> {
    judge(error.code(), error.details().unwrap_or_default(), Origin::Command, command)
}

/// The result of `MULTI`, members, `EXEC`. The outer error says that the replies do not look like those of a
/// transaction, or that it may still be open: then the connection must not be used again.
fn atomic<'a>(
    mut replies: Vec<RedisResult<Value>>,
    members: impl Iterator<Item = &'a Cmd>,
) -> Result<Result<(), Failure>, Failure> {
    let (Some(exec), false) = (replies.pop(), replies.is_empty()) else { return Err(missing_answer()) };
    let begun = replies.remove(0);
    let queued = replies;
    match (begun, exec) {
        (Ok(_), Ok(Value::Array(replies))) if replies.len() == queued.len() => {
            let each = replies.into_iter().zip(members).map(|(reply, command)| match reply {
                Value::ServerError(error) => judge_member(&error, command),
                _ => Ok(()),
            });
            Ok(together(each.collect()))
        }
        (Ok(_), Err(error)) if error.code() == Some("EXECABORT") => {
            Ok(Err(aborted(queued, members, error.detail().unwrap_or_default())))
        }
        (Ok(_), Err(error)) => Err(retry::classify(
            error.code().unwrap_or_default(),
            error.detail().unwrap_or_default(),
            super::errors::NO_UNIT,
        )),
        (Ok(_), Ok(_)) => Err(Failure::ambiguous("protocol-error", "EXEC was answered with something else")),
        (Err(refusal), _) => Ok(not_begun(&refusal, queued, members)),
    }
}

/// Nothing ran. What kept a member from being queued says why, else the text of `EXEC` itself.
fn aborted<'a>(queued: Vec<RedisResult<Value>>, members: impl Iterator<Item = &'a Cmd>, text: &str) -> Failure {
    let refusals = queued.into_iter().zip(members).filter_map(|(reply, command)| {
        let error = reply.err()?;
        judge(error.code().unwrap_or_default(), error.detail().unwrap_or_default(), Origin::Command, command).err()
    });
    if let Some(refusal) = strongest(refusals.collect()) {
        return refusal;
    }
    let because = text.find(ABORTED_BECAUSE).map_or("", |at| &text[at + ABORTED_BECAUSE.len()..]);
    let (code, text) = because.split_once(' ').unwrap_or((because, ""));
    match code {
        "" => Failure::dead(ReasonClass::BadArgument, Executed::No, "EXECABORT", "the transaction was refused"),
        code => retry::classify(code, text, super::errors::NO_UNIT),
    }
}

/// `MULTI` itself was refused, so each member was on its own.
fn not_begun<'a>(
    refusal: &deadpool_redis::redis::RedisError,
    replies: Vec<RedisResult<Value>>,
    members: impl Iterator<Item = &'a Cmd>,
) -> Result<(), Failure> {
    let results: Vec<_> = replies
        .into_iter()
        .zip(members)
        .map(|(reply, command)| match reply {
            Ok(_) => Ok(()),
            Err(error) => {
                judge(error.code().unwrap_or_default(), error.detail().unwrap_or_default(), Origin::Command, command)
            }
        })
        .collect();
    if results.iter().any(Result::is_ok) {
        return Err(partial(&results));
    }
    Err(retry::classify(
        refusal.code().unwrap_or_default(),
        refusal.detail().unwrap_or_default(),
        super::errors::NO_UNIT,
    ))
}

/// The one result of members that ran one after the other and are not rolled back.
fn together(results: Vec<Result<(), Failure>>) -> Result<(), Failure> {
    if results.iter().all(Result::is_ok) {
        return Ok(());
    }
    if results.iter().all(|result| result.as_ref().is_err_and(|failure| failure.executed == Executed::No)) {
        let refusals = results.into_iter().filter_map(Result::err).collect();
        return Err(strongest(refusals).expect("there are members, and all failed"));
    }
    Err(partial(&results))
}

/// Names every member that failed, by its place and code.
fn partial(results: &[Result<(), Failure>]) -> Failure {
    let failed: Vec<String> = results
        .iter()
        .enumerate()
        .filter_map(|(place, result)| result.as_ref().err().map(|failure| format!("#{place} {}", failure.code)))
        .collect();
    let message = format!("{} of {} members failed: {}", failed.len(), results.len(), failed.join(", "));
    Failure::dead(ReasonClass::Partial, Executed::Partly, "partial", &message)
}

/// Of failures that all left nothing behind, the one that promises most: what may pass by itself is waited for.
fn strongest(failures: Vec<Failure>) -> Option<Failure> {
    failures.into_iter().min_by_key(|failure| match failure.class {
        FailureClass::Hold => 0,
        FailureClass::Ambiguous => 1,
        FailureClass::Route => 2,
        FailureClass::Backoff => 3,
        FailureClass::Dead => 4,
    })
}

fn missing_answer() -> Failure {
    Failure::ambiguous("protocol-error", "there were fewer answers than commands")
}
