//! One file of a journal: what it is called, what is known of it, and how its files are made and measured.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    audit::DamageReport,
    budget::Account,
    disk::{Disk, DiskFile, write_all_at},
    frame::{Seed, SegmentHeader},
    salvage::Salvage,
    scanner::Scanner,
};

/// Where a journal or table lives, and by which measures: what its writer and its readers share.
pub struct Home {
    /// The directory that is locked, above or at `dir`.
    pub root: PathBuf,
    pub dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub shape: Shape,
    pub account: Account,
    pub report: Arc<DamageReport>,
    pub aside: Aside,
    #[cfg(test)]
    pub bug: Option<super::tests::model::Bug>,
}

impl Home {
    /// Opens a file of the journal. Its reads go past what the disk has lost.
    pub fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(Salvage::open(&self.disk, path.to_owned(), &self.report)?))
    }

    /// Makes the names durable that lead from the root to the journal's files.
    pub fn sync_names(&self) -> io::Result<()> {
        let below_root = |dir: &&Path| dir.starts_with(&self.root);
        self.dir.ancestors().take_while(below_root).try_for_each(|dir| self.disk.sync_dir(dir))
    }
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// A segment is left for the next one before it grows beyond this, unless one write alone is larger.
    pub segment_bytes: u64,
    /// The zeros that a file grows by at first; later steps are as long as the file is, up to `max_step`.
    pub first_step: u64,
    pub max_step: u64,
    /// What appends leave of the file system.
    pub min_free_bytes: u64,
}

/// A segment, as writer and readers know it.
pub struct Segment {
    pub ordinal: u64,
    pub first_seq: u64,
    pub path: PathBuf,
    /// `None` where both copies of the header are damaged, and with them all that is in the file.
    pub seed: Option<Seed>,
    /// Where its frames end, if this process knows.
    pub sealed_end: OnceLock<u64>,
}

impl Segment {
    pub fn new(header: &SegmentHeader, path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            ordinal: header.ordinal,
            first_seq: header.first_seq,
            path,
            seed: Some(header.seed()),
            sealed_end: OnceLock::new(),
        })
    }

    pub fn unreadable(name: SegmentName, path: PathBuf) -> Arc<Self> {
        let SegmentName { ordinal, first_seq } = name;
        Arc::new(Self { ordinal, first_seq, path, seed: None, sealed_end: OnceLock::new() })
    }

    pub fn file_name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// What a segment's file is called: both numbers with leading zeros, so that a listing shows the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    pub ordinal: u64,
    pub first_seq: u64,
}

impl SegmentName {
    pub fn parse(name: &str) -> Option<Self> {
        let (ordinal, first_seq) = name.strip_suffix(".seg")?.split_once('-')?;
        let parsed = Self { ordinal: ordinal.parse().ok()?, first_seq: first_seq.parse().ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }

    pub fn path_in(self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:010}-{:020}.seg", self.ordinal, self.first_seq)
    }
}

/// Writes zeros over a range.
pub fn fill_zeros(file: &dyn DiskFile, range: Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut at = range.start;
    while at < range.end {
        let piece = ZEROS.len().min((range.end - at) as usize);
        write_all_at(file, &ZEROS[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Keeps damaged bytes for whoever wants to look at them: in `<segment>.bad`, at the place that they had in the
/// segment, so that doing it again changes nothing. Only a help: what goes wrong here is not reported.
#[derive(Default)]
pub struct Aside {
    files: AtomicUsize,
}

impl Aside {
    const MAX_FILES: usize = 16;
    const MAX_BYTES: u64 = 64 * 1024;

    /// Counts the files that are there from before.
    pub fn found(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    pub fn keep(&self, disk: &dyn Disk, segment: &Segment, scanner: &mut Scanner, damage: &Range<u64>) {
        let range = damage.start..damage.end.min(damage.start + Self::MAX_BYTES);
        let path = segment.path.with_extension("bad");
        let file = disk.open(&path).or_else(|_| {
            if self.files.fetch_add(1, Ordering::Relaxed) >= Self::MAX_FILES {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            disk.create(&path)
        });
        let kept = file.and_then(|file| {
            write_all_at(&*file, &scanner.bytes(range.clone())?, range.start)?;
            file.sync_data()
        });
        if let Err(error) = kept {
            tracing::debug!(%error, file = segment.file_name(), "Damaged bytes could not be kept aside");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_read_back_and_nothing_else_is() {
        let name = SegmentName { ordinal: 7, first_seq: u64::MAX };
        assert_eq!(name.to_string(), "0000000007-18446744073709551615.seg");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
        for other in
            ["7-1.seg", "0000000007-00000000000000000001.bad", "0000000007-+0000000000000000001.seg", "META", ""]
        {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }
}
