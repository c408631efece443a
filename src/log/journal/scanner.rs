//! Goes through the frames of one segment's file and past what is damaged in it. What a damaged place means is
//! decided by [`audit`](super::audit).
//!
//! The invariant: every step ends behind where it began, so no content makes a reader stand still.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    disk::{DiskFile, read_full_at},
    frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, Frame, FrameHeader, Seed},
};

/// What one read asks the disk for. Records are slices of such a chunk.
pub const CHUNK_BYTES: usize = 256 * 1024;

pub struct Scanner {
    file: Arc<dyn DiskFile>,
    seed: Seed,
    /// Where the next frame should begin.
    at: u64,
    /// Bytes from here on are not looked at.
    limit: u64,
    chunk: Bytes,
    chunk_at: u64,
    chunk_bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Frame(Frame),
    /// Bytes that are no frame, up to the next one, or to the last byte that is not zero.
    Damage {
        bytes: Range<u64>,
        /// Whether a frame follows.
        inside: bool,
    },
    /// Nothing but zeros follows.
    End,
}

impl Scanner {
    pub fn new(file: Arc<dyn DiskFile>, seed: Seed, at: u64, limit: u64) -> Self {
        Self { file, seed, at, limit, chunk: Bytes::new(), chunk_at: 0, chunk_bytes: CHUNK_BYTES }
    }

    /// Where the next step begins: behind the last frame, or behind damage.
    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Lets a reader that follows the writer see what has been synced since.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Goes on at another place of the same file.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// Gives the buffer back while there is nothing to read.
    pub fn shrink(&mut self) {
        self.chunk = Bytes::new();
    }

    pub fn step(&mut self) -> io::Result<Step> {
        if let Some((frame, end)) = self.frame_at(self.at)? {
            self.at = end;
            return Ok(Step::Frame(frame));
        }
        let Some(first) = self.first_nonzero(self.at)? else {
            return Ok(Step::End);
        };
        let from = self.at;
        let (end, inside) = match self.next_frame(first.max(from + 1))? {
            Some(at) => (at, true),
            None => (self.after_last_nonzero(first)?, false),
        };
        self.at = if inside { end } else { self.limit };
        Ok(Step::Damage { bytes: from..end, inside })
    }

    /// The bytes of a range, for keeping aside what is damaged.
    pub fn bytes(&mut self, range: Range<u64>) -> io::Result<Bytes> {
        let len = (range.end - range.start) as usize;
        let mut bytes = vec![0; len];
        let read = read_full_at(&*self.file, &mut bytes, range.start)?;
        bytes.truncate(read);
        Ok(bytes.into())
    }

    fn frame_at(&mut self, at: u64) -> io::Result<Option<(Frame, u64)>> {
        let Some(bytes) = self.load(at, FRAME_HEADER_BYTES)? else {
            return Ok(None);
        };
        let Some(header) = FrameHeader::parse(&bytes) else {
            return Ok(None);
        };
        let whole = FRAME_HEADER_BYTES + header.len;
        let Some(bytes) = self.load(at, whole)? else {
            return Ok(None);
        };
        let payload = bytes.slice(FRAME_HEADER_BYTES..whole);
        if !header.fits(self.seed, &payload) {
            return Ok(None);
        }
        Ok(Some((Frame { kind: header.kind, seq: header.seq, payload }, at + whole as u64)))
    }

    /// The place of the first whole frame at or behind `from`.
    fn next_frame(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        while let Some(window) = self.load(from, FRAME_HEADER_BYTES)? {
            // The last bytes of a window may be the first of a magic: the next window begins with them.
            for at in candidates(&window) {
                let place = from + at as u64;
                if self.frame_at(place)?.is_some() {
                    return Ok(Some(place));
                }
            }
            from += (window.len() - (FRAME_MAGIC.len() - 1)) as u64;
        }
        Ok(None)
    }

    fn first_nonzero(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        while let Some(window) = self.load(from, 1)? {
            if let Some(at) = nonzero_block(window.chunks(ZEROS.len()).enumerate()) {
                let within = window[at..].iter().position(|byte| *byte != 0);
                return Ok(within.map(|within| from + (at + within) as u64));
            }
            from += window.len() as u64;
        }
        Ok(None)
    }

    /// Behind the last byte that is not zero; the one at `from` is not.
    fn after_last_nonzero(&mut self, from: u64) -> io::Result<u64> {
        let mut at = from;
        let mut end = from + 1;
        while let Some(window) = self.load(at, 1)? {
            if let Some(block) = nonzero_block(window.chunks(ZEROS.len()).enumerate().rev()) {
                let block_end = window.len().min(block + ZEROS.len());
                let last = window[block..block_end].iter().rposition(|byte| *byte != 0);
                end = last.map_or(end, |last| at + (block + last) as u64 + 1);
            }
            at += window.len() as u64;
        }
        Ok(end)
    }

    /// The chunk from `at` on, at least `need` bytes long; `None` where the limit or the file ends before.
    fn load(&mut self, at: u64, need: usize) -> io::Result<Option<Bytes>> {
        if at + need as u64 > self.limit {
            return Ok(None);
        }
        let have = self.chunk_at..self.chunk_at + self.chunk.len() as u64;
        if at < have.start || at + need as u64 > have.end {
            let room = usize::try_from(self.limit - at).unwrap_or(usize::MAX);
            let mut chunk = vec![0; need.max(self.chunk_bytes).min(room)];
            let read = read_full_at(&*self.file, &mut chunk, at)?;
            chunk.truncate(read);
            self.chunk = chunk.into();
            self.chunk_at = at;
            if read < need {
                return Ok(None);
            }
        }
        Ok(Some(self.chunk.slice((at - self.chunk_at) as usize..)))
    }
}

/// Zeros are compared by the block: most of what follows the last frame are zeros.
const ZEROS: [u8; 4096] = [0; 4096];

fn nonzero_block<'a>(mut blocks: impl Iterator<Item = (usize, &'a [u8])>) -> Option<usize> {
    blocks.find(|(_, block)| **block != ZEROS[..block.len()]).map(|(index, _)| index * ZEROS.len())
}

fn candidates(window: &[u8]) -> impl Iterator<Item = usize> {
    let starts = window.len() - (FRAME_MAGIC.len() - 1);
    (0..starts).filter(|at| window[*at] == FRAME_MAGIC[0] && window[*at..].starts_with(&FRAME_MAGIC))
}
