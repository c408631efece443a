//! Whether who works on partitions still turns to what it is told. Membership goes on by itself, so that a worker that is
//! stuck would keep its partitions for ever: it is looked at, and loses them.
//!
//! Turns are counted in looks and not by a clock: a process that was frozen has not looked either.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::log::Assignment;

/// So many looks in a row without a turn, and a worker is stuck.
const LOOKS: u32 = 8;

/// What a worker is told.
enum Word {
    Assignment(Assignment),
    /// Means nothing, but wakes who sleeps.
    Look,
}

/// Tells one worker.
pub(super) struct Teller {
    words: mpsc::Sender<Word>,
    /// Looks since its last turn.
    unseen: Arc<AtomicU32>,
}

/// What one worker hears.
pub(super) struct Heard {
    words: mpsc::Receiver<Word>,
    unseen: Arc<AtomicU32>,
}

/// Of at most so many words that were not taken.
pub(super) fn channel(room: usize) -> (Teller, Heard) {
    let (sender, words) = mpsc::channel(room);
    let unseen = Arc::<AtomicU32>::default();
    (Teller { words: sender, unseen: unseen.clone() }, Heard { words, unseen })
}

impl Teller {
    /// One that is gone needs to hear nothing.
    pub(super) fn tell(&self, assignment: Assignment) -> impl Future<Output = ()> + use<> {
        let words = self.words.clone();
        async move { drop(words.send(Word::Assignment(assignment)).await) }
    }

    pub(super) fn try_tell(&self, assignment: Assignment) {
        let _ = self.words.try_send(Word::Assignment(assignment));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.words.is_closed()
    }

    /// Whether it has made no turn for too many looks.
    pub(super) fn look(&self) -> bool {
        // Where there is no room it has words enough to turn to.
        let _ = self.words.try_send(Word::Look);
        !self.is_closed() && self.unseen.fetch_add(1, Ordering::Relaxed) >= LOOKS
    }
}

impl Heard {
    pub(super) async fn next(&mut self) -> Option<Assignment> {
        loop {
            let word = self.words.recv().await?;
            self.unseen.store(0, Ordering::Relaxed);
            if let Word::Assignment(assignment) = word {
                return Some(assignment);
            }
        }
    }
}

/// Resolves when `look`, which looks at some workers, has found one that made no turn for `patience`.
pub(super) async fn stuck<T>(patience: Duration, look: impl Fn() -> Option<T>) -> T {
    let mut looks = interval(patience / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Some(found) = look() {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(8);

    fn watch(teller: Teller) -> impl Future<Output = ()> {
        stuck(PATIENCE, move || teller.look().then_some(()))
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_turns_is_left_alone_however_little_it_is_told() {
        let (teller, mut heard) = channel(1);
        let turning = async { while heard.next().await.is_some() {} };
        let watched = timeout(100 * PATIENCE, watch(teller));
        tokio::select! {
            ended = watched => assert!(ended.is_err(), "it turned all the time"),
            () = turning => panic!("it is told for ever"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_stalls_is_found_within_its_patience() {
        let (teller, mut heard) = channel(4);
        let began = Instant::now();
        let stalling = async {
            tokio::select! {
                _ = heard.next() => panic!("it is told nothing"),
                () = sleep(PATIENCE) => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            found = timeout(10 * PATIENCE, watch(teller)) => found.expect("it is found"),
            () = stalling => {}
        }
        let after = began.elapsed();
        assert!(after > 2 * PATIENCE - PATIENCE / 4 && after < 3 * PATIENCE, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn worker_that_has_gone_is_not_stuck() {
        let (teller, heard) = channel(1);
        drop(heard);
        assert!(timeout(10 * PATIENCE, watch(teller)).await.is_err());
    }
}
