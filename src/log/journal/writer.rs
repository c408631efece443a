//! The thread that writes a journal: a thin shell around [`Chain`] that takes what is queued, has it made durable at
//! once, and answers. There is no linger: while one sync runs, the next batch gathers.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    budget::Purpose,
    chain::{Chain, WriteError},
    inbox::{Inbox, Work},
    segment::Home,
    shelf::Shelf,
};
use crate::log::{AppendError, CommitError, Epoch};

/// A full disk or budget empties as the consumer goes on; asking sooner would not help.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// Why the log can no longer keep its promises, once it cannot.
#[derive(Clone)]
pub struct Failure(watch::Sender<Option<String>>);

impl Default for Failure {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Failure {
    /// The first reason stays.
    pub fn set(&self, reason: String) {
        self.0.send_if_modified(|failure| {
            let is_first = failure.is_none();
            if is_first {
                tracing::error!(reason, "The journal has failed and takes nothing more: {reason}");
                *failure = Some(reason);
            }
            is_first
        });
    }

    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}

/// A journal's or table's writer, as others see it.
pub struct Writer {
    pub home: Arc<Home>,
    pub shelf: Arc<Shelf>,
    pub inbox: Arc<Inbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(chain: Chain, purpose: Purpose, failure: Failure) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (home, shelf) = (chain.home().clone(), chain.shelf().clone());
        let worker = Worker { chain, purpose, failure, inbox: inbox.clone(), epoch: Epoch(0) };
        let thread = Builder::new().name("journal".to_owned()).stack_size(256 * 1024).spawn(move || worker.run())?;
        Ok(Self { home, shelf, inbox, thread: Mutex::new(Some(thread)) })
    }

    /// Takes no more work, waits until what is queued is done, and ends the thread. Blocks.
    pub fn close(&self) {
        self.inbox.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic was reported by the thread's own guard.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    /// The lock of the directory is given back only after the last write.
    fn drop(&mut self) {
        self.close();
    }
}

struct Worker {
    chain: Chain,
    purpose: Purpose,
    failure: Failure,
    inbox: Arc<Inbox>,
    epoch: Epoch,
}

impl Worker {
    fn run(mut self) {
        let inbox = self.inbox.clone();
        let end = EndOfThread { failure: self.failure.clone(), shelf: self.chain.shelf().clone(), inbox };
        while let Some(work) = end.inbox.take(|| self.chain.shrink()) {
            self.work(work);
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Append(batch) => {
                let result = match self.failure.reason() {
                    // Another journal of this log failed, or an earlier batch of this one.
                    Some(reason) => Err(AppendError::Unavailable { reason }),
                    None => self.chain.append(&batch.items, self.purpose).map_err(|error| self.append_error(error)),
                };
                batch.answer(result);
            }
            Work::Commit { epoch, checkpoint, answer } => {
                let result = match self.failure.reason() {
                    Some(reason) => Err(CommitError::Unavailable { reason }),
                    None if epoch != self.epoch => Err(CommitError::EpochOver),
                    None => self.chain.commit(&checkpoint).map_err(|error| self.commit_error(error)),
                };
                // Whoever asked may have gone.
                let _ = answer.send(result);
            }
            Work::Assign { answer } => {
                self.epoch.0 += 1;
                let _ = answer.send((self.epoch, self.chain.checkpoint().cloned()));
            }
            Work::Forget(ordinals) => {
                if self.failure.reason().is_none()
                    && let Err(error) = self.chain.forget(&ordinals)
                {
                    self.note(&error);
                }
            }
        }
    }

    fn append_error(&self, error: WriteError) -> AppendError {
        self.note(&error);
        match error {
            WriteError::Full => AppendError::Full { retry_after: FULL_RETRY },
            WriteError::Poisoned(_) => AppendError::FateUnknown,
            WriteError::Refused(_) | WriteError::TooLarge { .. } | WriteError::BeyondEnd { .. } => {
                AppendError::Unavailable { reason: describe(&error) }
            }
        }
    }

    fn commit_error(&self, error: WriteError) -> CommitError {
        self.note(&error);
        CommitError::Unavailable { reason: describe(&error) }
    }

    fn note(&self, error: &WriteError) {
        if let WriteError::Poisoned(_) = error {
            self.failure.set(describe(error));
        }
    }
}

fn describe(error: &WriteError) -> String {
    match error {
        WriteError::Refused(source) | WriteError::Poisoned(source) => format!("{error}: {source}"),
        WriteError::Full | WriteError::TooLarge { .. } | WriteError::BeyondEnd { .. } => error.to_string(),
    }
}

/// Runs when the thread ends, also by a panic: nobody goes on waiting for it.
struct EndOfThread {
    failure: Failure,
    shelf: Arc<Shelf>,
    inbox: Arc<Inbox>,
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failure.set("the journal's writer panicked".to_owned());
        }
        self.inbox.close();
        // After a panic there may be work left: dropping it answers that its fate is unknown.
        while let Some(work) = self.inbox.take(|| ()) {
            drop(work);
        }
        self.shelf.update(|progress| progress.closed = true);
    }
}
