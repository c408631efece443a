//! A record of ours as a record of Kafka. How it is read back is in `batch`.
//!
//! ```text
//! ours                   Kafka's
//! ordering key     ──▶   key          what chooses the partition; not read back
//! headers          ◀─▶   headers      names and values as they are; Kafka's client sorts them by name
//! value            ◀─▶   value        the client's JSON
//! ```
//!
//! Other programs may produce into a topic too. What of their records has no place in ours is left out, and what is
//! left is judged by the consumer: a header that is longer than ours can be (a name of 255 bytes, a value of 65,535),
//! and the difference between no value and an empty one.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rskafka::record::Record as KafkaRecord;

use crate::log::{Headers, NewRecord};

/// Bytes of a record on the wire beside its key, headers and value: lengths, offset, timestamp. At most.
const OVERHEAD: usize = 40;

/// On its way to a partition.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// Chooses the partition.
    pub(super) key: Bytes,
    pub(super) headers: Headers,
    /// None says that the key has no value any more.
    pub(super) value: Option<Bytes>,
}

impl From<NewRecord> for Outgoing {
    fn from(new: NewRecord) -> Self {
        Self { key: new.ordering_key, headers: new.record.headers, value: Some(new.record.value) }
    }
}

impl Outgoing {
    /// How many bytes it takes on the wire, and not fewer.
    pub(super) fn wire_size(&self) -> usize {
        self.key.len() + self.headers.as_bytes().len() + self.value.as_ref().map_or(0, Bytes::len) + OVERHEAD
    }

    /// Copies the bytes, as the client wants them.
    pub(super) fn to_kafka(&self, appended_at_ms: i64) -> KafkaRecord {
        KafkaRecord {
            key: Some(self.key.to_vec()),
            value: self.value.as_ref().map(|value| value.to_vec()),
            headers: self.headers.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
            timestamp: timestamp(appended_at_ms),
        }
    }
}

fn timestamp(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(milliseconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{HeadersBuilder, Record};

    #[test]
    fn record_is_told_as_it_is() {
        let mut headers = HeadersBuilder::default();
        // By name, as the client sorts them.
        for (name, value) in [("accepted_at", &b"17"[..]), ("id", b"a"), ("identity", &[0xff, 0, 0x80])] {
            headers.push(name, value);
        }
        let record = Record { headers: headers.build(), value: Bytes::from_static(br#"{"type":"simple"}"#) };
        let new = NewRecord { ordering_key: Bytes::from_static(b"user:42"), record: record.clone() };
        let outgoing = Outgoing::from(new);
        let kafka = outgoing.to_kafka(1_700_000_000_123);
        assert_eq!(kafka.key.as_deref(), Some(&b"user:42"[..]));
        assert!(outgoing.wire_size() > kafka.approximate_size());
        assert_eq!(kafka.value.as_deref(), Some(&record.value[..]));
        let told: Vec<(&str, &[u8])> = kafka.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(told, record.headers.iter().collect::<Vec<_>>());
        assert_eq!(kafka.timestamp.timestamp_millis(), 1_700_000_000_123);
    }
}
