//! How a task was settled.

/// How a task came to its end. The words are those of logs, metrics and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Made on Redis.
    Applied,
    /// A later task on the same key made it unnecessary.
    Superseded,
    /// Its deadline had passed.
    Expired,
    /// Its keys were unlinked instead.
    Invalidated,
    /// A newer version had been applied before.
    Stale,
    /// Given up; a dead letter was written.
    Dead,
    /// Dropped as its late policy says, or purged by a person.
    Discarded,
    /// The same task had been stored before.
    Duplicate,
}

impl Outcome {
    /// In the order of `telemetry::metrics::OUTCOMES`.
    pub const ALL: [Self; 8] = [
        Self::Applied,
        Self::Superseded,
        Self::Expired,
        Self::Invalidated,
        Self::Stale,
        Self::Dead,
        Self::Discarded,
        Self::Duplicate,
    ];

    pub fn as_str(self) -> &'static str {
        crate::telemetry::metrics::OUTCOMES[self as usize]
    }
}
