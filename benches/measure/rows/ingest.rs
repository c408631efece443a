//! How many tasks are taken, against a server that keeps nothing.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::super::{
    driver::{self, Ran, Shape, Until, Work},
    processes::{self, Process, Sidecar, free_address},
    redis::Redis,
    report::{Report, Samples},
};

const CONNECTIONS: usize = 64;
const TIME: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Side {
    ratio: Samples,
    rate: Samples,
    cpu_us: Samples,
}

impl Side {
    fn note(&mut self, run: &Run, of: f64) {
        self.ratio.push(run.ran.rate() / of);
        self.rate.push(run.ran.rate());
        self.cpu_us.push(run.cpu_us);
    }

    fn report(&self, what: &str, report: &mut Report) {
        report.note(&format!("{what}, tasks per second"), &self.rate.show(0));
        report.note(&format!("{what}, CPU per task, us"), &self.cpu_us.show(1));
    }
}

struct Run {
    ran: Ran,
    cpu_us: f64,
}

async fn run(server: &Sidecar, shape: Shape) -> anyhow::Result<Run> {
    let connections = if matches!(shape, Shape::Single(_)) { CONNECTIONS } else { 8 };
    let cpu = server.process.cpu();
    let ran = driver::closed_loop(server.address, connections, shape, 0, Until::Elapsed(TIME)).await?;
    let cpu = server.process.cpu() - cpu;
    anyhow::ensure!(ran.failed == 0, "{} requests were not answered 202", ran.failed);
    Ok(Run { cpu_us: cpu.as_secs_f64() * 1e6 / ran.accepted.len() as f64, ran })
}

pub async fn measure(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let address = free_address()?;
    let (redis_process, mut redis) = processes::redis(address, scratch).await?;
    let (mut echo, mut paused, mut live, mut batch) =
        (Side::default(), Side::default(), Side::default(), Side::default());
    let mut missing = 0;
    for _ in 0..rounds {
        let server = processes::echo().await?;
        let bare = run(&server, Shape::Single(Work::Set)).await?;
        let rate = bare.ran.rate();
        echo.note(&bare, rate);
        drop(server);

        let single =
            take(scratch, free_address()?, Shape::Single(Work::Set), &mut redis, address, &mut missing).await?;
        paused.note(&single, rate);
        let run = take(scratch, address, Shape::Single(Work::Set), &mut redis, address, &mut missing).await?;
        live.note(&run, rate);
        let run =
            take(scratch, free_address()?, Shape::Batch(Work::Set, 100), &mut redis, address, &mut missing).await?;
        batch.note(&run, single.ran.rate());
    }
    drop::<Process>(redis_process);
    let ratio = |side: &Side, goal: f64| (side.ratio.show(2), side.ratio.median() >= goal);
    let (shown, reached) = ratio(&paused, 0.5);
    report.goal("ingest, Redis away, of a bare server", &shown, "at least 0.50", reached);
    let (shown, reached) = ratio(&live, 0.5);
    report.goal("ingest, Redis there, of a bare server", &shown, "at least 0.50", reached);
    let (shown, reached) = ratio(&batch, 5.0);
    report.goal("ingest in batches of 100, of single ones", &shown, "at least 5", reached);
    echo.report("bare server", report);
    paused.report("ingest, Redis away", report);
    live.report("ingest, Redis there", report);
    batch.report("ingest in batches", report);
    report.gate("ingest, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}

/// One run on an empty journal; afterwards all that was taken is looked for in Redis.
async fn take(
    scratch: &Path,
    target: SocketAddr,
    shape: Shape,
    redis: &mut Redis,
    address: SocketAddr,
    missing: &mut usize,
) -> anyhow::Result<Run> {
    redis.flush().await?;
    let data = scratch.join("ingest");
    let sidecar = Sidecar::serving(&data, target).await?;
    let run = run(&sidecar, shape).await?;
    let sidecar = if target == address {
        sidecar
    } else {
        sidecar.process.stop();
        Sidecar::serving(&data, address).await?
    };
    *missing += redis.missing_in_the_end(&run.ran.accepted, Duration::from_secs(60)).await?;
    sidecar.process.stop();
    std::fs::remove_dir_all(&data)?;
    Ok(run)
}
