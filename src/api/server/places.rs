//! How many connections are served at a time, and who gives way when there are more.
//!
//! Clients that keep their connections open would keep all others out, with nothing to send as well as with much. So
//! while a connection waits for a place, the one that has had its place for longest is asked to end: the answer to its
//! request says so, and its client makes another connection, at the end of the queue. One without a request ends when it
//! has been so for a second. No request is refused or broken off for that.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

/// How long a place is kept at least: making a connection costs about as much as a request. Who waits asks another one
/// after as long, since one that was asked may still be at its request.
pub const KEPT: Duration = Duration::from_secs(1);

/// So many accepted connections wait for a place at a time, and so many that were served close without one.
const BESIDE: usize = 64;

pub struct Places {
    free: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    closing: Arc<Semaphore>,
    asked: Notify,
}

/// What a connection holds while it waits, is served, or closes.
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub fn new(count: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { free: semaphore(count), waiting: semaphore(BESIDE), closing: semaphore(BESIDE), asked: Notify::new() }
    }

    /// A place to wait for one in which a connection is served.
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes none.
    pub async fn wait(&self) -> Place {
        Place::of(self.waiting.clone().acquire_owned().await)
    }

    /// A place in which a connection is served, kept until it is dropped.
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes none; a connection that was asked ends all the same.
    pub async fn take(&self) -> Place {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Place { _permit: permit };
        }
        loop {
            self.asked.notify_one();
            if let Ok(acquired) = timeout(KEPT, self.free.clone().acquire_owned()).await {
                return Place::of(acquired);
            }
        }
    }

    /// Frees the place of a connection that only waits for its client to close it, unless many do.
    pub fn close(&self, place: Place) -> Place {
        self.closing.clone().try_acquire_owned().map_or(place, |permit| Place { _permit: permit })
    }

    /// Returns when a connection that began as this did should end. Whoever has waited for longest is the one.
    ///
    /// # Cancellation
    ///
    /// Dropping the future passes the request on to another.
    pub async fn asked_to_end(&self) {
        sleep(KEPT).await;
        self.asked.notified().await;
    }
}

impl Place {
    fn of(acquired: Result<OwnedSemaphorePermit, AcquireError>) -> Self {
        Self { _permit: acquired.expect("the semaphores are never closed") }
    }
}
