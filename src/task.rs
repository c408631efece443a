//! Placeholder.
mod outcome;
pub use outcome::Outcome;
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId(Box<str>);
impl TaskId {
    pub fn parse(s: &str) -> Result<Self, ()> {
        Ok(Self(s.into()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    High,
    Normal,
    Low,
}
impl Lane {
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
    pub fn as_str(self) -> &'static str {
        crate::telemetry::metrics::LANES[self as usize]
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: u64,
    pub operation: u64,
}
impl Identity {
    pub fn hash_id(id: &TaskId) -> u64 {
        xxhash_rust::xxh3::xxh3_64(id.as_str().as_bytes())
    }
    pub fn to_bytes(self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&self.id.to_le_bytes());
        b[8..].copy_from_slice(&self.operation.to_le_bytes());
        b
    }
    pub fn from_bytes(b: [u8; 16]) -> Self {
        Self {
            id: u64::from_le_bytes(b[..8].try_into().unwrap()),
            operation: u64::from_le_bytes(b[8..].try_into().unwrap()),
        }
    }
}
