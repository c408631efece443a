//! Whether the target may be used: probes, and what failures say about it.

use std::time::Instant;

use jiff::Timestamp;

use super::{Event, PROBE_INTERVAL, Worker};
use crate::{
    consumer::window::Claim,
    faults,
    retry::Failure,
    target::{FenceReport, Finding, Past, ProbeReport, breaker::State as BreakerState},
};

impl Worker {
    pub(super) fn probe(&mut self) {
        if self.probing {
            return;
        }
        self.probing = true;
        self.probe_due = Instant::now() + PROBE_INTERVAL;
        let target = self.target.clone();
        self.events.push(Box::pin(async move { Event::Probed(target.probe().await) }));
    }

    pub(super) fn take_probe(&mut self, result: Result<ProbeReport, Failure>) {
        self.probing = false;
        let now = Instant::now();
        match result {
            Ok(report) => {
                self.canary_at = Some(now);
                self.note_clock(&report);
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
                if !std::mem::replace(&mut self.known, true) {
                    let target = self.target.clone();
                    self.events.push(Box::pin(async move { Event::Inspected(target.inspect().await) }));
                }
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

    /// Whether less is sent than could be: then more is read, since what a later write replaces need not be sent.
    pub(super) fn is_held_back(&self) -> bool {
        !matches!(self.breaker.state(), BreakerState::Closed)
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

    fn note_clock(&mut self, report: &ProbeReport) {
        self.has_absolute_ttl = report.has_absolute_ttl;
        self.clock_offset_ms = report.clock_offset_ms;
        self.metrics.clock_offset.set(report.clock_offset_ms as f64 / 1000.0);
    }

    /// What was found on the target when it was first reached, for whoever reads the log.
    pub(super) fn take_findings(&self, findings: &[Finding]) {
        for finding in findings {
            self.metrics.warn(finding.code.as_str());
            tracing::warn!(
                redis.target = self.target.name(),
                code = finding.code.as_str(),
                "{}: {} {}",
                self.target.name(),
                finding.message,
                finding.remedy
            );
        }
    }

    /// Notes connections whose bytes may still arrive. Nothing is sent until they are cut.
    pub(super) fn add_past(&mut self, past: Past) {
        if !self.past.contains(&past) {
            self.past.push(past);
        }
    }

    /// Cuts them, as soon as the target can be asked to.
    pub(super) fn fence(&mut self) {
        if self.fencing || self.past.is_empty() || matches!(self.breaker.state(), BreakerState::Open { .. }) {
            return;
        }
        self.fencing = true;
        let (target, past) = (self.target.clone(), self.past.clone());
        self.events.push(Box::pin(async move {
            faults::hit("before-fence");
            let past_to_cut = if faults::planted("no-client-kill") { &[][..] } else { &past };
            let result = target.fence(past_to_cut).await;
            faults::hit("after-fence");
            Event::Fenced { past, result }
        }));
    }

    pub(super) fn take_fence(&mut self, past: &[Past], result: Result<FenceReport, Failure>) {
        self.fencing = false;
        let report = match result {
            Ok(report) => report,
            Err(failure) => return self.note_target_failure(&failure, Instant::now(), Timestamp::now()),
        };
        if let Some(refused) = report.not_permitted
            && !std::mem::replace(&mut self.fence_warned, true)
        {
            tracing::warn!(
                redis.target = self.target.name(),
                error.code = %refused.code,
                "{} does not let Redrive cut its own old connections ({}): what was on its way over one may still arrive and overwrite what was written since, unless it is versioned or made once; allow its user client|list and client|kill",
                self.target.name(),
                refused.code
            );
        }
        if report.killed > 0 {
            tracing::info!(
                redis.target = self.target.name(),
                connections = report.killed,
                "Cut {} old connections to {} whose last writes were not answered",
                report.killed,
                self.target.name()
            );
        }
        self.past.retain(|pending| !past.contains(pending));
        for window in self.windows.values_mut() {
            if let Claim::Fencing(boot_id) = window.claim
                && past.contains(&Past::Process(boot_id))
            {
                window.claim = Claim::Claiming;
            }
        }
    }
}
