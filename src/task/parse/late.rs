//! The fields that say how long a task is true: `deadline`, `late`, `version`, and of a script `ttl_args` and
//! `written_keys`.

use std::{borrow::Cow, collections::HashSet, time::Duration};

use super::{
    super::{Late, LateAction, Operation, TtlArg, Version},
    Check, is_set,
    wire::{BodyLate, BodyTtlArg, Nested, Place, Strings, TtlArgs, Value},
};
use crate::commands::TtlUnit;

impl Check<'_> {
    pub(super) fn late(&mut self, value: Option<Nested<BodyLate<'_>>>) -> Option<Late> {
        let Nested::Object(late) = value? else { return None };
        let after = self.late_after(late.after_ms);
        let choices = LateAction::ALL.map(|action| (action.as_str(), action));
        if !is_set(&late.action) {
            self.errors.invalid("/late/do", "`do` is missing: one of replay, invalidate, drop");
        }
        let action = self.choice("late/do", late.action, choices);
        Some(Late { after: after?, action: action? })
    }

    fn late_after(&mut self, value: Option<Value<'_>>) -> Option<Duration> {
        let after = match value {
            Some(Value::Number(ms)) => Some(Duration::from_millis(ms)).filter(|after| *after <= Late::MAX_AFTER),
            _ => None,
        };
        if after.is_none() {
            let most = Late::MAX_AFTER.as_millis();
            self.errors.invalid("/late/after_ms", format!("this must be a whole number from 0 to {most}"));
        }
        after
    }

    pub(super) fn version(&mut self, value: Option<Value<'_>>, operation: Option<&Operation<'_>>) -> Option<Version> {
        let text = self.text("version", value)?;
        let version = Version::parse(&text);
        if version.is_none() {
            let detail = format!("this must be a whole number from 0 to {} in a string", Version::MAX);
            self.errors.invalid("/version", detail);
        }
        if let Some(operation) = operation
            && let Some(detail) = why_not_versioned(operation)
        {
            self.errors.invalid("/version", detail);
        }
        version
    }

    pub(super) fn ttl_args(&mut self, value: Option<TtlArgs<'_>>, args: &[Cow<'_, [u8]>]) -> Vec<TtlArg> {
        let Some(TtlArgs { items, faulty: false }) = value else { return Vec::new() };
        if items.len() > args.len() {
            self.errors.invalid("/ttl_args", "these are more than there are arguments");
            return Vec::new();
        }
        let mut found: Vec<TtlArg> = Vec::with_capacity(items.len());
        for (number, item) in items.into_iter().enumerate() {
            let Some(arg) = self.ttl_arg(Place::TtlArg(number), item, args) else { continue };
            if found.iter().any(|other| other.index == arg.index) {
                self.errors.invalid(Place::TtlArg(number).field("index"), "this argument is named twice");
            } else {
                found.push(arg);
            }
        }
        found
    }

    fn ttl_arg(&mut self, place: Place, item: BodyTtlArg<'_>, args: &[Cow<'_, [u8]>]) -> Option<TtlArg> {
        let units = [("s", TtlUnit::Seconds), ("ms", TtlUnit::Millis)];
        let unit = match &item.unit {
            Some(Value::Text(text)) => units.iter().find(|(name, _)| name == text).map(|(_, unit)| *unit),
            _ => None,
        };
        if unit.is_none() {
            self.errors.invalid(place.field("unit"), "this must be one of: s, ms");
        }
        let index = match item.index {
            Some(Value::Number(index)) => usize::try_from(index).ok().filter(|index| *index < args.len()),
            _ => None,
        };
        let Some(index) = index else {
            self.errors.invalid(place.field("index"), "this must be the index of an argument in `args`, from 0");
            return None;
        };
        if TtlArg::amount(&args[index]).is_none() {
            let detail = "a time to live is a whole number above 0: `ttl_args` names this argument as one";
            self.errors.invalid(Place::Body.item("args", index), detail);
        }
        Some(TtlArg { index, unit: unit? })
    }

    pub(super) fn written_keys(
        &mut self,
        value: Option<Strings<'_>>,
        keys: &[Cow<'_, [u8]>],
        base64: bool,
    ) -> Option<Vec<usize>> {
        let written = self.strings(Place::Body, "written_keys", value?, base64)?;
        if written.is_empty() {
            return None;
        }
        let all: HashSet<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        for (index, _) in written.iter().enumerate().filter(|(_, key)| !all.contains(key.as_ref())) {
            self.errors.invalid(Place::Body.item("written_keys", index), "this is not one of the `keys`");
        }
        let written: HashSet<&[u8]> = written.iter().map(AsRef::as_ref).collect();
        let indexes = keys.iter().enumerate().filter(|(_, key)| written.contains(key.as_ref()));
        Some(indexes.map(|(index, _)| index).collect())
    }
}

/// Why a version cannot order what an operation writes, if it cannot.
fn why_not_versioned(operation: &Operation<'_>) -> Option<&'static str> {
    let mut units = operation.units();
    let (Some(unit), None) = (units.next(), units.next()) else {
        return Some("a version needs one unit: set `mode` to `atomic`, or send a task for each command");
    };
    let written = unit.keys.iter().filter(|key| key.written).count();
    (written != 1).then_some("a version orders the writes of one key: this operation does not write exactly one")
}
