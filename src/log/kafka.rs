//! Kafka as a log.

mod admin;
mod config;
mod security;
mod wire;
