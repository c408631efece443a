//! The journal of a process that ran before Kafka was set: its tasks were promised, so they are made, by a consumer of its
//! own beside that of Kafka; and its dead letters move to where all others are. Nothing new comes into it.
//!
//! Between its tasks and those in Kafka there is no order.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{AppError, consumer_config, journal_config, new_boot_id, targets};
use crate::{
    config::Config,
    consumer::{self, Consumer, Handle, Panicked},
    dead_letters::DeadLetters,
    log::{
        Depth, Log, TableError,
        journal::{JournalLog, disk::RealDisk},
    },
    queue::Queues,
    task::Rules,
    telemetry::metrics::Metrics,
};

/// Between two looks at whether it is empty, and two tries to move a dead letter.
const PAUSE: Duration = Duration::from_secs(1);

/// Of the memory that windows may take, so much.
const SHARE: usize = 4;

pub(super) struct Earlier {
    journal: Arc<JournalLog>,
    working: Option<Working>,
}

struct Working {
    task: JoinHandle<Result<(), Panicked>>,
    stop: CancellationToken,
}

/// What the consumer of the journal shares with that of Kafka.
pub(super) struct Shared {
    pub(super) queues: Arc<Queues>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) rules: Arc<Rules>,
    pub(super) metrics: Arc<Metrics>,
}

impl Earlier {
    /// Opens the journal of before, if there is one with something in it.
    pub(super) fn open(config: &Config) -> Result<Option<Self>, AppError> {
        let settings = journal_config(config);
        if !settings.exists() {
            return Ok(None);
        }
        let journal = Arc::new(JournalLog::open(settings, Arc::new(RealDisk))?);
        Ok(Some(Self { journal, working: None }))
    }

    /// Tasks in it that are not finished.
    pub(super) fn left(&self) -> u64 {
        self.journal.depth().iter().map(Depth::lag).sum()
    }

    pub(super) fn journal(&self) -> Arc<JournalLog> {
        self.journal.clone()
    }

    /// Begins to make its tasks.
    pub(super) fn begin(&mut self, config: &Config, shared: Shared) -> Result<Handle, AppError> {
        let left = self.left();
        if left > 0 {
            tracing::info!(
                "{} holds {left} tasks of before Kafka was set: they are made beside those in Kafka",
                config.data_dir.display()
            );
        }
        let Shared { queues, dead_letters, rules, metrics } = shared;
        let log: Arc<dyn Log> = self.journal.clone();
        queues.refill_from(&*log)?;
        let letters = DeadLetters::open(&log)?;
        // Its connections have names of their own.
        let boot_id = new_boot_id();
        let settings = consumer_config(config, boot_id);
        let settings = consumer::Config { memory_bytes: settings.memory_bytes / SHARE, is_beside: true, ..settings };
        let parts = consumer::Parts {
            log: log.clone(),
            queues,
            dead_letters: dead_letters.clone(),
            rules,
            targets: targets(config, boot_id)?,
            metrics,
        };
        let consumer = Consumer::start(&settings, parts).map_err(AppError::Thread)?;
        let handle = consumer.handle();
        let stop = CancellationToken::new();
        let task = tokio::spawn(work(consumer, log, letters, dead_letters, stop.clone()));
        self.working = Some(Working { task, stop });
        Ok(handle)
    }

    /// Resolves when it cannot go on.
    pub(super) async fn failed(earlier: Option<&mut Self>) -> String {
        let Some(earlier) = earlier else { return std::future::pending().await };
        let failed = earlier.journal.failed();
        let Some(Working { task, .. }) = &mut earlier.working else { return failed.await };
        tokio::select! {
            reason = failed => reason,
            ended = task => match ended {
                Ok(Ok(())) => {
                    earlier.working = None;
                    std::future::pending().await
                }
                Ok(Err(panicked)) => panicked.to_string(),
                Err(error) => error.to_string(),
            },
        }
    }

    /// Stops as the other consumer does.
    pub(super) async fn stop(self) -> Result<(), Panicked> {
        let result = match self.working {
            Some(Working { task, stop, .. }) => {
                stop.cancel();
                task.await.unwrap_or_else(|_| Err(Panicked { target: "of none".to_owned() }))
            }
            None => Ok(()),
        };
        self.journal.close().await;
        result
    }
}

/// Works until nothing is left in the journal, or until told to stop.
async fn work(
    consumer: Consumer,
    log: Arc<dyn Log>,
    from: Arc<DeadLetters>,
    to: Arc<DeadLetters>,
    stop: CancellationToken,
) -> Result<(), Panicked> {
    let emptied = async {
        while log.depth().iter().any(|depth| depth.lag() > 0) {
            sleep(PAUSE).await;
        }
        while let Err(error) = move_letters(&from, &to).await {
            tracing::debug!("Dead letters of before Kafka was set cannot be moved yet: {error}");
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = emptied => tracing::info!("All tasks of before Kafka was set are made"),
        () = stop.cancelled() => {}
        () = consumer.ended() => {}
    }
    consumer.stop().await
}

/// Moves dead letters from one table to the other: each is there before it goes here.
async fn move_letters(from: &DeadLetters, to: &DeadLetters) -> Result<(), TableError> {
    let (sender, mut letters) = mpsc::channel::<(Bytes, Bytes)>(16);
    let scan = from.scan(Box::new(move |key, value| sender.blocking_send((key, value)).is_ok()));
    let moving = async {
        let mut moved = 0;
        while let Some((key, value)) = letters.recv().await {
            to.put_raw(key.clone(), value).await?;
            from.remove(key).await?;
            moved += 1;
        }
        Ok::<u64, TableError>(moved)
    };
    let (scanned, moved) = tokio::join!(scan, moving);
    let moved = moved?;
    if moved > 0 {
        tracing::info!("Moved {moved} dead letters of before Kafka was set into Kafka");
    }
    scanned
}
