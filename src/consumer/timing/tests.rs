//! Beside examples: pipelines that chance writes run on a tiny Redis, once all at their own time and once each command
//! when chance lets it run, as it is judged then. In the end both must be the same. `REDRIVE_TIMING_CASES` and
//! `REDRIVE_TIMING_SEED` set how many there are and which.

use std::time::Duration;

use super::*;
use crate::{
    commands::Expiry,
    consumer::model::{ModelRedis, Refused, seeds},
    task::{self, Rules},
};

const BASE: i64 = 1_700_000_000_000;

fn at(seconds: i64) -> i64 {
    BASE + seconds * 1000
}

fn due() -> Due {
    Due { base: BASE, deadline: None, late: None }
}

fn body(mode: &str, commands: &[impl AsRef<str>]) -> String {
    let commands: Vec<_> = commands
        .iter()
        .map(|command| {
            let words: Vec<&str> = command.as_ref().split(' ').collect();
            serde_json::json!({"command": words[0], "args": words[1..]})
        })
        .collect();
    serde_json::json!({"type": "pipeline", "mode": mode, "commands": commands}).to_string()
}

fn parse(body: &str) -> Task<'_> {
    let rules = Rules::new(task::Config::default(), ["default".to_owned()]);
    Task::parse(body.as_bytes(), &rules, Timestamp::UNIX_EPOCH).expect(body)
}

/// How the commands of an `each` pipeline are sent, all of them after so many seconds.
fn check(commands: &[&str], seconds: i64, expected: &[Member]) {
    let body = body("each", commands);
    let operation = parse(&body).operation;
    let mut sent: Vec<Member> = Vec::new();
    for unit in 0..commands.len() {
        sent.push(match due().unit(&operation, unit, at(seconds), |unit| sent[unit] != Member::Expired) {
            Timing::Send(Sending::Plain) => Member::Plain,
            Timing::Send(Sending::Expiring(at)) => Member::Expiring(at),
            Timing::Expired { unlink: false } => Member::Expired,
            other => panic!("{commands:?}: {other:?}"),
        });
    }
    assert_eq!(sent, expected, "{commands:?}");
}

#[test]
fn a_ttl_that_has_passed_takes_the_other_writes_to_its_key_with_it() {
    use Member::{Expired, Expiring, Plain};
    check(&["SET k v", "EXPIRE k 60"], 59, &[Plain, Expiring(at(60))]);
    check(&["SET k v", "EXPIRE k 60"], 60, &[Expired, Expired]);
    check(&["INCR n", "EXPIRE n 60 NX", "SET other 1"], 61, &[Expired, Expired, Plain]);
    check(&["SET k v EX 60", "APPEND k x", "DEL k", "SADD k x"], 61, &[Expired, Expired, Plain, Plain]);
    // What came before is overwritten by what is gone.
    check(&["SET k v", "SET k w EX 60"], 61, &[Expired, Expired]);
    check(&["EXPIRE k 60"], 61, &[Expired]);
    check(&["HSET h f v", "EXPIRE h 60 GT"], 61, &[Plain, Expired]);
    // The last one decides, and with the first one's TTL there would be nothing left to decide about.
    check(&["SET k v EX 60", "EXPIRE k 90"], 61, &[Expiring(at(90)), Expiring(at(90))]);
    check(&["SET k v EX 60", "PERSIST k"], 61, &[Expiring(at(61) + FOR_EVER), Plain]);
    check(&["SET k v EX 60", "BITFIELD k GET u8 0"], 61, &[Expired, Plain]);
    // Redis refuses it, whenever it is.
    check(&["SET k v", "EXPIRE k soon"], 61, &[Plain, Plain]);
}

#[test]
fn what_only_the_server_knows_is_left_to_it_while_there_is_time() {
    use Member::{Expiring, Plain};
    // Which of the two stands depends on the TTL that the key has, so each keeps its own.
    check(&["EXPIRE k 60 XX", "EXPIRE k 90 NX"], 1, &[Expiring(at(60)), Expiring(at(90))]);
    check(&["EXPIRE k 60 NX", "EXPIRE k 90 LT"], 1, &[Expiring(at(60)), Expiring(at(90))]);
    check(&["EXPIRE k 60 XX", "EXPIRE k 90"], 1, &[Expiring(at(90)), Expiring(at(90))]);
    // Nothing may have been there when the first one came: then it set nothing.
    check(&["EXPIRE k 60", "RPUSH k v", "EXPIRE k 90 LT"], 1, &[Expiring(at(60)), Plain, Expiring(at(90))]);
    check(&["EXPIRE k 90", "RPUSH k v", "EXPIRE k 60 GT"], 1, &[Expiring(at(90)), Plain, Expiring(at(60))]);
    let emptied = ["SET k v", "GETDEL k", "EXPIRE k 60", "RPUSH k v", "EXPIRE k 90 LT"];
    check(&emptied, 1, &[Plain, Plain, Expiring(at(60)), Plain, Expiring(at(90))]);
    check(&["SET k v EX 60", "EXPIRE k 90 LT"], 1, &[Expiring(at(60)), Expiring(at(60))]);
    // What would take the TTL away may be refused, because one of the others is no set.
    check(&["SET k v EX 60", "SINTERSTORE k s t"], 1, &[Expiring(at(60)), Plain]);
    check(&["SET k v EX 60", "PERSIST k"], 1, &[Expiring(at(1) + FOR_EVER), Plain]);
}

#[test]
fn what_is_written_with_another_key_is_removed_again() {
    use Member::{Expired, Expiring, Plain};
    check(&["MSET k v j v", "EXPIRE k 60"], 61, &[Plain, Expiring(at(60))]);
    check(&["MSET k v j v", "EXPIRE k 60", "EXPIRE j 60"], 61, &[Expired, Expired, Expired]);
    check(&["MSET k v j v", "SET k w EX 60"], 61, &[Plain, Expiring(at(60))]);
}

#[test]
fn what_ran_in_time_is_removed_later() {
    let body = body("each", &["HSET h f v", "EXPIRE h 60"]);
    let task = parse(&body);
    let judge = |has_run| due().unit(&task.operation, 1, at(61), |_| has_run);
    assert_eq!(judge(true), Timing::Send(Sending::Expiring(at(60))));
    assert_eq!(judge(false), Timing::Expired { unlink: false });
}

#[test]
fn the_ttl_of_fields_concerns_these_fields_only() {
    use Member::{Expired, Expiring, Plain};
    check(&["SADD s x", "HSETEX h EX 60 FIELDS 1 f v", "HSET h g v"], 61, &[Plain, Expired, Plain]);
    check(&["HEXPIRE h 60 FIELDS 1 f"], 61, &[Expired]);
    check(&["HSET h f v g v", "HEXPIRE h 60 FIELDS 1 f"], 61, &[Plain, Expiring(at(60))]);
    check(&["HSET h f v", "HEXPIRE h 60 FIELDS 2 f g"], 61, &[Plain, Expired]);
    check(
        &["HSET h f v", "HEXPIRE h 60 FIELDS 1 f", "HEXPIRE h 90 FIELDS 1 f"],
        61,
        &[Plain, Expired, Expiring(at(90))],
    );
}

#[test]
fn an_atomic_pipeline_runs_with_what_is_left() {
    let judge = |commands: &[&str]| due().unit(&parse(&body("atomic", commands)).operation, 0, at(61), |_| false);
    assert_eq!(judge(&["SET k v", "INCR n"]), Timing::Send(Sending::Plain));
    let members = vec![Member::Expired, Member::Expired, Member::Plain];
    assert_eq!(judge(&["SET k v", "EXPIRE k 60", "INCR n"]), Timing::Send(Sending::Members(members)));
    assert_eq!(judge(&["SET k v", "EXPIRE k 60"]), Timing::Expired { unlink: false });
}

#[test]
fn a_script_gets_what_remains() {
    let body = br#"{"type":"lua","script":"return 1","args":["60","x","1500"]}"#;
    let rules = Rules::new(task::Config::default(), ["default".to_owned()]);
    let Operation::Lua(mut script) = Task::parse(body, &rules, Timestamp::UNIX_EPOCH).expect("it is valid").operation
    else {
        panic!("it is a script");
    };
    let arg = |index, unit| TtlArg { index, unit };
    script.ttl_args = vec![arg(2, TtlUnit::Millis), arg(0, TtlUnit::Seconds)];
    let operation = Operation::Lua(script);
    let judge = |now| due().unit(&operation, 0, now, |_| false);
    assert_eq!(judge(BASE), Timing::Send(Sending::Args(vec![1500, 60])));
    assert_eq!(judge(BASE + 1499), Timing::Send(Sending::Args(vec![1, 59])));
    assert_eq!(judge(BASE - 10), Timing::Send(Sending::Args(vec![1510, 61])), "the service's clock is ahead");
    assert_eq!(judge(BASE + 1500), Timing::Expired { unlink: false });
}

#[test]
fn a_unit_is_expired_before_it_is_late() {
    let late = |action| Some(Late { after: Duration::from_secs(30), action });
    let judge = |deadline: Option<i64>, late, expires_at: Option<i64>, seconds| {
        Due { base: BASE, deadline: deadline.map(at), late }.command(expires_at.map(at), at(seconds))
    };
    let plain = Timing::Send(Sending::Plain);
    assert_eq!(judge(Some(60), None, None, 60), plain);
    assert_eq!(judge(Some(60), None, None, 61), Timing::Expired { unlink: false });
    assert_eq!(judge(None, None, Some(60), 59), Timing::Send(Sending::Expiring(at(60))));
    assert_eq!(judge(None, None, Some(60), 60), Timing::Expired { unlink: false });
    for (action, expected) in [
        (LateAction::Replay, plain.clone()),
        (LateAction::Drop, Timing::Drop),
        (LateAction::Invalidate, Timing::Invalidate),
    ] {
        assert_eq!(judge(None, late(action), None, 29), plain);
        assert_eq!(judge(None, late(action), None, 30), expected);
        let unlink = action == LateAction::Invalidate;
        assert_eq!(judge(Some(20), late(action), None, 40), Timing::Expired { unlink });
        assert_eq!(judge(None, late(action), Some(20), 25), Timing::Expired { unlink });
    }
}

#[test]
fn time_counts_from_when_the_service_tried() {
    let body = r#"{"type":"simple","command":"DEL","args":["k"],"occurred_at":"1970-01-01T00:00:05Z"}"#;
    let late = Late { after: Duration::ZERO, action: LateAction::Drop };
    let mut task = parse(body);
    let of = |task: &Task<'_>| Due::of(task, Timestamp::UNIX_EPOCH, Some(late));
    assert_eq!(of(&task), Due { base: 5000, deadline: None, late: Some(late) });
    task.occurred_at = None;
    task.late = Some(Late { after: Duration::ZERO, action: LateAction::Replay });
    assert_eq!(of(&task), Due { base: 0, deadline: None, late: task.late });
}

/// A command of a pipeline; times to live are tens of seconds.
fn chosen_by(chance: &mut fastrand::Rng) -> String {
    let mut pick = |words: &[&'static str]| words[chance.usize(..words.len())];
    let (key, other) = (pick(&["a", "b"]), pick(&["a", "b"]));
    let (ttl, value, field, flag) =
        (pick(&["10", "20", "30"]), pick(&["1", "2"]), pick(&["f", "g"]), pick(&["", "", " NX", " XX", " GT", " LT"]));
    let when = at(ttl.parse().expect("a number"));
    match chance.u8(..20) {
        0 => format!("SET {key} {value}"),
        1 | 2 => format!("SET {key} {value} EX {ttl}"),
        3 => format!("PSETEX {key} {ttl}000 {value}"),
        4 => format!("SET {key} {value} PXAT {when}{}", if flag == " NX" { flag } else { "" }),
        5 => format!("MSET a {value} b {value}"),
        6 => format!("DEL {key}"),
        7 => format!("DEL {key} {other}"),
        8 => format!("INCR {key}"),
        9 => format!("SADD {key} {field}"),
        10 => format!("SREM {key} {field}"),
        11 => format!("HSET {key} {field} {value}"),
        12 => format!("HDEL {key} {field}"),
        13 | 14 => format!("EXPIRE {key} {ttl}{flag}"),
        15 => format!("PEXPIREAT {key} {when}{flag}"),
        16 => format!("PERSIST {key}"),
        17 => format!("GETEX {key} EX {ttl}"),
        18 => format!("HSETEX {key} EX {ttl} FIELDS 1 {field} {value}"),
        _ => format!("HEXPIRE {key} {ttl} FIELDS 1 {field}"),
    }
}

/// What is taken as the usual case does not hold: a TTL of fields, which may empty the hash and so take away its own TTL,
/// before another TTL, or between one and what is written again; GETEX of what was no string before; a TTL with a condition
/// after another one, on a key whose TTL only the server knows or that was written in time before it was overwritten.
fn is_unusual(command: &Command<'_>, earlier: &[Command<'_>], later: &[Command<'_>]) -> bool {
    let same_key = |other: &&Command<'_>| other.args[0] == command.args[0];
    match command.spec.name {
        "HSETEX" | "HEXPIRE" => {
            let sets_ttl =
                |commands: &[Command<'_>]| commands.iter().filter(same_key).any(|other| other.ttl().is_some());
            sets_ttl(later) || (sets_ttl(earlier) && later.iter().any(|later| same_key(&later)))
        }
        "GETEX" => earlier.iter().filter(same_key).any(|earlier| earlier.overwrite() != Overwrite::Whole),
        _ if is_conditional(command) && earlier.iter().filter(same_key).count() > 1 => true,
        _ if command.ttl().is_some() && command.overwrite() != Overwrite::Whole => {
            !earlier.iter().filter(same_key).any(|earlier| earlier.overwrite() == Overwrite::Whole)
                && later.iter().filter(same_key).any(is_conditional)
        }
        _ => false,
    }
}

/// Runs a command at the time that its service meant. None: it fails, or it is not the usual case.
fn run_in_time(redis: &mut ModelRedis, command: &Command<'_>) -> Option<()> {
    let args: Vec<&[u8]> = command.args.iter().map(AsRef::as_ref).collect();
    let name = command.spec.name;
    let keys = [b"a", b"b"].map(|key| (key, redis.exists(key)));
    let before = redis.clone();
    redis.run(BASE, name, &args).ok()?;
    let removed = keys.iter().any(|(key, existed)| *existed && !redis.exists(*key));
    let is_conditional_set = name == "SET" && args.contains(&&b"NX"[..]);
    let is_usual = match name {
        "SREM" | "HDEL" => !removed,
        "EXPIRE" | "PEXPIREAT" | "PERSIST" | "GETEX" => before.exists(args[0]),
        "HEXPIRE" => before != *redis,
        _ => !is_conditional_set || before != *redis,
    };
    is_usual.then_some(())
}

fn run(redis: &mut ModelRedis, now: i64, command: &Command<'_>, member: Member) -> Result<(), Refused> {
    let args = command.args.iter().map(AsRef::as_ref);
    let (name, args): (_, Vec<_>) = match member {
        Member::Plain => (command.spec.name, args.map(std::borrow::Cow::Borrowed).collect()),
        Member::Expiring(at) => command.spec.with_expiry(args, command.ttl().expect("it sets one"), Expiry::At(at)),
        Member::Expired => return Ok(()),
    };
    let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
    redis.run(now, name, &args)
}

/// Whether the pipeline was one that says something.
fn try_pipeline(seed: u64) -> bool {
    let mut chance = fastrand::Rng::with_seed(seed);
    let commands: Vec<String> = (0..chance.usize(1..7)).map(|_| chosen_by(&mut chance)).collect();
    let (mode, units) = if chance.bool() { ("each", commands.len()) } else { ("atomic", 1) };
    let body = body(mode, &commands);
    let task = parse(&body);
    let Operation::Pipeline { commands: parsed, .. } = &task.operation else { panic!("it is a pipeline") };
    if parsed.iter().enumerate().any(|(number, command)| is_unusual(command, &parsed[..number], &parsed[number + 1..]))
    {
        return false;
    }
    let mut in_time = ModelRedis::default();
    if parsed.iter().any(|command| run_in_time(&mut in_time, command).is_none()) {
        return false;
    }
    let (mut late, mut now, mut has_run) = (ModelRedis::default(), BASE, vec![false; units]);
    let mut log = Vec::new();
    for unit in 0..units {
        now += chance.i64(0..4) * chance.i64(0..13) * 1000;
        let timing = due().unit(&task.operation, unit, now, |unit| has_run[unit]);
        has_run[unit] = timing != Timing::Expired { unlink: false };
        let mut run = |number: usize, member| {
            log.push(((now - BASE) / 1000, &commands[number], member));
            let answer = run(&mut late, now, &parsed[number], member);
            assert_eq!(answer, Ok(()), "seed {seed}: {mode} {commands:?}: {log:?}");
        };
        match timing {
            Timing::Expired { unlink: false } => {}
            Timing::Send(Sending::Members(members)) => {
                members.into_iter().enumerate().for_each(|(number, member)| run(number, member));
            }
            Timing::Send(Sending::Plain) if mode == "atomic" => {
                (0..parsed.len()).for_each(|number| run(number, Member::Plain));
            }
            Timing::Send(Sending::Plain) => run(unit, Member::Plain),
            Timing::Send(Sending::Expiring(at)) => run(unit, Member::Expiring(at)),
            other => panic!("{commands:?}: {other:?}"),
        }
    }
    in_time.expire(now);
    late.expire(now);
    assert_eq!(late, in_time, "seed {seed}: {mode} {commands:?}: {log:?}");
    true
}

#[test]
fn late_is_as_in_time_and_then_waiting() {
    let (mut cases, mut tried) = (0, 0);
    for seed in seeds("REDRIVE_TIMING", 10_000) {
        cases += 1;
        tried += u64::from(try_pipeline(seed));
    }
    assert!(tried > cases / 10, "{tried} of {cases} pipelines said something");
}
