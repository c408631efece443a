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
        assert!(report.ping < Duration::from_secs(1));
        assert!(report.has_absolute_ttl);
        // It is the same clock. Both are read in microseconds, half a round trip apart at most.
        assert!(report.clock_offset_ms.abs() < 1000, "{}", report.clock_offset_ms);
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
    let report = target.probe().await.expect("it takes what frees memory");
    assert_eq!(report.out_of_memory.map(|failure| failure.code), Some("OOM".into()));
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
    let before = target.probe().await.expect("the server is back").run_id.expect("a server tells");
    assert_eq!(target.probe().await.expect("it is well").run_id.as_ref(), Some(&before));
    server.restart();
    let after = target.probe().await.expect("the connection that was kept is replaced at once").run_id;
    assert_ne!(after.expect("a server tells"), before);
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
    assert!(report.has_absolute_ttl && report.clock_offset_ms == 0, "neither is told");
}

fn answer(command: &[String], version: &str, ahead: i64) -> Reply {
    match command[0].as_str() {
        "INFO" => Reply::Bulk(Some(format!("# Server\r\nredis_version:{version}\r\n").into())),
        "ROLE" => Reply::Array(vec![Reply::Bulk(Some(b"master".into()))]),
        "TIME" => {
            let now = jiff::Timestamp::now().as_microsecond() + ahead * 1000;
            let parts = [now.div_euclid(1_000_000), now.rem_euclid(1_000_000)];
            Reply::Array(parts.map(|part| Reply::Bulk(Some(part.to_string().into()))).into())
        }
        "EVALSHA" => Reply::Error("NOPERM this user has no permissions to run the 'evalsha' command".to_owned()),
        _ => Reply::Status("OK".to_owned()),
    }
}

/// Answers every command of a probe as a server of that version whose clock is that far from ours.
pub(super) fn server_of(version: &'static str, ahead: i64) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    let port = listener.local_addr().expect("a bound listener has an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || testing::serve(stream, |command| answer(command, version, ahead)));
        }
    });
    port
}

#[tokio::test]
async fn clock_and_age_of_a_server_are_told() {
    for (version, ahead, has_absolute_ttl) in [("6.0.16", -90_000, false), ("6.2.0", 0, true), ("7.4.1", 7_000, true)] {
        let target = target_at(&format!("redis://127.0.0.1:{}", server_of(version, ahead)));
        let report = target.probe().await.expect("it is well");
        assert_eq!(report.has_absolute_ttl, has_absolute_ttl, "{version}");
        assert!((report.clock_offset_ms - ahead).abs() < 1000, "{} for {ahead}", report.clock_offset_ms);
    }
}
