//! Faults on purpose: where the process can be killed at a named point, and which bugs can be planted in it.
//!
//! The tests that prove what survives a crash or an unknown result use these, and prove with the planted bugs that
//! they would notice. All of it exists only in builds with debug assertions: in any other, [`hit`] and [`planted`] are
//! empty and inlined away, and `REDRIVE_FAULTS` is an unknown setting with which the binary does not start.
//!
//! `REDRIVE_FAULTS` is a list with commas. `kill-POINT=N` ends the process, as `kill -9` does, when it comes to that
//! point for the N-th time; the name of a bug plants it:
//!
//! ```text
//! REDRIVE_FAULTS=kill-before-checkpoint=3,no-marker
//! ```
//!
//! What is armed is the one global of the project: a point may be anywhere, and none should cost its surroundings a
//! parameter that no release has a use for.

/// Where the process can be killed.
pub const POINTS: [&str; 9] = [
    // A task is stored, and its request not yet answered.
    "after-append",
    // A batch is about to be handed to its connection: the lines between a decision and any effect.
    "before-send",
    // Everything in a batch has been answered, and nothing of it is noted: between effect and checkpoint.
    "after-send",
    // A unit is given up, and its dead letter not yet stored.
    "before-letter",
    // A dead letter is stored, and its task not yet settled.
    "after-letter",
    // What finished is about to be written down.
    "before-checkpoint",
    // It is written down, and nothing that waited for it has been told.
    "after-checkpoint",
    // Connections whose commands may still arrive are about to be closed, and have been.
    "before-fence",
    "after-fence",
];

/// What can be broken.
pub const BUGS: [&str; 6] = [
    // A once-unit is sent as it stands.
    "no-marker",
    // The marker of a once-unit is set when its command is through, and not if that failed.
    "marker-after-effect",
    // Units run though what finished before them on their keys would be repeated by a crash.
    "no-wait-for-checkpoint",
    // After an ambiguous result the old connection is left to itself.
    "no-client-kill",
    // A relative TTL is sent as it stands.
    "relative-ttl-as-is",
    // Versions are compared as numbers of 53 bits.
    "version-as-number",
];

/// `REDRIVE_FAULTS` is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("REDRIVE_FAULTS has {0:?}, which is neither a bug nor kill-POINT=N")]
pub struct UnknownFault(String);

pub use imp::{arm, hit, is_variable, planted};

#[cfg(debug_assertions)]
mod imp {
    use std::{
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::{BUGS, POINTS, UnknownFault};

    const VARIABLE: &str = "REDRIVE_FAULTS";

    static ARMED: OnceLock<Faults> = OnceLock::new();

    #[derive(Debug, Default)]
    pub(super) struct Faults {
        /// Points, and how many times more the process comes to each until it ends there.
        pub kills: Vec<(&'static str, AtomicU32)>,
        pub bugs: Vec<&'static str>,
    }

    impl Faults {
        pub fn parse(list: &str) -> Result<Self, UnknownFault> {
            let mut faults = Self::default();
            for item in list.split(',').filter(|item| !item.is_empty()) {
                let unknown = || UnknownFault(item.to_owned());
                if let Some(bug) = BUGS.iter().find(|bug| **bug == item) {
                    faults.bugs.push(bug);
                    continue;
                }
                let (point, times) =
                    item.strip_prefix("kill-").and_then(|kill| kill.split_once('=')).ok_or_else(unknown)?;
                let point = POINTS.iter().find(|known| **known == point).ok_or_else(unknown)?;
                let times = times.parse().ok().filter(|times| *times > 0).ok_or_else(unknown)?;
                faults.kills.push((point, AtomicU32::new(times)));
            }
            Ok(faults)
        }

        /// Whether the process is to end now.
        pub fn is_over(&self, point: &str) -> bool {
            self.kills.iter().any(|(name, left)| *name == point && left.fetch_sub(1, Ordering::Relaxed) == 1)
        }
    }

    /// Reads what the environment asks for. Before this nothing is hit, and nothing is planted.
    pub fn arm() -> Result<(), UnknownFault> {
        let Ok(list) = std::env::var(VARIABLE) else { return Ok(()) };
        let faults = Faults::parse(&list)?;
        tracing::warn!("This process has faults on purpose: {list}");
        ARMED.set(faults).expect("a process is armed once");
        Ok(())
    }

    /// Ends the process here if that was asked for.
    pub fn hit(point: &'static str) {
        debug_assert!(POINTS.contains(&point), "{point} is in no list");
        if ARMED.get().is_some_and(|faults| faults.is_over(point)) {
            tracing::warn!("Killed at {point}, on purpose");
            kill_process(getpid(), Signal::KILL).expect("a process may end itself");
            // The signal ends all threads, but not before the call returns.
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    /// Whether the bug is planted.
    pub fn planted(bug: &'static str) -> bool {
        debug_assert!(BUGS.contains(&bug), "{bug} is in no list");
        ARMED.get().is_some_and(|faults| faults.bugs.contains(&bug))
    }

    /// Whether a variable of the environment is ours, and no setting.
    pub fn is_variable(name: &str) -> bool {
        name == VARIABLE
    }
}

#[cfg(not(debug_assertions))]
mod imp {
    use super::UnknownFault;

    #[inline(always)]
    pub const fn arm() -> Result<(), UnknownFault> {
        Ok(())
    }

    #[inline(always)]
    pub const fn hit(_point: &'static str) {}

    #[inline(always)]
    pub const fn planted(_bug: &'static str) -> bool {
        false
    }

    #[inline(always)]
    pub const fn is_variable(_name: &str) -> bool {
        false
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::{imp::Faults, *};

    #[test]
    fn point_is_hit_at_its_time_and_not_again() {
        let faults = Faults::parse("kill-after-send=3,kill-before-letter=1,no-marker").expect("all are known");
        assert_eq!(faults.bugs, ["no-marker"]);
        let hits: Vec<_> = (0..5).map(|_| faults.is_over("after-send")).collect();
        assert_eq!(hits, [false, false, true, false, false]);
        assert!(!faults.is_over("before-send"));
        assert!(faults.is_over("before-letter"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for wrong in ["nomarker", "kill-after-send", "kill-after-send=0", "kill-after-send=x", "kill-nowhere=1", "=1"] {
            let refused = Faults::parse(&format!("no-marker,{wrong}")).expect_err("it is not known");
            assert_eq!(refused, UnknownFault(wrong.to_owned()));
        }
    }
}
