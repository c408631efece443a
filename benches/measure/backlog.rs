//! A backlog of tasks, and how fast it goes to a Redis that is back.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{
    driver::{self, Shape, Until, Work},
    processes::{self, Process, Sidecar, UNLIMITED, free_address},
    redis::Redis,
};

/// Tasks that were accepted while Redis was away, on a key each. They can be drained more than once.
pub struct Backlog {
    data: PathBuf,
    work: Work,
    accepted: Vec<u32>,
}

/// The Redis that a backlog goes to.
pub struct Target {
    pub address: SocketAddr,
    pub redis: Redis,
    process: Process,
}

/// How a drain went.
pub struct Drained {
    /// Tasks per second.
    pub rate: f64,
    /// Processor time of the sidecar for each task, in microseconds.
    pub cpu_us: f64,
    /// The same of Redis.
    pub redis_cpu_us: f64,
    /// Keys that do not hold what the task makes of them.
    pub wrong: usize,
}

impl Target {
    pub async fn start(scratch: &Path) -> anyhow::Result<Self> {
        let address = free_address()?;
        let (process, redis) = processes::redis(address, scratch).await?;
        Ok(Self { address, redis, process })
    }

    /// How many tasks were made.
    async fn made(&mut self, work: Work) -> anyhow::Result<u64> {
        Ok(match work {
            Work::Set | Work::SetEx | Work::Fields(_) => self.redis.size().await?,
            // Their markers are keys too.
            Work::Incr => self.redis.calls("incr").await?,
        })
    }

    /// What `redis-benchmark` reaches: SETs of 100 bytes on keys of 16 bytes, as the backlog's are, or INCRs. So large a
    /// range keeps the keys different.
    pub fn benchmark(&self, work: Work, connections: u32, pipeline: u32, requests: u32) -> anyhow::Result<f64> {
        let test = if work == Work::Incr { "incr" } else { "set" };
        let output = Command::new("redis-benchmark")
            .args(["-p", &self.address.port().to_string()])
            .args(["-c", &connections.to_string(), "-P", &pipeline.to_string(), "-n", &requests.to_string()])
            .args(["-r", "1000000000", "-d", "100", "-t", test, "--csv"])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let start = format!("\"{}\",\"", test.to_uppercase());
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        let rate = line.and_then(|line| line.split('"').next());
        Ok(rate.ok_or_else(|| anyhow::anyhow!("redis-benchmark said {text}"))?.parse()?)
    }
}

impl Backlog {
    /// Hands in so many tasks.
    pub async fn queue(scratch: &Path, work: Work, tasks: u32) -> anyhow::Result<Self> {
        let data = scratch.join(format!("backlog-{work:?}"));
        let sidecar = Sidecar::serving(&data, free_address()?).await?;
        let ran = driver::closed_loop(sidecar.address, 64, Shape::Single(work), 0, Until::Sent(tasks)).await?;
        anyhow::ensure!(ran.failed == 0, "{} requests were not taken", ran.failed);
        sidecar.process.stop();
        Ok(Self { data, work, accepted: ran.accepted })
    }

    /// Drains a copy of it into an empty Redis.
    pub async fn drain(&self, target: &mut Target) -> anyhow::Result<Drained> {
        target.redis.flush().await?;
        let copy = self.copy()?;
        let drained = self.drain_from(&copy, target, &[]).await;
        std::fs::remove_dir_all(&copy)?;
        drained
    }

    /// Drains it as it stands into what is there, by a sidecar that is run by `runner` if that is not empty.
    pub async fn drain_into(self, target: &mut Target, runner: &[String]) -> anyhow::Result<Drained> {
        let drained = self.drain_from(&self.data, target, runner).await;
        std::fs::remove_dir_all(&self.data)?;
        drained
    }

    /// What it is made of, once more; whoever uses it removes it.
    pub fn copy(&self) -> anyhow::Result<PathBuf> {
        let copy = self.data.with_extension("copy");
        copy_dir(&self.data, &copy)?;
        Ok(copy)
    }

    pub fn accepted(&self) -> &[u32] {
        &self.accepted
    }

    /// How many tasks fill a segment of its journal: the number in the name of the second one.
    pub fn tasks_of_a_segment(&self) -> anyhow::Result<u32> {
        let files = std::fs::read_dir(self.data.join("queues/default/normal"))?.collect::<Result<Vec<_>, _>>()?;
        let names = files.iter().map(|file| file.file_name().to_string_lossy().into_owned());
        let first =
            names.filter_map(|name| name.strip_suffix(".seg")?.strip_prefix("0000000002-")?.parse().ok()).next();
        first.ok_or_else(|| anyhow::anyhow!("the backlog has no second segment"))
    }

    pub fn discard(self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(&self.data)?)
    }

    async fn drain_from(&self, data: &Path, target: &mut Target, runner: &[String]) -> anyhow::Result<Drained> {
        let before = target.made(self.work).await?;
        let sidecar = Sidecar::start_by(runner, data, target.address, &UNLIMITED)?;
        watch(sidecar, target, self.work, &self.accepted, before).await
    }
}

/// Watches a sidecar that was just started make these tasks, `before` of which were made before, and stops it.
pub async fn watch(
    sidecar: Sidecar,
    target: &mut Target,
    work: Work,
    accepted: &[u32],
    before: u64,
) -> anyhow::Result<Drained> {
    let patience = Instant::now() + Duration::from_secs(120);
    let mut first = None;
    loop {
        let made = target.made(work).await?.saturating_sub(before);
        let now = Instant::now();
        let (since, from, cpu, redis_cpu) = match first {
            None if made > 0 => *first.insert((now, made, sidecar.process.cpu(), target.process.cpu())),
            None => (now, 0, Duration::ZERO, Duration::ZERO),
            Some(first) => first,
        };
        if made >= accepted.len() as u64 {
            let tasks = (made - from) as f64;
            let each = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / tasks;
            let cpu_us = each(sidecar.process.cpu(), cpu);
            let redis_cpu_us = each(target.process.cpu(), redis_cpu);
            let rate = tasks / (now - since).as_secs_f64();
            sidecar.process.stop();
            let wrong = target.redis.wrong(work, accepted).await?;
            return Ok(Drained { rate, cpu_us, redis_cpu_us, wrong });
        }
        anyhow::ensure!(now < patience, "only {made} tasks were made");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    anyhow::ensure!(copied.success(), "the backlog could not be copied");
    Ok(())
}
