//! The payload of a checkpoint's frame.
//!
//! ```text
//! | log id 16 | watermark u64 | state |
//! ```

use bytes::{Buf, Bytes};

use super::frame::{Kind, Seed, encode_frame};
use crate::log::Checkpoint;

/// Bytes that a checkpoint takes beside its state.
pub const OVERHEAD_BYTES: usize = super::frame::FRAME_HEADER_BYTES + 24;

pub fn encode(into: &mut Vec<u8>, seed: Seed, log_id: [u8; 16], next_seq: u64, checkpoint: &Checkpoint) {
    let parts: [&[u8]; 3] = [&log_id, &checkpoint.watermark.to_le_bytes(), &checkpoint.state];
    encode_frame(into, seed, Kind::Checkpoint, next_seq, &parts);
}

/// `None` where the checkpoint is not of this log.
pub fn decode(mut payload: Bytes, log_id: [u8; 16]) -> Option<Checkpoint> {
    if payload.len() < 24 || payload.split_to(16) != log_id[..] {
        return None;
    }
    let watermark = payload.get_u64_le();
    // A copy: a slice would keep the chunk that it was read with.
    Some(Checkpoint { watermark, state: Bytes::copy_from_slice(&payload) })
}
