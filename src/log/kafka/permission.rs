//! What Kafka must allow the user of this process, and the one way in which that is said.

use std::{fmt, sync::Arc};

/// What an authorizer may be told to allow, by its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Create,
    Describe,
    DescribeConfigs,
}

impl Operation {
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
        f.write_str("allow ")?;
        for (place, operation) in self.operations.iter().enumerate() {
            let joined_by = match place {
                0 => "",
                _ if place + 1 == self.operations.len() => " and ",
                _ => ", ",
            };
            write!(f, "{joined_by}{}", operation.as_str())?;
        }
        write!(f, " on {}", self.resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
