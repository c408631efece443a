//! How a record lies in the spool: with its ordering key, so that the partition is computed when it is forwarded, and
//! so that the remote log gets the same headers and value as it would have got at once.
//!
//! ```text
//! a journal's record without headers, with the value:
//!
//! | version u8 = 1 | length of the key u32 | length of the headers u32 | ordering key | headers | value |
//! ```
//!
//! Numbers are little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::log::{Headers, NewRecord, Record, journal::RECORD_OVERHEAD_BYTES};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 9;
/// Formats to come. Other bytes, the first of a text among them, begin something else.
const NEWER: std::ops::Range<u8> = VERSION + 1..b' ';

/// Why bytes of the spool are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("it has format {0}, which a later version of Redrive wrote")]
    Newer(u8),
    #[error("it is no record of a spool")]
    Malformed,
}

/// What a record takes in the journal.
pub fn stored_bytes(new: &NewRecord) -> usize {
    RECORD_OVERHEAD_BYTES + HEAD_BYTES + new.ordering_key.len() + new.record.size()
}

/// The journal's record of a record.
pub fn encode(new: &NewRecord) -> NewRecord {
    let headers = new.record.headers.as_bytes();
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).expect("the journal's limit for a request is far below");
    let mut value = BytesMut::with_capacity(HEAD_BYTES + new.ordering_key.len() + new.record.size());
    value.put_u8(VERSION);
    value.put_u32_le(length(&new.ordering_key));
    value.put_u32_le(length(headers));
    value.put_slice(&new.ordering_key);
    value.put_slice(headers);
    value.put_slice(&new.record.value);
    // A journal has one partition.
    NewRecord { ordering_key: Bytes::new(), record: Record { headers: Headers::default(), value: value.freeze() } }
}

/// The record of a journal's record.
pub fn decode(record: &Record) -> Result<NewRecord, FrameError> {
    let mut rest = record.value.clone();
    match rest.first() {
        Some(&VERSION) if rest.len() >= HEAD_BYTES => rest.advance(1),
        Some(&version) if NEWER.contains(&version) => return Err(FrameError::Newer(version)),
        _ => return Err(FrameError::Malformed),
    }
    let (key_len, headers_len) = (rest.get_u32_le() as usize, rest.get_u32_le() as usize);
    if key_len.saturating_add(headers_len) > rest.len() {
        return Err(FrameError::Malformed);
    }
    let ordering_key = rest.split_to(key_len);
    let headers = Headers::from_packed(rest.split_to(headers_len));
    Ok(NewRecord { ordering_key, record: Record { headers, value: rest } })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn new_record(key: &[u8], headers: &[u8], value: &[u8]) -> NewRecord {
        let headers = Headers::from_packed(Bytes::copy_from_slice(headers));
        let record = Record { headers, value: Bytes::copy_from_slice(value) };
        NewRecord { ordering_key: Bytes::copy_from_slice(key), record }
    }

    #[test]
    fn format_stays_as_it_is() {
        let encoded = encode(&new_record(b"user:1", b"\x01a\x01\x00b", b"{}"));
        let golden = b"\x01\x06\x00\x00\x00\x05\x00\x00\x00user:1\x01a\x01\x00b{}";
        assert_eq!(&encoded.record.value[..], golden);
        assert_eq!(encoded.record.headers, Headers::default());
    }

    #[test]
    fn what_is_no_record_is_told_from_what_is_newer() {
        let decoded = |value: &'static [u8]| {
            decode(&Record { headers: Headers::default(), value: Bytes::from_static(value) }).map(|_| ())
        };
        assert_eq!(decoded(b"\x02"), Err(FrameError::Newer(2)));
        let too_long = b"\x01\xff\xff\xff\xff\xff\xff\xff\xff";
        for malformed in [&b""[..], b"{}", b"\x00", b"\x01", b"\x01\x01\x00\x00\x00\x00\x00\x00\x00", too_long] {
            assert_eq!(decoded(malformed), Err(FrameError::Malformed), "{malformed:?}");
        }
    }

    proptest! {
        #[test]
        fn remote_gets_what_was_appended(key in vec(any::<u8>(), 0..100), headers in vec(any::<u8>(), 0..100), value: Vec<u8>) {
            let new = new_record(&key, &headers, &value);
            let encoded = encode(&new);
            prop_assert_eq!(encoded.record.size() + RECORD_OVERHEAD_BYTES, stored_bytes(&new));
            let decoded = decode(&encoded.record).expect("it was encoded");
            prop_assert_eq!(decoded.ordering_key, new.ordering_key);
            prop_assert_eq!(decoded.record, new.record);
        }
    }
}
