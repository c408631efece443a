//! Whether a target may be used: a state machine without a clock or IO of its own.
//!
//! ```text
//!            hard signal, or too many soft ones
//!   closed ──────────────────────────────────────▶ open ◀─┐ probe failed: the next one later
//!     ▲                                           │  ▲ └──┘
//!     │ as many batches           probe succeeded │  │
//!     │ at a time as before                       ▼  │ trial batch failed
//!    ramp ◀──────────────────────────────── half-open┤
//!     │ ▲ │  trial batch succeeded                   │
//!     │ └─┘ clean round trip: twice as many batches  │
//!     └──────────────────────────────────────────────┘ as from closed
//! ```
//!
//! The invariant: while it is open nothing of a task is sent, so an outage spends nothing. There is one exception: a
//! target that is out of memory is sent what needs none, since that is what helps it.

use std::time::{Duration, Instant};

use super::slots::Slots;
use crate::retry::{Failure, FailureClass, backoff};

/// Soft signals in a row that open the breaker.
const SOFT_IN_A_ROW: u32 = 3;

/// Where more than half of at least so many batches within the last slots were soft signals, that opens it too.
const SOFT_AMONG: u32 = 20;

/// The slots in which batches are counted: 5 s in all.
const SLOT: Duration = Duration::from_millis(500);
const SLOTS: usize = 10;

/// Batches that ended, and how many of them were soft signals.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    all: u32,
    soft: u32,
}

/// The most units in the batch that tries a target out. They should be idempotent ones.
pub const TRIAL_UNITS: usize = 16;

/// Between two steps of the ramp there is at least a pause drawn evenly from nothing to this, so that the sidecars of a
/// fleet, which all were told by the same return, do not take theirs together.
const RAMP_SPREAD: Duration = Duration::from_millis(500);

/// What a failure says about the target as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It cannot be used: refused, loading, a replica, out of memory, gone while it was asked.
    Hard,
    /// It may be slow for once: a timeout.
    Soft,
}

impl Signal {
    /// None: the failure is the unit's own.
    pub fn of(failure: &Failure) -> Option<Self> {
        match failure.class {
            FailureClass::Hold if &*failure.code == Failure::NO_CONNECTION => None,
            FailureClass::Hold | FailureClass::Ambiguous if &*failure.code == Failure::TIMEOUT => Some(Self::Soft),
            FailureClass::Hold | FailureClass::Ambiguous => Some(Self::Hard),
            FailureClass::Route | FailureClass::Backoff | FailureClass::Dead => None,
        }
    }
}

/// Where a breaker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The target is used.
    Closed,
    /// The target is not used, only probed.
    Open {
        /// When it was last used with success, or first failed: how long the outage has lasted.
        since: Instant,
        /// What opened it, or what the last probe found.
        reason: Failure,
        next_probe_at: Instant,
    },
    /// A probe succeeded; one batch tries the target out.
    HalfOpen {
        since: Instant,
        reason: Failure,
        /// Whether the trial batch is under way.
        trial: bool,
    },
    /// The trial batch succeeded; the target is used more and more.
    Ramp {
        reason: Failure,
        /// The most batches at a time.
        batches: usize,
        /// When that began. Only what is sent from then on tells whether the target takes so many.
        stepped_at: Instant,
        /// Not before then more are sent.
        next_step_at: Instant,
    },
}

impl State {
    /// The name that metrics, logs and the API use.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
            Self::Ramp { .. } => "ramp",
        }
    }

    /// What opened it, until it is closed again.
    pub fn reason(&self) -> Option<&Failure> {
        match self {
            Self::Closed => None,
            Self::Open { reason, .. } | Self::HalfOpen { reason, .. } | Self::Ramp { reason, .. } => Some(reason),
        }
    }

    /// Whether nothing may be sent to the target, not even to help it.
    pub fn is_shut(&self) -> bool {
        matches!(self, Self::Open { .. }) && !self.is_out_of_memory()
    }

    /// Whether only what needs no memory may be sent.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Open { reason, .. } if is_out_of_memory(reason))
    }
}

fn is_out_of_memory(failure: &Failure) -> bool {
    &*failure.code == Failure::OUT_OF_MEMORY
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Batches, over every connection.
    Free,
    /// At most so many batches at a time.
    Ramp(usize),
    /// One batch of at most [`TRIAL_UNITS`] idempotent units on one connection. It is granted once: its end must be
    /// reported with [`Breaker::on_batch`], [`Breaker::on_failure`] or [`Breaker::on_trial_not_sent`].
    Trial,
    /// One batch at a time, of units that need no memory.
    Freeing,
    /// Nothing.
    Refused,
}

/// One target's breaker.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    soft_in_a_row: u32,
    recent: Slots<Counted, SLOTS>,
    probe_cap: Duration,
    rng: fastrand::Rng,
}

impl Breaker {
    /// `probe_cap`: the longest time between two probes.
    pub fn new(probe_cap: Duration, rng: fastrand::Rng, now: Instant) -> Self {
        Self { state: State::Closed, soft_in_a_row: 0, recent: Slots::new(SLOT, now), probe_cap, rng }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// What may be sent now. Grants the trial batch to the first who asks.
    pub fn admit(&mut self) -> Admission {
        match &mut self.state {
            State::Closed => Admission::Free,
            State::Ramp { batches, .. } => Admission::Ramp(*batches),
            State::HalfOpen { trial, .. } if !*trial => {
                *trial = true;
                Admission::Trial
            }
            State::Open { reason, .. } if is_out_of_memory(reason) => Admission::Freeing,
            State::HalfOpen { .. } | State::Open { .. } => Admission::Refused,
        }
    }

    /// When the target should be probed next; None where no probe is wanted.
    pub fn next_probe_at(&self) -> Option<Instant> {
        match &self.state {
            State::Open { next_probe_at, .. } => Some(*next_probe_at),
            State::Closed | State::HalfOpen { .. } | State::Ramp { .. } => None,
        }
    }

    /// A connection could not be made, or a batch failed. True: the breaker has opened by it, or shut wholly.
    ///
    /// To be told once per batch, with what [`BatchResult::target_failure`] picks: soft signals are counted.
    ///
    /// Once shut, later failures of batches that were under way change nothing: the probe alone decides.
    ///
    /// [`BatchResult::target_failure`]: super::BatchResult::target_failure
    pub fn on_failure(&mut self, failure: &Failure, now: Instant) -> bool {
        let Some(signal) = Signal::of(failure) else { return false };
        let since = match &self.state {
            State::Open { reason, .. } if !is_out_of_memory(reason) || is_out_of_memory(failure) => return false,
            State::Open { since, .. } | State::HalfOpen { since, .. } => *since,
            State::Closed | State::Ramp { .. } => now,
        };
        let on_trial = matches!(self.state, State::HalfOpen { .. });
        if signal == Signal::Soft && !on_trial && !self.note_soft(now) {
            if let State::Ramp { batches, stepped_at, .. } = &mut self.state {
                (*batches, *stepped_at) = (1, now);
            }
            return false;
        }
        self.open(since, failure, now);
        true
    }

    /// The probe of an open target ended that was begun at `begun`. From then the time to the next one is counted: what a
    /// probe waits for an answer in vain must not make the outage longer.
    pub fn on_probe(&mut self, result: Result<(), &Failure>, begun: Instant) {
        let State::Open { since, reason, .. } = &self.state else { return };
        let since = *since;
        match result {
            Ok(()) => self.state = State::HalfOpen { since, reason: reason.clone(), trial: false },
            Err(failure) => self.open(since, failure, begun),
        }
    }

    /// A batch that was begun at `begun` ended without any signal against the target. `goal`: as many batches at a time
    /// as there may be when the target is well.
    pub fn on_batch(&mut self, begun: Instant, goal: usize, now: Instant) {
        self.soft_in_a_row = 0;
        self.recent.current(now).all += 1;
        self.state = match &self.state {
            State::HalfOpen { trial: true, reason, .. } => {
                State::Ramp { reason: reason.clone(), batches: 1, stepped_at: now, next_step_at: self.next_step(now) }
            }
            State::Ramp { reason, batches, stepped_at, next_step_at }
                if begun >= *stepped_at && now >= *next_step_at =>
            {
                if *batches >= goal {
                    State::Closed
                } else {
                    let (reason, batches) = (reason.clone(), (batches * 2).min(goal));
                    State::Ramp { reason, batches, stepped_at: now, next_step_at: self.next_step(now) }
                }
            }
            _ => return,
        };
    }

    /// The trial batch was granted, but there was nothing to send. It may be granted again.
    pub fn on_trial_not_sent(&mut self) {
        if let State::HalfOpen { trial, .. } = &mut self.state {
            *trial = false;
        }
    }

    /// Nothing is left to be sent, and so nothing that should be sent slowly.
    pub fn on_nothing_left(&mut self) {
        if matches!(self.state, State::Ramp { .. }) {
            self.state = State::Closed;
        }
    }

    /// Whether there were too many soft signals with this one.
    fn note_soft(&mut self, now: Instant) -> bool {
        self.soft_in_a_row += 1;
        let counted = self.recent.current(now);
        (counted.all, counted.soft) = (counted.all + 1, counted.soft + 1);
        let (all, soft) =
            self.recent.recent(now).fold((0, 0), |(all, soft), (_, slot)| (all + slot.all, soft + slot.soft));
        self.soft_in_a_row >= SOFT_IN_A_ROW || all >= SOFT_AMONG && soft * 2 > all
    }

    fn next_step(&mut self, now: Instant) -> Instant {
        now + RAMP_SPREAD.mul_f64(self.rng.f64())
    }

    fn open(&mut self, since: Instant, reason: &Failure, now: Instant) {
        let outage = now.saturating_duration_since(since);
        let next_probe_at = now + backoff::probe_interval(outage, self.probe_cap, &mut self.rng);
        self.soft_in_a_row = 0;
        self.recent = Slots::new(SLOT, now);
        self.state = State::Open { since, reason: reason.clone(), next_probe_at };
    }
}

#[cfg(test)]
mod tests;
