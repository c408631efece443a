//! Partitions that are taken away.
//!
//! One that is being revoked ends what is under way, within a bound, and writes a last checkpoint; one that is lost ends
//! at once. Either way its window is taken out, and with it goes everything that is known of the partition: what still
//! ends later finds no window. What was sent and not answered by then is cut off, as after an ambiguous result.

use std::time::Instant;

use tokio::{sync::oneshot, time::timeout};

use super::{Event, Worker};
use crate::{
    consumer::{
        LAST_CHECKPOINT_BOUND,
        seen::Unsaved,
        window::{Leaving, Window},
        windows::WindowId,
    },
    faults,
    log::{Checkpoint, CommitError, Epoch, Log, Loss, Partition},
    target::Past,
};

/// Commits what is the last checkpoint of this owner; none: there was no answer in time. Without it the next owner repeats
/// what this one did last.
pub(super) async fn commit_last(
    log: &dyn Log,
    partition: &Partition,
    epoch: Epoch,
    checkpoint: Checkpoint,
) -> Option<Result<(), CommitError>> {
    if faults::planted("no-last-checkpoint") {
        return Some(Ok(()));
    }
    timeout(LAST_CHECKPOINT_BOUND, log.commit(partition, epoch, checkpoint)).await.ok()
}

impl Worker {
    /// The partition is to be given up: nothing more of it is read or begun.
    pub(super) fn revoke(&mut self, partition: &Partition, done: oneshot::Sender<()>) {
        let until = Instant::now() + self.revoke_bound;
        // Of a partition that is not there nothing has to be ended.
        let Some((_, window)) = self.windows.iter_mut().find(|(_, window)| window.partition == *partition) else {
            return;
        };
        tracing::info!(partition = %partition, unfinished = window.len(), "Giving {partition} up to another owner");
        window.close();
        window.reader = None;
        window.leaving = Some(Leaving { until, done });
    }

    /// The partition is another owner's already, or its records are gone.
    pub(super) fn lose(&mut self, partition: &Partition, loss: Loss) {
        let found = self.windows.iter().find(|(_, window)| window.partition == *partition);
        let Some((id, _)) = found else { return };
        self.lose_window(id, loss);
    }

    pub(super) fn lose_window(&mut self, id: WindowId, loss: Loss) {
        let Some(window) = self.take_out(id) else { return };
        let (partition, unfinished) = (&window.partition, window.len());
        match loss {
            Loss::ToAnother => tracing::warn!(
                partition = %partition,
                unfinished,
                "{partition} was lost to another owner: nothing more is sent or written down for it"
            ),
            Loss::OfRecords => tracing::warn!(
                partition = %partition,
                unfinished,
                "The records of {partition} are gone, and {unfinished} unfinished tasks that were read with them: nothing \
                 more is sent or written down for those"
            ),
        }
        self.forget(&window.unsaved);
    }

    /// Gives up the partitions of which nothing is under way any more, or for too long.
    pub(super) fn give_up_revoked(&mut self, now: Instant) {
        // A target that does not answer cannot be asked to cut anything: that is left to the next owner.
        let is_fencing = !self.past.is_empty() && !self.breaker.state().is_shut();
        let has_ended =
            |window: &Window| window.in_flight == 0 && window.writing == 0 && !window.committing && !is_fencing;
        let over: Vec<WindowId> = self
            .windows
            .iter()
            .filter(|(_, window)| {
                window.leaving.as_ref().is_some_and(|leaving| has_ended(window) || leaving.until <= now)
            })
            .map(|(id, _)| id)
            .collect();
        for id in over {
            self.give_up(id);
        }
    }

    fn give_up(&mut self, id: WindowId) {
        let Some(mut window) = self.take_out(id) else { return };
        let Some(Leaving { done, .. }) = window.leaving.take() else { return };
        let unsaved = std::mem::take(&mut window.unsaved);
        if window.committing {
            tracing::warn!(
                partition = %window.partition,
                "{} was given up while a checkpoint of it was being written",
                window.partition
            );
            return self.forget(&unsaved);
        }
        // `past` has the connections of what was in flight.
        let released = self.past.is_empty();
        let draft = window.checkpoint(self.boot_id, released);
        let (log, partition, epoch) = (self.log.clone(), window.partition.clone(), window.epoch);
        self.leaving += 1;
        self.events.push(Box::pin(async move {
            let result = commit_last(&*log, &partition, epoch, draft.checkpoint).await;
            Event::Left { partition, unsaved, cut: draft.cut, result, done }
        }));
    }

    pub(super) fn take_left(
        &mut self,
        partition: &Partition,
        mut unsaved: Unsaved,
        cut: Option<u64>,
        result: Option<Result<(), CommitError>>,
    ) {
        self.leaving -= 1;
        match result {
            Some(Ok(())) => {
                unsaved.seal();
                unsaved.saved(cut);
                tracing::info!(partition = %partition, "Gave {partition} up");
            }
            Some(Err(error)) => {
                tracing::warn!(partition = %partition, "The last checkpoint of {partition} was not stored: {error}");
            }
            None => {
                tracing::warn!(partition = %partition, "The last checkpoint of {partition} was not answered in time")
            }
        }
        self.forget(&unsaved);
    }

    /// Takes a window out, and cuts off what was sent of it.
    fn take_out(&mut self, id: WindowId) -> Option<Window> {
        let window = self.windows.remove(id)?;
        window.close();
        for units in self.parked.values_mut() {
            units.retain(|(parked, _, _)| *parked != id);
        }
        self.parked.retain(|_, units| !units.is_empty());
        let mut cut = Vec::new();
        for flight in self.flights.values_mut().filter(|flight| flight.windows.contains(&id)) {
            // One that has no connection yet finds the window closed before it sends anything.
            if let Some(name) = flight.connection.get() {
                flight.is_cut = true;
                cut.push(*name);
            }
        }
        cut.into_iter().for_each(|name| self.add_past(Past::Connection(name)));
        Some(window)
    }

    fn forget(&self, unsaved: &Unsaved) {
        self.seen.lock().expect("nothing panics while it holds this lock").forget(unsaved);
    }
}
