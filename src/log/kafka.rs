//! A log in Kafka.

pub mod admin;
pub mod config;
mod connector;
mod depths;
mod failure;
mod fetcher;
mod group;
mod nodelay;
mod outbox;
mod partitioner;
mod producer;
mod record;
pub mod security;
#[cfg(test)]
#[allow(dead_code, reason = "shared with tests that use other parts of it")]
mod testing;
mod topics;
pub mod wire;
