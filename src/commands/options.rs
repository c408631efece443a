//! What the options of a command change in its effects. Only those that decide about keys, class, overwrite or TTL are
//! read; a word that is not understood in their place is refused, since it could have been one of them.

use std::borrow::Cow;

mod hash_fields;

pub(super) use self::hash_fields::{hash_fields, hexpire, hgetex, hsetex};
use super::{ArgumentFault, Class, Effects, NotAccepted, Overwrite, TtlAt, TtlEffect, TtlUnit, keys::check_pairs};

pub(super) type Args<'x, 'a> = &'x [Cow<'a, [u8]>];
pub(super) type Check = fn(Args<'_, '_>, &mut Effects) -> Result<(), ArgumentFault>;

fn invalid(index: usize, detail: &'static str) -> ArgumentFault {
    ArgumentFault::Invalid { index, detail }
}

/// An argument in upper case, if it is short enough to be an option.
struct Word([u8; 16], usize);

impl Word {
    fn at(args: Args<'_, '_>, index: usize) -> Self {
        let mut word = [0; 16];
        let Some(upper) = args.get(index).and_then(|arg| Some((word.get_mut(..arg.len())?, arg))) else {
            return Self(word, 0);
        };
        upper.0.copy_from_slice(upper.1);
        upper.0.make_ascii_uppercase();
        let len = upper.1.len();
        Self(word, len)
    }

    fn as_bytes(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

fn ttl_option(word: &[u8], index: usize) -> Option<TtlAt> {
    let (unit, absolute) = match word {
        b"EX" => (TtlUnit::Seconds, false),
        b"PX" => (TtlUnit::Millis, false),
        b"EXAT" => (TtlUnit::Seconds, true),
        b"PXAT" => (TtlUnit::Millis, true),
        _ => return None,
    };
    Some(TtlAt { index, unit, absolute })
}

/// On what a write depends.
#[derive(Clone, Copy)]
enum Condition {
    /// That there is nothing.
    Missing,
    /// That there is something, or what.
    There,
}

/// What may stand behind the keys and values of SET and MSETEX.
#[derive(Default)]
struct WriteOptions {
    condition: Option<Condition>,
    ttl: Option<TtlAt>,
    keep_ttl: bool,
    get: bool,
}

impl WriteOptions {
    fn read(args: Args<'_, '_>, from: usize, of_set: bool) -> Result<Self, ArgumentFault> {
        let mut options = Self::default();
        let mut index = from;
        while index < args.len() {
            match Word::at(args, index).as_bytes() {
                b"NX" => options.set_condition(Condition::Missing, index)?,
                b"XX" => options.set_condition(Condition::There, index)?,
                b"IFEQ" if of_set => {
                    options.set_condition(Condition::There, index)?;
                    index = behind(args, index, "this option needs a value behind it")?;
                }
                b"GET" if of_set => options.get = true,
                b"KEEPTTL" => {
                    options.check_one_ttl(index)?;
                    options.keep_ttl = true;
                }
                name => {
                    let Some(ttl) = ttl_option(name, index + 1) else {
                        return Err(invalid(index, "this is not an option of this command"));
                    };
                    options.check_one_ttl(index)?;
                    options.ttl = Some(ttl);
                    index = behind(args, index, "this option needs a number behind it")?;
                }
            }
            index += 1;
        }
        Ok(options)
    }

    fn set_condition(&mut self, condition: Condition, index: usize) -> Result<(), ArgumentFault> {
        match self.condition.replace(condition) {
            Some(_) => Err(invalid(index, "one condition may be given, once")),
            None => Ok(()),
        }
    }

    fn check_one_ttl(&self, index: usize) -> Result<(), ArgumentFault> {
        if self.keep_ttl || self.ttl.is_some() {
            return Err(invalid(index, "one TTL option may be given"));
        }
        Ok(())
    }

    /// The row says what a plain write does.
    fn apply(self, effects: &mut Effects) {
        let Self { condition, ttl, keep_ttl, get } = self;
        effects.class = match (keep_ttl, condition) {
            (true, _) => Class::Relative,
            (false, Some(_)) => Class::Conditional,
            (false, None) => Class::Idempotent,
        };
        effects.ttl_effect = match (ttl, condition) {
            (Some(ttl), Some(Condition::There)) => TtlEffect::SetsIf(ttl),
            (Some(ttl), _) => TtlEffect::Sets(ttl),
            (None, Some(Condition::Missing)) => TtlEffect::None,
            (None, _) if keep_ttl => TtlEffect::None,
            (None, _) => TtlEffect::Clears,
        };
        // GET makes SET fail on a key that is not a string.
        if condition.is_some() || keep_ttl || get {
            effects.overwrite = Overwrite::None;
        }
    }
}

/// The index of the argument behind an option, which must be there.
fn behind(args: Args<'_, '_>, index: usize, detail: &'static str) -> Result<usize, ArgumentFault> {
    if index + 1 < args.len() { Ok(index + 1) } else { Err(invalid(index, detail)) }
}

/// `SET key value [NX | XX | IFEQ value] [GET] [EX n | PX n | EXAT t | PXAT t | KEEPTTL]`
pub(super) fn set(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    WriteOptions::read(args, 2, true)?.apply(effects);
    Ok(())
}

/// `MSETEX numkeys key value ... [NX | XX] [EX n | PX n | EXAT t | PXAT t | KEEPTTL]`
pub(super) fn msetex(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    WriteOptions::read(args, 1 + 2 * effects.keys.len(), false)?.apply(effects);
    Ok(())
}

/// `GETEX key [EX n | PX n | EXAT t | PXAT t | PERSIST]`
pub(super) fn getex(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let Some(index) = (args.len() > 1).then_some(1) else {
        return Ok(());
    };
    let word = Word::at(args, index);
    let taken = if word.as_bytes() == b"PERSIST" {
        effects.ttl_effect = TtlEffect::Clears;
        1
    } else {
        match ttl_option(word.as_bytes(), index + 1) {
            None => return Err(invalid(index, "this is not an option of GETEX")),
            Some(_) if args.len() == 2 => return Err(invalid(index, "this option needs a number behind it")),
            Some(ttl) => effects.ttl_effect = TtlEffect::Sets(ttl),
        }
        2
    };
    if args.len() > index + taken {
        return Err(invalid(index + taken, "GETEX takes one option"));
    }
    Ok(())
}

/// `EXPIRE key n [NX | XX | GT | LT]` and its kin: a condition on an absolute time.
pub(super) fn expire(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    for index in 2..args.len() {
        match Word::at(args, index).as_bytes() {
            b"NX" | b"LT" => {}
            b"XX" | b"GT" => {
                if let TtlEffect::Sets(ttl) = effects.ttl_effect {
                    effects.ttl_effect = TtlEffect::SetsIf(ttl);
                }
            }
            _ => return Err(invalid(index, "this is not an option of the EXPIRE commands")),
        }
        effects.class = Class::Conditional;
    }
    Ok(())
}

/// `ZADD key [NX | XX] [GT | LT] [CH] [INCR] score member ...`
pub(super) fn zadd(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let mut index = 1;
    loop {
        let class = match Word::at(args, index).as_bytes() {
            b"NX" | b"XX" | b"GT" | b"LT" => Class::Conditional,
            b"CH" => Class::Idempotent,
            b"INCR" => Class::Relative,
            _ => break,
        };
        if class != Class::Idempotent {
            effects.overwrite = Overwrite::None;
        }
        effects.class = effects.class.max(class);
        index += 1;
    }
    if index == args.len() {
        return Err(invalid(index - 1, "a score and a member are missing behind this"));
    }
    check_pairs(args, index, "every score needs a member behind it")
}

/// `GEOADD key [NX | XX] [CH] longitude latitude member ...`
pub(super) fn geoadd(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let mut index = 1;
    loop {
        match Word::at(args, index).as_bytes() {
            b"NX" | b"XX" => effects.class = Class::Conditional,
            b"CH" => {}
            _ => break,
        }
        index += 1;
    }
    if index == args.len() || !(args.len() - index).is_multiple_of(3) {
        return Err(invalid(args.len() - 1, "GEOADD takes longitude, latitude and member, three by three"));
    }
    Ok(())
}

/// `HSET key field value ...`
pub(super) fn field_pairs(args: Args<'_, '_>, _: &mut Effects) -> Result<(), ArgumentFault> {
    check_pairs(args, 1, "every field needs a value behind it")
}

/// `BITFIELD key [GET e o | [OVERFLOW w] SET e o v | [OVERFLOW w] INCRBY e o n] ...`
pub(super) fn bitfield(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let (mut written, mut index) = (false, 1);
    while index < args.len() {
        let behind = match Word::at(args, index).as_bytes() {
            b"GET" => 2,
            b"SET" => {
                written = true;
                3
            }
            b"INCRBY" => {
                (written, effects.class) = (true, Class::Relative);
                3
            }
            b"OVERFLOW" => 1,
            _ => return Err(invalid(index, "this is not a subcommand of BITFIELD")),
        };
        if index + behind >= args.len() {
            return Err(invalid(index, "arguments are missing behind this"));
        }
        index += behind + 1;
    }
    effects.keys.set_written(written);
    Ok(())
}

/// `LREM key count element`: how many of them are left depends on how often it runs, unless all go.
pub(super) fn lrem(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    if args[1].as_ref() == b"0" {
        effects.class = Class::Idempotent;
    }
    Ok(())
}

/// `RESTORE key ttl value [REPLACE] [ABSTTL] [IDLETIME n] [FREQ n]`: without REPLACE, a second run is refused.
pub(super) fn restore(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let mut index = 3;
    let mut absolute = false;
    while index < args.len() {
        match Word::at(args, index).as_bytes() {
            b"REPLACE" => (effects.class, effects.overwrite) = (Class::Idempotent, Overwrite::Whole),
            b"ABSTTL" => absolute = true,
            b"IDLETIME" | b"FREQ" if index + 1 < args.len() => index += 1,
            _ => return Err(invalid(index, "this is not an option of RESTORE")),
        }
        index += 1;
    }
    if args[1].as_ref() != b"0" {
        effects.ttl_effect = TtlEffect::Sets(TtlAt { index: 1, unit: TtlUnit::Millis, absolute });
    }
    Ok(())
}

/// `XTRIM key MAXLEN | MINID [= | ~] threshold [LIMIT n]`: a length is relative to what is there, an id is not.
pub(super) fn xtrim(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    match Word::at(args, 1).as_bytes() {
        b"MAXLEN" => {}
        b"MINID" => effects.class = Class::Idempotent,
        _ => return Err(invalid(1, "XTRIM takes MAXLEN or MINID here")),
    }
    Ok(())
}

/// `XGROUP subcommand key group ...`, whose subcommands have an arity of their own.
pub(super) fn xgroup(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    const CREATE: &str = "XGROUP CREATE";
    let (name, least, exactly) = match Word::at(args, 0).as_bytes() {
        b"CREATE" => (CREATE, 4, false),
        b"SETID" => ("XGROUP SETID", 4, false),
        b"DESTROY" => ("XGROUP DESTROY", 3, true),
        b"CREATECONSUMER" => ("XGROUP CREATECONSUMER", 4, true),
        b"DELCONSUMER" => ("XGROUP DELCONSUMER", 4, true),
        b"HELP" => {
            let (reason, detail) = (NotAccepted::ReadOnly, "XGROUP HELP only reads: a delayed read has no reader");
            return Err(ArgumentFault::NotAccepted { index: Some(0), reason, detail });
        }
        _ => return Err(invalid(0, "this is not a subcommand of XGROUP")),
    };
    let given = args.len();
    if given < least || (exactly && given > least) {
        let surplus = (given > least).then_some(least);
        return Err(ArgumentFault::Count { name, least: least - 1, exactly, given: given - 1, surplus });
    }
    // `$` is the last entry at the time of execution. CREATE does not mind: the second run finds the group.
    if name == "XGROUP SETID" && args[3].as_ref() == b"$" {
        effects.class = Class::Relative;
    }
    Ok(())
}

/// `SORT key [BY p] [LIMIT o n] [GET p ...] [ASC | DESC] [ALPHA] STORE destination`
pub(super) fn sort(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let mut store = None;
    walk_sort(args, |option, index| match option {
        SortOption::Store if store.is_some() => Err(invalid(index - 1, "STORE may be given once")),
        SortOption::Store => {
            store = Some(index);
            Ok(())
        }
        SortOption::Pattern => Ok(()),
    })?;
    let Some(index) = store else {
        let (reason, detail) = (NotAccepted::ReadOnly, "SORT without STORE only reads: a delayed read has no reader");
        return Err(ArgumentFault::NotAccepted { index: None, reason, detail });
    };
    effects.keys.add(index, true);
    Ok(())
}

/// A pattern without `*` names no key: Redis takes `BY nosort` and `GET #` for what they say.
pub(super) fn sort_patterns(args: Args<'_, '_>) -> Vec<usize> {
    let mut patterns = Vec::new();
    let walked = walk_sort(args, |option, index| {
        if matches!(option, SortOption::Pattern) && args[index].contains(&b'*') {
            patterns.push(index);
        }
        Ok(())
    });
    walked.map_or_else(|_| Vec::new(), |()| patterns)
}

enum SortOption {
    Pattern,
    Store,
}

fn walk_sort(
    args: Args<'_, '_>,
    mut visit: impl FnMut(SortOption, usize) -> Result<(), ArgumentFault>,
) -> Result<(), ArgumentFault> {
    let mut index = 1;
    while index < args.len() {
        let (behind, option) = match Word::at(args, index).as_bytes() {
            b"ASC" | b"DESC" | b"ALPHA" => (0, None),
            b"LIMIT" => (2, None),
            b"BY" | b"GET" => (1, Some(SortOption::Pattern)),
            b"STORE" => (1, Some(SortOption::Store)),
            _ => return Err(invalid(index, "this is not an option of SORT")),
        };
        if index + behind >= args.len() {
            return Err(invalid(index, "arguments are missing behind this"));
        }
        if let Some(option) = option {
            visit(option, index + 1)?;
        }
        index += behind + 1;
    }
    Ok(())
}

/// `GEORADIUS key longitude latitude radius unit [...] STORE | STOREDIST destination`
pub(super) fn georadius(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    georadius_from(5, args, effects)
}

/// `GEORADIUSBYMEMBER key member radius unit [...] STORE | STOREDIST destination`
pub(super) fn georadius_by_member(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    georadius_from(4, args, effects)
}

fn georadius_from(first: usize, args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let (mut store, mut index) = (None, first);
    while index < args.len() {
        let (behind, stores) = match Word::at(args, index).as_bytes() {
            b"ASC" | b"DESC" | b"ANY" => (0, false),
            b"COUNT" => (1, false),
            b"STORE" | b"STOREDIST" => (1, true),
            b"WITHCOORD" | b"WITHDIST" | b"WITHHASH" => {
                return Err(invalid(index, "this cannot be combined with STORE or STOREDIST"));
            }
            _ => return Err(invalid(index, "this is not an option of GEORADIUS")),
        };
        if index + behind >= args.len() {
            return Err(invalid(index, "an argument is missing behind this"));
        }
        if stores && store.replace(index + 1).is_some() {
            return Err(invalid(index, "one of STORE and STOREDIST may be given, once"));
        }
        index += behind + 1;
    }
    let Some(store) = store else {
        let detail = "without STORE or STOREDIST this only reads: a delayed read has no reader";
        return Err(ArgumentFault::NotAccepted { index: None, reason: NotAccepted::ReadOnly, detail });
    };
    effects.keys.add(store, true);
    Ok(())
}
