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

use crate::{
    api::{self, Bound, Hosts, Listen, Server},
    config::{self, Config, Lua, Role, TokenError},
    consumer::{self, Consumer, Panicked},
    dead_letters::DeadLetters,
    log::{
        Log, ReadError, TableError,
        journal::{JournalConfig, JournalLog, JournalStats, OpenError, disk::RealDisk},
        kafka::{self, KafkaLog},
        spool::{self, Spool},
    },
    queue::Queues,
    retry::Policy,
    shutdown::Shutdown,
    target::{self, Target, limiter::Limits},
    task::{self, LuaPolicy, Rules},
    telemetry::metrics::Metrics,
};

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
        "{left} tasks in {} were stored there before `kafka.brokers` was set: start without it until they are made",
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
            return Ok(Self { log: Arc::new(journal), stats, spool: None });
        };
        let left = left_in(journal_config(config))?;
        if left > 0 {
            return Err(AppError::LeftInJournal { left, dir: config.data_dir.clone() });
        }
        let identities = config.targets.iter().map(|target| (target.name.as_str().into(), target.url.server().into()));
        let remote = KafkaLog::open(kafka_config(kafka), identities.collect())?;
        let mode = if kafka.local_first { spool::Mode::Always } else { spool::Mode::WhenAway };
        let mut settings = spool::Config::new(mode, kafka.produce_timeout);
        settings.max_record_bytes = kafka::config::Config::default().max_record_bytes;
        settings.close_within = config.shutdown.grace / 2;
        let journal = JournalConfig { dir: spool_dir(config), ..journal_config(config) };
        let spool = Arc::new(Spool::open(Arc::new(remote), journal, Arc::new(RealDisk), settings)?);
        Ok(Self { log: spool.clone(), stats: spool.stats(), spool: Some(spool) })
    }

    /// What is on this disk still, as the end of a log line; empty: nothing.
    fn left(&self) -> String {
        let spooled = self.spool.as_ref().map_or(Vec::new(), |spool| spool.spooled());
        let left: Vec<_> =
            spooled.iter().map(|left| format!("{} tasks in {}", left.records, left.path.display())).collect();
        left.join(", ")
    }
}

impl App {
    /// Starts everything but answering requests. Reads from disk and blocks while it does. Must be called in a
    /// runtime.
    pub fn build(config: &Config) -> Result<Self, AppError> {
        let started = Instant::now();
        let token = config.admin.read_token()?;
        let boot_id = new_boot_id();
        let targets = if config.role == Role::Gateway { Vec::new() } else { targets(config, boot_id)? };
        let storage = Storage::open(config)?;
        let log = storage.log.clone();
        let metrics = Metrics::new(&api::ProblemType::slugs());
        metrics.refresh_with({
            let (log, stats) = (log.clone(), storage.stats.clone());
            move |metrics| refresh(&*log, &stats, metrics)
        });
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

        let api_config = api_config(config, token);
        let data_plane = Server::bind(&api_config.listen, api_config.connections)?;
        let ops_plane = Server::bind(&[Listen::Tcp(api_config.ops_listen)], api_config.connections)?;
        let state = api::State::new(queues, consumer.handle(), dead_letters, metrics, rules, api_config);
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
    pub async fn run(self, shutdown: Shutdown) -> Result<(), AppError> {
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
            () = self.consumer.ended() => {
                tracing::error!("The consumer has ended; stopping, so that a restart can repair it");
            }
        }
        let begun = Instant::now();
        self.state.readiness.set_draining();
        closing.begin();
        let stop = async {
            let _ = data.await;
            let consumer = self.consumer.stop().await;
            self.storage.log.close().await;
            consumer
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
        if left.is_empty() {
            tracing::info!("Stopped after {took} ms");
        } else {
            tracing::warn!("Stopped after {took} ms. Not in Kafka yet, to be forwarded after the next start: {left}");
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
    Ok(journal.depth().iter().map(|depth| depth.end.saturating_sub(depth.finished)).sum())
}

fn kafka_config(kafka: &config::Kafka) -> kafka::config::Config {
    use kafka::config::{Mechanism, Sasl, Tls};
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

/// Brings those gauges up to date that are read off, not counted.
fn refresh(log: &dyn Log, stats: &JournalStats, metrics: &Metrics) {
    let unfinished: u64 = log.depth().iter().map(|depth| depth.end.saturating_sub(depth.finished)).sum();
    metrics.consumer_lag.set(i64::try_from(unfinished).unwrap_or(i64::MAX));
    metrics.journal_bytes.set(i64::try_from(stats.disk_bytes()).unwrap_or(i64::MAX));
    let damaged = stats.damaged_records();
    metrics.journal_damaged_records.inc_by(damaged.saturating_sub(metrics.journal_damaged_records.get()));
}
