//! Whether the target may be used: probes, and what failures say about it.

use std::time::Instant;

use jiff::Timestamp;

use super::{Event, Worker};
use crate::{
    retry::Failure,
    target::{ProbeReport, breaker::State as BreakerState},
};

impl Worker {
    pub(super) fn probe(&mut self) {
        if self.probing {
            return;
        }
        self.probing = true;
        let target = self.target.clone();
        self.events.push(Box::pin(async move { Event::Probed(target.probe().await) }));
    }

    pub(super) fn take_probe(&mut self, result: Result<ProbeReport, Failure>) {
        self.probing = false;
        let now = Instant::now();
        match result {
            Ok(report) => {
                self.canary_at = Some(now);
                if let Some(refused) = report.canary_refused
                    && !self.canary_warned
                {
                    self.canary_warned = true;
                    tracing::warn!(
                        redis.target = self.target.name(),
                        error.code = %refused.code,
                        "{} does not take Redrive's own keys ({}): allow its user to write them, so that a target that cannot be written is noticed",
                        self.target.name(),
                        refused.code
                    );
                }
                self.breaker.on_probe(Ok(()), now);
            }
            Err(failure) => {
                self.canary_at = None;
                if !matches!(self.breaker.state(), BreakerState::Open { .. }) {
                    self.note_target_failure(&failure, now, Timestamp::now());
                } else {
                    tracing::debug!(redis.target = self.target.name(), error.code = %failure.code, "{} is still not usable", self.target.name());
                    self.breaker.on_probe(Err(&failure), now);
                }
            }
        }
    }

    pub(super) fn note_target_failure(&mut self, failure: &Failure, now: Instant, today: Timestamp) {
        self.canary_at = None;
        if self.breaker.on_failure(failure, now) {
            self.held_since.get_or_insert(today);
            // What is left of the old connections is as dead as the one that failed.
            self.idle.clear();
            tracing::warn!(
                redis.target = self.target.name(),
                error.code = %failure.code,
                "Holding the tasks of {}: {} ({})",
                self.target.name(),
                failure.message,
                failure.code
            );
        }
    }

    pub(super) fn note_target_return(&mut self) {
        if let Some(since) = self.held_since.take() {
            let seconds = (Timestamp::now().as_millisecond() - since.as_millisecond()) as f64 / 1000.0;
            tracing::info!(
                redis.target = self.target.name(),
                seconds,
                "Released the tasks of {} after {seconds:.1} s",
                self.target.name()
            );
        }
    }
}
