//! Writes that are not true any more when their turn comes: how each must be settled, and what must be there then.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::processes::{Redis, Reply};
use crate::target;

/// How long ago the service tried, in seconds.
pub const AGE: i64 = 60;

/// A task, and its end.
pub struct Overtaken {
    pub id: &'static str,
    pub outcome: &'static str,
    /// What is so about it, for whoever watches.
    pub because: &'static str,
    key: &'static str,
    /// What the key must hold in the end; None: it must not be there.
    left: Option<&'static str>,
    /// What of the task is not the same for all.
    fields: fn() -> Value,
}

pub const ALL: [Overtaken; 3] = [
    Overtaken {
        id: "demo-stale",
        outcome: "stale",
        because: "its version is 17, and the service has written version 18 itself",
        key: PRICE,
        left: Some("18"),
        fields: || json!({"args": [PRICE, "17"], "version": "17"}),
    },
    Overtaken {
        id: "demo-late",
        outcome: "invalidated",
        because: "it was to be made within 30 s, else the cache is to be read again",
        key: CACHED,
        left: None,
        fields: || json!({"args": [CACHED, "queued"], "late": {"after_ms": 30_000, "do": "invalidate"}}),
    },
    Overtaken {
        id: "demo-expired",
        outcome: "expired",
        because: "it was to live for 30 s",
        key: "demo:code",
        left: None,
        fields: || json!({"args": ["demo:code", "4711", "EX", "30"]}),
    },
];

const PRICE: &str = "demo:price";
const CACHED: &str = "demo:cached";

impl Overtaken {
    pub fn task(&self, now: Timestamp) -> Value {
        let mut task = (self.fields)();
        task["id"] = self.id.into();
        task["type"] = "simple".into();
        task["command"] = "SET".into();
        task["occurred_at"] = (now - SignedDuration::from_secs(AGE)).to_string().into();
        task
    }

    /// Whether its key holds what it must.
    pub fn is_right(&self, redis: &Redis) -> anyhow::Result<bool> {
        Ok(match redis.ask(&["GET", self.key])? {
            Reply::Text(value) => self.left == Some(&*value),
            Reply::None => self.left.is_none(),
            Reply::List(_) => false,
        })
    }
}

/// What the service wrote to the cache when all was well.
pub fn fill_cache(redis: &Redis) -> anyhow::Result<()> {
    redis.ask(&["SET", CACHED, "written long ago"])?;
    Ok(())
}

/// The service's own newer write, through the script that it shares with the sidecar.
pub fn write_newer(redis: &Redis) -> anyhow::Result<()> {
    let marker = format!("redrive:version:{{{PRICE}}}:{PRICE}");
    let (version, id, life_ms) = ("18", "demo-newer", "604800000");
    let script = target::version_fence();
    let answer = redis.ask(&["EVAL", script, "2", PRICE, &marker, version, id, life_ms, "3", "SET", PRICE, version])?;
    anyhow::ensure!(answer == Reply::Text("1".to_owned()), "the newer write was answered {answer:?}");
    Ok(())
}
