//! Units behind the version fence.

use super::*;

use Executed::{No, Partly};
use FailureClass::{Dead, Hold};

const BEFORE: Result<Done, Failure> = Ok(Done::AppliedBefore);
const STALE: Result<Done, Failure> = Ok(Done::Stale);

async fn write(
    connection: &mut Connection,
    version: u64,
    id: &str,
    key: &str,
    commands: &[&[&str]],
) -> Result<Done, Failure> {
    let mut batch = new_batch();
    push_versioned(&mut batch, &Fence { version, id }, key, commands);
    only(connection.execute(batch).await)
}

async fn set(connection: &mut Connection, version: u64, value: &str) -> Result<Done, Failure> {
    write(connection, version, value, "k", &[&["SET", "k", value]]).await
}

async fn script(connection: &mut Connection, version: u64, source: &str) -> Result<Done, Failure> {
    let mut batch = new_batch();
    let keys = ["k", "read"].into_iter().map(str::as_bytes);
    let args = ["x", "y"].into_iter().map(str::as_bytes);
    batch.push_versioned_script(&Fence { version, id: "task" }, b"k", source.as_bytes(), keys, args);
    only(connection.execute(batch).await)
}

const MARKER: &str = "redrive:version:{k}:k";

#[tokio::test]
async fn only_what_is_newer_is_applied() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let steps = [
        (0, DONE),
        (9, DONE),
        (10, DONE),
        (9, STALE),
        (99, DONE),
        (100, DONE),
        (99, STALE),
        (9_007_199_254_740_992, DONE),
        (9_007_199_254_740_993, DONE),
        (9_007_199_254_740_992, STALE),
        (9_223_372_036_854_775_807, DONE),
        (9_223_372_036_854_775_806, STALE),
    ];
    let mut newest = 0;
    for (version, expected) in steps {
        assert_eq!(set(&mut connection, version, &format!("v{version}")).await, expected, "{version}");
        if expected == DONE {
            newest = version;
        }
        assert_eq!(server.cli(&["GET", "k"]).text(), format!("v{newest}"));
        assert_eq!(server.cli(&["GET", MARKER]).text(), format!("{newest} v{newest}"));
    }
}

#[tokio::test]
async fn equal_version_is_the_same_write_only_under_the_same_id() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let incr: &[&[&str]] = &[&["INCR", "k"]];
    assert_eq!(write(&mut connection, 5, "one", "k", incr).await, DONE);
    assert_eq!(write(&mut connection, 5, "one", "k", incr).await, BEFORE);
    assert_eq!(write(&mut connection, 5, "other", "k", incr).await, STALE);
    assert_eq!(write(&mut connection, 5, "on", "k", incr).await, STALE);
    assert_eq!(server.cli(&["GET", "k"]).text(), "1");
}

#[tokio::test]
async fn deletes_and_expiries_are_fenced_too() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    assert_eq!(set(&mut connection, 5, "five").await, DONE);
    assert_eq!(write(&mut connection, 7, "seven", "k", &[&["DEL", "k"]]).await, DONE);
    assert_eq!(set(&mut connection, 6, "six").await, STALE);
    assert_eq!(server.cli(&["EXISTS", "k"]).text(), "0");
    assert_eq!(set(&mut connection, 8, "eight").await, DONE);
    assert_eq!(write(&mut connection, 7, "late", "k", &[&["PEXPIRE", "k", "60000"]]).await, STALE);
    assert_eq!(server.cli(&["TTL", "k"]).text(), "-1");
    assert_eq!(write(&mut connection, 9, "nine", "k", &[&["PEXPIRE", "k", "60000"]]).await, DONE);
    assert_ne!(server.cli(&["TTL", "k"]).text(), "-1");
}

#[tokio::test]
async fn refused_body_leaves_the_former_version() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let push: &[&[&str]] = &[&["LPUSH", "k", "s3cret"]];
    server.cli(&["SET", "k", "text"]);
    let refused = write(&mut connection, 4, "four", "k", push).await;
    assert_eq!(says(&refused), (Dead, No, "WRONGTYPE"));
    assert!(!format!("{refused:?}").contains("s3cret"));
    assert_eq!(server.cli(&["EXISTS", MARKER]).text(), "0");
    assert_eq!(set(&mut connection, 5, "five").await, DONE);
    assert_eq!(says(&write(&mut connection, 6, "six", "k", push).await), (Dead, No, "WRONGTYPE"));
    let both: &[&[&str]] = &[&["LPUSH", "k", "x"], &["SADD", "k", "x"]];
    assert_eq!(says(&write(&mut connection, 6, "six", "k", both).await), (Dead, No, "WRONGTYPE"));
    assert_eq!(server.cli(&["GET", MARKER]).text(), "5 five");
    let left: i64 = server.cli(&["TTL", MARKER]).text().parse().expect("a number");
    assert!((7 * 86_400 - 10..=7 * 86_400).contains(&left), "{left}");
}

#[tokio::test]
async fn body_that_ran_in_part_keeps_its_version() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let commands: &[&[&str]] = &[&["INCR", "k"], &["LPUSH", "k", "x"]];
    let result = write(&mut connection, 5, "five", "k", commands).await;
    assert_eq!(says(&result), (Dead, Partly, "partial"));
    assert_eq!(&*result.expect_err("it failed").message, "1 of 2 members failed: #1 WRONGTYPE");
    assert_eq!(says(&write(&mut connection, 5, "five", "k", commands).await), (Dead, Partly, "partial"));
    assert_eq!(server.cli(&["GET", "k"]).text(), "1");
    assert_eq!(set(&mut connection, 4, "four").await, STALE);
    assert_eq!(set(&mut connection, 6, "six").await, DONE);
}

#[tokio::test]
async fn scripts_are_fenced_too() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let count =
        "assert(#KEYS == 2 and KEYS[1] == 'k' and #ARGV == 2 and ARGV[1] == 'x') return redis.call('INCR', KEYS[1])";
    assert_eq!(script(&mut connection, 5, count).await, DONE);
    assert_eq!(script(&mut connection, 5, count).await, BEFORE);
    assert_eq!(script(&mut connection, 4, count).await, STALE);
    assert_eq!(server.cli(&["GET", "k"]).text(), "1");
    let fails = "redis.call('INCR', KEYS[1])\nerror('bad')";
    let result = script(&mut connection, 6, fails).await;
    assert_eq!(says(&result), (Dead, Partly, "ERR"));
    assert_eq!(says(&script(&mut connection, 6, fails).await), (Dead, Partly, "partial"));
    assert_eq!(server.cli(&["GET", "k"]).text(), "2");
    assert_eq!(says(&script(&mut connection, 7, "this is no Lua").await), (Dead, No, "ERR"));
    assert_eq!(script(&mut connection, 7, count).await, DONE);
}

#[tokio::test]
async fn target_that_takes_no_writes_is_a_hold_and_leaves_the_former_version() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    assert_eq!(set(&mut connection, 1, "one").await, DONE);
    assert_eq!(script(&mut connection, 2, "return 1").await, DONE);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(says(&set(&mut connection, 3, "two").await), (Hold, No, "OOM"));
    assert_eq!(says(&script(&mut connection, 3, "return redis.call('SET', 'k', 1)").await), (Hold, No, "OOM"));
    assert_eq!(set(&mut connection, 1, "other").await, STALE, "this needs no memory");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(server.cli(&["GET", MARKER]).text(), "2 task");
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(says(&set(&mut connection, 3, "two").await), (Hold, No, "READONLY"));
}

#[tokio::test]
async fn services_can_call_the_published_script() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let published = include_str!("../../../docs/version-fence.lua");
    let call = |version: &str, id: &str, words: &[&str]| {
        let count = words.len().to_string();
        let head = ["EVAL", published, "2", "k", MARKER, version, id, "60000", &count];
        server.cli(&[&head, words].concat())
    };
    assert_eq!(call("7", "service", &["SET", "k", "mine"]), Reply::Integer(1));
    assert_eq!(call("7", "service", &["SET", "k", "mine"]), Reply::Integer(0));
    assert_eq!(set(&mut connection, 6, "late").await, STALE);
    assert_eq!(server.cli(&["GET", "k"]).text(), "mine");
    assert_eq!(set(&mut connection, 8, "newer").await, DONE);
    assert_eq!(call("7", "again", &["SET", "k", "mine"]), Reply::Integer(-1));
    let error = |reply: Reply| matches!(reply, Reply::Error(_));
    assert!(error(call("9", "again", &["LPUSH", "k", "x"])));
    assert!(error(call("010", "again", &["SET", "k", "x"])));
    assert!(error(call("-1", "again", &["SET", "k", "x"])));
    assert_eq!(server.cli(&["GET", MARKER]).text(), "8 newer");
}

#[test]
fn published_script_is_the_one_that_is_used() {
    let published = include_str!("../../../docs/version-fence.lua");
    assert!(published == script::complete(include_str!("../scripts/version.lua")), "{}", REPUBLISH);
}

const REPUBLISH: &str = "docs/version-fence.lua is not src/target/scripts/version.lua with commands.lua in its place";
