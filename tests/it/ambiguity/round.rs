//! One round: services write, everything goes wrong, and in the end it must be as if nothing had.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{Answer, PATIENCE, Proxy, Redis, Sidecar, kafka::Kafka, sidecar::Socket};

use super::{
    model::{Death, Model},
    nemesis::{Nemesis, QUICK, some_faults, some_faults_with_kafka},
    state::{self, State},
    workload::{Client, Command, Does, Task},
};

/// Services, each with keys of its own: so the order in which tasks were accepted is known for every key.
const CLIENTS: usize = 3;
/// Requests that each sends.
const REQUESTS: usize = 70;

/// What is done in a round.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    pub seed: u64,
    /// Whether anything goes wrong.
    pub faults: bool,
    /// Whether tasks are in Kafka; else they are in the journal.
    pub kafka: bool,
    /// A bug that is planted in the sidecar; empty: none.
    pub bug: &'a str,
}

/// What a round came to.
pub struct Summary {
    pub tasks: usize,
    pub dead: usize,
    pub events: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tasks, {} of them dead, through {} events", self.tasks, self.dead, self.events)
    }
}

/// A round whose end is not what it must be.
pub struct Failed {
    differences: Vec<String>,
    /// Where everything is kept that was there in the end.
    artefacts: PathBuf,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "what was left of it is in {}", self.artefacts.display())?;
        f.write_str(&self.differences.join("\n"))
    }
}

pub fn run(plan: Plan<'_>) -> Result<Summary, Failed> {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let mut redis = Redis::durable();
    let proxy = Proxy::start(redis.port());
    let mut kafka = plan.kafka.then(Kafka::start);
    let in_kafka = kafka.as_ref().map_or_else(Vec::new, flags_for);
    let flags: Vec<&str> = QUICK.into_iter().chain(in_kafka.iter().map(String::as_str)).collect();
    let (mut sidecar, socket) = Sidecar::start_on_socket(plan.bug, &proxy.url(), &flags);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (client, socket) = (Client::new(number, random.fork()), socket.clone());
            std::thread::spawn(move || serve(client, &socket))
        })
        .collect();

    let mut nemesis = Nemesis {
        faults: if plan.kafka { some_faults_with_kafka(&mut random) } else { some_faults(&mut random) },
        lives: random.fork(),
        random,
        redis: &mut redis,
        proxy: &proxy,
        kafka: kafka.as_mut(),
        sidecar: &mut sidecar,
        bug: plan.bug,
        is_over: false,
        begun: Instant::now(),
        story: Vec::new(),
    };
    while clients.iter().any(|client| !client.is_finished()) {
        nemesis.pause(50..500);
        if plan.faults {
            nemesis.strike();
        }
    }
    let histories: Vec<Vec<Task>> =
        clients.into_iter().map(|client| client.join().expect("no client panics")).collect();
    // What is still to be made meets some more.
    for _ in 0..if plan.faults { 3 } else { 0 } {
        nemesis.strike();
        nemesis.pause(50..500);
    }
    nemesis.make_peace();
    let model_redis = Redis::start(&[]);
    let mut model = Model::new(model_redis.client());
    let made = histories.iter().flatten().filter_map(|task| Some((task.id.clone(), model.make(task)?)));
    let deaths: BTreeMap<String, Death> = made.collect();
    if plan.kafka {
        wait_until_alike(&mut nemesis, &model_redis, &deaths);
    }
    let is_done = wait_until_done(&mut nemesis);
    // The latest that a packet can be: everything has been made since.
    nemesis.heal();
    let letters = dead_letters(&mut nemesis);
    let story = std::mem::take(&mut nemesis.story);

    let expected = state::read(&mut model_redis.client());
    let found = state::read(&mut redis.client());

    let mut differences = state::differences(&expected, &found);
    differences.extend(unexplained(&histories, &deaths, &letters));
    if !is_done {
        differences.push("not everything was settled".to_owned());
    }
    if differences.is_empty() {
        return Ok(Summary { tasks: histories.iter().map(Vec::len).sum(), dead: deaths.len(), events: story.len() });
    }
    let artefacts = std::env::temp_dir().join(format!("redrive-ambiguity-{}-{}", plan.seed, std::process::id()));
    let kept = keep(&artefacts, &histories, &deaths, &story, [&expected, &found], &mut sidecar);
    kept.expect("what a failed round leaves can be kept");
    Err(Failed { differences, artefacts })
}

/// Sends what a client has to say, each request until it is answered. Returns it in the order of its acceptance.
fn serve(mut client: Client, socket: &Socket) -> Vec<Task> {
    let mut accepted: Vec<Task> = Vec::new();
    for _ in 0..REQUESTS {
        let mut tasks = client.next();
        let answer = send(socket, &tasks);
        if let [only] = tasks.as_mut_slice() {
            let accepted_at = answer.json()["accepted_at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
            only.base_ms.get_or_insert(accepted_at.expect("the answer says when").as_millisecond());
        }
        accepted.extend(tasks);
        if let Some(back) = client.repeats() {
            send(socket, &accepted[accepted.len().saturating_sub(back)..][..1]);
        }
        std::thread::sleep(client.pause());
    }
    accepted
}

fn send(socket: &Socket, tasks: &[Task]) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = match tasks {
            [only] => socket.post(&only.body),
            several => socket.batch(&several.iter().map(|task| task.body.clone()).collect::<Vec<Value>>()),
        };
        match answer {
            Ok(answer) if answer.status == 202 => return answer,
            Ok(answer) => panic!("{}: {}", answer.status, answer.body),
            // It may be stored or not.
            Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until everything is settled; false: it is not to be expected any more.
fn wait_until_done(nemesis: &mut Nemesis<'_>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        nemesis.tend();
        if nemesis.sidecar.try_ops("/metrics").is_ok_and(|answer| answer.body.contains("\nkafka_consumer_lag 0\n")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// A sidecar that has just started does not know how much there is in Kafka. So this waits for the end itself, but not
/// for ever: that it is the right one is judged later.
fn wait_until_alike(nemesis: &mut Nemesis<'_>, model: &Redis, deaths: &BTreeMap<String, Death>) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        nemesis.tend();
        let found = state::read(&mut nemesis.redis.client());
        if state::differences(&state::read(&mut model.client()), &found).is_empty()
            && dead_letters(nemesis).len() >= deaths.len()
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One partition: a task with keys of several would have an order with those of one only.
fn flags_for(kafka: &Kafka) -> Vec<String> {
    let flags = [
        &format!("--kafka-brokers={}", kafka.address()),
        "--kafka-partitions=1",
        "--kafka-replication=1",
        "--kafka-min-insync=1",
        "--kafka-session-timeout=2s",
        "--kafka-heartbeat-interval=300ms",
        "--kafka-rebalance-timeout=6s",
        "--kafka-metadata-refresh=1s",
        "--kafka-produce-timeout=1s",
    ];
    flags.map(str::to_owned).into()
}

/// All dead letters by id.
fn dead_letters(nemesis: &mut Nemesis<'_>) -> BTreeMap<String, Value> {
    let mut letters = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = admin(nemesis, &format!("/admin/v1/dead-letters?limit=500{cursor}")).json();
        let items = page["items"].as_array().expect("a list has items").iter();
        letters.extend(
            items.map(|letter| (letter["id"].as_str().expect("a letter has an id").to_owned(), letter.clone())),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return letters,
        }
    }
}

/// Asks the sidecar. It may come to the point where it ends only now, and is started again; and Kafka may be on its way
/// back.
fn admin(nemesis: &mut Nemesis<'_>, path: &str) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        nemesis.tend();
        match nemesis.sidecar.try_ops(path) {
            Ok(answer) if answer.status != 503 => return answer,
            told => assert!(Instant::now() < deadline, "no answer: {told:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Dead letters that the model's errors do not explain, and errors without a dead letter.
fn unexplained(
    histories: &[Vec<Task>],
    deaths: &BTreeMap<String, Death>,
    letters: &BTreeMap<String, Value>,
) -> Vec<String> {
    let may_be_superseded = |id: &str, index: usize| {
        histories.iter().any(|history| {
            let place = history.iter().position(|task| task.id == id);
            place.is_some_and(|place| may_be_superseded(&history[place..], index))
        })
    };
    let is_excused = |id: &str, death: &Death| match death.failed.as_slice() {
        [] => may_be_superseded(id, 0),
        failed => failed.iter().all(|index| may_be_superseded(id, *index)),
    };
    let missing = deaths.iter().filter(|(id, death)| !letters.contains_key(*id) && !is_excused(id, death));
    let missing = missing.map(|(id, death)| format!("task {id} is not in the dead letters, but must be: {death:?}"));
    let wrong = letters.iter().filter_map(|(id, letter)| match deaths.get(id) {
        None => Some(format!("task {id} is dead and should not be: {letter}")),
        Some(death) => (!explains(death, letter, |index| may_be_superseded(id, index)))
            .then(|| format!("task {id}: {death:?} is not what {letter} says")),
    });
    missing.chain(wrong).collect()
}

/// Whether a command of the first task need not have been made, because a later one overwrites its key as a whole.
fn may_be_superseded(history: &[Task], index: usize) -> bool {
    fn commands(task: &Task) -> &[Command] {
        match &task.does {
            Does::Command(command) if task.body["coalesce"] != false => std::slice::from_ref(command),
            Does::Each(commands) if task.body["coalesce"] != false => commands,
            _ => &[],
        }
    }
    let Some(key) = commands(&history[0]).get(index).map(|command| &command.sent[1]) else { return false };
    let later = commands(&history[0])[index + 1..].iter().chain(history[1..].iter().flat_map(commands));
    let overwrites = |command: &Command| {
        ["SET", "SETEX", "PSETEX", "DEL", "UNLINK"].iter().any(|name| command.sent[0] == name.as_bytes())
    };
    later.into_iter().any(|command| overwrites(command) && command.sent[1..].contains(key))
        // What is removed in place of a write that comes too late is such a write, too.
        || history[1..].iter().any(|task| matches!(&task.does, Does::Unlink(unlinked) if unlinked.as_bytes() == key))
}

fn explains(death: &Death, letter: &Value, may_be_superseded: impl Fn(usize) -> bool) -> bool {
    let failed: Vec<usize> = letter["units"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|unit| unit["code"].as_str().is_some_and(|code| !code.is_empty()))
        .filter_map(|unit| unit["index"].as_u64())
        .map(|index| index as usize)
        .collect();
    let left_out = death.failed.iter().filter(|index| !failed.contains(index));
    let is_part = failed.iter().all(|index| death.failed.contains(index)) && left_out.copied().all(may_be_superseded);
    death.code.as_ref().is_none_or(|code| letter["code"] == code.as_str())
        // A pipeline of one command is told as that command.
        && (is_part || letter["units"].is_null())
}

/// Keeps everything that may explain a failure.
fn keep(
    at: &Path,
    histories: &[Vec<Task>],
    deaths: &BTreeMap<String, Death>,
    story: &[String],
    [expected, found]: [&State; 2],
    sidecar: &mut Sidecar,
) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let task = |task: &Task| format!("{}  {:?}\n", task.body, deaths.get(&task.id));
    fs::write(at.join("tasks.txt"), histories.iter().flatten().map(task).collect::<String>())?;
    fs::write(at.join("story.txt"), story.join("\n"))?;
    fs::write(at.join("expected.txt"), format!("{expected:#?}"))?;
    fs::write(at.join("found.txt"), format!("{found:#?}"))?;
    fs::write(at.join("sidecar.log"), sidecar.logs().join("\n"))?;
    sidecar.kill9();
    copy(&sidecar.data_dir(), &at.join("data"))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
