//! A server that says what a test told it to and remembers what it was asked.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

use super::Endpoint;

/// Listens until it is dropped. Hangs up on requests for which it has no answer left.
pub struct Server {
    endpoint: Endpoint,
    script: Arc<Script>,
    _serving: JoinSet<()>,
}

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Default)]
struct Script {
    /// None hangs up.
    answers: Mutex<VecDeque<Option<Response<Full<Bytes>>>>>,
    requests: Mutex<Vec<Asked>>,
}

impl Server {
    pub async fn tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = Endpoint::of_listener(listener.local_addr().expect("it is bound"));
        let script = Arc::new(Script::default());
        let mut serving = JoinSet::new();
        let serve = script.clone();
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("connections can be accepted");
                tokio::spawn(serve.clone().serve(stream));
            }
        });
        Self { endpoint, script, _serving: serving }
    }

    pub fn unix(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).expect("the path is free");
        let script = Arc::new(Script::default());
        let mut serving = JoinSet::new();
        let serve = script.clone();
        serving.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("connections can be accepted");
                tokio::spawn(serve.clone().serve(stream));
            }
        });
        Self { endpoint: Endpoint::Unix(path), script, _serving: serving }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Answers the next request that has no answer yet.
    pub fn answer(&self, status: u16, headers: &[(&str, &str)], body: impl Into<String>) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(Full::new(Bytes::from(body.into()))).expect("tests write valid answers");
        self.script.answers.lock().expect("no test panics here").push_back(Some(response));
    }

    /// Closes the connection in place of an answer.
    pub fn hang_up(&self) {
        self.script.answers.lock().expect("no test panics here").push_back(None);
    }

    pub fn requests(&self) -> Vec<Asked> {
        self.script.requests.lock().expect("no test panics here").clone()
    }
}

impl Script {
    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request: Request<Incoming>| self.handle(request));
        // A hang-up is an error here and meant to be one.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let path = head.uri.to_string();
        self.requests.lock().expect("no test panics here").push(Asked { path, headers: head.headers, body });
        let answer = self.answers.lock().expect("no test panics here").pop_front();
        answer.flatten().ok_or_else(|| std::io::Error::other("hang up"))
    }
}
