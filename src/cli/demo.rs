//! `redrive demo`: an outage that a person can watch, and a check of what was promised.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode, header};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    http::{Endpoint, request},
    runtime,
};

mod processes;
mod workload;

use processes::{Redis, Reply, Sidecar};
use workload::{Comparison, Workload};

/// Watch an outage, and see that nothing is lost
///
/// Starts a real Redis and a real sidecar on free ports in a temporary directory, kills both with -9 while 20,000
/// tasks are accepted, lets the backlog drain, and then compares every key with what was accepted. Takes less than
/// 40 seconds and leaves nothing behind. Needs `redis-server` on the PATH.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  redrive demo
  redrive demo --tasks 100000

Exit status: 0 all promises were kept, 1 one was not, or the demonstration could not be given.")]
pub struct Args {
    /// Tasks that are handed in while Redis is down
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    tasks: u64,
}

const KEYS: usize = 500;
const BATCH: usize = 200;
const TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(120);

pub fn run(args: &Args) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("redrive-demo-").tempdir()?;
    runtime()?.block_on(async {
        tokio::select! {
            told = tell_story(args.tasks, dir.path()) => told,
            _ = tokio::signal::ctrl_c() => bail!("stopped; nothing is left running or behind"),
        }
    })
}

/// Lines and progress for a person; plain lines where there is no terminal.
struct Stage {
    step: u32,
    terminal: bool,
}

impl Stage {
    fn step(&mut self, what: &str) {
        self.step += 1;
        self.say(&format!("\n{}. {what}", self.step));
    }

    fn say(&self, line: &str) {
        // A reader that has gone away ends the demonstration at its next step, not here.
        let _ = writeln!(io::stdout().lock(), "{line}");
    }

    fn progress(&self, total: u64, what: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let style =
            ProgressStyle::with_template(&format!("   {what} {{bar:40}} {{pos}}/{{len}}  {{per_sec}}  {{eta}} left"));
        ProgressBar::new(total).with_style(style.expect("the template is right"))
    }
}

async fn tell_story(tasks: u64, dir: &std::path::Path) -> anyhow::Result<()> {
    let mut stage = Stage { step: 0, terminal: io::stdout().is_terminal() && io::stderr().is_terminal() };
    let begun = Instant::now();
    let mut redis = Redis::start(dir)?;
    let mut sidecar = Sidecar::start(dir, &redis)?;
    stage.say(&format!(
        "A Redis on port {} (every write synced) and a sidecar on port {} are running.",
        redis.port, sidecar.port
    ));

    let mut workload = Workload::new(KEYS);
    stage.step("All is well: 1,000 tasks are handed in and made at once.");
    hand_in(&stage, &sidecar, &mut workload, 1000).await?;
    drain(&stage, &sidecar, workload.accepted()).await?;

    stage.step("Redis is killed with -9.");
    redis.kill9();
    stage.step(&format!("{} tasks of all three types, on {KEYS} keys, are handed in all the same.", grouped(tasks)));
    let handed_in = Instant::now();
    hand_in(&stage, &sidecar, &mut workload, tasks / 2).await?;
    hand_in_poison(&sidecar).await?;
    hand_in(&stage, &sidecar, &mut workload, tasks - tasks / 2).await?;
    stage.say(&format!(
        "   All of them were answered 202 with durability \"local\", {} a second. One of them is poisoned.",
        grouped((tasks as f64 / handed_in.elapsed().as_secs_f64()) as u64)
    ));
    let held = get(&sidecar, &format!("/tasks/demo-{}", workload.accepted() - 1)).await?;
    stage.say(&format!("   What the last one waits for: {}", held["held_by"].as_str().unwrap_or("its turn")));

    stage.step("The sidecar is killed with -9, and started again.");
    sidecar.kill9();
    let restarted = Instant::now();
    sidecar.restart()?;
    stage.say(&format!("   It answers after {} ms.", restarted.elapsed().as_millis()));

    stage.step("Redis returns, and the backlog drains.");
    redis.restart()?;
    let drained = Instant::now();
    drain(&stage, &sidecar, tasks + 1).await?;
    let rate = (tasks as f64 / drained.elapsed().as_secs_f64()) as u64;

    stage.step("The poisoned task is in the dead letters, with the reason.");
    let dead = ops_get(&sidecar, "/admin/v1/dead-letters").await?;
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
    let found = workload.compare(|key| match redis.ask(&["LRANGE", key, "0", "-1"])? {
        Reply::List(items) => Ok(items),
        Reply::Text(_) | Reply::None => bail!("{key} is not a list"),
    })?;
    let spent = retries_counted(&sidecar).await?;
    let right = report(&stage, &workload, &found, letters.len(), spent, rate);
    stage.say(&format!("\nThat took {:.0} seconds. Nothing is left running or behind.", begun.elapsed().as_secs_f64()));
    ensure!(right, "a promise was not kept: see the table");
    Ok(())
}

/// Hands in `count` good tasks.
async fn hand_in(stage: &Stage, sidecar: &Sidecar, workload: &mut Workload, count: u64) -> anyhow::Result<()> {
    let bar = stage.progress(count, "accepted");
    let mut left = count;
    while left > 0 {
        let size = left.min(BATCH as u64);
        let batch = workload.batch(size as usize);
        left -= size;
        let body = serde_json::to_vec(&json!({ "tasks": batch }))?;
        let answer = post(sidecar, "/tasks/batch", body).await?;
        ensure!(answer.0 == StatusCode::ACCEPTED, "a batch was answered {}: {}", answer.0, answer.1);
        bar.inc(size);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Hands in a task that no Redis can make: the key is a list, not a number.
async fn hand_in_poison(sidecar: &Sidecar) -> anyhow::Result<()> {
    let task = json!({"id": "demo-poison", "type": "simple", "command": "INCR", "args": ["demo:0"]});
    let answer = post(sidecar, "/tasks", serde_json::to_vec(&task)?).await?;
    ensure!(answer.0 == StatusCode::ACCEPTED, "the poisoned task was answered {}: {}", answer.0, answer.1);
    Ok(())
}

/// Waits until nothing is unfinished.
async fn drain(stage: &Stage, sidecar: &Sidecar, total: u64) -> anyhow::Result<()> {
    let bar = stage.progress(total, "made    ");
    let begun = Instant::now();
    let mut next_line = begun + Duration::from_secs(1);
    loop {
        let unfinished = lag(sidecar).await?;
        let made = total.saturating_sub(unfinished);
        bar.set_position(made);
        if unfinished == 0 {
            break;
        }
        ensure!(begun.elapsed() < DRAIN_TIMEOUT, "{unfinished} tasks are still not made");
        if !stage.terminal && Instant::now() >= next_line {
            next_line += Duration::from_secs(1);
            let rate = made as f64 / begun.elapsed().as_secs_f64();
            let left = if rate > 0.0 { format!("{:.0} s left", unfinished as f64 / rate) } else { "waiting".into() };
            stage.say(&format!("   {made} of {total} made, {rate:.0}/s, {left}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bar.finish_and_clear();
    stage.say(&format!("   {} made in {:.1} s.", grouped(total), begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Prints the table; whether all is as promised.
fn report(stage: &Stage, workload: &Workload, found: &Comparison, dead: usize, spent: u64, rate: u64) -> bool {
    let accepted = workload.accepted() + 1;
    let rows = [
        ("accepted", accepted, None),
        ("applied", found.applied, Some(workload.accepted())),
        ("dead", dead as u64, Some(1)),
        ("lost", found.lost, Some(0)),
        ("made twice", found.twice, Some(0)),
        ("out of order", found.out_of_order, Some(0)),
        ("attempts spent on the outage", spent, Some(0)),
        ("drained per second", rate, None),
    ];
    let mut right = true;
    for (name, value, promised) in rows {
        let kept = promised.is_none_or(|promised| promised == value);
        right &= kept;
        let verdict = match (promised, kept) {
            (None, _) => String::new(),
            (Some(_), true) => "as promised".to_owned(),
            (Some(promised), false) => format!("WRONG: {} was promised", grouped(promised)),
        };
        stage.say(format!("   {name:<30}{:>10}   {verdict}", grouped(value)).trim_end());
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
