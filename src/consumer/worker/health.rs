//! Whether the target may be used: probes, and what failures say about it.

use std::time::Instant;

use jiff::Timestamp;

use super::{Event, PROBE_AGAIN, PROBE_INTERVAL, Shown, Worker};
use crate::{
    consumer::window::Claim,
    faults,
    retry::Failure,
    target::{FenceReport, Finding, Past, ProbeReport, breaker::State as BreakerState, limiter::AFTER_RESTART},
};

impl Worker {
    pub(super) fn probe(&mut self) {
        if self.probing.is_some() {
            return;
        }
        let now = Instant::now();
        self.probing = Some(now);
        self.probe_due = now + PROBE_INTERVAL;
        let target = self.target.clone();
        self.events.push(Box::pin(async move { Event::Probed(target.probe().await) }));
    }

    pub(super) fn take_probe(&mut self, result: Result<ProbeReport, Failure>) {
        let now = Instant::now();
        let begun = self.probing.take().unwrap_or(now);
        match result {
            Ok(report) => {
                self.note_clock(&report);
                self.note_ping(&report, now);
                self.note_server(report.run_id, now);
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
                match report.out_of_memory {
                    None => {
                        self.canary_at = Some(now);
                        self.breaker.on_probe(Ok(()), begun);
                        self.note_state();
                    }
                    Some(failure) => self.note_probe_failure(&failure, begun, now),
                }
                if !std::mem::replace(&mut self.known, true) {
                    let target = self.target.clone();
                    self.events.push(Box::pin(async move { Event::Inspected(target.inspect().await) }));
                }
            }
            Err(failure) => self.note_probe_failure(&failure, begun, now),
        }
    }

    fn note_probe_failure(&mut self, failure: &Failure, begun: Instant, now: Instant) {
        if !matches!(self.breaker.state(), BreakerState::Open { .. }) {
            self.note_target_failure(failure, now, Timestamp::now());
            // One that was only late says little, and is asked again soon.
            self.probe_due = now + PROBE_AGAIN;
            return;
        }
        self.canary_at = None;
        tracing::debug!(redis.target = self.target.name(), error.code = %failure.code, "{} is still not usable", self.target.name());
        let was_shut = self.breaker.state().is_shut();
        self.breaker.on_probe(Err(failure), begun);
        if was_shut != self.breaker.state().is_shut() {
            self.drop_idle_if_shut();
            self.log_holding(failure);
        }
    }

    pub(super) fn note_target_failure(&mut self, failure: &Failure, now: Instant, today: Timestamp) {
        self.canary_at = None;
        if &*failure.code == Failure::TIMEOUT {
            self.limiter.on_timeout(now);
        }
        if self.breaker.on_failure(failure, now) {
            self.held_since.get_or_insert(today);
            self.limiter.on_outage();
            self.drop_idle_if_shut();
            self.shown = Shown { state: self.breaker.state().as_str(), since: today };
            self.log_holding(failure);
        }
    }

    /// What is left of the old connections is as dead as the one that failed: a trial over it would say nothing.
    fn drop_idle_if_shut(&mut self) {
        if self.breaker.state().is_shut() {
            self.idle.clear();
        }
    }

    /// Whether less is sent than could be: then more is read, since what a later write replaces need not be sent.
    pub(super) fn is_held_back(&self) -> bool {
        self.limited_until.is_some() || !matches!(self.breaker.state(), BreakerState::Closed)
    }

    fn log_holding(&self, failure: &Failure) {
        let (target, Failure { message, code, .. }) = (self.target.name(), failure);
        let which = if self.breaker.state().is_shut() { "" } else { " that need memory" };
        tracing::warn!(
            redis.target = target,
            error.code = %code,
            "Holding the tasks of {target}{which}: {message} ({code})"
        );
    }

    /// Says once what state the breaker has come to. That it has opened is said with the reason.
    pub(super) fn note_state(&mut self) {
        let state = self.breaker.state();
        if state.as_str() == self.shown.state {
            return;
        }
        let (target, today) = (self.target.name(), Timestamp::now());
        match state {
            BreakerState::Open { .. } => {}
            BreakerState::HalfOpen { .. } => {
                tracing::info!(redis.target = target, "{target} answers again: one batch tries it out");
            }
            BreakerState::Ramp { .. } => {
                let since = self.held_since.take().unwrap_or(self.shown.since);
                let seconds = (today.as_millisecond() - since.as_millisecond()) as f64 / 1000.0;
                tracing::info!(
                    redis.target = target,
                    seconds,
                    "Released the tasks of {target} after {seconds:.1} s: from one batch at a time on"
                );
            }
            BreakerState::Closed => {
                tracing::info!(redis.target = target, "{target} is sent as many batches at a time as before");
            }
        }
        self.shown = Shown { state: state.as_str(), since: today };
    }

    fn note_ping(&mut self, report: &ProbeReport, now: Instant) {
        if !self.limiter.on_ping(report.ping, now) {
            return;
        }
        let (target, millis) = (self.target.name(), report.ping.as_secs_f64() * 1000.0);
        if self.limiter.brakes() {
            tracing::info!(
                redis.target = target,
                ping_ms = millis,
                "A PING to {target} took {millis:.1} ms: sending less until that is better"
            );
        } else {
            tracing::info!(redis.target = target, ping_ms = millis, "{target} is sent as much per second as before");
        }
    }

    /// Another server than the one before has empty caches, and perhaps much to load or to copy.
    fn note_server(&mut self, run_id: Option<Box<str>>, now: Instant) {
        let Some(run_id) = run_id else { return };
        let before = self.run_id.replace(run_id);
        if before.is_some() && before != self.run_id {
            self.limiter.on_restart(now);
            let (target, seconds) = (self.target.name(), AFTER_RESTART.as_secs());
            tracing::info!(
                redis.target = target,
                "{target} was started again, or is another server: sparing it for {seconds} s"
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
                "{}: {}. {}",
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
        if self.fencing || self.past.is_empty() || self.breaker.state().is_shut() {
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
