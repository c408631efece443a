//! The promises of the README, each held against the real binary, a real Redis and real faults.

#![expect(clippy::print_stderr, reason = "the logs of a sidecar are shown beside the failure of its test")]

mod ambiguity;
mod architecture;
mod at_rest;
mod chaos;
mod coalescing;
mod dead_letters;
mod demo;
mod disk;
mod exposure;
mod harness;
mod kafka;
mod kafka_seen;
mod labels;
mod late;
mod long_outages;
mod memory;
mod order;
mod outages;
mod panic;
mod recovery;
mod secrets;
mod setup;
mod status;
mod stored;
mod version_fence;
