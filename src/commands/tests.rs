//! The table is held against a real server in `conformance`; here is what needs none.

use std::borrow::Cow;

use super::*;

mod conformance;
mod generate;
mod server;
mod ttl;

fn args<'a>(text: &'a str) -> Vec<Cow<'a, [u8]>> {
    text.split_whitespace().map(|arg| Cow::Borrowed(arg.as_bytes())).collect()
}

/// The effects of a command line of plain words.
fn effects(line: &str) -> Result<Effects, ArgumentFault> {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    lookup(name.as_bytes()).expect("an accepted command").effects(&args(rest))
}

#[test]
fn table_is_sorted_and_no_name_is_longer_than_the_buffer() {
    assert!(table::ACCEPTED.is_sorted_by(|a, b| a.name < b.name));
    let names = table::ACCEPTED.iter().map(|spec| spec.name).chain(refused::names());
    assert_eq!(names.map(str::len).max(), Some(table::LONGEST_NAME));
}

#[test]
fn names_are_found_in_any_case_and_nothing_else_is() {
    assert_eq!(lookup(b"SeTeX").expect("accepted").name, "SETEX");
    for name in ["", "SET ", "SET\r\n", "SET\0", "SETT", "S", "JSON.SET", "VADD", &"SET".repeat(20)] {
        assert_eq!(lookup(name.as_bytes()).err(), Some(NotAccepted::Unknown), "{name:?}");
    }
    assert_eq!(lookup(b"get").err(), Some(NotAccepted::ReadOnly));
    assert_eq!(lookup(b"Multi").err(), Some(NotAccepted::Transaction));
}

#[test]
fn near_misses_name_the_command_that_was_meant() {
    let check = |name: &str, near| assert_eq!(nearest(name.as_bytes()), near, "{name}");
    check("hsett", Some("HSET"));
    check("ZAD", Some("ZADD"));
    check("EXPIRES", Some("EXPIRE"));
    check("SETEXX", Some("SETEX"));
    check("FROBNICATE", None);
    check("QQ", None);
    check(&"A".repeat(1000), None);
}

#[test]
fn class_depends_on_arguments() {
    let check = |line: &str, class| assert_eq!(effects(line).expect(line).class, class, "{line}");
    check("SET k v", Class::Idempotent);
    check("SET k v ex 10", Class::Idempotent);
    check("SET k v GET", Class::Idempotent);
    check("SET k v NX PX 10", Class::Conditional);
    check("SET k v XX GET", Class::Conditional);
    check("SET k v KEEPTTL", Class::Relative);
    check("SET k v XX keepttl", Class::Relative);
    check("SETNX k v", Class::Conditional);
    check("GETEX k", Class::Idempotent);
    check("GETEX k EX 10", Class::Idempotent);
    check("GETEX k PXAT 10", Class::Idempotent);
    check("GETEX k PERSIST", Class::Idempotent);
    check("EXPIRE k 10", Class::Idempotent);
    check("PEXPIRE k 10 NX", Class::Conditional);
    check("EXPIREAT k 10", Class::Idempotent);
    check("PEXPIREAT k 10 GT", Class::Conditional);
    check("ZADD k 1 m", Class::Idempotent);
    check("ZADD k CH 1 m 2 n", Class::Idempotent);
    check("ZADD k xx gt 1 m", Class::Conditional);
    check("ZADD k NX INCR 1 m", Class::Relative);
    check("GEOADD k 1 2 m", Class::Idempotent);
    check("GEOADD k NX CH 1 2 m", Class::Conditional);
    check("BITFIELD k SET u8 0 1", Class::Idempotent);
    check("BITFIELD k OVERFLOW SAT SET u8 0 1 INCRBY u8 0 1", Class::Relative);
    check("LREM k 0 v", Class::Idempotent);
    check("LREM k 1 v", Class::Relative);
    check("LREM k -1 v", Class::Relative);
    check("XADD k * f v", Class::Relative);
    check("XADD k 1-1 f v", Class::Relative);
    check("XTRIM k MAXLEN 10", Class::Relative);
    check("XTRIM k minid 10", Class::Idempotent);
    check("XGROUP CREATE k g $", Class::Idempotent);
    check("XGROUP SETID k g 5", Class::Idempotent);
    check("XGROUP SETID k g $", Class::Relative);
    check("RESTORE k 0 v", Class::Relative);
    check("RESTORE k 0 v REPLACE ABSTTL", Class::Idempotent);
    check("RESTORE k 10 v REPLACE", Class::Idempotent);
    check("SORT k STORE d", Class::Relative);
    check("COPY a b REPLACE", Class::Relative);
    check("RENAME a b", Class::Move);
    check("SMOVE a b m", Class::Move);
    check("SET k v IFEQ w", Class::Conditional);
    check("SET k v IFEQ KEEPTTL", Class::Conditional);
    check("DELIFEQ k v", Class::Conditional);
    check("MSETEX 1 k v EX 10", Class::Idempotent);
    check("MSETEX 2 k v l w NX", Class::Conditional);
    check("MSETEX 1 k v KEEPTTL", Class::Relative);
    check("HEXPIRE h 10 FIELDS 1 f", Class::Idempotent);
    check("HPEXPIREAT h 10 gt FIELDS 2 f g", Class::Conditional);
    check("HPERSIST h FIELDS 1 f", Class::Idempotent);
    check("HGETDEL h FIELDS 1 f", Class::Idempotent);
    check("HGETEX h EX 10 FIELDS 1 f", Class::Idempotent);
    check("HSETEX h PX 10 FIELDS 1 f v", Class::Idempotent);
    check("HSETEX h FNX EX 10 FIELDS 1 f v", Class::Conditional);
    check("HSETEX h KEEPTTL FIELDS 1 f v", Class::Relative);
}

#[test]
fn overwrite_depends_on_arguments() {
    let check = |line: &str, overwrite| assert_eq!(effects(line).expect(line).overwrite, overwrite, "{line}");
    check("SET k v", Overwrite::Whole);
    check("SET k v EX 10", Overwrite::Whole);
    check("SET k v NX", Overwrite::None);
    check("SET k v GET", Overwrite::None);
    check("SET k v KEEPTTL", Overwrite::None);
    check("GETSET k v", Overwrite::None);
    check("GETDEL k", Overwrite::None);
    check("DEL a b", Overwrite::Whole);
    check("MSET a 1 b 2", Overwrite::Whole);
    check("MSETNX a 1 b 2", Overwrite::None);
    check("RESTORE k 0 v", Overwrite::None);
    check("RESTORE k 0 v REPLACE", Overwrite::Whole);
    check("HSET k f v", Overwrite::Field);
    check("HSETNX k f v", Overwrite::None);
    check("SREM k m", Overwrite::Member);
    check("ZADD k CH 1 m", Overwrite::ScoredMember);
    check("ZADD k GT 1 m", Overwrite::None);
    check("ZADD k INCR 1 m", Overwrite::None);
    check("SET k v IFEQ w", Overwrite::None);
    check("MSETEX 2 a 1 b 2 EX 10", Overwrite::Whole);
    check("MSETEX 1 a 1 XX", Overwrite::None);
    check("MSETEX 1 a 1 KEEPTTL", Overwrite::None);
    check("HSETEX h FIELDS 1 f v", Overwrite::None);
}

#[test]
fn ttl_argument_is_found() {
    let check = |line: &str, ttl| assert_eq!(effects(line).expect(line).ttl_effect.at(), ttl, "{line}");
    let at = |index, unit, absolute| Some(TtlAt { index, unit, absolute });
    check("SET k v", None);
    check("SET k v NX EX 10", at(4, TtlUnit::Seconds, false));
    check("SET k v PXAT 10 GET", at(3, TtlUnit::Millis, true));
    check("SETEX k 10 v", at(1, TtlUnit::Seconds, false));
    check("PSETEX k 10 v", at(1, TtlUnit::Millis, false));
    check("GETEX k PX 10", at(2, TtlUnit::Millis, false));
    check("EXPIRE k 10", at(1, TtlUnit::Seconds, false));
    check("PEXPIREAT k 10", at(1, TtlUnit::Millis, true));
    check("RESTORE k 0 v", None);
    check("RESTORE k 10 v ABSTTL", at(1, TtlUnit::Millis, true));
    check("SET k v IFEQ EX EX 10", at(5, TtlUnit::Seconds, false));
    check("MSETEX 2 a EX b PX NX PX 10", at(7, TtlUnit::Millis, false));
    check("HEXPIRE h 10 NX FIELDS 1 f", at(1, TtlUnit::Seconds, false));
    check("HPEXPIREAT h 10 FIELDS 1 f", at(1, TtlUnit::Millis, true));
    check("HGETEX h PXAT 10 FIELDS 1 EX", at(2, TtlUnit::Millis, true));
    check("HGETEX h FIELDS 2 EX 10", None);
    check("HSETEX h FXX EX 10 FIELDS 1 f v", at(3, TtlUnit::Seconds, false));
    check("HSETEX h FIELDS 1 EX 10", None);
}

#[test]
fn effect_on_the_ttl_depends_on_arguments() {
    let check = |line: &str, kind: &str| {
        let found = match effects(line).expect(line).ttl_effect {
            TtlEffect::None => "none",
            TtlEffect::Sets(_) => "sets",
            TtlEffect::SetsIf(_) => "sets if",
            TtlEffect::Clears => "clears",
            TtlEffect::Fields(_) => "fields",
        };
        assert_eq!(found, kind, "{line}");
    };
    check("SET k v", "clears");
    check("SET k v NX", "none");
    check("SET k v XX", "clears");
    check("SET k v GET", "clears");
    check("SET k v KEEPTTL XX", "none");
    check("SET k v EX 10", "sets");
    check("SET k v NX PX 10", "sets");
    check("SET k v EXAT 10 XX", "sets if");
    check("SETEX k 10 v", "sets");
    check("EXPIRE k 10", "sets");
    check("EXPIREAT k 10 NX", "sets");
    check("PEXPIRE k 10 LT", "sets");
    check("PEXPIREAT k 10 GT", "sets if");
    check("EXPIRE k 10 XX LT", "sets if");
    check("PERSIST k", "clears");
    check("GETEX k PERSIST", "clears");
    check("GETEX k", "none");
    check("GETEX k EX 10", "sets");
    check("GETSET k v", "clears");
    check("RESTORE k 10 v", "sets");
    check("RESTORE k 0 v", "none");
    check("INCR k", "none");
    check("SET k v IFEQ w", "clears");
    check("SET k v IFEQ w EX 10", "sets if");
    check("MSETEX 1 k v", "clears");
    check("MSETEX 1 k v EX 10", "sets");
    check("MSETEX 1 k v XX PXAT 10", "sets if");
    check("HEXPIRE h 10 FIELDS 1 f", "fields");
    check("HGETEX h EX 10 FIELDS 1 f", "fields");
    check("HGETEX h PERSIST FIELDS 1 f", "none");
    check("HPERSIST h FIELDS 1 f", "none");
}

#[test]
fn faults_name_the_argument() {
    let check = |line: &str, expected: usize| match effects(line) {
        Err(ArgumentFault::Invalid { index, .. }) => assert_eq!(index, expected, "{line}"),
        other => panic!("{line}: {other:?}"),
    };
    check("SET k v FOO", 2);
    check("SET k v EX", 2);
    check("SET k v EX 10 KEEPTTL", 4);
    check("SET k v KEEPTTL PX 10", 3);
    check("SET k v EX 10 PX 10", 4);
    check("SET k v NX XX", 3);
    check("GETEX k FOO", 1);
    check("GETEX k EX", 1);
    check("GETEX k PERSIST EX 10", 2);
    check("EXPIRE k 10 YY", 2);
    check("MSET a 1 b", 2);
    check("HSET k f v g", 3);
    check("ZADD k 1 m 2", 3);
    check("ZADD k NX CH INCR", 3);
    check("GEOADD k 1 2 m 3", 4);
    check("BITFIELD k SET u8 0", 1);
    check("BITFIELD k PUT u8 0", 1);
    check("ZUNIONSTORE d x a b", 1);
    check("ZUNIONSTORE d 0 a b", 1);
    check("ZUNIONSTORE d -1 a b", 1);
    check("ZUNIONSTORE d 3 a b", 1);
    check("ZUNIONSTORE d 18446744073709551615 a b", 1);
    check("ZUNIONSTORE d 99999999999999999999999 a b", 1);
    check("LMPOP 3 a LEFT", 0);
    check("XTRIM k MAX 5", 1);
    check("XGROUP FOO k g", 0);
    check("SORT k FOO STORE d", 1);
    check("SORT k STORE", 1);
    check("SORT k STORE a STORE b", 3);
    check("GEORADIUS k 1 2 3 m WITHDIST STORE d", 5);
    check("GEORADIUS k 1 2 3 m STORE a STOREDIST b", 7);
    check("RESTORE k 0 v FREQ", 3);
    check("SET k v IFEQ", 2);
    check("SET k v IFEQ w NX", 4);
    check("MSETEX 2 a 1 b", 0);
    check("MSETEX 1 a 1 b 2", 3);
    check("MSETEX 1 a 1 GET", 3);
    check("MSETEX 9223372036854775808 a 1", 0);
    check("HEXPIRE h 10 FOO FIELDS 1 f", 2);
    check("HEXPIRE h 10 FIELDS 2 f", 3);
    check("HEXPIRE h 10 FIELDS 1 f g", 3);
    check("HEXPIRE h 10 NX FIELDS 0 f", 4);
    check("HEXPIRE h 10 NX GT FIELDS 1 f", 3);
    check("HGETEX h EX 10 PX 10", 3);
    check("HGETEX h FIELDS 1 f EX 10", 2);
    check("HSETEX h FIELDS 1 f v EX 10", 2);
    check("HSETEX h FNX FXX FIELDS 1 f v", 2);
    check("HSETEX h EX 10 KEEPTTL FIELDS 1 f v", 3);
    check("HSETEX h EX 10 FNX f v", 4);
    check("HGETDEL h f FIELDS 1", 1);
}

#[test]
fn forms_that_only_read_are_refused_as_reads() {
    for line in
        ["SORT k", "SORT k LIMIT 0 1 GET store", "GEORADIUS k 1 2 3 m", "GEORADIUSBYMEMBER k m 3 m", "XGROUP HELP"]
    {
        match effects(line) {
            Err(ArgumentFault::NotAccepted { reason, .. }) => assert_eq!(reason, NotAccepted::ReadOnly, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn counts_are_told_in_words() {
    let check = |line: &str, text: &str| assert_eq!(effects(line).expect_err(line).to_string(), text);
    check("GETDEL", "GETDEL takes exactly 1 argument, not 0");
    check("SET k", "SET takes at least 2 arguments, not 1");
    check("SETEX k 1 v w", "SETEX takes exactly 3 arguments, not 4");
    check("XGROUP DESTROY k", "XGROUP DESTROY takes exactly 2 arguments, not 1");
}

#[test]
fn patterns_of_sort_are_found() {
    let check = |line: &str, expected: &[usize]| {
        let (name, rest) = line.split_once(' ').expect("arguments");
        assert_eq!(lookup(name.as_bytes()).expect("accepted").patterns(&args(rest)), expected, "{line}");
    };
    check("SORT k BY w_* GET # GET o_*->f STORE d", &[2, 6]);
    check("SORT k BY nosort STORE d", &[]);
    check("SET k BY*", &[]);
}
