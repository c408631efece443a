//! What becomes of units on a server that is well.

use super::*;

use Executed::{No, Partly};
use FailureClass::{Backoff, Dead, Hold};

#[tokio::test]
async fn each_unit_has_its_own_result() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    push(&mut batch, &["SET", "text", "1"]);
    push(&mut batch, &["LPUSH", "text", "x"]);
    push(&mut batch, &["SET", "text", "1", "NX", "XX"]);
    push(&mut batch, &["HINCRBY", "hash", "field", "x"]);
    push(&mut batch, &["NOSUCHCOMMAND", "s3cret"]);
    push(&mut batch, &["INCRBY", "text", "9223372036854775807"]);
    push(&mut batch, &["RENAME", "missing", "other"]);
    push(&mut batch, &["SET", "last", "2"]);
    assert_eq!(batch.len(), 8);
    let outcome = connection.execute(batch).await;
    assert!(outcome.reusable);
    let reasons: Vec<_> = outcome.results.iter().map(|result| result.as_ref().err().map(|f| f.reason)).collect();
    assert_eq!(
        reasons,
        [
            None,
            Some(ReasonClass::WrongType),
            Some(ReasonClass::BadArgument),
            Some(ReasonClass::WrongState),
            Some(ReasonClass::UnknownCommand),
            Some(ReasonClass::WrongState),
            Some(ReasonClass::WrongState),
            None,
        ]
    );
    assert!(!format!("{:?}", outcome.results).contains("s3cret"));
    assert_eq!(server.cli(&["GET", "last"]).text(), "2");
}

#[tokio::test]
async fn arguments_of_any_bytes_arrive_unchanged() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let value: Vec<u8> = (0..=255).chain(*b"\r\n$5\r\n").collect();
    let mut batch = new_batch();
    batch.push_command("SET", [b"k".as_slice(), &value].into_iter());
    batch.push_command("SETRANGE", [b"empty".as_slice(), b"0", b""].into_iter());
    assert_eq!(batch.bytes(), 3 + 1 + value.len() + 8 + 5 + 1);
    assert_eq!(connection.execute(batch).await.results, [DONE, DONE]);
    assert_eq!(server.cli(&["STRLEN", "k"]).text(), value.len().to_string());
    assert_eq!(server.cli(&["BITCOUNT", "k"]).text(), value.iter().map(|b| b.count_ones()).sum::<u32>().to_string());
}

#[tokio::test]
async fn replies_of_every_shape_are_successes() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    for command in [
        &["RPUSH", "list", "a", "b"][..],
        &["LPOP", "list"],
        &["LPOP", "missing"],
        &["SPOP", "missing", "3"],
        &["GETDEL", "missing"],
        &["XADD", "stream", "*", "f", "v"],
        &["SET", "k", "v", "NX", "GET"],
    ] {
        push(&mut batch, command);
    }
    let outcome = connection.execute(batch).await;
    assert!(outcome.results.iter().all(Result::is_ok), "{outcome:?}");
}

#[tokio::test]
async fn group_that_exists_already_is_a_success() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let create = ["XGROUP", "CREATE", "stream", "group", "$", "MKSTREAM"];
    assert_eq!(run(&mut connection, &create).await, DONE);
    assert_eq!(run(&mut connection, &create).await, DONE);
}

#[tokio::test]
async fn empty_batch_asks_nothing() {
    let server = RedisServer::start(&[]);
    let outcome = connect(&server).await.execute(new_batch()).await;
    assert!(outcome.results.is_empty() && outcome.reusable);
}

#[tokio::test]
async fn atomic_members_all_run() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    push(&mut batch, &["SET", "before", "1"]);
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["INCR", "a"], &["LPUSH", "l", "x"]]);
    push(&mut batch, &["SET", "after", "1"]);
    assert_eq!(batch.len(), 3);
    assert_eq!(connection.execute(batch).await.results, [DONE, DONE, DONE]);
    assert_eq!(server.cli(&["GET", "a"]).text(), "2");
}

#[tokio::test]
async fn atomic_unit_of_which_some_members_failed_is_partial() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let mut batch = new_batch();
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["LPUSH", "text", "x"], &["INCR", "text"], &["SET", "b", "1"]]);
    push(&mut batch, &["SET", "after", "1"]);
    let outcome = connection.execute(batch).await;
    assert!(outcome.reusable);
    assert_eq!(says(&outcome.results[0]), (Dead, Partly, "partial"));
    let failure = outcome.results[0].as_ref().expect_err("it failed");
    assert_eq!(failure.reason, ReasonClass::Partial);
    assert_eq!(&*failure.message, "2 of 4 members failed: #1 WRONGTYPE, #2 ERR");
    assert_eq!(outcome.results[1], DONE);
    assert_eq!(server.cli(&["GET", "b"]).text(), "1");
}

#[tokio::test]
async fn atomic_unit_of_which_all_members_were_refused_has_the_class_of_the_refusal() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let mut batch = new_batch();
    push_atomic(&mut batch, &[&["LPUSH", "text", "x"], &["SADD", "text", "x"]]);
    let result = only(connection.execute(batch).await);
    assert_eq!(says(&result), (Dead, No, "WRONGTYPE"));
}

#[tokio::test]
async fn member_that_cannot_be_queued_stops_the_unit_and_leaves_the_connection_usable() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["NOSUCHCOMMAND", "x"], &["SET", "b"]]);
    push(&mut batch, &["SET", "after", "1"]);
    let outcome = connection.execute(batch).await;
    assert!(outcome.reusable);
    assert_eq!(says(&outcome.results[0]), (Dead, No, "ERR"));
    assert_eq!(outcome.results[1], DONE);
    assert_eq!(server.cli(&["EXISTS", "a", "b"]).text(), "0");
    assert_eq!(run(&mut connection, &["SET", "next", "1"]).await, DONE);
    assert_eq!(server.cli(&["GET", "next"]).text(), "1", "it was not queued in an open transaction");
}

#[tokio::test]
async fn atomic_unit_never_runs_member_by_member_where_multi_is_not_permitted() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all", "-multi"]);
    let url = format!("redis://gw:pw@127.0.0.1:{}", server.port());
    let mut connection = target_at(&url).connect().await.expect("the server is up");
    let mut batch = new_batch();
    push(&mut batch, &["SET", "before", "1"]);
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["SET", "b", "1"]]);
    push_script(&mut batch, "return redis.call('SET', KEYS[1], 1)", &["script"], &[]);
    let outcome = connection.execute(batch).await;
    assert!(outcome.reusable);
    assert_eq!(outcome.results[0], DONE);
    assert_eq!(says(&outcome.results[1]), (Dead, No, "NOPERM"));
    assert_eq!(outcome.results[2], DONE);
    assert_eq!(server.cli(&["EXISTS", "a", "b"]).text(), "0");

    let mut alone = new_batch();
    push_atomic(&mut alone, &[&["SET", "a", "1"]]);
    assert_eq!(says(&only(connection.execute(alone).await)), (Dead, No, "NOPERM"));
}

#[tokio::test]
async fn multi_forbidden_while_the_connection_is_held_is_told_as_partial() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["ACL", "SETUSER", "default", "-multi"]);
    let mut batch = new_batch();
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["SET", "b", "1"]]);
    assert_eq!(says(&only(connection.execute(batch).await)), (Dead, Partly, "partial"));
}

#[tokio::test]
async fn script_is_sent_with_its_source_only_where_the_server_does_not_know_it() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let source = "redis.call('INCRBY', KEYS[1], ARGV[1]) return {1, 2}";
    for round in 1..=2 {
        let mut batch = new_batch();
        push(&mut batch, &["SET", "before", "1"]);
        push_script(&mut batch, source, &["n"], &["1"]);
        push_atomic(&mut batch, &[&["SET", "a", "1"]]);
        push_script(&mut batch, source, &["n"], &["10"]);
        assert_eq!(connection.execute(batch).await.results, [DONE, DONE, DONE, DONE]);
        assert_eq!(server.cli(&["GET", "n"]).text(), (11 * round).to_string());
    }
    let calls = |command: &str| {
        let stats = server.cli(&["INFO", "commandstats"]).text();
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:"))).map(str::to_owned);
        line.and_then(|line| Some(line.split_once("calls=")?.1.split(',').next()?.to_owned()))
    };
    assert_eq!(calls("eval").as_deref(), Some("2"));
    assert_eq!(calls("evalsha").as_deref(), Some("4"));
}

#[tokio::test]
async fn script_that_is_not_text_runs() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    let source = [b"return redis.call('SET', KEYS[1], '".as_slice(), &[0xff, 0xfe], b"')"].concat();
    batch.push_script(&source, [b"k".as_slice()].into_iter(), std::iter::empty());
    assert_eq!(only(connection.execute(batch).await), DONE);
    assert_eq!(server.cli(&["STRLEN", "k"]).text(), "2");
}

#[tokio::test]
async fn script_that_fails_midway_is_dead_and_says_that_some_of_it_ran() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "text", "x"]);
    let cases = [
        ("redis.call('SET', KEYS[1], 1)\nredis.call('LPUSH', 'text', 1)", "line 2:"),
        ("redis.call('SET', KEYS[1], 1)\n\nerror('bad ' .. ARGV[1])", "line 3:"),
        ("return redis.error_reply('MINE ' .. ARGV[1])", "the script failed"),
        ("return redis.error_reply(ARGV[1] .. ' MINE')", "the script failed"),
        ("return redis.error_reply('NOSCRIPT mine')", "the script answered NOSCRIPT"),
    ];
    for (source, message) in cases {
        let mut batch = new_batch();
        push_script(&mut batch, source, &["k"], &["s3cret"]);
        let result = only(connection.execute(batch).await);
        let failure = result.as_ref().expect_err("it fails");
        assert_eq!((failure.class, failure.executed), (Dead, Partly), "{source}");
        assert_eq!(failure.reason, ReasonClass::ScriptError);
        assert!(failure.message.starts_with(message), "{}", failure.message);
        assert!(!format!("{failure:?}").contains("s3cret"));
    }
}

#[tokio::test]
async fn script_that_does_not_compile_left_nothing_behind() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    push_script(&mut batch, "this is no Lua", &[], &[]);
    let result = only(connection.execute(batch).await);
    assert_eq!(says(&result), (Dead, No, "ERR"));
    assert_eq!(result.expect_err("it fails").reason, ReasonClass::ScriptError);
}

#[tokio::test]
async fn what_the_user_may_not_do_is_dead() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~app:*", "+@write", "+multi", "+exec"]);
    let url = format!("redis://gw:pw@127.0.0.1:{}", server.port());
    let mut connection = target_at(&url).connect().await.expect("the server is up, though PING is not permitted");
    assert_eq!(run(&mut connection, &["SET", "app:1", "1"]).await, DONE);
    for command in [&["SET", "s3cret", "1"][..], &["CONFIG", "RESETSTAT"]] {
        let result = run(&mut connection, command).await;
        assert_eq!(says(&result), (Dead, No, "NOPERM"));
        assert_eq!(result.expect_err("it fails").reason, ReasonClass::NoPermission);
    }
    let mut batch = new_batch();
    push_script(&mut batch, "return 1", &[], &[]);
    let result = only(connection.execute(batch).await);
    assert_eq!(says(&result), (Dead, No, "NOPERM"));
    assert_eq!(result.expect_err("it fails").reason, ReasonClass::NoPermission);
}

#[tokio::test]
async fn error_that_no_table_knows_may_be_tried_again() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let result = run(&mut connection, &["DEBUG", "ERROR", "STRANGE thing"]).await;
    assert_eq!(says(&result), (Backoff, No, "unknown"), "the code may be an echo, and is");
    assert_eq!(&*result.expect_err("it fails").message, "thing");
}

#[tokio::test]
async fn cluster_taken_for_a_single_server_is_a_hold_that_says_so() {
    let ports = [testing::free_port().to_string(), testing::free_port().to_string()];
    let node = |bus: &str| RedisServer::start(&["--cluster-enabled", "yes", "--cluster-port", bus]);
    let (asked, owner) = (node(&ports[0]), node(&ports[1]));
    let mut connection = connect(&asked).await;
    assert_eq!(says(&run(&mut connection, &["SET", "k", "1"]).await), (Hold, No, "CLUSTERDOWN"));

    owner.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    asked.cli(&["CLUSTER", "MEET", "127.0.0.1", &owner.port().to_string(), &ports[1]]);
    asked.wait_until(&["CLUSTER", "INFO"], |reply| reply.text().contains("cluster_state:ok"));
    let result = run(&mut connection, &["SET", "k", "1"]).await;
    assert_eq!(says(&result), (Hold, No, "MOVED"));
    let message = result.expect_err("it fails").message;
    assert_eq!(&*message, "the target is a Redis Cluster, but is configured as a single server");

    let mut connection = connect(&owner).await;
    let result = run(&mut connection, &["MSET", "a", "1", "b", "1"]).await;
    assert_eq!(says(&result), (Dead, No, "CROSSSLOT"));
}

/// Also between the two pipelines of a script that the server does not know.
#[tokio::test]
async fn nothing_is_sent_once_it_may_not_be() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    let mut batch = new_batch();
    push(&mut batch, &["SET", "k", "1"]);
    let refused = connection.execute_while(batch, || false).await;
    let script = || {
        let mut batch = new_batch();
        let source = b"return redis.call('SET', KEYS[1], '1')";
        batch.push_script(source, [b"k".as_slice()].into_iter(), std::iter::empty());
        batch
    };
    let asked = std::cell::Cell::new(0);
    let once = || asked.replace(asked.get() + 1) == 0;
    let interrupted = connection.execute_while(script(), once).await;
    for outcome in [refused, interrupted] {
        assert!(outcome.reusable && outcome.spoilt.is_none());
        let failure = outcome.results[0].as_ref().expect_err("it was not sent");
        assert_eq!((failure.class, &*failure.code), (Hold, Failure::NO_CONNECTION));
    }
    assert_eq!(server.cli(&["EXISTS", "k"]), Reply::Integer(0));
    assert_eq!(connection.execute_while(script(), || true).await.results, [DONE]);
}
