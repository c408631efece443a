//! What it costs that a time to live becomes a time of day.

use std::path::Path;

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::{Report, Samples},
};

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let sets = Backlog::queue(scratch, Work::Set, super::BACKLOG).await?;
    let expiring = Backlog::queue(scratch, Work::SetEx, super::BACKLOG).await?;
    let mut target = Target::start(scratch).await?;
    let (mut ratio, mut ours, mut cpu) = (Samples::default(), Samples::default(), Samples::default());
    let mut wrong = 0;
    for _ in 0..rounds {
        let set = sets.drain(&mut target).await?;
        let drained = expiring.drain(&mut target).await?;
        ratio.push(drained.rate / set.rate);
        ours.push(drained.rate);
        cpu.push(drained.cpu_us);
        wrong += drained.wrong;
    }
    sets.discard()?;
    expiring.discard()?;
    report.goal("ttl: drain of SET EX, of SET", &ratio.show(2), "at least 0.75", ratio.median() >= 0.75);
    report.note("ttl: drain of SET EX, tasks per second", &ours.show(0));
    report.note("ttl: drain of SET EX, CPU per task, us", &cpu.show(1));
    report.gate("ttl: of what was answered 202, missing or for ever", &wrong.to_string(), "0", wrong == 0);
    Ok(())
}
