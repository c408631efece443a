//! A Kafka that wants to know who asks, and lets nobody do more than was granted.

use std::path::Path;

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
        (Some(Operation::Create), "Topics cannot be made", "allow Create on it", false),
        (Some(Operation::DescribeConfigs), "Topic ", "allow DescribeConfigs on it", true),
        (Some(Operation::Read), "Reading ", "allow Read on it", true),
        (None, "No part of the group", "allow Read on ", true),
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

    // One who may nothing is told by `check` which permission is missing first.
    let topic = unique("nothing");
    kafka.create_topic(&topic, 1, &[]);
    let mut flags = flags_at(&sasl, &topic);
    flags.extend(guest().more);
    flags.push(format!("--redis-url={}", redis.url()));
    let checked = run(&["check"].into_iter().chain(flags.iter().map(String::as_str)).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(2), "{said}");
    assert!(said.contains("forbidden") && said.contains("allow Describe on topic "), "{said}");
}
