//! What a task does on Redis, and the units it is executed in.

use std::borrow::Cow;

use hashbrown::HashMap;

use crate::commands::{self, ArgumentFault, Class, CommandSpec, Effects, Overwrite, TtlAt, TtlEffect, TtlUnit};

/// Up to this many keys, comparing all is cheaper than hashing.
const FEW_KEYS: usize = 16;

#[derive(Clone, Debug)]
pub enum Operation<'a> {
    Simple(Command<'a>),
    /// At least one command.
    Pipeline {
        mode: Mode,
        commands: Vec<Command<'a>>,
    },
    Lua(Script<'a>),
}

/// How a pipeline's commands belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: each has its own result.
    Each,
    /// They run in one MULTI/EXEC.
    Atomic,
}

/// A command whose arguments fit it.
#[derive(Clone, Debug)]
pub struct Command<'a> {
    pub spec: &'static CommandSpec,
    /// Without the name. Whoever changes them makes a new command of them.
    pub args: Vec<Cow<'a, [u8]>>,
    effects: Effects,
}

#[derive(Clone, Debug)]
pub struct Script<'a> {
    pub source: Cow<'a, str>,
    /// None: it may touch anything.
    pub keys: Vec<Cow<'a, [u8]>>,
    pub args: Vec<Cow<'a, [u8]>>,
    /// Which arguments are times to live, counted from when the service tried.
    pub ttl_args: Vec<TtlArg>,
    /// The indexes of the keys that it writes, ascending. None: it may write all of them.
    pub written: Option<Vec<usize>>,
}

/// An argument of a script that is a time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlArg {
    /// Its index in the arguments, from 0.
    pub index: usize,
    pub unit: TtlUnit,
}

/// What is executed and judged as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit<'t> {
    /// Of an atomic pipeline, that of its worst member.
    pub class: Class,
    pub keys: UnitKeys<'t>,
}

/// A unit's keys, each once, in the order of their first use. One key, the usual case, takes no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitKeys<'t> {
    One([UnitKey<'t>; 1]),
    Many(Vec<UnitKey<'t>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitKey<'t> {
    pub bytes: &'t [u8],
    /// The unit may change it. A key both read and written is written.
    pub written: bool,
}

impl<'a> Command<'a> {
    /// # Errors
    ///
    /// When the arguments do not fit the command.
    pub fn try_new(spec: &'static CommandSpec, args: Vec<Cow<'a, [u8]>>) -> Result<Self, ArgumentFault> {
        let effects = spec.effects(&args)?;
        Ok(Self { spec, args, effects })
    }

    pub fn class(&self) -> Class {
        self.effects.class
    }

    pub fn overwrite(&self) -> Overwrite {
        self.effects.overwrite
    }

    /// The argument that says when what it writes expires.
    pub fn ttl(&self) -> Option<TtlAt> {
        self.effects.ttl_effect.at()
    }

    pub fn ttl_effect(&self) -> TtlEffect {
        self.effects.ttl_effect
    }

    /// What this command leaves of what was there when it runs again after later ones: as [`Self::overwrite`], but with
    /// a TTL a whole overwrite is none, as it ends by itself.
    pub fn replay_kind(&self) -> Overwrite {
        match (self.overwrite(), self.ttl()) {
            (Overwrite::Whole, Some(_)) => Overwrite::None,
            (overwrite, _) => overwrite,
        }
    }

    /// The keys in the order of the arguments; one that is named twice comes twice.
    pub fn keys(&self) -> impl Iterator<Item = UnitKey<'_>> {
        self.effects.keys.map(|key| UnitKey { bytes: &self.args[key.index], written: key.written })
    }

    pub(super) fn key_indexes(&self) -> impl Iterator<Item = usize> + use<> {
        self.effects.keys.map(|key| key.index)
    }

    fn unit(&self) -> Unit<'_> {
        Unit { class: self.class(), keys: UnitKeys::collect(self.keys()) }
    }
}

impl TtlArg {
    /// The number that an argument says, if it can be a time to live.
    pub(super) fn amount(arg: &[u8]) -> Option<i64> {
        commands::integer(arg).filter(|amount| *amount > 0)
    }

    /// When it ends, in milliseconds since 1970, if it was meant at `base_ms`. None: never, as far as can be told.
    fn end_ms(self, args: &[Cow<'_, [u8]>], base_ms: i64) -> Option<i64> {
        self.unit.after(Self::amount(&args[self.index])?, base_ms)
    }
}

impl Script<'_> {
    /// In lower-case hex, as Redis names scripts. Computed on each call.
    pub fn sha1(&self) -> String {
        sha1_smol::Sha1::from(self.source.as_bytes()).digest().to_string()
    }

    /// When the first of its times to live ends, in milliseconds since 1970, if they were meant at `base_ms`.
    pub fn expires_at_ms(&self, base_ms: i64) -> Option<i64> {
        self.ttl_args.iter().filter_map(|arg| arg.end_ms(&self.args, base_ms)).min()
    }

    /// The arguments as they are sent at `now_ms`: each time to live that was meant at `base_ms` is what is left of it,
    /// rounded up to its unit. None: one of them has ended.
    pub fn args_at(&self, base_ms: i64, now_ms: i64) -> Option<Vec<Cow<'_, [u8]>>> {
        let mut args: Vec<_> = self.args.iter().map(|arg| Cow::Borrowed(arg.as_ref())).collect();
        for arg in &self.ttl_args {
            let Some(end) = arg.end_ms(&self.args, base_ms) else { continue };
            let left_ms = u64::try_from(end.saturating_sub(now_ms)).ok().filter(|left| *left > 0)?;
            let left = match arg.unit {
                TtlUnit::Seconds => left_ms.div_ceil(1000),
                TtlUnit::Millis => left_ms,
            };
            args[arg.index] = Cow::Owned(left.to_string().into_bytes());
        }
        Some(args)
    }

    fn unit(&self) -> Unit<'_> {
        let is_written = |index| self.written.as_ref().is_none_or(|written| written.binary_search(&index).is_ok());
        let keys = self.keys.iter().enumerate();
        let keys = keys.map(|(index, key)| UnitKey { bytes: key, written: is_written(index) });
        Unit { class: Class::Script, keys: UnitKeys::collect(keys) }
    }
}

impl Operation<'_> {
    /// What is executed and judged as one: a simple command, a script and an atomic pipeline are one unit, a pipeline
    /// `each` has one per command, in their order.
    pub fn units(&self) -> impl ExactSizeIterator<Item = Unit<'_>> {
        let count = match self {
            Self::Pipeline { mode: Mode::Each, commands } => commands.len(),
            Self::Simple(_) | Self::Lua(_) | Self::Pipeline { mode: Mode::Atomic, .. } => 1,
        };
        (0..count).map(|index| match self {
            Self::Simple(command) => command.unit(),
            Self::Lua(script) => script.unit(),
            Self::Pipeline { mode: Mode::Each, commands } => commands[index].unit(),
            Self::Pipeline { mode: Mode::Atomic, commands } => {
                Unit { class: class_of_all(commands), keys: UnitKeys::collect(commands.iter().flat_map(Command::keys)) }
            }
        })
    }

    /// The key that is named first.
    pub fn first_key(&self) -> Option<&[u8]> {
        match self {
            Self::Simple(command) => command.keys().next().map(|key| key.bytes),
            Self::Pipeline { commands, .. } => commands.first()?.keys().next().map(|key| key.bytes),
            Self::Lua(script) => script.keys.first().map(AsRef::as_ref),
        }
    }
}

/// What running all of them twice would do. Members that change nothing when each runs twice may do so together: after
/// `SADD k m; SET k v` the SADD is refused. Not so if the first on a key leaves nothing of what was there.
fn class_of_all(commands: &[Command<'_>]) -> Class {
    let worst = commands.iter().map(Command::class).max().unwrap_or(Class::Idempotent);
    // By key: the command that comes first, and whether it leaves nothing.
    let mut firsts: HashMap<&[u8], (usize, bool)> = HashMap::new();
    for (number, command) in commands.iter().enumerate() {
        for key in command.keys() {
            let overwrites = key.written && command.overwrite() == Overwrite::Whole;
            let (first, is_new) = *firsts.entry(key.bytes).or_insert((number, overwrites));
            if first != number && !is_new {
                return worst.max(Class::Relative);
            }
        }
    }
    worst
}

impl Unit<'_> {
    /// Whether nothing may run beside it, since what it touches is unknown.
    pub fn is_barrier(&self) -> bool {
        self.keys.is_empty()
    }
}

impl<'t> UnitKeys<'t> {
    fn collect(mut keys: impl Iterator<Item = UnitKey<'t>>) -> Self {
        let Some(first) = keys.next() else {
            return Self::Many(Vec::new());
        };
        let Some(second) = keys.next() else {
            return Self::One([first]);
        };
        let mut all: Vec<_> = [first, second].into_iter().chain(keys).collect();
        dedup(&mut all);
        Self::Many(all)
    }
}

impl<'t> std::ops::Deref for UnitKeys<'t> {
    type Target = [UnitKey<'t>];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

/// Keeps the first of equal keys, written if any of them is.
fn dedup(keys: &mut Vec<UnitKey<'_>>) {
    let mut kept: Vec<UnitKey<'_>> = Vec::with_capacity(keys.len());
    let few = keys.len() <= FEW_KEYS;
    let mut places = HashMap::new();
    for key in keys.iter() {
        let place = if few {
            kept.iter().position(|other| other.bytes == key.bytes).unwrap_or(kept.len())
        } else {
            *places.entry(key.bytes).or_insert(kept.len())
        };
        match kept.get_mut(place) {
            Some(same) => same.written |= key.written,
            None => kept.push(*key),
        }
    }
    *keys = kept;
}
