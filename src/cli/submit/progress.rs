//! How far a file has been handed in.

use std::time::Duration;

use super::{super::progress, task::Refused};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts, and shows the counts.
pub struct Progress {
    accepted: usize,
    refused: usize,
    /// Of the input, and of what was read of it.
    bytes: Option<u64>,
    read: u64,
    shown: progress::Progress,
}

impl Progress {
    /// `bytes` is the size of the input, if it is known.
    pub fn new(bytes: Option<u64>) -> Self {
        Self { accepted: 0, refused: 0, bytes, read: 0, shown: progress::Progress::new(LINE_INTERVAL) }
    }

    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// A batch is done, for which `bytes` of the input were read.
    pub fn advance<'a>(&mut self, bytes: u64, accepted: usize, refused: impl Iterator<Item = &'a Refused>) {
        self.accepted += accepted;
        self.read += bytes;
        for Refused { line, reason } in refused {
            self.refused += 1;
            self.shown.tell(&format!("line {line}: refused: {reason}"));
        }
        let (accepted, refused, read) = (self.accepted, self.refused, self.read);
        self.shown.show(|pace| {
            let left = self.bytes.map(|bytes| format!(", about {}", pace.left(read, bytes))).unwrap_or_default();
            format!("{accepted} accepted, {refused} refused so far{left}")
        });
    }

    /// Accepted and refused, in this order.
    pub fn finish(self) -> (usize, usize) {
        (self.accepted, self.refused)
    }
}
