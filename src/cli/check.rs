//! `redrive check`.

use super::{
    UsageError,
    output::{print_json, print_line},
    runtime,
    settings::AllSettings,
};
use crate::{
    app,
    finding::Severity,
    log::kafka::admin::Finding as TopicFinding,
    target::{Finding, Target},
};

/// Look at the configured targets, and Kafka's topics, for what will hurt later
///
/// Takes the same flags as `serve`. Says of each target whether it can be used, what its user may not do, and what of
/// its server's settings can lose or repeat writes, and the same of the topics where `kafka.brokers` is set; each with
/// what follows from it and what ends it. Writes nothing but keys of Redrive's own, and takes no task.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: AllSettings,
}

const EXAMPLES: &str = "\
Examples:
  redrive check
  redrive check --redis-url redis://redis.example:6379
  redrive check --json | jq '.[] | select(.severity == \"error\")'

Exit status: 0 nothing found, 1 warnings, 2 errors: what cannot be used, or a wrong configuration.";

pub fn run(args: Args) -> anyhow::Result<()> {
    let config = args.settings.load()?.config;
    let targets = app::targets(&config, app::new_boot_id())
        .map_err(|error| UsageError(format!("{:#}", anyhow::Error::from(error))))?;
    let (mut rows, found) = runtime()?.block_on(async { (rows(&targets).await, app::inspect_kafka(&config).await) });
    let found = found.map_err(|error| UsageError(format!("{:#}", anyhow::Error::from(error))))?;
    rows.extend(found.into_iter().map(Row::of_topic));
    if args.json {
        print_json(&rows)?;
    } else {
        let brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.join(","));
        for line in
            lines(&targets, &rows).into_iter().chain(brokers.map(|it| topic_lines(&it, &rows)).unwrap_or_default())
        {
            print_line(&line)?;
        }
    }
    Found::of(&rows).map_or(Ok(()), |found| Err(found.into()))
}

/// The worst of what was found, where anything was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {errors} error{} and {warnings} warning{}", plural(*errors), plural(*warnings))]
pub(super) struct Found {
    errors: usize,
    warnings: usize,
}

impl Found {
    fn of(rows: &[Row]) -> Option<Self> {
        let count = |severity: Severity| rows.iter().filter(|row| row.severity == severity.as_str()).count();
        let found = Self { errors: count(Severity::Error), warnings: count(Severity::Warning) };
        (!rows.is_empty()).then_some(found)
    }

    pub(super) fn exit_status(self) -> u8 {
        if self.errors > 0 { 2 } else { 1 }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[derive(serde::Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Of Kafka; empty: the cluster itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    code: &'static str,
    severity: &'static str,
    message: String,
    remedy: String,
}

impl Row {
    fn of_topic(finding: TopicFinding) -> Self {
        Self {
            target: None,
            topic: Some(finding.topic),
            code: finding.code.as_str(),
            severity: finding.severity.as_str(),
            message: finding.message,
            remedy: finding.remedy,
        }
    }
}

async fn rows(targets: &[Target]) -> Vec<Row> {
    let mut rows = Vec::new();
    for target in targets {
        let row = |finding: Finding| Row {
            target: Some(target.name().to_owned()),
            topic: None,
            code: finding.code.as_str(),
            severity: finding.severity.as_str(),
            message: finding.message,
            remedy: finding.remedy,
        };
        rows.extend(target.inspect().await.into_iter().map(row));
    }
    rows
}

fn lines(targets: &[Target], rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for target in targets {
        let found: Vec<&Row> = rows.iter().filter(|row| row.target.as_deref() == Some(target.name())).collect();
        let what = if found.is_empty() { "nothing found" } else { "found" };
        lines.push(format!("{} ({}): {what}", target.name(), target.display_url()));
        lines.extend(found.into_iter().flat_map(|row| row_lines(row, "")));
    }
    lines
}

fn topic_lines(brokers: &str, rows: &[Row]) -> Vec<String> {
    let found: Vec<(&str, &Row)> = rows.iter().filter_map(|row| Some((row.topic.as_deref()?, row))).collect();
    let what = if found.is_empty() { "nothing found" } else { "found" };
    let lines = found.into_iter().flat_map(|(topic, row)| {
        let subject = if topic.is_empty() { String::new() } else { format!("topic {topic}: ") };
        row_lines(row, &subject)
    });
    [format!("kafka ({brokers}): {what}")].into_iter().chain(lines).collect()
}

fn row_lines(row: &Row, subject: &str) -> [String; 2] {
    [format!("  {}: {subject}{} [{}]", row.severity, row.message, row.code), format!("    {}", row.remedy)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::Cli,
        target::{Config, testing::RedisServer},
    };

    fn target(name: &str, url: &str) -> Target {
        Target::try_new(name, Config::new(url)).expect("the URL is fine")
    }

    #[tokio::test]
    async fn each_target_is_told_with_what_was_found_and_its_remedy() {
        let sound = RedisServer::start(&["--appendonly", "yes"]);
        let forgetful = RedisServer::start(&[]);
        let targets = [target("default", &sound.url()), target("other", &forgetful.url())];
        let rows = rows(&targets).await;
        let lines = lines(&targets, &rows);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], format!("default ({}): nothing found", sound.url()));
        assert_eq!(lines[1], format!("other ({}): found", forgetful.url()));
        assert!(lines[2].starts_with("  warning: ") && lines[2].ends_with(" [not-persistent]"), "{}", lines[2]);
        assert!(lines[3].contains("appendonly yes"));
        let json = serde_json::to_value(&rows).expect("it is JSON");
        assert_eq!((&json[0]["target"], &json[0]["code"]), (&"other".into(), &"not-persistent".into()));
    }

    #[tokio::test]
    async fn exit_status_is_that_of_the_worst() {
        let sound = RedisServer::start(&["--appendonly", "yes"]);
        let forgetful = RedisServer::start(&[]);
        let (sound, forgetful) = (target("a", &sound.url()), target("b", &forgetful.url()));
        let gone = target("c", &format!("redis://127.0.0.1:{}", crate::target::testing::free_port()));
        let check = async |targets: &[Target]| Found::of(&rows(targets).await);
        let status = |found: Option<Found>| Cli::exit_status(found.map_or(Ok(()), |found| Err(found.into())));
        assert_eq!(status(check(&[sound]).await), 0);
        let warned = check(std::slice::from_ref(&forgetful)).await;
        assert_eq!(warned.expect("it warns").to_string(), "found 0 errors and 1 warning");
        assert_eq!(status(warned), 1);
        assert_eq!(status(check(&[forgetful, gone]).await), 2);
    }
}
