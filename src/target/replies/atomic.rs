//! The replies to `MULTI`, members, `EXEC` as one result.
//!
//! Redis isolates a transaction and does not roll it back. So there are three endings: all members ran; none did, and
//! what refused them decides; some ran and others failed, which only a person can put right.

use deadpool_redis::redis::{Cmd, ServerError, Value};

use super::judge;
use crate::{
    retry::{Executed, Failure, FailureClass, Origin, ReasonClass},
    target::{Done, errors},
};

/// What `EXEC` says before the error that made it give up.
const ABORTED_BECAUSE: &str = "Transaction discarded because of: ";

/// What came back for one atomic unit.
pub(super) struct Frame {
    begun: Value,
    /// `QUEUED`, or why not.
    queued: Vec<Value>,
    ended: Value,
}

impl Frame {
    /// None: there are not enough replies.
    pub(super) fn take(replies: &mut impl Iterator<Item = Value>, members: usize) -> Option<Self> {
        let begun = replies.next()?;
        let queued: Vec<Value> = replies.by_ref().take(members).collect();
        Some(Self { begun, queued, ended: replies.next()? })
    }

    /// Whether the transaction is certainly over, so that the next command is not queued behind it.
    pub(super) fn is_closed(&self) -> bool {
        match (&self.begun, &self.ended) {
            (Value::ServerError(_), _) => true,
            (_, Value::ServerError(error)) => error.code() == "EXECABORT",
            (_, ended) => matches!(ended, Value::Array(_)),
        }
    }

    pub(super) fn judge(self, members: &[&Cmd]) -> Result<Done, Failure> {
        match (self.begun, self.ended) {
            (Value::ServerError(refusal), _) => not_begun(&refusal, &self.queued, members),
            (_, Value::Array(replies)) if replies.len() == members.len() => together(&replies, members),
            (_, Value::ServerError(error)) if error.code() == "EXECABORT" => {
                Err(aborted(&error, &self.queued, members))
            }
            (_, Value::ServerError(error)) => Err(errors::of_reply(&error)),
            _ => Err(Failure::ambiguous("protocol-error", "EXEC was answered with something else")),
        }
    }
}

/// The members ran one after the other.
fn together(replies: &[Value], members: &[&Cmd]) -> Result<Done, Failure> {
    let results = judge_each(replies, members);
    if results.iter().all(Result::is_ok) {
        return Ok(Done::Applied);
    }
    let nothing_ran = results.iter().all(|result| matches!(result, Err(failure) if failure.executed == Executed::No));
    if nothing_ran && let Some(refusal) = strongest(&results) {
        return Err(refusal);
    }
    Err(partial(&results))
}

/// Nothing ran. What kept a member from being queued says why; otherwise `EXEC` itself was refused, and says so.
fn aborted(error: &ServerError, queued: &[Value], members: &[&Cmd]) -> Failure {
    if let Some(refusal) = strongest(&judge_each(queued, members)) {
        return refusal;
    }
    let text = error.details().unwrap_or_default();
    match text.split_once(ABORTED_BECAUSE).and_then(|(_, because)| because.split_once(' ')) {
        Some((code, text)) => errors::of_text(code, text),
        None => Failure::dead(ReasonClass::BadArgument, Executed::No, "EXECABORT", "the transaction was refused"),
    }
}

/// `MULTI` itself was refused, so each member was on its own.
fn not_begun(refusal: &ServerError, replies: &[Value], members: &[&Cmd]) -> Result<Done, Failure> {
    let results = judge_each(replies, members);
    match results.iter().any(Result::is_ok) {
        true => Err(partial(&results)),
        false => Err(errors::of_reply(refusal)),
    }
}

fn judge_each(replies: &[Value], members: &[&Cmd]) -> Vec<Result<Done, Failure>> {
    replies.iter().zip(members).map(|(reply, command)| judge(reply, Origin::Command, command)).collect()
}

/// Names every member that failed, by its place from 0 and its code.
pub(super) fn partial(results: &[Result<Done, Failure>]) -> Failure {
    let failed: Vec<String> = (0..)
        .zip(results)
        .filter_map(|(place, result): (usize, _)| Some(format!("#{place} {}", result.as_ref().err()?.code)))
        .collect();
    let message = format!("{} of {} members failed: {}", failed.len(), results.len(), failed.join(", "));
    Failure::dead(ReasonClass::Partial, Executed::Partly, "partial", &message)
}

/// Of failures that all left nothing behind, the one that promises most: what may pass by itself is waited for.
pub(super) fn strongest(results: &[Result<Done, Failure>]) -> Option<Failure> {
    let failures = results.iter().filter_map(|result| result.as_ref().err());
    let strongest = failures.min_by_key(|failure| match failure.class {
        FailureClass::Hold => 0,
        FailureClass::Ambiguous => 1,
        FailureClass::Route => 2,
        FailureClass::Backoff => 3,
        FailureClass::Dead => 4,
    });
    strongest.cloned()
}
