//! Puts the parts together, and starts and stops them in order.
//!
//! ```text
//! start: log (recovers; Kafka with its spool) ─▶ memory of recent tasks ─▶ targets ─▶ consumer ─▶ listeners
//! stop:  not ready ─▶ listeners (finish what was asked) ─▶ consumer (finish what is in flight, checkpoint) ─▶ log
//! ```
//!
//! The listeners are bound last and closed first: who can connect is served. A stop takes at most `shutdown.grace`;
//! what is cut off then is made again after the next start, as after a crash.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use self::earlier::Earlier;
use crate::{
    api::{self, Bound, Hosts, Listen, Server},
    config::{self, Config, Lua, Role, TokenError},
    consumer::{self, Consumer, Panicked},
    dead_letters::DeadLetters,
    log::{
        Depth, Log, ReadError, TableError,
        journal::{JournalConfig, JournalLog, JournalStats, OpenError, disk::RealDisk},
        kafka::{self, KafkaLog},
        spool::{self, Spool},
    },
    queue::{Envelope, Queues},
    retry::Policy,
    shutdown::Shutdown,
    target::{self, Target, limiter::Limits},
    task::{self, LuaPolicy, Rules},
    telemetry::metrics::{IntCounter, Metrics},
};

mod earlier;

/// How long what is under way may take once its partition goes to another process: longer than any answer of a target
/// that is well, and much shorter than a group waits.
const REVOKE_BOUND: Duration = Duration::from_secs(10);

/// Why the process could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("the journal cannot be opened")]
    Journal(#[from] OpenError),
    #[error(
        "{left} tasks in {} wait for Kafka, and `kafka.brokers` is not set: set it until they are forwarded",
        dir.display()
    )]
    LeftForKafka { left: u64, dir: PathBuf },
    #[error(
        "{left} tasks in {} were stored there before `kafka.brokers` was set, and a gateway makes none: start it once \
         with `role = \"all\"`",
        dir.display()
    )]
    LeftInJournal { left: u64, dir: PathBuf },
    #[error("Kafka cannot be used as it is configured")]
    Kafka(#[from] kafka::OpenError),
    #[error("the log cannot be read")]
    Refill(#[from] ReadError),
    #[error("the dead letters cannot be opened")]
    DeadLetters(#[from] TableError),
    #[error("the target {name} cannot be used")]
    Target {
        name: String,
        #[source]
        source: target::ConfigError,
    },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Bind(#[from] api::server::BindError),
    #[error("the consumer cannot be started")]
    Thread(#[source] io::Error),
    /// What was not acknowledged by then may be stored or not.
    #[error("the log has failed: {0}")]
    LogFailed(String),
    #[error(transparent)]
    Consumer(#[from] Panicked),
}

/// All parts, started.
pub struct App {
    storage: Storage,
    consumer: Consumer,
    state: Arc<api::State>,
    data_plane: Server,
    ops_plane: Server,
    grace: Duration,
}

/// Where tasks are kept.
struct Storage {
    log: Arc<dyn Log>,
    /// Of what is on this disk: the journal, or the spool.
    stats: Arc<JournalStats>,
    /// In front of Kafka.
    spool: Option<Arc<Spool>>,
    kafka: Option<Arc<KafkaLog>>,
    /// The journal of before there was Kafka.
    earlier: Option<Earlier>,
}

impl Storage {
    fn open(config: &Config) -> Result<Self, AppError> {
        let Some(kafka) = &config.kafka else {
            let left = left_in(JournalConfig { dir: spool_dir(config), ..journal_config(config) })?;
            if left > 0 {
                return Err(AppError::LeftForKafka { left, dir: spool_dir(config) });
            }
            let journal = JournalLog::open(journal_config(config), Arc::new(RealDisk))?;
            let stats = journal.stats();
            return Ok(Self { log: Arc::new(journal), stats, spool: None, kafka: None, earlier: None });
        };
        let earlier = Earlier::open(config)?;
        let left = earlier.as_ref().map_or(0, Earlier::left);
        if left > 0 && config.role == Role::Gateway {
            return Err(AppError::LeftInJournal { left, dir: config.data_dir.clone() });
        }
        let identity = |target: &config::Target| target.identity.clone().unwrap_or_else(|| target.url.server());
        let identities = config.targets.iter().map(|target| (target.name.as_str().into(), identity(target).into()));
        let remote = Arc::new(KafkaLog::open(kafka_config(config, kafka), identities.collect())?);
        let mode = if kafka.local_first { spool::Mode::Always } else { spool::Mode::WhenAway };
        let mut settings = spool::Config::new(mode, kafka.produce_timeout);
        settings.max_record_bytes = kafka::config::MAX_RECORD_BYTES;
        settings.close_within = config.shutdown.grace / 2;
        settings.accepted_at = |record| Some(Envelope::decode(record).ok()?.accepted_at.as_millisecond());
        let journal = JournalConfig { dir: spool_dir(config), ..journal_config(config) };
        let spool = Arc::new(Spool::open(remote.clone(), journal, Arc::new(RealDisk), settings)?);
        Ok(Self { log: spool.clone(), stats: spool.stats(), spool: Some(spool), kafka: Some(remote), earlier })
    }

    fn reads(&self) -> Reads {
        let Self { log, stats, spool, kafka, earlier } = self;
        let earlier = earlier.as_ref().map(Earlier::journal);
        Reads { log: log.clone(), stats: stats.clone(), spool: spool.clone(), kafka: kafka.clone(), earlier }
    }

    /// What is on this disk still, as the end of a log line; empty: nothing.
    fn left(&self) -> String {
        let spooled = self.spool.as_ref().map_or(Vec::new(), |spool| spool.spooled());
        let left: Vec<_> =
            spooled.iter().map(|left| format!("{} tasks in {}", left.records, left.path.display())).collect();
        left.join(", ")
    }
}

/// A task that is given up always has room in the dead letters.
const _: () = assert!(
    consumer::letter::MAX_TASK <= kafka::config::MAX_RECORD_BYTES
        && consumer::letter::MAX_BESIDE_TASK <= kafka::config::BESIDE_RECORD_BYTES
);

impl App {
    /// Starts everything but answering requests. Reads from disk and blocks while it does. Must be called in a
    /// runtime.
    pub fn build(config: &Config) -> Result<Self, AppError> {
        let started = Instant::now();
        let token = config.admin.read_token()?;
        let boot_id = new_boot_id();
        let targets = if config.role == Role::Gateway { Vec::new() } else { targets(config, boot_id)? };
        let mut storage = Storage::open(config)?;
        let log = storage.log.clone();
        let metrics = Metrics::new(&api::ProblemType::slugs());
        metrics.refresh_with({
            let (reads, is_gateway) = (storage.reads(), config.role == Role::Gateway);
            move |metrics| reads.refresh(is_gateway, metrics)
        });
        if storage.kafka.is_some() {
            metrics.know_warnings(kafka::admin::FindingCode::ALL.map(kafka::admin::FindingCode::as_str));
        }
        let queues = Queues::new(log.clone(), metrics.clone());
        queues.refill()?;
        let dead_letters = DeadLetters::open(&log)?;
        let rules = Arc::new(rules(config));
        let consumer = Consumer::start(
            &consumer_config(config, boot_id),
            consumer::Parts {
                log: log.clone(),
                queues: queues.clone(),
                dead_letters: dead_letters.clone(),
                rules: rules.clone(),
                targets,
                metrics: metrics.clone(),
            },
        )
        .map_err(AppError::Thread)?;

        let mut handle = consumer.handle();
        if let Some(earlier) = storage.earlier.as_mut().filter(|_| config.role != Role::Gateway) {
            let shared = earlier::Shared {
                queues: queues.clone(),
                dead_letters: dead_letters.clone(),
                rules: rules.clone(),
                metrics: metrics.clone(),
            };
            let worked_off = earlier.begin(config, shared)?;
            handle = handle.beside(&worked_off, earlier.journal());
        }

        let api_config = api_config(config, token);
        let data_plane = Server::bind(&api_config.listen, api_config.connections)?;
        let ops_plane = Server::bind(&[Listen::Tcp(api_config.ops_listen)], api_config.connections)?;
        let state = api::State::new(queues, handle, dead_letters, metrics, rules, api_config);
        state.readiness.set_started();
        for bound in data_plane.bound() {
            tracing::info!(listen = %bound, "Taking tasks on {bound} after {} ms", started.elapsed().as_millis());
        }
        for bound in ops_plane.bound() {
            tracing::info!(ops.listen = %bound, "Probes, metrics and the admin API are on {bound}");
        }
        Ok(Self { storage, consumer, state, data_plane, ops_plane, grace: config.shutdown.grace })
    }

    /// Where the data plane listens.
    pub fn bound(&self) -> Vec<Bound> {
        self.data_plane.bound()
    }

    /// Where the ops plane listens.
    pub fn ops_bound(&self) -> Vec<Bound> {
        self.ops_plane.bound()
    }

    /// Serves until told to stop, then stops in order.
    ///
    /// # Errors
    ///
    /// When the process had to end: its log failed, or a worker panicked.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), AppError> {
        let closing = Shutdown::new();
        let hosts = |server: &Server| Hosts::new(&server.bound(), &self.state.config.allowed_hosts);
        let data = api::data_plane(&self.state, hosts(&self.data_plane));
        let metrics = &self.state.metrics;
        let data = tokio::spawn(self.data_plane.serve(data, metrics.clone(), closing.token(), self.grace / 2));
        // Probes and metrics are answered until the end.
        let ops_closing = Shutdown::new();
        let ops = api::ops_plane(&self.state, hosts(&self.ops_plane));
        let until_cut_off = Duration::from_millis(200);
        let ops = tokio::spawn(self.ops_plane.serve(ops, metrics.clone(), ops_closing.token(), until_cut_off));
        tokio::select! {
            () = shutdown.begun() => {}
            reason = self.storage.log.failed() => return Err(AppError::LogFailed(reason)),
            reason = Earlier::failed(self.storage.earlier.as_mut()) => return Err(AppError::LogFailed(reason)),
            () = self.consumer.ended() => {
                tracing::error!("The consumer has ended; stopping, so that a restart can repair it");
            }
        }
        let begun = Instant::now();
        let earlier = self.storage.earlier.as_ref().map(Earlier::journal);
        self.state.readiness.set_draining();
        closing.begin();
        let stop = async {
            let _ = data.await;
            let stopping_earlier = async {
                match self.storage.earlier.take() {
                    Some(earlier) => earlier.stop().await,
                    None => Ok(()),
                }
            };
            let (consumer, earlier) = tokio::join!(self.consumer.stop(), stopping_earlier);
            self.storage.log.close().await;
            consumer.and(earlier)
        };
        let stopped = tokio::time::timeout(self.grace, stop).await;
        ops_closing.begin();
        let _ = ops.await;
        match stopped {
            Ok(consumer) => consumer?,
            Err(_) => tracing::warn!(
                "Not everything had ended after {} s; what was cut off is made again after the next start",
                self.grace.as_secs()
            ),
        }
        let (took, left) = (begun.elapsed().as_millis(), self.storage.left());
        let unmade = earlier.map_or(0, |journal| journal.depth().iter().map(Depth::lag).sum());
        match (left.is_empty(), unmade) {
            (true, 0) => tracing::info!("Stopped after {took} ms"),
            (true, _) => tracing::warn!(
                "Stopped after {took} ms. To be made after the next start: {unmade} tasks of before Kafka was set"
            ),
            (false, 0) => {
                tracing::warn!(
                    "Stopped after {took} ms. Not in Kafka yet, to be forwarded after the next start: {left}"
                );
            }
            (false, _) => tracing::warn!(
                "Stopped after {took} ms. Not in Kafka yet, to be forwarded after the next start: {left}; and to be made \
                 then: {unmade} tasks of before Kafka was set"
            ),
        }
        Ok(())
    }
}

/// Names a process in its checkpoints and on its targets.
pub(crate) fn new_boot_id() -> [u8; 16] {
    *uuid::Uuid::now_v7().as_bytes()
}

/// The configured targets, as this process is known to them. Nothing is connected to.
pub(crate) fn targets(config: &Config, boot_id: [u8; 16]) -> Result<Vec<Target>, AppError> {
    let redis = &config.redis;
    let target = |target: &config::Target| {
        let settings = target::Config {
            url: target.url.expose().into(),
            connect_timeout: redis.connect_timeout,
            response_timeout: redis.response_timeout,
            probe_timeout: redis.probe_timeout,
            connections: redis.connections,
            own_prefix: redis.own_prefix.clone(),
            boot_id,
            marker_ttl: config.once.marker_ttl,
            version_ttl: config.version.marker_ttl,
        };
        Target::try_new(&target.name, settings).map_err(|source| AppError::Target { name: target.name.clone(), source })
    };
    config.targets.iter().map(target).collect()
}

/// What about the topics of the configuration breaks a promise, or will; nothing where there is no Kafka.
pub(crate) async fn inspect_kafka(config: &Config) -> Result<Vec<kafka::admin::Finding>, kafka::OpenError> {
    let Some(kafka) = &config.kafka else { return Ok(Vec::new()) };
    let targets = config.targets.iter().map(|target| target.name.as_str().into());
    Ok(kafka::inspect(kafka_config(config, kafka), targets, config.role != Role::Gateway).await?)
}

fn journal_config(config: &Config) -> JournalConfig {
    JournalConfig {
        max_bytes: config.journal.max_bytes,
        min_free_bytes: config.journal.min_free_bytes,
        allow_volatile: config.journal.allow_volatile,
        targets: config.targets.iter().map(|target| target.name.as_str().into()).collect(),
        ..JournalConfig::new(&config.data_dir)
    }
}

/// Where tasks wait for Kafka: apart from the journal's own, which have another form.
fn spool_dir(config: &Config) -> PathBuf {
    config.data_dir.join("spool")
}

/// How many tasks an earlier process has left in a journal that this one does not use.
fn left_in(journal: JournalConfig) -> Result<u64, AppError> {
    if !journal.exists() {
        return Ok(0);
    }
    let journal = JournalLog::open(journal, Arc::new(RealDisk))?;
    Ok(journal.depth().iter().map(Depth::lag).sum())
}

fn kafka_config(config: &Config, kafka: &config::Kafka) -> kafka::config::Config {
    use kafka::config::{Beginning, Mechanism, Sasl, Tls};
    kafka::config::Config {
        brokers: kafka.brokers.clone(),
        topic: kafka.topic.as_str().into(),
        group: kafka.group.as_str().into(),
        instance_id: kafka.instance_id.as_deref().map(Into::into),
        produce_timeout: kafka.produce_timeout,
        session_timeout: kafka.session_timeout,
        heartbeat_interval: kafka.heartbeat_interval,
        rebalance_timeout: kafka.rebalance_timeout,
        metadata_refresh: kafka.metadata_refresh,
        create_topics: kafka.create_topics,
        partitions: kafka.partitions,
        replication: kafka.replication,
        min_insync: kafka.min_insync,
        retention: kafka.retention,
        stuck_after: (2 * kafka.session_timeout).max(Duration::from_secs(10)),
        marker_life: config.once.marker_ttl,
        beginning: match &*kafka.no_checkpoint {
            "earliest" => Beginning::Earliest,
            "latest" => Beginning::Latest,
            _ => Beginning::Hold,
        },
        tls: kafka.tls.as_ref().map(|tls| Tls {
            ca_file: tls.ca_file.clone(),
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
        }),
        sasl: kafka.sasl.as_ref().map(|sasl| Sasl {
            mechanism: Mechanism::ALL
                .into_iter()
                .find(|mechanism| mechanism.as_str() == sasl.mechanism)
                .expect("the setting takes these"),
            username: sasl.username.clone(),
            password_file: sasl.password_file.clone(),
        }),
        ..kafka::config::Config::default()
    }
}

fn rules(config: &Config) -> Rules {
    let admission = &config.admission;
    let limits = task::Config {
        max_args: admission.max_args,
        max_arg_bytes: admission.max_arg_bytes,
        max_foreign_bytes: admission.max_body,
        key_prefixes: admission.key_prefixes.clone(),
        own_prefix: config.redis.own_prefix.clone(),
        lua: match &admission.lua {
            Lua::On => LuaPolicy::On,
            Lua::Off => LuaPolicy::Off,
            Lua::Only(scripts) => LuaPolicy::Listed(scripts.clone()),
        },
        ..task::Config::default()
    };
    let targets = config.targets.iter().map(|target| target.name.clone());
    Rules::new(limits, targets).with_defaults(config.rules.clone())
}

fn consumer_config(config: &Config, boot_id: [u8; 16]) -> consumer::Config {
    let retry = &config.retry;
    consumer::Config {
        memory_bytes: config.consumer.memory_bytes,
        policy: Policy {
            max_retries: u8::try_from(retry.max_retries).expect("the setting is at most 20"),
            base: retry.base,
            cap: retry.cap,
        },
        outage_probe_cap: retry.outage_probe_cap,
        limits: Limits {
            max_batches: config.redis.connections,
            max_rate: config.redis.max_rate,
            adaptive: config.redis.adaptive,
        },
        boot_id,
        marker_ttl: config.once.marker_ttl,
        revoke_bound: config.kafka.as_ref().map_or(REVOKE_BOUND, |kafka| REVOKE_BOUND.min(kafka.rebalance_timeout / 3)),
        is_beside: false,
    }
}

fn api_config(config: &Config, token: Option<config::Token>) -> api::Config {
    api::Config {
        listen: match &config.listen {
            _ if config.role == Role::Worker => Vec::new(),
            config::Listen::Tcp(address) => vec![Listen::Tcp(*address)],
            config::Listen::Unix(path) => vec![Listen::Unix(path.clone())],
        },
        ops_listen: config.ops.listen,
        allowed_hosts: config.allowed_hosts.iter().chain(&config.ops.allowed_hosts).cloned().collect(),
        max_body: config.admission.max_body,
        max_batch: config.admission.max_batch,
        max_batch_body: config.admission.max_batch_body,
        max_inflight_bytes: config.admission.max_inflight_bytes,
        body_timeout: config.http.body_timeout,
        connections: api::server::Limits {
            max_connections: config.http.max_connections,
            header_timeout: config.http.header_timeout,
            idle_timeout: config.http.idle_timeout,
        },
        token: token.map(|token| api::Token::new(token.expose().as_bytes())),
    }
}

/// What gauges are read off.
struct Reads {
    log: Arc<dyn Log>,
    stats: Arc<JournalStats>,
    spool: Option<Arc<Spool>>,
    kafka: Option<Arc<KafkaLog>>,
    earlier: Option<Arc<JournalLog>>,
}

impl Reads {
    /// Brings those metrics up to date that are read off, not counted here.
    fn refresh(&self, is_gateway: bool, metrics: &Metrics) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let counted = |counter: &IntCounter, value: u64| counter.inc_by(value.saturating_sub(counter.get()));
        // What nobody works on is everybody's: somebody must see that it grows.
        let depth = self.log.depth();
        let ours = depth.iter().filter(|depth| is_gateway || !depth.is_elsewhere());
        let earlier = self.earlier.as_ref().map_or(Vec::new(), |journal| journal.depth());
        metrics.consumer_lag.set(gauge(ours.chain(&earlier).map(Depth::lag).sum()));
        metrics.journal_bytes.set(gauge(self.stats.disk_bytes()));
        counted(&metrics.journal_damaged_records, self.stats.damaged_records());
        if let Some(spool) = &self.spool {
            let spooled = spool.spooled();
            metrics.spool_records.set(gauge(spooled.iter().map(|spooled| spooled.records).sum()));
            metrics.spool_bytes.set(gauge(spooled.iter().map(|spooled| spooled.bytes).sum()));
            let oldest = spooled.iter().filter_map(|spooled| spooled.oldest_ms).min();
            let age = oldest.map_or(0, |oldest| (jiff::Timestamp::now().as_millisecond() - oldest).max(0));
            metrics.spool_oldest_age.set(age as f64 / 1000.0);
            counted(&metrics.spool_forwarded, spool.forwarded());
        }
        if let Some(kafka) = &self.kafka {
            counted(&metrics.kafka_lost_records, kafka.lost_records());
            counted(&metrics.kafka_unreadable_batches, kafka.unreadable_batches());
            kafka.findings().iter().for_each(|found| metrics.warn(found.code.as_str()));
        }
    }
}
