//! Coordinators that do at one moment what a real one does once in a year.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiVersionsResponse, BrokerId, DescribeGroupsResponse, FindCoordinatorResponse, HeartbeatResponse,
        JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, MetadataResponse,
        OffsetCommitRequest, OffsetCommitResponse, OffsetFetchResponse, RequestHeader, SyncGroupResponse, TopicName,
        api_versions_response::ApiVersion,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic},
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// What a member has said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Join { member_id: String },
    Sync,
    Heartbeat,
    Commit { generation: i32 },
    Fetch,
    Leave { member_id: String },
}

/// What a coordinator does: answer with an error code, or nothing at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Answers(i16),
    IsSilent,
}

const OK: Does = Does::Answers(0);

type Script = dyn Fn(&Said) -> Does + Send + Sync;

/// A broker that coordinates a group of one member, `m1`, who gets partition 0 of the topic `q`.
struct Coordinator {
    port: u16,
    /// With the connection on which it was said.
    heard: Arc<Mutex<Vec<(usize, Said)>>>,
    /// Where members are sent who look for the coordinator; itself at first.
    leads: Arc<Mutex<u16>>,
}

impl Coordinator {
    async fn start(script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let heard: Arc<Mutex<Vec<(usize, Said)>>> = Arc::default();
        let leads = Arc::new(Mutex::new(port));
        let connections = AtomicUsize::new(0);
        let (all_heard, all_leads) = (heard.clone(), leads.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                let (heard, leads, script) = (all_heard.clone(), all_leads.clone(), script.clone());
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u32().await {
                        let mut frame = vec![0; usize::try_from(length).expect("it is short")];
                        stream.read_exact(&mut frame).await.expect("frames are whole");
                        let leader = *leads.lock().expect("nobody panics while holding it");
                        let hear = |said: Said| {
                            let does = script(&said);
                            heard.lock().expect("nobody panics while holding it").push((connection, said));
                            does
                        };
                        if let Some(answer) = answer(frame.into(), port, leader, hear) {
                            stream.write_all(&answer).await.expect("the member listens");
                        }
                    }
                });
            }
        });
        Self { port, heard, leads }
    }

    fn joins(&self) -> Vec<(usize, String)> {
        let heard = self.heard.lock().expect("nobody panics while holding it");
        let joins = heard.iter().filter_map(|(connection, said)| match said {
            Said::Join { member_id } => Some((*connection, member_id.clone())),
            _ => None,
        });
        joins.collect()
    }

    fn has_heard(&self, wanted: &Said) -> bool {
        self.heard.lock().expect("nobody panics while holding it").iter().any(|(_, said)| said == wanted)
    }

    async fn hears(&self, wanted: Said) {
        let deadline = Instant::now() + PATIENCE;
        while !self.has_heard(&wanted) {
            assert!(Instant::now() < deadline, "nobody says {wanted:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn config(&self) -> Config {
        Config {
            brokers: vec![format!("127.0.0.1:{}", self.port)],
            session_timeout: Duration::from_secs(60),
            rebalance_timeout: Duration::from_secs(120),
            heartbeat_interval: Duration::from_millis(50),
            ..Config::default()
        }
    }
}

/// The frame that answers a frame.
fn answer(mut frame: Bytes, port: u16, leader: u16, hear: impl Fn(Said) -> Does) -> Option<Bytes> {
    let header = RequestHeader::decode(&mut frame, 1).expect("members speak no newer header");
    let mut body = BytesMut::new();
    body.put_u32(0);
    body.put_i32(header.correlation_id);
    let topic = || TopicName(StrBytes::from_static_str("q"));
    let code = |does| match does {
        Does::Answers(code) => Some(code),
        Does::IsSilent => None,
    };
    match header.request_api_key {
        18 => {
            // Any version of anything.
            let keys =
                // Of metadata the version that is answered below.
                (0..60).map(|key| {
                    let max = if key == 3 { 7 } else { 99 };
                    ApiVersion::default().with_api_key(key).with_min_version(0).with_max_version(max)
                });
            encode(&mut body, &ApiVersionsResponse::default().with_api_keys(keys.collect()), 0);
        }
        3 => {
            let broker = MetadataResponseBroker::default()
                .with_node_id(BrokerId(1))
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(i32::from(port));
            let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1));
            let found = MetadataResponseTopic::default().with_name(Some(topic())).with_partitions(vec![partition]);
            let answer = MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![found]);
            encode(&mut body, &answer, 7);
        }
        10 => {
            let answer = FindCoordinatorResponse::default()
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(i32::from(leader));
            encode(&mut body, &answer, 2);
        }
        15 => encode(&mut body, &DescribeGroupsResponse::default(), 3),
        11 => {
            let member_id = JoinGroupRequest::decode(&mut frame, 5).expect("it is one").member_id.to_string();
            let is_new = member_id.is_empty();
            let code = code(hear(Said::Join { member_id }))?;
            let code = if is_new { ResponseError::MemberIdRequired.code() } else { code };
            let answer = JoinGroupResponse::default()
                .with_error_code(code)
                .with_generation_id(1)
                .with_protocol_name(Some(StrBytes::from_static_str("redrive-v1")))
                .with_leader(StrBytes::from_static_str("another"))
                .with_member_id(StrBytes::from_static_str("m1"));
            encode(&mut body, &answer, 5);
        }
        14 => {
            let code = code(hear(Said::Sync))?;
            let given = [TopicPartition { topic: "q".into(), partition: 0 }].into();
            let answer = SyncGroupResponse::default()
                .with_error_code(code)
                .with_assignment(super::subscription::encode_assignment(&given, &[]));
            encode(&mut body, &answer, 3);
        }
        12 => {
            let code = code(hear(Said::Heartbeat))?;
            encode(&mut body, &HeartbeatResponse::default().with_error_code(code), 3);
        }
        9 => {
            let code = code(hear(Said::Fetch))?;
            let partition = OffsetFetchResponsePartition::default().with_committed_offset(-1);
            let found = OffsetFetchResponseTopic::default().with_name(topic()).with_partitions(vec![partition]);
            encode(&mut body, &OffsetFetchResponse::default().with_error_code(code).with_topics(vec![found]), 5);
        }
        8 => {
            let request = OffsetCommitRequest::decode(&mut frame, 7).expect("it is one");
            let code = code(hear(Said::Commit { generation: request.generation_id_or_member_epoch }))?;
            let partition = OffsetCommitResponsePartition::default().with_error_code(code);
            let stored = OffsetCommitResponseTopic::default().with_name(topic()).with_partitions(vec![partition]);
            encode(&mut body, &OffsetCommitResponse::default().with_topics(vec![stored]), 7);
        }
        13 => {
            let mut request = LeaveGroupRequest::decode(&mut frame, 3).expect("it is one");
            let member_id = request.members.remove(0).member_id.to_string();
            let code = code(hear(Said::Leave { member_id }))?;
            encode(&mut body, &LeaveGroupResponse::default().with_error_code(code), 3);
        }
        other => panic!("nobody should ask for {other}"),
    }
    let length = u32::try_from(body.len() - 4).expect("it is short");
    body[..4].copy_from_slice(&length.to_be_bytes());
    assert!(
        !frame.has_remaining() || matches!(header.request_api_key, 3 | 9 | 10 | 12 | 14 | 15 | 18),
        "bytes are left over"
    );
    Some(body.freeze())
}

fn encode(body: &mut BytesMut, answer: &impl Encodable, version: i16) {
    answer.encode(body, version).expect("it can be said in that version");
}

#[tokio::test]
async fn join_that_is_not_answered_is_begun_again_on_a_new_connection() {
    let is_first = AtomicBool::new(true);
    let script = move |said: &Said| match said {
        Said::Join { member_id } if member_id == "m1" && is_first.swap(false, Ordering::Relaxed) => Does::IsSilent,
        _ => OK,
    };
    let coordinator = Coordinator::start(Arc::new(script)).await;
    let short = Duration::from_millis(100);
    let config = Config {
        rebalance_timeout: short,
        session_timeout: short,
        request_timeout: short,
        heartbeat_interval: Duration::from_millis(10),
        ..coordinator.config()
    };
    let mut member = Joined::join(config, vec![topic("q")]);
    assert_eq!(member.assigned(1).await[0].partition, 0);
    let joins = coordinator.joins();
    let ids: Vec<&str> = joins.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids[..3], ["", "m1", "m1"]);
    assert_ne!(joins[1].0, joins[2].0, "its answer might come late on the old one");
    member.group.leave().await;
}

#[tokio::test]
async fn leaving_does_not_wait_for_a_join() {
    let script = |said: &Said| match said {
        Said::Join { member_id } if member_id == "m1" => Does::IsSilent,
        _ => OK,
    };
    let coordinator = Coordinator::start(Arc::new(script)).await;
    let member = Joined::join(coordinator.config(), vec![topic("q")]);
    coordinator.hears(Said::Join { member_id: "m1".into() }).await;
    tokio::time::timeout(Duration::from_secs(30), member.group.leave()).await.expect("a join waits for two minutes");
    assert!(coordinator.has_heard(&Said::Leave { member_id: "m1".into() }));
}

#[tokio::test]
async fn leaving_a_silent_coordinator_is_bounded() {
    let script = |said: &Said| match said {
        Said::Leave { .. } => Does::IsSilent,
        _ => OK,
    };
    let coordinator = Coordinator::start(Arc::new(script)).await;
    let config = Config { request_timeout: Duration::from_millis(200), ..coordinator.config() };
    let mut member = Joined::join(config, vec![topic("q")]);
    let assigned = member.assigned(1).await;
    tokio::time::timeout(Duration::from_secs(30), member.group.leave()).await.expect("it takes as long as a request");
    assert!(!assigned[0].lease.is_valid(BootTime::now()));
    assert!(member.events.recv().await.is_none());
}

#[tokio::test]
async fn join_at_a_coordinator_that_is_none_any_more_is_begun_again_at_the_new_one() {
    let new = Coordinator::start(Arc::new(|_: &Said| OK)).await;
    let joined = AtomicUsize::new(0);
    let script = move |said: &Said| match said {
        // It stops to answer in a rebalance, and only commits tell that it has been replaced.
        Said::Join { member_id } if member_id == "m1" && joined.fetch_add(1, Ordering::Relaxed) > 0 => Does::IsSilent,
        Said::Heartbeat => Does::Answers(ResponseError::RebalanceInProgress.code()),
        Said::Commit { .. } => Does::Answers(ResponseError::NotCoordinator.code()),
        _ => OK,
    };
    let old = Coordinator::start(Arc::new(script)).await;
    let mut member = Joined::join(old.config(), vec![topic("q")]);
    let assigned = member.assigned(1).await.remove(0);
    let deadline = Instant::now() + PATIENCE;
    while old.joins().len() < 3 {
        assert!(Instant::now() < deadline, "it does not join again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    *old.leads.lock().expect("nobody panics while holding it") = new.port;
    assert_eq!(member.commit(&assigned, 1, "").await, Ok(()));
    assert!(new.has_heard(&Said::Commit { generation: 1 }));
    new.hears(Said::Join { member_id: "m1".into() }).await;
    new.hears(Said::Heartbeat).await;
    assert!(assigned.lease.is_valid(BootTime::now()));
    assert!(member.events.try_recv().is_err(), "nothing was lost");
    member.group.leave().await;
    assert!(new.has_heard(&Said::Leave { member_id: "m1".into() }));
}

#[tokio::test]
async fn member_goes_when_nobody_holds_it() {
    let coordinator = Coordinator::start(Arc::new(|_: &Said| OK)).await;
    let mut member = Joined::join(coordinator.config(), vec![topic("q")]);
    member.assigned(1).await;
    drop(member);
    coordinator.hears(Said::Leave { member_id: "m1".into() }).await;
}
