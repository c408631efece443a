//! Planes on a log in memory, and two ways to talk to them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use crate::{
    api::{Config, Hosts, Listen, ProblemType, Server, State, data_plane, ops_plane},
    consumer::Handle,
    dead_letters::DeadLetters,
    log::{
        AppendError, Appended, Assignment, Checkpoint, Checkpointing, CommitError, Depth, Entry, Epoch, Log, NewRecord,
        Partition, QueueName, ReadError, Table, TableError, memory::MemoryLog,
    },
    queue::Queues,
    task::{self, DefaultRule, Lane, Rules},
    telemetry::metrics::Metrics,
};

/// How long anything may take before a test fails: generous, as the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const TASK: &str = r#"{"type":"simple","command":"SET","args":["user:42","Ada"]}"#;

/// A log whose appends fail as told.
pub struct TroubledLog {
    log: MemoryLog,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Clone)]
pub enum Trouble {
    Error(AppendError),
    Panic,
}

impl TroubledLog {
    fn meet(&self) -> Result<(), AppendError> {
        // Taken out first: a panic must not poison the lock.
        let trouble = self.trouble.lock().expect("the lock is held for a moment").clone();
        match trouble {
            None => Ok(()),
            Some(Trouble::Error(error)) => Err(error),
            Some(Trouble::Panic) => panic!("as the test asked"),
        }
    }
}

impl Log for TroubledLog {
    fn append<'a>(&'a self, queue: &'a QueueName, record: NewRecord) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async move {
            self.meet()?;
            self.log.append(queue, record).await
        })
    }

    fn append_many<'a>(
        &'a self,
        queue: &'a QueueName,
        records: Vec<NewRecord>,
    ) -> BoxFuture<'a, Result<Vec<Appended>, AppendError>> {
        Box::pin(async move {
            self.meet()?;
            self.log.append_many(queue, records).await
        })
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.meet()?;
        self.log.ready()
    }

    fn consume(&self, queues: Vec<QueueName>) -> BoxStream<'static, Assignment> {
        self.log.consume(queues)
    }

    fn checkpointing(&self) -> Checkpointing {
        self.log.checkpointing()
    }

    fn commit<'a>(
        &'a self,
        partition: &'a Partition,
        epoch: Epoch,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'a, Result<(), CommitError>> {
        self.log.commit(partition, epoch, checkpoint)
    }

    fn tail(
        &self,
        partition: &Partition,
        max_records: usize,
        max_bytes: usize,
        visit: &mut dyn FnMut(Entry),
    ) -> Result<(), ReadError> {
        self.log.tail(partition, max_records, max_bytes, visit)
    }

    fn depth(&self) -> Vec<Depth> {
        self.log.depth()
    }

    fn table(&self, name: &'static str) -> Result<Arc<dyn Table>, TableError> {
        self.log.table(name)
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        self.log.failed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.log.close()
    }
}

/// Everything behind the planes.
pub struct World {
    pub state: Arc<State>,
    log: Arc<TroubledLog>,
}

impl World {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    pub fn with(config: Config) -> Self {
        Self::with_defaults(config, Vec::new())
    }

    pub fn with_defaults(config: Config, defaults: Vec<DefaultRule>) -> Self {
        let log = Arc::new(TroubledLog { log: MemoryLog::default(), trouble: Mutex::default() });
        let shared: Arc<dyn Log> = log.clone();
        let metrics = Metrics::new(&ProblemType::slugs());
        let queues = Queues::new(shared.clone(), metrics.clone());
        let dead_letters = DeadLetters::open(&shared).expect("tables are there");
        let rules = Arc::new(Rules::new(task::Config::default(), ["default".to_owned()]).with_defaults(defaults));
        Self { state: State::new(queues, Handle::none(), dead_letters, metrics, rules, config), log }
    }

    pub fn trouble(&self, trouble: Option<Trouble>) {
        *self.log.trouble.lock().expect("the lock is held for a moment") = trouble;
    }

    /// What is stored in the lane `normal`.
    pub fn stored(&self) -> Vec<Entry> {
        let queue = QueueName { target: "default".into(), lane: Lane::Normal.as_str() };
        crate::log::conformance::tail(&*self.log, &queue, 100_000, usize::MAX)
    }

    pub fn data(&self) -> Router {
        data_plane(&self.state, Hosts::new(&[], &[]))
    }

    pub fn ops(&self) -> Router {
        ops_plane(&self.state, Hosts::new(&[], &[]))
    }

    /// The data plane on a free port, until the guard is dropped.
    pub fn serve_data(&self) -> (SocketAddr, DropGuard) {
        self.serve(data_plane)
    }

    pub fn serve_ops(&self) -> (SocketAddr, DropGuard) {
        self.serve(ops_plane)
    }

    fn serve(&self, plane: fn(&Arc<State>, Hosts) -> Router) -> (SocketAddr, DropGuard) {
        let any = Listen::Tcp(([127, 0, 0, 1], 0).into());
        let server = Server::bind(&[any], self.state.config.connections).expect("a port is free");
        let bound = server.bound();
        let address = bound[0].tcp().expect("it is TCP");
        let router = plane(&self.state, Hosts::new(&bound, &self.state.config.allowed_hosts));
        let shutdown = CancellationToken::new();
        tokio::spawn(server.serve(router, self.state.metrics.clone(), shutdown.clone(), PATIENCE));
        (address, shutdown.drop_guard())
    }

    /// How often requests were refused for that reason.
    pub fn refused(&self, reason: &str) -> u64 {
        let line = format!("redrive_tasks_refused_total{{reason=\"{reason}\"}} ");
        let text = self.state.metrics.render();
        let count = text.lines().find_map(|found| found.strip_prefix(&line)).expect("the series is there");
        count.parse().expect("a count")
    }
}

/// An answer whose body was JSON, or else text.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("the header is text"))
    }

    /// Checks that this is a problem of that kind, as all problems must be.
    #[track_caller]
    pub fn assert_problem(&self, slug: &str) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.body["type"], format!("urn:redrive:problem:{slug}"), "{self:?}");
        assert_eq!(self.body["status"], self.status.as_u16(), "{self:?}");
        for field in ["title", "detail"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        }
        assert!(self.body["retryable"].is_boolean(), "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{self:?}");
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{self:?}");
        assert_eq!(self.header("retry-after").is_some(), self.status == StatusCode::SERVICE_UNAVAILABLE, "{self:?}");
    }
}

pub async fn call(router: &Router, request: Request<Body>) -> Answer {
    let response = timeout(PATIENCE, router.clone().oneshot(request)).await.expect("it is answered in time");
    let (parts, body) = response.expect("a router cannot fail").into_parts();
    let bytes = body.collect().await.expect("the body is in memory").to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    Answer { status: parts.status, headers: parts.headers, body }
}

pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("host", "127.0.0.1").header("content-type", "application/json");
    request.body(body.into()).expect("the request is valid")
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "127.0.0.1").body(Body::empty()).expect("the request is valid")
}

pub fn with_header(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().append(name, value.parse().expect("a header's value"));
    request
}

/// Sends bytes and reads until the server closes.
pub async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(request.as_ref()).await;
        read_to_end(&mut stream).await
    };
    timeout(PATIENCE, exchange).await.expect("the server closes in time")
}

pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("answers are text")
}

/// The answers that came over one connection.
pub fn answers(mut text: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head ends with an empty line");
        let (status, lines) = head.split_once("\r\n").expect("an answer has headers");
        let status = status.strip_prefix("HTTP/1.1 ").and_then(|status| status.get(..3)).expect("a status line");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header has a name and a value");
            (name.parse().expect("a header's name"), value.parse().expect("a header's value"))
        };
        let headers: HeaderMap = lines.split("\r\n").map(header).collect();
        let length = headers["content-length"].to_str().expect("the header is text").parse().expect("a length");
        let (body, next) = rest.split_at(length);
        let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
        answers.push(Answer { status: status.parse().expect("a status"), headers, body });
        text = next;
    }
    answers
}

/// A request for `POST /tasks` as bytes, the last one of its connection.
pub fn raw_post(address: SocketAddr, body: &str) -> String {
    format!(
        "POST /tasks HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}
