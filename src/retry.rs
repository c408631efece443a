//! What to do about an execution that failed: what kind of failure it was ([`classify`]) and what happens now
//! ([`decide`]).
//!
//! Everything here is pure: values, a clock's reading and a source of random numbers go in, a value comes out. Nothing
//! here does IO or names a client library, so the consumer, the dead letters and the tests can all ask the same
//! questions.
//!
//! The invariant: only [`FailureClass::Backoff`] spends an attempt. An outage is a hold, and a hold costs nothing.

use std::time::Duration;

pub mod backoff;
mod message;
mod table;

/// What a failure says about what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The target cannot take writes now, whoever asks. Waiting spends nothing.
    Hold,
    /// Sent, and no answer: it may have run.
    Ambiguous,
    /// The target named another way to the same end (a node, a script's source). Spends nothing.
    Route,
    /// Trying again may help. Spends an attempt.
    Backoff,
    /// Trying again cannot help.
    Dead,
}

impl FailureClass {
    pub const ALL: [Self; 5] = [Self::Hold, Self::Ambiguous, Self::Route, Self::Backoff, Self::Dead];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Ambiguous => "ambiguous",
            Self::Route => "route",
            Self::Backoff => "backoff",
            Self::Dead => "dead",
        }
    }
}

/// Whether a failed unit had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Executed {
    /// It is proven that it had none.
    No,
    /// Nobody knows.
    Maybe,
    /// Some of it happened, and Redis does not roll back.
    Partly,
}

/// Why a task is in the dead letters, or would be if nothing else could be done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReasonClass {
    /// The key holds a value of another type.
    WrongType,
    /// The arguments are wrong whatever is stored.
    BadArgument,
    /// What is stored does not allow the operation: not a number, no such key, an entry that is newer.
    WrongState,
    /// The target's user may not do this.
    NoPermission,
    /// The target does not know the command.
    UnknownCommand,
    /// Its keys lie in several slots of a Cluster.
    CrossSlot,
    /// The script failed, possibly midway.
    ScriptError,
    /// Some members of an atomic pipeline ran and others failed.
    Partial,
    /// Every attempt that the task had was used up.
    RetriesExhausted,
    /// Whether it ran stayed unknown each time, on a target that was well.
    Ambiguous,
    /// The target could not be used. A target that is down dead-letters nothing: this is shown, not acted upon.
    Unavailable,
    /// The stored record is not a task that could be executed.
    RefusedRecord,
}

impl ReasonClass {
    pub const ALL: [Self; 12] = [
        Self::WrongType,
        Self::BadArgument,
        Self::WrongState,
        Self::NoPermission,
        Self::UnknownCommand,
        Self::CrossSlot,
        Self::ScriptError,
        Self::Partial,
        Self::RetriesExhausted,
        Self::Ambiguous,
        Self::Unavailable,
        Self::RefusedRecord,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongType => "wrong-type",
            Self::BadArgument => "bad-argument",
            Self::WrongState => "wrong-state",
            Self::NoPermission => "no-permission",
            Self::UnknownCommand => "unknown-command",
            Self::CrossSlot => "cross-slot",
            Self::ScriptError => "script-error",
            Self::Partial => "partial",
            Self::RetriesExhausted => "retries-exhausted",
            Self::Ambiguous => "ambiguous",
            Self::Unavailable => "unavailable",
            Self::RefusedRecord => "refused-record",
        }
    }
}

/// One failed execution of one unit, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub class: FailureClass,
    /// The server's error code (`WRONGTYPE`), or a short word of ours where there was no reply (`timeout`).
    pub code: Box<str>,
    /// What a person needs to know; at most [`Failure::MAX_MESSAGE`] bytes, control characters escaped, and nothing
    /// in it that may come from the task's arguments.
    pub message: Box<str>,
    pub executed: Executed,
    pub reason: ReasonClass,
}

impl Failure {
    /// Bytes of the longest message.
    pub const MAX_MESSAGE: usize = 256;
    /// The code of a response timeout, which alone says little about a target.
    pub const TIMEOUT: &'static str = "timeout";
    /// The code of a connection that ended before the answer came.
    pub const CONNECTION_LOST: &'static str = "connection-lost";
    /// The code of a server whose memory is full: it refuses what needs more, and takes what frees some.
    pub const OUT_OF_MEMORY: &'static str = "OOM";
    /// The code where Redrive itself had no connection left to use, which says nothing about a target.
    pub const NO_CONNECTION: &'static str = "no-connection";

    /// The target cannot be used, and nothing was sent to it or everything was refused.
    pub fn hold(code: &str, message: &str) -> Self {
        Self {
            class: FailureClass::Hold,
            code: code.into(),
            message: message::tidy(message),
            executed: Executed::No,
            reason: ReasonClass::Unavailable,
        }
    }

    /// Something was sent and nothing certain came back.
    pub fn ambiguous(code: &str, message: &str) -> Self {
        Self {
            class: FailureClass::Ambiguous,
            code: code.into(),
            message: message::tidy(message),
            executed: Executed::Maybe,
            reason: ReasonClass::Ambiguous,
        }
    }

    /// Trying again cannot help.
    pub fn dead(reason: ReasonClass, executed: Executed, code: &str, message: &str) -> Self {
        Self { class: FailureClass::Dead, code: code.into(), message: message::tidy(message), executed, reason }
    }
}

/// What answered with an error. A script's own text may say anything, so it is judged by other rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Command,
    /// A script, or what refused it.
    Script,
    /// A script that certainly ran, and what it did before stays.
    InsideScript,
}

/// What [`classify`] must know beside the error itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub origin: Origin,
    /// What the unit was sent with: an error that is in no table may echo it, and must not pass it on.
    pub arguments: &'a [&'a [u8]],
}

/// Judges a server's error by its code, and by its text where one code says several things.
///
/// The table is searched from the top; the first row that fits decides. It is in four parts, in this order: the state
/// of the target, what only scripts say, what is wrong with the unit, and last the row that fits everything.
pub fn classify(code: &str, message: &str, context: Context<'_>) -> Failure {
    let text = message::without_quotes(message);
    let row = table::find(code, &text, context.origin);
    let message = match row.text {
        table::Text::Keep => text,
        table::Text::Omit => message::with_script_line(row.says, &text),
        table::Text::Scrub => message::scrubbed(&text, context.arguments),
    };
    let code = if table::knows(code) { code } else { message::foreign_code(code, context) };
    Failure {
        class: row.class,
        code: code.into(),
        message: message::tidy(&message),
        executed: row.executed,
        reason: row.reason,
    }
}

/// How often and after which pauses a unit is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Retries after the first execution.
    pub max_retries: u8,
    /// The first retry waits at most this long, each further one at most twice as long.
    pub base: Duration,
    /// No retry waits longer than this.
    pub cap: Duration,
}

/// What happened to a unit so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Retries spent, not counting the first execution: the `attempt` of the last [`Verdict::Retry`], or 0.
    pub attempts: u32,
    /// Ambiguous results in a row while on trial: the `strikes` of the last [`Verdict::Suspect`]. Goes back to 0 when
    /// the target gave the unit any answer; a hold before it was sent is no answer.
    pub strikes: u32,
    /// Whether the execution that just failed was on trial: alone on its connection, on a target whose canary write
    /// had succeeded just before.
    pub on_trial: bool,
}

/// What happens to a unit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after the pause. `attempt` counts from 1 and is what the history must remember.
    Retry { after: Duration, attempt: u32 },
    /// Try again as soon as the target can be used. Nothing was spent.
    Hold,
    /// Try again another way at once: what the target named is known now. Nothing was spent.
    Route,
    /// Try again alone after the pause. Nothing was spent.
    Suspect { after: Duration, strikes: u32 },
    /// A person must look at it.
    Dead { reason: ReasonClass },
}

/// Ambiguous results in a row, each on trial, after which a unit is dead: a task that takes the server down every
/// time must end somewhere.
pub const MAX_STRIKES: u32 = 5;

/// What to do about `failure`, given what happened before it.
pub fn decide(policy: &Policy, history: History, failure: &Failure, rng: &mut fastrand::Rng) -> Verdict {
    match failure.class {
        FailureClass::Hold => Verdict::Hold,
        FailureClass::Route => Verdict::Route,
        FailureClass::Dead => Verdict::Dead { reason: failure.reason },
        FailureClass::Backoff if history.attempts >= u32::from(policy.max_retries) => {
            Verdict::Dead { reason: ReasonClass::RetriesExhausted }
        }
        FailureClass::Backoff => Verdict::Retry {
            after: backoff::full_jitter(policy.base, policy.cap, history.attempts, rng),
            attempt: history.attempts + 1,
        },
        FailureClass::Ambiguous => {
            let strikes = history.strikes + u32::from(history.on_trial);
            if strikes >= MAX_STRIKES {
                return Verdict::Dead { reason: ReasonClass::Ambiguous };
            }
            Verdict::Suspect { after: backoff::full_jitter(policy.base, policy.cap, strikes, rng), strikes }
        }
    }
}

#[cfg(test)]
mod tests;
