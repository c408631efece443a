//! Redrive's own keys in a target, apart from the probe's: where they are and how long they live.
//!
//! ```text
//! <own prefix>once:<hour of acceptance>:<bucket>   hash: field = id hash (8 bytes) and unit, value = 1 ran, 2 in part
//! <own prefix>version:{<what a Cluster hashes>}:<key>   string: "<version> <id>", or "<version> <id> partial"
//! ```
//!
//! Markers lie in small hashes because a key of its own takes 149 bytes, and a field of a small hash about 13. A
//! bucket's name is made of what every sidecar knows of a task, so whoever runs the task finds its marker.

use std::time::Duration;

use deadpool_redis::redis::{Pipeline, Value};
use jiff::Timestamp;

use super::{Target, errors};
use crate::retry::Failure;

/// Buckets of an hour. Up to 128 markers in one, a lookup is as fast as in a hash table and takes a fifth of the
/// memory: that is a million tasks an hour.
const BUCKETS: u64 = 8192;

const HOUR_MS: i64 = 3_600_000;

/// What says that a once-unit ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The hash of the task's id.
    pub id_hash: u64,
    /// The unit's number in its task.
    pub unit: u32,
    /// When the task was accepted.
    pub accepted_at: Timestamp,
}

impl Marker {
    /// The field of its bucket. The first unit of a task has the shortest.
    pub(super) fn field(&self) -> impl AsRef<[u8]> {
        let bytes = usize::try_from(4 - self.unit.leading_zeros() / 8).expect("at most 4");
        let mut field = [0; 12];
        field[..8].copy_from_slice(&self.id_hash.to_le_bytes());
        field[8..].copy_from_slice(&self.unit.to_le_bytes());
        Field { bytes: field, len: 8 + bytes }
    }
}

struct Field {
    bytes: [u8; 12],
    len: usize,
}

impl AsRef<[u8]> for Field {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What is told from a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerState {
    /// The unit ran.
    Applied,
    /// Some of the unit ran.
    Partial,
}

impl Target {
    /// What the marker of a once-unit says. None: there is none, so the unit did not run.
    ///
    /// The error is always a hold: the target does not tell.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection that it asks over.
    pub async fn marker(&self, marker: &Marker) -> Result<Option<MarkerState>, Failure> {
        let mut control = self.control().await?;
        let mut questions = Pipeline::with_capacity(2);
        for bucket in self.own.buckets(marker, "") {
            questions.cmd("HGET").arg(bucket).arg(marker.field().as_ref());
        }
        let found: [Value; 2] = control.ask(&mut questions).await?;
        if let Some(failure) = found.iter().find_map(errors::of_value) {
            return Err(errors::as_hold(failure));
        }
        self.keep(control);
        Ok(found.iter().find_map(|value| match value {
            Value::BulkString(value) if value == b"2" => Some(MarkerState::Partial),
            Value::BulkString(_) => Some(MarkerState::Applied),
            _ => None,
        }))
    }
}

/// The keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnKeys {
    prefix: String,
    marker_ttl: Duration,
    version_ttl: Duration,
}

impl OwnKeys {
    pub(super) fn new(prefix: &str, marker_ttl: Duration, version_ttl: Duration) -> Self {
        Self { prefix: prefix.to_owned(), marker_ttl, version_ttl }
    }

    /// The marker's bucket, and the one in which it is if its id was accepted in the hour before.
    ///
    /// `tag`: what puts a key into the slot of the unit's keys in a Cluster; empty for a single server.
    pub(super) fn buckets(&self, marker: &Marker, tag: &str) -> [String; 2] {
        let hour = marker.accepted_at.as_millisecond().div_euclid(HOUR_MS);
        let bucket = marker.id_hash % BUCKETS;
        [hour, hour - 1].map(|hour| format!("{}{tag}once:{hour}:{bucket}", self.prefix))
    }

    /// The marker of a key's version, in the same slot of a Cluster as the key.
    pub(super) fn version_marker(&self, key: &[u8]) -> Vec<u8> {
        let tag = hashed_part(key);
        // A part with a closing brace could not be put between braces, and then there is no way to name the slot.
        let parts = match tag.contains(&b'}') {
            true => [self.prefix.as_bytes(), b"version:", b"", b"", b":", key],
            false => [self.prefix.as_bytes(), b"version:", b"{", tag, b"}:", key],
        };
        parts.concat()
    }

    /// How long a marker lives at least.
    pub(super) fn marker_ttl_ms(&self) -> String {
        self.marker_ttl.as_millis().to_string()
    }

    /// How long the version of a key is remembered after the last write.
    pub(super) fn version_ttl_ms(&self) -> String {
        self.version_ttl.as_millis().to_string()
    }
}

/// What a Cluster hashes of a key: what stands between the first brace and the next closing one, if anything does.
fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else { return key };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(length) => &rest[..length],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnKeys {
        OwnKeys::new("redrive:", Duration::from_secs(86_400), Duration::from_secs(7 * 86_400))
    }

    fn marker(id_hash: u64, unit: u32, millis: i64) -> Marker {
        Marker { id_hash, unit, accepted_at: Timestamp::from_millisecond(millis).expect("in range") }
    }

    #[test]
    fn bucket_is_of_the_hour_and_of_the_id() {
        let [bucket, before] = own().buckets(&marker(8192 + 7, 0, 490_000 * HOUR_MS + 3_599_999), "");
        assert_eq!((&*bucket, &*before), ("redrive:once:490000:7", "redrive:once:489999:7"));
        let [bucket, _] = own().buckets(&marker(7, 3, 490_000 * HOUR_MS), "{tag}");
        assert_eq!(bucket, "redrive:{tag}once:490000:7");
        let [bucket, _] = own().buckets(&marker(7, 0, -1), "");
        assert_eq!(bucket, "redrive:once:-1:7");
    }

    #[test]
    fn field_tells_units_apart_and_is_short() {
        let field = |unit| marker(0x0102, unit, 0).field().as_ref().to_vec();
        assert_eq!(field(0), [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(field(1), [2, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(field(256), [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(field(u32::MAX).len(), 12);
    }

    #[test]
    fn version_marker_lies_in_the_slot_of_its_key() {
        let check = |key: &str, marker: &str| {
            assert_eq!(String::from_utf8_lossy(&own().version_marker(key.as_bytes())), marker);
        };
        check("user:42", "redrive:version:{user:42}:user:42");
        check("cart:{42}:items", "redrive:version:{42}:cart:{42}:items");
        check("a{b", "redrive:version:{a{b}:a{b");
        check("{}x", "redrive:version::{}x");
        check("a}b", "redrive:version::a}b");
        check("", "redrive:version:{}:");
    }
}
