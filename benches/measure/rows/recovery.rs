//! What a recovery costs whoever uses the same Redis live, with the limits as they are by default and without any; and
//! what coalescing spares.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::super::{
    backlog::{Backlog, Target},
    driver::{self, Work},
    processes::{LIMITED, Sidecar, UNLIMITED, free_address},
    report::{Report, Samples},
};

/// What a live client asks for.
const LIVE_KEYS: u64 = 1000;
const GETS_PER_SECOND: u32 = 2000;
const QUIET: Duration = Duration::from_secs(5);

/// Of the backlog that is written again and again.
const ZIPF_KEYS: usize = 100_000;

/// How long a recovery may take.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn measure(scratch: &Path, rounds: usize, quick: bool, report: &mut Report) -> anyhow::Result<()> {
    let tasks = match std::env::var("RECOVERY_TASKS") {
        Ok(tasks) => tasks.parse()?,
        Err(_) if quick => 20_000,
        Err(_) => 1_000_000,
    };
    report.note("tasks of a backlog", &tasks.to_string());
    live(scratch, rounds, tasks, report).await?;
    coalescing(scratch, rounds, tasks, report).await
}

/// GETs at a fixed rate, on a thread of its own. Latency counts from when each was due.
struct LiveClient {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<std::io::Result<Histogram<u64>>>,
}

impl LiveClient {
    fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut replies = BufReader::new(stream.try_clone()?);
        for key in 0..LIVE_KEYS {
            stream.write_all(format!("SET live:{key} live\r\n").as_bytes())?;
            replies.read_line(&mut String::new())?;
        }
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let mut latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
            let start = Instant::now();
            for number in 0_u32.. {
                let due = start + Duration::from_secs(1) * number / GETS_PER_SECOND;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if told.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(format!("GET live:{}\r\n", fastrand::u64(..LIVE_KEYS)).as_bytes())?;
                // The length, then the value.
                replies.read_line(&mut String::new())?;
                replies.read_line(&mut String::new())?;
                latency.saturating_record(due.elapsed().as_micros() as u64);
            }
            Ok(latency)
        });
        Ok(Self { over, thread })
    }

    fn stop(self) -> anyhow::Result<Histogram<u64>> {
        self.over.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| anyhow::anyhow!("the live client panicked"))??)
    }
}

/// One kind of run: the distributions of a live client's GETs, and how long the recovery took.
#[derive(Default)]
struct Side {
    quantiles: [Samples; 4],
    seconds: Samples,
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

impl Side {
    fn note(&mut self, latency: &Histogram<u64>, took: Duration) {
        for (samples, (_, quantile)) in self.quantiles.iter_mut().zip(QUANTILES) {
            samples.push(latency.value_at_quantile(quantile) as f64 / 1e3);
        }
        self.seconds.push(took.as_secs_f64());
    }

    fn p99(&self) -> f64 {
        self.quantiles[1].median()
    }

    fn report(&self, what: &str, report: &mut Report) {
        for (samples, (name, _)) in self.quantiles.iter().zip(QUANTILES) {
            report.note(&format!("live GET {name}, {what}, ms"), &samples.show(2));
        }
    }
}

async fn live(scratch: &Path, rounds: usize, tasks: u32, report: &mut Report) -> anyhow::Result<()> {
    let backlog = Backlog::queue(scratch, Work::Set, tasks).await?;
    let mut target = Target::start(scratch).await?;
    let (mut quiet, mut guarded, mut unguarded) = (Side::default(), Side::default(), Side::default());
    let mut missing = 0;
    for _ in 0..rounds {
        target.redis.flush().await?;
        let client = LiveClient::start(target.address)?;
        tokio::time::sleep(QUIET).await;
        quiet.note(&client.stop()?, QUIET);
        for (side, flags) in [(&mut guarded, &[][..]), (&mut unguarded, &UNLIMITED[..])] {
            target.redis.flush().await?;
            let data = backlog.copy()?;
            let client = LiveClient::start(target.address)?;
            let begun = Instant::now();
            let sidecar = Sidecar::serving_with(flags, &data, target.address).await?;
            while target.redis.size().await? < LIVE_KEYS + u64::from(tasks) {
                anyhow::ensure!(begun.elapsed() < PATIENCE, "the backlog is not recovered");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            side.note(&client.stop()?, begun.elapsed());
            sidecar.process.stop();
            missing += target.redis.wrong(Work::Set, backlog.accepted()).await?;
            std::fs::remove_dir_all(&data)?;
        }
    }
    backlog.discard()?;
    quiet.report("quiet", report);
    guarded.report("while a backlog is recovered", report);
    unguarded.report("the same without limits", report);
    let ratio = guarded.p99() / quiet.p99();
    let shown = format!("{ratio:.2}, without limits {:.2}", unguarded.p99() / quiet.p99());
    report.goal("live GET p99 during a recovery, of quiet", &shown, "at most 2", ratio <= 2.0);
    report.note("recovery, seconds", &guarded.seconds.show(1));
    report.note("recovery without limits, seconds", &unguarded.seconds.show(1));
    report.gate("recovery, of what was answered 202, missing", &missing.to_string(), "0", missing == 0);
    Ok(())
}

/// Keys drawn by Zipf's law with the exponent 1, the same each time.
fn zipf(tasks: u32) -> Vec<usize> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=ZIPF_KEYS)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    let mut rng = fastrand::Rng::with_seed(1);
    (0..tasks).map(|_| sums.partition_point(|upto| *upto < rng.f64() * sum).min(ZIPF_KEYS - 1)).collect()
}

async fn coalescing(scratch: &Path, rounds: usize, tasks: u32, report: &mut Report) -> anyhow::Result<()> {
    const BATCH: usize = 500;
    let keys = zipf(tasks);
    let mut last = std::collections::BTreeMap::new();
    for (number, key) in keys.iter().enumerate() {
        last.insert(*key, number);
    }
    let end: Vec<(String, String)> =
        last.into_iter().map(|(key, number)| (format!("zipf:{key}"), number.to_string())).collect();
    let mut target = Target::start(scratch).await?;
    let (mut sent, mut sent_each, mut wall) = (Samples::default(), Samples::default(), Samples::default());
    let (mut seconds, mut seconds_each, mut commands, mut differing) =
        (Samples::default(), Samples::default(), Samples::default(), 0);
    for _ in 0..rounds {
        for coalesce in [true, false] {
            let data = scratch.join("zipf");
            let sidecar = Sidecar::serving(&data, free_address()?).await?;
            let bodies = keys.chunks(BATCH).enumerate().map(|(batch, keys)| {
                let tasks = keys.iter().enumerate().map(|(place, key)| {
                    let number = batch * BATCH + place;
                    format!(
                        r#"{{"type":"simple","id":"z-{number}","command":"SET","args":["zipf:{key}","{number}"],"coalesce":{coalesce}}}"#
                    )
                });
                format!(r#"{{"tasks":[{}]}}"#, tasks.collect::<Vec<_>>().join(","))
            });
            driver::hand_in(sidecar.address, bodies).await?;
            sidecar.process.stop();

            target.redis.flush().await?;
            let begun = Instant::now();
            // As it is by default: what the rate holds back is what later writes take the place of.
            let sidecar = Sidecar::serving_with(&LIMITED, &data, target.address).await?;
            // The last tasks are made last, but for those of the hottest keys: so they are asked first.
            let latest = &end[end.len() / 2..];
            while target.redis.differing(latest).await? > 0 || target.redis.differing(&end).await? > 0 {
                anyhow::ensure!(begun.elapsed() < PATIENCE, "the backlog is not recovered");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let took = begun.elapsed().as_secs_f64();
            let calls = target.redis.calls("set").await? as f64;
            let (sent, seconds) =
                if coalesce { (&mut sent, &mut seconds) } else { (&mut sent_each, &mut seconds_each) };
            sent.push(calls);
            seconds.push(took);
            sidecar.process.stop();
            differing += target.redis.differing(&end).await?;
            std::fs::remove_dir_all(&data)?;
        }
        commands.push(sent.last() / sent_each.last());
        wall.push(seconds.last() / seconds_each.last());
    }
    let reached = commands.median() <= 0.5;
    report.goal("Zipf backlog: commands, of each sent", &commands.show(2), "at most 0.50", reached);
    report.goal("Zipf backlog: time, of each sent", &wall.show(2), "at most 0.50", wall.median() <= 0.5);
    report.note("Zipf backlog: commands", &sent.show(0));
    report.note("Zipf backlog: commands, each sent", &sent_each.show(0));
    report.note("Zipf backlog: seconds", &seconds.show(1));
    report.note("Zipf backlog: seconds, each sent", &seconds_each.show(1));
    report.gate("Zipf backlog: keys that end otherwise", &differing.to_string(), "0", differing == 0);
    Ok(())
}
