//! The version of a write, which is made only if it is newer than the last one of its key.

/// What a unit is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence<'a> {
    pub version: u64,
    /// The task's id: the same version with the same id is the same write.
    pub id: &'a str,
}
