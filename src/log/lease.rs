//! For how long an owner may work on a partition without hearing from its log again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`: it goes on while the machine sleeps, as the patience of the other owners does, and
/// no one can set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).expect("no time before the machine's start");
        Self(Duration::new(seconds, u32::try_from(now.tv_nsec).expect("nanoseconds are below a thousand million")))
    }
}

impl std::ops::Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// The right to work on an assigned partition: for ever, or until a moment that the log moves on.
///
/// Whoever executes records looks before each batch and after each wait: when it is over, the partition may be
/// another process's already, though no [`Assignment::Lost`](super::Assignment::Lost) has arrived yet.
#[derive(Clone, Debug)]
pub struct Lease(Option<Arc<AtomicU64>>);

/// A moment that is over whatever the time is.
const ENDED: u64 = 0;

/// The log's end of a [`Lease`].
#[derive(Debug)]
pub struct LeaseKeeper(Arc<AtomicU64>);

impl Lease {
    /// Of a log that has one owner only.
    pub fn forever() -> Self {
        Self(None)
    }

    /// Ends at `end`, unless its keeper is told otherwise.
    pub fn until(end: BootTime) -> (Self, LeaseKeeper) {
        let end = Arc::new(AtomicU64::new(nanoseconds(end)));
        (Self(Some(end.clone())), LeaseKeeper(end))
    }

    pub fn is_valid(&self, now: BootTime) -> bool {
        self.0.as_ref().is_none_or(|end| nanoseconds(now) < end.load(Ordering::Acquire))
    }

    /// Whether its keeper has ended it. One that has only run out may be renewed.
    pub fn has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|end| end.load(Ordering::Acquire) == ENDED)
    }
}

impl LeaseKeeper {
    /// The lease ends at `end`, or later if that was said before.
    pub fn renew(&self, end: BootTime) {
        self.0.fetch_max(nanoseconds(end), Ordering::Release);
    }

    /// The lease is over.
    pub fn end(self) {
        self.0.store(ENDED, Ordering::Release);
    }
}

fn nanoseconds(at: BootTime) -> u64 {
    u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lease_ends_at_its_moment_unless_renewed() {
        let start = BootTime::now();
        let (lease, keeper) = Lease::until(start + SECOND);
        let held = lease.clone();
        assert!(lease.is_valid(start));
        assert!(!lease.is_valid(start + SECOND));
        keeper.renew(start + 3 * SECOND);
        keeper.renew(start + 2 * SECOND);
        assert!(held.is_valid(start + 2 * SECOND), "an answer that comes late shortens nothing");
        assert!(!held.is_valid(start + 3 * SECOND));
        assert!(!held.has_ended(), "it may be renewed");
        keeper.end();
        assert!(!held.is_valid(start) && held.has_ended());
    }

    #[test]
    fn lease_of_the_only_owner_never_ends() {
        assert!(Lease::forever().is_valid(BootTime::now() + Duration::MAX) && !Lease::forever().has_ended());
    }

    #[test]
    fn boot_time_goes_on() {
        let before = BootTime::now();
        assert!(BootTime::now() >= before);
    }
}
