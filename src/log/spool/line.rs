//! Which way the new records of one queue go. All that decides about it is in one small state behind one lock; what
//! is slow happens outside of it.
//!
//! ```text
//!            an append failed: Line::divert
//!   Direct ───────────────────────────────────▶ Spooled ◀─────────────┐
//!     ▲                                          │  │                 │ the remote failed again,
//!     │ try_direct: nobody writes to the spool,  │  │ begin_handover  │ or those who wait waited enough
//!     │ and its durable checkpoint is at its end │  ▼                 │
//!     └──────────────────────────────────────────┴─ Handover ─────────┘
//! ```
//!
//! The invariant: while a record of the queue is in the spool or on its way into it, and until a durable checkpoint
//! says that all of them were forwarded, no new record goes to the remote log directly.
//!
//! Under steady load somebody always writes to the spool, and it would never be found empty: so for a moment, when
//! the forwarder has nearly caught up, new records are let into neither. That is the handover.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use crate::log::{QueueName, journal};

/// How long a new record waits at most for the way to become free.
pub const HANDOVER: Duration = Duration::from_millis(250);

/// How long nothing more is said about a remote log that is away again.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the remote log.
    Direct,
    /// Into the spool, behind what it holds.
    Spooled,
    /// To be seen in a moment.
    Handover,
}

#[derive(Clone, Copy, Debug)]
pub struct State {
    pub route: Route,
    /// Requests that are on their way into the spool.
    pub writing: usize,
}

pub struct Line {
    pub queue: QueueName,
    state: watch::Sender<State>,
    /// Bytes that may be with the journal's writer, which refuses what is more.
    gate: Semaphore,
    told: Mutex<Told>,
    /// When the record that is forwarded next was accepted, in milliseconds since 1970; 0: none waits, or it does not say.
    oldest_ms: AtomicI64,
}

/// What was last said about the route, and when it was last said to lead into the spool.
struct Told {
    route: Route,
    at: Option<Instant>,
}

/// Where a request goes.
pub enum Way {
    Direct,
    Spooled(Writing),
    /// Ask again when the handover is over.
    Handover,
}

impl Line {
    pub fn new(queue: QueueName, route: Route) -> Arc<Self> {
        let state = watch::Sender::new(State { route, writing: 0 });
        let told = Mutex::new(Told { route, at: None });
        Arc::new(Self {
            queue,
            state,
            gate: Semaphore::new(journal::MAX_QUEUED_BYTES),
            told,
            oldest_ms: AtomicI64::new(0),
        })
    }

    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The record that is forwarded next was accepted then.
    pub fn note_oldest(&self, at_ms: Option<i64>) {
        self.oldest_ms.store(at_ms.unwrap_or(0), Ordering::Relaxed);
    }

    pub fn oldest_ms(&self) -> Option<i64> {
        Some(self.oldest_ms.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    pub fn route(&self) -> Route {
        self.state.borrow().route
    }

    /// The way of a request that has just come.
    pub fn enter(self: &Arc<Self>) -> Way {
        // Most of the time, and then nothing is written to what all share.
        if self.route() == Route::Direct {
            return Way::Direct;
        }
        let mut way = Way::Direct;
        self.state.send_if_modified(|state| {
            match state.route {
                Route::Direct => {}
                Route::Handover => way = Way::Handover,
                Route::Spooled => {
                    state.writing += 1;
                    way = Way::Spooled(Writing(self.clone()));
                }
            }
            false
        });
        way
    }

    /// The remote log did not take a request, or perhaps did: it goes into the spool, and all new ones behind it.
    pub fn divert(self: &Arc<Self>) -> Writing {
        self.state.send_if_modified(|state| {
            state.writing += 1;
            std::mem::replace(&mut state.route, Route::Spooled) != Route::Spooled
        });
        Writing(self.clone())
    }

    /// Whether somebody should hear that this is the route now: not if it was the last that they heard, and not of
    /// each time that a remote log comes and goes many times in a row.
    pub fn is_news(&self, route: Route) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = route == told.route || (route == Route::Spooled && told.at.is_some_and(|at| at.elapsed() < QUIET));
        if !is_old {
            *told = Told { route, at: if route == Route::Spooled { Some(Instant::now()) } else { told.at } };
        }
        !is_old
    }

    /// Room with the journal's writer.
    pub async fn pass_gate(&self, records: usize, bytes: usize) -> SemaphorePermit<'_> {
        let weight = (bytes + records * journal::ITEM_OVERHEAD).min(journal::MAX_QUEUED_BYTES);
        let weight = u32::try_from(weight).expect("it was cut to the size of the gate");
        self.gate.acquire_many(weight).await.expect("the gate is never closed")
    }

    /// Lets new requests wait, for those before them to end.
    pub fn begin_handover(&self) {
        self.turn(Route::Spooled, Route::Handover);
    }

    /// Those who wait go into the spool.
    pub fn end_handover(&self) {
        self.turn(Route::Handover, Route::Spooled);
    }

    /// Waits until the handover is over, and ends it when that takes too long.
    pub async fn handover_over(&self) {
        let mut state = self.subscribe();
        let over = state.wait_for(|state| state.route != Route::Handover);
        if tokio::time::timeout(HANDOVER, over).await.is_err() {
            self.end_handover();
        }
    }

    /// New records go to the remote log directly again, if nobody is writing to the spool and `is_empty` says of the
    /// spool that everything in it was forwarded, and durably noted as that.
    pub fn try_direct(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.state.send_if_modified(|state| {
            // In this order: who is not writing any more has changed what `is_empty` looks at.
            let is_free = state.route != Route::Direct && state.writing == 0 && is_empty();
            if is_free {
                state.route = Route::Direct;
            }
            is_free
        })
    }

    fn turn(&self, from: Route, to: Route) {
        self.state.send_if_modified(|state| {
            let turns = state.route == from;
            if turns {
                state.route = to;
            }
            turns
        });
    }
}

/// A request on its way into the spool. Dropped when the journal has answered.
pub struct Writing(Arc<Line>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            state.writing -= 1;
            state.writing == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::conformance::queue;

    fn line(route: Route) -> Arc<Line> {
        Line::new(queue("normal"), route)
    }

    #[test]
    fn what_comes_after_a_failure_goes_behind_it() {
        let line = line(Route::Direct);
        assert!(matches!(line.enter(), Way::Direct));
        let (first, second) = (line.divert(), line.divert());
        let Way::Spooled(third) = line.enter() else { panic!("it overtakes") };
        for writing in [first, second, third] {
            assert!(!line.try_direct(|| true), "somebody is writing");
            drop(writing);
        }
        assert!(!line.try_direct(|| false), "not everything was forwarded");
        assert!(line.try_direct(|| true));
        assert!(matches!(line.enter(), Way::Direct));
        assert!(!line.try_direct(|| panic!("nobody asks")), "it is direct already");
    }

    #[test]
    fn handover_lets_nobody_in_until_it_ends() {
        let line = line(Route::Spooled);
        let Way::Spooled(writing) = line.enter() else { panic!("it overtakes") };
        line.begin_handover();
        assert!(matches!(line.enter(), Way::Handover));
        assert!(!line.try_direct(|| true));
        drop(writing);
        assert!(line.try_direct(|| true));
        line.begin_handover();
        assert!(matches!(line.enter(), Way::Direct), "there is nothing to hand over");
    }

    #[test]
    fn late_failure_ends_a_handover() {
        let line = line(Route::Spooled);
        line.begin_handover();
        let writing = line.divert();
        assert_eq!(line.route(), Route::Spooled);
        drop(writing);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_long_for_a_handover() {
        let line = line(Route::Spooled);
        line.begin_handover();
        let begun = Instant::now();
        line.handover_over().await;
        assert!(begun.elapsed() < HANDOVER + Duration::from_millis(10));
        assert!(matches!(line.enter(), Way::Spooled(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_and_goes_is_said_once() {
        let line = line(Route::Direct);
        let news = |routes: &[Route]| routes.iter().map(|route| line.is_news(*route)).collect::<Vec<_>>();
        let flapping = [Route::Spooled, Route::Spooled, Route::Direct, Route::Spooled, Route::Direct];
        assert_eq!(news(&flapping), [true, false, true, false, false]);
        tokio::time::advance(QUIET).await;
        assert_eq!(news(&flapping), [true, false, true, false, false]);
    }

    #[tokio::test]
    async fn forwarder_learns_when_nobody_writes_any_more() {
        let line = line(Route::Spooled);
        let mut state = line.subscribe();
        state.borrow_and_update();
        let ways = [line.enter(), line.enter()];
        assert!(!state.has_changed().expect("the line is there"));
        drop(ways);
        assert!(state.has_changed().expect("the line is there"));
        assert_eq!(state.borrow_and_update().writing, 0);
    }
}
