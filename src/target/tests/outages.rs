//! What becomes of units when the server is not well.

use super::*;

use Executed::{Maybe, No};
use FailureClass::{Ambiguous, Hold};

/// Everything refused and known to be: a hold, on a connection that can be used again or not.
async fn check_refused(connection: &mut Connection, code: &str, reusable: bool) {
    let outcome = connection.execute(one_of_each()).await;
    for result in &outcome.results {
        assert_eq!(says(result), (Hold, No, code));
    }
    assert_eq!(outcome.reusable, reusable);
}

fn one_of_each() -> Batch {
    let mut batch = new_batch();
    push(&mut batch, &["SET", "k", "1"]);
    push_atomic(&mut batch, &[&["SET", "a", "1"], &["SET", "b", "1"]]);
    push_script(&mut batch, "return redis.call('SET', KEYS[1], 1)", &["c"], &[]);
    batch
}

/// Nothing is known of any unit, and the connection is closed.
fn check_ambiguous(outcome: &BatchResult, code: &str) {
    assert!(!outcome.results.is_empty());
    for result in &outcome.results {
        assert_eq!(says(result), (Ambiguous, Maybe, code));
    }
    assert!(!outcome.reusable);
}

#[tokio::test]
async fn out_of_memory_is_a_hold_and_deletes_still_pass() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["SET", "old", "1"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    check_refused(&mut connection, "OOM", true).await;
    assert_eq!(run(&mut connection, &["DEL", "old"]).await, DONE);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
}

#[tokio::test]
async fn too_few_replicas_are_a_hold() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    check_refused(&mut connection, "NOREPLICAS", true).await;
}

#[tokio::test]
async fn replica_is_a_hold_on_a_connection_that_is_given_up() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    check_refused(&mut connection, "READONLY", false).await;
}

#[tokio::test]
async fn replica_without_its_primary_is_a_hold() {
    let server = RedisServer::start(&["--replica-serve-stale-data", "no", "--replica-read-only", "no"]);
    let target = target(&server);
    let mut connection = target.connect().await.expect("it is a primary still");
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    for result in connection.execute(one_of_each()).await.results {
        let (class, executed, code) = says(&result);
        assert_eq!((class, executed), (Hold, No), "{code}");
    }
    assert_eq!(says(&run(&mut connection, &["SET", "k", "1"]).await), (Hold, No, "MASTERDOWN"));
    drop(connection);
    assert_eq!(&*target.connect().await.expect_err("PING is refused").code, "MASTERDOWN");
}

#[tokio::test]
async fn disk_that_cannot_be_written_is_a_hold() {
    let server = RedisServer::start(&[]);
    let mut connection = connect(&server).await;
    server.cli(&["CONFIG", "SET", "save", "3600 1000000"]);
    std::fs::remove_dir_all(server.dir()).expect("the directory is ours");
    server.cli(&["BGSAVE"]);
    server.wait_until(&["INFO", "persistence"], |reply| reply.text().contains("rdb_last_bgsave_status:err"));
    check_refused(&mut connection, "MISCONF", true).await;
}

#[tokio::test]
async fn script_that_does_not_end_is_a_hold_for_the_others() {
    let server = RedisServer::start(&["--busy-reply-threshold", "50"]);
    let mut connection = connect(&server).await;
    let _endless = server.send(&["EVAL", "while true do end", "0"]);
    server.wait_until(&["PING"], |reply| reply.text().starts_with("BUSY"));
    check_refused(&mut connection, "BUSY", true).await;
    server.cli(&["SCRIPT", "KILL"]);
    server.wait_until(&["PING"], |reply| reply.text() == "PONG");
    assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
}

#[tokio::test]
async fn lost_login_is_a_hold_on_a_connection_that_is_given_up() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all"]);
    let url = format!("redis://gw:pw@127.0.0.1:{}", server.port());
    let target = target_at(&url);
    let mut connection = target.connect().await.expect("the password is right");
    server.cli(&["ACL", "DELUSER", "gw"]);
    // The server closes the connections of a user that is gone.
    check_ambiguous(&connection.execute(one_set()).await, "connection-lost");
    assert_eq!(&*target.connect().await.expect_err("the user is gone").code, "authentication-failed");
}

#[tokio::test]
async fn server_that_stops_answering_leaves_everything_unknown() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.response_timeout = Duration::from_millis(200);
    let target = Target::try_new("test", config).expect("the URL is fine");
    let mut connection = target.connect().await.expect("the server is up");
    server.stop();
    let mut batch = one_set();
    push_atomic(&mut batch, &[&["SET", "a", "1"]]);
    push_script(&mut batch, "return 1", &[], &[]);
    let started = std::time::Instant::now();
    check_ambiguous(&connection.execute(batch).await, Failure::TIMEOUT);
    assert!(started.elapsed() < Duration::from_secs(5));
    let after = connection.execute(one_set()).await;
    assert_eq!(says(&after.results[0]), (Hold, No, Failure::NO_CONNECTION));
    server.cont();
    assert_eq!(run(&mut target.connect().await.expect("it answers again"), &["SET", "k", "2"]).await, DONE);
}

#[tokio::test]
async fn paused_writes_leave_everything_unknown_and_run_later() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.response_timeout = Duration::from_millis(100);
    let target = Target::try_new("test", config).expect("the URL is fine");
    let mut connection = target.connect().await.expect("the server is up");
    server.cli(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    check_ambiguous(&connection.execute(one_set()).await, Failure::TIMEOUT);
}

#[tokio::test]
async fn server_killed_in_the_middle_of_a_batch_leaves_everything_unknown() {
    let mut server = RedisServer::start(&[]);
    let target = target(&server);
    let mut connection = target.connect().await.expect("the server is up");
    let mut batch = new_batch();
    push(&mut batch, &["SET", "k", "1"]);
    push(&mut batch, &["DEBUG", "SLEEP", "30"]);
    push(&mut batch, &["SET", "never", "1"]);
    let executed = tokio::spawn(async move { connection.execute(batch).await });
    // It has begun the batch when it does not answer others any more.
    let port = server.port();
    let answers = move || testing::answers_within(port, Duration::from_millis(50));
    while tokio::task::spawn_blocking(answers).await.expect("it does not panic") {}
    server.kill9();
    check_ambiguous(&executed.await.expect("it does not panic"), "connection-lost");
    assert_eq!(&*target.connect().await.expect_err("nothing listens").code, "connection-refused");
    server.restart();
    assert_eq!(run(&mut target.connect().await.expect("it is back"), &["SET", "k", "2"]).await, DONE);
}

#[tokio::test]
async fn connection_held_over_a_restart_is_replaced() {
    let mut server = RedisServer::start(&[]);
    let target = target(&server);
    let mut connection = target.connect().await.expect("the server is up");
    server.restart();
    check_ambiguous(&connection.execute(one_set()).await, "connection-lost");
    assert_eq!(run(&mut target.connect().await.expect("it is back"), &["SET", "k", "2"]).await, DONE);
}

fn one_set() -> Batch {
    let mut batch = new_batch();
    push(&mut batch, &["SET", "k", "1"]);
    batch
}
