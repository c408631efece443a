//! Asks brokers what a [`Member`] wants to know, and tells the consumer what comes of it. One task owns all state.
//!
//! Three questions may be on their way: one of membership, one about offsets (a join blocks the connection that it is
//! on until the group is complete), and one that any broker answers. A connection goes with its question and comes back
//! with the answer.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Command, Event, GroupTopic, TopicPartition,
    assignor::Conflict,
    commits::CommitId,
    holdings::Change,
    member::{Answer, Member, OffsetsAnswer, OffsetsQuestion, Output, Question, Seen, Settings, Standing},
};
use crate::log::{
    BootTime, CommitError, Epoch,
    kafka::{
        admin::{Admin, AdminError},
        config::Config,
        security::Security,
        wire::{Address, Connection, Dialer, WireError},
    },
};

/// A consumer that takes nothing for so many rebalance timeouts is stuck.
const STUCK_AFTER: u32 = 2;

/// Between two looks at topics of which one seems to be gone, or none of which was answered.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A question on its way. Its connection comes back with the answer, if it is of more use.
type Asking<A> = BoxFuture<'static, (Option<Connection>, Result<A, WireError>)>;

/// A place for one question at a time, and the connection that it goes over.
struct Lane<A> {
    connection: Option<Connection>,
    asking: Option<Asking<A>>,
}

impl<A> Lane<A> {
    fn new() -> Self {
        Self { connection: None, asking: None }
    }

    /// Resolves with the answer to what was asked; never while nothing was.
    async fn answer(&mut self) -> Result<A, WireError> {
        let Some(asking) = &mut self.asking else {
            return future::pending().await;
        };
        let (connection, answer) = asking.await;
        self.asking = None;
        self.connection = connection;
        answer
    }
}

enum AdminAnswer {
    Coordinator(Result<Address, AdminError>),
    Topics(Result<BTreeMap<Arc<str>, Seen>, AdminError>),
    Size(Result<usize, AdminError>),
}

enum Happened {
    Membership(Result<Answer, WireError>),
    Offsets(Result<OffsetsAnswer, WireError>),
    Admin(AdminAnswer),
    Drained(TopicPartition, Epoch),
    /// There is room for an event, if anybody is there to take it.
    Room(bool),
    Command(Option<Command>),
    Nothing,
}

type Drained = BoxFuture<'static, (TopicPartition, Epoch)>;

pub(super) struct Task {
    config: Arc<Config>,
    dialer: Dialer,
    topics: Vec<GroupTopic>,
    member: Member,
    coordinator: Option<Address>,
    membership: Lane<Answer>,
    offsets: Lane<OffsetsAnswer>,
    admin: Option<Admin>,
    asking_admin: Option<BoxFuture<'static, (Admin, AdminAnswer)>>,
    look_at_topics_at: Instant,
    commands: mpsc::Receiver<Command>,
    waiting: HashMap<CommitId, oneshot::Sender<Result<(), CommitError>>>,
    last_commit: u64,
    events: mpsc::Sender<Event>,
    untaken: VecDeque<Event>,
    untaken_since: Option<Instant>,
    drains: FuturesUnordered<Drained>,
    standing: watch::Sender<Standing>,
}

impl Task {
    pub(super) fn new(
        config: Arc<Config>,
        security: Security,
        topics: Vec<GroupTopic>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        standing: watch::Sender<Standing>,
    ) -> Self {
        let now = Instant::now();
        Self {
            dialer: Dialer::new(&config, security.clone()),
            member: Member::new(Settings::new(&config, topics.clone()), now),
            topics,
            coordinator: None,
            membership: Lane::new(),
            offsets: Lane::new(),
            admin: Some(Admin::new(config.clone(), security)),
            asking_admin: None,
            look_at_topics_at: now,
            commands,
            waiting: HashMap::new(),
            last_commit: 0,
            events,
            untaken: VecDeque::new(),
            untaken_since: None,
            drains: FuturesUnordered::new(),
            standing,
            config,
        }
    }

    pub(super) async fn run(mut self) {
        while self.step().await {}
        self.leave().await;
    }

    /// Asks what is to be asked, waits for one thing to happen, and acts on it. False when the membership is to end.
    async fn step(&mut self) -> bool {
        self.ask();
        if !self.tell() {
            return false;
        }
        let wake = self.next_tick();
        let happened = tokio::select! {
            answer = self.membership.answer() => Happened::Membership(answer),
            answer = self.offsets.answer() => Happened::Offsets(answer),
            (admin, answer) = resolved(&mut self.asking_admin) => {
                self.admin = Some(admin);
                Happened::Admin(answer)
            }
            Some((partition, epoch)) = self.drains.next() => Happened::Drained(partition, epoch),
            permit = self.events.reserve(), if !self.untaken.is_empty() => Happened::Room(permit.is_ok()),
            command = self.commands.recv() => Happened::Command(command),
            () = sleep_until(wake) => Happened::Nothing,
        };
        let goes_on = self.act_on(happened);
        if self.member.takes_a_look() {
            self.look_at_topics_soon(Instant::now());
        }
        self.member.tick(Instant::now());
        goes_on
    }

    fn act_on(&mut self, happened: Happened) -> bool {
        let now = Instant::now();
        match happened {
            Happened::Membership(answer) => self.member.answered(answer.map_err(|error| error.to_string()), now),
            Happened::Offsets(answer) => self.member.answered_offsets(answer.map_err(|error| error.to_string()), now),
            Happened::Admin(answer) => self.admin_answered(answer, now),
            Happened::Drained(partition, epoch) => self.member.drained(&partition, epoch),
            Happened::Room(true) => {
                if let Some(event) = self.untaken.pop_front() {
                    // Nobody else sends, so that the room is still there; it is for nobody if the consumer has gone.
                    let _ = self.events.try_send(event);
                }
                self.untaken_since = None;
            }
            // Nobody consumes any more.
            Happened::Room(false) => return false,
            Happened::Command(command) => return self.obey(command, now),
            Happened::Nothing => {}
        }
        true
    }

    fn next_tick(&self) -> Instant {
        let now = Instant::now();
        let stuck_at = self.untaken_since.map(|since| since + self.stuck_after());
        // While a question is on its way to some broker, its answer wakes.
        let look_at = self.asking_admin.is_none().then_some(self.look_at_topics_at);
        [self.member.next_tick(now), look_at, stuck_at]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + self.config.metadata_refresh)
    }

    fn stuck_after(&self) -> Duration {
        self.config.rebalance_timeout * STUCK_AFTER
    }

    fn ask(&mut self) {
        let now = Instant::now();
        self.ask_any_broker(now);
        if !self.member.has_coordinator() {
            // A connection to one that is none is of no use; a question on its way may still be answered.
            self.membership.connection = None;
            self.offsets.connection = None;
            return;
        }
        let Some(coordinator) = self.coordinator.clone() else {
            return;
        };
        if let Some(question) = self.member.next_question(now, BootTime::now()) {
            let within = self.member.patience(&question, self.config.request_timeout);
            let connection = self.membership.connection.take();
            self.membership.asking =
                Some(ask_membership(self.dialer.clone(), coordinator.clone(), connection, question, within).boxed());
        }
        if let Some(question) = self.member.next_offsets_question(now, BootTime::now()) {
            let within = self.config.request_timeout;
            let connection = self.offsets.connection.take();
            self.offsets.asking =
                Some(ask_offsets(self.dialer.clone(), coordinator, connection, question, within).boxed());
        }
    }

    fn ask_any_broker(&mut self, now: Instant) {
        let wants_coordinator = self.member.wants_coordinator(now);
        let wants_size = self.member.wants_size(now);
        if !wants_coordinator && !wants_size && now < self.look_at_topics_at {
            return;
        }
        let Some(mut admin) = self.admin.take() else {
            return;
        };
        self.asking_admin = Some(if wants_coordinator {
            if let Some(former) = &self.coordinator {
                admin.distrust(former);
            }
            async move {
                let answer = admin.coordinator().await;
                (admin, AdminAnswer::Coordinator(answer))
            }
            .boxed()
        } else if wants_size {
            async move {
                let answer = admin.group_size().await;
                (admin, AdminAnswer::Size(answer))
            }
            .boxed()
        } else {
            self.look_at_topics_at = now + self.config.metadata_refresh;
            let names: Vec<Arc<str>> = self.topics.iter().map(|topic| topic.name.clone()).collect();
            async move {
                let answer = admin.cluster(&names).await.map(|cluster| {
                    let seen = names.into_iter().filter_map(|name| {
                        let partitions = i32::try_from(cluster.topics.get(&*name)?.len()).unwrap_or(i32::MAX);
                        let id = cluster.ids.get(&*name).copied();
                        Some((name, Seen { partitions, id }))
                    });
                    seen.collect()
                });
                (admin, AdminAnswer::Topics(answer))
            }
            .boxed()
        });
    }

    fn admin_answered(&mut self, answer: AdminAnswer, now: Instant) {
        match answer {
            AdminAnswer::Coordinator(Ok(address)) => {
                if self.coordinator.as_ref() != Some(&address) {
                    // The old one may never answer.
                    self.membership = Lane::new();
                    self.offsets.connection = None;
                    self.member.given_up();
                    self.coordinator = Some(address);
                }
                self.member.coordinator_found();
            }
            AdminAnswer::Coordinator(Err(error)) => self.member.coordinator_missing(error.to_string(), now),
            AdminAnswer::Size(Ok(members)) => self.member.size_seen(members, now),
            AdminAnswer::Size(Err(error)) => {
                tracing::debug!("The size of the group is not known: {error}");
                self.member.size_unknown(error.is_permanent(), now);
            }
            AdminAnswer::Topics(Ok(seen)) => self.member.topics_seen(seen),
            AdminAnswer::Topics(Err(error)) => {
                tracing::debug!("Topics could not be looked at: {error}");
                self.look_at_topics_soon(now);
            }
        }
    }

    fn look_at_topics_soon(&mut self, now: Instant) {
        self.look_at_topics_at = self.look_at_topics_at.min(now + LOOK_AGAIN_AFTER);
    }

    fn obey(&mut self, command: Option<Command>, now: Instant) -> bool {
        match command {
            Some(Command::Commit { partition, epoch, offset, metadata, answer }) => {
                self.last_commit += 1;
                let id = CommitId(self.last_commit);
                self.waiting.insert(id, answer);
                self.member.commit(partition, epoch, offset, metadata, id, now);
            }
            Some(Command::Doubt { partition, epoch, doubt }) => self.member.doubt(&partition, epoch, doubt),
            Some(Command::Leave) | None => return false,
        }
        true
    }

    /// Tells what has come of answers. False when this process can be no member any more.
    fn tell(&mut self) -> bool {
        for output in self.member.take_outputs() {
            match output {
                Output::Change(change) => {
                    let event = self.event(change);
                    self.untaken.push_back(event);
                }
                Output::Committed { id, result } => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        // Its caller may have given up.
                        let _ = answer.send(result);
                    }
                }
                Output::Conflicts(conflicts) if conflicts.is_empty() => {
                    tracing::info!("All members of the group mean the same servers by their targets again");
                }
                Output::Conflicts(conflicts) => conflicts.iter().for_each(tell_conflict),
            }
        }
        if self.untaken.is_empty() {
            self.untaken_since = None;
        } else {
            let since = *self.untaken_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.stuck_after() {
                self.member.stuck(since.elapsed());
            }
        }
        let standing = self.member.standing();
        self.standing.send_if_modified(|known| {
            let is_new = *known != standing;
            if is_new {
                tell_standing(&standing);
                known.clone_from(&standing);
            }
            is_new
        });
        !matches!(standing, Standing::Failed { .. })
    }

    fn event(&mut self, change: Change) -> Event {
        match change {
            Change::Assigned { partition: TopicPartition { topic, partition }, epoch, committed, lease } => {
                Event::Assigned { topic, partition, epoch, committed, lease }
            }
            Change::Revoking { partition, epoch } => {
                let (done, is_done) = oneshot::channel();
                let TopicPartition { topic, partition: index } = partition.clone();
                self.drains.push(is_done.map(move |_| (partition, epoch)).boxed());
                Event::Revoking { topic, partition: index, done }
            }
            Change::Lost { partition: TopicPartition { topic, partition }, loss } => {
                Event::Lost { topic, partition, loss }
            }
        }
    }

    /// Ends the membership, within one request's time.
    async fn leave(mut self) {
        let farewell = self.member.farewell();
        if !matches!(self.member.standing(), Standing::Failed { .. }) {
            self.standing.send_replace(Standing::Left);
        }
        // What was on its way is given up, and with it the connections.
        let coordinator = self.coordinator.take();
        let (Some(farewell), Some(coordinator)) = (farewell, coordinator) else {
            return;
        };
        let goodbye = async {
            let mut connection = self.dialer.connect(&coordinator).await?;
            connection.call(&farewell, self.config.request_timeout).await
        };
        match timeout(self.config.request_timeout, goodbye).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!("The group was not told of the leave, and finds out by itself: {error}"),
            Err(_) => tracing::debug!("The group was not told of the leave in time, and finds out by itself"),
        }
    }
}

async fn resolved<T>(asking: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(question) = asking else {
        return future::pending().await;
    };
    let answer = question.await;
    *asking = None;
    answer
}

async fn ask_membership(
    dialer: Dialer,
    coordinator: Address,
    connection: Option<Connection>,
    question: Question,
    within: Duration,
) -> (Option<Connection>, Result<Answer, WireError>) {
    let mut connection = match connected(&dialer, &coordinator, connection).await {
        Ok(connection) => connection,
        Err(error) => return (None, Err(error)),
    };
    let answer = match &question {
        Question::Join(request) => connection.call(request, within).await.map(Answer::Join),
        Question::Sync(request) => connection.call(request, within).await.map(Answer::Sync),
        Question::Heartbeat(request) => connection.call(request, within).await.map(Answer::Heartbeat),
    };
    (answer.is_ok().then_some(connection), answer)
}

async fn ask_offsets(
    dialer: Dialer,
    coordinator: Address,
    connection: Option<Connection>,
    question: OffsetsQuestion,
    within: Duration,
) -> (Option<Connection>, Result<OffsetsAnswer, WireError>) {
    let mut connection = match connected(&dialer, &coordinator, connection).await {
        Ok(connection) => connection,
        Err(error) => return (None, Err(error)),
    };
    let answer = match &question {
        OffsetsQuestion::Fetch(request) => connection.call(request, within).await.map(OffsetsAnswer::Fetch),
        OffsetsQuestion::Commit(request) => connection.call(request, within).await.map(OffsetsAnswer::Commit),
    };
    (answer.is_ok().then_some(connection), answer)
}

async fn connected(
    dialer: &Dialer,
    coordinator: &Address,
    connection: Option<Connection>,
) -> Result<Connection, WireError> {
    match connection {
        Some(connection) => Ok(connection),
        None => dialer.connect(coordinator).await,
    }
}

fn tell_standing(standing: &Standing) {
    match standing {
        Standing::Outside { problem: None } => tracing::debug!("The group is rebalancing"),
        Standing::Outside { problem: Some(problem) } => tracing::warn!("No part of the group: {problem}"),
        Standing::Spare => tracing::info!("The group has members enough; this process only takes tasks for now"),
        Standing::Member { generation, partitions } => {
            tracing::info!("Member of the group in generation {generation}, with {partitions} partitions");
        }
        Standing::Failed { reason } => tracing::error!("Out of the group for good: {reason}"),
        Standing::Left => tracing::info!("Left the group"),
    }
}

fn tell_conflict(conflict: &Conflict) {
    let Conflict { target, fingerprints } = conflict;
    tracing::error!(
        "The target {target} is not the same server for all members of the group: {}. Nobody executes its tasks until it \
         is; give services groups of their own (kafka.group), or say by targets.{target}.identity that it is the same",
        fingerprints.join(", ")
    );
}
