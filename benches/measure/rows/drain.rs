//! How fast a backlog goes to a Redis that is back, against what one connection can do at all.

use std::path::Path;

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::{Report, Samples},
};

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let backlog = Backlog::queue(scratch, Work::Set, super::BACKLOG).await?;
    let mut target = Target::start(scratch).await?;
    let (mut ratio, mut ours, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    let (mut cpu, mut redis_cpu, mut missing) = (Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        target.redis.flush().await?;
        let bare = target.benchmark(Work::Set, 128, 1_000_000)?;
        let drained = backlog.drain(&mut target).await?;
        missing += drained.wrong;
        ratio.push(drained.rate / bare);
        ours.push(drained.rate);
        theirs.push(bare);
        cpu.push(drained.cpu_us);
        redis_cpu.push(drained.redis_cpu_us);
    }
    report.goal("drain, of redis-benchmark -c 1 -P 128", &ratio.show(2), "at least 0.60", ratio.median() >= 0.6);
    report.note("drain, tasks per second", &ours.show(0));
    report.note("redis-benchmark, SETs per second", &theirs.show(0));
    report.note("drain, CPU per task, us", &cpu.show(1));
    report.note("drain, CPU of Redis per task, us", &redis_cpu.show(1));
    report.gate("drain, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}
