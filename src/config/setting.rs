//! The table of settings: every name, what it takes, its default and what it means, in one place. The file's keys,
//! the environment's names, the flags, `--help`, `redrive config` and `docs/settings.md` all come from here, so that
//! none of them can disagree.

use std::time::Duration;

use super::kind::Kind;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file, dots between the parts.
    pub name: &'static str,
    pub kind: Kind,
    /// As it would be written in the environment. Empty: none.
    pub default: &'static str,
    /// One sentence for `--help` and the table in the documentation.
    pub help: &'static str,
}

impl Setting {
    /// Its name in the environment.
    pub fn env_name(&self) -> String {
        let mut name = String::from(ENV_PREFIX);
        name.extend(self.name.chars().map(|c| if c == '.' { '_' } else { c.to_ascii_uppercase() }));
        name
    }

    /// Its name as a flag, without the two dashes.
    pub fn flag_name(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

/// What the names of settings begin with in the environment.
pub const ENV_PREFIX: &str = "REDRIVE_";

/// The setting of that name. Panics where there is none: names are written in this program.
pub fn setting(name: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.name == name).expect("only names of the table are asked for")
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max }
}

const fn duration(min: Duration, max: Duration) -> Kind {
    Kind::Duration { min, max }
}

const fn entry(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Setting {
    Setting { name, kind, default, help }
}

/// All settings but the URLs of further targets, whose names are the user's: `targets.NAME.url`; and rules, which are
/// tables of the file.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    entry("listen", Kind::Listen, "127.0.0.1:7379",
        "Where services send tasks: an address and port, or `unix:/path`. Port 0 picks a free one, and the log says which."),
    entry("allow_remote", Kind::Flag, "false",
        "Allows `listen` to be an address that other machines reach. The data plane asks for no credentials."),
    entry("allowed_hosts", Kind::List, "",
        "Further `Host` names under which the data plane may be called, beside loopback names and `listen` itself."),
    entry("ops.listen", Kind::Address, "127.0.0.1:7380",
        "Where probes, metrics and the admin API are served. Anything but loopback needs `admin.token_file`."),
    entry("ops.allowed_hosts", Kind::List, "",
        "Further `Host` names under which the admin API may be called. Probes and metrics take any."),
    entry("data_dir", Kind::Path, "./redrive-data",
        "Directory of the journal and the dead letters; made with mode 0700 and locked while in use."),
    entry("role", Kind::OneOf(&["all", "gateway", "worker"]), "all",
        "`all`, or with Kafka: `gateway` takes tasks only and needs no Redis, `worker` executes only."),
    entry("redis.url", Kind::RedisUrl, "redis://127.0.0.1:6379/0",
        "The Redis that is called `default`. Further ones are `targets.NAME.url`."),
    entry("redis.own_prefix", Kind::OwnPrefix, "redrive:",
        "What Redrive's own keys in Redis begin with."),
    entry("redis.connections", count(1, 64), "4",
        "Connections per target that carry tasks; probes have their own."),
    entry("redis.max_rate", count(0, 10_000_000), "20000",
        "The most units of tasks (commands, atomic pipelines, scripts) sent to a target per second; 0: no limit."),
    entry("redis.adaptive", Kind::Flag, "true",
        "Whether less is sent when Redis answers later than usual, and for 30 s after it was started again."),
    entry("redis.connect_timeout", duration(MILLISECOND, MINUTE), "1s",
        "How long connecting to Redis may take, TLS and authentication included."),
    entry("redis.response_timeout", duration(MILLISECOND, MINUTE), "2s",
        "How long Redis may take to answer; 1 ms is added per 4 KiB sent."),
    entry("redis.probe_timeout", duration(MILLISECOND, MINUTE), "500ms",
        "How long a probe of a target that is down may take."),
    entry("retry.max_retries", count(0, 20), "3",
        "Executions after the first one before a failing task becomes a dead letter. An outage spends none."),
    entry("retry.base", duration(MILLISECOND, HOUR), "200ms",
        "The longest wait before the first retry; it doubles from there, with full jitter."),
    entry("retry.cap", duration(MILLISECOND, Duration::from_secs(24 * 60 * 60)), "30s",
        "The longest wait between two retries."),
    entry("retry.outage_probe_cap", duration(Duration::from_millis(100), HOUR), "5s",
        "The longest time between two probes of a target that is down."),
    entry("once.marker_ttl", duration(HOUR, YEAR), "24h",
        "How long Redis remembers that an operation which must run once has run, and an id that it was used."),
    entry("version.marker_ttl", duration(HOUR, YEAR), "7d",
        "How long Redis remembers the last version of a key; each write with a newer one begins it anew."),
    entry("journal.max_bytes", size(8 * MIB, 16 * TIB), "1GiB",
        "The most that all journals in `data_dir` take together. When it is full, tasks are refused, none is dropped."),
    entry("journal.min_free_bytes", size(0, 16 * TIB), "256MiB",
        "Free space that is left on the disk of `data_dir`; below it, tasks are refused."),
    entry("journal.allow_volatile", Kind::Flag, "false",
        "Allows `data_dir` to be on a file system in memory, which a restart of the machine or the pod empties."),
    entry("kafka.brokers", Kind::List, "",
        "Brokers as `HOST:PORT`, to begin with. Set: tasks are stored in Kafka. Empty: in the journal in `data_dir`."),
    entry("kafka.topic", Kind::KafkaName, "redis-retry-queue",
        "The topic of tasks; lanes and further targets put their names behind it."),
    entry("kafka.group", Kind::KafkaName, "redis-retry-consumer-group",
        "The consumer group that all sidecars of a fleet share."),
    entry("kafka.instance_id", Kind::OptionalText, "",
        "Makes a static member of the group: a name that outlives restarts and that no other sidecar has."),
    entry("kafka.durability", Kind::OneOf(&["kafka", "local"]), "kafka",
        "`kafka`: answered when Kafka has a task, on local disk only while Kafka is away. `local`: always on local disk first."),
    entry("kafka.produce_timeout", duration(Duration::from_millis(100), MINUTE), "3s",
        "How long Kafka may take to store a task before it is kept on local disk."),
    entry("kafka.create_topics", Kind::Flag, "true",
        "Whether missing topics are made."),
    entry("kafka.partitions", count(1, 1000), "3",
        "Partitions of topics that are made."),
    entry("kafka.replication", count(1, 100), "3",
        "Replicas of topics that are made; with fewer brokers as many as there are, with a warning."),
    entry("kafka.min_insync", count(1, 100), "2",
        "In-sync replicas without which nothing is stored, of topics that are made; less than the replicas, but at least 1."),
    entry("kafka.retention", duration(HOUR, YEAR), "7d",
        "How long topics that are made keep tasks."),
    entry("kafka.session_timeout", duration(Duration::from_secs(1), HOUR), "10s",
        "How long a sidecar may be silent before the group gives its partitions to another one."),
    entry("kafka.heartbeat_interval", duration(Duration::from_millis(100), MINUTE), "2s",
        "The time between two signs of life; at most a third of `kafka.session_timeout`."),
    entry("kafka.rebalance_timeout", duration(Duration::from_secs(1), HOUR), "30s",
        "How long a sidecar may take to hand over a partition."),
    entry("kafka.metadata_refresh", duration(Duration::from_secs(1), HOUR), "10s",
        "The time between two looks at topics, partitions and brokers."),
    entry("kafka.no_checkpoint", Kind::OneOf(&["hold", "earliest", "latest"]), "hold",
        "From where a partition without committed offsets is read whose oldest task is older than `once.marker_ttl`."),
    entry("kafka.tls.enabled", Kind::Flag, "false",
        "Whether brokers are spoken to by TLS; a file below says so too."),
    entry("kafka.tls.ca_file", Kind::OptionalPath, "",
        "PEM file with the certificates of the authorities that are trusted; else those of the system are."),
    entry("kafka.tls.cert_file", Kind::OptionalPath, "",
        "PEM file with the client's certificate, and those between it and its authority."),
    entry("kafka.tls.key_file", Kind::OptionalPath, "",
        "PEM file with the client's private key."),
    entry("kafka.sasl.mechanism", Kind::OneOf(&["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]), "",
        "How Redrive logs in: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; empty: not at all."),
    entry("kafka.sasl.username", Kind::OptionalText, "",
        "The user who logs in."),
    entry("kafka.sasl.password_file", Kind::OptionalPath, "",
        "File with the password; read at the start."),
    entry("admission.max_body", size(KIB, 16 * MIB), "256KiB",
        "The largest body of one task."),
    entry("admission.max_args", count(1, 7_000), "1024",
        "The most arguments of one command."),
    entry("admission.max_arg_bytes", size(1, 16 * MIB), "128KiB",
        "The largest single argument, decoded."),
    entry("admission.max_batch", count(1, 10_000), "500",
        "The most tasks of one batch."),
    entry("admission.max_batch_body", size(KIB, 64 * MIB), "4MiB",
        "The largest body of a batch."),
    entry("admission.max_inflight_bytes", size(MIB, 4 * GIB), "32MiB",
        "The most bytes of requests that are held in memory at a time; above it, requests are answered 503."),
    entry("admission.key_prefixes", Kind::List, "",
        "If set, every key of a task must begin with one of these."),
    entry("admission.lua", Kind::Lua, "true",
        "Whether scripts are accepted: `true`, `false`, or a list of the SHA-1s of those that are."),
    entry("consumer.memory_bytes", size(MIB, 4 * GIB), "24MiB",
        "The most memory for tasks read and not settled yet. A full window pauses reading, it never drops."),
    entry("http.max_connections", count(1, 65_536), "1024",
        "The most open connections per listener. While further ones wait, the oldest end one after the other, each when it has answered."),
    entry("http.header_timeout", duration(MILLISECOND, HOUR), "5s",
        "How long a client may take to send a request's head."),
    entry("http.body_timeout", duration(MILLISECOND, HOUR), "10s",
        "How long a client may take to send a request's body."),
    entry("http.idle_timeout", duration(MILLISECOND, HOUR), "60s",
        "How long an idle connection is kept."),
    entry("shutdown.grace", duration(Duration::ZERO, HOUR), "20s",
        "How long a stop may take to finish what was begun. What is unfinished then is done after the next start."),
    entry("admin.token_file", Kind::OptionalPath, "",
        "File with the bearer token of the admin API; required when `ops.listen` is not loopback."),
    entry("log.level", Kind::LogFilter, "info",
        "`error`, `warn`, `info`, `debug` or `trace`, also per module (`info,redrive::target=debug`). `RUST_LOG` goes first."),
    entry("log.format", Kind::LogFormat, "auto",
        "`text`, `json`, or `auto`: text on a terminal, JSON otherwise."),
];
