//! What is sent for a unit, decided at the moment of sending: whether it is still true, with which time to live, and
//! whether it needs a marker or a version.
//!
//! [`super::timing`] says whether it is still true; here that becomes commands. The form is one of three: plain
//! commands, once with a marker, or behind the version fence.

use std::borrow::Cow;

use super::{
    entry::{End, Entry},
    prepared::Prepared,
    timing::{self, Due, Member, Timing},
};
use crate::{
    commands::{self, Expiry},
    faults,
    queue::Envelope,
    target::{Batch, Fence, Marker},
    task::{Command, Mode, Operation, Outcome, Script, Task},
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

impl Form<'_> {
    fn once(envelope: &Envelope, unit: u32) -> Self {
        if faults::planted("no-marker") {
            return Self::Plain;
        }
        Self::Once(Marker { id_hash: envelope.identity.id_hash(), unit, accepted_at: envelope.accepted_at })
    }
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
                let due = Due { base: prepared.meant_ms, deadline: None, late: None };
                match due.command(ttl.at_ms(&args, due.base), moment.now_ms) {
                    Timing::Send(timing::Sending::Expiring(at_ms))
                        if !ttl.absolute && !faults::planted("relative-ttl-as-is") =>
                    {
                        Body::Command(prepared.spec.with_expiry(args.into_iter(), ttl, moment.expiry(at_ms)))
                    }
                    Timing::Send(_) => Body::Stored(prepared, value),
                    Timing::Expired { .. } | Timing::Invalidate | Timing::Drop => {
                        return Self::Settle(Outcome::Expired);
                    }
                }
            }
        };
        let form = if prepared.once { Form::once(&entry.envelope, 0) } else { Form::Plain };
        Self::Send(Sending { outcome: Outcome::Applied, command: prepared.spec.name, form, body })
    }

    /// For one unit of a task that was parsed from its bytes again.
    pub fn of_task(entry: &'p Entry, task: &'p Task<'p>, unit: u32, moment: Moment) -> Self {
        let envelope = &entry.envelope;
        let due = Due::of(task, envelope.accepted_at, envelope.late);
        let has_run = |earlier: usize| {
            let end = entry.units[earlier].end;
            entry.may_have_run || matches!(end, Some(End::Settled(Outcome::Applied) | End::Dying | End::Dead))
        };
        let (outcome, body) = match due.unit(&task.operation, unit as usize, moment.now_ms, has_run) {
            Timing::Drop => return Self::Settle(Outcome::Discarded),
            Timing::Expired { unlink: false } => return Self::Settle(Outcome::Expired),
            Timing::Expired { unlink: true } => (Outcome::Expired, Body::unlink(task, unit)),
            Timing::Invalidate => (Outcome::Invalidated, Body::unlink(task, unit)),
            Timing::Send(sending) => (Outcome::Applied, Some(Body::of(task, unit, &sending, moment))),
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
            None if outcome == Outcome::Applied && task.is_once(&judged) => Form::once(envelope, unit),
            None => Form::Plain,
        };
        Self::Send(Sending { outcome, command: body.name(), form, body })
    }
}

impl Sending<'_> {
    /// Whether a target whose memory is full refuses it: a marker and a version take memory too.
    pub fn needs_memory(&self) -> bool {
        !matches!(self.form, Form::Plain) || self.body.needs_memory()
    }

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
            (Form::Once(marker), Body::Stored(prepared, value)) => {
                batch.push_once(marker, std::iter::once((prepared.spec.name, prepared.args(value))));
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
    /// A unit that is still true, or what is left of it.
    fn of(task: &'p Task<'p>, unit: u32, sending: &timing::Sending, moment: Moment) -> Self {
        let expiry = match sending {
            timing::Sending::Expiring(at_ms) => Some(*at_ms),
            _ => None,
        };
        match &task.operation {
            Operation::Simple(command) => Self::Command(with_expiry(command, expiry, moment)),
            Operation::Pipeline { mode: Mode::Each, commands } => {
                Self::Command(with_expiry(&commands[unit as usize], expiry, moment))
            }
            Operation::Pipeline { mode: Mode::Atomic, commands } => {
                let members = match sending {
                    timing::Sending::Members(members) => members.as_slice(),
                    _ => &[],
                };
                let member = |number: usize| members.get(number).copied().unwrap_or(Member::Plain);
                Self::Atomic(
                    commands
                        .iter()
                        .enumerate()
                        .filter_map(|(number, command)| match member(number) {
                            Member::Plain => Some(with_expiry(command, None, moment)),
                            Member::Expiring(at_ms) => Some(with_expiry(command, Some(at_ms), moment)),
                            Member::Expired => None,
                        })
                        .collect(),
                )
            }
            Operation::Lua(script) => Self::Script {
                source: Cow::Borrowed(script.source.as_bytes()),
                keys: script.keys.iter().map(|key| Cow::Borrowed(&**key)).collect(),
                args: script_args(script, sending),
            },
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

    /// Whether a target whose memory is full refuses it.
    fn needs_memory(&self) -> bool {
        let command_needs = |name: &str| commands::lookup(name.as_bytes()).map_or(true, |spec| spec.needs_memory);
        match self {
            Self::Stored(prepared, _) => prepared.spec.needs_memory,
            Self::Command((name, _)) => command_needs(name),
            Self::Atomic(commands) => commands.iter().any(|(name, _)| command_needs(name)),
            // Nobody knows what is in it.
            Self::Script { .. } => true,
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

/// `expires_ms`: by our clock. What says a time of day itself means the server's clock, and is sent as it stands.
fn with_expiry<'p>(command: &'p Command<'p>, expires_ms: Option<i64>, moment: Moment) -> Sent<'p> {
    let args = command.args.iter().map(|arg| &**arg);
    match (command.ttl(), expires_ms) {
        (Some(ttl), Some(at_ms))
            if (!ttl.absolute || ttl.at_ms(&command.args, 0) != Some(at_ms))
                && !faults::planted("relative-ttl-as-is") =>
        {
            command.spec.with_expiry(args, ttl, moment.expiry(at_ms))
        }
        _ => (command.spec.name, args.map(Cow::Borrowed).collect()),
    }
}

fn script_args<'p>(script: &'p Script<'p>, sending: &timing::Sending) -> Vec<Cow<'p, [u8]>> {
    let mut args: Vec<Cow<'p, [u8]>> = script.args.iter().map(|arg| Cow::Borrowed(&**arg)).collect();
    if let timing::Sending::Args(rests) = sending {
        for (ttl, rest) in script.ttl_args.iter().zip(rests) {
            args[ttl.index] = Cow::Owned(rest.to_string().into_bytes());
        }
    }
    args
}
