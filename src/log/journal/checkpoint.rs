//! The payload of a checkpoint's frame.
//!
//! ```text
//! | log id 16 | watermark u64 | state |
//! ```

use bytes::{Buf, Bytes};

use super::frame::{Frame, Kind, Seed, encode_frame};
use crate::log::Checkpoint;

/// Bytes that a checkpoint takes beside its state.
pub const OVERHEAD_BYTES: usize = super::frame::FRAME_HEADER_BYTES + 24;

/// A longer state makes a frame that no reader would take for one.
pub const MAX_STATE_BYTES: usize = super::frame::MAX_PAYLOAD_BYTES - 24;

pub fn encode(into: &mut Vec<u8>, seed: Seed, log_id: [u8; 16], next_seq: u64, checkpoint: &Checkpoint) {
    let parts: [&[u8]; 3] = [&log_id, &checkpoint.watermark.to_le_bytes(), &checkpoint.state];
    encode_frame(into, seed, Kind::Checkpoint, next_seq, &parts);
}

/// `None` where the checkpoint is not one that this log's writer wrote: one of another log, or one that calls records
/// finished which had no number yet. The one before it counts then, because repeating what is finished is safe, and
/// passing over what is not would lose it.
pub fn decode(frame: &Frame, log_id: [u8; 16]) -> Option<Checkpoint> {
    if frame.kind != Kind::Checkpoint || frame.payload.len() < 24 || !frame.payload.starts_with(&log_id) {
        return None;
    }
    let mut payload = &frame.payload[16..];
    let watermark = payload.get_u64_le();
    // A copy: a slice would keep the chunk that it was read with.
    (watermark <= frame.seq).then(|| Checkpoint { watermark, state: Bytes::copy_from_slice(payload) })
}
