//! Measures the sidecar beside what it is compared with, in one run: `make bench`. Words on the command line choose
//! rows by the beginnings of their names; without any, all are measured. What was measured is written into
//! `docs/benchmarks.md` when all of a table was (`kafka` is one); what was counted (`hot-paths`) each time, since noise
//! does not reach it. Beside each number stands the one that is written there. `--quick` measures each once, for a first
//! look, and writes nothing. `recovery` and `overload` are measured only where they are asked for (`make bench-recovery`),
//! and written into `docs/recovery.md`.
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
const RECOVERY_PAGE: &str = "docs/recovery.md";

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
    let [mut report, mut kafka, mut counts] = [PAGE; 3].map(Report::beside);
    let [mut recovery, mut overload] = [RECOVERY_PAGE; 2].map(Report::beside);
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
        rows::kafka::measure(scratch.path(), rounds, &wanted, &mut kafka).await?;
        // These take long, and have a page of their own.
        let asked = |row: &str| words.iter().any(|word| row.starts_with(word.as_str()));
        if asked("recovery") {
            rows::recovery::measure(scratch.path(), rounds, quick, &mut recovery).await?;
        }
        if asked("overload") {
            rows::overload::measure(scratch.path(), rounds, &mut overload).await?;
        }
        if wanted("hot-paths") {
            hot_paths::measure(&mut counts, &mut report)?;
        }
        anyhow::Ok(())
    })?;
    let all = [&report, &kafka, &recovery, &overload, &counts];
    if !quick {
        let named = |table: &str| words.iter().any(|word| word == table);
        let tables = [
            (&report, PAGE, "measured", words.is_empty()),
            (&kafka, PAGE, "kafka", words.is_empty() || named("kafka")),
            (&recovery, RECOVERY_PAGE, "recovery", named("recovery")),
            (&overload, RECOVERY_PAGE, "overload", named("overload")),
        ];
        for (report, page, name, _) in tables.into_iter().filter(|(.., whole)| *whole) {
            report.write(page, name, &report::machine(), "median (min to max)")?;
        }
        if wanted("hot-paths") {
            counts.write(PAGE, "counted", &report::tools(), "counted")?;
        }
    }
    let missed = all.map(Report::missed_gates).concat();
    anyhow::ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}
