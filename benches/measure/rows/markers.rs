//! How much memory of Redis a marker takes, with a million of them from one hour.

use std::path::Path;

use jiff::Timestamp;

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::Report,
};

const TASKS: u32 = 1_000_000;

const HOUR: i64 = 3600;

pub async fn measure(scratch: &Path, report: &mut Report) -> anyhow::Result<()> {
    let hour = || Timestamp::now().as_second().div_euclid(HOUR);
    let mut target = Target::start(scratch).await?;
    // The markers of two hours are in twice as many buckets.
    let backlog = loop {
        let begun = hour();
        let backlog = Backlog::queue(scratch, Work::Incr, TASKS).await?;
        if hour() == begun {
            break backlog;
        }
        backlog.discard()?;
    };
    // The counters are there before, so that what comes is the markers: small numbers take nothing of their own.
    target.redis.fill(0..TASKS).await?;
    let before = target.redis.memory().await?;
    let drained = backlog.drain_into(&mut target, &[]).await?;
    let after = target.redis.memory().await?;
    let each = after.saturating_sub(before) as f64 / f64::from(TASKS);
    report.goal("markers: memory of Redis for each, bytes", &format!("{each:.1}"), "at most 16", each <= 16.0);
    let wrong = drained.wrong.to_string();
    report.gate("markers: of a million INCRs, not made once", &wrong, "0", drained.wrong == 0);
    Ok(())
}
