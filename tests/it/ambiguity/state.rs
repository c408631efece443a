//! Everything that a Redis holds, and where two of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::workload::ttl_tolerance_ms;
use crate::harness::{
    Redis,
    resp::{Client, Reply},
};

/// What is not a service's: it has no counterpart in the model.
const OWN_PREFIX: &str = "redrive:";

pub type State = BTreeMap<String, Entry>;

#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    kind: String,
    /// The bytes of the value, in an order that says nothing where the type has none.
    content: Vec<String>,
    /// In ms since 1970.
    expires_at: Option<i64>,
}

/// Reads all keys but Redrive's own.
pub fn read(redis: &mut Client) -> State {
    let keys = redis.ask(&["KEYS", "*"]).expect("the server answers");
    keys.texts()
        .into_iter()
        .filter(|key| !key.starts_with(OWN_PREFIX))
        .filter_map(|key| Entry::read(redis, &key).map(|entry| (key, entry)))
        .collect()
}

impl Entry {
    /// None: it has just come to its end.
    fn read(redis: &mut Client, key: &str) -> Option<Self> {
        let mut ask = |words: &[&str]| redis.ask(words).expect("the server answers");
        let kind = ask(&["TYPE", key]).text();
        let reply = match kind.as_str() {
            "none" => return None,
            "string" => ask(&["GET", key]),
            "list" => ask(&["LRANGE", key, "0", "-1"]),
            "hash" => ask(&["HGETALL", key]),
            "set" => ask(&["SMEMBERS", key]),
            "zset" => ask(&["ZRANGE", key, "0", "-1", "WITHSCORES"]),
            other => panic!("the workload makes no {other}"),
        };
        let mut content = match kind.as_str() {
            "hash" | "zset" => pairs(&escaped(&reply)),
            _ => escaped(&reply),
        };
        if kind == "hash" || kind == "set" {
            content.sort();
        }
        let Reply::Integer(at) = ask(&["PEXPIRETIME", key]) else { panic!("PEXPIRETIME answers a number") };
        Some(Self { kind, content, expires_at: (at >= 0).then_some(at) })
    }

    fn is_like(&self, other: &Self, ttl_tolerance_ms: i64) -> bool {
        let ends_alike = match (self.expires_at, other.expires_at) {
            (Some(one), Some(other)) => (one - other).abs() <= ttl_tolerance_ms,
            (one, other) => one == other,
        };
        ends_alike && self.kind == other.kind && self.content == other.content
    }
}

/// Long values are cut: what a failed round keeps has them whole.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content: Vec<_> = self.content.iter().map(|value| value.get(..60).unwrap_or(value)).collect();
        write!(f, "{} {content:?}", self.kind)?;
        self.expires_at.map_or(Ok(()), |at| write!(f, " until {at}"))
    }
}

/// Some lines for each key that is not the same.
pub fn differences(expected: &State, found: &State) -> Vec<String> {
    let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differ = |key: &&&String| match (expected.get(**key), found.get(**key)) {
        (Some(one), Some(other)) => !one.is_like(other, ttl_tolerance_ms(key)),
        _ => true,
    };
    let show = |state: &State, key: &String| state.get(key).map_or("nothing".to_owned(), Entry::to_string);
    let line = |key: &String| format!("{key:?}\n  expected {}\n  found    {}", show(expected, key), show(found, key));
    keys.iter().filter(differ).map(|key| line(key)).collect()
}

/// Every byte, readable.
fn escaped(reply: &Reply) -> Vec<String> {
    match reply {
        Reply::Array(items) => items.iter().flat_map(escaped).collect(),
        Reply::Bulk(Some(bytes)) => vec![bytes.escape_ascii().to_string()],
        other => vec![other.text()],
    }
}

fn pairs(items: &[String]) -> Vec<String> {
    items.chunks(2).map(|pair| pair.join(" = ")).collect()
}

#[test]
fn every_difference_is_seen_and_nothing_else() {
    let (one, other) = (Redis::start(&[]), Redis::start(&[]));
    let compare = || differences(&read(&mut one.client()), &read(&mut other.client()));
    for redis in [&one, &other] {
        redis.cli(&["SET", "text", "1"]);
        redis.cli(&["RPUSH", "list", "a", "b"]);
        redis.cli(&["ZADD", "sorted", "1", "a", "2", "b"]);
        redis.cli(&["SET", "ends", "1", "PXAT", "99999999990000"]);
    }
    // Where the order says nothing, it may be another one.
    one.cli(&["HSET", "hash", "a", "1", "b", "2"]);
    other.cli(&["HSET", "hash", "b", "2", "a", "1"]);
    one.cli(&["SET", "redrive:own", "1"]);
    one.cli(&["PEXPIREAT", "ends", "99999999990900"]);
    assert_eq!(compare(), [""; 0]);

    let changes: [&[&str]; 8] = [
        &["SET", "text", "1\0"],
        &["RPUSH", "list", "c"],
        &["ZINCRBY", "sorted", "0.5", "a"],
        &["PEXPIREAT", "ends", "99999999989000"],
        &["PERSIST", "ends"],
        &["HSET", "hash", "a", "2"],
        &["SET", "more", "1"],
        &["DEL", "list"],
    ];
    for change in changes {
        let before = other.cli(&["DUMP", change[1]]);
        other.cli(change);
        let found = compare();
        assert_eq!(found.len(), 1, "{change:?}: {found:?}");
        assert!(found[0].contains(change[1]), "{found:?}");
        undo(&other, change[1], before);
        assert_eq!(compare(), [""; 0], "{change:?}");
    }
}

fn undo(redis: &Redis, key: &str, before: Reply) {
    redis.cli(&["DEL", key]);
    if let Reply::Bulk(Some(dump)) = before {
        let ttl = if key == "ends" { "99999999990000" } else { "0" };
        let restore = [b"RESTORE", key.as_bytes(), ttl.as_bytes(), &dump, b"ABSTTL"];
        redis.client().ask(&restore).expect("the server answers");
    }
}
