//! What becomes of a task that is made long after it was meant.

use std::time::Duration;

/// What to do with a task once it is older than its service likes: counted from [`Task::occurred_at`], else from its
/// acceptance, and judged when it is sent.
///
/// [`Task::occurred_at`]: super::Task::occurred_at
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// In whole milliseconds, at most [`Late::MAX_AFTER`].
    pub after: Duration,
    pub action: LateAction,
}

/// What to do with a task that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateAction {
    /// Make it all the same.
    Replay,
    /// Unlink the keys that it writes instead: nothing is better than what may be stale.
    Invalidate,
    /// Settle it without doing anything.
    Drop,
}

impl Late {
    /// 100 years: far above what anybody means, and far below what time stamps can hold.
    pub const MAX_AFTER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
}

impl LateAction {
    pub const ALL: [Self; 3] = [Self::Replay, Self::Invalidate, Self::Drop];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Invalidate => "invalidate",
            Self::Drop => "drop",
        }
    }

    /// The action of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}
