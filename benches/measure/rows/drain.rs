//! How fast a backlog goes to a Redis that is back, against what one connection can do at all.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{
    super::{
        driver::{self, Shape, Until},
        processes::{self, Process, Sidecar, free_address},
        redis::Redis,
        report::{Report, Samples},
    },
    ROUNDS,
};

const BACKLOG: u32 = 500_000;

pub async fn measure(scratch: &Path, report: &mut Report) -> anyhow::Result<()> {
    let data = scratch.join("backlog");
    let sidecar = Sidecar::serving(&data, free_address()?).await?;
    let ran = driver::closed_loop(sidecar.address, 64, Shape::Single, 0, Until::Sent(BACKLOG)).await?;
    anyhow::ensure!(ran.failed == 0, "{} requests were not taken", ran.failed);
    sidecar.process.stop();

    let address = free_address()?;
    let (process, mut redis) = processes::redis(address, scratch).await?;
    let (mut ratio, mut ours, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    let (mut four, mut cpu, mut redis_cpu, mut missing) =
        (Samples::default(), Samples::default(), Samples::default(), 0);
    for _ in 0..ROUNDS {
        redis.flush().await?;
        four.push(redis_benchmark(address, 4)?);
        redis.flush().await?;
        let bare = redis_benchmark(address, 1)?;
        // The same SETs: as many keys as tasks, but for the few that chance drew twice.
        let keys = redis.size().await?;
        anyhow::ensure!(keys.abs_diff(u64::from(BACKLOG)) < 1000, "redis-benchmark set {keys} keys");
        redis.flush().await?;
        let copy = scratch.join("backlog-copy");
        copy_dir(&data, &copy)?;
        let drained = drain(&copy, address, &mut redis, &process).await?;
        missing += redis.missing(&ran.accepted).await?;
        std::fs::remove_dir_all(&copy)?;
        ratio.push(drained.rate / bare);
        ours.push(drained.rate);
        theirs.push(bare);
        cpu.push(drained.cpu_us);
        redis_cpu.push(drained.redis_cpu_us);
    }
    report.goal("drain, of redis-benchmark -c 1 -P 128", &ratio.show(2), "at least 0.60", ratio.median() >= 0.6);
    report.note("drain, tasks per second", &ours.show(0));
    report.note("redis-benchmark -c 1 -P 128, SETs per second", &theirs.show(0));
    report.note("redis-benchmark -c 4 -P 128, SETs per second", &four.show(0));
    report.note("drain, CPU per task, us", &cpu.show(1));
    report.note("drain, CPU of Redis per task, us", &redis_cpu.show(1));
    report.gate("drain, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}

struct Drained {
    rate: f64,
    cpu_us: f64,
    redis_cpu_us: f64,
}

async fn drain(data: &Path, address: SocketAddr, redis: &mut Redis, process: &Process) -> anyhow::Result<Drained> {
    let sidecar = Sidecar::start(data, address)?;
    let patience = Instant::now() + Duration::from_secs(60);
    let mut first = None;
    loop {
        let size = redis.size().await?;
        let now = Instant::now();
        let (since, from, cpu, redis_cpu) = match first {
            None if size > 0 => *first.insert((now, size, sidecar.process.cpu(), process.cpu())),
            None => (now, 0, Duration::ZERO, Duration::ZERO),
            Some(first) => first,
        };
        if size >= u64::from(BACKLOG) {
            let tasks = (size - from) as f64;
            let each = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / tasks;
            let cpu_us = each(sidecar.process.cpu(), cpu);
            let redis_cpu_us = each(process.cpu(), redis_cpu);
            let rate = tasks / (now - since).as_secs_f64();
            sidecar.process.stop();
            return Ok(Drained { rate, cpu_us, redis_cpu_us });
        }
        anyhow::ensure!(now < patience, "only {size} tasks were made");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// SETs per second, the backlog's: as many, of 100 bytes, on keys of 16 bytes, which so large a range keeps different.
fn redis_benchmark(address: SocketAddr, connections: u32) -> anyhow::Result<f64> {
    let output = Command::new("redis-benchmark")
        .args(["-p", &address.port().to_string(), "-c", &connections.to_string(), "-P", "128"])
        .args(["-n", &BACKLOG.to_string(), "-r", "1000000000", "-d", "100", "-t", "set", "--csv"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.strip_prefix("\"SET\",\""));
    let rate = line.and_then(|line| line.split('"').next());
    Ok(rate.ok_or_else(|| anyhow::anyhow!("redis-benchmark said {text}"))?.parse()?)
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    anyhow::ensure!(copied.success(), "the backlog could not be copied");
    Ok(())
}
