//! Where the arguments of a simple task are in its stored bytes, so that sending it does not parse them again.

use std::borrow::Cow;

use jiff::Timestamp;

use crate::{
    commands::{CommandSpec, TtlAt},
    task::{Operation, Task},
};

/// A simple task whose arguments stand in its bytes as they are sent: without escapes, not in base64.
pub struct Prepared {
    pub spec: &'static CommandSpec,
    /// Where it says when what it writes expires.
    pub ttl: Option<TtlAt>,
    /// When the service meant it, in milliseconds since 1970: what a relative time to live counts from.
    pub meant_ms: i64,
    /// It must run once only, with a marker.
    pub once: bool,
    /// Where each argument begins, and its length.
    args: Box<[(u32, u32)]>,
}

impl Prepared {
    /// `value` is what the task was parsed from. None: the task must be parsed again when it is sent, as there is more to
    /// be judged then than a time to live.
    pub fn of(task: &Task<'_>, value: &[u8], accepted_at: Timestamp) -> Option<Self> {
        let Operation::Simple(command) = &task.operation else { return None };
        if task.deadline.is_some() || task.late.is_some() || task.version.is_some() {
            return None;
        }
        let mut args = Vec::with_capacity(command.args.len());
        for arg in &command.args {
            let Cow::Borrowed(arg) = arg else { return None };
            args.push(place_in(value, arg)?);
        }
        Some(Self {
            spec: command.spec,
            ttl: command.ttl(),
            meant_ms: task.occurred_at.unwrap_or(accepted_at).as_millisecond(),
            once: command.class().is_once() && !task.idempotent,
            args: args.into(),
        })
    }

    pub fn args<'v>(&self, value: &'v [u8]) -> impl Iterator<Item = &'v [u8]> + Clone {
        self.args.iter().map(move |(start, len)| &value[*start as usize..][..*len as usize])
    }

    /// Bytes on the heap.
    pub fn size(&self) -> usize {
        size_of_val(&*self.args)
    }
}

fn place_in(value: &[u8], part: &[u8]) -> Option<(u32, u32)> {
    let start = part.as_ptr().addr().checked_sub(value.as_ptr().addr())?;
    if start + part.len() > value.len() {
        return None;
    }
    Some((u32::try_from(start).ok()?, u32::try_from(part.len()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Config, Rules};

    fn check(value: &str, expected: Option<&[&str]>) {
        let rules = Rules::new(Config::default(), ["default".to_owned()]);
        let task = Task::parse(value.as_bytes(), &rules, Timestamp::now()).expect("the task is valid");
        let prepared = Prepared::of(&task, value.as_bytes(), Timestamp::UNIX_EPOCH);
        let args = prepared.as_ref().map(|prepared| prepared.args(value.as_bytes()).collect::<Vec<_>>());
        let expected = expected.map(|args| args.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>());
        assert_eq!(args, expected, "{value}");
    }

    #[test]
    fn arguments_are_found_where_they_stand() {
        check(r#"{"type":"simple","command":"set","args":["k","v é"]}"#, Some(&["k", "v é"]));
        check(r#"{"args":["k",""],"command":"SET","type":"simple"}"#, Some(&["k", ""]));
        check(r#"{"type":"simple","command":"SETEX","args":["k",10,"v"]}"#, Some(&["k", "10", "v"]));
        check(r#"{"type":"simple","command":"INCR","args":["k"]}"#, Some(&["k"]));
    }

    #[test]
    fn what_is_not_sent_as_it_stands_is_parsed_again() {
        check(r#"{"type":"simple","command":"SET","args":["k","a\nb"]}"#, None);
        check(r#"{"type":"simple","command":"SET","args":["aw==","dg=="],"encoding":"base64"}"#, None);
        check(r#"{"type":"simple","command":"SET","args":["k","v"],"version":"1"}"#, None);
        check(r#"{"type":"simple","command":"SET","args":["k","v"],"deadline":"2026-11-25T12:00:00Z"}"#, None);
        check(r#"{"type":"pipeline","commands":[{"command":"SET","args":["k","v"]}]}"#, None);
    }
}
