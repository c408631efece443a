//! Pages of a cache that are written again and again while Redis is away: only the newest of each is worth sending.

use serde_json::{Value, json};

use super::processes::{Redis, Reply};

pub const PAGES: u64 = 10;

/// All writes of them.
pub const WRITES: u64 = 1000;

fn key(page: u64) -> String {
    format!("demo:page:{page}")
}

/// The writes in their order, one page after the other.
pub fn tasks() -> Vec<Value> {
    let task = |number: u64| {
        json!({
            "id": format!("demo-page-{number}"),
            "type": "simple",
            "command": "SET",
            "args": [key(number % PAGES), number.to_string()],
        })
    };
    (0..WRITES).map(task).collect()
}

/// Whether each page is the newest.
pub fn are_newest(redis: &Redis) -> anyhow::Result<bool> {
    for page in 0..PAGES {
        let newest = WRITES - PAGES + page;
        if redis.ask(&["GET", &key(page)])? != Reply::Text(newest.to_string()) {
            return Ok(false);
        }
    }
    Ok(true)
}
