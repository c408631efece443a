//! Commands about single fields of a hash: `... FIELDS n field ...` ends each of them. Servers differ in whether options
//! may stand behind the fields; all take them before.

use super::{
    super::{ArgumentFault, Class, Effects, TtlEffect, keys::decimal},
    Args, Word, behind, invalid, ttl_option,
};

const NO_OPTION: &str = "this is not an option of this command";

/// `HEXPIRE key n [NX | XX | GT | LT] FIELDS n field ...` and its kin.
pub(in crate::commands) fn hexpire(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let mut index = 2;
    if let b"NX" | b"XX" | b"GT" | b"LT" = Word::at(args, index).as_bytes() {
        effects.class = Class::Conditional;
        index += 1;
    }
    check_fields(args, index, 1)
}

/// `HPERSIST key FIELDS n field ...`, `HGETDEL` likewise.
pub(in crate::commands) fn hash_fields(args: Args<'_, '_>, _: &mut Effects) -> Result<(), ArgumentFault> {
    check_fields(args, 1, 1)
}

/// `HGETEX key [EX n | PX n | EXAT t | PXAT t | PERSIST] FIELDS n field ...`
pub(in crate::commands) fn hgetex(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let word = Word::at(args, 1);
    if word.as_bytes() == b"PERSIST" {
        return check_fields(args, 2, 1);
    }
    let Some(ttl) = ttl_option(word.as_bytes(), 2) else {
        return check_fields(args, 1, 1);
    };
    effects.ttl_effect = TtlEffect::Fields(ttl);
    check_fields(args, 3, 1)
}

/// `HSETEX key [FNX | FXX] [EX n | PX n | EXAT t | PXAT t | KEEPTTL] FIELDS n field value ...`
pub(in crate::commands) fn hsetex(args: Args<'_, '_>, effects: &mut Effects) -> Result<(), ArgumentFault> {
    let (mut condition, mut ttl, mut keep_ttl, mut index) = (false, None, false, 1);
    loop {
        let word = Word::at(args, index);
        match word.as_bytes() {
            b"FIELDS" => break,
            b"FNX" | b"FXX" if condition => return Err(invalid(index, "one condition may be given, once")),
            b"FNX" | b"FXX" => condition = true,
            name => {
                let option = ttl_option(name, index + 1);
                if option.is_none() && name != b"KEEPTTL" {
                    return Err(invalid(index, NO_OPTION));
                }
                if keep_ttl || ttl.is_some() {
                    return Err(invalid(index, "one TTL option may be given"));
                }
                (ttl, keep_ttl) = (option, option.is_none());
                if option.is_some() {
                    index = behind(args, index, "this option needs a number behind it")?;
                }
            }
        }
        index += 1;
    }
    effects.class = match (keep_ttl, condition) {
        (true, _) => Class::Relative,
        (false, true) => Class::Conditional,
        (false, false) => Class::Idempotent,
    };
    if let Some(ttl) = ttl {
        effects.ttl_effect = TtlEffect::Fields(ttl);
    }
    check_fields(args, index, 2)
}

/// Whether `FIELDS` stands at `index`, and as many fields behind it as it says, of `step` arguments each.
fn check_fields(args: Args<'_, '_>, index: usize, step: usize) -> Result<(), ArgumentFault> {
    if Word::at(args, index).as_bytes() != b"FIELDS" {
        return Err(invalid(index.min(args.len() - 1), NO_OPTION));
    }
    let count = args.get(index + 1).and_then(|count| decimal(count)).and_then(|count| count.checked_mul(step));
    if count != Some(args.len().saturating_sub(index + 2)) {
        let detail = "this must be the number of fields that are behind it, which end the command";
        return Err(invalid((index + 1).min(args.len() - 1), detail));
    }
    Ok(())
}
