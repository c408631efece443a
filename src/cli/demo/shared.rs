//! The same story on Kafka: two sidecars share the work, and everything is killed in its middle.

use super::{broker::Kafka, *};

/// A sidecar that is gone is missed after a few seconds.
const QUICK: [&str; 7] = [
    "--kafka-replication=1",
    "--kafka-min-insync=1",
    "--kafka-session-timeout=3s",
    "--kafka-heartbeat-interval=500ms",
    "--kafka-rebalance-timeout=9s",
    "--kafka-metadata-refresh=1s",
    "--kafka-produce-timeout=2s",
];

pub(super) async fn tell_story(tasks: u64, dir: &Path, jars: &Path) -> anyhow::Result<()> {
    let mut stage = Stage::new();
    let begun = Instant::now();
    let mut redis = Redis::start(dir)?;
    let mut kafka = Kafka::start(dir, jars)?;
    let flags: Vec<String> =
        QUICK.into_iter().map(str::to_owned).chain([format!("--kafka-brokers=127.0.0.1:{}", kafka.port)]).collect();
    let mut first = Sidecar::start(&dir.join("first"), &redis, flags.clone())?;
    let mut second = Sidecar::start(&dir.join("second"), &redis, flags)?;
    stage.say(&format!(
        "A Redis on port {} (every write synced), a Kafka on port {} and sidecars on ports {} and {} are running.",
        redis.port, kafka.port, first.port, second.port
    ));
    for sidecar in [&first, &second] {
        until_kafka_takes_tasks(sidecar).await?;
    }

    let mut workload = Workload::new(KEYS);
    stage.step("All is well: 1,000 tasks are handed in, to one sidecar and the other in turn, and made by both.");
    hand_in(&[&first, &second], &mut workload, 1000).await?;
    until_all_is_made(&stage, &redis, &workload).await?;
    say_shares(&stage, &first, &second).await?;
    overtaken::fill_cache(&redis)?;

    stage.step("Redis is killed with -9.");
    redis.kill9();
    stage.step(&format!("{} tasks are handed in all the same, to both.", grouped(tasks / 2)));
    hand_in(&[&first, &second], &mut workload, tasks / 2).await?;
    stage.say("   All of them were answered 202: they are in Kafka.");

    stage.step("Kafka is killed with -9 too.");
    kafka.kill9();
    stage.step(&format!("{} more are handed in, to the first sidecar.", grouped(tasks - tasks / 2)));
    hand_in(&[&first], &mut workload, tasks / 4).await?;
    hand_in_poison(&first).await?;
    hand_in(&[&first], &mut workload, tasks - tasks / 2 - tasks / 4).await?;
    stage.say("   All of them were answered 202: they are on its disk. One of them is poisoned.");

    stage.step("The first sidecar is killed with -9, and started again without Kafka and without Redis.");
    let mut spent = retries_counted(&first).await?;
    first.kill9();
    restart(&stage, &mut first)?;

    stage
        .step("Kafka and Redis return. While the backlog drains the second sidecar is killed with -9, and then Kafka.");
    kafka.restart()?;
    redis.restart()?;
    let draining = Instant::now();
    until_made(&redis, &workload, 1, 2).await?;
    spent += retries_counted(&second).await?;
    second.kill9();
    say_progress(&stage, &redis, &workload, "The second sidecar was killed")?;
    until_made(&redis, &workload, 3, 4).await?;
    kafka.kill9();

    stage.step("Three more writes are queued, which the service has tried a minute ago. Redis is killed with -9.");
    for overtaken in &overtaken::ALL {
        hand_in_one(&first, &overtaken.task(Timestamp::now())).await?;
    }
    redis.kill9();
    redis.restart()?;
    say_progress(&stage, &redis, &workload, "Redis was killed")?;
    overtaken::write_newer(&redis)?;
    stage.say("   Redis is back, and the service makes a newer one of the three writes itself.");

    stage.step("Kafka returns, the second sidecar is started again, and the backlog drains.");
    kafka.restart()?;
    restart(&stage, &mut second)?;
    until_all_is_made(&stage, &redis, &workload).await?;
    let rate = (tasks as f64 / draining.elapsed().as_secs_f64()) as u64;

    stage.step("What is not true any more was not made.");
    let mut kept = Vec::new();
    for overtaken in &overtaken::ALL {
        let settled = until_settled(&[&first, &second], overtaken.outcome).await?;
        let outcome = if settled == 1 { overtaken.outcome } else { "settled in another way" };
        stage.say(&format!("   {}: {outcome} ({})", overtaken.id, overtaken.because));
        kept.push((overtaken, settled == 1 && overtaken.is_right(&redis)?));
    }

    stage
        .step("The second sidecar is asked to stop: its partitions go to the first, and with them what is left to do.");
    for sidecar in [&first, &second] {
        spent += retries_counted(sidecar).await?;
    }
    second.stop()?;
    drain(&stage, &first, workload.accepted() + 1 + overtaken::ALL.len() as u64).await?;

    finish(&mut stage, &redis, &first, &workload, &kept, spent, rate, begun).await
}

/// The topics are there, and known.
async fn until_kafka_takes_tasks(sidecar: &Sidecar) -> anyhow::Result<()> {
    let begun = Instant::now();
    let probe = serde_json::to_vec(&json!({"type": "simple", "command": "SET", "args": ["demo:probe", "1"]}))?;
    loop {
        let (status, body) = post(sidecar, "/tasks", probe.clone()).await?;
        ensure!(status == StatusCode::ACCEPTED, "a task was answered {status}: {body}");
        if serde_json::from_str::<Value>(&body)?["durability"] == "kafka" {
            return Ok(());
        }
        ensure!(begun.elapsed() < DRAIN_TIMEOUT, "Kafka takes no tasks");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until Redis holds every append and increment that was accepted.
async fn until_all_is_made(stage: &Stage, redis: &Redis, workload: &Workload) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut progress = Progress::new(LINE_INTERVAL);
    loop {
        let (accepted, made) = workload.progress(|question| redis.ask(question))?;
        show(&mut progress, "made", made, accepted);
        if made >= accepted {
            drop(progress);
            stage.say(&format!("   {} made in {:.1} s.", grouped(made), begun.elapsed().as_secs_f64()));
            return Ok(());
        }
        ensure!(begun.elapsed() < DRAIN_TIMEOUT, "{} appends and increments are still not made", accepted - made);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many tasks each of them has made.
async fn say_shares(stage: &Stage, first: &Sidecar, second: &Sidecar) -> anyhow::Result<()> {
    let (first, second) = (settled(first, "applied").await?, settled(second, "applied").await?);
    stage.say(&format!("   The first has made {}, the second {}.", grouped(first), grouped(second)));
    Ok(())
}

/// How many tasks were settled like that, as soon as there is one, or when it is clear that there is none. Which sidecar
/// settles a task is not known before.
async fn until_settled(sidecars: &[&Sidecar], outcome: &str) -> anyhow::Result<u64> {
    let begun = Instant::now();
    loop {
        let mut found = 0;
        for sidecar in sidecars {
            found += settled(sidecar, outcome).await?;
        }
        if found > 0 || begun.elapsed() > TIMEOUT {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
