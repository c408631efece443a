//! A small HTTP/1.1 client for the commands: one connection per request, to an address or a unix socket, everything
//! within one deadline. What an answer means is its caller's business.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1,
    header::{HOST, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::config::Listen;

/// The most of an answer that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Where a Redrive listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Host and port.
    Tcp(String),
    Unix(PathBuf),
}

impl Endpoint {
    /// Where something that listens there is reached from this machine.
    pub fn of_listener(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Self::Tcp(SocketAddr::new(ip, address.port()).to_string())
    }

    /// What the `Host` header says.
    fn host(&self) -> &str {
        match self {
            Self::Tcp(authority) => authority,
            Self::Unix(_) => "localhost",
        }
    }
}

impl From<&Listen> for Endpoint {
    fn from(listen: &Listen) -> Self {
        match listen {
            Listen::Tcp(address) => Self::of_listener(*address),
            Listen::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected `http://HOST:PORT` or `unix:/path`".to_string();
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(expected()) };
        }
        let authority = text.strip_prefix("http://").ok_or_else(expected)?.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
        let right = !host.is_empty() && port.parse::<u16>().is_ok() && !authority.contains(['/', '@', '?', '#', ' ']);
        let bare_ipv6 = host.contains(':') && !host.starts_with('[');
        if right && !bare_ipv6 { Ok(Self::Tcp(format!("{host}:{port}"))) } else { Err(expected()) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no answer. Whether the request was carried out is unknown for all but [`RequestError::Connect`].
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("cannot connect to {endpoint}")]
    Connect {
        endpoint: Endpoint,
        #[source]
        source: std::io::Error,
    },
    #[error("{endpoint} has not answered within {} ms", timeout.as_millis())]
    Timeout { endpoint: Endpoint, timeout: Duration },
    #[error("{endpoint} ended the connection without an answer")]
    Broken {
        endpoint: Endpoint,
        #[source]
        source: hyper::Error,
    },
    #[error("the answer of {endpoint} cannot be read: {reason}")]
    Unreadable { endpoint: Endpoint, reason: String },
    #[error("not a request: {reason}")]
    Malformed { reason: String },
}

impl RequestError {
    /// Whether the same request may fare better later. Repeating is safe only for what has an identity.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout { .. } | Self::Broken { .. })
    }
}

/// Asks once and waits for the whole answer, for at most `timeout` from connecting to the body's last byte.
///
/// # Cancellation
///
/// Dropping the future closes the connection; whether the request was carried out is unknown then.
pub async fn request(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
    timeout: Duration,
) -> Result<Answer, RequestError> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, endpoint.host());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request =
        request.body(Full::new(body)).map_err(|error| RequestError::Malformed { reason: error.to_string() })?;
    let refused = |source| RequestError::Connect { endpoint: endpoint.clone(), source };
    let exchange = async {
        match endpoint {
            Endpoint::Tcp(authority) => {
                exchange(endpoint, TcpStream::connect(authority).await.map_err(refused)?, request).await
            }
            Endpoint::Unix(path) => {
                exchange(endpoint, UnixStream::connect(path).await.map_err(refused)?, request).await
            }
        }
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .unwrap_or_else(|_| Err(RequestError::Timeout { endpoint: endpoint.clone(), timeout }))
}

async fn exchange(
    endpoint: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, RequestError> {
    let broken = |source| RequestError::Broken { endpoint: endpoint.clone(), source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut answered = pin!(async {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| unreadable(endpoint, error))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    });
    let mut connection = pin!(connection);
    let mut connected = true;
    loop {
        tokio::select! {
            answer = &mut answered => return answer,
            // Its error, if any, reaches the request, which says it better.
            _ = &mut connection, if connected => connected = false,
        }
    }
}

fn unreadable(endpoint: &Endpoint, error: Box<dyn std::error::Error + Send + Sync>) -> RequestError {
    let endpoint = endpoint.clone();
    match error.downcast::<hyper::Error>() {
        Ok(source) => RequestError::Broken { endpoint, source: *source },
        Err(error) if error.is::<LengthLimitError>() => {
            RequestError::Unreadable { endpoint, reason: format!("it is larger than {MAX_ANSWER_BYTES} bytes") }
        }
        Err(error) => RequestError::Unreadable { endpoint, reason: error.to_string() },
    }
}

#[cfg(test)]
pub mod testing;

#[cfg(test)]
mod tests {
    use super::{testing::Server, *};

    async fn get(endpoint: &Endpoint, timeout: Duration) -> Result<Answer, RequestError> {
        request(endpoint, Method::GET, "/readyz?verbose", &[], Bytes::new(), timeout).await
    }

    #[test]
    fn endpoints_are_read_as_they_are_shown() {
        for text in ["http://127.0.0.1:7379", "http://[::1]:7379", "unix:/run/redrive.sock", "http://redrive:80"] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        assert_eq!("http://host/".parse(), Ok(Endpoint::Tcp("host:80".into())));
        for wrong in ["", "127.0.0.1:7379", "https://host", "http://host/path", "http://::1", "unix:sock", "http://h:x"]
        {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn wildcard_listener_is_reached_by_loopback() {
        let check = |listen: &str, reached: &str| {
            let address = listen.parse().expect("an address");
            assert_eq!(Endpoint::of_listener(address).to_string(), reached);
        };
        check("0.0.0.0:7380", "http://127.0.0.1:7380");
        check("[::]:7380", "http://[::1]:7380");
        check("10.0.0.1:1", "http://10.0.0.1:1");
    }

    #[tokio::test]
    async fn answer_arrives_whole_over_tcp_and_unix() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for server in [Server::tcp().await, Server::unix(directory.path().join("s"))] {
            server.answer(503, &[("retry-after", "7")], "x".repeat(200_000));
            let answer = get(server.endpoint(), Duration::from_secs(10)).await.expect("an answer");
            assert_eq!(answer.status, 503);
            assert_eq!(answer.headers["retry-after"], "7");
            assert_eq!(answer.body.len(), 200_000);
            assert_eq!(server.requests()[0].path, "/readyz?verbose");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_no_answer() {
        let nowhere = Endpoint::Unix("/nowhere/redrive.sock".into());
        let error = get(&nowhere, Duration::from_secs(10)).await.expect_err("nothing listens");
        assert!(matches!(error, RequestError::Connect { .. }) && error.may_pass());

        let server = Server::tcp().await;
        server.hang_up();
        let error = get(server.endpoint(), Duration::from_secs(10)).await.expect_err("the connection breaks");
        assert!(matches!(error, RequestError::Broken { .. }) && error.may_pass(), "{error:?}");
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = Endpoint::of_listener(listener.local_addr().expect("it is bound"));
        let error = get(&endpoint, Duration::from_millis(20)).await.expect_err("nothing is answered");
        assert!(matches!(error, RequestError::Timeout { .. }) && error.may_pass());
    }
}
