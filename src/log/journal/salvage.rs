//! Reads past what the disk cannot read any more. A failing read is tried again, with pauses, because the failure may
//! pass; then it is narrowed down to the sector that fails, and that sector reads as [`UNREADABLE`] bytes: damage like
//! any other, so that whoever reads frames loses the records in it and no others.
//!
//! Where the whole disk is away for longer than that, records are passed over that are there after all; but then no
//! checkpoint can be written that would make their loss last.
//!
//! The invariant: reading a file comes to an end, and a failure that lasts is met with a bounded wait.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    audit::DamageReport,
    disk::{Disk, DiskFile},
};

/// Stands for each byte that cannot be read. Not zero, which would be room that was never written to, and no part of
/// a frame's magic.
pub const UNREADABLE: u8 = 0xee;

/// What is given up at a time: file systems read no less than this.
const SECTOR_BYTES: u64 = 4096;

/// Between the tries. The layers below have tried for long before they report a failure.
const PAUSES: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// A file whose reads do not fail for what the disk has lost.
pub struct Salvage {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    report: Arc<DamageReport>,
    /// Where the sectors begin that were given up. They are tried again, but not waited for.
    given_up: Mutex<BTreeSet<u64>>,
}

impl Salvage {
    /// Opens a file.
    pub fn open(disk: &Arc<dyn Disk>, path: PathBuf, report: &Arc<DamageReport>) -> io::Result<Self> {
        let file = disk.open(&path)?;
        Ok(Self { disk: disk.clone(), file, path, report: report.clone(), given_up: Mutex::default() })
    }

    /// Reads bytes of one sector.
    fn read_sector(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut pauses = self.pauses(offset).iter();
        loop {
            let error = match self.file.read_at(into, offset) {
                Err(error) if is_loss(&error) => error,
                done => return done,
            };
            match pauses.next() {
                Some(pause) => self.disk.pause(*pause),
                None => {
                    self.give_up(offset..offset + into.len() as u64, &error);
                    into.fill(UNREADABLE);
                    return Ok(into.len());
                }
            }
        }
    }

    /// Sectors behind one that was given up are not waited for either: large damage would take hours.
    fn pauses(&self, offset: u64) -> &'static [Duration] {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let sector = offset - offset % SECTOR_BYTES;
        let known = given_up.range(sector.saturating_sub(SECTOR_BYTES)..=sector).next().is_some();
        if known { &[] } else { &PAUSES }
    }

    fn give_up(&self, bytes: Range<u64>, error: &io::Error) {
        let sector = bytes.start - bytes.start % SECTOR_BYTES;
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).insert(sector);
        self.report.unreadable(&self.path, &bytes, error);
    }
}

impl DiskFile for Salvage {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file.read_at(into, offset) {
            Err(error) if is_loss(&error) => {}
            done => return done,
        }
        let sector_rest = (SECTOR_BYTES - offset % SECTOR_BYTES) as usize;
        let end = sector_rest.min(into.len());
        self.read_sector(&mut into[..end], offset)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.truncate(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Whether the disk or the file system says that it has lost the bytes. All else (out of memory, say) is no reason to
/// give a record up.
fn is_loss(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|errno| lost.contains(&errno))
}
