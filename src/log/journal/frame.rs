//! The bytes of a journal: the header of a segment and the frames in it. Pure encoding and checking; the picture is in
//! the [module's documentation](super).
//!
//! The invariant: bytes that were not written as a frame of *this* segment are not taken for one. The magic is not
//! valid UTF-8, so no JSON value holds it, and the checksum starts from the segment's random nonce, so neither does
//! a value that was made to look like a frame, nor a frame of another segment.

use bytes::{Buf, Bytes};

/// The version of the format that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;

/// Where a segment's first frame is. The header is there twice, in two blocks far enough apart that no one damaged
/// block takes the nonce, and with it every frame of the segment, away.
pub const FRAMES_START: u64 = 2048;
const SECOND_COPY: usize = 1024;
const SEGMENT_MAGIC: [u8; 8] = *b"\xffREDRIVE";
const SEGMENT_HEADER_BYTES: usize = 68;

pub const FRAME_HEADER_BYTES: usize = 22;
pub const FRAME_MAGIC: [u8; 4] = [0xff, b'r', 0xfe, b'd'];

/// A frame is never longer than this, so a damaged length cannot make a reader allocate more.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A record of a queue; takes a sequence number.
    Record = 1,
    /// How far the consumer has come; carries the number of the next record.
    Checkpoint = 2,
    /// A table's key and value; takes a sequence number.
    Put = 3,
    /// A table's key, removed; takes a sequence number.
    Delete = 4,
    /// Written first after an unfinished write was cut off: numbers skipped before it were lost to nobody.
    Resume = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Record,
            2 => Self::Checkpoint,
            3 => Self::Put,
            4 => Self::Delete,
            5 => Self::Resume,
            _ => return None,
        })
    }

    /// Whether the frame's sequence number is its own, and not that of the next one that takes a number.
    pub fn takes_number(self) -> bool {
        matches!(self, Self::Record | Self::Put | Self::Delete)
    }
}

/// A frame as read. `payload` is a slice of the chunk that was read from disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub seq: u64,
    pub payload: Bytes,
}

/// What a segment's checksums start from: a digest of its nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

/// The fixed part in front of a payload, before its checksum was looked at.
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    pub kind: Kind,
    pub seq: u64,
    pub len: usize,
    checked: [u8; 14],
    crc: u32,
}

impl FrameHeader {
    /// `None` where this cannot be a frame of this version.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk()?;
        let mut rest = bytes.strip_prefix(&FRAME_MAGIC)?;
        let checked = *rest.first_chunk()?;
        let kind = Kind::from_byte(rest.get_u8())?;
        let flags = rest.get_u8();
        let len = rest.get_u32_le() as usize;
        let seq = rest.get_u64_le();
        let crc = rest.get_u32_le();
        (flags == 0 && len <= MAX_PAYLOAD_BYTES).then_some(Self { kind, seq, len, checked, crc })
    }

    pub fn fits(&self, seed: Seed, payload: &[u8]) -> bool {
        checksum(seed, &self.checked, &[payload]) == self.crc
    }
}

/// Appends a frame to `into`. The payload is given in parts, to be laid down one after the other.
pub fn encode_frame(into: &mut Vec<u8>, seed: Seed, kind: Kind, seq: u64, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    debug_assert!(len <= MAX_PAYLOAD_BYTES, "admission bounds what becomes a frame");
    let mut checked = [0; 14];
    checked[0] = kind as u8;
    checked[2..6].copy_from_slice(&(len as u32).to_le_bytes());
    checked[6..].copy_from_slice(&seq.to_le_bytes());
    let crc = checksum(seed, &checked, parts);
    into.reserve(FRAME_HEADER_BYTES + len);
    into.extend_from_slice(&FRAME_MAGIC);
    into.extend_from_slice(&checked);
    into.extend_from_slice(&crc.to_le_bytes());
    for part in parts {
        into.extend_from_slice(part);
    }
}

fn checksum(seed: Seed, checked: &[u8; 14], parts: &[&[u8]]) -> u32 {
    let head = crc32c::crc32c_append(seed.0, checked);
    parts.iter().fold(head, |crc, part| crc32c::crc32c_append(crc, part))
}

/// The payload of [`Kind::Record`], [`Kind::Put`] and [`Kind::Delete`]: headers and value, or key and value.
///
/// ```text
/// | length of the first u32 | first | second |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub first: Bytes,
    pub second: Bytes,
}

impl Pair {
    pub const OVERHEAD_BYTES: usize = 4;

    pub fn encode(&self, into: &mut Vec<u8>, seed: Seed, kind: Kind, seq: u64) {
        let length = (self.first.len() as u32).to_le_bytes();
        encode_frame(into, seed, kind, seq, &[&length, &self.first, &self.second]);
    }

    /// `None` where the payload is not of this form, which a right checksum excludes.
    pub fn decode(mut payload: Bytes) -> Option<Self> {
        let length = payload.try_get_u32_le().ok()? as usize;
        (length <= payload.len()).then(|| {
            let first = payload.split_to(length);
            Self { first, second: payload }
        })
    }

    /// Bytes that this takes as a frame on disk.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + Self::OVERHEAD_BYTES + self.first.len() + self.second.len()
    }
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the journal: the same in all of its segments and in no other journal's.
    pub log_id: [u8; 16],
    /// Of the segment: random, so that its checksums fit nowhere else.
    pub nonce: [u8; 16],
    /// Counts the segments of the journal.
    pub ordinal: u64,
    /// The sequence number of the first record that may be in it.
    pub first_seq: u64,
}

/// What was found where a segment's header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundHeader {
    Valid(SegmentHeader),
    /// Written by a later version of Redrive: not damage, but nothing that may be touched.
    Newer(u8),
    Unreadable,
}

impl SegmentHeader {
    pub fn seed(&self) -> Seed {
        Seed(crc32c::crc32c(&self.nonce))
    }

    /// The bytes in front of the first frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        copy.extend_from_slice(&SEGMENT_MAGIC);
        copy.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
        copy.extend_from_slice(&self.log_id);
        copy.extend_from_slice(&self.nonce);
        copy.extend_from_slice(&self.ordinal.to_le_bytes());
        copy.extend_from_slice(&self.first_seq.to_le_bytes());
        copy.extend_from_slice(&crc32c::crc32c(&copy).to_le_bytes());
        let mut bytes = vec![0; FRAMES_START as usize];
        for at in [0, SECOND_COPY] {
            bytes[at..at + SEGMENT_HEADER_BYTES].copy_from_slice(&copy);
        }
        bytes
    }

    /// Reads a header from the first bytes of a file, of which there may be too few.
    pub fn decode(bytes: &[u8]) -> FoundHeader {
        [0, SECOND_COPY]
            .into_iter()
            .filter_map(|at| Self::decode_copy(bytes.get(at..)?.first_chunk()?))
            .next()
            .unwrap_or(FoundHeader::Unreadable)
    }

    /// A version counts only under a right checksum, so that a flipped bit does not look like a later version. The
    /// place of magic, version and checksum is fixed for every version to come.
    fn decode_copy(copy: &[u8; SEGMENT_HEADER_BYTES]) -> Option<FoundHeader> {
        let (content, crc) = copy.split_at(SEGMENT_HEADER_BYTES - 4);
        if crc32c::crc32c(content).to_le_bytes() != crc || !content.starts_with(&SEGMENT_MAGIC) {
            return None;
        }
        let version = content[8];
        if version > VERSION {
            return Some(FoundHeader::Newer(version));
        }
        let mut rest = &content[16..];
        let mut log_id = [0; 16];
        let mut nonce = [0; 16];
        rest.copy_to_slice(&mut log_id);
        rest.copy_to_slice(&mut nonce);
        Some(FoundHeader::Valid(Self { log_id, nonce, ordinal: rest.get_u64_le(), first_seq: rest.get_u64_le() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader { log_id: *b"0123456789abcdef", nonce: *b"fedcba9876543210", ordinal: 3, first_seq: 77 }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn frame_keeps_its_bytes_across_releases() {
        let mut bytes = Vec::new();
        let pair = Pair { first: Bytes::from_static(b"h"), second: Bytes::from_static(b"{\"v\":1}") };
        pair.encode(&mut bytes, header().seed(), Kind::Record, 258);
        assert_eq!(hex(&bytes), "ff72fe6401000c00000002010000000000000c279b0901000000687b2276223a317d");
    }

    #[test]
    fn segment_header_keeps_its_bytes_across_releases() {
        let bytes = header().encode();
        assert_eq!(bytes.len() as u64, FRAMES_START);
        assert_eq!(
            hex(&bytes[..SEGMENT_HEADER_BYTES]),
            concat!(
                "ff5245445249564501000000000000003031323334353637383961626364656666656463",
                "62613938373635343332313003000000000000004d000000000000007e2a0626"
            )
        );
        assert_eq!(bytes[..SEGMENT_HEADER_BYTES], bytes[SECOND_COPY..SECOND_COPY + SEGMENT_HEADER_BYTES]);
    }

    #[test]
    fn frame_is_refused_after_any_flipped_bit() {
        let mut bytes = Vec::new();
        let pair = Pair { first: Bytes::from_static(b"head"), second: Bytes::from_static(b"value") };
        pair.encode(&mut bytes, header().seed(), Kind::Record, 9);
        let fits = |bytes: &[u8]| {
            FrameHeader::parse(bytes).is_some_and(|head| {
                bytes
                    .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + head.len)
                    .is_some_and(|p| head.fits(header().seed(), p))
            })
        };
        assert!(fits(&bytes));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!fits(&bytes), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn frame_of_another_segment_is_refused() {
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, header().seed(), Kind::Resume, 9, &[]);
        let other = SegmentHeader { nonce: [1; 16], ..header() };
        assert!(!FrameHeader::parse(&bytes).expect("it is well formed").fits(other.seed(), &[]));
    }

    #[test]
    fn header_survives_the_loss_of_one_copy() {
        let bytes = header().encode();
        for at in 0..bytes.len() - 512 {
            let mut damaged = bytes.clone();
            damaged[at..at + 512].fill(0);
            assert_eq!(SegmentHeader::decode(&damaged), FoundHeader::Valid(header()), "zeroed from {at}");
        }
    }

    #[test]
    fn later_version_is_told_from_damage() {
        let mut bytes = header().encode();
        bytes[8] = VERSION + 1;
        assert_eq!(
            SegmentHeader::decode(&bytes),
            FoundHeader::Valid(header()),
            "a flipped bit: the other copy decides"
        );
        let crc = crc32c::crc32c(&bytes[..64]).to_le_bytes();
        bytes[64..68].copy_from_slice(&crc);
        assert_eq!(SegmentHeader::decode(&bytes), FoundHeader::Newer(VERSION + 1));
    }
}
