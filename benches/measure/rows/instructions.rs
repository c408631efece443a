//! Instructions of the whole sidecar for each task that it drains, counted by valgrind: noise hardly reaches them. A
//! longer and a shorter backlog are drained, so that start and stop do not count. At its start a sidecar looks through the
//! end of its journal, segment by segment: so the one backlog is longer by just the tasks of a segment.

use std::{fs, path::Path};

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::Report,
};

/// More than fit into a segment.
const FEW: u32 = 70_000;

pub async fn measure(scratch: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut target = Target::start(scratch).await?;
    for (work, what) in [(Work::Set, "a SET"), (Work::SetEx, "a SET EX"), (Work::Incr, "an INCR")] {
        let backlog = Backlog::queue(scratch, work, FEW).await?;
        let more = backlog.tasks_of_a_segment()?;
        let few = drained(scratch, backlog, &mut target).await?;
        let many = drained(scratch, Backlog::queue(scratch, work, FEW + more).await?, &mut target).await?;
        let each = (many - few) / f64::from(more);
        report.note(&format!("drain {what}, instructions"), &format!("{each:.0}"));
    }
    Ok(())
}

async fn drained(scratch: &Path, backlog: Backlog, target: &mut Target) -> anyhow::Result<f64> {
    let log = scratch.join("valgrind.log");
    let valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"].map(str::to_owned);
    target.redis.flush().await?;
    backlog.drain_into(target, &[&valgrind[..], &[format!("--log-file={}", log.display())]].concat()).await?;
    let said = fs::read_to_string(&log)?;
    let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.split_whitespace().next());
    Ok(count.ok_or_else(|| anyhow::anyhow!("valgrind did not count: {said}"))?.parse()?)
}
