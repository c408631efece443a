//! How many connections are served at a time, and who gives way when there are more.
//!
//! Clients that keep their connections open would keep all others out, with nothing to send as well as with much. So
//! while a connection waits for a place, the one that has had its place for longest is asked to end: it finishes the
//! request under way, and its client makes another connection, at the end of the queue. No request is refused or broken
//! off for that.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

/// How long a place is kept at least: making a connection costs about as much as a request. Who waits asks another one
/// after as long, since one that was asked may still be at its request.
const KEPT: Duration = Duration::from_secs(1);

pub struct Places {
    free: Arc<Semaphore>,
    asked: Notify,
}

impl Places {
    pub fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), asked: Notify::new() }
    }

    /// A place for one connection, kept until it is dropped.
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes none; a connection that was asked ends all the same.
    pub async fn take(&self) -> OwnedSemaphorePermit {
        if let Ok(place) = self.free.clone().try_acquire_owned() {
            return place;
        }
        loop {
            self.asked.notify_one();
            if let Ok(place) = timeout(KEPT, self.free.clone().acquire_owned()).await {
                return place.expect("the semaphore is never closed");
            }
        }
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
