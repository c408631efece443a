//! The commands that are accepted, by name.

use super::{
    Class::{self, Conditional, Idempotent, Move, Relative},
    CommandSpec,
    Overwrite::{self, Field, Member, ScoredMember, Whole},
    TtlAt, TtlEffect, TtlUnit,
    keys::KeyRule::{
        self, All, Counted, CountedPairs, DestThenCounted, DestThenRest, DestThenSource, First, FirstRead, FirstTwo,
        Pairs, Second, SourceThenDest,
    },
    options::{self, Check},
};

/// Bytes of the longest name, of accepted and of refused commands.
pub(super) const LONGEST_NAME: usize = 20;

const ROWS: usize = 95;

const NOTHING: Overwrite = Overwrite::None;

/// Sorted by name. The columns: name, arity as Redis counts it, keys, class, overwrite. What follows from arguments is
/// in `options`.
#[rustfmt::skip]
pub(super) static ACCEPTED: [CommandSpec; ROWS] = [
    row("APPEND", 3, First, Relative, NOTHING),
    row("BITFIELD", -2, First, Idempotent, NOTHING).with(options::bitfield),
    row("BITOP", -4, DestThenRest { dest: 1 }, Relative, NOTHING).clears_ttl(),
    row("COPY", -3, SourceThenDest, Relative, NOTHING),
    row("DECR", 2, First, Relative, NOTHING),
    row("DECRBY", 3, First, Relative, NOTHING),
    row("DEL", -2, All, Idempotent, Whole).frees(),
    row("DELIFEQ", 3, First, Conditional, NOTHING).frees(),
    row("EXPIRE", -3, First, Idempotent, NOTHING).expires_in(1, TtlUnit::Seconds).with(options::expire).frees(),
    row("EXPIREAT", -3, First, Idempotent, NOTHING).expires_at(1, TtlUnit::Seconds).with(options::expire).frees(),
    row("GEOADD", -5, First, Idempotent, NOTHING).with(options::geoadd),
    row("GEORADIUS", -6, FirstRead, Relative, NOTHING).clears_ttl().with(options::georadius),
    row("GEORADIUSBYMEMBER", -5, FirstRead, Relative, NOTHING).clears_ttl().with(options::georadius_by_member),
    row("GEOSEARCHSTORE", -8, DestThenSource, Relative, NOTHING).clears_ttl(),
    row("GETDEL", 2, First, Relative, NOTHING).clears_ttl().frees(),
    row("GETEX", -2, First, Idempotent, NOTHING).with(options::getex).frees(),
    row("GETSET", 3, First, Idempotent, NOTHING).clears_ttl(),
    row("HDEL", -3, First, Idempotent, Field).frees(),
    row("HEXPIRE", -6, First, Idempotent, NOTHING).fields_expire_in(1, TtlUnit::Seconds).with(options::hexpire),
    row("HEXPIREAT", -6, First, Idempotent, NOTHING).fields_expire_at(1, TtlUnit::Seconds).with(options::hexpire),
    row("HGETDEL", -5, First, Idempotent, NOTHING).with(options::hash_fields).frees(),
    row("HGETEX", -5, First, Idempotent, NOTHING).with(options::hgetex),
    row("HINCRBY", 4, First, Relative, NOTHING),
    row("HINCRBYFLOAT", 4, First, Relative, NOTHING),
    row("HMSET", -4, First, Idempotent, Field).with(options::field_pairs),
    row("HPERSIST", -5, First, Idempotent, NOTHING).with(options::hash_fields).frees(),
    row("HPEXPIRE", -6, First, Idempotent, NOTHING).fields_expire_in(1, TtlUnit::Millis).with(options::hexpire),
    row("HPEXPIREAT", -6, First, Idempotent, NOTHING).fields_expire_at(1, TtlUnit::Millis).with(options::hexpire),
    row("HSET", -4, First, Idempotent, Field).with(options::field_pairs),
    row("HSETEX", -6, First, Idempotent, NOTHING).with(options::hsetex),
    row("HSETNX", 4, First, Conditional, NOTHING),
    row("INCR", 2, First, Relative, NOTHING),
    row("INCRBY", 3, First, Relative, NOTHING),
    row("INCRBYFLOAT", 3, First, Relative, NOTHING),
    row("LINSERT", 5, First, Relative, NOTHING),
    row("LMOVE", 5, FirstTwo, Relative, NOTHING),
    row("LMPOP", -4, Counted, Relative, NOTHING).frees(),
    row("LPOP", -2, First, Relative, NOTHING).frees(),
    row("LPUSH", -3, First, Relative, NOTHING),
    row("LPUSHX", -3, First, Relative, NOTHING),
    row("LREM", 4, First, Relative, NOTHING).with(options::lrem).frees(),
    row("LSET", 4, First, Relative, NOTHING),
    row("LTRIM", 4, First, Relative, NOTHING).frees(),
    row("MOVE", 3, First, Move, NOTHING).frees(),
    row("MSET", -3, Pairs, Idempotent, Whole),
    row("MSETEX", -4, CountedPairs, Idempotent, Whole).with(options::msetex),
    row("MSETNX", -3, Pairs, Conditional, NOTHING),
    row("PERSIST", 2, First, Idempotent, NOTHING).clears_ttl().frees(),
    row("PEXPIRE", -3, First, Idempotent, NOTHING).expires_in(1, TtlUnit::Millis).with(options::expire).frees(),
    row("PEXPIREAT", -3, First, Idempotent, NOTHING).expires_at(1, TtlUnit::Millis).with(options::expire).frees(),
    row("PFADD", -2, First, Idempotent, NOTHING),
    row("PFMERGE", -2, DestThenRest { dest: 0 }, Relative, NOTHING),
    row("PSETEX", 4, First, Idempotent, Whole).expires_in(1, TtlUnit::Millis),
    row("RENAME", 3, FirstTwo, Move, NOTHING).frees(),
    row("RENAMENX", 3, FirstTwo, Move, NOTHING).frees(),
    row("RESTORE", -4, First, Relative, NOTHING).with(options::restore),
    row("RPOP", -2, First, Relative, NOTHING).frees(),
    row("RPOPLPUSH", 3, FirstTwo, Relative, NOTHING),
    row("RPUSH", -3, First, Relative, NOTHING),
    row("RPUSHX", -3, First, Relative, NOTHING),
    row("SADD", -3, First, Idempotent, Member),
    row("SDIFFSTORE", -3, DestThenRest { dest: 0 }, Relative, NOTHING).clears_ttl(),
    row("SET", -3, First, Idempotent, Whole).with(options::set),
    row("SETBIT", 4, First, Idempotent, NOTHING),
    row("SETEX", 4, First, Idempotent, Whole).expires_in(1, TtlUnit::Seconds),
    row("SETNX", 3, First, Conditional, NOTHING),
    row("SETRANGE", 4, First, Idempotent, NOTHING),
    row("SINTERSTORE", -3, DestThenRest { dest: 0 }, Relative, NOTHING).clears_ttl(),
    row("SMOVE", 4, FirstTwo, Move, NOTHING).frees(),
    row("SORT", -2, FirstRead, Relative, NOTHING).clears_ttl().with(options::sort),
    row("SPOP", -2, First, Relative, NOTHING).frees(),
    row("SREM", -3, First, Idempotent, Member).frees(),
    row("SUNIONSTORE", -3, DestThenRest { dest: 0 }, Relative, NOTHING).clears_ttl(),
    row("UNLINK", -2, All, Idempotent, Whole).frees(),
    row("XACK", -4, First, Idempotent, NOTHING).frees(),
    row("XADD", -5, First, Relative, NOTHING),
    row("XAUTOCLAIM", -6, First, Relative, NOTHING).frees(),
    row("XCLAIM", -6, First, Relative, NOTHING).frees(),
    row("XDEL", -3, First, Idempotent, NOTHING).frees(),
    row("XGROUP", -2, Second, Idempotent, NOTHING).with(options::xgroup),
    row("XSETID", -3, First, Idempotent, NOTHING),
    row("XTRIM", -4, First, Relative, NOTHING).with(options::xtrim).frees(),
    row("ZADD", -4, First, Idempotent, ScoredMember).with(options::zadd),
    row("ZDIFFSTORE", -4, DestThenCounted, Relative, NOTHING).clears_ttl(),
    row("ZINCRBY", 4, First, Relative, NOTHING),
    row("ZINTERSTORE", -4, DestThenCounted, Relative, NOTHING).clears_ttl(),
    row("ZMPOP", -4, Counted, Relative, NOTHING).frees(),
    row("ZPOPMAX", -2, First, Relative, NOTHING).frees(),
    row("ZPOPMIN", -2, First, Relative, NOTHING).frees(),
    row("ZRANGESTORE", -5, DestThenSource, Relative, NOTHING).clears_ttl(),
    row("ZREM", -3, First, Idempotent, ScoredMember).frees(),
    row("ZREMRANGEBYLEX", 4, First, Idempotent, NOTHING).frees(),
    row("ZREMRANGEBYRANK", 4, First, Relative, NOTHING).frees(),
    row("ZREMRANGEBYSCORE", 4, First, Idempotent, NOTHING).frees(),
    row("ZUNIONSTORE", -4, DestThenCounted, Relative, NOTHING).clears_ttl(),
];

const fn row(name: &'static str, arity: i8, keys: KeyRule, class: Class, overwrite: Overwrite) -> CommandSpec {
    CommandSpec { name, arity, keys, class, overwrite, ttl_effect: TtlEffect::None, needs_memory: true, options: None }
}

impl CommandSpec {
    const fn expires_in(mut self, index: usize, unit: TtlUnit) -> Self {
        self.ttl_effect = TtlEffect::Sets(TtlAt { index, unit, absolute: false });
        self
    }

    const fn expires_at(mut self, index: usize, unit: TtlUnit) -> Self {
        self.ttl_effect = TtlEffect::Sets(TtlAt { index, unit, absolute: true });
        self
    }

    const fn fields_expire_in(mut self, index: usize, unit: TtlUnit) -> Self {
        self.ttl_effect = TtlEffect::Fields(TtlAt { index, unit, absolute: false });
        self
    }

    const fn fields_expire_at(mut self, index: usize, unit: TtlUnit) -> Self {
        self.ttl_effect = TtlEffect::Fields(TtlAt { index, unit, absolute: true });
        self
    }

    /// The written key, if there is one afterwards, has no TTL.
    const fn clears_ttl(mut self) -> Self {
        self.ttl_effect = TtlEffect::Clears;
        self
    }

    /// A server whose memory is full takes it all the same.
    const fn frees(mut self) -> Self {
        self.needs_memory = false;
        self
    }

    const fn with(mut self, options: Check) -> Self {
        self.options = Some(options);
        self
    }
}

/// Bytes of a name that are compared at once. No two accepted names begin with the same.
const PREFIX: usize = size_of::<u128>();

/// The beginnings of the accepted names as numbers, in the order of the table, which is theirs too.
static PREFIXES: [u128; ROWS] = {
    let mut prefixes = [0; ROWS];
    let mut row = 0;
    while row < prefixes.len() {
        prefixes[row] = prefix(ACCEPTED[row].name.as_bytes());
        row += 1;
    }
    prefixes
};

/// A name's first bytes, filled up with zeros.
const fn prefix(name: &[u8]) -> u128 {
    let mut bytes = [0; PREFIX];
    let mut index = 0;
    while index < name.len() && index < PREFIX {
        bytes[index] = name[index];
        index += 1;
    }
    u128::from_be_bytes(bytes)
}

/// The row of that name, which is in upper case.
pub(super) fn find(upper: &[u8]) -> Option<&'static CommandSpec> {
    let row = PREFIXES.binary_search(&prefix(upper)).ok()?;
    Some(&ACCEPTED[row]).filter(|spec| spec.name.as_bytes() == upper)
}
