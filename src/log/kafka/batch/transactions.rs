//! Which batches of an answer are of transactions that were aborted. They stay in their partition: a broker that is asked
//! for what was committed sends them all the same, and says beside them whose they are.
//!
//! It names each aborted transaction that reaches into the answer by its producer and its first offset, which lies before
//! the answer where the transaction began in an earlier one. From there on everything transactional of that producer is
//! aborted, until the batch that says so: a producer has one transaction at a time.

use std::{cmp::Reverse, collections::HashSet};

use kafka_protocol::messages::fetch_response::AbortedTransaction;

use super::{CONTROL, HEAD_BYTES, TRANSACTIONAL, attributes, field, take, varint};

/// What the key of a control record says: a version, and that a transaction was aborted.
const ABORT: i16 = 0;

/// The aborted transactions of one answer, while its batches are gone through in their order.
pub(super) struct Aborted {
    /// Those that begin later; the next one is the last.
    coming: Vec<AbortedTransaction>,
    /// The producers of those that have begun and not ended.
    producers: HashSet<i64>,
}

impl Aborted {
    pub(super) fn new(mut coming: Vec<AbortedTransaction>) -> Self {
        coming.sort_unstable_by_key(|transaction| Reverse(transaction.first_offset));
        Self { coming, producers: HashSet::new() }
    }

    /// Takes the next batch, and says whether it is of one of them. `last` is its last offset.
    pub(super) fn take(&mut self, batch: &[u8], last: u64) -> bool {
        let has_begun = |next: &mut AbortedTransaction| u64::try_from(next.first_offset).is_ok_and(|at| at <= last);
        while let Some(begun) = self.coming.pop_if(has_begun) {
            self.producers.insert(begun.producer_id.0);
        }
        let (kind, producer) = (attributes(batch), i64::from_be_bytes(take(batch, 43)));
        if kind & CONTROL != 0 && control_type(batch) == Some(ABORT) {
            return self.producers.remove(&producer);
        }
        kind & TRANSACTIONAL != 0 && self.producers.contains(&producer)
    }
}

/// What the first record of a control batch is for.
fn control_type(batch: &[u8]) -> Option<i16> {
    let mut records = &batch[HEAD_BYTES..];
    let mut record = field(&mut records)??.get(1..)?;
    let (_time_delta, _offset_delta) = (varint(&mut record)?, varint(&mut record)?);
    let key = field(&mut record)??;
    Some(i16::from_be_bytes(*key.get(2..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::{
        messages::ProducerId,
        records::{
            Compression, NO_PARTITION_LEADER_EPOCH, NO_PRODUCER_ID, Record, RecordBatchEncoder, RecordEncodeOptions,
            TimestampType,
        },
    };

    use super::super::read;
    use super::*;

    /// A producer that uses transactions, and one that does not.
    const MARY: i64 = 7;
    const PAUL: i64 = 8;
    const NOBODY: i64 = NO_PRODUCER_ID;

    const COMMIT: i16 = 1;

    fn record(producer: i64, offset: i64) -> Record {
        Record {
            transactional: producer != NOBODY,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
            producer_id: producer,
            producer_epoch: 0,
            timestamp_type: TimestampType::Creation,
            offset,
            sequence: i32::try_from(offset).expect("there are few"),
            timestamp: 0,
            key: None,
            value: Some(offset.to_string().into()),
            headers: Default::default(),
        }
    }

    /// A partition, as far as it is made.
    #[derive(Default)]
    struct Partition {
        bytes: BytesMut,
        /// Where each batch begins: its first offset, and its place among the bytes.
        batches: Vec<(u64, usize)>,
        next: i64,
    }

    impl Partition {
        /// A batch of so many records, each with its offset as its value.
        fn records(self, producer: i64, count: i64) -> Self {
            let records = (self.next..self.next + count).map(|offset| record(producer, offset)).collect();
            self.batch(records)
        }

        fn marker(self, producer: i64, kind: i16) -> Self {
            let key = [0_i16.to_be_bytes(), kind.to_be_bytes()].concat();
            let marker = Record { control: true, key: Some(key.into()), ..record(producer, self.next) };
            self.batch(vec![marker])
        }

        fn batch(mut self, records: Vec<Record>) -> Self {
            let options = RecordEncodeOptions { version: 2, compression: Compression::None };
            self.batches.push((self.next.unsigned_abs(), self.bytes.len()));
            RecordBatchEncoder::encode(&mut self.bytes, &records, &options).expect("they can be written");
            self.next += i64::try_from(records.len()).expect("there are few");
            self
        }

        /// What is read of an answer that begins with the batch in which `from` is.
        fn read_from(&self, from: u64, aborted: &[(i64, i64)]) -> Vec<u64> {
            let (_, at) = self.batches.iter().rfind(|(first, _)| *first <= from).expect("there are batches");
            let aborted = aborted.iter().map(|(producer, first)| {
                AbortedTransaction::default().with_producer_id(ProducerId(*producer)).with_first_offset(*first)
            });
            let found = read(Bytes::copy_from_slice(&self.bytes[*at..]), from, aborted.collect());
            assert_eq!((found.next, found.unreadable), (Some(self.next.unsigned_abs()), None));
            for entry in &found.entries {
                assert_eq!(entry.record.value, entry.offset.to_string(), "it is another record");
            }
            found.entries.into_iter().map(|entry| entry.offset).collect()
        }
    }

    #[test]
    fn records_of_an_aborted_transaction_are_left_out_and_no_others() {
        let partition = Partition::default()
            .records(NOBODY, 1)
            .records(MARY, 2)
            .records(PAUL, 1)
            .records(NOBODY, 1)
            .records(MARY, 1)
            .marker(MARY, ABORT)
            .records(PAUL, 1)
            .marker(PAUL, COMMIT)
            .records(NOBODY, 1);
        assert_eq!(partition.read_from(0, &[(MARY, 1)]), [0, 3, 4, 7, 9]);
        assert_eq!(
            partition.read_from(0, &[]),
            [0, 1, 2, 3, 4, 5, 7, 9],
            "nothing is aborted that the broker does not name"
        );
    }

    #[test]
    fn what_a_producer_does_before_and_behind_an_aborted_transaction_stays() {
        let partition = Partition::default()
            .records(MARY, 1)
            .marker(MARY, COMMIT)
            .records(MARY, 1)
            .marker(MARY, ABORT)
            .records(MARY, 1)
            .marker(MARY, COMMIT)
            .records(MARY, 2)
            .marker(MARY, ABORT);
        // In whichever order the broker names them.
        for aborted in [[(MARY, 2), (MARY, 6)], [(MARY, 6), (MARY, 2)]] {
            assert_eq!(partition.read_from(0, &aborted), [0, 4]);
        }
    }

    #[test]
    fn transaction_that_began_before_the_answer_is_left_out() {
        let partition = Partition::default()
            .records(MARY, 3)
            .records(NOBODY, 1)
            .records(MARY, 3)
            .marker(MARY, ABORT)
            .records(MARY, 1)
            .marker(MARY, COMMIT);
        // Its first offset is named all the same, wherever the answer begins.
        for from in [1, 3] {
            assert_eq!(partition.read_from(from, &[(MARY, 0)]), [3, 8]);
        }
        for from in [4, 6, 7] {
            assert_eq!(partition.read_from(from, &[(MARY, 0)]), [8]);
        }
    }

    #[test]
    fn transactions_that_are_aborted_side_by_side_end_each_with_its_own_marker() {
        let partition = Partition::default()
            .records(MARY, 1)
            .records(PAUL, 1)
            .marker(MARY, ABORT)
            .records(PAUL, 1)
            .records(MARY, 1)
            .marker(PAUL, ABORT)
            .marker(MARY, COMMIT)
            .records(PAUL, 1)
            .marker(PAUL, COMMIT);
        assert_eq!(partition.read_from(0, &[(MARY, 0), (PAUL, 1)]), [4, 7]);
    }

    #[test]
    fn record_outside_of_a_transaction_is_not_aborted_whoever_made_it() {
        // A producer that only wants its records once has an id as well.
        let plain = Record { transactional: false, ..record(MARY, 1) };
        let partition = Partition::default().records(MARY, 1).batch(vec![plain]).marker(MARY, ABORT);
        assert_eq!(partition.read_from(0, &[(MARY, 0)]), [1]);
    }
}
