//! What the demonstration hands in, and what Redis must hold in the end.
//!
//! Every key is a list, and every task on it appends the task's own number, by each of the three kinds of task. So a
//! key's list shows at once what is lost, what came twice, and what came out of order.

use std::collections::BTreeMap;

use serde_json::{Value, json};

const APPEND: &str = "return redis.call('RPUSH', KEYS[1], ARGV[1])";

/// Makes tasks, and remembers for each key in which order they were accepted.
pub struct Workload {
    keys: usize,
    next: u64,
    accepted: BTreeMap<usize, Vec<u64>>,
}

/// What was found when every key was compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub applied: u64,
    pub lost: u64,
    pub twice: u64,
    pub out_of_order: u64,
}

impl Workload {
    pub fn new(keys: usize) -> Self {
        Self { keys, next: 0, accepted: BTreeMap::new() }
    }

    /// `count` tasks for `POST /tasks/batch`, the kinds in turn. From now on they count as accepted.
    pub fn batch(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.task()).collect()
    }

    fn task(&mut self) -> Value {
        let number = self.next;
        self.next += 1;
        let key_number = number as usize % self.keys;
        self.accepted.entry(key_number).or_default().push(number);
        let (key, value, id) = (key(key_number), number.to_string(), format!("demo-{number}"));
        // Not the number itself: each key is to see all three kinds.
        match (number / self.keys as u64) % 3 {
            0 => json!({"id": id, "type": "simple", "command": "RPUSH", "args": [key, value]}),
            1 => json!({"id": id, "type": "pipeline", "mode": "atomic", "commands": [
                {"command": "RPUSH", "args": [key, value]},
                {"command": "SET", "args": [format!("{key}:last"), value]},
            ]}),
            _ => json!({"id": id, "type": "lua", "script": APPEND, "keys": [key], "args": [value]}),
        }
    }

    pub fn accepted(&self) -> u64 {
        self.next
    }

    /// Compares a key's list with what was accepted for it.
    pub fn compare(&self, list: impl Fn(&str) -> anyhow::Result<Vec<String>>) -> anyhow::Result<Comparison> {
        let mut found = Comparison::default();
        for (number, accepted) in &self.accepted {
            let list = list(&key(*number))?;
            found.add(accepted, &list.iter().filter_map(|item| item.parse().ok()).collect::<Vec<u64>>());
        }
        Ok(found)
    }
}

impl Comparison {
    fn add(&mut self, accepted: &[u64], list: &[u64]) {
        let mut seen = std::collections::BTreeSet::new();
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
}

fn key(number: usize) -> String {
    format!("demo:{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_tells_lost_twice_and_out_of_order_apart() {
        let mut found = Comparison::default();
        found.add(&[1, 2, 3, 4], &[1, 3, 2, 2]);
        assert_eq!(found, Comparison { applied: 3, lost: 1, twice: 1, out_of_order: 1 });
    }

    #[test]
    fn every_key_sees_every_kind() {
        let mut workload = Workload::new(5);
        let kinds: std::collections::BTreeSet<String> = workload
            .batch(15)
            .iter()
            .filter(|task| task["keys"][0] == "demo:2" || task.to_string().contains("\"demo:2\""))
            .map(|task| task["type"].to_string())
            .collect();
        assert_eq!(kinds.len(), 3);
        assert_eq!(workload.accepted(), 15);
    }
}
