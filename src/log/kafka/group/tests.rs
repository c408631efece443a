//! Members of a real Kafka's groups: what no script of ours can know.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use kafka_protocol::{
    error::ResponseError,
    messages::{
        ApiVersionsRequest, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId, JoinGroupRequest,
        TopicName, join_group_request::JoinGroupRequestProtocol,
    },
    protocol::StrBytes,
};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::log::{
    BootTime,
    kafka::{
        admin::{Admin, Cluster},
        testing::{Kafka, unique},
        wire::{Address, Call, Connection, Dialer},
    },
};

mod scripted;

/// What a machine that has much else to do may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long what is under way takes where a partition goes to another member.
const IN_FLIGHT: Duration = Duration::from_millis(300);

const LANES: [&str; 3] = [".high", "", ".low"];

fn config(kafka: &Kafka, group: &str) -> Config {
    Config {
        brokers: vec![kafka.address()],
        group: group.into(),
        session_timeout: Duration::from_secs(6),
        heartbeat_interval: Duration::from_millis(300),
        rebalance_timeout: Duration::from_secs(15),
        metadata_refresh: Duration::from_millis(500),
        ..Config::default()
    }
}

fn topic(name: &str) -> GroupTopic {
    GroupTopic { name: name.into(), target: "default".into(), fingerprint: "redis:6379/0".into() }
}

fn lanes(kafka: &Kafka, name: &str, partitions: u16) -> Vec<GroupTopic> {
    let topics = LANES.map(|lane| topic(&format!("{name}{lane}")));
    for topic in &topics {
        kafka.create_topic(&topic.name, partitions, &[]);
    }
    topics.to_vec()
}

/// A member, and what a test knows of it.
struct Joined {
    group: Group,
    events: mpsc::Receiver<Event>,
}

/// A partition that a member was told of.
#[derive(Debug)]
struct Assigned {
    topic: Arc<str>,
    partition: i32,
    epoch: Epoch,
    committed: Option<Committed>,
    lease: Lease,
}

impl Joined {
    fn join(config: Config, topics: Vec<GroupTopic>) -> Self {
        let (group, events) = Group::join(Arc::new(config), Security::default(), topics);
        Self { group, events }
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        event.expect("an event comes in time").expect("it is still a member")
    }

    /// The next partitions that it gets.
    async fn assigned(&mut self, count: usize) -> Vec<Assigned> {
        let mut assigned = Vec::new();
        while assigned.len() < count {
            match self.event().await {
                Event::Assigned { topic, partition, epoch, committed, lease } => {
                    assigned.push(Assigned { topic, partition, epoch, committed, lease });
                }
                other => panic!("it is not assigned: {other:?}"),
            }
        }
        assigned.sort_by_key(|assigned| (assigned.topic.clone(), assigned.partition));
        assigned
    }

    async fn commit(&self, to: &Assigned, offset: i64, metadata: &str) -> Result<(), CommitError> {
        self.group.commit(&to.topic, to.partition, to.epoch, offset, metadata.to_owned()).await
    }

    async fn generation(&self) -> i32 {
        let mut standing = self.group.standing();
        let member = standing.wait_for(|standing| matches!(standing, Standing::Member { .. }));
        let member = tokio::time::timeout(PATIENCE, member).await.expect("it is a member in time");
        match &*member.expect("it is not over") {
            Standing::Member { generation, .. } => *generation,
            other => panic!("it is no member: {other:?}"),
        }
    }
}

/// A runtime of its own for a member, so that it can stand still as a stopped process does, or vanish as a killed one.
struct Island {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Island {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        });
        Self { handle, end: Some(end), thread: Some(thread) }
    }

    fn join(&self, config: Config, topics: Vec<GroupTopic>) -> Joined {
        let _entered = self.handle.enter();
        Joined::join(config, topics)
    }

    /// Nothing on the island moves until the answer is dropped.
    fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (thaw, thawed) = std::sync::mpsc::channel::<()>();
        self.handle.spawn(async move {
            let _ = thawed.recv();
        });
        thaw
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the island does not panic");
        }
    }
}

/// What all members of a test believe, side by side.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<(Arc<str>, i32), Page>>);

#[derive(Default)]
struct Page {
    owner: Option<(String, Lease)>,
    committed: Option<i64>,
}

impl Ledger {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, i32), Page>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, name: &str, assigned: &Assigned) {
        let mut pages = self.pages();
        let page = pages.entry((assigned.topic.clone(), assigned.partition)).or_default();
        if let Some((owner, lease)) = &page.owner {
            assert!(!lease.is_valid(BootTime::now()), "{name} and {owner} own {assigned:?} at once");
        }
        let found = assigned.committed.as_ref().map(|committed| committed.offset);
        // A commit may have been stored whose member did not live to hear it.
        let next = Some(page.committed.map_or(1, |offset| offset + 1));
        assert!(found == page.committed || found == next, "{name}: {found:?} and not {:?}", page.committed);
        page.committed = found;
        page.owner = Some((name.to_owned(), assigned.lease.clone()));
    }

    fn release(&self, name: &str, topic: &Arc<str>, partition: i32) {
        let mut pages = self.pages();
        let page = pages.entry((topic.clone(), partition)).or_default();
        if page.owner.as_ref().is_some_and(|(owner, _)| owner == name) {
            page.owner = None;
        }
    }

    /// Whether these members and no others own all partitions, evenly, and all lanes of one together.
    fn is_settled(&self, members: &[&str], partitions: usize) -> bool {
        let pages = self.pages();
        let mut owned: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
        let mut count = 0;
        for ((_, partition), page) in pages.iter() {
            if let Some((owner, lease)) = &page.owner
                && lease.is_valid(BootTime::now())
            {
                owned.entry(owner).or_default().insert(*partition);
                count += 1;
            }
        }
        let units: usize = owned.values().map(BTreeSet::len).sum();
        let most = owned.values().map(BTreeSet::len).max().unwrap_or(0);
        let least = owned.values().map(BTreeSet::len).min().unwrap_or(0);
        owned.keys().copied().collect::<BTreeSet<&str>>() == members.iter().copied().collect()
            && count == partitions * LANES.len()
            && units == partitions
            && most - least <= 1
    }

    async fn settles(&self, members: &[&str], partitions: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_settled(members, partitions) {
            assert!(Instant::now() < deadline, "{members:?} do not settle");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until each partition has gone on by some commits.
    async fn goes_on(&self) {
        let before: Vec<i64> = self.pages().values().map(|page| page.committed.unwrap_or(0)).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now: Vec<i64> = self.pages().values().map(|page| page.committed.unwrap_or(0)).collect();
            if now.iter().zip(&before).all(|(now, before)| now > before) {
                return;
            }
            assert!(Instant::now() < deadline, "some partition does not go on: {before:?} to {now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Counts up in each partition that it owns, until told to stop. What it is asked for it does not give up at once.
async fn work(name: &str, mut member: Joined, ledger: &Ledger, stop: CancellationToken) {
    let mut owned: BTreeMap<(Arc<str>, i32), (Assigned, i64)> = BTreeMap::new();
    let mut leaving = Vec::new();
    let mut turn = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            event = member.events.recv() => match event {
                Some(Event::Assigned { topic, partition, epoch, committed, lease }) => {
                    let assigned = Assigned { topic: topic.clone(), partition, epoch, committed, lease };
                    ledger.take(name, &assigned);
                    let offset = assigned.committed.as_ref().map_or(0, |committed| committed.offset);
                    owned.insert((topic, partition), (assigned, offset));
                }
                Some(Event::Revoking { topic, partition, done }) => {
                    leaving.push((Instant::now() + IN_FLIGHT, (topic, partition), done));
                }
                Some(Event::Lost { topic, partition, .. }) => {
                    ledger.release(name, &topic, partition);
                    let place = (topic, partition);
                    owned.remove(&place);
                    leaving.retain(|(_, going, _)| *going != place);
                }
                None => return,
            },
            _ = turn.tick() => {
                let now = BootTime::now();
                let valid = owned.values_mut().filter(|(assigned, _)| assigned.lease.is_valid(now));
                join_all(valid.map(async |(assigned, offset)| {
                    if member.commit(assigned, *offset + 1, "").await.is_ok() {
                        *offset += 1;
                        let mut pages = ledger.pages();
                        let page = pages.entry((assigned.topic.clone(), assigned.partition)).or_default();
                        page.committed = page.committed.max(Some(*offset));
                    }
                }))
                .await;
                for (_, place, done) in leaving.extract_if(.., |(until, ..)| *until <= Instant::now()) {
                    ledger.release(name, &place.0, place.1);
                    owned.remove(&place);
                    drop(done);
                }
            }
            () = stop.cancelled() => {
                for ((topic, partition), _) in owned {
                    ledger.release(name, &topic, partition);
                }
                return member.group.leave().await;
            }
        }
    }
}

#[tokio::test]
async fn member_gets_partitions_and_what_was_committed_for_them() {
    let kafka = Kafka::shared();
    let name = unique("commits");
    kafka.create_topic(&name, 3, &[]);
    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let assigned = member.assigned(3).await;
    assert_eq!(assigned.iter().map(|assigned| assigned.partition).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(assigned.iter().all(|assigned| assigned.committed.is_none()));
    assert!(assigned.iter().all(|assigned| assigned.lease.is_valid(BootTime::now())));
    let longest = "x".repeat(MAX_WORDS);
    let too_long = "x".repeat(MAX_WORDS + 1);
    // Side by side, so that they go in one request: what one is refused does not touch the other.
    let (first, second) =
        tokio::join!(member.commit(&assigned[0], 7, &longest), member.commit(&assigned[1], 3, &too_long));
    assert_eq!(first, Ok(()));
    let Err(CommitError::Unavailable { reason }) = second else { panic!("it is too long: {second:?}") };
    assert!(reason.contains("offset.metadata.max.bytes"), "{reason}");
    member.group.leave().await;
    assert!(assigned.iter().all(|assigned| !assigned.lease.is_valid(BootTime::now())));
    assert_eq!(member.commit(&assigned[0], 8, "").await, Err(CommitError::Closed));
    member.group.leave().await;

    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let again = member.assigned(3).await;
    assert_eq!(again[0].committed, Some(Committed { offset: 7, metadata: longest }));
    assert_eq!(again[1].committed, None);
    member.group.leave().await;
}

#[tokio::test]
async fn partitions_have_one_owner_while_members_come_and_go() {
    let kafka = Kafka::shared();
    let name = unique("churn");
    let topics = lanes(kafka, &name, 4);
    let ledger = Ledger::default();
    let stops: BTreeMap<&str, CancellationToken> =
        ["a", "b", "c"].into_iter().map(|member| (member, CancellationToken::new())).collect();
    let start = |member: &'static str| {
        let joined = Joined::join(config(kafka, &name), topics.clone());
        work(member, joined, &ledger, stops[member].clone())
    };
    let doomed = Island::new();
    let killed = CancellationToken::new();
    let script = async {
        ledger.settles(&["a"], 4).await;
        ledger.goes_on().await;
        tokio::join!(start("b"), start("c"), async {
            ledger.settles(&["a", "b", "c"], 4).await;
            ledger.goes_on().await;
            stops["b"].cancel();
            ledger.settles(&["a", "c"], 4).await;
            ledger.goes_on().await;
            // One that dies without a word.
            let joined = doomed.join(config(kafka, &name), topics.clone());
            let mut dies = Box::pin(work("d", joined, &ledger, killed.clone()));
            tokio::select! {
                () = &mut dies => panic!("it has not been told to stop"),
                () = ledger.settles(&["a", "c", "d"], 4) => {}
            }
            drop(doomed);
            tokio::join!(dies, ledger.settles(&["a", "c"], 4));
            ledger.goes_on().await;
            stops["a"].cancel();
            ledger.settles(&["c"], 4).await;
            ledger.goes_on().await;
            stops["c"].cancel();
        });
    };
    tokio::join!(start("a"), script);
}

#[tokio::test]
async fn stopped_member_loses_its_partitions_and_its_commits() {
    let kafka = Kafka::shared();
    let name = unique("stopped");
    kafka.create_topic(&name, 2, &[]);
    let island = Island::new();
    let mut stopped = island.join(config(kafka, &name), vec![topic(&name)]);
    let before = stopped.assigned(2).await;
    assert_eq!(stopped.commit(&before[0], 5, "").await, Ok(()));

    let thaw = island.freeze();
    let mut heir = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let after = heir.assigned(2).await;
    assert!(before.iter().all(|assigned| !assigned.lease.is_valid(BootTime::now())), "two owners at once");
    assert_eq!(after[0].committed.as_ref().map(|committed| committed.offset), Some(5));
    assert_eq!(heir.commit(&after[0], 6, "").await, Ok(()));

    drop(thaw);
    assert_eq!(stopped.commit(&before[0], 9, "").await, Err(CommitError::EpochOver));
    for _ in 0..2 {
        assert!(matches!(stopped.event().await, Event::Lost { .. }));
    }
    // It comes back as another member, and the heir's commit stands.
    let Event::Revoking { partition, done, .. } = heir.event().await else { panic!("one of two goes") };
    drop(done);
    let back = stopped.assigned(1).await;
    assert_eq!(back[0].partition, partition);
    let stored = Admin::new(Arc::new(config(kafka, &name)), Security::default())
        .committed(&Cluster::default(), &[(name.as_str().into(), 0), (name.as_str().into(), 1)])
        .await
        .expect("the broker answers");
    let stored: Vec<_> = stored.into_values().collect();
    assert_eq!(stored[0].as_ref().map(|committed| committed.offset), Some(6));
    assert_eq!(stored[1], None);
    tokio::join!(heir.group.leave(), stopped.group.leave());
}

#[tokio::test]
async fn commits_go_on_while_a_join_waits_for_a_silent_member() {
    let kafka = Kafka::shared();
    let name = unique("silent");
    kafka.create_topic(&name, 2, &[]);
    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let mut assigned = member.assigned(2).await;
    let island = Island::new();
    let mut silent = island.join(config(kafka, &name), vec![topic(&name)]);
    let Event::Revoking { partition, done, .. } = member.event().await else { panic!("one of two goes") };
    drop(done);
    silent.assigned(1).await;
    let thaw = island.freeze();
    // A third one makes the group wait for the silent one, until its session is over.
    let mut third = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let mut joins = member.group.standing();
    let waits = joins.wait_for(|standing| matches!(standing, Standing::Outside { problem: None }));
    tokio::time::timeout(PATIENCE, waits).await.expect("it joins in time").expect("it is not over");
    // The membership's connection is taken by the join that waits.
    assigned.retain(|assigned| assigned.partition != partition);
    assert_eq!(member.commit(&assigned[0], 1, "").await, Ok(()));
    assert!(matches!(&*joins.borrow(), Standing::Outside { .. }), "the join was over before the commit");
    let inherited = third.assigned(1).await;
    assert_eq!(inherited[0].partition, partition);
    drop(thaw);
    tokio::join!(member.group.leave(), third.group.leave(), silent.group.leave());
}

#[tokio::test]
async fn coordinator_that_restarts_keeps_its_member() {
    let mut kafka = Kafka::start();
    let name = unique("restart");
    kafka.create_topic(&name, 2, &[]);
    let patient = Config {
        session_timeout: Duration::from_secs(60),
        rebalance_timeout: Duration::from_secs(120),
        ..config(&kafka, &name)
    };
    let mut member = Joined::join(patient, vec![topic(&name)]);
    let assigned = member.assigned(2).await;
    assert_eq!(member.commit(&assigned[0], 5, "before").await, Ok(()));
    let generation = member.generation().await;
    kafka.kill9();
    let mut standing = member.group.standing();
    let notices = standing.wait_for(|standing| matches!(standing, Standing::Outside { problem: Some(_) }));
    tokio::time::timeout(PATIENCE, notices).await.expect("it notices in time").expect("it is not over");
    // The commit is asked for while there is nobody to take it.
    let restart = tokio::task::spawn_blocking(move || {
        kafka.restart();
        kafka
    });
    let (stored, restarted) = tokio::join!(member.commit(&assigned[0], 6, "meanwhile"), restart);
    let _kafka = restarted.expect("it restarts");
    assert_eq!(stored, Ok(()));
    assert_eq!(member.generation().await, generation);
    assert!(member.events.try_recv().is_err(), "nothing is lost, and nothing assigned anew");
    assert!(assigned.iter().all(|assigned| assigned.lease.is_valid(BootTime::now())));
    member.group.leave().await;
}

#[tokio::test]
async fn lease_ends_while_the_coordinator_is_silent() {
    let kafka = Kafka::start();
    let name = unique("mute");
    kafka.create_topic(&name, 1, &[]);
    let mut member = Joined::join(config(&kafka, &name), vec![topic(&name)]);
    let mut held = member.assigned(1).await.remove(0);
    kafka.stop();
    let deadline = Instant::now() + PATIENCE;
    while held.lease.is_valid(BootTime::now()) {
        assert!(Instant::now() < deadline, "the lease does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kafka.cont();
    // Whether the broker looks at its clock or at its questions first is its business.
    while !held.lease.is_valid(BootTime::now()) || member.commit(&held, 1, "").await.is_err() {
        assert!(Instant::now() < deadline, "it does not go on");
        match tokio::time::timeout(Duration::from_millis(50), member.events.recv()).await {
            Ok(Some(Event::Assigned { topic, partition, epoch, committed, lease })) => {
                held = Assigned { topic, partition, epoch, committed, lease };
            }
            Ok(Some(Event::Lost { .. })) | Err(_) => {}
            Ok(other) => panic!("nobody else wants it: {other:?}"),
        }
    }
    member.group.leave().await;
}

#[tokio::test]
async fn partition_that_is_not_given_up_in_time_is_lost() {
    let kafka = Kafka::shared();
    let name = unique("stubborn");
    kafka.create_topic(&name, 2, &[]);
    let mut stubborn = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let assigned = stubborn.assigned(2).await;
    let mut newcomer = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let Event::Revoking { partition, done, .. } = stubborn.event().await else { panic!("one of two goes") };
    let going = assigned.iter().find(|assigned| assigned.partition == partition).expect("it was assigned");
    assert!(going.lease.is_valid(BootTime::now()), "what is in flight may finish");
    assert_eq!(stubborn.commit(going, 1, "").await, Ok(()));
    let Event::Lost { partition: lost, .. } = stubborn.event().await else { panic!("it is taken") };
    assert_eq!(lost, partition);
    assert!(!going.lease.is_valid(BootTime::now()));
    assert_eq!(stubborn.commit(going, 2, "").await, Err(CommitError::EpochOver));
    let inherited = newcomer.assigned(1).await;
    assert_eq!((inherited[0].partition, inherited[0].committed.as_ref().map(|stored| stored.offset)), (lost, Some(1)));
    drop(done);
    tokio::join!(stubborn.group.leave(), newcomer.group.leave());
}

#[tokio::test]
async fn members_that_mean_different_servers_both_stop() {
    let kafka = Kafka::shared();
    let name = unique("conflict");
    kafka.create_topic(&name, 2, &[]);
    let mut first = Joined::join(config(kafka, &name), vec![topic(&name)]);
    first.assigned(2).await;
    let elsewhere = GroupTopic { fingerprint: "another:6379/0".into(), ..topic(&name) };
    let mut second = Joined::join(config(kafka, &name), vec![elsewhere]);
    for _ in 0..2 {
        let Event::Revoking { done, .. } = first.event().await else { panic!("nothing of it may be executed") };
        drop(done);
    }
    second.generation().await;
    assert!(second.events.try_recv().is_err());
    second.group.leave().await;
    first.assigned(2).await;
    first.group.leave().await;
}

#[tokio::test]
async fn topics_that_are_made_or_grow_are_assigned() {
    let kafka = Kafka::shared();
    let name = unique("later");
    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    member.generation().await;
    kafka.create_topic(&name, 1, &[]);
    assert_eq!(member.assigned(1).await[0].partition, 0);
    member.group.leave().await;

    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    member.assigned(1).await;
    kafka.grow_topic(&name, 3);
    let new: Vec<i32> = member.assigned(2).await.iter().map(|assigned| assigned.partition).collect();
    assert_eq!(new, [1, 2]);
    member.group.leave().await;
}

#[tokio::test]
async fn partitions_that_a_follower_sees_first_are_shared_out() {
    let kafka = Kafka::shared();
    let name = unique("grows");
    kafka.create_topic(&name, 2, &[]);
    let blind = Config { metadata_refresh: Duration::from_secs(3600), ..config(kafka, &name) };
    let mut leader = Joined::join(blind, vec![topic(&name)]);
    leader.assigned(2).await;
    let mut follower = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let Event::Revoking { done, .. } = leader.event().await else { panic!("one of two goes") };
    drop(done);
    follower.assigned(1).await;
    kafka.grow_topic(&name, 4);
    let mut new: Vec<i32> = Vec::new();
    for member in [&mut leader, &mut follower] {
        new.extend(member.assigned(1).await.iter().map(|assigned| assigned.partition));
    }
    new.sort_unstable();
    assert_eq!(new, [2, 3]);
    tokio::join!(leader.group.leave(), follower.group.leave());
}

#[tokio::test]
async fn static_member_comes_back_to_its_partitions() {
    let kafka = Kafka::shared();
    let name = unique("static");
    kafka.create_topic(&name, 2, &[]);
    let instance = |instance: &str| Config {
        instance_id: Some(instance.into()),
        session_timeout: Duration::from_secs(60),
        rebalance_timeout: Duration::from_secs(120),
        ..config(kafka, &name)
    };
    let mut first = Joined::join(instance("pod-0"), vec![topic(&name)]);
    first.assigned(2).await;
    let mut second = Joined::join(instance("pod-1"), vec![topic(&name)]);
    let Event::Revoking { done, .. } = first.event().await else { panic!("one of two goes") };
    drop(done);
    let mine = second.assigned(1).await.remove(0);
    assert_eq!(second.commit(&mine, 4, "").await, Ok(()));
    second.group.leave().await;
    let mut second = Joined::join(instance("pod-1"), vec![topic(&name)]);
    let back = second.assigned(1).await.remove(0);
    assert_eq!(back.partition, mine.partition);
    assert_eq!(back.committed.as_ref().map(|committed| committed.offset), Some(4));
    assert!(first.events.try_recv().is_err(), "the other one was disturbed");

    // Another process of the same name takes its place.
    let mut usurper = Joined::join(instance("pod-1"), vec![topic(&name)]);
    usurper.assigned(1).await;
    let mut standing = second.group.standing();
    let fenced = standing.wait_for(|standing| matches!(standing, Standing::Failed { .. }));
    let fenced = tokio::time::timeout(PATIENCE, fenced).await.expect("it is fenced in time");
    let Standing::Failed { reason } = &*fenced.expect("it has said so") else { panic!("it goes on") };
    assert!(reason.contains("pod-1"), "{reason}");
    assert!(!back.lease.is_valid(BootTime::now()));
    tokio::join!(first.group.leave(), usurper.group.leave());
}

#[tokio::test]
async fn consumer_that_takes_nothing_loses_the_membership() {
    let kafka = Kafka::shared();
    let name = unique("stuck");
    kafka.create_topic(&name, 80, &[]);
    let short = Config {
        session_timeout: Duration::from_secs(2),
        rebalance_timeout: Duration::from_secs(3),
        ..config(kafka, &name)
    };
    let stuck = Joined::join(short, vec![topic(&name)]);
    let mut standing = stuck.group.standing();
    let failed = standing.wait_for(|standing| matches!(standing, Standing::Failed { .. }));
    let failed = tokio::time::timeout(PATIENCE, failed).await.expect("it fails in time");
    let Standing::Failed { reason } = &*failed.expect("it has said so") else { panic!("it goes on") };
    assert!(reason.contains("taken no assignment"), "{reason}");
    stuck.group.leave().await;
    let size = Admin::new(Arc::new(config(kafka, &name)), Security::default()).group_size().await;
    assert_eq!(size, Ok(0));
}

#[tokio::test]
async fn process_beyond_the_stand_bys_waits_for_room() {
    let kafka = Kafka::shared();
    let name = unique("room");
    kafka.create_topic(&name, 1, &[]);
    let mut owner = Joined::join(config(kafka, &name), vec![topic(&name)]);
    owner.assigned(1).await;
    let stand_by = Joined::join(config(kafka, &name), vec![topic(&name)]);
    stand_by.generation().await;
    let another = Joined::join(config(kafka, &name), vec![topic(&name)]);
    another.generation().await;
    let spare = Joined::join(config(kafka, &name), vec![topic(&name)]);
    let mut standing = spare.group.standing();
    let waits = standing.wait_for(|standing| *standing == Standing::Spare);
    tokio::time::timeout(PATIENCE, waits).await.expect("it looks in time").expect("it is not over");
    another.group.leave().await;
    spare.generation().await;
    tokio::join!(owner.group.leave(), stand_by.group.leave(), spare.group.leave());
}

/// A consumer of the protocol that came with Kafka 4.
impl Call for ConsumerGroupHeartbeatRequest {
    const NAME: &str = "ConsumerGroupHeartbeatRequest";
    const KEY: i16 = 68;
    const VERSION: i16 = 1;
    const NEWER: Option<i16> = None;
    type Answer = ConsumerGroupHeartbeatResponse;
}

async fn connection(kafka: &Kafka) -> Connection {
    let dialer = Dialer::new(&config(kafka, "any"), Security::default());
    let address = Address::parse(&kafka.address()).expect("it is one");
    dialer.connect(&address).await.expect("it is up")
}

#[tokio::test]
async fn consumers_of_other_kinds_are_refused_loudly() {
    let kafka = Kafka::shared();
    let name = unique("foreign");
    kafka.create_topic(&name, 2, &[]);
    let mut member = Joined::join(config(kafka, &name), vec![topic(&name)]);
    member.assigned(2).await;
    let generation = member.generation().await;
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let mut connection = connection(kafka).await;

    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let classic = JoinGroupRequest::default()
        .with_group_id(GroupId(text(&name)))
        .with_session_timeout_ms(6000)
        .with_rebalance_timeout_ms(6000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    let answer = connection.call(&classic, PATIENCE).await.expect("it answers");
    assert_eq!(answer.error_code, ResponseError::InconsistentGroupProtocol.code());

    let modern = |group: &str| {
        ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_member_id(text("another"))
            .with_member_epoch(0)
            .with_rebalance_timeout_ms(6000)
            .with_subscribed_topic_names(Some(vec![TopicName(text(&name))]))
            .with_topic_partitions(Some(Vec::new()))
    };
    let known = connection.call(&ApiVersionsRequest::default(), PATIENCE).await.expect("it answers").api_keys;
    // A broker before Kafka 4 has no such consumers.
    if known.iter().any(|known| known.api_key == ConsumerGroupHeartbeatRequest::KEY && known.max_version >= 1) {
        let elsewhere = connection.call(&modern(&unique("elsewhere")), PATIENCE).await.expect("it answers");
        assert_eq!(elsewhere.error_code, 0, "a group of its own kind takes it in");
        let answer = connection.call(&modern(&name), PATIENCE).await.expect("it answers");
        assert_eq!(answer.error_code, ResponseError::GroupIdNotFound.code(), "{:?}", answer.error_message);
    }
    assert!(member.events.try_recv().is_err(), "the member was disturbed");
    assert_eq!(member.generation().await, generation);
    member.group.leave().await;
}
