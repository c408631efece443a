//! Real Kafka brokers for tests: of the library, and of the whole in `tests/it`, which includes this file. So it uses
//! nothing of the crate, and speaks to a broker by bytes of its own.
//!
//! A broker is one node, controller and broker in one process, on free ports of the loopback, with a directory of its
//! own. It ends with its value, or with the process of the tests, however that ends. `scripts/kafka-jars` says where
//! its jars are, and fetches them where they are not.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, OnceLock, mpsc},
    time::{Duration, Instant},
};

use ring::pbkdf2;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[path = "testing/guarded.rs"]
pub mod guarded;
#[path = "testing/transactions.rs"]
mod transactions;

/// How long a broker may take to start: only a broken machine takes that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Java's settings for a broker that lives for seconds.
const JAVA_FLAGS: [&str; 4] = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"];

/// What a broker is set up with beside what every one is.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Lines for `server.properties`; the last of a name wins.
    pub properties: Vec<String>,
    /// Arguments for formatting the data directory, `--add-scram` for one. It is copied where there are none.
    pub format_args: Vec<String>,
}

/// Where a broker is going to be.
#[derive(Clone, Debug)]
pub struct Place {
    /// The first is the controller too.
    pub node: u16,
    pub dir: PathBuf,
    pub port: u16,
    pub controller_port: u16,
}

/// A broker; ended when dropped.
pub struct Kafka {
    child: Child,
    place: Place,
    _dir: TempDir,
    _turn: Option<Turn>,
}

/// Few brokers at a time: each takes a core to start.
struct Turn;

static TURN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

impl Turn {
    fn wait() -> Self {
        let taken = TURN.0.lock().expect("nobody panics while holding it");
        *TURN.1.wait_while(taken, |taken| *taken).expect("nobody panics while holding it") = true;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURN.0.lock().expect("nobody panics while holding it") = false;
        TURN.1.notify_one();
    }
}

impl Kafka {
    /// The broker that all tests of the process share. Each uses topics and groups of its own, and none stops it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| {
            let broker = Self::started(&first, &|_| Setup::default(), None);
            remove_with_the_process(&broker.place.dir);
            broker
        })
    }

    /// A broker to stop, to kill, or to set up in some way. There is one at a time beside the shared one.
    pub fn start() -> Self {
        Self::start_with(|_| fast_failover())
    }

    pub fn start_with(setup: impl Fn(&Place) -> Setup) -> Self {
        Self::started(&first, &setup, Some(Turn::wait()))
    }

    /// A second broker of the same cluster, without a vote in it.
    pub fn start_beside(&self) -> Self {
        let place =
            |dir: &TempDir| Place { node: 2, dir: dir.path().to_owned(), port: free_port(), ..self.place.clone() };
        Self::started(&place, &|_| fast_failover(), None)
    }

    /// One that its clients reach by another port than its own: by that of a proxy, for one.
    pub fn start_behind(port: u16, is_at: impl Fn(u16)) -> Self {
        Self::start_with(|place| {
            is_at(place.port);
            let mut setup = fast_failover();
            setup.properties.push(format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}"));
            setup
        })
    }

    /// Three nodes of one cluster, each with a vote, for topics that lie on all of them.
    pub fn start_cluster() -> Vec<Self> {
        let turn = Turn::wait();
        let dirs = [(); 3].map(|()| {
            tempfile::Builder::new().prefix("redrive-kafka-").tempdir().expect("a temporary directory can be made")
        });
        let places: Vec<Place> = (1..).zip(&dirs).map(|(node, dir)| Place { node, ..first(dir) }).collect();
        let voters: Vec<String> =
            places.iter().map(|place| format!("{}@127.0.0.1:{}", place.node, place.controller_port)).collect();
        let nodes = places.into_iter().zip(dirs);
        let mut cluster: Vec<Self> = nodes
            .map(|(place, dir)| {
                format(&place, &of_a_cluster(&place, &voters.join(",")));
                Self { child: spawn(&place), place, _dir: dir, _turn: None }
            })
            .collect();
        for node in cluster.iter_mut().rev() {
            assert!(comes_up(&node.place, &mut node.child), "Kafka does not start:\n{}", log_of(&node.place));
        }
        cluster[0]._turn = Some(turn);
        cluster
    }

    /// Whether all replicas of a topic are in sync, as this broker sees it.
    pub fn is_in_sync(&self, topic: &str) -> bool {
        metadata(self.place.port, Some(topic)).is_ok_and(|found| found.replicas > 0 && found.replicas == found.in_sync)
    }

    /// The node that leads the first partition of a topic, as this broker sees it.
    pub fn leader_of(&self, topic: &str) -> Option<u16> {
        let found = metadata(self.place.port, Some(topic)).ok()?;
        u16::try_from(found.first_leader).ok()
    }

    fn started(place: &dyn Fn(&TempDir) -> Place, setup: &dyn Fn(&Place) -> Setup, turn: Option<Turn>) -> Self {
        let dir =
            tempfile::Builder::new().prefix("redrive-kafka-").tempdir().expect("a temporary directory can be made");
        // Another process may take a port between asking for it and listening: then others are tried.
        for _ in 0..5 {
            let place = place(&dir);
            format(&place, &setup(&place));
            let mut child = spawn(&place);
            if comes_up(&place, &mut child) {
                return Self { child, place, _dir: dir, _turn: turn };
            }
            if !log_of(&place).contains("Address already in use") {
                panic!("Kafka does not start:\n{}", log_of(&place));
            }
        }
        panic!("Kafka does not start: other processes take the ports that it is given");
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.place.port)
    }

    pub fn port(&self) -> u16 {
        self.place.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Freezes it: its sockets stay, and nothing answers.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        // Threads that run at this moment go on for a moment.
        while !self.is_frozen() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_frozen(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the child runs");
        tasks.flatten().all(|task| {
            // `tid (name) state …`: one that has ended meanwhile has none.
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it as a crash does.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Ends it in order, or after ten seconds as a crash does.
    pub fn terminate(&mut self) {
        if self.child.try_wait().expect("the child is ours to wait for").is_some() {
            return;
        }
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().expect("the child is ours to wait for").is_none() {
            if Instant::now() > deadline {
                return self.kill9();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts it again after its end, on the same ports and data, and waits until it answers.
    pub fn restart(&mut self) {
        self.restart_without_waiting();
        assert!(comes_up(&self.place, &mut self.child), "Kafka does not start again:\n{}", log_of(&self.place));
    }

    pub fn restart_without_waiting(&mut self) {
        self.child = spawn(&self.place);
    }

    /// Makes a topic and waits until each of its partitions has a leader.
    pub fn create_topic(&self, name: &str, partitions: u16, configs: &[(&str, &str)]) {
        let mut body = Body::default();
        body.i32(i32::from(partitions)).i16(1).i32(0);
        self.create(name, partitions, &body, configs);
    }

    /// Makes a topic of one partition on these nodes, the first of which leads it.
    pub fn create_topic_on(&self, name: &str, nodes: &[u16], configs: &[(&str, &str)]) {
        let mut body = Body::default();
        body.i32(-1).i16(-1).i32(1).i32(0).i32(nodes.len() as i32);
        for node in nodes {
            body.i32(i32::from(*node));
        }
        self.create(name, 1, &body, configs);
    }

    fn create(&self, name: &str, partitions: u16, placement: &Body, configs: &[(&str, &str)]) {
        // CreateTopics 4
        let mut body = Body::default();
        body.i32(1).string(name).bytes(&placement.0).i32(configs.len() as i32);
        for (name, value) in configs {
            body.string(name).string(value);
        }
        body.i32(30_000).i8(0);
        let mut answer = self.ask(19, 4, &body);
        answer.skip(8).string();
        assert_eq!(answer.i16(), 0, "topic {name} is not made");
        self.wait_for_partitions(name, partitions);
    }

    /// Gives a topic more partitions.
    pub fn grow_topic(&self, name: &str, partitions: u16) {
        // CreatePartitions 1
        let mut body = Body::default();
        body.i32(1).string(name).i32(i32::from(partitions)).i32(-1).i32(30_000).i8(0);
        let mut answer = self.ask(37, 1, &body);
        answer.skip(8).string();
        assert_eq!(answer.i16(), 0, "topic {name} does not grow");
        self.wait_for_partitions(name, partitions);
    }

    /// Sets a config of a topic.
    pub fn set_topic_config(&self, topic: &str, name: &str, value: &str) {
        // IncrementalAlterConfigs 0
        let mut body = Body::default();
        body.i32(1).i8(2).string(topic).i32(1).string(name).i8(0).string(value).i8(0);
        let mut answer = self.ask(44, 0, &body);
        answer.skip(8);
        assert_eq!(answer.i16(), 0, "{name} of topic {topic} is not set");
    }

    pub fn delete_topic(&self, name: &str) {
        // DeleteTopics 1
        let mut body = Body::default();
        body.i32(1).string(name).i32(30_000);
        let mut answer = self.ask(20, 1, &body);
        answer.skip(8).string();
        assert_eq!(answer.i16(), 0, "topic {name} is not deleted");
    }

    /// Appends a record as any producer might, without headers.
    pub fn produce(&self, topic: &str, partition: i32, key: &[u8], value: &[u8]) {
        let mut nobody = Body::default();
        nobody.i16(-1);
        self.append(&nobody, topic, partition, &batch_of_one(&NOBODY, key, value));
    }

    fn append(&self, transaction: &Body, topic: &str, partition: i32, batch: &[u8]) {
        // Produce 3
        let mut body = Body::default();
        body.bytes(&transaction.0).i16(-1).i32(30_000).i32(1).string(topic).i32(1).i32(partition);
        body.i32(batch.len() as i32).bytes(batch);
        let produce = || {
            let mut answer = self.ask(0, 3, &body);
            answer.skip(4).string();
            answer.skip(8);
            answer.i16()
        };
        // A topic that was made just now may be known to the controller and not to its leader.
        assert_eq!(ends_well(produce), 0, "{topic}/{partition} does not take the record");
    }

    /// How many records a partition has had; none while nobody leads it.
    pub fn end_of(&self, topic: &str, partition: i32) -> Option<i64> {
        // ListOffsets 1
        let mut body = Body::default();
        body.i32(-1).i32(1).string(topic).i32(1).i32(partition).i64(-1);
        let mut answer = self.ask(2, 1, &body);
        answer.skip(4).string();
        answer.skip(8);
        let error = answer.i16();
        answer.skip(8);
        (error == 0).then(|| answer.i64())
    }

    /// What a group has committed for the first partition of a topic: the offset, and what is beside it.
    pub fn committed(&self, group: &str, topic: &str) -> (i64, String) {
        // OffsetFetch 5
        let mut body = Body::default();
        body.string(group).i32(1).string(topic).i32(1).i32(0);
        let mut answer = self.ask(9, 5, &body);
        answer.skip(8).string();
        answer.skip(8);
        let offset = answer.i64();
        answer.skip(4);
        (offset, answer.text())
    }

    /// Sets what a group has committed for partitions of a topic, as soon as it has no members and a coordinator.
    pub fn commit(&self, group: &str, topic: &str, partitions: std::ops::Range<i32>, offset: i64, words: &str) {
        // FindCoordinator 2: where nobody has asked for one yet, there is none.
        let mut coordinator = Body::default();
        coordinator.string(group).i8(0);
        self.ask(10, 2, &coordinator);
        for partition in partitions {
            // OffsetCommit 7
            let mut body = Body::default();
            body.string(group).i32(-1).string("").i16(-1).i32(1).string(topic).i32(1).i32(partition);
            body.i64(offset).i32(-1).string(words);
            let commit = || {
                let mut answer = self.ask(8, 7, &body);
                answer.skip(8).string();
                answer.skip(8);
                answer.i16()
            };
            assert_eq!(ends_well(commit), 0, "the offset of {topic}/{partition} is not set");
        }
    }

    /// Lets clients that call themselves so produce that many bytes a second. None: as many as they like.
    pub fn limit_producing(&self, client_id: &str, bytes_per_second: Option<f64>) {
        // AlterClientQuotas 0
        let mut body = Body::default();
        body.i32(1).i32(1).string("client-id").string(client_id);
        body.i32(1).string("producer_byte_rate").bytes(&bytes_per_second.unwrap_or(0.0).to_be_bytes());
        body.i8(i8::from(bytes_per_second.is_none())).i8(0);
        let mut answer = self.ask(49, 0, &body);
        answer.skip(8);
        assert_eq!(answer.i16(), 0, "no quota is set");
    }

    /// Allows a user an operation.
    pub fn allow(&self, user: &str, grant: &Grant) {
        // CreateAcls 1
        let mut body = Body::default();
        body.i32(1).i8(grant.resource).string(grant.name).i8(grant.pattern);
        body.string(&format!("User:{user}")).string("*").i8(grant.operation).i8(ALLOW);
        let mut answer = self.ask(30, 1, &body);
        answer.skip(8);
        assert_eq!(answer.i16(), 0, "{grant:?} is not granted");
    }

    /// Takes back what was allowed.
    pub fn disallow(&self, user: &str, grant: &Grant) {
        // DeleteAcls 1
        let mut body = Body::default();
        body.i32(1).i8(grant.resource).string(grant.name).i8(grant.pattern);
        body.string(&format!("User:{user}")).string("*").i8(grant.operation).i8(ALLOW);
        let mut answer = self.ask(31, 1, &body);
        answer.skip(8);
        assert_eq!(answer.i16(), 0, "{grant:?} is not taken back");
    }

    /// Gives a user another password to log in with by SCRAM-SHA-512. Who is logged in stays so.
    pub fn set_password(&self, user: &str, password: &str) {
        const SCRAM_SHA_512: i8 = 2;
        const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");
        let (salt, mut salted) = (b"of the tests", [0; 64]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, ITERATIONS, salt, password.as_bytes(), &mut salted);
        // AlterUserScramCredentials 0: its lists and strings are compact, and behind each part there may be tags.
        let mut body = Body::default();
        body.no_tags().compact(0).compact(1).compact(user.len()).bytes(user.as_bytes());
        body.i8(SCRAM_SHA_512).i32(ITERATIONS.get() as i32).compact(salt.len()).bytes(salt);
        body.compact(salted.len()).bytes(&salted).no_tags().no_tags();
        let mut answer = self.ask(51, 0, &body);
        // Tags, a time to wait, and how many results there are and the user's name, each with a length of one byte.
        answer.skip(1 + 4 + 1 + 1 + user.len());
        assert_eq!(answer.i16(), 0, "{user} gets no password");
    }

    fn wait_for_partitions(&self, topic: &str, count: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leaders = metadata(self.place.port, Some(topic)).map(|found| found.partitions_with_leader);
            if leaders.as_ref().is_ok_and(|leaders| *leaders == usize::from(count)) {
                return;
            }
            assert!(Instant::now() < deadline, "topic {topic} has {leaders:?} leaders and not {count}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&self, api: i16, version: i16, body: &Body) -> Answer {
        ask(self.place.port, api, version, body).expect("the broker answers")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child is ours to signal");
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Nothing on its disk is needed again. SIGKILL ends a frozen process too; it may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who has made a batch, as it says itself.
#[derive(Clone, Copy)]
struct Sender {
    id: i64,
    epoch: i16,
    /// The number of its next record.
    sequence: i32,
}

const NOBODY: Sender = Sender { id: -1, epoch: -1, sequence: -1 };

/// Something that a user may do, in the numbers of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    resource: i8,
    name: &'a str,
    pattern: i8,
    operation: i8,
}

const ALLOW: i8 = 3;

impl<'a> Grant<'a> {
    /// To do this with topics whose names begin like that.
    pub fn on_topics(prefix: &'a str, operation: Operation) -> Self {
        Self { resource: 2, name: prefix, pattern: 4, operation: operation as i8 }
    }

    pub fn on_group(name: &'a str, operation: Operation) -> Self {
        Self { resource: 3, name, pattern: 3, operation: operation as i8 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read = 3,
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// A broker that died is given up after two seconds, also by itself when it starts again: else it would be nine.
fn fast_failover() -> Setup {
    let properties = ["broker.session.timeout.ms=2000", "broker.heartbeat.interval.ms=500"];
    Setup { properties: properties.map(str::to_owned).to_vec(), ..Setup::default() }
}

fn of_a_cluster(place: &Place, voters: &str) -> Setup {
    let Place { port, controller_port, .. } = place;
    let mut setup = fast_failover();
    setup.properties.extend([
        "process.roles=broker,controller".to_owned(),
        format!("controller.quorum.voters={voters}"),
        format!("listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}"),
        "offsets.topic.replication.factor=3".to_owned(),
        "min.insync.replicas=2".to_owned(),
        "controller.quorum.election.timeout.ms=500".to_owned(),
        "controller.quorum.fetch.timeout.ms=1000".to_owned(),
        "controller.quorum.election.backoff.max.ms=500".to_owned(),
        "replica.lag.time.max.ms=3000".to_owned(),
    ]);
    setup
}

/// A place for a cluster of one.
fn first(dir: &TempDir) -> Place {
    Place { node: 1, dir: dir.path().to_owned(), port: free_port(), controller_port: free_port() }
}

/// A name for a topic or a group that no other test has.
pub fn unique(name: &str) -> String {
    format!("{name}-{:08x}", fastrand::u32(..))
}

/// Where `scripts/kafka-jars` has put everything.
pub fn jars() -> &'static Path {
    static JARS: OnceLock<PathBuf> = OnceLock::new();
    JARS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka-jars");
        let output = Command::new(script).stdin(Stdio::null()).output().expect("a shell runs the script");
        assert!(output.status.success(), "there is no Kafka: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())
    })
}

/// Asks until there is no error, or for as long as a broken machine takes. Answers the last error.
fn ends_well(mut ask: impl FnMut() -> i16) -> i16 {
    let deadline = Instant::now() + PATIENCE;
    let mut error = ask();
    while error != 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        error = ask();
    }
    error
}

/// A port that nothing listens on at this moment, below those that the system gives to connections: nobody else gets it
/// while the broker that had it is down.
fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).find(is_free).expect("some port is free")
}

/// Writes what a broker reads when it starts.
fn format(place: &Place, setup: &Setup) {
    let Place { node, dir, port, controller_port } = place;
    let (roles, controller) = match node {
        1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller_port}")),
        _ => ("broker", String::new()),
    };
    let data = dir.join("data");
    let mut properties = format!(
        "process.roles={roles}\n\
         node.id={node}\n\
         controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
         listeners=PLAINTEXT://127.0.0.1:{port}{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=PLAINTEXT\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=1\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n\
         auto.create.topics.enable=false\n",
        data.display()
    );
    for line in &setup.properties {
        properties.push_str(line);
        properties.push('\n');
    }
    let file = dir.join("server.properties");
    std::fs::write(&file, properties).expect("the directory is ours");
    if data.exists() {
        std::fs::remove_dir_all(&data).expect("the directory is ours");
    }
    if setup.format_args.is_empty() {
        std::fs::create_dir(&data).expect("the directory is ours");
        for entry in std::fs::read_dir(jars().join("data")).expect("the script made it") {
            let path = entry.expect("it can be read").path();
            std::fs::copy(&path, data.join(path.file_name().expect("it is a file"))).expect("it can be copied");
        }
        return rename_node(&data, *node);
    }
    let output = java()
        .args(["kafka.tools.StorageTool", "format", "-t", "cmVkcml2ZS10ZXN0cy0xMg", "-c"])
        .arg(file)
        .args(&setup.format_args)
        .output()
        .expect("java is installed");
    assert!(output.status.success(), "the data is not formatted: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a copied data directory that of another node.
fn rename_node(data: &Path, node: u16) {
    if node == 1 {
        return;
    }
    let file = data.join("meta.properties");
    let text = std::fs::read_to_string(&file).expect("it was copied");
    // A directory's id is sixteen bytes in base64, which has digits.
    let id = format!("{:021}A", fastrand::u64(..));
    let rename = |line: &str| match line.split_once('=') {
        Some(("node.id", _)) => format!("node.id={node}\n"),
        Some(("directory.id", _)) => format!("directory.id={id}\n"),
        _ => format!("{line}\n"),
    };
    std::fs::write(&file, text.lines().map(rename).collect::<String>()).expect("the directory is ours");
}

/// `java` up to the main class. It dies with the thread that starts it.
fn java() -> Command {
    let jars = jars();
    let classpath = std::fs::read_to_string(jars.join("classpath")).expect("the script wrote it");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "java"]).args(JAVA_FLAGS);
    command.arg(format!("-XX:SharedArchiveFile={}", jars.join("kafka.jsa").display()));
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath.trim_end()]);
    command.stdin(Stdio::null());
    command
}

fn spawn(place: &Place) -> Child {
    let log = std::fs::File::create(place.dir.join("log")).expect("the directory is ours");
    let mut command = java();
    command.arg("kafka.Kafka").arg(place.dir.join("server.properties"));
    command.stdout(log.try_clone().expect("there are descriptors left")).stderr(log);
    start_from_the_keeper(command)
}

/// Starts a command from a thread that lives as long as the process: one that starts children that die with it must not
/// be a test's, for the shared broker outlives the test that asked for it first.
fn start_from_the_keeper(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static KEEPER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, ordered) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in ordered {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, answered) = mpsc::channel();
    keeper.send((command, answer)).expect("the keeper lives as long as the process");
    answered.recv().expect("the keeper answers").expect("setpriv and java are installed")
}

/// Has a directory removed when this process has ended, however: no destructor of a static runs.
fn remove_with_the_process(dir: &Path) {
    let child = Command::new("sh")
        .args(["-c", r#"cat >/dev/null; sleep 1; rm -rf -- "$0""#])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell runs");
    // Its input ends with this process, and not before.
    std::mem::forget(child);
}

fn log_of(place: &Place) -> String {
    std::fs::read_to_string(place.dir.join("log")).unwrap_or_default()
}

/// Whether the child comes to answer; false when it ended instead.
fn comes_up(place: &Place, child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait().expect("the child is ours to wait for").is_some() {
            return false;
        }
        if metadata(place.port, None).is_ok_and(|found| found.brokers >= i32::from(place.node)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

#[derive(Default)]
struct Metadata {
    brokers: i32,
    partitions_with_leader: usize,
    /// Of the first partition; negative: none.
    first_leader: i32,
    /// Of all partitions.
    replicas: i32,
    in_sync: i32,
}

/// What a broker knows of its cluster and of one topic.
fn metadata(port: u16, topic: Option<&str>) -> io::Result<Metadata> {
    // Metadata 1
    let mut body = Body::default();
    body.i32(i32::from(topic.is_some()));
    topic.into_iter().for_each(|name| {
        body.string(name);
    });
    let mut answer = ask(port, 3, 1, &body)?;
    let mut found = Metadata { brokers: answer.i32(), first_leader: -1, ..Metadata::default() };
    for _ in 0..found.brokers {
        answer.skip(4).string();
        answer.skip(4).string();
    }
    answer.skip(4);
    for _ in 0..answer.i32() {
        answer.skip(2).string();
        answer.skip(1);
        for _ in 0..answer.i32() {
            let error = answer.i16();
            let (partition, leader) = (answer.i32(), answer.i32());
            found.partitions_with_leader += usize::from(error == 0 && leader >= 0);
            if partition == 0 {
                found.first_leader = leader;
            }
            for count in [&mut found.replicas, &mut found.in_sync] {
                let nodes = answer.i32();
                *count += nodes;
                answer.skip(4 * nodes as usize);
            }
        }
    }
    Ok(found)
}

/// Asks one question over a connection of its own.
fn ask(port: u16, api: i16, version: i16, body: &Body) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(40)))?;
    let mut head = Body::default();
    head.i16(api).i16(version).i32(1).string("redrive-tests");
    let mut frame = Body::default();
    frame.i32((head.0.len() + body.0.len()) as i32);
    stream.write_all(&[frame.0, head.0, body.0.clone()].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut bytes)?;
    let mut answer = Answer { bytes, at: 0 };
    answer.skip(4);
    Ok(answer)
}

/// A record as it lies in a partition, in a batch of its own.
fn batch_of_one(sender: &Sender, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut record = Body::default();
    // Attributes, and how far its time and offset are from the batch's.
    record.i8(0).varint(0).varint(0);
    record.varint(key.len() as i64).bytes(key).varint(value.len() as i64).bytes(value).varint(0);
    let now = std::time::UNIX_EPOCH.elapsed().expect("it is later than that").as_millis() as i64;
    let mut rest = Body::default();
    let transactional = if sender.id == NOBODY.id { 0 } else { 1 << 4 };
    rest.i16(transactional).i32(0).i64(now).i64(now);
    rest.i64(sender.id).i16(sender.epoch).i32(sender.sequence).i32(1);
    rest.varint(record.0.len() as i64).bytes(&record.0);
    let mut batch = Body::default();
    // The length counts from the leader's epoch on, the checksum from behind itself.
    batch.i64(0).i32(rest.0.len() as i32 + 9).i32(-1).i8(2);
    batch.bytes(&crc32c::crc32c(&rest.0).to_be_bytes()).bytes(&rest.0);
    batch.0
}

/// A request's bytes.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn i8(&mut self, value: i8) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn i16(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    fn varint(&mut self, value: i64) -> &mut Self {
        let mut left = ((value << 1) ^ (value >> 63)) as u64;
        while left > 0x7f {
            self.0.push((left & 0x7f | 0x80) as u8);
            left >>= 7;
        }
        self.bytes(&[left as u8])
    }

    /// The length of what follows, in the newer form.
    fn compact(&mut self, length: usize) -> &mut Self {
        self.i8(i8::try_from(length + 1).expect("it is short"))
    }

    fn no_tags(&mut self) -> &mut Self {
        self.i8(0)
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.i16(text.len() as i16).bytes(text.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// A response's bytes, read from the front.
struct Answer {
    bytes: Vec<u8>,
    at: usize,
}

impl Answer {
    fn skip(&mut self, count: usize) -> &mut Self {
        self.at += count;
        self
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }

    /// A string; one that is null is empty.
    fn text(&mut self) -> String {
        let start = self.at + 2;
        self.string();
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    /// Skips a string, which may be null.
    fn string(&mut self) {
        let length = self.i16();
        self.skip(usize::try_from(length).unwrap_or(0));
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.bytes[self.at..][..N].try_into().expect("it is of that length");
        self.at += N;
        bytes
    }
}
