//! What services send, made from a seed: every kind of write on few keys, so that all of them meet.
//!
//! A task is written down twice, side by side: as the JSON that the sidecar gets, and as what it [`Does`], which only
//! the model reads. Neither is derived from the other.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

/// Words of a command. Values may be any bytes.
pub type Words = Vec<Vec<u8>>;

pub struct Task {
    pub id: String,
    /// What the sidecar gets.
    pub body: Value,
    pub does: Does,
    /// Applied only if newer than what was applied on the key before.
    pub version: Option<(String, u64)>,
    /// The moment that relative times count from, in ms since 1970. None: the sidecar's time of acceptance, which its
    /// answer says.
    pub base_ms: Option<i64>,
}

/// What a task means at its own moment.
pub enum Does {
    /// Its time is over.
    Nothing,
    Command(Command),
    /// Each on its own.
    Each(Vec<Command>),
    /// All, with nothing between them; what fails does not stop the rest.
    Atomic(Vec<Command>),
    Script(Script),
    /// So late that it only says that these keys are not to be believed.
    Unlink(String),
}

#[derive(Clone)]
pub struct Command {
    /// As it is sent.
    pub sent: Words,
    /// What runs, without its TTL. None: only the TTL is set.
    pub runs: Option<Words>,
    pub expires: Option<Expiry>,
}

/// A key's end, counted from the task's own moment.
#[derive(Clone)]
pub struct Expiry {
    pub key: String,
    pub after_ms: i64,
    /// `NX`, `XX`, `GT` or `LT`.
    pub option: Option<&'static str>,
}

pub struct Script {
    pub source: &'static str,
    pub keys: Vec<String>,
    pub args: Vec<String>,
    /// This argument is a number of ms, counted from the task's own moment.
    pub ttl_arg: Option<usize>,
}

/// What a key most probably holds, so that most commands fit. The others are refused by Redis, which is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    Text,
    Number,
    List,
    Hash,
    Set,
    Sorted,
}

use Holds::{Hash, List, Nothing, Number, Set, Sorted, Text};

/// A line of the menu: how often, on what it fits, what it leaves (none: what it found).
type Line = (u32, &'static [Holds], Option<Holds>, fn(&mut Client, &str) -> Command);

const ANYTHING: &[Holds] = &[Nothing, Text, Number, List, Hash, Set, Sorted];

/// What is done to a key.
const MENU: &[Line] = &[
    (10, ANYTHING, Some(Text), |client, key| plain(&["SET", key], client.values(1))),
    (6, ANYTHING, Some(Number), |client, key| {
        let number = client.random.u16(..).to_string();
        plain(&["SET", key, &number], vec![])
    }),
    (8, ANYTHING, Some(Text), Client::set_with_ttl),
    (6, ANYTHING, Some(Nothing), |_, key| plain(&["DEL", key], vec![])),
    (2, ANYTHING, Some(Nothing), |_, key| plain(&["UNLINK", key], vec![])),
    (12, &[Nothing, Number], Some(Number), |_, key| plain(&["INCR", key], vec![])),
    (3, &[Nothing, Number], Some(Number), |client, key| {
        let by = client.random.i16(..).to_string();
        plain(&["INCRBY", key, &by], vec![])
    }),
    (4, &[Nothing, Text, Number], Some(Text), |client, key| plain(&["APPEND", key], client.values(1))),
    (12, &[Nothing, List], Some(List), |client, key| {
        let count = client.random.usize(1..4);
        plain(&["RPUSH", key], client.values(count))
    }),
    (3, &[Nothing, List], Some(List), |client, key| plain(&["LPUSH", key], client.values(1))),
    // Beyond the end of a short list now and then.
    (8, &[List], None, |client, key| {
        let index = client.random.i8(-4..4).to_string();
        plain(&["LSET", key, &index], client.values(1))
    }),
    (3, &[List], None, |_, key| plain(&["LPOP", key], vec![])),
    (2, &[List], None, |_, key| plain(&["LTRIM", key, "1", "-1"], vec![])),
    (10, &[Nothing, Hash], Some(Hash), |client, key| {
        let field = client.field();
        plain(&["HSET", key, &field], client.values(1))
    }),
    (6, &[Hash], None, |client, key| {
        let field = client.field();
        plain(&["HDEL", key, &field], vec![])
    }),
    (6, &[Nothing, Hash], Some(Hash), |client, key| {
        let field = client.number_field();
        plain(&["HINCRBY", key, &field, "7"], vec![])
    }),
    (4, &[Nothing, Set], Some(Set), |client, key| {
        let member = client.field();
        plain(&["SADD", key, &member], vec![])
    }),
    (6, ANYTHING, Some(Set), |client, key| {
        let [one, other] = client.sources();
        plain(&["SINTERSTORE", key, &one, &other], vec![])
    }),
    (4, &[Nothing, Sorted], Some(Sorted), |client, key| {
        let member = client.field();
        plain(&["ZINCRBY", key, "1.5", &member], vec![])
    }),
    (10, ANYTHING, None, Client::expire),
    (3, ANYTHING, None, |_, key| plain(&["PERSIST", key], vec![])),
];

/// A script that is no overwrite: its source, and for each of its keys what fits and what is left.
type ScriptLine = (&'static str, [(&'static [Holds], Option<Holds>); 2]);

const SCRIPTS: &[ScriptLine] = &[
    (
        "redis.call('INCR', KEYS[1]) return redis.call('RPUSH', KEYS[2], ARGV[1])",
        [(&[Nothing, Number], Some(Number)), (&[Nothing, List], Some(List))],
    ),
    (
        "local v = redis.call('LPOP', KEYS[1]) if v then redis.call('RPUSH', KEYS[2], v) end return v",
        [(&[List], None), (&[Nothing, List], Some(List))],
    ),
    // Fails midway by its own will, sometimes.
    (
        "local n = redis.call('INCR', KEYS[1]) if n % 3 == 0 then error('no') end redis.call('RPUSH', KEYS[2], n)",
        [(&[Nothing, Number], Some(Number)), (&[Nothing, List], Some(List))],
    ),
    (
        "#!lua\nlocal n = redis.call('APPEND', KEYS[1], ARGV[1]) if n > 40 then return redis.error_reply('LONG') end",
        [(&[Nothing, Text, Number], Some(Text)), (ANYTHING, None)],
    ),
    // Changes the type between what comes before and after.
    (
        "redis.call('DEL', KEYS[1]) redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('EXISTS', KEYS[2])",
        [(ANYTHING, Some(List)), (ANYTHING, None)],
    ),
];

/// Tasks for which a key is used, where it is not used for all.
const EPISODE: u8 = 8;

/// What all keys begin with.
pub const KEYS: &str = "svc";

/// Keys whose end is only about right, since a script is told what remains when it is sent, and not when it runs.
const ABOUT: &str = "about";

/// By how many ms the end of a key may differ: the clocks of servers are not read at the same instant.
pub fn ttl_tolerance_ms(key: &str) -> i64 {
    if key.contains(ABOUT) { 10_000 } else { 1_000 }
}

fn name(client: usize, base: &str, task: usize) -> String {
    format!("{KEYS}{client}:{base}:{task}")
}

struct Key {
    base: &'static str,
    name: String,
    holds: Holds,
    /// Of a hundred overwrites, how many it gets. On a key that is overwritten often all kinds of writes meet; on one
    /// that never is, whatever went wrong is still to be seen in the end.
    overwrites: u8,
    /// Tasks until another key takes its place, and it is left as it is: so what went wrong is not overwritten either.
    left: Option<u8>,
}

/// One service: it writes to keys of its own, one request after the other.
pub struct Client {
    number: usize,
    random: fastrand::Rng,
    keys: Vec<Key>,
    /// The key that most of a request is about, so that much happens to it within one checkpoint.
    favourite: usize,
    /// The version last given to the last of the keys.
    version: u64,
    tasks: usize,
    /// The task in the making has bytes that are no text.
    has_bytes: bool,
}

impl Client {
    pub fn new(number: usize, mut random: fastrand::Rng) -> Self {
        // The sources of SINTERSTORE are the two before the last; the last has versions.
        let keys =
            [("{wild}", 60), ("b ", 30), ("c", 15), ("d", 0), ("e", 0), ("set-1", 0), ("set-2", 0), ("versioned", 8)];
        // Where versions get a digit more, and where numbers of 53 bits end.
        let version = *random.choice(&[1, 95, (1 << 53) - 2]).expect("there are some");
        let keys = keys.map(|(base, overwrites)| Key {
            base,
            name: name(number, base, 0),
            holds: if base.starts_with("set") { Set } else { Nothing },
            overwrites,
            left: (overwrites > 10).then_some(EPISODE),
        });
        let keys = keys.into();
        Self { number, random, keys, favourite: 0, version, tasks: 0, has_bytes: false }
    }

    /// What is sent next, in one request.
    pub fn next(&mut self) -> Vec<Task> {
        let count = if self.random.u8(..3) == 0 { 1 } else { self.random.usize(2..7) };
        self.favourite = self.random.usize(..self.keys.len());
        (0..count).map(|_| self.task(count == 1)).collect()
    }

    /// How long it waits after that.
    pub fn pause(&mut self) -> std::time::Duration {
        std::time::Duration::from_millis(self.random.u64(0..100))
    }

    /// Whether it repeats an earlier request, as one does whose answer came too late.
    pub fn repeats(&mut self) -> Option<usize> {
        (self.random.u8(..12) == 0).then(|| self.random.usize(1..8))
    }

    fn task(&mut self, alone: bool) -> Task {
        self.has_bytes = false;
        let mut task = match self.random.u8(..100) {
            0..12 => self.register(),
            12..60 => self.simple(),
            60..72 => self.each(),
            72..84 => self.atomic(),
            84..93 => self.script(),
            93..96 => self.moving(),
            _ => self.over(),
        };
        self.tasks += 1;
        task.id = format!("{}-{}", self.number, self.tasks);
        task.body["id"] = task.id.as_str().into();
        task.body["priority"] = ["high", "normal", "low"][self.number % 3].into();
        if self.random.u8(..4) == 0 {
            task.body["coalesce"] = false.into();
        }
        if self.random.bool() {
            // What is tried here spends nothing.
            task.body["max_retries"] = 0.into();
        }
        if task.base_ms.is_none() && !(alone && self.random.bool()) {
            let ago = self.random.i64(0..20_000);
            task.occurred(ago);
        }
        task
    }

    /// Writes what is written nowhere else, so that an old value in the end is a write that was made too late.
    fn register(&mut self) -> Task {
        let key = name(self.number, "register", self.random.usize(..2));
        let command = plain(&["SET", &key], self.values(1));
        Task::new(self.simple_body(&command), Does::Command(command))
    }

    fn simple(&mut self) -> Task {
        if self.random.u8(..4) == 0 {
            return self.versioned();
        }
        let key = self.any();
        let command = self.command(key);
        if self.random.u8(..20) == 0 {
            return self.too_late(&command, key);
        }
        let mut task = Task::new(self.simple_body(&command), Does::Command(command));
        if self.random.u8(..10) == 0 {
            // Not for an hour.
            task.body["late"] = json!({"after_ms": 3_600_000, "do": "drop"});
            task.body["deadline"] = rfc3339(now_ms() + 3_600_000).into();
        }
        task
    }

    /// A task that came so late that something else is done.
    fn too_late(&mut self, command: &Command, key: usize) -> Task {
        let mut body = self.simple_body(command);
        let action = *self.random.choice(&["invalidate", "drop"]).expect("there are some");
        body["late"] = json!({"after_ms": 30_000, "do": action});
        let does = match action {
            "invalidate" => Does::Unlink(self.keys[key].name.clone()),
            _ => Does::Nothing,
        };
        let mut task = Task::new(body, does);
        task.occurred(60_000);
        task
    }

    /// A task whose own time is over.
    fn over(&mut self) -> Task {
        let ghost = name(self.number, "ghost", 0);
        let key = self.any();
        let key = self.keys[key].name.clone();
        let mut task = match self.random.u8(..4) {
            0 => Task::new(json!({"type": "simple", "command": "SET", "args": [ghost, "1", "EX", "5"]}), Does::Nothing),
            1 => Task::new(json!({"type": "simple", "command": "EXPIRE", "args": [key, 5]}), Does::Nothing),
            2 => {
                let mut body = json!({"type": "simple", "command": "INCR", "args": [key]});
                body["deadline"] = rfc3339(now_ms() - 1_000).into();
                Task::new(body, Does::Nothing)
            }
            // SET and EXPIRE together mean SETEX; what is about other keys goes on.
            _ => {
                let lives = plain(&["RPUSH", &key], self.values(1));
                let set = plain(&["SET", &ghost, "1"], vec![]);
                let expire = plain(&["EXPIRE", &ghost, "5"], vec![]);
                let (mode, does) = match self.random.bool() {
                    true => ("each", Does::Each(vec![lives.clone()])),
                    false => ("atomic", Does::Atomic(vec![lives.clone()])),
                };
                Task::new(self.pipeline_body(mode, &[lives, set, expire]), does)
            }
        };
        task.occurred(60_000);
        task
    }

    fn versioned(&mut self) -> Task {
        let key = self.keys.len() - 1;
        let name = self.keys[key].name.clone();
        let command = self.command(key);
        let mut task = match self.random.u8(..4) {
            0 => {
                let commands = vec![plain(&["DEL", &name], vec![]), plain(&["RPUSH", &name], self.values(2))];
                self.keys[key].holds = List;
                Task::new(self.pipeline_body("atomic", &commands), Does::Atomic(commands))
            }
            1 => {
                let source =
                    "redis.call('DEL', KEYS[2]) return redis.call('APPEND', KEYS[2], redis.call('TYPE', KEYS[1]).ok)";
                let read = self.any();
                let keys = vec![self.keys[read].name.clone(), name.clone()];
                let script = Script { source, keys, args: vec![], ttl_arg: None };
                self.keys[key].holds = Text;
                let mut body = script_body(&script);
                body["written_keys"] = json!([name]);
                Task::new(body, Does::Script(script))
            }
            _ => Task::new(self.simple_body(&command), Does::Command(command)),
        };
        let version = match self.random.u8(..4) {
            // Overtaken by another, or repeated under another id.
            0 => self.version - self.random.u64(0..self.version.min(3)),
            _ => {
                self.version += self.random.u64(1..3);
                self.version
            }
        };
        task.body["version"] = version.to_string().into();
        task.version = Some((name, version));
        task
    }

    fn each(&mut self) -> Task {
        let commands = self.commands();
        Task::new(self.pipeline_body("each", &commands), Does::Each(commands))
    }

    fn atomic(&mut self) -> Task {
        let commands = self.commands();
        Task::new(self.pipeline_body("atomic", &commands), Does::Atomic(commands))
    }

    fn commands(&mut self) -> Vec<Command> {
        let count = self.random.usize(1..6);
        (0..count)
            .map(|_| {
                let key = self.any();
                self.command(key)
            })
            .collect()
    }

    fn script(&mut self) -> Task {
        let value = format!("{}.{} ", self.number, self.tasks);
        match self.random.u8(..10) {
            0 => {
                self.take_turn(0);
                self.keys[0].holds = Text;
                let source = "return redis.call('SET', KEYS[1], ARGV[1])";
                let keys = vec![self.keys[0].name.clone()];
                let script = Script { source, keys, args: vec![value], ttl_arg: None };
                let mut body = script_body(&script);
                body["idempotent"] = true.into();
                Task::new(body, Does::Script(script))
            }
            1 | 2 => {
                let ttl = self.random.u32(1_000_000..100_000_000).to_string();
                let source = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])";
                let keys = vec![name(self.number, ABOUT, self.random.usize(..3))];
                let script = Script { source, keys, args: vec![value, ttl], ttl_arg: Some(1) };
                let mut body = script_body(&script);
                body["ttl_args"] = json!([{"index": 1, "unit": "ms"}]);
                Task::new(body, Does::Script(script))
            }
            _ => {
                let (source, keys) = self.random.choice(SCRIPTS).expect("there are some");
                let keys = keys.iter().map(|(fits, leaves)| self.key_for(fits, *leaves)).collect();
                let script = Script { source, keys, args: vec![value], ttl_arg: None };
                Task::new(script_body(&script), Does::Script(script))
            }
        }
    }

    /// What is taken from one key and given to another.
    fn moving(&mut self) -> Task {
        let command = match self.random.u8(..3) {
            0 => {
                let (from, to) = (self.random.usize(..3), self.random.usize(..3));
                let holds = std::mem::replace(&mut self.keys[from].holds, Nothing);
                self.keys[to].holds = holds;
                plain(&["RENAME", &self.keys[from].name, &self.keys[to].name], vec![])
            }
            1 => {
                let (from, to) = (self.key_for(&[List], None), self.key_for(&[Nothing, List], Some(List)));
                plain(&["LMOVE", &from, &to, "LEFT", "RIGHT"], vec![])
            }
            _ => {
                let ([from, to], member) = (self.sources(), self.field());
                plain(&["SMOVE", &from, &to, &member], vec![])
            }
        };
        Task::new(self.simple_body(&command), Does::Command(command))
    }

    /// A key for a script, mostly one that fits.
    fn key_for(&mut self, fits: &[Holds], leaves: Option<Holds>) -> String {
        loop {
            let key = self.any();
            let key = &mut self.keys[key];
            // What fits all and leaves something is an overwrite.
            let is_overwrite = fits.len() == ANYTHING.len() && leaves.is_some();
            let stands = !is_overwrite || self.random.u8(..100) < key.overwrites;
            let does_fit = fits.contains(&key.holds);
            if stands && (does_fit || self.random.u8(..60) == 0) {
                if let (true, Some(leaves)) = (does_fit, leaves) {
                    key.holds = leaves;
                }
                return key.name.clone();
            }
        }
    }

    /// A command on that key, mostly one that fits what it holds.
    fn command(&mut self, key: usize) -> Command {
        let all: u32 = MENU.iter().map(|(weight, ..)| weight).sum();
        loop {
            let mut at = self.random.u32(..all);
            let line = MENU.iter().find(|(weight, ..)| at.checked_sub(*weight).map(|rest| at = rest).is_none());
            let (_, fits, leaves, make) = line.expect("the weights add up to all");
            let Key { name, holds, overwrites, .. } = &mut self.keys[key];
            let is_overwrite = fits.len() == ANYTHING.len() && leaves.is_some();
            let stands = !is_overwrite || self.random.u8(..100) < *overwrites;
            let does_fit = fits.contains(holds);
            if stands && (does_fit || self.random.u8(..60) == 0) {
                if let (true, Some(leaves)) = (does_fit, leaves) {
                    *holds = *leaves;
                }
                let name = name.clone();
                return make(self, &name);
            }
        }
    }

    fn set_with_ttl(&mut self, key: &str) -> Command {
        let value = self.values(1);
        let seconds = self.random.i64(1_000..100_000);
        let runs = [words(&["SET", key]), value.clone()].concat();
        let (sent, after_ms) = match self.random.u8(..4) {
            0 => ([words(&["SETEX", key, &seconds.to_string()]), value].concat(), seconds * 1000),
            1 => ([words(&["PSETEX", key, &(seconds * 999).to_string()]), value].concat(), seconds * 999),
            2 => ([runs.clone(), words(&["PX", &(seconds * 999).to_string()])].concat(), seconds * 999),
            _ => ([runs.clone(), words(&["EX", &seconds.to_string()])].concat(), seconds * 1000),
        };
        Command { sent, runs: Some(runs), expires: Some(Expiry { key: key.to_owned(), after_ms, option: None }) }
    }

    fn expire(&mut self, key: &str) -> Command {
        let after_ms = self.random.i64(1_000..100_000) * 1000;
        let option = *self.random.choice(&[None, None, Some("NX"), Some("XX"), Some("GT"), Some("LT")]).expect("some");
        let (name, number) = match self.random.bool() {
            true => ("EXPIRE", after_ms / 1000),
            false => ("PEXPIRE", after_ms),
        };
        let mut sent = words(&[name, key, &number.to_string()]);
        sent.extend(option.map(|option| option.as_bytes().to_vec()));
        Command { sent, runs: None, expires: Some(Expiry { key: key.to_owned(), after_ms, option }) }
    }

    /// One of the keys, by its place.
    fn any(&mut self) -> usize {
        let place = if self.random.bool() { self.favourite } else { self.random.usize(..self.keys.len()) };
        self.take_turn(place);
        place
    }

    fn take_turn(&mut self, place: usize) {
        let key = &mut self.keys[place];
        match &mut key.left {
            Some(0) => {
                (key.name, key.holds) = (name(self.number, key.base, self.tasks), Nothing);
                key.left = Some(EPISODE);
            }
            Some(left) => *left -= 1,
            None => {}
        }
    }

    fn sources(&self) -> [String; 2] {
        let [.., one, other, _] = self.keys.as_slice() else { panic!("there are more keys") };
        [one.name.clone(), other.name.clone()]
    }

    fn field(&mut self) -> String {
        format!("f{}", self.random.u8(..6))
    }

    fn number_field(&mut self) -> String {
        format!("n{}", self.random.u8(..3))
    }

    /// Values that occur nowhere else: text, sometimes long, sometimes bytes.
    fn values(&mut self, count: usize) -> Words {
        let mut value = |number| {
            let mut value = format!("{}.{}.{number}", self.number, self.tasks).into_bytes();
            match self.random.u8(..20) {
                0 => value.extend(std::iter::repeat_n(b'x', self.random.usize(..3000))),
                1 => {
                    self.has_bytes = true;
                    value.extend([0, 0xff, b'\r', b'\n', 0xc3]);
                }
                _ => {}
            }
            value
        };
        (0..count).map(&mut value).collect()
    }

    fn simple_body(&self, command: &Command) -> Value {
        let mut body = self.body_of(command);
        body["type"] = "simple".into();
        if self.has_bytes {
            body["encoding"] = "base64".into();
        }
        body
    }

    fn pipeline_body(&self, mode: &str, commands: &[Command]) -> Value {
        let commands: Vec<Value> = commands.iter().map(|command| self.body_of(command)).collect();
        let mut body = json!({"type": "pipeline", "mode": mode, "commands": commands});
        if self.has_bytes {
            body["encoding"] = "base64".into();
        }
        body
    }

    fn body_of(&self, command: &Command) -> Value {
        let text = |word: &Vec<u8>| match self.has_bytes {
            true => BASE64_STANDARD.encode(word),
            false => String::from_utf8(word.clone()).expect("without bytes all is text"),
        };
        let name = String::from_utf8_lossy(&command.sent[0]);
        json!({"command": name, "args": command.sent[1..].iter().map(text).collect::<Vec<_>>()})
    }
}

impl Task {
    fn new(body: Value, does: Does) -> Self {
        Self { id: String::new(), body, does, version: None, base_ms: None }
    }

    /// Says when the service tried.
    fn occurred(&mut self, ms_ago: i64) {
        let base = now_ms() - ms_ago;
        self.body["occurred_at"] = rfc3339(base).into();
        self.base_ms = Some(base);
    }
}

fn script_body(script: &Script) -> Value {
    json!({"type": "lua", "script": script.source, "keys": script.keys, "args": script.args})
}

/// A command that means what it says.
fn plain(beginning: &[&str], values: Words) -> Command {
    let sent = [words(beginning), values].concat();
    Command { runs: Some(sent.clone()), sent, expires: None }
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn rfc3339(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).expect("it is of our days").to_string()
}
