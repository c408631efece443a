//! What duplicates of a task are recognised by.
//!
//! Identities are stored on disk, so what is hashed is fixed:
//!
//! ```text
//! identity   = | XXH3-64 of the id, u64 little-endian | XXH3-64 of the operation, u64 little-endian |
//! operation  = bytes(target) kind payload ttl_args? written_keys? version?
//! kind       = u8: 0 simple, 1 pipeline `each`, 2 pipeline `atomic`, 3 lua
//! payload    = simple: command; pipeline: count command*; lua: bytes(source) count bytes(key)* count bytes(arg)*
//! command    = bytes(name in upper case) count bytes(arg)*
//! ttl_args   = u8 16, count, for each: index as a count, u8: 0 seconds, 1 milliseconds
//! written_keys = u8 17, count, for each: index among the keys as a count
//! version    = u8 18, u64 little-endian
//! bytes(b)   = count b
//! count      = u32 little-endian
//! ```
//!
//! The last three are there only where they are set. Arguments are hashed as decoded, so base64, escapes and numbers
//! make no difference. The context, a deadline and what is done when it is late have no part in it.

use std::{borrow::Cow, fmt};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{Command, Mode, Operation, Script, Task, TaskId};
use crate::commands::TtlUnit;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity([u8; 16]);

impl Identity {
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The half that says which id it is.
    pub fn id_hash(&self) -> u64 {
        let [id, _] = self.halves();
        id
    }

    /// The half that says which operation it is.
    pub fn operation_hash(&self) -> u64 {
        let [_, operation] = self.halves();
        operation
    }

    /// The first half of the identity of any task with that id.
    pub fn hash_of_id(id: &TaskId) -> u64 {
        xxh3_64(id.as_str().as_bytes())
    }

    fn halves(&self) -> [u64; 2] {
        let (halves, _) = self.0.as_chunks::<8>();
        [u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1])]
    }

    pub(super) fn of(id: &TaskId, task: &Task<'_>) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&Self::hash_of_id(id).to_le_bytes());
        bytes[8..].copy_from_slice(&hash(task).to_le_bytes());
        Self(bytes)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:032x})", u128::from_be_bytes(self.0))
    }
}

fn hash(task: &Task<'_>) -> u64 {
    let mut canonical = Canonical(Xxh3Default::new());
    canonical.bytes(task.target.as_bytes());
    match &task.operation {
        Operation::Simple(command) => {
            canonical.kind(0);
            canonical.command(command);
        }
        Operation::Pipeline { mode, commands } => {
            canonical.kind(match mode {
                Mode::Each => 1,
                Mode::Atomic => 2,
            });
            canonical.count(commands.len());
            commands.iter().for_each(|command| canonical.command(command));
        }
        Operation::Lua(script) => {
            canonical.kind(3);
            canonical.script(script);
        }
    }
    if let Some(version) = task.version {
        canonical.kind(18);
        canonical.0.update(&version.get().to_le_bytes());
    }
    canonical.0.digest()
}

struct Canonical(Xxh3Default);

impl Canonical {
    fn kind(&mut self, kind: u8) {
        self.0.update(&[kind]);
    }

    fn count(&mut self, count: usize) {
        let count = u32::try_from(count).expect("a task is bounded far below 4 GiB by the body limit");
        self.0.update(&count.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn list(&mut self, list: &[Cow<'_, [u8]>]) {
        self.count(list.len());
        list.iter().for_each(|bytes| self.bytes(bytes));
    }

    fn command(&mut self, command: &Command<'_>) {
        self.bytes(command.spec.name.as_bytes());
        self.list(&command.args);
    }
    fn script(&mut self, script: &Script<'_>) {
        self.bytes(script.source.as_bytes());
        self.list(&script.keys);
        self.list(&script.args);
        if !script.ttl_args.is_empty() {
            self.kind(16);
            self.count(script.ttl_args.len());
            for arg in &script.ttl_args {
                self.count(arg.index);
                self.kind(match arg.unit {
                    TtlUnit::Seconds => 0,
                    TtlUnit::Millis => 1,
                });
            }
        }
        if let Some(written) = &script.written {
            self.kind(17);
            self.count(written.len());
            written.iter().for_each(|index| self.count(*index));
        }
    }
}
