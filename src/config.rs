//! The configuration: built-in values, overridden by a TOML file, by the environment, by flags, in this order.
//!
//! `setting` is the table of what exists; `source` reads what was given; here it becomes a [`Config`], a plain struct
//! of plain values, grouped by the part that uses them. A configuration that loads is right as a whole: every value
//! is of its kind, within its bounds, and they agree with each other. Otherwise every problem is reported at once.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use crate::{task::DefaultRule, telemetry};

mod kind;
mod problem;
mod rule;
mod secret;
mod setting;
mod source;

pub use kind::{Kind, Raw, parse_duration, parse_size, show_duration, show_size};
pub use problem::{ConfigError, Problem};
pub use secret::{RedisUrl, Token, masked_url};
pub use setting::{SETTINGS, Setting};
pub use source::{CONFIG_ENV, Given, Origin, Sources, identity_setting, target_setting};

use kind::Value;
use rule::{GivenRule, show_rule};
use setting::setting;
use source::{identified_target, of_target, target_name};

/// What is configured, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: Listen,
    pub allowed_hosts: Vec<String>,
    pub ops: Ops,
    pub data_dir: PathBuf,
    pub role: Role,
    /// What is common to all targets.
    pub redis: Redis,
    /// The target `default` first, then the others by name.
    pub targets: Vec<Target>,
    pub retry: Retry,
    pub once: Once,
    pub version: VersionFence,
    /// What is said of tasks that do not say it themselves. The first that matches decides.
    pub rules: Vec<DefaultRule>,
    pub journal: Journal,
    /// None: tasks are stored in the journal.
    pub kafka: Option<Kafka>,
    pub admission: Admission,
    pub consumer: Consumer,
    pub http: Http,
    pub shutdown: Shutdown,
    pub admin: Admin,
    pub log: Log,
}

/// Where the data plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    All,
    /// Takes tasks, and executes none.
    Gateway,
    /// Executes tasks, and takes none.
    Worker,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ops {
    pub listen: SocketAddr,
    pub allowed_hosts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    pub own_prefix: String,
    pub connections: usize,
    /// Units per second and target; 0: no limit.
    pub max_rate: u32,
    /// Whether what is sent follows what a target takes.
    pub adaptive: bool,
    pub connect_timeout: Duration,
    /// Without what is added for the size of what was sent.
    pub response_timeout: Duration,
    pub probe_timeout: Duration,
}

/// A named Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Letters, digits, `-` and `_`, at most 64 of them.
    pub name: String,
    pub url: RedisUrl,
    /// What sidecars of a group compare in place of the server's address.
    pub identity: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Executions after the first one.
    pub max_retries: u32,
    pub base: Duration,
    pub cap: Duration,
    pub outage_probe_cap: Duration,
}

/// How what must run once is kept from running twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// How long a marker is kept after its task was accepted; a repetition is recognised as long.
    pub marker_ttl: Duration,
}

/// How versions of a key are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFence {
    /// How long the last version of a key is remembered after it was applied.
    pub marker_ttl: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub max_bytes: u64,
    pub min_free_bytes: u64,
    pub allow_volatile: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// `host:port` each.
    pub brokers: Vec<String>,
    pub topic: String,
    pub group: String,
    pub instance_id: Option<String>,
    /// Every task is stored on local disk first, and forwarded.
    pub local_first: bool,
    pub produce_timeout: Duration,
    pub create_topics: bool,
    pub partitions: i32,
    pub replication: i16,
    pub min_insync: i16,
    pub retention: Duration,
    pub session_timeout: Duration,
    pub heartbeat_interval: Duration,
    pub rebalance_timeout: Duration,
    pub metadata_refresh: Duration,
    /// `hold`, `earliest` or `latest`.
    pub no_checkpoint: String,
    pub tls: Option<KafkaTls>,
    pub sasl: Option<KafkaSasl>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaTls {
    pub ca_file: Option<PathBuf>,
    /// Both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaSasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    pub username: String,
    pub password_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Bytes of a single task's body.
    pub max_body: usize,
    pub max_args: usize,
    pub max_arg_bytes: usize,
    /// Tasks of a batch.
    pub max_batch: usize,
    /// Bytes of a batch's body.
    pub max_batch_body: usize,
    pub max_inflight_bytes: usize,
    /// Empty: every key is allowed.
    pub key_prefixes: Vec<String>,
    pub lua: Lua,
}

/// Which scripts are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lua {
    On,
    Off,
    /// Those with one of these SHA-1s, in lower case.
    Only(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub memory_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Per listener.
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    pub grace: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Directives of a log filter.
    pub level: String,
    pub format: telemetry::Format,
}

/// A configuration, and what it was made from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The value of every setting that is in effect, in the order of the table; then targets, then rules.
    pub effective: Vec<Given>,
}

impl Config {
    /// Reads and checks everything; the error has all that is wrong.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let gathered = sources.gather();
        let mut reading = Reading::of_built_in();
        reading.problems = gathered.problems;
        gathered.given.into_iter().for_each(|given| reading.take(given));
        let config =
            Config { rules: gathered.rules.iter().map(|given| given.rule.clone()).collect(), ..reading.config() };
        reading.check_together(&config);
        ConfigError::check(reading.problems)?;
        let by_table = |given: &Given| SETTINGS.iter().position(|s| s.name == given.name).unwrap_or(SETTINGS.len());
        let mut effective: Vec<Given> = reading.taken.into_values().map(|(given, _)| given).collect();
        effective.sort_by_key(by_table);
        effective.extend(gathered.rules.iter().enumerate().map(|(index, rule)| Given::of_rule(index + 1, rule)));
        Ok(Loaded { config, effective })
    }
}

impl Given {
    fn of_rule(number: usize, given: &GivenRule) -> Self {
        let (name, raw) = (format!("rules[{number}]"), Raw::One(show_rule(&given.rule)));
        Self { name, raw, origin: given.origin.clone() }
    }

    /// The value as it may be shown: without passwords.
    pub fn shown(&self) -> String {
        let is_rule = self.name.starts_with("rules[");
        if !is_rule && kind_of(&self.name) == Kind::RedisUrl {
            return masked_url(&self.raw.to_string());
        }
        self.raw.to_string()
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.name, self.shown(), self.origin)
    }
}

impl Admin {
    /// Reads the token, if one is configured.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file, never what is in it.
    pub fn read_token(&self) -> Result<Option<Token>, TokenError> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).map_err(|source| TokenError::Unreadable { path: path.clone(), source })?;
        Token::parse(&text).map(Some).ok_or_else(|| TokenError::NotAToken { path: path.clone() })
    }
}

/// Why a token file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token file {} cannot be read", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the token file {} does not hold one word of at least 16 printable characters", path.display())]
    NotAToken { path: PathBuf },
}

fn kind_of(name: &str) -> Kind {
    match (target_name(name), identified_target(name)) {
        (Some(_), _) => Kind::RedisUrl,
        (None, Some(_)) => Kind::OptionalText,
        (None, None) => setting(name).kind,
    }
}

/// The values read so far: the strongest right one of each setting, and the problems of all.
struct Reading {
    taken: BTreeMap<String, (Given, Value)>,
    /// Settings with a wrong value. Their built-in value stands in, and they are left out of checks with others.
    wrong: HashSet<String>,
    problems: Vec<Problem>,
}

impl Reading {
    fn of_built_in() -> Self {
        let mut reading = Self { taken: BTreeMap::new(), wrong: HashSet::new(), problems: Vec::new() };
        for setting in SETTINGS {
            let raw = Raw::One(setting.default.into());
            reading.take(Given { name: setting.name.into(), raw, origin: Origin::BuiltIn });
        }
        reading
    }

    fn take(&mut self, given: Given) {
        if let Some(target) = of_target(&given.name)
            && let Err(expected) = check_target_name(target)
        {
            return self.refuse(&given, format!("the name {target}"), expected);
        }
        match kind_of(&given.name).parse(&given.raw) {
            Ok(value) => {
                self.taken.insert(given.name.clone(), (given, value));
            }
            Err(expected) if kind_of(&given.name) == Kind::RedisUrl => {
                self.refuse(&given, "not such a URL (hidden)".into(), expected);
            }
            Err(expected) => self.refuse(&given, format!("\"{}\"", given.raw.to_string().escape_debug()), expected),
        }
    }

    fn refuse(&mut self, given: &Given, shown: String, expected: String) {
        self.wrong.insert(given.name.clone());
        let (origin, name) = (given.origin.clone(), given.name.clone());
        self.problems.push(Problem::Invalid { origin, name, given: shown, expected });
    }

    fn config(&self) -> Config {
        Config {
            listen: self.listen("listen"),
            allowed_hosts: self.list("allowed_hosts"),
            ops: Ops { listen: self.address("ops.listen"), allowed_hosts: self.list("ops.allowed_hosts") },
            data_dir: self.path("data_dir"),
            role: match &*self.text("role") {
                "gateway" => Role::Gateway,
                "worker" => Role::Worker,
                _ => Role::All,
            },
            redis: Redis {
                own_prefix: self.text("redis.own_prefix"),
                connections: self.number("redis.connections"),
                max_rate: self.number("redis.max_rate"),
                adaptive: self.flag("redis.adaptive"),
                connect_timeout: self.duration("redis.connect_timeout"),
                response_timeout: self.duration("redis.response_timeout"),
                probe_timeout: self.duration("redis.probe_timeout"),
            },
            targets: self.targets(),
            retry: Retry {
                max_retries: self.number("retry.max_retries"),
                base: self.duration("retry.base"),
                cap: self.duration("retry.cap"),
                outage_probe_cap: self.duration("retry.outage_probe_cap"),
            },
            once: Once { marker_ttl: self.duration("once.marker_ttl") },
            version: VersionFence { marker_ttl: self.duration("version.marker_ttl") },
            rules: Vec::new(),
            journal: Journal {
                max_bytes: self.number("journal.max_bytes"),
                min_free_bytes: self.number("journal.min_free_bytes"),
                allow_volatile: self.flag("journal.allow_volatile"),
            },
            kafka: self.kafka(),
            admission: Admission {
                max_body: self.number("admission.max_body"),
                max_args: self.number("admission.max_args"),
                max_arg_bytes: self.number("admission.max_arg_bytes"),
                max_batch: self.number("admission.max_batch"),
                max_batch_body: self.number("admission.max_batch_body"),
                max_inflight_bytes: self.number("admission.max_inflight_bytes"),
                key_prefixes: self.list("admission.key_prefixes"),
                lua: self.lua("admission.lua"),
            },
            consumer: Consumer { memory_bytes: self.number("consumer.memory_bytes") },
            http: Http {
                max_connections: self.number("http.max_connections"),
                header_timeout: self.duration("http.header_timeout"),
                body_timeout: self.duration("http.body_timeout"),
                idle_timeout: self.duration("http.idle_timeout"),
            },
            shutdown: Shutdown { grace: self.duration("shutdown.grace") },
            admin: Admin { token_file: self.optional_path("admin.token_file") },
            log: Log { level: self.text("log.level"), format: self.log_format("log.format") },
        }
    }

    fn kafka(&self) -> Option<Kafka> {
        let brokers = self.list("kafka.brokers");
        if brokers.is_empty() {
            return None;
        }
        let (ca_file, cert_file, key_file) = (
            self.optional_path("kafka.tls.ca_file"),
            self.optional_path("kafka.tls.cert_file"),
            self.optional_path("kafka.tls.key_file"),
        );
        let has_tls = self.flag("kafka.tls.enabled") || ca_file.is_some() || cert_file.is_some() || key_file.is_some();
        let mechanism = self.text("kafka.sasl.mechanism");
        Some(Kafka {
            brokers,
            topic: self.text("kafka.topic"),
            group: self.text("kafka.group"),
            instance_id: Some(self.text("kafka.instance_id")).filter(|id| !id.is_empty()),
            local_first: self.text("kafka.durability") == "local",
            produce_timeout: self.duration("kafka.produce_timeout"),
            create_topics: self.flag("kafka.create_topics"),
            partitions: self.number("kafka.partitions"),
            replication: self.number("kafka.replication"),
            min_insync: self.number("kafka.min_insync"),
            retention: self.duration("kafka.retention"),
            session_timeout: self.duration("kafka.session_timeout"),
            heartbeat_interval: self.duration("kafka.heartbeat_interval"),
            rebalance_timeout: self.duration("kafka.rebalance_timeout"),
            metadata_refresh: self.duration("kafka.metadata_refresh"),
            no_checkpoint: self.text("kafka.no_checkpoint"),
            tls: has_tls.then_some(KafkaTls { ca_file, cert_file, key_file }),
            sasl: (!mechanism.is_empty()).then(|| KafkaSasl {
                mechanism,
                username: self.text("kafka.sasl.username"),
                password_file: self.optional_path("kafka.sasl.password_file").unwrap_or_default(),
            }),
        })
    }

    /// What each value alone cannot say.
    fn check_together(&mut self, config: &Config) {
        let admission = &config.admission;
        let (base, cap) = (show_duration(config.retry.base), show_duration(config.retry.cap));
        let allow_remote = self.flag("allow_remote");
        let remote = matches!(config.listen, Listen::Tcp(address) if !address.ip().is_loopback());
        self.demand(!remote || allow_remote, &["listen", "allow_remote"], || {
            "`listen` is not a loopback address, so that whoever reaches it can write to Redis through it: use \
             127.0.0.1, `unix:/path`, or set `allow_remote = true` where a network policy guards it"
                .into()
        });
        let open = !config.ops.listen.ip().is_loopback() && config.admin.token_file.is_none();
        self.demand(!open, &["ops.listen", "admin.token_file"], || {
            "`ops.listen` is not a loopback address, so `/admin` needs a bearer token: set `admin.token_file` to a \
             file that holds one"
                .into()
        });
        self.demand(config.retry.base <= config.retry.cap, &["retry.base", "retry.cap"], || {
            format!("`retry.base` ({base}) is longer than `retry.cap` ({cap})")
        });
        self.demand_order(
            ("admission.max_arg_bytes", admission.max_arg_bytes),
            ("admission.max_body", admission.max_body),
        );
        self.demand_order(
            ("admission.max_body", admission.max_body),
            ("admission.max_batch_body", admission.max_batch_body),
        );
        self.demand_order(
            ("admission.max_batch_body", admission.max_batch_body),
            ("admission.max_inflight_bytes", admission.max_inflight_bytes),
        );
        self.check_kafka(config);
        let identified = self.taken.iter().filter_map(|(name, (given, _))| Some((identified_target(name)?, given)));
        let strays = identified.filter(|(name, _)| config.targets.iter().all(|target| target.name != *name));
        let missing = |(name, given): (&str, &Given)| Problem::Invalid {
            origin: given.origin.clone(),
            name: given.name.clone(),
            given: format!("the identity of `{name}`"),
            expected: format!("one of a target: `{}` is missing", target_setting(name)),
        };
        let strays: Vec<Problem> = strays.map(missing).collect();
        self.problems.extend(strays);
        self.demand(!self.taken.contains_key("targets.default.url"), &["targets.default.url"], || {
            "the target `default` is `redis.url`; give this one another name".into()
        });
    }

    fn check_kafka(&mut self, config: &Config) {
        self.demand(config.role == Role::All || config.kafka.is_some(), &["role", "kafka.brokers"], || {
            "a gateway or a worker alone needs Kafka between them: set `kafka.brokers`, or leave `role` at `all`".into()
        });
        let Some(kafka) = &config.kafka else { return };
        let is_address = |broker: &String| {
            broker.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains(':') && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        self.demand(kafka.brokers.iter().all(is_address), &["kafka.brokers"], || {
            "`kafka.brokers` has an entry that is not `HOST:PORT`, such as `kafka:9092`".into()
        });
        let (beat, session) = (kafka.heartbeat_interval, kafka.session_timeout);
        self.demand(beat * 3 <= session, &["kafka.heartbeat_interval", "kafka.session_timeout"], || {
            let (beat, session) = (show_duration(beat), show_duration(session));
            format!("`kafka.heartbeat_interval` ({beat}) is more than a third of `kafka.session_timeout` ({session})")
        });
        let min = kafka.min_insync;
        self.demand(min == 1 || min < kafka.replication, &["kafka.min_insync", "kafka.replication"], || {
            let replication = kafka.replication;
            format!(
                "`kafka.min_insync` ({min}) is not below `kafka.replication` ({replication}): one broker less, and \
                 nothing could be stored"
            )
        });
        if let Some(tls) = &kafka.tls {
            let names = ["kafka.tls.cert_file", "kafka.tls.key_file"];
            self.demand(tls.cert_file.is_some() == tls.key_file.is_some(), &names, || {
                "`kafka.tls.cert_file` and `kafka.tls.key_file` go together".into()
            });
        }
        let names = ["kafka.sasl.mechanism", "kafka.sasl.username", "kafka.sasl.password_file"];
        let is_whole = match &kafka.sasl {
            Some(sasl) => !sasl.username.is_empty() && sasl.password_file != PathBuf::new(),
            None => self.text(names[1]).is_empty() && self.optional_path(names[2]).is_none(),
        };
        self.demand(is_whole, &names, || {
            "`kafka.sasl.mechanism`, `kafka.sasl.username` and `kafka.sasl.password_file` go together".into()
        });
    }

    fn demand_order(&mut self, smaller: (&'static str, usize), larger: (&'static str, usize)) {
        self.demand(smaller.1 <= larger.1, &[smaller.0, larger.0], || {
            let show = |bytes: usize| show_size(u64::try_from(bytes).expect("sizes were read as u64"));
            format!("`{}` ({}) is larger than `{}` ({})", smaller.0, show(smaller.1), larger.0, show(larger.1))
        });
    }

    /// Reports that settings contradict each other, unless one of them is wrong by itself. The one that was given by
    /// the strongest source is named with it: it is what was most likely changed.
    fn demand(&mut self, right: bool, names: &[&'static str], message: impl FnOnce() -> String) {
        if right || names.iter().any(|name| self.wrong.contains(*name)) {
            return;
        }
        let strength = |origin: &Origin| match origin {
            Origin::BuiltIn => 0,
            Origin::File { .. } => 1,
            Origin::Env(_) => 2,
            Origin::Flag(_) => 3,
        };
        let origins = names.iter().filter_map(|name| Some((*name, self.taken.get(*name)?.0.origin.clone())));
        // Of several equally strong ones the first: `rev` because `max_by_key` takes the last.
        let (name, origin) = origins
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .max_by_key(|(_, origin)| strength(origin))
            .expect("at least one of the settings has a value, or there were nothing to contradict");
        self.problems.push(Problem::Contradiction { name, origin, message: message() });
    }

    fn targets(&self) -> Vec<Target> {
        let others = self.taken.iter().filter_map(|(name, (_, value))| match (target_name(name), value) {
            (Some(target), Value::RedisUrl(url)) => Some((target, url.clone())),
            _ => None,
        });
        let target = |(name, url): (&str, RedisUrl)| {
            let identity = match self.taken.get(&identity_setting(name)) {
                Some((_, Value::Text(identity))) => Some(identity.clone()).filter(|identity| !identity.is_empty()),
                _ => None,
            };
            Target { name: name.into(), url, identity }
        };
        std::iter::once(("default", self.redis_url("redis.url"))).chain(others).map(target).collect()
    }

    fn number<N: TryFrom<u64>>(&self, name: &str) -> N {
        let number = match self.value(name) {
            Value::Count(number) | Value::Size(number) => N::try_from(*number).ok(),
            _ => None,
        };
        number.expect("the table says that it is a number, and its bounds fit the type")
    }
}

/// One typed look into the values per kind. The table says of which kind a setting is; the test that loads the
/// built-in values finds a name that is asked for as another one.
macro_rules! typed {
    ($($method:ident: $variant:ident => $type:ty),* $(,)?) => {
        impl Reading {
            $(fn $method(&self, name: &str) -> $type {
                match self.value(name) {
                    Value::$variant(value) => value.clone(),
                    _ => unreachable!("the table says that {name} is of this kind"),
                }
            })*

            fn value(&self, name: &str) -> &Value {
                &self.taken.get(name).expect("every setting has a built-in value").1
            }
        }
    };
}

typed! {
    listen: Listen => Listen,
    address: Address => SocketAddr,
    path: Path => PathBuf,
    optional_path: OptionalPath => Option<PathBuf>,
    flag: Flag => bool,
    duration: Duration => Duration,
    list: List => Vec<String>,
    redis_url: RedisUrl => RedisUrl,
    text: Text => String,
    lua: Lua => Lua,
    log_format: LogFormat => telemetry::Format,
}

fn check_target_name(name: &str) -> Result<(), String> {
    let right = (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if right { Ok(()) } else { Err("1 to 64 letters, digits, `-` and `_` as a target's name".into()) }
}

#[cfg(test)]
mod tests;
