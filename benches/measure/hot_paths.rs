//! Instructions and allocations of what is done once for each task, counted by valgrind: noise does not reach them. The
//! program runs itself under valgrind twice, with more and with fewer repetitions, so that its start does not count.

use std::{
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use redrive::{
    queue::Envelope,
    retry::{self, Origin},
    task::{self, Rules, Task, TaskId},
    telemetry::metrics::Metrics,
};

use super::{
    driver::{self, Work},
    private::{
        consumer::{
            coalesce::Stake,
            schedule::{Keys, Schedule},
        },
        frame::{Kind, Pair, SegmentHeader},
    },
    report::Report,
};

/// Each with the most instructions that it may take: a tenth above what it took when it was last looked at. Who makes
/// one slower on purpose raises it, and says why.
const PATHS: [(&str, &str, f64); 7] = [
    ("parse", "parse and validate a task of 300 bytes", 7_450.0),
    ("encode", "make its record", 1_100.0),
    ("frame", "write its frame into the journal's buffer", 915.0),
    ("decode", "read its record", 1_770.0),
    ("schedule", "insert, pop and finish its unit", 550.0),
    ("classify", "judge an error of Redis", 7_400.0),
    ("metrics", "count a task in all metrics", 235.0),
];

/// Units that wait in the schedule beside the one that is counted.
const WAITING: u64 = 1000;

const FEW: u64 = 1000;
const MANY: u64 = 5000;

pub fn measure(counts: &mut Report, report: &mut Report) -> anyhow::Result<()> {
    for (path, what, ceiling) in PATHS {
        let instructions = per_run(path, "callgrind", &["--callgrind-out-file=/dev/null"], "Collected : ")?;
        let allocations = per_run(path, "memcheck", &["--leak-check=no"], "total heap usage: ")?;
        let (shown, goal) = (format!("{instructions:.0}"), format!("at most {ceiling:.0}"));
        counts.gate(&format!("{what}, instructions"), &shown, &goal, instructions <= ceiling);
        let shown = format!("{allocations:.1}");
        if path == "metrics" {
            counts.gate(&format!("{what}, allocations"), &shown, "0", allocations < 0.01);
        } else {
            counts.note(&format!("{what}, allocations"), &shown);
        }
    }
    const RUNS: u64 = 1_000_000;
    let took = run("metrics", RUNS)?.as_secs_f64() * 1e9 / RUNS as f64;
    report.gate("count a task in all metrics, ns", &format!("{took:.0}"), "under 200", took < 200.0);
    Ok(())
}

/// What one run more costs, by a line that valgrind prints.
fn per_run(path: &str, tool: &str, options: &[&str], line: &str) -> anyhow::Result<f64> {
    let counted = |runs: u64| -> anyhow::Result<f64> {
        let output = Command::new("valgrind")
            .arg(format!("--tool={tool}"))
            .args(options)
            .arg(std::env::current_exe()?)
            .args(["hot-path", path, &runs.to_string()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let count = text.lines().find_map(|said| said.split_once(line)?.1.split_whitespace().next());
        let count = count.ok_or_else(|| anyhow::anyhow!("valgrind did not count: {text}"))?;
        Ok(count.replace(',', "").parse()?)
    };
    Ok((counted(MANY)? - counted(FEW)?) / (MANY - FEW) as f64)
}

/// Goes a path so many times.
pub fn run(path: &str, runs: u64) -> anyhow::Result<Duration> {
    let body = Bytes::from(driver::body(Work::Set, 1));
    let rules = Rules::new(task::Config::default(), ["default".to_owned()]);
    let now = Timestamp::now();
    let task = Task::parse(&body, &rules, now).map_err(|refusal| anyhow::anyhow!(refusal.detail))?;
    let id = TaskId::new();
    let identity = task.identity(&id);
    let envelope = Envelope {
        id,
        accepted_at: now,
        identity,
        traceparent: None,
        late: None,
        max_retries: None,
        value: body.clone(),
    };
    let record = envelope.encode();
    let pair = Pair { first: record.headers.as_bytes().clone(), second: record.value.clone() };
    let seed = SegmentHeader { log_id: [0; 16], nonce: [7; 16], ordinal: 1, first_seq: 0 }.seed();
    let mut buffer = Vec::new();
    let mut schedule = Schedule::default();
    let mut units = 0;
    let stake = Stake { gives_way: true, overwrites: true, always: true, ..Stake::NONE };
    for _ in 0..WAITING {
        units += 1;
        schedule.insert(Keys::new([units]), stake, &[], units);
    }
    let metrics = Metrics::new(&[]);
    let target = metrics.target("default");
    let context = retry::Context { origin: Origin::Command, arguments: &[] };
    let mut once = || match path {
        "parse" => drop(black_box(Task::parse(black_box(&body), &rules, now))),
        "encode" => drop(black_box(black_box(&envelope).encode())),
        "frame" => {
            buffer.clear();
            black_box(&pair).encode(&mut buffer, seed, Kind::Record, 1);
            black_box(&buffer);
        }
        "schedule" => {
            units += 1;
            schedule.insert(Keys::new(black_box([units])), black_box(stake), &[], units);
            let (unit, _) = black_box(schedule.pop_ready()).expect("units wait");
            schedule.finish(unit);
        }
        "decode" => drop(black_box(Envelope::decode(black_box(&record)))),
        "classify" => {
            let message = "Operation against a key holding the wrong kind of value";
            drop(black_box(retry::classify(black_box("WRONGTYPE"), message, context)));
        }
        _ => {
            metrics.count_appends(1, true);
            metrics.count_accepted(1, 0);
            metrics.accept_seconds.observe(black_box(0.0004));
            target.attempts[0].inc();
            target.settled[0].inc();
            target.settle_seconds.observe(black_box(0.01));
        }
    };
    let start = Instant::now();
    (0..runs).for_each(|_| once());
    Ok(start.elapsed())
}
