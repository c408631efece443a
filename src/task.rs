//! What a task is: an operation on Redis, how it is to be treated, and its context. No IO.
//!
//! [`Task::parse`] is the only way from bytes to a task. Admission calls it, and so does the consumer for every record,
//! since anyone may write to the topic: what it lets through is safe to run. A task borrows from the bytes that it was
//! parsed from; only strings with escapes and base64 are copied.

use std::borrow::Cow;

use jiff::Timestamp;

mod defaults;
mod id;
mod identity;
mod lane;
mod late;
mod operation;
mod outcome;
mod parse;
mod refusal;
mod rules;
mod version;
mod wire;

pub use self::{
    defaults::{DefaultRule, Defaults, Pattern},
    id::{TaskId, TaskIdError},
    identity::Identity,
    lane::Lane,
    late::{Late, LateAction},
    operation::{Command, Mode, Operation, Script, TtlArg, Unit, UnitKey, UnitKeys},
    outcome::Outcome,
    parse::MAX_CONTEXT_BYTES,
    refusal::{FieldError, Refusal, RefusalKind},
    rules::{Config, LuaPolicy, MAX_COMMANDS, Rules},
    version::Version,
};

/// What the service knows about its own try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstTry {
    /// It did not run.
    Refused,
    /// It may have run.
    Unknown,
}

/// What is kept and shown with a task, and means nothing to its execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context<'a> {
    pub trace_id: Option<Cow<'a, str>>,
    pub user_uuid: Option<Cow<'a, str>>,
    pub device_id: Option<Cow<'a, str>>,
    pub source: Option<Cow<'a, str>>,
    pub error: Option<Cow<'a, str>>,
}

#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// As the client named it. None: the one who accepts it makes one.
    pub id: Option<TaskId>,
    pub operation: Operation<'a>,
    pub target: Cow<'a, str>,
    pub lane: Option<Lane>,
    /// Further executions after the first.
    pub max_retries: Option<u8>,
    pub ordering_key: Option<Cow<'a, str>>,
    /// The client says that running it twice is harmless.
    pub idempotent: bool,
    pub coalesce: bool,
    pub first_try: FirstTry,
    /// When the service tried.
    pub occurred_at: Option<Timestamp>,
    /// After it the task is not made. It may have passed already.
    pub deadline: Option<Timestamp>,
    /// None: as a rule of the configuration says, else it is made however late it is.
    pub late: Option<Late>,
    /// Only of an operation that is one unit and writes one key.
    pub version: Option<Version>,
    pub context: Context<'a>,
}

impl<'a> Task<'a> {
    /// The target of a task that names none.
    pub const DEFAULT_TARGET: &'static str = "default";

    /// Reads a task from the JSON that a client sent, and checks it against the rules.
    ///
    /// # Errors
    ///
    /// [`RefusalKind::MalformedJson`] when the body is not a JSON object in UTF-8; else all that is wrong with it, each
    /// with a pointer into the body (the first 20 of them). Errors name places, never contents.
    pub fn parse(body: &'a [u8], rules: &Rules, now: Timestamp) -> Result<Self, Refusal> {
        parse::task(body, rules, now, Self::DEFAULT_TARGET)
    }

    /// As [`Task::parse`], for a task that has the given target unless it names another.
    ///
    /// # Errors
    ///
    /// As of [`Task::parse`].
    pub fn parse_for(body: &'a [u8], rules: &Rules, now: Timestamp, target: &str) -> Result<Self, Refusal> {
        parse::task(body, rules, now, target)
    }

    /// What duplicates of this task are recognised by, once it has that id.
    pub fn identity(&self, id: &TaskId) -> Identity {
        Identity::of(id, self)
    }

    /// What chooses the task's partition: the key that it names, else its first key's hash tag, else its first key,
    /// else its id.
    pub fn default_ordering_key<'s>(&'s self, id: &'s TaskId) -> &'s [u8] {
        if let Some(explicit) = &self.ordering_key {
            return explicit.as_bytes();
        }
        self.operation.first_key().map_or(id.as_str().as_bytes(), hash_tag)
    }

    /// Whether a unit of this task must run once only, with a marker.
    pub fn is_once(&self, unit: &Unit<'_>) -> bool {
        unit.class.is_once() && !self.idempotent
    }
}

/// The part of a key that a Cluster hashes: what is between its first `{` and the next `}`, if that is not empty; else
/// the whole key.
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = || {
        let open = key.iter().position(|byte| *byte == b'{')?;
        let behind = &key[open + 1..];
        let close = behind.iter().position(|byte| *byte == b'}')?;
        Some(&behind[..close])
    };
    tag().filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests;
