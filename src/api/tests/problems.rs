use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::harness::*;
use crate::api::openapi::document;

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn request(method: &Method, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    request.body(Body::empty()).expect("the request is valid")
}

/// The plane that has a path, told by the servers that the document gives for it.
fn planes(world: &World) -> Vec<(String, Router, Vec<Method>)> {
    let document = serde_json::to_value(document()).expect("the document is serialisable");
    let paths = document["paths"].as_object().expect("an object").iter();
    paths
        .map(|(path, item)| {
            let router = if item.get("servers").is_some() { world.ops() } else { world.data() };
            let known = METHODS.into_iter().filter(|method| item.get(method.as_str().to_lowercase()).is_some());
            (path.replace("{id}", "a"), router, known.collect())
        })
        .collect()
}

#[tokio::test]
async fn method_that_a_path_does_not_know_is_a_problem_with_allow() {
    let world = World::new();
    for (path, router, known) in planes(&world) {
        for method in METHODS.iter().filter(|method| !known.contains(method)) {
            let answer = call(&router, request(method, &path)).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            answer.assert_problem("method-not-allowed");
            let allow = answer.header("allow").expect("Allow is there");
            assert!(known.iter().all(|known| allow.contains(known.as_str())), "{method} {path}: {allow}");
            assert_eq!(answer.body.get("accepted").is_some(), !method.is_safe());
        }
    }
}

#[tokio::test]
async fn path_that_is_not_there_is_a_problem() {
    let world = World::new();
    for path in ["/", "/task", "/tasks/", "/tasks/a/b", "/admin", "/admin/v1/nothing", "/TASKS", "/tasks%2Fbatch"] {
        for router in [world.data(), world.ops()] {
            for method in &METHODS {
                call(&router, request(method, path)).await.assert_problem("not-found");
            }
        }
    }
    assert!(world.refused("not-found") > 0);
}

#[tokio::test]
async fn panic_of_a_handler_is_a_problem() {
    let world = World::new();
    world.trouble(Some(Trouble::Panic));
    let answer = call(&world.ops(), get("/readyz")).await;
    answer.assert_problem("internal");
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!answer.body.to_string().contains("as the test asked"));
}

const READABLE: &str = "GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// What hyper refuses before anything of ours sees it.
fn unreadable() -> Vec<(Vec<u8>, &'static str)> {
    let post = |headers: &str| format!("POST /tasks HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n").into_bytes();
    let many = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    let invalid = [
        // The beginning of TLS, of HTTP/2, of a command to Redis.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"*1\r\n$4\r\nPING\r\n".to_vec(),
        b"GET /\r\n\r\n".to_vec(),
        b"GET / HTTP/2.0\r\nhost: localhost\r\n\r\n".to_vec(),
        b"GET / HTTP/0.9\r\nhost: localhost\r\n\r\n".to_vec(),
        b"GE(T / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
        b"GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
        b"GET http:// HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec(),
        post("no-colon"),
        post("spaced name: 1"),
        post("x: a\0b"),
        post("x: 1\r\n folded"),
        post("content-length: some"),
        post("content-length: -1"),
        post("content-length: 1\r\ncontent-length: 2"),
        post("transfer-encoding: gzip"),
    ];
    let too_large = [
        post(&format!("x: {}", "y".repeat(20_000))),
        post(&many),
        format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(20_000)).into_bytes(),
        // Far more than is ever read, and no end.
        format!("GET /{}", "y".repeat(1_000_000)).into_bytes(),
    ];
    let invalid = invalid.into_iter().map(|bytes| (bytes, "invalid-request"));
    invalid.chain(too_large.into_iter().map(|bytes| (bytes, "head-too-large"))).collect()
}

fn assert_unreadable(answer: &Answer, slug: &str) {
    answer.assert_problem(slug);
    let status = if slug == "head-too-large" { 431 } else { 400 };
    assert_eq!((answer.status.as_u16(), &answer.body["accepted"]), (status, &false.into()), "{answer:?}");
    assert!(answer.header("date").is_some(), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
}

#[tokio::test]
async fn what_cannot_be_read_as_a_request_is_a_problem() {
    let world = World::new();
    for (address, _server) in [world.serve_data(), world.serve_ops()] {
        for (bytes, slug) in unreadable() {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            let before = world.refused(slug);
            // That the connection is closed is what ends the exchange.
            let [answer] = &answers(&exchange(address, &bytes).await)[..] else { panic!("one answer to {shown:?}") };
            assert_unreadable(answer, slug);
            assert_eq!(world.refused(slug), before + 1, "{shown:?}");

            // Behind a request on the same connection, in one packet with it.
            let pipelined = [READABLE.as_bytes(), &bytes].concat();
            let answers = answers(&exchange(address, pipelined).await);
            assert_eq!(answers.len(), 2, "{shown:?}: {answers:?}");
            assert_eq!(answers[0].body, "ok\n");
            assert_unreadable(&answers[1], slug);
        }
    }
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn request_that_breaks_later_is_a_problem() {
    let world = World::new();
    let (address, _server) = world.serve_data();
    // The second one comes when the first has been answered.
    let mut stream = TcpStream::connect(address).await.expect("the server listens");
    stream.write_all(READABLE.as_bytes()).await.expect("the server reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok\n") {
        stream.read_buf(&mut answer).await.expect("the connection is open");
    }
    stream.write_all(b"GET / HTTP/1.1\r\nhost").await.expect("the server reads");
    stream.write_all(b"\r\n\r\n").await.expect("the server reads");
    let answer = timeout(PATIENCE, read_to_end(&mut stream)).await.expect("the server closes in time");
    assert_unreadable(&answers(&answer)[0], "invalid-request");

    // A body is read when its head was good.
    for chunks in ["zz\r\n", "5\r\nhello, world\r\n", "fffffffffffffffff\r\n", "5\nhello"] {
        let request = format!(
            "POST /tasks HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let answer = &answers(&exchange(address, request).await)[0];
        answer.assert_problem("invalid-request");
        assert_eq!(answer.body["accepted"], false);
    }
    assert!(world.stored().is_empty());
}

/// Half of a request is not answered: who closes does not wait for an answer.
#[tokio::test]
async fn request_that_ends_early_has_no_answer() {
    let world = World::new();
    let (address, _server) = world.serve_data();
    for bytes in ["", "GET", "GET / HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        stream.write_all(bytes.as_bytes()).await.expect("the server reads");
        stream.shutdown().await.expect("the connection is open");
        let answer = timeout(PATIENCE, read_to_end(&mut stream)).await.expect("the server closes in time");
        assert_eq!(answer, "", "{bytes:?}");
    }
}

#[cfg(feature = "swagger-ui")]
#[tokio::test]
async fn documentation_needs_nothing_from_elsewhere() {
    let world = World::new();
    let page = call(&world.data(), get("/docs/")).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.starts_with("default-src 'self'")));
    for file in ["index.css", "swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js"] {
        let answer = call(&world.data(), get(&format!("/docs/{file}"))).await;
        assert_eq!(answer.status, StatusCode::OK, "{file}");
    }
    let initializer = call(&world.data(), get("/docs/swagger-initializer.js")).await;
    let script = initializer.body.as_str().expect("a script");
    assert!(script.contains("\"/openapi.json\"") && !script.contains("://"), "{script}");
    assert_eq!(call(&world.data(), get("/openapi.json")).await.body["openapi"], "3.1.0");
    let redirect = call(&world.data(), get("/docs")).await;
    assert_eq!(redirect.header("location"), Some("/docs/"));
}
