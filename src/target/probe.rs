//! Whether a target can take writes now.
//!
//! A `PING` does not say: it passes on a replica, and where memory, disk or replicas stop writes. So a probe asks for
//! the role and then writes a key of Redrive's own, over a connection of its own that no batch can hold up.

use std::time::{Duration, Instant};

use deadpool_redis::redis::{Pipeline, Value, aio::MultiplexedConnection};

use super::{Target, errors};
use crate::retry::{Failure, FailureClass};

/// How long the canary's key lives, in milliseconds: it cleans up after itself.
const CANARY_TTL_MS: u32 = 60_000;

/// What a probe of a usable target found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// From sending the canary write to its answer.
    pub round_trip: Duration,
    /// Why the canary could not be written, where that says nothing about the tasks: the target's user may not write
    /// keys with Redrive's own prefix. Worth a warning, not a hold.
    pub canary_refused: Option<Failure>,
}

impl Target {
    /// Asks the target whether it can take writes: that it answers, is not a replica, and accepts a canary write.
    ///
    /// The error is always a hold: what keeps the target from being used.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the probe's connection; the canary may or may not have been written.
    pub async fn probe(&self) -> Result<ProbeReport, Failure> {
        let kept = self.probe_connection.lock().expect("nothing panics while it is held").take();
        if let Some(connection) = kept {
            match self.probe_over(connection).await {
                // Lost at some time since the last probe, which says nothing about now.
                Err(failure) if &*failure.code == Failure::CONNECTION_LOST => {}
                known => return known,
            }
        }
        let fresh = self.prober.get_multiplexed_async_connection_with_config(&self.probe_settings).await;
        self.probe_over(fresh.map_err(|error| errors::before_sending(&error))?).await
    }

    /// Keeps the connection if the target is well.
    async fn probe_over(&self, mut connection: MultiplexedConnection) -> Result<ProbeReport, Failure> {
        let report = probe(&mut connection, &self.probe_key).await?;
        *self.probe_connection.lock().expect("nothing panics while it is held") = Some(connection);
        Ok(report)
    }
}

async fn probe(connection: &mut MultiplexedConnection, key: &str) -> Result<ProbeReport, Failure> {
    let mut questions = Pipeline::with_capacity(2);
    questions.cmd("PING").cmd("ROLE");
    let [ping, role] = ask(connection, &mut questions).await?;
    // Where PING or ROLE is not permitted the canary decides alone.
    unless_refused(&ping)?;
    unless_refused(&role)?;
    match role {
        Value::Array(role) if !is_primary(&role) => return Err(Failure::hold("READONLY", "the target is a replica")),
        _ => {}
    }

    let mut canary = Pipeline::with_capacity(1);
    canary.cmd("SET").arg(key).arg("1").arg("PX").arg(CANARY_TTL_MS);
    let sent = Instant::now();
    let [written] = ask(connection, &mut canary).await?;
    let round_trip = sent.elapsed();
    let canary_refused = unless_refused(&written)?;
    Ok(ProbeReport { round_trip, canary_refused })
}

async fn ask<const N: usize>(
    connection: &mut MultiplexedConnection,
    questions: &mut Pipeline,
) -> Result<[Value; N], Failure> {
    let replies: Vec<Value> = questions
        .ignore_errors()
        .query_async(connection)
        .await
        .map_err(|error| errors::as_hold(errors::after_sending(&error)))?;
    replies
        .try_into()
        .map_err(|_| Failure::hold("protocol-error", "the number of replies is not that of the questions"))
}

/// What is refused for good says nothing about whether the target is well, and is only told.
fn unless_refused(reply: &Value) -> Result<Option<Failure>, Failure> {
    let Value::ServerError(error) = reply else { return Ok(None) };
    let failure = errors::of_reply(error);
    match failure.class {
        FailureClass::Dead => Ok(Some(failure)),
        _ => Err(errors::as_hold(failure)),
    }
}

fn is_primary(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(name)) if name == b"master")
}
