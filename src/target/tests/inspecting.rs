//! What is found about a target before it matters.

use super::*;
use crate::finding::Severity;

fn codes(findings: &[Finding]) -> Vec<&'static str> {
    for finding in findings {
        assert!(!finding.message.is_empty() && !finding.remedy.is_empty());
        assert!(!format!("{finding:?}").contains("s3cret"));
    }
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

/// What is found with a user that has these rules.
async fn inspect_as(server: &RedisServer, rules: &[&str]) -> Vec<&'static str> {
    server.cli(&["ACL", "DELUSER", "gw"]);
    assert_eq!(server.cli(&[&["ACL", "SETUSER", "gw", "on", ">s3cret"], rules].concat()).text(), "OK");
    codes(&target_at(&format!("redis://gw:s3cret@127.0.0.1:{}", server.port())).inspect().await)
}

/// A server with nothing to complain about.
fn sound() -> RedisServer {
    RedisServer::start(&["--appendonly", "yes"])
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well_and_nothing_is_left_behind() {
    let server = sound();
    let target = target(&server);
    for _ in 0..2 {
        assert_eq!(target.inspect().await, []);
    }
    assert_eq!(server.cli(&["KEYS", "*"]).text(), "redrive:probe");
}

#[tokio::test]
async fn target_that_cannot_be_used_is_an_error() {
    let mut server = sound();
    let target = target(&server);
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let found = target.inspect().await;
    assert_eq!(codes(&found), ["unreachable"]);
    assert_eq!(found[0].severity, Severity::Error);
    assert!(found[0].message.contains("NOREPLICAS"), "{found:?}");
    server.kill9();
    assert_eq!(codes(&target.inspect().await), ["unreachable"]);
}

#[tokio::test]
async fn what_the_user_may_not_do_is_found() {
    let server = sound();
    for (rules, expected) in [
        (&["~*", "+@all"][..], &[][..]),
        (&["~*", "+@all", "-eval"], &["scripts-denied"]),
        (&["~*", "+@all", "-evalsha"], &["scripts-denied"]),
        (&["~app:*", "+@all"], &["own-keys-denied"]),
        (&["~app:*", "+@all", "-evalsha"], &["scripts-denied", "own-keys-denied"]),
        (&["~*", "+@all", "-hsetnx"], &["own-keys-denied"]),
        (&["~*", "+@all", "-pttl"], &["own-keys-denied"]),
        (&["~*", "+@all", "-hdel"], &["own-keys-denied"]),
        (&["~*", "+@all", "-del"], &["own-keys-denied"]),
        (&["~*", "+@all", "-hget"], &["own-keys-denied"]),
        (&["~*", "+@all", "-get"], &["own-keys-denied"]),
        (&["~*", "+@all", "-client|kill"], &["clients-denied"]),
        (&["~*", "+@all", "-client|list"], &["clients-denied"]),
        (&["~*", "+@all", "-client|setname"], &["clients-denied"]),
        (&["~*", "+@all", "-config|get"], &[]),
        (&["~*", "+@all", "-info"], &["unchecked"]),
        (&["~*", "+@all", "-time", "-role", "-ping"], &[]),
    ] {
        assert_eq!(inspect_as(&server, rules).await, expected, "{rules:?}");
    }
}

#[tokio::test]
async fn how_the_server_is_set_up_is_found() {
    let server = RedisServer::start(&["--maxmemory", "1gb", "--maxmemory-policy", "volatile-lru"]);
    let replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {}", server.port())]);
    server.wait_until(&["INFO", "replication"], |reply| reply.text().contains("connected_slaves:1"));
    drop(server.cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]));
    let found = target(&server).inspect().await;
    assert_eq!(codes(&found), ["evicts", "not-persistent", "no-replicas-required"]);
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning));
    assert_eq!(
        inspect_as(&server, &["~*", "+@all", "-config|get"]).await,
        ["evicts", "no-replicas-required", "unchecked"]
    );
    drop(replica);
}

#[tokio::test]
async fn clock_that_is_off_is_found() {
    let port = super::probing::server_of("7.0.0", 5000);
    let found = target_at(&format!("redis://127.0.0.1:{port}")).inspect().await;
    assert!(codes(&found).contains(&"clock-off"), "{found:?}");
}

#[tokio::test]
async fn user_in_the_documentation_can_do_everything() {
    let document = include_str!("../../../docs/redis-user.md");
    let line = document.lines().find(|line| line.starts_with("ACL SETUSER")).expect("the document has one");
    let server = sound();
    assert_eq!(server.cli(&line.split(' ').collect::<Vec<_>>()).text(), "OK");
    let target = target_at(&format!("redis://redrive:secret@127.0.0.1:{}", server.port()));
    assert_eq!(target.inspect().await, []);
    let mut connection = target.connect().await.expect("the password is right");
    let mut batch = target.batch();
    push(&mut batch, &["SET", "app:1", "x"]);
    push_atomic(&mut batch, &[&["SET", "app:2", "x"], &["EXPIRE", "app:2", "60"]]);
    push_script(&mut batch, "return redis.call('SET', KEYS[1], 1)", &["app:3"], &[]);
    let marker = Marker { id_hash: 1, unit: 0, accepted_at: jiff::Timestamp::now() };
    push_once(&mut batch, &marker, &[&["INCR", "app:4"]]);
    push_versioned(&mut batch, &Fence { version: 1, id: "a" }, "app:5", &[&["SET", "app:5", "x"]]);
    assert_eq!(connection.execute(batch).await.results, [DONE, DONE, DONE, DONE, DONE]);
    assert_eq!(target.marker(&marker).await, Ok(Some(MarkerState::Applied)));
    assert_eq!(target.probe().await.expect("it is well").canary_refused, None);
    let report = target.fence(&[Past::Connection(connection.name())]).await.expect("it answers");
    assert_eq!(report, FenceReport { killed: 1, not_permitted: None });
}
