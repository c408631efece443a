//! What becomes of a unit at the time at which it is sent: it may be too late for it.
//!
//! Pure: the time is passed in. All times are milliseconds since 1970 by this machine's clock; whoever sends an expiry
//! adds what the server's is ahead. In this order:
//!
//! 1. After the task's deadline a unit is expired.
//! 2. So is one that sets a TTL which has passed: what it writes would be gone. A relative TTL counts from when the
//!    service tried ([`Due`]).
//! 3. A unit that is later than the task's `late` allows is dropped, or its keys are invalidated.
//!
//! In a pipeline a TTL that has passed takes the other writes to its key with it. The history of each key is cut into
//! *segments*, each begun by an overwrite of the whole key; the last command of a segment that decides about the TTL
//! decides for all of it. A segment is over when its TTL has passed, and when the next one is: then what it wrote was
//! overwritten by what has expired. A unit that writes to segments only that are over is expired:
//!
//! ```text
//!   SET k v ──── EXPIRE k 60 ──▶ PERSIST k ┊ SET k w ──── EXPIRE k 9
//!   └──────── lives: the last says so ────┘┊└─ over, so the one before ─┘
//! ```
//!
//! One that writes to another key as well is sent. Then so is a command that sets the TTL, though it has passed: it removes
//! what was just written. The same holds for what was sent before the TTL passed. The TTL of fields concerns these fields
//! only: a command that sets one which has passed is expired by itself, unless the pipeline has written the fields.
//!
//! What cannot be told from the arguments of a pipeline is taken as the usual case: that a key is there when its TTL is
//! set, that `NX` and the like hold, that HSETEX says the last TTL, that removing fields does not empty a key, and that
//! no command reads what another one has written. A TTL that is set only where something is there (`XX`, `GT`, a
//! comparison) decides only where the pipeline itself has said what is there; of several such on a key whose TTL only
//! the server knows, each is set as it was meant while it has not passed.

use std::time::Duration;

use hashbrown::HashMap;
use jiff::Timestamp;

use crate::{
    commands::{self, Class, Overwrite, TtlEffect, TtlUnit},
    task::{Command, Late, LateAction, Mode, Operation, Script, Task, TtlArg},
};

/// Longer than anything is kept, in milliseconds: 100 years.
const FOR_EVER: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// When a task is due: all that a judgement needs to know of it beside its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// When the service tried: what relative TTLs and its age are counted from.
    pub base: i64,
    pub deadline: Option<i64>,
    pub late: Option<Late>,
}

/// What becomes of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timing {
    Send(Sending),
    /// It is settled as expired. `unlink`: after the keys that it writes were unlinked, so that no older value survives.
    Expired {
        unlink: bool,
    },
    /// The keys that it writes are unlinked in its place.
    Invalidate,
    Drop,
}

/// How a unit is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sending {
    /// As it stands.
    Plain,
    /// A command with this expiry in place of its TTL. It may have passed, and then removes at once.
    Expiring(i64),
    /// A transaction of these of its commands, at least one.
    Members(Vec<Member>),
    /// A script with these numbers in place of its arguments that are TTLs, in their order and units.
    Args(Vec<i64>),
}

/// A command of an atomic pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    Plain,
    Expiring(i64),
    /// It is expired, and left out.
    Expired,
}

impl Due {
    /// `accepted_at` stands for when the service tried where the task does not say it; `by_rule` is what the
    /// configuration says of tasks that say nothing of being late.
    pub fn of(task: &Task<'_>, accepted_at: Timestamp, by_rule: Option<Late>) -> Self {
        Self {
            base: task.occurred_at.unwrap_or(accepted_at).as_millisecond(),
            deadline: task.deadline.map(Timestamp::as_millisecond),
            late: task.late.or(by_rule),
        }
    }

    /// Whether a unit may be sent now and not later, whatever it does: the deadline passes, or it gets late.
    pub fn changes(&self) -> bool {
        self.deadline.is_some() || self.late_action() != LateAction::Replay
    }

    /// Whether a unit's keys may be unlinked in its place.
    pub fn may_invalidate(&self) -> bool {
        self.late_action() == LateAction::Invalidate
    }

    /// A simple command; `expires_at` is when its TTL ends, if it sets one.
    pub fn command(&self, expires_at: Option<i64>, now: i64) -> Timing {
        self.judge(now, || match expires_at {
            Some(at) if at <= now => None,
            Some(at) => Some(Sending::Expiring(at)),
            None => Some(Sending::Plain),
        })
    }

    /// The unit of that number. `has_run` says of earlier units of the same pipeline whether they were sent, even if it
    /// is not known what became of it; those that share a key with this one are done.
    pub fn unit(&self, operation: &Operation<'_>, unit: usize, now: i64, has_run: impl Fn(usize) -> bool) -> Timing {
        match operation {
            Operation::Simple(command) => self.command(self.expires_at(command), now),
            Operation::Lua(script) => self.judge(now, || self.script(script, now)),
            Operation::Pipeline { mode: Mode::Each, commands } => {
                self.judge(now, || self.one_of(commands, unit, now, has_run))
            }
            Operation::Pipeline { mode: Mode::Atomic, commands } => self.judge(now, || self.all_of(commands, now)),
        }
    }

    /// Whether nothing may be done in a unit's place, so that what is there is to stay.
    pub fn may_drop(&self) -> bool {
        self.late_action() == LateAction::Drop
    }

    fn age(&self, now: i64) -> Duration {
        // A service's clock may be ahead of ours.
        Duration::from_millis(u64::try_from(now.saturating_sub(self.base)).unwrap_or(0))
    }

    fn late_action(&self) -> LateAction {
        self.late.map_or(LateAction::Replay, |late| late.action)
    }

    /// `sending` says how the unit is sent; none where its TTL has passed.
    fn judge(&self, now: i64, sending: impl FnOnce() -> Option<Sending>) -> Timing {
        let sending = if self.deadline.is_some_and(|deadline| now > deadline) { None } else { sending() };
        let Some(sending) = sending else {
            return Timing::Expired { unlink: self.may_invalidate() };
        };
        match self.late {
            Some(Late { after, action }) if self.age(now) >= after => match action {
                LateAction::Replay => Timing::Send(sending),
                LateAction::Invalidate => Timing::Invalidate,
                LateAction::Drop => Timing::Drop,
            },
            _ => Timing::Send(sending),
        }
    }

    fn expires_at(&self, command: &Command<'_>) -> Option<i64> {
        command.ttl()?.at_ms(&command.args, self.base)
    }

    fn script(&self, script: &Script<'_>, now: i64) -> Option<Sending> {
        if script.ttl_args.is_empty() {
            return Some(Sending::Plain);
        }
        script.ttl_args.iter().map(|arg| self.rest(*arg, script, now)).collect::<Option<_>>().map(Sending::Args)
    }

    /// What remains of an argument that is a TTL, at least 1 of its unit. None: nothing.
    fn rest(&self, arg: TtlArg, script: &Script<'_>, now: i64) -> Option<i64> {
        let amount = commands::integer(&script.args[arg.index]).expect("it was checked when the task was read");
        // One that is too large for a time never passes.
        let Some(at) = arg.unit.after(amount, self.base) else { return Some(amount) };
        let rest = at.saturating_sub(now);
        let rest = match arg.unit {
            TtlUnit::Seconds => rest.saturating_add(999) / 1000,
            TtlUnit::Millis => rest,
        };
        (rest > 0).then_some(rest)
    }

    fn one_of(
        &self,
        commands: &[Command<'_>],
        unit: usize,
        now: i64,
        has_run: impl Fn(usize) -> bool,
    ) -> Option<Sending> {
        if !sets_ttl(commands) {
            return Some(Sending::Plain);
        }
        let mut history = History::of(commands, self, now);
        (0..unit).filter(|earlier| has_run(*earlier)).for_each(|earlier| history.note_sent(earlier, true));
        match history.judge(unit) {
            Member::Plain => Some(Sending::Plain),
            Member::Expiring(at) => Some(Sending::Expiring(at)),
            Member::Expired => None,
        }
    }

    fn all_of(&self, commands: &[Command<'_>], now: i64) -> Option<Sending> {
        if !sets_ttl(commands) {
            return Some(Sending::Plain);
        }
        let mut history = History::of(commands, self, now);
        let judge = |number| {
            let member = history.judge(number);
            if member != Member::Expired {
                // What is sent though all is over removes, if nothing keeps it from that.
                let writes = !history.is_over(number) || commands[number].class() == Class::Conditional;
                history.note_sent(number, writes);
            }
            member
        };
        let members: Vec<_> = (0..commands.len()).map(judge).collect();
        members.iter().any(|member| *member != Member::Expired).then_some(Sending::Members(members))
    }
}

fn removes(command: &Command<'_>) -> bool {
    matches!(command.spec.name, "DEL" | "UNLINK")
}

fn sets_ttl(commands: &[Command<'_>]) -> bool {
    commands.iter().any(|command| command.ttl().is_some())
}

/// What the commands of a pipeline do to the TTLs of keys.
struct History<'p, 'a> {
    commands: &'p [Command<'a>],
    now: i64,
    /// When the TTL of each command ends, if it sets one.
    expires_at: Vec<Option<i64>>,
    /// Those of a key in their order, each with a higher number than the one before.
    segments: Vec<Segment>,
    /// Command and segment, for each key that a command writes, in the order of the commands.
    writes: Vec<(usize, usize)>,
    /// By key: something that this pipeline wrote may be there.
    is_there: Vec<bool>,
    /// By command: it was sent, or is going to be.
    sent: Vec<bool>,
}

/// What happens to a key from one overwrite to the next.
struct Segment {
    key: usize,
    ttl: Ttl,
    /// Whether that is so whatever was there before: no option (`NX`, `GT`, ...) asked for it, and nothing can be refused.
    is_certain: bool,
    /// It begins with a text, so that what wants one is not refused.
    is_text: bool,
    /// The TTL is so even if nothing was there before the pipeline.
    is_sure: bool,
    /// The command that said so last.
    decider: Option<usize>,
    next: Option<usize>,
    is_over: bool,
}

/// What is known of the TTL that a key has at the end of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ttl {
    /// That of what was there before.
    Unknown,
    Never,
    At(i64),
}

impl<'p, 'a> History<'p, 'a> {
    fn of(commands: &'p [Command<'a>], due: &Due, now: i64) -> Self {
        let mut history = Self {
            commands,
            now,
            expires_at: commands.iter().map(|command| due.expires_at(command)).collect(),
            segments: Vec::new(),
            writes: Vec::new(),
            is_there: Vec::new(),
            sent: vec![false; commands.len()],
        };
        // The last segment of each key.
        let mut lasts: HashMap<&[u8], usize> = HashMap::new();
        for (number, command) in commands.iter().enumerate() {
            for key in command.keys().filter(|key| key.written) {
                let last = lasts.get(key.bytes).copied();
                let segment = match last {
                    Some(last) if command.overwrite() != Overwrite::Whole => last,
                    _ => history.begin(last),
                };
                lasts.insert(key.bytes, segment);
                history.writes.push((number, segment));
                history.segments[segment].take(number, command, history.expires_at[number]);
            }
        }
        for number in (0..history.segments.len()).rev() {
            let Segment { ttl, next, .. } = history.segments[number];
            let has_passed = matches!(ttl, Ttl::At(at) if at <= now);
            history.segments[number].is_over = has_passed || next.is_some_and(|next| history.segments[next].is_over);
        }
        history
    }

    /// Begins a segment of the same key as `last`, or of a new one.
    fn begin(&mut self, last: Option<usize>) -> usize {
        let number = self.segments.len();
        let key = match last {
            Some(last) => {
                self.segments[last].next = Some(number);
                self.segments[last].key
            }
            None => {
                self.is_there.push(false);
                self.is_there.len() - 1
            }
        };
        self.segments.push(Segment {
            key,
            ttl: Ttl::Unknown,
            is_certain: true,
            is_text: false,
            is_sure: false,
            decider: None,
            next: None,
            is_over: false,
        });
        number
    }

    /// What becomes of a command, after all that was sent before it was noted.
    fn judge(&self, number: usize) -> Member {
        if self.is_over(number) { self.judge_over(number) } else { self.judge_alive(number) }
    }

    /// A command is sent, or was. `writes`: what it writes to may be there afterwards.
    fn note_sent(&mut self, number: usize, writes: bool) {
        self.sent[number] = true;
        for place in self.writes_of(number) {
            let key = self.segments[self.writes[place].1].key;
            self.is_there[key] = writes && !removes(&self.commands[number]);
        }
    }

    /// Whether a command writes to segments only that are over. One that writes nothing (BITFIELD GET) does not.
    fn is_over(&self, number: usize) -> bool {
        !self.writes_of(number).is_empty() && self.segments_of(number).all(|segment| segment.is_over)
    }

    /// Of a command that writes to segments only that are over: it is sent if it removes something with it.
    fn judge_over(&self, number: usize) -> Member {
        let command = &self.commands[number];
        let sets = matches!(command.ttl_effect(), TtlEffect::Sets(_)) && self.expires_at[number].is_some();
        let sent = self.segments_of(number).find_map(|segment| match segment.ttl {
            Ttl::At(at) if at <= self.now && self.is_there[segment.key] => {
                if removes(command) {
                    Some(Member::Plain)
                } else {
                    (sets || segment.decider == Some(number)).then_some(Member::Expiring(at))
                }
            }
            _ => None,
        });
        sent.unwrap_or(Member::Expired)
    }

    fn judge_alive(&self, number: usize) -> Member {
        let command = &self.commands[number];
        let Some(own) = self.expires_at[number] else { return Member::Plain };
        let (at, removes) = match command.ttl_effect() {
            TtlEffect::Fields(_) => (own, self.wrote_fields_of(number)),
            // It is set as it was meant, since which one stands at last only the server can tell.
            _ if own > self.now && self.segments_of(number).any(|segment| !segment.is_certain) => (own, false),
            // What comes later decides: with its own TTL the key could be gone by then.
            _ => {
                let alive = self.segments_of(number).filter(|segment| !segment.is_over);
                let decided = alive.filter_map(|segment| match segment.ttl {
                    Ttl::Unknown => None,
                    Ttl::Never => Some(self.now.saturating_add(FOR_EVER)),
                    Ttl::At(at) => Some(at),
                });
                (decided.max().unwrap_or(own), false)
            }
        };
        if at > self.now || removes { Member::Expiring(at) } else { Member::Expired }
    }

    /// Whether fields whose TTL this command sets are there because the pipeline wrote them, and no later command says
    /// anything of their TTL.
    fn wrote_fields_of(&self, number: usize) -> bool {
        let command = &self.commands[number];
        let of_field = |other: &Command<'_>, field: &[u8]| {
            other.args[0] == command.args[0] && fields(other).any(|found| found == field)
        };
        fields(command).all(|field| {
            let mut earlier = self.commands[..number].iter().zip(&self.sent);
            let mut later = self.commands[number + 1..].iter();
            earlier.any(|(other, sent)| *sent && of_field(other, field))
                && !later.any(|other| sets_field_ttl(other) && of_field(other, field))
        })
    }

    /// What a command writes to.
    fn segments_of(&self, number: usize) -> impl Iterator<Item = &Segment> {
        self.writes[self.writes_of(number)].iter().map(|(_, segment)| &self.segments[*segment])
    }

    /// The places in `writes` of what a command writes.
    fn writes_of(&self, number: usize) -> std::ops::Range<usize> {
        let start = self.writes.partition_point(|(command, _)| *command < number);
        let len = self.writes[start..].iter().take_while(|(command, _)| *command == number).count();
        start..start + len
    }
}

impl Segment {
    fn take(&mut self, number: usize, command: &Command<'_>, expires_at: Option<i64>) {
        let ttl = match (command.ttl_effect(), expires_at) {
            (TtlEffect::Sets(_) | TtlEffect::SetsIf(_), Some(at)) => self.ttl.set(command, at),
            (TtlEffect::Clears, _) => Some(Ttl::Never),
            (TtlEffect::None, _) if command.overwrite() == Overwrite::Whole => Some(Ttl::Never),
            _ => None,
        };
        let asks = is_conditional(command) && expires_at.is_some();
        if asks || ttl.is_some() {
            let is_known = !asks || (self.is_certain && self.is_sure);
            self.is_text = match command.spec.name {
                "SET" | "SETEX" | "PSETEX" | "MSET" => true,
                // What it leaves is another value, or none.
                name => self.is_text && (command.ttl_effect() != TtlEffect::Clears || name == "PERSIST"),
            };
            let finds_text = self.is_text && command.spec.name == "GETEX";
            self.is_certain = is_known && (finds_text || is_never_refused(command));
        }
        if let Some(ttl) = ttl {
            self.ttl = ttl;
            // One that is set where nothing is sets nothing.
            self.is_sure = self.is_text || ttl == Ttl::Never;
            self.decider = Some(number);
        }
    }
}

/// Whether a command that sets a TTL asks for what is there first.
fn is_conditional(command: &Command<'_>) -> bool {
    matches!(command.ttl_effect(), TtlEffect::SetsIf(_))
        || ["NX", "XX", "GT", "LT"].iter().any(|word| has_option(command, word))
}

/// Whether a command that decides about a TTL does so whatever the key holds.
fn is_never_refused(command: &Command<'_>) -> bool {
    matches!(
        command.spec.name,
        "SET"
            | "SETEX"
            | "PSETEX"
            | "MSET"
            | "DEL"
            | "UNLINK"
            | "PERSIST"
            | "EXPIRE"
            | "PEXPIRE"
            | "EXPIREAT"
            | "PEXPIREAT"
    )
}

fn has_option(command: &Command<'_>, word: &str) -> bool {
    command.args.iter().skip(2).any(|arg| arg.eq_ignore_ascii_case(word.as_bytes()))
}

impl Ttl {
    /// What a command makes of it that sets a TTL. None: nothing.
    fn set(self, command: &Command<'_>, at: i64) -> Option<Self> {
        let has = |word| has_option(command, word);
        let asks_for_a_ttl = command.spec.name.contains("EXPIRE");
        let applies = match (self, command.ttl_effect()) {
            (Self::At(old), _) => !(has("NX") || (has("LT") && at >= old) || (has("GT") && at <= old)),
            (Self::Never, TtlEffect::SetsIf(_)) => !asks_for_a_ttl,
            (Self::Unknown, TtlEffect::SetsIf(_)) => false,
            (Self::Never | Self::Unknown, _) => true,
        };
        applies.then_some(Self::At(at))
    }
}

/// The fields of a hash that a command names, as far as it writes them or sets their TTL.
fn fields<'c>(command: &'c Command<'_>) -> impl Iterator<Item = &'c [u8]> {
    let args = &command.args;
    // `... FIELDS count field ...`
    let behind_count =
        || args.iter().position(|arg| arg.eq_ignore_ascii_case(b"FIELDS")).map_or(args.len(), |at| at + 2);
    let (from, step) = match command.spec.name {
        "HSET" | "HMSET" => (1, 2),
        "HSETNX" | "HINCRBY" | "HINCRBYFLOAT" => (1, usize::MAX),
        "HSETEX" => (behind_count(), 2),
        _ if sets_field_ttl(command) => (behind_count(), 1),
        _ => (args.len(), 1),
    };
    args.iter().skip(from).step_by(step).map(AsRef::as_ref)
}

fn sets_field_ttl(command: &Command<'_>) -> bool {
    matches!(command.ttl_effect(), TtlEffect::Fields(_)) || command.spec.name == "HPERSIST"
}

#[cfg(test)]
mod tests;
