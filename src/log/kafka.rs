//! A log in Kafka.

pub mod config;
mod connector;
mod depths;
mod failure;
mod nodelay;
mod outbox;
mod partitioner;
mod producer;
mod record;
#[cfg(test)]
mod testing;
mod topics;
