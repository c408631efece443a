//! Tasks as a service would send them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// A simple task.
pub fn simple(id: &str, command: &str, args: &[&str]) -> Value {
    json!({"type": "simple", "id": id, "command": command, "args": args})
}

pub fn set(id: &str, key: &str, value: &str) -> Value {
    simple(id, "SET", &[key, value])
}

/// Appends the task's own id to a list: shows loss, repetition and order.
pub fn rpush(id: &str, list: &str) -> Value {
    simple(id, "RPUSH", &[list, id])
}

/// The numbers behind the dashes of a log's ids, in the order in which each appeared first: a task may run again after
/// a kill, but never before those that it follows.
pub fn first_occurrences(log: &[String]) -> Vec<u64> {
    let number =
        |id: &String| -> u64 { id.rsplit_once('-').expect("ids have a dash").1.parse().expect("and a number") };
    let mut seen = BTreeSet::new();
    log.iter().map(number).filter(|number| seen.insert(*number)).collect()
}
