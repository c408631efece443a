//! How far the process is in its life.

use std::sync::atomic::{AtomicU8, Ordering};

use super::problem::{Problem, ProblemType};

/// Set by the composition root, read by probes and by those who take tasks.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

const STARTED: u8 = 1;
const DRAINING: u8 = 2;

impl Readiness {
    /// Everything that a task needs is running.
    pub fn set_started(&self) {
        self.0.fetch_or(STARTED, Ordering::Relaxed);
    }

    /// No task is taken any more.
    pub fn set_draining(&self) {
        self.0.fetch_or(DRAINING, Ordering::Relaxed);
    }

    pub fn is_started(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STARTED != 0
    }

    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::Relaxed) & DRAINING != 0
    }

    pub(super) fn check_not_draining(&self) -> Result<(), Problem> {
        if self.is_draining() {
            return Err(Problem::new(ProblemType::Draining, "the server is stopping; the next process takes the task"));
        }
        Ok(())
    }
}
