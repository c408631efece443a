//! What Kafka must allow the user of this process, and the one way in which that is said.

use std::{fmt, sync::Arc};

/// What an authorizer may be told to allow, by its own names and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// What brokers that do not list what is allowed answer instead.
const NO_LIST: i32 = i32::MIN;

impl Operation {
    /// Whether a broker lists it, as a bit, among what is allowed. Without a list nobody knows better.
    pub(super) fn may_be_in(self, list: i32) -> bool {
        list == NO_LIST || list & (1 << self as i32) != 0
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::Create => "Create",
            Self::Describe => "Describe",
            Self::DescribeConfigs => "DescribeConfigs",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    Topic(Arc<str>),
    Group(Arc<str>),
    Cluster,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(name) => write!(f, "topic {name}"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Cluster => f.write_str("the cluster"),
        }
    }
}

/// What has to be allowed, as what ends a sentence: `allow Read and Write on topic redis-retry-queue`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    pub operations: Vec<Operation>,
    pub resource: Resource,
}

impl Permission {
    pub(super) fn on_topic(operation: Operation, topic: impl Into<Arc<str>>) -> Self {
        Self { operations: vec![operation], resource: Resource::Topic(topic.into()) }
    }

    pub(super) fn on_group(operation: Operation, group: impl Into<Arc<str>>) -> Self {
        Self { operations: vec![operation], resource: Resource::Group(group.into()) }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations: Vec<&str> = self.operations.iter().map(|operation| operation.as_str()).collect();
        write!(f, "allow {} on {}", joined(&operations, "and"), self.resource)
    }
}

/// As one says it: `a, b or c`.
pub(super) fn joined(words: &[&str], last: &str) -> String {
    match words {
        [one, other] => format!("{one} {last} {other}"),
        [before @ .., one, other] => format!("{}, {one} {last} {other}", before.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_is_read_from_a_list_of_bits() {
        // Read and Describe.
        let list = 0b1_0000_1000;
        let allowed = [Operation::Read, Operation::Describe];
        let all =
            [Operation::Read, Operation::Write, Operation::Create, Operation::Describe, Operation::DescribeConfigs];
        for operation in all {
            assert_eq!(operation.may_be_in(list), allowed.contains(&operation), "{operation:?}");
            assert!(operation.may_be_in(NO_LIST) && !operation.may_be_in(0), "{operation:?}");
        }
    }

    #[test]
    fn permission_names_its_operations_and_its_resource() {
        let check = |operations: &[Operation], resource: Resource, expected: &str| {
            assert_eq!(Permission { operations: operations.to_vec(), resource }.to_string(), expected);
        };
        use Operation::{Create, DescribeConfigs, Read, Write};
        check(&[Write], Resource::Topic("q".into()), "allow Write on topic q");
        check(&[Read], Resource::Group("g".into()), "allow Read on group g");
        check(&[Read, Write], Resource::Topic("q".into()), "allow Read and Write on topic q");
        check(
            &[Create, DescribeConfigs, Read],
            Resource::Cluster,
            "allow Create, DescribeConfigs and Read on the cluster",
        );
    }
}
