//! A log in Kafka.

mod nodelay;
mod partitioner;
mod record;
#[cfg(test)]
mod testing;
