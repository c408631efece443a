//! The rows of the table, by what they are about.

pub mod drain;
pub mod footprint;
pub mod ingest;
pub mod instructions;
pub mod kafka;
pub mod latency;
pub mod markers;
pub mod once;
pub mod overload;
pub mod recovery;
pub mod ttl;

/// Tasks of a backlog that is drained.
const BACKLOG: u32 = 500_000;
