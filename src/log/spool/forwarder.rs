//! Forwards what the spool holds of one queue, first in first out, one batch at a time.
//!
//! The order of effects:
//!
//! 1. The remote log has acknowledged a batch; then a checkpoint of the spool says so.
//! 2. The checkpoint is durable; then the next batch is sent, or the queue's way is direct again.
//!
//! So what a crash repeats is at most the batch before it, and it is repeated in front of everything newer. A batch
//! whose fate is unknown is sent again until it is known.
//!
//! # Cancellation
//!
//! Dropping it loses nothing: all that it knows is in the journal.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Mode,
    frame::{self, FrameError},
    line::{HANDOVER, Line, Route},
    pace::{Limits, Pace},
};
use crate::log::{
    AppendError, Checkpoint, CommitError, Entry, Log, NewRecord, ReadError,
    journal::{Following, JournalLog},
};

/// What is read at a time, and sent together at most.
const READ_BYTES: usize = 512 << 10;
const MAX_BATCH: usize = 256;
/// Between two handovers.
const HANDOVER_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

pub struct Forwarder {
    line: Arc<Line>,
    journal: Arc<JournalLog>,
    remote: Arc<dyn Log>,
    config: Arc<Config>,
    /// Nothing new comes any more: what is there is forwarded, but a remote log that fails then is not waited for.
    finishing: CancellationToken,
    forwarded: Arc<AtomicU64>,
    chance: fastrand::Rng,
    pace: Pace,
    handover_at: Option<Instant>,
    /// Said once, until something has been forwarded again.
    is_stuck: bool,
}

/// Why forwarding ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("nothing is left, and nothing will come")]
    Finished,
    #[error("the journal is closed")]
    Closed,
    #[error("the remote log fails, and there is no time left to wait for it")]
    GivenUp,
}

/// Why a batch was not forwarded.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Remote(#[from] AppendError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Forwarder {
    pub fn new(
        line: Arc<Line>,
        journal: Arc<JournalLog>,
        remote: Arc<dyn Log>,
        config: Arc<Config>,
        finishing: CancellationToken,
        forwarded: Arc<AtomicU64>,
    ) -> Self {
        let limits = Limits { max_batch: MAX_BATCH, min_pause: config.min_pause, max_pause: config.max_pause };
        Self {
            line,
            journal,
            remote,
            config,
            finishing,
            forwarded,
            chance: fastrand::Rng::new(),
            pace: Pace::new(limits),
            handover_at: None,
            is_stuck: false,
        }
    }

    /// Forwards until the spool closes.
    pub async fn run(mut self) {
        let following = loop {
            match self.journal.follow(&self.line.queue).await {
                Ok(following) => break following,
                Err(AppendError::Closed) => return,
                // Of a journal that has failed others hear elsewhere.
                Err(error) => {
                    tracing::debug!(queue = %self.line.queue, "The spool cannot be forwarded yet: {error}");
                    tokio::time::sleep(self.config.max_pause).await;
                }
            }
        };
        let end = match self.forward(following).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        self.line.end_handover();
        tracing::debug!(queue = %self.line.queue, "Forwarding has ended: {end}");
    }

    async fn forward(&mut self, mut following: Following) -> Result<std::convert::Infallible, End> {
        let mut committed = following.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.watermark);
        let mut state = self.line.subscribe();
        let mut waiting: VecDeque<Entry> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                // Both are marked before the look: what happens after it ends the wait below.
                state.borrow_and_update();
                let end = following.reader.mark_end();
                waiting = self.read(&mut following).await?.into();
                self.note_oldest(waiting.front());
                if waiting.is_empty() {
                    // Numbers that were skipped are nobody's.
                    if committed < end {
                        self.commit(&following, end).await?;
                        committed = end;
                    }
                    self.turn_direct(|| following.reader.end() == committed);
                    let is_over = self.finishing.is_cancelled();
                    if is_over && state.borrow().writing == 0 && following.reader.end() == committed {
                        return Err(End::Finished);
                    }
                    tokio::select! {
                        () = self.finishing.cancelled(), if !is_over => {}
                        changed = state.changed() => changed.map_err(|_| End::Closed)?,
                        changed = following.reader.changed() => changed.map_err(|_| End::Closed)?,
                    }
                    continue;
                }
            }
            let begun = Instant::now();
            let is_last_try = self.finishing.is_cancelled();
            let count = self.pace.batch().min(waiting.len());
            match self.send(waiting.iter().take(count)).await {
                Ok(()) => {
                    let last = waiting.drain(..count).last();
                    let end = last.expect("a batch has a record").offset + 1;
                    #[cfg(test)]
                    if self.config.bug == Some(super::tests::Bug::DirectBeforeCheckpoint) {
                        self.turn_direct(|| following.reader.end() == end);
                    }
                    self.commit(&following, end).await?;
                    committed = end;
                    self.forwarded.fetch_add(count as u64, Ordering::Relaxed);
                    self.note_oldest(waiting.front());
                    self.pace.succeeded();
                    self.is_stuck = false;
                    if waiting.is_empty() && begun.elapsed() < HANDOVER / 2 {
                        self.begin_handover();
                    }
                }
                Err(SendError::Remote(AppendError::TooLarge { .. })) if count > 1 => self.pace.too_large(),
                Err(error) if is_last_try => {
                    tracing::debug!(queue = %self.line.queue, "Spooled records stay: {error}");
                    return Err(End::GivenUp);
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    fn note_oldest(&self, next: Option<&Entry>) {
        let accepted_at = self.config.accepted_at;
        self.line.note_oldest(next.and_then(|entry| accepted_at(&frame::decode(&entry.record).ok()?.record)));
    }

    /// What is durable by now. Waits only where the disk refuses.
    async fn read(&mut self, following: &mut Following) -> Result<Vec<Entry>, End> {
        loop {
            match following.reader.read_now(READ_BYTES).await {
                Ok(entries) => return Ok(entries),
                Err(ReadError::Closed) => return Err(End::Closed),
                Err(error @ ReadError::Unavailable { .. }) => {
                    tracing::warn!(queue = %self.line.queue, "The spool of {} is read again: {error}", self.line.queue);
                    tokio::time::sleep(self.config.min_pause).await;
                }
            }
        }
    }

    async fn send(&self, batch: impl ExactSizeIterator<Item = &Entry>) -> Result<(), SendError> {
        let mut records: Vec<NewRecord> =
            batch.map(|entry| frame::decode(&entry.record)).collect::<Result<_, FrameError>>()?;
        let queue = &self.line.queue;
        let append = async {
            match records.len() {
                1 => self.remote.append(queue, records.remove(0)).await.map(drop),
                _ => self.remote.append_many(queue, records).await.map(drop),
            }
        };
        // It has a deadline of its own; this is for one that does not keep it.
        let limit = self.config.produce_timeout + super::GRACE;
        Ok(timeout(limit, append).await.unwrap_or(Err(AppendError::FateUnknown))?)
    }

    /// Stores that all below `end` is forwarded. Tries until it is durable: nothing more is forwarded before.
    async fn commit(&mut self, following: &Following, end: u64) -> Result<(), End> {
        loop {
            let checkpoint = Checkpoint { watermark: end, ..Checkpoint::default() };
            match self.journal.commit(&following.partition, following.epoch, checkpoint).await {
                Ok(()) => return Ok(()),
                Err(CommitError::Closed) => return Err(End::Closed),
                Err(error @ (CommitError::Unavailable { .. } | CommitError::EpochOver)) => {
                    self.line.end_handover();
                    let queue = &self.line.queue;
                    tracing::warn!(%queue, "That records of {queue} were forwarded could not be noted: {error}");
                    tokio::time::sleep(self.config.min_pause).await;
                }
            }
        }
    }

    fn turn_direct(&mut self, is_empty: impl FnOnce() -> bool) {
        if self.config.mode == Mode::Always || !self.line.try_direct(is_empty) {
            return;
        }
        self.pace.finished();
        let queue = &self.line.queue;
        if self.line.is_news(Route::Direct) {
            tracing::info!(%queue, "All spooled records of {queue} are forwarded; new ones go to the remote log again");
        }
    }

    fn begin_handover(&mut self) {
        let rests = self.handover_at.is_some_and(|at| at.elapsed() < HANDOVER_PAUSE);
        if self.config.mode == Mode::WhenAway && !rests && self.line.route() == Route::Spooled {
            self.handover_at = Some(Instant::now());
            self.line.begin_handover();
        }
    }

    /// A batch was not forwarded, or perhaps was: it will be sent again.
    async fn pause(&mut self, error: &SendError) {
        self.line.end_handover();
        let queue = &self.line.queue;
        let needs_someone = matches!(error, SendError::Frame(_) | SendError::Remote(AppendError::TooLarge { .. }));
        if needs_someone && !std::mem::replace(&mut self.is_stuck, true) {
            tracing::error!(%queue, "A spooled record of {queue} cannot be forwarded, and those behind it wait: {error}");
        } else if self.line.is_news(Route::Spooled) {
            tracing::warn!(%queue, "The remote log does not take the spooled records of {queue} yet: {error}");
        } else {
            tracing::debug!(%queue, "Spooled records of {queue} are not forwarded yet: {error}");
        }
        let pause = self.pace.failed(Instant::now(), &mut self.chance);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.finishing.cancelled() => {}
        }
    }
}
