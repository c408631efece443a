//! Whether a unit is still true at the moment of sending. Pure.
//!
//! Three things end it: its task is late, the task's deadline has passed, or what it writes has expired. The last is
//! not a matter of single commands: `SET` and `EXPIRE` in one pipeline mean a `SETEX`, so what a pipeline does to a key
//! is looked at as a whole. Its commands on the key are cut into *segments*: a whole overwrite begins a new one, since
//! nothing before it matters after it. In a segment the last command that sets or clears the key's TTL decides. Where
//! that time has passed, the segment has left nothing in Redis, and none of it is sent.
//!
//! A command on several keys may belong to a segment that is over and to one that is not. Then it is sent, and so is all
//! that it builds on: the segment that is over is *revived*, with a TTL that leaves the pipeline a moment.

use std::collections::HashMap;

use crate::{
    commands::{Overwrite, TtlEffect},
    task::{Command, Late, LateAction, Mode, Operation, Task},
};

/// How long a value lives that is made only for commands behind it in the pipeline, where these set another time.
const FOR_LATER_COMMANDS_MS: i64 = 30 * 24 * 3600 * 1000;

/// How long a value lives that is made only for commands behind it in the pipeline, and has expired.
const FOR_THE_MOMENT_MS: i64 = 1000;

/// How old a task is. Milliseconds since 1970, by the clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// When the service meant it.
    pub meant_ms: i64,
    pub now_ms: i64,
    pub late: Option<Late>,
}

/// What becomes of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timing {
    /// It is sent: these of its commands, in their order. A script has one entry.
    Send(Vec<Member>),
    /// It is over. `unlink`: the keys that it writes are unlinked, so that no older value stays.
    Expired { unlink: bool },
    /// It is late: the keys that it writes are unlinked instead.
    Invalidate,
    /// It is late, and nothing is done.
    Drop,
}

/// A command that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its place among the operation's commands.
    pub command: usize,
    /// When what it writes expires, in milliseconds since 1970 by the clock of this machine. None: it says so itself,
    /// or not at all.
    pub expires_ms: Option<i64>,
}

/// Judges one unit of a task.
pub fn judge(task: &Task<'_>, unit: usize, age: Age) -> Timing {
    if let Some(late) = age.late
        && i128::from(age.now_ms) - i128::from(age.meant_ms) >= late.after.as_millis().cast_signed()
    {
        match late.action {
            LateAction::Replay => {}
            LateAction::Invalidate => return Timing::Invalidate,
            LateAction::Drop => return Timing::Drop,
        }
    }
    let expired = Timing::Expired { unlink: age.late.is_some_and(|late| late.action == LateAction::Invalidate) };
    if task.deadline.is_some_and(|deadline| deadline.as_millisecond() <= age.now_ms) {
        return expired;
    }
    let members = match &task.operation {
        Operation::Simple(command) => Pipeline::of(std::slice::from_ref(command), age).members(),
        Operation::Pipeline { mode: Mode::Atomic, commands } => Pipeline::of(commands, age).members(),
        Operation::Pipeline { mode: Mode::Each, commands } => {
            let mut members = Pipeline::of(commands, age).members();
            members.retain(|member| member.command == unit);
            members
        }
        Operation::Lua(script) => match script.expires_at_ms(age.meant_ms).is_some_and(|end| end <= age.now_ms) {
            true => Vec::new(),
            false => vec![Member { command: 0, expires_ms: None }],
        },
    };
    if members.is_empty() { expired } else { Timing::Send(members) }
}

/// A pipeline's commands, and when what they write expires.
struct Pipeline<'t> {
    commands: &'t [Command<'t>],
    /// When what each of them writes expires, if it says.
    ends: Vec<Option<i64>>,
    now_ms: i64,
}

/// What a pipeline does to one key, from a whole overwrite to the next.
#[derive(Default)]
struct Segment {
    commands: Vec<usize>,
    /// The command that decides when the key expires, and when that is. None: it does not.
    decision: Option<(usize, i64)>,
    revived: bool,
}

impl<'t> Pipeline<'t> {
    fn of(commands: &'t [Command<'t>], age: Age) -> Self {
        let end = |command: &Command<'_>| command.ttl()?.at_ms(&command.args, age.meant_ms);
        Self { commands, ends: commands.iter().map(end).collect(), now_ms: age.now_ms }
    }

    fn has_passed(&self, end_ms: i64) -> bool {
        end_ms <= self.now_ms
    }

    /// What of it is sent.
    fn members(&self) -> Vec<Member> {
        if !self.ends.iter().flatten().any(|end| self.has_passed(*end)) {
            let ends = self.ends.iter().enumerate();
            return ends.map(|(command, expires_ms)| Member { command, expires_ms: *expires_ms }).collect();
        }
        let mut segments = self.segments();
        self.revive(&mut segments);
        let members = (0..self.commands.len()).filter_map(|command| self.member(command, &segments));
        members.collect()
    }

    /// Those of all keys.
    fn segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut last: HashMap<&[u8], usize> = HashMap::new();
        for (index, command) in self.commands.iter().enumerate() {
            for key in command.keys().filter(|key| key.written) {
                let begins = command.overwrite() == Overwrite::Whole || !last.contains_key(key.bytes);
                if begins {
                    last.insert(key.bytes, segments.len());
                    segments.push(Segment::default());
                }
                let segment = &mut segments[last[key.bytes]];
                segment.commands.push(index);
                match (command.ttl_effect(), self.ends[index]) {
                    (TtlEffect::Sets(_), Some(end)) => segment.decision = Some((index, end)),
                    (TtlEffect::Clears, _) => segment.decision = None,
                    _ => {}
                }
            }
        }
        segments
    }

    fn is_over(&self, segment: &Segment) -> bool {
        !segment.revived && segment.decision.is_some_and(|(_, end)| self.has_passed(end))
    }

    /// Whether a command has nothing to do but in segments that are over.
    fn is_gone(&self, command: usize, segments: &[Segment]) -> bool {
        let mut own = segments.iter().filter(|segment| segment.commands.contains(&command)).peekable();
        own.peek().is_some() && own.all(|segment| self.is_over(segment))
    }

    /// Revives segments that are over and on which something builds that is sent.
    fn revive(&self, segments: &mut [Segment]) {
        while let Some(found) = segments.iter().position(|segment| {
            self.is_over(segment) && segment.commands.iter().any(|command| !self.is_gone(*command, segments))
        }) {
            segments[found].revived = true;
        }
    }

    fn member(&self, index: usize, segments: &[Segment]) -> Option<Member> {
        if self.is_gone(index, segments) {
            return None;
        }
        let sent = |expires_ms| Some(Member { command: index, expires_ms });
        let command = &self.commands[index];
        let end = match self.ends[index] {
            Some(end) if self.has_passed(end) => end,
            end => return sent(end),
        };
        // It has a time that is over, and what it writes is not.
        let segment = segments.iter().find(|segment| segment.commands.contains(&index))?;
        let decides = segment.decision == Some((index, end));
        match command.ttl_effect() {
            TtlEffect::Sets(_) if decides || !sets_nothing_but_ttl(command) => sent(Some(match segment.decision {
                None => self.now_ms + FOR_LATER_COMMANDS_MS,
                Some((_, end)) if self.has_passed(end) => self.now_ms + FOR_THE_MOMENT_MS,
                Some((_, end)) => end,
            })),
            _ => None,
        }
    }
}

fn sets_nothing_but_ttl(command: &Command<'_>) -> bool {
    matches!(command.spec.name, "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" | "GETEX")
}
