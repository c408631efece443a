use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::{
    consumer::{
        checkpoint::UnitEnd,
        entry::{End, Letter, Unit},
        rows::ReplayKind,
        schedule::UnitId,
    },
    log::{Entry as LogEntry, QueueName, ReadError},
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
    let queue = QueueName { target: "default".into(), lane: "normal" };
    let partition = Partition { queue, index: 0 };
    let (epoch, lease, reader) = (Epoch(1), Lease::forever(), Box::new(NoReader));
    Window::new(Assigned { partition, epoch, lease, checkpoint, reader }, budget.clone())
}

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
        window.note_read(end - 1, 100 * (end - from));
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
            let stored = window.checkpoint([0; 16], false);
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
    let stored = first.checkpoint([0; 16], false);

    // The second process dies before it has read all of it again.
    let mut second = window(Some(stored), &budget);
    let mut next = second.watermark();
    read(&mut second, &mut next, 6, 3);
    let stored = second.checkpoint([0; 16], false);

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
    while first.room().is_some() {
        let end = next + 1;
        read(&mut first, &mut next, end, 1);
        assert!(next < 10_000, "the budget never ends it");
    }
    assert!(second.room().is_some(), "another window has its floor");
    let taken = budget.used.load(Ordering::Relaxed);
    drop(first);
    assert!(taken > 0 && budget.used.load(Ordering::Relaxed) == 0, "what a window took is given back");
}

#[test]
fn one_waiting_task_bounds_the_span_by_bytes() {
    let budget = Budget::new(1 << 30);
    let mut window = window(None, &budget);
    window.insert(entry(0, 1), 1);
    window.note_read(0, MAX_SPAN_BYTES / 2);
    assert!(window.room().is_some());
    window.note_read(1, MAX_SPAN_BYTES / 2);
    assert_eq!(window.room(), None);
    finish(&mut window, 0);
    assert!(window.room().is_some());
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
