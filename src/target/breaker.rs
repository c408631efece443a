//! Whether a target may be used: a state machine without a clock or IO of its own.
//!
//! ```text
//!            hard signal, or 3 soft ones in a row
//!   closed ──────────────────────────────────────▶ open ◀─┐ probe failed: the next one later
//!     ▲                                           │    └──┘
//!     │ trial batch succeeded       probe succeeded│  ▲
//!     └──────────────────── half-open ◀────────────┘  │ trial batch failed
//!                               └─────────────────────┘
//! ```
//!
//! The invariant: while it is open nothing of a task is sent, so an outage spends nothing.

use std::time::{Duration, Instant};

use crate::retry::{Failure, FailureClass, backoff};

/// Soft signals in a row that open the breaker.
const SOFT_LIMIT: u32 = 3;

/// The most units in the batch that tries a target out. They should be idempotent ones.
pub const TRIAL_UNITS: usize = 16;

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
            FailureClass::Hold => Some(Self::Hard),
            FailureClass::Ambiguous if &*failure.code == Failure::TIMEOUT => Some(Self::Soft),
            FailureClass::Ambiguous => Some(Self::Hard),
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
}

impl State {
    /// The name that metrics, logs and the API use.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Batches, over every connection.
    Free,
    /// One batch of at most [`TRIAL_UNITS`] idempotent units on one connection. It is granted once: its end must be
    /// reported with [`Breaker::on_batch`], [`Breaker::on_failure`] or [`Breaker::on_trial_not_sent`].
    Trial,
    /// Nothing.
    Refused,
}

/// One target's breaker.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    soft_signals: u32,
    probe_cap: Duration,
    rng: fastrand::Rng,
}

impl Breaker {
    /// `probe_cap`: the longest time between two probes.
    pub fn new(probe_cap: Duration, rng: fastrand::Rng) -> Self {
        Self { state: State::Closed, soft_signals: 0, probe_cap, rng }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// What may be sent now. Grants the trial batch to the first who asks.
    pub fn admit(&mut self) -> Admission {
        match &mut self.state {
            State::Closed => Admission::Free,
            State::HalfOpen { trial, .. } if !*trial => {
                *trial = true;
                Admission::Trial
            }
            State::HalfOpen { .. } | State::Open { .. } => Admission::Refused,
        }
    }

    /// When the target should be probed next; None where no probe is wanted.
    pub fn next_probe_at(&self) -> Option<Instant> {
        match &self.state {
            State::Open { next_probe_at, .. } => Some(*next_probe_at),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// A connection could not be made, or a batch failed. True: the breaker has opened by it.
    ///
    /// To be told once per batch, with what [`BatchResult::target_failure`] picks: soft signals are counted.
    ///
    /// Once open, later failures of batches that were under way change nothing: the probe alone decides.
    ///
    /// [`BatchResult::target_failure`]: super::BatchResult::target_failure
    pub fn on_failure(&mut self, failure: &Failure, now: Instant) -> bool {
        let Some(signal) = Signal::of(failure) else { return false };
        match &self.state {
            State::Open { .. } => false,
            State::HalfOpen { since, .. } => {
                let since = *since;
                self.open(since, failure, now);
                true
            }
            State::Closed => {
                self.soft_signals += 1;
                let opens = signal == Signal::Hard || self.soft_signals >= SOFT_LIMIT;
                if opens {
                    self.open(now, failure, now);
                }
                opens
            }
        }
    }

    /// The probe of an open target ended.
    pub fn on_probe(&mut self, result: Result<(), &Failure>, now: Instant) {
        let State::Open { since, reason, .. } = &self.state else { return };
        let since = *since;
        match result {
            Ok(()) => self.state = State::HalfOpen { since, reason: reason.clone(), trial: false },
            Err(failure) => self.open(since, failure, now),
        }
    }

    /// A batch ended without any signal against the target. True: the breaker has closed by it.
    pub fn on_batch(&mut self) -> bool {
        self.soft_signals = 0;
        match self.state {
            State::HalfOpen { trial: true, .. } => {
                self.state = State::Closed;
                true
            }
            State::HalfOpen { .. } | State::Closed | State::Open { .. } => false,
        }
    }

    /// The trial batch was granted, but there was nothing to send. It may be granted again.
    pub fn on_trial_not_sent(&mut self) {
        if let State::HalfOpen { trial, .. } = &mut self.state {
            *trial = false;
        }
    }

    fn open(&mut self, since: Instant, reason: &Failure, now: Instant) {
        let outage = now.saturating_duration_since(since);
        let next_probe_at = now + backoff::probe_interval(outage, self.probe_cap, &mut self.rng);
        self.soft_signals = 0;
        self.state = State::Open { since, reason: reason.clone(), next_probe_at };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::{Executed, ReasonClass};

    fn breaker() -> Breaker {
        Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(3))
    }

    fn refused() -> Failure {
        Failure::hold("connection-refused", "")
    }

    fn timeout() -> Failure {
        Failure::ambiguous(Failure::TIMEOUT, "")
    }

    fn open(breaker: &mut Breaker, now: Instant) {
        assert!(breaker.on_failure(&refused(), now));
        assert_eq!(breaker.state().as_str(), "open");
    }

    fn half_open(breaker: &mut Breaker, now: Instant) {
        open(breaker, now);
        breaker.on_probe(Ok(()), now);
        assert_eq!(breaker.state().as_str(), "half_open");
    }

    #[test]
    fn hard_signals_open_at_once() {
        let lost = Failure::ambiguous("connection-lost", "");
        for failure in [refused(), Failure::hold("LOADING", ""), Failure::hold("OOM", ""), lost] {
            let mut breaker = breaker();
            assert!(breaker.on_failure(&failure, Instant::now()), "{failure:?}");
            assert_eq!(breaker.admit(), Admission::Refused);
        }
    }

    #[test]
    fn soft_signals_open_after_three_in_a_row() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..5 {
            assert!(!breaker.on_failure(&timeout(), now));
            assert!(!breaker.on_failure(&timeout(), now));
            assert_eq!(breaker.admit(), Admission::Free);
            breaker.on_batch();
        }
        assert!(!breaker.on_failure(&timeout(), now));
        assert!(!breaker.on_failure(&timeout(), now));
        assert!(breaker.on_failure(&timeout(), now));
        assert_eq!(breaker.admit(), Admission::Refused);
    }

    #[test]
    fn faults_of_units_and_of_our_own_open_nothing() {
        let (mut breaker, now) = (breaker(), Instant::now());
        let dead = Failure::dead(ReasonClass::WrongType, Executed::No, "WRONGTYPE", "");
        for _ in 0..100 {
            assert!(!breaker.on_failure(&dead, now));
            assert!(!breaker.on_failure(&Failure::hold(Failure::NO_CONNECTION, ""), now));
        }
        assert_eq!(breaker.admit(), Admission::Free);
    }

    #[test]
    fn probes_come_later_the_longer_it_lasts() {
        let mut breaker = breaker();
        let start = Instant::now();
        open(&mut breaker, start);
        let mut now = start;
        for _ in 0..2_000 {
            let next = breaker.next_probe_at().expect("an open target is probed");
            let longest = ((now - start) / 10).clamp(backoff::MIN_PROBE_INTERVAL, Duration::from_secs(5));
            assert!(next > now && next - now <= longest);
            now = next;
            breaker.on_probe(Err(&Failure::hold("LOADING", "")), now);
        }
        assert!(now - start > Duration::from_secs(3600));
        match breaker.state() {
            State::Open { since, reason, .. } => assert_eq!((*since, &*reason.code), (start, "LOADING")),
            state => panic!("{state:?}"),
        }
    }

    #[test]
    fn one_trial_batch_closes_it() {
        let (mut breaker, now) = (breaker(), Instant::now());
        half_open(&mut breaker, now);
        assert_eq!(breaker.next_probe_at(), None);
        assert_eq!(breaker.admit(), Admission::Trial);
        assert_eq!(breaker.admit(), Admission::Refused, "the trial is granted once");
        assert!(breaker.on_batch());
        assert_eq!(breaker.state(), &State::Closed);
        assert_eq!(breaker.admit(), Admission::Free);
    }

    #[test]
    fn trial_that_was_not_sent_is_granted_again() {
        let (mut breaker, now) = (breaker(), Instant::now());
        half_open(&mut breaker, now);
        assert_eq!(breaker.admit(), Admission::Trial);
        breaker.on_trial_not_sent();
        assert_eq!(breaker.admit(), Admission::Trial);
    }

    #[test]
    fn failed_trial_opens_it_again_and_the_outage_goes_on() {
        let (mut breaker, start) = (breaker(), Instant::now());
        half_open(&mut breaker, start);
        assert_eq!(breaker.admit(), Admission::Trial);
        let later = start + Duration::from_secs(40);
        assert!(breaker.on_failure(&timeout(), later), "one timeout is enough for a trial");
        let next = breaker.next_probe_at().expect("an open target is probed");
        assert!(next - later > Duration::from_secs(3), "a tenth of 40 s, not of nothing");
    }

    #[test]
    fn batches_that_end_after_it_opened_do_not_close_it() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        assert!(!breaker.on_batch());
        assert!(!breaker.on_failure(&refused(), now + Duration::from_secs(1)));
        assert_eq!(breaker.admit(), Admission::Refused);
        breaker.on_probe(Ok(()), now);
        assert!(!breaker.on_batch(), "no trial was granted yet");
        assert_eq!(breaker.admit(), Admission::Trial);
    }
}
