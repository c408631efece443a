//! Tasks as a service would send them.

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
