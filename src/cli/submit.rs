//! `redrive submit`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    UsageError,
    http::Endpoint,
    output::print_line,
    runtime,
    settings::{ConfigFile, duration},
};

mod progress;
mod sender;
mod task;

use progress::Progress;
use sender::Sender;
use task::{Line, Task, batches};

/// Hand in one task, or a file of them
///
/// The task is made from --command or --lua, read as JSON from standard input, or taken from the lines of a file.
/// A task without an id gets one, so that repeating what had no answer is safe: submit goes on for as long as --wait
/// says while nothing answers or the answer is "later".
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("operation").args(["command", "lua", "file"]))]
pub struct Args {
    /// The Redis command; its arguments follow, or stand in it, split at spaces
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Arguments of --command; after `--` if one begins with a dash
    #[arg(value_name = "ARG", requires = "command", allow_negative_numbers = true)]
    args: Vec<String>,
    /// A Lua script's file
    #[arg(long, value_name = "FILE")]
    lua: Option<PathBuf>,
    /// A key of --lua; may be repeated
    #[arg(long = "key", value_name = "KEY", requires = "lua", conflicts_with = "command")]
    keys: Vec<String>,
    /// An argument of --lua; may be repeated
    #[arg(long = "arg", value_name = "ARG", requires = "lua", conflicts_with = "command", allow_hyphen_values = true)]
    lua_args: Vec<String>,
    /// A --arg that is a time to live, by its index from 0, and its unit, `s` or `ms`; may be repeated
    #[arg(long = "ttl-arg", value_name = "INDEX=UNIT", requires = "lua", conflicts_with = "command", value_parser = TtlArg::parse)]
    ttl_args: Vec<TtlArg>,
    /// A --key that --lua writes, if it does not write all; may be repeated
    #[arg(long = "written-key", value_name = "KEY", requires = "lua", conflicts_with = "command")]
    written_keys: Vec<String>,
    /// JSON Lines: one task per line, as `POST /tasks` takes it; `-` is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// First line of --file to hand in
    #[arg(long, value_name = "LINE", requires = "file", default_value_t = 1)]
    from_line: usize,
    #[command(flatten)]
    context: Context,
    /// Where to hand in, in place of the configured `listen`
    #[arg(long, value_name = "http://HOST:PORT|unix:/PATH")]
    url: Option<Endpoint>,
    /// How long to try again while nothing answers or the answer is "later"
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    wait: Duration,
    #[command(flatten)]
    config: ConfigFile,
}

/// What a task made from flags has beside its operation.
#[derive(Debug, clap::Args)]
struct Context {
    /// The task's id: the same id is the same task
    #[arg(long, conflicts_with = "file")]
    id: Option<String>,
    /// The name of a configured target
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    target: Option<String>,
    /// `high`, `normal` or `low`
    #[arg(long, conflicts_with = "file")]
    priority: Option<String>,
    /// Executions after the first one before the task becomes a dead letter
    #[arg(long, value_name = "NUMBER", conflicts_with = "file")]
    max_retries: Option<u32>,
    /// When it was meant; times to live are counted from it
    #[arg(long, value_name = "RFC 3339 TIME", conflicts_with = "file")]
    occurred_at: Option<String>,
    /// After it the task is not made any more
    #[arg(long, value_name = "RFC 3339 TIME", conflicts_with = "file")]
    deadline: Option<String>,
    /// What to do once the task is older than --late-after: `replay`, `invalidate` or `drop`
    #[arg(long, value_name = "ACTION", requires = "late_after", conflicts_with = "file")]
    late: Option<String>,
    /// How old it may be before --late is done
    #[arg(long, value_name = "DURATION", requires = "late", conflicts_with = "file", value_parser = duration)]
    late_after: Option<Duration>,
    /// Make it only if this is above the version made last for its key
    #[arg(long, value_name = "NUMBER", conflicts_with = "file")]
    version: Option<String>,
}

/// An argument of a script that is a time to live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct TtlArg {
    index: usize,
    unit: String,
}

impl TtlArg {
    fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(index, unit)| Some((index.parse().ok()?, unit)));
        let Some((index, unit @ ("s" | "ms"))) = parsed else {
            return Err("expected the argument's index and its unit, such as `1=s` or `0=ms`".into());
        };
        Ok(Self { index, unit: unit.into() })
    }
}

impl Context {
    fn apply(&self, task: &mut Task) {
        let texts = [
            ("id", &self.id),
            ("target", &self.target),
            ("priority", &self.priority),
            ("occurred_at", &self.occurred_at),
            ("deadline", &self.deadline),
            ("version", &self.version),
        ];
        for (name, value) in texts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            task.set(name, value);
        }
        if let Some(max_retries) = self.max_retries {
            task.set("max_retries", &max_retries);
        }
        if let (Some(action), Some(after)) = (&self.late, self.late_after) {
            let after_ms = u64::try_from(after.as_millis()).expect("it was read as milliseconds");
            task.set("late", &serde_json::json!({ "after_ms": after_ms, "do": action }));
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  redrive submit --command SET greeting hello EX 60
  redrive submit --command 'INCRBY visits 1' --id visit-4711 --priority high
  redrive submit --command SET cache:42 Ada --late invalidate --late-after 30s
  redrive submit --lua transfer.lua --key from --key to --arg 100
  echo '{\"type\": \"simple\", \"command\": \"DEL\", \"args\": [\"k\"]}' | redrive submit
  redrive submit --file tasks.jsonl

Exit status: 0 everything was accepted, 1 something was refused or could not be handed in, 2 wrong usage.";

pub fn run(mut args: Args) -> anyhow::Result<()> {
    let endpoint = match args.url.take() {
        Some(url) => url,
        None => (&std::mem::take(&mut args.config).load()?.config.listen).into(),
    };
    let sender = Sender::new(endpoint, args.wait);
    match &args.file {
        Some(path) => submit_file(&sender, path, args.from_line),
        None => submit_one(&sender, args.task()?),
    }
}

impl Args {
    /// The one task that is asked for.
    fn task(&self) -> anyhow::Result<Task> {
        let mut task = match (&self.command, &self.lua) {
            (Some(command), _) => Task::of_command(command, &self.args)?,
            (None, Some(path)) => {
                let mut task = Task::of_script(&read(path)?, &self.keys, &self.lua_args);
                task.set("ttl_args", &self.ttl_args);
                task.set("written_keys", &self.written_keys);
                task
            }
            (None, None) => read_task()?,
        };
        self.context.apply(&mut task);
        Ok(task)
    }
}

fn read_task() -> anyhow::Result<Task> {
    if io::stdin().is_terminal() {
        return Err(UsageError("give --command, --lua or --file, or a task as JSON on standard input".into()).into());
    }
    let text = io::read_to_string(io::stdin().lock())?;
    Ok(Task::of_json(&text).map_err(|reason| UsageError(format!("standard input is not a task: {reason}")))?)
}

fn read(path: &Path) -> Result<String, UsageError> {
    std::fs::read_to_string(path).map_err(|error| UsageError(format!("{}: {error}", path.display())))
}

fn submit_one(sender: &Sender, task: Task) -> anyhow::Result<()> {
    let line = Line::new(1, task);
    let id = line.id.clone();
    let refused = runtime()?.block_on(sender.deliver(vec![line]))?;
    match refused.first() {
        None => Ok(print_line(&id)?),
        Some(refused) => anyhow::bail!("the task was refused: {}", refused.reason),
    }
}

fn submit_file(sender: &Sender, path: &Path, from_line: usize) -> anyhow::Result<()> {
    let (input, bytes) = open(path)?;
    let runtime = runtime()?;
    let mut progress = Progress::new(bytes);
    for batch in batches(input, from_line) {
        let batch = batch?;
        let lines = batch.lines.len();
        let delivered = runtime.block_on(sender.deliver(batch.lines));
        let refused_there = delivered.with_context(|| {
            format!(
                "{} were accepted before line {}; whether that one and those after it were is unknown",
                progress.accepted(),
                batch.first_line,
            )
        })?;
        let accepted = lines - refused_there.len();
        progress.advance(batch.bytes, accepted, batch.malformed.iter().chain(&refused_there));
    }
    let (accepted, refused) = progress.finish();
    print_line(&format!("{accepted} accepted, {refused} refused"))?;
    anyhow::ensure!(refused == 0, "{refused} of {} tasks were refused", accepted + refused);
    Ok(())
}

/// The input and, where it is a file, how many bytes it has.
fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin().lock()), None));
    }
    let file = File::open(path).map_err(|error| UsageError(format!("{}: {error}", path.display())))?;
    let bytes = file.metadata()?.len();
    Ok((Box::new(BufReader::new(file)), Some(bytes)))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Submit {
        #[command(flatten)]
        args: Args,
    }

    /// The task that a command line makes.
    fn made(line: &str) -> String {
        let args = Submit::try_parse_from(["submit"].into_iter().chain(line.split(' '))).expect(line).args;
        serde_json::to_string(&args.task().expect("a task")).expect("a task is JSON")
    }

    #[test]
    fn flags_become_the_fields_of_a_task() {
        let flags = "--occurred-at 2026-11-25T12:00:00Z --deadline 2026-11-25T13:00:00Z --late drop --late-after 30s --version 17";
        assert_eq!(
            made(&format!("--command SET k v {flags}")),
            concat!(
                r#"{"args":["k","v"],"command":"SET","deadline":"2026-11-25T13:00:00Z","#,
                r#""late":{"after_ms":30000,"do":"drop"},"occurred_at":"2026-11-25T12:00:00Z","type":"simple","#,
                r#""version":"17"}"#
            )
        );
        let script = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&script, "return 1").expect("it can be written");
        let path = script.path().display();
        assert_eq!(
            made(&format!(
                "--lua {path} --key a --key b --written-key b --arg 60 --arg 5 --ttl-arg 0=s --ttl-arg 1=ms"
            )),
            concat!(
                r#"{"args":["60","5"],"keys":["a","b"],"script":"return 1","#,
                r#""ttl_args":[{"index":0,"unit":"s"},{"index":1,"unit":"ms"}],"type":"lua","written_keys":["b"]}"#
            )
        );
    }

    #[test]
    fn half_of_what_belongs_together_is_wrong_usage() {
        for line in ["--late drop", "--late-after 30s", "--late drop --late-after 30", "--ttl-arg 1=s", "--key k"] {
            let line = format!("submit --command SET k v {line}");
            assert!(Submit::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
        for wrong in ["1", "1=", "=s", "1=m", "-1=s"] {
            TtlArg::parse(wrong).expect_err(wrong);
        }
    }
}
