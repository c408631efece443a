use std::io::Write as _;

use super::*;
use crate::task::{Lane, Late, LateAction, Pattern};

fn sources(file: &tempfile::NamedTempFile, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    Sources {
        file: Some(file.path().into()),
        env: env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(name, value)| ((*name).into(), Raw::One((*value).into()))).collect(),
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text.as_bytes()).expect("it can be written");
    file
}

fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    Config::load(&sources(&file(text), env, flags))
}

fn load_ok(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Config {
    load(text, env, flags).expect("the configuration is right").config
}

fn load_err(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> ConfigError {
    load(text, env, flags).expect_err("the configuration is wrong")
}

#[test]
fn built_in_values_are_a_configuration() {
    let config = Config::load(&Sources::default()).expect("the built-in values are right").config;
    assert_eq!(config.listen, Listen::Tcp(([127, 0, 0, 1], 7379).into()));
    assert_eq!(config.ops.listen, ([127, 0, 0, 1], 7380).into());
    assert_eq!(config.data_dir, PathBuf::from("./redrive-data"));
    assert_eq!(config.targets.len(), 1);
    assert_eq!(config.targets[0].url.expose(), "redis://127.0.0.1:6379/0");
    assert_eq!(config.retry.max_retries, 3);
    assert_eq!(config.retry.base, Duration::from_millis(200));
    assert_eq!(config.journal.max_bytes, 1 << 30);
    assert_eq!(config.admission.max_batch_body, 4 << 20);
    assert_eq!(config.admission.lua, Lua::On);
    assert_eq!(config.admin.token_file, None);
}

#[test]
fn stronger_source_wins() {
    let text = "[retry]\nmax_retries = 4\nbase = \"1s\"\ncap = \"2s\"\n";
    let env = [("REDRIVE_RETRY_MAX_RETRIES", "5"), ("REDRIVE_RETRY_BASE", "1500ms"), ("PATH", "/bin")];
    let config = load_ok(text, &env, &[("retry.max_retries", "6")]);
    assert_eq!(config.retry.max_retries, 6);
    assert_eq!(config.retry.base, Duration::from_millis(1500));
    assert_eq!(config.retry.cap, Duration::from_secs(2));
}

#[test]
fn each_value_knows_where_it_came_from() {
    let text = "data_dir = \"/d\"\n\n[http]\nidle_timeout = \"5s\"\n";
    let file = file(text);
    let loaded = Config::load(&sources(&file, &[("REDRIVE_LISTEN", "unix:/s")], &[("log.level", "debug")]))
        .expect("the configuration is right");
    let check = |name: &str, value: &str, origin: &str| {
        let given = loaded.effective.iter().find(|given| given.name == name).expect("every setting has a value");
        assert_eq!((given.shown().as_str(), given.origin.to_string().as_str()), (value, origin));
    };
    check("data_dir", "/d", &format!("{}:1", file.path().display()));
    check("http.idle_timeout", "5s", &format!("{}:4", file.path().display()));
    check("listen", "unix:/s", "REDRIVE_LISTEN");
    check("log.level", "debug", "--log-level");
    check("retry.cap", "30s", "built-in");
    assert_eq!(loaded.effective.len(), SETTINGS.len());
}

#[test]
fn every_problem_is_reported_at_once() {
    let text =
        "lisen = \"127.0.0.1:1\"\n[retry]\nbase = \"1 fortnight\"\nmax_retries = 21\n[mqtt]\nbroker = \"k:1883\"\n";
    let env = [("REDRIVE_REDIS_CONECTIONS", "4"), ("REDRIVE_OPS_LISTEN", "0.0.0.0:7380")];
    let error = load_err(text, &env, &[("journal.max_bytes", "1GB")]);
    let message = error.to_string();
    for part in [
        ":1: `lisen` is not a setting; did you mean `listen`?",
        ":3: `retry.base` is \"1 fortnight\"; expected a duration such as `200ms`, `30s` or `24h`, from 1ms to 1h",
        ":4: `retry.max_retries` is \"21\"; expected a whole number from 0 to 20",
        ":5: `mqtt` is not a setting",
        "REDRIVE_REDIS_CONECTIONS: `REDRIVE_REDIS_CONECTIONS` is not a setting; did you mean `REDRIVE_REDIS_CONNECTIONS`?",
        "--journal-max-bytes: `journal.max_bytes` is \"1GB\"; expected a size such as `64KiB` or `1GiB`",
        "set `admin.token_file` to a file that holds one (`ops.listen` is from REDRIVE_OPS_LISTEN)",
    ] {
        assert!(message.contains(part), "no {part:?} in:\n{message}");
    }
    assert_eq!(error.problems().len(), 7, "{message}");
}

#[test]
fn wrong_value_is_not_also_reported_as_a_contradiction() {
    let error = load_err("[retry]\nbase = \"90s\"\ncap = \"one\"\n", &[], &[]);
    assert_eq!(error.problems().len(), 1, "{error}");
}

#[test]
fn missing_file_is_a_problem() {
    let sources = Sources { file: Some("/nowhere/redrive.toml".into()), ..Sources::default() };
    let error = Config::load(&sources).expect_err("there is no such file");
    assert!(error.to_string().contains("/nowhere/redrive.toml: the file cannot be read"));
}

#[test]
fn lists_are_arrays_or_have_commas() {
    let from_file = load_ok("[admission]\nkey_prefixes = [\"a,b:\", \"c:\"]\n", &[], &[]);
    assert_eq!(from_file.admission.key_prefixes, ["a,b:", "c:"]);
    let from_env = load_ok("", &[("REDRIVE_ADMISSION_KEY_PREFIXES", "a:, b:")], &[]);
    assert_eq!(from_env.admission.key_prefixes, ["a:", "b:"]);
    load_err("[admission]\nkey_prefixes = [\"\"]\n", &[], &[]);
    load_err("listen = [\"127.0.0.1:1\"]\n", &[], &[]);
}

#[test]
fn numbers_and_flags_need_no_quotes_in_the_file() {
    let text = "[redis]\nconnections = 8\n[journal]\nallow_volatile = true\nmax_bytes = 16_777_216\n[admission]\nlua = false\n";
    let config = load_ok(text, &[], &[]);
    assert_eq!(config.redis.connections, 8);
    assert!(config.journal.allow_volatile);
    assert_eq!(config.journal.max_bytes, 16 << 20);
    assert_eq!(config.admission.lua, Lua::Off);
}

#[test]
fn identities_of_targets_come_from_every_source() {
    let text = "[targets.a]\nurl = \"redis://a:6379\"\nidentity = \"file\"\n[targets.b]\nurl = \"redis://b:6379\"\n";
    let flags = [("targets.default.identity", "flag")];
    let config = load_ok(text, &[("REDRIVE_TARGETS_B_IDENTITY", "env")], &flags);
    let identities: Vec<_> =
        config.targets.iter().map(|target| (target.name.as_str(), target.identity.as_deref())).collect();
    assert_eq!(identities, [("default", Some("flag")), ("a", Some("file")), ("b", Some("env"))]);
    let error = load_err("[targets.c]\nidentity = \"x\"\n", &[], &[]);
    assert!(error.to_string().contains("`targets.c.url` is missing"), "{error}");
}

#[test]
fn targets_come_from_every_source() {
    let text = "[targets.sessions]\nurl = \"redis://s:6379\"\n[targets.b-2]\nurl = \"redis://b:6379\"\n";
    let env = [("REDRIVE_TARGETS_CACHE_URL", "redis://:pw@c:6379"), ("REDRIVE_TARGETS_SESSIONS_URL", "redis://t:6379")];
    let config = load_ok(text, &env, &[("targets.flag.url", "redis://f:6379")]);
    let targets: Vec<_> = config.targets.iter().map(|target| (target.name.as_str(), target.url.expose())).collect();
    assert_eq!(
        targets,
        [
            ("default", "redis://127.0.0.1:6379/0"),
            ("b-2", "redis://b:6379"),
            ("cache", "redis://:pw@c:6379"),
            ("flag", "redis://f:6379"),
            ("sessions", "redis://t:6379"),
        ]
    );
    load_err("[targets.\"a b\"]\nurl = \"redis://s:6379\"\n", &[], &[]);
    load_err("[targets.default]\nurl = \"redis://s:6379\"\n", &[], &[]);
    load_err("[targets.a]\nurl = \"redis://s:6379\"\npassword = \"x\"\n", &[], &[]);
}

#[test]
fn rules_are_tables_of_the_file() {
    let text = "\
[[rules]]
key = \"cache:*\"
late = { after = \"30s\", do = \"invalidate\" }

[[rules]]
source = \"reports\"
command = \"z*\"
max_retries = 5
priority = \"low\"
";
    let file = file(text);
    let loaded = Config::load(&sources(&file, &[], &[])).expect("the configuration is right");
    let late = Late { after: Duration::from_secs(30), action: LateAction::Invalidate };
    let pattern = |text: &str| Some(Pattern::new(text));
    let expected = [
        DefaultRule { key: pattern("cache:*"), late: Some(late), ..DefaultRule::default() },
        DefaultRule {
            source: pattern("reports"),
            command: pattern("Z*"),
            max_retries: Some(5),
            lane: Some(Lane::Low),
            ..DefaultRule::default()
        },
    ];
    assert_eq!(loaded.config.rules, expected);
    let shown: Vec<_> = loaded.effective[SETTINGS.len()..]
        .iter()
        .map(|given| (given.name.as_str(), given.shown(), given.origin.to_string()))
        .collect();
    let path = file.path().display();
    assert_eq!(
        shown,
        [
            (
                "rules[1]",
                r#"{ key = "cache:*", late = { after = "30s", do = "invalidate" } }"#.to_owned(),
                format!("{path}:1")
            ),
            (
                "rules[2]",
                r#"{ source = "reports", command = "Z*", max_retries = 5, priority = "low" }"#.to_owned(),
                format!("{path}:5")
            ),
        ]
    );
}

#[test]
fn every_problem_of_a_rule_is_reported() {
    let text = "\
[[rules]]
key = \"\"
late = { after = \"30\", do = \"explode\", unless = 1 }
max_retries = 21
priority = \"urgent\"
sorce = \"a\"

[[rules]]
late = { do = \"drop\" }

[[rules]]
key = \"k\"

[[rules]]
late = 5
";
    let error = load_err(text, &[], &[]);
    let message = error.to_string();
    for part in [
        ":2: `rules[1].key` is \"\"; expected a text, in which `*` stands for anything",
        ":3: `rules[1].late.after` is \"30\"; expected a duration such as `30s`, at most 36500d",
        ":3: `rules[1].late.do` is \"explode\"; expected `replay`, `invalidate` or `drop`",
        ":3: `rules[1].late.unless` is not a field; expected `after` or `do`",
        ":4: `rules[1].max_retries` is \"21\"; expected a whole number from 0 to 20",
        ":5: `rules[1].priority` is \"urgent\"; expected `high`, `normal` or `low`",
        ":6: `rules[1].sorce` is not a field; expected `source`, `key`, ",
        ":9: `rules[2].late` is incomplete; expected a table such as `{ after = \"30s\", do = \"invalidate\" }`",
        ":11: `rules[3]` is without effect; expected one of `late`, `max_retries` and `priority` in it",
        ":15: `rules[4].late` is \"5\"; expected a table such as",
    ] {
        assert!(message.contains(part), "no {part:?} in:\n{message}");
    }
    assert_eq!(error.problems().len(), 10, "{message}");
    load_err("rules = 5\n", &[], &[]);
    load_err("rules = [5]\n", &[], &[]);
    load_err("[rules]\nkey = \"k\"\n", &[], &[]);
    load_err("", &[("REDRIVE_RULES", "5")], &[]);
    assert!(load_ok("rules = []\n", &[], &[]).rules.is_empty());
}

#[test]
fn markers_are_kept_for_an_hour_at_least() {
    let config = load_ok("", &[], &[]);
    assert_eq!(config.once.marker_ttl, Duration::from_secs(24 * 60 * 60));
    assert_eq!(config.version.marker_ttl, Duration::from_secs(7 * 24 * 60 * 60));
    load_ok("", &[("REDRIVE_ONCE_MARKER_TTL", "1h"), ("REDRIVE_VERSION_MARKER_TTL", "60m")], &[]);
    load_err("", &[("REDRIVE_ONCE_MARKER_TTL", "59m")], &[]);
    load_err("", &[("REDRIVE_VERSION_MARKER_TTL", "59m")], &[]);
}

#[test]
fn passwords_are_never_shown() {
    let text = "[redis]\nurl = \"redis://app:hunter2@h:6379\"\n[targets.b]\nurl = \"redis://:hunter2@b\"\n";
    let loaded = load(text, &[], &[]).expect("the configuration is right");
    let shown: String = loaded.effective.iter().map(Given::shown).collect();
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
    let error = load_err("[redis]\nurl = \"app:hunter2@h\"\n", &[("REDRIVE_TARGETS_B_URL", "hunter2")], &[]);
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn remote_data_plane_has_to_be_allowed() {
    load_err("", &[("REDRIVE_LISTEN", "0.0.0.0:7379")], &[]);
    load_ok("", &[("REDRIVE_LISTEN", "0.0.0.0:7379"), ("REDRIVE_ALLOW_REMOTE", "true")], &[]);
    load_ok("", &[("REDRIVE_LISTEN", "unix:/run/redrive.sock")], &[]);
}

#[test]
fn token_file_opens_the_ops_plane() {
    let config = load_ok("", &[("REDRIVE_OPS_LISTEN", "0.0.0.0:7380"), ("REDRIVE_ADMIN_TOKEN_FILE", "/t")], &[]);
    assert!(matches!(config.admin.read_token(), Err(TokenError::Unreadable { .. })));
    let token = file("0123456789abcdef\n");
    let admin = Admin { token_file: Some(token.path().into()) };
    let token = admin.read_token().expect("the token can be read").expect("there is one");
    assert_eq!(token.expose(), "0123456789abcdef");
}

#[test]
fn sizes_of_bodies_contain_each_other() {
    let error = load_err("[admission]\nmax_body = \"8MiB\"\n", &[], &[]);
    assert!(error.to_string().contains("`admission.max_body` (8MiB) is larger than `admission.max_batch_body` (4MiB)"));
}

#[test]
fn no_two_settings_share_a_spelling() {
    let mut spellings = HashSet::new();
    for setting in SETTINGS {
        assert!(spellings.insert(setting.env_name()), "{}", setting.name);
        assert!(spellings.insert(setting.flag_name()), "{}", setting.name);
    }
}

#[test]
fn documentation_lists_every_setting() {
    let documented = include_str!("../../docs/settings.md");
    let table: String = SETTINGS.iter().map(row).collect();
    assert!(documented.contains(&table), "docs/settings.md should have this table:\n\n{table}");
}

fn row(setting: &Setting) -> String {
    let default = if setting.default.is_empty() { "none".into() } else { format!("`{}`", setting.default) };
    format!("| `{}` | {default} | {} |\n", setting.name, setting.help)
}

#[test]
fn kafka_is_there_where_brokers_are() {
    assert_eq!(load_ok("[kafka]\ntopic = \"t\"\n", &[], &[]).kafka, None);
    let config = load_ok("", &[("REDRIVE_KAFKA_BROKERS", "a:9092, b:9093")], &[("kafka.durability", "local")]);
    let kafka = config.kafka.expect("brokers are given");
    assert_eq!(kafka.brokers, ["a:9092", "b:9093"]);
    assert_eq!((&*kafka.topic, &*kafka.group), ("redis-retry-queue", "redis-retry-consumer-group"));
    assert!(kafka.local_first && kafka.instance_id.is_none() && kafka.tls.is_none() && kafka.sasl.is_none());
    assert_eq!((kafka.partitions, kafka.replication, kafka.min_insync), (3, 3, 2));
    let secured = "[kafka]\nbrokers = [\"a:9092\"]\n\n[kafka.tls]\nca_file = \"/ca\"\n\n\
                   [kafka.sasl]\nmechanism = \"SCRAM-SHA-512\"\nusername = \"u\"\npassword_file = \"/p\"\n";
    let kafka = load_ok(secured, &[], &[]).kafka.expect("brokers are given");
    assert_eq!(kafka.tls.expect("a file says so").ca_file, Some("/ca".into()));
    assert_eq!(kafka.sasl.expect("a mechanism is given").password_file, PathBuf::from("/p"));
}

#[test]
fn settings_of_kafka_agree_with_each_other() {
    let check = |given: &[(&str, &str)], expected: &str| {
        let flags: Vec<_> = [("kafka.brokers", "kafka:9092")].iter().chain(given).copied().collect();
        let error = load_err("", &[], &flags).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[("kafka.brokers", "kafka")], "not `HOST:PORT`");
    check(&[("kafka.brokers", "kafka:0")], "not `HOST:PORT`");
    check(&[("kafka.heartbeat_interval", "4s")], "more than a third of `kafka.session_timeout` (10s)");
    check(&[("kafka.min_insync", "3")], "not below `kafka.replication` (3)");
    check(&[("kafka.tls.cert_file", "/c")], "go together");
    check(&[("kafka.sasl.username", "u")], "go together");
    check(&[("kafka.sasl.mechanism", "PLAIN"), ("kafka.sasl.username", "u")], "go together");
    check(&[("kafka.sasl.mechanism", "GSSAPI")], "one of `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`");
    check(&[("kafka.topic", "a b")], "letters, digits, dots, dashes and underscores");
    let error = load_err("role = \"gateway\"\n", &[], &[]).to_string();
    assert!(error.contains("set `kafka.brokers`"), "{error}");
}
