//! `redrive submit`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    UsageError,
    http::Endpoint,
    output::print_line,
    runtime,
    settings::{ConfigFile, SettingFlags, duration},
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
    #[arg(long = "key", value_name = "KEY", requires = "lua")]
    keys: Vec<String>,
    /// An argument of --lua; may be repeated
    #[arg(long = "arg", value_name = "ARG", requires = "lua", allow_hyphen_values = true)]
    lua_args: Vec<String>,
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
}

impl Context {
    fn apply(&self, task: &mut Task) {
        let texts = [("id", &self.id), ("target", &self.target), ("priority", &self.priority)];
        for (name, value) in texts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            task.set(name, value);
        }
        if let Some(max_retries) = self.max_retries {
            task.set("max_retries", &max_retries);
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  redrive submit --command SET greeting hello EX 60
  redrive submit --command 'INCRBY visits 1' --id visit-4711 --priority high
  redrive submit --lua transfer.lua --key from --key to --arg 100
  echo '{\"type\": \"simple\", \"command\": \"DEL\", \"args\": [\"k\"]}' | redrive submit
  redrive submit --file tasks.jsonl

Exit status: 0 everything was accepted, 1 something was refused or could not be handed in, 2 wrong usage.";

pub fn run(args: Args) -> anyhow::Result<()> {
    let endpoint = match args.url {
        Some(url) => url,
        None => (&args.config.load_with(SettingFlags::default())?.config.listen).into(),
    };
    let sender = Sender::new(endpoint, args.wait);
    if let Some(path) = args.file {
        return submit_file(&sender, &path, args.from_line);
    }
    let mut task = match (args.command, args.lua) {
        (Some(command), _) => Task::of_command(&command, &args.args)?,
        (None, Some(path)) => Task::of_script(&read(&path)?, &args.keys, &args.lua_args),
        (None, None) => read_task()?,
    };
    args.context.apply(&mut task);
    submit_one(&sender, task)
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
