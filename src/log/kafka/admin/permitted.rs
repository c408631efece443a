//! What this user may not do, found out without doing any of it.
//!
//! Brokers list what is allowed of the group, and of each topic that may be seen. One that may not be seen may be neither
//! read nor written to, as either of these permissions would show it; whether it could be made is asked by a request that
//! is only looked over, and whether its configuration may be read by asking for that.

use std::{cmp::Reverse, collections::HashSet, sync::Arc, time::Duration};

use kafka_protocol::{
    error::ResponseError,
    messages::{MetadataRequest, metadata_request::MetadataRequestTopic},
};
use tokio::time::{Instant, sleep};

use super::{Admin, AdminError, Finding, NewTopic, TopicKind, findings, topic_name, topic_refused, unasked};
use crate::log::kafka::{permission::Operation, wire::WireError};

/// Between two questions about a group that has no coordinator yet.
const PAUSE: Duration = Duration::from_millis(100);

/// A topic as this user sees it.
struct Look {
    topic: (Arc<str>, TopicKind),
    /// None: it may not be seen.
    sight: Option<Sight>,
}

struct Sight {
    exists: bool,
    /// What is allowed, a bit for each operation.
    allowed: i32,
}

impl Look {
    fn exists(&self) -> bool {
        self.sight.as_ref().is_some_and(|sight| sight.exists)
    }

    fn is_allowed(&self, operation: Operation) -> bool {
        self.sight.as_ref().is_some_and(|sight| operation.may_be_in(sight.allowed))
    }
}

impl Admin {
    /// Everything that this user lacks to use these topics, and what about those that it may see breaks a promise, or
    /// will. The worst first. `executes`: whether tasks are made here, or only taken.
    pub(in crate::log::kafka) async fn check(
        &mut self,
        topics: &[(Arc<str>, TopicKind)],
        executes: bool,
    ) -> Result<Vec<Finding>, AdminError> {
        let looks = self.look_at(topics).await?;
        let mut found = self.forbidden(&looks, executes).await?;
        if executes {
            found.extend(self.locked_out().await);
        }
        let seen: Vec<_> = looks.into_iter().filter(|look| look.sight.is_some()).map(|look| look.topic).collect();
        found.extend(self.inspect(&seen).await?.findings);
        found.sort_by_key(|finding| Reverse(finding.severity));
        Ok(found)
    }

    async fn look_at(&mut self, topics: &[(Arc<str>, TopicKind)]) -> Result<Vec<Look>, AdminError> {
        let named = topics.iter().map(|(name, _)| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
        let request =
            MetadataRequest::default().with_topics(Some(named.collect())).with_allow_auto_topic_creation(false);
        let told = match self.ask_any(&request.clone().with_include_topic_authorized_operations(true)).await {
            // It cannot be said to a broker that does not know the newer version: that one lists nothing.
            Err(AdminError::Wire(WireError::Malformed { .. })) => self.ask_any(&request).await?,
            told => told?,
        };
        let told = told.topics;
        let look = |topic: &(Arc<str>, TopicKind)| {
            let name = &*topic.0;
            let told = told.iter().find(|told| told.name.as_ref().is_some_and(|told| told.as_str() == name))?;
            let sight = |exists| Some(Sight { exists, allowed: told.topic_authorized_operations });
            let sight = match ResponseError::try_from_code(told.error_code) {
                None | Some(ResponseError::LeaderNotAvailable) => sight(true),
                Some(ResponseError::UnknownTopicOrPartition) => sight(false),
                Some(ResponseError::TopicAuthorizationFailed) => None,
                Some(error) => return Some(Err(topic_refused(name, error))),
            };
            Some(Ok(Look { topic: topic.clone(), sight }))
        };
        topics.iter().filter_map(look).collect()
    }

    /// What may not be done with topics. That the configuration of one that exists may not be read is said by who looks
    /// at it.
    async fn forbidden(&mut self, looks: &[Look], executes: bool) -> Result<Vec<Finding>, AdminError> {
        let unmakable = self.unmakable(looks.iter().filter(|look| !look.exists())).await?;
        let unreadable = self.unreadable(looks.iter().filter(|look| look.sight.is_none())).await?;
        let forbidden = |look: &Look| {
            let name = &*look.topic.0;
            let is_lacking = |operation: &Operation| match operation {
                Operation::Read => executes && !look.is_allowed(Operation::Read),
                Operation::Create => unmakable.contains(name),
                Operation::DescribeConfigs if look.exists() => false,
                Operation::DescribeConfigs if look.sight.is_none() => unreadable.contains(name),
                operation => !look.is_allowed(*operation),
            };
            let needed = [Operation::Write, Operation::Read, Operation::Create, Operation::DescribeConfigs];
            let operations: Vec<Operation> = needed.into_iter().filter(is_lacking).collect();
            (!operations.is_empty()).then(|| findings::forbidden(name, operations))
        };
        Ok(looks.iter().filter_map(forbidden).collect())
    }

    /// Those of these topics that this user may not make, where it has to.
    async fn unmakable<'a>(&mut self, looks: impl Iterator<Item = &'a Look>) -> Result<HashSet<String>, AdminError> {
        let new = |(name, kind): &(Arc<str>, TopicKind)| {
            let partitions = match kind {
                TopicKind::Tasks => self.config.partitions,
                TopicKind::Table => 1,
            };
            NewTopic { name: name.clone(), kind: *kind, partitions }
        };
        let topics: Vec<NewTopic> = looks.map(|look| new(&look.topic)).collect();
        if !self.config.create_topics || topics.is_empty() {
            return Ok(HashSet::new());
        }
        let (_, tried) = self.create(&topics, true).await?;
        let forbidden = tried.into_iter().filter(|topic| is_forbidden(topic.error_code));
        Ok(forbidden.map(|topic| topic.name.to_string()).collect())
    }

    /// Those of these topics whose configuration this user may not read.
    async fn unreadable<'a>(&mut self, looks: impl Iterator<Item = &'a Look>) -> Result<HashSet<String>, AdminError> {
        let described = self.configs(looks.map(|look| &look.topic.0)).await?;
        let forbidden = described.into_iter().filter(|topic| is_forbidden(topic.error_code));
        Ok(forbidden.map(|topic| topic.resource_name.to_string()).collect())
    }

    /// What keeps this user out of the group.
    async fn locked_out(&mut self) -> Option<Finding> {
        // The first question about any group has brokers make the topic in which they keep groups.
        let deadline = Instant::now() + self.config.request_timeout;
        loop {
            let may_join = match self.group().await {
                Ok(group) => group.is_none_or(|group| Operation::Read.may_be_in(group.authorized_operations)),
                Err(AdminError::Forbidden { .. }) => false,
                Err(error) if error.is_permanent() || Instant::now() > deadline => return Some(unasked(&error)),
                Err(_) => {
                    sleep(PAUSE).await;
                    continue;
                }
            };
            return (!may_join).then(|| findings::locked_out(&self.config.group));
        }
    }
}

fn is_forbidden(code: i16) -> bool {
    let error = ResponseError::try_from_code(code);
    matches!(error, Some(ResponseError::TopicAuthorizationFailed | ResponseError::ClusterAuthorizationFailed))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::{
        messages::{MetadataResponse, metadata_response::MetadataResponseTopic},
        protocol::Encodable,
    };

    use super::*;
    use crate::log::kafka::{
        config::Config,
        security::Security,
        wire::tests::{all_versions, framed, scripted},
    };

    #[tokio::test]
    async fn broker_that_lists_nothing_is_not_taken_for_one_that_allows_nothing() {
        let address = scripted(|key, id| match key {
            18 => Some(all_versions(id)),
            3 => {
                let topic = MetadataResponseTopic::default().with_name(Some(topic_name(&"q".into())));
                let mut body = BytesMut::new();
                let answer = MetadataResponse::default().with_topics(vec![topic]);
                answer.encode(&mut body, 7).expect("it can be said");
                Some(framed(id, &body))
            }
            _ => None,
        });
        let config = Config { brokers: vec![address.await.to_string()], ..Config::default() };
        let mut admin = Admin::new(Arc::new(config), Security::default());
        let looks = admin.look_at(&[("q".into(), TopicKind::Tasks)]).await.expect("it answers");
        assert!(looks[0].exists() && looks[0].is_allowed(Operation::Write));
    }
}
