//! Batches of records, as brokers send them and whoever produced made them. A record's value is a slice of the answer:
//! nothing is copied but headers, whose form is another one here.
//!
//! ```text
//! | base offset i64 | length i32 | leader epoch i32 | version i8 = 2 | CRC-32C u32 | attributes i16 |
//! | last offset delta i32 | first time i64 | last time i64 | producer 14 bytes | count i32 | records ... |
//!
//! record:  | length | attributes i8 | time delta | offset delta | key | value | count | headers ... |
//! header:  | name | value |
//! ```
//!
//! Numbers are big-endian; those of a record are zigzag varints, and its texts have one for their length, -1 for none.
//! What cannot be taken apart is handed out whole, as one record: it is no task, and becomes a dead letter with its bytes.

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::AbortedTransaction;

use self::transactions::Aborted;
use crate::log::{Entry, Headers, HeadersBuilder, Record};

mod compression;
mod transactions;

/// From the beginning to the attributes, and to the records.
const CHECKED_FROM: usize = 21;
const HEAD_BYTES: usize = 61;
/// What the length does not count.
const LENGTH_END: usize = 12;
/// Lengths, deltas and a count of one byte each.
const LEAST_RECORD_BYTES: usize = 7;

const VERSION: u8 = 2;
const COMPRESSION: i16 = 0b111;
const TIME_IS_OF_THE_LOG: i16 = 0b1000;
const TRANSACTIONAL: i16 = 0b1_0000;
const CONTROL: i16 = 0b10_0000;

/// As much of a batch that cannot be read is kept.
pub(super) const MAX_KEPT_BYTES: usize = 256 << 10;

/// What came of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batches {
    pub(super) entries: Vec<Entry>,
    /// The offset after the last of them; none: there was no whole batch.
    pub(super) next: Option<u64>,
    /// A batch that is handed out as one record, the last of them.
    pub(super) unreadable: Option<Unreadable>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) bytes: usize,
    pub(super) why: &'static str,
}

/// Takes whole batches apart; one that is cut off at the end, as brokers do, is left. Records below `from` are left out,
/// and those of the transactions that the broker calls aborted.
pub(super) fn read(mut answer: Bytes, from: u64, aborted: Vec<AbortedTransaction>) -> Batches {
    let mut found = Batches::default();
    let mut aborted = Aborted::new(aborted);
    while let Some(batch) = next_batch(&mut answer) {
        let first = number(&batch, 0);
        let last = first + u64::from(u32::from_be_bytes(take(&batch, 23)));
        if last < from {
            continue;
        }
        found.next = Some(last + 1);
        match committed(&batch, last, &mut aborted) {
            Ok(entries) => found.entries.extend(entries.into_iter().filter(|entry| entry.offset >= from)),
            Err(why) => {
                let bytes = batch.len();
                let record = Record { headers: Headers::default(), value: batch.slice(..bytes.min(MAX_KEPT_BYTES)) };
                let appended_at_ms = i64::try_from(number(&batch, 35)).ok();
                found.entries.push(Entry { offset: last, record, appended_at_ms });
                found.unreadable = Some(Unreadable { first, last, bytes, why });
                // It may be what ends an aborted transaction. Asked for what comes next, the broker says again which
                // of those that reach into it were aborted.
                break;
            }
        }
    }
    found
}

fn next_batch(answer: &mut Bytes) -> Option<Bytes> {
    if answer.len() < HEAD_BYTES {
        return None;
    }
    let length = usize::try_from(i32::from_be_bytes(take(answer, 8))).ok()?.checked_add(LENGTH_END)?;
    (length >= HEAD_BYTES && length <= answer.len()).then(|| answer.split_to(length))
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a batch has at least its head")
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::try_from(i64::from_be_bytes(take(bytes, at))).unwrap_or(0)
}

fn attributes(batch: &[u8]) -> i16 {
    i16::from_be_bytes(take(batch, 21))
}

/// The records of a batch; of one that only controls, or that was aborted, none.
fn committed(batch: &Bytes, last: u64, aborted: &mut Aborted) -> Result<Vec<Entry>, &'static str> {
    if batch[16] != VERSION {
        return Err("its format is older than that of Kafka 0.11");
    }
    if crc32c::crc32c(&batch[CHECKED_FROM..]) != u32::from_be_bytes(take(batch, 17)) {
        return Err("its checksum is wrong");
    }
    if aborted.take(batch, last) || attributes(batch) & CONTROL != 0 {
        return Ok(Vec::new());
    }
    records(batch)
}

fn records(batch: &Bytes) -> Result<Vec<Entry>, &'static str> {
    let attributes = attributes(batch);
    let records = compression::unpack(attributes & COMPRESSION, batch.slice(HEAD_BYTES..))?;
    let first_time = i64::from_be_bytes(take(batch, 27));
    let last_time = i64::from_be_bytes(take(batch, 35));
    let base = number(batch, 0);
    let mut rest: &[u8] = &records;
    // What it says of their number is checked by nobody.
    let count = u32::from_be_bytes(take(batch, 57)) as usize;
    let mut entries = Vec::with_capacity(count.min(rest.len() / LEAST_RECORD_BYTES));
    while !rest.is_empty() {
        let record = field(&mut rest).flatten().ok_or("a record of it is cut off")?;
        let parsed = record_in(record, &records).ok_or("a record of it cannot be taken apart")?;
        let (time_delta, offset_delta, record) = parsed;
        let at_ms =
            if attributes & TIME_IS_OF_THE_LOG != 0 { last_time } else { first_time.saturating_add(time_delta) };
        let offset = base.checked_add(u64::try_from(offset_delta).map_err(|_| "an offset of it is negative")?);
        let offset = offset.ok_or("an offset of it is too large")?;
        entries.push(Entry { offset, record, appended_at_ms: Some(at_ms) });
    }
    Ok(entries)
}

/// The deltas of its time and offset, and what of it has a place here: a slice of `records`, and its headers.
fn record_in(mut bytes: &[u8], records: &Bytes) -> Option<(i64, i64, Record)> {
    bytes = bytes.get(1..)?;
    let (time_delta, offset_delta) = (varint(&mut bytes)?, varint(&mut bytes)?);
    let _key = field(&mut bytes)?;
    let value = field(&mut bytes)?.map(|value| records.slice_ref(value)).unwrap_or_default();
    let count = varint(&mut bytes)?;
    // Lengths of two bytes and more in all are there already, and three are needed.
    let mut headers = HeadersBuilder::with_capacity(bytes.len() + usize::try_from(count).unwrap_or(0).min(bytes.len()));
    for _ in 0..count {
        let name = String::from_utf8_lossy(field(&mut bytes)??);
        let value = field(&mut bytes)?.unwrap_or_default();
        if name.len() <= usize::from(u8::MAX) && value.len() <= usize::from(u16::MAX) {
            headers.push(&name, value);
        }
    }
    Some((time_delta, offset_delta, Record { headers: headers.build(), value }))
}

/// Bytes with their length before them; `Some(None)` where there are none on purpose.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = varint(bytes)?;
    if length == -1 {
        return Some(None);
    }
    let (field, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(Some(field))
}

fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
pub(super) mod testing {
    use bytes::{BufMut, BytesMut};

    pub(in crate::log::kafka) type Header<'a> = (&'a [u8], Option<&'a [u8]>);

    /// A batch as a producer sends it, of records with a value and headers.
    pub(in crate::log::kafka) fn batch(attributes: i16, time: i64, records: &[(&[u8], &[Header<'_>])]) -> Vec<u8> {
        raw_batch(attributes, time, records.len() as i32, &pack(records))
    }

    pub(in crate::log::kafka) fn pack(records: &[(&[u8], &[Header<'_>])]) -> Vec<u8> {
        let mut packed = BytesMut::new();
        for (index, (value, headers)) in records.iter().enumerate() {
            let mut record = BytesMut::new();
            record.put_u8(0);
            put_varint(&mut record, 0);
            put_varint(&mut record, index as i64);
            put_field(&mut record, Some(b"key"));
            put_field(&mut record, Some(value));
            put_varint(&mut record, headers.len() as i64);
            for (name, value) in *headers {
                put_field(&mut record, Some(name));
                put_field(&mut record, *value);
            }
            put_field(&mut packed, Some(&record));
        }
        packed.to_vec()
    }

    pub(in crate::log::kafka) fn raw_batch(attributes: i16, time: i64, count: i32, records: &[u8]) -> Vec<u8> {
        let mut checked = BytesMut::new();
        checked.put_i16(attributes);
        checked.put_i32(count - 1);
        checked.put_i64(time);
        checked.put_i64(time);
        checked.put_i64(-1);
        checked.put_i16(-1);
        checked.put_i32(-1);
        checked.put_i32(count);
        checked.put_slice(records);
        let mut batch = BytesMut::new();
        batch.put_i64(0);
        batch.put_i32(9 + checked.len() as i32);
        batch.put_i32(-1);
        batch.put_u8(super::VERSION);
        batch.put_u32(crc32c::crc32c(&checked));
        batch.put_slice(&checked);
        batch.to_vec()
    }

    fn put_field(out: &mut BytesMut, field: Option<&[u8]>) {
        put_varint(out, field.map_or(-1, |field| field.len() as i64));
        out.put_slice(field.unwrap_or_default());
    }

    fn put_varint(out: &mut BytesMut, value: i64) {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            out.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.put_u8(rest as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{testing::batch, *};

    fn read(answer: Bytes, from: u64) -> Batches {
        super::read(answer, from, Vec::new())
    }

    fn headers(entry: &Entry) -> Vec<(String, Vec<u8>)> {
        entry.record.headers.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
    }

    #[test]
    fn odd_headers_are_read_and_records_before_the_start_are_not() {
        let odd: &[testing::Header<'_>] = &[(b"none", None), (b"\xff", Some(b"v"))];
        let mut answer = batch(0, 1000, &[(b"{}", &[]), (b"{\"a\":1}", odd)]);
        let torn = answer.clone();
        answer.extend_from_slice(&torn[..torn.len() - 1]);
        let read = read(answer.into(), 1);
        assert_eq!((read.next, &read.unreadable, read.entries.len()), (Some(2), &None, 1));
        let entry = &read.entries[0];
        assert_eq!((entry.offset, &entry.record.value[..], entry.appended_at_ms), (1, &b"{\"a\":1}"[..], Some(1000)));
        assert_eq!(headers(entry), [("none".to_owned(), Vec::new()), ("\u{fffd}".to_owned(), b"v".to_vec())]);
    }

    #[test]
    fn header_that_has_no_place_is_left_out() {
        let value = vec![b'v'; 65_536];
        let (longest, too_long) = ("n".repeat(255), "n".repeat(256));
        let headers: &[testing::Header<'_>] = &[
            (b"a", Some(&value[1..])),
            (b"b", Some(&value)),
            (longest.as_bytes(), Some(b"v")),
            (too_long.as_bytes(), Some(b"v")),
            (b"z", Some(b"")),
        ];
        let read = read(batch(0, 0, &[(b"{}", headers)]).into(), 0);
        let names: Vec<String> = self::headers(&read.entries[0]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", &longest, "z"]);
    }

    #[test]
    fn value_is_a_slice_of_what_was_read() {
        let answer = Bytes::from(batch(0, 0, &[(b"{}", &[])]));
        let read = read(answer.clone(), 0);
        let value = &read.entries[0].record.value;
        assert!(answer.as_ptr_range().contains(&value.as_ptr()), "{value:?}");
    }

    #[test]
    fn batch_that_cannot_be_read_is_one_record_with_its_bytes() {
        let check = |answer: Vec<u8>, why: &str| {
            let bytes = answer.clone();
            let read = read(answer.into(), 0);
            assert_eq!((read.next, read.entries[0].offset), (Some(2), 1));
            assert_eq!(read.entries[0].record.value, bytes);
            assert!(read.unreadable.as_ref().is_some_and(|batch| batch.why.contains(why)), "{:?}", read.unreadable);
        };
        check(testing::raw_batch(4, 0, 2, b"zstd"), "compressed");
        check(testing::raw_batch(1, 0, 2, b"no gzip"), "gzip is broken");
        check(testing::raw_batch(2, 0, 2, b"\x05no Snappy"), "Snappy is broken");
        check(testing::raw_batch(2, 0, 2, b"\x82SNAPPY\0 version and more"), "Snappy is cut off");
        // As many bytes as four can say.
        check(testing::raw_batch(2, 0, 2, b"\xff\xff\xff\xff\x0f"), "too many bytes");
        check(testing::raw_batch(0, 0, 2, b"\x7f"), "cut off");
        check(testing::raw_batch(0, 0, 2, b"\x02\x00"), "taken apart");
        let mut damaged = batch(0, 0, &[(b"1", &[]), (b"2", &[])]);
        *damaged.last_mut().expect("it has bytes") ^= 1;
        check(damaged, "checksum");
    }

    #[test]
    fn nothing_is_read_behind_a_batch_that_cannot_be() {
        let mut answer = testing::raw_batch(4, 0, 2, b"zstd");
        let first = answer.len();
        answer.extend_from_slice(&batch(0, 0, &[(b"behind", &[])]));
        let read = read(answer.into(), 0);
        assert_eq!((read.next, read.entries.len()), (Some(2), 1));
        assert_eq!(read.entries[0].record.value.len(), first);
    }

    #[test]
    fn control_batch_has_no_record() {
        let read = read(batch(CONTROL, 0, &[(b"x", &[])]).into(), 0);
        assert_eq!(read, Batches { next: Some(1), ..Batches::default() });
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(records in vec(any::<u8>(), 0..200), attributes: i16, junk in vec(any::<u8>(), 0..100)) {
            read(junk.into(), 0);
            let read = read(testing::raw_batch(attributes, 0, 3, &records).into(), 0);
            prop_assert_eq!(read.next, Some(3));
        }
    }
}
