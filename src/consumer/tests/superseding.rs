//! That coalescing loses nothing is shown on a model: random tasks go through the window and its schedule as chance orders
//! it, on a tiny Redis. Units fail, wait, are not answered or die, checkpoints are written, leave things out and fail, and
//! the process dies between any two steps and begins again from a checkpoint that may be durable. A second tiny Redis, that
//! knows no rule, gets each task when its service meant it.
//!
//! - Keys on which nothing depends on the time are the same on both in the end, and so are versions; and exactly those
//!   units are dead that the second one refuses, unless they were superseded.
//! - On other keys, where what is too late leaves what is there, in the end there is what the latest unit has left that
//!   was sent in any life, and what came later was too late.
//! - Only what may be is superseded, and by something that was not dead.
//!
//! `REDRIVE_COALESCE_CASES` and `REDRIVE_COALESCE_SEED` set how many cases are tried and which. That the model would notice
//! is shown by planting breaks of the rules: it must find each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::*;
use crate::{
    commands::{Expiry, Overwrite},
    consumer::{
        checkpoint::{Bounds, Finished, State, UnitEnd},
        coalesce::Stake,
        entry::{End, Entry, Letter, UnitRef},
        model::{ModelRedis, Refused, seeds},
        rows::ReplayKind,
        schedule::{Keys, UnitId, UnitState},
        timing::{Due, Member, Sending, Timing},
        units::{self, NewUnit},
        window::{Budget, Claim, Draft, Window},
    },
    log::{Assigned, Checkpoint, Entry as LogEntry, Epoch, Lease, Partition, ReadError, Reader},
    queue::Envelope,
    retry::{Executed, Failure, ReasonClass},
    task::{self, Command, Mode, Operation, Outcome, Task, Unit},
};

/// When all tasks were accepted, and meant.
const BASE: i64 = 1_000_000_000;

/// Nothing lasts that long in a case.
const FAR: i64 = BASE + 1_000_000_000;

/// What is written to the first does not depend on the time; to the others everything may.
const TIMELESS: [&str; 2] = ["a", "b"];
const TIMED: [&str; 2] = ["s", "t"];

const OWN: [u8; 16] = [1; 16];

static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::new(task::Config::default(), ["default".to_owned()]));

/// Breaks of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// What asks for what is there counts as an overwrite.
    NxOverwrites,
    XxOverwrites,
    GetOverwrites,
    KeepTtlOverwrites,
    /// What touches a key together with another one is not seen on the other one.
    OtherKeyOverlooked,
    /// A script without keys is not seen.
    BarrierOverlooked,
    /// What a dead unit had taken the place of counts as superseded.
    DeadSupersedes,
    /// What is superseded is finished before what takes its place is.
    SettledBefore,
    VersionsIgnored,
    /// Who asks for it is superseded all the same.
    WishIgnored,
    AtomicGivesWay,
    /// What has taken a place is sent before a checkpoint says how far was read.
    NoWord,
    /// The next owner sends before it has read that far.
    NoCatchUp,
    /// And does not say so again.
    WordNotPassedOn,
    /// What may be too late takes the place of what may have to run again.
    AnythingOfRows,
}

impl Break {
    const ALL: [Self; 15] = [
        Self::NxOverwrites,
        Self::XxOverwrites,
        Self::GetOverwrites,
        Self::KeepTtlOverwrites,
        Self::OtherKeyOverlooked,
        Self::BarrierOverlooked,
        Self::DeadSupersedes,
        Self::SettledBefore,
        Self::VersionsIgnored,
        Self::WishIgnored,
        Self::AtomicGivesWay,
        Self::NoWord,
        Self::NoCatchUp,
        Self::WordNotPassedOn,
        Self::AnythingOfRows,
    ];
}

struct NoReader;

impl Reader for NoReader {
    fn next(&mut self, _max_bytes: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, ReadError>> {
        Box::pin(std::future::pending())
    }
}

/// By task and number.
type UnitKey = (usize, usize);

/// A Redis with what Redrive keeps there.
#[derive(Clone, Default)]
struct Target {
    redis: ModelRedis,
    markers: BTreeSet<UnitKey>,
    versions: BTreeMap<Vec<u8>, (u64, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Applied,
    Stale,
}

/// How the target answers.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered(Result<Done, Refused>),
    /// It is refused for what it is, whenever it comes.
    Dies,
    Hold,
    Backoff,
    Unknown,
}

struct Flight {
    node: UnitId,
    unit: UnitRef,
    outcome: Outcome,
    fate: Fate,
}

type Verdict<T = ()> = Result<T, String>;

/// What the tasks of a case are about: few keys of one kind, so that much happens to each, or all.
struct Menu {
    timeless: &'static [&'static str],
    timed: &'static [&'static str],
    /// Of ten tasks and commands, how many may depend on the time.
    timed_share: u8,
}

impl Menu {
    fn new(chance: &mut fastrand::Rng) -> Self {
        Self {
            timeless: &TIMELESS[..chance.usize(1..=2)],
            timed: &TIMED[..chance.usize(1..=2)],
            timed_share: [0, 5, 10][chance.usize(..3)],
        }
    }

    fn is_timed(&self, chance: &mut fastrand::Rng) -> bool {
        chance.u8(..10) < self.timed_share
    }
}

fn task_body(chance: &mut fastrand::Rng, menu: &Menu, number: usize) -> String {
    let kind = if menu.timed_share == 10 { chance.u8(3..12) } else { chance.u8(..12) };
    let mut body = match kind {
        0 => json!({"type": "lua", "script": "return 1"}),
        1 => json!({"type": "lua", "script": "return 1", "keys": [pick(chance, menu.timeless)]}),
        2 => json!({"type": "lua", "script": "return 1", "keys": ["a", "b"]}),
        3 | 4 => {
            let commands: Vec<_> = (0..chance.usize(1..4))
                .map(|_| {
                    let timed = menu.is_timed(chance);
                    command(chance, menu, number, timed, true)
                })
                .collect();
            json!({"type": "pipeline", "mode": "each", "commands": commands})
        }
        5 if menu.timed_share < 10 => {
            let key = pick(chance, menu.timeless);
            let commands: Vec<_> = (0..chance.usize(1..3))
                .map(|_| match chance.u8(..3) {
                    0 => json!({"command": "DEL", "args": [key]}),
                    1 => json!({"command": "PERSIST", "args": [key]}),
                    _ => json!({"command": "SET", "args": [key, number.to_string()]}),
                })
                .collect();
            json!({"type": "pipeline", "mode": "atomic", "commands": commands})
        }
        _ => {
            let timed = menu.is_timed(chance);
            let mut body = command(chance, menu, number, timed, false);
            body["type"] = "simple".into();
            if timed {
                let after_ms = i64::from(chance.u8(1..5)) * 5000;
                match chance.u8(..8) {
                    0 => {
                        let at = Timestamp::from_millisecond(BASE + after_ms).expect("it is in range");
                        body["deadline"] = at.to_string().into();
                    }
                    1 => body["late"] = json!({"after_ms": after_ms, "do": "drop"}),
                    2 => body["late"] = json!({"after_ms": after_ms, "do": "invalidate"}),
                    _ => {}
                }
            } else if chance.u8(..4) == 0 && !["RENAME", "MSET", "UNLINK"].iter().any(|name| body["command"] == *name) {
                body["version"] = chance.u8(1..6).to_string().into();
            }
            body
        }
    };
    if chance.u8(..8) == 0 {
        body["coalesce"] = false.into();
    }
    body.to_string()
}

fn pick<'w>(chance: &mut fastrand::Rng, words: &[&'w str]) -> &'w str {
    words[chance.usize(..words.len())]
}

fn command(chance: &mut fastrand::Rng, menu: &Menu, number: usize, timed: bool, in_pipeline: bool) -> Value {
    // No two units write the same.
    let value = format!("{number}{:03}", chance.u16(..1000));
    let value = value.as_str();
    if timed {
        let (key, ttl) = (pick(chance, menu.timed), pick(chance, &["5", "10", "20"]));
        return match chance.u8(..6) {
            0 => json!({"command": "SET", "args": [key, value]}),
            1 | 2 => json!({"command": "SET", "args": [key, value, "EX", ttl]}),
            3 => json!({"command": "PSETEX", "args": [key, format!("{ttl}000"), value]}),
            4 => json!({"command": "DEL", "args": [key]}),
            _ => json!({"command": "MSET", "args": ["s", value, "t", value]}),
        };
    }
    let (key, field) = (pick(chance, menu.timeless), pick(chance, &["f", "g"]));
    match chance.u8(..20) {
        0..=3 => json!({"command": "SET", "args": [key, value]}),
        4 => json!({"command": "DEL", "args": [key]}),
        5 => json!({"command": "MSET", "args": ["a", value, "b", value]}),
        6 => json!({"command": "UNLINK", "args": ["a", "b"]}),
        7 => json!({"command": "RENAME", "args": [key, pick(chance, menu.timeless)]}),
        8 => json!({"command": "SET", "args": [key, value, "NX"]}),
        9 => json!({"command": "SET", "args": [key, value, "XX"]}),
        10 => json!({"command": "SET", "args": [key, value, "GET"]}),
        11 => json!({"command": "SET", "args": [key, value, "KEEPTTL"]}),
        12 | 13 => json!({"command": "INCR", "args": [key]}),
        14 => json!({"command": "RPUSH", "args": [key, value]}),
        15 => json!({"command": "HSET", "args": [key, field, value]}),
        16 => json!({"command": "HDEL", "args": [key, field]}),
        17 => json!({"command": "SADD", "args": [key, field]}),
        18 => json!({"command": "PERSIST", "args": [key]}),
        // In a pipeline a TTL says something of the other commands.
        _ if in_pipeline => json!({"command": "PERSIST", "args": [key]}),
        _ => json!({"command": "PEXPIREAT", "args": [key, FAR.to_string()]}),
    }
}

impl Target {
    fn run(&mut self, now: i64, command: &Command<'_>, member: Member) -> Result<(), Refused> {
        let args = command.args.iter().map(AsRef::as_ref);
        let (name, args): (_, Vec<_>) = match member {
            Member::Plain => (command.spec.name, args.map(std::borrow::Cow::Borrowed).collect()),
            Member::Expiring(at) => command.spec.with_expiry(args, command.ttl().expect("it sets one"), Expiry::At(at)),
            Member::Expired => return Ok(()),
        };
        let args: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        self.redis.run(now, name, &args)
    }

    /// What scripts do: they write down which of their keys are there.
    fn run_script(&mut self, now: i64, task: usize, keys: &[&[u8]]) {
        self.redis.expire(now);
        let found: String = keys.iter().map(|key| if self.redis.exists(key) { '1' } else { '0' }).collect();
        let log = format!("log:{task}");
        self.redis.run(now, "SET", &[log.as_bytes(), found.as_bytes()]).expect("a SET is never refused");
    }

    /// A unit in its form: once, behind its version, or as it stands.
    fn execute(
        &mut self,
        now: i64,
        task: &Task<'_>,
        at: UnitKey,
        unit: &Unit<'_>,
        sending: &Sending,
    ) -> Result<Done, Refused> {
        let key = unit.keys.first().map(|key| key.bytes.to_vec());
        let version = task.version.map(|version| (key.clone().expect("it has one"), version.get()));
        if let Some((key, own)) = &version {
            match self.versions.get(key) {
                Some((last, by)) if last == own && *by == at.0 => return Ok(Done::Applied),
                Some((last, _)) if last >= own => return Ok(Done::Stale),
                _ => {}
            }
        } else if task.is_once(unit) && self.markers.contains(&at) {
            return Ok(Done::Applied);
        }
        let member = match sending {
            Sending::Expiring(at) => Member::Expiring(*at),
            _ => Member::Plain,
        };
        match &task.operation {
            Operation::Simple(command) => self.run(now, command, member)?,
            Operation::Pipeline { mode: Mode::Each, commands } => self.run(now, &commands[at.1], member)?,
            Operation::Pipeline { mode: Mode::Atomic, commands } => {
                commands.iter().try_for_each(|command| self.run(now, command, Member::Plain))?;
            }
            Operation::Lua(script) => {
                let all = TIMELESS.map(str::as_bytes);
                let keys: Vec<&[u8]> = script.keys.iter().map(AsRef::as_ref).collect();
                self.run_script(now, at.0, if keys.is_empty() { &all } else { &keys });
            }
        }
        match version {
            Some((key, own)) => drop(self.versions.insert(key, (own, at.0))),
            None if task.is_once(unit) => drop(self.markers.insert(at)),
            None => {}
        }
        Ok(Done::Applied)
    }
}

struct ModelTask<'b> {
    task: Task<'b>,
    due: Due,
    /// Units that are refused for what they are.
    dies: Vec<bool>,
}

impl ModelTask<'_> {
    fn command(&self, unit: usize) -> Option<&Command<'_>> {
        match &self.task.operation {
            Operation::Simple(command) => Some(command),
            Operation::Pipeline { mode: Mode::Each, commands } => Some(&commands[unit]),
            _ => None,
        }
    }

    fn unit(&self, number: usize) -> Unit<'_> {
        self.task.operation.units().nth(number).expect("it has such a unit")
    }
}

/// One log of tasks, through several processes.
struct Case<'b> {
    chance: fastrand::Rng,
    broken: Option<Break>,
    now: i64,
    tasks: Vec<ModelTask<'b>>,
    target: Target,
    /// How each unit ended, in the life that is remembered.
    ends: BTreeMap<UnitKey, Outcome>,
    /// The units that took the places of others.
    superseded_by: BTreeMap<UnitKey, UnitKey>,
    /// The latest unit that was sent for each timed key, in any life, and whether as an UNLINK.
    latest: BTreeMap<&'static str, (UnitKey, bool)>,
    durable: Option<Checkpoint>,
    until: u64,
    doubtful: Vec<(Checkpoint, u64)>,
    cuts: bool,
    lives: u8,
    commands: u64,
}

/// A process.
struct Life {
    window: Window,
    next: u64,
    flights: Vec<Flight>,
    dying: Vec<(UnitId, UnitRef)>,
    sealed: Option<(Checkpoint, u64, Option<u64>)>,
    clock: Instant,
}

impl<'b> Case<'b> {
    fn new(mut chance: fastrand::Rng, broken: Option<Break>, bodies: &'b [String]) -> Self {
        let accepted_at = Timestamp::from_millisecond(BASE).expect("it is in range");
        let tasks: Vec<_> = bodies
            .iter()
            .map(|body| {
                let task = Task::parse(body.as_bytes(), &RULES, accepted_at).expect(body);
                let due = Due::of(&task, accepted_at, None);
                let dies = task.operation.units().map(|_| chance.u8(..8) == 0).collect();
                ModelTask { task, due, dies }
            })
            .collect();
        let mut target = Target::default();
        for key in TIMELESS.into_iter().chain(TIMED) {
            let far = FAR.to_string();
            let words: &[&str] = match chance.u8(..6) {
                0 => &["SET", key, "7"],
                1 => &["SET", key, "x", "PXAT", &far],
                2 if TIMELESS.contains(&key) => &["RPUSH", key, "x"],
                3 if TIMELESS.contains(&key) => &["HSET", key, "f", "x"],
                _ => continue,
            };
            let args: Vec<&[u8]> = words[1..].iter().map(|word| word.as_bytes()).collect();
            target.redis.run(BASE, words[0], &args).expect("nothing is there");
        }
        Self {
            broken,
            now: BASE,
            tasks,
            target,
            ends: BTreeMap::new(),
            superseded_by: BTreeMap::new(),
            latest: BTreeMap::new(),
            durable: None,
            until: 0,
            doubtful: Vec::new(),
            cuts: chance.u8(..4) == 0,
            lives: 0,
            commands: 0,
            chance,
        }
    }

    /// Returns how many units were superseded.
    fn run(mut self) -> Verdict<usize> {
        let mut reference = self.target.clone();
        let mut refused = BTreeSet::new();
        for (number, model) in self.tasks.iter().enumerate() {
            for (place, unit) in model.task.operation.units().enumerate() {
                let at = (number, place);
                if model.dies[place] || reference.execute(BASE, &model.task, at, &unit, &Sending::Plain).is_err() {
                    refused.insert(at);
                }
            }
        }
        for _ in 0..self.chance.u8(..4) {
            let steps = self.chance.usize(..60);
            self.live(steps)?;
            // Which of the checkpoints reached the disk is seen only now.
            if !self.doubtful.is_empty() && self.chance.bool() {
                let (checkpoint, until) = self.doubtful.swap_remove(self.chance.usize(..self.doubtful.len()));
                (self.durable, self.until) = (Some(checkpoint), until);
            }
            self.doubtful.clear();
            self.now += self.chance.i64(0..8000);
        }
        if !self.live(5000)? {
            return Err("it never comes to an end".to_owned());
        }
        self.compare(&mut reference, &refused)?;
        Ok(self.ends.values().filter(|end| **end == Outcome::Superseded).count())
    }

    fn compare(&mut self, reference: &mut Target, refused: &BTreeSet<UnitKey>) -> Verdict {
        self.target.redis.expire(self.now);
        reference.redis.expire(self.now);
        let logs: Vec<String> = (0..self.tasks.len()).map(|task| format!("log:{task}")).collect();
        for key in TIMELESS.into_iter().chain(logs.iter().map(String::as_str)) {
            if !self.target.redis.agrees_on(&reference.redis, key.as_bytes()) {
                return Err(format!("{key}: {:?} instead of {:?}", self.target.redis, reference.redis));
            }
        }
        if self.target.versions != reference.versions {
            return Err(format!("versions {:?} instead of {:?}", self.target.versions, reference.versions));
        }
        for (at, end) in &self.ends {
            let model = &self.tasks[at.0];
            match end {
                Outcome::Dead if !refused.contains(at) => return Err(format!("{at:?} is dead and was not refused")),
                Outcome::Applied | Outcome::Stale if refused.contains(at) => {
                    return Err(format!("{at:?} was refused, and is {end:?}"));
                }
                _ => {}
            }
            if *end == Outcome::Superseded {
                let Some(by) = self.superseded_by.get(at).copied() else {
                    return Err(format!("{at:?} was superseded by none that succeeded"));
                };
                let takes_part =
                    |at: UnitKey| self.tasks[at.0].task.coalesce && self.tasks[at.0].command(at.1).is_some();
                if !takes_part(*at) || !takes_part(by) || model.unit(at.1).keys.len() != 1 {
                    return Err(format!("{at:?} may not be superseded by {by:?}"));
                }
            }
        }
        for key in TIMED {
            let latest = self.latest.get(key).copied();
            let mut expected = Target::default();
            match latest {
                None => continue,
                Some((at, false)) => {
                    let command = self.tasks[at.0].command(at.1).expect("only commands write timed keys");
                    expected.run(BASE, command, Member::Plain).expect("they are never refused");
                }
                Some((_, true)) => {}
            }
            expected.redis.expire(self.now);
            if !self.target.redis.agrees_on(&expected.redis, key.as_bytes()) {
                let found = &self.target.redis;
                return Err(format!("{key}: {found:?} instead of {:?} by {latest:?}", expected.redis));
            }
            let is_later = |at: &UnitKey| latest.is_none_or(|(latest, _)| *at > latest);
            for (at, end) in self.ends.iter().filter(|(at, _)| is_later(at)) {
                let writes_it = self.tasks[at.0].unit(at.1).keys.iter().any(|found| found.bytes == key.as_bytes());
                if writes_it && *end == Outcome::Applied {
                    return Err(format!("{at:?} was never sent, and is {end:?}"));
                }
            }
        }
        Ok(())
    }

    /// A process, until it dies after so many steps. Returns whether all is finished and durable.
    fn live(&mut self, steps: usize) -> Verdict<bool> {
        self.lives += 1;
        let queue = QueueName { target: "default".into(), lane: "normal" };
        let partition = Partition { queue, index: 0 };
        let (lease, reader) = (Lease::forever(), Box::new(NoReader));
        let checkpoint = self.durable.clone();
        let assigned = Assigned { partition, epoch: Epoch(1), checkpoint, lease, reader };
        let mut window = Window::new(assigned, OWN, 1 << 20, Budget::new(1 << 30));
        window.claim = Claim::Held;
        if self.broken == Some(Break::NoCatchUp) {
            window.stop_catching_up();
        }
        let next = window.watermark();
        // What this life does not know of will end again.
        let state = checkpoint_state(self.durable.as_ref());
        let is_said = |at: &UnitKey| {
            let offset = at.0 as u64;
            state.as_ref().is_some_and(|(watermark, state)| {
                let half_done = state.half_done.get(&offset).and_then(|units| units.get(at.1));
                offset < *watermark
                    || state.finished.contains(offset)
                    || half_done.is_some_and(|end| *end != UnitEnd::Unfinished)
            })
        };
        self.ends.retain(|at, _| is_said(at));
        let mut life =
            Life { window, next, flights: Vec::new(), dying: Vec::new(), sealed: None, clock: Instant::now() };
        for _ in 0..steps {
            if life.next == self.tasks.len() as u64
                && life.window.len() == 0
                && self.durable.as_ref().is_some_and(|durable| durable.watermark == life.next)
            {
                return Ok(true);
            }
            match self.chance.u8(..20) {
                0..=3 => self.read(&mut life),
                4..=9 => self.send(&mut life)?,
                10..=15 => self.answer(&mut life)?,
                16 => self.store_letter(&mut life),
                17 => {
                    self.now += self.chance.i64(0..8) * self.chance.i64(0..800);
                    life.clock += Duration::from_millis(self.chance.u64(0..100));
                    life.window.schedule.wake(life.clock);
                }
                _ => self.checkpoint(&mut life),
            }
        }
        Ok(false)
    }

    fn read(&mut self, life: &mut Life) {
        for _ in 0..self.chance.u8(1..4) {
            let Some(model) = self.tasks.get(life.next as usize) else { return };
            let (offset, window) = (life.next, &mut life.window);
            life.next += 1;
            if let Some(earlier) = window.earlier(offset) {
                let mut units = units::of_task(&model.task, &model.due, 7);
                if let Some(broken) = self.broken {
                    units.iter_mut().enumerate().for_each(|(place, unit)| spoil(broken, model, place, unit));
                }
                let id = TaskId::parse(&format!("t{offset}")).expect("it is one");
                let accepted_at = Timestamp::from_millisecond(BASE).expect("it is in range");
                let envelope = Envelope::of_unreadable(id, accepted_at, Bytes::new());
                let entry = Entry {
                    offset,
                    prepared: None,
                    max_retries: 3,
                    units: Vec::new(),
                    open: 0,
                    keys: 0,
                    trouble: None,
                    letter: Letter::None,
                    may_have_run: window.may_have_run(&envelope),
                    superseded_by: None,
                    envelope,
                };
                let slot = window.take_in(entry, units, &earlier, accepted_at);
                if window.entry(slot).open == 0 {
                    window.remove(slot);
                }
            }
            window.note_read(offset + 1, 1);
        }
    }

    fn send(&mut self, life: &mut Life) -> Verdict {
        let window = &mut life.window;
        if !window.may_send() || life.flights.len() >= 3 {
            return Ok(());
        }
        let is_suspect = window.schedule.apart_len() > 0;
        let popped = match (is_suspect, life.flights.is_empty()) {
            (true, true) => window.schedule.pop_apart(),
            (true, false) => None,
            (false, _) => window.schedule.pop_ready(),
        };
        let Some((node, unit)) = popped else { return Ok(()) };
        let entry = window.entry(unit.task);
        let at = (entry.offset as usize, unit.unit as usize);
        let kind = entry.units[at.1].kind;
        let may_run = window.rows.may_run(window.schedule.keys(node), kind);
        let lacks_word = window.lacks_word(node, entry.offset) && self.broken != Some(Break::NoWord);
        if !may_run || lacks_word {
            window.word_wanted |= lacks_word;
            window.schedule.wait_for_checkpoint(node);
            return Ok(());
        }
        let model = &self.tasks[at.0];
        let has_run = |earlier: usize| {
            let end = entry.units[earlier].end;
            entry.may_have_run || matches!(end, Some(End::Settled(Outcome::Applied) | End::Dying | End::Dead))
        };
        let timing = model.due.unit(&model.task.operation, at.1, self.now, has_run);
        let (outcome, sending) = match timing {
            Timing::Drop => return self.end(life, node, unit, Outcome::Discarded),
            Timing::Expired { unlink: false } => {
                if entry.units.len() > 1 {
                    let offset = entry.offset;
                    window.note_run(node, kind, offset);
                }
                return self.end(life, node, unit, Outcome::Expired);
            }
            Timing::Expired { unlink: true } => (Outcome::Expired, None),
            Timing::Invalidate => (Outcome::Invalidated, None),
            Timing::Send(sending) => (Outcome::Applied, Some(sending)),
        };
        let fate = match self.chance.u8(..10) {
            0 => Fate::Hold,
            1 => Fate::Backoff,
            2 if self.chance.bool() => Fate::Unknown,
            _ if model.dies[at.1] => Fate::Dies,
            chosen => {
                let judged = model.unit(at.1);
                for key in TIMED.into_iter().filter(|key| judged.keys.iter().any(|one| one.bytes == key.as_bytes())) {
                    let latest = self.latest.entry(key).or_insert((at, sending.is_none()));
                    if at >= latest.0 {
                        *latest = (at, sending.is_none());
                    }
                }
                self.commands += 1;
                let answer = match &sending {
                    Some(sending) => self.target.execute(self.now, &model.task, at, &judged, sending),
                    None => {
                        let keys: Vec<&[u8]> = judged.keys.iter().map(|key| key.bytes).collect();
                        self.target.redis.run(self.now, "UNLINK", &keys).map(|()| Done::Applied)
                    }
                };
                // It ran, and nobody knows.
                if chosen == 2 { Fate::Unknown } else { Fate::Answered(answer) }
            }
        };
        life.flights.push(Flight { node, unit, outcome, fate });
        Ok(())
    }

    fn answer(&mut self, life: &mut Life) -> Verdict {
        if life.flights.is_empty() {
            return Ok(());
        }
        let Flight { node, unit, outcome, fate } = life.flights.swap_remove(self.chance.usize(..life.flights.len()));
        let window = &mut life.window;
        match fate {
            Fate::Hold => {
                window.schedule.put_back(node);
                window.reconsider(node);
                return Ok(());
            }
            Fate::Unknown => {
                window.entry_mut(unit.task).units[unit.unit as usize].suspect = true;
                window.schedule.set_apart(node, true);
                window.schedule.postpone(node, life.clock + Duration::from_millis(10));
                return Ok(());
            }
            Fate::Backoff | Fate::Answered(_) | Fate::Dies => {}
        }
        window.entry_mut(unit.task).units[unit.unit as usize].suspect = false;
        window.schedule.set_apart(node, false);
        match fate {
            Fate::Answered(Ok(done)) => {
                let entry = window.entry(unit.task);
                let (offset, kind) = (entry.offset, entry.units[unit.unit as usize].kind);
                window.note_run(node, kind, offset);
                let outcome = if done == Done::Stale { Outcome::Stale } else { outcome };
                return self.end(life, node, unit, outcome);
            }
            Fate::Backoff => {
                window.entry_mut(unit.task).units[unit.unit as usize].attempts += 1;
                window.schedule.postpone(node, life.clock + Duration::from_millis(self.chance.u64(1..50)));
                window.note(unit.task);
                window.reconsider(node);
            }
            _ => {
                window.entry_mut(unit.task).units[unit.unit as usize].end = Some(End::Dying);
                life.dying.push((node, unit));
            }
        }
        Ok(())
    }

    fn store_letter(&mut self, life: &mut Life) {
        if life.dying.is_empty() {
            return;
        }
        let (node, unit) = life.dying.swap_remove(self.chance.usize(..life.dying.len()));
        let window = &mut life.window;
        let entry = window.entry_mut(unit.task);
        let failure = Failure::dead(ReasonClass::WrongType, Executed::No, "WRONGTYPE", "refused");
        entry.note_death(unit.unit, &failure, ReasonClass::WrongType, Timestamp::UNIX_EPOCH);
        let state = &mut entry.units[unit.unit as usize];
        state.end = Some(End::Dead);
        let kind = if state.kind == ReplayKind::Once { ReplayKind::Other } else { state.kind };
        let (offset, place) = (entry.offset, unit.unit as usize);
        window.note_run(node, kind, offset);
        if self.broken == Some(Break::DeadSupersedes) {
            for earlier in window.finish(node) {
                self.note_end(life, earlier, Outcome::Superseded);
            }
        } else {
            window.give_way(node);
        }
        self.ends.insert((offset as usize, place), Outcome::Dead);
        self.close(life, unit);
    }

    fn end(&mut self, life: &mut Life, node: UnitId, unit: UnitRef, outcome: Outcome) -> Verdict {
        let at = (life.window.entry(unit.task).offset as usize, unit.unit as usize);
        let superseded = life.window.finish(node);
        for earlier in superseded {
            let earlier_at = (life.window.entry(earlier.task).offset as usize, earlier.unit as usize);
            self.superseded_by.insert(earlier_at, at);
            if outcome == Outcome::Discarded {
                return Err(format!("{earlier_at:?} was superseded by {at:?}, which is dropped"));
            }
            self.note_end(life, earlier, Outcome::Superseded);
        }
        self.note_end(life, unit, outcome);
        Ok(())
    }

    fn note_end(&mut self, life: &mut Life, unit: UnitRef, outcome: Outcome) {
        let entry = life.window.entry_mut(unit.task);
        let place = unit.unit as usize;
        let before = entry.units[place].end.replace(End::Settled(outcome));
        assert_eq!(before, None, "a unit ends once");
        self.ends.insert((entry.offset as usize, place), outcome);
        self.close(life, unit);
    }

    fn close(&mut self, life: &mut Life, unit: UnitRef) {
        let entry = life.window.entry_mut(unit.task);
        entry.open -= 1;
        if entry.open == 0 {
            life.window.remove(unit.task);
        } else {
            life.window.note(unit.task);
        }
    }

    fn checkpoint(&mut self, life: &mut Life) {
        let window = &mut life.window;
        match life.sealed.take() {
            None => {
                window.seal();
                let Draft { checkpoint, .. } = window.checkpoint(OWN, false);
                let (checkpoint, until) = self.rewrite(checkpoint, life);
                self.doubtful.push((checkpoint.clone(), until));
                let cut = (until < life.next).then_some(until);
                life.sealed = Some((checkpoint, until, cut));
            }
            Some(_) if self.chance.u8(..4) == 0 => window.unsealed(),
            Some((checkpoint, until, cut)) => {
                (self.durable, self.until) = (Some(checkpoint), until);
                self.doubtful.clear();
                window.checkpointed(cut);
                window.schedule.release_waiting();
            }
        }
    }

    /// The same checkpoint, but that it may leave out what is above some position, as one may for which there is little
    /// room; never more than the last one.
    fn rewrite(&mut self, checkpoint: Checkpoint, life: &Life) -> (Checkpoint, u64) {
        let mut until = life.next.max(self.until);
        if self.cuts && self.chance.bool() {
            until = self.chance.u64(self.until.max(checkpoint.watermark)..=until);
        }
        let watermark = checkpoint.watermark;
        let mut state = State::decode(watermark, &checkpoint.state).expect("it was written just now");
        match self.broken {
            Some(Break::SettledBefore) => {
                let covered = |entry: &&Entry| {
                    entry.units.iter().any(|unit| {
                        unit.end.is_none() && life.window.schedule.state(unit.node) == Some(UnitState::Covered)
                    })
                };
                let unfinished = life.window.entries().filter(|entry| !covered(entry)).map(|entry| entry.offset);
                let mut finished = Finished::from_unfinished(watermark, unfinished, life.next);
                finished.extend_from(&state.finished, life.next);
                state.finished = finished;
            }
            Some(Break::WordNotPassedOn) if self.lives > 1 && !life.window.word_wanted => state.word = 0,
            _ => {}
        }
        let encoded = state.encode(watermark, Bounds { until, max_bytes: 1 << 20 });
        (Checkpoint { watermark, state: encoded.state }, encoded.until)
    }
}

fn checkpoint_state(checkpoint: Option<&Checkpoint>) -> Option<(u64, State)> {
    let Checkpoint { watermark, state } = checkpoint?;
    Some((*watermark, State::decode(*watermark, state).expect("it was written by this process")))
}

/// What a unit would be if one rule were not.
fn spoil(broken: Break, model: &ModelTask<'_>, place: usize, unit: &mut NewUnit) {
    let option = |word: &[u8]| {
        model.command(place).is_some_and(|command| {
            command.spec.name == "SET" && command.args.iter().skip(2).any(|arg| arg.as_ref() == word)
        })
    };
    let judged = model.unit(place);
    match broken {
        Break::NxOverwrites => unit.stake.overwrites |= option(b"NX"),
        Break::XxOverwrites => unit.stake.overwrites |= option(b"XX"),
        Break::GetOverwrites => unit.stake.overwrites |= option(b"GET"),
        Break::KeepTtlOverwrites => unit.stake.overwrites |= option(b"KEEPTTL"),
        Break::OtherKeyOverlooked
            if model.command(place).is_none_or(|command| command.overwrite() != Overwrite::Whole) =>
        {
            unit.keys = Keys::new(unit.keys.as_slice().iter().copied().take(1));
        }
        Break::BarrierOverlooked if unit.keys == Keys::Barrier => unit.keys = Keys::One(place as u64),
        Break::AnythingOfRows => unit.stake.wants_certainty = false,
        Break::VersionsIgnored => unit.stake.version = None,
        Break::WishIgnored => {
            let task = Task { coalesce: true, ..model.task.clone() };
            unit.stake = units::of_task(&task, &model.due, 7).swap_remove(place).stake;
        }
        Break::AtomicGivesWay if model.command(place).is_none() && judged.keys.len() == 1 => {
            let check = xxhash_rust::xxh3::xxh3_64_with_seed(judged.keys[0].bytes, 7);
            unit.stake = Stake { gives_way: true, check, ..Stake::NONE };
        }
        _ => {}
    }
}

fn check(seed: u64, broken: Option<Break>) -> Verdict<usize> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let (menu, count) = (Menu::new(&mut chance), chance.usize(2..9));
    let bodies: Vec<String> = (0..count).map(|number| task_body(&mut chance, &menu, number)).collect();
    Case::new(chance, broken, &bodies).run().map_err(|found| format!("seed {seed}: {found}\n{bodies:#?}"))
}

#[test]
fn superseding_loses_nothing() {
    let (mut cases, mut superseded) = (0, 0);
    for seed in seeds("REDRIVE_COALESCE", 20_000) {
        cases += 1;
        superseded += check(seed, None).unwrap_or_else(|found| panic!("{found}"));
    }
    assert!(superseded > cases / 2, "{superseded} units were superseded in {cases} cases: that tells nothing");
}

#[test]
fn planted_breaks_of_superseding_are_found() {
    for broken in Break::ALL {
        let found = (0..50_000).find(|seed| check(*seed, Some(broken)).is_err());
        assert!(found.is_some(), "{broken:?} was not found");
    }
}
