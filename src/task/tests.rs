use jiff::Timestamp;

use super::*;
use crate::commands::{Class, TtlUnit};

mod late;

fn rules() -> Rules {
    Rules::new(Config::default(), [Task::DEFAULT_TARGET.to_owned()])
}

fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().expect("a time")
}

fn parse(body: &str) -> Result<Task<'_>, Refusal> {
    Task::parse(body.as_bytes(), &rules(), now())
}

#[test]
fn simple_task_has_what_the_body_says() {
    let task = parse(r#"{"type":"simple","command":"set","args":["user:{42}:x","v","EX",3600],"id":"a-1"}"#)
        .expect("accepted");
    let Operation::Simple(command) = &task.operation else { panic!("not simple") };
    assert_eq!(command.spec.name, "SET");
    assert_eq!(command.args, [&b"user:{42}:x"[..], b"v", b"EX", b"3600"]);
    assert!(command.args.iter().all(|arg| matches!(arg, Cow::Borrowed(_))));
    let id = task.id.clone().expect("an id");
    assert_eq!(task.default_ordering_key(&id), b"42");
    let units: Vec<_> = task.operation.units().collect();
    assert_eq!(units.len(), 1);
    assert_eq!(*units[0].keys, [UnitKey { bytes: b"user:{42}:x", written: true }]);
}

/// The refusal's kind, and the pointers of what is wrong, in the order of the body's check.
fn refused(body: &str) -> (RefusalKind, Vec<String>) {
    let refusal = parse(body).expect_err(body);
    (refusal.kind, refusal.errors.into_iter().map(|error| error.pointer).collect())
}

#[test]
fn what_is_wrong_is_named_by_kind_and_place() {
    use RefusalKind::*;
    let set = |more: &str| format!(r#"{{"type":"simple","command":"SET","args":["k","v"]{more}}}"#);
    let check = |body: &str, kind: RefusalKind, pointers: &[&str]| {
        let (found, places) = refused(body);
        assert_eq!((found, places), (kind, pointers.iter().map(|p| (*p).to_owned()).collect()), "{body}");
    };
    for body in ["", "SET k v", "[]", "1", "null", "\"x\"", "{", r#"{"type":"simple"} x"#] {
        check(body, MalformedJson, &[]);
    }
    check("{}", ValidationFailed, &["/type"]);
    check(r#"{"type":"other"}"#, ValidationFailed, &["/type"]);
    check(r#"{"type":"simple"}"#, ValidationFailed, &["/command"]);
    check(r#"{"type":"simple","command":"SET"}"#, ValidationFailed, &["/args"]);
    check(r#"{"type":"simple","command":"SET","args":["k"]}"#, ValidationFailed, &["/args"]);
    check(r#"{"type":"simple","command":"SET","args":["k",null]}"#, ValidationFailed, &["/args/1"]);
    check(r#"{"type":"simple","command":"SET","args":["k",{}]}"#, ValidationFailed, &["/args/1"]);
    check(r#"{"type":"simple","command":"SET","args":"k v"}"#, ValidationFailed, &["/args"]);
    check(r#"{"type":"simple","command":"SET","args":["k",true,"EX"]}"#, ValidationFailed, &["/args/1"]);
    check(r#"{"type":"simple","command":"SET","args":["k","\ud800"]}"#, ValidationFailed, &["/args/1"]);
    check(r#"{"type":"simple","command":7,"args":["k"]}"#, ValidationFailed, &["/command"]);
    check(
        r#"{"type":"simple","command":"SET","args":["aw==","?",1],"encoding":"base64"}"#,
        ValidationFailed,
        &["/args/2"],
    );
    check(
        r#"{"type":"simple","command":"SET","args":["aw==","?"],"encoding":"base64"}"#,
        ValidationFailed,
        &["/args/1"],
    );
    check(r#"{"type":"simple","command":"SETEX","args":["k","1","v","w"]}"#, ValidationFailed, &["/args/3"]);
    check(r#"{"type":"simple","command":"ZUNIONSTORE","args":["d","9","a"]}"#, ValidationFailed, &["/args/1"]);
    check(r#"{"type":"simple","command":"XGROUP","args":["HELP"]}"#, CommandNotAllowed, &["/args/0"]);
    check(r#"{"type":"simple","command":"SET","args":["k","v","EX"]}"#, ValidationFailed, &["/args/2"]);
    check(r#"{"type":"simple","command":"MSET","args":["k","v","l"]}"#, ValidationFailed, &["/args/2"]);
    check(r#"{"type":"simple","command":"SET\r\nDEL","args":["k","v"]}"#, ValidationFailed, &["/command"]);
    check(r#"{"type":"simple","command":"SET\u0000","args":["k","v"]}"#, ValidationFailed, &["/command"]);
    check(r#"{"type":"simple","command":"SET k","args":["v"]}"#, ValidationFailed, &["/command"]);
    for command in ["GET", "BLPOP", "CONFIG", "FLUSHALL", "MULTI", "WATCH", "EXEC", "SELECT", "EVAL", "SUBSCRIBE"] {
        check(&format!(r#"{{"type":"simple","command":"{command}","args":["k"]}}"#), CommandNotAllowed, &["/command"]);
    }
    check(r#"{"type":"simple","command":"SETT","args":["k"]}"#, CommandNotAllowed, &["/command"]);
    check(r#"{"type":"simple","command":"SORT","args":["k"]}"#, CommandNotAllowed, &["/command"]);
    check(r#"{"type":"pipeline"}"#, ValidationFailed, &["/commands"]);
    check(r#"{"type":"pipeline","commands":[]}"#, ValidationFailed, &["/commands"]);
    check(
        r#"{"type":"pipeline","commands":[{"command":"SET","args":["k","v"]},{"command":"SET","args":["k"]},{"command":"GET","args":["k"]}]}"#,
        ValidationFailed,
        &["/commands/1/args", "/commands/2/command"],
    );
    check(r#"{"type":"pipeline","commands":{"command":"DEL"}}"#, ValidationFailed, &["/commands"]);
    check(
        r#"{"type":"pipeline","commands":[null,"DEL k",{"command":"DEL","args":["k"],"a/b~":1}]}"#,
        ValidationFailed,
        &["/commands/0", "/commands/1", "/commands/2/a~1b~0"],
    );
    check(r#"{"type":"lua"}"#, ValidationFailed, &["/script"]);
    check(&set(r#","script":"return 1""#), ValidationFailed, &["/script"]);
    check(&set(r#","commands":[{"command":"DEL","args":["k"]}]"#), ValidationFailed, &["/commands"]);
    check(&set(r#","id":"a b""#), ValidationFailed, &["/id"]);
    check(&set(r#","max_retries":21"#), ValidationFailed, &["/max_retries"]);
    check(&set(r#","max_retries":-1"#), ValidationFailed, &["/max_retries"]);
    check(&set(r#","priority":"urgent""#), ValidationFailed, &["/priority"]);
    check(&set(r#","occurred_at":"yesterday""#), ValidationFailed, &["/occurred_at"]);
    for time in
        ["2026-11-25", "20261125T120000Z", "2026-11-25 12:00:00Z", "2026-11-25T12:00:00", "2026-11-25T12:00:00Z[UTC]"]
    {
        check(&set(&format!(r#","occurred_at":"{time}""#)), ValidationFailed, &["/occurred_at"]);
    }
    check(&set(r#","ordering_key":"""#), ValidationFailed, &["/ordering_key"]);
    check(&set(&format!(r#","source":"{}""#, "s".repeat(257))), ValidationFailed, &["/source"]);
    check(&set(&format!(r#","error":"{}""#, "e".repeat(2049))), ValidationFailed, &["/error"]);
    check(&set(r#","occurred_at":"2026-11-25T12:05:01Z""#), ValidationFailed, &["/occurred_at"]);
    check(&set(r#","target":"sessions""#), UnknownTarget, &["/target"]);
    check(&set(r#","colour":"red""#), ValidationFailed, &["/colour"]);
    check(&set(r#","id":"a","id":"b""#), ValidationFailed, &["/id"]);
    let unknown = r#"{"type":"simple","command":"INCR","args":["k"],"first_try":"unknown"}"#;
    check(unknown, OutcomeUnknown, &["/first_try"]);
    parse(&unknown.replace('}', r#","idempotent":true}"#)).expect("harmless by the client's word");
    parse(&set(r#","first_try":"unknown""#)).expect("an overwrite is harmless");
    parse(&set(r#","deadline":null,"late":null,"version":null,"ttl_args":[],"written_keys":[],"id":null"#))
        .expect("null and [] are absent");
    parse(&set(r#","occurred_at":"2026-11-25T12:05:00Z""#)).expect("five minutes ahead are allowed");
}

#[test]
fn refusals_are_bounded_and_repeat_no_contents() {
    let fields: String = (0..100).map(|n| format!(r#","unknown-{n}":1"#)).collect();
    let body =
        format!(r#"{{"type":"simple","command":"SET","args":["s3cret","s3cret","s3cret"],"id":"s3 cret"{fields}}}"#);
    let refusal = parse(&body).expect_err("refused");
    assert_eq!(refusal.errors.len(), refusal::MAX_ERRORS);
    assert!(!format!("{refusal:?}").contains("cret"));
    for body in [r#""s3cret""#, r#"{"type":"s3cret"}"#, r#"{"type":"simple","command":"S3CRET"}"#, r#"{"s3cret"#] {
        assert!(!format!("{:?}", parse(body).expect_err(body)).to_lowercase().contains("cret"), "{body}");
    }
    let long = format!(r#"{{"type":"simple","{}":1}}"#, "é".repeat(1000));
    assert!(parse(&long).expect_err("refused").errors[0].pointer.len() < 100);
}

#[test]
fn commands_that_are_harmless_alone_may_not_be_together() {
    let check = |commands: &[&[&str]], class| {
        let commands: Vec<_> = commands.iter().map(|c| serde_json::json!({"command": c[0], "args": c[1..]})).collect();
        let body = serde_json::json!({"type": "pipeline", "mode": "atomic", "commands": commands}).to_string();
        let task = parse(&body).expect(&body);
        assert_eq!(task.operation.units().next().expect("it has a unit").class, class, "{body}");
    };
    // The second time there is no set.
    check(&[&["SADD", "k", "m"], &["SET", "k", "v"]], Class::Relative);
    check(&[&["EXPIREAT", "k", "1", "XX"], &["EXPIREAT", "k", "2", "NX"]], Class::Relative);
    check(&[&["SET", "k", "v"], &["EXPIREAT", "k", "9999999999"]], Class::Idempotent);
    check(&[&["DEL", "k"], &["SADD", "k", "m"], &["SADD", "k", "n"]], Class::Idempotent);
    check(&[&["SADD", "k", "m"], &["SET", "l", "v"]], Class::Idempotent);
}

#[test]
fn units_are_what_runs_and_fails_as_one() {
    let check = |body: &str, expected: &[(Class, &[(&str, bool)])]| {
        let task = parse(body).expect(body);
        let units: Vec<_> = task.operation.units().collect();
        assert_eq!(units.len(), expected.len(), "{body}");
        for (unit, (class, keys)) in units.iter().zip(expected) {
            let found: Vec<_> = unit.keys.iter().map(|key| (key.bytes, key.written)).collect();
            let keys: Vec<_> = keys.iter().map(|(key, written)| (key.as_bytes(), *written)).collect();
            assert_eq!((unit.class, found), (*class, keys), "{body}");
        }
    };
    let commands = r#""commands":[{"command":"COPY","args":["a","b"]},{"command":"SET","args":["a","v"]}]"#;
    let each: [(Class, &[_]); 2] =
        [(Class::Relative, &[("a", false), ("b", true)]), (Class::Idempotent, &[("a", true)])];
    check(&format!(r#"{{"type":"pipeline",{commands}}}"#), &each);
    let atomic: [(Class, &[_]); 1] = [(Class::Relative, &[("a", true), ("b", true)])];
    check(&format!(r#"{{"type":"pipeline","mode":"atomic",{commands}}}"#), &atomic);
    check(r#"{"type":"lua","script":"return 1"}"#, &[(Class::Script, &[])]);
    check(r#"{"type":"lua","script":"return 1","keys":["k","k"]}"#, &[(Class::Script, &[("k", true)])]);
    let barrier = parse(r#"{"type":"lua","script":"return 1"}"#).expect("accepted");
    assert!(barrier.operation.units().all(|unit| unit.is_barrier() && barrier.is_once(&unit)));
    let harmless = parse(r#"{"type":"lua","script":"return 1","idempotent":true}"#).expect("accepted");
    assert!(harmless.operation.units().all(|unit| !harmless.is_once(&unit)));
}

#[test]
fn many_keys_come_once_each_and_in_order() {
    let keys: Vec<_> = (0..1024).map(|n| format!(r#""{}""#, n % 700)).collect();
    let body = format!(r#"{{"type":"simple","command":"DEL","args":[{}]}}"#, keys.join(","));
    let task = parse(&body).expect("accepted");
    let unit = task.operation.units().next().expect("a unit");
    let found: Vec<_> = unit.keys.iter().map(|key| String::from_utf8_lossy(key.bytes).into_owned()).collect();
    assert_eq!(found, (0..700).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn ordering_key_is_the_named_one_or_the_first_key_or_the_id() {
    let id = TaskId::parse("the-id").expect("an id");
    let check = |body: &str, key: &str| {
        assert_eq!(parse(body).expect(body).default_ordering_key(&id), key.as_bytes(), "{body}");
    };
    check(r#"{"type":"simple","command":"DEL","args":["a{b}c"],"ordering_key":"u"}"#, "u");
    check(r#"{"type":"simple","command":"DEL","args":["a{b}{c}","d"]}"#, "b");
    check(r#"{"type":"simple","command":"DEL","args":["a{}b{c}"]}"#, "a{}b{c}");
    check(r#"{"type":"simple","command":"DEL","args":["a}{b"]}"#, "a}{b");
    check(r#"{"type":"simple","command":"BITOP","args":["AND","d","s"]}"#, "d");
    check(r#"{"type":"lua","script":"return 1","keys":["k"]}"#, "k");
    check(r#"{"type":"lua","script":"return 1"}"#, "the-id");
}

#[test]
fn bounds_hold_at_their_edges() {
    let rules = Rules::new(
        Config { max_args: 3, max_arg_bytes: 4, max_commands: 2, ..Config::default() },
        ["default".to_owned()],
    );
    let check = |body: &str, pointer: Option<&str>| {
        let refusal = Task::parse(body.as_bytes(), &rules, now()).err();
        assert_eq!(refusal.map(|refusal| refusal.errors[0].pointer.clone()).as_deref(), pointer, "{body}");
    };
    check(r#"{"type":"simple","command":"DEL","args":["a","b","c"]}"#, None);
    check(r#"{"type":"simple","command":"DEL","args":["a","b","c","d"]}"#, Some("/args"));
    check(r#"{"type":"simple","command":"SET","args":["k","1234"]}"#, None);
    check(r#"{"type":"simple","command":"SET","args":["k","12345"]}"#, Some("/args/1"));
    let command = r#"{"command":"DEL","args":["a"]}"#;
    check(&format!(r#"{{"type":"pipeline","commands":[{command},{command}]}}"#), None);
    check(&format!(r#"{{"type":"pipeline","commands":[{command},{command},{command}]}}"#), Some("/commands"));
}

/// Checks at which places keys are refused.
fn keys_refused_by(config: Config) -> impl Fn(&str, &[&str]) {
    let rules = Rules::new(config, ["default".to_owned()]);
    move |body, pointers| {
        let errors = Task::parse(body.as_bytes(), &rules, now()).err().map(|refusal| {
            assert_eq!(refusal.kind, RefusalKind::KeyNotAllowed, "{body}");
            refusal.errors.into_iter().map(|error| error.pointer).collect::<Vec<_>>()
        });
        assert_eq!(errors.unwrap_or_default(), pointers, "{body}");
    }
}

#[test]
fn keys_outside_of_the_prefixes_are_refused_wherever_they_stand() {
    let check = keys_refused_by(Config { key_prefixes: vec!["app:".into()], ..Config::default() });
    check(r#"{"type":"simple","command":"SET","args":["app:1","v"]}"#, &[]);
    check(r#"{"type":"simple","command":"SET","args":["app","v"]}"#, &["/args/0"]);
    check(r#"{"type":"simple","command":"SET","args":["","v"]}"#, &["/args/0"]);
    check(r#"{"type":"simple","command":"MSET","args":["app:1","v","other","v"]}"#, &["/args/2"]);
    check(r#"{"type":"simple","command":"ZUNIONSTORE","args":["app:d","2","app:a","b"]}"#, &["/args/3"]);
    check(r#"{"type":"simple","command":"SORT","args":["app:k","STORE","d"]}"#, &["/args/2"]);
    // What SORT reads by pattern is of other keys too.
    let patterns = r#""BY","app:w_*","GET","o_*","STORE","app:d""#;
    check(&format!(r#"{{"type":"simple","command":"SORT","args":["app:k",{patterns}]}}"#), &["/args/4"]);
    check(r#"{"type":"lua","script":"return 1","keys":["app:1","x"]}"#, &["/keys/1"]);
}

#[test]
fn own_keys_are_refused_wherever_they_stand() {
    let check = keys_refused_by(Config { own_prefix: "own:".into(), ..Config::default() });
    check(r#"{"type":"simple","command":"SET","args":["redrive:1","own:1"]}"#, &[]);
    check(r#"{"type":"simple","command":"SET","args":["own:1","v"]}"#, &["/args/0"]);
    check(r#"{"type":"simple","command":"SET","args":["b3duOg==","dg=="],"encoding":"base64"}"#, &["/args/0"]);
    check(r#"{"type":"simple","command":"COPY","args":["own:1","k"]}"#, &["/args/0"]);
    check(r#"{"type":"simple","command":"SORT","args":["k","GET","own:*","STORE","d"]}"#, &["/args/2"]);
    check(r#"{"type":"pipeline","commands":[{"command":"DEL","args":["k","own:"]}]}"#, &["/commands/0/args/1"]);
    check(r#"{"type":"lua","script":"return 1","keys":["k","own:x"]}"#, &["/keys/1"]);
}

#[test]
fn scripts_are_let_in_by_policy() {
    let body = br#"{"type":"lua","script":"return 1"}"#;
    let check = |lua: LuaPolicy, kind: Option<RefusalKind>| {
        let rules = Rules::new(Config { lua, ..Config::default() }, ["default".to_owned()]);
        assert_eq!(Task::parse(body, &rules, now()).err().map(|refusal| refusal.kind), kind);
    };
    check(LuaPolicy::On, None);
    check(LuaPolicy::Off, Some(RefusalKind::CommandNotAllowed));
    // The SHA-1 of `return 1`, as redis-cli SCRIPT LOAD says it.
    check(LuaPolicy::Listed(vec!["e0e1f9fabfc9d4800c877a703b823ac0578ff8db".into()]), None);
    check(LuaPolicy::Listed(vec!["0".repeat(40)]), Some(RefusalKind::CommandNotAllowed));
}

fn identity(body: &str) -> Identity {
    parse(body).expect(body).identity(&TaskId::parse("order-1").expect("an id"))
}

/// Stored on disk: a change makes repetitions of what is stored look new.
#[test]
fn identity_is_the_same_across_releases() {
    let golden = |body: &str, hex: &str| assert_eq!(format!("{:?}", identity(body)), format!("Identity({hex})"));
    golden(r#"{"type":"simple","command":"SET","args":["k","v"]}"#, "76288e360365c45f54a075531bbd06d7");
    golden(r#"{"type":"pipeline","commands":[{"command":"DEL","args":["k"]}]}"#, "76288e360365c45f10358214fd70e8ba");
    golden(r#"{"type":"lua","script":"return 1","keys":["k"],"args":["v"]}"#, "76288e360365c45f57428b7408ed3ffc");
}

#[test]
fn identity_is_of_the_operation_and_not_of_its_spelling_or_context() {
    let plain = identity(r#"{"type":"simple","command":"SET","args":["k","17"]}"#);
    for same in [
        r#"{"type":"simple","command":"set","args":["k",17]}"#,
        r#"{"type":"simple","command":"SET","args":["\u006b","17"]}"#,
        r#"{"type":"simple","command":"SET","args":["aw==","MTc="],"encoding":"base64"}"#,
        r#"{"type":"simple","command":"SET","args":["k","17"],"trace_id":"t","max_retries":9,"priority":"low"}"#,
        r#"{"type":"simple","command":"SET","args":["k","17"],"ordering_key":"o","source":"s","error":"e"}"#,
    ] {
        assert_eq!(identity(same), plain, "{same}");
    }
    for other in [
        r#"{"type":"simple","command":"SET","args":["k","18"]}"#,
        r#"{"type":"simple","command":"SET","args":["k1","7"]}"#,
        r#"{"type":"simple","command":"GETSET","args":["k","17"]}"#,
        r#"{"type":"pipeline","commands":[{"command":"SET","args":["k","17"]}]}"#,
        r#"{"type":"pipeline","mode":"atomic","commands":[{"command":"SET","args":["k","17"]}]}"#,
    ] {
        assert_ne!(identity(other), plain, "{other}");
    }
}

#[test]
fn json_is_taken_as_it_is_meant() {
    let args = |body: &str| match parse(body).expect(body).operation {
        Operation::Simple(command) => command.args.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>(),
        _ => panic!("not simple"),
    };
    assert_eq!(
        args(r#"{"type":"simple","command":"SET","args":["a\u0000b\r\n","é"]}"#),
        [&b"a\0b\r\n"[..], "é".as_bytes()]
    );
    assert_eq!(args(r#"{"type":"simple","command":"SET","args":["k",-1.50]}"#), [&b"k"[..], b"-1.50"]);
    assert_eq!(
        args(r#"{"type":"simple","command":"SET","args":["/w==","AA"],"encoding":"base64"}"#),
        [&[0xff][..], &[0]]
    );
    // A number stays the text that it was sent as: it is not calculated with.
    assert_eq!(args(r#"{"type":"simple","command":"SET","args":["k",1e999]}"#), [&b"k"[..], b"1e999"]);
    parse(r#"{"type":"simple","command":"SET","args":["k","\ud800"]}"#).expect_err("half a character");
    let deep = format!(r#"{{"type":"simple","command":"SET","args":{}"k"{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    parse(&deep).expect_err("the depth is bounded");
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Task::parse(&body, &rules(), now());
        }

        /// Close to a task, so that what is behind the syntax is reached.
        #[test]
        fn no_field_makes_it_panic(
            kind in prop::sample::select(vec!["simple", "pipeline", "lua"]),
            field in prop::sample::select(vec![
                "command", "args", "commands", "mode", "script", "keys", "id", "target", "priority", "max_retries",
                "ordering_key", "occurred_at", "first_try", "encoding", "idempotent", "deadline", "x\"y/~",
            ]),
            value in prop::sample::select(vec![
                "null", "[]", "{}", "1", "-1", "1e400", "true", "\"\"", "\"SET\"", "[null]", "[[]]", "[1,\"k\"]",
                "[{\"command\":\"SET\"}]", "\"base64\"", "\"2026-11-25T12:00:00+25:00\"",
            ]),
        ) {
            let name = serde_json::to_string(field).expect("a string");
            let body = format!(r#"{{"type":"{kind}","command":"SET","args":["k","v"],{name}:{value}}}"#);
            if let Err(refusal) = Task::parse(body.as_bytes(), &rules(), now()) {
                prop_assert!(!refusal.detail.is_empty());
                prop_assert!(refusal.errors.iter().all(|error| error.pointer.starts_with('/')));
            }
        }

        #[test]
        fn what_is_parsed_is_what_was_sent(args in prop::collection::vec("\\PC{0,20}", 1..10)) {
            let body = serde_json::json!({"type": "simple", "command": "DEL", "args": args}).to_string();
            let task = parse(&body).expect("any strings are keys");
            let Operation::Simple(command) = &task.operation else { panic!("not simple") };
            prop_assert_eq!(command.args.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>(),
                args.iter().map(|arg| arg.clone().into_bytes()).collect::<Vec<_>>());
            let distinct: std::collections::BTreeSet<_> = args.iter().collect();
            prop_assert_eq!(task.operation.units().next().expect("a unit").keys.len(), distinct.len());
        }
    }
}
