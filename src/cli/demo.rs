//! `redrive demo`: an outage that a person can watch, and a check of what was promised.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    http::{Endpoint, request},
    progress::Progress,
    runtime,
};

mod broker;
mod overtaken;
mod pages;
mod processes;
mod shared;
mod workload;

use overtaken::Overtaken;
use processes::{Redis, Sidecar};
use workload::{Comparison, Workload};

/// Watch an outage, and see that nothing is lost, made twice or made too late
///
/// Starts a real Redis and a real sidecar on free ports in a temporary directory, kills both with -9 while 20,000
/// tasks are accepted and again while these are made, and then compares every list, counter and time to live with what
/// was accepted. Takes less than 40 seconds and leaves nothing behind. Needs `redis-server` on the PATH.
///
/// With `--kafka` two sidecars share the work over a real Kafka, which is killed in the middle too. Needs Java 17.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  redrive demo
  redrive demo --tasks 100000
  redrive demo --kafka \"$(scripts/kafka-jars)\"

Exit status: 0 all promises were kept, 1 one was not, or the demonstration could not be given.")]
pub struct Args {
    /// Tasks that are handed in while Redis is down
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    tasks: u64,

    /// Tell it with Kafka, from the jars in this directory: the one that scripts/kafka-jars prints
    #[arg(long, value_name = "DIR")]
    kafka: Option<PathBuf>,
}

const KEYS: usize = 500;
const BATCH: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

pub fn run(args: &Args) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("redrive-demo-").tempdir()?;
    runtime()?.block_on(async {
        tokio::select! {
            told = tell(args, dir.path()) => told,
            _ = tokio::signal::ctrl_c() => bail!("stopped; nothing is left running or behind"),
        }
    })
}

async fn tell(args: &Args, dir: &Path) -> anyhow::Result<()> {
    match &args.kafka {
        Some(jars) => shared::tell_story(args.tasks, dir, jars).await,
        None => tell_story(args.tasks, dir).await,
    }
}

/// What is told to a person.
struct Stage {
    step: u32,
}

impl Stage {
    fn new() -> Self {
        Self { step: 0 }
    }

    fn step(&mut self, what: &str) {
        self.step += 1;
        self.say(&format!("\n{}. {what}", self.step));
    }

    fn say(&self, line: &str) {
        // A reader that has gone away ends the demonstration at its next step, not here.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }
}

/// Between two lines of how far something has come, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

fn show(progress: &mut Progress, what: &str, done: u64, total: u64) {
    progress.show(|pace| {
        let rate = grouped(pace.rate(done) as u64);
        format!("   {} of {} {what}, {rate}/s, {}", grouped(done), grouped(total), pace.left(done, total))
    });
}

async fn tell_story(tasks: u64, dir: &Path) -> anyhow::Result<()> {
    let mut stage = Stage::new();
    let begun = Instant::now();
    let mut redis = Redis::start(dir)?;
    let mut sidecar = Sidecar::start(&dir.join("sidecar"), &redis, Vec::new())?;
    stage.say(&format!(
        "A Redis on port {} (every write synced) and a sidecar on port {} are running.",
        redis.port, sidecar.port
    ));

    let mut workload = Workload::new(KEYS);
    stage.step("All is well: 1,000 tasks are handed in and made at once.");
    hand_in(&[&sidecar], &mut workload, 1000).await?;
    drain(&stage, &sidecar, workload.accepted()).await?;
    overtaken::fill_cache(&redis)?;

    stage.step("Redis is killed with -9.");
    redis.kill9();
    stage.step(&format!(
        "{} tasks of all three types, on {KEYS} lists, counters and sessions, are handed in all the same.",
        grouped(tasks)
    ));
    for batch in pages::tasks().chunks(BATCH) {
        hand_in_batch(&sidecar, batch).await?;
    }
    let handed_in = Instant::now();
    hand_in(&[&sidecar], &mut workload, tasks / 2).await?;
    hand_in_poison(&sidecar).await?;
    hand_in(&[&sidecar], &mut workload, tasks - tasks / 2).await?;
    stage.say(&format!(
        "   All of them were answered 202 with durability \"local\", {} a second. One of them is poisoned.",
        grouped((tasks as f64 / handed_in.elapsed().as_secs_f64()) as u64)
    ));
    stage.say(&format!(
        "   So were {} writes of {} pages of a cache, before them.",
        grouped(pages::WRITES),
        pages::PAGES
    ));
    let held = get(&sidecar, &format!("/tasks/demo-{}", workload.accepted() - 1)).await?;
    stage.say(&format!("   What the last one waits for: {}", held["held_by"].as_str().unwrap_or("its turn")));

    stage.step("The sidecar is killed with -9, and started again.");
    sidecar.kill9();
    restart(&stage, &mut sidecar)?;

    stage.step("Redis returns. While the backlog drains the sidecar is killed with -9, and then Redis.");
    until_held(&sidecar).await?;
    let draining = Instant::now();
    let released = watch_breaker(&sidecar, async {
        redis.restart()?;
        until_made(&redis, &workload, 1, 2).await
    })
    .await?;
    stage.say(&format!("   What is sent to it, as it was seen: {released}."));
    let superseded = settled(&sidecar, "superseded").await?;
    stage.say(&format!(
        "   Of the {} writes of the pages {} were sent: a later one takes the place of those that still wait.",
        grouped(pages::WRITES),
        grouped(pages::WRITES.saturating_sub(superseded))
    ));
    let mut spent = retries_counted(&sidecar).await?;
    sidecar.kill9();
    say_progress(&stage, &redis, &workload, "The sidecar was killed")?;
    restart(&stage, &mut sidecar)?;
    until_made(&redis, &workload, 3, 4).await?;
    redis.kill9();

    stage
        .step("Three more writes are queued, which the service has tried a minute ago. The sidecar is killed with -9.");
    for overtaken in &overtaken::ALL {
        hand_in_one(&sidecar, &overtaken.task(Timestamp::now())).await?;
    }
    spent += retries_counted(&sidecar).await?;
    sidecar.kill9();
    redis.restart()?;
    say_progress(&stage, &redis, &workload, "Redis was killed")?;
    overtaken::write_newer(&redis)?;
    stage.say("   Redis is back, and the service makes a newer one of the three writes itself.");

    stage.step("The sidecar is started again, and the backlog drains.");
    restart(&stage, &mut sidecar)?;
    let all = workload.accepted() + 1 + overtaken::ALL.len() as u64 + pages::WRITES;
    drain(&stage, &sidecar, all).await?;
    ensure!(pages::are_newest(&redis)?, "a promise was not kept: a page of the cache is not the newest");
    let rate = (tasks as f64 / draining.elapsed().as_secs_f64()) as u64;
    spent += retries_counted(&sidecar).await?;

    stage.step("What is not true any more was not made.");
    let mut kept = Vec::new();
    for overtaken in &overtaken::ALL {
        let found = get(&sidecar, &format!("/tasks/{}", overtaken.id)).await?;
        let outcome = text(&found["outcome"]);
        stage.say(&format!("   {}: {outcome} ({})", overtaken.id, overtaken.because));
        kept.push((overtaken, outcome == overtaken.outcome && overtaken.is_right(&redis)?));
    }

    finish(&mut stage, &redis, &sidecar, &workload, &kept, spent, rate, begun).await
}

/// Shows the dead letters, compares every key, and says whether all promises were kept.
#[expect(clippy::too_many_arguments, reason = "all that was gathered on the way")]
async fn finish(
    stage: &mut Stage,
    redis: &Redis,
    sidecar: &Sidecar,
    workload: &Workload,
    kept: &[(&Overtaken, bool)],
    spent: u64,
    rate: u64,
    begun: Instant,
) -> anyhow::Result<()> {
    stage.step("The poisoned task is in the dead letters, with the reason.");
    let dead = ops_get(sidecar, "/admin/v1/dead-letters").await?;
    let letters = dead["items"].as_array().context("the dead letters are a list")?;
    for letter in letters {
        stage.say(&format!(
            "   {}: {} ({}), attempts {}",
            text(&letter["id"]),
            text(&letter["message"]),
            text(&letter["reason"]),
            letter["attempts"]
        ));
    }

    stage.step("Every key is compared with what was accepted.");
    let found = workload.compare(|question| redis.ask(question))?;
    let right = report(stage, workload, &found, kept, letters.len(), spent, rate);
    stage.say(&format!("\nThat took {:.0} seconds. Nothing is left running or behind.", begun.elapsed().as_secs_f64()));
    ensure!(right, "a promise was not kept: see the table");
    Ok(())
}

fn restart(stage: &Stage, sidecar: &mut Sidecar) -> anyhow::Result<()> {
    let restarted = Instant::now();
    sidecar.restart()?;
    stage.say(&format!("   The sidecar answers again after {} ms.", restarted.elapsed().as_millis()));
    Ok(())
}

/// Waits until that part of what was accepted for the first list is made.
async fn until_made(redis: &Redis, workload: &Workload, part: u64, of: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let (accepted, made) = workload.sample(|question| redis.ask(question))?;
        if made * of >= accepted * part {
            return Ok(());
        }
        ensure!(begun.elapsed() < DRAIN_TIMEOUT, "the backlog does not drain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What the breaker lets through from now until `done`, one after the other.
async fn watch_breaker(sidecar: &Sidecar, done: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<String> {
    let mut seen: Vec<String> = vec![look_at_breaker(sidecar).await?];
    let mut done = std::pin::pin!(done);
    let mut is_done = false;
    while !is_done {
        tokio::select! {
            ended = &mut done => {
                ended?;
                is_done = true;
            }
            () = tokio::time::sleep(Duration::from_millis(2)) => {}
        }
        let now = look_at_breaker(sidecar).await?;
        if !seen.contains(&now) {
            seen.push(now);
        }
    }
    Ok(seen.join(", then "))
}

/// Waits until the sidecar knows that Redis is away.
async fn until_held(sidecar: &Sidecar) -> anyhow::Result<()> {
    let begun = Instant::now();
    while look_at_breaker(sidecar).await? != PROBES_ONLY {
        ensure!(begun.elapsed() < TIMEOUT, "the sidecar does not notice that Redis is away");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

const PROBES_ONLY: &str = "probes only";

async fn look_at_breaker(sidecar: &Sidecar) -> anyhow::Result<String> {
    Ok(shown_breaker(&ops_get(sidecar, "/admin/v1/breakers").await?["items"][0]))
}

fn shown_breaker(breaker: &Value) -> String {
    match text(&breaker["state"]) {
        "open" => PROBES_ONLY.to_owned(),
        "half_open" => "one small batch".to_owned(),
        "ramp" if breaker["limit_batches"] == 1 => "1 batch at a time".to_owned(),
        "ramp" => format!("{} batches at a time", breaker["limit_batches"]),
        _ => format!("up to {} tasks a second", grouped(breaker["rate_limit"].as_f64().unwrap_or(0.0) as u64)),
    }
}

/// How far the drain has come, while nobody works on it.
fn say_progress(stage: &Stage, redis: &Redis, workload: &Workload, what: &str) -> anyhow::Result<()> {
    let (accepted, made) = workload.progress(|question| redis.ask(question))?;
    let (made, accepted) = (grouped(made), grouped(accepted));
    stage.say(&format!("   {what} when {made} of {accepted} appends and increments were made."));
    Ok(())
}

/// Hands in `count` good tasks, to these in turn.
async fn hand_in(sidecars: &[&Sidecar], workload: &mut Workload, count: u64) -> anyhow::Result<()> {
    let mut progress = Progress::new(LINE_INTERVAL);
    let mut left = count;
    let mut turns = sidecars.iter().cycle();
    while let Some(sidecar) = turns.next().filter(|_| left > 0) {
        let size = left.min(BATCH as u64);
        hand_in_batch(sidecar, &workload.batch(size as usize)).await?;
        left -= size;
        show(&mut progress, "accepted", count - left, count);
    }
    Ok(())
}

async fn hand_in_batch(sidecar: &Sidecar, batch: &[Value]) -> anyhow::Result<()> {
    let answer = post(sidecar, "/tasks/batch", serde_json::to_vec(&json!({ "tasks": batch }))?).await?;
    ensure!(answer.0 == StatusCode::ACCEPTED, "a batch was answered {}: {}", answer.0, answer.1);
    Ok(())
}

/// Hands in a task that no Redis can make: the key is a list, not a number.
async fn hand_in_poison(sidecar: &Sidecar) -> anyhow::Result<()> {
    let task = json!({"id": "demo-poison", "type": "simple", "command": "INCR", "args": [workload::list(0)]});
    hand_in_one(sidecar, &task).await
}

async fn hand_in_one(sidecar: &Sidecar, task: &Value) -> anyhow::Result<()> {
    let answer = post(sidecar, "/tasks", serde_json::to_vec(task)?).await?;
    ensure!(answer.0 == StatusCode::ACCEPTED, "the task {} was answered {}: {}", task["id"], answer.0, answer.1);
    Ok(())
}

/// Waits until nothing is unfinished.
async fn drain(stage: &Stage, sidecar: &Sidecar, total: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut progress = Progress::new(LINE_INTERVAL);
    loop {
        let unfinished = lag(sidecar).await?;
        show(&mut progress, "made", total.saturating_sub(unfinished), total);
        if unfinished == 0 {
            break;
        }
        ensure!(begun.elapsed() < DRAIN_TIMEOUT, "{unfinished} tasks are still not made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(progress);
    stage.say(&format!("   {} made in {:.1} s.", grouped(total), begun.elapsed().as_secs_f64()));
    Ok(())
}

/// What a row of the table must be.
#[derive(Clone, Copy)]
enum Promise {
    None,
    Exactly(u64),
    Below(u64),
}

/// Prints the table; whether all is as promised.
fn report(
    stage: &Stage,
    workload: &Workload,
    found: &Comparison,
    overtaken: &[(&Overtaken, bool)],
    dead: usize,
    spent: u64,
    rate: u64,
) -> bool {
    let accepted = workload.accepted();
    let mut rows = vec![
        ("accepted", accepted + 1 + overtaken.len() as u64, Promise::None),
        ("applied", found.applied, Promise::Exactly(accepted)),
        ("dead", dead as u64, Promise::Exactly(1)),
    ];
    for (overtaken, right) in overtaken {
        rows.push((overtaken.outcome, u64::from(*right), Promise::Exactly(1)));
    }
    rows.extend([
        ("lost", found.lost, Promise::Exactly(0)),
        ("made twice", found.twice, Promise::Exactly(0)),
        ("out of order", found.out_of_order, Promise::Exactly(0)),
        ("counters that are not exact", found.wrong_counters, Promise::Exactly(0)),
        ("sessions with another TTL", found.wrong_ttls, Promise::Exactly(0)),
        ("largest error of a TTL, ms", found.ttl_error_ms, Promise::Below(1000)),
        ("attempts spent on the outages", spent, Promise::Exactly(0)),
        ("drained per second, with kills", rate, Promise::None),
    ]);
    let mut right = true;
    for (name, value, promise) in rows {
        let (kept, promised) = match promise {
            Promise::None => (true, String::new()),
            Promise::Exactly(promised) => (value == promised, grouped(promised)),
            Promise::Below(limit) => (value < limit, format!("below {}", grouped(limit))),
        };
        right &= kept;
        let verdict = match (promised.is_empty(), kept) {
            (true, _) => String::new(),
            (false, true) => "as promised".to_owned(),
            (false, false) => format!("WRONG: {promised} was promised"),
        };
        stage.say(format!("   {name:<32}{:>10}   {verdict}", grouped(value)).trim_end());
    }
    right
}

async fn lag(sidecar: &Sidecar) -> anyhow::Result<u64> {
    metric(sidecar, |name| name == "kafka_consumer_lag").await
}

/// Retries that were scheduled: the good tasks need none, and the poisoned one is dead at once.
async fn retries_counted(sidecar: &Sidecar) -> anyhow::Result<u64> {
    metric(sidecar, |name| name == "redis_retry_count").await
}

/// How many tasks this process has settled like that.
async fn settled(sidecar: &Sidecar, outcome: &str) -> anyhow::Result<u64> {
    let series = format!(r#"redrive_tasks_settled_total{{outcome="{outcome}",target="default"}}"#);
    metric(sidecar, |name| name == series).await
}

async fn metric(sidecar: &Sidecar, wanted: impl Fn(&str) -> bool) -> anyhow::Result<u64> {
    let endpoint = Endpoint::Tcp(format!("127.0.0.1:{}", sidecar.ops_port));
    let answer = request(&endpoint, Method::GET, "/metrics", &[], Bytes::new(), TIMEOUT).await?;
    let text = std::str::from_utf8(&answer.body)?;
    let line = text.lines().find(|line| line.split(' ').next().is_some_and(&wanted)).context("a metric is missing")?;
    let value: f64 = line.rsplit(' ').next().context("a metric has a value")?.parse()?;
    Ok(value as u64)
}

async fn post(sidecar: &Sidecar, path: &str, body: Vec<u8>) -> anyhow::Result<(StatusCode, String)> {
    let endpoint = Endpoint::Tcp(format!("127.0.0.1:{}", sidecar.port));
    let json = (header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    let answer = request(&endpoint, Method::POST, path, &[json], body.into(), TIMEOUT).await?;
    Ok((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
}

async fn get(sidecar: &Sidecar, path: &str) -> anyhow::Result<Value> {
    get_from(sidecar.port, path).await
}

async fn ops_get(sidecar: &Sidecar, path: &str) -> anyhow::Result<Value> {
    get_from(sidecar.ops_port, path).await
}

async fn get_from(port: u16, path: &str) -> anyhow::Result<Value> {
    let endpoint = Endpoint::Tcp(format!("127.0.0.1:{port}"));
    let answer = request(&endpoint, Method::GET, path, &[], Bytes::new(), TIMEOUT).await?;
    ensure!(answer.status == StatusCode::OK, "GET {path} was answered {}", answer.status);
    Ok(serde_json::from_slice(&answer.body)?)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// 20000 as 20,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!([7, 999, 1000, 20_000, 1_234_567].map(grouped), ["7", "999", "1,000", "20,000", "1,234,567"]);
    }
}
