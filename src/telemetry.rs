//! Placeholder.
pub mod metrics;
