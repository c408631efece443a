use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{
    consumer::{coalesce::Stake, schedule::Keys},
    log::{Checkpointing, Entry as LogEntry, QueueName, ReadError},
    queue::Envelope,
    task::{Outcome, TaskId},
};

/// Records are put into the window by the test itself.
struct NoReader;

impl Reader for NoReader {
    fn next(&mut self, _max_bytes: usize) -> BoxFuture<'_, Result<Vec<LogEntry>, ReadError>> {
        Box::pin(std::future::pending())
    }
}

fn window(checkpoint: Option<Checkpoint>, budget: &Arc<Budget>) -> Window {
    bounded(checkpoint, UNBOUNDED, budget)
}

fn bounded(checkpoint: Option<Checkpoint>, max_state_bytes: usize, budget: &Arc<Budget>) -> Window {
    let queue = QueueName { target: "default".into(), lane: "normal" };
    let partition = Partition { queue, index: 0 };
    let (epoch, lease, reader) = (Epoch(1), Lease::forever(), Box::new(NoReader));
    Window::new(Assigned { partition, epoch, lease, checkpoint, reader }, OWN, max_state_bytes, budget.clone())
}

/// The boot id of these windows' process.
const OWN: [u8; 16] = [1; 16];

/// What Kafka has room for.
const BOUNDED: usize = 3072;

/// What a journal has room for.
const UNBOUNDED: usize = 16 << 20;

fn entry(offset: u64, units: usize) -> Entry {
    let id = TaskId::parse(&format!("t{offset}")).expect("an id");
    let envelope = Envelope::of_unreadable(id, Timestamp::UNIX_EPOCH, Bytes::from_static(b"{}"));
    let unit = || Unit {
        node: UnitId::NONE,
        idempotent: true,
        kind: ReplayKind::Other,
        attempts: 0,
        strikes: 0,
        suspect: false,
        refused: false,
        parked: false,
        end: None,
    };
    Entry {
        offset,
        envelope,
        prepared: None,
        max_retries: 3,
        units: std::iter::repeat_with(unit).take(units).collect(),
        open: units,
        keys: units,
        trouble: None,
        letter: Letter::None,
        may_have_run: false,
        superseded_by: None,
    }
}

/// Reads offsets up to `end` as a worker does: what an earlier process finished is passed over.
fn read(window: &mut Window, next: &mut u64, end: u64, units: usize) {
    let from = *next;
    for offset in from..end {
        if window.earlier(offset).is_some() {
            window.insert(entry(offset, units), units);
        }
    }
    if end > from {
        window.note_read(end, 100 * (end - from));
        *next = end;
    }
}

fn unfinished(window: &Window) -> BTreeSet<u64> {
    window.entries().map(|entry| entry.offset).collect()
}

fn finish(window: &mut Window, offset: u64) {
    let slot = window.unfinished[&offset];
    window.remove(slot);
}

proptest! {
    /// However often the process is started again, and wherever in its reading: each offset is finished once, and
    /// after the last checkpoint nothing that was finished before it comes again.
    #[test]
    fn every_offset_is_finished_exactly_once_over_restarts(
        lives in prop::collection::vec((1..40_u64, prop::collection::vec(any::<prop::sample::Index>(), 0..40)), 1..8),
    ) {
        let total = 60;
        let budget = Budget::new(1 << 20);
        let mut finished = BTreeSet::new();
        let mut checkpoint = None;
        for (ahead, choices) in lives {
            let mut window = window(checkpoint.take(), &budget);
            let mut next = window.watermark();
            let end = total.min(next + ahead);
            read(&mut window, &mut next, end, 1);
            prop_assert!(unfinished(&window).is_disjoint(&finished));
            for choice in choices {
                let open: Vec<u64> = unfinished(&window).into_iter().collect();
                if open.is_empty() {
                    break;
                }
                let offset = *choice.get(&open);
                finish(&mut window, offset);
                prop_assert!(finished.insert(offset));
            }
            let stored = window.checkpoint(OWN, false).checkpoint;
            prop_assert!((0..stored.watermark).all(|offset| finished.contains(&offset)));
            checkpoint = Some(stored);
        }
        let mut window = window(checkpoint, &budget);
        let mut next = window.watermark();
        read(&mut window, &mut next, total, 1);
        let left: BTreeSet<u64> = (0..total).filter(|offset| !finished.contains(offset)).collect();
        prop_assert_eq!(unfinished(&window), left);
    }
}

#[test]
fn half_done_pipelines_and_attempts_survive_also_where_they_were_not_read_again() {
    let budget = Budget::new(1 << 20);
    let mut first = window(None, &budget);
    let mut next = 0;
    read(&mut first, &mut next, 10, 3);
    for offset in [4, 8] {
        let slot = first.unfinished[&offset];
        let entry = first.entry_mut(slot);
        entry.units[0].end = Some(End::Settled(Outcome::Applied));
        entry.units[2].attempts = 2;
        entry.open = 2;
        first.note(slot);
    }
    let stored = first.checkpoint(OWN, false).checkpoint;

    // The second process dies before it has read all of it again.
    let mut second = window(Some(stored), &budget);
    let mut next = second.watermark();
    read(&mut second, &mut next, 6, 3);
    let stored = second.checkpoint(OWN, false).checkpoint;

    let third = window(Some(stored), &budget);
    let earlier = third.earlier(8).expect("it is not finished");
    assert_eq!(earlier.units, [UnitEnd::Settled(Outcome::Applied), UnitEnd::Unfinished, UnitEnd::Unfinished]);
    assert_eq!(earlier.attempts, [(2, 2)]);
}

#[test]
fn a_full_budget_stops_reading_and_keeps_a_floor_for_each() {
    let budget = Budget::new(FLOOR);
    let (mut first, second) = (window(None, &budget), window(None, &budget));
    let mut next = 0;
    while first.room(false).is_some() {
        let end = next + 1;
        read(&mut first, &mut next, end, 1);
        assert!(next < 10_000, "the budget never ends it");
    }
    assert!(second.room(false).is_some(), "another window has its floor");
    let taken = budget.used.load(Ordering::Relaxed);
    drop(first);
    assert!(taken > 0 && budget.used.load(Ordering::Relaxed) == 0, "what a window took is given back");
}

#[test]
fn one_waiting_task_bounds_the_span_by_bytes() {
    let budget = Budget::new(1 << 30);
    let mut window = window(None, &budget);
    window.insert(entry(0, 1), 1);
    window.note_read(1, MAX_SPAN_BYTES / 2);
    assert!(window.room(false).is_some());
    window.note_read(2, MAX_SPAN_BYTES / 2);
    assert_eq!(window.room(false), None);
    finish(&mut window, 0);
    assert!(window.room(false).is_some());
}

#[test]
fn an_unreadable_checkpoint_repeats_tasks_and_loses_none() {
    let budget = Budget::new(1 << 20);
    let stored = Checkpoint { watermark: 5, state: Bytes::from_static(b"\xff garbled") };
    let mut window = window(Some(stored), &budget);
    let mut next = window.watermark();
    read(&mut window, &mut next, 8, 1);
    assert_eq!(unfinished(&window), BTreeSet::from([5, 6, 7]));
}

/// However many pipelines come to be half done, and wherever owners follow each other: what a checkpoint has said stays
/// said, and no checkpoint is longer than allowed.
#[test]
fn bounded_checkpoints_take_nothing_back() {
    for seed in 0..40 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let budget = Budget::new(64 << 20);
        let (total, max_bytes) = (6000, [Checkpointing::LEAST_STATE_BYTES, BOUNDED][chance.usize(..2)]);
        let most_units = [1, 3, 20][chance.usize(..3)];
        let (mut finished, mut said) = (BTreeSet::new(), BTreeSet::new());
        let mut half_said: BTreeMap<u64, usize> = BTreeMap::new();
        let mut checkpoint = None;
        for _ in 0..4 {
            let mut window = bounded(checkpoint.take(), max_bytes, &budget);
            let mut next = window.watermark();
            // What the last owner left out runs again.
            finished.clone_from(&said);
            for _ in 0..6 {
                let end = total.min(next + chance.u64(0..1500));
                // As many units whenever it is read.
                let units = |offset: u64| 1 + (offset * 7 % most_units) as usize;
                for offset in next..end {
                    let Some(earlier) = window.earlier(offset) else {
                        assert!(finished.contains(&offset), "seed {seed}: {offset} was never finished");
                        continue;
                    };
                    assert!(!said.contains(&offset), "seed {seed}: {offset} was said to be finished");
                    let slot = window.insert(entry(offset, units(offset)), units(offset));
                    let ends = earlier.units.iter().filter(|end| **end != UnitEnd::Unfinished).count();
                    assert!(ends >= half_said.get(&offset).copied().unwrap_or(0), "seed {seed}: of {offset}");
                    let entry = window.entry_mut(slot);
                    entry.units[..ends].iter_mut().for_each(|unit| unit.end = Some(End::Settled(Outcome::Applied)));
                    entry.open -= ends;
                    window.note(slot);
                }
                if end > next {
                    window.note_read(end, 100);
                    next = end;
                }
                let open: Vec<u64> = unfinished(&window).into_iter().collect();
                for offset in open {
                    match chance.u8(..4) {
                        0 => {
                            finish(&mut window, offset);
                            finished.insert(offset);
                        }
                        1 => {
                            let slot = window.unfinished[&offset];
                            let entry = window.entry_mut(slot);
                            if entry.open > 1 {
                                let place = entry.units.len() - entry.open;
                                entry.units[place].end = Some(End::Settled(Outcome::Applied));
                                entry.open -= 1;
                                window.note(slot);
                            }
                        }
                        _ => {}
                    }
                }
                let Draft { checkpoint: stored, cut } = window.checkpoint(OWN, true);
                assert!(stored.state.len() <= max_bytes, "seed {seed}: {} bytes", stored.state.len());
                let state = State::decode(stored.watermark, &stored.state).expect("it was written just now");
                let leaves_out = cut.is_some_and(|cut| {
                    finished.range(cut..).next().is_some()
                        || window.entries().any(|entry| entry.offset >= cut && entry.unit_ends().is_some())
                });
                assert!(state.more_may_have_run || !leaves_out, "seed {seed}: {cut:?}");
                for offset in &said {
                    assert!(state.finished.contains(*offset), "seed {seed}: {offset} was taken back");
                }
                let says = |offset: &u64| *offset < stored.watermark || state.finished.contains(*offset);
                said.extend(finished.iter().copied().filter(says));
                assert!(finished.iter().all(|offset| cut.is_some_and(|cut| *offset >= cut) || says(offset)));
                half_said.retain(|offset, _| !finished.contains(offset));
                for (offset, ends) in &state.half_done {
                    half_said.insert(*offset, ends.iter().filter(|end| **end != UnitEnd::Unfinished).count());
                }
                checkpoint = Some(stored);
            }
        }
        assert!(most_units > 1 || said.len() == finished.len(), "seed {seed}: 6,000 single commands always fit");
    }
}

#[test]
fn eight_thousand_offsets_are_read_whatever_they_are_and_more_if_they_can_be_described() {
    let budget = Budget::new(1 << 30);
    let most = |max_bytes, units| {
        let mut window = bounded(None, max_bytes, &budget);
        let mut next = 0;
        while window.room(false).is_some() && next < 100_000 {
            let end = next + 64;
            read(&mut window, &mut next, end, units);
        }
        next
    };
    assert_eq!(most(BOUNDED, 100), 8192);
    assert!((8192..30_000).contains(&most(BOUNDED, 1)));
    assert!(most(BOUNDED, 1) > 20_000);
    assert!(most(UNBOUNDED, 1) > 99_000);
}

#[test]
fn owner_that_left_something_out_or_did_not_end_makes_careful() {
    let budget = Budget::new(64 << 20);
    let own_task = entry(0, 1).envelope;
    let check = |released, boot_id, cut_at: usize, claim, may_have_run| {
        let mut first = bounded(None, cut_at, &budget);
        first.claim = Claim::Held;
        let mut next = 0;
        read(&mut first, &mut next, 4000, 20);
        (1000..4000).for_each(|offset| finish(&mut first, offset));
        let mut second = window(Some(first.checkpoint(boot_id, released).checkpoint), &budget);
        assert_eq!((second.claim, second.may_have_run(&own_task)), (claim, may_have_run));
    };
    let other = [9; 16];
    check(true, other, UNBOUNDED, Claim::Claiming, false);
    check(true, other, BOUNDED, Claim::Claiming, true);
    check(false, other, UNBOUNDED, Claim::Fencing(other), true);
    check(false, OWN, UNBOUNDED, Claim::Claiming, true);
}

/// What one owner left open stays open until it was read and settled, however many owners end in order meanwhile.
#[test]
fn doubt_is_passed_on() {
    let budget = Budget::new(1 << 20);
    let mut first = window(None, &budget);
    first.claim = Claim::Held;
    read(&mut first, &mut 0, 5, 1);
    let mut second = window(Some(first.checkpoint([9; 16], false).checkpoint), &budget);
    second.claim = Claim::Held;
    let mut third = window(Some(second.checkpoint(OWN, true).checkpoint), &budget);
    assert!(third.may_have_run(&entry(0, 1).envelope));
    third.claim = Claim::Held;
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert!(!third.may_have_run(&Envelope { accepted_at: later, ..entry(5, 1).envelope }), "it has read past it");
    let mut fourth = window(Some(third.checkpoint(OWN, true).checkpoint), &budget);
    assert!(!fourth.may_have_run(&entry(6, 1).envelope));
}

/// A SET of one key, and what it needs to take the place of another.
fn set(key: u64, may_be_refused: bool) -> NewUnit {
    let stake = Stake { gives_way: true, overwrites: !may_be_refused, always: true, ..Stake::NONE };
    NewUnit {
        keys: Keys::new([key]),
        stake,
        checks: Vec::new(),
        idempotent: true,
        kind: if may_be_refused { ReplayKind::Once } else { ReplayKind::Overwrite },
    }
}

fn take_in(window: &mut Window, offset: u64, unit: NewUnit) {
    let earlier = window.earlier(offset).expect("it is not finished");
    window.take_in(entry(offset, 0), vec![unit], &earlier, Timestamp::UNIX_EPOCH);
    window.note_read(offset + 1, 100);
}

#[test]
fn what_took_a_place_is_sent_when_a_checkpoint_gives_the_word_and_the_next_owner_keeps_it() {
    let budget = Budget::new(1 << 20);
    let mut first = window(None, &budget);
    first.claim = Claim::Held;
    take_in(&mut first, 0, set(1, true));
    take_in(&mut first, 1, set(1, false));
    take_in(&mut first, 2, set(2, false));
    take_in(&mut first, 3, set(2, false));
    let (node, _) = first.schedule.pop_ready().expect("the second one is ready");
    assert!(first.lacks_word(node, 1));
    let (other, _) = first.schedule.pop_ready().expect("the fourth one is ready");
    assert!(!first.lacks_word(other, 3), "both may run again in any case");
    first.word_wanted = true;
    first.seal();
    first.unsealed();
    first.seal();
    let stored = first.checkpoint(OWN, false).checkpoint;
    assert!(first.lacks_word(node, 1), "it is not durable");
    first.checkpointed(None);
    assert!(!first.lacks_word(node, 1));

    let mut second = window(Some(stored), &budget);
    second.claim = Claim::Held;
    take_in(&mut second, 0, set(1, true));
    assert!(!second.may_send() && second.catches_up_until().is_some());
    // That one ends as well, and says so again.
    let mut third = window(Some(second.checkpoint(OWN, false).checkpoint), &budget);
    third.claim = Claim::Held;
    take_in(&mut third, 0, set(1, true));
    take_in(&mut third, 1, set(1, false));
    take_in(&mut third, 2, set(2, false));
    assert!(!third.may_send());
    take_in(&mut third, 3, set(2, false));
    assert!(third.may_send() && third.catches_up_until().is_none());
    let (node, _) = third.schedule.pop_ready().expect("the second one is ready");
    assert!(!third.lacks_word(node, 1), "the word stands");
}

#[test]
fn more_is_read_than_could_run_where_it_need_not_all_be_sent() {
    let budget = Budget::new(64 << 20);
    let mut window = window(None, &budget);
    for offset in 0..READY_AHEAD as u64 {
        take_in(&mut window, offset, set(offset, false));
    }
    assert_eq!(window.room(false), None);
    assert!(window.room(true).is_some());
}

/// Takes a backlog in whose keys are as in life: the second is written half as often as the first, the third a third.
/// Returns how many units are sent of as many tasks.
fn sent_of_zipf(tasks: u64, keys: usize, ahead: bool) -> u64 {
    let mut chance = fastrand::Rng::with_seed(1);
    let mut sums: Vec<f64> = Vec::with_capacity(keys);
    (1..=keys).for_each(|rank| sums.push(sums.last().unwrap_or(&0.0) + 1.0 / rank as f64));
    let total = *sums.last().expect("there is a key");
    let budget = Budget::new(24 << 20);
    let mut window = window(None, &budget);
    let (mut next, mut sent) = (0, 0);
    loop {
        while next < tasks && window.room(ahead).is_some() {
            for _ in 0..(tasks - next).min(256) {
                let key = sums.partition_point(|sum| *sum < chance.f64() * total) as u64;
                let earlier = window.earlier(next).expect("it is not finished");
                let mut task = entry(next, 0);
                task.envelope.value = Bytes::from_static(&[b'x'; 100]);
                window.take_in(task, vec![set(key, false)], &earlier, Timestamp::UNIX_EPOCH);
                next += 1;
            }
            window.note_read(next, 256 * 100);
        }
        if window.len() == 0 {
            return sent;
        }
        let batch: Vec<_> = std::iter::from_fn(|| window.schedule.pop_ready()).take(512).collect();
        for (node, unit) in batch {
            sent += 1;
            for earlier in window.finish(node) {
                window.remove(earlier.task);
            }
            window.remove(unit.task);
        }
    }
}

/// With `REDRIVE_ZIPF_TASKS=1000000` as many tasks as an outage may leave.
#[test]
fn of_a_backlog_that_is_held_back_less_than_half_is_sent() {
    let tasks = std::env::var("REDRIVE_ZIPF_TASKS").map_or(100_000, |tasks| tasks.parse().expect("a number"));
    let ratio = |ahead| sent_of_zipf(tasks, 100_000, ahead) as f64 / tasks as f64;
    let (held_back, at_full_speed) = (ratio(true), ratio(false));
    assert!(held_back < 0.5 && held_back < at_full_speed, "{held_back:.3} and {at_full_speed:.3} are sent");
}
