//! Measures the sidecar beside what it is compared with, in one run: `make bench`. Words on the command line choose
//! rows by the beginnings of their names; without any, all are measured. What was measured is written into
//! `docs/benchmarks.md` when all of it was; what was counted (`hot-paths`) each time, since noise does not reach it.
//! Beside each number stands the one that is written there. `--quick` measures each once, for a first look, and writes
//! nothing. `recovery` is measured only where it is asked for (`make bench-recovery`), and written into
//! `docs/recovery.md`.
//!
//! Ratios are taken of runs that follow each other, five times, and reported with their spread: on a shared machine
//! absolute numbers say little. Bounds (memory, start, counts) and promises (what was answered 202 is there, and once)
//! gate: where one is missed the exit status is 1.

#![expect(clippy::print_stdout, reason = "a bench tells its results")]

use std::{net::SocketAddr, path::PathBuf};

mod backlog;
mod driver;
mod echo;
mod hot_paths;
mod kafka;
mod private;
mod processes;
mod raw_sync;
mod redis;
mod report;
mod rows;

use report::Report;

/// Where the numbers are written down: relative to the package, where cargo starts it.
const PAGE: &str = "docs/benchmarks.md";

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|word| word == "--quick");
    // How often each comparison is made.
    let rounds = if quick { 1 } else { 5 };
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let [command, address] = words.as_slice()
        && command == "echo"
    {
        return runtime.block_on(echo::serve(address.parse::<SocketAddr>()?));
    }
    if let [command, path, runs] = words.as_slice()
        && command == "hot-path"
    {
        hot_paths::run(path, runs.parse()?)?;
        return Ok(());
    }
    let (mut report, mut counts) = (Report::beside(PAGE), Report::beside(PAGE));
    let wanted = |row: &str| words.is_empty() || words.iter().any(|word| row.starts_with(word.as_str()));
    // On the disk of the build, not in a temporary directory, which may be memory.
    let beside = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let scratch = tempfile::tempdir_in(&beside)?;
    runtime.block_on(async {
        if wanted("footprint") {
            rows::footprint::measure(scratch.path(), rounds, &mut report).await?;
        }
        if wanted("drain") {
            rows::drain::measure(scratch.path(), rounds, &mut report).await?;
        }
        if wanted("once") {
            rows::once::measure(scratch.path(), rounds, &mut report).await?;
        }
        if wanted("ttl") {
            rows::ttl::measure(scratch.path(), rounds, &mut report).await?;
        }
        if wanted("markers") {
            rows::markers::measure(scratch.path(), &mut report).await?;
        }
        if wanted("instructions") {
            rows::instructions::measure(scratch.path(), &mut report).await?;
        }
        if wanted("ingest") {
            rows::ingest::measure(scratch.path(), rounds, &mut report).await?;
        }
        if wanted("latency") {
            rows::latency::measure(scratch.path(), rounds, &mut report).await?;
        }
        rows::kafka::measure(scratch.path(), rounds, &wanted, &mut report).await?;
        // Takes long, and has a page of its own.
        if words.iter().any(|word| word.starts_with("recovery")) {
            let mut recovery = Report::beside(rows::recovery::PAGE);
            rows::recovery::measure(scratch.path(), rounds, quick, &mut recovery).await?;
            if !quick {
                recovery.write(rows::recovery::PAGE, "recovered", &report::machine(), "median (min to max)")?;
            }
            anyhow::ensure!(recovery.missed_gates().is_empty(), "missed: {}", recovery.missed_gates().join("; "));
        }
        if wanted("hot-paths") {
            hot_paths::measure(&mut counts, &mut report)?;
            if !quick {
                counts.write(PAGE, "counted", &report::tools(), "counted")?;
            }
        }
        anyhow::Ok(())
    })?;
    if words.is_empty() && !quick {
        report.write(PAGE, "measured", &report::machine(), "median (min to max)")?;
    }
    let missed = [report.missed_gates(), counts.missed_gates()].concat();
    anyhow::ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}
