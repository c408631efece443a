//! A named Redis and how to write to it: the only place where the client library is named.
//!
//! What belongs here: making connections, sending batches of units over them, reading what came back into
//! [`Failure`]s, and the pure state machines that say whether a target may be used ([`breaker`], [`command_hold`]).
//! What does not: which unit is sent when, and what happens to it afterwards. That is the consumer's.
//!
//! The invariants:
//! - A failure before anything was sent is a hold with [`Executed::No`]; a failure after that is ambiguous. Nothing is
//!   ever given up by dropping a future: the response timeout is on the connection and ends it.
//! - Nothing that comes out of here, errors and `Debug` included, contains a password, a key or an argument.
//!
//! [`Executed::No`]: crate::retry::Executed::No

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_redis::{
    Manager, Pool, PoolConfig, Runtime, Timeouts,
    redis::{
        AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
        io::tcp::{TcpSettings, socket2::TcpKeepalive},
    },
};

use crate::retry::Failure;

mod batch;
pub mod breaker;
pub mod command_hold;
mod connection;
mod connection_name;
mod control;
mod errors;
mod inspect;
pub mod limiter;
mod marker;
mod once;
mod past;
mod probe;
mod replies;
mod script;
mod slots;
#[cfg(test)]
pub(crate) mod testing;
mod version;

pub use self::{
    batch::Batch,
    connection::{BatchResult, Connection, Done},
    connection_name::ConnectionName,
    inspect::{Finding, FindingCode},
    marker::{Marker, MarkerState},
    past::{FenceReport, Past},
    probe::ProbeReport,
    script::version_fence,
    version::Fence,
};
use self::{control::Control, marker::OwnKeys};

/// The most units that one batch should carry.
pub const MAX_BATCH_UNITS: usize = 128;

/// The most argument bytes that one batch should carry. A single unit may be larger and then goes alone.
pub const MAX_BATCH_BYTES: usize = 256 * 1024;

/// What the response timeout allows for, beside the server's own time: 1 ms for every 4 KiB of a full batch.
const TRANSFER_ALLOWANCE: Duration = Duration::from_millis(MAX_BATCH_BYTES as u64 / 4096);

/// A peer that is gone without a word is found by the kernel after about a minute of silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A Redis URL, which may hold a password and is therefore never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The URL with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<&str> for RedisUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(hidden)")
    }
}

/// How a target is reached.
#[derive(Clone, Debug)]
pub struct Config {
    /// `redis://`, `rediss://` or `redis+unix://`, with user, password and database number as far as they are needed.
    pub url: RedisUrl,
    /// Resolving, connecting, TLS and authentication together.
    pub connect_timeout: Duration,
    /// From handing a batch over to its last reply; the time to transfer a full batch is added to it.
    pub response_timeout: Duration,
    /// Each of a probe's round trips, and making its connection.
    pub probe_timeout: Duration,
    /// The most connections that batches are sent over.
    pub connections: usize,
    /// What Redrive's own keys begin with.
    pub own_prefix: String,
    /// How long the marker of a unit that ran once lives at least.
    pub marker_ttl: Duration,
    /// How long the version of a key is remembered after its last write.
    pub version_ttl: Duration,
    /// What the target's connections are called by: another one at each start of the process.
    pub boot_id: [u8; 16],
}

impl Config {
    /// A target at `url` with everything else as it is by default.
    pub fn new(url: impl Into<RedisUrl>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(2),
            probe_timeout: Duration::from_millis(500),
            connections: 4,
            own_prefix: "redrive:".to_owned(),
            marker_ttl: Duration::from_secs(24 * 3600),
            version_ttl: Duration::from_secs(7 * 24 * 3600),
            boot_id: fastrand::u128(..).to_be_bytes(),
        }
    }
}

/// Why a target cannot be configured like that. Says nothing of the URL itself, which may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "the Redis URL is not one: expected redis://[user:password@]host[:port][/database], rediss://… or \
         redis+unix:///path"
    )]
    Url,
    #[error("the Redis URL ends in #insecure, but certificates are always checked")]
    Insecure,
    #[error("the Redis URL names the database {0}, which cannot be")]
    Database(i64),
    #[error("a target needs at least one connection")]
    NoConnections,
    #[error("{0} must be longer than nothing")]
    NoTime(&'static str),
}

/// A named Redis: a standalone server.
pub struct Target {
    name: String,
    display_url: String,
    pool: Pool,
    connect_timeout: Duration,
    control_client: Client,
    control_settings: AsyncConnectionConfig,
    /// Kept between two questions while the target answers.
    control: Mutex<Option<Control>>,
    probe_key: String,
    own: Arc<OwnKeys>,
    boot_id: [u8; 16],
    next_number: AtomicU64,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("url", &self.display_url).finish_non_exhaustive()
    }
}

impl Target {
    /// Checks the configuration. Nothing is connected to.
    pub fn try_new(name: &str, config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let info = connection_info(&config.url)?;
        let pool = pool(&info, &config)?;
        Ok(Self {
            name: name.to_owned(),
            display_url: display_url(&info),
            pool,
            connect_timeout: config.connect_timeout,
            control_client: Client::open(info).map_err(|_| ConfigError::Url)?,
            control_settings: AsyncConnectionConfig::new()
                .set_connection_timeout(Some(config.probe_timeout))
                .set_response_timeout(Some(config.probe_timeout)),
            probe_key: format!("{}probe", config.own_prefix),
            own: Arc::new(OwnKeys::new(&config.own_prefix, config.marker_ttl, config.version_ttl)),
            control: Mutex::new(None),
            boot_id: config.boot_id,
            // Two targets of a process may be one server, and their connections must not have the same names.
            next_number: AtomicU64::new(u64::from(fastrand::u32(..)) << 16),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the target is, without user and password.
    pub fn display_url(&self) -> &str {
        &self.display_url
    }

    /// An empty batch for this target.
    pub fn batch(&self) -> Batch {
        Batch::new(self.own.clone())
    }

    /// A connection for batches, checked to be usable. Waits at most the connect timeout each for a free one of the
    /// configured number, for making it, and for checking it.
    ///
    /// The error is always a hold with `Executed::No`: nothing of a task has been sent.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes what was being made.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let pooled = self.pool.get().await.map_err(|error| errors::of_pool(&error))?;
        let connection = Connection::try_new(pooled, self.next_name(), self.connect_timeout).await?;
        tracing::debug!(target.name = %self.name, "Connected to {}", self.display_url);
        Ok(connection)
    }
}

impl Target {
    fn next_name(&self) -> ConnectionName {
        ConnectionName { boot_id: self.boot_id, number: self.next_number.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        if self.connections == 0 {
            return Err(ConfigError::NoConnections);
        }
        let times = [
            ("the connect timeout", self.connect_timeout),
            ("the response timeout", self.response_timeout),
            ("the probe timeout", self.probe_timeout),
        ];
        match times.into_iter().find(|(_, time)| time.is_zero()) {
            Some((name, _)) => Err(ConfigError::NoTime(name)),
            None => Ok(()),
        }
    }
}

/// Reads the URL. RESP2 whatever the URL says: a writer has nothing from RESP3, and replies would have other shapes.
fn connection_info(url: &RedisUrl) -> Result<ConnectionInfo, ConfigError> {
    let info = url.expose().into_connection_info().map_err(|_| ConfigError::Url)?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(ConfigError::Insecure);
    }
    let settings = info
        .redis_settings()
        .clone()
        .set_protocol(ProtocolVersion::RESP2)
        .set_lib_name("redrive", env!("CARGO_PKG_VERSION"));
    if settings.db() < 0 {
        return Err(ConfigError::Database(settings.db()));
    }
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL));
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

fn pool(info: &ConnectionInfo, config: &Config) -> Result<Pool, ConfigError> {
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout + TRANSFER_ALLOWANCE))
        .set_write_backpressure_boundary(MAX_BATCH_BYTES);
    let bound = Some(config.connect_timeout);
    let manager = Manager::new_with_config(info.clone(), settings).map_err(|_| ConfigError::Url)?;
    Pool::builder(manager)
        .config(PoolConfig {
            max_size: config.connections,
            timeouts: Timeouts { wait: bound, create: bound, recycle: bound },
            ..PoolConfig::default()
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|_| ConfigError::Url)
}

fn display_url(info: &ConnectionInfo) -> String {
    let database = info.redis_settings().db();
    let authority = |host: &str, port: &u16| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => format!("redis://{}/{database}", authority(host, port)),
        ConnectionAddr::TcpTls { host, port, .. } => format!("rediss://{}/{database}", authority(host, port)),
        ConnectionAddr::Unix(path) => format!("redis+unix://{}?db={database}", path.display()),
        other => format!("{other}"),
    }
}

#[cfg(test)]
mod tests;
