//! A command and its form with another expiry, without a server. `conformance` compares what they do.

use std::borrow::Cow;

use fastrand::Rng;

use super::{
    args, effects,
    generate::{Generator, NEWER_TEMPLATES, TEMPLATES},
};
use crate::commands::{Effects, Expiry, TtlAt, TtlUnit, lookup};

/// The command line that says it with another expiry.
fn rewritten(line: &str, expiry: Expiry) -> String {
    let (name, rest) = line.split_once(' ').expect("a command with arguments");
    let args = args(rest);
    let spec = lookup(name.as_bytes()).expect("accepted");
    let ttl = spec.effects(&args).expect(line).ttl_effect.at().expect("it has a TTL");
    let (name, args) = spec.with_expiry(args.iter().map(AsRef::as_ref), ttl, expiry);
    let args = args.iter().map(|arg| std::str::from_utf8(arg).expect("words"));
    std::iter::once(name).chain(args).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_form_has_one_with_a_deadline_and_one_with_the_rest() {
    let check = |line: &str, at: &str, rest: &str| {
        assert_eq!(rewritten(line, Expiry::At(99)), at, "{line}");
        assert_eq!(rewritten(line, Expiry::In(5)), rest, "{line}");
    };
    check("SET k v EX 10", "SET k v PXAT 99", "SET k v PX 5");
    check("SET EX PX NX ex 10 GET", "SET EX PX NX PXAT 99 GET", "SET EX PX NX PX 5 GET");
    check("SET k v EXAT 10", "SET k v PXAT 99", "SET k v PX 5");
    check("SET k v IFEQ EX PX 10", "SET k v IFEQ EX PXAT 99", "SET k v IFEQ EX PX 5");
    check("SETEX k 10 v", "SET k v PXAT 99", "SET k v PX 5");
    check("PSETEX k 10 v", "SET k v PXAT 99", "SET k v PX 5");
    check("GETEX k EX 10", "GETEX k PXAT 99", "GETEX k PX 5");
    check("EXPIRE k 10", "PEXPIREAT k 99", "PEXPIRE k 5");
    check("PEXPIRE k 10 NX", "PEXPIREAT k 99 NX", "PEXPIRE k 5 NX");
    check("EXPIREAT k 10 xx", "PEXPIREAT k 99 xx", "PEXPIRE k 5 xx");
    check("PEXPIREAT k 10 GT", "PEXPIREAT k 99 GT", "PEXPIRE k 5 GT");
    check("RESTORE k 10 v", "RESTORE k 99 v ABSTTL", "RESTORE k 5 v");
    check("RESTORE k 10 v REPLACE", "RESTORE k 99 v REPLACE ABSTTL", "RESTORE k 5 v REPLACE");
    check("RESTORE absttl 10 ABSTTL abSttl", "RESTORE absttl 99 ABSTTL abSttl", "RESTORE absttl 5 ABSTTL");
    check("HEXPIRE h 10 NX FIELDS 1 f", "HPEXPIREAT h 99 NX FIELDS 1 f", "HPEXPIRE h 5 NX FIELDS 1 f");
    check("HPEXPIREAT h 10 FIELDS 1 f", "HPEXPIREAT h 99 FIELDS 1 f", "HPEXPIRE h 5 FIELDS 1 f");
    check("HGETEX h EX 10 FIELDS 1 EX", "HGETEX h PXAT 99 FIELDS 1 EX", "HGETEX h PX 5 FIELDS 1 EX");
    check("HSETEX h FNX EX 10 FIELDS 1 f v", "HSETEX h FNX PXAT 99 FIELDS 1 f v", "HSETEX h FNX PX 5 FIELDS 1 f v");
    check("MSETEX 1 k v EX 10 NX", "MSETEX 1 k v PXAT 99 NX", "MSETEX 1 k v PX 5 NX");
}

#[test]
fn deadline_is_counted_from_when_it_was_meant() {
    let check = |line: &str, expected: Option<i64>| {
        let (_, rest) = line.split_once(' ').expect("arguments");
        let ttl = effects(line).expect(line).ttl_effect.at().expect("it has a TTL");
        assert_eq!(ttl.at_ms(&args(rest), 1_000_000), expected, "{line}");
    };
    check("SET k v EX 10", Some(1_010_000));
    check("SET k v PX 10", Some(1_000_010));
    check("SET k v EXAT 1001", Some(1_001_000));
    check("SET k v PXAT 1000001", Some(1_000_001));
    // It had passed already: a removal was meant.
    check("SET k v EXAT 1000", None);
    check("PEXPIREAT k 1000000", None);
    check("SETEX k 1 v", Some(1_001_000));
    check("PEXPIRE k 1", Some(1_000_001));
    check("PEXPIREAT k 9223372036854775807", Some(i64::MAX));
    // Redis refuses these or deletes at once, and goes on doing so.
    for amount in ["0", "-1", "x", "", "01", "+1", "1.5", "9223372036854775807", "9223372036854775808"] {
        let args = [&b"k"[..], amount.as_bytes(), b"v"];
        let ttl = |unit, absolute| TtlAt { index: 1, unit, absolute };
        assert_eq!(ttl(TtlUnit::Seconds, false).at_ms(&args, 1), None, "{amount}");
        assert_eq!(ttl(TtlUnit::Seconds, true).at_ms(&args, 1), None, "{amount}");
        assert_eq!(ttl(TtlUnit::Millis, false).at_ms(&args, 1), None, "{amount}");
    }
    assert_eq!(TtlAt { index: 3, unit: TtlUnit::Millis, absolute: false }.at_ms(&[b"k"], 1), None);
}

/// Arguments for the commands that may have a TTL, and what they do.
fn for_each_ttl(mut check: impl FnMut(&str, &[Cow<'_, [u8]>], Effects, TtlAt)) {
    let mut generator = Generator { rng: Rng::with_seed(0x7715), dump: b"dump".to_vec() };
    for (name, template) in TEMPLATES.iter().chain(NEWER_TEMPLATES) {
        for _ in 0..200 {
            let args: Vec<Cow<'_, [u8]>> = generator.arguments(template).into_iter().map(Cow::Owned).collect();
            let effects = lookup(name.as_bytes()).expect("accepted").effects(&args).expect("valid");
            if let Some(ttl) = effects.ttl_effect.at() {
                check(name, &args, effects, ttl);
            }
        }
    }
}

#[test]
fn rewritten_command_is_the_same_command_with_another_ttl() {
    let mut seen = std::collections::BTreeSet::new();
    for_each_ttl(|name, args, effects, ttl| {
        seen.insert(name.to_owned());
        for expiry in [Expiry::At(4_102_444_800_123), Expiry::In(12_345)] {
            let spec = lookup(name.as_bytes()).expect("accepted");
            let (other_name, other_args) = spec.with_expiry(args.iter().map(AsRef::as_ref), ttl, expiry);
            let other = lookup(other_name.as_bytes()).expect("the rewritten one is accepted too");
            let changed = other.effects(&other_args).expect("its arguments fit");
            let at = changed.ttl_effect.at().expect("it has a TTL");
            let (number, absolute) = match expiry {
                Expiry::At(at) => (at, true),
                Expiry::In(rest) => (rest.cast_signed(), false),
            };
            assert_eq!((at.unit, at.absolute), (TtlUnit::Millis, absolute), "{name} {args:?}");
            assert_eq!(at.value(&other_args), Some(number), "{name} {args:?}");
            assert_eq!((changed.class, changed.overwrite), (effects.class, effects.overwrite), "{name} {args:?}");
            assert_eq!(
                std::mem::discriminant(&changed.ttl_effect),
                std::mem::discriminant(&effects.ttl_effect),
                "{name} {args:?}"
            );
            let keys = |effects: Effects, args: &[Cow<'_, [u8]>]| {
                effects.keys.map(|key| (args[key.index].to_vec(), key.written)).collect::<Vec<_>>()
            };
            assert_eq!(keys(changed, &other_args), keys(effects, args), "{name} {args:?}");
            let again = other.with_expiry(other_args.iter().map(AsRef::as_ref), at, expiry);
            assert_eq!(again, (other_name, other_args.clone()), "{name} {args:?}");
        }
    });
    let expected = [
        "EXPIRE",
        "EXPIREAT",
        "GETEX",
        "HEXPIRE",
        "HEXPIREAT",
        "HGETEX",
        "HPEXPIRE",
        "HPEXPIREAT",
        "HSETEX",
        "MSETEX",
        "PEXPIRE",
        "PEXPIREAT",
        "PSETEX",
        "RESTORE",
        "SET",
        "SETEX",
    ];
    assert!(seen.iter().eq(expected), "{seen:?}");
}
