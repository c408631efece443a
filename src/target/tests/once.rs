//! Units that run once.

use super::*;

use Executed::{No, Partly};
use FailureClass::{Dead, Hold};
use jiff::{SignedDuration, Timestamp};

const BEFORE: Result<Done, Failure> = Ok(Done::AppliedBefore);

fn marker(id_hash: u64) -> Marker {
    Marker { id_hash, unit: 0, accepted_at: Timestamp::now() }
}

fn push_once_script(batch: &mut Batch, marker: &Marker, source: &[u8], keys: &[&str], args: &[&str]) {
    batch.push_once_script(
        marker,
        source,
        keys.iter().map(|key| key.as_bytes()),
        args.iter().map(|arg| arg.as_bytes()),
    );
}

async fn once(connection: &mut Connection, marker: &Marker, commands: &[&[&str]]) -> Result<Done, Failure> {
    let mut batch = new_batch();
    push_once(&mut batch, marker, commands);
    only(connection.execute(batch).await)
}

async fn once_script(connection: &mut Connection, id: u64, source: &[u8], args: &[&str]) -> Result<Done, Failure> {
    let mut batch = new_batch();
    push_once_script(&mut batch, &marker(id), source, &["k", "other"], args);
    only(connection.execute(batch).await)
}

/// Everything but markers, as text.
fn contents(server: &RedisServer) -> String {
    let mut keys: Vec<String> = server.cli(&["KEYS", "*"]).items().iter().map(Reply::text).collect();
    keys.retain(|key| !key.starts_with("redrive:"));
    keys.sort_unstable();
    let dump = |key: &String| format!("{key}={:?}", server.cli(&["DUMP", key]));
    keys.iter().map(dump).collect::<Vec<_>>().join("\n")
}

fn markers(server: &RedisServer) -> usize {
    server.cli(&["KEYS", "redrive:once:*"]).items().len()
}

#[tokio::test]
async fn what_is_sent_again_runs_once_whatever_it_is() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    for command in [
        &["RPUSH", "list", "a", "b", "c", "d"][..],
        &["SADD", "set", "a", "b"],
        &["SADD", "set2", "b", "c"],
        &["ZADD", "zset", "1", "a"],
        &["SET", "old", "1"],
        &["XADD", "stream", "1-1", "f", "v"],
    ] {
        assert_eq!(run(&mut connection, command).await, DONE);
    }
    let units: &[&[&str]] = &[
        &["INCR", "counter"],
        &["HINCRBYFLOAT", "hash", "field", "1.5"],
        &["RPUSH", "queue", "x"],
        &["LPOP", "list"],
        &["LSET", "list", "0", "z"],
        &["RENAME", "old", "new"],
        &["SMOVE", "set", "set2", "a"],
        &["SINTERSTORE", "both", "set", "set2"],
        &["XADD", "stream", "*", "f", "v"],
        &["APPEND", "text", "x"],
        &["ZINCRBY", "zset", "2", "a"],
        &["SPOP", "set2"],
        &["BITFIELD", "bits", "INCRBY", "u8", "0", "1"],
        &["LMOVE", "list", "queue", "LEFT", "RIGHT"],
        &["GETDEL", "nothing"],
        &["XGROUP", "CREATE", "stream", "group", "$"],
    ];
    let send = async |connection: &mut Connection| {
        let mut batch = new_batch();
        for (id, command) in (0..).zip(units) {
            push_once(&mut batch, &marker(id), &[command]);
        }
        push_once(&mut batch, &marker(100), &[&["INCR", "a"], &["SET", "b", "1"], &["INCR", "b"]]);
        push_once_script(&mut batch, &marker(101), b"return redis.call('INCR', KEYS[1])", &["script"], &[]);
        connection.execute(batch).await
    };
    let first = send(&mut connection).await;
    assert!(first.results.iter().all(|result| *result == DONE), "{:?}", first.results);
    let after_first = contents(&server);
    for _ in 0..3 {
        let again = send(&mut connection).await;
        assert!(again.results.iter().all(|result| *result == BEFORE), "{:?}", again.results);
        assert_eq!(contents(&server), after_first);
    }
    assert_eq!(server.cli(&["GET", "counter"]).text(), "1");
    assert_eq!(server.cli(&["GET", "b"]).text(), "2");
    assert_eq!(server.cli(&["GET", "script"]).text(), "1");
}

#[tokio::test]
async fn batch_whose_answer_was_lost_runs_once_when_it_is_sent_again() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.response_timeout = Duration::from_millis(100);
    let target = Target::try_new("test", config).expect("the URL is fine");
    let mut connection = target.connect().await.expect("the server is up");
    let batch = || {
        let mut batch = target.batch();
        for id in 0..200 {
            push_once(&mut batch, &marker(id), &[&["INCR", &format!("counter:{id}")]]);
        }
        batch
    };
    // So that the units' own call runs once the server wakes up.
    assert_eq!(once(&mut connection, &marker(1000), &[&["INCR", "other"]]).await, DONE);
    let mut slow = batch();
    push(&mut slow, &["DEBUG", "SLEEP", "0.5"]);
    for result in connection.execute(slow).await.results {
        assert_eq!(says(&result).0, FailureClass::Ambiguous);
    }
    server.wait_until(&["GET", "counter:199"], |reply| reply.text() == "1");
    let mut connection = target.connect().await.expect("the server is up");
    let again = connection.execute(batch()).await.results;
    assert!(again.iter().all(|result| *result == BEFORE), "{again:?}");
    for id in [0, 63, 64, 127, 128, 199] {
        assert_eq!(server.cli(&["GET", &format!("counter:{id}")]).text(), "1", "{id}");
    }
}

#[tokio::test]
async fn marker_of_the_hour_before_counts_and_one_of_two_hours_before_does_not() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let now = Timestamp::now();
    let at = |hours: i64| Marker { id_hash: 7, unit: 0, accepted_at: now + SignedDuration::from_hours(hours) };
    assert_eq!(once(&mut connection, &at(0), &[&["INCR", "n"]]).await, DONE);
    assert_eq!(once(&mut connection, &at(1), &[&["INCR", "n"]]).await, BEFORE);
    assert_eq!(once(&mut connection, &at(2), &[&["INCR", "n"]]).await, DONE);
    assert_eq!(server.cli(&["GET", "n"]).text(), "2");
}

#[tokio::test]
async fn units_of_one_task_have_markers_of_their_own() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    for _ in 0..2 {
        let mut batch = new_batch();
        for unit in 0..128 {
            push_once(&mut batch, &Marker { unit, ..marker(7) }, &[&["INCR", "n"]]);
        }
        connection.execute(batch).await;
        assert_eq!(server.cli(&["GET", "n"]).text(), "128");
    }
}

#[tokio::test]
async fn refused_unit_leaves_no_marker_and_others_run() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let mut batch = new_batch();
    push_once(&mut batch, &marker(1), &[&["INCR", "a"]]);
    push_once(&mut batch, &marker(2), &[&["LPUSH", "text", "s3cret"]]);
    push_once(&mut batch, &marker(3), &[&["INCR", "text"]]);
    push_once(&mut batch, &marker(4), &[&["NOSUCHCOMMAND", "s3cret"]]);
    push_once(&mut batch, &marker(5), &[&["RPUSH", "b"]]);
    push_once(&mut batch, &marker(6), &[&["RENAME", "missing", "c"]]);
    push_once(&mut batch, &marker(7), &[&["LPUSH", "text", "x"], &["SADD", "text", "x"]]);
    push_once(&mut batch, &marker(8), &[&["INCR", "d"]]);
    let results = connection.execute(batch).await.results;
    let reasons: Vec<_> = results.iter().map(|result| result.as_ref().err().map(|f| f.reason)).collect();
    assert_eq!(
        reasons,
        [
            None,
            Some(ReasonClass::WrongType),
            Some(ReasonClass::WrongState),
            Some(ReasonClass::UnknownCommand),
            Some(ReasonClass::BadArgument),
            Some(ReasonClass::WrongState),
            Some(ReasonClass::WrongType),
            None,
        ]
    );
    for result in &results {
        assert!(result.as_ref().err().is_none_or(|f| (f.class, f.executed) == (Dead, No)), "{result:?}");
    }
    assert!(!format!("{results:?}").contains("s3cret"));
    assert_eq!(markers(&server), 2);
    // What was put right can run.
    server.cli(&["DEL", "text"]);
    assert_eq!(once(&mut connection, &marker(2), &[&["LPUSH", "text", "x"]]).await, DONE);
}

#[tokio::test]
async fn atomic_unit_that_ran_in_part_says_what_failed_and_does_not_run_again() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let commands: &[&[&str]] = &[&["INCR", "n"], &["LPUSH", "text", "x"], &["SET", "b", "1"], &["INCR", "text"]];
    let result = once(&mut connection, &marker(1), commands).await;
    assert_eq!(says(&result), (Dead, Partly, "partial"));
    let failure = result.expect_err("some of it failed");
    assert_eq!(failure.reason, ReasonClass::Partial);
    assert_eq!(&*failure.message, "2 of 4 members failed: #1 WRONGTYPE, #3 ERR");
    server.cli(&["DEL", "text"]);
    let again = once(&mut connection, &marker(1), commands).await;
    assert_eq!(says(&again), (Dead, Partly, "partial"));
    assert_eq!(server.cli(&["GET", "n"]).text(), "1");
    assert_eq!(server.cli(&["EXISTS", "text"]).text(), "0");
}

#[tokio::test]
async fn target_that_takes_no_writes_is_a_hold_and_leaves_no_marker() {
    let server = RedisServer::start(&[]);
    server.cli(&["RPUSH", "list", "a", "b"]);
    let break_and_mend: [(&str, &[&str], &[&str]); 3] = [
        ("OOM", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
        (
            "NOREPLICAS",
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        ("READONLY", &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ];
    for (round, (code, breaks, mends)) in (0..).zip(break_and_mend) {
        let mut connection = connect(&server).await;
        let batch = || {
            let mut batch = new_batch();
            push_once(&mut batch, &marker(round * 10), &[&["INCR", "n"]]);
            // What needs no memory is held as well: its marker does.
            push_once(&mut batch, &marker(round * 10 + 1), &[&["LPOP", "list"]]);
            push_once(&mut batch, &marker(round * 10 + 2), &[&["INCR", "a"], &["INCR", "b"]]);
            let script = b"return redis.call('INCR', KEYS[1])";
            push_once_script(&mut batch, &marker(round * 10 + 3), script, &["script"], &[]);
            batch
        };
        let (before, marked) = (contents(&server), markers(&server));
        server.cli(breaks);
        for known in [false, true] {
            for result in connection.execute(batch()).await.results {
                assert_eq!(says(&result), (Hold, No, code), "source known: {known}");
            }
            if code == "READONLY" {
                connection = connect(&server).await;
            }
        }
        assert_eq!((contents(&server), markers(&server)), (before, marked));
        server.cli(mends);
        let mut connection = connect(&server).await;
        for result in connection.execute(batch()).await.results {
            assert_eq!(result, DONE, "{code}");
        }
    }
}

#[tokio::test]
async fn what_the_user_may_not_do_is_judged_as_without_a_marker() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~app:*", "~redrive:*", "+@all", "-append"]);
    let target = target_at(&format!("redis://gw:pw@127.0.0.1:{}", server.port()));
    let mut connection = target.connect().await.expect("the server is up");
    let mut batch = new_batch();
    push_once(&mut batch, &marker(1), &[&["INCR", "app:1"]]);
    push_once(&mut batch, &marker(2), &[&["INCR", "other"]]);
    push_once(&mut batch, &marker(3), &[&["APPEND", "app:2", "x"]]);
    push_once(&mut batch, &marker(4), &[&["INCR", "app:3"], &["INCR", "other"]]);
    push_once(&mut batch, &marker(5), &[&["INCR", "app:4"], &["NOSUCHCOMMAND", "x"]]);
    push_once_script(&mut batch, &marker(6), b"return 1", &["other"], &[]);
    let results = connection.execute(batch).await.results;
    assert_eq!(results[0], DONE);
    for (result, reason) in results[1..].iter().zip([
        ReasonClass::NoPermission,
        ReasonClass::NoPermission,
        ReasonClass::NoPermission,
        ReasonClass::UnknownCommand,
        ReasonClass::NoPermission,
    ]) {
        let failure = result.as_ref().expect_err("it is not permitted");
        assert_eq!((failure.class, failure.executed, failure.reason), (Dead, No, reason));
    }
    assert_eq!(server.cli(&["EXISTS", "app:3", "app:4"]).text(), "0", "nothing of an atomic unit ran");
    assert_eq!(markers(&server), 1);
}

#[tokio::test]
async fn nothing_runs_where_markers_cannot_be_written() {
    let server = RedisServer::start(&[]);
    let missing: [&[&str]; 4] = [&["resetkeys", "~app:*"], &["-evalsha"], &["-hsetnx"], &["-pexpire"]];
    for denied in missing {
        server.cli(&["ACL", "DELUSER", "gw"]);
        server.cli(&[&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all"], denied].concat());
        let target = target_at(&format!("redis://gw:pw@127.0.0.1:{}", server.port()));
        let mut connection = target.connect().await.expect("the server is up");
        let result = once(&mut connection, &marker(1), &[&["INCR", "app:1"]]).await;
        let failure = result.expect_err("it must not run");
        assert_eq!(
            (failure.class, failure.executed, failure.reason),
            (Dead, No, ReasonClass::NoPermission),
            "{denied:?}: {failure:?}"
        );
        assert_eq!(server.cli(&["DBSIZE"]).text(), "0", "{denied:?}");
    }
}

#[tokio::test]
async fn scripts_of_every_form_run_once_and_see_their_own_keys_and_arguments() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let sources: [&[u8]; 12] = [
        b"redis.call('INCR', KEYS[1]) -- the end",
        b"redis.call('INCR', KEYS[1])\n-- the end",
        b"redis.call('INCR', KEYS[1]) --[[ the\nend ]]",
        b"#!lua\nredis.call('INCR', KEYS[1])",
        b"#!lua flags=allow-oom\nlocal n = redis.call('INCR', KEYS[1]) return n",
        b"if #KEYS == 2 and #ARGV == 2 then return redis.call('INCRBY', KEYS[1], ARGV[2]) end return ARGV[3]",
        b"local function add(n) return redis.call('INCRBY', KEYS[1], n) end\nfor _ = 1, 1 do add(1) end",
        b"do return redis.call('INCR', KEYS[1]) end redis.call('INCR', KEYS[1])",
        b"local body, at, count, call, marker = 0, 0, 0 assert(body == 0) redis.call('INCR', KEYS[1])",
        b"assert(loadstring('return KEYS[1]')() == 'k') return {redis.call('INCR', KEYS[1]), {1, false}}",
        b"local v = '\xff\xfe' assert(#v == 2) redis.call('INCR', KEYS[1])",
        b"assert(select('#', ...) == 0)\r\nassert(ARGV[1] == 'x' and KEYS[2] == 'other')\r\nredis.call('INCR', KEYS[1])",
    ];
    for (id, source) in (0..).zip(sources) {
        server.cli(&["DEL", "k"]);
        let text = String::from_utf8_lossy(source);
        assert_eq!(once_script(&mut connection, id, source, &["x", "1"]).await, DONE, "{text}");
        assert_eq!(once_script(&mut connection, id, source, &["x", "1"]).await, BEFORE, "{text}");
        assert_eq!(server.cli(&["GET", "k"]).text(), "1", "{text}");
        assert_eq!(once_script(&mut connection, 100 + id, source, &["x", "1"]).await, DONE, "{text}");
        assert_eq!(server.cli(&["GET", "k"]).text(), "2", "{text}");
    }
    let names =
        "local names = '' for name in pairs(_G) do names = names .. ' ' .. name end redis.call('SET', KEYS[1], names)";
    assert_eq!(once_script(&mut connection, 200, names.as_bytes(), &[]).await, DONE);
    let wrapped = server.cli(&["GET", "k"]).text();
    server.cli(&["EVAL", names, "1", "k"]);
    assert_eq!(wrapped, server.cli(&["GET", "k"]).text());
}

#[tokio::test]
async fn script_that_fails_midway_keeps_its_marker_as_partial() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let cases: [(&[u8], &str); 7] = [
        (b"redis.call('INCR', KEYS[1])\nredis.call('LPUSH', 'text', 1)", "the script failed"),
        (b"redis.call('INCR', KEYS[1])\n\nerror('bad ' .. ARGV[1])", "line 3:"),
        (b"#!lua\nredis.call('INCR', KEYS[1])\nerror('bad ' .. ARGV[1])", "line 3:"),
        (b"redis.call('INCR', KEYS[1]) error({err = 'MINE ' .. ARGV[1]})", "the script failed"),
        (b"redis.call('INCR', KEYS[1]) return redis.error_reply('MINE ' .. ARGV[1])", "the script failed"),
        (b"redis.call('INCR', KEYS[1]) return redis.error_reply('OOM ' .. ARGV[1])", "the script failed"),
        (b"redis.call('INCR', KEYS[1]) return redis.pcall('NOSUCHCOMMAND')", "the script failed"),
    ];
    for (id, (source, message)) in (0..).zip(cases) {
        server.cli(&["DEL", "k"]);
        let text = String::from_utf8_lossy(source);
        let failure = once_script(&mut connection, id, source, &["s3cret"]).await.expect_err("it fails");
        assert_eq!((failure.class, failure.executed), (Dead, Partly), "{text}");
        assert_eq!(failure.reason, ReasonClass::ScriptError, "{text}");
        assert!(failure.message.starts_with(message), "{text}: {}", failure.message);
        assert!(!format!("{failure:?}").contains("s3cret"));
        let again = once_script(&mut connection, id, source, &["s3cret"]).await;
        assert_eq!(says(&again), (Dead, Partly, "partial"), "{text}");
        assert_eq!(server.cli(&["GET", "k"]).text(), "1", "{text}");
    }
}

#[tokio::test]
async fn script_that_cannot_begin_leaves_no_marker() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    for source in [&b"this is no Lua"[..], b"return (", b"--[[ never closed"] {
        let result = once_script(&mut connection, 1, source, &[]).await;
        assert_eq!(says(&result), (Dead, No, "ERR"), "{}", String::from_utf8_lossy(source));
        assert_eq!(result.expect_err("it fails").reason, ReasonClass::ScriptError);
    }
    assert_eq!(server.cli(&["DBSIZE"]).text(), "0");
}

#[tokio::test]
async fn marker_lives_as_long_as_configured_after_it_was_written() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.marker_ttl = Duration::from_secs(7200);
    let target = Target::try_new("test", config).expect("the URL is fine");
    let mut connection = target.connect().await.expect("the server is up");
    // A task that waited for a week.
    let accepted_at = Timestamp::now() - SignedDuration::from_hours(7 * 24);
    let run = async |connection: &mut Connection, unit| {
        let mut batch = target.batch();
        push_once(&mut batch, &Marker { id_hash: 1, unit, accepted_at }, &[&["INCR", "n"]]);
        assert_eq!(only(connection.execute(batch).await), DONE);
        let bucket = server.cli(&["KEYS", "redrive:once:*"]).text();
        let left = server.cli(&["TTL", &bucket]).text().parse::<i64>().expect("a number");
        (bucket, left)
    };
    let (bucket, left) = run(&mut connection, 0).await;
    assert!((10_790..=10_800).contains(&left), "{left}");
    server.cli(&["EXPIRE", &bucket, "7300"]);
    let (_, left) = run(&mut connection, 1).await;
    assert!((7290..=7300).contains(&left), "it is not prolonged each time: {left}");
    server.cli(&["EXPIRE", &bucket, "7100"]);
    let (_, left) = run(&mut connection, 2).await;
    assert!((10_790..=10_800).contains(&left), "{left}");
}

#[tokio::test]
async fn command_that_does_not_fit_into_a_script_is_dead_and_others_run() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let long: Vec<String> = (0..7001).map(|number| number.to_string()).collect();
    let push_long = |batch: &mut Batch, id: u64, count: usize| {
        let words: Vec<&str> = ["RPUSH", "list"].into_iter().chain(long[..count].iter().map(String::as_str)).collect();
        push_once(batch, &marker(id), &[&words]);
    };
    let mut batch = new_batch();
    push_long(&mut batch, 1, 6999);
    push_once(&mut batch, &marker(2), &[&["INCR", "n"]]);
    push_long(&mut batch, 3, 6998);
    let results = connection.execute(batch).await.results;
    assert_eq!(says(&results[0]), (Dead, No, "ERR"));
    assert_eq!(results[0].as_ref().expect_err("it is too long").reason, ReasonClass::BadArgument);
    assert_eq!(results[1..], [DONE, DONE]);
    assert_eq!(server.cli(&["LLEN", "list"]).text(), "6998");
}

#[tokio::test]
async fn arguments_of_any_bytes_arrive_unchanged_in_a_script() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let value: Vec<u8> = (0..=255).chain(*b"\r\n$5\r\n").collect();
    let mut batch = new_batch();
    let args = [b"k".as_slice(), &value];
    batch.push_once(&marker(1), std::iter::once(("APPEND", args.into_iter())));
    assert_eq!(only(connection.execute(batch).await), DONE);
    assert_eq!(server.cli(&["GET", "k"]), Reply::Bulk(Some(value)));
}

#[tokio::test]
async fn one_batch_carries_units_of_every_kind() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    for round in [DONE, BEFORE] {
        let mut batch = new_batch();
        for id in 0..70 {
            push(&mut batch, &["SET", &format!("plain:{id}"), "1"]);
            push_once(&mut batch, &marker(id), &[&["INCR", &format!("once:{id}")]]);
        }
        push(&mut batch, &["LPUSH", "text", "x"]);
        push_atomic(&mut batch, &[&["SET", "a", "1"], &["SET", "b", "1"]]);
        push_script(&mut batch, "return redis.call('SET', KEYS[1], 1)", &["c"], &[]);
        push_once_script(&mut batch, &marker(200), b"return redis.call('INCR', KEYS[1])", &["d"], &[]);
        assert_eq!(batch.len(), 144);
        let results = connection.execute(batch).await.results;
        for pair in results[..140].chunks(2) {
            assert_eq!(pair, [DONE, round.clone()]);
        }
        assert_eq!(says(&results[140]), (Dead, No, "WRONGTYPE"));
        assert_eq!(results[141..], [DONE, DONE, round.clone()]);
    }
    assert_eq!(server.cli(&["GET", "once:69"]).text(), "1");
}

#[tokio::test]
async fn markers_can_be_read() {
    let server = RedisServer::start(&[]);
    let target = target(&server);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let now = Timestamp::now();
    let at = |id_hash, hours: i64| Marker { id_hash, unit: 3, accepted_at: now + SignedDuration::from_hours(hours) };
    once(&mut connection, &at(1, 0), &[&["INCR", "n"]]).await.expect("it runs");
    once(&mut connection, &at(2, 0), &[&["INCR", "n"], &["INCR", "text"]]).await.expect_err("some of it fails");
    once(&mut connection, &at(3, 0), &[&["INCR", "text"]]).await.expect_err("it fails");
    let read = async |marker: Marker| target.marker(&marker).await.expect("the server answers");
    assert_eq!(read(at(1, 0)).await, Some(MarkerState::Applied));
    assert_eq!(read(at(1, 1)).await, Some(MarkerState::Applied));
    assert_eq!(read(at(1, 2)).await, None);
    assert_eq!(read(at(2, 0)).await, Some(MarkerState::Partial));
    assert_eq!(read(at(3, 0)).await, None);
    assert_eq!(read(Marker { unit: 2, ..at(1, 0) }).await, None);
}
