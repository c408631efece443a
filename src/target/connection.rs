//! A held connection, and the execution of batches over it.
//!
//! A connection belongs to one worker at a time and stays held between batches: handing it back and taking it again
//! would cost a round trip each. It carries one batch at a time, so an atomic unit cannot meet another's commands.

use std::{
    fmt,
    time::{Duration, Instant},
};

use deadpool_redis::redis::{Pipeline, Value};

use super::{
    ConnectionName,
    batch::{Batch, Calls},
    breaker::Signal,
    errors, replies,
};
use crate::retry::{Executed, Failure, FailureClass, ReasonClass};

/// What became of a batch.
#[derive(Debug)]
pub struct BatchResult {
    /// One per unit, in the order of the batch.
    pub results: Vec<Result<Done, Failure>>,
    /// False: the connection has been closed, and another one must be made.
    pub reusable: bool,
    /// The connection, if something was sent over it whose fate is not known. It may still arrive until the connection
    /// is [fenced](super::Target::fence).
    pub spoilt: Option<ConnectionName>,
    /// From handing it over to its last reply.
    pub took: Duration,
}

impl BatchResult {
    /// What the batch says about the target as a whole, for its breaker: the first failure that is a hard signal, else
    /// the first soft one. One batch is one signal, however many units it had.
    pub fn target_failure(&self) -> Option<&Failure> {
        let failures = || self.results.iter().filter_map(|result| result.as_ref().err());
        let first = |signal| failures().find(|failure| Signal::of(failure) == Some(signal));
        first(Signal::Hard).or_else(|| first(Signal::Soft))
    }
}

/// How a unit that did not fail was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It ran.
    Applied,
    /// It had run before, and did not run again.
    AppliedBefore,
    /// It did not run: a write with a newer version had been made before.
    Stale,
}

/// A connection to a target, held by whoever has it. Dropping it gives it back to the target.
pub struct Connection {
    /// None: closed after a failure that leaves it in an unknown state.
    pooled: Option<deadpool_redis::Connection>,
    name: ConnectionName,
    /// Why the user may not use `MULTI`. Its members would then run one by one.
    atomic_refused: Option<Failure>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("open", &self.pooled.is_some()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Checks that the server on the other side takes commands, so that what is wrong with it is known before a unit
    /// is sent: a server that is full, for one, says so in answer to the first command and closes.
    pub(super) async fn try_new(
        mut pooled: deadpool_redis::Connection,
        name: ConnectionName,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        match tokio::time::timeout(timeout, check(&mut pooled, name)).await {
            Ok(Ok(atomic_refused)) => Ok(Self { pooled: Some(pooled), name, atomic_refused }),
            Ok(Err(failure)) => {
                close(pooled);
                Err(failure)
            }
            Err(_elapsed) => {
                close(pooled);
                Err(Failure::hold("connect-timeout", "a new connection got no answer within the connect timeout"))
            }
        }
    }

    /// What the server knows it by, unless its user may not name connections.
    pub fn name(&self) -> ConnectionName {
        self.name
    }

    /// Sends the units as one pipeline and waits for all results, at most for the response timeout. Scripts that the
    /// server did not know are sent once more, in a second pipeline with the same bound.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not stop the batch: any part of it may run, now or later.
    pub async fn execute(&mut self, batch: Batch) -> BatchResult {
        self.execute_while(batch, || true).await
    }

    /// As [`Connection::execute`]; but nothing is sent once `may_send` says that it may not be. What was not sent is held.
    pub async fn execute_while(&mut self, batch: Batch, may_send: impl Fn() -> bool) -> BatchResult {
        let Some(pooled) = &mut self.pooled else {
            let closed = Failure::hold(Failure::NO_CONNECTION, "the connection was closed after an earlier failure");
            return BatchResult {
                results: vec![Err(closed); batch.len()],
                reusable: false,
                spoilt: None,
                took: Duration::ZERO,
            };
        };
        if batch.is_empty() {
            return BatchResult { results: Vec::new(), reusable: true, spoilt: None, took: Duration::ZERO };
        }
        let begun = Instant::now();
        let (results, reusable) = run(pooled, batch, self.atomic_refused.as_ref(), may_send).await;
        if !reusable {
            let pooled = self.pooled.take().expect("it was there to run on");
            close(pooled);
        }
        let is_ambiguous = |result: &Result<_, Failure>| {
            result.as_ref().is_err_and(|failure| failure.class == FailureClass::Ambiguous)
        };
        let spoilt = results.iter().any(is_ambiguous).then_some(self.name);
        BatchResult { results, reusable, spoilt, took: begun.elapsed() }
    }
}

/// Closes a connection and lets the pool make another one in its place.
fn close(pooled: deadpool_redis::Connection) {
    drop(deadpool_redis::Connection::take(pooled));
}

/// Whether the server takes commands; if it does, why not `MULTI`, if not. Where it does not let the connection be
/// named, that is one of the things that [`inspect`](super::Target::inspect) finds.
async fn check(connection: &mut deadpool_redis::Connection, name: ConnectionName) -> Result<Option<Failure>, Failure> {
    let mut questions = Pipeline::with_capacity(4);
    questions.cmd("PING").cmd("CLIENT").arg("SETNAME").arg(name.to_string()).cmd("MULTI").cmd("EXEC").ignore_errors();
    let replies: Vec<Value> =
        questions.query_async(connection).await.map_err(|error| errors::before_sending(&error))?;
    let [ping, _named, multi, _exec] = replies.as_slice() else {
        return Err(Failure::hold("protocol-error", "the number of replies is not that of the questions"));
    };
    match errors::of_value(ping) {
        // Where PING is not permitted the server has answered all the same.
        Some(failure) if failure.class != FailureClass::Dead => Err(errors::as_hold(failure)),
        _ => Ok(errors::of_value(multi)),
    }
}

/// Sends a batch, and then once more those of its scripts that the server does not know.
///
/// Where `MULTI` is refused the members after it would run all the same, one by one. So they are not sent.
async fn run(
    connection: &mut deadpool_redis::Connection,
    batch: Batch,
    atomic_refused: Option<&Failure>,
    may_send: impl Fn() -> bool,
) -> (Vec<Result<Done, Failure>>, bool) {
    let mut results = vec![Ok(Done::Applied); batch.len()];
    let mut calls = batch.into_calls();
    if let Some(refusal) = atomic_refused
        && calls.has_atomic()
    {
        fail(&calls, refusal, &mut results);
        calls = calls.without_atomic();
        calls.units().for_each(|unit| results[unit] = Ok(Done::Applied));
    }
    if !may_send() {
        fail(&calls, &not_allowed(), &mut results);
        return (results, true);
    }
    let mut in_step = exchange(connection, &calls, &mut results).await;
    let again = calls.unknown_scripts(&results);
    if !again.is_empty() {
        if in_step && !may_send() {
            fail(&again, &not_allowed(), &mut results);
        } else if in_step {
            again.units().for_each(|unit| results[unit] = Ok(Done::Applied));
            in_step = exchange(connection, &again, &mut results).await;
        } else {
            fail(&again, &not_sent(), &mut results);
        }
        again.units().for_each(|unit| no_longer_unknown(&mut results[unit]));
    }
    let reusable = in_step && replies::leave_usable(&results);
    (results, reusable)
}

/// Whether the connection is in step after it.
async fn exchange(
    connection: &mut deadpool_redis::Connection,
    calls: &Calls,
    results: &mut [Result<Done, Failure>],
) -> bool {
    if calls.is_empty() {
        return true;
    }
    let replies: Result<Vec<Value>, _> = calls.pipeline.query_async(connection).await;
    match replies {
        Ok(replies) => replies::read(calls, replies, results),
        Err(error) => {
            fail(calls, &errors::after_sending(&error), results);
            false
        }
    }
}

fn fail(calls: &Calls, failure: &Failure, results: &mut [Result<Done, Failure>]) {
    calls.units().for_each(|unit| results[unit] = Err(failure.clone()));
}

/// On a connection that is out of step a further command might be queued behind an open transaction.
fn not_sent() -> Failure {
    Failure::hold(Failure::NO_CONNECTION, "the connection was given up before the script's source was sent")
}

/// Whoever sends may not send any more.
fn not_allowed() -> Failure {
    Failure::hold(Failure::NO_CONNECTION, "the partition was given up before it was sent")
}

/// The source was sent, so a `NOSCRIPT` now is the script's own error.
fn no_longer_unknown(result: &mut Result<Done, Failure>) {
    if let Err(failure) = result
        && failure.class == FailureClass::Route
    {
        *failure =
            Failure::dead(ReasonClass::ScriptError, Executed::Partly, &failure.code, "the script answered NOSCRIPT");
    }
}
