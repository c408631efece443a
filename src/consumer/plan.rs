//! What is sent for a unit, decided at the moment of sending: whether it is still true, with which time to live, and
//! whether it needs a marker or a version.
//!
//! [`timing`](super::timing) says whether it is still true; here that becomes commands. The form is one of three: plain
//! commands, once with a marker, or behind the version fence.

use std::borrow::Cow;

use super::{
    entry::Entry,
    prepared::Prepared,
    rows::{FieldChange, FieldType, ReplayKind},
    timing::{self, Age, Member, Timing},
};
use crate::{
    commands::{Expiry, Overwrite},
    faults,
    target::{Batch, Fence, Marker},
    task::{Command, Late, LateAction, Mode, Operation, Outcome, Task, Unit},
};

/// When it is, here and on the target.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By our clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// What the target's clock shows more, in milliseconds.
    pub clock_offset_ms: i64,
    /// Whether the target takes times to live as times of day.
    pub has_absolute_ttl: bool,
}

impl Moment {
    /// How the target is told that something expires at `at_ms` of our clock, which has not passed.
    fn expiry(&self, at_ms: i64) -> Expiry {
        if self.has_absolute_ttl {
            Expiry::At(at_ms.saturating_add(self.clock_offset_ms))
        } else {
            Expiry::In(u64::try_from(at_ms.saturating_sub(self.now_ms)).unwrap_or(0).max(1))
        }
    }
}

/// What becomes of a unit now.
pub enum Plan<'p> {
    /// Nothing is sent: this is its end.
    Settle(Outcome),
    Send(Sending<'p>),
}

/// What is sent.
pub struct Sending<'p> {
    /// How the unit ends when it was done.
    pub outcome: Outcome,
    /// The name by which the unit's command is held where a target refuses it.
    pub command: &'static str,
    form: Form<'p>,
    body: Body<'p>,
}

enum Form<'p> {
    Plain,
    Once(Marker),
    /// And the key that it orders.
    Versioned(Fence<'p>, &'p [u8]),
}

/// A command as it is sent.
type Sent<'p> = (&'static str, Vec<Cow<'p, [u8]>>);

enum Body<'p> {
    /// Its arguments stand in the task's bytes.
    Stored(&'p Prepared, &'p [u8]),
    Command(Sent<'p>),
    Atomic(Vec<Sent<'p>>),
    Script {
        source: Cow<'p, [u8]>,
        keys: Vec<Cow<'p, [u8]>>,
        args: Vec<Cow<'p, [u8]>>,
    },
}

impl<'p> Plan<'p> {
    /// For a task whose bytes are sent as they stand, but for a time to live.
    pub fn of_prepared(entry: &'p Entry, prepared: &'p Prepared, moment: Moment) -> Self {
        let value: &'p [u8] = &entry.envelope.value;
        let body = match prepared.ttl {
            None => Body::Stored(prepared, value),
            Some(ttl) => {
                let args: Vec<&[u8]> = prepared.args(value).collect();
                match ttl.at_ms(&args, prepared.meant_ms) {
                    Some(at_ms) if at_ms <= moment.now_ms => return Self::Settle(Outcome::Expired),
                    Some(at_ms) if !ttl.absolute && !faults::planted("relative-ttl-as-is") => {
                        let args = prepared.args(value);
                        Body::Command(prepared.spec.with_expiry(args, ttl, moment.expiry(at_ms)))
                    }
                    Some(_) | None => Body::Stored(prepared, value),
                }
            }
        };
        Self::Send(Sending { outcome: Outcome::Applied, command: prepared.spec.name, form: Form::Plain, body })
    }

    /// For one unit of a task that was parsed from its bytes again.
    pub fn of_task(entry: &'p Entry, task: &'p Task<'p>, unit: u32, moment: Moment) -> Self {
        let envelope = &entry.envelope;
        let age = Age {
            meant_ms: task.occurred_at.unwrap_or(envelope.accepted_at).as_millisecond(),
            now_ms: moment.now_ms,
            late: task.late.or(envelope.late),
        };
        let (outcome, body) = match timing::judge(task, unit as usize, age) {
            Timing::Drop => return Self::Settle(Outcome::Discarded),
            Timing::Expired { unlink: false } => return Self::Settle(Outcome::Expired),
            Timing::Expired { unlink: true } => (Outcome::Expired, Body::unlink(task, unit)),
            Timing::Invalidate => (Outcome::Invalidated, Body::unlink(task, unit)),
            Timing::Send(members) => (Outcome::Applied, Some(Body::of(task, unit, &members, age, moment))),
        };
        let Some(body) = body else {
            // There is nothing to unlink.
            return Self::Settle(outcome);
        };
        let judged = task.operation.units().nth(unit as usize).expect("the task has as many units as when it was read");
        let form = match task.version {
            Some(version) => {
                let key = judged.keys.iter().find(|key| key.written).expect("a versioned task writes one key");
                Form::Versioned(Fence { version: version.get(), id: envelope.id.as_str() }, key.bytes)
            }
            None if outcome == Outcome::Applied && task.is_once(&judged) && !faults::planted("no-marker") => {
                Form::Once(Marker { id_hash: envelope.identity.id_hash(), unit, accepted_at: envelope.accepted_at })
            }
            None => Form::Plain,
        };
        Self::Send(Sending { outcome, command: body.name(), form, body })
    }
}

impl Sending<'_> {
    /// Puts it into a batch, as one unit.
    pub fn push(&self, batch: &mut Batch) {
        match (&self.form, &self.body) {
            (Form::Plain, Body::Stored(prepared, value)) => {
                batch.push_command(prepared.spec.name, prepared.args(value));
            }
            (Form::Plain, Body::Command((name, args))) => batch.push_command(name, words(args)),
            (Form::Plain, Body::Atomic(commands)) => {
                batch.push_atomic(commands.iter().map(|(name, args)| (*name, words(args))));
            }
            (Form::Plain, Body::Script { source, keys, args }) => batch.push_script(source, words(keys), words(args)),
            (Form::Once(marker), Body::Script { source, keys, args }) => {
                batch.push_once_script(marker, source, words(keys), words(args));
            }
            (Form::Versioned(fence, key), Body::Script { source, keys, args }) => {
                batch.push_versioned_script(fence, key, source, words(keys), words(args));
            }
            (Form::Once(marker), body) => {
                let commands = body.commands();
                batch.push_once(marker, commands.iter().map(|(name, args)| (*name, args.iter().copied())));
            }
            (Form::Versioned(fence, key), body) => {
                let commands = body.commands();
                batch.push_versioned(fence, key, commands.iter().map(|(name, args)| (*name, args.iter().copied())));
            }
        }
    }
}

fn words<'b>(words: &'b [Cow<'_, [u8]>]) -> impl ExactSizeIterator<Item = &'b [u8]> + Clone {
    words.iter().map(|word| &**word)
}

impl<'p> Body<'p> {
    /// What is left of a unit that is still true.
    fn of(task: &'p Task<'p>, unit: u32, members: &[Member], age: Age, moment: Moment) -> Self {
        match &task.operation {
            Operation::Simple(command) => Self::Command(with_expiry(command, members[0].expires_ms, moment)),
            Operation::Pipeline { mode: Mode::Each, commands } => {
                Self::Command(with_expiry(&commands[unit as usize], members[0].expires_ms, moment))
            }
            Operation::Pipeline { mode: Mode::Atomic, commands } => Self::Atomic(
                members
                    .iter()
                    .map(|member| with_expiry(&commands[member.command], member.expires_ms, moment))
                    .collect(),
            ),
            Operation::Lua(script) => {
                let args = script.args_at(age.meant_ms, moment.now_ms).expect("a script that is over is not sent");
                let keys = script.keys.iter().map(|key| Cow::Borrowed(&**key)).collect();
                Self::Script { source: Cow::Borrowed(script.source.as_bytes()), keys, args }
            }
        }
    }

    /// Its commands, of what is no script.
    fn commands(&self) -> Vec<(&'static str, Vec<&[u8]>)> {
        match self {
            Self::Stored(prepared, value) => vec![(prepared.spec.name, prepared.args(value).collect())],
            Self::Command((name, args)) => vec![(*name, words(args).collect())],
            Self::Atomic(commands) => commands.iter().map(|(name, args)| (*name, words(args).collect())).collect(),
            Self::Script { .. } => Vec::new(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Stored(prepared, _) => prepared.spec.name,
            Self::Command((name, _)) => name,
            Self::Atomic(_) => "MULTI",
            Self::Script { .. } => "EVAL",
        }
    }

    /// Takes away what the unit would have written.
    fn unlink(task: &'p Task<'p>, unit: u32) -> Option<Self> {
        let judged = task.operation.units().nth(unit as usize)?;
        let keys: Vec<_> = judged.keys.iter().filter(|key| key.written).map(|key| Cow::Borrowed(key.bytes)).collect();
        (!keys.is_empty()).then_some(Self::Command(("UNLINK", keys)))
    }
}

fn with_expiry<'p>(command: &'p Command<'p>, expires_ms: Option<i64>, moment: Moment) -> Sent<'p> {
    let args = command.args.iter().map(|arg| &**arg);
    match (command.ttl(), expires_ms) {
        (Some(ttl), Some(at_ms)) if !ttl.absolute && !faults::planted("relative-ttl-as-is") => {
            command.spec.with_expiry(args, ttl, moment.expiry(at_ms))
        }
        _ => (command.spec.name, args.map(Cow::Borrowed).collect()),
    }
}

/// What another run of a unit does, after a crash.
pub fn replay_kind(task: &Task<'_>, late: Option<Late>, place: usize, unit: &Unit<'_>) -> ReplayKind {
    if task.version.is_some() || task.is_once(unit) {
        return ReplayKind::Once;
    }
    // Another run may find that it is too late for it.
    if task.deadline.is_some() || late.is_some_and(|late| late.action != LateAction::Replay) {
        return ReplayKind::Other;
    }
    match &task.operation {
        Operation::Simple(command) => kind_of(command),
        Operation::Pipeline { mode: Mode::Each, commands } => kind_of(&commands[place]),
        Operation::Pipeline { mode: Mode::Atomic, commands } => {
            let mut kinds = commands.iter().map(kind_of);
            let first = kinds.next().unwrap_or(ReplayKind::Other);
            if kinds.all(|kind| kind == first) { first } else { ReplayKind::Other }
        }
        Operation::Lua(_) => ReplayKind::Other,
    }
}

fn kind_of(command: &Command<'_>) -> ReplayKind {
    let change = match command.spec.name {
        "HDEL" | "SREM" | "ZREM" => FieldChange::Remove,
        _ => FieldChange::Add,
    };
    match command.replay_kind() {
        Overwrite::Whole => ReplayKind::Overwrite,
        Overwrite::Field => ReplayKind::Fields(FieldType::Hash, change),
        Overwrite::Member => ReplayKind::Fields(FieldType::Set, change),
        Overwrite::ScoredMember => ReplayKind::Fields(FieldType::SortedSet, change),
        Overwrite::None => ReplayKind::Other,
    }
}
