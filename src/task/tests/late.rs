//! How long a task is true: `deadline`, `late`, `version`, `ttl_args`, `written_keys`.

use std::time::Duration;

use super::*;

fn parse(body: &str) -> Result<Task<'_>, Refusal> {
    Task::parse(body.as_bytes(), &rules(), now())
}

/// What is wrong, by kind and place.
fn check(body: &str, kind: RefusalKind, pointers: &[&str]) {
    let refusal = parse(body).expect_err(body);
    let places: Vec<_> = refusal.errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!((refusal.kind, places.as_slice()), (kind, pointers), "{body}");
}

fn invalid(body: &str, pointers: &[&str]) {
    check(body, RefusalKind::ValidationFailed, pointers);
}

fn set(more: &str) -> String {
    format!(r#"{{"type":"simple","command":"SET","args":["k","v"],{more}}}"#)
}

fn lua(more: &str) -> String {
    format!(r#"{{"type":"lua","script":"return 1","keys":["a","b","a"],"args":["x","60","1500"],{more}}}"#)
}

#[test]
fn deadline_is_any_time() {
    for at in ["2026-11-25T13:00:00Z", "1999-12-31T23:59:59.5+01:00", "2099-01-01T00:00:00Z"] {
        let body = set(&format!(r#""deadline":"{at}""#));
        assert_eq!(parse(&body).expect(&body).deadline, Some(at.parse().expect("a time")));
    }
    for wrong in [r#""tomorrow""#, "1764000000", "{}", r#""2026-11-25""#] {
        invalid(&set(&format!(r#""deadline":{wrong}"#)), &["/deadline"]);
    }
}

#[test]
fn late_says_what_to_do_and_after_how_long() {
    let late = |late: &str| parse(&set(&format!(r#""late":{late}"#))).expect(late).late;
    let expected = |ms, action| Some(Late { after: Duration::from_millis(ms), action });
    assert_eq!(late(r#"{"after_ms":30000,"do":"invalidate"}"#), expected(30_000, LateAction::Invalidate));
    assert_eq!(late(r#"{"do":"drop","after_ms":0}"#), expected(0, LateAction::Drop));
    assert_eq!(late(r#"{"do":"replay","after_ms":3153600000000}"#), expected(3_153_600_000_000, LateAction::Replay));
    assert_eq!(late("null"), None);
    assert_eq!(late("[]"), None);
    for (wrong, pointers) in [
        ("1", &["/late"][..]),
        (r#""drop""#, &["/late"]),
        ("[1]", &["/late"]),
        ("{}", &["/late/after_ms", "/late/do"]),
        (r#"{"do":"drop"}"#, &["/late/after_ms"]),
        (r#"{"after_ms":1}"#, &["/late/do"]),
        (r#"{"after_ms":null,"do":null}"#, &["/late/after_ms", "/late/do"]),
        (r#"{"after_ms":-1,"do":"drop"}"#, &["/late/after_ms"]),
        (r#"{"after_ms":1.5,"do":"drop"}"#, &["/late/after_ms"]),
        (r#"{"after_ms":"1","do":"drop"}"#, &["/late/after_ms"]),
        (r#"{"after_ms":3153600000001,"do":"drop"}"#, &["/late/after_ms"]),
        (r#"{"after_ms":1,"do":"explode"}"#, &["/late/do"]),
        (r#"{"after_ms":1,"do":["drop"]}"#, &["/late/do"]),
        (r#"{"after_ms":1,"do":"drop","else":1}"#, &["/late/else"]),
        (r#"{"after_ms":1,"do":"drop","do":"replay"}"#, &["/late/do"]),
    ] {
        invalid(&set(&format!(r#""late":{wrong}"#)), pointers);
    }
    invalid(&set(r#""late":null,"late":{"after_ms":1,"do":"drop"}"#), &["/late"]);
}

#[test]
fn version_is_of_one_unit_that_writes_one_key() {
    let parsed = |body: &str| parse(body).expect(body).version.map(|version| version.to_string());
    assert_eq!(parsed(&set(r#""version":"17""#)).as_deref(), Some("17"));
    for wrong in ["17", r#""017""#, r#""v17""#, r#""""#, r#""9223372036854775808""#] {
        invalid(&set(&format!(r#""version":{wrong}"#)), &["/version"]);
    }
    let ok = |body: &str| assert_eq!(parsed(body).as_deref(), Some("1"), "{body}");
    let simple = |command: &str, args: &str| {
        format!(r#"{{"type":"simple","command":"{command}","args":[{args}],"version":"1"}}"#)
    };
    ok(&simple("COPY", r#""a","b""#));
    ok(&simple("DEL", r#""a","a""#));
    ok(&simple("SUNIONSTORE", r#""d","a","b""#));
    invalid(&simple("DEL", r#""a","b""#), &["/version"]);
    invalid(&simple("RENAME", r#""a","b""#), &["/version"]);
    invalid(&simple("BITFIELD", r#""a","GET","u8","0""#), &["/version"]);
    let pipeline = |mode: &str, keys: &[&str]| {
        let commands: Vec<_> = keys.iter().map(|key| format!(r#"{{"command":"INCR","args":["{key}"]}}"#)).collect();
        let commands = commands.join(",");
        format!(r#"{{"type":"pipeline","mode":"{mode}","commands":[{commands}],"version":"1"}}"#)
    };
    ok(&pipeline("atomic", &["a", "a"]));
    ok(&pipeline("each", &["a"]));
    invalid(&pipeline("atomic", &["a", "b"]), &["/version"]);
    invalid(&pipeline("each", &["a", "a"]), &["/version"]);
    let lua = |more: &str| format!(r#"{{"type":"lua","script":"return 1","version":"1"{more}}}"#);
    ok(&lua(r#","keys":["a","a"]"#));
    ok(&lua(r#","keys":["a","b"],"written_keys":["b"]"#));
    invalid(&lua(""), &["/version"]);
    invalid(&lua(r#","keys":["a","b"]"#), &["/version"]);
    // What cannot be an operation at all is told first.
    invalid(&simple("DEL", ""), &["/args"]);
}

#[test]
fn ttl_args_name_arguments_that_are_times_to_live() {
    let script = |body: &str| match parse(body).expect(body).operation {
        Operation::Lua(script) => script.ttl_args,
        _ => panic!("a script"),
    };
    let two = script(&lua(r#""ttl_args":[{"index":1,"unit":"s"},{"unit":"ms","index":2}]"#));
    let arg = |index, unit| TtlArg { index, unit };
    assert_eq!(two, [arg(1, TtlUnit::Seconds), arg(2, TtlUnit::Millis)]);
    assert_eq!(script(&lua(r#""ttl_args":[]"#)), []);
    assert_eq!(script(&lua(r#""ttl_args":null"#)), []);
    for (wrong, pointers) in [
        ("1", &["/ttl_args"][..]),
        (r#"{"index":1,"unit":"s"}"#, &["/ttl_args"]),
        ("[null,1]", &["/ttl_args/0", "/ttl_args/1"]),
        ("[{}]", &["/ttl_args/0/unit", "/ttl_args/0/index"]),
        (r#"[{"index":3,"unit":"s"}]"#, &["/ttl_args/0/index"]),
        (r#"[{"index":-1,"unit":"s"}]"#, &["/ttl_args/0/index"]),
        (r#"[{"index":18446744073709551615,"unit":"s"}]"#, &["/ttl_args/0/index"]),
        (r#"[{"index":1,"unit":"m"}]"#, &["/ttl_args/0/unit"]),
        (r#"[{"index":0,"unit":"s"}]"#, &["/args/0"]),
        (r#"[{"index":1,"unit":"s"},{"index":1,"unit":"ms"}]"#, &["/ttl_args/1/index"]),
        (r#"[{"index":1,"unit":"s","of":"k"}]"#, &["/ttl_args/0/of"]),
        (r#"[{},{},{},{}]"#, &["/ttl_args"]),
    ] {
        invalid(&lua(&format!(r#""ttl_args":{wrong}"#)), pointers);
    }
    for arg in ["0", "-5", "+5", "05", "1.5", "", "9223372036854775808"] {
        let body =
            format!(r#"{{"type":"lua","script":"return 1","args":["{arg}"],"ttl_args":[{{"index":0,"unit":"s"}}]}}"#);
        invalid(&body, &["/args/0"]);
    }
    invalid(&set(r#""ttl_args":[{"index":1,"unit":"s"}]"#), &["/ttl_args"]);
}

#[test]
fn script_is_sent_what_is_left_of_its_times_to_live() {
    let body = lua(r#""ttl_args":[{"index":1,"unit":"s"},{"index":2,"unit":"ms"}]"#);
    let Operation::Lua(script) = parse(&body).expect("accepted").operation else { panic!("a script") };
    assert_eq!(script.expires_at_ms(1_000_000), Some(1_001_500));
    let at = |now| {
        let args = script.args_at(1_000_000, now)?;
        Some(args.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(at(1_000_000).as_deref(), Some("x 60 1500"));
    assert_eq!(at(1_001_000).as_deref(), Some("x 59 500"));
    assert_eq!(at(1_000_001).as_deref(), Some("x 60 1499"));
    assert_eq!(at(1_001_499).as_deref(), Some("x 59 1"));
    assert_eq!(at(1_001_500), None);
    // The service's clock is ahead: what it meant ends when it said.
    assert_eq!(at(999_000).as_deref(), Some("x 61 2500"));
    let plain = lua(r#""idempotent":true"#);
    let Operation::Lua(script) = parse(&plain).expect("accepted").operation else { panic!("a script") };
    assert_eq!(script.expires_at_ms(0), None);
    assert_eq!(script.args_at(0, i64::MAX), Some(script.args.clone()));
    // More than there can be of it has no end.
    let endless = lua(r#""ttl_args":[{"index":1,"unit":"s"}]"#).replace("60", "9223372036854775807");
    let Operation::Lua(script) = parse(&endless).expect("accepted").operation else { panic!("a script") };
    assert_eq!(script.expires_at_ms(0), None);
    assert_eq!(script.args_at(0, i64::MAX), Some(script.args.clone()));
}

#[test]
fn written_keys_are_those_that_a_script_writes() {
    let keys = |more: &str| {
        let body = lua(more);
        let task = parse(&body).expect(&body);
        let unit = task.operation.units().next().expect("a unit");
        unit.keys.iter().map(|key| (String::from_utf8_lossy(key.bytes).into_owned(), key.written)).collect::<Vec<_>>()
    };
    let expected = |a, b| [("a".to_owned(), a), ("b".to_owned(), b)];
    assert_eq!(keys(r#""written_keys":["b"]"#), expected(false, true));
    assert_eq!(keys(r#""written_keys":["a","a"]"#), expected(true, false));
    assert_eq!(keys(r#""written_keys":["b","a"]"#), expected(true, true));
    assert_eq!(keys(r#""written_keys":[]"#), expected(true, true));
    assert_eq!(keys(r#""written_keys":null"#), expected(true, true));
    assert_eq!(keys(r#""idempotent":true"#), expected(true, true));
    invalid(&lua(r#""written_keys":["b","c","A"]"#), &["/written_keys/1", "/written_keys/2"]);
    invalid(&lua(r#""written_keys":"a""#), &["/written_keys"]);
    invalid(&lua(r#""written_keys":[null]"#), &["/written_keys/0"]);
    invalid(&set(r#""written_keys":["k"]"#), &["/written_keys"]);
    let base64 =
        r#"{"type":"lua","script":"return 1","keys":["/w==","AA=="],"written_keys":["AA"],"encoding":"base64"}"#;
    let task = parse(base64).expect("decoded before they are compared");
    let Operation::Lua(script) = task.operation else { panic!("a script") };
    assert_eq!(script.written, Some(vec![1]));
}

#[test]
fn identity_has_what_changes_the_operation() {
    let identity = |body: &str| parse(body).expect(body).identity(&TaskId::parse("order-1").expect("an id"));
    let golden = |body: &str, hex: &str| assert_eq!(format!("{:?}", identity(body)), format!("Identity({hex})"));
    golden(&set(r#""version":"7""#), "76288e360365c45f8c34fdb33a635dfd");
    let script = lua(r#""ttl_args":[{"index":1,"unit":"s"},{"index":2,"unit":"ms"}],"written_keys":["b"]"#);
    golden(&script, "76288e360365c45fb742a65d9a332d0d");
    let plain = identity(&set(r#""source":"s""#));
    assert_eq!(plain, super::identity(r#"{"type":"simple","command":"SET","args":["k","v"]}"#));
    assert_eq!(plain, identity(&set(r#""deadline":"2026-11-25T13:00:00Z""#)));
    assert_eq!(plain, identity(&set(r#""late":{"after_ms":1,"do":"drop"}"#)));
    let distinct = [
        lua(r#""id":"a""#),
        lua(r#""version":"1","written_keys":["b"]"#),
        lua(r#""version":"2","written_keys":["b"]"#),
        lua(r#""written_keys":["b"]"#),
        lua(r#""written_keys":["a"]"#),
        lua(r#""ttl_args":[{"index":1,"unit":"s"}]"#),
        lua(r#""ttl_args":[{"index":1,"unit":"ms"}]"#),
        lua(r#""ttl_args":[{"index":2,"unit":"ms"}]"#),
    ]
    .map(|body| *identity(&body).as_bytes());
    assert_eq!(std::collections::BTreeSet::from(distinct).len(), distinct.len());
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_value_makes_it_panic(
            kind in prop::sample::select(vec!["simple", "pipeline", "lua"]),
            field in prop::sample::select(vec!["deadline", "late", "version", "ttl_args", "written_keys"]),
            value in prop::sample::select(vec![
                "null", "[]", "{}", "1", "true", "\"\"", "\"7\"", "[null]", "[[]]", "[1]", "[\"k\"]", "[{}]",
                "{\"after_ms\":[],\"do\":{}}", "{\"after_ms\":1,\"do\":\"drop\"}", "{\"after_ms\":18446744073709551615}",
                "[{\"index\":0,\"unit\":\"s\"},{\"index\":[]}]", "\"2026-11-25T12:00:00Z\"",
                "\"-009999-01-01T00:00:00Z\"",
            ]),
        ) {
            let operation = match kind {
                "simple" => r#""command":"SET","args":["k","7"]"#,
                "pipeline" => r#""commands":[{"command":"SET","args":["k","7"]}]"#,
                _ => r#""script":"return 1","keys":["k"],"args":["7"]"#,
            };
            let body = format!(r#"{{"type":"{kind}",{operation},"{field}":{value}}}"#);
            match parse(&body) {
                Ok(task) => drop(task.identity(&TaskId::new())),
                Err(refusal) => prop_assert!(
                    refusal.errors.iter().all(|error| error.pointer.starts_with('/')) && !refusal.errors.is_empty()
                ),
            }
        }

        #[test]
        fn script_gets_what_is_left_and_less_than_a_unit_more(
            amount in 1..i64::MAX,
            seconds in any::<bool>(),
            base in 0..1_i64 << 42,
            passed in 0..1_i64 << 40,
        ) {
            let (unit, size) = if seconds { ("s", 1000) } else { ("ms", 1) };
            let body = format!(
                r#"{{"type":"lua","script":"","args":["{amount}"],"ttl_args":[{{"index":0,"unit":"{unit}"}}]}}"#
            );
            let Operation::Lua(script) = parse(&body).expect("accepted").operation else { panic!("a script") };
            let now = base + passed;
            let end = i128::from(base) + i128::from(amount) * size;
            let sent = script.args_at(base, now);
            if end <= i128::from(now) {
                prop_assert_eq!(sent, None);
            } else if end <= i128::from(i64::MAX) {
                let sent = String::from_utf8_lossy(&sent.expect("something is left")[0]).parse::<i128>().expect("a number");
                let left = end - i128::from(now);
                prop_assert!(sent * size >= left && (sent - 1) * size < left);
                prop_assert_eq!(script.expires_at_ms(base).map(i128::from), Some(end));
            }
        }
    }
}
