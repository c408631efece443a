//! What it costs that an INCR is made once: against plain SETs, and against a service that makes them one by one.

use std::path::Path;

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::{Report, Samples},
};

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let sets = Backlog::queue(scratch, Work::Set, super::BACKLOG).await?;
    let incrs = Backlog::queue(scratch, Work::Incr, super::BACKLOG).await?;
    let mut target = Target::start(scratch).await?;
    let (mut of_sets, mut of_one_by_one) = (Samples::default(), Samples::default());
    let (mut ours, mut plain, mut one_by_one) = (Samples::default(), Samples::default(), Samples::default());
    let (mut cpu, mut redis_cpu, mut wrong) = (Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        let set = sets.drain(&mut target).await?;
        let incr = incrs.drain(&mut target).await?;
        target.redis.flush().await?;
        let bare = target.benchmark(Work::Incr, 1, 1, 100_000)?;
        of_sets.push(incr.rate / set.rate);
        of_one_by_one.push(incr.rate / bare);
        ours.push(incr.rate);
        plain.push(set.rate);
        one_by_one.push(bare);
        cpu.push(incr.cpu_us);
        redis_cpu.push(incr.redis_cpu_us);
        wrong += incr.wrong;
    }
    sets.discard()?;
    incrs.discard()?;
    report.goal("once: drain of INCR, of SET", &of_sets.show(2), "at least 0.25", of_sets.median() >= 0.25);
    report.note("once: drain of INCR, of redis-benchmark -c 1 -P 1", &of_one_by_one.show(1));
    report.note("once: drain of INCR, tasks per second", &ours.show(0));
    report.note("once: drain of SET beside it, tasks per second", &plain.show(0));
    report.note("once: redis-benchmark -P 1, INCRs per second", &one_by_one.show(0));
    report.note("once: drain of INCR, CPU per task, us", &cpu.show(1));
    report.note("once: drain of INCR, CPU of Redis per task, us", &redis_cpu.show(1));
    report.gate("once: of the INCRs answered 202, not made once", &wrong.to_string(), "0", wrong == 0);
    Ok(())
}
