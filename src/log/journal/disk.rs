//! The few things that the journal asks of a file system, behind a trait, so that a test can cut the power between
//! any two of them. Nothing here knows what a segment is.
//!
//! The invariant that everything else builds on: what was written is durable only after [`DiskFile::sync_data`], and
//! a name only after [`Disk::sync_dir`] of the directory that holds it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::OFlags;

/// A file system.
pub trait Disk: Send + Sync {
    /// Makes one directory, accessible to its owner only. Answers whether it was made: `false` means that something
    /// of that name was there.
    fn make_dir(&self, path: &Path) -> io::Result<bool>;

    /// What is at `path` itself; a symbolic link is not followed.
    fn inspect(&self, path: &Path) -> io::Result<Inspected>;

    /// What is in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>>;

    /// Makes a file that must not exist, readable and writable by its owner only.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing; never through a symbolic link.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Takes the lock of that file, made if need be; `None` while another process has it. Dropping gives it back.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;

    /// Blocks for so long, before something is tried again.
    fn pause(&self, time: Duration);
}

/// An open file.
pub trait DiskFile: Send + Sync {
    fn size(&self) -> io::Result<u64>;

    /// May write less than it was given.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// May read less than there is room for; 0 at the end of the file.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    fn truncate(&self, size: u64) -> io::Result<()>;

    /// Makes content and size durable. After an error nothing is known about what is on disk: it must not be tried
    /// again, because the kernel may have dropped the pages and would call the second try a success.
    fn sync_data(&self) -> io::Result<()>;
}

/// Held for as long as the lock is.
pub type Lock = Box<dyn Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    Other,
}

#[derive(Clone, Debug)]
pub struct Listed {
    pub name: String,
    pub kind: FileKind,
}

#[derive(Clone, Copy, Debug)]
pub struct Inspected {
    pub kind: FileKind,
    /// Somebody other than its owner may write to it.
    pub shared_writable: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Bytes that this process may still use.
    pub free_bytes: u64,
    /// The file system is memory: a restart of the machine empties it.
    pub volatile: bool,
}

/// Writes all of `bytes`; a write that makes no progress is an error, as a full disk may answer either way.
pub fn write_all_at(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::StorageFull.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until `into` is full or the file ends; answers how much was read.
pub fn read_full_at(file: &dyn DiskFile, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Why something could not be made durable.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// It was not done.
    #[error("the disk refused")]
    Refused(#[source] io::Error),
    /// It was done, but whether it is durable is unknown.
    #[error("a sync failed")]
    Sync(#[source] io::Error),
}

/// Makes a directory and those above it, and makes each new name durable in the directory that holds it.
pub fn make_dirs(disk: &dyn Disk, path: &Path) -> Result<(), DurableError> {
    let mut missing = Vec::new();
    let mut at = path;
    while !at.as_os_str().is_empty() {
        match disk.inspect(at) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(at),
            Err(error) => return Err(DurableError::Refused(error)),
        }
        match at.parent() {
            Some(parent) => at = parent,
            None => break,
        }
    }
    for dir in missing.into_iter().rev() {
        disk.make_dir(dir).map_err(DurableError::Refused)?;
        disk.sync_dir(&parent_of(dir)).map_err(DurableError::Sync)?;
    }
    Ok(())
}

/// The directory that holds `path`; of a bare relative name that is the current one.
pub fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn make_dir(&self, path: &Path) -> io::Result<bool> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn inspect(&self, path: &Path) -> io::Result<Inspected> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Inspected { kind: kind_of(metadata.file_type()), shared_writable: metadata.mode() & 0o022 != 0 })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        fs::read_dir(dir)?
            .map(|entry| {
                let entry = entry?;
                // A name that is not text is none of ours; its lossy form will not be taken for one either.
                let name = entry.file_name().to_string_lossy().into_owned();
                Ok(Listed { name, kind: kind_of(entry.file_type()?) })
            })
            .collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(private_options().create_new(true).open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(private_options().open(path)?)))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
        OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        const TMPFS: u32 = 0x0102_1994;
        const RAMFS: u32 = 0x8584_58f6;
        let kind = rustix::fs::statfs(path)?.f_type as u32;
        let room = rustix::fs::statvfs(path)?;
        Ok(Space { free_bytes: room.f_bavail.saturating_mul(room.f_frsize), volatile: kind == TMPFS || kind == RAMFS })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = private_options().create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, bytes, offset)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, into, offset)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn kind_of(file_type: fs::FileType) -> FileKind {
    if file_type.is_file() {
        FileKind::File
    } else if file_type.is_dir() {
        FileKind::Dir
    } else if file_type.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}
