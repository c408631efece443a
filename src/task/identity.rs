//! What duplicates of a task are recognised by.
//!
//! Identities are stored on disk, so what is hashed is fixed:
//!
//! ```text
//! identity   = | XXH3-64 of the id, u64 little-endian | XXH3-64 of the operation, u64 little-endian |
//! operation  = bytes(target) kind payload
//! kind       = u8: 0 simple, 1 pipeline `each`, 2 pipeline `atomic`, 3 lua
//! payload    = simple: command; pipeline: count command*; lua: bytes(source) count bytes(key)* count bytes(arg)*
//! command    = bytes(name in upper case) count bytes(arg)*
//! bytes(b)   = count b
//! count      = u32 little-endian
//! ```
//!
//! Arguments are hashed as decoded, so base64, escapes and numbers make no difference. The context has no part in it.

use std::{borrow::Cow, fmt};

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::{Command, Mode, Operation, TaskId};

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

    pub(super) fn of(id: &TaskId, target: &str, operation: &Operation<'_>) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&Self::hash_of_id(id).to_le_bytes());
        bytes[8..].copy_from_slice(&hash(target, operation).to_le_bytes());
        Self(bytes)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:032x})", u128::from_be_bytes(self.0))
    }
}

fn hash(target: &str, operation: &Operation<'_>) -> u64 {
    let mut canonical = Canonical(Xxh3Default::new());
    canonical.bytes(target.as_bytes());
    match operation {
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
            canonical.bytes(script.source.as_bytes());
            canonical.list(&script.keys);
            canonical.list(&script.args);
        }
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
}
