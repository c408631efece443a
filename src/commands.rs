//! Which Redis commands are accepted, and what they touch: keys, written keys, class, overwrite and TTL.
//!
//! The table is our own and covers Redis 7.0: every command that is flagged as a write, has keys, and does not block,
//! administer, publish or change a connection's state. Of newer servers it has what concerns TTLs and comparisons:
//! those of hash fields (Redis 7.4 and 8.0, Valkey 9.0), MSETEX (Redis 8.4, Valkey 9.1), SET IFEQ (Valkey 8.1, Redis
//! 8.4) and DELIFEQ (Valkey 9.0). A command that is not in it is refused, and known ones say why. What the table says
//! of keys and arity is compared with real servers by tests.
//!
//! # Classes
//!
//! A class says what running a command a second time, right after the first, would do; of one with a relative TTL, what
//! its form with an absolute one would, which is what is sent. A command counts as
//! [`Class::Idempotent`] or [`Class::Conditional`] only where the second run changes nothing *and* is not refused,
//! since a refusal would make a dead letter of a task that was applied. Whatever depends on other keys or on what is
//! there counts as [`Class::Relative`].

use std::borrow::Cow;

mod keys;
mod near;
mod options;
mod refused;
mod table;
#[cfg(test)]
mod tests;
mod ttl;

use self::keys::KeyRule;
pub(crate) use self::ttl::integer;
pub use self::{
    keys::{KeyAt, Keys},
    near::nearest,
    refused::NotAccepted,
    ttl::{Expiry, TtlAt, TtlEffect, TtlUnit},
};

/// What running something twice would do. Ordered from harmless to not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Absolute: the second run changes nothing.
    Idempotent,
    /// The second run changes nothing, but whether the first does depends on when it is made (`NX`, `XX`, `GT`, ...).
    Conditional,
    /// The second run may change something again, or be refused.
    Relative,
    /// Takes from one key and gives to another.
    Move,
    /// A script: unknown, so taken for relative.
    Script,
}

impl Class {
    pub const ALL: [Self; 5] = [Self::Idempotent, Self::Conditional, Self::Relative, Self::Move, Self::Script];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idempotent => "idempotent",
            Self::Conditional => "conditional",
            Self::Relative => "relative",
            Self::Move => "move",
            Self::Script => "script",
        }
    }

    /// Whether it must run once only, with a marker.
    pub fn is_once(self) -> bool {
        matches!(self, Self::Relative | Self::Move | Self::Script)
    }
}

/// What of a key's former value can be left after the command succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overwrite {
    /// Nothing, TTL included: each written key is replaced or removed, whatever it was.
    Whole,
    /// All but the named fields of a hash, which are set or removed.
    Field,
    /// All but the named members of a set, which are added or removed.
    Member,
    /// All but the named members of a sorted set, whose scores are set or which are removed.
    ScoredMember,
    /// Anything.
    None,
}

/// What a command does with the arguments given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effects {
    pub keys: Keys,
    pub class: Class,
    pub overwrite: Overwrite,
    pub ttl_effect: TtlEffect,
}

/// Why arguments do not fit their command. Names positions, never contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentFault {
    #[error("{name} takes {}, not {given}", count(*.least, *.exactly))]
    Count {
        name: &'static str,
        least: usize,
        exactly: bool,
        given: usize,
        /** The first that is too many. */
        surplus: Option<usize>,
    },
    /// The argument at `index` is at fault.
    #[error("{detail}")]
    Invalid { index: usize, detail: &'static str },
    /// With these arguments the command is one that is not accepted.
    #[error("{detail}")]
    NotAccepted { index: Option<usize>, reason: NotAccepted, detail: &'static str },
}

fn count(least: usize, exactly: bool) -> String {
    let (bound, plural) = (if exactly { "exactly" } else { "at least" }, if least == 1 { "" } else { "s" });
    format!("{bound} {least} argument{plural}")
}

/// A row of the table.
#[derive(Debug)]
pub struct CommandSpec {
    /// In upper case.
    pub name: &'static str,
    /// As Redis counts: the name included; negative: at least.
    pub arity: i8,
    keys: KeyRule,
    class: Class,
    overwrite: Overwrite,
    ttl_effect: TtlEffect,
    /// Whether a server refuses it when its memory is full. Where only some subcommands need more, all count as if.
    pub needs_memory: bool,
    /// Checks the options and says what they change in the row's effects.
    options: Option<options::Check>,
}

impl CommandSpec {
    /// What the command does with these arguments (the name is not one of them).
    ///
    /// # Errors
    ///
    /// When there are too few or too many, where a count of keys does not fit, and where an option that decides about
    /// keys, class or TTL is not understood. All else is left to Redis.
    pub fn effects(&self, args: &[Cow<'_, [u8]>]) -> Result<Effects, ArgumentFault> {
        self.check_count(args.len())?;
        let keys = self.keys.find(args)?;
        let mut effects = Effects { keys, class: self.class, overwrite: self.overwrite, ttl_effect: self.ttl_effect };
        if let Some(check) = self.options {
            check(args, &mut effects)?;
        }
        Ok(effects)
    }

    /// The indexes of arguments that name other keys by a pattern with `*` in it: what SORT's BY and GET read. The
    /// arguments have been checked.
    pub fn patterns(&self, args: &[Cow<'_, [u8]>]) -> Vec<usize> {
        if self.name == "SORT" { options::sort_patterns(args) } else { Vec::new() }
    }

    fn check_count(&self, given: usize) -> Result<(), ArgumentFault> {
        let (least, exactly) = (usize::from(self.arity.unsigned_abs()) - 1, self.arity > 0);
        if given < least || (exactly && given > least) {
            let surplus = (given > least).then_some(least);
            return Err(ArgumentFault::Count { name: self.name, least, exactly, given, surplus });
        }
        Ok(())
    }
}

/// Finds an accepted command by its name, in any case. Does not allocate.
///
/// # Errors
///
/// The reason for which a command of that name is not accepted.
pub fn lookup(name: &[u8]) -> Result<&'static CommandSpec, NotAccepted> {
    let mut buffer = [0; table::LONGEST_NAME];
    let Some(upper) = buffer.get_mut(..name.len()) else {
        return Err(NotAccepted::Unknown);
    };
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    table::find(upper).ok_or_else(|| refused::reason(upper))
}
