//! What a journal counts, for whoever shows metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters over all journals and tables of a directory. They start at zero with the process, but for the bytes.
#[derive(Debug, Default)]
pub struct JournalStats {
    damaged_records: AtomicU64,
    torn_tails: AtomicU64,
    disk_bytes: AtomicU64,
}

impl JournalStats {
    /// Records that were lost to damage, each counted once.
    pub fn damaged_records(&self) -> u64 {
        self.damaged_records.load(Ordering::Relaxed)
    }

    /// Unfinished writes that were cut off when a journal was opened: the ordinary trace of a crash.
    pub fn torn_tails(&self) -> u64 {
        self.torn_tails.load(Ordering::Relaxed)
    }

    /// Bytes on disk, zero-filled space included.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count_damaged(&self, records: u64) {
        self.damaged_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn count_torn_tail(&self) {
        self.torn_tails.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.store(bytes, Ordering::Relaxed);
    }
}
