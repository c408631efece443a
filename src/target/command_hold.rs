//! Whether a command is refused for everybody: a misconfiguration of the target, not the fault of its tasks.
//!
//! A single `NOPERM` or unknown command may be a task's own mistake, and then the task is dead. Twenty on distinct keys
//! in a row, without one success between, are a rule or a server version that an operator will put right: then the
//! command is held on that target, and its tasks wait. Which of the two it is shows only after a while, so a unit that
//! is refused like that waits until it is known, at most [`PATIENCE`].
//!
//! Pure: it remembers commands and hashes of keys. The units themselves are with the consumer.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::retry::{Failure, ReasonClass};

/// Refusals on this many distinct keys in a row hold the command.
const DISTINCT_KEYS: usize = 20;

/// How long a refused unit waits for others to tell whose fault it is.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The time between two units of a held command that are sent to see whether it is allowed again.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// What a refusal means for the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It waits, its keys parked, and is dead at that time unless something else is known by then.
    WaitUntil(Instant),
    /// The command is held: it and all units of the command that wait are kept until the hold ends.
    Held,
}

/// What the success of a command means for its units that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The command works for others: the refusals were the units' own fault. They are dead.
    Condemned,
    /// The command is allowed again: they are sent again. Nothing was spent.
    Released,
}

/// What may be done with a unit of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Send it.
    Free,
    /// Send this one, and it alone of its command. It is granted once in 30 s.
    Probe,
    /// Keep it until then at least.
    WaitUntil(Instant),
}

/// The commands of one target that are, or may be, refused for everybody.
#[derive(Debug, Default)]
pub struct CommandHolds {
    commands: HashMap<Box<str>, Standing>,
}

#[derive(Debug)]
enum Standing {
    /// Refused on these keys since its last success.
    Doubted {
        keys: HashSet<u64>,
    },
    Held {
        next_probe_at: Instant,
    },
}

impl CommandHolds {
    /// Whether a failure is one that may be the target's fault.
    pub fn concerns(failure: &Failure) -> bool {
        matches!(failure.reason, ReasonClass::NoPermission | ReasonClass::UnknownCommand)
    }

    /// What may be done with a unit of the command now.
    pub fn may_send(&mut self, command: &str, now: Instant) -> Sending {
        match self.commands.get_mut(command) {
            None | Some(Standing::Doubted { .. }) => Sending::Free,
            Some(Standing::Held { next_probe_at }) if now < *next_probe_at => Sending::WaitUntil(*next_probe_at),
            Some(Standing::Held { next_probe_at }) => {
                *next_probe_at = now + PROBE_INTERVAL;
                Sending::Probe
            }
        }
    }

    /// A unit of the command was refused. `key` is a hash of its ordering key.
    pub fn on_refused(&mut self, command: &str, key: u64, now: Instant) -> Ruling {
        if !self.commands.contains_key(command) {
            self.commands.insert(command.into(), Standing::Doubted { keys: HashSet::new() });
        }
        let standing = self.commands.get_mut(command).expect("it was just put there");
        let Standing::Doubted { keys } = standing else { return Ruling::Held };
        keys.insert(key);
        if keys.len() < DISTINCT_KEYS {
            return Ruling::WaitUntil(now + PATIENCE);
        }
        *standing = Standing::Held { next_probe_at: now + PROBE_INTERVAL };
        Ruling::Held
    }

    /// A unit of the command succeeded. None: no unit waits because of it.
    pub fn on_success(&mut self, command: &str) -> Option<Waiting> {
        if self.commands.is_empty() {
            return None;
        }
        match self.commands.remove(command)? {
            Standing::Doubted { .. } => Some(Waiting::Condemned),
            Standing::Held { .. } => Some(Waiting::Released),
        }
    }

    /// The commands that are held now.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().filter(|(_, standing)| matches!(standing, Standing::Held { .. })).map(|(name, _)| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Executed;

    fn held(holds: &mut CommandHolds, now: Instant) {
        for key in 1..DISTINCT_KEYS as u64 {
            assert_eq!(holds.on_refused("SET", key, now), Ruling::WaitUntil(now + PATIENCE));
        }
        assert_eq!(holds.on_refused("SET", 0, now), Ruling::Held);
    }

    #[test]
    fn only_what_may_be_a_misconfiguration_is_concerned() {
        let failure = |reason| Failure::dead(reason, Executed::No, "", "");
        assert!(CommandHolds::concerns(&failure(ReasonClass::NoPermission)));
        assert!(CommandHolds::concerns(&failure(ReasonClass::UnknownCommand)));
        assert!(!CommandHolds::concerns(&failure(ReasonClass::WrongType)));
    }

    #[test]
    fn refusals_on_twenty_keys_hold_the_command_and_no_other() {
        let (mut holds, now) = (CommandHolds::default(), Instant::now());
        held(&mut holds, now);
        assert_eq!(holds.held().collect::<Vec<_>>(), ["SET"]);
        assert_eq!(holds.may_send("SET", now), Sending::WaitUntil(now + PROBE_INTERVAL));
        assert_eq!(holds.may_send("DEL", now), Sending::Free);
        assert_eq!(holds.on_refused("SET", 99, now), Ruling::Held);
    }

    #[test]
    fn refusals_on_one_key_never_hold() {
        let (mut holds, now) = (CommandHolds::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(holds.on_refused("SET", 7, now), Ruling::WaitUntil(now + PATIENCE));
            assert_eq!(holds.may_send("SET", now), Sending::Free);
        }
    }

    #[test]
    fn success_condemns_those_who_wait_and_counting_begins_anew() {
        let (mut holds, now) = (CommandHolds::default(), Instant::now());
        assert_eq!(holds.on_success("SET"), None);
        for key in 1..DISTINCT_KEYS as u64 {
            holds.on_refused("SET", key, now);
        }
        assert_eq!(holds.on_success("DEL"), None);
        assert_eq!(holds.on_success("SET"), Some(Waiting::Condemned));
        assert_eq!(holds.on_refused("SET", 0, now), Ruling::WaitUntil(now + PATIENCE));
    }

    #[test]
    fn held_command_is_tried_with_one_unit_every_thirty_seconds() {
        let (mut holds, now) = (CommandHolds::default(), Instant::now());
        held(&mut holds, now);
        let next = now + PROBE_INTERVAL;
        assert_eq!(holds.may_send("SET", next), Sending::Probe);
        assert_eq!(holds.may_send("SET", next), Sending::WaitUntil(next + PROBE_INTERVAL));
        assert_eq!(holds.on_refused("SET", 1, next), Ruling::Held);
        assert_eq!(holds.may_send("SET", next + PROBE_INTERVAL), Sending::Probe);
        assert_eq!(holds.on_success("SET"), Some(Waiting::Released));
        assert_eq!(holds.may_send("SET", next + PROBE_INTERVAL), Sending::Free);
        assert_eq!(holds.held().count(), 0);
    }
}
