//! A write that comes late means what it meant: times to live, deadlines, lateness, versions.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::harness::{Redis, Sidecar, resp::Reply, set, simple};

/// How long before its acceptance a task was meant, in seconds.
const AGO: i64 = 40;
/// A time to live that ends long after the test, and one that ended before it began, in seconds.
const LONG: i64 = 1000;
const SHORT: i64 = 10;
/// What a time to live may be off, in milliseconds.
const TOLERANCE_MS: i64 = 1000;

/// A command that sets a time to live, on a key that is there or not. `TTL` and `TTLMS` stand for it.
struct Row {
    name: &'static str,
    command: &'static [&'static str],
    /// What the key held before, as `SET` arguments behind the key.
    before: Option<&'static [&'static str]>,
}

const fn row(name: &'static str, command: &'static [&'static str], before: Option<&'static [&'static str]>) -> Row {
    Row { name, command, before }
}

/// A string as DUMP of Redis 7.0 gives it, in base64: `v`.
const DUMPED: &str = "AAF2CgCRCM6yGTiKzg==";

const ROWS: [Row; 17] = [
    row("set-ex", &["SET", "KEY", "v", "EX", "TTL"], None),
    row("set-px", &["SET", "KEY", "v", "PX", "TTLMS"], None),
    row("set-xx-ex", &["SET", "KEY", "v", "XX", "EX", "TTL"], Some(&["v"])),
    row("set-nx-px", &["SET", "KEY", "v", "PX", "TTLMS", "NX"], None),
    row("setex", &["SETEX", "KEY", "TTL", "v"], None),
    row("psetex", &["PSETEX", "KEY", "TTLMS", "v"], None),
    row("getex-ex", &["GETEX", "KEY", "EX", "TTL"], Some(&["v"])),
    row("getex-px", &["GETEX", "KEY", "PX", "TTLMS"], Some(&["v"])),
    row("expire", &["EXPIRE", "KEY", "TTL"], Some(&["v"])),
    row("pexpire", &["PEXPIRE", "KEY", "TTLMS"], Some(&["v"])),
    row("expire-nx", &["EXPIRE", "KEY", "TTL", "NX"], Some(&["v"])),
    row("expire-xx", &["EXPIRE", "KEY", "TTL", "XX"], Some(&["v", "EX", "5000"])),
    row("expire-gt", &["EXPIRE", "KEY", "TTL", "GT"], Some(&["v", "EX", "500"])),
    row("expire-lt", &["EXPIRE", "KEY", "TTL", "LT"], Some(&["v"])),
    row("pexpire-nx", &["PEXPIRE", "KEY", "TTLMS", "NX"], Some(&["v"])),
    row("restore", &["RESTORE", "KEY", "TTLMS", "DUMP"], None),
    row("restore-replace", &["RESTORE", "KEY", "TTLMS", "DUMP", "REPLACE"], Some(&["other"])),
];

/// The same of a hash's field; the hash is there before, unless the command makes it.
const FIELD_ROWS: [Row; 6] = [
    row("hexpire", &["HEXPIRE", "KEY", "TTL", "FIELDS", "1", "f"], None),
    row("hpexpire", &["HPEXPIRE", "KEY", "TTLMS", "FIELDS", "1", "f"], None),
    row("hgetex-ex", &["HGETEX", "KEY", "EX", "TTL", "FIELDS", "1", "f"], None),
    row("hgetex-px", &["HGETEX", "KEY", "PX", "TTLMS", "FIELDS", "1", "f"], None),
    row("hsetex-ex", &["HSETEX", "KEY", "EX", "TTL", "FIELDS", "1", "f", "v"], None),
    row("hsetex-px", &["HSETEX", "KEY", "PX", "TTLMS", "FIELDS", "1", "f", "v"], None),
];

/// How a row's command is part of a task.
const FORMS: [&str; 4] = ["alone", "each", "atomic", "once"];

fn task(row: &Row, form: &str, ttl: i64) -> (String, Value) {
    let name = format!("{}-{form}-{ttl}", row.name);
    let base64 = |text: &str| {
        use base64::Engine as _;
        base64::prelude::BASE64_STANDARD.encode(text)
    };
    let words: Vec<String> = row.command[1..]
        .iter()
        .map(|word| match *word {
            "KEY" => base64(&name),
            "TTL" => base64(&ttl.to_string()),
            "TTLMS" => base64(&(ttl * 1000).to_string()),
            "DUMP" => DUMPED.to_owned(),
            word => base64(word),
        })
        .collect();
    let command = json!({"command": row.command[0], "args": words});
    let other = json!({"command": "SET", "args": [base64(&format!("{name}-other")), base64("1")]});
    let count = json!({"command": "INCR", "args": [base64(&format!("{name}-count"))]});
    let mut task = match form {
        "alone" => json!({"type": "simple", "command": command["command"], "args": command["args"]}),
        "each" => json!({"type": "pipeline", "commands": [other, command]}),
        "atomic" => json!({"type": "pipeline", "mode": "atomic", "commands": [command, other]}),
        "once" => json!({"type": "pipeline", "mode": "atomic", "commands": [count, command]}),
        other => unreachable!("{other} is no form"),
    };
    task["id"] = name.clone().into();
    task["encoding"] = "base64".into();
    task["occurred_at"] =
        Timestamp::from_second(Timestamp::now().as_second() - AGO).expect("a time").to_string().into();
    (name, task)
}

fn integer(reply: &Reply) -> i64 {
    match reply {
        Reply::Integer(number) => *number,
        other => panic!("{other:?} is no number"),
    }
}

fn before(redis: &Redis, row: &Row, key: &str) {
    if let Some(value) = row.before {
        let mut words = vec!["SET", key];
        words.extend(value);
        redis.cli(&words);
    }
}

/// All rows in all forms, queued while Redis is away; the sidecar is killed in between.
#[test]
fn time_to_live_ends_when_the_service_meant_it() {
    let mut redis = Redis::durable();
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let all = |ttl: i64| ROWS.iter().flat_map(move |row| FORMS.map(|form| (row, task(row, form, ttl))));
    let mut tasks = Vec::new();
    for (row, (name, task)) in all(LONG).chain(all(SHORT)) {
        before(&redis, row, &name);
        tasks.push(task);
    }
    redis.kill9();
    let meant_ms = (Timestamp::now().as_second() - AGO) * 1000;
    for chunk in tasks.chunks(50) {
        sidecar.batch(chunk);
    }
    sidecar.kill9();
    sidecar.restart();
    redis.restart();
    sidecar.wait_until_done();
    assert_eq!(sidecar.ops("/admin/v1/dead-letters").json()["items"], json!([]));
    let now_ms = Timestamp::now().as_millisecond();
    for (_, (name, _)) in all(LONG) {
        assert_eq!(redis.get(&name), "v", "{name}");
        let rest = integer(&redis.cli(&["PTTL", &name]));
        let expected = meant_ms + LONG * 1000 - now_ms;
        // The tasks were made within the second after `meant_ms` was read.
        assert!((rest - expected).abs() <= TOLERANCE_MS + 1000, "{name}: {rest} ms are left, not {expected}");
        assert_eq!(sidecar.get(&name).json()["outcome"], "applied", "{name}");
    }
    for (row, (name, _)) in all(SHORT) {
        let value = redis.cli(&["GET", &name]);
        match row.before {
            // It stays as it was: another writer's value is none of this task's business.
            Some(value) => assert_eq!(redis.get(&name), value[0], "{name}"),
            None => assert_eq!(value, Reply::Bulk(None), "{name}"),
        }
        let outcome = if name.contains("-alone-") { "expired" } else { "applied" };
        assert_eq!(sidecar.get(&name).json()["outcome"], outcome, "{name}");
        if name.contains("-once-") {
            assert_eq!(redis.get(&format!("{name}-count")), "1", "{name}: what is left of it runs");
        } else if !name.contains("-alone-") {
            assert_eq!(redis.get(&format!("{name}-other")), "1", "{name}: what is left of it runs");
        }
    }
}

/// As above, on a server that has TTLs of fields.
#[test]
fn time_to_live_of_a_field_ends_when_the_service_meant_it() {
    let mut redis = Redis::durable_and_newer();
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    let all = |ttl: i64| FIELD_ROWS.iter().flat_map(move |row| FORMS.map(|form| (row, task(row, form, ttl))));
    let is_made = |row: &Row| row.name.starts_with("hsetex");
    let mut tasks = Vec::new();
    for (row, (name, task)) in all(LONG).chain(all(SHORT)) {
        if !is_made(row) {
            redis.cli(&["HSET", &name, "f", "v"]);
        }
        tasks.push(task);
    }
    redis.kill9();
    let meant_ms = (Timestamp::now().as_second() - AGO) * 1000;
    sidecar.batch(&tasks);
    sidecar.kill9();
    sidecar.restart();
    redis.restart();
    sidecar.wait_until_done();
    assert_eq!(sidecar.ops("/admin/v1/dead-letters").json()["items"], json!([]));
    let now_ms = Timestamp::now().as_millisecond();
    let rest_of = |name: &str| match redis.cli(&["HPTTL", name, "FIELDS", "1", "f"]) {
        Reply::Array(each) => integer(&each[0]),
        other => panic!("{name}: {other:?}"),
    };
    for (_, (name, _)) in all(LONG) {
        assert_eq!(redis.cli(&["HGET", &name, "f"]).text(), "v", "{name}");
        let expected = meant_ms + LONG * 1000 - now_ms;
        let rest = rest_of(&name);
        assert!((rest - expected).abs() <= TOLERANCE_MS + 1000, "{name}: {rest} ms are left, not {expected}");
        assert_eq!(sidecar.get(&name).json()["outcome"], "applied", "{name}");
    }
    for (row, (name, _)) in all(SHORT) {
        if is_made(row) {
            assert_eq!(redis.cli(&["EXISTS", &name]).text(), "0", "{name}");
        } else {
            assert_eq!((redis.cli(&["HGET", &name, "f"]).text(), rest_of(&name)), ("v".to_owned(), -1), "{name}");
        }
        let outcome = if name.contains("-alone-") { "expired" } else { "applied" };
        assert_eq!(sidecar.get(&name).json()["outcome"], outcome, "{name}");
    }
}

fn ago(seconds: i64) -> String {
    Timestamp::from_second(Timestamp::now().as_second() - seconds).expect("a time").to_string()
}

fn with(mut task: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("an object") {
        task[name] = value.clone();
    }
    task
}

fn pipeline(id: &str, mode: &str, commands: &[&[&str]]) -> Value {
    let commands: Vec<Value> = commands.iter().map(|words| json!({"command": words[0], "args": words[1..]})).collect();
    json!({"id": id, "type": "pipeline", "mode": mode, "commands": commands})
}

#[test]
fn ttl_that_is_over_takes_the_rest_of_its_pipeline_on_that_key_with_it() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let meant = json!({"occurred_at": ago(AGO)});
    for mode in ["each", "atomic"] {
        let key = |name: &str| format!("{mode}-{name}");
        let (set_expire, later, persist) = (key("set-expire"), key("later"), key("persist"));
        let tasks = [
            pipeline(&set_expire, mode, &[&["SET", &set_expire, "1"], &["EXPIRE", &set_expire, "10"]]),
            // What comes after a whole overwrite has nothing to do with what was there before.
            pipeline(&later, mode, &[&["SET", &later, "1", "EX", "10"], &["SET", &later, "2"]]),
            pipeline(&persist, mode, &[&["SET", &persist, "1", "EX", "10"], &["PERSIST", &persist]]),
        ];
        for task in tasks {
            sidecar.post(&with(task, meant.clone()));
        }
        sidecar.wait_until_done();
        assert_eq!(redis.cli(&["EXISTS", &set_expire]), Reply::Integer(0));
        assert_eq!(sidecar.get(&set_expire).json()["outcome"], "expired");
        assert_eq!(redis.get(&later), "2");
        assert_eq!(redis.cli(&["PTTL", &later]), Reply::Integer(-1));
        assert_eq!(redis.get(&persist), "1");
        assert_eq!(redis.cli(&["PTTL", &persist]), Reply::Integer(-1));
    }
    assert_eq!(sidecar.ops("/admin/v1/dead-letters").json()["items"], json!([]));
}

#[test]
fn script_gets_what_remains_of_its_times_to_live() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let source = "redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])";
    let script = |id: &str, ttl: &str| {
        json!({
            "id": id, "type": "lua", "script": source, "keys": [id], "args": [ttl, "100000", "7"],
            "ttl_args": [{"index": 0, "unit": "s"}, {"index": 1, "unit": "ms"}], "occurred_at": ago(AGO),
        })
    };
    sidecar.post(&script("live", "1000"));
    sidecar.post(&script("over", "10"));
    sidecar.wait_until_done();
    let live: Vec<i64> = redis.get("live").split(' ').map(|word| word.parse().expect("a number")).collect();
    assert!((LONG - AGO - 2..=LONG - AGO).contains(&live[0]), "{live:?}");
    assert!((58_000..=60_000).contains(&live[1]), "{live:?}");
    assert_eq!(live[2], 7);
    assert_eq!(redis.cli(&["EXISTS", "over"]), Reply::Integer(0));
    assert_eq!(sidecar.get("over").json()["outcome"], "expired");
}

#[test]
fn late_tasks_do_what_they_say() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let keys = ["replay", "invalidate", "drop", "expired", "deadline", "in-time", "script", "counted"];
    for key in keys {
        redis.cli(&["SET", key, "newer"]);
    }
    redis.cli(&["SET", "script-read", "newer"]);
    let late =
        |action: &str, after_ms: i64| json!({"occurred_at": ago(AGO), "late": {"after_ms": after_ms, "do": action}});
    sidecar.post(&with(set("replay", "replay", "older"), late("replay", 1000)));
    sidecar.post(&with(set("invalidate", "invalidate", "older"), late("invalidate", 1000)));
    sidecar.post(&with(set("drop", "drop", "older"), late("drop", 1000)));
    sidecar.post(&with(simple("expired", "SET", &["expired", "older", "EX", "10"]), late("invalidate", 3_600_000)));
    sidecar.post(&with(set("deadline", "deadline", "older"), json!({"deadline": ago(1)})));
    sidecar.post(&with(set("in-time", "in-time", "older"), late("drop", 3_600_000)));
    let script = json!({
        "id": "script", "type": "lua", "script": "redis.call('SET', KEYS[1], redis.call('GET', KEYS[2]))",
        "keys": ["script", "script-read"], "written_keys": ["script"],
    });
    sidecar.post(&with(script, late("invalidate", 1000)));
    sidecar.post(&with(simple("counted", "INCR", &["counted"]), late("invalidate", 0)));
    sidecar.wait_until_done();
    let outcome = |id: &str| sidecar.get(id).json()["outcome"].as_str().map(str::to_owned);
    for (key, value, expected) in [
        ("replay", Some("older"), "applied"),
        ("invalidate", None, "invalidated"),
        ("drop", Some("newer"), "discarded"),
        ("expired", None, "expired"),
        ("deadline", Some("newer"), "expired"),
        ("in-time", Some("older"), "applied"),
        ("script", None, "invalidated"),
        ("counted", None, "invalidated"),
    ] {
        assert_eq!(outcome(key).as_deref(), Some(expected), "{key}");
        match value {
            Some(value) => assert_eq!(redis.get(key), value, "{key}"),
            None => assert_eq!(redis.cli(&["EXISTS", key]), Reply::Integer(0), "{key}"),
        }
        assert!(sidecar.settled(expected) > 0, "{expected} is counted");
    }
    assert_eq!(redis.get("script-read"), "newer", "what a script only reads is left alone");
}

#[test]
fn older_version_never_wins() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    // Above 2^53 two of these are one number to Lua.
    let (older, newer) = ("9007199254740992", "9007199254740993");
    sidecar.post(&with(set("newer", "k", "newer"), json!({"version": newer})));
    sidecar.wait_until_done();
    sidecar.post(&with(set("older", "k", "older"), json!({"version": older})));
    sidecar.post(&with(simple("older-del", "DEL", &["k"]), json!({"version": "9"})));
    sidecar.post(&with(simple("older-expire", "EXPIRE", &["k", "1"]), json!({"version": older})));
    sidecar.wait_until_done();
    assert_eq!(redis.get("k"), "newer");
    assert_eq!(redis.cli(&["PTTL", "k"]), Reply::Integer(-1));
    for id in ["older", "older-del", "older-expire"] {
        assert_eq!(sidecar.get(id).json()["outcome"], "stale", "{id}");
    }
    sidecar.post(&with(simple("newest", "EXPIRE", &["k", "1000"]), json!({"version": "9007199254740994"})));
    sidecar.wait_until_done();
    assert_eq!(sidecar.get("newest").json()["outcome"], "applied");
    assert!(integer(&redis.cli(&["PTTL", "k"])) > 0);
}

#[test]
fn rules_of_the_file_decide_what_a_task_leaves_open() {
    let redis = Redis::start(&[]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("redrive.toml");
    let rules = "[[rules]]\nkey = \"cache:*\"\nlate = { after = \"1s\", do = \"invalidate\" }\n\n\
                 [[rules]]\nsource = \"presence\"\nlate = { after = \"1s\", do = \"drop\" }\n";
    std::fs::write(&file, rules).expect("the file is written");
    let sidecar = Sidecar::start(&redis.url(), &["--config", file.to_str().expect("a path in UTF-8")]);
    let late = |task: Value| with(task, json!({"occurred_at": ago(AGO)}));
    sidecar.post(&late(set("cached", "cache:1", "older")));
    sidecar.post(&late(with(set("present", "presence:1", "older"), json!({"source": "presence"}))));
    sidecar.post(&late(with(set("own-word", "cache:2", "older"), json!({"late": {"after_ms": 0, "do": "replay"}}))));
    sidecar.post(&late(set("other", "other", "older")));
    sidecar.wait_until_done();
    for (id, outcome) in
        [("cached", "invalidated"), ("present", "discarded"), ("own-word", "applied"), ("other", "applied")]
    {
        assert_eq!(sidecar.get(id).json()["outcome"], outcome, "{id}");
    }
}
