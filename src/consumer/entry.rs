//! A task in a window, from being read to being settled.

use jiff::Timestamp;

use super::{checkpoint::UnitEnd, prepared::Prepared, rows::ReplayKind, schedule::UnitId};
use crate::{
    queue::Envelope,
    retry::{Executed, Failure, FailureClass, ReasonClass},
    task::{Outcome, TaskId},
};

/// The place of a task in its window; reused after it was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSlot(pub u32);

/// Which unit of which task: what the schedule carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitRef {
    pub task: TaskSlot,
    pub unit: u32,
}

/// A task that is not settled.
pub struct Entry {
    pub offset: u64,
    pub envelope: Envelope,
    /// None: its bytes are parsed again when it is sent.
    pub prepared: Option<Prepared>,
    pub max_retries: u8,
    pub units: Vec<Unit>,
    /// Units that are not done.
    pub open: usize,
    /// Keys of all units, for log lines.
    pub keys: usize,
    /// None while nothing went wrong, which is the common case.
    pub trouble: Option<Box<Trouble>>,
    pub letter: Letter,
    /// An earlier process may have sent any of its units, and no checkpoint says which.
    pub may_have_run: bool,
    /// The task that took the place of one of its units last.
    pub superseded_by: Option<TaskId>,
}

/// A unit, as far as its task must know.
pub struct Unit {
    /// Where it is in the schedule, while it is not done.
    pub node: UnitId,
    pub idempotent: bool,
    /// What another run of it does, after a crash.
    pub kind: ReplayKind,
    /// Retries spent.
    pub attempts: u32,
    /// Ambiguous results in a row while on trial.
    pub strikes: u32,
    /// Whether it runs alone from now on, until it was answered.
    pub suspect: bool,
    /// Its command was refused, and it waits until it is known whose fault that is.
    pub refused: bool,
    /// It is listed among those that wait because their command was refused.
    pub parked: bool,
    pub end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// How, other than dead.
    Settled(Outcome),
    /// Judged dead, but the dead letter is not durable yet: its keys stay taken.
    Dying,
    Dead,
}

impl End {
    /// Whether the end came by an execution, and not by being judged too late or unnecessary.
    fn was_executed(self) -> bool {
        !matches!(self, Self::Settled(Outcome::Superseded | Outcome::Expired | Outcome::Discarded))
    }
}

/// What went wrong so far.
pub struct Trouble {
    pub first_error_at: Timestamp,
    pub last_error_at: Timestamp,
    pub last: Failure,
    /// Why each unit died, by its place.
    pub dead: Vec<(u32, Failure, ReasonClass)>,
}

/// Where the task's dead letter is. `outdated`: a unit came to its end after the letter was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letter {
    None,
    Writing {
        outdated: bool,
        /// It could not be written the last time.
        again: bool,
    },
    /// Could not be written: tried again when the pause is over.
    Failed,
    Written {
        outdated: bool,
    },
}

impl Letter {
    /// A unit came to its end, which a letter must say.
    pub fn outdate(&mut self) {
        match self {
            Self::Writing { outdated, .. } | Self::Written { outdated } => *outdated = true,
            // Whatever is written later says it.
            Self::None | Self::Failed => {}
        }
    }

    /// The last try to write it has failed; another one may be under way, which can take seconds.
    pub fn is_wanting(self) -> bool {
        matches!(self, Self::Failed | Self::Writing { again: true, .. })
    }
}

impl Entry {
    /// Bytes that this entry counts for in the memory of all windows, with that many units.
    pub fn cost(&self, units: usize) -> usize {
        // The entry itself, its node and keys in the schedule, its identity and its places in the indexes: rounded up.
        const PER_TASK: usize = 424;
        const PER_UNIT: usize = 176;
        PER_TASK
            + units * PER_UNIT
            + self.envelope.value.len()
            + self.prepared.as_ref().map_or(0, Prepared::size)
            + self.envelope.id.as_str().len()
            + self.envelope.traceparent.as_ref().map_or(0, |traceparent| traceparent.len())
    }

    /// Executions that counted, over all units.
    pub fn attempts(&self) -> u32 {
        self.units
            .iter()
            .map(|unit| unit.attempts + u32::from(unit.end.is_some_and(End::was_executed)))
            .max()
            .unwrap_or(0)
    }

    pub fn note_failure(&mut self, failure: &Failure, now: Timestamp) {
        match &mut self.trouble {
            Some(trouble) => {
                trouble.last_error_at = now;
                trouble.last = failure.clone();
            }
            None => {
                self.trouble = Some(Box::new(Trouble {
                    first_error_at: now,
                    last_error_at: now,
                    last: failure.clone(),
                    dead: Vec::new(),
                }));
            }
        }
    }

    /// Notes that a unit is dead, by a failure that was noted before or is the first.
    pub fn note_death(&mut self, unit: u32, failure: &Failure, reason: ReasonClass, now: Timestamp) {
        self.note_failure(failure, now);
        let trouble = self.trouble.as_mut().expect("a failure was noted just above");
        trouble.dead.push((unit, failure.clone(), reason));
    }

    pub fn is_dead(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| !trouble.dead.is_empty())
    }

    /// How the task as a whole was settled: dead if any of its units is, else applied if any of them was, else as the
    /// first of them that says most about what is in Redis now.
    pub fn outcome(&self) -> Outcome {
        const PRECEDENCE: [Outcome; 6] = [
            Outcome::Applied,
            Outcome::Invalidated,
            Outcome::Superseded,
            Outcome::Stale,
            Outcome::Expired,
            Outcome::Discarded,
        ];
        if self.is_dead() {
            return Outcome::Dead;
        }
        let ended = |outcome: &Outcome| self.units.iter().any(|unit| unit.end == Some(End::Settled(*outcome)));
        PRECEDENCE.into_iter().find(ended).unwrap_or(Outcome::Applied)
    }

    /// What a checkpoint says of the units, where there is something to say.
    pub fn unit_ends(&self) -> Option<Vec<UnitEnd>> {
        if self.units.len() < 2 || self.open == self.units.len() {
            return None;
        }
        let ends = self.units.iter().enumerate().map(|(place, unit)| match unit.end {
            Some(End::Settled(outcome)) => UnitEnd::Settled(outcome),
            Some(End::Dead) => {
                let death = self.trouble.as_ref().and_then(|trouble| {
                    trouble
                        .dead
                        .iter()
                        .find(|(unit, _, _)| *unit as usize == place)
                        .map(|(_, failure, reason)| (failure, reason))
                });
                match death {
                    Some((failure, reason)) => {
                        UnitEnd::Dead { code: failure.code.to_string(), reason: reason.as_str().to_owned() }
                    }
                    None => UnitEnd::Unfinished,
                }
            }
            Some(End::Dying) | None => UnitEnd::Unfinished,
        });
        Some(ends.collect())
    }
}

/// The failure that a checkpoint remembers of a dead unit: its text is in the dead letter.
pub fn remembered_failure(code: &str, reason: &str) -> (Failure, ReasonClass) {
    let reason = ReasonClass::ALL.into_iter().find(|class| class.as_str() == reason).unwrap_or(ReasonClass::WrongState);
    let (code, message) = match code {
        "" => ("unknown", "judged by an earlier owner, whose checkpoint had no room for why"),
        code => (code, "judged before the sidecar was started again"),
    };
    let failure = Failure {
        class: FailureClass::Dead,
        code: code.into(),
        message: message.into(),
        executed: Executed::Maybe,
        reason,
    };
    (failure, reason)
}
