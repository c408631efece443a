//! One connection of our own to one broker, for what rskafka does not do (group membership, offsets, administration) and
//! for reading partitions. One question at a time, each in one fixed version and with a deadline; the broker's versions are
//! checked when the connection is made, because it closes the connection at one that it does not know. One question has
//! a newer version too, in which brokers that know it tell more.
//!
//! ```text
//! frame:  | length i32 | header | body |      sent in one piece, without Nagle's delay
//! ```

use std::{collections::HashMap, fmt, io, ops::RangeInclusive, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiVersionsRequest, ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse, DescribeConfigsRequest,
        DescribeConfigsResponse, DescribeGroupsRequest, DescribeGroupsResponse, FetchRequest, FetchResponse,
        FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest,
        JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListOffsetsRequest, ListOffsetsResponse,
        MetadataRequest, MetadataResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
        OffsetFetchResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
        SaslHandshakeRequest, SaslHandshakeResponse, SyncGroupRequest, SyncGroupResponse,
    },
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{config::Config, login::Login, security::Security};

/// The longest answer that is read. A group of a thousand members describes itself in less; one batch of records comes
/// whole, and topics that are set up for the largest take some MiB.
const MAX_FRAME_BYTES: usize = 32 << 20;

/// How often a password may be hashed for a login. Brokers ask for 4,096 to 16,384 times; what asks for more would keep
/// a thread busy.
const MAX_SCRAM_ITERATIONS: u64 = 100_000;

/// The first byte of what a TLS server says to a client that does not speak TLS: an alert.
const TLS_ALERT: u8 = 0x15;

/// A question to a broker, in the one version that is spoken.
pub(super) trait Call: Encodable + HeaderVersion {
    const NAME: &str;
    const KEY: i16;
    const VERSION: i16;
    /// Spoken instead with brokers that know it.
    const NEWER: Option<i16>;
    type Answer: Decodable + HeaderVersion;
}

macro_rules! calls {
    ($($request:ident -> $answer:ident, $key:literal, $version:literal $(or $newer:literal)?;)*) => {
        $(
            impl Call for $request {
                const NAME: &str = stringify!($request);
                const KEY: i16 = $key;
                const VERSION: i16 = $version;
                const NEWER: Option<i16> = [$(Some($newer),)? None][0];
                type Answer = $answer;
            }
        )*

        /// Everything that may be asked, as name, key and version.
        const CALLS: &[(&str, i16, i16)] = &[$((stringify!($request), $key, $version)),*];

        /// What is asked in a newer version where that is known, as key and version.
        const NEWER_CALLS: &[(i16, i16)] = &[$($(($key, $newer),)?)*];
    };
}

// Versions that Kafka 2.4 to 4.x, MSK and Redpanda all know, and none of the flexible ones; those behind `or` are.
calls! {
    // The oldest one that brings batches in zstd.
    FetchRequest -> FetchResponse, 1, 10;
    ListOffsetsRequest -> ListOffsetsResponse, 2, 2;
    // The newer one tells the ids of topics, and what may be done with them.
    MetadataRequest -> MetadataResponse, 3, 7 or 10;
    OffsetCommitRequest -> OffsetCommitResponse, 8, 7;
    OffsetFetchRequest -> OffsetFetchResponse, 9, 5;
    FindCoordinatorRequest -> FindCoordinatorResponse, 10, 2;
    JoinGroupRequest -> JoinGroupResponse, 11, 5;
    HeartbeatRequest -> HeartbeatResponse, 12, 3;
    LeaveGroupRequest -> LeaveGroupResponse, 13, 3;
    SyncGroupRequest -> SyncGroupResponse, 14, 3;
    DescribeGroupsRequest -> DescribeGroupsResponse, 15, 3;
    SaslHandshakeRequest -> SaslHandshakeResponse, 17, 1;
    ApiVersionsRequest -> ApiVersionsResponse, 18, 0;
    CreateTopicsRequest -> CreateTopicsResponse, 19, 4;
    DescribeConfigsRequest -> DescribeConfigsResponse, 32, 2;
    SaslAuthenticateRequest -> SaslAuthenticateResponse, 36, 1;
}

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Takes `host:port` or `[v6]:port`.
    pub(super) fn parse(text: &str) -> Result<Self, WireError> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            Some(Self { host: (!host.is_empty()).then(|| host.to_owned())?, port: port.parse().ok()? })
        });
        parsed.ok_or_else(|| WireError::Address { text: text.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why a broker could not be asked. Each is one line that says what to look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("`{text}` is no broker's address; expected host:port")]
    Address { text: String },
    #[error("{broker} cannot be reached: {reason}")]
    Unreachable { broker: String, reason: String },
    #[error("{broker} did not answer {call} within {} ms", within.as_millis())]
    Timeout { broker: String, call: &'static str, within: Duration },
    #[error("{broker} closed the connection: {reason}")]
    Closed { broker: String, reason: String },
    #[error("{broker}: no TLS connection: {reason}; see kafka.tls")]
    Tls { broker: String, reason: String },
    #[error("{broker} wants TLS; set kafka.tls")]
    WantsTls { broker: String },
    #[error("{broker} closed the connection at the first question; it may want a login: see kafka.sasl")]
    WantsSasl { broker: String },
    #[error("{broker} refused the login: {reason}; see kafka.sasl")]
    Login { broker: String, reason: String },
    #[error("{broker} knows versions {min} to {max} of {call}, not {version}; Kafka 2.4 or newer is needed")]
    Version { broker: String, call: &'static str, version: i16, min: i16, max: i16 },
    #[error("{broker} does not know {call}")]
    Unknown { broker: String, call: &'static str },
    #[error("{broker} sent what is no answer to {call}: {reason}")]
    Malformed { broker: String, call: &'static str, reason: String },
}

impl WireError {
    /// Whether only a change of the configuration ends it.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Tls { .. }
            | Self::WantsTls { .. }
            | Self::Login { .. }
            | Self::Version { .. }
            | Self::Unknown { .. } => true,
            // The connection may have been cut for another reason.
            Self::WantsSasl { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Malformed { .. } => false,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Makes connections.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    security: Security,
    client_id: StrBytes,
    connect_timeout: Duration,
}

impl Dialer {
    pub(super) fn new(config: &Config, security: Security) -> Self {
        Self {
            security,
            client_id: StrBytes::from_string(config.client_id.to_string()),
            connect_timeout: config.connect_timeout,
        }
    }

    /// Connects, logs in and checks that the broker knows what will be asked of it.
    pub(super) async fn connect(&self, address: &Address) -> Result<Connection, WireError> {
        timeout(self.connect_timeout, self.connect_unbounded(address)).await.unwrap_or_else(|_| {
            Err(WireError::Timeout { broker: address.to_string(), call: "a connection", within: self.connect_timeout })
        })
    }

    async fn connect_unbounded(&self, address: &Address) -> Result<Connection, WireError> {
        let broker = address.to_string();
        let unreachable =
            |error: io::Error| WireError::Unreachable { broker: broker.clone(), reason: error.to_string() };
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let stream: Box<dyn Stream> = match self.security.tls() {
            None => Box::new(tcp),
            Some(config) => {
                let no_tls = |reason: String| WireError::Tls { broker: broker.clone(), reason };
                let name = ServerName::try_from(address.host.clone()).map_err(|error| no_tls(error.to_string()))?;
                let connector = TlsConnector::from(config.clone());
                Box::new(connector.connect(name, tcp).await.map_err(|error| no_tls(handshake_failure(&error)))?)
            }
        };
        let mut connection = Connection {
            stream,
            broker,
            client_id: self.client_id.clone(),
            last_id: 0,
            in_step: true,
            stage: Stage::Greeting,
            unknown: Vec::new(),
            newer: Vec::new(),
        };
        connection.check_versions(self.connect_timeout).await?;
        match self.security.login() {
            Some(login) => {
                connection.log_in(login, self.connect_timeout).await?;
                connection.stage = Stage::InUse;
            }
            None => connection.stage = Stage::Anonymous,
        }
        Ok(connection)
    }
}

/// The number in a SCRAM server's first message: `r=…,s=…,i=4096`.
fn scram_iterations(message: &[u8]) -> Option<u64> {
    let attributes = message.split(|byte| *byte == b',');
    let digits = attributes.filter_map(|attribute| attribute.strip_prefix(b"i=")).next()?;
    // What is no number, or a larger one, is refused later or here.
    Some(std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX))
}

fn handshake_failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the broker hung up during the handshake; does this port speak TLS?".to_owned()
        }
        _ => error.to_string(),
    }
}

/// What a connection that ends tells of its broker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has been answered.
    Greeting,
    /// Nothing that needs a login has been answered.
    Anonymous,
    InUse,
}

/// A connection to one broker. Dropping it closes it.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    broker: String,
    client_id: StrBytes,
    last_id: i32,
    /// False once an answer was not waited for: the next one would be taken for another question's.
    in_step: bool,
    stage: Stage,
    /// Questions that the broker does not list: it would hang up.
    unknown: Vec<i16>,
    /// Questions that it knows in their newer version.
    newer: Vec<i16>,
}

impl Connection {
    /// Asks the broker. After an error the connection is of no more use, and says so.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves unknown whether the broker acted; the connection is then of no more use.
    pub(super) async fn call<C: Call>(&mut self, request: &C, within: Duration) -> Result<C::Answer, WireError> {
        if !self.in_step {
            return Err(self.closed("an earlier question was given up"));
        }
        if self.unknown.contains(&C::KEY) {
            return Err(WireError::Unknown { broker: self.broker.clone(), call: C::NAME });
        }
        self.in_step = false;
        self.last_id = self.last_id.wrapping_add(1);
        let frame = self.frame(request)?;
        let exchange = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await?;
            self.read_frame().await
        };
        let answer = match timeout(within, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.cut(C::NAME, &error)),
            Err(_) => return Err(WireError::Timeout { broker: self.broker.clone(), call: C::NAME, within }),
        };
        let answer = self.decode::<C>(answer)?;
        self.in_step = true;
        if self.stage == Stage::Anonymous {
            self.stage = Stage::InUse;
        }
        Ok(answer)
    }

    fn frame<C: Call>(&self, request: &C) -> Result<Bytes, WireError> {
        let header = RequestHeader::default()
            .with_request_api_key(C::KEY)
            .with_request_api_version(self.version::<C>())
            .with_correlation_id(self.last_id)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::with_capacity(512);
        frame.put_i32(0);
        header
            .encode(&mut frame, C::header_version(self.version::<C>()))
            .and_then(|()| request.encode(&mut frame, self.version::<C>()))
            .map_err(|error| self.malformed(C::NAME, format!("it cannot be asked: {error}")))?;
        let length = i32::try_from(frame.len() - 4)
            .map_err(|_| self.malformed(C::NAME, "the question is too long".to_owned()))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        Ok(frame.freeze())
    }

    fn version<C: Call>(&self) -> i16 {
        C::NEWER.filter(|_| self.newer.contains(&C::KEY)).unwrap_or(C::VERSION)
    }

    async fn read_frame(&mut self) -> io::Result<Bytes> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).await?;
        let bytes = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if bytes > MAX_FRAME_BYTES {
            let kind = if length[0] == TLS_ALERT { io::ErrorKind::Unsupported } else { io::ErrorKind::InvalidData };
            return Err(io::Error::new(kind, format!("an answer of {bytes} bytes, which is not read")));
        }
        let mut frame = BytesMut::zeroed(bytes);
        self.stream.read_exact(&mut frame).await?;
        Ok(frame.freeze())
    }

    fn decode<C: Call>(&self, mut answer: Bytes) -> Result<C::Answer, WireError> {
        let version = self.version::<C>();
        let header_version = C::Answer::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header_version)
            .map_err(|error| self.malformed(C::NAME, error.to_string()))?;
        if header.correlation_id != self.last_id {
            return Err(self.malformed(C::NAME, "it answers another question".to_owned()));
        }
        let body =
            C::Answer::decode(&mut answer, version).map_err(|error| self.malformed(C::NAME, error.to_string()))?;
        // librdkafka's mock broker ends its flexible answers with one byte more, which clients do not look at.
        if answer.has_remaining() && header_version == 0 {
            return Err(self.malformed(C::NAME, format!("{} bytes too many", answer.remaining())));
        }
        Ok(body)
    }

    async fn check_versions(&mut self, within: Duration) -> Result<(), WireError> {
        let answer = self.call(&ApiVersionsRequest::default(), within).await?;
        let known: HashMap<i16, RangeInclusive<i16>> =
            answer.api_keys.iter().map(|known| (known.api_key, known.min_version..=known.max_version)).collect();
        for &(call, key, version) in CALLS {
            match known.get(&key) {
                Some(versions) if versions.contains(&version) => {}
                Some(versions) => {
                    let (broker, min, max) = (self.broker.clone(), *versions.start(), *versions.end());
                    return Err(WireError::Version { broker, call, version, min, max });
                }
                // A broker without SASL does not list it; one that wants it says so when asked.
                None if [SaslHandshakeRequest::KEY, SaslAuthenticateRequest::KEY].contains(&key) => {}
                None => self.unknown.push(key),
            }
        }
        let newer = NEWER_CALLS.iter().filter(|(key, version)| known.get(key).is_some_and(|it| it.contains(version)));
        self.newer = newer.map(|(key, _)| *key).collect();
        Ok(())
    }

    async fn log_in(&mut self, login: &Login, within: Duration) -> Result<(), WireError> {
        let mechanism = login.mechanism.as_str();
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let answer = self.call(&handshake, within).await?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            let offered: Vec<&str> = answer.mechanisms.iter().map(|offered| offered.as_str()).collect();
            return Err(self.refused(format!("{error}; it offers {}, not {mechanism}", offered.join(", "))));
        }
        let mut exchange = login.begin().map_err(|error| self.refused(error.to_string()))?;
        let mut heard = None;
        loop {
            let step;
            (exchange, step) = exchange.step(heard.take()).await.map_err(|error| self.refused(error.to_string()))?;
            if let Some(words) = step.words {
                let request = SaslAuthenticateRequest::default().with_auth_bytes(words);
                let answer = self.call(&request, within).await?;
                if let Some(error) = ResponseError::try_from_code(answer.error_code) {
                    let reason = answer.error_message.map_or_else(|| error.to_string(), |text| text.to_string());
                    return Err(self.refused(reason));
                }
                if scram_iterations(&answer.auth_bytes).is_some_and(|count| count > MAX_SCRAM_ITERATIONS) {
                    return Err(self.refused("it asks for more hashing than any broker should".to_owned()));
                }
                heard = Some(answer.auth_bytes);
            }
            if step.is_last {
                return Ok(());
            }
        }
    }

    fn cut(&self, call: &'static str, error: &io::Error) -> WireError {
        let broker = self.broker.clone();
        // An alert that comes after the handshake: in TLS 1.3 that a client's certificate is missing, for one.
        if error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) {
            return WireError::Tls { broker, reason: error.to_string() };
        }
        let is_cut = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        match (self.stage, error.kind()) {
            (Stage::Greeting, io::ErrorKind::Unsupported) => WireError::WantsTls { broker },
            (_, io::ErrorKind::InvalidData | io::ErrorKind::Unsupported) => self.malformed(call, error.to_string()),
            (Stage::Anonymous, _) if is_cut => WireError::WantsSasl { broker },
            _ if is_cut => self.closed("no answer"),
            _ => self.closed(&error.to_string()),
        }
    }

    fn closed(&self, reason: &str) -> WireError {
        WireError::Closed { broker: self.broker.clone(), reason: reason.to_owned() }
    }

    fn refused(&self, reason: String) -> WireError {
        WireError::Login { broker: self.broker.clone(), reason }
    }

    fn malformed(&self, call: &'static str, reason: String) -> WireError {
        WireError::Malformed { broker: self.broker.clone(), call, reason }
    }
}

#[cfg(test)]
pub(super) mod tests;
