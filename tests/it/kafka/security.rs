//! A Kafka that wants to know who asks, and lets nobody do more than was granted.

use std::{path::Path, process::Output};

use serde_json::Value;

use super::{durability, flags_at, reaches_kafka};
use crate::harness::{
    Redis, Sidecar,
    kafka::{
        Grant, Operation,
        guarded::{self, Certificates, Guarded, USER},
        unique,
    },
    run, set, wait_until,
};

mod changing;

/// A sidecar and what it is told of the broker's demands.
struct Guest<'a> {
    certificates: &'a Certificates,
    broker: &'a str,
    more: Vec<String>,
}

impl<'a> Guest<'a> {
    fn new(certificates: &'a Certificates, broker: &'a str) -> Self {
        Self { certificates, broker, more: Vec::new() }
    }

    fn logs_in(mut self, (name, password): (&str, &str), mechanism: &str) -> Self {
        let file = self.certificates.secret(password);
        self.more.extend([
            format!("--kafka-sasl-mechanism={mechanism}"),
            format!("--kafka-sasl-username={name}"),
            format!("--kafka-sasl-password-file={}", file.display()),
        ]);
        self
    }

    fn trusts(self, authority: &str) -> Self {
        let file = self.certificates.file(authority);
        self.with_file("ca", &file)
    }

    fn shows_itself(self) -> Self {
        let [chain, key] = ["client.crt", "client.key"].map(|name| self.certificates.file(name));
        self.with_file("cert", &chain).with_file("key", &key)
    }

    fn with_file(mut self, name: &str, path: &Path) -> Self {
        self.more.push(format!("--kafka-tls-{name}-file={}", path.display()));
        self
    }

    fn start(&self, redis: &Redis, topic: &str) -> Sidecar {
        self.start_for(&redis.url(), topic)
    }

    fn start_for(&self, url: &str, topic: &str) -> Sidecar {
        let mut flags = flags_at(self.broker, topic);
        flags.extend(self.more.iter().cloned());
        Sidecar::start(url, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// It is ready, and keeps a task on its own disk.
fn spools(sidecar: &Sidecar) {
    assert!(sidecar.is_ready());
    let answer = sidecar.post(&set("kept", "kept", "1"));
    assert_eq!(durability(&answer.json()), "local", "{}", answer.body);
}

#[test]
fn guarded_kafka_is_used_and_what_is_wrong_is_said_in_one_line() {
    let (redis, certificates) = (Redis::start(&[]), Certificates::make());
    let (_kafka, Guarded { sasl, tls, mutual, both }) = guarded::start(&certificates);
    let guest = |broker| Guest::new(&certificates, broker);
    let admin = ("admin", "admin-secret");

    let right = [
        guest(&sasl).logs_in(admin, "PLAIN"),
        guest(&sasl).logs_in(admin, "SCRAM-SHA-256"),
        guest(&sasl).logs_in(admin, "SCRAM-SHA-512"),
        guest(&both).trusts("ca.pem").logs_in(admin, "SCRAM-SHA-512"),
        guest(&tls).trusts("ca.pem"),
        guest(&mutual).trusts("ca.pem").shows_itself(),
    ];
    for (number, guest) in right.iter().enumerate() {
        let sidecar = guest.start(&redis, &unique("guarded"));
        wait_until(&format!("Kafka takes tasks: {:?}", guest.more), || reaches_kafka(&sidecar));
        sidecar.post(&set("made", &format!("made:{number}"), "1"));
        redis.wait_for_value(&format!("made:{number}"), "1");
    }

    let wrong = [
        (guest(&sasl).logs_in(("admin", "wrong-secret"), "PLAIN"), "kafka.sasl"),
        (guest(&sasl).logs_in(("admin", "wrong-secret"), "SCRAM-SHA-512"), "kafka.sasl"),
        (guest(&tls).trusts("other.pem"), "kafka.tls"),
        (guest(&tls), "kafka.tls"),
        (guest(&sasl), "kafka.sasl"),
        (guest(&mutual).trusts("ca.pem"), "kafka.tls"),
    ];
    std::thread::scope(|scope| {
        for (guest, setting) in wrong {
            let redis = &redis;
            scope.spawn(move || is_refused(&guest, redis, setting));
        }
    });
}

/// The one line names the setting, and nothing names the password.
fn is_refused(guest: &Guest<'_>, redis: &Redis, setting: &str) {
    let sidecar = guest.start(redis, &unique("refused"));
    spools(&sidecar);
    let line = sidecar.wait_for_log("Appends to Kafka are failing");
    let said = line["message"].as_str().expect("a line has a message");
    assert!(said.contains(setting) && !said.contains('\n'), "{said}");
    let lines = sidecar.logs();
    assert!(!lines.iter().any(|line| line.contains("wrong-secret") || line.contains("admin-secret")), "{lines:?}");
}

#[test]
fn sidecar_needs_no_more_than_it_is_documented_to_need() {
    const GROUP_READ: &str = "group";
    let (redis, certificates) = (Redis::start(&[]), Certificates::make());
    let (kafka, Guarded { sasl, .. }) = guarded::start(&certificates);
    let guest = || Guest::new(&certificates, &sasl).logs_in(USER, "SCRAM-SHA-256");
    let on_topics = [Operation::Read, Operation::Write, Operation::Create, Operation::DescribeConfigs];
    let grant = |topic: &str, without: Option<Operation>, group: bool| {
        for operation in on_topics.into_iter().filter(|operation| Some(*operation) != without) {
            kafka.allow(USER.0, &Grant::on_topics(topic, operation));
        }
        if group {
            kafka.allow(USER.0, &Grant::on_group(&format!("{topic}-group"), Operation::Read));
        }
    };
    let topic = unique("granted");
    grant(&topic, None, true);
    let sidecar = guest().start(&redis, &topic);
    wait_until("Kafka takes tasks", || reaches_kafka(&sidecar));
    sidecar.post(&set("made", "made", "1"));
    redis.wait_for_value("made", "1");
    let trouble = |line: &String| line.contains("uthoriz") || line.contains("cannot be checked");
    assert!(!sidecar.logs().iter().any(trouble), "{:?}", sidecar.logs());
    drop(sidecar);

    let topic = unique("gateway");
    for operation in [Operation::Write, Operation::Create] {
        kafka.allow(USER.0, &Grant::on_topics(&topic, operation));
    }
    let mut gateway = guest();
    gateway.more.push("--role=gateway".to_owned());
    let gateway = gateway.start(&redis, &topic);
    wait_until("Kafka takes tasks of a gateway", || reaches_kafka(&gateway));
    drop(gateway);

    // What is missing, how the line in the log begins and what mends it, and whether tasks reach Kafka all the same.
    let lacking = [
        (Some(Operation::Write), "Appends to Kafka are failing", "allow Write on topic {}", false),
        (Some(Operation::Create), "Topics cannot be made", "allow Create on topic {}", false),
        (Some(Operation::DescribeConfigs), "Topic ", "allow DescribeConfigs on topic {}", true),
        (Some(Operation::Read), "Reading ", "allow Read on topic {}", true),
        (None, "No part of the group", "allow Read on group {}-group", true),
    ];
    let mut sidecars = Vec::new();
    for (missing, line, remedy, reaches) in lacking {
        let topic = unique("lacking");
        grant(&topic, missing, missing.is_some());
        let sidecar = guest().start(&redis, &topic);
        let what = missing.map_or(GROUP_READ.to_owned(), |missing| format!("{missing:?}"));
        if reaches {
            wait_until(&format!("Kafka takes tasks without {what}"), || reaches_kafka(&sidecar));
        } else {
            spools(&sidecar);
        }
        let remedy = remedy.replace("{}", &topic);
        let is_clear = |said: &str| {
            said.starts_with(line) && said.contains(&remedy) && said.contains(&topic) && !said.contains('\n')
        };
        wait_until(&format!("a line that says to {remedy}"), || {
            sidecar.logged(line).iter().any(|line| line["message"].as_str().is_some_and(is_clear))
        });
        assert!(sidecar.is_ready());
        sidecars.push(sidecar);
    }
    // All but the last had time to try again.
    for sidecar in &sidecars {
        let said = sidecar.logged("A checkpoint of default.normal/0 was not stored");
        assert!(said.len() <= 1, "it is said again and again: {said:?}");
    }
}

/// What a user has been allowed on its topics and its group, how it is run, and what `check` has it allow besides: on the
/// topic that exists, on each that does not, and on the group.
struct Allowed {
    on_topics: &'static [Operation],
    on_group: Option<Operation>,
    flag: Option<&'static str>,
    lacks: [&'static [&'static str]; 3],
}

#[test]
fn all_that_is_not_allowed_is_found_by_one_check_that_does_nothing() {
    use Operation::{Create, Describe, DescribeConfigs, Read, Write};
    const ALL: &[Operation] = &[Write, Read, Create, DescribeConfigs];
    const EVERYTHING: &[&str] = &["Write, Read, Create and DescribeConfigs"];
    const NO_TOPICS: Option<&str> = Some("--kafka-create-topics=false");
    let (redis, certificates) = (Redis::start(&["--appendonly", "yes"]), Certificates::make());
    let (kafka, Guarded { sasl, .. }) = guarded::start(&certificates);
    let guest = Guest::new(&certificates, &sasl).logs_in(USER, "SCRAM-SHA-256");
    let url = format!("--redis-url={}", redis.url());
    let allowed = |on_topics, on_group, flag, lacks| Allowed { on_topics, on_group, flag, lacks };
    let cases = [
        allowed(ALL, Some(Read), None, [&[], &[], &[]]),
        allowed(&[], None, None, [EVERYTHING, EVERYTHING, &["Read"]]),
        allowed(
            &[Describe, Create],
            Some(Describe),
            None,
            [&["Write and Read", "DescribeConfigs"], &["Write, Read and DescribeConfigs"], &["Read"]],
        ),
        allowed(&[Read, Create, DescribeConfigs], Some(Read), None, [&["Write"], &["Write"], &[]]),
        allowed(&[Write, Create, DescribeConfigs], Some(Read), None, [&["Read"], &["Read"], &[]]),
        allowed(&[Write, Read, DescribeConfigs], Some(Read), None, [&[], &["Create"], &[]]),
        allowed(&[Write, Read, Create], Some(Read), None, [&["DescribeConfigs"], &["DescribeConfigs"], &[]]),
        allowed(&[Write, Read, DescribeConfigs], Some(Read), NO_TOPICS, [&[], &[], &[]]),
        allowed(&[DescribeConfigs], Some(Read), NO_TOPICS, [&["Write and Read"], &["Write and Read"], &[]]),
        allowed(&[Write, Create, DescribeConfigs], None, Some("--role=gateway"), [&[], &[], &[]]),
    ];
    for Allowed { on_topics, on_group, flag, lacks } in cases {
        let topic = unique("checked");
        let group = format!("{topic}-group");
        kafka.create_topic(&topic, 1, &[]);
        for operation in on_topics {
            kafka.allow(USER.0, &Grant::on_topics(&topic, *operation));
        }
        if let Some(operation) = on_group {
            kafka.allow(USER.0, &Grant::on_group(&group, operation));
        }
        let missing = ["high", "low", "dlq"].map(|part| format!("{topic}.{part}"));
        let remedy = |resource: String| move |lacking: &&str| format!("allow {lacking} on {resource}");
        let mut expected: Vec<String> = lacks[0].iter().map(remedy(format!("topic {topic}"))).collect();
        for name in &missing {
            expected.extend(lacks[1].iter().map(remedy(format!("topic {name}"))));
        }
        expected.extend(lacks[2].iter().map(remedy(format!("group {group}"))));
        expected.sort_unstable();

        let flags = flags_at(&sasl, &topic);
        let args = flags.iter().chain(&guest.more).chain([&url]).map(String::as_str).chain(flag);
        let args: Vec<&str> = ["check", "--json"].into_iter().chain(args).collect();
        // The broker hears a moment later of what was allowed.
        let mut said = Vec::new();
        let is_told = std::iter::repeat_with(|| to_allow(&run(&args))).take(20).any(|found| {
            said = found;
            said == expected
        });
        assert!(is_told, "{said:#?} instead of {expected:#?}");
        assert!(missing.iter().all(|name| kafka.end_of(name, 0).is_none()), "a topic was made");
        assert_eq!(kafka.end_of(&topic, 0), Some(0), "a record was written");
    }
}

/// What a check says to allow.
fn to_allow(checked: &Output) -> Vec<String> {
    let rows: Value = serde_json::from_slice(&checked.stdout).unwrap_or_else(|error| panic!("{error}: {checked:?}"));
    let rows = rows.as_array().expect("it prints a list");
    let is_forbidden = |row: &Value| row["code"] == "forbidden";
    if rows.iter().any(is_forbidden) {
        assert_eq!(checked.status.code(), Some(2), "{rows:#?}");
    }
    let rows = rows.iter().filter(|row| is_forbidden(row) || row["code"] == "unchecked");
    let mut remedies: Vec<String> = rows.map(|row| row["remedy"].as_str().expect("it is text").to_owned()).collect();
    remedies.sort_unstable();
    remedies
}
