//! Connections over TLS. The authority and the server's certificate (for `localhost` and 127.0.0.1, valid for a hundred
//! years) are made for these tests; the authority's key was thrown away.

use std::process::Command;

use super::*;

/// Where the child process of a test finds the server. Which roots a process trusts is read from its environment, so
/// what depends on it runs in a process of its own.
const URL: &str = "REDRIVE_TEST_TLS_URL";

fn file(name: &str) -> String {
    format!("{}/src/target/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A server that also speaks TLS, and its URL.
fn start() -> (RedisServer, String) {
    let port = testing::free_port().to_string();
    let (certificate, key, authority) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &authority];
    let args = [&["--tls-port", &port, "--tls-auth-clients", "no"][..], &files].concat();
    let server = RedisServer::start(&args);
    (server, format!("rediss://localhost:{port}/3"))
}

#[tokio::test]
async fn certificate_that_nobody_trusts_is_a_hold() {
    let (_server, url) = start();
    let target = target_at(&url);
    assert_eq!(target.display_url(), url);
    let failure = target.connect().await.expect_err("the authority is unknown");
    assert_eq!((failure.class, failure.executed, &*failure.code), (FailureClass::Hold, Executed::No, "tls"));
}

#[tokio::test]
async fn server_without_tls_is_a_hold() {
    let server = RedisServer::start(&[]);
    let target = target_at(&format!("rediss://127.0.0.1:{}", server.port()));
    let failure = target.connect().await.expect_err("it does not speak TLS");
    assert_eq!((failure.class, failure.executed), (FailureClass::Hold, Executed::No));
}

#[tokio::test]
async fn certificate_of_a_trusted_authority_is_accepted() {
    if let Ok(url) = std::env::var(URL) {
        let mut connection = target_at(&url).connect().await.expect("the authority is trusted");
        assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
        return;
    }
    let (server, url) = start();
    let child = Command::new(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", "target::tests::tls::certificate_of_a_trusted_authority_is_accepted"])
        .env("SSL_CERT_FILE", file("ca.pem"))
        .env(URL, url)
        .output()
        .expect("the test's program can be started again");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(server.cli(&["INFO", "keyspace"]).text().contains("db3:keys=1"));
}
