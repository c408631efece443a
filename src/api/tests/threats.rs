//! One test for each threat that the design names for HTTP.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use futures_util::{future::join_all, stream};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::harness::*;
use crate::api::{Config, Token, server::Limits};

/// A body that fails the test when it is read.
fn untouchable() -> Body {
    Body::from_stream(stream::poll_fn(|_| -> std::task::Poll<Option<Result<Vec<u8>, std::io::Error>>> {
        panic!("the body was read")
    }))
}

#[test]
fn reached_from_outside_the_pod() {
    let config = Config::default();
    assert!(config.ops_listen.ip().is_loopback());
    for listen in config.listen {
        assert!(matches!(listen, crate::api::Listen::Tcp(address) if address.ip().is_loopback()));
    }
}

#[tokio::test]
async fn forgery_by_a_web_page() {
    let world = World::new();
    for path in ["/tasks", "/tasks/batch"] {
        let request = |content_type: Option<&str>, more: &[(&'static str, &str)]| {
            let mut request = Request::post(path).header("host", "127.0.0.1");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            more.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(untouchable())
        };
        let json = Some("application/json");
        for (content_type, headers, slug) in [
            (None, &[][..], "unsupported-media-type"),
            (Some("text/plain"), &[], "unsupported-media-type"),
            (Some("text/plain; application/json"), &[], "unsupported-media-type"),
            (Some("application/x-www-form-urlencoded"), &[], "unsupported-media-type"),
            (Some("multipart/form-data; boundary=application/json"), &[], "unsupported-media-type"),
            (Some("application/json, text/plain"), &[], "unsupported-media-type"),
            (Some("application/json; charset=utf-16"), &[], "unsupported-media-type"),
            (Some("application/jsonp"), &[], "unsupported-media-type"),
            (json, &[("content-type", "text/plain")], "unsupported-media-type"),
            (json, &[("origin", "https://evil.example")], "cross-site"),
            (json, &[("origin", "null")], "cross-site"),
            (json, &[("origin", "http://127.0.0.1.evil.example")], "cross-site"),
            (json, &[("origin", "http://127.0.0.1:8080")], "cross-site"),
            (json, &[("sec-fetch-site", "cross-site")], "cross-site"),
            (json, &[("sec-fetch-site", "same-site")], "cross-site"),
            (
                json,
                &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
                "cross-site",
            ),
        ] {
            let answer = call(&world.data(), request(content_type, headers).expect("the request is valid")).await;
            answer.assert_problem(slug);
            assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control-")));
        }
    }
    // Asking for permission is not granted either.
    let preflight = Request::options("/tasks").header("host", "127.0.0.1").header("origin", "https://evil.example");
    let answer = call(&world.data(), preflight.body(Body::empty()).expect("the request is valid")).await;
    answer.assert_problem("cross-site");
    assert!(world.stored().is_empty());

    for (name, value) in [("origin", "http://127.0.0.1"), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")]
    {
        let answer = call(&world.data(), with_header(post("/tasks", TASK), name, value)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{name}: {value}");
    }
    let charset = Request::post("/tasks")
        .header("host", "127.0.0.1")
        .header("content-type", "Application/JSON;charset=\"UTF-8\"");
    let answer = call(&world.data(), charset.body(Body::from(TASK)).expect("the request is valid")).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn name_that_resolves_to_loopback() {
    let world = World::with(Config { allowed_hosts: vec!["redrive.internal".into()], ..Config::default() });
    let (data, _data) = world.serve_data();
    let (ops, _ops) = world.serve_ops();
    let send = |address, line: &str, hosts: &[&str]| {
        let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        exchange(address, format!("{line} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n"))
    };
    for (address, path) in [(data, "/tasks/a"), (data, "/openapi.json"), (ops, "/admin/v1/overview")] {
        let port = address.port();
        let line = format!("GET {path}");
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:1",
            "localhost:",
            "127.1",
            "user@127.0.0.1",
            "redrive.internal.evil.example",
            "",
        ] {
            let answer = send(address, &line, &[host]).await;
            assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
            assert!(answer.contains("urn:redrive:problem:wrong-host"), "{host}: {answer}");
        }
        let absolute = format!("GET http://evil.example{path}");
        assert!(send(address, &absolute, &["127.0.0.1"]).await.starts_with("HTTP/1.1 421 "));
        assert!(send(address, &line, &[]).await.starts_with("HTTP/1.1 400 "));
        assert!(send(address, &line, &["127.0.0.1", "evil.example"]).await.starts_with("HTTP/1.1 400 "));
        for host in ["127.0.0.1", "LocalHost", "[::1]", "redrive.internal"] {
            for host in [host.to_owned(), format!("{host}:{port}")] {
                let answer = send(address, &line, &[&host]).await;
                assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 404 "), "{host}: {answer}");
            }
        }
    }
    // The kubelet names the pod's address.
    for (address, path) in [(data, "/readyz"), (ops, "/readyz"), (ops, "/metrics")] {
        assert!(send(address, &format!("GET {path}"), &["10.1.2.3:7380"]).await.starts_with("HTTP/1.1 200 "));
    }
}

/// What a naive proxy can be made to send is a GET, or a POST without our content type: neither changes anything.
#[tokio::test]
async fn request_that_the_application_was_made_to_send() {
    let world = World::new();
    let (address, _server) = world.serve_data();
    for path in ["/tasks", "/tasks/batch"] {
        let answer =
            exchange(address, format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")).await;
        let unknown = answer.starts_with("HTTP/1.1 405 ") || answer.starts_with("HTTP/1.1 404 ");
        assert!(unknown, "{answer}");
        let post =
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}");
        assert!(exchange(address, post).await.starts_with("HTTP/1.1 415 "));
    }
    assert!(world.stored().is_empty());
}

const TOKEN: &str = "correct-horse-battery-staple";

#[tokio::test]
async fn wrong_token() {
    let world = World::with(Config { token: Some(Token::new(TOKEN.as_bytes())), ..Config::default() });
    let path = "/admin/v1/overview";
    call(&world.ops(), get(path)).await.assert_problem("unauthorized");
    for given in ["", "Bearer", "Bearer ", "Bearer correct-horse", "Basic correct-horse-battery-staple", TOKEN] {
        let answer = call(&world.ops(), with_header(get(path), "authorization", given)).await;
        answer.assert_problem("unauthorized");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let longer = format!("Bearer {TOKEN}x");
    call(&world.ops(), with_header(get(path), "authorization", &longer)).await.assert_problem("unauthorized");
    let right = with_header(get(path), "authorization", &format!("Bearer {TOKEN}"));
    assert_eq!(call(&world.ops(), right).await.status, StatusCode::OK);
    let twice = with_header(get(path), "authorization", &format!("Bearer {TOKEN}"));
    let twice = with_header(twice, "authorization", "Bearer x");
    call(&world.ops(), twice).await.assert_problem("unauthorized");
    assert_eq!(format!("{:?}", world.state.config.token), "Some(Token(hidden))");
}

fn paths_that_look_like_probes() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "admin",
        "ADMIN",
        "v1",
        "overview",
        "partitions",
        "dead-letters",
        "livez",
        "readyz",
        "healthz",
        "metrics",
        "%2f",
        "%2F",
        "..",
        ".",
        ";",
        "%00",
        "%2e%2e",
        "a",
    ]);
    let query = prop::sample::select(vec!["", "?/livez", "?verbose", "?path=/readyz", "?token="]);
    (prop::collection::vec((piece, prop::sample::select(vec!["/", "//", ""])), 1..7), query).prop_map(
        |(pieces, query)| {
            let path: String = pieces.into_iter().map(|(piece, slash)| format!("{piece}{slash}")).collect();
            format!("/{path}{query}")
        },
    )
}

#[test]
fn token_avoided_by_a_path() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let world = World::with(Config { token: Some(Token::new(TOKEN.as_bytes())), ..Config::default() });
    let router = world.ops();
    let open = ["/livez", "/readyz", "/startupz", "/metrics", "/version"];
    proptest!(ProptestConfig::with_cases(2000), |(path in paths_that_look_like_probes())| {
        let Ok(request) = Request::builder().method(Method::GET).uri(&path).header("host", "localhost").body(Body::empty())
        else { return Ok(()) };
        let answer = runtime.block_on(call(&router, request));
        let exact = path.split('?').next().unwrap_or_default();
        prop_assert_eq!(answer.status.is_success(), open.contains(&exact) && exact != "/startupz", "{}", path);
    });
}

#[tokio::test]
async fn large_payload() {
    let world = World::with(Config { max_body: 1000, max_batch_body: 2000, ..Config::default() });
    let (address, _server) = world.serve_data();
    let task = |bytes: usize| {
        let empty = r#"{"type":"simple","command":"SET","args":["k",""]}"#.len();
        format!(r#"{{"type":"simple","command":"SET","args":["k","{}"]}}"#, "v".repeat(bytes - empty))
    };
    assert!(exchange(address, raw_post(address, &task(1000))).await.starts_with("HTTP/1.1 202 "));
    let answer = exchange(address, raw_post(address, &task(1001))).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("urn:redrive:problem:payload-too-large"),
        "{answer}"
    );

    // The answer arrives although nobody reads all that was sent.
    let huge = exchange(address, raw_post(address, &task(3_000_000))).await;
    assert!(huge.starts_with("HTTP/1.1 413 "), "{huge}");

    let head =
        format!("POST /tasks HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n");
    let chunked =
        |body: &str| format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert!(exchange(address, chunked(&task(1000))).await.starts_with("HTTP/1.1 202 "));
    assert!(exchange(address, chunked(&task(1001))).await.starts_with("HTTP/1.1 413 "));

    // What is sent beyond the declared length is no part of the body.
    let lying = raw_post(address, &task(900)).replace("content-length: 900", "content-length: 100");
    assert!(exchange(address, lying).await.starts_with("HTTP/1.1 400 "));

    let batch = format!(r#"{{"tasks":[{}]}}"#, task(1001));
    let answer = call(&world.data(), post("/tasks/batch", batch)).await;
    assert_eq!(answer.body["results"][0]["problem"]["status"], 413, "{answer:?}");
    call(&world.data(), post("/tasks/batch", " ".repeat(2001))).await.assert_problem("payload-too-large");
}

#[tokio::test]
async fn many_bytes_at_once() {
    let world = World::with(Config { max_inflight_bytes: 1500, max_body: 1000, ..Config::default() });
    let (address, _server) = world.serve_data();
    let mut slow = TcpStream::connect(address).await.expect("the server listens");
    let head = raw_post(address, &"v".repeat(1000)).replace(&"v".repeat(1000), "v");
    slow.write_all(head.as_bytes()).await.expect("the server reads");
    let task = format!(r#"{{"type":"simple","command":"SET","args":["k","{}"]}}"#, "v".repeat(600));
    let refused = async {
        loop {
            let answer = exchange(address, raw_post(address, &task)).await;
            if answer.starts_with("HTTP/1.1 503 ") {
                return answer;
            }
        }
    };
    let answer = timeout(PATIENCE, refused).await.expect("the room is taken");
    assert!(answer.contains("retry-after: ") && answer.contains("urn:redrive:problem:overloaded"), "{answer}");
    drop(slow);
    let accepted = async { while !exchange(address, raw_post(address, &task)).await.starts_with("HTTP/1.1 202 ") {} };
    timeout(PATIENCE, accepted).await.expect("the room is given back");
}

#[tokio::test]
async fn connection_outlives_a_refusal_for_want_of_room() {
    let world = World::with(Config { max_inflight_bytes: 1000, ..Config::default() });
    let (address, _server) = world.serve_data();
    // More than the server reads at once.
    let task = format!(r#"{{"type":"simple","command":"SET","args":["k","{}"]}}"#, "v".repeat(60_000));
    let last = raw_post(address, &task);
    let first = last.replace("connection: close\r\n", "");
    assert_ne!(first, last);
    let answers = exchange(address, first + &last).await;
    assert_eq!(answers.matches("HTTP/1.1 503 ").count(), 2, "{answers}");
}

#[tokio::test]
async fn decompression_bomb() {
    let world = World::new();
    for encoding in ["gzip", "br", "deflate", "zstd", "identity", "gzip, gzip"] {
        let request = with_header(post("/tasks", untouchable()), "content-encoding", encoding);
        call(&world.data(), request).await.assert_problem("unsupported-media-type");
    }
}

#[tokio::test]
async fn hostile_json() {
    let world = World::new();
    let deep = format!(r#"{{"type":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    for body in [
        deep.as_str(),
        r#"{"type":"simple","command":"SET","args":["k","\ud800"]}"#,
        r#"{"type":"simple","command":"SET","command":"DEL","args":["k"]}"#,
        r#"{"type":"simple","command":"SE\u0000T","args":["k","v"]}"#,
        r#"{"type":"simple","command":"SET\r\nFLUSHALL","args":["k","v"]}"#,
        "\u{feff}{}",
        "",
    ] {
        let answer = call(&world.data(), post("/tasks", body.to_owned())).await;
        assert!(answer.status.is_client_error(), "{body}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let invalid = call(&world.data(), post("/tasks", b"{\"type\":\"\xff\"}".to_vec())).await;
    invalid.assert_problem("malformed-json");
    assert!(world.stored().is_empty());
}

#[tokio::test]
async fn slow_senders() {
    let limits = Limits {
        max_connections: 1024,
        header_timeout: Duration::from_millis(800),
        idle_timeout: Duration::from_millis(1500),
    };
    let config = Config { connections: limits, body_timeout: Duration::from_millis(800), ..Config::default() };
    let world = World::with(config);
    let (address, _server) = world.serve_data();
    let begun = Instant::now();
    let request = raw_post(address, TASK);
    let body_begins = request.find("\r\n\r\n").expect("there is a body") + 4;
    // Silent from the start, slow with the head, slow with the body, silent after an answer.
    let slow = (0..200).map(|number| {
        let request = request.replace("connection: close\r\n", "");
        async move {
            let mut stream = TcpStream::connect(address).await.expect("the server listens");
            let (mut reader, mut writer) = stream.split();
            let bytes = request.as_bytes();
            let at_once = [0, 1, body_begins - "connection: close\r\n".len(), bytes.len()][number % 4];
            let _ = writer.write_all(&bytes[..at_once]).await;
            let dribble = async {
                if number % 4 != 0 {
                    for byte in &bytes[at_once..] {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        if writer.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                    }
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, async {
                tokio::select! {
                    _ = reader.read_to_end(&mut answer) => {}
                    () = dribble => {}
                }
            });
            read.await.expect("the connection is closed in time");
            let answer = String::from_utf8(answer).expect("answers are text");
            (number % 4, answer)
        }
    });
    let served = async {
        let mut worst = Duration::ZERO;
        for _ in 0..100 {
            let begun = Instant::now();
            let answer = exchange(address, raw_post(address, TASK)).await;
            assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
            worst = worst.max(begun.elapsed());
        }
        worst
    };
    let (closed, worst) = tokio::join!(join_all(slow), served);
    for (kind, answer) in closed {
        match kind {
            0 | 1 => assert_eq!(answer, ""),
            2 => assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("urn:redrive:problem:body-timeout")),
            _ => assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}"),
        }
    }
    assert!(begun.elapsed() < PATIENCE);
    assert!(worst < Duration::from_secs(2), "a client waited {worst:?}");
}
