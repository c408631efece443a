//! The order, and who takes whose place.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn keys(keys: &[u64]) -> Keys {
    Keys::new(keys.to_vec())
}

fn insert(schedule: &mut Schedule<u32>, of: &[u64], unit: u32) -> UnitId {
    schedule.insert(keys(of), Stake::NONE, &[], unit)
}

fn drain(schedule: &mut Schedule<u32>) -> Vec<u32> {
    let mut ran = Vec::new();
    while let Some((id, payload)) = schedule.pop_ready() {
        ran.push(payload);
        schedule.finish(id);
    }
    ran
}

#[test]
fn a_unit_waits_for_all_earlier_ones_on_its_keys() {
    let mut schedule = Schedule::default();
    insert(&mut schedule, &[1], 0);
    insert(&mut schedule, &[2], 1);
    insert(&mut schedule, &[1, 2], 2);
    insert(&mut schedule, &[3], 3);
    insert(&mut schedule, &[2], 4);
    let (first, _) = schedule.pop_ready().expect("0 waits for nothing");
    let (second, _) = schedule.pop_ready().expect("1 waits for nothing");
    assert_eq!(schedule.pop_ready().map(|(_, payload)| payload), Some(3));
    assert_eq!(schedule.pop_ready(), None);
    schedule.finish(second);
    assert_eq!(schedule.pop_ready(), None);
    schedule.finish(first);
    assert_eq!(drain(&mut schedule), [2, 4]);
}

#[test]
fn a_unit_in_backoff_keeps_its_keys_and_lets_others_pass() {
    let start = Instant::now();
    let mut schedule = Schedule::default();
    insert(&mut schedule, &[1], 0);
    insert(&mut schedule, &[1], 1);
    insert(&mut schedule, &[2], 2);
    let (id, _) = schedule.pop_ready().expect("0 is ready");
    schedule.postpone(id, start + Duration::from_secs(1));
    assert_eq!(drain(&mut schedule), [2]);
    schedule.wake(start);
    assert_eq!(drain(&mut schedule), [0; 0]);
    assert_eq!(schedule.next_wake(), Some(start + Duration::from_secs(1)));
    schedule.wake(start + Duration::from_secs(1));
    assert_eq!(drain(&mut schedule), [0, 1]);
}

#[test]
fn units_that_waited_for_a_checkpoint_come_first_and_in_their_old_order() {
    let mut schedule = Schedule::default();
    for (unit, key) in [1, 2, 3, 1].into_iter().enumerate() {
        insert(&mut schedule, &[key], unit as u32);
    }
    let (first, _) = schedule.pop_ready().expect("0 is ready");
    let (second, _) = schedule.pop_ready().expect("1 is ready");
    schedule.set_apart(second, true);
    insert(&mut schedule, &[4], 4);
    let (fifth, _) = schedule.pop_ready_if(9, |unit| unit == 4).expect("4 is ready");
    for id in [first, second, fifth] {
        schedule.wait_for_checkpoint(id);
    }
    assert_eq!((schedule.waiting_len(), schedule.state(first)), (3, Some(UnitState::Waiting)));
    assert_eq!(schedule.pop_apart(), None);
    insert(&mut schedule, &[5], 5);
    schedule.release_waiting();
    assert_eq!(schedule.waiting_len(), 0);
    assert_eq!(schedule.pop_apart().map(|(_, unit)| unit), Some(1), "it still runs alone");
    assert_eq!(drain(&mut schedule), [0, 4, 2, 5, 3]);
}

#[test]
fn what_was_postponed_comes_back_among_its_like() {
    let now = Instant::now();
    let mut schedule = Schedule::default();
    for unit in 0..4 {
        schedule.insert(keys(&[u64::from(unit)]), Stake::NONE, &[], unit);
    }
    let (first, _) = schedule.pop_ready().expect("0 is ready");
    schedule.postpone(first, now);
    schedule.wake(now);
    assert_eq!((schedule.ready_len(), schedule.fresh_len()), (4, 3));
    assert_eq!(schedule.pop_again().map(|(_, unit)| unit), Some(0));
    schedule.put_back(first);
    assert_eq!((schedule.ready_len(), schedule.fresh_len()), (4, 3), "it stays one of them");
    assert_eq!(drain(&mut schedule), [1, 2, 3, 0]);
}

#[test]
fn held_units_keep_their_keys_and_their_order() {
    let mut schedule = Schedule::default();
    for (unit, key) in [(0, 1), (1, 2), (2, 1), (3, 3)] {
        schedule.insert(keys(&[key]), Stake::NONE, &[], unit);
    }
    for _ in 0..2 {
        let (id, _) = schedule.pop_ready().expect("0 and 1 are ready");
        schedule.hold(id);
    }
    let (id, unit) = schedule.pop_ready().expect("3 is ready");
    assert_eq!((unit, schedule.held_len()), (3, 2));
    schedule.finish(id);
    assert_eq!(schedule.pop_ready(), None, "2 waits for 0");
    schedule.release_held();
    assert_eq!(drain(&mut schedule), [0, 1, 2]);
}

#[test]
fn a_barrier_waits_for_all_and_all_wait_for_it() {
    let mut schedule = Schedule::default();
    insert(&mut schedule, &[1], 0);
    insert(&mut schedule, &[], 1);
    insert(&mut schedule, &[2], 2);
    insert(&mut schedule, &[], 3);
    insert(&mut schedule, &[3], 4);
    let (id, payload) = schedule.pop_ready().expect("0 is ready");
    assert_eq!(payload, 0);
    assert_eq!(schedule.pop_ready(), None);
    schedule.finish(id);
    assert_eq!(drain(&mut schedule), [1, 2, 3, 4]);
}

/// Gives way to later ones, and takes the place of earlier ones.
const SET: Stake = Stake { gives_way: true, overwrites: true, always: true, ..Stake::NONE };
/// Gives way only.
const INCR: Stake = Stake { overwrites: false, ..SET };

fn put(schedule: &mut Schedule<u32>, key: u64, stake: Stake, unit: u32) -> UnitId {
    schedule.insert(keys(&[key]), stake, &[], unit)
}

/// Runs what is ready, and says what ran and what ended with it.
fn drain_with_superseded(schedule: &mut Schedule<u32>) -> Vec<(u32, Vec<u32>)> {
    let mut ran = Vec::new();
    while let Some((id, payload)) = schedule.pop_ready() {
        schedule.finish(id);
        ran.push((payload, schedule.take_superseded()));
    }
    ran
}

#[test]
fn an_overwrite_takes_the_place_of_what_waits_before_it() {
    let mut schedule = Schedule::default();
    put(&mut schedule, 1, INCR, 0);
    put(&mut schedule, 2, INCR, 1);
    put(&mut schedule, 1, SET, 2);
    put(&mut schedule, 1, INCR, 3);
    let last = put(&mut schedule, 1, SET, 4);
    put(&mut schedule, 1, INCR, 5);
    let moved: HashMap<u32, UnitId> = schedule.moved().collect();
    assert_eq!(moved[&4], last);
    assert!([0, 2, 3].iter().all(|unit| moved.get(unit).is_none_or(|id| *id != last)));
    assert_eq!(schedule.ready_len(), 2);
    let expected = [(4, vec![0, 2, 3]), (1, vec![]), (5, vec![])];
    assert_eq!(drain_with_superseded(&mut schedule), expected, "it runs where the first one stood");
}

#[test]
fn nothing_takes_the_place_of_what_runs_or_stands_apart() {
    let mut schedule = Schedule::default();
    put(&mut schedule, 1, SET, 0);
    let (running, _) = schedule.pop_ready().expect("0 is ready");
    put(&mut schedule, 1, SET, 1);
    put(&mut schedule, 1, SET, 2);
    assert_eq!(schedule.state(running), Some(UnitState::Running));
    schedule.set_apart(running, true);
    schedule.put_back(running);
    schedule.reconsider(running);
    assert_eq!(schedule.pop_apart().map(|(_, unit)| unit), Some(0));
    schedule.set_apart(running, false);
    schedule.put_back(running);
    schedule.reconsider(running);
    assert_eq!(drain_with_superseded(&mut schedule), [(2, vec![0, 1])], "now it waits like others");
}

#[test]
fn what_waits_for_its_retry_is_not_waited_for() {
    let now = Instant::now();
    let mut schedule = Schedule::default();
    put(&mut schedule, 1, SET, 0);
    let (first, _) = schedule.pop_ready().expect("0 is ready");
    schedule.postpone(first, now + Duration::from_secs(1));
    put(&mut schedule, 1, SET, 1);
    assert_eq!((schedule.backoff_len(), schedule.ready_len()), (0, 1));
    assert_eq!(drain_with_superseded(&mut schedule), [(1, vec![0])]);
    schedule.wake(now + Duration::from_secs(2));
    assert_eq!(schedule.pop_ready(), None);
}

#[test]
fn what_is_held_is_not_waited_for() {
    let mut schedule = Schedule::default();
    put(&mut schedule, 1, SET, 0);
    let (first, _) = schedule.pop_ready().expect("0 is ready");
    put(&mut schedule, 1, SET, 1);
    schedule.hold(first);
    schedule.reconsider(first);
    assert_eq!(drain_with_superseded(&mut schedule), [(1, vec![0])]);
    put(&mut schedule, 2, SET, 2);
    let (place, _) = schedule.pop_ready().expect("2 is ready");
    schedule.hold(place);
    put(&mut schedule, 2, INCR, 3);
    let several = Stake { gives_way: false, ..SET };
    schedule.insert(keys(&[2, 3]), several, &[(2, 0), (3, 0)], 4);
    assert_eq!(drain_with_superseded(&mut schedule), [(4, vec![2, 3])]);
    schedule.release_held();
    assert_eq!(schedule.pop_ready(), None);
}

#[test]
fn what_gives_way_lets_the_others_run_before_what_follows() {
    let mut schedule = Schedule::default();
    for (unit, stake) in [INCR, SET, INCR, INCR, SET].into_iter().enumerate() {
        put(&mut schedule, 1, stake, unit as u32);
    }
    put(&mut schedule, 1, INCR, 5);
    insert(&mut schedule, &[], 6);
    let (dead, payload) = schedule.pop_ready().expect("the last overwrite is ready");
    assert_eq!(payload, 4);
    schedule.give_way(dead);
    let expected = [(1, vec![0]), (2, vec![]), (3, vec![]), (5, vec![]), (6, vec![])];
    assert_eq!(drain_with_superseded(&mut schedule), expected);
}

#[test]
fn each_key_of_an_overwrite_is_looked_at() {
    let build = || {
        let mut schedule = Schedule::default();
        put(&mut schedule, 1, SET, 0);
        put(&mut schedule, 1, INCR, 1);
        put(&mut schedule, 2, INCR, 2);
        put(&mut schedule, 3, Stake::NONE, 3);
        let several = Stake { gives_way: false, ..SET };
        schedule.insert(keys(&[1, 2, 3]), several, &[(1, 0), (2, 0), (3, 0)], 4);
        put(&mut schedule, 2, INCR, 5);
        schedule
    };
    assert_eq!(drain_with_superseded(&mut build()), [(3, vec![]), (4, vec![0, 1, 2]), (5, vec![])]);
    let mut schedule = build();
    let (third, _) = schedule.pop_ready().expect("one waits for nothing and does not give way");
    schedule.finish(third);
    let (dead, _) = schedule.pop_ready().expect("what is left waits");
    schedule.give_way(dead);
    assert_eq!(drain_with_superseded(&mut schedule), [(0, vec![]), (2, vec![]), (1, vec![]), (5, vec![])]);
}

#[test]
fn keys_with_the_same_hash_are_told_apart() {
    let mut schedule = Schedule::default();
    put(&mut schedule, 1, SET, 0);
    put(&mut schedule, 1, Stake { check: 7, ..SET }, 1);
    let several = Stake { gives_way: false, ..SET };
    schedule.insert(keys(&[1, 2]), several, &[(1, 0), (2, 0)], 2);
    assert_eq!(drain_with_superseded(&mut schedule), [(0, vec![]), (1, vec![]), (2, vec![])]);
}

#[test]
fn what_comes_behind_a_barrier_gives_way_when_it_is_lifted() {
    let mut schedule = Schedule::default();
    insert(&mut schedule, &[], 0);
    let behind = [1, 2, 3].map(|unit| put(&mut schedule, 1, SET, unit));
    assert_eq!(schedule.moved().count(), 0);
    let (barrier, _) = schedule.pop_ready().expect("nothing is before it");
    schedule.finish(barrier);
    let moved: HashMap<u32, UnitId> = schedule.moved().collect();
    assert_eq!(moved[&3], behind[0]);
    assert_eq!(drain_with_superseded(&mut schedule), [(3, vec![1, 2])]);
}

/// Were it a cost of each unit for each, this would take hours.
#[test]
fn many_on_one_key_cost_what_they_cost() {
    const MANY: u32 = 200_000;
    let mut schedule = Schedule::default();
    for unit in 0..MANY {
        put(&mut schedule, 1, if unit % 3 == 1 { INCR } else { SET }, unit);
    }
    schedule.moved().for_each(drop);
    // All but one of the overwrites die.
    let mut last = None;
    while schedule.ready_len() > 0 && last != Some(0) {
        let (id, unit) = schedule.pop_ready().expect("one is ready");
        last = Some(unit);
        schedule.give_way(id);
        schedule.moved().for_each(drop);
    }
    let others = (0..MANY).filter(|unit| unit % 3 == 1).collect::<Vec<_>>();
    assert_eq!(drain(&mut schedule), others);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Finish,
    PutBack,
    Postpone,
    WaitForCheckpoint,
    Hold,
    /// Of all that wait, and the unit finishes.
    Release,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        5 => Just(Step::Finish),
        1 => Just(Step::PutBack),
        2 => Just(Step::Postpone),
        2 => Just(Step::WaitForCheckpoint),
        2 => Just(Step::Hold),
        1 => Just(Step::Release),
    ];
    prop::collection::vec((0..4usize, step), 0..200)
}

proptest! {
    /// Units run while others of their keys run, are put back or in backoff: the order by key must hold, and
    /// everything must run in the end.
    #[test]
    fn units_that_share_a_key_never_overtake(
        units in prop::collection::vec(prop::collection::vec(0..6u64, 0..4), 1..60),
        steps in steps(),
    ) {
        let mut schedule = Schedule::default();
        let mut now = Instant::now();
        let mut inserted = 0;
        let mut running: Vec<(UnitId, u32)> = Vec::new();
        let mut finished: Vec<u32> = Vec::new();
        let mut steps = steps.into_iter();
        loop {
            // Records arrive while others run.
            if inserted < units.len() {
                insert(&mut schedule, &units[inserted], inserted as u32);
                inserted += 1;
            }
            while running.len() < 4 && let Some((id, unit)) = schedule.pop_ready() {
                for earlier in (0..unit).filter(|earlier| !finished.contains(earlier)) {
                    let (mine, other) = (&units[unit as usize], &units[earlier as usize]);
                    let shared = mine.iter().any(|key| other.contains(key));
                    prop_assert!(!shared && !mine.is_empty() && !other.is_empty(), "{unit} overtook {earlier}");
                }
                running.push((id, unit));
            }
            if running.is_empty() {
                if let Some(wake) = schedule.next_wake() {
                    now = wake;
                    schedule.wake(now);
                    continue;
                }
                if schedule.waiting_len() > 0 || schedule.held_len() > 0 {
                    schedule.release_waiting();
                    schedule.release_held();
                    continue;
                }
                if inserted == units.len() {
                    break;
                }
                continue;
            }
            let (which, step) = steps.next().unwrap_or((0, Step::Finish));
            let (id, unit) = running.swap_remove(which % running.len());
            if step == Step::Release {
                schedule.release_waiting();
            }
            match step {
                Step::Finish | Step::Release => {
                    schedule.finish(id);
                    finished.push(unit);
                }
                Step::PutBack => schedule.put_back(id),
                Step::Postpone => schedule.postpone(id, now + Duration::from_millis(10)),
                Step::WaitForCheckpoint => schedule.wait_for_checkpoint(id),
                Step::Hold => schedule.hold(id),
            }
        }
        finished.sort_unstable();
        prop_assert_eq!(finished, (0..units.len() as u32).collect::<Vec<_>>());
    }
}
