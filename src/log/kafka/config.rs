//! How Kafka is reached and used: values only. Names and defaults are those of the settings `kafka.*`; files named here
//! are read by [`security`](super::security).

use std::{path::PathBuf, sync::Arc, time::Duration};

/// What every topic, group and connection is set up with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the cluster is asked for first: `host:port` each.
    pub brokers: Vec<String>,
    /// The topic of the target `default`, lane `normal`; the names of all others begin with it.
    pub topic: Arc<str>,
    pub group: Arc<str>,
    /// How brokers call this process in their logs, metrics and quotas.
    pub client_id: Arc<str>,
    /// Makes this process a static member of the group: it keeps its partitions through a restart, and does not leave.
    /// Only for names that come back, such as those of a StatefulSet's pods, and never for two processes at once: the
    /// newer one gets the older one's partitions before that has heard of it.
    pub instance_id: Option<Arc<str>>,
    /// How long a connection may take, TLS and SASL included.
    pub connect_timeout: Duration,
    /// How long any other question to a broker may take.
    pub request_timeout: Duration,
    /// How long an append may take.
    pub produce_timeout: Duration,
    /// A member that the group has not heard of for so long loses its partitions.
    pub session_timeout: Duration,
    pub heartbeat_interval: Duration,
    /// How long the group waits for a member to join again. Partitions that go to another member are drained within
    /// two thirds of it.
    pub rebalance_timeout: Duration,
    /// How often topics and their partitions are looked for.
    pub metadata_refresh: Duration,
    /// Make topics that are missing.
    pub create_topics: bool,
    /// Partitions of a new topic.
    pub partitions: i32,
    /// Replicas of a new topic; fewer where there are fewer brokers.
    pub replication: i16,
    /// Replicas that must have a record before it is acknowledged; never more than one fewer than there are, but at
    /// least one.
    pub min_insync: i16,
    /// How long a new topic keeps its records.
    pub retention: Duration,
    /// How long it is remembered of a task that must run once that it has run: what is older may run again where nobody
    /// knows how far its partition was finished.
    pub marker_life: Duration,
    /// Where a partition is read from of which nobody knows that.
    pub beginning: Beginning,
    /// A consumer that makes no turn for so long loses its partitions. At least as long as a last checkpoint may take.
    pub stuck_after: Duration,
    /// The largest record that is appended, its headers included.
    pub max_record_bytes: usize,
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
}

/// The largest record: a task and its headers.
pub const MAX_RECORD_BYTES: usize = 512 * 1024;

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: "redis-retry-queue".into(),
            group: "redis-retry-consumer-group".into(),
            client_id: "redrive".into(),
            instance_id: None,
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            produce_timeout: Duration::from_secs(3),
            session_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(2),
            rebalance_timeout: Duration::from_secs(30),
            metadata_refresh: Duration::from_secs(10),
            create_topics: true,
            partitions: 3,
            replication: 3,
            min_insync: 2,
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            marker_life: Duration::from_secs(24 * 60 * 60),
            beginning: Beginning::Hold,
            stuck_after: Duration::from_secs(20),
            max_record_bytes: MAX_RECORD_BYTES,
            tls: None,
            sasl: None,
        }
    }
}

/// What a value of a table may have beside a record that it keeps.
pub const BESIDE_RECORD_BYTES: usize = 128 * 1024;

impl Config {
    /// The largest value of a table: it may keep a whole record, and what is to be said of it.
    pub fn max_value_bytes(&self) -> usize {
        self.max_record_bytes + BESIDE_RECORD_BYTES
    }
}

/// Where a partition without a checkpoint is read from, when its oldest record is older than what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nowhere, until a person says so.
    Hold,
    Earliest,
    /// What is there is passed over.
    Latest,
}

/// Speak TLS. Files are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who may vouch for brokers; none: whom this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// What this process shows of itself: a chain and its key, both or neither.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    /// One line; white space around it is not part of the password.
    pub password_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    pub const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}
