//! A disk in memory that can lose what was not synced. Everything is in blocks of 512 bytes: a power cut keeps any
//! subset of the blocks written since the file's last sync, any subset of the names made or removed since the
//! directory's last sync, and of an unsynced change of size any part. Sectors can be lost: they are neither read nor
//! written in part, until they are written anew as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::super::disk::{Disk, DiskFile, FileKind, Inspected, Listed, Lock, Space, parent_of};

const BLOCK: usize = 512;
/// What is lost at a time.
pub const SECTOR: usize = 4096;

#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    dirs: BTreeMap<PathBuf, Dir>,
    files: Vec<Inode>,
    faults: Faults,
    pauses: usize,
}

/// What goes wrong, and when.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many changes and syncs still work; then all fail, as if the process had died. `None`: all work.
    pub changes_left: Option<u64>,
    /// Bytes that files may still grow by.
    pub room: Option<u64>,
    /// Syncs of files fail.
    pub sync_fails: bool,
    /// Fewer bytes are written than asked for.
    pub short_writes: bool,
}

#[derive(Default)]
struct Dir {
    current: BTreeMap<String, Name>,
    durable: BTreeMap<String, Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Dir,
    File(usize),
}

#[derive(Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    /// Content or size changed since the last sync.
    is_dirty: bool,
    /// Sectors that cannot be read, and after how many pauses they can; `None`: never.
    lost: BTreeMap<usize, Option<usize>>,
}

impl SimDisk {
    pub fn new() -> Self {
        let disk = Self::default();
        disk.lock().dirs.insert(PathBuf::from("/"), Dir::default());
        disk
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Loses the sector of a file that a byte is in; for so many pauses, or for good.
    pub fn lose_sector(&self, path: &Path, byte: usize, pauses: Option<usize>) {
        let mut state = self.lock();
        let Some(Name::File(inode)) = state.find(path) else {
            panic!("there is no file {}", path.display());
        };
        state.files[inode].lost.insert(byte / SECTOR, pauses);
    }

    /// How often something waited before it tried again.
    pub fn pauses(&self) -> usize {
        self.lock().pauses
    }

    pub fn changes_left(&self) -> Option<u64> {
        self.lock().faults.changes_left
    }

    /// The power goes: what was not synced is there or not, as chance will have it.
    pub fn cut_power(&self, chance: &mut fastrand::Rng) {
        let mut state = self.lock();
        state.faults = Faults::default();
        for file in &mut state.files {
            file.cut_power(chance);
        }
        for dir in state.dirs.values_mut() {
            dir.cut_power(chance);
        }
        let State { dirs, .. } = &mut *state;
        let lost: Vec<PathBuf> = dirs.keys().filter(|path| !is_reachable(dirs, path)).cloned().collect();
        for path in lost {
            dirs.remove(&path);
        }
    }

    /// The process dies, the machine does not: all that was written is there, synced or not.
    pub fn kill(&self) {
        self.lock().faults = Faults::default();
    }

    /// Another disk with the same content, all of it synced.
    pub fn copy(&self) -> Self {
        let state = self.lock();
        let copy_dir = |dir: &Dir| Dir { current: dir.current.clone(), durable: dir.current.clone() };
        let copy_file =
            |file: &Inode| Inode { current: file.current.clone(), durable: file.current.clone(), ..Inode::default() };
        Self(Arc::new(Mutex::new(State {
            dirs: state.dirs.iter().map(|(path, dir)| (path.clone(), copy_dir(dir))).collect(),
            files: state.files.iter().map(copy_file).collect(),
            faults: Faults::default(),
            pauses: 0,
        })))
    }

    /// The content of a file.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.lock();
        match state.find(path) {
            Some(Name::File(inode)) => state.files[inode].current.clone(),
            _ => panic!("there is no file {}", path.display()),
        }
    }

    /// Changes a file, or makes one, behind the journal's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let inode = match state.find(path) {
            Some(Name::File(inode)) => inode,
            _ => {
                let inode = state.files.len();
                state.files.push(Inode::default());
                let dir = state.dirs.get_mut(&parent_of(path)).expect("its directory is there");
                dir.current.insert(name_of(path), Name::File(inode));
                inode
            }
        };
        change(&mut state.files[inode].current);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds this")
    }

    fn change(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        match &mut state.faults.changes_left {
            Some(0) => Err(io::Error::other("the process is dead")),
            Some(left) => {
                *left -= 1;
                Ok(state)
            }
            None => Ok(state),
        }
    }

    fn open_as(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode })
    }
}

fn is_reachable(dirs: &BTreeMap<PathBuf, Dir>, path: &Path) -> bool {
    let mut path = path;
    while let Some(parent) = path.parent() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if dirs.get(parent).and_then(|dir| dir.current.get(&*name)) != Some(&Name::Dir) {
            return false;
        }
        path = parent;
    }
    true
}

impl Dir {
    fn cut_power(&mut self, chance: &mut fastrand::Rng) {
        let names: BTreeSet<&String> = self.current.keys().chain(self.durable.keys()).collect();
        let mut kept = BTreeMap::new();
        for name in names {
            let (now, synced) = (self.current.get(name), self.durable.get(name));
            let stays = if now == synced || chance.bool() { now } else { synced };
            kept.extend(stays.map(|stays| (name.clone(), *stays)));
        }
        self.durable.clone_from(&kept);
        self.current = kept;
    }
}

impl Inode {
    fn cut_power(&mut self, chance: &mut fastrand::Rng) {
        if !self.is_dirty {
            return;
        }
        let (now, synced) = (self.current.len(), self.durable.len());
        let len = match chance.u8(..4) {
            0 => synced,
            1 => chance.usize(now.min(synced)..=now.max(synced)),
            _ => now,
        };
        self.durable.resize(len, 0);
        for block in std::mem::take(&mut self.dirty) {
            let range = block * BLOCK..((block + 1) * BLOCK).min(len).min(now);
            if !range.is_empty() && chance.bool() {
                self.durable[range.clone()].copy_from_slice(&self.current[range]);
            }
        }
        self.current.clone_from(&self.durable);
        self.is_dirty = false;
    }

    fn sync(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            let len = self.current.len();
            self.durable.resize(len, 0);
            for block in std::mem::take(&mut self.dirty) {
                let range = block * BLOCK..((block + 1) * BLOCK).min(len);
                if !range.is_empty() {
                    self.durable[range.clone()].copy_from_slice(&self.current[range]);
                }
            }
        }
    }

    /// Fails where a lost sector is among the bytes.
    fn check(&self, bytes: Range<usize>) -> io::Result<()> {
        let sectors = bytes.start / SECTOR..bytes.end.div_ceil(SECTOR);
        match self.lost.range(sectors).next() {
            Some(_) if !bytes.is_empty() => Err(rustix::io::Errno::IO.into()),
            _ => Ok(()),
        }
    }

    fn touch(&mut self, from: usize, to: usize) {
        self.is_dirty = true;
        self.dirty.extend(from / BLOCK..to.div_ceil(BLOCK));
    }
}

impl Disk for SimDisk {
    fn make_dir(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.change()?;
        let parent = state.dirs.get_mut(&parent_of(path)).ok_or(io::ErrorKind::NotFound)?;
        if parent.current.contains_key(&name_of(path)) {
            return Ok(false);
        }
        parent.current.insert(name_of(path), Name::Dir);
        state.dirs.insert(path.to_owned(), Dir::default());
        Ok(true)
    }

    fn inspect(&self, path: &Path) -> io::Result<Inspected> {
        let state = self.lock();
        let kind = match state.find(path) {
            _ if state.dirs.contains_key(path) => FileKind::Dir,
            Some(Name::File(_)) => FileKind::File,
            Some(Name::Dir) | None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Inspected { kind, shared_writable: false })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let state = self.lock();
        let dir = state.dirs.get(dir).ok_or(io::ErrorKind::NotFound)?;
        let listed = |(name, what): (&String, &Name)| Listed {
            name: name.clone(),
            kind: if *what == Name::Dir { FileKind::Dir } else { FileKind::File },
        };
        Ok(dir.current.iter().map(listed).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.change()?;
        if state.find(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.files.len();
        state.files.push(Inode::default());
        let dir = state.dirs.get_mut(&parent_of(path)).ok_or(io::ErrorKind::NotFound)?;
        dir.current.insert(name_of(path), Name::File(inode));
        Ok(self.open_as(inode))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match self.lock().find(path) {
            Some(Name::File(inode)) => Ok(self.open_as(inode)),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        let dir = state.dirs.get_mut(&parent_of(path)).ok_or(io::ErrorKind::NotFound)?;
        dir.current.remove(&name_of(path)).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change()?;
        let dir = state.dirs.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        dir.durable.clone_from(&dir.current);
        Ok(())
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { free_bytes: self.lock().faults.room.unwrap_or(1 << 40), volatile: false })
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Lock>> {
        Ok(Some(Box::new(())))
    }

    fn pause(&self, _: Duration) {
        let mut state = self.lock();
        state.pauses += 1;
        for file in &mut state.files {
            file.lost.retain(|_, pauses| {
                *pauses = pauses.map(|left| left - 1);
                *pauses != Some(0)
            });
        }
    }
}

impl State {
    fn find(&self, path: &Path) -> Option<Name> {
        self.dirs.get(&parent_of(path))?.current.get(&name_of(path)).copied()
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.inode].current.len() as u64)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.change()?;
        let state = &mut *state;
        let file = &mut state.files[self.inode];
        let from = offset as usize;
        let mut to = from + bytes.len();
        if state.faults.short_writes && bytes.len() > 1 {
            to = from + bytes.len() / 2;
        }
        let grown = to.saturating_sub(file.current.len()) as u64;
        if let Some(room) = &mut state.faults.room {
            if grown > 0 && *room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            to -= grown.saturating_sub(*room) as usize;
            *room -= grown.min(*room);
        }
        // A sector that is written in part is read first.
        let whole = from.next_multiple_of(SECTOR)..to / SECTOR * SECTOR;
        file.check(from..to.min(whole.start))?;
        file.check(whole.end.max(from)..to)?;
        file.lost.retain(|sector, _| !whole.contains(&(sector * SECTOR)));
        if to > file.current.len() {
            file.current.resize(to, 0);
        }
        file.current[from..to].copy_from_slice(&bytes[..to - from]);
        file.touch(from, to);
        Ok(to - from)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        let content = &state.files[self.inode].current;
        let from = (offset as usize).min(content.len());
        let len = into.len().min(content.len() - from);
        state.files[self.inode].check(from..from + len)?;
        into[..len].copy_from_slice(&content[from..from + len]);
        Ok(len)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.change()?;
        let file = &mut state.files[self.inode];
        let size = size as usize;
        file.check(size..size.next_multiple_of(SECTOR))?;
        file.lost.retain(|sector, _| sector * SECTOR < size);
        file.current.resize(size, 0);
        file.is_dirty = true;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.change()?;
        if state.faults.sync_fails {
            return Err(io::Error::other("the disk is broken"));
        }
        state.files[self.inode].sync();
        Ok(())
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
