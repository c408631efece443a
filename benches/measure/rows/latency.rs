//! How long one task takes at a rate that services really have, against the disk alone.

use std::{path::Path, time::Duration};

use super::super::{
    driver::{self, Shape, Until, Work},
    processes::{self, LIMITED, Sidecar, free_address},
    raw_sync,
    report::{Report, Samples},
};

const PER_SECOND: u32 = 1000;
const TIME: Duration = Duration::from_secs(4);
const BACKLOG: u32 = 300_000;

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let (mut raw, mut ours, mut over, mut cores) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    let (mut draining, mut draining_over) = (Samples::default(), Samples::default());
    let address = free_address()?;
    let (redis_process, mut redis) = processes::redis(address, scratch).await?;
    let mut missing = 0;
    for _ in 0..rounds {
        redis.flush().await?;
        let alone = raw_sync::at_rate(scratch, PER_SECOND, TIME)?.value_at_quantile(0.99) as f64 / 1e3;
        raw.push(alone);

        let data = scratch.join("latency");
        let sidecar = Sidecar::serving(&data, free_address()?).await?;
        let cpu = sidecar.process.cpu();
        let ran = driver::open_loop(sidecar.address, 64, Work::Set, PER_SECOND, 0, TIME).await?;
        cores.push((sidecar.process.cpu() - cpu).as_secs_f64() / ran.elapsed.as_secs_f64());
        anyhow::ensure!(ran.failed == 0, "{} requests were not answered 202", ran.failed);
        ours.push(ran.millis_at(0.99));
        over.push(ran.millis_at(0.99) - alone);
        let first = ran.accepted.len() as u32;
        let backlog =
            driver::closed_loop(sidecar.address, 64, Shape::Single(Work::Set), first, Until::Sent(BACKLOG)).await?;
        anyhow::ensure!(backlog.failed == 0, "{} requests were not answered 202", backlog.failed);
        sidecar.process.stop();

        // As it is shipped: the rate ceiling is there for this.
        let sidecar = Sidecar::serving_with(&LIMITED, &data, address).await?;
        let meanwhile =
            driver::open_loop(sidecar.address, 64, Work::Set, PER_SECOND, first + BACKLOG, TIME / 4).await?;
        anyhow::ensure!(meanwhile.failed == 0, "{} requests were not answered 202", meanwhile.failed);
        draining.push(meanwhile.millis_at(0.99));
        draining_over.push(meanwhile.millis_at(0.99) - alone);
        for ran in [&ran, &backlog, &meanwhile] {
            missing += redis.missing_in_the_end(&ran.accepted, Duration::from_secs(60)).await?;
        }
        sidecar.process.stop();
        std::fs::remove_dir_all(&data)?;
    }
    drop(redis_process);
    report.goal("p99 at 1,000 tasks/s over the raw sync's, ms", &over.show(2), "at most 2", over.median() <= 2.0);
    let reached = draining_over.median() <= 2.0;
    report.goal("the same while a backlog drains, ms", &draining_over.show(2), "at most 2", reached);
    report.note("p99 at 1,000 tasks/s, ms", &ours.show(2));
    report.note("p99 at 1,000 tasks/s while a backlog drains, ms", &draining.show(2));
    report.note("p99 of the raw sync at 1,000/s, ms", &raw.show(2));
    report.note("cores used at 1,000 tasks/s", &cores.show(3));
    report.gate("at 1,000 tasks/s, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}
