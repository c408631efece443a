//! Records that were compressed by who produced them, or by a broker that was told to.

use std::io::Read as _;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

/// As many bytes as a batch may have once it is unpacked: a small one may say that it is huge.
const MAX_UNPACKED_BYTES: usize = 32 << 20;

const NONE: i16 = 0;
const GZIP: i16 = 1;
const SNAPPY: i16 = 2;

/// What the blocks of Java's Snappy begin with; a version and the oldest compatible one, four bytes each, follow.
const JAVA_SNAPPY: &[u8] = b"\x82SNAPPY\0";
const JAVA_HEAD_BYTES: usize = 16;

const TOO_MUCH: &str = "it has too many bytes once it is unpacked";
const CUT_OFF: &str = "its Snappy is cut off";
const BROKEN: &str = "its Snappy is broken";

/// Unpacks the records of a batch. `kind` is in the batch's attributes.
///
/// # Errors
///
/// Why it cannot be done, as the end of a sentence.
pub(super) fn unpack(kind: i16, packed: Bytes) -> Result<Bytes, &'static str> {
    match kind {
        NONE => Ok(packed),
        GZIP => gunzip(&packed).map(Bytes::from),
        SNAPPY => unsnap(&packed).map(Bytes::from),
        _ => Err("it is compressed in a way that is not read here"),
    }
}

fn gunzip(packed: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut unpacked = Vec::new();
    let bounded = MultiGzDecoder::new(packed).take(MAX_UNPACKED_BYTES as u64 + 1).read_to_end(&mut unpacked);
    bounded.map_err(|_| "its gzip is broken")?;
    if unpacked.len() > MAX_UNPACKED_BYTES {
        return Err(TOO_MUCH);
    }
    Ok(unpacked)
}

/// As one block, or as Java writes it: as many, each with its length.
fn unsnap(packed: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut unpacked = Vec::new();
    if !packed.starts_with(JAVA_SNAPPY) {
        unsnap_block(packed, &mut unpacked)?;
        return Ok(unpacked);
    }
    let mut rest = packed.get(JAVA_HEAD_BYTES..).ok_or(CUT_OFF)?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or(CUT_OFF)?;
        let (block, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or(CUT_OFF)?;
        unsnap_block(block, &mut unpacked)?;
        rest = after;
    }
    Ok(unpacked)
}

fn unsnap_block(block: &[u8], unpacked: &mut Vec<u8>) -> Result<(), &'static str> {
    let start = unpacked.len();
    let length = snap::raw::decompress_len(block).map_err(|_| BROKEN)?;
    if start + length > MAX_UNPACKED_BYTES {
        return Err(TOO_MUCH);
    }
    unpacked.resize(start + length, 0);
    snap::raw::Decoder::new().decompress(block, &mut unpacked[start..]).map(drop).map_err(|_| BROKEN)
}
