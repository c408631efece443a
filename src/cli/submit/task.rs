//! Tasks on their way out: made from flags or read from lines, each with an id before it is sent for the first time.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
};

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use super::super::UsageError;

/// The most lines of a batch, as the server takes them unless it is configured otherwise.
const BATCH_LINES: usize = 500;

/// When a batch is full: below the 4 MiB that the server takes by default, by more than a line of the usual size.
const BATCH_BYTES: u64 = 3 * 1024 * 1024;

/// A task as `POST /tasks` takes it. Its members keep the text in which they were written, so that a number arrives
/// with every digit.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Task(BTreeMap<String, Box<RawValue>>);

impl Task {
    /// A simple task. The command may hold arguments too, split at white space; they come first.
    pub fn of_command(command: &str, args: &[String]) -> Result<Self, UsageError> {
        let mut words = command.split_whitespace();
        let name = words.next().ok_or_else(|| UsageError("--command is empty".into()))?;
        let words: Vec<&str> = words.chain(args.iter().map(String::as_str)).collect();
        let mut task = Self::default();
        task.set("type", "simple");
        task.set("command", name);
        task.set("args", &words);
        Ok(task)
    }

    pub fn of_script(script: &str, keys: &[String], args: &[String]) -> Self {
        let mut task = Self::default();
        task.set("type", "lua");
        task.set("script", script);
        task.set("keys", keys);
        task.set("args", args);
        task
    }

    /// The error says what is wrong with the text, not what is in it.
    pub fn of_json(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(members) => Ok(Self(members)),
            Err(error) if error.is_data() => Err("not a JSON object".into()),
            Err(error) => Err(format!("not JSON: wrong at line {} column {}", error.line(), error.column())),
        }
    }

    pub fn set(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        let value = to_raw_value(value).expect("text, numbers and lists of text are JSON");
        self.0.insert(name.into(), value);
    }

    /// The id that the task has, or gets now.
    fn ensure_id(&mut self) -> String {
        let given = self.0.get("id").filter(|id| id.get() != "null");
        match given {
            // What is no string is the server's to refuse.
            Some(id) => serde_json::from_str(id.get()).unwrap_or_else(|_| id.get().into()),
            None => {
                let id = Uuid::now_v7().to_string();
                self.set("id", &id);
                id
            }
        }
    }
}

/// A task and where it came from.
#[derive(Debug)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    pub id: String,
    pub task: Task,
}

impl Line {
    pub fn new(number: usize, mut task: Task) -> Self {
        Self { number, id: task.ensure_id(), task }
    }
}

/// A line that was not accepted, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub line: usize,
    pub reason: String,
}

/// Lines that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    pub first_line: usize,
    pub lines: Vec<Line>,
    /// Lines that are no tasks and are not sent.
    pub malformed: Vec<Refused>,
    /// How much of the input was read for it.
    pub bytes: u64,
}

/// Cuts JSON Lines into batches, passing over empty lines and those before `from_line`. Reads as it goes: the input
/// may be larger than memory.
pub fn batches(mut input: impl BufRead, from_line: usize) -> impl Iterator<Item = io::Result<Batch>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        let mut batch = Batch { first_line: number + 1, ..Batch::default() };
        let mut text = String::new();
        while batch.lines.len() < BATCH_LINES && batch.bytes < BATCH_BYTES {
            text.clear();
            match input.read_line(&mut text) {
                Ok(0) => break,
                Ok(read) => batch.bytes += read as u64,
                Err(error) => return Some(Err(error)),
            }
            number += 1;
            if number < from_line || text.trim().is_empty() {
                continue;
            }
            match Task::of_json(&text) {
                Ok(task) => batch.lines.push(Line::new(number, task)),
                Err(reason) => batch.malformed.push(Refused { line: number, reason }),
            }
        }
        (batch.bytes > 0).then_some(Ok(batch))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(task: &Task) -> String {
        serde_json::to_string(task).expect("a task is JSON")
    }

    #[test]
    fn command_may_hold_its_arguments() {
        let args = ["EX".to_string(), "60".to_string()];
        let task = Task::of_command("SET greeting hello", &args).expect("there is a command");
        assert_eq!(json(&task), r#"{"args":["greeting","hello","EX","60"],"command":"SET","type":"simple"}"#);
        assert!(Task::of_command(" ", &[]).is_err());
    }

    #[test]
    fn numbers_keep_every_digit_and_ids_stay() {
        let task = Task::of_json(r#"{"id": "a", "args": ["k", 12345678901234567890123.10]}"#).expect("an object");
        let line = Line::new(1, task);
        assert_eq!(line.id, "a");
        assert_eq!(json(&line.task), r#"{"args":["k", 12345678901234567890123.10],"id":"a"}"#);
    }

    #[test]
    fn task_without_an_id_gets_one() {
        for text in [r#"{"type": "simple"}"#, r#"{"id": null}"#] {
            let line = Line::new(1, Task::of_json(text).expect("an object"));
            assert!(json(&line.task).contains(&format!(r#""id":"{}""#, line.id)));
        }
    }

    #[test]
    fn batches_know_their_lines() {
        let mut input = String::from("{}\n\n[1]\nnot json\n");
        input.push_str(&"{}\n".repeat(600));
        let batches: Vec<_> = batches(input.as_bytes(), 1).map(|batch| batch.expect("text can be read")).collect();
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0].lines.len(), 500);
        assert_eq!(batches[0].malformed.iter().map(|refused| refused.line).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(batches[1].first_line, 504);
        assert_eq!(batches[1].lines.last().expect("lines").number, 604);
        assert_eq!(batches.iter().map(|batch| batch.bytes).sum::<u64>(), input.len() as u64);
    }

    #[test]
    fn lines_before_the_first_one_are_passed_over() {
        let lines: Vec<_> = batches("{}\n{}\n{}".as_bytes(), 3).flat_map(|batch| batch.expect("text").lines).collect();
        assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [3]);
    }
}
