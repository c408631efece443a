//! A record of ours as a record of Kafka, and back.
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
use rskafka::record::{Record as KafkaRecord, RecordAndOffset};

use crate::log::{Entry, Headers, HeadersBuilder, NewRecord, Record};

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

/// As read.
pub(super) fn from_kafka(read: RecordAndOffset) -> Entry {
    let RecordAndOffset { record: KafkaRecord { value, headers, timestamp, .. }, offset } = read;
    let size = headers.iter().map(|(name, value)| name.len() + value.len() + 3).sum();
    let mut packed = HeadersBuilder::with_capacity(size);
    for (name, value) in &headers {
        if name.len() <= usize::from(u8::MAX) && value.len() <= usize::from(u16::MAX) {
            packed.push(name, value);
        }
    }
    Entry {
        offset: u64::try_from(offset).expect("the client hands out no record below the offset asked for"),
        record: Record { headers: packed.build(), value: Bytes::from(value.unwrap_or_default()) },
        appended_at_ms: Some(timestamp.timestamp_millis()),
    }
}

fn timestamp(milliseconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(milliseconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, usize)], value: Option<&[u8]>) -> Entry {
        let headers = headers.iter().map(|(name, length)| ((*name).to_owned(), vec![b'v'; *length])).collect();
        let timestamp = timestamp(1_700_000_000_123);
        let record = KafkaRecord { key: None, value: value.map(<[u8]>::to_vec), headers, timestamp };
        from_kafka(RecordAndOffset { record, offset: 7 })
    }

    #[test]
    fn record_comes_back_as_it_went() {
        let mut headers = HeadersBuilder::default();
        // By name, as they come back.
        for (name, value) in [("accepted_at", &b"17"[..]), ("id", b"a"), ("identity", &[0xff, 0, 0x80])] {
            headers.push(name, value);
        }
        let record = Record { headers: headers.build(), value: Bytes::from_static(br#"{"type":"simple"}"#) };
        let new = NewRecord { ordering_key: Bytes::from_static(b"user:42"), record: record.clone() };
        let outgoing = Outgoing::from(new);
        let kafka = outgoing.to_kafka(1_700_000_000_123);
        assert_eq!(kafka.key.as_deref(), Some(&b"user:42"[..]));
        assert!(outgoing.wire_size() > kafka.approximate_size());
        let entry = from_kafka(RecordAndOffset { record: kafka, offset: 7 });
        assert_eq!(entry, Entry { offset: 7, record, appended_at_ms: Some(1_700_000_000_123) });
    }

    #[test]
    fn header_that_has_no_place_is_left_out() {
        let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
        let entry = read(&[("a", 65_535), ("b", 65_536), (&longest, 1), (&too_long, 1), ("z", 0)], Some(b"{}"));
        let names: Vec<&str> = entry.record.headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", &longest, "z"]);
    }

    #[test]
    fn record_without_a_value_has_an_empty_one() {
        assert_eq!(read(&[], None).record, Record::default());
    }
}
