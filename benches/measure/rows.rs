//! The rows of the table, by what they are about.

pub mod drain;
pub mod footprint;
pub mod ingest;
pub mod latency;

/// How often each comparison is made.
const ROUNDS: usize = 5;
