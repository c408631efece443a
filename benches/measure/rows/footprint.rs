//! Memory and starts.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::super::{
    driver::{self, Shape, Until, Work},
    processes::{self, Sidecar, free_address},
    report::{Report, Samples},
};

const QUEUED: u32 = 1_000_000;

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let nobody = free_address()?;
    let mut cold = Samples::default();
    let mut idle = Samples::default();
    for round in 0..rounds {
        let data = scratch.join(format!("cold-{round}"));
        let start = Instant::now();
        let sidecar = Sidecar::start(&data, nobody)?;
        driver::first_accepted(sidecar.address, 0, Duration::from_secs(5)).await?;
        cold.push(start.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(300)).await;
        idle.push(sidecar.process.kilobytes("VmRSS") as f64 / 1024.0);
    }
    report.gate("cold start to the first 202, ms", &cold.show(1), "at most 50", cold.median() <= 50.0);
    report.gate("idle memory (RSS), MB", &idle.show(1), "at most 10", idle.median() <= 10.0);

    let data = scratch.join("queued");
    let sidecar = Sidecar::serving(&data, nobody).await?;
    let ran = driver::closed_loop(sidecar.address, 64, Shape::Single(Work::Set), 0, Until::Sent(QUEUED)).await?;
    anyhow::ensure!(ran.failed == 0, "{} of a million requests were not taken", ran.failed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let limit = idle.median() + 32.0;
    let megabytes = |line| sidecar.process.kilobytes(line) as f64 / 1024.0;
    let (now, most) = (megabytes("VmRSS"), megabytes("VmHWM"));
    let measured = format!("{now:.1}, at most {most:.1} on the way");
    report.gate("memory with a million tasks queued, MB", &measured, &format!("at most {limit:.1}"), most <= limit);
    // Killed: nothing was written down in order.
    drop(sidecar);

    let mut backlog = Samples::default();
    let mut after = Samples::default();
    for round in 0..rounds as u32 {
        let start = Instant::now();
        let sidecar = Sidecar::start(&data, nobody)?;
        driver::first_accepted(sidecar.address, QUEUED + round, Duration::from_secs(20)).await?;
        backlog.push(start.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_secs(1)).await;
        after.push(sidecar.process.kilobytes("VmHWM") as f64 / 1024.0);
    }
    report.gate(
        "start on that backlog to the first 202, ms",
        &backlog.show(0),
        "at most 500",
        backlog.median() <= 500.0,
    );
    report.gate(
        "most memory after that start, MB",
        &after.show(1),
        &format!("at most {limit:.1}"),
        after.median() <= limit,
    );

    let redis_address = free_address()?;
    let (redis_process, mut redis) = processes::redis(redis_address, scratch).await?;
    let sidecar = Sidecar::serving(&data, redis_address).await?;
    let missing = redis.missing_in_the_end(&ran.accepted, Duration::from_secs(60)).await?;
    report.gate("of a million answered 202, missing after a kill", &missing.to_string(), "0", missing == 0);
    let most = sidecar.process.kilobytes("VmHWM") as f64 / 1024.0;
    report.note("most memory while that backlog drains, MB", &format!("{most:.1}"));
    sidecar.process.stop();
    drop(redis_process);
    std::fs::remove_dir_all(&data)?;
    Ok(())
}
