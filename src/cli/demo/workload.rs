//! What the demonstration hands in, and what Redis must hold in the end.
//!
//! Of every number there is a list, to which tasks of all three types append their own numbers, a counter, and a session
//! that expires. So the lists show what is lost, what came twice and what came out of order, the counters whether every
//! increment was made once, and the sessions whether they live as long as the service meant.

use std::{collections::BTreeSet, io};

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::processes::Reply;

const APPEND: &str = "return redis.call('RPUSH', KEYS[1], ARGV[1])";

/// How far from what was meant a session may expire, in milliseconds.
const TTL_TOLERANCE_MS: u64 = 1000;

/// Makes tasks, and remembers what was accepted.
pub struct Workload {
    keys: Vec<Accepted>,
    next: u64,
}

/// What was accepted for the keys of one number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Accepted {
    /// The numbers of the tasks that append, in order.
    list: Vec<u64>,
    increments: u64,
    session: Option<Session>,
}

/// A session as the tasks so far have left it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session {
    value: u64,
    /// When it is to expire, in milliseconds since 1970.
    expires_ms: i64,
    tasks: u64,
}

/// What was found when every key was compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Tasks whose effect is there.
    pub applied: u64,
    pub lost: u64,
    pub twice: u64,
    pub out_of_order: u64,
    /// Counters that are not the number of their accepted increments.
    pub wrong_counters: u64,
    /// Sessions that are not there, or expire more than a second from what was meant.
    pub wrong_ttls: u64,
    /// How far from what was meant any session expires, in milliseconds.
    pub ttl_error_ms: u64,
}

impl Workload {
    pub fn new(keys: usize) -> Self {
        Self { keys: vec![Accepted::default(); keys], next: 0 }
    }

    /// `count` tasks for `POST /tasks/batch`. From now on they count as accepted.
    pub fn batch(&mut self, count: usize) -> Vec<Value> {
        let now = Timestamp::now();
        (0..count).map(|_| self.task(now)).collect()
    }

    fn task(&mut self, now: Timestamp) -> Value {
        const KINDS: u64 = 5;
        let number = self.next;
        self.next += 1;
        let (round, place) = (number / self.keys.len() as u64, number as usize % self.keys.len());
        let accepted = &mut self.keys[place];
        let (list, counter, session) = (list(place), counter(place), session(place));
        let (value, id) = (number.to_string(), format!("demo-{number}"));
        // By the round too: each key is to see every kind.
        match (number + round) % KINDS {
            0 => {
                accepted.list.push(number);
                json!({"id": id, "type": "simple", "command": "RPUSH", "args": [list, value]})
            }
            1 => {
                accepted.list.push(number);
                json!({"id": id, "type": "pipeline", "mode": "atomic", "commands": [
                    {"command": "RPUSH", "args": [list, value]},
                    {"command": "SET", "args": [format!("{list}:last"), value]},
                ]})
            }
            2 => {
                accepted.list.push(number);
                json!({"id": id, "type": "lua", "script": APPEND, "keys": [list], "args": [value]})
            }
            3 => {
                accepted.increments += 1;
                json!({"id": id, "type": "simple", "command": "INCR", "args": [counter]})
            }
            _ => {
                // The service tried a while before it handed the task in. Each is to expire at a time of its own.
                let (age, ttl) = (number % 60, 600 + number % 300);
                let tried = now - SignedDuration::from_secs(age as i64);
                let expires_ms = tried.as_millisecond() + 1000 * ttl as i64;
                let ttl = ttl.to_string();
                let (command, args) = match &mut accepted.session {
                    // A session that is used again lives on.
                    Some(session_now) if (round / KINDS) % 2 == 1 => {
                        session_now.expires_ms = expires_ms;
                        session_now.tasks += 1;
                        ("EXPIRE", vec![session, ttl])
                    }
                    session_now => {
                        let tasks = 1 + session_now.as_ref().map_or(0, |session| session.tasks);
                        *session_now = Some(Session { value: number, expires_ms, tasks });
                        ("SET", vec![session, value, "EX".to_owned(), ttl])
                    }
                };
                json!({"id": id, "type": "simple", "command": command, "args": args, "occurred_at": tried.to_string()})
            }
        }
    }

    pub fn accepted(&self) -> u64 {
        self.next
    }

    /// How many increments and appends were accepted, and how many of them Redis holds now.
    pub fn progress(&self, ask: impl Fn(&[&str]) -> io::Result<Reply>) -> anyhow::Result<(u64, u64)> {
        let (mut accepted, mut made) = (0, 0);
        for (place, expected) in self.keys.iter().enumerate() {
            accepted += expected.list.len() as u64 + expected.increments;
            made += number(ask(&["LLEN", &list(place)])?)? + number(ask(&["GET", &counter(place)])?)?;
        }
        Ok((accepted, made))
    }

    /// The same of the first list alone, which takes next to nothing to ask for.
    pub fn sample(&self, ask: impl Fn(&[&str]) -> io::Result<Reply>) -> anyhow::Result<(u64, u64)> {
        Ok((self.keys[0].list.len() as u64, number(ask(&["LLEN", &list(0)])?)?))
    }

    /// Compares every key with what was accepted for it.
    pub fn compare(&self, ask: impl Fn(&[&str]) -> io::Result<Reply>) -> anyhow::Result<Comparison> {
        let mut found = Comparison::default();
        for (place, accepted) in self.keys.iter().enumerate() {
            let Reply::List(items) = ask(&["LRANGE", &list(place), "0", "-1"])? else {
                bail!("{} is not a list", list(place))
            };
            found.add_list(&accepted.list, &items.iter().filter_map(|item| item.parse().ok()).collect::<Vec<u64>>());
            found.add_counter(accepted.increments, number(ask(&["GET", &counter(place)])?)?);
            if let Some(expected) = &accepted.session {
                let (value, ttl) = (ask(&["GET", &session(place)])?, ask(&["PTTL", &session(place)])?);
                let now_ms = Timestamp::now().as_millisecond();
                // Negative: there is no such key, or it lives for ever.
                let expires_ms = text(ttl).parse::<i64>().ok().filter(|ttl| *ttl >= 0).map(|ttl| now_ms + ttl);
                found.add_session(expected, text(value).parse().ok(), expires_ms);
            }
        }
        Ok(found)
    }
}

impl Comparison {
    fn add_list(&mut self, accepted: &[u64], list: &[u64]) {
        let mut seen = BTreeSet::new();
        let mut highest = None;
        for number in list {
            if !seen.insert(*number) {
                self.twice += 1;
            } else if highest.is_some_and(|highest| *number < highest) {
                self.out_of_order += 1;
            }
            highest = highest.max(Some(*number));
        }
        self.applied += seen.len() as u64;
        self.lost += accepted.iter().filter(|number| !seen.contains(number)).count() as u64;
    }

    fn add_counter(&mut self, accepted: u64, count: u64) {
        self.applied += count.min(accepted);
        self.lost += accepted.saturating_sub(count);
        self.twice += count.saturating_sub(accepted);
        self.wrong_counters += u64::from(count != accepted);
    }

    /// All tasks of a session count as applied if the last one is in force.
    fn add_session(&mut self, expected: &Session, value: Option<u64>, expires_ms: Option<i64>) {
        match expires_ms {
            Some(expires_ms) => {
                let error_ms = expires_ms.abs_diff(expected.expires_ms);
                self.ttl_error_ms = self.ttl_error_ms.max(error_ms);
                self.wrong_ttls += u64::from(error_ms > TTL_TOLERANCE_MS);
            }
            None => self.wrong_ttls += 1,
        }
        if value == Some(expected.value) {
            self.applied += expected.tasks;
        } else {
            self.lost += expected.tasks;
        }
    }
}

/// A number that Redis answered; 0 where the key is not there.
fn number(reply: Reply) -> anyhow::Result<u64> {
    match reply {
        Reply::None => Ok(0),
        reply => Ok(text(reply).parse()?),
    }
}

fn text(reply: Reply) -> String {
    match reply {
        Reply::Text(text) => text,
        Reply::List(_) | Reply::None => String::new(),
    }
}

/// The list of a number: what the poisoned task and the watching of the drain also name.
pub fn list(number: usize) -> String {
    format!("demo:{number}")
}

fn counter(number: usize) -> String {
    format!("demo:{number}:count")
}

fn session(number: usize) -> String {
    format!("demo:{number}:session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_tells_lost_twice_and_out_of_order_apart() {
        let mut found = Comparison::default();
        found.add_list(&[1, 2, 3, 4], &[1, 3, 2, 2]);
        assert_eq!(found, Comparison { applied: 3, lost: 1, twice: 1, out_of_order: 1, ..Comparison::default() });
    }

    #[test]
    fn counter_must_be_the_number_of_its_increments() {
        let check = |count, applied, lost, twice| {
            let mut found = Comparison::default();
            found.add_counter(5, count);
            let wrong_counters = u64::from(count != 5);
            assert_eq!(found, Comparison { applied, lost, twice, wrong_counters, ..Comparison::default() });
        };
        check(5, 5, 0, 0);
        check(3, 3, 2, 0);
        check(6, 5, 0, 1);
    }

    #[test]
    fn session_must_expire_when_the_service_meant() {
        let check = |value, expires_ms, expected| {
            let mut found = Comparison::default();
            found.add_session(&Session { value: 7, expires_ms: 10_000, tasks: 3 }, value, expires_ms);
            assert_eq!(found, expected);
        };
        let nothing = Comparison::default;
        check(Some(7), Some(9_990), Comparison { applied: 3, ttl_error_ms: 10, ..nothing() });
        check(Some(7), Some(11_001), Comparison { applied: 3, ttl_error_ms: 1001, wrong_ttls: 1, ..nothing() });
        check(Some(7), None, Comparison { applied: 3, wrong_ttls: 1, ..nothing() });
        check(Some(6), Some(10_000), Comparison { lost: 3, ..nothing() });
    }

    #[test]
    fn every_key_sees_every_kind() {
        let mut workload = Workload::new(5);
        let of_one: Vec<String> = workload
            .batch(50)
            .iter()
            .filter(|task| {
                ["", ":count", ":session"].iter().any(|of| task.to_string().contains(&format!("\"demo:2{of}\"")))
            })
            .map(|task| format!("{} {}", task["type"], task["command"]))
            .collect();
        assert_eq!(of_one.len(), 10);
        assert_eq!(of_one.iter().collect::<BTreeSet<_>>().len(), 6, "{of_one:?}");
        assert_eq!(workload.accepted(), 50);
        let accepted = &workload.keys[2];
        assert_eq!((accepted.list.len(), accepted.increments), (6, 2));
        assert_eq!(accepted.session.as_ref().map(|session| session.tasks), Some(2));
    }
}
