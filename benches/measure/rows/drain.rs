//! How fast a backlog goes to a Redis that is back, against what one connection can do at all.

use std::path::Path;

use super::{
    super::{
        backlog::{Backlog, Target},
        driver::Work,
        report::{Report, Samples},
    },
    BACKLOG,
};

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let backlog = Backlog::queue(scratch, Work::Set, BACKLOG).await?;
    let mut target = Target::start(scratch).await?;
    let (mut ratio, mut ours, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    let (mut four, mut cpu, mut redis_cpu, mut missing) =
        (Samples::default(), Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        target.redis.flush().await?;
        four.push(target.benchmark(Work::Set, 4, 128, BACKLOG)?);
        target.redis.flush().await?;
        let bare = target.benchmark(Work::Set, 1, 128, BACKLOG)?;
        // The same SETs: as many keys as tasks, but for the few that chance drew twice.
        let keys = target.redis.size().await?;
        anyhow::ensure!(keys.abs_diff(u64::from(BACKLOG)) < 1000, "redis-benchmark set {keys} keys");
        let drained = backlog.drain(&mut target).await?;
        missing += drained.wrong;
        ratio.push(drained.rate / bare);
        ours.push(drained.rate);
        theirs.push(bare);
        cpu.push(drained.cpu_us);
        redis_cpu.push(drained.redis_cpu_us);
    }
    backlog.discard()?;
    report.goal("drain, of redis-benchmark -c 1 -P 128", &ratio.show(2), "at least 0.60", ratio.median() >= 0.6);
    report.note("drain, tasks per second", &ours.show(0));
    report.note("redis-benchmark -c 1 -P 128, SETs per second", &theirs.show(0));
    report.note("redis-benchmark -c 4 -P 128, SETs per second", &four.show(0));
    report.note("drain, CPU per task, us", &cpu.show(1));
    report.note("drain, CPU of Redis per task, us", &redis_cpu.show(1));
    report.gate("drain, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}
