//! Instructions of the whole sidecar for each task that it drains, counted by valgrind: noise hardly reaches them. A
//! longer and a shorter backlog are drained, so that start and stop do not count.

use std::{fs, path::Path};

use super::super::{
    backlog::{Backlog, Target},
    driver::Work,
    report::Report,
};

const FEW: u32 = 70_000;
const MANY: u32 = 90_000;

pub async fn measure(scratch: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut target = Target::start(scratch).await?;
    for (work, what) in [(Work::Set, "a SET"), (Work::SetEx, "a SET EX"), (Work::Incr, "an INCR")] {
        let few = drained(scratch, work, FEW, &mut target).await?;
        let many = drained(scratch, work, MANY, &mut target).await?;
        let each = (many - few) / f64::from(MANY - FEW);
        report.note(&format!("drain {what}, instructions"), &format!("{each:.0}"));
    }
    Ok(())
}

async fn drained(scratch: &Path, work: Work, tasks: u32, target: &mut Target) -> anyhow::Result<f64> {
    let log = scratch.join("valgrind.log");
    let valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"].map(str::to_owned);
    target.redis.flush().await?;
    let backlog = Backlog::queue(scratch, work, tasks).await?;
    backlog.drain_into(target, &[&valgrind[..], &[format!("--log-file={}", log.display())]].concat()).await?;
    let said = fs::read_to_string(&log)?;
    let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.split_whitespace().next());
    Ok(count.ok_or_else(|| anyhow::anyhow!("valgrind did not count: {said}"))?.parse()?)
}
