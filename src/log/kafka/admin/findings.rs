//! What about a topic breaks a promise, or will. Decides only; nothing is asked here.

use std::{collections::HashMap, time::Duration};

use super::{AdminError, TopicKind};
use crate::{
    finding::Severity,
    log::kafka::{
        config::Config,
        permission::{Operation, Permission, Resource, joined},
    },
};

/// What is asked of a topic's configuration.
pub(super) const KEYS: [&str; 7] = [
    "cleanup.policy",
    "min.insync.replicas",
    "unclean.leader.election.enable",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "compression.type",
];

/// What was found. Metrics and logs use its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingCode {
    Unreachable,
    Forbidden,
    TopicMissing,
    CompactedTasks,
    UncompactedTable,
    UnreadableCompression,
    RecordLimitLow,
    ReplicationLow,
    MinInsyncLow,
    MinInsyncHigh,
    UncleanElection,
    RetentionShort,
    RetentionBytes,
    Unchecked,
}

impl FindingCode {
    pub const ALL: [Self; 14] = [
        Self::Unreachable,
        Self::Forbidden,
        Self::TopicMissing,
        Self::CompactedTasks,
        Self::UncompactedTable,
        Self::UnreadableCompression,
        Self::RecordLimitLow,
        Self::ReplicationLow,
        Self::MinInsyncLow,
        Self::MinInsyncHigh,
        Self::UncleanElection,
        Self::RetentionShort,
        Self::RetentionBytes,
        Self::Unchecked,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Forbidden => "forbidden",
            Self::TopicMissing => "topic-missing",
            Self::CompactedTasks => "compacted-tasks",
            Self::UncompactedTable => "uncompacted-table",
            Self::UnreadableCompression => "unreadable-compression",
            Self::RecordLimitLow => "record-limit-low",
            Self::ReplicationLow => "replication-low",
            Self::MinInsyncLow => "min-insync-low",
            Self::MinInsyncHigh => "min-insync-high",
            Self::UncleanElection => "unclean-election",
            Self::RetentionShort => "retention-short",
            Self::RetentionBytes => "retention-bytes",
            Self::Unchecked => "unchecked",
        }
    }

    fn severity(self) -> Severity {
        match self {
            Self::Unreachable
            | Self::Forbidden
            | Self::TopicMissing
            | Self::CompactedTasks
            | Self::UncompactedTable
            | Self::UnreadableCompression => Severity::Error,
            _ => Severity::Warning,
        }
    }

    /// Whether a task that is stored in such a topic may be lost before anybody reads it: none is.
    pub(in crate::log::kafka) fn forbids_tasks(self) -> bool {
        matches!(self, Self::CompactedTasks | Self::UnreadableCompression)
    }
}

/// Something that an operator should know of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub code: FindingCode,
    pub severity: Severity,
    /// Empty: the cluster itself.
    pub topic: String,
    /// What is so, and what follows from it.
    pub message: String,
    /// What ends it.
    pub remedy: String,
}

impl Finding {
    fn new(code: FindingCode, topic: &str, message: String, remedy: String) -> Self {
        Self { code, severity: code.severity(), topic: topic.to_owned(), message, remedy }
    }
}

/// A topic that has to be there and is not.
pub(super) fn missing(topic: &str) -> Finding {
    Finding::new(
        FindingCode::TopicMissing,
        topic,
        "it does not exist, and kafka.create_topics is off: its tasks wait on this disk".to_owned(),
        "make it, or set kafka.create_topics = true".to_owned(),
    )
}

/// What this user may not do with a topic.
pub(super) fn forbidden(topic: &str, operations: Vec<Operation>) -> Finding {
    if operations == [Operation::DescribeConfigs] {
        return unchecked(topic);
    }
    let verb = |operation: &Operation| match operation {
        Operation::Read => "read",
        Operation::Write => "write to",
        Operation::Create => "make",
        Operation::Describe => "see",
        Operation::DescribeConfigs => "look at the configuration of",
    };
    let verbs: Vec<&str> = operations.iter().map(verb).collect();
    Finding::new(
        FindingCode::Forbidden,
        topic,
        format!("this user may not {} it", joined(&verbs, "or")),
        Permission { operations, resource: Resource::Topic(topic.into()) }.to_string(),
    )
}

fn unchecked(topic: &str) -> Finding {
    Finding::new(
        FindingCode::Unchecked,
        topic,
        "its configuration may not be read, so that nobody knows whether it keeps what it is given".to_owned(),
        Permission::on_topic(Operation::DescribeConfigs, topic).to_string(),
    )
}

/// This user may not be in the group.
pub(super) fn locked_out(group: &str) -> Finding {
    Finding::new(
        FindingCode::Forbidden,
        "",
        format!("this user may not be in group {group}: nothing is executed"),
        Permission::on_group(Operation::Read, group).to_string(),
    )
}

/// Why nothing could be asked.
pub(in crate::log::kafka) fn unasked(error: &AdminError) -> Finding {
    let (code, message, remedy) = match error {
        AdminError::Forbidden { what, reason, needs } => {
            (FindingCode::Forbidden, format!("{what}: {reason}"), needs.to_string())
        }
        error => (
            FindingCode::Unreachable,
            error.to_string(),
            "see kafka.brokers, kafka.tls and kafka.sasl; until then tasks wait on this disk".to_owned(),
        ),
    };
    Finding::new(code, "", message, remedy)
}

/// A topic as it is.
pub(super) struct Topic<'a> {
    pub(super) name: &'a str,
    pub(super) kind: TopicKind,
    pub(super) brokers: usize,
    /// Of the partition that has the fewest replicas.
    pub(super) replication: usize,
    /// None where the broker does not tell.
    pub(super) configs: Option<HashMap<&'a str, &'a str>>,
}

impl Topic<'_> {
    pub(super) fn findings(&self, config: &Config) -> Vec<Finding> {
        let mut found: Vec<Finding> = self.replication_low().into_iter().collect();
        match &self.configs {
            None => found.push(unchecked(self.name)),
            Some(configs) => found.extend(self.configured(configs, config)),
        }
        found
    }

    fn replication_low(&self) -> Option<Finding> {
        (self.replication < 3).then(|| {
            let message = match self.replication {
                1 => "its partitions have 1 replica: records are lost with the disk of one broker".to_owned(),
                count => format!("its partitions have {count} replicas: one broker down leaves a single copy"),
            };
            let remedy = if self.brokers < 3 {
                format!("run three brokers (there are {}) and reassign the topic to 3 replicas", self.brokers)
            } else {
                "reassign its partitions to 3 replicas (kafka-reassign-partitions)".to_owned()
            };
            self.finding(FindingCode::ReplicationLow, message, remedy)
        })
    }

    fn configured(&self, configs: &HashMap<&str, &str>, config: &Config) -> Vec<Finding> {
        let value = |key| configs.get(key).copied();
        let number = |key| value(key).and_then(|value| value.parse::<i64>().ok());
        let mut found = Vec::new();
        found.extend(value("cleanup.policy").and_then(|policy| self.cleanup(policy)));
        found.extend(value("compression.type").and_then(|codec| self.compression(codec)));
        found.extend(number("max.message.bytes").and_then(|limit| self.record_limit(limit, config)));
        found.extend(number("min.insync.replicas").and_then(|count| self.min_insync(count)));
        if value("unclean.leader.election.enable") == Some("true") {
            found.push(self.finding(
                FindingCode::UncleanElection,
                "a replica that lacks acknowledged records may become leader: they are lost then".to_owned(),
                self.set("unclean.leader.election.enable", "false"),
            ));
        }
        if self.kind == TopicKind::Tasks {
            found.extend(number("retention.ms").and_then(|kept| self.retention(kept, config.retention)));
            found.extend(number("retention.bytes").and_then(|kept| self.retention_bytes(kept)));
        }
        found
    }

    fn cleanup(&self, policy: &str) -> Option<Finding> {
        let compacts = policy.split(',').any(|policy| policy.trim() == "compact");
        match (self.kind, compacts) {
            (TopicKind::Tasks, true) => Some(self.finding(
                FindingCode::CompactedTasks,
                "it is compacted: of tasks with the same key all but the last are deleted before they run".to_owned(),
                self.set("cleanup.policy", "delete"),
            )),
            (TopicKind::Table, false) => Some(self.finding(
                FindingCode::UncompactedTable,
                "it is not compacted: values are deleted when they are old, though they are still the last".to_owned(),
                self.set("cleanup.policy", "compact"),
            )),
            _ => None,
        }
    }

    fn compression(&self, codec: &str) -> Option<Finding> {
        matches!(codec, "zstd" | "lz4").then(|| {
            self.finding(
                FindingCode::UnreadableCompression,
                format!("brokers compress it with {codec}, which is not read here"),
                self.set("compression.type", "producer"),
            )
        })
    }

    fn record_limit(&self, limit: i64, config: &Config) -> Option<Finding> {
        let needed = self.kind.needed_bytes(config);
        (usize::try_from(limit).unwrap_or(0) < needed).then(|| {
            self.finding(
                FindingCode::RecordLimitLow,
                match self.kind {
                    TopicKind::Tasks => {
                        format!("it takes {limit} bytes at once, and an accepted task may need {needed}")
                    }
                    TopicKind::Table => format!(
                        "it takes {limit} bytes at once, and a dead letter may need {needed}: one that does not fit \
                         waits in its queue"
                    ),
                },
                self.set("max.message.bytes", &needed.to_string()),
            )
        })
    }

    fn min_insync(&self, count: i64) -> Option<Finding> {
        let replication = i64::try_from(self.replication).unwrap_or(i64::MAX);
        if count < 2 {
            return Some(self.finding(
                FindingCode::MinInsyncLow,
                "one replica is enough to acknowledge a record: it is lost if that one fails next".to_owned(),
                self.set("min.insync.replicas", "2"),
            ));
        }
        (count >= replication).then(|| {
            self.finding(
                FindingCode::MinInsyncHigh,
                format!("it needs {count} of {replication} replicas in sync: nothing is taken while one is away"),
                self.set("min.insync.replicas", &(replication - 1).max(1).to_string()),
            )
        })
    }

    fn retention(&self, kept_ms: i64, wanted: Duration) -> Option<Finding> {
        let kept = Duration::from_millis(u64::try_from(kept_ms).ok()?);
        (kept < wanted).then(|| {
            self.finding(
                FindingCode::RetentionShort,
                format!(
                    "tasks are deleted after {} h, done or not; kafka.retention asks for {} h",
                    hours(kept),
                    hours(wanted)
                ),
                self.set("retention.ms", &wanted.as_millis().to_string()),
            )
        })
    }

    fn retention_bytes(&self, kept: i64) -> Option<Finding> {
        (kept >= 0).then(|| {
            self.finding(
                FindingCode::RetentionBytes,
                format!("of each partition only {kept} bytes are kept: tasks beyond them are deleted, done or not"),
                self.set("retention.bytes", "-1"),
            )
        })
    }

    fn finding(&self, code: FindingCode, message: String, remedy: String) -> Finding {
        Finding::new(code, self.name, message, remedy)
    }

    fn set(&self, key: &str, value: &str) -> String {
        format!("kafka-configs --alter --entity-type topics --entity-name {} --add-config {key}={value}", self.name)
    }
}

fn hours(duration: Duration) -> u64 {
    duration.as_secs() / 3600
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 7] = [
        ("cleanup.policy", "delete"),
        ("min.insync.replicas", "2"),
        ("unclean.leader.election.enable", "false"),
        ("retention.ms", "604800000"),
        ("retention.bytes", "-1"),
        ("max.message.bytes", "1048588"),
        ("compression.type", "producer"),
    ];

    fn codes(kind: TopicKind, replication: usize, changed: &[(&'static str, &'static str)]) -> Vec<FindingCode> {
        let configs = GOOD.into_iter().chain(changed.iter().copied()).collect();
        let topic = Topic { name: "t", kind, brokers: 3, replication, configs: Some(configs) };
        topic.findings(&Config::default()).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn well_made_topic_has_no_findings() {
        assert_eq!(codes(TopicKind::Tasks, 3, &[]), []);
        assert_eq!(codes(TopicKind::Table, 3, &[("cleanup.policy", "compact")]), []);
        assert_eq!(codes(TopicKind::Tasks, 3, &[("retention.ms", "-1")]), [], "for ever is not short");
    }

    #[test]
    fn each_fault_of_a_topic_is_found() {
        let check = |changed, expected| assert_eq!(codes(TopicKind::Tasks, 3, &[changed]), [expected]);
        check(("cleanup.policy", "compact,delete"), FindingCode::CompactedTasks);
        check(("min.insync.replicas", "1"), FindingCode::MinInsyncLow);
        check(("min.insync.replicas", "3"), FindingCode::MinInsyncHigh);
        check(("unclean.leader.election.enable", "true"), FindingCode::UncleanElection);
        check(("retention.ms", "3600000"), FindingCode::RetentionShort);
        check(("retention.bytes", "1073741824"), FindingCode::RetentionBytes);
        check(("max.message.bytes", "100000"), FindingCode::RecordLimitLow);
        check(("compression.type", "zstd"), FindingCode::UnreadableCompression);
        assert_eq!(codes(TopicKind::Table, 3, &[]), [FindingCode::UncompactedTable]);
        assert_eq!(codes(TopicKind::Tasks, 2, &[]), [FindingCode::ReplicationLow, FindingCode::MinInsyncHigh]);
    }

    #[test]
    fn all_that_is_forbidden_of_a_topic_is_said_at_once() {
        let all = [Operation::Write, Operation::Read, Operation::Create, Operation::DescribeConfigs];
        let finding = forbidden("t", all.to_vec());
        assert_eq!((finding.code, finding.severity), (FindingCode::Forbidden, Severity::Error));
        assert_eq!(finding.message, "this user may not write to, read, make or look at the configuration of it");
        assert_eq!(finding.remedy, "allow Write, Read, Create and DescribeConfigs on topic t");
        let finding = forbidden("t", vec![Operation::DescribeConfigs]);
        assert_eq!((finding.code, finding.severity), (FindingCode::Unchecked, Severity::Warning), "it can be used");
    }

    #[test]
    fn topic_that_may_not_be_looked_at_is_unchecked() {
        let topic = Topic { name: "t", kind: TopicKind::Tasks, brokers: 3, replication: 3, configs: None };
        let codes: Vec<FindingCode> =
            topic.findings(&Config::default()).into_iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [FindingCode::Unchecked]);
    }

    #[test]
    fn remedy_of_a_finding_can_be_run() {
        let configs = GOOD.into_iter().chain([("cleanup.policy", "compact")]).collect();
        let topic = Topic { name: "t", kind: TopicKind::Tasks, brokers: 3, replication: 3, configs: Some(configs) };
        let finding = topic.findings(&Config::default()).remove(0);
        assert_eq!(finding.severity, Severity::Error);
        assert_eq!(
            finding.remedy,
            "kafka-configs --alter --entity-type topics --entity-name t --add-config cleanup.policy=delete"
        );
    }
}
