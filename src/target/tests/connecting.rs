//! Making connections, and being refused them.

use std::{
    io::{Read, Write},
    net::TcpListener,
};

use super::*;

/// Connecting fails, and nothing of a task was sent.
async fn check_refused(target: &Target, code: &str) -> Failure {
    let failure = target.connect().await.expect_err("connecting was to fail");
    assert_eq!((failure.class, failure.executed, &*failure.code), (FailureClass::Hold, Executed::No, code));
    failure
}

#[tokio::test]
async fn user_password_and_database_come_from_the_url() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">p@ss/word", "~*", "+@all"]);
    let target = target_at(&format!("redis://gw:p%40ss%2Fword@127.0.0.1:{}/5", server.port()));
    assert_eq!(target.display_url(), format!("redis://127.0.0.1:{}/5", server.port()));
    let mut connection = target.connect().await.expect("the password is right");
    assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
    assert!(server.cli(&["INFO", "keyspace"]).text().contains("db5:keys=1"));
    let clients = server.cli(&["CLIENT", "LIST"]).text();
    assert!(clients.contains("user=gw") && clients.contains("resp=2"), "{clients}");
}

#[tokio::test]
async fn unix_socket_works() {
    let server = RedisServer::start(&[]);
    let path = server.dir().join("redis.sock");
    let other = RedisServer::start(&["--unixsocket", &path.display().to_string()]);
    let target = target_at(&format!("redis+unix://{}?db=2", path.display()));
    let mut connection = target.connect().await.expect("the socket is there");
    assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
    assert!(other.cli(&["INFO", "keyspace"]).text().contains("db2:keys=1"));
}

#[tokio::test]
async fn nothing_that_listens_is_a_hold() {
    let target = target_at(&format!("redis://127.0.0.1:{}", testing::free_port()));
    check_refused(&target, "connection-refused").await;
    check_refused(&target_at("redis+unix:///nonexistent/redis.sock"), "connection-refused").await;
}

#[tokio::test]
async fn name_that_does_not_resolve_is_a_hold() {
    let mut config = Config::new("redis://no-such-host.invalid:6379");
    config.connect_timeout = Duration::from_secs(20);
    let target = Target::try_new("test", config).expect("the URL is fine");
    check_refused(&target, "connection-failed").await;
}

#[tokio::test]
async fn wrong_or_missing_password_is_a_hold_that_does_not_show_it() {
    let server = RedisServer::start(&["--requirepass", "right"]);
    let target = target_at(&format!("redis://:s3cret@127.0.0.1:{}", server.port()));
    let failure = check_refused(&target, "authentication-failed").await;
    assert!(!format!("{target:?} {failure:?} {}", target.display_url()).contains("s3cret"));
    check_refused(&target_at(&server.url()), "NOAUTH").await;
}

#[tokio::test]
async fn database_that_the_server_does_not_have_is_a_hold() {
    let server = RedisServer::start(&["--databases", "2"]);
    let target = target_at(&format!("redis://127.0.0.1:{}/2", server.port()));
    check_refused(&target, "ERR").await;
}

#[tokio::test]
async fn server_that_is_full_is_a_hold() {
    let server = RedisServer::start(&[]);
    let _held: Vec<_> = (0..3).map(|_| server.send(&["PING"])).collect();
    server.cli(&["CONFIG", "SET", "maxclients", "3"]);
    let failure = target(&server).connect().await.expect_err("there is no room");
    assert_eq!((failure.class, failure.executed), (FailureClass::Hold, Executed::No));
    assert!(failure.code.contains("ERR") || failure.code.contains("connection-lost"), "{failure:?}");
}

#[tokio::test]
async fn server_that_loads_its_data_is_a_hold() {
    let mut server = RedisServer::start(&[]);
    server.cli(&["DEBUG", "POPULATE", "10000"]);
    server.cli(&["SAVE"]);
    server.restart_without_waiting(&["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]);
    server.wait_until(&["PING"], |reply| reply.text().starts_with("LOADING"));
    check_refused(&target(&server), "LOADING").await;
    assert_eq!(&*target(&server).probe().await.expect_err("it is loading").code, "LOADING");
}

#[tokio::test]
async fn server_that_hangs_is_a_hold_within_the_connect_timeout() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.connect_timeout = Duration::from_millis(100);
    let target = Target::try_new("test", config).expect("the URL is fine");
    server.stop();
    let started = std::time::Instant::now();
    check_refused(&target, "connect-timeout").await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_is_no_redis_is_a_hold() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    let port = listener.local_addr().expect("a bound listener has an address").port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the target connects");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).expect("it asks something");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").expect("it listens");
    });
    check_refused(&target_at(&format!("redis://127.0.0.1:{port}")), "protocol-error").await;
    server.join().expect("the server does not panic");
}

#[tokio::test]
async fn no_more_connections_than_configured() {
    let server = RedisServer::start(&[]);
    let mut config = Config::new(server.url());
    config.connections = 2;
    config.connect_timeout = Duration::from_millis(200);
    let target = Target::try_new("test", config).expect("the URL is fine");
    let first = target.connect().await.expect("the server is up");
    let _second = target.connect().await.expect("the server is up");
    check_refused(&target, Failure::NO_CONNECTION).await;
    drop(first);
    target.connect().await.expect("one was given back");
}

#[test]
fn configuration_that_cannot_be_is_refused_without_showing_the_url() {
    let urls = [
        "",
        "s3cret",
        "http://:s3cret@host",
        "redis://:s3cret@host:99999",
        "redis://:s3cret@host/x",
        "redis://:s3cret@0.0.0.0",
    ];
    for url in urls {
        let error = Target::try_new("test", Config::new(url)).expect_err("it is wrong");
        assert_eq!(error, ConfigError::Url, "{url}");
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
    let refused = |url: &str| Target::try_new("test", Config::new(url)).expect_err("it is wrong");
    assert_eq!(refused("rediss://host/#insecure"), ConfigError::Insecure);
    assert_eq!(refused("redis://host/-1"), ConfigError::Database(-1));
    let config = Config::new("redis://:s3cret@host");
    assert!(!format!("{config:?}").contains("s3cret"));
    let none = Config { connections: 0, ..config.clone() };
    assert_eq!(Target::try_new("test", none).expect_err("it is wrong"), ConfigError::NoConnections);
    let never = Config { probe_timeout: Duration::ZERO, ..config };
    assert!(matches!(Target::try_new("test", never), Err(ConfigError::NoTime(_))));
}

#[test]
fn display_url_shows_where_but_not_who() {
    let cases = [
        ("redis://user:s3cret@redis.example:7000/4", "redis://redis.example:7000/4"),
        ("rediss://:s3cret@redis.example", "rediss://redis.example:6379/0"),
        ("redis://user:s3cret@[::1]:6379", "redis://[::1]:6379/0"),
        ("redis+unix:///run/redis.sock?user=user&pass=s3cret&db=1", "redis+unix:///run/redis.sock?db=1"),
    ];
    for (url, shown) in cases {
        let target = target_at(url);
        assert_eq!(target.display_url(), shown);
        assert!(!format!("{target:?}").contains("s3cret"));
    }
}
