//! Every metric: name, unit, help and labels, in this one file.
//!
//! Labels come from closed sets (targets are known from the configuration), so all series exist, at zero, from the
//! first scrape on, and the parts hold their handles: counting a task looks nothing up and allocates nothing.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use prometheus::IntCounter;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

/// The lanes' names, in the order that [`Metrics::count_accepted`] counts by.
pub const LANES: [&str; 3] = ["high", "normal", "low"];

/// Where an accepted task is safe, in the order that [`Metrics::count_accepted`] counts by.
pub const DURABILITIES: [&str; 2] = ["local", "kafka"];

/// How a task was settled.
pub const OUTCOMES: [&str; 8] =
    ["applied", "superseded", "expired", "invalidated", "stale", "dead", "discarded", "duplicate"];

/// How an execution ended: well, or with a class of failure.
pub const ATTEMPT_CLASSES: [&str; 6] = ["ok", "hold", "ambiguous", "route", "backoff", "dead"];

/// What the unfinished tasks of a target are doing.
pub const TASK_STATES: [&str; 4] = ["ready", "backoff", "held", "in_flight"];

const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0];

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// By lane, then by durability.
    accepted: [[IntCounter; 2]; 3],
    refused: IntCounterVec,
    settled: IntCounterVec,
    attempts: IntCounterVec,
    tasks: IntGaugeVec,
    oldest_age: prometheus::GaugeVec,
    dead_letters: IntGaugeVec,
    breaker: IntGaugeVec,
    limit_batches: IntGaugeVec,
    rate_limit: prometheus::GaugeVec,
    ping: prometheus::GaugeVec,
    clock_offset: prometheus::GaugeVec,
    startup_warning: IntGaugeVec,
    /// From the end of a request's body to its answer.
    pub accept_seconds: Histogram,
    /// From a task's acceptance to its being settled.
    pub settle_seconds: Histogram,
    pub journal_bytes: IntGauge,
    pub journal_damaged_records: IntCounter,
    pub spool_records: IntGauge,
    pub spool_bytes: IntGauge,
    pub spool_oldest_age: Gauge,
    pub spool_forwarded: IntCounter,
    pub kafka_lost_records: IntCounter,
    pub kafka_unreadable_batches: IntCounter,
    send_failure_rate: Gauge,
    /// Retries scheduled.
    pub retry_count: IntCounter,
    /// Tasks whose retries were used up.
    pub retry_max_reached: IntCounter,
    /// Records that were appended and are not finished.
    pub consumer_lag: IntGauge,
    appends: RecentRate,
    refresh: OnceLock<Refresh>,
}

/// Brings gauges up to date before they are read.
type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// The handles of one target.
#[derive(Clone)]
pub struct TargetMetrics {
    /// In the order of [`OUTCOMES`].
    pub settled: [IntCounter; OUTCOMES.len()],
    /// In the order of [`ATTEMPT_CLASSES`].
    pub attempts: [IntCounter; ATTEMPT_CLASSES.len()],
    /// In the order of [`TASK_STATES`].
    pub tasks: [IntGauge; TASK_STATES.len()],
    pub oldest_age: Gauge,
    pub dead_letters: IntGauge,
    /// 0 closed, 1 half open, 2 open, 3 ramp.
    pub breaker: IntGauge,
    pub limit_batches: IntGauge,
    /// 0: none.
    pub rate_limit: Gauge,
    /// Seconds.
    pub ping: Gauge,
    /// Seconds that the target's clock shows more than this machine's.
    pub clock_offset: Gauge,
    startup_warning: IntGaugeVec,
    pub settle_seconds: Histogram,
    pub retry_count: IntCounter,
    pub retry_max_reached: IntCounter,
}

impl TargetMetrics {
    /// With the same counters, and gauges that nobody sees.
    pub fn without_gauges(self) -> Self {
        let gauge = || IntGauge::new("unseen", "unseen").expect("the name is valid");
        let unseen = || Gauge::new("unseen", "unseen").expect("the name is valid");
        Self {
            tasks: std::array::from_fn(|_| gauge()),
            oldest_age: unseen(),
            breaker: gauge(),
            clock_offset: unseen(),
            ..self
        }
    }

    /// Notes something that was found at the start. The code is of a closed set.
    pub fn warn(&self, code: &str) {
        self.startup_warning.with_label_values(&[code]).set(1);
    }
}

impl Metrics {
    /// Registers everything. `refusals` are the reasons for which a request may be refused.
    pub fn new(refusals: &[&str]) -> Arc<Self> {
        let registry = Registry::new();
        let build = IntGaugeVec::new(Opts::new("redrive_build_info", "The running version; always 1."), &["version"])
            .expect("the name and label are valid");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        register(&registry, build);

        let accepted = counters(
            &registry,
            "redrive_tasks_accepted_total",
            "Tasks that were stored and answered with 202.",
            &["lane", "durability"],
        );
        let refused = counters(
            &registry,
            "redrive_tasks_refused_total",
            "Tasks and requests that were not accepted, by problem type.",
            &["reason"],
        );
        for reason in refusals {
            refused.with_label_values(&[reason]);
        }
        let metrics = Self {
            accepted: LANES.map(|lane| DURABILITIES.map(|durability| accepted.with_label_values(&[lane, durability]))),
            refused,
            settled: counters(
                &registry,
                "redrive_tasks_settled_total",
                "Tasks that came to their end, by outcome.",
                &["target", "outcome"],
            ),
            attempts: counters(
                &registry,
                "redrive_attempts_total",
                "Executions on Redis, by how they ended; hold, ambiguous and route spend no attempt.",
                &["target", "class"],
            ),
            tasks: gauges(
                &registry,
                "redrive_tasks",
                "Tasks in the consumer's windows, by what they wait for.",
                &["target", "state"],
            ),
            oldest_age: float_gauges(
                &registry,
                "redrive_oldest_task_age_seconds",
                "Seconds since the oldest unfinished task was accepted; 0 when there is none.",
                &["target"],
            ),
            dead_letters: gauges(
                &registry,
                "redrive_dead_letters",
                "Dead letters written since the start of the process.",
                &["target"],
            ),
            clock_offset: float_gauges(
                &registry,
                "redrive_clock_offset_seconds",
                "Seconds that the target's clock shows more than this machine's.",
                &["target"],
            ),
            startup_warning: gauges(
                &registry,
                "redrive_startup_warning",
                "What was found at the start and may cost a promise, by code: 1 if it was found on any target or topic.",
                &["code"],
            ),
            breaker: gauges(
                &registry,
                "redrive_breaker_state",
                "Whether writes go to the target: 0 closed (they do), 1 half open, 2 open, 3 ramp (more and more do).",
                &["target"],
            ),
            limit_batches: gauges(
                &registry,
                "redrive_limit_batches",
                "Batches that may be on their way to the target at a time.",
                &["target"],
            ),
            rate_limit: float_gauges(
                &registry,
                "redrive_rate_limit",
                "Units of tasks that may be sent to the target per second; 0: no limit.",
                &["target"],
            ),
            ping: float_gauges(
                &registry,
                "redrive_ping_seconds",
                "Seconds that the target took to answer the last PING of a probe.",
                &["target"],
            ),
            accept_seconds: histogram(
                &registry,
                "redrive_accept_seconds",
                "From the end of a request's body to the answer that its tasks are stored.",
            ),
            settle_seconds: histogram(
                &registry,
                "redrive_settle_seconds",
                "From the acceptance of a task to its being settled.",
            ),
            journal_bytes: register(
                &registry,
                IntGauge::new("redrive_journal_bytes", "Bytes that the journals take on disk, space ahead included.")
                    .expect("the name is valid"),
            ),
            journal_damaged_records: register(
                &registry,
                IntCounter::new(
                    "redrive_journal_damaged_records_total",
                    "Journal records found damaged: each was acknowledged and is lost.",
                )
                .expect("the name is valid"),
            ),
            spool_records: register(
                &registry,
                IntGauge::new("redrive_spool_records", "Tasks on this disk that wait for Kafka.")
                    .expect("the name is valid"),
            ),
            spool_bytes: register(
                &registry,
                IntGauge::new("redrive_spool_bytes", "Bytes on disk of the queues whose tasks wait for Kafka.")
                    .expect("the name is valid"),
            ),
            spool_oldest_age: register(
                &registry,
                Gauge::new(
                    "redrive_spool_oldest_age_seconds",
                    "Seconds since the oldest task that waits for Kafka was accepted; 0 when there is none.",
                )
                .expect("the name is valid"),
            ),
            spool_forwarded: register(
                &registry,
                IntCounter::new("redrive_spool_forwarded_total", "Tasks that were on this disk and went to Kafka.")
                    .expect("the name is valid"),
            ),
            kafka_lost_records: register(
                &registry,
                IntCounter::new(
                    "redrive_kafka_lost_records_total",
                    "Records that Kafka deleted before they were finished: its retention is too short, or a topic was deleted.",
                )
                .expect("the name is valid"),
            ),
            kafka_unreadable_batches: register(
                &registry,
                IntCounter::new(
                    "redrive_kafka_unreadable_batches_total",
                    "Batches of records that cannot be read as others made them.",
                )
                .expect("the name is valid"),
            ),
            send_failure_rate: register(
                &registry,
                Gauge::new("kafka_send_failure_rate", "Failed appends over all appends of the last 5 minutes, 0 to 1.")
                    .expect("the name is valid"),
            ),
            retry_count: register(
                &registry,
                IntCounter::new("redis_retry_count", "Retries scheduled.").expect("the name is valid"),
            ),
            retry_max_reached: register(
                &registry,
                IntCounter::new("redis_retry_max_reached", "Tasks that failed after their last retry.")
                    .expect("the name is valid"),
            ),
            consumer_lag: register(
                &registry,
                IntGauge::new(
                    "kafka_consumer_lag",
                    "Records that were appended and are not finished, but for those that another sidecar works on.",
                )
                .expect("the name is valid"),
            ),
            appends: RecentRate::new(),
            refresh: OnceLock::new(),
            registry,
        };
        Arc::new(metrics)
    }

    /// Shows at zero what may be found at the start.
    pub fn know_warnings(&self, codes: impl IntoIterator<Item = &'static str>) {
        for code in codes {
            self.startup_warning.with_label_values(&[code]);
        }
    }

    /// Notes something that was found at the start, on a target or in Kafka. The code is of a closed set.
    pub fn warn(&self, code: &str) {
        self.startup_warning.with_label_values(&[code]).set(1);
    }

    /// Handles for a target of the configuration.
    pub fn target(&self, name: &str) -> TargetMetrics {
        TargetMetrics {
            settled: OUTCOMES.map(|outcome| self.settled.with_label_values(&[name, outcome])),
            attempts: ATTEMPT_CLASSES.map(|class| self.attempts.with_label_values(&[name, class])),
            tasks: TASK_STATES.map(|state| self.tasks.with_label_values(&[name, state])),
            oldest_age: self.oldest_age.with_label_values(&[name]),
            dead_letters: self.dead_letters.with_label_values(&[name]),
            breaker: self.breaker.with_label_values(&[name]),
            limit_batches: self.limit_batches.with_label_values(&[name]),
            rate_limit: self.rate_limit.with_label_values(&[name]),
            ping: self.ping.with_label_values(&[name]),
            clock_offset: self.clock_offset.with_label_values(&[name]),
            startup_warning: self.startup_warning.clone(),
            settle_seconds: self.settle_seconds.clone(),
            retry_count: self.retry_count.clone(),
            retry_max_reached: self.retry_max_reached.clone(),
        }
    }

    /// Counts an accepted task; the arguments index [`LANES`] and [`DURABILITIES`].
    pub fn count_accepted(&self, lane: usize, durability: usize) {
        self.accepted[lane][durability].inc();
    }

    /// Counts a refusal. The reason is one of those given to [`Metrics::new`].
    pub fn count_refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts `records` appended together, or that they could not be.
    pub fn count_appends(&self, records: u64, stored: bool) {
        self.appends.count(Instant::now(), records, stored);
    }

    /// Has `refresh` called before each [`Metrics::render`], to bring those gauges up to date that are read off and not
    /// counted. The first call decides.
    pub fn refresh_with(&self, refresh: impl Fn(&Self) + Send + Sync + 'static) {
        let _ = self.refresh.set(Box::new(refresh));
    }

    /// The text that a scraper reads (exposition format 0.0.4).
    pub fn render(&self) -> String {
        if let Some(refresh) = self.refresh.get() {
            refresh(self);
        }
        self.send_failure_rate.set(self.appends.rate(Instant::now()));
        let mut text = String::with_capacity(16 * 1024);
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text).expect("writing to a string cannot fail");
        text
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the name and labels are valid"))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect("the name and labels are valid"))
}

fn float_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::GaugeVec {
    let gauges = prometheus::GaugeVec::new(Opts::new(name, help), labels);
    register(registry, gauges.expect("the name and labels are valid"))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    register(registry, Histogram::with_opts(opts).expect("the name and buckets are valid"))
}

/// Failures over attempts of the last five minutes, in thirty slots of ten seconds.
struct RecentRate {
    start: Instant,
    slots: [RateSlot; 31],
}

#[derive(Default)]
struct RateSlot {
    /// Which ten seconds since `start` the counts belong to.
    number: AtomicU64,
    all: AtomicU64,
    failed: AtomicU64,
}

impl RecentRate {
    const SLOT: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self { start: Instant::now(), slots: std::array::from_fn(|_| RateSlot::default()) }
    }

    fn number(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / Self::SLOT.as_secs()
    }

    fn count(&self, now: Instant, records: u64, stored: bool) {
        let number = self.number(now);
        let slot = &self.slots[(number % 31) as usize];
        // A count that races with the first one of a new slot may be lost: it is a rate, not an account.
        if slot.number.swap(number, Ordering::Relaxed) != number {
            slot.all.store(0, Ordering::Relaxed);
            slot.failed.store(0, Ordering::Relaxed);
        }
        slot.all.fetch_add(records, Ordering::Relaxed);
        if !stored {
            slot.failed.fetch_add(records, Ordering::Relaxed);
        }
    }

    fn rate(&self, now: Instant) -> f64 {
        let oldest = self.number(now).saturating_sub(30);
        let recent = self.slots.iter().filter(|slot| slot.number.load(Ordering::Relaxed) >= oldest);
        let (all, failed) = recent.fold((0, 0), |(all, failed), slot| {
            (all + slot.all.load(Ordering::Relaxed), failed + slot.failed.load(Ordering::Relaxed))
        });
        if all == 0 { 0.0 } else { failed as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_names_that_alerts_are_built_on_are_exact() {
        let metrics = Metrics::new(&["validation-failed"]);
        metrics.retry_count.inc();
        metrics.target("default").settled[0].inc();
        let text = metrics.render();
        for name in ["kafka_send_failure_rate", "redis_retry_count", "redis_retry_max_reached", "kafka_consumer_lag"] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} in\n{text}");
        }
        assert!(text.contains("redrive_accept_seconds_bucket"));
        assert!(text.contains(r#"redrive_tasks_settled_total{outcome="applied",target="default"} 1"#));
    }

    #[test]
    fn failure_rate_forgets_after_five_minutes() {
        let rate = RecentRate::new();
        let start = rate.start;
        rate.count(start, 1, false);
        rate.count(start, 3, true);
        assert_eq!(rate.rate(start), 0.25);
        assert_eq!(rate.rate(start + Duration::from_secs(290)), 0.25);
        assert_eq!(rate.rate(start + Duration::from_secs(320)), 0.0);
        rate.count(start + Duration::from_secs(310), 1, true);
        assert_eq!(rate.rate(start + Duration::from_secs(311)), 0.0);
    }
}
