//! A real cluster of one broker, asked and set up.

use super::*;
use crate::log::kafka::testing::{Kafka, unique};

fn admin(config: Config) -> Admin {
    Admin::new(Arc::new(config), Security::default())
}

fn config(kafka: &Kafka) -> Config {
    // The first one is down.
    Config { brokers: vec!["127.0.0.1:1".into(), kafka.address()], group: unique("admin").into(), ..Config::default() }
}

fn codes(findings: &[Finding], topic: &str) -> Vec<FindingCode> {
    findings.iter().filter(|finding| finding.topic == topic).map(|finding| finding.code).collect()
}

#[tokio::test]
async fn topics_are_made_as_they_are_needed() {
    let kafka = Kafka::shared();
    let mut admin = admin(config(kafka));
    let [tasks, table] = ["tasks", "table"].map(|name| Arc::<str>::from(unique(name)));
    let topics = [
        NewTopic { name: tasks.clone(), kind: TopicKind::Tasks, partitions: 3 },
        NewTopic { name: table.clone(), kind: TopicKind::Table, partitions: 1 },
    ];
    assert_eq!(admin.create_topics(&topics).await, Ok(1), "there is one broker");
    assert_eq!(admin.create_topics(&topics).await, Ok(1), "they exist");
    let names = [tasks.clone(), table.clone(), unique("absent").into()];
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let cluster = loop {
        let cluster = admin.cluster(&names).await.expect("it answers");
        if cluster.topics.len() == 2 {
            break cluster;
        }
        assert!(std::time::Instant::now() < deadline, "{cluster:?}");
    };
    assert_eq!(cluster.brokers.len(), 1);
    assert_eq!((cluster.topics[&*tasks].len(), cluster.topics[&*table].len()), (3, 1));
    // All that is wrong with them is that there is one broker.
    let findings = admin.inspect(&[(tasks.clone(), TopicKind::Tasks), (table.clone(), TopicKind::Table)]).await;
    let findings = findings.expect("it answers").findings;
    for topic in [&tasks, &table] {
        let mut codes = codes(&findings, topic);
        codes.sort_by_key(|code| code.as_str());
        assert_eq!(codes, [FindingCode::MinInsyncLow, FindingCode::ReplicationLow]);
    }
}

#[tokio::test]
async fn faults_of_topics_are_found() {
    let kafka = Kafka::shared();
    let mut admin = admin(config(kafka));
    let compacted = unique("compacted");
    kafka.create_topic(&compacted, 1, &[("cleanup.policy", "compact"), ("unclean.leader.election.enable", "true")]);
    let short = unique("short");
    let configs = [
        ("retention.ms", "3600000"),
        ("retention.bytes", "1000000"),
        ("max.message.bytes", "1000"),
        ("compression.type", "zstd"),
        ("min.insync.replicas", "2"),
    ];
    kafka.create_topic(&short, 1, &configs);
    let topics = [&compacted, &short].map(|name| (Arc::from(name.as_str()), TopicKind::Tasks));
    let findings = admin.inspect(&topics).await.expect("it answers").findings;
    assert!(findings.is_sorted_by_key(|finding| std::cmp::Reverse(finding.severity)), "the worst comes first");
    let of_compacted = codes(&findings, &compacted);
    assert_eq!(of_compacted[0], FindingCode::CompactedTasks);
    assert!(of_compacted.contains(&FindingCode::UncleanElection), "{of_compacted:?}");
    let of_short = codes(&findings, &short);
    for code in [
        FindingCode::UnreadableCompression,
        FindingCode::RecordLimitLow,
        FindingCode::RetentionShort,
        FindingCode::RetentionBytes,
        FindingCode::MinInsyncHigh,
    ] {
        assert!(of_short.contains(&code), "{code:?} is not among {of_short:?}");
    }
}

#[tokio::test]
async fn topic_that_cannot_be_made_is_named_with_the_brokers_words() {
    let kafka = Kafka::shared();
    let mut admin = admin(config(kafka));
    let topic = NewTopic { name: "no topic/name".into(), kind: TopicKind::Tasks, partitions: 1 };
    let error = admin.create_topics(&[topic]).await.expect_err("it has a slash");
    assert!(error.is_permanent());
    assert!(error.to_string().contains("topic no topic/name cannot be made: "), "{error}");
}

#[tokio::test]
async fn group_that_nobody_has_joined_is_empty() {
    let kafka = Kafka::shared();
    let mut admin = admin(config(kafka));
    let name: Arc<str> = unique("empty").into();
    kafka.create_topic(&name, 1, &[]);
    // The broker makes the group's own topic at the first question.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let size = loop {
        match admin.group_size().await {
            Err(error) if !error.is_permanent() && std::time::Instant::now() < deadline => {}
            size => break size,
        }
    };
    assert_eq!(size, Ok(0));
    assert_eq!(admin.committed(&Cluster::default(), &[(name.clone(), 0)]).await, Ok([((name, 0), None)].into()));
    assert_eq!(admin.seats().await, Ok(Vec::new()));
}

#[tokio::test]
async fn no_broker_is_said_in_one_line() {
    let none = admin(Config::default()).cluster(&[]).await;
    assert_eq!(none, Err(AdminError::NoBrokers));
    let down = admin(Config { brokers: vec!["127.0.0.1:1".into()], ..Config::default() }).cluster(&[]).await;
    let error = down.expect_err("nothing listens there");
    assert!(!error.is_permanent());
    assert!(error.to_string().starts_with("127.0.0.1:1 cannot be reached: "), "{error}");
    let wrong = admin(Config { brokers: vec!["kafka".into()], ..Config::default() }).cluster(&[]).await;
    assert!(wrong.expect_err("there is no port").is_permanent());
}

#[tokio::test]
async fn broker_that_was_silent_is_asked_last() {
    let kafka = Kafka::shared();
    // It takes connections, and says nothing, for as long as it is held.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = silent.local_addr().expect("it is bound").to_string();
    let patient = Duration::from_secs(600);
    let mut admin = admin(Config {
        brokers: vec![address.clone(), kafka.address()],
        connect_timeout: patient,
        request_timeout: patient,
        ..Config::default()
    });
    admin.distrust(&Address::parse(&address).expect("it is one"));
    let asked = tokio::time::timeout(Duration::from_secs(60), admin.cluster(&[])).await;
    let cluster = asked.expect("another one answers").expect("it answers");
    assert_eq!(cluster.brokers.len(), 1);
}
