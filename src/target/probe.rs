//! Whether a target can take writes now.
//!
//! A `PING` does not say: it passes on a replica, and where memory, disk or replicas stop writes. So a probe asks for
//! the role and then writes a key of Redrive's own, over a connection of its own that no batch can hold up.

use std::time::{Duration, Instant};

use deadpool_redis::redis::{Pipeline, Value};
use jiff::Timestamp;

use super::{
    Target,
    control::{Control, unless_refused},
};
use crate::retry::Failure;

/// How long the canary's key lives, in milliseconds: it cleans up after itself.
const CANARY_TTL_MS: u32 = 60_000;

/// What a probe of a usable target found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// From sending a PING, among other questions that cost as little, to its answer.
    pub ping: Duration,
    /// What a server draws when it starts: another one after a restart or a failover. None where it does not tell.
    pub run_id: Option<Box<str>>,
    /// The server's memory is full: it takes only what frees some.
    pub out_of_memory: Option<Failure>,
    /// Why the canary could not be written, where that says nothing about the tasks: the target's user may not write
    /// keys with Redrive's own prefix. Worth a warning, not a hold.
    pub canary_refused: Option<Failure>,
    /// The server's clock minus ours, in milliseconds, exact to half a round trip; 0 where the server does not tell.
    pub clock_offset_ms: i64,
    /// Whether TTLs can be sent as the time at which they end (Redis 6.2); true where the server does not tell.
    pub has_absolute_ttl: bool,
}

impl Target {
    /// Asks the target whether it can take writes: that it answers, is not a replica, and accepts a canary write, unless
    /// its memory is full, which the report says.
    ///
    /// The error is always a hold: what keeps the target from being used.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the probe's connection; the canary may or may not have been written.
    pub async fn probe(&self) -> Result<ProbeReport, Failure> {
        let mut control = self.control().await?;
        let report = control.probe(&self.probe_key).await?;
        self.keep(control);
        Ok(report)
    }
}

impl Control {
    pub(super) async fn probe(&mut self, key: &str) -> Result<ProbeReport, Failure> {
        let mut questions = Pipeline::with_capacity(3);
        questions.cmd("PING").cmd("ROLE").cmd("TIME");
        let (asked_at, asked) = (Timestamp::now(), Instant::now());
        let [ping, role, time] = self.ask(&mut questions).await?;
        let ping_took = asked.elapsed();
        let answered_by = asked_at.as_microsecond() + micros(ping_took / 2);
        // Where PING or ROLE is not permitted the canary decides alone.
        unless_refused(&ping)?;
        unless_refused(&role)?;
        match role {
            Value::Array(role) if !is_primary(&role) => {
                return Err(Failure::hold("READONLY", "the target is a replica"));
            }
            _ => {}
        }

        let mut canary = Pipeline::with_capacity(1);
        canary.cmd("SET").arg(key).arg("1").arg("PX").arg(CANARY_TTL_MS);
        let [written] = self.ask(&mut canary).await?;
        let (canary_refused, out_of_memory) = match unless_refused(&written) {
            Err(failure) if &*failure.code == Failure::OUT_OF_MEMORY => (None, Some(failure)),
            written => (written?, None),
        };
        Ok(ProbeReport {
            ping: ping_took,
            run_id: self.run_id.clone(),
            canary_refused,
            out_of_memory,
            clock_offset_ms: server_time(&time).map_or(0, |time| (time - answered_by) / 1000),
            has_absolute_ttl: self.has_absolute_ttl,
        })
    }
}

/// In microseconds since 1970.
fn server_time(reply: &Value) -> Option<i64> {
    let Value::Array(parts) = reply else { return None };
    let number = |part: &Value| match part {
        Value::BulkString(digits) => std::str::from_utf8(digits).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    let [seconds, micros] = parts.as_slice() else { return None };
    number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).expect("nobody waits that long")
}

fn is_primary(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(name)) if name == b"master")
}
