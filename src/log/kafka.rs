//! Kafka as a log.

#![expect(dead_code, reason = "what joins these parts to a log is not written yet")]

pub mod admin;
pub mod config;
mod group;
pub mod security;
#[cfg(test)]
#[allow(dead_code, reason = "shared with tests that use other parts of it")]
mod testing;
pub mod wire;
