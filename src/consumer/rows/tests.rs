//! That the rule is right is shown on a model: units run on a tiny Redis as chance orders them, checkpoints are written
//! and fail, the process dies and begins again from any checkpoint that may be durable. In the end Redis must be as if
//! each unit had run once, when it first ran, and no unit may be answered otherwise the second time.
//! A checkpoint may also leave out what finished from some unit on.
//! `REDRIVE_REPLAY_CASES` and `REDRIVE_REPLAY_SEED` set how many cases are tried and which.
//!
//! That the model would notice is shown by planting breaks of the rule: it must find each.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;

use super::*;
use crate::{
    consumer::{
        coalesce::Stake,
        model::{ModelRedis, Refused, seeds},
        schedule::{Schedule, UnitId},
    },
    task::{self, Late, LateAction, Rules},
};

const KEYS: [&str; 3] = ["a", "b", "c"];

/// What decides which units run.
trait Rule {
    fn may_run(&self, keys: &Keys, kind: ReplayKind) -> bool;
    fn finished(&mut self, keys: &Keys, kind: ReplayKind, offset: u64);
    fn seal(&mut self);
    fn checkpointed(&mut self, cut: Option<u64>);
    fn unsealed(&mut self);
}

impl Rule for Rows {
    fn may_run(&self, keys: &Keys, kind: ReplayKind) -> bool {
        self.may_run(keys, kind)
    }

    fn finished(&mut self, keys: &Keys, kind: ReplayKind, offset: u64) {
        self.finished(keys, kind, offset);
    }

    fn seal(&mut self) {
        self.seal();
    }

    fn checkpointed(&mut self, cut: Option<u64>) {
        self.checkpointed(cut);
    }

    fn unsealed(&mut self) {
        self.unsealed();
    }
}

/// Breaks of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// Nothing waits.
    NoWait,
    /// Whatever finished, others may follow.
    NothingCloses,
    /// Fields of any types in one row.
    TypesMixed,
    RemovalsAnywhere,
    /// What a unit without known keys did is forgotten.
    BarrierNotCounted,
    /// What finished before a checkpoint is forgotten before it is durable.
    SealedForgotten,
    /// What finished before a checkpoint that failed is forgotten.
    UnsealedForgotten,
    /// What a checkpoint leaves out is forgotten as if it said so.
    CutForgotten,
    /// A later checkpoint leaves out more than one before.
    CutMovesBack,
    /// A once-unit that was refused counts as one that has its marker.
    RefusedIsOnce,
    /// An overwrite that sets a TTL counts as one that does not.
    TtlIsOverwrite,
}

/// The rule as the module says it, word by word over all that finished.
#[derive(Default)]
struct Written {
    finished: Vec<(Keys, ReplayKind, u64)>,
    sealed: usize,
    broken: Option<Break>,
}

impl Written {
    fn kinds(&self, key: u64) -> Vec<ReplayKind> {
        let touches = |keys: &Keys| *keys == Keys::Barrier || keys.as_slice().contains(&key);
        self.finished.iter().filter(|(keys, ..)| touches(keys)).map(|(_, kind, _)| *kind).collect()
    }

    fn is_row(&self, row: &[ReplayKind]) -> bool {
        let others = &row[row.iter().take_while(|kind| **kind == ReplayKind::Once).count()..];
        if others.len() <= 1 || self.broken == Some(Break::NothingCloses) && others.contains(&ReplayKind::Other) {
            return true;
        }
        let fields: Option<Vec<_>> = row
            .iter()
            .map(|kind| match kind {
                ReplayKind::Fields(field_type, change) => Some((*field_type, *change)),
                _ => None,
            })
            .collect();
        match fields {
            Some(fields) => {
                let one_type = fields.iter().all(|(field_type, _)| *field_type == fields[0].0);
                let mut blocks: Vec<_> = fields.iter().map(|(_, change)| *change).collect();
                blocks.dedup();
                let removals = blocks.iter().filter(|change| **change == FieldChange::Remove).count();
                (one_type || self.broken == Some(Break::TypesMixed))
                    && (removals <= 1 || self.broken == Some(Break::RemovalsAnywhere))
            }
            None => row.iter().all(|kind| *kind == ReplayKind::Overwrite),
        }
    }
}

impl Rule for Written {
    fn may_run(&self, keys: &Keys, kind: ReplayKind) -> bool {
        let fits = |key| {
            let mut row = self.kinds(key);
            row.push(kind);
            self.is_row(&row)
        };
        self.broken == Some(Break::NoWait)
            || match keys {
                Keys::Barrier => (0..KEYS.len() as u64).all(fits),
                keys => keys.as_slice().iter().copied().all(fits),
            }
    }

    fn finished(&mut self, keys: &Keys, kind: ReplayKind, offset: u64) {
        if self.broken != Some(Break::BarrierNotCounted) || *keys != Keys::Barrier {
            self.finished.push((keys.clone(), kind, offset));
        }
    }

    fn seal(&mut self) {
        self.sealed = self.finished.len();
        if self.broken == Some(Break::SealedForgotten) {
            self.checkpointed(None);
        }
    }

    fn checkpointed(&mut self, cut: Option<u64>) {
        let cut = cut.filter(|_| self.broken != Some(Break::CutForgotten));
        let later = self.finished.split_off(self.sealed);
        self.finished.retain(|(_, _, offset)| cut.is_some_and(|cut| *offset >= cut));
        self.finished.extend(later);
        self.sealed = 0;
    }

    fn unsealed(&mut self) {
        if self.broken == Some(Break::UnsealedForgotten) {
            self.checkpointed(None);
        }
        self.sealed = 0;
    }
}

/// Kinds of units, as [`ModelUnit::chosen_by`] numbers them: those that tell something of each other are together.
const FAMILIES: [&[u8]; 8] =
    [&[0, 1, 2], &[0, 3, 7], &[3, 4, 7, 18], &[5, 6, 7, 10], &[8, 9, 16, 17], &[10, 11], &[12, 13], &[14, 15]];

/// A unit on its way.
struct ModelUnit {
    keys: Keys,
    kind: ReplayKind,
    script: Script,
    /// Milliseconds after it first runs.
    ttl: Option<i64>,
    /// Since it first ran.
    deadline: Option<i64>,
    /// How it was answered first.
    answer: Option<Result<(), Refused>>,
}

#[derive(Clone, Debug)]
enum Script {
    /// Words of a command; `?` stands for its deadline.
    Command(Vec<&'static str>),
    /// Copies whether one key exists to another one.
    Existence(&'static str, &'static str),
    /// Counts all texts and what is not there.
    CountAll,
}

impl Script {
    fn run(&self, redis: &mut ModelRedis, now: i64, deadline: i64) -> Result<(), Refused> {
        let mut run = |words: &[&str]| {
            let deadline = deadline.to_string();
            let args: Vec<&[u8]> = words[1..]
                .iter()
                .map(|word| if *word == "?" { deadline.as_bytes() } else { word.as_bytes() })
                .collect();
            redis.run(now, words[0], &args)
        };
        match self {
            Self::Command(words) => run(words),
            Self::Existence(from, to) => {
                redis.expire(now);
                let exists = redis.exists(from.as_bytes());
                if exists {
                    redis.run(now, "SET", &[to.as_bytes(), b"1"])
                } else {
                    redis.run(now, "DEL", &[to.as_bytes()])
                }
            }
            Self::CountAll => {
                let _: Vec<_> = KEYS.iter().map(|key| run(&["INCR", key])).collect();
                Ok(())
            }
        }
    }
}

impl ModelUnit {
    fn chosen_by(chance: &mut fastrand::Rng, kinds: &[u8], keys: usize) -> Self {
        use FieldChange::{Add, Remove};
        use FieldType::{Hash, Set, SortedSet};
        use ReplayKind::{Fields, Once, Other, Overwrite};
        let (first, second) = (chance.usize(..keys), chance.usize(..keys));
        let (key, other) = (KEYS[first], KEYS[second]);
        let value = ["1", "2", "x"][chance.usize(..3)];
        let field = ["f", "g"][chance.usize(..2)];
        let one = Keys::new([first as u64]);
        let both = Keys::new([first as u64, second as u64]);
        let command = |words: &[&'static str]| Script::Command(words.to_vec());
        let (keys, kind, script) = match kinds[chance.usize(..kinds.len())] {
            0 => (one, Overwrite, command(&["SET", key, value])),
            1 => (one, Overwrite, command(&["DEL", key])),
            2 => (both, Overwrite, command(&["MSET", key, value, other, value])),
            3 => (one, Other, command(&["SET", key, value, "PXAT", "?"])),
            4 => (one, Other, command(&["SET", key, value, "NX"])),
            5 => (one, Other, command(&["PEXPIREAT", key, "?"])),
            6 => (one, Other, command(&["PERSIST", key])),
            7 => (one, Once, command(&["INCR", key])),
            8 => (one, Once, command(&["RPUSH", key, value])),
            9 => (both, Once, command(&["RENAME", key, other])),
            10 => (one, Fields(Hash, Add), command(&["HSET", key, field, value])),
            11 => (one, Fields(Hash, Remove), command(&["HDEL", key, field])),
            12 => (one, Fields(Set, Add), command(&["SADD", key, field])),
            13 => (one, Fields(Set, Remove), command(&["SREM", key, field])),
            14 => (one, Fields(SortedSet, Add), command(&["ZADD", key, value, field])),
            15 => (one, Fields(SortedSet, Remove), command(&["ZREM", key, field])),
            16 => (both, Other, Script::Existence(key, other)),
            17 => (Keys::Barrier, Other, Script::Existence(key, other)),
            18 => (Keys::Barrier, Once, Script::CountAll),
            other => panic!("there is no kind {other}"),
        };
        let has_ttl = matches!(&script, Script::Command(words) if words.contains(&"?"));
        Self { keys, kind, script, ttl: has_ttl.then(|| chance.i64(1..20)), deadline: None, answer: None }
    }

    fn touches(&self, key: u64) -> bool {
        self.keys == Keys::Barrier || self.keys.as_slice().contains(&key)
    }
}

/// One run of units, through several processes.
struct Case {
    chance: fastrand::Rng,
    broken: Option<Break>,
    now: i64,
    units: Vec<ModelUnit>,
    redis: ModelRedis,
    /// On this one each unit runs once only.
    reference: ModelRedis,
    markers: HashSet<usize>,
    /// Which unit set the TTL of each key; none where it was there before.
    ttl_by: BTreeMap<u64, usize>,
    /// The checkpoint that is durable, and those that may be.
    durable: Saved,
    doubtful: Vec<Saved>,
    /// Whether checkpoints may leave something out.
    cuts: bool,
    /// How often one is written though nothing waits for it.
    checkpoints: u8,
}

/// What a checkpoint says.
#[derive(Clone, Debug, Default)]
struct Saved {
    finished: Vec<bool>,
    /// Nothing is said of this unit, or of a later one.
    until: usize,
}

type Verdict = Result<(), String>;

impl Case {
    fn new(seed: u64, broken: Option<Break>) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let kinds = [0; 2].map(|_| FAMILIES[chance.usize(..FAMILIES.len())]);
        let kinds = kinds[..chance.usize(1..=2)].concat();
        let keys = chance.usize(1..=KEYS.len());
        let mut redis = ModelRedis::default();
        for _ in 0..chance.u8(..4) {
            // Refused or not: it is how things were before.
            let _ = ModelUnit::chosen_by(&mut chance, &kinds, keys).script.run(&mut redis, 0, 40);
        }
        if chance.bool() {
            KEYS.iter().for_each(|key| redis.run(0, "PEXPIREAT", &[key.as_bytes(), b"40"]).expect("it is a number"));
        }
        let mut units: Vec<_> =
            (0..chance.usize(2..10)).map(|_| ModelUnit::chosen_by(&mut chance, &kinds, keys)).collect();
        if broken == Some(Break::TtlIsOverwrite) {
            let sets_ttl = |script: &Script| matches!(script, Script::Command(words) if words.contains(&"PXAT"));
            units.iter_mut().filter(|unit| sets_ttl(&unit.script)).for_each(|unit| unit.kind = ReplayKind::Overwrite);
        }
        Self {
            broken,
            now: 0,
            reference: redis.clone(),
            redis,
            markers: HashSet::new(),
            ttl_by: BTreeMap::new(),
            durable: Saved { finished: vec![false; units.len()], until: 0 },
            doubtful: Vec::new(),
            cuts: chance.bool(),
            checkpoints: [0, 1, 2, 10][chance.usize(..4)],
            units,
            chance,
        }
    }

    fn run(mut self) -> Verdict {
        for _ in 0..self.chance.u8(1..4) {
            let steps = self.chance.usize(..40);
            match self.broken {
                None => self.live(Rows::default(), steps)?,
                broken => self.live(Written { broken, ..Written::default() }, steps)?,
            }
            // Which of the checkpoints reached the disk is seen only now.
            self.doubtful.push(std::mem::take(&mut self.durable));
            self.durable = self.doubtful.swap_remove(self.chance.usize(..self.doubtful.len()));
            self.doubtful.clear();
            let down = self.chance.i64(0..30);
            self.let_pass(down);
        }
        self.live(Rows::default(), usize::MAX)?;
        self.let_pass(0);
        if self.redis == self.reference {
            Ok(())
        } else {
            Err(format!("{:?} instead of {:?}", self.redis, self.reference))
        }
    }

    /// A process, until it dies after so many steps or all is finished and durable.
    fn live(&mut self, mut rule: impl Rule, mut steps_left: usize) -> Verdict {
        let mut finished = self.durable.finished.clone();
        let mut sealed: Option<Saved> = None;
        let mut schedule = Schedule::default();
        for (number, unit) in self.units.iter().enumerate().filter(|(number, _)| !finished[*number]) {
            schedule.insert(unit.keys.clone(), Stake::NONE, &[], number);
        }
        let mut sent: Vec<(UnitId, usize, ReplayKind)> = Vec::new();
        while self.durable.finished.contains(&false) && steps_left > 0 {
            steps_left -= 1;
            let can_send = schedule.ready_len() > 0 && sent.len() < 3;
            let step = match (can_send, sent.is_empty()) {
                (false, true) => 10,
                _ => self.chance.u8(..10 + self.checkpoints),
            };
            match step {
                0..=4 if can_send => {
                    let (id, number) = schedule.pop_ready().expect("one is ready");
                    let unit = &self.units[number];
                    if unit.deadline.is_some_and(|deadline| deadline <= self.now) {
                        schedule.finish(id);
                        finished[number] = true;
                    } else if rule.may_run(&unit.keys, unit.kind) {
                        let answer = self.execute(number)?;
                        let has_no_marker = self.broken != Some(Break::RefusedIsOnce) && answer.is_err();
                        sent.push((
                            id,
                            number,
                            if has_no_marker { ReplayKind::Other } else { self.units[number].kind },
                        ));
                    } else {
                        schedule.wait_for_checkpoint(id);
                    }
                }
                5..=8 if !sent.is_empty() => {
                    let (id, number, kind) = sent.swap_remove(self.chance.usize(..sent.len()));
                    if self.chance.u8(..8) == 0 {
                        // It ran, but nobody knows.
                        schedule.put_back(id);
                    } else {
                        rule.finished(&self.units[number].keys, kind, number as u64);
                        schedule.finish(id);
                        finished[number] = true;
                    }
                }
                9 => {
                    let passed = self.chance.i64(0..8);
                    self.let_pass(passed);
                }
                10.. => match sealed.take() {
                    None => {
                        rule.seal();
                        let saved = self.save(&finished);
                        self.doubtful.push(saved.clone());
                        sealed = Some(saved);
                    }
                    Some(_) if self.chance.u8(..3) == 0 => rule.unsealed(),
                    Some(checkpoint) => {
                        let cut = (checkpoint.until < finished.len()).then_some(checkpoint.until as u64);
                        self.durable = checkpoint;
                        self.doubtful.clear();
                        rule.checkpointed(cut);
                        schedule.release_waiting();
                    }
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// A checkpoint: of all, or of what is below one unit, and then never of less than the last one.
    fn save(&mut self, finished: &[bool]) -> Saved {
        let least = if self.broken == Some(Break::CutMovesBack) { 0 } else { self.durable.until };
        let mut until = finished.len();
        if self.cuts && self.chance.bool() {
            until = self.chance.usize(least..=until);
        }
        let mut saved = finished.to_vec();
        saved[until..].fill(false);
        // All that is below the first one that is not finished is never told again.
        let watermark = finished.iter().position(|finished| !finished).unwrap_or(finished.len());
        saved[..watermark].fill(true);
        Saved { finished: saved, until: until.max(watermark) }
    }

    fn execute(&mut self, number: usize) -> Result<Result<(), Refused>, String> {
        let unit = &mut self.units[number];
        let deadline = *unit.deadline.get_or_insert(self.now + unit.ttl.unwrap_or(i64::MAX / 2));
        if self.markers.contains(&number) {
            return Ok(Ok(()));
        }
        let ttls = |redis: &ModelRedis| KEYS.map(|key| redis.expires_at(key.as_bytes()));
        let before = ttls(&self.redis);
        let answer = unit.script.run(&mut self.redis, self.now, deadline);
        if unit.answer.is_none() {
            unit.answer = Some(unit.script.run(&mut self.reference, self.now, deadline));
        }
        if unit.answer != Some(answer) {
            return Err(format!("unit {number} was answered {answer:?} instead of {:?}", unit.answer));
        }
        if answer.is_ok() && unit.kind == ReplayKind::Once {
            self.markers.insert(number);
        }
        for (key, (before, after)) in before.into_iter().zip(ttls(&self.redis)).enumerate() {
            if before != after {
                self.ttl_by.insert(key as u64, number);
            }
        }
        Ok(answer)
    }

    /// Time goes on. But a unit that says no time is made whenever it is its turn, also again, and also after a TTL
    /// that another one had set for its key. No order of checkpoints changes that: so no such TTL passes while such a
    /// unit may run again, unless the one that had set the TTL may run again as well.
    fn let_pass(&mut self, duration: i64) {
        let mut latest = self.now + duration;
        let may_run_again = |number: usize| {
            self.units[number].answer.is_some() && !self.durable.finished[number] && !self.markers.contains(&number)
        };
        for (key, name) in (0..).zip(KEYS) {
            let Some(expires_at) = self.redis.expires_at(name.as_bytes()).filter(|at| *at > self.now) else { continue };
            let again = |number: &usize| self.units[*number].touches(key) && may_run_again(*number);
            let by_one_that_runs_again = self.ttl_by.get(&key).is_some_and(again);
            if !by_one_that_runs_again && (0..self.units.len()).any(|number| again(&number)) {
                latest = latest.min(expires_at - 1);
            }
        }
        self.now = self.now.max(latest);
        self.redis.expire(self.now);
        self.reference.expire(self.now);
    }
}

fn check(seed: u64, broken: Option<Break>) -> Verdict {
    Case::new(seed, broken).run().map_err(|found| format!("seed {seed}: {found}"))
}

#[test]
fn replays_change_nothing() {
    for seed in seeds("REDRIVE_REPLAY", 5_000) {
        check(seed, None).expect("Redis is as if each unit had run once");
    }
}

#[test]
fn planted_breaks_are_found() {
    for broken in [
        Break::NoWait,
        Break::NothingCloses,
        Break::TypesMixed,
        Break::RemovalsAnywhere,
        Break::BarrierNotCounted,
        Break::SealedForgotten,
        Break::UnsealedForgotten,
        Break::CutForgotten,
        Break::CutMovesBack,
        Break::RefusedIsOnce,
        Break::TtlIsOverwrite,
    ] {
        let found = (0..10_000).find(|seed| check(*seed, Some(broken)).is_err());
        assert!(found.is_some(), "{broken:?} was not found");
    }
}

/// What the module keeps of what finished is enough: it answers as the rule does that sees all of it. Where a checkpoint
/// left something out it may let less run.
#[test]
fn rows_say_what_the_rule_says() {
    for seed in 0..500 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let kinds = FAMILIES.concat();
        let (mut rows, mut written) = (Rows::default(), Written::default());
        let (mut sealed, mut was_cut) = (false, false);
        // Far from each other and from the beginning, so that places are counted from somewhere else.
        let first = [0, 7, 1 << 40][chance.usize(..3)];
        for step in 0..80 {
            let offset = first + chance.u64(step..step + 10);
            let ModelUnit { keys, kind, .. } = ModelUnit::chosen_by(&mut chance, &kinds, KEYS.len());
            let may_run = written.may_run(&keys, kind);
            let said = rows.may_run(&keys, kind);
            let is_right = if was_cut { may_run || !said } else { said == may_run };
            assert!(is_right, "seed {seed}: {said}: {keys:?} {kind:?} after {:?}", written.finished);
            if said {
                let kind = if chance.u8(..8) == 0 { ReplayKind::Other } else { kind };
                rows.finished(&keys, kind, offset);
                written.finished(&keys, kind, offset);
            }
            match chance.u8(..16) {
                0 | 1 if !sealed => {
                    sealed = true;
                    rows.seal();
                    written.seal();
                }
                2 if sealed => {
                    sealed = false;
                    let cut = (chance.u8(..4) == 0).then(|| first + chance.u64(..90));
                    // All that was left out before is said by one that leaves nothing out.
                    was_cut = cut.is_some();
                    rows.checkpointed(cut);
                    written.checkpointed(cut);
                }
                3 if sealed => {
                    sealed = false;
                    rows.unsealed();
                    written.unsealed();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn everything_waits_once_too_many_keys_are_known() {
    assert_eq!(size_of::<(u64, Kept)>(), 16, "what the tables' sizes are counted from");
    let mut rows = Rows::default();
    let runs = |rows: &mut Rows, key| {
        let keys = Keys::new([key]);
        let may_run = rows.may_run(&keys, ReplayKind::Overwrite);
        if may_run {
            rows.finished(&keys, ReplayKind::Overwrite, key);
        }
        may_run
    };
    let first_that_waits = |rows: &mut Rows| (0..).find(|key| !runs(rows, *key));
    assert_eq!(first_that_waits(&mut rows), Some(MAX_KEYS as u64));
    rows.seal();
    assert_eq!(first_that_waits(&mut rows), Some(MAX_KEYS as u64), "as much again beside what is being written");
    rows.unsealed();
    assert!(!runs(&mut rows, 0));
    rows.seal();
    rows.checkpointed(None);
    assert!(runs(&mut rows, 0));
}

#[test]
fn what_a_checkpoint_leaves_out_is_kept_by_key() {
    let mut rows = Rows::default();
    let [low, high, both] = [1, 2, 3].map(|key| Keys::new([key]));
    for (keys, offset) in [(&high, 20), (&low, 10), (&both, 20), (&both, 10)] {
        assert!(rows.may_run(keys, ReplayKind::Overwrite));
        rows.finished(keys, ReplayKind::Overwrite, offset);
    }
    rows.seal();
    rows.checkpointed(Some(15));
    assert!(rows.may_run(&low, ReplayKind::Other), "the checkpoint says all of it");
    assert!(!rows.may_run(&high, ReplayKind::Other));
    assert!(!rows.may_run(&both, ReplayKind::Other));
    assert!(!rows.may_run(&Keys::Barrier, ReplayKind::Other));
    rows.seal();
    rows.checkpointed(Some(20));
    assert!(!rows.may_run(&high, ReplayKind::Other), "it leaves out the position that it names");
    rows.seal();
    rows.checkpointed(Some(21));
    assert!(rows.may_run(&high, ReplayKind::Other) && rows.may_run(&Keys::Barrier, ReplayKind::Other));

    // What finishes later may lie below.
    rows.finished(&low, ReplayKind::Overwrite, 15);
    rows.seal();
    rows.checkpointed(Some(18));
    assert!(rows.may_run(&low, ReplayKind::Other));

    rows.finished(&Keys::Barrier, ReplayKind::Other, 30);
    rows.finished(&low, ReplayKind::Overwrite, 22);
    rows.seal();
    rows.checkpointed(Some(25));
    assert!(!rows.may_run(&low, ReplayKind::Overwrite) && !rows.may_run(&high, ReplayKind::Overwrite));
    rows.seal();
    rows.checkpointed(Some(31));
    assert!(rows.may_run(&low, ReplayKind::Other) && rows.may_run(&high, ReplayKind::Other));
}

#[test]
fn replay_kinds_follow_from_the_task() {
    use FieldChange::{Add, Remove};
    use FieldType::{Hash, Set, SortedSet};
    use ReplayKind::{Fields, Once, Other, Overwrite};
    let rules = Rules::new(task::Config::default(), ["default".to_owned()]);
    let late = |action| Some(Late { after: Duration::ZERO, action });
    let of = |body: &str, number: usize, by_rule| {
        let task = Task::parse(body.as_bytes(), &rules, Timestamp::UNIX_EPOCH).expect(body);
        let unit = task.operation.units().nth(number).expect("it has such a unit");
        ReplayKind::of(&task, number, &unit, &Due::of(&task, Timestamp::UNIX_EPOCH, by_rule))
    };
    for (command, expected) in [
        (r#""SET","args":["k","v"]"#, Overwrite),
        (r#""UNLINK","args":["k","j"]"#, Overwrite),
        (r#""SET","args":["k","v","EX","9"]"#, Other),
        (r#""SET","args":["k","v","NX"]"#, Other),
        (r#""EXPIRE","args":["k","9"]"#, Other),
        (r#""INCR","args":["k"]"#, Once),
        (r#""INCR","args":["k"],"idempotent":true"#, Other),
        (r#""HMSET","args":["k","f","v"]"#, Fields(Hash, Add)),
        (r#""HDEL","args":["k","f"]"#, Fields(Hash, Remove)),
        (r#""SADD","args":["k","m"]"#, Fields(Set, Add)),
        (r#""SREM","args":["k","m"]"#, Fields(Set, Remove)),
        (r#""ZADD","args":["k","1","m"]"#, Fields(SortedSet, Add)),
        (r#""ZADD","args":["k","GT","1","m"]"#, Other),
        (r#""ZREM","args":["k","m"]"#, Fields(SortedSet, Remove)),
        (r#""SETBIT","args":["k","1","1"]"#, Other),
    ] {
        let body = format!(r#"{{"type":"simple","command":{command}}}"#);
        assert_eq!(of(&body, 0, None), expected, "{body}");
        assert_eq!(of(&body, 0, late(LateAction::Replay)), expected, "{body}");
        let if_dropped = if expected == Once { Once } else { Other };
        assert_eq!(of(&body, 0, late(LateAction::Drop)), if_dropped, "{body}");
        assert_eq!(of(&body, 0, late(LateAction::Invalidate)), Other, "{body}");
    }
    let pipeline = |mode: &str, more: &str| {
        let set = |key| format!(r#"{{"command":"SET","args":["{key}","v"]}}"#);
        format!(r#"{{"type":"pipeline","mode":"{mode}","commands":[{},{}{more}]}}"#, set("k"), set("j"))
    };
    let expire = r#",{"command":"EXPIRE","args":["k","9"]}"#;
    let increment = r#",{"command":"INCR","args":["n"]}"#;
    assert_eq!(of(&pipeline("each", ""), 1, None), Overwrite);
    assert_eq!(of(&pipeline("each", increment), 1, None), Overwrite);
    assert_eq!(of(&pipeline("each", increment), 2, None), Once);
    assert_eq!(of(&pipeline("each", expire), 0, None), Other);
    assert_eq!(of(&pipeline("atomic", ""), 0, None), Overwrite);
    assert_eq!(of(&pipeline("atomic", expire), 0, None), Other);
    assert_eq!(of(&pipeline("atomic", increment), 0, None), Once);
    assert_eq!(of(r#"{"type":"lua","script":"return 1"}"#, 0, None), Once);
    assert_eq!(of(r#"{"type":"lua","script":"return 1","idempotent":true}"#, 0, None), Other);
}
