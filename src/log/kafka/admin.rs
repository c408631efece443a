//! Asks about a cluster and sets it up: brokers, topics and their configuration, coordinators, offsets, the size of a
//! group. Nothing here takes part in anything; every question can be asked again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::{sync::Arc, time::Duration};

use kafka_protocol::{
    error::ResponseError,
    messages::{
        BrokerId, CreateTopicsRequest, DescribeConfigsRequest, DescribeGroupsRequest, FindCoordinatorRequest, GroupId,
        ListOffsetsRequest, MetadataRequest, OffsetFetchRequest, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        create_topics_response::CreatableTopicResult,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::DescribeConfigsResult,
        describe_groups_response::DescribedGroup,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        metadata_request::MetadataRequestTopic,
        metadata_response::MetadataResponseTopic,
        offset_fetch_request::OffsetFetchRequestTopic,
    },
    protocol::StrBytes,
};

use super::{
    committed::{Committed, TopicId},
    config::Config,
    permission::{Operation, Permission, Resource},
    security::Security,
    wire::{Address, Call, Connection, Dialer, WireError},
};

mod findings;
mod permitted;

pub(super) use self::findings::unasked;
pub use self::findings::{Finding, FindingCode};

/// What Kafka takes for a topic where nobody says otherwise.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// What a batch adds around one record.
const BATCH_OVERHEAD_BYTES: usize = 16 * 1024;

/// An offset is asked for by a time; these are none.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;

/// The resource type of topics.
const TOPIC_RESOURCE: i8 = 2;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("kafka.brokers names no broker")]
    NoBrokers,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{what}: {reason}")]
    Refused { what: String, reason: String, error: ResponseError },
    /// The user lacks a permission.
    #[error("{what}: {reason}; {needs}")]
    Forbidden { what: String, reason: String, needs: Permission },
}

impl AdminError {
    /// Whether only a change of a configuration ends it.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoBrokers | Self::Forbidden { .. } => true,
            Self::Wire(error) => error.is_permanent(),
            Self::Refused { error, .. } => !error.is_retriable(),
        }
    }

    /// What a broker answered of something, which it takes a permission to ask for.
    pub(super) fn refused(
        what: impl Into<String>,
        needs: Permission,
        error: ResponseError,
        detail: Option<&str>,
    ) -> Self {
        let what = what.into();
        let reason = match detail {
            Some(detail) if !detail.is_empty() => format!("{error}: {detail}"),
            _ => error.to_string(),
        };
        match error {
            ResponseError::TopicAuthorizationFailed | ResponseError::GroupAuthorizationFailed => {
                Self::Forbidden { what, reason, needs }
            }
            ResponseError::ClusterAuthorizationFailed => {
                Self::Forbidden { what, reason, needs: Permission { resource: Resource::Cluster, ..needs } }
            }
            _ => Self::Refused { what, reason, error },
        }
    }
}

/// The cluster as one of its brokers sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cluster {
    pub(super) brokers: BTreeMap<i32, Address>,
    /// The broker that makes topics; some live one where any of them can.
    controller: i32,
    /// Only topics that exist.
    pub(super) topics: BTreeMap<String, BTreeMap<i32, Replicas>>,
    /// Of those, where brokers tell.
    pub(super) ids: HashMap<String, TopicId>,
}

/// Where a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replicas {
    /// None while one is elected.
    pub(super) leader: Option<i32>,
    pub(super) count: usize,
    pub(super) in_sync: usize,
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicKind {
    /// Holds tasks: every record counts.
    Tasks,
    /// Holds the last value of each key.
    Table,
}

impl TopicKind {
    /// Bytes that a topic must take at once: of its largest record, as a batch.
    fn needed_bytes(self, config: &Config) -> usize {
        let record = match self {
            Self::Tasks => config.max_record_bytes,
            Self::Table => config.max_value_bytes(),
        };
        record + BATCH_OVERHEAD_BYTES
    }
}

#[derive(Clone, Debug)]
pub(super) struct NewTopic {
    pub(super) name: Arc<str>,
    pub(super) kind: TopicKind,
    pub(super) partitions: i32,
}

/// What was found on topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inspection {
    /// Those that exist.
    pub(super) topics: Vec<Arc<str>>,
    /// The worst first; of topics that are missing, too.
    pub(super) findings: Vec<Finding>,
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// That after the last record.
    End,
    /// That of the oldest record, or the end where there is none.
    Start,
    /// That of the oldest record that has a time, with the time.
    OldestDated,
}

/// An offset as a broker tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) offset: u64,
    /// Milliseconds since 1970: of the record there, where it was asked for by that.
    pub(super) at_ms: i64,
}

/// A member of the group, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// Its id and where it connects from.
    pub(super) name: String,
    /// What the leader has given it, in the words of the group's protocol.
    pub(super) assignment: bytes::Bytes,
}

/// Offsets by topic and partition.
pub(super) type ByPlace<T> = BTreeMap<(Arc<str>, u32), T>;

/// Connections to the brokers that were asked something.
pub(super) struct Admin {
    dialer: Dialer,
    config: Arc<Config>,
    connections: HashMap<Address, Connection>,
    /// Brokers that the cluster named when it was last asked: they may outlive those of the configuration.
    known: BTreeSet<Address>,
    /// Asked last: it has left somebody without an answer.
    distrusted: Option<Address>,
}

impl Admin {
    pub(super) fn new(config: Arc<Config>, security: Security) -> Self {
        let dialer = Dialer::new(&config, security);
        Self { dialer, config, connections: HashMap::new(), known: BTreeSet::new(), distrusted: None }
    }

    /// Asks this broker only where no other one answers.
    pub(super) fn distrust(&mut self, broker: &Address) {
        self.connections.remove(broker);
        self.distrusted = Some(broker.clone());
    }

    /// Brokers, and those of the topics that exist.
    pub(super) async fn cluster(&mut self, topics: &[Arc<str>]) -> Result<Cluster, AdminError> {
        let topics = topics.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
        let request =
            MetadataRequest::default().with_topics(Some(topics.collect())).with_allow_auto_topic_creation(false);
        let answer = self.ask_any(&request).await?;
        let mut cluster = Cluster { controller: answer.controller_id.0, ..Cluster::default() };
        for broker in answer.brokers {
            let port = u16::try_from(broker.port).unwrap_or(0);
            cluster.brokers.insert(broker.node_id.0, Address { host: broker.host.to_string(), port });
        }
        for topic in answer.topics {
            let Some(name) = topic.name.as_ref().map(|name| name.to_string()) else {
                continue;
            };
            match ResponseError::try_from_code(topic.error_code) {
                None => {
                    cluster.ids.extend(TopicId::new(topic.topic_id.into_bytes()).map(|id| (name.clone(), id)));
                    cluster.topics.insert(name, replicas(&topic));
                }
                // It does not exist, or not everywhere yet.
                Some(ResponseError::UnknownTopicOrPartition | ResponseError::LeaderNotAvailable) => {}
                Some(error) => return Err(topic_refused(&name, error)),
            }
        }
        self.known = cluster.brokers.values().cloned().collect();
        self.connections.retain(|address, _| self.known.contains(address) || is_bootstrap(&self.config, address));
        Ok(cluster)
    }

    /// The broker that the configured group belongs to.
    pub(super) async fn coordinator(&mut self) -> Result<Address, AdminError> {
        let request = FindCoordinatorRequest::default().with_key(text(&self.config.group));
        let answer = self.ask_any(&request).await?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(self.group_refused(error, answer.error_message.as_deref()));
        }
        Ok(Address { host: answer.host.to_string(), port: u16::try_from(answer.port).unwrap_or(0) })
    }

    /// Makes the topics that do not exist, with configurations of their own. The replication that they got is
    /// answered: a small cluster has fewer brokers than replicas are asked for.
    pub(super) async fn create_topics(&mut self, topics: &[NewTopic]) -> Result<i16, AdminError> {
        let (replication, made) = self.create(topics, false).await?;
        for topic in made {
            match ResponseError::try_from_code(topic.error_code) {
                None | Some(ResponseError::TopicAlreadyExists) => {}
                Some(error) => {
                    let what = format!("topic {} cannot be made", topic.name.as_str());
                    let needs = Permission::on_topic(Operation::Create, topic.name.as_str());
                    return Err(AdminError::refused(what, needs, error, topic.error_message.as_deref()));
                }
            }
        }
        Ok(replication)
    }

    /// Makes topics, or asks only whether they could be made. What became of each is answered, and the replication.
    async fn create(
        &mut self,
        topics: &[NewTopic],
        validate_only: bool,
    ) -> Result<(i16, Vec<CreatableTopicResult>), AdminError> {
        let cluster = self.cluster(&[]).await?;
        let brokers = i16::try_from(cluster.brokers.len()).unwrap_or(i16::MAX);
        let replication = self.config.replication.min(brokers).max(1);
        let request = CreateTopicsRequest::default()
            .with_timeout_ms(milliseconds(self.config.request_timeout))
            .with_validate_only(validate_only)
            .with_topics(topics.iter().map(|topic| self.creatable(topic, replication)).collect());
        let controller = cluster.brokers.get(&cluster.controller).or(cluster.brokers.values().next());
        let controller = controller.ok_or(AdminError::NoBrokers)?.clone();
        let answer = self.ask(&controller, &request, 2 * self.config.request_timeout).await?;
        Ok((replication, answer.topics))
    }

    fn creatable(&self, topic: &NewTopic, replication: i16) -> CreatableTopic {
        let min_insync = self.config.min_insync.min(replication - 1).max(1);
        let retention = self.config.retention.as_millis().to_string();
        let message_bytes = DEFAULT_MAX_MESSAGE_BYTES.max(topic.kind.needed_bytes(&self.config));
        let mut configs = vec![
            ("min.insync.replicas", min_insync.to_string()),
            ("unclean.leader.election.enable", "false".to_owned()),
            ("max.message.bytes", message_bytes.to_string()),
            ("compression.type", "producer".to_owned()),
        ];
        match topic.kind {
            TopicKind::Tasks => configs.extend([
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention),
                ("retention.bytes", "-1".to_owned()),
            ]),
            TopicKind::Table => configs.push(("cleanup.policy", "compact".to_owned())),
        }
        let configs = configs.into_iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_static_str(name))
                .with_value(Some(StrBytes::from_string(value)))
        });
        CreatableTopic::default()
            .with_name(topic_name(&topic.name))
            .with_num_partitions(topic.partitions)
            .with_replication_factor(replication)
            .with_configs(configs.collect())
    }

    /// What about these topics breaks a promise or will; a topic that does not exist and will be made has nothing.
    pub(super) async fn inspect(&mut self, topics: &[(Arc<str>, TopicKind)]) -> Result<Inspection, AdminError> {
        let names: Vec<Arc<str>> = topics.iter().map(|(name, _)| name.clone()).collect();
        let cluster = self.cluster(&names).await?;
        let (existing, missing): (Vec<_>, Vec<_>) =
            topics.iter().partition(|(name, _)| cluster.topics.contains_key(&**name));
        let configs = self.configs(existing.iter().map(|(name, _)| name)).await?;
        let looked_at = existing.iter().map(|(name, _)| name.clone()).collect();
        let mut found: Vec<Finding> = match self.config.create_topics {
            true => Vec::new(),
            false => missing.into_iter().map(|(name, _)| findings::missing(name)).collect(),
        };
        for (name, kind) in existing {
            let described = configs.iter().find(|result| result.resource_name.as_str() == &**name);
            let partitions = &cluster.topics[&**name];
            let topic = findings::Topic {
                name,
                kind: *kind,
                brokers: cluster.brokers.len(),
                replication: partitions.values().map(|replicas| replicas.count).min().unwrap_or(0),
                configs: described.filter(|result| result.error_code == 0).map(|result| {
                    let pairs = result
                        .configs
                        .iter()
                        .map(|config| (config.name.as_str(), config.value.as_ref().map_or("", |value| value.as_str())));
                    pairs.collect()
                }),
            };
            found.extend(topic.findings(&self.config));
        }
        found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Ok(Inspection { topics: looked_at, findings: found })
    }

    /// What brokers tell of how these topics are set up.
    async fn configs<'a>(
        &mut self,
        topics: impl Iterator<Item = &'a Arc<str>>,
    ) -> Result<Vec<DescribeConfigsResult>, AdminError> {
        let resources = topics.map(|name| {
            DescribeConfigsResource::default()
                .with_resource_type(TOPIC_RESOURCE)
                .with_resource_name(text(name))
                .with_configuration_keys(Some(findings::KEYS.map(StrBytes::from_static_str).to_vec()))
        });
        let request = DescribeConfigsRequest::default().with_resources(resources.collect());
        Ok(self.ask_any(&request).await?.results)
    }

    /// How many members the configured group has; none while it does not exist.
    pub(super) async fn group_size(&mut self) -> Result<usize, AdminError> {
        Ok(self.group().await?.map_or(0, |group| group.members.len()))
    }

    /// The members of the configured group.
    pub(super) async fn seats(&mut self) -> Result<Vec<Seat>, AdminError> {
        let members = self.group().await?.map_or(Vec::new(), |group| group.members);
        let seats = members.into_iter().map(|member| Seat {
            name: format!("{} at {}", &*member.member_id, member.client_host.trim_start_matches('/')),
            assignment: member.member_assignment,
        });
        Ok(seats.collect())
    }

    async fn group(&mut self) -> Result<Option<DescribedGroup>, AdminError> {
        let coordinator = self.coordinator().await?;
        let request = DescribeGroupsRequest::default()
            .with_groups(vec![group_id(&self.config)])
            .with_include_authorized_operations(true);
        let answer = self.ask(&coordinator, &request, self.config.request_timeout).await?;
        let Some(group) = answer.groups.into_iter().next() else {
            return Ok(None);
        };
        match ResponseError::try_from_code(group.error_code) {
            None => Ok(Some(group)),
            Some(ResponseError::GroupIdNotFound) => Ok(None),
            Some(error) => Err(self.group_refused(error, None)),
        }
    }

    fn group_refused(&self, error: ResponseError, detail: Option<&str>) -> AdminError {
        let group = &self.config.group;
        AdminError::refused(
            format!("group {group}"),
            Permission::on_group(Operation::Read, group.clone()),
            error,
            detail,
        )
    }

    /// An offset of each of these partitions; those that nobody leads, or whose leader does not tell, are left out.
    pub(super) async fn offsets(
        &mut self,
        cluster: &Cluster,
        which: Which,
        wanted: &[(Arc<str>, u32)],
    ) -> Result<ByPlace<Told>, AdminError> {
        let time = match which {
            Which::End => LATEST,
            Which::Start => EARLIEST,
            Which::OldestDated => 0,
        };
        let mut by_leader: BTreeMap<i32, BTreeMap<&Arc<str>, Vec<ListOffsetsPartition>>> = BTreeMap::new();
        for (topic, partition) in wanted {
            let Ok(index) = i32::try_from(*partition) else { continue };
            let replicas = cluster.topics.get(&**topic).and_then(|partitions| partitions.get(&index));
            let Some(leader) = replicas.and_then(|replicas| replicas.leader) else { continue };
            let asked = ListOffsetsPartition::default().with_partition_index(index).with_timestamp(time);
            by_leader.entry(leader).or_default().entry(topic).or_default().push(asked);
        }
        let mut told = BTreeMap::new();
        for (leader, topics) in by_leader {
            let Some(broker) = cluster.brokers.get(&leader).cloned() else { continue };
            let topics = topics.into_iter().map(|(topic, partitions)| {
                ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
            });
            let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(topics.collect());
            let answer = self.ask(&broker, &request, self.config.request_timeout).await?;
            for topic in answer.topics {
                let name: Arc<str> = topic.name.as_str().into();
                for partition in topic.partitions.iter().filter(|partition| partition.error_code == 0) {
                    if let (Ok(index), Ok(offset)) =
                        (u32::try_from(partition.partition_index), u64::try_from(partition.offset))
                    {
                        told.insert((name.clone(), index), Told { offset, at_ms: partition.timestamp });
                    }
                }
            }
        }
        Ok(told)
    }

    /// A connection to the broker that leads a partition.
    pub(super) async fn connect_to_leader(
        &mut self,
        topic: &Arc<str>,
        partition: u32,
    ) -> Result<Connection, AdminError> {
        let refused = |error| Err(partition_refused(topic, partition, error));
        let index = i32::try_from(partition).expect("Kafka counts partitions in 31 bits");
        let cluster = self.cluster(std::slice::from_ref(topic)).await?;
        let Some(replicas) = cluster.topics.get(&**topic).and_then(|partitions| partitions.get(&index)) else {
            return refused(ResponseError::UnknownTopicOrPartition);
        };
        let Some(leader) = replicas.leader.and_then(|leader| cluster.brokers.get(&leader)) else {
            return refused(ResponseError::LeaderNotAvailable);
        };
        match self.connections.remove(leader) {
            Some(connection) => Ok(connection),
            None => Ok(self.dialer.connect(leader).await?),
        }
    }

    /// What the configured group has stored, whoever owns it; none where it has stored nothing for this topic.
    pub(super) async fn committed(
        &mut self,
        cluster: &Cluster,
        wanted: &[(Arc<str>, u32)],
    ) -> Result<ByPlace<Option<Committed>>, AdminError> {
        let coordinator = self.coordinator().await?;
        let mut topics: BTreeMap<&Arc<str>, Vec<i32>> = BTreeMap::new();
        for (topic, partition) in wanted {
            topics.entry(topic).or_default().extend(i32::try_from(*partition));
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            OffsetFetchRequestTopic::default().with_name(topic_name(topic)).with_partition_indexes(partitions)
        });
        let request =
            OffsetFetchRequest::default().with_group_id(group_id(&self.config)).with_topics(Some(topics.collect()));
        let answer = self.ask(&coordinator, &request, self.config.request_timeout).await?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(self.group_refused(error, None));
        }
        let mut stored = BTreeMap::new();
        for topic in answer.topics {
            let name: Arc<str> = topic.name.as_str().into();
            for partition in topic.partitions {
                if let Some(error) = ResponseError::try_from_code(partition.error_code) {
                    return Err(topic_refused(&name, error));
                }
                let Ok(index) = u32::try_from(partition.partition_index) else { continue };
                let words = partition.metadata.as_ref().map_or("", |metadata| metadata.as_str());
                let committed = Committed::read(partition.committed_offset, words, cluster.ids.get(&*name).copied());
                stored.insert((name.clone(), index), committed);
            }
        }
        Ok(stored)
    }

    /// Asks whichever broker answers: those there is a connection to first.
    async fn ask_any<C: Call>(&mut self, request: &C) -> Result<C::Answer, AdminError> {
        let mut brokers: Vec<Address> = self.connections.keys().cloned().collect();
        for text in &self.config.brokers {
            brokers.push(Address::parse(text)?);
        }
        brokers.extend(self.known.iter().cloned());
        brokers.sort_by_key(|broker| self.distrusted.as_ref() == Some(broker));
        let mut tried = BTreeSet::new();
        let mut failure = None;
        for broker in brokers {
            if !tried.insert(broker.clone()) {
                continue;
            }
            match self.ask(&broker, request, self.config.request_timeout).await {
                Ok(answer) => return Ok(answer),
                // What only a person can end is told before what may pass.
                Err(error) if failure.as_ref().is_none_or(|known: &AdminError| !known.is_permanent()) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or(AdminError::NoBrokers))
    }

    /// Asks one broker, on the connection to it or, if that has ended, on a new one.
    async fn ask<C: Call>(&mut self, broker: &Address, request: &C, within: Duration) -> Result<C::Answer, AdminError> {
        if let Some(mut connection) = self.connections.remove(broker) {
            match connection.call(request, within).await {
                Ok(answer) => {
                    self.connections.insert(broker.clone(), connection);
                    return Ok(answer);
                }
                // Brokers close connections that were quiet for long.
                Err(WireError::Closed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.dialer.connect(broker).await?;
        let answer = connection.call(request, within).await?;
        self.connections.insert(broker.clone(), connection);
        Ok(answer)
    }
}

fn topic_refused(topic: &str, error: ResponseError) -> AdminError {
    AdminError::refused(format!("topic {topic}"), Permission::on_topic(Operation::Describe, topic), error, None)
}

/// What the leader of a partition that is read has answered, or whoever knows the leader.
pub(super) fn partition_refused(topic: &Arc<str>, partition: u32, error: ResponseError) -> AdminError {
    let what = format!("topic {topic}, partition {partition}");
    AdminError::refused(what, Permission::on_topic(Operation::Read, topic.clone()), error, None)
}

fn replicas(topic: &MetadataResponseTopic) -> BTreeMap<i32, Replicas> {
    let partitions = topic.partitions.iter().map(|partition| {
        let replicas = Replicas {
            leader: (partition.leader_id.0 >= 0).then_some(partition.leader_id.0),
            count: partition.replica_nodes.len(),
            in_sync: partition.isr_nodes.len(),
        };
        (partition.partition_index, replicas)
    });
    partitions.collect()
}

fn is_bootstrap(config: &Config, address: &Address) -> bool {
    config.brokers.iter().any(|text| Address::parse(text).is_ok_and(|parsed| parsed == *address))
}

pub(super) fn text(text: &Arc<str>) -> StrBytes {
    StrBytes::from_string(text.to_string())
}

pub(super) fn topic_name(name: &Arc<str>) -> TopicName {
    TopicName(text(name))
}

pub(super) fn group_id(config: &Config) -> GroupId {
    GroupId(text(&config.group))
}

pub(super) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
