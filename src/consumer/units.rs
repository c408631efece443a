//! What a window must know of a task's units when it takes the task in.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{coalesce::Stake, rows::ReplayKind, schedule::Keys, timing::Due};
use crate::{
    commands::{Class, Overwrite},
    task::{Mode, Operation, Task, Unit},
};

/// Tells ordering keys from keys.
const ORDERING_KEY: u64 = 1;

/// A unit on its way into a window.
pub struct NewUnit {
    pub keys: Keys,
    pub stake: Stake,
    /// Of one that overwrites several keys: both hashes of each, ascending.
    pub checks: Vec<(u64, u64)>,
    pub idempotent: bool,
    pub kind: ReplayKind,
}

/// The units of a task in their order. `seed` is of the second hash of keys, which nobody outside knows: so that no two
/// keys can be found that are taken for one.
pub fn of_task(task: &Task<'_>, due: &Due, seed: u64) -> Vec<NewUnit> {
    let ordering_key = task.ordering_key.as_ref().map(|key| xxh3_64_with_seed(key.as_bytes(), ORDERING_KEY));
    let units = task.operation.units().enumerate().map(|(number, unit)| {
        // A unit whose keys are not known stays a barrier: the ordering key adds an order and removes none.
        let ordering_key = ordering_key.filter(|_| !unit.is_barrier());
        let keys = Keys::new(unit.keys.iter().map(|key| xxh3_64(key.bytes)).chain(ordering_key));
        let kind = ReplayKind::of(task, number, &unit, due);
        let stake = stake(task, number, &unit, kind, due, seed);
        let checks = if stake.overwrites && unit.keys.len() > 1 { checks(&unit, seed) } else { Vec::new() };
        NewUnit { keys, stake, checks, idempotent: task.idempotent || unit.class == Class::Idempotent, kind }
    });
    units.collect()
}

fn stake(task: &Task<'_>, number: usize, unit: &Unit<'_>, kind: ReplayKind, due: &Due, seed: u64) -> Stake {
    let command = match &task.operation {
        Operation::Simple(command) => command,
        Operation::Pipeline { mode: Mode::Each, commands } => &commands[number],
        Operation::Pipeline { mode: Mode::Atomic, .. } | Operation::Lua(_) => return Stake::NONE,
    };
    if !task.coalesce || task.ordering_key.is_some() {
        return Stake::NONE;
    }
    let touches_another_database = unit.class == Class::Move || command.spec.name == "COPY";
    let is_whole = command.overwrite() == Overwrite::Whole;
    // Without a version it counts what its pipeline says of TTLs. One with a version is alone in it, and may be stale; but
    // then something is there that is newer than both.
    let has_version = task.version.is_some();
    let is_never_late = kind == ReplayKind::Overwrite || has_version && !due.changes() && command.ttl().is_none();
    let always = is_whole && (is_never_late || due.may_invalidate() && !has_version);
    let removes = matches!(command.spec.name, "DEL" | "UNLINK");
    let sets_only_ttl = command.ttl().is_some() && !is_whole;
    let only_key = match &unit.keys[..] {
        [key] => Some(key.bytes),
        _ => None,
    };
    Stake {
        gives_way: only_key.is_some() && !touches_another_database,
        overwrites: is_whole && !due.may_drop(),
        always,
        // What may have taken the place of one that wants it wants it as well.
        wants_certainty: always || matches!(kind, ReplayKind::Fields(..)) || removes || sets_only_ttl,
        check: only_key.map_or(0, |key| xxh3_64_with_seed(key, seed)),
        version: task.version.map(|version| version.get()),
    }
}

fn checks(unit: &Unit<'_>, seed: u64) -> Vec<(u64, u64)> {
    let mut checks: Vec<_> =
        unit.keys.iter().map(|key| (xxh3_64(key.bytes), xxh3_64_with_seed(key.bytes, seed))).collect();
    // Of two keys with one hash neither is known for sure.
    checks.sort_unstable();
    checks.dedup_by_key(|(hash, _)| *hash);
    checks
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::task::{Config, Rules};

    fn units(body: &str) -> Vec<NewUnit> {
        let rules = Rules::new(Config::default(), ["default".to_owned()]);
        let task = Task::parse(body.as_bytes(), &rules, Timestamp::UNIX_EPOCH).expect(body);
        of_task(&task, &Due::of(&task, Timestamp::UNIX_EPOCH, None), 7)
    }

    /// Whether the unit gives way, and whether it takes the place of others.
    fn check(body: &str, gives_way: bool, overwrites: bool) {
        let unit = units(body).pop().expect("it has a unit");
        assert_eq!((unit.stake.gives_way, unit.stake.overwrites), (gives_way, overwrites), "{body}");
        assert_eq!(unit.checks.len(), if overwrites && !gives_way { unit.keys.len() } else { 0 }, "{body}");
    }

    fn simple(command: &str, gives_way: bool, overwrites: bool) {
        let mut words = command.split(' ');
        let name = words.next().expect("it has a name");
        let args: Vec<_> = words.collect();
        check(&serde_json::json!({"type": "simple", "command": name, "args": args}).to_string(), gives_way, overwrites);
    }

    #[test]
    fn one_key_gives_way_and_a_whole_overwrite_takes_its_place() {
        for command in [
            "SET k v",
            "SET k v EX 9",
            "SET k v PXAT 9",
            "SETEX k 9 v",
            "PSETEX k 9 v",
            "DEL k",
            "UNLINK k",
            "RESTORE k 0 x REPLACE",
            "MSET k v",
        ] {
            simple(command, true, true);
        }
        for command in ["MSET k v j v", "DEL k j", "UNLINK k j"] {
            simple(command, false, true);
        }
        for command in [
            "SET k v NX",
            "SET k v XX",
            "SET k v GET",
            "SET k v KEEPTTL",
            "SET k v IFEQ w",
            "SETNX k v",
            "GETSET k v",
            "RESTORE k 0 x",
            "INCR k",
            "RPUSH k v",
            "HSET k f v",
            "EXPIRE k 9",
            "GETDEL k",
            "SORT k STORE k",
        ] {
            simple(command, true, false);
        }
        for command in
            ["RENAME k j", "RENAME k k", "MOVE k 1", "COPY k k DB 1", "SUNIONSTORE k j", "LMOVE k j LEFT LEFT"]
        {
            simple(command, false, false);
        }
    }

    #[test]
    fn who_asks_for_it_takes_no_part_and_neither_do_scripts_and_transactions() {
        let set = r#""command":"SET","args":["k","v"]"#;
        check(&format!(r#"{{"type":"simple",{set},"coalesce":false}}"#), false, false);
        check(&format!(r#"{{"type":"simple",{set},"ordering_key":"u"}}"#), false, false);
        check(&format!(r#"{{"type":"pipeline","mode":"each","commands":[{{{set}}},{{{set}}}]}}"#), true, true);
        check(&format!(r#"{{"type":"pipeline","mode":"atomic","commands":[{{{set}}}]}}"#), false, false);
        check(r#"{"type":"lua","script":"return 1","keys":["k"]}"#, false, false);
    }

    #[test]
    fn it_overwrites_always_unless_it_may_be_too_late() {
        let stake = |more: &str| {
            let body = format!(r#"{{"type":"simple","command":"SET","args":["k","v"]{more}}}"#);
            units(&body).pop().expect("it has a unit").stake
        };
        assert!(stake("").always);
        assert!(!stake(r#","deadline":"2026-11-25T12:00:00Z""#).always);
        assert!(stake(r#","late":{"after_ms":0,"do":"invalidate"}"#).always, "it is removed then");
        let dropped = stake(r#","late":{"after_ms":0,"do":"drop"}"#);
        assert!(dropped.gives_way && !dropped.overwrites, "what is there is to stay when it is dropped");
        assert!(stake(r#","version":"7""#).always, "if it is stale, something newer is there");
        assert!(!stake(r#","version":"7","deadline":"2026-11-25T12:00:00Z""#).always);
        assert_eq!(stake(r#","version":"7""#).version, Some(7));
        simple("SET k v EX 9", true, true);
        let expiring = units(r#"{"type":"simple","command":"SETEX","args":["k","9","v"]}"#);
        assert!(!expiring[0].stake.always && !expiring[0].stake.wants_certainty);
        for command in [r#""EXPIRE","args":["k","9"]"#, r#""HSET","args":["k","f","v"]"#, r#""SET","args":["k","v"]"#] {
            assert!(
                units(&format!(r#"{{"type":"simple","command":{command}}}"#))[0].stake.wants_certainty,
                "{command}"
            );
        }
        let pipeline = r#"{"type":"pipeline","commands":[{"command":"SET","args":["k","v"]},
            {"command":"EXPIRE","args":["k","9"]}]}"#;
        assert!(!units(pipeline)[0].stake.always, "it is over when its TTL is");
        let del = r#"{"type":"simple","command":"DEL","args":["k"],"deadline":"2026-11-25T12:00:00Z"}"#;
        assert!(units(del)[0].stake.wants_certainty);
    }
}
