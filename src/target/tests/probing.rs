//! What a probe finds.

use super::*;

/// The probe fails with a hold of that code.
async fn check_held(target: &Target, code: &str) {
    let failure = target.probe().await.expect_err("the probe was to fail");
    assert_eq!((failure.class, failure.executed, &*failure.code), (FailureClass::Hold, Executed::No, code));
}

#[tokio::test]
async fn healthy_target_is_written_to_over_one_kept_connection() {
    let server = RedisServer::start(&[]);
    let target = target(&server);
    for _ in 0..3 {
        let report = target.probe().await.expect("the server is well");
        assert_eq!(report.canary_refused, None);
        assert!(report.round_trip < Duration::from_secs(1));
    }
    let lifetime: i64 = server.cli(&["PTTL", "redrive:probe"]).text().parse().expect("it is a number");
    assert!((1..=60_000).contains(&lifetime));
    let probes = server.cli(&["CLIENT", "LIST"]).text().matches("cmd=set").count();
    assert_eq!(probes, 1);
}

#[tokio::test]
async fn what_stops_writes_is_found() {
    let server = RedisServer::start(&[]);
    let target = target(&server);
    target.probe().await.expect("the server is well");
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    check_held(&target, "OOM").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    check_held(&target, "NOREPLICAS").await;
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    target.probe().await.expect("the server is well again");
}

#[tokio::test]
async fn replica_is_found_even_if_it_takes_writes() {
    let server = RedisServer::start(&["--replica-read-only", "no"]);
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    check_held(&target(&server), "READONLY").await;
    assert_eq!(server.cli(&["EXISTS", "redrive:probe"]).text(), "0");
}

#[tokio::test]
async fn target_that_is_gone_or_hangs_is_found_and_its_return_too() {
    let mut server = RedisServer::start(&[]);
    let target = target(&server);
    target.probe().await.expect("the server is well");
    server.kill9();
    check_held(&target, "connection-refused").await;
    server.restart();
    target.probe().await.expect("the server is back");
    server.restart();
    target.probe().await.expect("the connection that was kept is replaced at once");
    server.stop();
    let started = std::time::Instant::now();
    check_held(&target, Failure::TIMEOUT).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    server.cont();
    target.probe().await.expect("the server goes on");
}

#[tokio::test]
async fn user_without_rights_to_own_keys_is_told_and_not_held() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~app:*", "+@write"]);
    let target = target_at(&format!("redis://gw:pw@127.0.0.1:{}", server.port()));
    let report = target.probe().await.expect("the server is well");
    assert_eq!(report.canary_refused.expect("the key is not permitted").reason, ReasonClass::NoPermission);
}
