//! The same with Kafka: what it costs beside a bare server, a bare producer, and what Redis can do at all.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::super::{
    backlog::{self, Target},
    driver::{self, Ran, Shape, Until, Work},
    kafka::{MockBroker, RawProducer, RealBroker, flags, unique},
    processes::{self, Sidecar, cpu_of, free_address},
    report::{Report, Samples},
};

const CONNECTIONS: usize = 64;
const TIME: Duration = Duration::from_secs(3);
const PER_SECOND: u32 = 1000;
const PARTITIONS: u16 = 3;
const BACKLOG: u32 = 300_000;

/// KiB of the tasks whose latency is looked at one by one.
const SIZES: [u16; 8] = [1, 4, 8, 16, 32, 64, 128, 200];

pub async fn measure(
    scratch: &Path,
    rounds: usize,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    if wanted("kafka-mock") {
        against_a_bare_server(scratch, rounds, report).await?;
    }
    let rows = ["kafka-ingest", "kafka-latency", "kafka-sizes", "kafka-drain", "kafka-idle", "kafka-cpu"];
    if !rows.iter().any(|row| wanted(row)) {
        return Ok(());
    }
    let broker = RealBroker::start();
    if wanted("kafka-ingest") {
        against_a_bare_producer(scratch, &broker, rounds, report).await?;
    }
    if wanted("kafka-latency") {
        latency(scratch, &broker, rounds, report).await?;
    }
    if wanted("kafka-sizes") {
        sizes(scratch, &broker, report).await?;
    }
    if wanted("kafka-drain") {
        drain(scratch, &broker, rounds, report).await?;
    }
    if wanted("kafka-idle") {
        idle(scratch, &broker, rounds, report).await?;
    }
    if wanted("kafka-cpu") {
        shared_out(scratch, &broker, report).await?;
    }
    Ok(())
}

/// A sidecar whose tasks go to Kafka by now.
async fn serving(flags: &[String], data: &Path, redis: SocketAddr) -> anyhow::Result<Sidecar> {
    let sidecar = Sidecar::serving_with(flags, data, redis).await?;
    driver::until_in_kafka(sidecar.address, Duration::from_secs(30)).await?;
    Ok(sidecar)
}

async fn ingest(sidecar: &Sidecar, first: u32) -> anyhow::Result<(Ran, f64)> {
    let cpu = sidecar.process.cpu();
    let shape = Shape::Single(Work::Set);
    let ran = driver::closed_loop(sidecar.address, CONNECTIONS, shape, first, Until::Elapsed(TIME)).await?;
    anyhow::ensure!(ran.failed == 0, "{} requests were not answered 202", ran.failed);
    let cpu = (sidecar.process.cpu() - cpu).as_secs_f64() * 1e6 / ran.accepted.len() as f64;
    Ok((ran, cpu))
}

/// Beside a broker that costs little. It forgets the oldest of what it holds, so what became of the tasks is not asked
/// here.
async fn against_a_bare_server(scratch: &Path, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let address = free_address()?;
    let (redis_process, mut redis) = processes::redis(address, scratch).await?;
    let data = scratch.join("kafka-mock");
    let (mut paused, mut live, mut cpu) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let echo = processes::echo().await?;
        let (bare, _) = ingest(&echo, 0).await?;
        drop(echo);
        for (target, side) in [(free_address()?, &mut paused), (address, &mut live)] {
            redis.flush().await?;
            let topic = unique("mock");
            let broker = MockBroker::start(&topic, PARTITIONS)?;
            let flags = flags(&broker.address, &topic, &topic, PARTITIONS);
            let sidecar = serving(&flags, &data, target).await?;
            let (ran, each) = ingest(&sidecar, 1).await?;
            side.push(ran.rate() / bare.rate());
            sidecar.process.stop();
            if target != address {
                cpu.push(each);
            }
            std::fs::remove_dir_all(&data)?;
        }
    }
    drop(redis_process);
    let goal = |side: &Samples| side.median() >= 0.7;
    report.goal("kafka: ingest, Redis away, of a bare server", &paused.show(2), "at least 0.70", goal(&paused));
    report.goal("kafka: ingest, Redis there, of a bare server", &live.show(2), "at least 0.70", goal(&live));
    report.note("kafka: ingest into the mock, CPU per task, us", &cpu.show(1));
    Ok(())
}

/// So many callers of a bare producer, as fast as the acknowledgements come: records per second.
async fn raw_rate(raw: &RawProducer) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CONNECTIONS as u32 {
        let raw = raw.clone();
        callers.spawn(async move {
            let mut sent = 0_u32;
            while start.elapsed() < TIME {
                let number = caller + sent * CONNECTIONS as u32;
                anyhow::ensure!(raw.send(number, driver::body(Work::Set, number).into_bytes()).await, "refused");
                sent += 1;
            }
            Ok(sent)
        });
    }
    let mut all = 0.0;
    while let Some(sent) = callers.join_next().await {
        all += f64::from(sent.expect("no caller panics")?);
    }
    Ok(all / start.elapsed().as_secs_f64())
}

/// The 99th percentile, in milliseconds, of a bare producer at a fixed rate.
async fn raw_p99(raw: &RawProducer) -> anyhow::Result<f64> {
    let start = Instant::now() + Duration::from_millis(10);
    let (due, mut dues) = tokio::sync::mpsc::unbounded_channel();
    let clock = std::thread::spawn(move || {
        for number in 0..PER_SECOND * TIME.as_secs() as u32 {
            let at = start + Duration::from_secs(1) * number / PER_SECOND;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send((number, at)).is_err() {
                return;
            }
        }
    });
    let mut running = JoinSet::new();
    while let Some((number, at)) = dues.recv().await {
        let raw = raw.clone();
        running.spawn(async move {
            let sent = raw.send(number, driver::body(Work::Set, number).into_bytes()).await;
            sent.then(|| at.elapsed().as_secs_f64() * 1e3)
        });
    }
    clock.join().expect("the clock does not panic");
    let mut all = Vec::new();
    while let Some(latency) = running.join_next().await {
        all.push(latency.expect("no caller panics").ok_or_else(|| anyhow::anyhow!("a record was refused"))?);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() * 99 / 100])
}

async fn against_a_bare_producer(
    scratch: &Path,
    broker: &RealBroker,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let address = free_address()?;
    let (redis_process, mut redis) = processes::redis(address, scratch).await?;
    let data = scratch.join("kafka-ingest");
    let (mut ratio, mut live, mut rate, mut bare) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    let (mut cpu, mut broker_cpu, mut missing) = (Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        let topic = unique("raw");
        broker.create_topic(&topic, PARTITIONS, &[]);
        let alone = raw_rate(&RawProducer::connect(&broker.address(), &topic, PARTITIONS).await?).await?;
        bare.push(alone);
        for (target, is_live) in [(free_address()?, false), (address, true)] {
            redis.flush().await?;
            let topic = unique("ingest");
            let flags = flags(&broker.address(), &topic, &topic, PARTITIONS);
            let sidecar = serving(&flags, &data, target).await?;
            let before = cpu_of(broker.pid());
            let (ran, each) = ingest(&sidecar, 1).await?;
            if is_live {
                live.push(ran.rate() / alone);
            } else {
                ratio.push(ran.rate() / alone);
                rate.push(ran.rate());
                cpu.push(each);
                let used = cpu_of(broker.pid()) - before;
                broker_cpu.push(used.as_secs_f64() * 1e6 / ran.accepted.len() as f64);
            }
            sidecar.process.stop();
            let sidecar = Sidecar::serving_with(&flags, &data, address).await?;
            missing += redis.missing_in_the_end(&ran.accepted, Duration::from_secs(60)).await?;
            sidecar.process.stop();
            std::fs::remove_dir_all(&data)?;
        }
    }
    drop(redis_process);
    report.note("kafka: ingest, Redis away, of a bare producer", &ratio.show(2));
    report.note("kafka: ingest, Redis there, of a bare producer", &live.show(2));
    report.note("kafka: ingest, tasks per second", &rate.show(0));
    report.note("kafka: bare producer, records per second", &bare.show(0));
    report.note("kafka: ingest, CPU per task, us", &cpu.show(1));
    report.note("kafka: ingest, CPU of the broker per task, us", &broker_cpu.show(1));
    report.gate("kafka: of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}

async fn latency(scratch: &Path, broker: &RealBroker, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let data = scratch.join("kafka-latency");
    let (mut over, mut ours, mut bare) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let topic = unique("latency");
        broker.create_topic(&topic, PARTITIONS, &[]);
        let alone = raw_p99(&RawProducer::connect(&broker.address(), &topic, PARTITIONS).await?).await?;
        let topic = unique("latency");
        let flags = flags(&broker.address(), &topic, &topic, PARTITIONS);
        let sidecar = serving(&flags, &data, free_address()?).await?;
        let ran = driver::open_loop(sidecar.address, CONNECTIONS, Work::Set, PER_SECOND, 1, TIME).await?;
        anyhow::ensure!(ran.failed == 0, "{} requests were not answered 202", ran.failed);
        sidecar.process.stop();
        std::fs::remove_dir_all(&data)?;
        over.push(ran.millis_at(0.99) - alone);
        ours.push(ran.millis_at(0.99));
        bare.push(alone);
    }
    let reached = over.median() <= 2.0;
    report.goal("kafka: p99 at 1,000 tasks/s over the bare producer's, ms", &over.show(2), "at most 2", reached);
    report.note("kafka: p99 at 1,000 tasks/s, ms", &ours.show(2));
    report.note("kafka: p99 of the bare producer at 1,000/s, ms", &bare.show(2));
    Ok(())
}

/// One request at a time, of each size: where Nagle's algorithm would make some of them wait.
async fn sizes(scratch: &Path, broker: &RealBroker, report: &mut Report) -> anyhow::Result<()> {
    let data = scratch.join("kafka-sizes");
    let topic = unique("sizes");
    let flags = flags(&broker.address(), &topic, &topic, PARTITIONS);
    let sidecar = serving(&flags, &data, free_address()?).await?;
    let mut shown = Vec::new();
    let mut slowest: f64 = 0.0;
    let mut first = 1;
    for kib in SIZES {
        let until = Until::Elapsed(Duration::from_secs(1));
        let shape = Shape::Single(Work::Fields(kib));
        let ran = driver::closed_loop(sidecar.address, 1, shape, first, until).await?;
        anyhow::ensure!(ran.failed == 0, "{} requests of {kib} KiB were not answered 202", ran.failed);
        first += ran.accepted.len() as u32;
        shown.push(format!("{kib} KiB: {:.2}", ran.millis_at(0.5)));
        slowest = slowest.max(ran.millis_at(0.5));
    }
    sidecar.process.stop();
    std::fs::remove_dir_all(&data)?;
    report.goal("kafka: slowest p50 of one at a time, ms", &format!("{slowest:.2}"), "at most 5", slowest <= 5.0);
    report.note("kafka: p50 by size, ms", &shown.join(", "));
    Ok(())
}

async fn drain(scratch: &Path, broker: &RealBroker, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let data = scratch.join("kafka-drain");
    let topic = unique("drain");
    let flags = |group: &str| flags(&broker.address(), &topic, group, PARTITIONS);
    let sidecar = Sidecar::serving_with(&flags(&topic), &data, free_address()?).await?;
    let mut tasks = driver::until_in_kafka(sidecar.address, Duration::from_secs(30)).await?;
    let shape = Shape::Single(Work::Set);
    let ran = driver::closed_loop(sidecar.address, CONNECTIONS, shape, 0, Until::Sent(BACKLOG)).await?;
    anyhow::ensure!(ran.failed == 0, "{} requests were not answered 202", ran.failed);
    tasks.extend(ran.accepted);
    sidecar.process.stop();
    std::fs::remove_dir_all(&data)?;

    let mut target = Target::start(scratch).await?;
    let (mut ratio, mut ours, mut cpu, mut wrong) = (Samples::default(), Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        target.redis.flush().await?;
        let bare = target.benchmark(Work::Set, 1, 128, BACKLOG)?;
        target.redis.flush().await?;
        // A group of its own, so that it begins at the beginning.
        let sidecar = Sidecar::serving_with(&flags(&unique("drain")), &data, target.address).await?;
        let drained = backlog::watch(sidecar, &mut target, Work::Set, &tasks, 0).await?;
        std::fs::remove_dir_all(&data)?;
        ratio.push(drained.rate / bare);
        ours.push(drained.rate);
        cpu.push(drained.cpu_us);
        wrong += drained.wrong;
    }
    let reached = ratio.median() >= 0.6;
    report.goal("kafka: drain, of redis-benchmark -c 1 -P 128", &ratio.show(2), "at least 0.60", reached);
    report.note("kafka: drain, tasks per second", &ours.show(0));
    report.note("kafka: drain, CPU per task, us", &cpu.show(1));
    report.gate("kafka: drain, of what was answered 202, missing", &wrong.to_string(), "0", wrong == 0);
    Ok(())
}

async fn idle(scratch: &Path, broker: &RealBroker, rounds: usize, report: &mut Report) -> anyhow::Result<()> {
    let data = scratch.join("kafka-idle");
    let address = free_address()?;
    let (redis_process, _) = processes::redis(address, scratch).await?;
    let mut memory = Samples::default();
    for _ in 0..rounds {
        let topic = unique("idle");
        let flags = flags(&broker.address(), &topic, &topic, PARTITIONS);
        let sidecar = serving(&flags, &data, address).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        memory.push(sidecar.process.kilobytes("VmRSS") as f64 / 1024.0);
        sidecar.process.stop();
        std::fs::remove_dir_all(&data)?;
    }
    drop(redis_process);
    report.gate("kafka: idle memory (RSS), MB", &memory.show(1), "at most 12", memory.median() <= 12.0);
    Ok(())
}

/// What a task costs when more sidecars share the same work, and when a topic has more partitions.
async fn shared_out(scratch: &Path, broker: &RealBroker, report: &mut Report) -> anyhow::Result<()> {
    let address = free_address()?;
    let (redis_process, mut redis) = processes::redis(address, scratch).await?;
    let sidecars = [(1, PARTITIONS), (2, PARTITIONS), (4, PARTITIONS), (8, PARTITIONS)];
    for (count, partitions) in sidecars.into_iter().chain([1, 8, 32].map(|partitions| (1, partitions))) {
        redis.flush().await?;
        let topic = unique("cpu");
        let flags = flags(&broker.address(), &topic, &topic, partitions);
        let dirs: Vec<_> = (0..count).map(|number| scratch.join(format!("kafka-cpu-{number}"))).collect();
        let mut group = Vec::new();
        for data in &dirs {
            group.push(serving(&flags, data, address).await?);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let used = |group: &[Sidecar]| group.iter().map(|sidecar| sidecar.process.cpu()).sum::<Duration>();
        let (before, broker_before) = (used(&group), cpu_of(broker.pid()));
        let mut running = JoinSet::new();
        for (number, sidecar) in group.iter().enumerate() {
            let (address, first) = (sidecar.address, 100_000 * (number as u32 + 1));
            running.spawn(driver::open_loop(address, 16, Work::Set, PER_SECOND / count, first, TIME));
        }
        let mut tasks = Vec::new();
        while let Some(ran) = running.join_next().await {
            tasks.extend(ran.expect("no driver panics")?.accepted);
        }
        let wrong = redis.missing_in_the_end(&tasks, Duration::from_secs(60)).await?;
        anyhow::ensure!(wrong == 0, "{wrong} of the tasks were not made");
        let each = |used: Duration| used.as_secs_f64() * 1e6 / tasks.len() as f64;
        let measured = format!(
            "{:.0}, and {:.0} of the broker",
            each(used(&group) - before),
            each(cpu_of(broker.pid()) - broker_before)
        );
        let what = format!("kafka: CPU per task at 1,000/s, {count} sidecars, {partitions} partitions, us");
        report.note(&what, &measured);
        group.into_iter().for_each(|sidecar| sidecar.process.stop());
        dirs.iter().try_for_each(std::fs::remove_dir_all)?;
    }
    drop(redis_process);
    Ok(())
}
