use std::os::unix::fs::PermissionsExt;

use axum::{body::Body, routing::get};
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::*;
use crate::api::ProblemType;

const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn any_port() -> Listen {
    Listen::Tcp(([127, 0, 0, 1], 0).into())
}

fn metrics() -> Arc<Metrics> {
    Metrics::new(&ProblemType::slugs())
}

fn router() -> Router {
    Router::new()
        .route("/", get(async || "here"))
        .route("/slow", get(async || sleep(Duration::from_millis(300)).await))
        .route("/never", get(std::future::pending::<()>))
        .route("/pausing", get(async || Body::from_stream(stream::unfold(0, pause_before_part))))
}

/// Parts that look like the head of an answer, each after a pause.
async fn pause_before_part(part: u32) -> Option<(io::Result<&'static str>, u32)> {
    sleep(Duration::from_millis(50)).await;
    (part < 3).then_some((Ok("HTTP/1.1 400 Bad Request\r\n"), part + 1))
}

/// Serves until the token is cancelled; the task ends when everything has.
fn serve(limits: Limits, grace: Duration) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let server = Server::bind(&[any_port()], limits).expect("a port is free");
    let address = server.bound()[0].tcp().expect("it is TCP");
    let shutdown = CancellationToken::new();
    (address, shutdown.clone(), tokio::spawn(server.serve(router(), metrics(), shutdown, grace)))
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("the server listens")
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("the server closes in time");
    answer
}

/// Reads one answer of a connection that stays open.
async fn read_answer(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"here") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer comes");
        assert_ne!(read.expect("the connection is open"), 0, "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn address_in_use_is_named() {
    let server = Server::bind(&[any_port()], Limits::default()).expect("a port is free");
    let Bound::Tcp(address) = server.bound()[0].clone() else { panic!("it is TCP") };
    let error = Server::bind(&[Listen::Tcp(address)], Limits::default()).err().expect("it is in use");
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));
}

#[tokio::test]
async fn unix_socket_is_for_this_user_and_goes_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("redrive.sock");
    let listen = [Listen::Unix(path.clone())];
    let server = Server::bind(&listen, Limits::default()).expect("it can be bound");
    let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(directory.path()).expect("it can be read").count(), 1);

    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(server.serve(router(), metrics(), shutdown.clone(), PATIENCE));
    let mut stream = UnixStream::connect(&path).await.expect("the server listens");
    stream.write_all(LAST_REQUEST).await.expect("the server reads");
    assert!(read_to_end(&mut stream).await.ends_with("here"));

    let error = Server::bind(&listen, Limits::default()).err().expect("somebody listens");
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    shutdown.cancel();
    timeout(PATIENCE, serving).await.expect("it ends").expect("it does not panic");
    assert!(!path.exists());
}

#[tokio::test]
async fn only_a_socket_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("redrive.sock");
    let listen = [Listen::Unix(path.clone())];
    drop(std::os::unix::net::UnixListener::bind(&path).expect("it can be bound"));
    assert!(path.exists());
    drop(Server::bind(&listen, Limits::default()).expect("a stale socket is replaced"));

    std::fs::write(&path, "precious").expect("it can be written");
    let error = Server::bind(&listen, Limits::default()).err().expect("a file is in the way");
    assert!(matches!(error, BindError::NoSocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "precious");
}

#[tokio::test]
async fn connection_is_kept_between_requests_and_closed_when_idle() {
    // Idle for longer than a head may take: the two are apart.
    let limits = Limits {
        header_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(1200),
        ..Limits::default()
    };
    let (address, _shutdown, _serving) = serve(limits, PATIENCE);
    let mut stream = connect(address).await;
    for _ in 0..2 {
        stream.write_all(REQUEST).await.expect("the server reads");
        read_answer(&mut stream).await;
        sleep(Duration::from_millis(400)).await;
    }
    stream.write_all(b"G").await.expect("the server reads");
    let begun = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!(begun.elapsed() >= Duration::from_millis(190), "a head may take its time");

    let mut idle = connect(address).await;
    idle.write_all(REQUEST).await.expect("the server reads");
    read_answer(&mut idle).await;
    let begun = Instant::now();
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(begun.elapsed() >= Duration::from_millis(1000), "closed after {:?}", begun.elapsed());
}

#[tokio::test]
async fn answer_of_ours_is_never_taken_for_a_refusal_of_hypers() {
    let (address, _shutdown, _serving) = serve(Limits::default(), PATIENCE);
    let mut stream = connect(address).await;
    let nowhere = b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = b"GET /pausing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(&[&nowhere[..], REQUEST, nowhere, last].concat()).await.expect("the server reads");
    let answers = read_to_end(&mut stream).await;
    assert_eq!(answers.matches("HTTP/1.1 404 Not Found").count(), 2, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 400 Bad Request").count(), 3, "{answers}");
}

#[tokio::test]
async fn requests_in_one_packet_are_all_answered() {
    let (address, _shutdown, _serving) = serve(Limits::default(), PATIENCE);
    let mut stream = connect(address).await;
    stream.write_all(&[REQUEST, REQUEST, LAST_REQUEST].concat()).await.expect("the server reads");
    assert_eq!(read_to_end(&mut stream).await.matches("here").count(), 3);
}

#[tokio::test]
async fn connection_over_the_cap_waits_for_one_to_end() {
    let (address, _shutdown, _serving) = serve(Limits { max_connections: 1, ..Limits::default() }, PATIENCE);
    let mut first = connect(address).await;
    first.write_all(REQUEST).await.expect("the server reads");
    read_answer(&mut first).await;
    let mut second = connect(address).await;
    second.write_all(LAST_REQUEST).await.expect("the kernel takes it");
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(200), second.read(&mut byte)).await.is_err(), "it is served beyond the cap");
    drop(first);
    assert!(read_to_end(&mut second).await.ends_with("here"));
}

#[tokio::test]
async fn idle_connection_gives_way_to_one_that_waits_but_not_at_once() {
    let (address, _shutdown, _serving) = serve(Limits { max_connections: 1, ..Limits::default() }, PATIENCE);
    let begun = Instant::now();
    let mut idle = connect(address).await;
    idle.write_all(REQUEST).await.expect("the server reads");
    read_answer(&mut idle).await;
    let mut second = connect(address).await;
    second.write_all(REQUEST).await.expect("the kernel takes it");
    read_answer(&mut second).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "a connection costs as much as a request");
    assert_eq!(read_to_end(&mut idle).await, "", "it was closed between two requests");
}

#[tokio::test]
async fn connection_that_gives_way_finishes_its_request() {
    let (address, _shutdown, _serving) = serve(Limits { max_connections: 1, ..Limits::default() }, PATIENCE);
    let mut busy = connect(address).await;
    sleep(Duration::from_millis(900)).await;
    // Still under way when it is asked to end.
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("the server reads");
    let mut second = connect(address).await;
    second.write_all(REQUEST).await.expect("the kernel takes it");
    let answer = read_to_end(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    drop(busy);
    read_answer(&mut second).await;
}

#[tokio::test]
async fn stopping_server_finishes_what_is_under_way() {
    let (address, shutdown, serving) = serve(Limits::default(), PATIENCE);
    let mut idle = connect(address).await;
    idle.write_all(REQUEST).await.expect("the server reads");
    read_answer(&mut idle).await;
    let mut busy = connect(address).await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("the server reads");
    sleep(Duration::from_millis(100)).await;
    shutdown.cancel();
    assert_eq!(read_to_end(&mut idle).await, "");
    let answer = read_to_end(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    timeout(PATIENCE, serving).await.expect("it ends").expect("it does not panic");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stopping_server_cuts_off_what_does_not_finish() {
    let (address, shutdown, serving) = serve(Limits::default(), Duration::from_millis(100));
    let mut stuck = connect(address).await;
    stuck.write_all(b"GET /never HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("the server reads");
    sleep(Duration::from_millis(50)).await;
    shutdown.cancel();
    timeout(PATIENCE, serving).await.expect("it ends").expect("it does not panic");
    assert_eq!(read_to_end(&mut stuck).await, "");
}

#[tokio::test(start_paused = true)]
async fn accepting_without_a_free_descriptor_does_not_spin() {
    let mut failures = Failures::default();
    let begun = tokio::time::Instant::now();
    for _ in 0..10 {
        failures.wait_after(&io::Error::from_raw_os_error(24)).await;
    }
    assert_eq!(begun.elapsed().as_millis() / 500, 1);
    failures.wait_after(&io::ErrorKind::ConnectionAborted.into()).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
}
