//! Faults on purpose: where the process can be killed or frozen at a named point, and which bugs can be planted in it.
//!
//! The tests that prove what survives a crash or an unknown result use these, and prove with the planted bugs that
//! they would notice. All of it exists only in builds with debug assertions: in any other, [`hit`] and [`planted`] are
//! empty and inlined away, and `REDRIVE_FAULTS` is an unknown setting with which the binary does not start.
//!
//! `REDRIVE_FAULTS` is a list with commas. `kill-POINT=N` ends the process, as `kill -9` does, when it comes to that
//! point for the N-th time; `stop-POINT=N` freezes it there until somebody wakes it; the name of a bug plants it:
//!
//! ```text
//! REDRIVE_FAULTS=kill-before-checkpoint=3,no-marker
//! ```
//!
//! What is armed is the one global of the project: a point may be anywhere, and none should cost its surroundings a
//! parameter that no release has a use for.

/// Where the process can be killed or frozen.
pub const POINTS: [&str; 9] = [
    // A task is stored, and its request not yet answered.
    "after-append",
    // A batch is about to be handed to its connection: between the last look at the lease and any effect.
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
pub const BUGS: [&str; 7] = [
    // A once-unit is sent as it stands.
    "no-marker",
    // The marker of a once-unit is set when its command is through, and not if that failed.
    "marker-after-effect",
    // Units run though what finished before them on their keys would be repeated by a crash.
    "no-wait-for-checkpoint",
    // After an ambiguous result the old connection is left to itself.
    "no-client-kill",
    // Whoever gives a partition up does not write down how far it came.
    "no-last-checkpoint",
    // A relative TTL is sent as it stands.
    "relative-ttl-as-is",
    // Versions are compared as numbers of 53 bits.
    "version-as-number",
];

/// `REDRIVE_FAULTS` is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("REDRIVE_FAULTS has {0:?}, which is neither a bug nor kill-POINT=N nor stop-POINT=N")]
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
        /// Points, and how many times more the process comes to each until the signal is sent to it there.
        pub signals: Vec<(&'static str, Signal, AtomicU32)>,
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
                let (action, rest) = item.split_once('-').ok_or_else(unknown)?;
                let signal = match action {
                    "kill" => Signal::KILL,
                    "stop" => Signal::STOP,
                    _ => return Err(unknown()),
                };
                let (point, times) = rest.split_once('=').ok_or_else(unknown)?;
                let point = POINTS.iter().find(|known| **known == point).ok_or_else(unknown)?;
                let times = times.parse().ok().filter(|times| *times > 0).ok_or_else(unknown)?;
                faults.signals.push((point, signal, AtomicU32::new(times)));
            }
            Ok(faults)
        }

        /// What is to be sent to the process now.
        pub fn due(&self, point: &str) -> Option<Signal> {
            let is_due = |left: &AtomicU32| left.fetch_sub(1, Ordering::Relaxed) == 1;
            let mut here = self.signals.iter().filter(|(name, ..)| *name == point);
            here.find(|(_, _, left)| is_due(left)).map(|(_, signal, _)| *signal)
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

    /// Ends or freezes the process here if that was asked for.
    pub fn hit(point: &'static str) {
        debug_assert!(POINTS.contains(&point), "{point} is in no list");
        let Some(signal) = ARMED.get().and_then(|faults| faults.due(point)) else { return };
        tracing::warn!("Killed or stopped at {point}, on purpose");
        kill_process(getpid(), signal).expect("a process may signal itself");
        // The signal is for all threads, but reaches this one perhaps not before the call returns.
        std::thread::sleep(match signal {
            Signal::KILL => Duration::from_secs(60),
            _ => Duration::from_millis(100),
        });
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
    use rustix::process::Signal;

    use super::{imp::Faults, *};

    #[test]
    fn point_is_hit_at_its_time_and_not_again() {
        let faults = Faults::parse("kill-after-send=3,stop-before-letter=1,no-marker").expect("all are known");
        assert_eq!(faults.bugs, ["no-marker"]);
        let hits: Vec<_> = (0..5).map(|_| faults.due("after-send")).collect();
        assert_eq!(hits, [None, None, Some(Signal::KILL), None, None]);
        assert_eq!(faults.due("before-send"), None);
        assert_eq!(faults.due("before-letter"), Some(Signal::STOP));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for wrong in [
            "nomarker",
            "kill-after-send",
            "halt-after-send=1",
            "kill-after-send=0",
            "kill-after-send=x",
            "kill-nowhere=1",
            "=1",
        ] {
            let refused = Faults::parse(&format!("no-marker,{wrong}")).expect_err("it is not known");
            assert_eq!(refused, UnknownFault(wrong.to_owned()));
        }
    }
}
